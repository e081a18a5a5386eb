"""The check programs, which a build with GLOSS_KERNELS_EMULATOR=1 leaves in build/emulator."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = Path(os.environ.get("GLOSS_TEST_PROGRAMS", ROOT / "build/emulator"))  # of tests/sanitize: its own


@pytest.fixture(scope="session")
def run_check() -> Callable[..., subprocess.CompletedProcess[str]]:
    """run_check(program, case, seed=None) runs one case; ``seed``: of the order of blocks, warps and lanes."""

    def run(program: str, case: str, seed: int | None = None) -> subprocess.CompletedProcess[str]:
        path = PROGRAMS / program
        if not path.exists():
            pytest.skip(f"no {path}: GLOSS_KERNELS_EMULATOR=1 pip install -e .")
        environment = dict(os.environ) if seed is None else {**os.environ, "GLOSS_EMULATOR_SEED": str(seed)}
        environment["UBSAN_OPTIONS"] = f"{environment.get('UBSAN_OPTIONS', '')}:halt_on_error=1"
        return subprocess.run([path, case], env=environment, capture_output=True, text=True, timeout=900, check=False)

    return run

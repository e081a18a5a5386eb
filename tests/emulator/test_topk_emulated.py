"""cosine_topk in CUDA and its gradient, on the emulator, against float64 loops (topk_check.cpp).

Several orders of blocks, warps and lanes give the same bits, nothing is written past the end of a buffer.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GROUPS = [
    "arguments", "small", "self", "waves", "many", "pairs", "ties", "near_ties", "extremes", "not_finite", "hints",
    "backward",
]  # fmt: skip


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    path = tmp_path_factory.mktemp("topk") / "topk_check"
    flags = ["-std=c++17", "-O2", "-Wall", "-Wno-unknown-pragmas", "-DGLOSS_EMULATE"]
    includes = [f"-I{ROOT / 'csrc/emulator'}", f"-I{ROOT / 'csrc'}"]
    sources = [ROOT / "tests/emulator/topk_check.cpp", *sorted((ROOT / "csrc/topk").glob("*.cu"))]
    subprocess.run([compiler, *flags, *includes, "-x", "c++", *sources, "-o", path], check=True)
    return path


@pytest.mark.parametrize("group", GROUPS)
def test_group(program: Path, group: str) -> None:
    done = subprocess.run([program, group], capture_output=True, text=True, timeout=3000, check=False)
    assert done.returncode == 0, done.stdout + done.stderr

"""cosine_topk in CUDA and its gradient, on the emulator, against float64 loops.

topk_check.cpp: several orders of blocks, warps and lanes give the same bits, nothing is written past the end of a
buffer. sweep_check.cpp: each product that the sweep stores or lists is right, and none is left out.
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
SWEEP_GROUPS = ["self", "split", "padding", "pairs"]


def compiled(folder: Path, name: str, *included: str) -> Path:
    """The check program `name`, with the stages that it does not include itself."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    flags = ["-std=c++17", "-O2", "-Wall", "-Wno-unknown-pragmas", "-DGLOSS_EMULATE"]
    includes = [f"-I{ROOT / 'csrc/emulator'}", f"-I{ROOT / 'csrc'}"]
    stages = [path for path in sorted((ROOT / "csrc/topk").glob("*.cu")) if path.stem not in included]
    sources = [ROOT / f"tests/emulator/{name}.cpp", *stages]
    subprocess.run([compiler, *flags, *includes, "-x", "c++", *sources, "-o", folder / name], check=True)
    return folder / name


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("topk"), "topk_check")


@pytest.fixture(scope="module")
def sweep_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("sweep"), "sweep_check", "search", "sweep")


def passes(program: Path, group: str) -> None:
    done = subprocess.run([program, group], capture_output=True, text=True, timeout=3000, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("group", GROUPS)
def test_group(program: Path, group: str) -> None:
    passes(program, group)


@pytest.mark.parametrize("group", SWEEP_GROUPS)
def test_products_of_the_sweep(sweep_program: Path, group: str) -> None:
    passes(sweep_program, group)

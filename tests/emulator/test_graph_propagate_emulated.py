"""Stages graph and propagate of the CUDA core on the emulator, against the CPU core (propagate_check.cpp)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CASES = [
    "graph_structure",
    "graph_bad_indices",
    "graph_weights",
    "propagate_classes",
    "propagate_sizes",
    "propagate_variants",
    "propagate_components",
    "propagate_hubs",
    "propagate_weak",
    "propagate_few_iterations",
    "propagate_captured",
]


@pytest.fixture(scope="module")
def check(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    folder = tmp_path_factory.mktemp("propagate_check")
    flags = ["-std=c++17", "-O1", "-Wall", "-Wno-unknown-pragmas", f"-I{ROOT / 'csrc'}"]
    emulated = ["-DGLOSS_EMULATE", f"-I{ROOT / 'csrc/emulator'}"]
    stages = [ROOT / "csrc/graph", ROOT / "csrc/propagate"]
    cpu_sources = [ROOT / "csrc/cpu/isa.cpp", *(path for stage in stages for path in sorted(stage.glob("*.cpp")))]
    cuda_sources = [path for stage in stages for path in sorted(stage.glob("*.cu"))]

    def build(number: int, source: Path, *arguments: str | Path) -> Path:
        out = folder / f"{number}.o"
        subprocess.run([compiler, *flags, *arguments, "-x", "c++", "-c", source, "-o", out], check=True)
        return out

    objects = [build(at, source, "-DGLOSS_ISA=generic") for at, source in enumerate(cpu_sources)]
    sources = [*cuda_sources, ROOT / "tests/emulator/propagate_check.cpp"]
    objects += [build(at, source, *emulated) for at, source in enumerate(sources, len(objects))]
    program = folder / "propagate_check"
    subprocess.run([compiler, *objects, "-o", program], check=True)
    return program


@pytest.mark.parametrize("case", CASES)
def test_case(check: Path, case: str) -> None:
    done = subprocess.run([check, case], capture_output=True, text=True, timeout=3000, check=False)
    assert done.returncode == 0, done.stdout + done.stderr

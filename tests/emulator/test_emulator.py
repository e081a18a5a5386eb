"""The emulator against plain loops, and that it notices what would be a race or an error on a GPU (selftest.cu)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CASES = [
    "mma_half",
    "mma_bfloat16",
    "warps",
    "reduce",
    "neighbours",
    "barriers",
    "atomics",
    "copies",
    "half",
    "bfloat16",
]
CASES += ["launches", "capture", "devices"]
WRONG = {
    "returned": "__syncthreads is not reached by all threads",
    "kinds": "different kinds of __syncthreads",
    "lanes": "waits for lanes that do not come",
    "no_opt_in": "declares 40000 bytes of shared memory, and is launched with 20480 bytes without an opt-in",
    "past_end": "past the end of the dynamic shared memory",
    "no_barrier": "wrong: shared memory between warps",
    "no_wait": "wrong: cp_async",
}


@pytest.mark.parametrize("case", CASES)
def test_case(run_check, case: str) -> None:
    for seed in (0, 1, 12345):
        done = run_check("selftest", case, seed)
        assert done.returncode == 0, f"seed {seed}: {done.stdout}{done.stderr}"


@pytest.mark.parametrize("case", WRONG)
def test_mistake_is_noticed(run_check, case: str) -> None:
    for seed in (0, 1, 12345):
        done = run_check("selftest", case, seed)
        assert done.returncode != 0, f"seed {seed}"
        assert WRONG[case] in done.stdout + done.stderr


def test_shuffle_xor_width(run_check) -> None:
    done = run_check("selftest", "xor_width", 0)
    assert done.returncode == 0, done.stdout


def test_same_sources_compile_for_a_gpu(tmp_path: Path) -> None:
    compiler = shutil.which("nvcc")
    if compiler is None:
        pytest.skip("needs nvcc")
    flags = ["-std=c++17", "-arch=sm_80", f"-I{ROOT / 'csrc'}", "-c"]
    subprocess.run([compiler, *flags, ROOT / "tests/emulator/selftest.cu", "-o", tmp_path / "selftest.o"], check=True)

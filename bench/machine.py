"""What the numbers were measured on: machine, versions, commit, and the peaks that the tables relate them to."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "faiss-cpu", "pynndescent", "torch-geometric", "pyamg")
FLAGS = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")


def describe() -> dict[str, Any]:
    """Machine, versions and commit, ready for JSON."""
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(),
        "machine": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "instructions": [flag for flag in FLAGS if flag in _cpuinfo("flags", "Features").split()],
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "versions": {"python": platform.python_version(), **_versions()},
        "kernels": _kernels(),
    }


def peaks() -> dict[str, float | None]:
    """Measured rates: arithmetic peak (register loop, peak.c), torch.mm, and copy bandwidth; best of several."""
    register = _register_peak()
    return {
        "float32_gflops": register[0],
        "bf16_gflops": register[1],
        "torch_mm_float32_gflops": _matmul_rate(torch.float32),
        "torch_mm_bf16_gflops": _matmul_rate(torch.bfloat16),
        "copy_gb_per_s": _copy_rate(),
    }


def best_rate(peaks: dict[str, float | None]) -> float:
    """The highest arithmetic rate of the machine in GFLOP/s: the roof of the bound lines."""
    return max(rate for name, rate in peaks.items() if name.endswith("gflops") and rate)


def best_float32_rate(peaks: dict[str, float | None]) -> float:
    return max(rate for name, rate in peaks.items() if name.endswith("float32_gflops") and rate)


def _matmul_rate(dtype: torch.dtype) -> float:
    rate = 0.0
    for n in (256, 2048):
        if rate and n**3 > rate * 1e9:  # two seconds: bf16 where a processor has no instructions for it
            break
        a = torch.ones(n, n, dtype=dtype)
        b, out = torch.ones_like(a), torch.empty_like(a)
        rate = round(2 * n**3 / _best(lambda: torch.mm(a, b, out=out)) / 1e9, 1)  # noqa: B023
    return rate


def _copy_rate(megabytes: int = 256) -> float:
    """Bytes read plus bytes written a second."""
    a = torch.ones(megabytes * 2**18)
    b = torch.empty_like(a)
    return round(2 * a.nbytes / _best(lambda: b.copy_(a)) / 1e9, 1)


def _best(run: Callable[[], Any], rounds: int = 7) -> float:
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _register_peak(rounds: int = 5) -> tuple[float | None, float | None]:
    """Needs a C compiler; None where there is none."""
    compiler = os.environ.get("CC", "cc")
    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(folder) / "peak")
        build = [compiler, "-O2", "-march=native", "-fopenmp", str(HERE / "peak.c"), "-o", program]
        try:
            subprocess.run(build, check=True, capture_output=True)
            lines = [
                subprocess.run([program, str(torch.get_num_threads())], check=True, capture_output=True, text=True)
                for _ in range(rounds)
            ]
        except (OSError, subprocess.CalledProcessError):
            return None, None
    rates = [[float(word) for word in line.stdout.split()] for line in lines]
    return max(rate[0] for rate in rates), max(rate[1] for rate in rates) or None


def _commit() -> str:
    try:
        git = ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--abbrev=10"]
        return subprocess.run(git, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _cpuinfo(*keys: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() in keys), "")


def _processor() -> str:
    name = _cpuinfo("model name") or platform.processor() or "unknown"
    family, model = _cpuinfo("cpu family"), _cpuinfo("model")
    return f"{name} (family {family}, model {model})" if family else name


def _versions() -> dict[str, str]:
    found = {}
    for package in (*PACKAGES, "gloss-kernels"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    if found["gloss-kernels"] == "not installed":
        found["gloss-kernels"] = importlib.import_module("gloss_kernels").__version__ + " (source tree)"
    return found


def _kernels() -> str:
    from gloss_kernels import available_backends

    status = available_backends()["cpu"]
    return status.detail if status.available else f"reference only: {status.detail}"


if __name__ == "__main__":
    for key, value in {**describe(), **peaks()}.items():
        print(f"{key:<26} {value}")

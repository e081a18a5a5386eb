"""What the machine is, and the two rates that every bound is made of. On random data: a matrix product of ones draws
less power and runs up to an eighth faster."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import machine
import torch

import gloss_kernels
from gpubench.rows import ROOT, Context, Row
from gpubench.timing import fill

PACKAGES = ("triton", "faiss-gpu", "cuvs-cu12", "cuvs-cu13", "certex", "flashlib", "pytest-xdist", "pytest-timeout")
TOOLS = ("nvcc", "ncu", "compute-sanitizer")


def versions(context: Context) -> Iterator[Row]:
    facts: dict[str, Any] = machine.describe()
    facts["versions"] |= {name: version(name) for name in PACKAGES}
    facts["tools"] = {tool: shutil.which(tool) or "" for tool in TOOLS}
    facts["package"] = str(Path(gloss_kernels.__file__).parent)
    facts["backends"] = {name: list(status) for name, status in gloss_kernels.available_backends().items()}
    if context.device == "cuda":
        facts |= {"gpu": "", "driver": driver()}
        if torch.cuda.is_available():
            facts |= gpu()
    yield Row("machine", facts["versions"]["gloss-kernels"], facts=facts, error=problem(facts))


def problem(facts: dict[str, Any]) -> str:
    """Why nothing that follows would say anything."""
    if "gpu" in facts and not facts["gpu"]:
        return "torch sees no GPU (torch.cuda.is_available() is False)"
    backends = facts["backends"]
    if any(backends[name][0] for name in ("cuda", "triton")):
        return ""
    where = f", imported from {facts['package']}" if Path(facts["package"]).is_relative_to(ROOT) else ""
    return f"neither cuda ({backends['cuda'][1]}) nor triton ({backends['triton'][1]}) can run{where}"


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def gpu() -> dict[str, Any]:
    found = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "gpu": found.name,
        "capability": f"{found.major}.{found.minor}",
        "multiprocessors": found.multi_processor_count,
        "gpu_memory_gib": round(found.total_memory / 2**30, 1),
        "l2_mib": round(getattr(found, "L2_cache_size", 0) / 2**20, 1),
        "cuda": torch.version.cuda,
    }


def driver() -> str:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ""
    command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ).stdout.strip()


def copy(context: Context, megabytes: int) -> Iterator[Row]:
    """Counts the bytes read and the bytes written."""
    device = torch.device(context.device)
    a = torch.randn(megabytes << 18, device=device)
    b = torch.empty_like(a)
    yield fill(Row("roof", "copy", bytes=2 * a.nbytes), lambda: lambda: b.copy_(a), device, rounds=context.rounds)


def matrix(context: Context, n: int, dtype: str) -> Iterator[Row]:
    device = torch.device(context.device)
    a, b = (torch.randn(n, n, device=device).to(getattr(torch, dtype)) for _ in range(2))
    yield fill(Row("roof", dtype, operations=2 * n**3), lambda: lambda: a @ b, device, rounds=context.rounds)

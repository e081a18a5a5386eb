"""Which kind "auto" takes: by rows, device, memory and what is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

from gloss_kernels import _library as library

from .structures import has_gpu, load_faiss

CGROUP = Path("/sys/fs/cgroup")

# Two cores, d = 384, the k = 15 graph (bench/corpus_graph.py): exact search grows with n^2, HNSW with n^1.25; past this
# many rows HNSW at a recall of 0.95 is faster. d changes both alike. By instruction set: avx512bf16 and avx2 measured,
# the others by the speed of the exact search beside them.
EXACT_ROWS = {"avx512bf16": 250_000, "avx512": 120_000, "avx2": 40_000, "generic": 8_000}
EXACT_ROWS_CUDA = 2_000_000


def memory(kind: str, n: int, dim: int, links: int = 16) -> int:
    """Bytes of the FAISS structure, beside the stored rows: the figures of NeighborIndex's docstring."""
    codes = {
        "exact": 2 * dim,  # 16-bit rows, during a search only
        "flat": 4 * dim,
        "ivf_flat": 2 * dim + 8,
        "ivf_pq": dim // 4 + 9,
        "hnsw": 2 * dim + 8 * links + 32,
        "nn_descent": 12 * dim + 32 * 60,  # float32, a copy of it while it is built, and the pools of candidates
    }
    return n * codes[kind]


def available_memory() -> int | None:
    """Bytes that a new allocation can have, None where the system does not tell. On Linux with the file pages that it
    gives back on demand, and no more than the container's limit leaves."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            free = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
    try:  # a container's (cgroup 2); "max" is no limit, inactive_file are the file pages that it gives back
        limit, used, stat = (
            (CGROUP / name).read_text(encoding="ascii") for name in ("memory.max", "memory.current", "memory.stat")
        )
        files = next((int(line.split()[1]) for line in stat.splitlines() if line.startswith("inactive_file ")), 0)
        return max(min(free, int(limit) - int(used) + files), 0)
    except (OSError, ValueError):
        return free


def exact_rows(device: torch.device) -> tuple[int, str]:
    """Up to how many rows exact search is the fastest, and in words which instruction set decides it."""
    if device.type == "cuda":
        return EXACT_ROWS_CUDA, ""
    if library.core is None:
        return EXACT_ROWS["generic"], ""
    isa = library.core.isa()
    return EXACT_ROWS[isa], f" with {isa}"


def choose(n: int, dim: int, device: torch.device, limit: int | None) -> tuple[str, str]:
    """The kind and the reason for it."""
    size = f"{n:,} x {dim} rows on {device.type}"
    most, where = exact_rows(device)
    if n <= most:
        return "exact", f"{size}: up to {most:,} rows{where} exact search is the fastest way to a graph"
    if importlib.util.find_spec("faiss") is None:
        return "exact", f"{size}: an approximate kind would be faster, but faiss is not installed"
    if device.type == "cuda" and has_gpu(load_faiss()):
        return "ivf_flat", f"{size}: above {most:,} rows inverted lists, which FAISS keeps on the GPU"
    limit = limit if limit is not None else available_memory()
    for kind in ("hnsw", "ivf_flat"):
        if limit is None or memory(kind, n, dim) <= 0.7 * limit:
            return kind, f"{size}: above {most:,} rows{where} {kind} is faster than exact search, and fits in memory"
    return "ivf_pq", f"{size}: 16-bit rows do not fit in {limit or 0:,} bytes of memory, 4-bit codes take the least"

"""The native core: where it is, and how tensors are handed to it. The backends _cpu.py and _cuda.py call it."""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

core: Any
emulated: Any = None  # the CUDA core compiled for the CPU (csrc/emulator): only where it was built for tests
missing = ""
with contextlib.suppress(ImportError):
    emulated = importlib.import_module("gloss_kernels._C_emulated")
try:
    core = importlib.import_module("gloss_kernels._C")
except ImportError as error:  # a source tree that was not built: say so at the call, not at import
    core = None
    missing = (
        f"the native core is not built ({error}); run `pip install -e .` in the source tree, "
        "or start Python in another folder if the package is installed"
    )

cuda_architectures: str = core.cuda_architectures() if core else ""  # "80 86 90", "" without CUDA core
_DTYPES = {torch.float64: 0, torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}
SYMMETRIZE = {None: 0, "sum": 1, "union": 2, "mutual": 3}
NORMALIZE = {"row": 0, "symmetric": 1, "paper": 2}
local = threading.local()  # report: the progress function; statistics: of the latest search


@contextlib.contextmanager
def progress(report: Callable[[float], object]) -> Iterator[None]:
    """Within the block, ``cosine_topk`` calls ``report(share_done)`` now and then, share in 0..1, on this thread.

    An exception raised by ``report`` cancels the search and reaches the caller; Ctrl-C cancels it in any case.
    """
    before = getattr(local, "report", None)
    local.report = report
    try:
        yield
    finally:
        local.report = before


def topk_statistics() -> dict[str, Any]:
    """Of the latest ``cosine_topk`` of this thread; empty before the first. Of CUDA searches only with
    GLOSS_KERNELS_CHECK=1, since reading them waits for the device.

    candidates: entries that passed the 16-bit filter and were scored again in float32. recomputed_rows: rows that could
    not be certified and were redone exactly. workspace_bytes: most memory held beside input and result. kernel: the
    instruction set.
    """
    return dict(getattr(local, "statistics", {}))


def capturing(x: Tensor) -> bool:
    """Whether a CUDA graph is being captured where x lies: work is recorded, and nothing can be read."""
    if x.device.type == "cuda":
        with torch.cuda.device(x.device):
            return torch.cuda.is_current_stream_capturing()
    return emulated is not None and bool(emulated.is_capturing())


def matrix(x: Tensor) -> Tensor:
    """x itself where its rows are contiguous (any row stride), else a copy."""
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()


def view(x: Tensor) -> tuple[int, int, int, int, int]:
    """As the core takes a matrix: address, dtype, rows, columns, row stride."""
    return x.data_ptr(), _DTYPES[x.dtype], x.shape[0], x.shape[1], x.stride(0)


def is_double(x: Tensor) -> bool:
    """The core has float32 and float64 forms; anything else would be read with the wrong size."""
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"got {x.dtype}, wants float32 or float64")
    return x.dtype == torch.float64


def compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def finest_tol(values: Tensor) -> float:
    """float32 cannot hold a solution to much less than 1e-6; asking for more only costs iterations."""
    return 1e-14 if values.dtype == torch.float64 else 2e-6


def structure_capacity(n: int, k: int, symmetrize: str | None) -> int:
    return n * k if symmetrize in (None, "mutual") else 2 * n * k

"""The native library: where it is, why it is not, and how matrices are handed to it."""

from __future__ import annotations

import contextlib
import importlib
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

cuda_architectures: str = core.cuda_architectures if core else ""  # "80 86 90", "" without CUDA core
_DTYPES = {torch.float64: 0, torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}


def capturing(x: Tensor) -> bool:
    """Whether a CUDA graph is being captured where x lies: work is recorded, and nothing can be read."""
    if x.device.type == "cuda":
        with torch.cuda.device(x.device):
            return torch.cuda.is_current_stream_capturing()
    return emulated is not None and bool(emulated.is_capturing())


def rows(x: Tensor) -> Tensor:
    """x itself where its rows are contiguous (any row stride), else a copy."""
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()


def view(x: Tensor) -> tuple[int, int, int, int, int]:
    """As the core takes a matrix: address, dtype, rows, columns, row stride."""
    return x.data_ptr(), _DTYPES[x.dtype], x.shape[0], x.shape[1], x.stride(0)


def is_double(x: Tensor) -> bool:
    """The core has float32 and float64 forms; anything else would be read with the wrong size."""
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"dtype must be float32 or float64, got {x.dtype}")
    return x.dtype == torch.float64

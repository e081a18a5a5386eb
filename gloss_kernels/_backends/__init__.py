"""Which backend runs: the only place that decides.

protocol.py says what a backend offers; native.py (C++ and CUDA), reference.py and triton/ are the backends.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from typing import Any, NamedTuple

import torch

from .. import _checks, _library, _settings
from . import native, reference
from .protocol import Backend, Kernels

KERNELS = ("cpu", "cuda", "triton", "reference")
BACKENDS = ("auto", *KERNELS)

# Kernels that "auto" takes only where a report of bench/gpu.py, committed in bench/results, says that they win:
# (kernel, compute capability) -> name of the report. The base kernels of a backend always run and stand here too, so
# that `gloss-kernels info` can say what was measured.
MEASURED: dict[tuple[str, tuple[int, int]], str] = {}


class BackendStatus(NamedTuple):
    """Whether a backend can run here, and what it is or why not."""

    available: bool
    detail: str


def available_backends() -> dict[str, BackendStatus]:
    """What is built and what can run here: ``{name: BackendStatus(available, detail)}`` for every backend.

    ``python -m gloss_kernels`` prints it.

    Example:
        >>> import gloss_kernels
        >>> gloss_kernels.available_backends()["reference"].available
        True
    """
    return {
        "cpu": _cpu_status(),
        "cuda": _cuda_status(),
        "triton": _triton_status(),
        "reference": BackendStatus(True, "dense float64 torch"),
    }


def resolve(backend: str, device: torch.device) -> str:
    """The backend that runs for tensors on ``device``; an explicit one that cannot run raises and says why."""
    _checks.choice("backend", backend, BACKENDS)
    if backend == "auto":
        backend = _settings.BACKEND
        if backend not in BACKENDS:
            raise ValueError(f"GLOSS_KERNELS_BACKEND must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if backend == "auto":
        backend = _fastest(device)
    takes = _takes(backend)
    if not takes:
        raise RuntimeError(f"backend={backend!r} cannot run here: {available_backends()[backend].detail}")
    if takes != ["any"] and device.type not in takes:
        raise ValueError(f"backend={backend!r} must get tensors on {' or '.join(takes)}, got {device}")
    return backend


def get(backend: str) -> Backend:
    """The functions of a backend that resolve() returned."""
    return reference if backend == "reference" else kernels(backend)


def kernels(backend: str) -> Kernels:
    """Those of a backend with kernels, their gradients included."""
    found: Kernels = _triton() if backend == "triton" else native.cpu if backend == "cpu" else native.cuda
    return found


def is_torch(backend: str) -> bool:
    """Whether a backend's functions are torch operations: autograd goes through them, and no operator is needed."""
    return backend == "reference"


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def dense_rows(backend: str) -> float:
    """The most documents that the backend's dense_loss takes."""
    return get(backend).dense_rows


def _fastest(device: torch.device) -> str:
    """The fastest backend with kernels for a device, else the reference. A CPU without its core says so."""
    if device.type == "cpu":
        return "cpu"
    order = ("cuda", "triton") if device.type == "cuda" else ()
    return next((backend for backend in order if device.type in _takes(backend)), "reference")


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _takes(backend: str) -> list[str]:
    """The types of devices that a backend runs on here; none: it cannot run."""
    if backend == "reference":
        return ["any"]
    if backend == "cpu":
        return ["cpu"] if _library.core is not None else []
    gpu = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
    if backend == "cuda":
        return ["cuda"] * (gpu and bool(_library.cuda_architectures)) + ["cpu"] * (_library.emulated is not None)
    if _triton_problem():
        return []
    return ["cpu"] if _triton().INTERPRETED else ["cuda"] if gpu else []


@functools.cache
def _triton() -> Any:
    """Imported when first used: Triton takes a while, and need not be there."""
    return importlib.import_module("gloss_kernels._backends.triton")


@functools.cache
def _triton_problem() -> str:
    """Why Triton cannot be imported; "" if it can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (pip install '.[triton]')"
    try:
        _triton()
    except Exception as error:  # a Triton that does not fit this torch or this machine: whatever it raises
        return f"triton cannot be imported: {type(error).__name__}: {error}"
    return ""


def _cpu_status() -> BackendStatus:
    if _library.core is None:
        return BackendStatus(False, _library.missing)
    try:
        isa = _library.core.isa()
    except ValueError as error:  # GLOSS_KERNELS_ISA names a set that is unknown or cannot run here
        return BackendStatus(False, str(error))
    return BackendStatus(True, f"C++ core, {isa} kernels, {torch.get_num_threads()} threads")


def _cuda_status() -> BackendStatus:
    if _library.core is None:
        return BackendStatus(False, _library.missing)
    emulated = "; emulated on the CPU, for tests" if _library.emulated else ""
    built = _library.cuda_architectures
    problem = _library.core.cuda.problem() if built else ""
    if not built:
        detail = "this build has no CUDA core (nvcc was not found, or GLOSS_KERNELS_CUDA=0)"
    elif problem:
        detail = f"built for {built}, but {problem}"
    else:
        capability = torch.cuda.get_device_capability()
        measured = "" if ("cuda", capability) in MEASURED else ", not yet measured on this GPU"
        if capability < (8, 0):
            detail = (
                f"built for {built}, but this GPU has compute capability {capability[0]}.{capability[1]}, below 8.0"
            )
            return BackendStatus(False, detail)
        return BackendStatus(True, f"built for {built}{measured}{emulated}")
    return BackendStatus(bool(_library.emulated), detail + emulated)


def _triton_status() -> BackendStatus:
    problem = _triton_problem()
    if problem:
        return BackendStatus(False, problem)
    what = f"Triton {importlib.import_module('triton').__version__}"
    if _triton().INTERPRETED:
        return BackendStatus(True, f"{what}, interpreted on CPU tensors (TRITON_INTERPRET=1), for tests")
    if not torch.cuda.is_available():
        return BackendStatus(
            False, f"{what}, but torch finds no GPU (TRITON_INTERPRET=1 runs it on CPU tensors, slowly)"
        )
    capability = torch.cuda.get_device_capability()
    if capability < (8, 0):
        return BackendStatus(
            False, f"{what}, but this GPU has compute capability {capability[0]}.{capability[1]}, below 8.0"
        )
    measured = "" if ("triton", capability) in MEASURED else ", not yet measured on this GPU"
    return BackendStatus(True, f"{what}{measured}")

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
# What an atomic operation returns reaches every thread that holds its element from this Triton on; the search needs it.
OLDEST_TRITON = (3, 5)

# Kernels that "auto" takes only where a report of bench/gpu.py, committed in bench/results, says that they win:
# (kernel, compute capability) -> name of the report. The base kernels of a backend always run and stand here too, so
# that `gloss-kernels info` can say what was measured. Nothing yet: no GPU was measured, no kernel is optional.
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
    return {backend: _status(backend) for backend in KERNELS}


def resolve(backend: str, device: torch.device) -> str:
    """The backend that runs for tensors on ``device``; an explicit one that cannot run raises and says why."""
    _checks.choice("backend", backend, BACKENDS)
    if backend == "auto":
        backend = _settings.BACKEND
        if backend not in BACKENDS:
            raise ValueError(f"GLOSS_KERNELS_BACKEND must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if backend == "auto":
        backend = _fastest(device)
    takes = _takes(backend, device.index)
    if not takes:
        raise RuntimeError(f"backend={backend!r} cannot run here: {_status(backend, device.index).detail}")
    if takes != ["any"] and device.type not in takes:
        raise ValueError(f"backend={backend!r} must get tensors on {' or '.join(takes)}, got {device}")
    return backend


def get(backend: str) -> Backend:
    """The functions of a backend that resolve() returned."""
    return reference if backend == "reference" else kernels(backend)


def kernels(backend: str) -> Kernels:
    """Those of a backend with kernels, their gradients included. An operator called directly may name any."""
    _checks.choice("backend", backend, KERNELS[:-1])
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
    return next((backend for backend in order if device.type in _takes(backend, device.index)), "reference")


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _takes(backend: str, index: int | None) -> list[str]:
    """The types of devices that a backend runs on here; none: it cannot run. index: of the GPU, None the current."""
    if backend == "reference":
        return ["any"]
    if backend == "cpu":
        return ["cpu"] if _library.core is not None else []
    if backend == "cuda":
        return ["cuda"] * (not _cuda_problem(index)) + ["cpu"] * (_library.emulated is not None)
    if _triton_problem():
        return []
    return ["cpu"] if _triton().INTERPRETED else ["cuda"] * (not _gpu_problem(index))


def _gpu_problem(index: int | None) -> str:
    """Why no kernel of ours runs on a GPU, whoever compiles it; "" if they do."""
    if not torch.cuda.is_available():
        return "torch finds no GPU"
    major, minor = torch.cuda.get_device_capability(index)
    return "" if major >= 8 else f"this GPU has compute capability {major}.{minor}, below 8.0"


def _cuda_problem(index: int | None) -> str:
    """Why the CUDA core does not run on a GPU; "" if it does."""
    if _library.core is None:
        return _library.missing
    if not _library.cuda_architectures:
        return "this build has no CUDA core (nvcc was not found, or GLOSS_KERNELS_CUDA=0)"
    problem = _gpu_problem(index)
    if not problem:
        problem = _runtime_problem(_library.core, torch.cuda.current_device() if index is None else index)
    return problem and f"built for {_library.cuda_architectures}, but {problem}"


@functools.cache
def _runtime_problem(core: Any, index: int) -> str:
    """What the CUDA runtime of the core says of a GPU: torch brings a runtime of its own, which may run where ours does
    not (a driver too old for this toolkit, an architecture that was not built). Asked once: it loads a kernel."""
    return str(core.cuda.problem(index))


@functools.cache
def _triton() -> Any:
    """Imported when first used: Triton takes a while, and need not be there."""
    return importlib.import_module("gloss_kernels._backends.triton")


@functools.cache
def _triton_problem() -> str:
    """Why Triton cannot be used; "" if it can be imported and is new enough."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (pip install '.[triton]')"
    try:
        version = importlib.import_module("triton").__version__
        if tuple(map(int, version.split(".")[:2])) < OLDEST_TRITON:
            return f"triton must be {'.'.join(map(str, OLDEST_TRITON))} or newer (that of torch 2.9), got {version}"
        _triton()
    except Exception as error:  # a Triton that does not fit this torch or this machine: whatever it raises
        return f"triton cannot be imported: {type(error).__name__}: {error}"
    return ""


def _status(backend: str, index: int | None = None) -> BackendStatus:
    """Of a backend here, on the GPU of this index (None: the current one)."""
    if backend == "cuda":
        return _cuda_status(index)
    if backend == "triton":
        return _triton_status(index)
    return _cpu_status() if backend == "cpu" else BackendStatus(True, "dense float64 torch")


def _cpu_status() -> BackendStatus:
    if _library.core is None:
        return BackendStatus(False, _library.missing)
    try:
        isa = _library.core.isa()
    except ValueError as error:  # GLOSS_KERNELS_ISA names a set that is unknown or cannot run here
        return BackendStatus(False, str(error))
    return BackendStatus(True, f"C++ core, {isa} kernels, {torch.get_num_threads()} threads")


def _cuda_status(index: int | None) -> BackendStatus:
    emulated = "; emulated on the CPU, for tests" if _library.emulated else ""
    problem = _cuda_problem(index)
    detail = problem or f"built for {_library.cuda_architectures}{_measured('cuda', index)}"
    return BackendStatus(not problem or bool(emulated), detail + emulated)


def _measured(backend: str, index: int | None) -> str:
    capability = torch.cuda.get_device_capability(index)
    return "" if (backend, capability) in MEASURED else ", not yet measured on this GPU"


def _triton_status(index: int | None) -> BackendStatus:
    problem = _triton_problem()
    if problem:
        return BackendStatus(False, problem)
    what = f"Triton {importlib.import_module('triton').__version__}"
    if _triton().INTERPRETED:
        return BackendStatus(True, f"{what}, interpreted on CPU tensors (TRITON_INTERPRET=1), for tests")
    problem = _gpu_problem(index)
    if problem:
        hint = "" if torch.cuda.is_available() else " (TRITON_INTERPRET=1 runs it on CPU tensors, slowly)"
        return BackendStatus(False, f"{what}, but {problem}{hint}")
    return BackendStatus(True, what + _measured("triton", index))

"""Which backend runs: the only place that decides."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from typing import Any, NamedTuple

import torch

from . import _cpu, _cuda, _native, _validate
from ._kernels import Kernels

MEASURED: tuple[tuple[int, int], ...] = ()  # compute capabilities with a report of bench/gpu.py in bench/results
BACKENDS = ("auto", "cpu", "cuda", "triton", "reference")


class BackendStatus(NamedTuple):
    """Whether a backend can run here, and what it is or why not."""

    available: bool
    detail: str


def available_backends() -> dict[str, BackendStatus]:
    """What is built and what can run here: ``{name: BackendStatus(available, detail)}`` for every backend.

    ``python -m gloss_kernels`` prints it.
    """
    return {backend: _status(backend) for backend in BACKENDS if backend != "auto"}


def resolve(backend: str, device: torch.device, *, dense: bool = False) -> str:
    """The backend that runs for tensors on ``device``; an explicit one that cannot run raises and says why.

    ``dense`` is the mini-batch path of dense.py, torch operations on any device: "auto" takes it everywhere.
    """
    _validate.choice("backend", backend, BACKENDS)
    if backend == "auto":
        wanted = os.environ.get("GLOSS_KERNELS_BACKEND", "auto")
        if wanted not in BACKENDS:
            raise ValueError(f"GLOSS_KERNELS_BACKEND: got {wanted!r}, wants one of {', '.join(BACKENDS)}")
        backend = wanted
    if backend == "auto" and dense:
        return "torch"
    if backend == "auto":
        backend = _best(device) or ("cpu" if device.type == "cpu" else "reference")
    if backend == "reference":
        return backend
    takes = _takes(backend, device.index)
    if not takes:
        raise RuntimeError(f"backend={backend!r} cannot run here: {_status(backend, device.index).detail}")
    if device.type not in takes:
        raise ValueError(f"backend={backend!r} wants tensors on {' or '.join(takes)}, got {device}")
    return backend


def kernels(backend: str) -> Kernels:
    """The kernels of a backend that resolve() returned."""
    module: Any = {"cpu": _cpu, "cuda": _cuda}.get(backend) or _triton()
    kernels: Kernels = module
    return kernels


def dense_backend(backend: str, device: torch.device) -> str | None:
    """The backend whose dense_loss serves for what resolve() returned; None: the dense path is torch operations."""
    if backend == "torch":
        return _best(device)
    return backend if backend in ("cpu", "cuda", "triton") else None


def _best(device: torch.device) -> str | None:
    """The fastest backend with kernels for a device. (Triton beside a CUDA core: the one that a report says wins.)"""
    order = ("cpu",) if device.type == "cpu" else ("cuda", "triton") if device.type == "cuda" else ()
    return next((backend for backend in order if device.type in _takes(backend, device.index)), None)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _takes(backend: str, index: int | None) -> list[str]:
    """The types of devices that a backend runs on here; none: it cannot run. index: of the GPU, None the current."""
    if backend == "cpu":
        return ["cpu"] if _native.core is not None else []
    if backend == "cuda":
        return ["cuda"] * (not _cuda_problem(index)) + ["cpu"] * (_native.emulated is not None)
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
    if _native.core is None:
        return _native.missing
    if not _native.cuda_architectures:
        return "this build has no CUDA core (nvcc was not found, or GLOSS_KERNELS_CUDA=0)"
    problem = _gpu_problem(index)
    if not problem:
        problem = _runtime_problem(_native.core, torch.cuda.current_device() if index is None else index)
    return problem and f"built for {_native.cuda_architectures}, but {problem}"


@functools.cache
def _runtime_problem(core: Any, index: int) -> str:
    """What the CUDA runtime of the core says of a GPU: torch brings a runtime of its own, which may run where ours does
    not (a driver too old for this toolkit, an architecture that was not built). Asked once: it loads a kernel."""
    return str(core.cuda_problem(index))


@functools.cache
def _triton() -> Any:
    """Imported when first used: Triton takes a while, and need not be there."""
    return importlib.import_module("gloss_kernels._triton")


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


def _status(backend: str, index: int | None = None) -> BackendStatus:
    """Of a backend here, on the GPU of this index (None: the current one)."""
    if backend == "cuda":
        return _cuda_status(index)
    if backend == "triton":
        return _triton_status(index)
    return _cpu_status() if backend == "cpu" else BackendStatus(True, "dense float64 torch")


def _cpu_status() -> BackendStatus:
    if _native.core is None:
        return BackendStatus(False, _native.missing)
    try:
        isa = _native.core.isa()
    except ValueError as error:  # GLOSS_KERNELS_ISA names a set that is unknown or cannot run here
        return BackendStatus(False, str(error))
    return BackendStatus(True, f"C++ core, {isa} kernels, {torch.get_num_threads()} threads")


def _cuda_status(index: int | None) -> BackendStatus:
    emulated = "; emulated on the CPU, for tests" if _native.emulated else ""
    problem = _cuda_problem(index)
    detail = problem or f"built for {_native.cuda_architectures}{_measured(index)}"
    return BackendStatus(not problem or bool(emulated), detail + emulated)


def _measured(index: int | None) -> str:
    return "" if torch.cuda.get_device_capability(index) in MEASURED else ", not yet measured on this GPU"


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
    return BackendStatus(True, what + _measured(index))

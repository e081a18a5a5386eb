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
# What an atomic operation returns reaches every thread that holds its element from this Triton on; the search needs it.
OLDEST_TRITON = (3, 5)


class BackendStatus(NamedTuple):
    """Whether a backend can run here, and what it is or why not."""

    available: bool
    detail: str


def available_backends() -> dict[str, BackendStatus]:
    """What is built and what can run here: ``{name: BackendStatus(available, detail)}`` for every backend.

    ``python -m gloss_kernels`` prints it.
    """
    return {
        "cpu": _cpu_status(),
        "cuda": _cuda_status(),
        "triton": _triton_status(),
        "reference": BackendStatus(True, "dense float64 torch"),
    }


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
    takes = _takes(backend)
    if not takes:
        raise RuntimeError(f"backend={backend!r} cannot run here: {available_backends()[backend].detail}")
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
    return next((backend for backend in order if device.type in _takes(backend)), None)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _takes(backend: str) -> list[str]:
    """The types of devices that a backend runs on here; none: it cannot run."""
    if backend == "cpu":
        return ["cpu"] if _native.core is not None else []
    gpu = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
    if backend == "cuda":
        return ["cuda"] * (gpu and bool(_native.cuda_architectures)) + ["cpu"] * (_native.emulated is not None)
    if _triton_problem():
        return []
    return ["cpu"] if _triton().INTERPRETED else ["cuda"] if gpu else []


@functools.cache
def _triton() -> Any:
    """Imported when first used: Triton takes a while, and need not be there."""
    return importlib.import_module("gloss_kernels._triton")


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


def _cpu_status() -> BackendStatus:
    if _native.core is None:
        return BackendStatus(False, _native.missing)
    try:
        isa = _native.core.isa()
    except ValueError as error:  # GLOSS_KERNELS_ISA names a set that is unknown or cannot run here
        return BackendStatus(False, str(error))
    return BackendStatus(True, f"C++ core, {isa} kernels, {torch.get_num_threads()} threads")


def _cuda_status() -> BackendStatus:
    if _native.core is None:
        return BackendStatus(False, _native.missing)
    emulated = "; emulated on the CPU, for tests" if _native.emulated else ""
    built = _native.cuda_architectures
    if not built:
        detail = "this build has no CUDA core (nvcc was not found, or GLOSS_KERNELS_CUDA=0)"
    elif _native.core.cuda_problem():
        detail = f"built for {built}, but {_native.core.cuda_problem()}"
    else:
        capability = torch.cuda.get_device_capability()
        measured = "" if capability in MEASURED else ", not yet measured on this GPU"
        if capability < (8, 0):
            detail = (
                f"built for {built}, but this GPU has compute capability {capability[0]}.{capability[1]}, below 8.0"
            )
            return BackendStatus(False, detail)
        return BackendStatus(True, f"built for {built}{measured}{emulated}")
    return BackendStatus(bool(_native.emulated), detail + emulated)


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
    measured = "" if capability in MEASURED else ", not yet measured on this GPU"
    return BackendStatus(True, f"{what}{measured}")

"""Which backend runs: the only place that decides."""

from __future__ import annotations

import importlib.util
import os
from typing import NamedTuple

import torch

from . import _native, _validate

BACKENDS = ("auto", "cpu", "cuda", "triton", "reference")


class BackendStatus(NamedTuple):
    """Whether a backend can run here, and what it is or why not."""

    available: bool
    detail: str


def available_backends() -> dict[str, BackendStatus]:
    """What is built and what can run here: ``{name: BackendStatus(available, detail)}`` for every backend.

    ``python -m gloss_kernels`` prints it.
    """
    return {
        "cpu": _cpu(),
        "cuda": _cuda(),
        "triton": _triton(),
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
        backend = "cpu" if device.type == "cpu" else "reference"
    if backend == "reference":
        return backend
    runs = backend == "cpu" and _native.core is not None  # no native call here: torch.compile traces this
    if not runs:
        raise RuntimeError(f"backend={backend!r} cannot run here: {available_backends()[backend].detail}")
    wanted_device = "cpu" if backend == "cpu" else "cuda"
    if device.type != wanted_device:
        raise ValueError(f"backend={backend!r} wants tensors on {wanted_device}, got {device}")
    return backend


def _cpu() -> BackendStatus:
    if _native.core is None:
        return BackendStatus(False, _native.missing)
    try:
        isa = _native.core.isa()
    except ValueError as error:  # GLOSS_KERNELS_ISA names a set that is unknown or cannot run here
        return BackendStatus(False, str(error))
    return BackendStatus(True, f"C++ core, {isa} kernels, {torch.get_num_threads()} threads")


def _cuda() -> BackendStatus:
    if _native.core is None:
        return BackendStatus(False, _native.missing)
    built = _native.core.cuda_architectures()
    if not built:
        return BackendStatus(False, "this build has no CUDA core (nvcc was not found, or GLOSS_KERNELS_CUDA=0)")
    problem = _native.core.cuda_problem()
    if problem:
        return BackendStatus(False, f"built for {built}, but {problem}")
    return BackendStatus(False, f"built for {built}: only normalize_rows so far, the four stages follow")


def _triton() -> BackendStatus:
    if importlib.util.find_spec("triton") is None:
        return BackendStatus(False, "triton is not installed (pip install '.[triton]')")
    return BackendStatus(False, "no Triton kernels in this version yet")

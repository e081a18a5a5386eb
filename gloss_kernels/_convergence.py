"""Warns once that a solve did not converge, on a GPU without waiting for it."""

from __future__ import annotations

import threading
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from . import _library


class _Answer(NamedTuple):
    what: str
    failed: Tensor  # bool [] in pinned memory
    arrives: torch.cuda.Event


_pending: list[_Answer] = []
_lock = threading.Lock()  # of _pending: autograd runs the gradients of each device on a thread of its own


def check(what: str, residual: Tensor, limit: Tensor) -> None:
    """Warns if a residual [C] is above limit []. On a GPU the answer is read at a later call, once it has arrived.

    While a CUDA graph is captured nothing is computed: whoever replays it looks at ``Propagation.residual``.
    """
    if _library.capturing(residual):
        return
    failed = ~(residual <= limit).all()
    if residual.device.type != "cuda":
        if bool(failed):
            _warn(what)
        return
    stream = torch.cuda.current_stream(residual.device)
    copy = failed.to("cpu", non_blocking=True)
    answer = _Answer(what, copy, stream.record_event())
    arrived: list[_Answer] = []
    waiting: list[_Answer] = []
    with _lock:
        for each in (*_pending, answer):
            (arrived if each.arrives.query() else waiting).append(each)  # type: ignore[no-untyped-call]
        _pending[:] = waiting
    for each in arrived:
        if bool(each.failed):
            _warn(each.what)


def _warn(what: str) -> None:  # no numbers in the text, so that Python shows it once
    warnings.warn(
        f"gloss_kernels: {what} did not converge (see Propagation.residual); raise max_iter, tol or "
        "prior_strength, or use float64",
        stacklevel=3,
    )

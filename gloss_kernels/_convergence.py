"""Warns once that a solve did not converge, on a GPU without waiting for it."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

_pending: list[tuple[str, Tensor, torch.cuda.Event]] = []  # (what, failed in pinned memory, when it is there)


def check(what: str, residual: Tensor, limit: Tensor) -> None:
    """Warns if a residual [C] is above limit []. On a GPU the answer is read at a later call, once it has arrived."""
    if residual.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return
    failed = ~(residual <= limit).all()
    if residual.device.type != "cuda":
        if bool(failed):
            _warn(what)
        return
    stream = torch.cuda.current_stream(residual.device)
    copy = failed.to("cpu", non_blocking=True)
    _pending.append((what, copy, stream.record_event()))
    while _pending and _pending[0][2].query():  # type: ignore[no-untyped-call]
        earlier, failed, _ = _pending.pop(0)
        if bool(failed):
            _warn(earlier)


def _warn(what: str) -> None:  # no numbers in the text, so that Python shows it once
    warnings.warn(
        f"gloss_kernels: {what} did not converge (see Propagation.residual); raise max_iter, tol or "
        "prior_strength, or use float64",
        stacklevel=3,
    )

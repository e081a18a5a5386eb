"""What long work tells its caller beside its result: its progress, and of a search figures. Both per thread."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

_local = threading.local()  # report: the progress function; statistics: of the latest search


@contextlib.contextmanager
def progress(report: Callable[[float], object]) -> Iterator[None]:
    """Within the block, ``cosine_topk`` and ``propagate_labels`` on the CPU call ``report(share_done)`` now and then,
    share in 0..1, on this thread.

    An exception raised by ``report`` cancels the work and reaches the caller; Ctrl-C cancels it in any case.

    Example:
        >>> import torch, gloss_kernels
        >>> with gloss_kernels.progress(lambda share: None):
        ...     _ = gloss_kernels.cosine_topk(torch.randn(9, 4), k=2)
    """
    before = current_report()
    _local.report = report
    try:
        yield
    finally:
        _local.report = before


def current_report() -> Callable[[float], object] | None:
    return getattr(_local, "report", None)


def topk_statistics() -> dict[str, Any]:
    """Figures of the latest ``cosine_topk`` of this thread that ran on kernels (backend "reference" leaves none); empty
    before the first. Of searches on a GPU only with GLOSS_KERNELS_CHECK=1, since reading them waits for the device.

    candidates: entries that passed the 16-bit filter and were scored again in float64. recomputed_rows: rows that could
    not be certified and were redone exactly. workspace_bytes: most memory held beside input and result. kernel:
    "cuda", "triton", or on the CPU the instruction set ("float64" for float64 input).
    """
    return dict(getattr(_local, "statistics", {}))


def set_statistics(statistics: dict[str, Any]) -> None:
    _local.statistics = statistics

"""Labels that may be anything become labels that may index: the one check that guards memory, compiled or not."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _library, _settings

MOST_CLASSES = 1 << 16  # that labels may imply, or a class a document: an id for a label asks for terabytes
WRONG = -2  # stands for a label that is none, on a GPU: nothing waits there to raise


def known_labels(name: str, labels: Tensor, num_classes: int, ignored: int = -1) -> Tensor:
    """labels with -1 for ``ignored``, so that all that follows may index with those of at least 0.

    Any other label that is no class raises on the CPU. On a GPU, where to look means to wait, it becomes WRONG, unless
    GLOSS_KERNELS_CHECK=1 asks to look. Compiled code does the same, by an operator.
    """
    if torch.compiler.is_compiling():
        known: Tensor = known_labels_op(name, labels, num_classes, ignored)
        return known
    return _known_labels(name, labels, num_classes, ignored)


def _known_labels(name: str, labels: Tensor, num_classes: int, ignored: int) -> Tensor:
    is_ignored = labels == ignored
    wrong = ((labels < 0) | (labels >= num_classes)) & ~is_ignored
    looks = not may_be_wrong(labels) or (_settings.CHECK and not _library.capturing(labels))
    if not looks:
        return torch.where(is_ignored, -1, torch.where(wrong, WRONG, labels))
    if bool(wrong.any()):
        at = int(wrong.nonzero()[0])
        got = int(labels[at])
        hint = " (ignore_index names the label of documents without one)" if got == -100 else ""  # torch's default
        raise ValueError(f"{name} must be 0..{num_classes - 1} or {ignored}, got {got} for document {at}{hint}")
    return torch.where(is_ignored, -1, labels)


def count_classes(labels: Tensor) -> int:
    """labels.max() + 1, at least 1; raises where that is no count of classes. Reads the labels."""
    n = labels.shape[0]
    classes = max(int(labels.max()) + 1 if n else 1, 1)
    if classes > max(n, MOST_CLASSES):
        raise ValueError(
            f"labels must be numbers of classes, 0..C - 1, got {classes - 1} for document {int(labels.argmax())} "
            "(num_classes= takes as many; torch.unique(labels, return_inverse=True) numbers them anew)"
        )
    return classes


@torch.library.custom_op("gloss_kernels::known_labels", mutates_args=())
def known_labels_op(name: str, labels: Tensor, num_classes: int, ignored: int) -> Tensor:
    return _known_labels(name, labels, num_classes, ignored)


@known_labels_op.register_fake
def _(name: str, labels: Tensor, num_classes: int, ignored: int) -> Tensor:
    return torch.empty_like(labels)


def may_be_wrong(labels: Tensor) -> bool:
    """Whether known_labels may hold WRONG."""
    return labels.device.type != "cpu" or (not torch.compiler.is_compiling() and _library.capturing(labels))


def mark_wrong(probabilities: Tensor, labels: Tensor) -> Tensor:
    """The rows whose label is WRONG become NaN."""
    return probabilities.masked_fill((labels == WRONG)[:, None], torch.nan) if may_be_wrong(labels) else probabilities

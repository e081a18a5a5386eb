"""What a training step minimises: (1 - lambda) cross entropy + lambda G-Loss, on the same embeddings."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from gloss_kernels import GLoss
from gloss_kernels import sigma as heuristics
from gloss_kernels.finetune.options import Settings


class Objective:
    """(embeddings, logits, labels) -> the loss and its parts ("ce", "gloss")."""

    def __init__(self, settings: Settings, num_classes: int, weight: Tensor | None, sigma: float | str | None) -> None:
        self.share = {"ce": 0.0, "gloss": 1.0, "ce+gloss": settings.lam}[settings.loss]
        self.weight = weight
        # A generator of its own: dropout draws the same numbers with and without G-Loss.
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.gloss = None
        if sigma is not None:
            self.gloss = GLoss(
                num_classes,
                n_neighbors=settings.neighbors,
                sigma=sigma,
                labeled_fraction=settings.labeled_fraction,
                class_weight=weight,
                generator=self.generator,
            )

    def __call__(self, embeddings: Tensor, logits: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
        total = embeddings.new_zeros(())
        parts: dict[str, float] = {}
        if self.gloss is None or self.share < 1:
            ce = F.cross_entropy(logits, labels, weight=self.weight)
            total = total + (1 - self.share) * ce
            parts["ce"] = float(ce.detach())
        if self.gloss is not None:
            gloss = self.gloss(embeddings, labels)
            total = total + self.share * gloss
            parts["gloss"] = float(gloss.detach())
        return total, parts


def class_weight(kind: str, labels: Tensor, num_classes: int) -> Tensor | None:
    """For "balanced": documents / (classes * documents of the class), as in scikit-learn."""
    if kind == "none":
        return None
    return len(labels) / (num_classes * labels.bincount(minlength=num_classes).float())


def choose_sigma(rule: str, embeddings: Tensor, labels: Tensor) -> float | str:
    """The number itself, or a rule applied once to embeddings [n, dim] of training documents.

    "self-tuning" stays a word: it gives a number a document, anew for every batch.
    """
    if rule == "root":
        return float(heuristics.sigma_root(embeddings))
    if rule == "mst":
        return float(heuristics.sigma_mst(embeddings, labels))
    return rule if rule == "self-tuning" else float(rule)

"""What a training step minimises: (1 - lambda) cross entropy + lambda G-Loss, on the same embeddings."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gloss_kernels import CorpusGLoss, GLoss
from gloss_kernels import sigma as heuristics
from gloss_kernels.cli.errors import CommandError
from gloss_kernels.finetune.settings import Settings

NEIGHBORS = 32  # of --graph corpus, where there are so many documents


class Objective:
    """(embeddings [n, dim], logits, labels, rows) -> the loss and its parts ("ce", "gloss").

    ``train_labels`` are those of all training documents, ``rows`` the batch's among them.
    """

    def __init__(
        self,
        settings: Settings,
        num_classes: int,
        weight: Tensor | None,
        sigma: float | str | None,
        train_labels: Tensor,
        dim: int,
    ) -> None:
        self.share = {"ce": 0.0, "gloss": 1.0, "ce+gloss": settings.lam}[settings.loss]
        self.weight = weight
        # A generator of its own: dropout draws the same numbers with and without G-Loss.
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.gloss: GLoss | None = None
        self.corpus: CorpusGLoss | None = None
        if sigma is not None and settings.graph == "corpus":
            others = len(train_labels) - 1
            if settings.neighbors is not None and settings.neighbors > others:
                raise CommandError(
                    f"--neighbors must be at most {others}, the other training documents, got {settings.neighbors}"
                )
            assert not isinstance(sigma, str)
            self.corpus = CorpusGLoss(
                train_labels,
                dim,
                num_classes=num_classes,
                n_neighbors=settings.neighbors or min(NEIGHBORS, others),
                sigma=sigma,
                class_weight=weight,
            )
        elif sigma is not None:
            assert settings.labeled_fraction is not None
            self.gloss = GLoss(
                num_classes,
                n_neighbors=settings.neighbors,
                sigma=sigma,
                labeled_fraction=settings.labeled_fraction,
                class_weight=weight,
                generator=self.generator,
            )

    def __call__(
        self, embeddings: Tensor, logits: Tensor, labels: Tensor, rows: list[int]
    ) -> tuple[Tensor, dict[str, float]]:
        total = embeddings.new_zeros(())
        parts: dict[str, float] = {}
        if self.share < 1:
            ce = F.cross_entropy(logits, labels, weight=self.weight)
            total = total + (1 - self.share) * ce
            parts["ce"] = float(ce.detach())
        if self.gloss is not None or self.corpus is not None:
            gloss = self._gloss(embeddings, labels, rows)
            total = total + self.share * gloss
            parts["gloss"] = float(gloss.detach())
        return total, parts

    def _gloss(self, embeddings: Tensor, labels: Tensor, rows: list[int]) -> Tensor:
        if self.corpus is not None:
            loss: Tensor = self.corpus(embeddings, torch.tensor(rows, dtype=torch.int64, device=embeddings.device))
        else:
            assert self.gloss is not None
            loss = self.gloss(embeddings, labels)
        return loss

    def state(self) -> dict[str, Any]:
        """What the next step depends on: the generator, and the bank."""
        return {"generator": self.generator.get_state(), "corpus": self.corpus and self.corpus.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])
        if self.corpus is not None:
            self.corpus.load_state_dict(state["corpus"])


def class_weight(kind: str, labels: Tensor, num_classes: int) -> Tensor | None:
    """For "balanced": documents / (classes * documents of the class), as in scikit-learn."""
    if kind == "none":
        return None
    return len(labels) / (num_classes * labels.bincount(minlength=num_classes).float())


def choose_sigma(rule: str, embeddings: Tensor, labels: Tensor) -> float | str:
    """The number itself, or a rule applied once to embeddings [n, dim] of training documents.

    "self-tuning" stays a word: it gives a number per document, anew for every batch.
    """
    if rule == "root":
        return float(heuristics.sigma_root(embeddings))
    if rule == "mst":
        return float(heuristics.sigma_mst(embeddings, labels))
    return rule if rule == "self-tuning" else float(rule)

"""Scores: accuracy and macro-F1 of the head, silhouette and nearest neighbours of the embeddings, the linear probe."""

from __future__ import annotations

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score, silhouette_score
from torch import Tensor
from torch.nn import functional as F

from gloss_kernels._product import product
from gloss_kernels.finetune.encoder import Classifier

MAX_ROWS = 2000  # documents looked at where all pairs are needed
NEIGHBORS = 15


def head_scores(model: Classifier, embeddings: Tensor, labels: Tensor) -> dict[str, float]:
    with torch.no_grad():
        device = model.head.weight.device
        predicted = model.scores(embeddings.to(device)).argmax(1).cpu().numpy()
    truth = labels.numpy()
    return {
        "accuracy": float(accuracy_score(truth, predicted)),
        "macro_f1": float(f1_score(truth, predicted, average="macro", zero_division=0)),
    }


def embedding_scores(embeddings: Tensor, labels: Tensor, seed: int) -> dict[str, float | None]:
    """Cosine silhouette, and the share of documents whose class is the majority of their 15 nearest others."""
    rows = subsample(len(labels), MAX_ROWS, seed)
    x, y = F.normalize(embeddings[rows]), labels[rows]
    n = len(y)
    silhouette = None
    if 2 <= int((y.bincount() > 0).sum()) < n:
        silhouette = float(silhouette_score(x.numpy(), y.numpy(), metric="cosine"))
    knn = None
    if n > 1:
        similarity = product(x, x.T).fill_diagonal_(-torch.inf)
        votes = F.one_hot(y[similarity.topk(min(NEIGHBORS, n - 1)).indices]).sum(1)
        knn = float((votes.argmax(1) == y).float().mean())
    return {"silhouette": silhouette, "knn_accuracy": knn}


def fit_probe(model: Classifier, embeddings: Tensor, labels: Tensor, class_weights: str) -> None:
    """Replace the head by a logistic regression on frozen embeddings (unit rows); every class occurs in `labels`."""
    # C = 10: unit rows are small numbers, and scikit-learn's C = 1 would hold the weights back.
    probe = LogisticRegression(C=10, max_iter=1000, class_weight=None if class_weights == "none" else class_weights)
    probe.fit(F.normalize(embeddings).numpy(), labels.numpy())
    weight, bias = (torch.from_numpy(x).float() for x in (probe.coef_, probe.intercept_))
    if len(weight) == 1:  # two classes: one row of scores, for the second class
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    with torch.no_grad():
        model.head.weight.copy_(weight)
        model.head.bias.copy_(bias)


def subsample(n: int, most: int, seed: int) -> Tensor:
    """At most `most` of n rows, in ascending order, the same for the same seed."""
    if n <= most:
        return torch.arange(n, dtype=torch.int64, device="cpu")
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randperm(n, generator=generator, dtype=torch.int64, device="cpu")[:most].sort().values

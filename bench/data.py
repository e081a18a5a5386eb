"""The documents that are measured: real MiniLM embeddings where they are, synthetic ones of the same kind elsewhere."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
EMBEDDINGS = ROOT.parent / "shared" / "embeddings"
SEED = 0
CLASSES, TOPICS = 52, 60  # of the synthetic documents: classes of unequal size, topics in each


class Documents(NamedTuple):
    """``x`` float32 unit rows [n, d], ``y`` int64 [n] the classes, ``source`` "real" or "synthetic"."""

    x: Tensor
    y: Tensor
    source: str


def documents(n: int | None = None, d: int = 384, *, real: bool | None = None) -> Documents:
    """n documents: a fixed random choice of the real ones where there are enough of them, else synthetic.

    n=None takes every real document there is (about 23,000), or 25,000 synthetic ones. ``real`` forces the kind.
    """
    found = _real() if real is not False and d == 384 else None
    if real and found is None:
        raise FileNotFoundError(f"no embeddings in {EMBEDDINGS}")
    if found is not None and (real or n is None or n <= len(found.x)):
        return Documents(found.x[:n].clone(), found.y[:n].clone(), "real")
    return _synthetic(25_000 if n is None else n, d)


@lru_cache(maxsize=1)
def _real() -> Documents | None:
    """All parts of all files, shuffled once; a class is named by its file and its label."""
    rows, names = [], []
    for path in sorted(EMBEDDINGS.glob("*.npz")):
        with np.load(path, allow_pickle=False) as file:
            for key in sorted(name for name in file if name.endswith("_x")):
                rows.append(file[key].astype(np.float32))
                names += [f"{path.stem}:{label}" for label in file[key[:-1] + "y"]]
    if not rows:
        return None
    x, y = np.concatenate(rows), np.unique(names, return_inverse=True)[1]
    order = np.random.default_rng(SEED).permutation(len(x))
    return Documents(_unit(torch.as_tensor(x[order])), torch.as_tensor(y[order], dtype=torch.int64), "real")


def _synthetic(n: int, d: int) -> Documents:
    """A mixture on the sphere: class centre + topic centre + noise, with a spectrum that falls as that of MiniLM's.

    The constants make the cosines of the nearest, the 15th and the 150th neighbour of 23,000 documents about those
    of the real ones (0.6, 0.45, 0.36; real 0.64, 0.50, 0.39). Written in blocks: 10^6 documents need no second copy.
    """
    random = np.random.default_rng(SEED)
    spectrum = (1 + np.arange(d, dtype=np.float32)) ** -0.42
    spectrum /= np.linalg.norm(spectrum)

    def directions(count: int) -> np.ndarray:
        v = random.standard_normal((count, d), dtype=np.float32) * spectrum
        return v / np.linalg.norm(v, axis=1, keepdims=True)

    mean, centers, topics = directions(1), directions(CLASSES), directions(CLASSES * TOPICS)
    share = 1 / np.arange(1, CLASSES + 1)
    y = random.choice(CLASSES, n, p=share / share.sum())
    topic = y * TOPICS + (TOPICS * random.random(n) ** 2).astype(np.int64)
    x = torch.empty(n, d)
    for start in range(0, n, 50_000):
        rows = slice(start, min(start + 50_000, n))
        noise = random.standard_normal((rows.stop - start, d), dtype=np.float32) * spectrum
        noise *= random.uniform(0.3, 1.0, (len(noise), 1)).astype(np.float32)
        block = 0.25 * mean + 0.3 * centers[y[rows]] + 0.4 * topics[topic[rows]] + noise
        x[rows] = _unit(torch.as_tensor(block))
    return Documents(x, torch.as_tensor(y), "synthetic")


def _unit(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x, dim=1)


def cluster_labels(x: Tensor, num_classes: int = 100) -> Tensor:
    """int64 [n]: clusters of the documents, one round of k-means from seeded documents; every class is there."""
    start = torch.randperm(len(x), generator=torch.Generator().manual_seed(SEED))[:num_classes]
    near = (x @ x[start].T).argmax(dim=1)
    centers = _unit(torch.zeros(num_classes, x.shape[1]).index_add(0, near, x))
    labels = (x @ centers.T).argmax(dim=1)
    labels[start] = torch.arange(len(start))
    return labels


def hide_labels(labels: Tensor, labeled_share: float) -> Tensor:
    """The labels with all but a seeded share of them set to -1."""
    keys = torch.rand(len(labels), generator=torch.Generator().manual_seed(SEED))
    return torch.where(keys < labeled_share, labels, -1)

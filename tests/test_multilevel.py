"""The multilevel solver of the harmonic system on GPUs, where weights span many orders of magnitude."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import BACKENDS, is_interpreted
from torch import Tensor

from gloss_kernels import _backends
from gloss_kernels._backends import hierarchy, multilevel
from gloss_kernels._backends.hierarchy import Level
from gloss_kernels._backends.protocol import Edges, System

GPU_BACKENDS = [backend for backend in BACKENDS if backend in ("cuda", "triton")]
SIGMAS = [0.05, 0.1, 0.2, 1.0]
CLASSES = 3


def gth(weights: np.ndarray, excess: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Elimination without a subtraction (Grassmann, Taksar and Heyman 1985)."""
    w, e, b, n = weights.copy(), excess.copy(), right.copy(), len(excess)
    np.fill_diagonal(w, 0)
    pivots = np.zeros(n)
    for k in range(n - 1, -1, -1):
        pivots[k] = w[k, :k].sum() + e[k]
        share = w[:k, k] / pivots[k]
        w[:k, :k] += np.outer(share, w[k, :k])
        e[:k] += share * e[k]
        b[:k] += share[:, None] * b[k]
    x = np.zeros_like(b)
    for k in range(n):
        x[k] = (w[k, :k] @ x[:k] + b[k]) / pivots[k]
    return x


def clustered(n: int, sigma: float, seed: int = 0) -> np.ndarray:
    """Dense weights [n, n] of tight clusters (spread 0.02) and near duplicates, each joined to its 6 nearest; all hang
    together by the weights of a ring."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(8, 6))[rng.integers(0, 8, n)] + 0.02 * rng.normal(size=(n, 6))
    x[n // 2 : n // 2 + n // 8] = x[: n // 8] + 1e-5 * rng.normal(size=(n // 8, 6))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    distance = ((x[:, None] - x[None]) ** 2).sum(2) / 2
    near = np.argsort(distance + 9 * np.eye(n), axis=1)[:, :6]
    edge = np.zeros((n, n), bool)
    np.put_along_axis(edge, near, True, axis=1)
    edge[np.arange(n), (np.arange(n) + 1) % n] = True
    edge |= edge.T
    np.fill_diagonal(edge, False)
    return np.where(edge, np.exp(-distance / sigma**2), 0.0)


def labels_of(n: int, share: float) -> np.ndarray:
    rng = np.random.default_rng(1)
    labels = np.where(rng.random(n) < share, rng.integers(0, CLASSES, n), -1)
    labels[:CLASSES] = np.arange(CLASSES)
    return labels


def truth(weights: np.ndarray, labels: np.ndarray) -> np.ndarray:
    hidden, y = labels < 0, np.eye(CLASSES)[np.maximum(labels, 0)]
    found = y.copy()
    border = weights[hidden][:, ~hidden]
    found[hidden] = gth(weights[hidden][:, hidden], border.sum(1), border @ y[~hidden])
    return found


def problem(weights: np.ndarray, labels: np.ndarray, dtype: torch.dtype) -> tuple[System, Tensor]:
    row, col = weights.nonzero()
    crow = torch.from_numpy(np.searchsorted(row, np.arange(len(weights) + 1)))
    edges = Edges(crow, torch.from_numpy(col), torch.from_numpy(weights[row, col]))
    fixed = torch.from_numpy(labels >= 0)
    boundary = torch.eye(CLASSES, dtype=dtype)[np.maximum(labels, 0)] * fixed[:, None]
    return System(edges, fixed, torch.full((CLASSES,), 1 / CLASSES, dtype=dtype), None, 0.0, 100), boundary


@pytest.fixture(autouse=True)
def several_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The documents of a test are few: else they are eliminated at once."""
    monkeypatch.setattr(hierarchy, "SMALL", 8)


@pytest.mark.parametrize("backend", GPU_BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("share", [0.1, 0.7])
@pytest.mark.parametrize("sigma", SIGMAS)
def test_probabilities_are_right(sigma: float, share: float, dtype: torch.dtype, backend: str) -> None:
    weights, labels = clustered(96, sigma), labels_of(96, share)
    system, boundary = problem(weights, labels, dtype)
    tol = 1e-10 if dtype == torch.float64 else 1e-4
    found, again = (_backends.kernels(backend).propagate(system, boundary, False, tol) for _ in range(2))
    error = np.abs(found.result.double().numpy() - truth(weights, labels)).max()
    print(f"sigma {sigma} share {share} {dtype} {backend}: error {error:.1e}, {int(found.iterations)} iterations, residual {float(found.residual.max()):.1e}")
    assert error <= (1e-8 if dtype == torch.float64 else 1e-3)
    assert found.residual.max() <= tol and found.reachable.all()
    assert torch.equal(found.result, again.result)

"""The multilevel solvers of the harmonic system, where weights span many orders of magnitude."""

from __future__ import annotations

import importlib
import itertools

import numpy as np
import pytest
import torch
from conftest import BACKENDS
from torch import Tensor

from gloss_kernels import _backends, progress
from gloss_kernels._backends import hierarchy, multilevel, native
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


def near_weights(x: np.ndarray, k: int, sigma: float) -> np.ndarray:
    """Gaussian weights [n, n] of each point to its k nearest, and of a ring through all."""
    n = len(x)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    distance = ((x[:, None] - x[None]) ** 2).sum(2) / 2
    near = np.argsort(distance + 9 * np.eye(n), axis=1)[:, :k]
    edge = np.zeros((n, n), bool)
    np.put_along_axis(edge, near, True, axis=1)
    edge[np.arange(n), (np.arange(n) + 1) % n] = True
    edge |= edge.T
    np.fill_diagonal(edge, False)
    return np.where(edge, np.exp(-distance / sigma**2), 0.0)


def clustered(n: int, sigma: float, seed: int = 0) -> np.ndarray:
    """Dense weights [n, n] of tight clusters (spread 0.02) and near duplicates, each joined to its 6 nearest; all hang
    together by the weights of a ring."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(8, 6))[rng.integers(0, 8, n)] + 0.02 * rng.normal(size=(n, 6))
    x[n // 2 : n // 2 + n // 8] = x[: n // 8] + 1e-5 * rng.normal(size=(n // 8, 6))
    return near_weights(x, 6, sigma)


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
    edges = Edges(crow, torch.from_numpy(col.copy()), torch.from_numpy(weights[row, col]))
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
    assert error <= (1e-8 if dtype == torch.float64 else 1e-3)
    assert found.residual.max() <= tol and found.reachable.all()
    assert torch.equal(found.result, again.result)


@pytest.mark.skipif("cpu" not in BACKENDS, reason="no C++ core")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("share", [0.02, 0.1, 0.7])
@pytest.mark.parametrize("sigma", [0.1, 0.2, 0.5, 10.0])
def test_probabilities_are_right_on_the_cpu(sigma: float, share: float, dtype: torch.dtype) -> None:
    """800 rows: several levels, but for those that hang on labels so firmly that one does."""
    weights, labels = scattered(800, sigma), labels_of(800, share)
    system, boundary = problem(weights, labels, dtype)
    tol = 1e-10 if dtype == torch.float64 else 1e-4
    found = _backends.kernels("cpu").propagate(system, boundary, False, tol)
    error = np.abs(found.result.double().numpy() - truth(weights, labels)).max()
    assert error <= (1e-8 if dtype == torch.float64 else 1e-3)
    assert found.residual.max() <= tol and found.reachable.all() and found.iterations <= 40
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        again = _backends.kernels("cpu").propagate(system, boundary, False, tol)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found.result, again.result)


@pytest.mark.skipif("cpu" not in BACKENDS, reason="no C++ core")
@pytest.mark.parametrize("share", [0.1, 0.7])
def test_many_classes_keep_the_tolerance(share: float) -> None:
    """Each of 100 classes may lack tol; together, given to one class, that would be 100 tol."""
    weights, rng = scattered(800, 0.5), np.random.default_rng(1)
    labels = np.where(rng.random(800) < share, rng.integers(0, 100, 800), -1)
    system, _ = problem(weights, np.minimum(labels, CLASSES - 1), torch.float32)
    boundary = torch.eye(100)[np.maximum(labels, 0)] * system.fixed[:, None]
    system = system._replace(prior=torch.full((100,), 0.01))
    found = _backends.kernels("cpu").propagate(system, boundary, False, 1e-4)
    hidden, y = labels < 0, np.eye(100)[np.maximum(labels, 0)]
    border = weights[hidden][:, ~hidden]
    wanted = gth(weights[hidden][:, hidden], border.sum(1), border @ y[~hidden])
    assert np.abs(found.result.double().numpy()[hidden] - wanted).max() <= 2e-4


@pytest.mark.skipif("cpu" not in BACKENDS, reason="no C++ core")
@pytest.mark.parametrize("prior_strength", [0.0, 0.1])
@pytest.mark.parametrize("n", [200, 800])  # eliminated; several levels
@pytest.mark.parametrize("sigma", [0.1, 0.3, 1.0])
def test_gradient_is_right_on_the_cpu(sigma: float, n: int, prior_strength: float) -> None:
    """By log weights, beside the adjoint of the elimination."""
    weights, labels = scattered(n, sigma), labels_of(n, 0.1)
    system, boundary = problem(weights, labels, torch.float64)
    system = system._replace(prior_strength=prior_strength)
    sense = np.random.default_rng(3).normal(size=boundary.shape)
    kernels = _backends.kernels("cpu")
    found = kernels.propagate(system, boundary, False, 1e-10)
    grad, residual = kernels.propagate_backward(
        system, found.result, found.reachable, found.used_tol, torch.from_numpy(sense)
    )
    assert residual.max() <= 1e-10
    hidden, degree = labels < 0, weights.sum(1)
    among, border, pull = weights[hidden][:, hidden], weights[hidden][:, ~hidden], prior_strength * degree[hidden]
    y = np.eye(CLASSES)[np.maximum(labels, 0)]
    f, lam = y.copy(), np.zeros_like(y)
    f[hidden] = gth(among, border.sum(1) + pull, border @ y[~hidden] + pull[:, None] / CLASSES)
    parts = (gth(among, border.sum(1) + pull, np.maximum(sign * sense[hidden], 0)) for sign in (1, -1))
    lam[hidden] = next(parts) - next(parts)
    own = prior_strength * (lam * (f - 1 / CLASSES)).sum(1)
    row, col = weights.nonzero()
    wanted = -((lam[row] - lam[col]) * (f[row] - f[col])).sum(1) / 2 - (own[row] + own[col]) / 2
    wanted, mine = wanted * weights[row, col], grad.numpy() * weights[row, col]
    assert np.abs(mine - wanted).max() <= 1e-6 * np.abs(wanted).max()


@pytest.mark.skipif("cpu" not in BACKENDS, reason="no C++ core")
@pytest.mark.parametrize("share", [0.02, 0.1])
def test_what_float64_cannot_solve_says_so(share: float) -> None:
    """Tight clusters that hang on the labels by 1e-167 of what holds them together: not solved, never in silence."""
    weights, labels = scattered(800, 0.07), labels_of(800, share)
    system, boundary = problem(weights, labels, torch.float64)
    found = _backends.kernels("cpu").propagate(system, boundary, False, 1e-10)
    right = np.abs(found.result.numpy() - truth(weights, labels)).max() <= 1e-8
    assert right or found.residual.max() > 1e-10
    assert bool((found.result >= 0).all()) and float((found.result.sum(1) - 1).abs().max()) <= 1e-12


@pytest.mark.skipif("cpu" not in BACKENDS, reason="no C++ core")
def test_too_few_iterations_leave_distributions() -> None:
    system, boundary = problem(scattered(800, 0.15), labels_of(800, 0.02), torch.float64)
    found = _backends.kernels("cpu").propagate(system._replace(max_iter=1), boundary, False, 1e-10)
    assert found.residual.max() > 1e-10 and found.reachable.all()
    assert bool((found.result >= 0).all()) and float((found.result.sum(1) - 1).abs().max()) <= 1e-12


@pytest.mark.skipif("cpu" not in BACKENDS, reason="no C++ core")
def test_a_solve_reports_and_can_be_stopped() -> None:
    system, boundary = problem(scattered(800, 0.15), labels_of(800, 0.02), torch.float64)
    shares: list[float] = []
    with progress(shares.append):
        _backends.kernels("cpu").propagate(system, boundary, False, 1e-10)
    assert shares and shares == sorted(shares) and shares[-1] == 1

    def stop(_: float) -> None:
        raise KeyboardInterrupt

    with progress(stop), pytest.raises(KeyboardInterrupt):
        _backends.kernels("cpu").propagate(system, boundary, False, 1e-10)


def scattered(n: int, sigma: float) -> np.ndarray:
    """Dense weights [n, n] of points in 10 loose and 10 tight clusters, each joined to its 8 nearest, and a ring."""
    rng = np.random.default_rng(2)
    which = rng.integers(0, 20, n)
    x = rng.normal(size=(20, 6))[which] + np.where(which < 10, 0.4, 0.1)[:, None] * rng.normal(size=(n, 6))
    return near_weights(x, 8, sigma)


def log_weight_gradient(weights: np.ndarray, labels: np.ndarray, sense: np.ndarray) -> np.ndarray:
    """d (sense . F) / d log w_ij [n, n] of undirected edges by central differences of the elimination."""
    grad, step = np.zeros_like(weights), 1e-4
    for i, j in zip(*np.triu(weights).nonzero(), strict=True):
        ends = []
        for sign in (1, -1):
            moved = weights.copy()
            moved[i, j] = moved[j, i] = weights[i, j] * np.exp(sign * step)
            ends.append((sense * truth(moved, labels)).sum())
        grad[i, j] = grad[j, i] = (ends[0] - ends[1]) / (2 * step)
    return grad


@pytest.mark.parametrize("backend", GPU_BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("sigma", [0.1, 0.3])
def test_gradient_is_right(sigma: float, dtype: torch.dtype, backend: str) -> None:
    """Float64 weights whatever the dtype of the probabilities; Lam reaches 1e30 and more here."""
    weights, labels = clustered(28, sigma), labels_of(28, 0.2)
    sense = np.random.default_rng(2).normal(size=(28, CLASSES))
    system, boundary = problem(weights, labels, dtype)
    kernels, tol = _backends.kernels(backend), 1e-12 if dtype == torch.float64 else 1e-4
    found = kernels.propagate(system, boundary, False, tol)
    grad, residual = kernels.propagate_backward(
        system, found.result, found.reachable, found.used_tol, torch.from_numpy(sense).to(dtype)
    )
    assert grad.dtype == torch.float64 and residual.max() <= 10 * tol
    row, col = weights.nonzero()
    ours, wanted = 2 * grad.numpy() * weights[row, col], log_weight_gradient(weights, labels, sense)[row, col]
    assert np.abs(ours - wanted).max() <= (1e-6 if dtype == torch.float64 else 1e-3) * np.abs(wanted).max()


def level_of(weights: np.ndarray, dtype: torch.dtype) -> Level:
    row, col = weights.nonzero()
    crow = torch.from_numpy(np.searchsorted(row, np.arange(len(weights) + 1)))
    none = torch.zeros(0, dtype=dtype)
    excess = torch.rand(len(weights), dtype=dtype)
    values = torch.from_numpy(weights[row, col]).to(dtype)
    return Level(crow, torch.from_numpy(col).int().contiguous(), values, excess, none, crow[:1], none)


def flow_kernels(backend: str) -> multilevel.FlowKernels:
    return importlib.import_module("gloss_kernels._backends.triton.flow") if backend == "triton" else native.cuda


@pytest.mark.parametrize("backend", GPU_BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("columns", [1, 5, 33])
def test_flow(columns: int, dtype: torch.dtype, backend: str) -> None:
    """Beside the same in torch; and a vector of equal numbers has no flow at all, not only a small one."""
    level, kernels = level_of(clustered(70, 0.3), dtype), flow_kernels(backend)
    x, right = torch.randn(70, columns, dtype=dtype), torch.randn(70, columns, dtype=dtype)
    row = multilevel.rows_of(level.crow, len(level.col))
    flows = level.weight[:, None].double() * (x[row].double() - x[level.col.long()])
    wanted = level.excess[:, None] * x.double() + hierarchy.segment_sums(flows, level.crow)
    near = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(kernels.flow(level, x, None).double(), wanted, rtol=near, atol=near)
    torch.testing.assert_close(kernels.flow(level, x, right).double(), right - wanted, rtol=near, atol=near)
    still = level._replace(excess=torch.zeros_like(level.excess))
    assert not kernels.flow(still, torch.full_like(x, 1 / 3), None).any()


def test_hierarchy() -> None:
    """Three levels at least; on each the groups' rows follow each other, and weights and excess are sums."""
    system, _ = problem(clustered(96, 0.2), labels_of(96, 0.1), torch.float64)
    hidden = multilevel.hidden_rows(system.edges, system.fixed, torch.ones(96, dtype=torch.bool), 0.0, 1e-10)
    levels, inverse, order, _ = hidden.hierarchy
    assert len(levels) >= 3 and sorted(order.tolist()) == list(range(len(order)))
    for fine, coarse in itertools.pairwise(levels):
        assert fine.group.tolist() == sorted(fine.group.tolist()) and len(fine.first) == len(coarse.excess) + 1
        ones = torch.ones(len(fine.excess), 1, dtype=torch.float64)
        ones[len(fine.group) :] = 0
        # The flow out of all groups at once, of x = 1 in their rows: the inner flows cancel.
        out = hierarchy.segment_sums(dense(fine) @ ones, torch.tensor([0, len(fine.group)]))
        torch.testing.assert_close(out[0, 0], coarse.excess.sum(), rtol=1e-10, atol=0)
    last = dense(levels[-1])
    assert inverse is not None and (inverse >= 0).all()
    torch.testing.assert_close(inverse @ last, torch.eye(len(last), dtype=torch.float64), rtol=0, atol=1e-6)


def dense(level: Level) -> Tensor:
    row = multilevel.rows_of(level.crow, len(level.col))
    n = len(level.excess)
    a = torch.zeros(n, n, dtype=torch.float64).index_put((row, level.col.long()), -level.weight.double())
    return a + torch.diag(level.excess - a.sum(1))


def test_rows_without_a_path_to_a_label() -> None:
    """A chain of 50 that hangs on a label, one that does not, and a row alone; an edge of weight 0 joins nothing."""
    a, chain = np.zeros((102, 102)), np.arange(49)
    a[chain, chain + 1] = a[50 + chain, 51 + chain] = 1e-30
    a[49, 50] = a[99, 100] = 1.0  # to be 0
    system, _ = problem(a + a.T, np.where(np.arange(102) == 20, 0, -1), torch.float64)
    edges = system.edges._replace(values=system.edges.values.masked_fill(system.edges.values == 1, 0.0))
    assert multilevel.reachable_rows(edges, system.fixed).tolist() == [True] * 50 + [False] * 52

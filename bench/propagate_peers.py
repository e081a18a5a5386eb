"""The peers of stage 3, and how far any result is from the exact one."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import gloss_kernels

K = 15
TOL = 1e-5  # relative residual of the harmonic solution
ALPHA = 0.2  # of label spreading: scikit-learn's default
SPREADING_TOL = 5e-8  # ours: leaves an error like that of scikit-learn at its default tolerance (1e-5 at n=23,000)


class Problem(NamedTuple):
    x: Tensor  # float32 [n, d]
    graph: gloss_kernels.SimilarityGraph
    labels: Tensor  # int64 [n], -1 where hidden
    truth: Tensor  # int64 [n]
    classes: int
    source: str


def one_hot(p: Problem, dtype: torch.dtype = torch.float32) -> Tensor:
    """Y [n, C], zero rows where the label is hidden."""
    return torch.nn.functional.one_hot(p.labels.clamp(min=0), p.classes).to(dtype) * (p.labels >= 0)[:, None]


# ------------------------------------------------------------------------------------------- harmonic
def scipy_cg(p: Problem) -> Callable[[], Any]:
    """One class after the other, float32 as ours, diagonal preconditioner.

    It stands in the system, D^-1/2 (D - A) D^-1/2: the same iterates as with M=, less work in each (SciPy would apply
    M as a second sparse matrix), and SciPy's stopping rule is then the same norm as ours.
    """
    from scipy.sparse import diags_array
    from scipy.sparse.linalg import cg

    def run() -> np.ndarray:
        a = p.graph.to_scipy()
        hidden = (p.labels < 0).numpy().nonzero()[0]
        f = one_hot(p).numpy()
        scale = 1 / np.sqrt(a.sum(axis=1)[hidden])
        right = scale[:, None] * (a @ f)[hidden]
        root = diags_array(scale)
        system = (diags_array(np.ones_like(scale)) - root @ a[hidden][:, hidden] @ root).tocsr()
        for c in range(p.classes):
            f[hidden, c] = scale * cg(system, right[:, c], rtol=TOL, atol=0.0, maxiter=500)[0]
        return f

    return run


def torch_fixed_point(p: Problem, check_every: int = 10) -> Callable[[], Any]:
    """F <- D^-1 A F with the labels put back, all classes at once, until the residual is small."""

    def run() -> Tensor:
        a = p.graph.to_sparse_csr()
        d = (a @ torch.ones(len(p.x), 1)).clamp(min=1e-30)
        labeled, y = (p.labels >= 0)[:, None], one_hot(p)
        right = ((a @ y) ** 2 / d * ~labeled).sum(dim=0).sqrt().clamp(min=1e-30)
        f = y
        for step in range(2000):
            new = torch.where(labeled, y, (a @ f) / d)
            if step % check_every == 0 and float((((new - f) ** 2 * d).sum(dim=0).sqrt() / right).max()) <= TOL:
                return new
            f = new
        return f

    return run


def residual(p: Problem, f: Any) -> float:
    """max over classes of |b - (D - A)_UU F_U| / |b| in the norm of D^-1, in float64."""
    a = p.graph.to_scipy().astype(np.float64)
    f = np.asarray(f, dtype=np.float64)
    d, y = a.sum(axis=1), one_hot(p, torch.float64).numpy()
    hidden = ((p.labels < 0) & _reachable(p)).numpy()

    def norm(r: np.ndarray) -> np.ndarray:
        return np.sqrt((r[hidden] ** 2 / d[hidden, None]).sum(axis=0))

    right, left = norm(a @ y), norm(a @ f - d[:, None] * f)
    return float((left[right > 0] / right[right > 0]).max()) if (right > 0).any() else 0.0


def _reachable(p: Problem) -> Tensor:
    """bool [n]: in a component with a label."""
    from scipy.sparse.csgraph import connected_components

    part = torch.as_tensor(connected_components(p.graph.to_scipy(), directed=False)[1], dtype=torch.int64)
    return torch.isin(part, part[p.labels >= 0])


# ------------------------------------------------------------------------------------------ spreading
def sklearn_spreading(p: Problem) -> Callable[[], Any]:
    """On the same graph: scikit-learn takes a function as kernel."""
    from sklearn.semi_supervised import LabelSpreading

    def run() -> np.ndarray:
        model = LabelSpreading(kernel=lambda x, y: p.graph.to_scipy(), alpha=ALPHA)
        model.fit(p.x.numpy(), p.labels.numpy())
        return _all_classes(model, p)

    return run


def sklearn_fit(p: Problem) -> Callable[[], Any]:
    """Its own search, graph (0-1 weights) and propagation."""
    from sklearn.semi_supervised import LabelSpreading

    def run() -> np.ndarray:
        model = LabelSpreading(kernel="knn", n_neighbors=K, alpha=ALPHA)
        model.fit(p.x.numpy(), p.labels.numpy())
        return _all_classes(model, p)

    return run


def _all_classes(model: Any, p: Problem) -> np.ndarray:
    """scikit-learn leaves out the classes without a label."""
    f = np.zeros((len(p.x), p.classes), dtype=np.float32)
    f[:, model.classes_] = model.label_distributions_
    return f


def pyg_spreading(p: Problem) -> Callable[[], Any]:
    """PyG's module on the same normalised graph; 15 steps reach 0.2^15 = 3e-11."""
    from torch_geometric.nn.models import LabelPropagation

    model = LabelPropagation(num_layers=15, alpha=ALPHA)

    def run() -> Tensor:
        row, weight = p.graph.row_indices, p.graph.values
        scale = torch.zeros(len(p.x)).index_add(0, row, weight).clamp(min=1e-30).rsqrt()
        weight = scale[row] * weight * scale[p.graph.col_indices]
        f = model(one_hot(p), p.graph.edge_index, mask=p.labels >= 0, edge_weight=weight)
        return f / f.sum(dim=1, keepdim=True).clamp(min=1e-30)

    return run


def spreading_error(p: Problem, f: Any) -> float:
    """Largest difference from the exact probabilities, on documents that a label can reach."""
    rows = _reachable(p).numpy()
    return float(np.abs(np.asarray(f, dtype=np.float64) - _exact_spreading(p.x.data_ptr(), p))[rows].max(initial=0.0))


@lru_cache(maxsize=1)
def _exact_spreading(_key: int, p: Problem) -> np.ndarray:
    from scipy.sparse import diags_array

    a, y = p.graph.to_scipy().astype(np.float64), one_hot(p, torch.float64).numpy()
    scale = diags_array(1 / np.sqrt(np.maximum(a.sum(axis=1), 1e-300)))
    s, f = (scale @ a @ scale).tocsr(), y
    for _ in range(25):  # 0.2^25 = 3e-18
        f = ALPHA * (s @ f) + (1 - ALPHA) * y
    return f / np.maximum(f.sum(axis=1, keepdims=True), 1e-300)

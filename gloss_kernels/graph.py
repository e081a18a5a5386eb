"""Stage 2, graph: from nearest neighbours to a weighted sparse graph in CSR form."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import _backends, _checks, _ops, reference
from ._files import read_arrays, replacing
from ._math import compute_dtype
from .topk import TopK, cosine_topk

SMALLEST_SIGMA = 1e-6  # a smaller one overflows 1 / sigma^2 in float32 with room for the gradient
SYMMETRIZE = tuple(None if how == "none" else how for how in reference.SYMMETRIZE)


class SimilarityGraph(NamedTuple):
    """A weighted sparse graph of n nodes in CSR form, with torch's names.

    Row i has the edges ``col_indices[crow_indices[i]:crow_indices[i + 1]]``, ascending, without repeats or self edges.

    Attributes:
        crow_indices: int64 [n + 1].
        col_indices: int64 [nnz].
        values: float32 or float64 [nnz], not negative; may carry a gradient.
        symmetric: whether entry (j, i) equals entry (i, j). Propagation needs it.

    Example:
        >>> import torch
        >>> from gloss_kernels import similarity_graph
        >>> graph = similarity_graph(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), 1)
        >>> graph.num_nodes, graph.num_edges
        (3, 4)
        >>> graph.edge_index.tolist()
        [[1, 0, 2, 1], [0, 1, 1, 2]]
    """

    crow_indices: Tensor
    col_indices: Tensor
    values: Tensor
    symmetric: bool = True

    @property
    def num_nodes(self) -> int:
        """n."""
        return self.crow_indices.shape[0] - 1

    @property
    def num_edges(self) -> int:
        """nnz; an undirected edge counts twice."""
        return self.values.shape[0]

    @property
    def row_indices(self) -> Tensor:
        """int64 [nnz]: the row of every entry."""
        nodes = torch.arange(self.num_nodes, dtype=torch.int64, device=self.crow_indices.device)
        return nodes.repeat_interleave(self.crow_indices.diff(), output_size=self.values.shape[0])

    @property
    def edge_index(self) -> Tensor:
        """int64 [2, nnz], PyG's convention: source nodes above target nodes; edge (j -> i) is entry (i, j)."""
        return torch.stack([self.col_indices, self.row_indices])

    def to(self, device: torch.device | str) -> SimilarityGraph:
        """The same graph on another device."""
        crow, col, values = (x.to(device) for x in (self.crow_indices, self.col_indices, self.values))
        return SimilarityGraph(crow, col, values, self.symmetric)

    def to_sparse_csr(self) -> Tensor:
        """As torch.sparse_csr_tensor [n, n]."""
        n, values = self.num_nodes, self.values
        return torch.sparse_csr_tensor(
            self.crow_indices, self.col_indices, values, (n, n), dtype=values.dtype, device=values.device,
            check_invariants=True,
        )  # fmt: skip

    def to_scipy(self) -> Any:
        """As scipy.sparse.csr_array [n, n] (a copy on the CPU, without gradient). ImportError without scipy."""
        from scipy.sparse import csr_array

        crow, col, values = (x.detach().cpu().numpy() for x in (self.crow_indices, self.col_indices, self.values))
        return csr_array((values, col, crow), shape=(self.num_nodes, self.num_nodes))

    @classmethod
    def from_scipy(cls, matrix: Any) -> SimilarityGraph:
        """From any scipy.sparse matrix [n, n] of weights >= 0; repeated entries are added, self edges dropped.

        A matrix that is symmetric but for rounding (as scikit-learn's rbf_kernel) becomes symmetric: of each pair the
        mean. Any other is a directed graph; propagation needs ``(matrix + matrix.T) / 2``, or ``matrix.maximum(
        matrix.T)``.

        Raises:
            TypeError, ValueError: not a scipy.sparse matrix of real numbers, not square, or a weight that is negative,
                NaN or Inf.
        """
        if not hasattr(matrix, "tocoo"):
            raise TypeError(f"matrix must be a scipy.sparse matrix, got {type(matrix).__name__}")
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"matrix must be square, got shape {matrix.shape}")
        if matrix.dtype.kind not in "buif":
            raise TypeError(f"matrix must hold real numbers, got {matrix.dtype}")
        coo = matrix.tocoo()
        keep = coo.row != coo.col
        # Not in the matrix's own dtype: entries are added, and in int8 100 + 100 would be -56.
        weights = coo.data[keep].astype(np.float64 if coo.dtype.itemsize >= 8 and coo.dtype.kind == "f" else np.float32)
        csr = type(coo)((weights, (coo.row[keep], coo.col[keep])), shape=coo.shape).tocsr()
        csr.sum_duplicates()
        if not bool((np.isfinite(csr.data) & (csr.data >= 0)).all()):
            raise ValueError("matrix must have finite weights >= 0, got one that is negative, NaN or Inf")
        symmetric = (csr != csr.T).nnz == 0
        if not symmetric and _is_rounding(csr):
            csr, symmetric = (0.5 * csr + 0.5 * csr.T).tocsr(), True
            csr.sum_duplicates()
        crow, col = (torch.from_numpy(x.astype(np.int64)) for x in (csr.indptr, csr.indices))
        return cls(crow, col, torch.from_numpy(csr.data), bool(symmetric))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes an .npz file (no pickle) with the arrays of this tuple.

        ``torch.save`` works too, alone or within a checkpoint, and ``torch.load(..., weights_only=True)`` reads it
        where gloss_kernels has been imported.
        """
        arrays: dict[str, Any] = {name: getattr(self, name).detach().cpu().numpy() for name in self._fields[:3]}
        arrays["symmetric"] = np.array(self.symmetric)
        with replacing(path) as beside, open(beside, "wb") as file:  # numpy would append .npz to a name without it
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SimilarityGraph:
        """Reads what :meth:`save` wrote, and checks it.

        Raises:
            ValueError: naming the path, where the file is damaged or foreign.
        """
        try:
            *arrays, flag = read_arrays(path, cls._fields)
            crow, col, values = map(torch.from_numpy, arrays)
            symmetric = bool(flag)
        except (ValueError, TypeError) as error:
            raise ValueError(f"path must be a graph saved by SimilarityGraph.save, got {os.fspath(path)!r}") from error
        graph = cls(crow, col, values, symmetric)
        check_graph("path", graph)
        return graph


def _is_rounding(csr: Any) -> bool:
    """Whether entries (i, j) and (j, i) differ by what computing them twice may do.

    rbf_kernel: by up to 60 units in the last place, since it takes differences of squares; a weight may be 0 on one
    side alone.
    """
    eps = np.finfo(csr.dtype).eps
    other = csr.T.tocsr()
    beyond = abs(csr - other) - 1000 * eps * csr.maximum(other)
    return bool(beyond.max() <= eps * csr.max())


def check_graph(name: str, graph: Any) -> SimilarityGraph:
    """Raises where the arrays are not a CSR graph; of arrays on a GPU see _checks.condition."""
    if not isinstance(graph, SimilarityGraph):
        raise TypeError(
            f"{name} must be a SimilarityGraph (SimilarityGraph.from_scipy makes one), got {type(graph).__name__}"
        )
    crow, col, values, _ = graph
    for part, x, kinds in (("crow_indices", crow, (torch.int64,)), ("col_indices", col, (torch.int64,)),
                           ("values", values, (torch.float32, torch.float64))):  # fmt: skip
        if not isinstance(x, Tensor):
            raise TypeError(f"{name}.{part} must be a torch.Tensor, got {type(x).__name__}")
        if x.ndim != 1 or x.dtype not in kinds:
            wanted = " or ".join(map(str, kinds))
            raise ValueError(f"{name}.{part} must be a vector of {wanted}, got {x.dtype} {tuple(x.shape)}")
    if crow.shape[0] == 0 or col.shape[0] != values.shape[0]:
        raise ValueError(
            f"{name} must have crow_indices [n + 1], col_indices and values [nnz], got lengths {crow.shape[0]}, "
            f"{col.shape[0]} and {values.shape[0]}"
        )
    if torch.compiler.is_compiling():
        crow, col = checked_graph_op(name, crow, col, values.detach())
        return graph._replace(crow_indices=crow, col_indices=col)
    _check_entries(name, crow, col, values)
    return graph


def _check_entries(name: str, crow: Tensor, col: Tensor, values: Tensor) -> None:
    """What guards memory: kernels index with the columns."""
    _checks.condition(
        (crow[0] == 0) & (crow[-1] == col.shape[0]) & (crow.diff() >= 0).all(),
        f"{name}.crow_indices must rise from 0 to nnz = {col.shape[0]}, got other numbers",
    )
    if col.shape[0] == 0:
        return
    _checks.condition(
        (col.min() >= 0) & (col.max() < crow.shape[0] - 1),
        f"{name}.col_indices must be nodes in 0..{crow.shape[0] - 2}, got one outside",
    )
    starts = torch.zeros(col.shape[0] + 1, dtype=torch.bool, device=col.device)  # of rows: there columns may fall
    starts = starts.index_fill_(0, crow.clamp(0, col.shape[0]), True)
    _checks.condition(
        ((col.diff() > 0) | starts[1:-1]).all(),
        f"{name}.col_indices must rise within a row, without repeats (SimilarityGraph.from_scipy sorts them), got "
        "others",
    )
    _checks.condition(
        (torch.isfinite(values) & (values >= 0)).all(),
        f"{name}.values must be finite weights >= 0, got one that is negative, NaN or Inf",
    )


@torch.library.custom_op("gloss_kernels::checked_graph", mutates_args=())
def checked_graph_op(name: str, crow: Tensor, col: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Compiled code takes the structure from here, so that no kernel reads it before it was checked."""
    _check_entries(name, crow, col, values)
    return crow.clone(), col.clone()


@checked_graph_op.register_fake
def _(name: str, crow: Tensor, col: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(crow), torch.empty_like(col)


def similarity_graph(
    embeddings: Tensor,
    n_neighbors: int = 15,
    *,
    sigma: float | Tensor = 0.5,
    symmetrize: str | None = "sum",
    neighbors: TopK | None = None,
    backend: str = "auto",
) -> SimilarityGraph:
    """The Gaussian k-nearest-neighbour graph of documents, with gradient to embeddings and sigma.

    W_ij = exp((c_ij - 1) / sigma^2) for j among the n_neighbors nearest of i, c the cosine; on the unit sphere this is
    exp(-|u_i - u_j|^2 / (2 sigma^2)) (G-Loss, arXiv 2604.25853). Equivalent torch for symmetrize="sum"::

        c, j = cosine_topk(embeddings, k=n_neighbors)
        W = torch.zeros(n, n).scatter(1, j, torch.exp((c - 1) / sigma**2))
        (W + W.T).to_sparse_csr()

    Args:
        embeddings: [n, d], as for :func:`cosine_topk`.
        n_neighbors: 1 to n - 1.
        sigma: > 0, or a tensor: 0-dim (learnable), or [n], a scale for each document: W_ij = exp((c_ij - 1) /
            (sigma_i sigma_j)) (self-tuning, see :func:`gloss_kernels.sigma.sigma_self_tuning`).
        symmetrize: how W becomes undirected: "sum" W + W^T, "union" max(W, W^T), "mutual" min(W, W^T); None leaves it
            directed. reference.SYMMETRIZE is the table of them.
        neighbors: a TopK of these embeddings found earlier (by NeighborIndex for instance): the search is left out, its
            indices are used, and its values are the cosines, carrying their gradient.
        backend: as for :func:`cosine_topk`.

    Shapes: embeddings [n, d] -> crow_indices [n + 1], col_indices and values [nnz], nnz at most 2 n k.

    Returns:
        SimilarityGraph with float32 values (float64 for float64 input). On a GPU its size is read from the device, so
        this function waits, and cannot be captured in a CUDA graph (:class:`GLoss` can).

    Raises:
        TypeError, ValueError: naming the argument.

    Source: G-Loss, eq. 1. Self-tuning scales: Zelnik-Manor and Perona 2004.

    Example:
        >>> import torch
        >>> from gloss_kernels import similarity_graph
        >>> x = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]], requires_grad=True)
        >>> sigma = torch.tensor(0.5, requires_grad=True)
        >>> graph = similarity_graph(x, 1, sigma=sigma, symmetrize="union")
        >>> graph.to_sparse_csr().shape
        torch.Size([3, 3])
        >>> graph.values.sum().backward()
        >>> x.grad.shape, sigma.grad.shape
        (torch.Size([3, 2]), torch.Size([]))
    """
    _checks.matrix("embeddings", embeddings)
    _checks.choice("symmetrize", symmetrize, SYMMETRIZE)
    if neighbors is None:
        neighbors = neighbors_of(embeddings, n_neighbors, backend=backend)
    else:
        neighbors = _check_neighbors(neighbors, embeddings)
    chosen = _backends.resolve(backend, embeddings.device)
    weights = gaussian_weights(neighbors, sigma)
    how = symmetrize or "none"
    crow, col, forward, reverse = _ops.graph.knn_structure(neighbors.indices, how, chosen)
    nnz = int(crow[-1])
    values = _ops.graph.combine_edges(weights, forward[:nnz].clone(), reverse[:nnz].clone(), how, chosen)
    return SimilarityGraph(crow, col[:nnz].clone(), values, symmetrize is not None)


def gaussian_weights(neighbors: TopK, sigma: float | Tensor) -> Tensor:
    """exp((c - 1) / sigma^2) [n, k] for the neighbours' cosines c; plain torch, so sigma may be learned."""
    c, j = neighbors
    sigma = check_sigma(sigma, c.shape[0])
    distance = (c - 1).clamp(max=0)  # rounding may give duplicates a cosine above 1
    if isinstance(sigma, Tensor):
        sigma = sigma.to(c)
        return torch.exp(distance / (sigma**2 if sigma.ndim == 0 else sigma[:, None] * sigma[j]))
    return torch.exp(distance * (1 / sigma**2))


def check_sigma(sigma: Any, n: int) -> float | Tensor:
    if not isinstance(sigma, Tensor):
        return _checks.number("sigma", sigma, SMALLEST_SIGMA)
    if sigma.ndim > 1 or (sigma.ndim == 1 and sigma.shape[0] != n):
        raise ValueError(f"sigma must be a number, a 0-dim tensor or [{n}], got shape {tuple(sigma.shape)}")
    if not sigma.is_floating_point():
        raise TypeError(f"sigma must have a floating dtype, got {sigma.dtype}")
    return _checks.at_least("sigma", sigma, SMALLEST_SIGMA)


def neighbors_of(embeddings: Tensor, n_neighbors: int, *, backend: str = "auto") -> TopK:
    """cosine_topk of the embeddings among themselves; errors speak of embeddings and n_neighbors."""
    most = embeddings.shape[0] - 1
    if most < 1:
        raise ValueError(f"embeddings must have at least 2 rows, got {most + 1}")
    _checks.whole_number("n_neighbors", n_neighbors, 1)
    if n_neighbors > most:
        raise ValueError(
            f"n_neighbors must be at most {most} (a document of {most + 1} has no more others), got {n_neighbors}"
        )
    if torch.compiler.is_compiling() and embeddings.device.type == "cpu":  # there no except gives the error its name
        embeddings = _checks.finite_rows("embeddings", embeddings)
    try:
        return cosine_topk(embeddings, k=n_neighbors, backend=backend)
    except ValueError as error:
        raise ValueError(str(error).replace("queries: row", "embeddings: row")) from None


def _check_neighbors(neighbors: Any, embeddings: Tensor) -> TopK:
    if not (isinstance(neighbors, tuple) and len(neighbors) == 2 and all(isinstance(x, Tensor) for x in neighbors)):
        raise TypeError(f"neighbors must be TopK(values, indices), got {type(neighbors).__name__}")
    values, indices = neighbors
    if values.ndim != 2 or values.shape[0] != embeddings.shape[0]:
        raise ValueError(f"neighbors.values must be [{embeddings.shape[0]}, k], got shape {tuple(values.shape)}")
    if values.dtype not in _checks.FLOAT_DTYPES:
        raise TypeError(f"neighbors.values must have a floating dtype, got {values.dtype}")
    _checks.integers("neighbors.indices", indices, tuple(values.shape))
    _checks.same_device("neighbors.values", values, embeddings)
    _checks.same_device("neighbors.indices", indices, embeddings)
    if indices.numel() and not torch.compiler.is_compiling():  # the size of the graph is read as well, a little later
        low, high = (int(x) for x in indices.aminmax())
        if low < 0 or high >= indices.shape[0]:
            outside = low if low < 0 else high
            raise ValueError(f"neighbors.indices must be rows in 0..{indices.shape[0] - 1}, got {outside}")
    return TopK(values.to(compute_dtype(embeddings)), indices)

"""What a backend offers: the functions of class Backend, and the structures that they take and return.

The operators (_ops) make these structures from tensors of the right dtype and shape, all on one device. native.py (C++
and CUDA) and triton/ have all functions, gradients too; reference.py is torch operations, which autograd goes through.
csrc/gloss.h says what each function computes. Structures are named tuples, which every torch.compile can trace.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

# ------------------------------------------------------------------------------------------------ topk


class Search(NamedTuple):
    queries: Tensor  # [n, d]
    corpus: Tensor | None  # [m, d]; None: the queries themselves
    k: int
    exclude_self: bool
    hint: Tensor | None  # int64 [n, any]


class SearchGradient(NamedTuple):
    queries: Tensor  # [n, d]
    corpus: Tensor | None  # [m, d]; None: the queries themselves, whose gradient then has both sides
    indices: Tensor  # int64 [n, k]
    grad_values: Tensor  # [n, k]
    need_queries: bool
    need_corpus: bool


# ----------------------------------------------------------------------------------------------- graph


class Structure(NamedTuple):
    """The sparsity of a graph; the entries past crow[n] are padding: 0, -1, -1."""

    crow: Tensor  # int64 [n + 1]
    col: Tensor  # int64 [capacity]
    forward: Tensor  # int64 [capacity]: where in [n * k] the weight i -> j lies, -1: there is none
    reverse: Tensor  # int64 [capacity]: of j -> i


class Combination(NamedTuple):
    weights: Tensor  # [n, k], directed
    forward: Tensor  # int64 [nnz]
    reverse: Tensor  # int64 [nnz]
    symmetrize: str


class Edges(NamedTuple):
    crow: Tensor  # int64 [n + 1]
    col: Tensor  # int64 [nnz or longer]
    values: Tensor  # as long as col


# ------------------------------------------------------------------------------------------- propagate


class System(NamedTuple):
    """The linear system of label propagation on a normalised graph."""

    edges: Edges
    fixed: Tensor  # bool [n], the labelled
    prior: Tensor  # [C], of rows that reach no label
    alpha: float | None  # None: harmonic; else label spreading
    prior_strength: float
    max_iter: int


class Solution(NamedTuple):
    result: Tensor  # F [n, C]
    iterations: Tensor  # int64 []
    residual: Tensor  # float64 [C]
    reachable: Tensor  # bool [n]
    used_tol: Tensor  # float64 []


# ------------------------------------------------------------------------------------------------ loss


class Batch(NamedTuple):
    """A mini-batch whose documents all neighbour each other."""

    embeddings: Tensor  # [n, d]
    inverse_sigma: Tensor  # float64 [n]
    labels: Tensor  # int64 [n], -1: unlabelled or hidden
    targets: Tensor  # int64 [n], the true class of scored documents
    scored: Tensor  # bool [n]
    class_weight: Tensor | None  # float64 [C]
    num_classes: int
    alpha: float | None
    normalization: str
    target: str
    smoothing: float


class BatchLoss(NamedTuple):
    loss: Tensor  # []
    result: Tensor  # F [n, C], rows sum to 1
    reachable: Tensor  # bool [n]
    row_sum_error: Tensor  # float64 []: the most that a row's sum differed from 1
    grad_embeddings: Tensor  # [n, d], or empty where no gradient is wanted
    grad_inverse_sigma: Tensor  # float64 [n], or empty


class Backend(Protocol):
    @property
    def dense_rows(self) -> float:
        """The most documents that dense_loss takes; above, the loss runs as torch operations."""

    def cosine_topk(self, search: Search) -> tuple[Tensor, Tensor]:
        """values, indices [n, k]."""

    def knn_structure(self, indices: Tensor, symmetrize: str, capacity: int) -> Structure: ...

    def combine_edges(self, combination: Combination) -> Tensor:
        """values [nnz]."""

    def normalize_edges(self, edges: Edges, normalization: str) -> Tensor: ...

    def propagate(self, system: System, boundary: Tensor, has_initial: bool, tol: float) -> Solution:
        """boundary [n, C]: labels on fixed rows; elsewhere, if has_initial, the start of the iteration."""

    def dense_loss(self, batch: Batch, want_gradient: bool) -> BatchLoss: ...


class Kernels(Backend, Protocol):
    """A backend whose functions are no torch operations: these are their gradients. (Of dense_loss they come along.)"""

    def cosine_topk_backward(self, gradient: SearchGradient) -> tuple[Tensor, Tensor]:
        """Of queries and corpus in the compute dtype, empty where not needed."""

    def combine_edges_backward(self, combination: Combination, grad_values: Tensor) -> Tensor:
        """dL/dweights [n, k]."""

    def normalize_edges_backward(self, edges: Edges, normalization: str, grad_normalized: Tensor) -> Tensor: ...

    def propagate_backward(
        self, system: System, result: Tensor, reachable: Tensor, used_tol: Tensor, grad_result: Tensor
    ) -> tuple[Tensor, Tensor]:
        """dL/dvalues [nnz] and residual [C] of the adjoint solve, which stops at the tol of the forward one."""

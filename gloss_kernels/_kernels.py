"""What a backend with kernels offers, the shape of _cpu.py and _cuda.py. csrc/gloss.h says what each function does."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Kernels(Protocol):
    def cosine_topk(
        self, queries: Tensor, corpus: Tensor | None, k: int, exclude_self: bool, hint: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """values, indices [n, k]; corpus None: the queries themselves."""

    def cosine_topk_backward(
        self, queries: Tensor, corpus: Tensor | None, indices: Tensor, grad_values: Tensor, need: tuple[bool, bool]
    ) -> tuple[Tensor, Tensor]:
        """Gradients in the compute dtype, empty where not needed. With corpus None the first has both sides."""

    def knn_structure(self, indices: Tensor, symmetrize: str | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """crow [n + 1] and col, forward, reverse [capacity] of the symmetrised graph."""

    def combine_edges(self, weights: Tensor, forward: Tensor, reverse: Tensor, symmetrize: str | None) -> Tensor:
        """values [capacity] from the directed weights [n, k]."""

    def combine_edges_backward(
        self, grad_values: Tensor, weights: Tensor, forward: Tensor, reverse: Tensor, symmetrize: str | None
    ) -> Tensor: ...

    def normalize_edges(self, crow: Tensor, col: Tensor, values: Tensor, normalization: str) -> Tensor: ...

    def normalize_edges_backward(
        self, grad_normalized: Tensor, crow: Tensor, col: Tensor, values: Tensor, normalization: str
    ) -> Tensor: ...

    def propagate(
        self,
        crow: Tensor,
        col: Tensor,
        values: Tensor,
        fixed: Tensor,
        boundary: Tensor,
        has_initial: bool,
        prior: Tensor,
        alpha: float | None,
        prior_strength: float,
        tol: float,
        max_iter: int,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """F [n, C], iterations [], residual [C], reachable [n], the tol used []."""

    def propagate_backward(
        self,
        grad_result: Tensor,
        crow: Tensor,
        col: Tensor,
        values: Tensor,
        fixed: Tensor,
        reachable: Tensor,
        prior: Tensor,
        result: Tensor,
        used_tol: Tensor,
        alpha: float | None,
        prior_strength: float,
        max_iter: int,
    ) -> tuple[Tensor, Tensor]:
        """dL/dvalues [nnz] and residual [C] of the adjoint solve, which stops at the tol of the forward one."""

    def dense_loss(
        self,
        embeddings: Tensor,
        inverse_sigma: Tensor,
        labels: Tensor,
        targets: Tensor,
        scored: Tensor,
        class_weight: Tensor | None,
        num_classes: int,
        alpha: float | None,
        normalization: str,
        target: str,
        smoothing: float,
        want_gradient: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """loss [], F [n, C], reachable [n], the most a row's sum lacked [], and dL/dx [n, d], dL/d(1/sigma) [n].

        The gradients are empty where not wanted. inverse_sigma and class_weight are float64.
        """

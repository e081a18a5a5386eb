"""Stage 4, loss: cross entropy between the labels that arrive at hidden documents and their true ones (G-Loss)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from . import _dispatch, _validate, dense, reference
from .graph import SMALLEST_SIGMA, check_sigma, combine_edges_op, gaussian_weights, knn_structure_op, neighbors_of
from .propagate import WRONG, Propagation, check_options, known_labels, mark_wrong, may_be_wrong, solve
from .sigma import HEURISTICS, estimate_sigma
from .topk import check_finite

TARGETS = ("nll", "paper")
SMOOTHING = 0.01  # of target="nll": keeps -log finite where no label of the true class arrives


class GLoss(nn.Module):
    """G-Loss of a mini-batch: hide some labels, propagate the others over the batch's graph, score the hidden ones.

    Source: G-Loss, arXiv 2604.25853. Usage, next to the cross entropy of a classifier::

        gloss = GLoss(num_classes, sigma=0.5)
        loss = (1 - lam) * F.cross_entropy(head(z), y) + lam * gloss(z, y)

    Args:
        num_classes: C.
        n_neighbors: None joins every pair (dense graph, Cholesky solve); k joins each document to its k nearest
            (sparse graph, conjugate gradients). A batch of at most k + 1 documents is dense in any case.
        sigma: width of the Gaussian weights: a number, a tensor or Parameter (0-dim, or [n] one a document), or a
            heuristic applied to every batch: "root", "mst", "self-tuning" (:mod:`gloss_kernels.sigma`).
        labeled_fraction: share of the labelled documents that keep their label, ceil(m * fraction) of m.
        normalization: "row" (the paper's equation) or "paper" (what its published code computes).
        alpha: None for the harmonic solution, or label spreading with this alpha in (0, 1).
        target: "nll" -log((1 - s) p_y + s / C) with s = 0.01; "paper" cross entropy with p used as logits.
        class_weight: float [C] as in torch.nn.CrossEntropyLoss: the mean is weighted.
        ignore_index: label of documents without one. They take part in the graph and are never scored.
        tol, max_iter: of the sparse solve, see :func:`propagate_labels`.
        generator: torch.Generator for the choice of hidden documents.
        backend: "auto", "cpu", "cuda", "triton" or "reference".

    Shapes: forward(embeddings [n, d], labels int64 [n], hide_mask bool [n] or None) -> scalar float32 (float64 for
    float64 embeddings). Under autocast the inputs are cast once and the loss is float32.

    ``last`` is the :class:`Propagation` of the latest call, without gradient.
    """

    class_weight: Tensor | None

    def __init__(
        self,
        num_classes: int,
        *,
        n_neighbors: int | None = None,
        sigma: float | Tensor | str = 0.5,
        labeled_fraction: float = 0.7,
        normalization: str = "row",
        alpha: float | None = None,
        target: str = "nll",
        class_weight: Tensor | None = None,
        ignore_index: int = -1,
        tol: float = 1e-5,
        max_iter: int = 500,
        generator: torch.Generator | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.num_classes = _validate.whole_number("num_classes", num_classes, 1)
        if n_neighbors is not None:
            _validate.whole_number("n_neighbors", n_neighbors, 1)
        self.n_neighbors = n_neighbors
        if isinstance(sigma, str):
            _validate.choice("sigma", sigma, HEURISTICS)
        elif isinstance(sigma, Tensor):
            check_sigma(sigma, sigma.numel())
        else:
            sigma = _validate.number("sigma", sigma, SMALLEST_SIGMA)
        if isinstance(sigma, Tensor) and not isinstance(sigma, nn.Parameter):
            self.register_buffer("sigma", sigma)
        else:
            self.sigma = sigma
        self.labeled_fraction = _validate.number("labeled_fraction", labeled_fraction, 0, 1)
        check_options(alpha, normalization, tol, max_iter)
        self.normalization, self.alpha, self.tol, self.max_iter = normalization, alpha, tol, max_iter
        self.target = _validate.choice("target", target, TARGETS)
        _check_class_weight(class_weight, self.num_classes)
        self.register_buffer("class_weight", class_weight)
        self.ignore_index = _validate.whole_number("ignore_index", ignore_index)
        if generator is not None and not isinstance(generator, torch.Generator):
            raise TypeError(f"generator: got {type(generator).__name__}, wants a torch.Generator")
        self.generator = generator
        self.backend = _validate.choice("backend", backend, _dispatch.BACKENDS)
        self.last: Propagation | None = None

    @classmethod
    def paper(
        cls,
        num_classes: int,
        *,
        sigma: float | Tensor | str,
        labeled_fraction: float = 0.7,
        class_weight: Tensor | None = None,
    ) -> GLoss:
        """The published code, number for number: dense graph, its normalisation, probabilities used as logits."""
        return cls(
            num_classes,
            sigma=sigma,
            labeled_fraction=labeled_fraction,
            class_weight=class_weight,
            normalization="paper",
            target="paper",
        )

    def forward(self, embeddings: Tensor, labels: Tensor, hide_mask: Tensor | None = None) -> Tensor:
        """The loss of one batch; hide_mask bool [n] names the hidden documents, else they are drawn."""
        _check_batch(embeddings, labels)
        if hide_mask is None:
            hide_mask = draw_hidden(labels != self.ignore_index, self.labeled_fraction, self.generator)
        loss, propagation = _g_loss(
            embeddings, labels, hide_mask, self.num_classes, self.n_neighbors, self.sigma, self.normalization,
            self.alpha, self.target, self.class_weight, self.ignore_index, self.tol, self.max_iter, self.backend,
        )  # fmt: skip
        self.last = Propagation(*(x.detach() for x in propagation))
        return loss

    def extra_repr(self) -> str:
        sigma = tuple(self.sigma.shape) if isinstance(self.sigma, Tensor) else self.sigma
        return (
            f"{self.num_classes}, n_neighbors={self.n_neighbors}, sigma={sigma}, "
            f"labeled_fraction={self.labeled_fraction}, normalization={self.normalization!r}, alpha={self.alpha}, "
            f"target={self.target!r}"
        )


def g_loss(
    embeddings: Tensor,
    labels: Tensor,
    num_classes: int,
    hide_mask: Tensor | None = None,
    *,
    n_neighbors: int | None = None,
    sigma: float | Tensor | str = 0.5,
    labeled_fraction: float = 0.7,
    normalization: str = "row",
    alpha: float | None = None,
    target: str = "nll",
    class_weight: Tensor | None = None,
    ignore_index: int = -1,
    tol: float = 1e-5,
    max_iter: int = 500,
    generator: torch.Generator | None = None,
    backend: str = "auto",
) -> Tensor:
    """Functional form of :class:`GLoss`, same arguments, same scalar.

    Equivalent torch for a dense graph, normalization="row", hidden documents U and the others L::

        u = F.normalize(embeddings)
        A = torch.exp((u @ u.T - 1) / sigma**2).fill_diagonal_(0)
        P = torch.linalg.solve(torch.diag(A.sum(1))[U][:, U] - A[U][:, U], A[U][:, L] @ F.one_hot(y[L]).float())
        loss = -torch.log(0.99 * P[range(len(U)), y[U]] + 0.01 / C).mean()
    """
    module = GLoss(
        num_classes, n_neighbors=n_neighbors, sigma=sigma, labeled_fraction=labeled_fraction,
        normalization=normalization, alpha=alpha, target=target, class_weight=class_weight, ignore_index=ignore_index,
        tol=tol, max_iter=max_iter, generator=generator, backend=backend,
    )  # fmt: skip
    loss: Tensor = module(embeddings, labels, hide_mask)
    return loss


def draw_hidden(known: Tensor, labeled_fraction: float, generator: torch.Generator | None = None) -> Tensor:
    """bool [n]: the documents to hide. Of the m documents with ``known`` label, ceil(m * labeled_fraction) keep it."""
    device = known.device if generator is None else generator.device
    keys = torch.rand(known.shape, generator=generator, device=device).to(known.device)
    rank = torch.where(known, keys, 2.0).argsort().argsort()
    keep = torch.ceil(known.sum().double() * labeled_fraction - 1e-6)  # 0.1 * 30 is 3.0000000000000004
    return known & (rank >= keep)


def _g_loss(
    embeddings: Tensor,
    labels: Tensor,
    hide_mask: Tensor,
    num_classes: int,
    n_neighbors: int | None,
    sigma: float | Tensor | str,
    normalization: str,
    alpha: float | None,
    target: str,
    class_weight: Tensor | None,
    ignore_index: int,
    tol: float,
    max_iter: int,
    backend: str,
) -> tuple[Tensor, Propagation]:
    n = len(embeddings)
    _validate.tensor("hide_mask", hide_mask, (n,), torch.bool)
    _validate.same_device("hide_mask", hide_mask, embeddings)
    labels = known_labels("labels", labels, num_classes, ignore_index)
    visible = torch.where(hide_mask, -1, labels)
    is_dense = n_neighbors is None or n - 1 <= n_neighbors
    chosen = _dispatch.resolve(backend, embeddings.device, dense=is_dense)
    native = _dispatch.dense_backend(chosen, embeddings.device) if is_dense and 0 < n <= dense.NATIVE_ROWS else None
    if is_dense and not native and not torch.compiler.is_compiling() and embeddings.device.type == "cpu":
        check_finite("embeddings", embeddings)  # the others' kernels do it
    with torch.autocast(embeddings.device.type, enabled=False):
        if isinstance(sigma, str):
            sigma = estimate_sigma(sigma, embeddings, visible)
        sigma = check_sigma(sigma, n)
        scored = hide_mask & (labels >= 0)
        if native:
            return dense.batch_loss(
                embeddings, visible, labels, scored, num_classes, sigma, alpha, normalization, target, class_weight,
                SMOOTHING, native,
            )  # fmt: skip
        if chosen == "reference":
            graph = reference.adjacency(embeddings, n_neighbors, _as_product(sigma))
            p, reachable = reference.propagate_labels(graph, visible, num_classes, alpha, normalization)
            zero = torch.zeros((), dtype=torch.float64, device=p.device)
            propagation = Propagation(p, zero.long(), zero, reachable)
        elif is_dense:
            graph = dense.adjacency(embeddings, sigma)
            propagation = dense.propagate(graph, visible, num_classes, alpha, normalization)
        else:
            assert n_neighbors is not None
            propagation = _sparse(
                embeddings, visible, num_classes, n_neighbors, sigma, normalization, alpha, tol, max_iter, chosen
            )
        if chosen == "reference":
            loss = reference.loss_on_hidden(propagation.probabilities, labels, scored, target, class_weight, SMOOTHING)
            loss = loss.to(torch.float64 if embeddings.dtype == torch.float64 else torch.float32)
        else:
            loss = loss_on_hidden(propagation.probabilities, labels, scored, target, class_weight)
        if may_be_wrong(labels):
            loss = loss * torch.where((labels == WRONG).any(), torch.nan, 1.0)
        return loss, mark_wrong(propagation, labels)


def _as_product(sigma: float | Tensor) -> float | Tensor:
    """The reference squares sigma; for one sigma a document the square is sigma_i sigma_j."""
    if not isinstance(sigma, Tensor) or sigma.ndim == 0:
        return sigma
    return (sigma[:, None] * sigma[None, :]).sqrt()


def _sparse(
    embeddings: Tensor,
    labels: Tensor,
    num_classes: int,
    n_neighbors: int,
    sigma: float | Tensor,
    normalization: str,
    alpha: float | None,
    tol: float,
    max_iter: int,
    backend: str,
) -> Propagation:
    """similarity_graph and propagate_labels without the trimming of padded edges: no shape depends on the data."""
    neighbors = neighbors_of(embeddings, n_neighbors, backend=backend)
    crow, col, forward, reverse = knn_structure_op(neighbors.indices, "sum", backend)
    values = combine_edges_op(gaussian_weights(neighbors, sigma), forward, reverse, "sum", backend)
    prior = values.new_full((num_classes,), 1 / num_classes)
    return solve(
        crow, col, values, labels, num_classes, alpha=alpha, normalization=normalization, prior_strength=0.0,
        prior=prior, tol=tol, max_iter=max_iter, backend=backend,
    )  # fmt: skip


def loss_on_hidden(
    probabilities: Tensor, labels: Tensor, hidden: Tensor, target: str, class_weight: Tensor | None
) -> Tensor:
    """Weighted mean over the hidden documents (reference.loss_on_hidden); zero, with graph, where there is none."""
    p, y = probabilities, labels.clamp(0, probabilities.shape[1] - 1)
    p_y = p.gather(1, y[:, None]).squeeze(1)
    if target == "nll":
        each = -torch.log((1 - SMOOTHING) * p_y.clamp(min=0) + SMOOTHING / p.shape[1])  # a solve to tol may give -1e-6
    else:
        each = torch.logsumexp(p, dim=1) - p_y
    weight = hidden.to(p.dtype) if class_weight is None else hidden * class_weight.to(p)[y]
    total = weight.sum()
    return (weight * each).sum() / torch.where(total > 0, total, 1.0)


def _check_batch(embeddings: Any, labels: Any) -> None:
    _validate.matrix("embeddings", embeddings)
    _validate.integers("labels", labels, (embeddings.shape[0],))
    _validate.same_device("labels", labels, embeddings)


def _check_class_weight(weight: Any, num_classes: int) -> None:
    if weight is None:
        return
    if not isinstance(weight, Tensor) or tuple(weight.shape) != (num_classes,) or not weight.is_floating_point():
        got = f"{weight.dtype} {tuple(weight.shape)}" if isinstance(weight, Tensor) else type(weight).__name__
        raise ValueError(f"class_weight: got {got}, wants a floating tensor of shape [{num_classes}]")
    if not all(math.isfinite(w) and w >= 0 for w in weight.tolist()):
        raise ValueError("class_weight: holds a number that is negative, NaN or Inf")

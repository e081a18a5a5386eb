"""Stage 3, propagate: labels flow along the edges, as a sparse linear solve with an exact gradient."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _convergence, _dispatch, _native, _validate, reference
from .graph import SimilarityGraph, check_graph

NORMALIZATIONS = ("row", "paper")


class Propagation(NamedTuple):
    """Result of :func:`propagate_labels`.

    Attributes:
        probabilities: float [n, C], rows sum to 1 (to tol). Labelled rows are one-hot (harmonic solution).
        iterations: int64 [], conjugate-gradient steps of the slowest class (0: a direct solve).
        residual: float64 [], the largest relative residual of a class; of the dense loss (a direct solve), how much a
            row's sum differed from 1.
        reachable: bool [n], whether a labelled document can be reached; other rows hold the prior.
    """

    probabilities: Tensor
    iterations: Tensor
    residual: Tensor
    reachable: Tensor


def propagate_labels(
    graph: SimilarityGraph,
    labels: Tensor,
    num_classes: int | None = None,
    *,
    alpha: float | None = None,
    normalization: str = "row",
    prior_strength: float = 0.0,
    prior: Tensor | None = None,
    tol: float = 1e-4,
    max_iter: int = 500,
    initial: Tensor | None = None,
    backend: str = "auto",
) -> Propagation:
    """Label propagation on a sparse symmetric graph, with an exact (implicit) gradient to its weights.

    With M the normalised graph, D = diag(M 1), L the labelled and U the other documents, the harmonic solution
    (Zhu et al. 2003) of ``(D_UU - M_UU) F_U = M_UL Y_L``, F_L = Y_L. Equivalent torch::

        F_U = torch.linalg.solve(D[U][:, U] - M[U][:, U], M[U][:, L] @ Y[L])

    solved by conjugate gradients with the diagonal as preconditioner, all classes at once.

    Args:
        graph: symmetric SimilarityGraph of n nodes.
        labels: int64 [n], -1 is unlabelled (scikit-learn's convention).
        num_classes: C; default labels.max() + 1.
        alpha: None for the harmonic solution; in (0, 1) for label spreading (Zhou et al. 2004),
            (1 - alpha) (I - alpha D^-1/2 A D^-1/2)^-1 Y with rows scaled to sum 1. Then normalization and
            prior_strength are not used, and a document so far from the labels that its row sums to less than
            10 tol (1 - alpha) counts as not reachable.
        normalization: "row" M = A, the paper's equation; "paper" what its published code computes (symmetric, then
            column, then row normalisation).
        prior_strength: eps >= 0 pulls towards the prior: (D (1 + eps) - M) F = M Y + eps D prior.
        prior: float [C], sums to 1; what documents without a path to a label receive. Default uniform.
        tol: a class is done when its residual is at most tol times its right-hand side (norms weighted by D^-1). The
            harmonic solve goes on past that while a row sums to less than 1 by more than max(10 tol, 0.01): documents
            that hang on the others by a small weight need it.
        max_iter: steps at most; not converging is warned of and stands in ``residual``.
        initial: float [n, C], a start for the unlabelled rows, such as an earlier result.
        backend: "auto", "cpu", "cuda", "triton" or "reference".

    Returns:
        Propagation. The gradient of ``graph.values`` is that of undirected weights: entries (i, j) and (j, i) get half
        of it each. A document that reaches no label has the prior and gradient zero; never NaN. Weights under 1e-32
        (float64: 1e-280) count as no edge.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    check_graph("graph", graph)
    if not graph.symmetric:
        raise ValueError("graph: is directed, wants a symmetric one (similarity_graph with symmetrize='sum')")
    n = graph.num_nodes
    _validate.integers("labels", labels, (n,))
    _validate.same_device("labels", labels, graph.values)
    if num_classes is None:
        num_classes = max(int(labels.max()) + 1 if n else 1, 1)
    _validate.whole_number("num_classes", num_classes, 1)
    labels = known_labels("labels", labels, num_classes)
    check_options(alpha, normalization, tol, max_iter)
    _validate.number("prior_strength", prior_strength, 0)
    prior = _check_prior(prior, num_classes, graph.values)
    if initial is not None:
        _validate.tensor("initial", initial, (n, num_classes), None)
        if not bool(torch.isfinite(initial).all()):
            raise ValueError("initial: holds NaN or Inf")
    chosen = _dispatch.resolve(backend, graph.values.device)
    if chosen == "reference":
        found = _reference(graph, labels, num_classes, alpha, normalization, prior_strength, prior)
        return mark_wrong(found, labels)
    found = solve(
        graph.crow_indices, graph.col_indices, graph.values, labels, num_classes, alpha=alpha,
        normalization=normalization, prior_strength=prior_strength, prior=prior, tol=tol, max_iter=max_iter,
        initial=initial, backend=chosen,
    )  # fmt: skip
    return mark_wrong(found, labels)


WRONG = -2  # stands for a label that is none, on a GPU: nothing waits there to raise


def known_labels(name: str, labels: Tensor, num_classes: int, ignored: int = -1) -> Tensor:
    """labels with -1 for ``ignored``, so that all that follows may index with those of at least 0.

    Any other label that is no class raises on the CPU. On a GPU, where to look means to wait, it becomes WRONG, unless
    GLOSS_KERNELS_CHECK=1 asks to look. Compiled code does the same, by an operator.
    """
    if torch.compiler.is_compiling():
        known: Tensor = known_labels_op(name, labels, num_classes, ignored)
        return known
    return _known_labels(name, labels, num_classes, ignored)


def _known_labels(name: str, labels: Tensor, num_classes: int, ignored: int) -> Tensor:
    is_ignored = labels == ignored
    wrong = ((labels < 0) | (labels >= num_classes)) & ~is_ignored
    if may_be_wrong(labels) and os.environ.get("GLOSS_KERNELS_CHECK") != "1":
        return torch.where(is_ignored, -1, torch.where(wrong, WRONG, labels))
    if bool(wrong.any()):
        at = int(wrong.nonzero()[0])
        raise ValueError(f"{name}: document {at} has label {int(labels[at])}, wants 0..{num_classes - 1} or {ignored}")
    return torch.where(is_ignored, -1, labels)


def may_be_wrong(labels: Tensor) -> bool:
    """Whether known_labels may hold WRONG."""
    return labels.device.type != "cpu"


def mark_wrong(found: Propagation, labels: Tensor) -> Propagation:
    """The rows whose label is WRONG become NaN."""
    if not may_be_wrong(labels):
        return found
    return found._replace(probabilities=found.probabilities.masked_fill((labels == WRONG)[:, None], torch.nan))


def check_options(alpha: float | None, normalization: str, tol: float, max_iter: int) -> None:
    if alpha is not None and not 0 < _validate.number("alpha", alpha, 0) < 1:
        raise ValueError(f"alpha: got {alpha}, wants None or a number between 0 and 1")
    _validate.choice("normalization", normalization, NORMALIZATIONS)
    _validate.number("tol", tol, 0, open_low=True)
    _validate.whole_number("max_iter", max_iter, 1)


def _check_prior(prior: Tensor | None, num_classes: int, like: Tensor) -> Tensor:
    if prior is None:
        return like.new_full((num_classes,), 1 / num_classes)
    if not isinstance(prior, Tensor) or tuple(prior.shape) != (num_classes,):
        got = tuple(prior.shape) if isinstance(prior, Tensor) else type(prior).__name__
        raise ValueError(f"prior: got {got}, wants a tensor of shape [{num_classes}]")
    if not (bool((prior >= 0).all()) and abs(float(prior.sum()) - 1) <= 1e-3):
        raise ValueError("prior: wants numbers >= 0 that sum to 1")
    return prior.detach().to(like)


def one_hot(labels: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
    """[n, C]; a row of zeros for what is no class. (torch's one_hot makes int64 first: eight times the traffic.)"""
    zeros = torch.zeros(len(labels), num_classes, dtype=dtype, device=labels.device)
    known = (labels >= 0) & (labels < num_classes)
    return zeros.scatter_(1, torch.where(known, labels, 0)[:, None], known.to(dtype)[:, None])


def drop_vanishing(weights: Tensor) -> Tensor:
    """Weights under 1e-32 (float64: 1e-280) become 0, no edge: dL/dweight grows as 1 / degree, it must not overflow."""
    return torch.where(weights >= (1e-280 if weights.dtype == torch.float64 else 1e-32), weights, 0.0)


def solve(
    crow: Tensor,
    col: Tensor,
    values: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    alpha: float | None,
    normalization: str,
    prior_strength: float,
    prior: Tensor,
    tol: float,
    max_iter: int,
    initial: Tensor | None = None,
    backend: str,
) -> Propagation:
    """propagate_labels after its checks; shapes depend on n, nnz and C only, so torch.compile can trace it."""
    crow, col = crow.contiguous(), col.contiguous()  # a graph made by hand: kernels read them by address
    labeled = (labels >= 0) & (labels < num_classes)
    boundary = one_hot(labels, num_classes, values.dtype)
    if initial is not None:
        boundary = torch.where(labeled[:, None], boundary, initial.detach().to(values.dtype))
    how = normalization if alpha is None else "symmetric"
    values = drop_vanishing(values)
    normalized = values if how == "row" else normalize_edges_op(crow, col, values, how, backend)
    options = (-1.0 if alpha is None else float(alpha), float(prior_strength), float(tol), max_iter)
    f, iterations, residual, reachable, _ = propagate_op(
        crow, col, normalized, labeled, boundary, initial is not None, prior, *options, backend
    )
    if alpha is not None:  # a document whose share of the labels is below the solver's error has none to speak of
        total = f.sum(dim=1, keepdim=True)
        known = total > 10 * tol * (1 - alpha)
        f = torch.where(known, f / torch.where(known, total, 1.0), prior)
        reachable = reachable & known.squeeze(1)
    return Propagation(f, iterations, residual.amax(), reachable)


def _reference(
    graph: SimilarityGraph,
    labels: Tensor,
    num_classes: int,
    alpha: float | None,
    normalization: str,
    prior_strength: float,
    prior: Tensor,
) -> Propagation:
    n = graph.num_nodes
    dense = graph.values.double().new_zeros(n, n)
    dense = dense.index_put((graph.row_indices, graph.col_indices), graph.values.double())
    dense = (dense + dense.T) / 2  # the gradient of undirected weights, as in the kernels
    f, reachable = reference.propagate_labels(dense, labels, num_classes, alpha, normalization, prior_strength, prior)
    zero = torch.zeros((), dtype=torch.float64, device=labels.device)
    return Propagation(f.to(graph.values.dtype), zero.long(), zero, reachable)


# ------------------------------------------------------------------------------------------- operators
@torch.library.custom_op("gloss_kernels::known_labels", mutates_args=())
def known_labels_op(name: str, labels: Tensor, num_classes: int, ignored: int) -> Tensor:
    return _known_labels(name, labels, num_classes, ignored)


@known_labels_op.register_fake
def _(name: str, labels: Tensor, num_classes: int, ignored: int) -> Tensor:
    return torch.empty_like(labels)


@torch.library.custom_op("gloss_kernels::normalize_edges", mutates_args=())
def normalize_edges_op(crow: Tensor, col: Tensor, values: Tensor, normalization: str, backend: str) -> Tensor:
    return _dispatch.kernels(backend).normalize_edges(crow, col, values, normalization)


@normalize_edges_op.register_fake
def _(crow: Tensor, col: Tensor, values: Tensor, normalization: str, backend: str) -> Tensor:
    return values.new_empty(values.shape)


@torch.library.custom_op("gloss_kernels::normalize_edges_backward", mutates_args=())
def normalize_edges_backward_op(
    grad_normalized: Tensor, crow: Tensor, col: Tensor, values: Tensor, normalization: str, backend: str
) -> Tensor:
    return _dispatch.kernels(backend).normalize_edges_backward(grad_normalized, crow, col, values, normalization)


@normalize_edges_backward_op.register_fake
def _(grad_normalized: Tensor, crow: Tensor, col: Tensor, values: Tensor, normalization: str, backend: str) -> Tensor:
    return values.new_empty(values.shape)


def _normalize_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.normalization, ctx.backend = inputs[3:]


def _normalize_backward(ctx: Any, grad_normalized: Tensor) -> tuple[Tensor | None, ...]:
    grad_values = normalize_edges_backward_op(grad_normalized, *ctx.saved_tensors, ctx.normalization, ctx.backend)
    return None, None, grad_values, None, None


normalize_edges_op.register_autograd(_normalize_backward, setup_context=_normalize_setup)


# alpha < 0 stands for None, since an operator's schema has no optional float default that every torch reads the same.
@torch.library.custom_op("gloss_kernels::propagate", mutates_args=())
def propagate_op(
    crow: Tensor,
    col: Tensor,
    values: Tensor,
    fixed: Tensor,
    boundary: Tensor,
    has_initial: bool,
    prior: Tensor,
    alpha: float,
    prior_strength: float,
    tol: float,
    max_iter: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    f, iterations, residual, reachable, used_tol = _dispatch.kernels(backend).propagate(
        crow, col, values, fixed, boundary, has_initial, prior, _optional(alpha), prior_strength, tol, max_iter
    )
    _convergence.check("propagate_labels", residual, used_tol)
    return f, iterations, residual, reachable, used_tol


@propagate_op.register_fake
def _(
    crow: Tensor,
    col: Tensor,
    values: Tensor,
    fixed: Tensor,
    boundary: Tensor,
    has_initial: bool,
    prior: Tensor,
    alpha: float,
    prior_strength: float,
    tol: float,
    max_iter: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    residual = boundary.new_empty(boundary.shape[1], dtype=torch.float64)
    return (
        boundary.new_empty(boundary.shape),
        crow.new_empty(()),
        residual,
        fixed.new_empty(fixed.shape, dtype=torch.bool),
        residual.new_empty(()),
    )


@torch.library.custom_op("gloss_kernels::propagate_backward", mutates_args=())
def propagate_backward_op(
    grad_result: Tensor,
    crow: Tensor,
    col: Tensor,
    values: Tensor,
    fixed: Tensor,
    reachable: Tensor,
    prior: Tensor,
    result: Tensor,
    used_tol: Tensor,
    alpha: float,
    prior_strength: float,
    max_iter: int,
    backend: str,
) -> Tensor:
    grad_values, residual = _dispatch.kernels(backend).propagate_backward(
        grad_result, crow, col, values, fixed, reachable, prior, result, used_tol, _optional(alpha), prior_strength,
        max_iter,
    )  # fmt: skip
    limit = 10 * used_tol.clamp(min=_native.finest_tol(values))
    _convergence.check("the gradient of propagate_labels", residual, limit)
    return grad_values


@propagate_backward_op.register_fake
def _(
    grad_result: Tensor,
    crow: Tensor,
    col: Tensor,
    values: Tensor,
    fixed: Tensor,
    reachable: Tensor,
    prior: Tensor,
    result: Tensor,
    used_tol: Tensor,
    alpha: float,
    prior_strength: float,
    max_iter: int,
    backend: str,
) -> Tensor:
    return values.new_empty(values.shape)


def _propagate_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    crow, col, values, fixed, _boundary, _has_initial, prior, alpha, prior_strength, _tol, max_iter, backend = inputs
    result, iterations, residual, reachable, used_tol = output
    ctx.options = (alpha, prior_strength, max_iter, backend)
    ctx.save_for_backward(crow, col, values, fixed, reachable, prior, result, used_tol)
    ctx.mark_non_differentiable(iterations, residual, reachable, used_tol)


def _propagate_backward(ctx: Any, grad_result: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    grad_values = propagate_backward_op(grad_result, *ctx.saved_tensors, *ctx.options)
    return None, None, grad_values, *(None,) * 9


propagate_op.register_autograd(_propagate_backward, setup_context=_propagate_setup)


def _optional(alpha: float) -> float | None:
    return None if alpha < 0 else alpha

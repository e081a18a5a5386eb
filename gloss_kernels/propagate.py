"""Stage 3, propagate: labels flow along the edges, as a sparse linear solve with an exact gradient."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import _backends, _checks, _library, _ops
from ._backends.protocol import Edges
from ._labels import count_classes, known_labels, mark_wrong
from ._math import drop_vanishing, one_hot
from ._options import PropagateOptions
from .graph import SimilarityGraph, check_graph


class Propagation(NamedTuple):
    """Result of :func:`propagate_labels`.

    Attributes:
        probabilities: float [n, C], rows sum to 1 (to tol). Labelled rows are one-hot (harmonic solution).
        iterations: int64 [], conjugate-gradient steps of the slowest class (0: a direct solve).
        residual: float64 [], what is compared with tol: the largest correction that another cycle of the solver would
            make to a probability (label spreading: the largest relative residual of a class); of the dense loss (a
            direct solve) the row-sum error, how much the sum of a row differed from 1.
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

    solved by conjugate gradients with a multilevel preconditioner, all classes at once, without ever subtracting
    weights from each other: right for every sigma (docs/architecture.md, section 2).

    Args:
        graph: symmetric SimilarityGraph of n nodes.
        labels: int64 [n], -1 is unlabelled (scikit-learn's convention).
        num_classes: C; default labels.max() + 1.
        alpha: None for the harmonic solution; in (0, 1) for label spreading (Zhou et al. 2004),
            (1 - alpha) (I - alpha D^-1/2 A D^-1/2)^-1 Y with rows scaled to sum 1. Then normalization and
            prior_strength are not used, and a document so far from the labels that its row sums to less than
            10 tol (1 - alpha) counts as not reachable.
        normalization: "row" M = A, the paper's equation; "published" what its published code computes (symmetric, then
            column, then row normalisation).
        prior_strength: eps >= 0 pulls towards the prior: (D (1 + eps) - M) F = M Y + eps D prior.
        prior: float [C], sums to 1; what documents without a path to a label receive. Default uniform.
        tol: a class is done when its residual is at most tol (label spreading: relative to its right-hand side). The
            harmonic solve goes on past that while a row sums to less than 1 by more than max(10 tol, 0.01): documents
            that hang on the others by a small weight need it.
        max_iter: steps at most; not converging is warned of and stands in ``residual``.
        initial: float [n, C], a start for the unlabelled rows, such as an earlier result.
        backend: "auto", "cpu", "cuda", "triton" or "reference".

    Returns:
        Propagation. The gradient of ``graph.values`` is that of undirected weights: entries (i, j) and (j, i) get half
        of it each. A document that reaches no label has the prior and gradient zero; never NaN. Weights under 1e-32
        (float64: 1e-280) count as no edge.

    With ``num_classes`` given nothing is read from a GPU, and backend="cuda" can be captured in a CUDA graph. That has
    room for ``max_iter`` iterations of every attempt, so a ``max_iter`` near what is needed makes it short; a replay
    does not warn, so look at ``residual``.

    Shapes: graph of n nodes, labels [n] -> probabilities [n, C], iterations [], residual [], reachable [n].

    Raises:
        TypeError, ValueError: naming the argument. A label that is no class raises on the CPU; on a GPU its row becomes
            NaN. A graph on a GPU that is malformed (columns outside it, negative weights) stops the device by an
            assertion. GLOSS_KERNELS_CHECK=1 waits and raises for both.

        RuntimeError: a second derivative, or one in forward mode or by torch.func, was asked for: backend="reference"
            has all of them. Also of compiled code for a wrong prior or initial, which raise ValueError in eager mode.

    Warns:
        UserWarning: a solve, forward or backward, did not converge. Of a solve on a GPU it comes with a later call.

    Source: Zhu, Ghahramani, Lafferty 2003 (harmonic); Zhou et al. 2004 (label spreading); docs/architecture.md,
    section 2.

    Example:
        >>> import torch
        >>> from gloss_kernels import propagate_labels, similarity_graph
        >>> x = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.1, 0.9], [0.0, 1.0]])
        >>> result = propagate_labels(similarity_graph(x, 2), torch.tensor([0, -1, -1, 1]))
        >>> result.probabilities.argmax(dim=1).tolist()
        [0, 0, 1, 1]
        >>> bool(result.reachable.all())
        True
    """
    graph = check_graph("graph", graph)
    if not graph.symmetric:
        raise ValueError(
            "graph must be symmetric (similarity_graph with symmetrize='sum'; from a scipy matrix: "
            "from_scipy((matrix + matrix.T) / 2)), got a directed one"
        )
    n = graph.num_nodes
    _checks.integers("labels", labels, (n,))
    _checks.same_device("labels", labels, graph.values)
    if num_classes is None:
        if _library.capturing(labels):
            raise ValueError("num_classes must be given while a CUDA graph is captured, got None")
        num_classes = count_classes(labels)
    _checks.whole_number("num_classes", num_classes, 1)
    labels = known_labels("labels", labels, num_classes)
    options = PropagateOptions(alpha, normalization, prior_strength, tol, max_iter).checked()
    prior = _check_prior(prior, num_classes, graph.values)
    if initial is not None:
        _checks.tensor("initial", initial, (n, num_classes), None)
        _checks.condition(torch.isfinite(initial).all(), "initial must be finite, got NaN or Inf")
    found = solve(
        graph.crow_indices, graph.col_indices, graph.values, labels, num_classes, options, prior=prior, initial=initial,
        backend=_backends.resolve(backend, graph.values.device),
    )  # fmt: skip
    return found._replace(probabilities=mark_wrong(found.probabilities, labels))


def _check_prior(prior: Tensor | None, num_classes: int, like: Tensor) -> Tensor:
    if prior is None:
        return like.new_full((num_classes,), 1 / num_classes)
    if not isinstance(prior, Tensor) or tuple(prior.shape) != (num_classes,):
        got = tuple(prior.shape) if isinstance(prior, Tensor) else type(prior).__name__
        raise ValueError(f"prior must be a tensor of shape [{num_classes}], got {got}")
    sums_to_1 = (prior.sum() - 1).abs() <= 1e-3
    _checks.condition((prior >= 0).all() & sums_to_1, "prior must be numbers >= 0 that sum to 1, got others")
    return prior.detach().to(like)


def solve(
    crow: Tensor,
    col: Tensor,
    values: Tensor,
    labels: Tensor,
    num_classes: int,
    options: PropagateOptions,
    *,
    prior: Tensor,
    initial: Tensor | None = None,
    backend: str,
) -> Propagation:
    """propagate_labels after its checks; shapes depend on n, nnz and C only, so torch.compile can trace it."""
    crow, col = crow.contiguous(), col.contiguous()  # a graph made by hand: kernels read them by address
    labeled = (labels >= 0) & (labels < num_classes)
    alpha, how = options.alpha, options.applied_normalization
    boundary = one_hot(labels, num_classes, values.dtype)
    if initial is not None:
        boundary = torch.where(labeled[:, None], boundary, initial.detach().to(values.dtype))
    values = drop_vanishing(values)
    normalized = values if how == "row" else _ops.graph.normalize_edges(crow, col, values, how, backend)
    f, iterations, residual, reachable, _ = _ops.propagate.propagate(
        Edges(crow, col, normalized), labeled, boundary, initial is not None, prior, options, backend
    )
    if alpha is not None:  # a document whose share of the labels is below the solver's error has none to speak of
        total = f.sum(dim=1, keepdim=True)
        known = total > 10 * options.tol * (1 - alpha)
        f = torch.where(known, f / torch.where(known, total, 1.0), prior)
        reachable = reachable & known.squeeze(1)
    return Propagation(f, iterations, residual.amax(), reachable)

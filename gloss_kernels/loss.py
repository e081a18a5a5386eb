"""Stage 4, loss: cross entropy between the labels that arrive at hidden documents and their true ones (G-Loss)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from . import _backends, _checks, _dense, _ops, reference
from ._labels import WRONG, known_labels, mark_wrong, may_be_wrong
from ._math import compute_dtype
from ._options import LossOptions, PropagateOptions
from .graph import SMALLEST_SIGMA, check_sigma, gaussian_weights, neighbors_of
from .propagate import Propagation, solve
from .sigma import HEURISTICS, estimate_sigma


class GLoss(nn.Module):
    """G-Loss of a mini-batch: hide some labels, propagate the others over the batch's graph, score the hidden ones.

    Source: G-Loss, arXiv 2604.25853. Usage, next to the cross entropy of a classifier::

        gloss = GLoss(num_classes, sigma=0.5)
        loss = (1 - lam) * F.cross_entropy(head(z), y) + lam * gloss(z, y)

    "published" as a value of ``normalization`` and ``target`` is what the published *code* computes; the paper's
    equation is normalization="row". :meth:`GLoss.paper` is the whole of the published recipe.

    Args:
        num_classes: C.
        n_neighbors: None joins every pair (dense graph, solved by elimination); k joins each document to its k nearest
            (sparse graph, conjugate gradients). A batch of at most k + 1 documents is dense in any case.
        sigma: width of the Gaussian weights: a number, a tensor or Parameter (0-dim, or [n], one per document), or a
            heuristic applied to every batch: "root", "mst", "self-tuning" (:mod:`gloss_kernels.sigma`).
        labeled_fraction: share of the labelled documents that keep their label, ceil(m * fraction) of m.
        normalization: "row" (the paper's equation) or "published" (what its published code computes).
        alpha: None for the harmonic solution, or label spreading with this alpha in (0, 1).
        target: what a hidden document is scored by: "nll" -log((1 - s) p_y + s / C) with s = 0.01; "published" cross
            entropy with p used as logits (the published code). reference.TARGETS is the table of them.
        class_weight: float [C] as in torch.nn.CrossEntropyLoss: the mean is weighted. A constant, without gradient.
        ignore_index: label of documents without one. They take part in the graph and are never scored.
        tol, max_iter: of the sparse solve, see :func:`propagate_labels`.
        generator: torch.Generator for the choice of hidden documents. Compiled code leaves its graph to draw from it
            (fullgraph and export need hide_mask); within torch.utils.checkpoint it raises, give hide_mask there.
        backend: "auto", "cpu", "cuda", "triton" or "reference".

    Shapes: forward(embeddings [n, d], labels int64 [n], hide_mask bool [n] or None) -> scalar float32 (float64 for
    float64 embeddings). Under autocast the inputs are cast once and the loss is float32.

    ``last`` is the :class:`Propagation` of the latest call, without gradient.

    Raises:
        TypeError, ValueError: naming the argument. A label that is no class raises on the CPU, compiled or not; on a
            GPU its row and the loss become NaN, and GLOSS_KERNELS_CHECK=1 raises. So does a sigma below 1e-6 or NaN.
        RuntimeError: a second derivative, or one in forward mode or by torch.func, was asked for: backend="reference"
            has all of them.

    Compiled and exported it does the same. An export with a dynamic batch stays on one side of 512 documents, where the
    dense loss changes its path: ``torch.export.Dim("n", max=512)``.

    Warns:
        UserWarning: the sparse solve did not converge, see :func:`propagate_labels`.

    Example:
        >>> import torch
        >>> from gloss_kernels import GLoss
        >>> x = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.1, 0.9], [0.0, 1.0]], requires_grad=True)
        >>> gloss = GLoss(2, sigma=0.5)
        >>> loss = gloss(x, torch.tensor([0, 0, 1, 1]), hide_mask=torch.tensor([False, True, True, False]))
        >>> loss.backward()
        >>> x.grad.shape
        torch.Size([4, 2])
        >>> gloss.last.probabilities.argmax(dim=1).tolist()
        [0, 0, 1, 1]
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
        how = PropagateOptions(alpha, normalization, 0.0, tol, max_iter)
        self.options = LossOptions(
            num_classes, n_neighbors, labeled_fraction, target, ignore_index, how, backend
        ).checked()
        if isinstance(sigma, str):
            _checks.choice("sigma", sigma, HEURISTICS)
        elif isinstance(sigma, Tensor):
            check_sigma(sigma, sigma.numel())
        else:
            sigma = _checks.number("sigma", sigma, SMALLEST_SIGMA)
        if isinstance(sigma, Tensor) and not isinstance(sigma, nn.Parameter):
            self.register_buffer("sigma", sigma)
        else:
            self.sigma = sigma
        check_class_weight(class_weight, num_classes)
        self.register_buffer("class_weight", class_weight)
        if generator is not None and not isinstance(generator, torch.Generator):
            raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}")
        self.generator = generator
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
        """The published code, number for number: dense graph, its normalisation, probabilities used as logits.

        Args: as for :class:`GLoss`. The paper's equation is GLoss with its defaults.

        Example:
            >>> from gloss_kernels import GLoss
            >>> GLoss.paper(8, sigma="root").options.target
            'published'
        """
        return cls(
            num_classes,
            sigma=sigma,
            labeled_fraction=labeled_fraction,
            class_weight=class_weight,
            normalization="published",
            target="published",
        )

    def forward(self, embeddings: Tensor, labels: Tensor, hide_mask: Tensor | None = None) -> Tensor:
        """The loss of one batch.

        Args:
            embeddings: [n, d] float64, float32, float16 or bfloat16.
            labels: int64 [n], 0..C - 1, ignore_index where there is none.
            hide_mask: bool [n], the hidden documents; None: they are drawn.

        Returns:
            A scalar; a zero that keeps the autograd graph where no hidden document has a label.
        """
        _check_batch(embeddings, labels)
        if hide_mask is None:
            known = labels != self.options.ignore_index
            hide_mask = draw_hidden(known, self.options.labeled_fraction, self.generator)
        loss, propagation = _g_loss(embeddings, labels, hide_mask, self.sigma, self.class_weight, self.options)
        self.last = Propagation(*(x.detach() for x in propagation))
        return loss

    def extra_repr(self) -> str:
        sigma = tuple(self.sigma.shape) if isinstance(self.sigma, Tensor) else self.sigma
        o, how = self.options, self.options.propagate
        return (
            f"{o.num_classes}, n_neighbors={o.n_neighbors}, sigma={sigma}, labeled_fraction={o.labeled_fraction}, "
            f"normalization={how.normalization!r}, alpha={how.alpha}, target={o.target!r}"
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
    """Functional form of :class:`GLoss`, same arguments, same scalar, errors and warnings.

    Args:
        embeddings, labels, hide_mask: as for :meth:`GLoss.forward`.
        num_classes, n_neighbors, ...: as for :class:`GLoss`.

    Shapes: embeddings [n, d], labels [n], hide_mask [n] or None -> scalar.

    Raises:
        TypeError, ValueError: naming the argument.

    Source: G-Loss, arXiv 2604.25853.

    Equivalent torch for a dense graph, normalization="row", hidden documents U and the others L::

        u = F.normalize(embeddings)
        A = torch.exp((u @ u.T - 1) / sigma**2).fill_diagonal_(0)
        P = torch.linalg.solve(torch.diag(A.sum(1))[U][:, U] - A[U][:, U], A[U][:, L] @ F.one_hot(y[L]).float())
        loss = -torch.log(0.99 * P[range(len(U)), y[U]] + 0.01 / C).mean()

    Example:
        >>> import torch
        >>> from gloss_kernels import g_loss
        >>> x, y = torch.randn(32, 8), torch.arange(32) % 4
        >>> g_loss(x, y, 4, n_neighbors=5).shape
        torch.Size([])
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
    if generator is None:
        keys = torch.rand(known.shape, dtype=torch.float32, device=known.device)
    else:
        keys = _drawn_by(generator, known)
    rank = torch.where(known, keys, 2.0).argsort().argsort()
    keep = torch.ceil(known.sum().double() * labeled_fraction - 1e-6)  # 0.1 * 30 is 3.0000000000000004
    return known & (rank >= keep)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _drawn_by(generator: torch.Generator, like: Tensor) -> Tensor:
    """Compiled code has no generators: it leaves its graph for this."""
    if torch._C._current_graph_task_id() != -1:
        raise RuntimeError(
            "GLoss(generator=...) must not run again within a backward pass, as torch.utils.checkpoint makes it: it "
            "would hide other documents. Give hide_mask, or generator=None, whose draw checkpoint repeats"
        )
    return torch.rand(like.shape, generator=generator, dtype=torch.float32, device=generator.device).to(like.device)


def _g_loss(
    embeddings: Tensor,
    labels: Tensor,
    hide_mask: Tensor,
    sigma: float | Tensor | str,
    class_weight: Tensor | None,
    options: LossOptions,
) -> tuple[Tensor, Propagation]:
    """Topk, graph, propagate, loss, after the checks of the options."""
    n, k = embeddings.shape[0], options.n_neighbors
    _checks.tensor("hide_mask", hide_mask, (n,), torch.bool)
    _checks.same_device("hide_mask", hide_mask, embeddings)
    class_weight = None if class_weight is None else class_weight.detach()
    labels = known_labels("labels", labels, options.num_classes, options.ignore_index)
    visible, scored = torch.where(hide_mask, -1, labels), hide_mask & (labels >= 0)
    is_dense = k is None or n - 1 <= k
    backend = _backends.resolve(options.backend, embeddings.device)
    one_operator = is_dense and 0 < n <= _backends.dense_rows(backend)
    if is_dense and not one_operator and embeddings.device.type == "cpu":
        embeddings = _checks.finite_rows("embeddings", embeddings)  # the kernels do it else
    with torch.autocast(embeddings.device.type, enabled=False):
        if isinstance(sigma, str):
            sigma = estimate_sigma(sigma, embeddings, visible)
        sigma = check_sigma(sigma, n)
        if one_operator:
            loss, propagation = _dense.batch_loss(
                embeddings, visible, labels, scored, sigma, class_weight, options, backend
            )
        else:
            if is_dense:
                graph = _dense.adjacency(embeddings, sigma)
                dtype = compute_dtype(embeddings)
                propagation = _dense.propagate(graph, visible, options.num_classes, options.propagate, dtype)
            else:
                propagation = _sparse(embeddings, visible, sigma, options, backend)
            loss = reference.loss_on_hidden(propagation.probabilities, labels, scored, options.target, class_weight)
        if may_be_wrong(labels):
            wrong = (labels == WRONG).any()
            if isinstance(sigma, Tensor):
                wrong = wrong | sigma.isnan().any()  # weights of NaN are no edges: the loss would be that of the prior
            loss = loss * torch.where(wrong, torch.nan, 1.0)
        return loss, propagation._replace(probabilities=mark_wrong(propagation.probabilities, labels))


def _sparse(
    embeddings: Tensor, labels: Tensor, sigma: float | Tensor, options: LossOptions, backend: str
) -> Propagation:
    """similarity_graph and propagate_labels without the trimming of padded edges: no shape depends on the data."""
    assert options.n_neighbors is not None
    neighbors = neighbors_of(embeddings, options.n_neighbors, backend=backend)
    crow, col, forward, reverse = _ops.graph.knn_structure(neighbors.indices, "sum", backend)
    values = _ops.graph.combine_edges(gaussian_weights(neighbors, sigma), forward, reverse, "sum", backend)
    prior = values.new_full((options.num_classes,), 1 / options.num_classes)
    return solve(crow, col, values, labels, options.num_classes, options.propagate, prior=prior, backend=backend)


def _check_batch(embeddings: Any, labels: Any) -> None:
    _checks.matrix("embeddings", embeddings)
    _checks.integers("labels", labels, (embeddings.shape[0],))
    _checks.same_device("labels", labels, embeddings)


def check_class_weight(weight: Any, num_classes: int) -> None:
    if weight is None:
        return
    if isinstance(weight, Tensor) and weight.requires_grad:  # as in torch's cross_entropy, it has no gradient
        raise ValueError("class_weight must be constant, got a tensor that requires grad: detach() it")
    if not isinstance(weight, Tensor) or tuple(weight.shape) != (num_classes,) or not weight.is_floating_point():
        got = f"{weight.dtype} {tuple(weight.shape)}" if isinstance(weight, Tensor) else type(weight).__name__
        raise ValueError(f"class_weight must be a floating tensor of shape [{num_classes}], got {got}")
    if not all(math.isfinite(w) and w >= 0 for w in weight.tolist()):
        raise ValueError("class_weight must be finite numbers >= 0, got one that is negative, NaN or Inf")

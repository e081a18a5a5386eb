"""CorpusGLoss: the step, the propagation over the bank, prediction."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .. import _backends, _checks
from .._labels import count_classes, known_labels
from .._math import gaussian, unit_rows
from .._options import TARGETS, PropagateOptions
from .._product import product
from ..graph import SMALLEST_SIGMA, SimilarityGraph, similarity_graph
from ..loss import check_class_weight
from ..propagate import Propagation, propagate_labels
from ..reference import loss_on_hidden
from .bank import Bank, check_ids, check_rows, leave_inference
from .ddp import refuse_ddp
from .harmonic import harmonic
from .index import check_index

NEVER = 1 << 62  # steps, and rows, since labels were propagated: more than any setting waits for


class CorpusGLoss(nn.Module):
    """G-Loss of a batch, its neighbours taken from the whole corpus: the batch's labels are hidden, those of all other
    documents flow to it.

    A memory bank keeps one unit row per document. In a step the batch's live rows stand for their rows in the bank;
    they are joined to their nearest documents in the rest of the bank and in the batch; with A_BL, A_BB these weights,
    D their row sums and Y_L the bank's labels (constants), the batch receives F_B = (D_BB - A_BB)^-1 A_BL Y_L. The
    gradient reaches the live rows only. Usage::

        gloss = CorpusGLoss(labels, dim)
        gloss.refresh_from(encoder, batches)  # batches of (document_ids, inputs): fills the bank
        for document_ids, inputs, y in loader:
            z = encoder(inputs)
            loss = (1 - lam) * F.cross_entropy(head(z), y) + lam * gloss(z, document_ids)
            loss.backward()

    The bank's row of a document is written after the backward of its step: the rows wait, and are written when the
    module is next used (forward, refresh, predict, propagate, add, state_dict) or by :meth:`flush`. What autograd
    saves are copies of bank rows, so that several forwards before one backward are right too. A forward in eval mode
    or under no_grad writes no rows.

    Several processes: keep this module outside of what DistributedDataParallel wraps (inside, a step raises), and give
    every process the rows and ids of all, so that all keep the same bank; the gradient that DDP averages is then that
    of the whole batch::

        z = torch.cat(torch.distributed.nn.functional.all_gather(ddp_encoder(inputs)))
        loss = gloss(z, torch.cat(torch.distributed.nn.functional.all_gather(document_ids)))

    All state is in buffers, and may be copied from another module of the same size (an average of models, a broadcast;
    what :meth:`add` adds must be added to both).
    In an average of the buffers themselves the labels, integers, may be wrong: the next use raises.

    Documents without a label (-1) pass labels on as well: every ``propagate_every`` steps labels are propagated over
    the graph of the whole bank, and between, the probabilities that an unlabelled document received stand for its
    label (:meth:`propagate`). They were found with all labels visible, the batch's too. Unlabelled documents that no
    label reaches are no neighbours.

    Args:
        labels: int64 [n], -1 is unlabelled.
        dim: d, columns of the embeddings.
        num_classes: C; default labels.max() + 1.
        n_neighbors: neighbours in the bank of a document in the batch, 1 to n - 1. Where the bank without the batch has
            fewer: all of them.
        sigma: width of the Gaussian weights exp((c - 1) / sigma^2).
        target, class_weight: as in :class:`GLoss`.
        bank_dtype: float16, bfloat16, float32 or float64. The neighbours are exact for the rows as they are stored.
        bank_device: where the bank lives, such as "cpu" for one that the GPU cannot hold; None: with the module.
        batch_neighbors: neighbours in the batch of a document in the batch (edges with gradient to both ends); 0: none.
        index: None for exact search; or a kind of NeighborIndex, or a dict of arguments of ``NeighborIndex.build``
            (recall_k defaults to n_neighbors), for approximate neighbours, always scored by the bank's rows of today.
        refresh_every: steps after which the index is built anew; None: when as many rows were written as it has.
            (Also after refresh, and after state_dict, so that a resumed run goes the same way.)
        propagate_every: steps after which labels are propagated over the bank; None: when as many rows were written as
            it has. Only with unlabelled documents.
        tol, max_iter: of that propagation, see :func:`propagate_labels`.
        backend: of the search and the propagation.

    Shapes: forward(embeddings [b, d], document_ids int64 [b]) -> scalar float32 (float64 for float64 embeddings), the
    mean over the batch's documents with a label. ``last`` is the :class:`Propagation` of the latest batch.

    Raises:
        TypeError, ValueError: naming the argument.
        RuntimeError: the bank is empty.

    Warns:
        UserWarning: the propagation over the bank did not converge, see :func:`propagate_labels`.

    Source: G-Loss, arXiv 2604.25853, whose graph is that of the batch alone; a memory bank in place of a large batch:
    Wang et al. 2020 (cross-batch memory).

    Example:
        >>> import torch
        >>> from gloss_kernels import CorpusGLoss
        >>> x, y = torch.randn(50, 8), torch.arange(50) % 3
        >>> gloss = CorpusGLoss(y, dim=8, n_neighbors=5)
        >>> gloss.refresh(x)
        >>> ids = torch.tensor([3, 14, 15])
        >>> z = x[ids].requires_grad_()
        >>> gloss(z, ids).backward()
        >>> z.grad.shape
        torch.Size([3, 8])
        >>> gloss.predict(torch.randn(2, 8)).probabilities.shape
        torch.Size([2, 3])
    """

    class_weight: Tensor | None
    counters: Tensor

    def __init__(
        self,
        labels: Tensor,
        dim: int,
        *,
        num_classes: int | None = None,
        n_neighbors: int = 32,
        sigma: float = 0.5,
        target: str = "nll",
        class_weight: Tensor | None = None,
        bank_dtype: torch.dtype = torch.float16,
        bank_device: torch.device | str | None = None,
        batch_neighbors: int = 8,
        index: str | dict[str, Any] | None = None,
        refresh_every: int | None = None,
        propagate_every: int | None = None,
        tol: float = 1e-4,
        max_iter: int = 500,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        n = len(labels) if isinstance(labels, Tensor) and labels.ndim == 1 else "n"
        _checks.integers("labels", labels, (n,))
        self.dim = _checks.whole_number("dim", dim, 1)
        if num_classes is None:
            num_classes = count_classes(labels)
            if not bool((labels >= 0).any()):
                raise ValueError("labels must have one of at least 0, got no document with a label")
        self.num_classes = _checks.whole_number("num_classes", num_classes, 1)
        known_labels("labels", labels.cpu(), num_classes)
        self.n_neighbors = _checks.whole_number("n_neighbors", n_neighbors, 1)
        if n_neighbors > len(labels) - 1:
            raise ValueError(f"n_neighbors must be less than the {len(labels)} documents, got {n_neighbors}")
        self.batch_neighbors = _checks.whole_number("batch_neighbors", batch_neighbors, 0)
        self.sigma = _checks.number("sigma", sigma, SMALLEST_SIGMA)
        self.target = _checks.choice("target", target, TARGETS)
        check_class_weight(class_weight, num_classes)
        self.register_buffer("class_weight", class_weight)
        _checks.choice("bank_dtype", bank_dtype, _checks.FLOAT_DTYPES)
        self.index = check_index(index, refresh_every, n_neighbors)
        if propagate_every is not None:
            _checks.whole_number("propagate_every", propagate_every, 1)
        self.propagate_every = propagate_every
        PropagateOptions(tol=tol, max_iter=max_iter).checked()
        self.tol, self.max_iter = tol, max_iter
        self.backend = _checks.choice("backend", backend, _backends.BACKENDS)
        where = None if bank_device is None else torch.device(bank_device)
        self.bank = Bank(labels, self.dim, num_classes, bank_dtype, where)
        with torch.inference_mode(False):
            leave_inference(self)  # class_weight
            # steps; steps, and rows written, since labels were propagated
            counters = torch.tensor([0, NEVER, NEVER], dtype=torch.int64, device=labels.device)
            self.register_buffer("counters", counters)
        self._pending: list[tuple[Tensor, Tensor]] = []
        self.last: Propagation | None = None

    @property
    def steps(self) -> int:
        """Forwards in training mode so far; reads the device."""
        return int(self.counters[0])

    # -------------------------------------------------------------------------------------------- the bank
    def refresh(self, embeddings: Tensor, document_ids: Tensor | None = None) -> None:
        """Sets the bank's rows of document_ids (None: of all documents, in order) to embeddings [any, d]."""
        x = check_rows("embeddings", embeddings, self.dim)
        if document_ids is not None:
            check_ids("document_ids", document_ids, len(x), len(self.bank))
        elif len(x) != len(self.bank):
            raise ValueError(f"embeddings must have {len(self.bank)} rows where document_ids is None, got {len(x)}")
        self.flush()
        self.bank.write(document_ids, x)
        self.counters[2] += len(x)
        if self.index is not None:
            self.index.drop()

    @torch.no_grad()
    def refresh_from(
        self,
        encode: Callable[[Any], Tensor],
        batches: Iterable[tuple[Tensor, Any]],
        *,
        progress: Callable[[float], object] | None = None,
    ) -> None:
        """For every (document_ids, inputs) of batches sets rows to encode(inputs), without gradient.

        progress(share_done) is called after each. Put the encoder in eval mode first.
        """
        done = 0
        for document_ids, inputs in batches:
            self.refresh(encode(inputs), document_ids)
            done += len(document_ids)
            if progress is not None:
                progress(min(1.0, done / len(self.bank)))

    def add(self, labels: Tensor, embeddings: Tensor | None = None) -> Tensor:
        """Adds documents with these labels (int64, -1 unlabelled); their ids, int64.

        Without embeddings they are no neighbours until their first step or refresh.
        """
        count = len(labels) if isinstance(labels, Tensor) and labels.ndim == 1 else "any"
        _checks.integers("labels", labels, (count,))
        known_labels("labels", labels.cpu(), self.num_classes)
        if embeddings is not None and len(check_rows("embeddings", embeddings, self.dim)) != len(labels):
            raise ValueError(f"embeddings must have a row per label, {len(labels)}, got {len(embeddings)}")
        self.flush()
        ids = self.bank.extend(labels)
        if embeddings is not None:
            self.refresh(embeddings, ids)
        return ids

    def flush(self) -> None:
        """Writes the rows of earlier steps that still wait for their backward to be over."""
        pending, self._pending = self._pending, []
        for ids, rows in pending:
            self.bank.write(ids, rows)

    # -------------------------------------------------------------------------------------------- the loss
    def forward(self, embeddings: Tensor, document_ids: Tensor) -> Tensor:
        """The loss of one batch: live rows [b, d] of the documents int64 [b]."""
        x = check_rows("embeddings", embeddings, self.dim)
        ids = check_ids("document_ids", document_ids, len(x), len(self.bank))
        is_step = self.training and torch.is_grad_enabled()
        if is_step:
            refuse_ddp(self)
        self.flush()
        self._propagate_if_due()
        with self._full_precision(x):
            u = unit_rows(x)
            to_labels = self._labels_of_neighbors(*self._neighbors(u, ids))
            f, reachable = harmonic(self._batch_edges(u), to_labels)
            y = self.bank.labels[ids.to(self.bank.labels.device)].to(x.device)
            loss = loss_on_hidden(f, y, y >= 0, self.target, self.class_weight).to(u.dtype)
        zero = torch.zeros((), dtype=torch.float64, device=x.device)
        self.last = Propagation(f.detach().to(u.dtype), zero.long(), zero, reachable)
        if is_step and len(x):
            self._pending.append((ids.clone(), u.detach()))
            self._count(len(x))
        return loss

    @torch.no_grad()
    def predict(self, embeddings: Tensor) -> Propagation:
        """The labels of the bank's documents propagated to new ones, each for itself: probabilities [any, C]."""
        x = check_rows("embeddings", embeddings, self.dim)
        self.flush()
        self._propagate_if_due()
        f, reachable = [], []
        with self._full_precision(x):
            for part in torch.split(x, 1024):
                u = unit_rows(part)
                to_labels = self._labels_of_neighbors(*self._neighbors(u, None))
                some = harmonic(to_labels.new_zeros(len(u), len(u)), to_labels)
                f.append(some[0].to(u.dtype))
                reachable.append(some[1])
        zero = torch.zeros((), dtype=torch.float64, device=x.device)
        return Propagation(torch.cat(f), zero.long(), zero, torch.cat(reachable))

    @torch.no_grad()
    def propagate(self) -> Propagation:
        """Propagates the labels over the graph of the bank's rows, starting from the result before; [n, C].

        The result is kept, and stands for the labels of unlabelled documents. Documents without a row have the prior.
        """
        self.flush()
        bank, (_, since, _) = self.bank, self.counters.tolist()
        whole = self._count_rows() == len(bank)
        where = bank.rows.device
        here = torch.arange(len(bank), dtype=torch.int64, device=where) if whole else bank.filled.nonzero().squeeze(1)
        rows, labels = (bank.rows, bank.labels) if whole else (bank.rows[here], bank.labels[here])
        soft = torch.full((len(bank), self.num_classes), 1 / self.num_classes, dtype=torch.float32, device=where)
        reachable = torch.zeros_like(bank.filled)
        k = min(self.n_neighbors, len(rows) - 1)
        with self._full_precision(rows):
            if k == 0:
                graph = SimilarityGraph(here.new_zeros(2), here.new_zeros(0), soft.new_zeros(0))
            else:
                neighbors = None if self.index is None else self.index.graph(bank, here, k, self.backend)
                graph = similarity_graph(rows, k, sigma=self.sigma, neighbors=neighbors, backend=self.backend)
            found = propagate_labels(
                graph, labels, self.num_classes, tol=self.tol, max_iter=self.max_iter,
                initial=bank.soft[here] if len(bank.soft) and since < NEVER else None, backend=self.backend,
            )  # fmt: skip
        soft[here] = found.probabilities.float()
        # A solve that did not converge may leave rows that sum to nothing: they have no say.
        reachable[here] = found.reachable & (soft[here].sum(dim=1) > 0.5)
        if bank.has_unlabeled:
            bank.keep(soft, reachable)
        self.counters[1:] = 0
        return Propagation(soft, found.iterations, found.residual, reachable)

    # -------------------------------------------------------------------------------------------- the edges
    def _neighbors(self, u: Tensor, ids: Tensor | None) -> tuple[Tensor, Tensor]:
        """Of live rows u [b, d] the nearest documents of the bank [b, k], those of the batch left out, and cosines."""
        bank, others = self.bank, self._count_rows()
        if ids is not None:
            whole = others == len(bank)
            others -= len(ids) if whole else int((bank.written[ids.to(bank.written.device)] > 0).sum())
        k = min(self.n_neighbors, others)
        if k == 0 or len(u) == 0:
            return torch.empty(len(u), 0, dtype=torch.int64, device=u.device), u[:, :0]
        if self.index is None:
            return bank.search(u, k, ids, self.backend)
        return self.index.search(bank, u, k, ids)

    def _labels_of_neighbors(self, indices: Tensor, cosines: Tensor) -> Tensor:
        """A_BL Y_L, float64 [b, C]: the weights to the bank's documents, summed by what they say of the classes."""
        bank, w = self.bank, self._weights(cosines)
        indices = indices.to(bank.labels.device)
        of_bank = bank.labels[indices]
        y = of_bank.to(w.device)
        total = w.new_zeros(len(w), self.num_classes).scatter_add(1, y.clamp(min=0), w * (y >= 0))
        if not bool((of_bank < 0).any()):
            return total
        counts = (of_bank < 0) & (bank.reached[indices] > 0)
        row, column = counts.nonzero(as_tuple=True)
        says = bank.soft[indices[row, column]].to(w).clamp(min=0)
        row, column = row.to(w.device), column.to(w.device)
        return total.index_add(0, row, w[row, column, None] * (says / says.sum(dim=1, keepdim=True)))

    def _batch_edges(self, u: Tensor) -> Tensor:
        """A_BB = W + W^T, float64 [b, b]: each live row with its nearest ones in the batch."""
        b = len(u)
        m = min(self.batch_neighbors, b - 1)
        if m < 1:
            return u.new_zeros(b, b, dtype=torch.float64)
        c = product(u, u.T)
        nearest = c.detach().clone().fill_diagonal_(-torch.inf).topk(m).indices
        w = self._weights(c.gather(1, nearest))
        directed = w.new_zeros(b, b).scatter(1, nearest, w)
        return directed + directed.T

    def _weights(self, cosines: Tensor) -> Tensor:
        """In float64: with a small sigma all neighbours of a document may be below what float32 holds."""
        return gaussian((cosines.double() - 1).clamp(max=0) * (1 / self.sigma**2))

    # -------------------------------------------------------------------------------------------- now and then
    def _count_rows(self) -> int:
        """Documents with a row; RuntimeError where there is none, or where the bank is no bank any more."""
        self.bank.check()
        count = self.bank.num_filled
        if count == 0:
            raise RuntimeError(
                "the memory bank is empty: call refresh(embeddings) or refresh_from(encode, batches) first"
            )
        return count

    def _propagate_if_due(self) -> None:
        if not self.bank.has_unlabeled:
            return
        _, steps, rows = self.counters.tolist()
        due = rows >= len(self.bank) if self.propagate_every is None else steps >= self.propagate_every
        if due or not len(self.bank.soft):
            self.propagate()

    @contextlib.contextmanager
    def _full_precision(self, x: Tensor) -> Iterator[None]:
        """Without autocast, on the device of x and on the bank's: cosines in bfloat16 would order no neighbours."""
        with torch.autocast(x.device.type, enabled=False), torch.autocast(self.bank.rows.device.type, enabled=False):
            yield

    def _count(self, rows: int) -> None:
        self.counters[:2] += 1
        self.counters[2] += rows
        if self.index is not None:
            self.index.count(rows)

    # -------------------------------------------------------------------------------------------- torch
    @torch.inference_mode(False)
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CorpusGLoss:
        self.flush()
        if self.index is not None:  # its rows stay where they were
            self.index.drop()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self.flush()
        if self.index is not None:
            self.index.drop()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    @torch.inference_mode(False)
    @torch.no_grad()
    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self._pending = []
        if self.index is not None:
            self.index.drop()
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[no-untyped-call]
        leave_inference(self)

    def extra_repr(self) -> str:
        return (
            f"documents={len(self.bank)}, dim={self.dim}, num_classes={self.num_classes}, "
            f"n_neighbors={self.n_neighbors}, batch_neighbors={self.batch_neighbors}, sigma={self.sigma}, "
            f"target={self.target!r}, bank_dtype={self.bank.rows.dtype}, index={self.index and self.index.options}"
        )

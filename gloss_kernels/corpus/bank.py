"""The memory bank of a corpus: for every document a unit row, its label, and what label propagation says of it.

Buffers only, no gradient. What leaves the bank are copies, so that writing a row never touches what autograd has saved.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .. import _checks
from .._labels import known_labels
from .._math import unit_rows
from .._product import product
from ..topk import TIE, cosine_topk

CHUNK = 1 << 16  # rows converted or compared at a time
SLACK = 8  # neighbours searched beyond those wanted: for rows to leave out, and for the rounding of the queries


class Bank(nn.Module):
    """Buffers ``rows`` [n, d] in the bank's dtype, ``filled`` bool [n], ``labels`` int64 [n] (-1 unknown), and, once
    labels have been propagated, ``soft`` float32 [n, C] and ``reachable`` bool [n] (before: of length 0).

    ``.to(dtype)`` leaves the dtypes as they are; with ``device`` given, the buffers stay there.
    """

    rows: Tensor
    filled: Tensor
    labels: Tensor
    soft: Tensor
    reachable: Tensor

    def __init__(
        self, labels: Tensor, dim: int, num_classes: int, dtype: torch.dtype, device: torch.device | None
    ) -> None:
        super().__init__()
        self.device = device
        where, n = device or labels.device, len(labels)
        self.register_buffer("rows", torch.zeros(n, dim, dtype=dtype, device=where))
        self.register_buffer("filled", torch.zeros(n, dtype=torch.bool, device=where))
        self.register_buffer("labels", labels.to(where, copy=True))
        self.register_buffer("soft", torch.empty(0, num_classes, device=where))
        self.register_buffer("reachable", torch.empty(0, dtype=torch.bool, device=where))
        self.count()

    def __len__(self) -> int:
        return len(self.labels)

    def count(self) -> None:
        """Reads from the buffers what the steps would otherwise wait for the device to know."""
        self.num_filled = int(self.filled.sum())
        self.has_unlabeled = bool((self.labels < 0).any())

    # -------------------------------------------------------------------------------------------- writing
    @torch.no_grad()
    def write(self, ids: Tensor | None, embeddings: Tensor) -> None:
        """Embeddings of any length and float dtype become the unit rows of documents ids (None: of all)."""
        for start in range(0, len(embeddings), CHUNK):
            part = slice(start, start + CHUNK)
            to = part if ids is None else ids[part].to(self.rows.device)
            self.rows[to] = unit_rows(embeddings[part].detach()).to(self.rows)
            self.filled[to] = True
        self.num_filled = int(self.filled.sum())

    def extend(self, labels: Tensor) -> Tensor:
        """Adds documents without a row; their ids."""
        n, more = len(self), len(labels)
        self.rows = torch.cat([self.rows, self.rows.new_zeros(more, self.rows.shape[1])])
        self.filled = torch.cat([self.filled, self.filled.new_zeros(more)])
        self.labels = torch.cat([self.labels, labels.to(self.labels)])
        if len(self.soft):
            self.soft = torch.cat([self.soft, self.soft.new_full((more, self.soft.shape[1]), 1 / self.soft.shape[1])])
            self.reachable = torch.cat([self.reachable, self.reachable.new_zeros(more)])
        self.count()
        return torch.arange(n, n + more, device=labels.device)

    # -------------------------------------------------------------------------------------------- searching
    def search(self, queries: Tensor, k: int, left_out: Tensor | None, backend: str) -> tuple[Tensor, Tensor]:
        """Of each query the k nearest documents that have a row and are not among the ids left_out: int64 [b, k], and
        their cosines [b, k], on the queries' device and differentiable in them.

        Exact as cosine_topk: each selected cosine is at least each unselected one minus 2e-6. queries float32 or
        float64 [b, d], unit rows; the caller sees to it that there are k documents. A bank of 16 bit is searched as it
        is, by queries rounded to its dtype: a query q that moves by e = |q - rounded q| changes no cosine by more. So
        some more than k are looked for and scored again with q itself; the k best are proven to be the k nearest if the
        last of them reaches the last that was found + e. Queries without such a proof are searched again, further and
        in the end exhaustively.
        """
        device, queries = queries.device, queries.to(self.rows.device)
        skipped, wanted = self.skipped(left_out, k)
        left = torch.arange(len(queries), device=queries.device)
        done: list[tuple[Tensor, Tensor, Tensor]] = []  # positions, indices, cosines
        while len(left) and wanted <= len(self) // 2:
            asked = queries if len(left) == len(queries) else queries[left]
            rounded = asked.detach().to(self.rows.dtype)
            values, indices = cosine_topk(rounded, self.rows, wanted, backend=backend)
            moved = (unit_rows(rounded) - unit_rows(asked.detach())).norm(dim=1)
            indices = indices.sort(dim=1).values  # equal cosines: the lower index first
            indices, c = self.best(asked, indices, ~skipped[indices], k)
            proven = c.detach()[:, -1] >= values[:, -1] + moved - TIE
            done.append((left[proven], indices[proven], c[proven]))
            left, wanted = left[~proven], 4 * wanted
        if len(left):
            indices = self._search_all(queries.detach()[left], k, skipped)
            done.append((left, indices, self.cosines(queries[left], indices)))
        if len(done) == 1:
            _, found, c = done[0]
        else:
            order = torch.cat([positions for positions, _, _ in done]).argsort()
            found, c = (torch.cat(x)[order] for x in ([i for _, i, _ in done], [c for _, _, c in done]))
        return found.to(device), c.to(device)

    def best(self, queries: Tensor, indices: Tensor, allowed: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Of the documents indices [b, any] the k nearest of those allowed, and their cosines; -inf: there is none."""
        c = self.cosines(queries, indices).masked_fill(~allowed, -torch.inf)
        order = c.detach().argsort(dim=1, descending=True, stable=True)[:, :k]
        return indices.gather(1, order), c.gather(1, order)

    def _search_all(self, queries: Tensor, k: int, skipped: Tensor) -> Tensor:
        values = queries.new_empty(len(queries), 0)
        indices = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
        for start in range(0, len(self), CHUNK):
            part = slice(start, start + CHUNK)
            c = product(queries, unit_rows(self.rows[part].to(queries.dtype)).T).masked_fill(skipped[part], -torch.inf)
            here = torch.arange(start, start + c.shape[1], device=c.device).expand_as(c)
            values, indices = torch.cat([values, c], dim=1), torch.cat([indices, here], dim=1)
            order = values.argsort(dim=1, descending=True, stable=True)[:, :k]
            values, indices = values.gather(1, order), indices.gather(1, order)
        return indices

    def skipped(self, left_out: Tensor | None, k: int) -> tuple[Tensor, int]:
        """bool [n], the documents that are no neighbours; how many to look for, that k others are among them."""
        skipped = ~self.filled
        if left_out is None:
            return skipped, k + SLACK
        skipped[left_out.to(skipped.device)] = True
        return skipped, k + SLACK + 4 * k * len(left_out) // len(self)

    def unit(self, ids: Tensor) -> Tensor:
        """The rows of these documents as unit rows, float32 (float64) [any, d]."""
        return unit_rows(self.rows[ids])

    def cosines(self, queries: Tensor, indices: Tensor) -> Tensor:
        """c [b, k] of unit queries [b, d] and documents [b, k], all on the bank's device."""
        near = self.rows.index_select(0, indices.flatten()).to(queries.dtype).view(*indices.shape, self.rows.shape[1])
        length = torch.linalg.vector_norm(near, dim=2)  # of a stored unit row: 1 to rounding, or 0
        dots = product(queries[:, None], near.transpose(1, 2)).squeeze(1)  # six times as fast as near @ queries
        return dots / torch.where(length > 0, length, 1.0)

    # -------------------------------------------------------------------------------------------- torch
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Bank:
        for name, buffer in self._buffers.items():
            if buffer is None or self.device is not None:
                continue
            moved = fn(buffer)
            self._buffers[name] = moved if moved.dtype == buffer.dtype else buffer.to(moved.device)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Takes the sizes of what is loaded: documents may have been added, labels propagated."""
        for name in ("rows", "filled", "labels", "soft", "reachable"):
            new, mine = state_dict.get(prefix + name), self._buffers[name]
            if isinstance(new, Tensor) and mine is not None and new.shape[1:] == mine.shape[1:]:
                self._buffers[name] = mine.new_empty(new.shape)
        labels = state_dict.get(prefix + "labels")
        if isinstance(labels, Tensor):  # they index the classes from here on, unchecked
            known_labels("labels", labels.cpu(), self.soft.shape[1])
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[no-untyped-call]
        self.count()


def check_ids(name: str, ids: Any, count: int, documents: int) -> Tensor:
    """int64 [count], each in 0..documents - 1, none twice."""
    _checks.integers(name, ids, (count,))
    wrong = (ids < 0) | (ids >= documents)
    if bool(wrong.any()):
        at = int(wrong.nonzero()[0])
        raise ValueError(f"{name} must be in 0..{documents - 1}, got {int(ids[at])} at entry {at}")
    ordered = ids.sort().values
    repeats = ordered[1:] == ordered[:-1]
    if bool(repeats.any()):
        raise ValueError(f"{name} must name each document once, got {int(ordered[1:][repeats][0])} twice")
    checked: Tensor = ids
    return checked


def check_rows(name: str, embeddings: Any, dim: int) -> Tensor:
    """[any, dim], finite."""
    x = _checks.matrix(name, embeddings)
    if x.shape[1] != dim:
        raise ValueError(f"{name} must have dim = {dim} columns, got {x.shape[1]}")
    _checks.finite_rows(name, x.detach())
    return x

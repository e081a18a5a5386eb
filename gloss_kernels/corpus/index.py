"""Approximate neighbours in the memory bank: a NeighborIndex of earlier rows, scored by the rows of today."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from .. import _checks
from ..neighbors import NeighborIndex
from ..neighbors.structures import KINDS, load_faiss
from ..topk import TopK, cosine_topk
from .bank import CHUNK, Bank


class BankIndex:
    """An index of the bank's rows that is built anew every ``every`` steps (None: when as many rows were written as
    the bank has), after :meth:`drop`, and when others wrote to the bank's rows. options: arguments of
    NeighborIndex.build."""

    def __init__(self, options: dict[str, Any], every: int | None) -> None:
        self.options, self.every = options, every
        self.drop()

    def drop(self) -> None:
        self._index: NeighborIndex | None = None
        self._documents: Tensor | None = None  # ids of the rows in the index; None: all
        self._steps = self._rows = 0

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles build an index of their own."""
        return {**vars(self), "_index": None, "_documents": None, "_steps": 0, "_rows": 0}

    def count(self, rows: int) -> None:
        """After a step that writes so many rows."""
        self._steps += 1
        self._rows += rows

    def search(self, bank: Bank, queries: Tensor, k: int, left_out: Tensor | None) -> tuple[Tensor, Tensor]:
        """As Bank.search, approximately; a cosine of -inf: there is none."""
        due = self._rows >= len(bank) if self.every is None else self._steps >= self.every
        if self._index is None or due or bank.is_changed:
            self._build(bank)
        assert self._index is not None
        device, queries = queries.device, queries.to(bank.rows.device)
        skipped, more = bank.skipped(left_out, k)
        size = len(bank) if self._documents is None else len(self._documents)
        indices = self._index.search(queries.detach().float(), min(more, size)).indices.to(queries.device)
        there = indices >= 0  # an index may find less than it was asked for
        indices = indices.clamp(min=0)
        if self._documents is not None:
            indices = self._documents[indices]
        there &= ~skipped[indices]
        if indices.shape[1] < k:  # the index is older than some rows
            missing = (0, k - indices.shape[1])
            indices, there = (torch.nn.functional.pad(x, missing) for x in (indices, there))
        indices, c = bank.best(queries, indices, there, k)
        return indices.to(device), c.to(device)

    def graph(self, bank: Bank, documents: Tensor, k: int, backend: str) -> TopK:
        """Of the rows of these documents (all that have one) the k others nearest to each, positions in documents."""
        self._build(bank)
        assert self._index is not None
        rows, found = bank.rows[documents], []
        for start in range(0, len(rows), CHUNK):
            queries = rows[start : start + CHUNK]
            indices = self._index.search(queries.float(), k + 1).indices.to(rows.device)
            own = torch.arange(start, start + len(queries), dtype=torch.int64, device=rows.device)[:, None]
            others = (indices != own) & (indices >= 0)
            short = others.sum(dim=1) < k
            indices = indices.gather(1, _first(others, k))
            if bool(short.any()):
                exact = cosine_topk(queries[short], rows, k + 1, backend=backend).indices
                indices[short] = exact.gather(1, _first(exact != own[short], k))
            found.append(indices)
        indices = torch.cat(found)
        values = [
            bank.cosines(bank.unit(documents[start : start + 1024]), documents[indices[start : start + 1024]])
            for start in range(0, len(rows), 1024)
        ]
        return TopK(torch.cat(values), indices)

    def _build(self, bank: Bank) -> None:
        self.drop()
        bank.version = bank.rows._version
        if bank.num_filled < len(bank):
            self._documents = bank.filled.nonzero().squeeze(1)
        rows = bank.rows if self._documents is None else bank.rows[self._documents]
        self._index = NeighborIndex.build(rows, **self.options)


def _first(wanted: Tensor, k: int) -> Tensor:
    """Columns of the first k True of every row, in their order."""
    return wanted.int().argsort(dim=1, descending=True, stable=True)[:, :k]


def check_index(index: Any, refresh_every: int | None, n_neighbors: int) -> BankIndex | None:
    if index is not None and not isinstance(index, (str, dict)):
        raise TypeError(
            f"index must be None, a kind of NeighborIndex or a dict of its arguments, got {type(index).__name__}"
        )
    if refresh_every is not None:
        _checks.whole_number("refresh_every", refresh_every, 1)
        if index is None:
            raise ValueError(f"refresh_every must be None where index is None (exact search), got {refresh_every}")
    if index is None:
        return None
    options = {"kind": index} if isinstance(index, str) else dict(index)
    known = set(inspect.signature(NeighborIndex.build).parameters) - {"embeddings"}
    for name in options:
        if name not in known:
            raise ValueError(
                f"index must have arguments of NeighborIndex.build ({', '.join(sorted(known))}), got {name!r}"
            )
    kind = _checks.choice("index", options.get("kind", "auto"), ("auto", *KINDS))
    if kind not in ("auto", "exact"):
        load_faiss()
    return BankIndex({"recall_k": n_neighbors} | options, refresh_every)

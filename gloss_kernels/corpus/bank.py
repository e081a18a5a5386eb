"""The memory bank of a corpus: for every document a unit row, its label, and what label propagation says of it.

Buffers only, no gradient. What leaves the bank are copies, so that writing a row never touches what autograd has saved.
Nothing is known beside the buffers: whoever writes to them from outside (an average of models, DistributedDataParallel)
changes the bank. They are made and written outside inference mode, wherever the caller is: torch allows no write to a
tensor that was made inside it.
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
    """Buffers ``rows`` [n, d] in the bank's dtype, ``written`` float32 [n] (above 0: there is a row), ``labels`` int64
    [n] (-1 unknown); of what labels were propagated to ``soft`` float32 [n, C] and ``reached`` float32 [n], of length 0
    for a corpus without unlabelled documents; and ``classes`` int64 [C + 1], see :meth:`check`.

    The two flags are float32 so that an average of models may average them: torch neither subtracts bool tensors nor
    keeps a half in an integer. ``.to(dtype)`` leaves the dtypes as they are; with ``device`` given, the buffers stay
    there.
    """

    rows: Tensor
    written: Tensor
    labels: Tensor
    soft: Tensor
    reached: Tensor
    classes: Tensor

    @torch.inference_mode(False)
    def __init__(
        self, labels: Tensor, dim: int, num_classes: int, dtype: torch.dtype, device: torch.device | None
    ) -> None:
        super().__init__()
        self.device = device
        where, n = device or labels.device, len(labels)
        soft = n if bool((labels < 0).any()) else 0
        self.register_buffer("rows", torch.zeros(n, dim, dtype=dtype, device=where))
        self.register_buffer("written", torch.zeros(n, dtype=torch.float32, device=where))
        self.register_buffer("labels", labels.to(where, copy=True))
        self.register_buffer("soft", torch.zeros(soft, num_classes, dtype=torch.float32, device=where))
        self.register_buffer("reached", torch.zeros(soft, dtype=torch.float32, device=where))
        classes = torch.arange(-1, num_classes, dtype=torch.int64, device=where)
        self.register_buffer("classes", classes, persistent=False)
        self.version = self.rows._version

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def filled(self) -> Tensor:
        """bool [n]: the documents that have a row."""
        return self.written > 0

    @property
    def reachable(self) -> Tensor:
        """bool [n] (or [0]): the documents that labels were propagated to."""
        return self.reached > 0

    @property
    def num_filled(self) -> int:
        return int(torch.count_nonzero(self.written))

    @property
    def has_unlabeled(self) -> bool:
        return bool((self.labels < 0).any())

    @property
    def is_changed(self) -> bool:
        """Whether rows were written by others than this module (as far as torch counts writes)."""
        return self.version != self.rows._version

    def check(self) -> None:
        """Raises where the labels were averaged: 0.9 * 3 + 0.1 * 3 may be 2.9999998, which an integer buffer cuts to 2.

        ``classes`` holds every label that there may be, and goes through what the labels go through.
        """
        if not torch.equal(
            self.classes, torch.arange(-1, len(self.classes) - 1, dtype=torch.int64, device=self.classes.device)
        ):
            raise RuntimeError(
                "CorpusGLoss: its buffers were averaged, and its labels, which are integers, with them; average the "
                "parameters only and copy the buffers (torch.optim.swa_utils.AveragedModel with use_buffers=False)"
            )

    # -------------------------------------------------------------------------------------------- writing
    @torch.no_grad()
    def write(self, ids: Tensor | None, embeddings: Tensor) -> None:
        """Embeddings of any length and float dtype become the unit rows of documents ids (None: of all)."""
        changed = self.is_changed
        for start in range(0, len(embeddings), CHUNK):
            part = slice(start, start + CHUNK)
            to = part if ids is None else ids[part].to(self.rows.device)
            self.rows[to] = unit_rows(embeddings[part].detach()).to(self.rows)
            self.written[to] = 1
        if not changed:
            self.version = self.rows._version

    @torch.inference_mode(False)
    @torch.no_grad()
    def extend(self, labels: Tensor) -> Tensor:
        """Adds documents without a row; their ids."""
        n, more, changed = len(self), len(labels), self.is_changed
        self.rows = torch.cat([self.rows, self.rows.new_zeros(more, self.rows.shape[1])])
        if not changed:
            self.version = self.rows._version
        self.written = torch.cat([self.written, self.written.new_zeros(more)])
        self.labels = torch.cat([self.labels, labels.to(self.labels)])
        if len(self.soft):
            self.soft = torch.cat([self.soft, self.soft.new_full((more, self.soft.shape[1]), 1 / self.soft.shape[1])])
            self.reached = torch.cat([self.reached, self.reached.new_zeros(more)])
        return torch.arange(n, n + more, dtype=torch.int64, device=labels.device)

    @torch.inference_mode(False)
    @torch.no_grad()
    def keep(self, soft: Tensor, reachable: Tensor) -> None:
        """What a propagation says of all documents; in place, where whoever copies buffers will look for it."""
        if len(self.soft) != len(self):
            self.soft, self.reached = torch.empty_like(soft), torch.empty_like(self.written)
        self.soft.copy_(soft)
        self.reached.copy_(reachable)

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
        left = torch.arange(len(queries), dtype=torch.int64, device=queries.device)
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
            here = torch.arange(start, start + c.shape[1], dtype=torch.int64, device=c.device).expand_as(c)
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
    @torch.inference_mode(False)
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Bank:
        for name, buffer in self._buffers.items():
            if buffer is None or self.device is not None:
                continue
            moved = fn(buffer)
            self._buffers[name] = moved if moved.dtype == buffer.dtype else buffer.to(moved.device)
        return self

    @torch.inference_mode(False)
    @torch.no_grad()
    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Takes the sizes of what is loaded: documents may have been added, labels propagated."""
        for old, name in (("filled", "written"), ("reachable", "reached")):  # as 0.1.0 saved them, bool
            if prefix + old in state_dict:
                state_dict[prefix + name] = state_dict.pop(prefix + old).float()
        for name in ("rows", "written", "labels", "soft", "reached"):
            new, mine = state_dict.get(prefix + name), self._buffers[name]
            if isinstance(new, Tensor) and mine is not None and new.shape[1:] == mine.shape[1:]:
                self._buffers[name] = mine.new_empty(new.shape)
        labels = state_dict.get(prefix + "labels")
        if isinstance(labels, Tensor):  # they index the classes from here on, unchecked
            known_labels("labels", labels.cpu(), self.soft.shape[1])
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[no-untyped-call]
        leave_inference(self)


def leave_inference(module: nn.Module) -> None:
    """Copies the module's own buffers that came from inference mode: by load_state_dict(assign=True), or as arguments.
    To be called outside it."""
    for name, buffer in module._buffers.items():
        if buffer is not None and buffer.is_inference():
            module._buffers[name] = buffer.clone()


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

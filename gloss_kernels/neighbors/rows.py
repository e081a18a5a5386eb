"""The documents of an index: where their numbers lie, read in blocks as float32 unit rows."""

from __future__ import annotations

import os
import warnings
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gloss_kernels import _checks
from gloss_kernels._checks import finite_rows
from gloss_kernels._product import product

Report = Callable[[float], object]  # called with the share that is done, 0..1
BLOCK_BYTES = 64 << 20  # of float32 numbers held at a time
SCORED_BYTES = 4 << 20  # the same for rows picked here and there: they are used at once, from the cache


class Rows:
    """Rows [n, dim] in parts, each added at once. Tensors and arrays are copied in their own dtype (so that a later
    write to them changes nothing); a numpy.memmap stays on disk."""

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.parts: list[Tensor] = []
        self.mapped = False  # whether a part lies in a file
        self.sources: list[tuple[str, bool]] = []  # files that parts are mapped from, and whether it is an index's
        self._crc: int | None = None

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    @property
    def device(self) -> torch.device:
        return self.parts[0].device

    @property
    def block(self) -> int:
        """Rows that make BLOCK_BYTES."""
        return max(1, BLOCK_BYTES // (4 * self.dim))

    def append(self, part: Tensor, *, copy: bool) -> None:
        self.parts.append(part.detach().clone(memory_format=torch.contiguous_format) if copy else part.detach())
        self.mapped |= not copy
        self._crc = None

    def note_source(self, x: Any) -> None:
        """Of rows that may be a numpy.memmap, or a view of one."""
        name = getattr(x, "filename", None) if isinstance(x, np.memmap) else None
        if name is not None:
            self.sources.append((os.fspath(name), False))

    def drop_last(self) -> None:
        """Takes back the latest append."""
        self.parts.pop()
        self._crc = None

    def blocks(self, start: int = 0, size: int | None = None) -> Iterator[tuple[int, Tensor]]:
        """(first row, float32 unit rows) from row ``start`` on; a block ends where its part ends."""
        offset = 0
        for part in self.parts:
            at = max(start - offset, 0)
            for begin in range(at, len(part), size or self.block):
                yield offset + begin, unit(part[begin : begin + (size or self.block)])
            offset += len(part)

    def pieces(self) -> Iterator[tuple[int, Tensor]]:
        """(first row, float32 rows of any length): a part as it is where it is float32, else blocks."""
        offset = 0
        for part in self.parts:
            size = len(part) if part.dtype == torch.float32 else self.block
            for begin in range(0, len(part), size):
                yield offset + begin, _float(part[begin : begin + size])
            offset += len(part)

    def take(self, ids: Tensor) -> Tensor:
        """float32 unit rows [len(ids), dim]."""
        return unit(self._pick(ids))

    def _pick(self, ids: Tensor) -> Tensor:
        """float32 rows [len(ids), dim] of any length."""
        ids = ids.to(self.device)
        if len(self.parts) == 1:
            return _float(self.parts[0].index_select(0, ids))
        result = torch.empty(len(ids), self.dim, dtype=torch.float32, device=self.device)
        offset = 0
        for part in self.parts:
            here = ((ids >= offset) & (ids < offset + len(part))).nonzero().squeeze(1)
            if len(here):
                result.index_copy_(0, here, _float(part.index_select(0, ids[here] - offset)))
            offset += len(part)
        return result

    def cosines(self, queries: Tensor, ids: Tensor) -> Tensor:
        """float32 [m, c]: of unit rows ``queries`` [m, dim] with the rows ``ids`` [m, c]; -inf where an id is -1."""
        m, c = ids.shape
        result = torch.empty(m, c, dtype=torch.float32, device=queries.device)
        step = max(1, SCORED_BYTES // (4 * self.dim * max(c, 1)))
        for begin in range(0, m, step):
            part = slice(begin, begin + step)
            near = self._pick(ids[part].clamp(min=0).flatten())
            length = torch.linalg.vector_norm(near, dim=1)
            odd = ((length < 1e-12) | ~(length < 1e12)).nonzero().squeeze(1)  # squares under- or overflow
            if len(odd):
                near[odd], length[odd] = unit(near[odd]), 1.0
            dots = product(near.view(-1, c, self.dim), queries[part, :, None]).squeeze(2)
            result[part] = dots / length.view(-1, c)
        return result.masked_fill_(ids < 0, -torch.inf)

    def crc(self) -> int:
        """CRC-32 of the numbers as they are stored; read once."""
        if self._crc is None:
            value = 0
            for part in self.parts:
                for data in self.raw(part):
                    value = zlib.crc32(data, value)
            self._crc = value
        return self._crc

    def raw(self, part: Tensor) -> Iterator[memoryview]:
        """The bytes of a part, in pieces."""
        for begin in range(0, len(part), self.block):
            piece = part[begin : begin + self.block].contiguous().cpu()
            yield piece.view(torch.uint8).numpy().data.cast("B")


def _float(rows: Tensor) -> Tensor:
    """float32 rows, of length 1 where float32 might not hold the numbers."""
    return unit(rows) if rows.dtype == torch.float64 else rows.float()


def unit(rows: Tensor) -> Tensor:
    """float32 rows of length 1; zero rows stay zero. Scaled by the largest entry first: no overflow, no underflow."""
    rows = rows.float() if rows.dtype != torch.float64 else rows
    rows = rows / rows.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)
    return torch.nn.functional.normalize(rows, dim=1).float()


def matrix(name: str, x: Any, dim: int | None = None) -> tuple[Tensor, bool]:
    """x as a tensor [rows, dim] with finite numbers, and whether it is mapped from a file (then it shares memory)."""
    mapped = isinstance(x, np.memmap)
    if isinstance(x, np.ndarray):
        if x.dtype not in (np.float16, np.float32, np.float64) or not x.dtype.isnative:
            raise TypeError(f"{name} must be native float16, float32 or float64 numbers, got {x.dtype.str}")
        with warnings.catch_warnings():  # a file opened for reading; nothing here writes to it
            warnings.filterwarnings("ignore", "The given NumPy array is not writ")
            x = torch.from_numpy(x if all(s >= 0 for s in x.strides) else x.copy())
    elif not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, a numpy array or a numpy.memmap, got {type(x).__name__}")
    _checks.matrix(name, x)
    if dim is not None and x.shape[1] != dim:
        raise ValueError(f"{name} must have {dim} columns as the index, got {x.shape[1]}")
    x = x.detach()
    step = max(1, BLOCK_BYTES // (4 * x.shape[1]))
    for begin in range(0, len(x), step):
        try:
            finite_rows(name, x[begin : begin + step])
        except ValueError:
            bad = int((~torch.isfinite(x[begin : begin + step]).all(dim=1)).nonzero()[0])
            raise ValueError(f"{name}: row {begin + bad} contains NaN or Inf") from None
    return x, mapped

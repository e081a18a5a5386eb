"""The documents of an index: where their numbers lie, read in blocks as float32 unit rows."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gloss_kernels import _validate
from gloss_kernels.topk import check_finite

BLOCK_BYTES = 64 << 20  # of float32 numbers held at a time


class Rows:
    """Rows [n, dim] in parts, each added at once. Tensors and arrays are copied in their own dtype (so that a later
    write to them changes nothing); a numpy.memmap stays on disk."""

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.parts: list[Tensor] = []

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

    def blocks(self, start: int = 0, size: int | None = None) -> Iterator[tuple[int, Tensor]]:
        """(first row, float32 unit rows) from row ``start`` on; a block ends where its part ends."""
        offset = 0
        for part in self.parts:
            at = max(start - offset, 0)
            for begin in range(at, len(part), size or self.block):
                yield offset + begin, unit(part[begin : begin + (size or self.block)])
            offset += len(part)

    def take(self, ids: Tensor) -> Tensor:
        """float32 unit rows [len(ids), dim]."""
        ids = ids.to(self.device)
        if len(self.parts) == 1:
            return unit(self.parts[0][ids])
        result = torch.empty(len(ids), self.dim, device=self.device)
        offset = 0
        for part in self.parts:
            here = (ids >= offset) & (ids < offset + len(part))
            if bool(here.any()):
                result[here] = unit(part[ids[here] - offset])
            offset += len(part)
        return result

    def cosines(self, queries: Tensor, ids: Tensor) -> Tensor:
        """float32 [m, c]: of unit rows ``queries`` [m, dim] with the rows ``ids`` [m, c]; -inf where an id is -1."""
        result = torch.full(ids.shape, -torch.inf, device=queries.device)
        step = max(1, BLOCK_BYTES // (4 * self.dim * max(ids.shape[1], 1)))
        for begin in range(0, len(ids), step):
            part = slice(begin, begin + step)
            near = self.take(ids[part].clamp(min=0).flatten()).view(-1, ids.shape[1], self.dim)
            result[part] = torch.bmm(near, queries[part, :, None]).squeeze(2)
        return result.masked_fill_(ids < 0, -torch.inf)

    def crc(self) -> int:
        """CRC-32 of the numbers as they are stored."""
        value = 0
        for _, data in self.raw():
            value = zlib.crc32(data, value)
        return value

    def raw(self) -> Iterator[tuple[Tensor, memoryview]]:
        """The bytes of every part, in pieces, with the part they are of."""
        for part in self.parts:
            for begin in range(0, len(part), self.block):
                piece = part[begin : begin + self.block].contiguous().cpu()
                yield part, piece.view(torch.uint8).numpy().data.cast("B")


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
            raise TypeError(f"{name}: got {x.dtype.str} numbers, wants native float16, float32 or float64")
        with warnings.catch_warnings():  # a file opened for reading; nothing here writes to it
            warnings.filterwarnings("ignore", "The given NumPy array is not writ")
            x = torch.from_numpy(x if all(s >= 0 for s in x.strides) else x.copy())
    elif not isinstance(x, Tensor):
        raise TypeError(f"{name}: got {type(x).__name__}, wants a torch.Tensor, a numpy array or a numpy.memmap")
    _validate.matrix(name, x)
    if dim is not None and x.shape[1] != dim:
        raise ValueError(f"{name}: got {x.shape[1]} columns, wants {dim} as in the index")
    x = x.detach()
    step = max(1, BLOCK_BYTES // (4 * x.shape[1]))
    for begin in range(0, len(x), step):
        try:
            check_finite(name, x[begin : begin + step])
        except ValueError:
            bad = int((~torch.isfinite(x[begin : begin + step]).all(dim=1)).nonzero()[0])
            raise ValueError(f"{name}: row {begin + bad} holds NaN or Inf") from None
    return x, mapped

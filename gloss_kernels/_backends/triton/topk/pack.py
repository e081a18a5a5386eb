"""Unit rows as the sweep takes them. Bytes: each row is read twice (the second time from cache) and written once."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._launch import INTERPRETED, cdiv, jit, launch, power_of_two
from .tiles import SHORT

UNIT = 4096.0  # half-precision rows are unit rows times this, away from the subnormal numbers


class Rows(NamedTuple):
    """A matrix and 1 / |row| of its rows (0: zero row, NaN: not finite)."""

    data: Tensor  # [n, d], rows contiguous
    inverse_norms: Tensor  # float64 [n]


class Packed(NamedTuple):
    """Rows in the order of the sweep: blocks of ``block`` positions, the last of each may stand empty.

    A scattered matrix is taken in a pseudo-random order, so that what a wave of tiles adds to a row's list follows the
    law of random samples. Its rows are spread evenly over the blocks.
    """

    data: Tensor  # [padded, width] float16 (times UNIT) or float32; a row of NaN where none stands: it meets nobody
    ids: Tensor  # int32 [padded]: which row stands there, -1 for none
    residual: Tensor  # float32 [padded]: |unit row - packed row|, rounded up
    blocks: int
    unit: float

    @property
    def padded(self) -> int:
        return len(self.ids)


@triton.jit
def scaled_squares(x_ptr, row, inside, stride, d, COLUMNS: tl.constexpr):
    """Of a block of rows: the largest entry, sum (x / largest)^2, and whether all entries are finite. [R]"""
    at = x_ptr + row.to(tl.int64) * stride
    largest = tl.zeros(row.shape, tl.float64)
    odd = tl.zeros(row.shape, tl.int32)
    for first in range(0, d, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        x = tl.load(at[:, None] + column[None, :], inside[:, None] & (column < d)[None, :], 0.0).to(tl.float64)
        is_odd = (x != x) | (tl.abs(x) > 1.7976931348623157e308)
        odd = tl.maximum(odd, tl.max(is_odd.to(tl.int32), 1))
        largest = tl.maximum(largest, tl.max(tl.where(is_odd, 0.0, tl.abs(x)), 1))
    scale = 1.0 / tl.maximum(largest, 1e-300)  # squares neither overflow nor vanish
    squares = tl.zeros(row.shape, tl.float64)
    for first in range(0, d, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        x = tl.load(at[:, None] + column[None, :], inside[:, None] & (column < d)[None, :], 0.0).to(tl.float64)
        x = tl.where(odd[:, None] > 0, 0.0, x * scale[:, None])
        squares += tl.sum(x * x, 1)
    return scale, squares, odd


@triton.jit
def inverse_norm(x_ptr, row, inside, stride, d, COLUMNS: tl.constexpr):
    scale, squares, odd = scaled_squares(x_ptr, row, inside, stride, d, COLUMNS)
    inverse = tl.where(squares > 0, scale / tl.sqrt(tl.where(squares > 0, squares, 1.0)), 0.0)
    inverse = tl.where(inverse <= 1.7976931348623157e308, inverse, 0.0)  # too short for 1 / |x| to be a float64
    return tl.where(odd > 0, float("nan"), inverse)


@jit(run_time=("n",))
def norms_kernel(x_ptr, inverse_norms_ptr, n, d, stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < n
    tl.store(inverse_norms_ptr + row, inverse_norm(x_ptr, row, inside, stride, d, COLUMNS), inside)


@jit(run_time=("padded",))
def pack_kernel(x_ptr, ids_ptr, inverse_norms_ptr, packed_ptr, residual_ptr, padded, d, stride, unit,
                width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    position = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = position < padded
    row = tl.load(ids_ptr + position, inside, -1)
    real = row >= 0
    at = x_ptr + tl.maximum(row, 0).to(tl.int64) * stride
    inverse = tl.load(inverse_norms_ptr + tl.maximum(row, 0), real, float("nan"))
    meets = inverse == inverse
    lost = tl.zeros([ROWS], tl.float64)
    for first in range(0, width, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        x = tl.load(at[:, None] + column[None, :], (real & meets)[:, None] & (column < d)[None, :], 0.0).to(tl.float64)
        x *= tl.where(meets, inverse, 0.0)[:, None]
        packed = (x * unit).to(packed_ptr.dtype.element_ty)
        rest = x - packed.to(tl.float64) / unit
        lost += tl.sum(rest * rest, 1)
        packed = tl.where(meets[:, None], packed, float("nan")).to(packed_ptr.dtype.element_ty)
        to = packed_ptr + position.to(tl.int64)[:, None] * width + column[None, :]
        tl.store(to, packed, inside[:, None])
    residual = tl.sqrt(lost).to(tl.float32) * (1 + 1e-6) + 1e-12
    tl.store(residual_ptr + position, residual, inside)


def with_norms(x: Tensor) -> Rows:
    inverse_norms = x.new_empty(len(x), dtype=torch.float64)
    rows, columns = program_shape(x.shape[1])
    launch(
        norms_kernel,
        cdiv(len(x), rows),
        x,
        x,
        inverse_norms,
        len(x),
        x.shape[1],
        x.stride(0),
        ROWS=rows,
        COLUMNS=columns,
    )
    return Rows(x, inverse_norms)


def program_shape(d: int) -> tuple[int, int]:
    """Rows and columns that a program holds at once where it reads whole rows."""
    columns = min(power_of_two(max(d, 16)), 2048 if INTERPRETED else 512)
    return (min(1024, (1 << 18) // columns) if INTERPRETED else max(1, 2048 // columns)), columns


def pack(rows: Rows, block: int, step: int, scattered: bool) -> Packed:
    """``block`` positions a block, the width a multiple of ``step``."""
    x, inverse_norms = rows
    n, d = x.shape
    blocks = cdiv(n, block)
    ids = place(n, block, blocks, scattered, x.device)
    half = d > SHORT
    width, unit = cdiv(d, step) * step, UNIT if half else 1.0
    data = x.new_empty((len(ids), width), dtype=torch.float16 if half else torch.float32)
    residual = x.new_empty(len(ids), dtype=torch.float32)
    # The columns of a program divide the width: a power of two up to step always does.
    columns = step
    held = max(1, (1 << 17 if INTERPRETED else 1024) // columns)
    launch(
        pack_kernel, cdiv(len(ids), held), x, x, ids, inverse_norms, data, residual, len(ids), d, x.stride(0), unit,
        width, ROWS=held, COLUMNS=columns,
    )  # fmt: skip
    return Packed(data, ids, residual, blocks, unit)


def place(n: int, block: int, blocks: int, scattered: bool, device: Any) -> Tensor:
    """int32 [blocks * block]: which row stands at each position, -1 for none."""
    position = torch.arange(blocks * block, dtype=torch.int64, device=device)
    if not scattered:
        return torch.where(position < n, position, -1).int()
    nth, offset = position // block, position % block
    first, end = nth * n // blocks, (nth + 1) * n // blocks
    at = first + offset
    return torch.where(at < end, shuffled(n, device)[at.clamp(max=n - 1)], -1).int()


def shuffled(n: int, device: Any) -> Tensor:
    """A fixed pseudo-random order of 0 .. n - 1: by a bijective hash of 32 bits, so that no two tie."""
    hashed = torch.arange(n, dtype=torch.int64, device=device) * 0x9E3779B1 & 0xFFFFFFFF
    hashed = (hashed ^ hashed >> 15) * 0x85EBCA77 & 0xFFFFFFFF
    return (hashed ^ hashed >> 13).argsort()

"""The sweep: tiles of Q C^T on the tensor cores, and of every product two comparisons.

Operations: 2 * ROWS * BLOCK * d a tile, half of all tiles for the self graph. Bytes: (ROWS + BLOCK) * 2 d a tile from
L2. Tiles are numbered so that those in work at one time lie in a few columns of blocks, which L2 holds.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .._launch import INTERPRETED, MOST_PROGRAMS, jit, launch
from .pack import Packed
from .tiles import Tile

COLUMN_BYTES = 8 << 20  # of packed columns that neighbouring tiles share
BIT_BY_BIT = tl.constexpr(INTERPRETED)


class Lists(NamedTuple):
    """Of every query position: entries that may belong to its k best, in any order."""

    value: Tensor  # float32 [padded, capacity]: the product of the packed rows (in the end, the cosine)
    other: Tensor  # int32 [padded, capacity]: the corpus row; -1 where nobody stands
    counts: Tensor  # int32 [padded]; above the capacity: entries were lost
    threshold: Tensor  # float32 [padded]: what a value must reach; inf: nothing is to be added

    @property
    def capacity(self) -> int:
        return self.value.shape[1]


class Wave(NamedTuple):
    """Which tiles a launch works on: row tiles x column blocks.

    Self: column block i + delta for the row blocks i and begin <= delta < end, an entry offered to both sides; else the
    column blocks begin .. end - 1. Dense: there are no thresholds yet; every product is stored, those with block
    ``begin`` + s at s * BLOCK.
    """

    itself: bool
    dense: bool
    row_blocks: int  # self: the first blocks only (half way round, each pair would come up twice)
    begin: int
    end: int


@triton.jit
def halves(tile):
    """The left and the right half of a tile's columns."""
    R: tl.constexpr = tile.shape[0]
    C: tl.constexpr = tile.shape[1]
    return tl.split(tl.permute(tl.reshape(tile, [R, 2, C // 2]), (0, 2, 1)))


@triton.jit
def columns_of(tile, PARTS: tl.constexpr):
    """The tile's columns in PARTS parts of one width: a tuple. PARTS: a power of two, up to 16."""
    parts = (tile,)
    for _ in tl.static_range(4):
        if len(parts) < PARTS:
            halved = ()
            for p in tl.static_range(len(parts)):
                left, right = halves(parts[p])
                halved = halved + (left, right)  # type: ignore[assignment]  # noqa: RUF005  (Triton unpacks no tuple)
            parts = halved  # type: ignore[assignment]
    return parts


@triton.jit
def reaches(product, row_bound, threshold_ptr, column, SELF: tl.constexpr):
    """Which products reach the bound of their row or, of the self graph, of their column. (NaN reaches nothing.)"""
    bound = row_bound[:, None]
    if SELF:
        bound = tl.minimum(bound, tl.load(threshold_ptr + column + tl.arange(0, product.shape[1]))[None, :])
    return product >= bound


@triton.jit
def any_of(hit):
    """Whether rows hold a hit, in fewer columns: those that one thread holds come to one bit, without a shuffle. (Columns
    16 apart, and pairs: so the accumulators of the tensor cores lie from 8.0 to 9.0.)"""
    R: tl.constexpr = hit.shape[0]
    C: tl.constexpr = hit.shape[1]
    parts = columns_of(hit, C // 16)
    found = parts[0]
    for p in tl.static_range(1, len(parts)):
        found |= parts[p]
    even, odd = tl.split(tl.reshape(found, [R, found.shape[1] // 2, 2]))
    return even | odd


@triton.jit
def union(bits, PARTS: tl.constexpr):
    """The bits set in any element. The interpreter's reduce_or goes through the elements in Python: there, bit by bit."""
    if BIT_BY_BIT:
        total = 0
        for p in tl.static_range(PARTS):
            total |= tl.max(tl.max((bits >> p) & 1, 1), 0) << p
    else:
        total = tl.reduce_or(tl.reduce_or(bits, 1), 0)
    return total


@triton.jit
def append(value_ptr, other_ptr, count_ptr, threshold_ptr, capacity, to, found, value, other, ids_ptr):
    """Adds a product each to the lists ``to`` whose thresholds it reaches: what an atomic returns serves its own element alone.

    A list that is full loses the entry and takes no more: its count passes the capacity, its threshold becomes infinite.
    """
    hit = found & (value >= tl.load(threshold_ptr + to, found, 0.0))
    slot = tl.atomic_add(count_ptr + to, 1, mask=hit, sem="relaxed")
    keep = hit & (slot < capacity)
    at = to.to(tl.int64) * capacity + slot
    tl.store(value_ptr + at, value, keep)
    tl.store(other_ptr + at, tl.load(ids_ptr + other, keep), keep)
    tl.store(threshold_ptr + to, float("inf"), hit & (slot >= capacity))


@triton.jit
def offer(parts, ids_ptr, value_ptr, other_ptr, count_ptr, threshold_ptr, capacity, row, column, SELF: tl.constexpr):
    """Offers a tile's products to the lists of their rows and, of the self graph, to those of their columns.

    One comparison a product, and one reduction over the block, say which parts of the tile hold a hit. A tile with hits
    (a handful in most) takes the first of every row, adds them all at once, and goes on while a row has another.
    ids: of the columns; of the self graph also of the rows.
    """
    R: tl.constexpr = parts[0].shape[0]
    SLICE: tl.constexpr = parts[0].shape[1]
    C: tl.constexpr = SLICE * len(parts)
    to_row = row + tl.arange(0, R)
    row_bound = tl.load(threshold_ptr + to_row)
    bits = any_of(reaches(parts[0], row_bound, threshold_ptr, column, SELF)).to(tl.int32)
    for p in tl.static_range(1, len(parts)):
        bits |= any_of(reaches(parts[p], row_bound, threshold_ptr, column + p * SLICE, SELF)).to(tl.int32) << p
    holding = union(bits, len(parts))
    last = tl.full([R], -1, tl.int32)
    while holding != 0:
        bound = tl.load(threshold_ptr + to_row)
        first = tl.full([R], C, tl.int32)  # column of the row's first hit after the last one
        end = tl.full([R], -1, tl.int32)  # of its last hit at all
        value = tl.zeros([R], tl.float32)
        for p in tl.static_range(len(parts)):
            if (holding >> p) & 1 != 0:
                at = p * SLICE + tl.arange(0, SLICE)[None, :]
                reached = reaches(parts[p], bound, threshold_ptr, column + p * SLICE, SELF)
                here = tl.min(tl.where(reached & (at > last[:, None]), at, C), 1)
                of_here = tl.sum(tl.where(at == here[:, None], parts[p], 0.0), 1)
                value = tl.where(first == C, of_here, value)
                first = tl.minimum(first, here)
                end = tl.maximum(end, tl.max(tl.where(reached, at, -1), 1))
        to, other, hit = to_row, column + first, first < C
        if SELF:  # both ways: one wait for all atomics
            both = tl.join(to, other)
            append(value_ptr, other_ptr, count_ptr, threshold_ptr, capacity, both, tl.join(hit, hit),
                   tl.join(value, value), tl.join(other, to), ids_ptr)  # fmt: skip
        else:
            append(value_ptr, other_ptr, count_ptr, threshold_ptr, capacity, to, hit, value, other, ids_ptr)
        last = first
        holding = tl.where(tl.max((end > first).to(tl.int32), 0) > 0, holding, 0)


@triton.jit
def store_dense(product, row_ids_ptr, column_ids_ptr, value_ptr, other_ptr, capacity, row, column, to,
                EXCLUDE: tl.constexpr):  # fmt: skip
    """Stores products from ``to`` on in the lists of their rows; -1 where nobody stands."""
    R: tl.constexpr = product.shape[0]
    C: tl.constexpr = product.shape[1]
    in_row, in_column = tl.arange(0, R), tl.arange(0, C)
    other = tl.load(column_ids_ptr + column + in_column)
    meets = product == product
    if EXCLUDE:
        meets &= tl.load(row_ids_ptr + row + in_row)[:, None] != other[None, :]
    at = row.to(tl.int64) * capacity + to  # 64 bits for the tile, 32 within it: registers
    to_entry = in_row[:, None] * capacity + in_column[None, :]
    tl.store(value_ptr + at + to_entry, product)
    tl.store(other_ptr + at + to_entry, tl.where(meets, other[None, :], -1))


@jit(run_time=("row_tiles", "blocks", "begin", "end", "together", "capacity"))
def sweep_kernel(rows_ptr, columns_ptr, row_ids_ptr, column_ids_ptr, value_ptr, other_ptr, count_ptr, threshold_ptr,
                 row_tiles, blocks, begin, end, together, capacity, width,
                 SELF: tl.constexpr, DENSE: tl.constexpr, EXCLUDE: tl.constexpr,
                 ROWS: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr, PRECISION: tl.constexpr,
                 SLICE: tl.constexpr, TMA: tl.constexpr):  # fmt: skip
    """width: a multiple of STEP, any of which the compiled kernel serves. TMA: rows_ptr and columns_ptr are tensor
    descriptors of boxes ROWS x STEP and BLOCK x STEP, else pointers."""
    # Strips of `together` column blocks; in a strip all row tiles of a block, then the next column.
    at = tl.program_id(0).to(tl.int64)
    strip = at // (together.to(tl.int64) * row_tiles)
    within = (at - strip * together * row_tiles).to(tl.int32)
    across = tl.minimum(together, end - begin - strip.to(tl.int32) * together)
    TILES: tl.constexpr = BLOCK // ROWS
    row_block = within // (TILES * across)
    in_block = within - row_block * TILES * across
    row_tile = row_block * TILES + in_block % TILES
    slot = strip.to(tl.int32) * together + in_block // TILES
    column_block = begin + slot
    if SELF:
        column_block = (row_block + column_block + blocks) % blocks

    product = tl.zeros([ROWS, BLOCK], tl.float32)
    if TMA:
        for depth in range(0, width, STEP):
            a = rows_ptr.load([row_tile * ROWS, depth])
            b = columns_ptr.load([column_block * BLOCK, depth])
            product = tl.dot(a, b.T, product, input_precision=PRECISION)
    else:
        depth = tl.arange(0, STEP)
        a_ptr = rows_ptr + row_tile.to(tl.int64) * ROWS * width + (tl.arange(0, ROWS)[:, None] * width + depth[None, :])
        b_ptr = (
            columns_ptr
            + column_block.to(tl.int64) * BLOCK * width
            + (depth[:, None] + tl.arange(0, BLOCK)[None, :] * width)
        )
        for _ in range(0, width, STEP):
            product = tl.dot(tl.load(a_ptr), tl.load(b_ptr), product, input_precision=PRECISION)
            a_ptr += STEP
            b_ptr += STEP

    # Nobody stands for padding, for the row itself, and for what is not finite (its products are NaN).
    row, column, parts = row_tile * ROWS, column_block * BLOCK, columns_of(product, BLOCK // SLICE)
    if DENSE:
        for p in tl.static_range(len(parts)):
            store_dense(parts[p], row_ids_ptr, column_ids_ptr, value_ptr, other_ptr, capacity, row,
                        column + p * SLICE, slot * BLOCK + p * SLICE, EXCLUDE)  # fmt: skip
    else:
        offer(parts, column_ids_ptr, value_ptr, other_ptr, count_ptr, threshold_ptr, capacity, row, column, SELF)


def described(packed: Tensor, rows: int, step: int) -> Any:
    return TensorDescriptor.from_tensor(packed, [rows, step])


def sweep(queries: Packed, corpus: Packed, lists: Lists, wave: Wave, exclude_self: bool, tile: Tile) -> None:
    if wave.end <= wave.begin:
        return
    width, wide = queries.data.shape[1], queries.data.element_size()
    row_tiles = wave.row_blocks * (tile.block // tile.rows)
    together = min(max(COLUMN_BYTES // (tile.block * width * wide), 4), 64)
    rows, columns = queries.data, corpus.data
    if tile.tma:
        rows, columns = described(rows, tile.rows, tile.step), described(columns, tile.block, tile.step)
    across = max(MOST_PROGRAMS // row_tiles, 1)  # column blocks of a launch; a dense wave has few
    for begin in range(wave.begin, wave.end, across):
        end = min(begin + across, wave.end)
        launch(
            sweep_kernel, row_tiles * (end - begin), lists.value, rows, columns, queries.ids, corpus.ids, *lists,
            row_tiles, corpus.blocks, begin, end, together, lists.capacity, width,
            SELF=wave.itself, DENSE=wave.dense, EXCLUDE=exclude_self, ROWS=tile.rows, BLOCK=tile.block,
            STEP=tile.step, PRECISION="ieee" if wide == 2 else "tf32x3", SLICE=tile.slice, TMA=tile.tma,
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip

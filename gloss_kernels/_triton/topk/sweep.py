"""The sweep: tiles of Q C^T on the tensor cores, and of every product two comparisons.

Operations: 2 * ROWS * BLOCK * d a tile, half of all tiles for the self graph. Bytes: (ROWS + BLOCK) * 2 d a tile from
L2. Tiles are numbered so that those in work at one time lie in a few columns of blocks, which L2 holds.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .._launch import jit, launch
from .pack import Packed
from .tiles import Tile

COLUMN_BYTES = 8 << 20  # of packed columns that neighbouring tiles share


class Lists(NamedTuple):
    """Of every query position: entries that may belong to its k best, in any order."""

    value: Tensor  # float32 [padded, capacity]: the cosine of the packed rows
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
def append(value_ptr, other_ptr, count_ptr, capacity, first, offset, hit, value, other, AXIS: tl.constexpr):
    """Adds the entries that hit to the lists first + offset; a list takes its entries along AXIS of the tile.

    One atomic operation a list. Entries past the capacity are only counted.
    """
    many = tl.sum(hit.to(tl.int32), AXIS)
    begin = tl.atomic_add(count_ptr + first + offset, many, mask=many > 0, sem="relaxed")
    slot = tl.cumsum(hit.to(tl.int32), AXIS) - 1 + tl.expand_dims(begin, AXIS)
    at = first.to(tl.int64) * capacity  # 64 bits for the tile, 32 within it: registers
    to = tl.expand_dims(offset, AXIS) * capacity + slot
    keep = hit & (slot < capacity)
    tl.store(value_ptr + at + to, value, keep)
    tl.store(other_ptr + at + to, tl.broadcast_to(tl.expand_dims(other, 1 - AXIS), hit.shape), keep)


@triton.jit
def offer(product, row_bound, threshold_ptr, row_ids_ptr, column_ids_ptr, value_ptr, other_ptr, count_ptr, capacity,
          scale, row, column, COLUMN: tl.constexpr, SELF: tl.constexpr, SLICE: tl.constexpr):  # fmt: skip
    """Offers the products of a tile to the lists of its rows and, of the self graph, to those of its columns.

    Wide tiles are halved first: what few tiles need should not take all registers. COLUMN: of the tile, where this part
    begins.
    """
    R: tl.constexpr = product.shape[0]
    C: tl.constexpr = product.shape[1]
    if C > SLICE:
        left, right = tl.split(tl.permute(tl.reshape(product, [R, 2, C // 2]), (0, 2, 1)))
        offer(left, row_bound, threshold_ptr, row_ids_ptr, column_ids_ptr, value_ptr, other_ptr, count_ptr, capacity,
              scale, row, column, COLUMN, SELF, SLICE)  # fmt: skip
        offer(right, row_bound, threshold_ptr, row_ids_ptr, column_ids_ptr, value_ptr, other_ptr, count_ptr, capacity,
              scale, row, column, COLUMN + C // 2, SELF, SLICE)  # fmt: skip
    else:
        here = column + COLUMN
        in_row, in_column = tl.arange(0, R), tl.arange(0, C)
        hit = product >= row_bound[:, None]
        if tl.max(tl.max(hit.to(tl.int32), 1), 0) > 0:
            other = tl.load(column_ids_ptr + here + in_column)
            append(value_ptr, other_ptr, count_ptr, capacity, row, in_row, hit, product * scale, other, 1)
        if SELF:
            bound = tl.load(threshold_ptr + here + in_column) / scale
            hit = product >= bound[None, :]
            if tl.max(tl.max(hit.to(tl.int32), 1), 0) > 0:
                other = tl.load(row_ids_ptr + row + in_row)
                append(value_ptr, other_ptr, count_ptr, capacity, here, in_column, hit, product * scale, other, 0)


@triton.jit
def dense(product, row_ids_ptr, column_ids_ptr, value_ptr, other_ptr, capacity, scale, COLUMN: tl.constexpr,
          EXCLUDE: tl.constexpr, SLICE: tl.constexpr):  # fmt: skip
    """Stores the products of a tile, a slice of its columns at a time; -1 where nobody stands."""
    R: tl.constexpr = product.shape[0]
    C: tl.constexpr = product.shape[1]
    if C > SLICE:
        left, right = tl.split(tl.permute(tl.reshape(product, [R, 2, C // 2]), (0, 2, 1)))
        dense(left, row_ids_ptr, column_ids_ptr, value_ptr, other_ptr, capacity, scale, COLUMN, EXCLUDE, SLICE)
        dense(right, row_ids_ptr, column_ids_ptr, value_ptr, other_ptr, capacity, scale, COLUMN + C // 2, EXCLUDE,
              SLICE)  # fmt: skip
    else:
        row = tl.arange(0, R)
        column = COLUMN + tl.arange(0, C)
        other = tl.load(column_ids_ptr + column)
        meets = product == product
        if EXCLUDE:
            meets &= tl.load(row_ids_ptr + row)[:, None] != other[None, :]
        to = row[:, None] * capacity + column[None, :]
        tl.store(value_ptr + to, product * scale)
        tl.store(other_ptr + to, tl.where(meets, other[None, :], -1))


@jit(run_time=("row_tiles", "blocks", "begin", "end", "together", "capacity"))
def sweep_kernel(rows_ptr, columns_ptr, row_ids_ptr, column_ids_ptr, value_ptr, other_ptr, count_ptr, threshold_ptr,
                 row_tiles, blocks, begin, end, together, capacity, scale,
                 SELF: tl.constexpr, DENSE: tl.constexpr, EXCLUDE: tl.constexpr, WIDTH: tl.constexpr,
                 ROWS: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr, PRECISION: tl.constexpr,
                 SLICE: tl.constexpr):  # fmt: skip
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

    row = row_tile * ROWS + tl.arange(0, ROWS)
    column = column_block * BLOCK + tl.arange(0, BLOCK)
    depth = tl.arange(0, STEP)
    a_ptr = rows_ptr + row_tile.to(tl.int64) * ROWS * WIDTH + (tl.arange(0, ROWS)[:, None] * WIDTH + depth[None, :])
    b_ptr = (
        columns_ptr
        + column_block.to(tl.int64) * BLOCK * WIDTH
        + (depth[:, None] + tl.arange(0, BLOCK)[None, :] * WIDTH)
    )
    product = tl.zeros([ROWS, BLOCK], tl.float32)
    for _ in range(0, WIDTH, STEP):
        product = tl.dot(tl.load(a_ptr), tl.load(b_ptr), product, input_precision=PRECISION)
        a_ptr += STEP
        b_ptr += STEP

    if DENSE:
        # Nobody stands for padding, for the row itself, and for what is not finite (its products are NaN).
        lists = row_tile.to(tl.int64) * ROWS * capacity + slot * BLOCK
        dense(product, row_ids_ptr + row_tile * ROWS, column_ids_ptr + column_block * BLOCK, value_ptr + lists,
              other_ptr + lists, capacity, scale, 0, EXCLUDE, SLICE)  # fmt: skip
    else:
        row_bound = tl.load(threshold_ptr + row) / scale
        hit = product >= row_bound[:, None]
        if SELF:
            column_bound = tl.load(threshold_ptr + column) / scale
            hit |= product >= column_bound[None, :]
        if tl.max(tl.max(hit.to(tl.int32), 1), 0) > 0:
            offer(product, row_bound, threshold_ptr, row_ids_ptr, column_ids_ptr, value_ptr, other_ptr, count_ptr,
                  capacity, scale, row_tile * ROWS, column_block * BLOCK, 0, SELF, SLICE)  # fmt: skip


def sweep(queries: Packed, corpus: Packed, lists: Lists, wave: Wave, exclude_self: bool, tile: Tile) -> None:
    if wave.end <= wave.begin:
        return
    width, wide = queries.data.shape[1], queries.data.element_size()
    row_tiles = wave.row_blocks * (tile.block // tile.rows)
    together = min(max(COLUMN_BYTES // (tile.block * width * wide), 4), 64)
    launch(
        sweep_kernel, row_tiles * (wave.end - wave.begin), lists.value,
        queries.data, corpus.data, queries.ids, corpus.ids, *lists, row_tiles, corpus.blocks, wave.begin, wave.end,
        together, lists.capacity, 1.0 / (queries.unit * corpus.unit),
        SELF=wave.itself, DENSE=wave.dense, EXCLUDE=exclude_self, WIDTH=width, ROWS=tile.rows, BLOCK=tile.block,
        STEP=tile.step, PRECISION="ieee" if wide == 2 else "tf32x3", SLICE=tile.slice,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip

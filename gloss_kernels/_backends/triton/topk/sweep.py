"""The sweep: tiles of Q C^T on the tensor cores, and of every product two comparisons.

Operations: 2 * ROWS * BLOCK * d a tile, half of all tiles for the self graph. Bytes: (ROWS + BLOCK) * 2 d a tile from
L2. Tiles are numbered so that those in work at one time lie in a few columns of blocks, which L2 holds.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .._launch import jit, launch
from .pack import Packed
from .tiles import Tile

COLUMN_BYTES = 8 << 20  # of packed columns that neighbouring tiles share
MOST_PROGRAMS = (1 << 31) - 1  # of a launch


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
          scale, row, column, SELF: tl.constexpr):  # fmt: skip
    """Offers products to the lists of their rows and, of the self graph, to those of their columns."""
    R: tl.constexpr = product.shape[0]
    C: tl.constexpr = product.shape[1]
    in_row, in_column = tl.arange(0, R), tl.arange(0, C)
    hit = product >= row_bound[:, None]
    if tl.max(tl.max(hit.to(tl.int32), 1), 0) > 0:
        other = tl.load(column_ids_ptr + column + in_column)
        append(value_ptr, other_ptr, count_ptr, capacity, row, in_row, hit, product * scale, other, 1)
    if SELF:
        bound = tl.load(threshold_ptr + column + in_column) / scale
        hit = product >= bound[None, :]
        if tl.max(tl.max(hit.to(tl.int32), 1), 0) > 0:
            other = tl.load(row_ids_ptr + row + in_row)
            append(value_ptr, other_ptr, count_ptr, capacity, column, in_column, hit, product * scale, other, 0)


@triton.jit
def store_dense(product, row_ids_ptr, column_ids_ptr, value_ptr, other_ptr, capacity, scale, row, column, to,
                EXCLUDE: tl.constexpr):  # fmt: skip
    """Stores products from ``to`` on in the lists of their rows; -1 where nobody stands."""
    R: tl.constexpr = product.shape[0]
    C: tl.constexpr = product.shape[1]
    in_row, in_column = tl.arange(0, R), tl.arange(0, C)
    other = tl.load(column_ids_ptr + column + in_column)
    meets = product == product
    if EXCLUDE:
        meets &= tl.load(row_ids_ptr + row + in_row)[:, None] != other[None, :]
    at = row.to(tl.int64) * capacity + to
    to_entry = in_row[:, None] * capacity + in_column[None, :]
    tl.store(value_ptr + at + to_entry, product * scale)
    tl.store(other_ptr + at + to_entry, tl.where(meets, other[None, :], -1))


# A tile's epilogue works on SLICE of its columns at a time, so that what few tiles need does not take all registers:
# finish_N finishes up to N slices, by halves. (Triton 3.4 compiles no function that calls itself; 3.6 does.)
@triton.jit
def halves(product):
    """The left and the right half of a tile's columns."""
    R: tl.constexpr = product.shape[0]
    C: tl.constexpr = product.shape[1]
    return tl.split(tl.permute(tl.reshape(product, [R, 2, C // 2]), (0, 2, 1)))


@triton.jit
def finish_1(product, row_bound, threshold_ptr, row_ids_ptr, column_ids_ptr, value_ptr, other_ptr, count_ptr, capacity,
             scale, row, column, to, SELF: tl.constexpr, DENSE: tl.constexpr, EXCLUDE: tl.constexpr,
             SLICE: tl.constexpr):  # fmt: skip
    if DENSE:
        store_dense(
            product, row_ids_ptr, column_ids_ptr, value_ptr, other_ptr, capacity, scale, row, column, to, EXCLUDE
        )
    else:
        offer(product, row_bound, threshold_ptr, row_ids_ptr, column_ids_ptr, value_ptr, other_ptr, count_ptr, capacity,
              scale, row, column, SELF)  # fmt: skip


@triton.jit
def finish_2(product, row_bound, threshold_ptr, row_ids_ptr, column_ids_ptr, value_ptr, other_ptr, count_ptr, capacity,
             scale, row, column, to, SELF: tl.constexpr, DENSE: tl.constexpr, EXCLUDE: tl.constexpr,
             SLICE: tl.constexpr):  # fmt: skip
    C: tl.constexpr = product.shape[1]
    if C > SLICE:
        left, right = halves(product)
        finish_1(left, row_bound, threshold_ptr, row_ids_ptr, column_ids_ptr, value_ptr, other_ptr, count_ptr,
                 capacity, scale, row, column, to, SELF, DENSE, EXCLUDE, SLICE)  # fmt: skip
        finish_1(right, row_bound, threshold_ptr, row_ids_ptr, column_ids_ptr, value_ptr, other_ptr, count_ptr,
                 capacity, scale, row, column + C // 2, to + C // 2, SELF, DENSE, EXCLUDE, SLICE)  # fmt: skip
    else:
        finish_1(product, row_bound, threshold_ptr, row_ids_ptr, column_ids_ptr, value_ptr, other_ptr, count_ptr,
                 capacity, scale, row, column, to, SELF, DENSE, EXCLUDE, SLICE)  # fmt: skip


@triton.jit
def finish_4(product, row_bound, threshold_ptr, row_ids_ptr, column_ids_ptr, value_ptr, other_ptr, count_ptr, capacity,
             scale, row, column, to, SELF: tl.constexpr, DENSE: tl.constexpr, EXCLUDE: tl.constexpr,
             SLICE: tl.constexpr):  # fmt: skip
    C: tl.constexpr = product.shape[1]
    if C > SLICE:
        left, right = halves(product)
        finish_2(left, row_bound, threshold_ptr, row_ids_ptr, column_ids_ptr, value_ptr, other_ptr, count_ptr,
                 capacity, scale, row, column, to, SELF, DENSE, EXCLUDE, SLICE)  # fmt: skip
        finish_2(right, row_bound, threshold_ptr, row_ids_ptr, column_ids_ptr, value_ptr, other_ptr, count_ptr,
                 capacity, scale, row, column + C // 2, to + C // 2, SELF, DENSE, EXCLUDE, SLICE)  # fmt: skip
    else:
        finish_1(product, row_bound, threshold_ptr, row_ids_ptr, column_ids_ptr, value_ptr, other_ptr, count_ptr,
                 capacity, scale, row, column, to, SELF, DENSE, EXCLUDE, SLICE)  # fmt: skip


@triton.jit
def finish_8(product, row_bound, threshold_ptr, row_ids_ptr, column_ids_ptr, value_ptr, other_ptr, count_ptr, capacity,
             scale, row, column, to, SELF: tl.constexpr, DENSE: tl.constexpr, EXCLUDE: tl.constexpr,
             SLICE: tl.constexpr):  # fmt: skip
    C: tl.constexpr = product.shape[1]
    if C > SLICE:
        left, right = halves(product)
        finish_4(left, row_bound, threshold_ptr, row_ids_ptr, column_ids_ptr, value_ptr, other_ptr, count_ptr,
                 capacity, scale, row, column, to, SELF, DENSE, EXCLUDE, SLICE)  # fmt: skip
        finish_4(right, row_bound, threshold_ptr, row_ids_ptr, column_ids_ptr, value_ptr, other_ptr, count_ptr,
                 capacity, scale, row, column + C // 2, to + C // 2, SELF, DENSE, EXCLUDE, SLICE)  # fmt: skip
    else:
        finish_1(product, row_bound, threshold_ptr, row_ids_ptr, column_ids_ptr, value_ptr, other_ptr, count_ptr,
                 capacity, scale, row, column, to, SELF, DENSE, EXCLUDE, SLICE)  # fmt: skip


@triton.jit
def finish_16(product, row_bound, threshold_ptr, row_ids_ptr, column_ids_ptr, value_ptr, other_ptr, count_ptr, capacity,
             scale, row, column, to, SELF: tl.constexpr, DENSE: tl.constexpr, EXCLUDE: tl.constexpr,
             SLICE: tl.constexpr):  # fmt: skip
    C: tl.constexpr = product.shape[1]
    if C > SLICE:
        left, right = halves(product)
        finish_8(left, row_bound, threshold_ptr, row_ids_ptr, column_ids_ptr, value_ptr, other_ptr, count_ptr,
                 capacity, scale, row, column, to, SELF, DENSE, EXCLUDE, SLICE)  # fmt: skip
        finish_8(right, row_bound, threshold_ptr, row_ids_ptr, column_ids_ptr, value_ptr, other_ptr, count_ptr,
                 capacity, scale, row, column + C // 2, to + C // 2, SELF, DENSE, EXCLUDE, SLICE)  # fmt: skip
    else:
        finish_1(product, row_bound, threshold_ptr, row_ids_ptr, column_ids_ptr, value_ptr, other_ptr, count_ptr,
                 capacity, scale, row, column, to, SELF, DENSE, EXCLUDE, SLICE)  # fmt: skip


@jit(run_time=("row_tiles", "blocks", "begin", "end", "together", "capacity"))
def sweep_kernel(rows_ptr, columns_ptr, row_ids_ptr, column_ids_ptr, value_ptr, other_ptr, count_ptr, threshold_ptr,
                 row_tiles, blocks, begin, end, together, capacity, scale,
                 SELF: tl.constexpr, DENSE: tl.constexpr, EXCLUDE: tl.constexpr, WIDTH: tl.constexpr,
                 ROWS: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr, PRECISION: tl.constexpr,
                 SLICE: tl.constexpr, TMA: tl.constexpr):  # fmt: skip
    """TMA: rows_ptr and columns_ptr are tensor descriptors of boxes ROWS x STEP and BLOCK x STEP, else pointers."""
    tl.static_assert(BLOCK <= 16 * SLICE)
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
        for depth in range(0, WIDTH, STEP):
            a = rows_ptr.load([row_tile * ROWS, depth])
            b = columns_ptr.load([column_block * BLOCK, depth])
            product = tl.dot(a, b.T, product, input_precision=PRECISION)
    else:
        depth = tl.arange(0, STEP)
        a_ptr = rows_ptr + row_tile.to(tl.int64) * ROWS * WIDTH + (tl.arange(0, ROWS)[:, None] * WIDTH + depth[None, :])
        b_ptr = (
            columns_ptr
            + column_block.to(tl.int64) * BLOCK * WIDTH
            + (depth[:, None] + tl.arange(0, BLOCK)[None, :] * WIDTH)
        )
        for _ in range(0, WIDTH, STEP):
            product = tl.dot(tl.load(a_ptr), tl.load(b_ptr), product, input_precision=PRECISION)
            a_ptr += STEP
            b_ptr += STEP

    # Nobody stands for padding, for the row itself, and for what is not finite (its products are NaN).
    row, column, to = row_tile * ROWS, column_block * BLOCK, slot * BLOCK
    row_bound = tl.load(threshold_ptr + row + tl.arange(0, ROWS)) / scale
    if DENSE:
        any_hit = 1
    else:
        hit = product >= row_bound[:, None]
        if SELF:
            column_bound = tl.load(threshold_ptr + column + tl.arange(0, BLOCK)) / scale
            hit |= product >= column_bound[None, :]
        any_hit = tl.max(tl.max(hit.to(tl.int32), 1), 0)
    if any_hit > 0:
        finish_16(product, row_bound, threshold_ptr, row_ids_ptr, column_ids_ptr, value_ptr, other_ptr, count_ptr,
                  capacity, scale, row, column, to, SELF, DENSE, EXCLUDE, SLICE)  # fmt: skip


def described(packed: Tensor, rows: int, step: int) -> Any:
    from triton.tools.tensor_descriptor import TensorDescriptor  # not in Triton before 3.4

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
            row_tiles, corpus.blocks, begin, end, together, lists.capacity, 1.0 / (queries.unit * corpus.unit),
            SELF=wave.itself, DENSE=wave.dense, EXCLUDE=exclude_self, WIDTH=width, ROWS=tile.rows, BLOCK=tile.block,
            STEP=tile.step, PRECISION="ieee" if wide == 2 else "tf32x3", SLICE=tile.slice, TMA=tile.tma,
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip

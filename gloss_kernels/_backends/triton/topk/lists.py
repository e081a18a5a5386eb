"""The lists of candidates between the waves of the sweep, and the way from lists to results."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .._launch import INTERPRETED, cdiv, jit, launch, power_of_two, rows_a_program
from .pack import Packed, Rows
from .sweep import Lists

NOBODY = tl.constexpr(0x7FFFFFFFFFFFFFFF)  # an order key after all others


@triton.jit
def guard(residual, largest, accumulation):
    """|cosine - product of the packed rows|, by Cauchy-Schwarz, for a query with this residual."""
    return (residual + (1 + residual) * largest + accumulation) * (1 + 1e-5)


@jit(run_time=("padded", "k", "stored"))
def compact_kernel(value_ptr, other_ptr, count_ptr, threshold_ptr, residual_ptr, largest_ptr, ids_ptr, padded, k,
                   stored, accumulation, scale, EXCLUDE: tl.constexpr, HALVINGS: tl.constexpr, CAPACITY: tl.constexpr,
                   ROWS: tl.constexpr):  # fmt: skip
    """Keeps what can still belong to the k best, and raises the threshold.

    Below the k-th value by two guards, a cosine is below the k-th best one. stored: entries of every list, 0 for as
    many as it counted. scale: of a cosine to a product of packed rows.
    """
    position = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = position < padded
    threshold = tl.load(threshold_ptr + position, inside, float("inf"))
    counted = tl.load(count_ptr + position, inside, 0)
    count = tl.where(stored > 0, stored, counted)
    full = count > CAPACITY
    works = inside & (threshold < float("inf")) & ~full
    entry = tl.arange(0, CAPACITY)
    at = position.to(tl.int64)[:, None] * CAPACITY + entry[None, :]
    read = works[:, None] & (entry[None, :] < count[:, None])
    value = tl.load(value_ptr + at, read, 0.0)
    other = tl.load(other_ptr + at, read, -1)
    lives = read & (other >= 0)
    if EXCLUDE:
        lives &= other != tl.load(ids_ptr + position, inside, -2)[:, None]
    kept = tl.sum(lives.to(tl.int32), 1)
    low = tl.min(tl.where(lives, value, 3 * scale), 1)  # a value that at least k reach
    high = tl.max(tl.where(lives, value, -3 * scale), 1)
    for _ in range(HALVINGS):
        middle = low + (high - low) / 2
        reach = tl.sum((lives & (value >= middle[:, None])).to(tl.int32), 1)
        low = tl.where(reach >= k, middle, low)
        high = tl.where(reach >= k, high, middle)
    margin = guard(tl.load(residual_ptr + position, inside, 0.0), tl.load(largest_ptr), accumulation)
    bound = tl.where(kept >= k, tl.maximum(threshold, low - 2 * margin * scale), threshold)
    keep = lives & (value >= bound[:, None])
    place = tl.cumsum(keep.to(tl.int32), 1) - 1
    tl.debug_barrier()  # all have read the list
    to = position.to(tl.int64)[:, None] * CAPACITY + place
    tl.store(value_ptr + to, value, keep)
    tl.store(other_ptr + to, other, keep)
    # A list that lost entries is redone, and collects no more.
    tl.store(threshold_ptr + position, tl.where(full, float("inf"), bound), inside & (works | full))
    tl.store(count_ptr + position, tl.where(works, tl.sum(keep.to(tl.int32), 1), counted), inside)


@triton.jit
def products(query_ptr, row, norm, use_row, query_stride, corpus_ptr, other, use, corpus_stride, d,
             COLUMNS: tl.constexpr):  # fmt: skip
    """In float64, of the queries ``row`` [R] times ``norm`` with the corpus rows ``other`` [R, G]; of others 0. [R, G]"""
    query = query_ptr + row.to(tl.int64) * query_stride
    corpus = corpus_ptr + other.to(tl.int64) * corpus_stride
    product = tl.zeros(other.shape, tl.float64)
    for start in range(0, d, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        in_row = column < d
        x = tl.load(query[:, None] + column[None, :], use_row[:, None] & in_row[None, :], 0.0).to(tl.float64)
        y = tl.load(corpus[:, :, None] + column[None, None, :], use[:, :, None] & in_row[None, None, :], 0.0)
        product += tl.sum((x * norm[:, None])[:, None, :] * y.to(tl.float64), 2)
    return product


@jit(run_time=("padded",))
def score_kernel(query_ptr, query_norm_ptr, corpus_ptr, corpus_norm_ptr, ids_ptr, source_ptr, value_ptr, other_ptr,
                 count_ptr, padded, d, query_stride, corpus_stride, CAPACITY: tl.constexpr, ROWS: tl.constexpr,
                 GROUP: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """value <- the float64 cosine of every entry of list ``source``, rounded once. Bytes: d a candidate, from L2."""
    position = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row = tl.load(ids_ptr + position, position < padded, -1)
    inside = row >= 0
    source = tl.load(source_ptr + position, inside, 0).to(tl.int64)
    count = tl.load(count_ptr + source, inside, 0)
    norm = tl.load(query_norm_ptr + row, inside, 0.0)
    for first in range(0, tl.max(count), GROUP):
        entry = first + tl.arange(0, GROUP)
        read = entry[None, :] < count[:, None]
        other = tl.load(other_ptr + source[:, None] * CAPACITY + entry[None, :], read, -1)
        read &= other >= 0
        product = products(
            query_ptr, row, norm, inside, query_stride, corpus_ptr, other, read, corpus_stride, d, COLUMNS
        )
        cosine = (product * tl.load(corpus_norm_ptr + other, read, 0.0)).to(tl.float32)
        tl.store(value_ptr + position.to(tl.int64)[:, None] * CAPACITY + entry[None, :], cosine, read)


@triton.jit
def order_key(value, index):
    """Larger values first, then smaller indices: int64 in ascending order. A value that is not finite comes last."""
    bits = tl.where(value == value, value + 0.0, -2.0).to(tl.int32, bitcast=True)
    ascending = tl.where(bits >= 0, bits, bits ^ 0x7FFFFFFF)
    return ((~ascending).to(tl.int64) << 32) | index.to(tl.int64)


@jit(run_time=("padded", "k"))
def select_kernel(ids_ptr, source_ptr, value_ptr, other_ptr, count_ptr, query_norm_ptr, corpus_norm_ptr, values_ptr,
                  indices_ptr, padded, k, CAPACITY: tl.constexpr, EXCLUDE: tl.constexpr, ROWS: tl.constexpr,
                  GROUP: tl.constexpr):  # fmt: skip
    """The k best entries of every list to the rows of the result: an entry's place is the number of those before it."""
    position = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row = tl.load(ids_ptr + position, position < padded, -1)
    inside = row >= 0
    source = tl.load(source_ptr + position, inside, 0).to(tl.int64)
    count = tl.load(count_ptr + source, inside, 0)
    most = tl.max(count)
    norm = tl.load(query_norm_ptr + row, inside, 0.0)
    for first in range(0, most, GROUP):
        value, other, key = entries(value_ptr, other_ptr, position, source, row, count, first, CAPACITY, EXCLUDE, GROUP)
        place = tl.zeros([ROWS, GROUP], tl.int32)
        for start in range(0, most, GROUP):
            _, _, rival = entries(value_ptr, other_ptr, position, source, row, count, start, CAPACITY, EXCLUDE, GROUP)
            place += tl.sum((rival[:, None, :] < key[:, :, None]).to(tl.int32), 2)
        write = (key != NOBODY) & (place < k)
        of_other = tl.load(corpus_norm_ptr + other, write, 0.0)
        finite = (norm == norm)[:, None] & (of_other == of_other)
        to = row.to(tl.int64)[:, None] * k + place
        tl.store(values_ptr + to, tl.where(finite, value, float("nan")), write)
        tl.store(indices_ptr + to, other.to(tl.int64), write)


@triton.jit
def entries(value_ptr, other_ptr, position, source, row, count, first, CAPACITY: tl.constexpr, EXCLUDE: tl.constexpr,
            GROUP: tl.constexpr):  # fmt: skip
    """GROUP entries of each list from ``first`` on: value, corpus row, order key (NOBODY past the end). [R, GROUP]"""
    entry = first + tl.arange(0, GROUP)
    read = entry[None, :] < count[:, None]
    other = tl.load(other_ptr + source[:, None] * CAPACITY + entry[None, :], read, -1)
    read &= other >= 0
    if EXCLUDE:
        read &= other != row[:, None]
    value = tl.load(value_ptr + position.to(tl.int64)[:, None] * CAPACITY + entry[None, :], read, 0.0)
    return value + 0.0, other, tl.where(read, order_key(value, other), NOBODY)


def compact(
    lists: Lists, queries: Packed, largest_residual: Tensor, k: int, stored: int, accumulation: float, exclude: bool
) -> None:
    """``exclude``: the lists may hold the row itself."""
    rows = rows_a_program(lists.capacity)
    halvings = 16 if queries.unit > 1 else 26  # of a range of 2: to an eighth of the guard
    launch(
        compact_kernel, cdiv(queries.padded, rows), lists.value, *lists, queries.residual, largest_residual,
        queries.ids, queries.padded, k, stored, accumulation, queries.unit**2, EXCLUDE=exclude, HALVINGS=halvings,
        CAPACITY=lists.capacity, ROWS=rows,
    )  # fmt: skip


def score(lists: Lists, source: Tensor, queries: Rows, corpus: Rows, ids: Tensor) -> None:
    """value of row i <- its cosines with the entries of the list ``source[i]``."""
    (x, query_norms), (y, corpus_norms) = queries, corpus
    group, d = 16, x.shape[1]
    columns = min(power_of_two(max(d, 16)), 1024 if INTERPRETED else 128)
    rows = rows_a_program(group * columns)
    launch(
        score_kernel, cdiv(len(ids), rows), x, x, query_norms, y, corpus_norms, ids, source, *lists[:3], len(ids), d,
        x.stride(0), y.stride(0), CAPACITY=lists.capacity, ROWS=rows, GROUP=group, COLUMNS=columns,
    )  # fmt: skip


def select(
    lists: Lists, source: Tensor, queries: Rows, corpus: Rows, ids: Tensor, exclude_self: bool, values: Tensor,
    indices: Tensor,
) -> None:  # fmt: skip
    """values, indices <- the k best of each list, sorted."""
    k = values.shape[1]
    group = 256 if INTERPRETED else min(max(power_of_two(k + k // 4), 16), 64)
    rows = rows_a_program(group * group // 4)
    launch(
        select_kernel, cdiv(len(ids), rows), values, ids, source, *lists[:3], queries.inverse_norms,
        corpus.inverse_norms, values, indices, len(ids), k, CAPACITY=lists.capacity, EXCLUDE=exclude_self, ROWS=rows,
        GROUP=group,
    )  # fmt: skip

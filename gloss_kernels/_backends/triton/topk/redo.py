"""Rows whose lists lost entries, against the whole corpus: ties and near ties without number, and rows of zeros.

Only the device knows how many they are: a fixed number of programs shares out items, a group of rows and a part of the
corpus each. An item keeps its rows' best order keys in registers, made of cosines in float64; keys have no ties, so any
number of equal values fits. Every product is made in float32 first, of rows scaled by powers of two, and again in
float64 only where a bound of its error lets it belong to the best: those found so far in any part of the corpus, or
before that in the list that lost entries. More near ties cost time but no memory.
Identical rows, copies of an empty document say, are searched once: they find each other by a hash table.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._launch import INTERPRETED, cdiv, jit, launch, power_of_two, rows_a_program
from .lists import NOBODY, order_key, products
from .pack import Packed, Rows
from .sweep import Lists

PROGRAMS = 2 if INTERPRETED else 512


@triton.jit
def failed(ids_ptr, count_ptr, position, padded, k, CAPACITY: tl.constexpr):
    """The rows that stand at these positions, and which of them have no complete list."""
    row = tl.load(ids_ptr + position, position < padded, -1)
    count = tl.load(count_ptr + position, row >= 0, k)
    return row, (row >= 0) & ((count > CAPACITY) | (count < k))


@jit(run_time=("padded", "k", "slots"))
def hash_kernel(x_ptr, ids_ptr, count_ptr, slot_ptr, smallest_ptr, padded, k, d, stride, slots, CAPACITY: tl.constexpr,
                ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """slot: of a failed row in the table; smallest: position with this hash."""
    position = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row, fails = failed(ids_ptr, count_ptr, position, padded, k, CAPACITY)
    if tl.max(fails.to(tl.int32)) > 0:
        x_at = x_ptr + row.to(tl.int64) * stride
        total = tl.zeros([ROWS], tl.int64)
        for first in range(0, d, COLUMNS):
            column = first + tl.arange(0, COLUMNS)
            x = tl.load(x_at[:, None] + column[None, :], fails[:, None] & (column < d)[None, :], 0.0).to(tl.float32)
            mixed = (x + 0.0).to(tl.int32, bitcast=True).to(tl.int64) * 0x2545F491 + column[None, :].to(
                tl.int64
            ) * 0x9E3779B1
            mixed = (mixed ^ (mixed >> 31)) * 0x3C6EF372
            total += tl.sum(mixed ^ (mixed >> 29), 1)
        slot = (total ^ (total >> 32)) & (slots - 1)
        tl.store(slot_ptr + position, slot, fails)
        tl.atomic_min(smallest_ptr + slot, position, mask=fails, sem="relaxed")


@jit(run_time=("padded", "k"))
def leader_kernel(x_ptr, ids_ptr, count_ptr, slot_ptr, smallest_ptr, source_ptr, found_ptr, places_ptr, padded, k, d,
                  stride, CAPACITY: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """source: the position whose list serves this one; places [found]: the positions to be searched."""
    position = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row, fails = failed(ids_ptr, count_ptr, position, padded, k, CAPACITY)
    source = position
    if tl.max(fails.to(tl.int32)) > 0:
        slot = tl.load(slot_ptr + position, fails, 0)
        first_copy = tl.load(smallest_ptr + slot, fails, 0)
        leader = tl.load(ids_ptr + first_copy, fails, 0)
        differs = tl.zeros([ROWS], tl.int32)
        for first in range(0, d, COLUMNS):
            column = first + tl.arange(0, COLUMNS)
            use = fails[:, None] & (column < d)[None, :]
            x = tl.load(x_ptr + row.to(tl.int64)[:, None] * stride + column[None, :], use, 0.0)
            y = tl.load(x_ptr + leader.to(tl.int64)[:, None] * stride + column[None, :], use, 0.0)
            differs = tl.maximum(differs, tl.max((x != y).to(tl.int32), 1))
        source = tl.where(fails & (differs == 0), first_copy, position)
        leads = fails & (source == position)
        place = tl.atomic_add(found_ptr + tl.zeros([ROWS], tl.int32), 1, mask=leads, sem="relaxed")
        tl.store(places_ptr + place, position, leads)
    tl.store(source_ptr + position, source, position < padded)


@triton.jit
def power_of(inverse_norm):
    """A power of two in two float32 factors, neither of which leaves their range, and what is left: 1 to 2. 0 for 0."""
    bits = inverse_norm.to(tl.int64, bitcast=True)
    exponent = (bits >> 52).to(tl.int32) - 1023
    half = exponent >> 1
    has_direction = inverse_norm > 0
    first = tl.where(has_direction, ((half + 127) << 23).to(tl.float32, bitcast=True), 0.0)
    second = ((exponent - half + 127) << 23).to(tl.float32, bitcast=True)
    rest = ((bits & 0x000FFFFFFFFFFFFF) | 0x3FF0000000000000).to(tl.float64, bitcast=True).to(tl.float32)
    return first, tl.where(has_direction, second, 0.0), tl.where(has_direction, rest, 0.0)


@triton.jit
def merged(best, keys):
    """The best keys of either, as many as there are in ``best``: the first of the new ones takes the place of the last of
    the best, until it stands behind it. [R, K], [R, any]"""
    while tl.max((tl.min(keys, 1) < tl.max(best, 1)).to(tl.int32)) > 0:
        first, last = tl.min(keys, 1)[:, None], tl.max(best, 1)[:, None]
        better = first < last
        best = tl.where(better & (best == last), first, best)
        keys = tl.where(better & (keys == first), NOBODY, keys)
    return best


@triton.jit
def no_keys(ROWS: tl.constexpr, CHOSEN: tl.constexpr):
    """Places that are not taken hold keys after all others, each its own."""
    return NOBODY - 1 - tl.arange(0, CHOSEN).to(tl.int64)[None, :] + tl.zeros([ROWS, CHOSEN], tl.int64)


@triton.jit
def order_keys(query_ptr, row, factor, query_stride, corpus_ptr, corpus_norm_ptr, corpus_stride, other, wanted, d,
               COLUMNS: tl.constexpr):  # fmt: skip
    """Those of the float64 cosines, rounded once, with the corpus rows ``other``. [R, G]"""
    of_other = tl.load(corpus_norm_ptr + other, wanted, 0.0)
    product = products(query_ptr, row, factor, factor > 0, query_stride, corpus_ptr, other,
                       wanted & (of_other > 0), corpus_stride, d, COLUMNS)  # fmt: skip
    return tl.where(wanted, order_key((product * of_other).to(tl.float32), other), NOBODY)


@jit(run_time=("programs",))
def bound_kernel(query_ptr, query_norm_ptr, corpus_ptr, corpus_norm_ptr, ids_ptr, found_ptr, places_ptr, other_ptr,
                 count_ptr, bound_ptr, d, query_stride, corpus_stride, programs, CAPACITY: tl.constexpr,
                 ROWS: tl.constexpr, CHOSEN: tl.constexpr, GROUP: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """bound [place] <- a key that the CHOSEN best stand before: the best of the entries that the list still holds do."""
    found = tl.load(found_ptr)
    for item in range(tl.program_id(0), (found + ROWS - 1) // ROWS, programs):
        place = item * ROWS + tl.arange(0, ROWS)
        inside = place < found
        position = tl.load(places_ptr + place, inside, 0)
        row = tl.load(ids_ptr + position, inside, 0)
        norm = tl.load(query_norm_ptr + row, inside, 0.0)
        factor = tl.where(norm == norm, norm, 0.0)
        count = tl.minimum(tl.load(count_ptr + position, inside, 0), CAPACITY)
        best = no_keys(ROWS, CHOSEN)
        for first in range(0, tl.max(count), GROUP):
            entry = first + tl.arange(0, GROUP)
            wanted = entry[None, :] < count[:, None]
            other = tl.load(other_ptr + position.to(tl.int64)[:, None] * CAPACITY + entry[None, :], wanted, -1)
            keys = order_keys(query_ptr, row, factor, query_stride, corpus_ptr, corpus_norm_ptr, corpus_stride, other,
                              wanted & (other >= 0), d, COLUMNS)  # fmt: skip
            best = merged(best, keys)
        tl.store(bound_ptr + place, tl.max(best, 1) + 1, inside)


@jit(run_time=("m", "programs"))
def redo_kernel(query_ptr, query_norm_ptr, corpus_ptr, corpus_norm_ptr, ids_ptr, found_ptr, places_ptr, other_ptr,
                count_ptr, bound_ptr, slack, m, d, query_stride, corpus_stride, programs, CAPACITY: tl.constexpr,
                ROWS: tl.constexpr, OTHERS: tl.constexpr, CHOSEN: tl.constexpr, GROUP: tl.constexpr,
                COLUMNS: tl.constexpr):  # fmt: skip
    """Writes the CHOSEN best of each of CAPACITY / CHOSEN parts of the corpus into the list of every place.

    slack: what a product in float32 may be too small by. Of a tile, the columns in which some row has a product that by
    this may belong to its best are made again in float64, GROUP at a time.
    """
    PARTS: tl.constexpr = CAPACITY // CHOSEN
    found = tl.load(found_ptr)
    for item in range(tl.program_id(0), (found + ROWS - 1) // ROWS * PARTS, programs):
        place = item // PARTS * ROWS + tl.arange(0, ROWS)
        part = item % PARTS
        inside = place < found
        position = tl.load(places_ptr + place, inside, 0)
        row = tl.load(ids_ptr + position, inside, 0)
        norm = tl.load(query_norm_ptr + row, inside, 0.0)
        factor = tl.where(norm == norm, norm, 0.0)  # a row that is not finite: cosine 0, the result is NaN in the end
        row_first, row_second, row_rest = power_of(factor)
        x_at = query_ptr + row.to(tl.int64) * query_stride
        best = no_keys(ROWS, CHOSEN)
        bound = tl.where(inside, NOBODY, -NOBODY)
        size = (m + PARTS - 1) // PARTS
        end = tl.minimum(part * size + size, m)
        for start in range(part * size, end, OTHERS):
            bound = tl.minimum(bound, tl.load(bound_ptr + place, inside, -NOBODY, volatile=True))
            other = start + tl.arange(0, OTHERS)
            real = other < end
            of_other = tl.load(corpus_norm_ptr + other, real, 0.0)
            finite = of_other == of_other
            first_power, second_power, rest = power_of(tl.where(finite, of_other, 0.0))
            y_at = corpus_ptr + other.to(tl.int64) * corpus_stride
            product = tl.zeros([ROWS, OTHERS], tl.float32)
            for first in range(0, d, COLUMNS):
                column = first + tl.arange(0, COLUMNS)
                use = column < d
                x = tl.load(x_at[:, None] + column[None, :], (factor > 0)[:, None] & use[None, :], 0.0)
                y = tl.load(y_at[None, :] + column[:, None], (rest > 0)[None, :] & use[:, None], 0.0)
                x = x.to(tl.float32) * row_first[:, None] * row_second[:, None]
                y = y.to(tl.float32) * first_power[None, :] * second_power[None, :]
                product = tl.dot(x, y, product, input_precision="ieee")
            # With a row without a direction the cosine is 0 itself. No cosine is above 1: of rows that tie there, the
            # indices alone tell that nobody after the best can be one of them.
            of_pair = row_rest[:, None] * rest[None, :]
            most = tl.minimum(product * of_pair + tl.where(of_pair > 0, slack, 0.0), 1.0)
            most = tl.where(finite[None, :], most, -2.0)
            survives = order_key(most, tl.broadcast_to(other.to(tl.int32)[None, :], [ROWS, OTHERS])) < bound[:, None]
            hit = tl.max((survives & real[None, :]).to(tl.int32), 0)
            hits = tl.sum(hit)
            if hits > 0:
                nth_of = tl.where(hit > 0, tl.cumsum(hit, 0) - 1, -1)
                for next in range(0, hits, GROUP):
                    nth = next + tl.arange(0, GROUP)
                    chosen = tl.sum(tl.where(nth_of[None, :] == nth[:, None], tl.arange(0, OTHERS)[None, :], 0), 1)
                    wanted = inside[:, None] & (nth < hits)[None, :]
                    again = tl.broadcast_to((start + chosen)[None, :], [ROWS, GROUP])
                    keys = order_keys(query_ptr, row, factor, query_stride, corpus_ptr, corpus_norm_ptr, corpus_stride,
                                      again, wanted, d, COLUMNS)  # fmt: skip
                    best = merged(best, keys)
                # The bound is of use to those who work on the other parts, too.
                bound = tl.minimum(bound, tl.max(best, 1))
                tl.atomic_min(bound_ptr + place, bound, mask=inside, sem="relaxed")
        to = position.to(tl.int64)[:, None] * CAPACITY + (part * CHOSEN + tl.arange(0, CHOSEN))[None, :]
        index = tl.where(best >= NOBODY - CHOSEN, -1, best & 0xFFFFFFFF).to(tl.int32)
        tl.store(other_ptr + to, index, inside[:, None])
        tl.store(count_ptr + position, CAPACITY, inside)


def most_chosen(k: int) -> int:
    """Keys that an item keeps: with the row itself, which its copies must leave out."""
    return max(power_of_two(k + 1), 32)


def float32_slack(d: int) -> float:
    """Of sums of d products that come to 1 at most, whatever their order; 8 roundings are left for the two factors, what
    is made of them, and float64's to float32."""
    roundings = (d + 8) * 5.97e-8  # 2^-24, and a little
    return roundings / (1 - roundings)


def redo(lists: Lists, queries: Rows, corpus: Rows, packed: Packed, k: int) -> tuple[Tensor, Tensor]:
    """Completes the lists that lost entries. Returns source int32 [padded], the list that serves each position, and how
    many lists were redone, int32 [1]."""
    (x, query_norms), (y, corpus_norms) = queries, corpus
    padded, d, capacity = packed.padded, x.shape[1], lists.capacity
    slots = power_of_two(2 * padded)
    slot, source, places = (torch.empty_like(lists.counts) for _ in range(3))
    smallest = torch.full((slots,), padded, dtype=torch.int32, device=x.device)
    found = torch.zeros(1, dtype=torch.int32, device=x.device)
    columns = min(power_of_two(max(d, 16)), 1024 if INTERPRETED else 64)
    rows = rows_a_program(columns) if INTERPRETED else 32
    launch(
        hash_kernel, cdiv(padded, rows), x, x, packed.ids, lists.counts, slot, smallest, padded, k, d, x.stride(0),
        slots, CAPACITY=capacity, ROWS=rows, COLUMNS=columns,
    )  # fmt: skip
    launch(
        leader_kernel, cdiv(padded, rows), x, x, packed.ids, lists.counts, slot, smallest, source, found, places,
        padded, k, d, x.stride(0), CAPACITY=capacity, ROWS=rows, COLUMNS=columns,
    )  # fmt: skip
    chosen = most_chosen(k)
    work = (packed.ids, found, places, lists.other, lists.counts, torch.empty_like(lists.counts, dtype=torch.int64))
    shape = {"CHOSEN": chosen, "CAPACITY": capacity, "COLUMNS": min(columns, 128) if INTERPRETED else 32}
    # So many rows that their best keys fit in registers. Interpreted, what costs is the number of operations.
    held = rows if INTERPRETED else max(64 // chosen, 1)
    launch(
        bound_kernel, PROGRAMS, x, x, query_norms, y, corpus_norms, *work, d, x.stride(0), y.stride(0), PROGRAMS,
        ROWS=held, GROUP=16, **shape,
    )  # fmt: skip
    held, others, group = 128, 256, 64
    if not INTERPRETED:
        held, others, group = 512 // chosen if chosen <= 128 else 1, 32 if chosen == 32 else 64, 4
    launch(
        redo_kernel, PROGRAMS, x, x, query_norms, y, corpus_norms, *work, float32_slack(d), len(y), d, x.stride(0),
        y.stride(0), PROGRAMS, ROWS=held, OTHERS=others, GROUP=group, num_warps=8, **shape,
    )  # fmt: skip
    return source, found

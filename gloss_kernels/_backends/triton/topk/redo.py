"""Rows whose lists lost entries, against the whole corpus: ties and near ties without number, and rows of zeros.

Only the device knows how many they are: a fixed number of programs shares out items, a group of rows and a part of the
corpus each. An item keeps its rows' best order keys in registers; keys have no ties, so any number of equal values
fits.
Identical rows, copies of an empty document say, are searched once: they find each other by a hash table.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._launch import INTERPRETED, cdiv, jit, launch, power_of_two, rows_a_program
from .lists import NOBODY, order_key
from .pack import Packed, Rows
from .sweep import Lists

GROUP = 16  # rows that share a read of the corpus
PROGRAMS = 2 if INTERPRETED else 512
SLACK = 8  # best in float32 beside the k wanted: float64 decides between them


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


@jit(run_time=("m", "programs"))
def redo_kernel(query_ptr, query_norm_ptr, corpus_ptr, corpus_norm_ptr, ids_ptr, found_ptr, places_ptr, other_ptr,
                count_ptr, m, d, query_stride, corpus_stride, programs, CAPACITY: tl.constexpr, ROWS: tl.constexpr,
                CHOSEN: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """Writes the CHOSEN best of each of CAPACITY / CHOSEN parts of the corpus into the list of every place."""
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
        x_at = query_ptr + row.to(tl.int64) * query_stride
        # Places not yet taken hold keys after all others, each its own.
        best = NOBODY - tl.arange(0, CHOSEN).to(tl.int64)[None, :] + tl.zeros([ROWS, CHOSEN], tl.int64)
        size = (m + PARTS - 1) // PARTS
        end = tl.minimum(part * size + size, m)
        for start in range(part * size, end, CHOSEN):
            other = start + tl.arange(0, CHOSEN)
            real = other < end
            of_other = tl.load(corpus_norm_ptr + other, real, 0.0)
            finite = of_other == of_other
            y_at = corpus_ptr + other.to(tl.int64) * corpus_stride
            product = tl.zeros([ROWS, CHOSEN], tl.float32)
            for first in range(0, d, COLUMNS):
                column = first + tl.arange(0, COLUMNS)
                use = column < d
                x = tl.load(x_at[:, None] + column[None, :], (inside & (norm == norm))[:, None] & use[None, :], 0.0)
                y = tl.load(y_at[None, :] + column[:, None], (real & finite)[None, :] & use[:, None], 0.0)
                x = (x.to(tl.float64) * factor[:, None]).to(tl.float32)
                y = (y.to(tl.float64) * tl.where(finite, of_other, 0.0)[None, :]).to(tl.float32)
                product = tl.dot(x, y, product, input_precision="ieee")
            index = tl.broadcast_to(other.to(tl.int32)[None, :], [ROWS, CHOSEN])
            keys = order_key(tl.where(finite[None, :], product, -2.0), index)
            keys = tl.where((inside[:, None] & real[None, :]), keys, NOBODY)
            # The best of the new keys takes the place of the last of the best, until none is better.
            while tl.max((tl.min(keys, 1) < tl.max(best, 1)).to(tl.int32)) > 0:
                first_key, last_key = tl.min(keys, 1), tl.max(best, 1)
                better = (first_key < last_key)[:, None]
                best = tl.where(better & (best == last_key[:, None]), first_key[:, None], best)
                keys = tl.where(better & (keys == first_key[:, None]), NOBODY, keys)
        to = position.to(tl.int64)[:, None] * CAPACITY + (part * CHOSEN + tl.arange(0, CHOSEN))[None, :]
        index = tl.where(best > NOBODY - CHOSEN, -1, best & 0xFFFFFFFF).to(tl.int32)
        tl.store(other_ptr + to, index, inside[:, None])
        tl.store(count_ptr + position, CAPACITY, inside)


def most_chosen(k: int) -> int:
    """Keys that an item keeps: with the row itself, which its copies must leave out."""
    return max(power_of_two(k + 1 + SLACK), 32)


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
    launch(
        redo_kernel, PROGRAMS, x, x, query_norms, y, corpus_norms, packed.ids, found, places, lists.other, lists.counts,
        len(y), d, x.stride(0), y.stride(0), PROGRAMS, CAPACITY=capacity, ROWS=GROUP * (8 if INTERPRETED else 1),
        CHOSEN=most_chosen(k), COLUMNS=columns if INTERPRETED else 32,
    )  # fmt: skip
    return source, found

"""Stage graph in Triton: the symmetrised structure, the weights of its entries, the normalisations, and their gradients.

Sums run over the entries of a row, in order: no atomics, the same bits for the same input.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ... import reference
from ..._math import power
from ..protocol import Combination, Edges, Structure
from ._launch import INTERPRETED, cdiv, jit, launch
from .symmetrize import combine, share

ENTRIES = 1 << 14 if INTERPRETED else 1024  # entries of a program that takes them one by one
ROWS = 256 if INTERPRETED else 32  # rows of one that sums along them
EDGES = 4  # of a row at a time


# ------------------------------------------------------------------------------------------- structure
def knn_structure(indices: Tensor, symmetrize: str, capacity: int) -> Structure:
    n, k = indices.shape
    _check_indices(indices)
    indices = indices.clamp(0, max(n - 1, 0))  # on a GPU nobody has looked: a wrong edge, but none outside the graph
    source = torch.arange(n, dtype=torch.int64, device=indices.device).repeat_interleave(k)
    target, edge = indices.flatten(), torch.arange(n * k, dtype=torch.int64, device=indices.device)
    key = source * n + target
    if symmetrize == "none":
        key, forward = key.sort()
        return Structure(
            torch.arange(n + 1, dtype=torch.int64, device=key.device) * k, key % n, forward, torch.full_like(key, -1)
        )
    # Every directed edge once as it is and once turned round; an entry of the result is one key, or two equal ones.
    key, order = torch.cat([key, target * n + source]).sort(stable=True)
    first = torch.ones_like(key, dtype=torch.bool)
    first[1:] = key[1:] != key[:-1]
    last = torch.ones_like(first)
    last[:-1] = first[1:]
    # The sort is stable: of two equal keys the edge as it is comes first.
    turned = order >= len(edge)
    keep = first & reference.SYMMETRIZE[symmetrize].is_edge(~turned, turned | ~last)
    place = torch.where(keep, keep.cumsum(0) - 1, capacity)
    crow = torch.zeros(n + 1, dtype=torch.int64, device=key.device)
    crow[1:] = torch.zeros_like(crow[1:]).scatter_add_(0, key // max(n, 1), keep.long()).cumsum(0)
    col, forward, reverse = (
        torch.full((capacity + 1,), fill, dtype=torch.int64, device=key.device) for fill in (0, -1, -1)
    )
    col[place] = key % max(n, 1)
    forward[torch.where(turned, capacity, place)] = order
    pair = torch.where(first, place, torch.cat([place[:1], place[:-1]]))
    reverse[torch.where(turned, pair, capacity)] = order - len(edge)
    return Structure(crow, col[:capacity], forward[:capacity], reverse[:capacity])


def _check_indices(indices: Tensor) -> None:
    """Raises where the indices are no neighbours, of tensors on the CPU: on a GPU that would wait for it."""
    if indices.device.type != "cpu" or not indices.numel():
        return
    n = len(indices)
    ordered = indices.sort(dim=1).values
    own = torch.arange(n, dtype=torch.int64, device=indices.device)[:, None]
    outside, itself = (indices < 0) | (indices >= n), indices == own
    twice = torch.zeros_like(outside)
    twice[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    bad = (outside | itself | twice).any(dim=1)
    if not bool(bad.any()):
        return
    i = int(bad.nonzero()[0])
    if bool(outside[i].any()):
        node = int(indices[i][outside[i]][0])
        raise ValueError(f"indices: row {i} names node {node}, outside 0..{n - 1}")
    raise ValueError(f"indices: row {i} names " + ("itself" if bool(itself[i].any()) else "a node twice"))


# --------------------------------------------------------------------------------------------- weights
@triton.jit
def weights_at(weights_ptr, place, inside, count):
    """The weights at these places, 0 where there is none (-1), NaN where a place is outside."""
    return tl.load(
        weights_ptr + place, inside & (place >= 0) & (place < count), tl.where(place == -1, 0.0, float("nan"))
    )


@jit(run_time=("nnz", "count"))
def combine_kernel(forward_ptr, reverse_ptr, weights_ptr, values_ptr, nnz, count, HOW: tl.constexpr,
                   ENTRIES: tl.constexpr):  # fmt: skip
    entry = tl.program_id(0).to(tl.int64) * ENTRIES + tl.arange(0, ENTRIES)
    inside = entry < nnz
    a = weights_at(weights_ptr, tl.load(forward_ptr + entry, inside, -1), inside, count)
    b = weights_at(weights_ptr, tl.load(reverse_ptr + entry, inside, -1), inside, count)
    value = combine(a, b, HOW)
    tl.store(values_ptr + entry, tl.where((a == a) & (b == b), value, a + b), inside)


@jit(run_time=("nnz", "count"))
def combine_backward_kernel(mine_ptr, other_ptr, weights_ptr, grad_values_ptr, grad_weights_ptr, nnz, count,
                            ADD: tl.constexpr, HOW: tl.constexpr, ENTRIES: tl.constexpr):  # fmt: skip
    """The share of the weights at ``mine``: each is written by one entry a pass."""
    entry = tl.program_id(0).to(tl.int64) * ENTRIES + tl.arange(0, ENTRIES)
    inside = entry < nnz
    mine = tl.load(mine_ptr + entry, inside, -1)
    use = (mine >= 0) & (mine < count)
    other = weights_at(weights_ptr, tl.load(other_ptr + entry, inside, -1), inside, count)
    part = share(tl.load(weights_ptr + mine, use, 0.0), other, HOW)
    grad = tl.where(other == other, part * tl.load(grad_values_ptr + entry, use, 0.0), other)
    if ADD:
        grad += tl.load(grad_weights_ptr + mine, use, 0.0)
    tl.store(grad_weights_ptr + mine, grad, use)


def combine_edges(combination: Combination) -> Tensor:
    forward, reverse, how = combination.forward, combination.reverse, combination.symmetrize
    weights, nnz = combination.weights.contiguous(), len(forward)
    values = weights.new_empty(nnz)
    launch(
        combine_kernel, cdiv(nnz, ENTRIES), weights, forward, reverse, weights, values, nnz, weights.numel(), HOW=how,
        ENTRIES=ENTRIES,
    )  # fmt: skip
    return values


def combine_edges_backward(combination: Combination, grad_values: Tensor) -> Tensor:
    forward, reverse, how = combination.forward, combination.reverse, combination.symmetrize
    weights, grad_values, nnz = combination.weights.contiguous(), grad_values.contiguous(), len(forward)
    grad_weights = torch.zeros_like(weights)
    for mine, other, add in ((forward, reverse, False), (reverse, forward, True)):
        if add and how == "none":
            continue
        launch(
            combine_backward_kernel, cdiv(nnz, ENTRIES), weights, mine, other, weights, grad_values, grad_weights, nnz,
            weights.numel(), ADD=add, HOW=how, ENTRIES=ENTRIES,
        )  # fmt: skip
    return grad_weights


# ------------------------------------------------------------------------------------- normalisations
@triton.jit
def entries_of(crow_ptr, row, n, capacity):
    """Where rows begin, and how many entries they have: within the arrays, whatever crow says."""
    begin = tl.maximum(tl.load(crow_ptr + row, row < n, 0), 0)
    return begin, tl.minimum(tl.load(crow_ptr + row + 1, row < n, 0), capacity) - begin


@triton.jit
def at_node(x_ptr, node, use, n):
    """x of these nodes, NaN where one is none: nothing waits for a GPU to raise."""
    return tl.load(x_ptr + node, use & (node >= 0) & (node < n), tl.where(use, float("nan"), 0.0).to(tl.float64))


@jit(run_time=("n", "capacity"))
def row_sums_kernel(crow_ptr, col_ptr, a_ptr, b_ptr, x_ptr, sums_ptr, n, capacity, WITH_B: tl.constexpr,
                    WITH_X: tl.constexpr, ROWS: tl.constexpr, EDGES: tl.constexpr):  # fmt: skip
    """sums_i = sum of a_e [b_e] [x_j] over the entries e = (i, j) of row i, in float64."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    begin, count = entries_of(crow_ptr, row, n, capacity)
    total = tl.zeros([ROWS], tl.float64)
    for first in range(0, tl.max(count), EDGES):
        edge = first + tl.arange(0, EDGES)
        use = edge[None, :] < count[:, None]
        entry = begin[:, None] + edge[None, :]
        term = tl.load(a_ptr + entry, use, 0.0).to(tl.float64)
        if WITH_B:
            term *= tl.load(b_ptr + entry, use, 0.0).to(tl.float64)
        if WITH_X:
            term *= at_node(x_ptr, tl.load(col_ptr + entry, use, 0), use, n)
        total += tl.sum(term, 1)
    tl.store(sums_ptr + row, total, row < n)


@jit(run_time=("n", "capacity"))
def scale_kernel(crow_ptr, col_ptr, values_ptr, s_ptr, r_ptr, dt_ptr, dd_ptr, out_ptr, n, capacity,
                 BACKWARD: tl.constexpr, ROWS: tl.constexpr, EDGES: tl.constexpr):  # fmt: skip
    """out_e = values_e s_i s_j; BACKWARD: + (dt_i r_j + dt_j r_i + dd_i + dd_j) / 2."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    begin, count = entries_of(crow_ptr, row, n, capacity)
    s = tl.load(s_ptr + row, row < n, 0.0)
    if BACKWARD:
        r, dt = tl.load(r_ptr + row, row < n, 0.0), tl.load(dt_ptr + row, row < n, 0.0)
        dd = tl.load(dd_ptr + row, row < n, 0.0)
    for first in range(0, tl.max(count), EDGES):
        edge = first + tl.arange(0, EDGES)
        use = edge[None, :] < count[:, None]
        entry = begin[:, None] + edge[None, :]
        other = tl.load(col_ptr + entry, use, 0)
        value = tl.load(values_ptr + entry, use, 0.0).to(tl.float64) * s[:, None] * at_node(s_ptr, other, use, n)
        if BACKWARD:
            value += 0.5 * (dt[:, None] * at_node(r_ptr, other, use, n) + at_node(dt_ptr, other, use, n) * r[:, None])
            value += 0.5 * (dd[:, None] + at_node(dd_ptr, other, use, n))
        tl.store(out_ptr + entry, value.to(out_ptr.dtype.element_ty), use)


def row_sums(crow: Tensor, col: Tensor, a: Tensor, b: Tensor | None = None, x: Tensor | None = None) -> Tensor:
    n = len(crow) - 1
    sums = a.new_empty(n, dtype=torch.float64)
    launch(
        row_sums_kernel, cdiv(n, ROWS), a, crow, col, a, a if b is None else b, sums if x is None else x, sums, n,
        len(a), WITH_B=b is not None, WITH_X=x is not None, ROWS=ROWS, EDGES=EDGES,
    )  # fmt: skip
    return sums


def scales(crow: Tensor, col: Tensor, values: Tensor, normalization: str) -> tuple[Tensor, Tensor]:
    """With d = A 1: r = d^-1/2 and s; "symmetric": s = r, "published": s = 1 / (A r). float64 [n]"""
    r = power(row_sums(crow, col, values), -0.5)
    return r, power(row_sums(crow, col, values, x=r), -1.0) if normalization == "published" else r


def scaled(crow: Tensor, col: Tensor, values: Tensor, s: Tensor, *of_backward: Tensor) -> Tensor:
    out, n = torch.zeros_like(values), len(crow) - 1
    launch(
        scale_kernel, cdiv(n, ROWS), values, crow, col, values, s, *(of_backward or (s, s, s)), out, n,
        len(values), BACKWARD=bool(of_backward), ROWS=ROWS, EDGES=EDGES,
    )  # fmt: skip
    return out


def normalize_edges(edges: Edges, normalization: str) -> Tensor:
    crow, col, values = edges.crow, edges.col, edges.values.contiguous()
    if normalization == "row":
        return values.clone()
    return scaled(crow, col, values, scales(crow, col, values, normalization)[1])


def normalize_edges_backward(edges: Edges, normalization: str, grad_normalized: Tensor) -> Tensor:
    """The formulas are derived in csrc/graph/edges.cpp."""
    crow, col, values, grad = edges.crow, edges.col, edges.values.contiguous(), grad_normalized.contiguous()
    if normalization == "row":
        return grad.clone()
    r, s = scales(crow, col, values, normalization)
    h = 2 * row_sums(crow, col, grad, values, s)
    dt = torch.zeros_like(h)
    dr = h
    if normalization == "published":
        dt = -h * s * s
        dr = row_sums(crow, col, values, x=dt)
    return scaled(crow, col, grad, s, r, dt, -0.5 * r**3 * dr)

"""The multilevel preconditioner of the harmonic system on a GPU, built by torch operations where its tensors lie.

A level is a graph with weights W >= 0 between its rows and an excess e >= 0 (weight towards what is known), and stands
for the matrix A with (A x)_i = e_i x_i + sum_j W_ij (x_i - x_j). The diagonal is never stored: where weights span many
orders of magnitude, subtracting from it loses the small ones that decide. Groups of strongly joined rows become the
rows of the next level, whose weights and excess are sums, again without a subtraction; the last level is eliminated.
csrc/propagate/hierarchy.h is the same for the C++ core.

Sorts are stable, sums go over segments of sorted entries, and what is scattered is the largest of integers: no result
depends on the order in which a GPU's threads run.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

DAMPING = 0.7  # of Jacobi: D^-1 A has eigenvalues up to 2, so the step has them within (-0.4, 1)
HELD = 0.25  # a row whose excess is this share of its diagonal needs no coarse level
STRONG = 0.5  # of both rows' strongest weights: a pair may form where its weight is at least this
JOIN = 0.1  # of a row's diagonal: it may join its strongest neighbour's group
STALL = 0.9  # a level that keeps more of its rows is the last
SMALL = 128  # rows of a level that is not coarsened any more
MOST_DENSE = 1024  # rows that are eliminated
PAIR_ROUNDS, JOIN_ROUNDS = 8, 2
WIDEST_SINGLE = 1e15  # diagonals of float32 levels differ by this factor at most


class Graph(NamedTuple):
    """Undirected, in float64; each edge stands once, with low < high."""

    low: Tensor  # int64 [edges]
    high: Tensor  # int64 [edges]
    weight: Tensor  # [edges]
    excess: Tensor  # [rows]

    @property
    def rows(self) -> int:
        return len(self.excess)


class Entries(NamedTuple):
    """CSR: both directions of the edges, sorted by row and column."""

    crow: Tensor  # int64 [rows + 1]
    row: Tensor  # int64 [nnz]
    col: Tensor  # int64 [nnz]
    weight: Tensor  # [nnz]


class Level(NamedTuple):
    """Rows stand in an order in which a group's rows follow each other, groups in the order of the next level's rows;
    rows that the excess holds firmly belong to no group and come last."""

    crow: Tensor  # int64 [rows + 1]
    col: Tensor  # int32 [nnz]
    weight: Tensor  # [nnz]
    excess: Tensor  # [rows]
    damped: Tensor  # [rows, 1]: damping / diagonal
    first: Tensor  # int64 [groups + 1]: where groups begin; [1]: there is no next level
    group: Tensor  # int64 [first[-1]], of the rows that have one


class Hierarchy(NamedTuple):
    levels: list[Level]  # finest first; weights are those of the graph times `scale`
    inverse: Tensor | None  # float64 [rows, rows], of the last level where it is small enough
    order: Tensor  # int64: row of the finest level -> row of the graph that it was built from
    scale: float  # a power of 2


def build_hierarchy(graph: Graph, tol: float) -> Hierarchy:
    """In float32 where tol and the weights allow it, else in float64."""
    graphs, groupings = [graph], []
    diagonals = []
    while True:
        entries = directed(graph)
        diagonals.append(graph.excess + row_sums(entries, entries.weight))
        if graph.rows <= SMALL:
            break
        group, groups = group_rows(graph, diagonals[-1])
        if not 0 < groups <= STALL * graph.rows:
            break
        graph = coarse_graph(graph, entries, group, groups)
        graphs.append(graph)
        groupings.append(group)

    inverse, pivots = eliminate(directed(graph), graph.excess) if graph.rows <= MOST_DENSE else (None, diagonals[-1])
    spread = torch.cat([*diagonals, pivots])
    least, most = map(float, spread.aminmax()) if len(spread) else (1.0, 1.0)
    dtype = torch.float32 if tol >= 1e-5 and most <= WIDEST_SINGLE * least else torch.float64
    middle = 0.5 * (math.log2(least) + math.log2(most)) if least > 0 and math.isfinite(most) else 0.0
    scale = math.ldexp(1.0, -round(middle))

    order = torch.arange(graph.rows, dtype=torch.int64, device=graph.excess.device)
    first, member = order.new_zeros(1), order[:0]
    levels: list[Level] = []
    position = order
    for depth in range(len(graphs) - 1, -1, -1):
        graph = graphs[depth]
        if depth < len(groupings):
            group = groupings[depth]
            groups = graphs[depth + 1].rows
            place = torch.where(group >= 0, position[group.clamp(min=0)], groups)
            place, order = place.sort(stable=True)
            position = torch.empty_like(order).scatter_(
                0, order, torch.arange(len(order), dtype=torch.int64, device=order.device)
            )
            first = torch.searchsorted(place, torch.arange(groups + 1, dtype=torch.int64, device=order.device))
            member = place[place < groups]
        levels.append(ordered_level(graph, position, order, diagonals[depth], first, member, scale, dtype))
    return Hierarchy(levels[::-1], None if inverse is None else inverse / scale, order, scale)


def ordered_level(
    graph: Graph,
    position: Tensor,
    order: Tensor,
    diagonal: Tensor,
    first: Tensor,
    group: Tensor,
    scale: float,
    dtype: torch.dtype,
) -> Level:
    low, high = position[graph.low], position[graph.high]
    entries = directed(graph._replace(low=low, high=high))
    diagonal = scale * diagonal[order]
    damped = torch.where(diagonal > 0, DAMPING / torch.where(diagonal > 0, diagonal, 1.0), 0.0)
    return Level(
        entries.crow, entries.col.int(), (scale * entries.weight).to(dtype), (scale * graph.excess[order]).to(dtype),
        damped[:, None].to(dtype), first, group,
    )  # fmt: skip


def directed(graph: Graph) -> Entries:
    row, col = torch.cat([graph.low, graph.high]), torch.cat([graph.high, graph.low])
    key, order = (row * graph.rows + col).sort(stable=True)
    row = key.div(max(graph.rows, 1), rounding_mode="floor")
    return Entries(starts(row, graph.rows), row, col[order], torch.cat([graph.weight, graph.weight])[order])


def starts(row: Tensor, rows: int) -> Tensor:
    """crow [rows + 1] of entries whose rows rise."""
    return torch.searchsorted(row, torch.arange(rows + 1, dtype=torch.int64, device=row.device))


def segment_sums(x: Tensor, first: Tensor) -> Tensor:
    """Of x [first[-1], ...] from first[s] to first[s + 1], in order. (Differences of a running sum would subtract.)"""
    if len(first) == 1 or not x.numel():
        return x.new_zeros((len(first) - 1, *x.shape[1:]))
    return torch.segment_reduce(x, "sum", offsets=first, axis=0, unsafe=True)


def row_sums(entries: Entries, x: Tensor) -> Tensor:
    return segment_sums(x, entries.crow)


def shuffled(low: Tensor, high: Tensor) -> Tensor:
    """Orders equal weights in no pattern, or pairs of equal weights would form one by one along a chain."""
    x = (low * 2654435761 + high * 40503) & 0x7FFFFFFF
    x = ((x ^ (x >> 16)) * 73244475) & 0x7FFFFFFF
    return ((x ^ (x >> 15)) * 73244475) & 0x7FFFFFFF


def group_rows(graph: Graph, diagonal: Tensor) -> tuple[Tensor, int]:
    """Heavy-edge matching: the group of each row [rows], -1 where the excess holds it, and how many groups there are.

    Edges are numbered from the lightest to the heaviest, so that a row's strongest neighbour is a largest number.
    Pairs: rows that are each other's strongest free neighbour, by strong edges only (a row whose strong neighbours are
    taken must not pair with what it hardly hangs on), in rounds; then what is left joins its strongest neighbour's
    group.
    """
    held = graph.excess >= HELD * diagonal
    open_ = ~(held[graph.low] | held[graph.high])
    low, high, weight = graph.low[open_], graph.high[open_], graph.weight[open_]
    order = shuffled(low, high).argsort(stable=True)
    order = order[weight[order].argsort(stable=True)]
    low, high, weight = low[order], high[order], weight[order]
    row = torch.arange(graph.rows, dtype=torch.int64, device=low.device)
    number = torch.arange(len(low), dtype=torch.int64, device=low.device)

    def strongest(low: Tensor, high: Tensor, number: Tensor) -> Tensor:
        none = torch.full_like(row, -1)
        return none.scatter_reduce_(0, low, number, "amax").scatter_reduce_(0, high, number, "amax")

    best = strongest(low, high, number)
    with_none = torch.cat([weight, weight.new_zeros(1)])  # best = -1 reads the last
    reach = with_none[best]
    strong = weight >= STRONG * torch.maximum(reach[low], reach[high])
    a, b, left = low[strong], high[strong], number[strong]
    leader = torch.full_like(row, -1)  # the row that a group is named after
    for _ in range(PAIR_ROUNDS):
        if not len(left):
            break
        wanted = strongest(a, b, left)
        pair = (wanted[a] == left) & (wanted[b] == left)
        leader[a[pair]] = leader[b[pair]] = a[pair]
        free = (leader[a] < 0) & (leader[b] < 0)
        a, b, left = a[free], b[free], left[free]
    for _ in range(JOIN_ROUNDS):
        loose = ((leader < 0) & (best >= 0) & (reach >= JOIN * diagonal)).nonzero().squeeze(1)
        edge = best[loose]
        leader[loose] = leader[low[edge] + high[edge] - loose]
    leader = torch.where(held, -1, torch.where(leader < 0, row, leader))
    leads = leader == row
    numbers = leads.cumsum(0) - 1
    return torch.where(held, -1, numbers[leader.clamp(min=0)]), int(leads.sum())


def coarse_graph(graph: Graph, entries: Entries, group: Tensor, groups: int) -> Graph:
    """Sums of weights between groups; weights to held rows count as excess: there the correction is 0."""
    excess = graph.excess + row_sums(entries, torch.where(group[entries.col] < 0, entries.weight, 0.0))
    of_row, order = group.sort(stable=True)
    order = order[of_row >= 0]
    excess = segment_sums(excess[order], starts(of_row[of_row >= 0], groups))

    a, b = group[graph.low], group[graph.high]
    between = (a >= 0) & (b >= 0) & (a != b)
    a, b = a[between], b[between]
    key, order = (torch.minimum(a, b) * groups + torch.maximum(a, b)).sort(stable=True)
    pair, count = torch.unique_consecutive(key, return_counts=True)
    first = torch.cat([count.new_zeros(1), count.cumsum(0)])
    weight = segment_sums(graph.weight[between][order], first)
    return Graph(pair.div(groups, rounding_mode="floor"), pair % groups, weight, excess)


def eliminate(entries: Entries, excess: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse [n, n] of a small level and its pivots [n], without a subtraction (Grassmann, Taksar, Heyman 1985).

    Every digit is right, however far weights differ. A row that hangs on nothing has pivot 0, and 0 in the inverse.
    """
    n = len(excess)
    w = excess.new_zeros((n, n))
    w[entries.row, entries.col] = entries.weight
    x = torch.eye(n, dtype=excess.dtype, device=excess.device)  # the right sides, then the solutions
    excess, inverse_pivots = excess.clone(), torch.zeros_like(excess)
    for k in range(n - 1, -1, -1):
        pivot = w[k, :k].sum() + excess[k]
        inverse_pivots[k] = torch.where(pivot > 0, 1 / torch.where(pivot > 0, pivot, 1.0), 0.0)
        share = w[:k, k] * inverse_pivots[k]
        w[:k, :k] += share[:, None] * w[k, :k]
        excess[:k] += share * excess[k]
        x[:k, k:] += share[:, None] * x[k, k:]
    for k in range(n):
        x[k] = (w[k, :k] @ x[:k] + x[k]) * inverse_pivots[k]
    return x, torch.where(inverse_pivots > 0, 1 / inverse_pivots, 0.0)

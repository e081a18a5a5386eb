"""Conjugate gradients for (I - W) x = b in Triton: all classes at once, one step and one beta a class.

Bytes of an iteration, v = rows x classes x sizeof: multiply reads p and the entries of the rows (12 bytes each), gathers a
row an entry that counts, and writes q; advance reads p, q, e, r and writes e, r; turn reads r and p and writes p: 10 v, the
entries, and the gathers, mostly from L2. Dot products are float64 sums a program, added by the last program that finishes.

Rounds of correction: a round takes the true residual r = b - (I - W) x, solves for the error from 0, and adds it. What is
reported is so the residual itself, not the recurrence, which drifts in float32.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import INTERPRETED, cdiv, jit, launch, power_of_two

EDGES = 16 if INTERPRETED else 4  # of a row at a time
PROGRAMS = 2 if INTERPRETED else 512  # share the blocks out; each adds one number a class to a sum
BATCH = 1 if INTERPRETED else 8  # iterations between two looks of the host
ROUNDS = 3


class System(NamedTuple):
    """W [n, n] in CSR form, 0 outside the rows that are solved for."""

    crow: Tensor
    col: Tensor
    weights: Tensor
    rows: Tensor  # int64: those rows


def column_tile(classes: int) -> int:
    """Classes of a program: a power of two."""
    return min(max(power_of_two(classes), 4), 128 if INTERPRETED else 64)


def row_tile(columns: int) -> int:
    """Rows of a block: 256 numbers and their gathers take 120 registers (512 took 239: half the threads to wait with)."""
    return 128 if INTERPRETED else max(4, min(256 // columns, 32))


@triton.jit
def add_up(dots, partials_ptr, ticket_ptr, classes, column, COLUMNS: tl.constexpr, PROGRAMS: tl.constexpr):
    """Stores the sums of this program. Returns those of all, and whether this is the last program and they are there."""
    program, tile = tl.program_id(0), tl.program_id(1)
    tl.store(partials_ptr + program.to(tl.int64) * classes + column, dots, column < classes)
    tl.debug_barrier()
    last = tl.atomic_add(ticket_ptr + tile, 1, sem="acq_rel") == tl.num_programs(0) - 1
    total = tl.zeros([COLUMNS], tl.float64)
    if last:
        for first in range(0, tl.num_programs(0), PROGRAMS):
            which = first + tl.arange(0, PROGRAMS)
            use = (which < tl.num_programs(0))[:, None] & (column < classes)[None, :]
            at = partials_ptr + which.to(tl.int64)[:, None] * classes + column[None, :]
            total += tl.sum(tl.load(at, use, 0.0, volatile=True), 0)
        tl.store(ticket_ptr + tile, 0)
    return total, last


@jit(run_time=("rows", "classes"))
def multiply_kernel(crow_ptr, col_ptr, weights_ptr, row_ptr, p_ptr, q_ptr, b_ptr, state_ptr, active_ptr, partials_ptr,
                    ticket_ptr, rows, classes, epsilon, RESIDUAL: tl.constexpr, ROWS: tl.constexpr,
                    EDGES: tl.constexpr, COLUMNS: tl.constexpr, PROGRAMS: tl.constexpr):  # fmt: skip
    """q = p - W p and p . q, then the step of each class. RESIDUAL: q = b - (p - W p) in float64, and q . q.

    state [4, classes]: |b|, |r|^2, step, beta. active: 1 for the classes that go on.
    """
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    wanted = column < classes
    if not RESIDUAL:
        wanted &= tl.load(active_ptr + column, wanted, 0) > 0
    dots = tl.zeros([COLUMNS], tl.float64)
    for block in range(tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS):
        at = block + tl.arange(0, ROWS)
        row = tl.load(row_ptr + at, at < rows, 0)
        begin = tl.load(crow_ptr + row, at < rows, 0)
        count = tl.load(crow_ptr + row + 1, at < rows, 0) - begin
        own = row[:, None] * classes + column[None, :]
        mask = (at < rows)[:, None] & wanted[None, :]
        p = tl.load(p_ptr + own, mask, 0.0)
        sums = p.to(tl.float64) * 0 if RESIDUAL else p * 0
        for first in range(0, tl.max(count), EDGES):
            edge = first + tl.arange(0, EDGES)
            use = edge[None, :] < count[:, None]
            weight = tl.load(weights_ptr + begin[:, None] + edge[None, :], use, 0.0)
            use &= weight != 0
            other = tl.load(col_ptr + begin[:, None] + edge[None, :], use, 0)
            near = other[:, :, None] * classes + column[None, None, :]
            x = tl.load(p_ptr + near, use[:, :, None] & wanted[None, None, :], 0.0)
            sums += tl.sum(weight.to(sums.dtype)[:, :, None] * x.to(sums.dtype), 1)
        if RESIDUAL:
            q = tl.load(b_ptr + own, mask, 0.0).to(tl.float64) - p.to(tl.float64) + sums
            dots += tl.sum(q * q, 0)
        else:
            q = p - sums
            dots += tl.sum(p.to(tl.float64) * q.to(tl.float64), 0)
        tl.store(q_ptr + own, q.to(q_ptr.dtype.element_ty), mask)
    total, last = add_up(dots, partials_ptr, ticket_ptr, classes, column, COLUMNS, PROGRAMS)
    if last:
        if RESIDUAL:
            tl.store(state_ptr + classes + column, total, column < classes)
        else:
            # p.Ap below the rounding of r.r: a direction that the system cannot tell from a null vector. The class stays
            # where it is, and its residual says so.
            squared = tl.load(state_ptr + classes + column, column < classes, 0.0)
            going = wanted & (total > epsilon * squared)
            step = tl.where(going, squared / tl.where(going, total, 1.0), 0.0)
            tl.store(state_ptr + 2 * classes + column, step, column < classes)
            tl.store(active_ptr + column, going.to(tl.int32), column < classes)


@jit(run_time=("rows", "classes"))
def advance_kernel(row_ptr, p_ptr, q_ptr, e_ptr, r_ptr, state_ptr, active_ptr, partials_ptr, ticket_ptr, rows, classes,
                   target, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PROGRAMS: tl.constexpr):  # fmt: skip
    """e += step p, r -= step q, then r . r, beta, and which classes go on."""
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    wanted = (column < classes) & (tl.load(active_ptr + column, column < classes, 0) > 0)
    step = tl.load(state_ptr + 2 * classes + column, wanted, 0.0)
    dots = tl.zeros([COLUMNS], tl.float64)
    for block in range(tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS):
        at = block + tl.arange(0, ROWS)
        row = tl.load(row_ptr + at, at < rows, 0)
        own = row[:, None] * classes + column[None, :]
        mask = (at < rows)[:, None] & wanted[None, :]
        p, q = tl.load(p_ptr + own, mask, 0.0), tl.load(q_ptr + own, mask, 0.0)
        e, r = tl.load(e_ptr + own, mask, 0.0), tl.load(r_ptr + own, mask, 0.0)
        length = step.to(p.dtype)[None, :]
        r -= length * q
        tl.store(e_ptr + own, e + length * p, mask)
        tl.store(r_ptr + own, r, mask)
        dots += tl.sum(r.to(tl.float64) * r.to(tl.float64), 0)
    total, last = add_up(dots, partials_ptr, ticket_ptr, classes, column, COLUMNS, PROGRAMS)
    if last:
        squared = tl.load(state_ptr + classes + column, wanted, 1.0)
        norm = tl.load(state_ptr + column, wanted, 0.0)
        tl.store(state_ptr + 3 * classes + column, total / tl.where(wanted, squared, 1.0), wanted)
        tl.store(state_ptr + classes + column, total, wanted)
        tl.store(active_ptr + column, (wanted & (tl.sqrt(total) > target * norm)).to(tl.int32), column < classes)


@jit(run_time=("rows", "classes"))
def turn_kernel(row_ptr, r_ptr, p_ptr, state_ptr, active_ptr, rows, classes, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """p = r + beta p"""
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    wanted = (column < classes) & (tl.load(active_ptr + column, column < classes, 0) > 0)
    at = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    own = tl.load(row_ptr + at, at < rows, 0)[:, None] * classes + column[None, :]
    mask = (at < rows)[:, None] & wanted[None, :]
    p = tl.load(p_ptr + own, mask, 0.0)
    beta = tl.load(state_ptr + 3 * classes + column, wanted, 0.0).to(p.dtype)
    tl.store(p_ptr + own, tl.load(r_ptr + own, mask, 0.0) + beta[None, :] * p, mask)


def solve(system: System, b: Tensor, start: Tensor | None, tol: float, max_iter: int) -> tuple[Tensor, Tensor, int]:
    """x [n, C] with (I - W) x = b in the rows of the system; |r| / |b| of each class, float64 [C]; iterations.

    The host waits for the device once a batch of iterations, to see whether any class goes on.
    """
    n, classes = b.shape
    x = torch.zeros_like(b) if start is None else start.clone()
    state = b.new_zeros((4, classes), dtype=torch.float64)
    rows = len(system.rows)
    if not rows:
        return x, state[0], 0
    state[0] = b.double().square().sum(0).sqrt()
    norm, squared = state[0], state[1]
    x.mul_(norm > 0)
    r, q = torch.empty_like(b), torch.empty_like(b)
    active = torch.empty(classes, dtype=torch.int32, device=b.device)
    columns = column_tile(classes)
    block = row_tile(columns)
    tiles, programs = cdiv(classes, columns), min(cdiv(rows, block), PROGRAMS)
    partials = state.new_empty((programs, classes))
    tickets = active.new_zeros(tiles)
    sums = (partials, tickets, rows, classes)
    options = {"ROWS": block, "COLUMNS": columns}
    folded = {"PROGRAMS": 64 if not INTERPRETED else power_of_two(PROGRAMS), **options}
    eps = torch.finfo(b.dtype).eps
    target = tol * max(0.5, 1 - 100 * eps / tol)  # so that the measured residual passes as well

    def multiply(p: Tensor, out: Tensor, residual: bool) -> None:
        launch(
            multiply_kernel, (programs, tiles), b, *system[:3], system.rows, p, out, b, state, active, *sums, eps,
            RESIDUAL=residual, EDGES=EDGES, **folded,
        )  # fmt: skip

    iterations = 0
    for attempt in range(ROUNDS + 1):
        multiply(x, r, True)
        residual = torch.where(norm > 0, squared.sqrt() / torch.where(norm > 0, norm, 1.0), 0.0)
        active.copy_(residual > tol)
        if attempt == ROUNDS or iterations >= max_iter or not bool(active.any()):
            break
        p, e = r.clone(), torch.zeros_like(b)
        done = torch.zeros((), dtype=torch.int64, device=b.device)
        while True:
            for _ in range(min(BATCH, max_iter - iterations - int(done) if INTERPRETED else BATCH)):
                done += active.any()
                multiply(p, q, False)
                launch(
                    advance_kernel, (programs, tiles), b, system.rows, p, q, e, r, state, active, *sums, target, **folded
                )  # fmt: skip
                launch(
                    turn_kernel, (cdiv(rows, block), tiles), b, system.rows, r, p, state, active, rows, classes, **options
                )  # fmt: skip
            going, so_far = torch.stack([active.any().long(), done]).tolist()
            if not going or iterations + so_far >= max_iter:
                break
        iterations += so_far
        x += e
    return x, residual, iterations

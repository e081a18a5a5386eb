"""The dense mini-batch path in Triton: what csrc/loss does, the same formulas in float64, up to 512 documents.

Products of matrices and the solves with triangles are torch's; the elimination is torch's products and, of its diagonal
blocks, a kernel. The system keeps the size of the batch: a document that is not solved for has no weights, an excess of 1
and 0 on the right, so that no size has to come back from the device.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from ..._elimination import ULPS, factor, solve
from ..._math import SMALLEST_EXPONENT, compute_dtype, shortest_with_gradient
from ..._product import in_float64
from ..protocol import Batch, BatchLoss
from ._launch import INTERPRETED, cdiv, jit, launch, power_of_two
from .target import target_loss

dense_rows = 512  # of dense_loss; above, the torch path is the faster one

BLOCK = 64  # rows of a diagonal block of the elimination: its 32 KB are the registers of one program
ROUNDING = ULPS * 2.0**-52
ROWS, COLUMNS = (128, 128) if INTERPRETED else (4, 64)  # of a tile of an n x n matrix


@triton.jit
def inverse_root(x):
    """x ** -1/2; 0 where x is 0."""
    return tl.where(x > 0, 1 / tl.sqrt(tl.where(x > 0, x, 1.0)), 0.0)


# ------------------------------------------------------------------------------------------- unit rows
@jit(run_time=("n",))
def unit_rows_kernel(x_ptr, unit_ptr, inverse_norm_ptr, n, d, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Rows of length 1 (a zero row stays zero), and 1 / length."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    largest = tl.zeros([ROWS], tl.float64)  # squares of float64 may overflow or vanish
    for first in range(0, d, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        mask = (row < n)[:, None] & (column < d)[None, :]
        x = tl.load(x_ptr + row[:, None] * d + column[None, :], mask, 0.0).to(tl.float64)
        largest = tl.maximum(largest, tl.max(tl.abs(x), 1))
    factor = 1 / tl.where(largest > 1e-307, largest, 1.0)  # a row so short is a zero row below
    squares = tl.zeros([ROWS], tl.float64)
    for first in range(0, d, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        mask = (row < n)[:, None] & (column < d)[None, :]
        x = tl.load(x_ptr + row[:, None] * d + column[None, :], mask, 0.0).to(tl.float64) * factor[:, None]
        squares += tl.sum(x * x, 1)
    norm = largest * tl.sqrt(squares)
    tiny = norm <= 1e-307
    scale = tl.where(tiny, 0.0, 1 / tl.where(tiny, 1.0, norm))  # a row with NaN stays NaN
    for first in range(0, d, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        mask = (row < n)[:, None] & (column < d)[None, :]
        at = row[:, None] * d + column[None, :]
        x = tl.load(x_ptr + at, mask, 0.0).to(tl.float64) * scale[:, None]
        tl.store(unit_ptr + at, x.to(unit_ptr.dtype.element_ty), mask)
    tl.store(inverse_norm_ptr + row, scale, row < n)


@jit(run_time=("n",))
def project_rows_kernel(unit_ptr, inverse_norm_ptr, grad_unit_ptr, grad_ptr, n, d, LARGEST: tl.constexpr,
                        ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """The gradient of unit rows as that of the rows: what is along the row goes."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    along = tl.zeros([ROWS], tl.float64)
    for first in range(0, d, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        mask = (row < n)[:, None] & (column < d)[None, :]
        at = row[:, None] * d + column[None, :]
        u, g = tl.load(unit_ptr + at, mask, 0.0), tl.load(grad_unit_ptr + at, mask, 0.0)
        along += tl.sum(u.to(tl.float64) * g.to(tl.float64), 1)
    scale = tl.load(inverse_norm_ptr + row, row < n, 0.0)
    scale = tl.where(scale > LARGEST, 0.0, scale)
    for first in range(0, d, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        mask = (row < n)[:, None] & (column < d)[None, :]
        at = row[:, None] * d + column[None, :]
        u = tl.load(unit_ptr + at, mask, 0.0).to(tl.float64)
        g = tl.load(grad_unit_ptr + at, mask, 0.0).to(tl.float64)
        tl.store(grad_ptr + at, ((g - along[:, None] * u) * scale[:, None]).to(grad_ptr.dtype.element_ty), mask)


# ------------------------------------------------------------------------------------------- the graph
@jit(run_time=("n",))
def weights_kernel(cosine_ptr, inverse_sigma_ptr, weight_ptr, degree_ptr, n, SMALLEST: tl.constexpr,
                   ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """W_ij = exp((c_ij - 1) / (sigma_i sigma_j)), 0 on the diagonal and from the exponent SMALLEST on; d = W 1."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    own = tl.load(inverse_sigma_ptr + row, row < n, 0.0)
    degree = tl.zeros([ROWS], tl.float64)
    for first in range(0, n, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        mask = (row < n)[:, None] & (column < n)[None, :]
        at = row[:, None] * n + column[None, :]
        distance = tl.load(cosine_ptr + at, mask, 0.0).to(tl.float64) - 1
        other = tl.load(inverse_sigma_ptr + column, column < n, 0.0)
        exponent = tl.where(distance > 0, 0.0, distance) * (own[:, None] * other[None, :])
        none = (row[:, None] == column[None, :]) | (exponent <= SMALLEST) | ~mask
        w = tl.where(none, 0.0, tl.exp(exponent))
        tl.store(weight_ptr + at, w, mask)
        degree += tl.sum(w, 1)
    tl.store(degree_ptr + row, degree, row < n)


@jit(run_time=("n",))
def reach_kernel(weight_ptr, reached_ptr, n, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Marks, in one program, what a path of positive weights joins to a marked document."""
    changed = 1
    while changed > 0:
        changed = 0
        for block in range(0, n, ROWS):
            row = (block + tl.arange(0, ROWS)).to(tl.int64)
            before = tl.load(reached_ptr + row, row < n, 0)
            grown = before
            for first in range(0, n, COLUMNS):
                column = first + tl.arange(0, COLUMNS)
                mask = (row < n)[:, None] & (column < n)[None, :]
                w = tl.load(weight_ptr + row[:, None] * n + column[None, :], mask, 0.0)
                near = tl.load(reached_ptr + column, column < n, 0)
                grown = tl.maximum(grown, tl.max(tl.where(w > 0, near[None, :], 0), 1))
            tl.store(reached_ptr + row, grown, row < n)
            changed += tl.sum(grown - before)
            tl.debug_barrier()


@jit(run_time=("n", "stride"))
def eliminate_kernel(weight_ptr, excess_ptr, factor_ptr, n, stride, SIZE: tl.constexpr):
    """_elimination.factor of one block, W symmetric with this row stride: a pivot is the sum of what its row has left."""
    i = tl.arange(0, SIZE)
    row_id, column_id = i[:, None], i[None, :]
    inside = (row_id < n) & (column_id < n)
    w = tl.load(weight_ptr + row_id * stride + column_id, inside, 0.0)
    e = tl.load(excess_ptr + i, i < n, 0.0)
    for k in range(0, n):
        row = tl.where(i > k, tl.sum(tl.where(row_id == k, w, 0.0), 0), 0.0)
        column = tl.where(i > k, tl.sum(tl.where(column_id == k, w, 0.0), 1), 0.0)
        own = tl.sum(tl.where(i == k, e, 0.0), 0)
        root = tl.sqrt(tl.sum(row, 0) + own)
        row, column = row / root, column / root
        tl.store(factor_ptr + (i.to(tl.int64) * 0 + k) * n + i, tl.where(i == k, root, -row), i < n)
        w += column[:, None] * row[None, :]
        e += column * (own / root)


def leaf(weights: torch.Tensor, excess: torch.Tensor) -> torch.Tensor:
    n = len(excess)
    found = weights.new_empty((n, n))
    launch(
        eliminate_kernel, 1, found, weights, excess.contiguous(), found, n, weights.stride(0),
        SIZE=max(16, power_of_two(n)), num_warps=8,
    )  # fmt: skip
    return found


# ------------------------------------------------------------------------------------------- F and the loss
@jit(run_time=("n", "classes"))
def score_kernel(solution_ptr, root_ptr, solved_ptr, label_ptr, target_ptr, scored_ptr, class_weight_ptr,
                 f_ptr, result_ptr, loss_ptr, lack_ptr, right_ptr, n, classes, SMOOTHING: tl.constexpr,
                 SPREADING: tl.constexpr, TARGET: tl.constexpr, WEIGHTED: tl.constexpr, ALL: tl.constexpr,
                 ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """F, its rows with sum 1, each row's part of the loss, what the row lacked, and the right-hand side of the adjoint."""
    every = tl.arange(0, ALL)
    targets = tl.load(target_ptr + every, every < n, -1)
    counts = (tl.load(scored_ptr + every, every < n, 0) != 0) & (targets >= 0) & (targets < classes)
    weight = counts.to(tl.float64)
    if WEIGHTED:
        weight *= tl.load(class_weight_ptr + targets, counts, 0.0)
    total = tl.sum(weight, 0)

    row, column = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    there = row < n
    mask = there[:, None] & (column < classes)[None, :]
    at = row[:, None] * classes + column[None, :]
    # A label or a target that is neither -1 nor a class indexes nothing: its row and the loss become NaN.
    label, target = tl.load(label_ptr + row, there, -1), tl.load(target_ptr + row, there, -1)
    scored = tl.load(scored_ptr + row, there, 0) != 0
    wrong = (label < -1) | (label >= classes) | (target < -1) | (target >= classes) | (scored & (target < 0))
    scored, label = scored & ~wrong, tl.where(wrong, -1, label)
    solved = tl.load(solved_ptr + row, there, 0) != 0
    root = tl.load(root_ptr + row, there, 0.0)
    solution = tl.load(solution_ptr + at, mask, 0.0)
    prior = 1 / classes.to(tl.float64)
    f = root[:, None] * solution
    if SPREADING:
        f = tl.where(solved[:, None], f, 0.0)
        sum = tl.sum(f, 1)
        lack = tl.zeros([ROWS], tl.float64)
        probability = tl.where(sum[:, None] > 0, f / tl.where(sum > 0, sum, 1.0)[:, None], prior)
    else:
        lack = tl.where(solved, 1 - tl.sum(f, 1), 0.0)
        known = (label[:, None] == column[None, :]).to(tl.float64)
        f = tl.where(solved[:, None], f, tl.where((label >= 0)[:, None], known, prior))
        probability = f
        sum = tl.full([ROWS], 1.0, tl.float64)
    tl.store(f_ptr + at, f, mask)
    probability = tl.where(wrong[:, None], float("nan"), probability)
    tl.store(result_ptr + at, probability.to(result_ptr.dtype.element_ty), mask)
    tl.store(lack_ptr + row, tl.abs(lack), there)

    part = scored.to(tl.float64)
    if WEIGHTED:
        part *= tl.load(class_weight_ptr + target, scored, 0.0)
    part = tl.where(total > 0, part / tl.where(total > 0, total, 1.0), 0.0)
    is_target = target[:, None] == column[None, :]
    of_target = tl.sum(tl.where(is_target & mask, probability, 0.0), 1)
    loss, grad = target_loss(probability, of_target, is_target, part, mask, there, prior, TARGET, SMOOTHING)
    tl.store(loss_ptr + row, tl.where(wrong, float("nan"), tl.where(part > 0, part * loss, 0.0)), there)
    if SPREADING:
        along = tl.sum(tl.where(mask, grad * probability, 0.0), 1)
        grad = tl.where((sum > 0)[:, None], (grad - along[:, None]) / tl.where(sum > 0, sum, 1.0)[:, None], 0.0)
    grad *= root[:, None]
    grad = tl.where(solved[:, None], grad, 0.0)
    tl.store(right_ptr + at, tl.where(wrong[:, None], float("nan"), grad), mask)


# ------------------------------------------------------------------------------------------- the gradient
@triton.jit
def edge_gradient(f_ptr, lam_ptr, row, column, n, classes, SPREADING: tl.constexpr, ROUNDING: tl.constexpr,
                  ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """dL/dM_ij + dL/dM_ji; lam is 0 in rows that were not solved for. Harmonic, a difference of two F within their
    ROUNDING counts as 0: lam may be 1e70."""
    total = tl.zeros([ROWS, COLUMNS], tl.float64)
    own, other = row * classes, column.to(tl.int64) * classes
    for c in range(0, classes):
        f_i, lam_i = tl.load(f_ptr + own + c, row < n, 0.0), tl.load(lam_ptr + own + c, row < n, 0.0)
        f_j, lam_j = tl.load(f_ptr + other + c, column < n, 0.0), tl.load(lam_ptr + other + c, column < n, 0.0)
        if SPREADING:
            total += lam_i[:, None] * f_j[None, :] + lam_j[None, :] * f_i[:, None]
        else:
            difference = f_j[None, :] - f_i[:, None]
            counts = tl.abs(difference) > ROUNDING * tl.maximum(f_i[:, None], f_j[None, :])
            total += tl.where(counts, (lam_i[:, None] - lam_j[None, :]) * difference, 0.0)
    return total


@jit(run_time=("n", "classes"))
def to_scale_kernel(weight_ptr, f_ptr, lam_ptr, degree_ptr, scale_ptr, to_degree_ptr, to_inner_ptr, n, classes,
                    SPREADING: tl.constexpr, PUBLISHED: tl.constexpr, ROUNDING: tl.constexpr, ROWS: tl.constexpr,
                    COLUMNS: tl.constexpr):  # fmt: skip
    """The gradient of s, as that of d (symmetric) or of W d^-1/2 (published)."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    total = tl.zeros([ROWS], tl.float64)
    for first in range(0, n, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        mask = (row < n)[:, None] & (column < n)[None, :]
        w = tl.load(weight_ptr + row[:, None] * n + column[None, :], mask, 0.0)
        s = tl.load(scale_ptr + column, column < n, 0.0)
        edge = edge_gradient(f_ptr, lam_ptr, row, column, n, classes, SPREADING, ROUNDING, ROWS, COLUMNS)
        total += tl.sum(tl.where(w > 0, edge * w * s[None, :], 0.0), 1)
    if PUBLISHED:
        s = tl.load(scale_ptr + row, row < n, 0.0)
        tl.store(to_inner_ptr + row, -total * s * s, row < n)
    else:
        degree = tl.load(degree_ptr + row, row < n, 0.0)
        root = inverse_root(degree)  # d^-3/2 by itself may overflow
        tl.store(to_degree_ptr + row, -0.5 * total * root * root * root, row < n)


@jit(run_time=("n", "classes"))
def edges_kernel(cosine_ptr, inverse_sigma_ptr, weight_ptr, f_ptr, lam_ptr, scale_ptr, inner_ptr, to_degree_ptr,
                 to_inner_ptr, grad_cosine_ptr, grad_sigma_ptr, n, classes, SPREADING: tl.constexpr,
                 NORMALIZED: tl.constexpr, ROUNDING: tl.constexpr, ROWS: tl.constexpr,
                 COLUMNS: tl.constexpr):  # fmt: skip
    """The gradients of the cosines and of 1 / sigma."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    there = row < n
    own, s_i = tl.load(inverse_sigma_ptr + row, there, 0.0), tl.load(scale_ptr + row, there, 0.0)
    to_sigma = tl.zeros([ROWS], tl.float64)
    for first in range(0, n, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        beside = column < n
        mask = there[:, None] & beside[None, :]
        at = row[:, None] * n + column[None, :]
        w = tl.load(weight_ptr + at, mask, 0.0)
        distance = tl.load(cosine_ptr + at, mask, 1.0).to(tl.float64) - 1
        other, s_j = tl.load(inverse_sigma_ptr + column, beside, 0.0), tl.load(scale_ptr + column, beside, 0.0)
        edge = edge_gradient(f_ptr, lam_ptr, row, column, n, classes, SPREADING, ROUNDING, ROWS, COLUMNS)
        edge *= s_i[:, None] * s_j[None, :]
        if NORMALIZED:
            inner_i, inner_j = tl.load(inner_ptr + row, there, 0.0), tl.load(inner_ptr + column, beside, 0.0)
            degree_i, degree_j = tl.load(to_degree_ptr + row, there, 0.0), tl.load(to_degree_ptr + column, beside, 0.0)
            to_i, to_j = tl.load(to_inner_ptr + row, there, 0.0), tl.load(to_inner_ptr + column, beside, 0.0)
            edge += degree_i[:, None] + degree_j[None, :] + to_i[:, None] * inner_j[None, :]
            edge += to_j[None, :] * inner_i[:, None]
        edge = tl.where(w > 0, edge * w, 0.0)
        grad = tl.where(distance <= 0, edge * (own[:, None] * other[None, :]), 0.0)
        tl.store(grad_cosine_ptr + at, grad.to(grad_cosine_ptr.dtype.element_ty), mask)
        to_sigma += tl.sum(edge * tl.where(distance > 0, 0.0, distance) * other[None, :], 1)
    tl.store(grad_sigma_ptr + row, to_sigma, there)


def dense_loss(batch: Batch, want_gradient: bool) -> BatchLoss:
    x, alpha, num_classes, class_weight = batch.embeddings, batch.alpha, batch.num_classes, batch.class_weight
    scored, smoothing = batch.scored, batch.smoothing
    (n, d), dtype = x.shape, compute_dtype(x)
    x, inverse_sigma, labels, targets = (
        t.contiguous() for t in (x.to(dtype), batch.inverse_sigma, batch.labels, batch.targets)
    )
    spreading, published = alpha is not None, batch.normalization == "published"
    normalized = batch.normalization != "row"
    double: dict[str, Any] = {"dtype": torch.float64, "device": x.device}

    def by_rows(kernel: object, *args: object, **meta: object) -> None:
        launch(kernel, cdiv(n, ROWS), x, *args, ROWS=ROWS, COLUMNS=COLUMNS, **meta)

    wide = {"ROWS": ROWS, "COLUMNS": min(power_of_two(d), 1024 if INTERPRETED else 256)}
    unit, inverse_norms = torch.empty_like(x), torch.empty(n, **double)
    launch(unit_rows_kernel, cdiv(n, ROWS), x, x, unit, inverse_norms, n, d, **wide)
    cosines = in_float64(unit, unit.T)
    weights, degree = torch.empty((n, n), **double), torch.empty(n, **double)
    by_rows(weights_kernel, cosines, inverse_sigma, weights, degree, n, SMALLEST=SMALLEST_EXPONENT)
    inner = torch.where(degree > 0, degree, torch.inf).rsqrt()
    scale = torch.ones_like(degree) if not normalized else inner
    if published:
        scale = (weights @ inner).reciprocal()
        scale = scale.masked_fill(scale == torch.inf, 0.0)

    # The documents that are solved for, their system and its right-hand side.
    labeled = (labels >= 0) & (labels < num_classes)
    reached = labeled.int()
    launch(reach_kernel, 1, x, weights, reached, n, ROWS=max(ROWS, 16), COLUMNS=COLUMNS)
    reachable = reached > 0
    solved = reachable if spreading else reachable & ~labeled
    places = torch.where(labeled, labels + 1, 0)[:, None]
    boundary = torch.zeros((n, num_classes + 1), **double).scatter_(1, places, 1.0)[:, 1:]
    if alpha is not None:  # (D - alpha W) G = (1 - alpha) D^1/2 Y, F = D^1/2 G
        root = torch.where(degree > 0, degree, 1 / (1 - alpha)).sqrt()  # a labelled document by itself: F = Y
        mine, excess = alpha**0.5 * solved.double(), (1 - alpha) * root * root
        right = (1 - alpha) * root[:, None] * boundary
    else:
        root, mine = torch.ones_like(degree), scale * solved.double()
        right = weights @ (scale[:, None] * boundary) * mine[:, None]
        excess = right.sum(dim=1)
    factored = factor(weights * mine[:, None] * mine, torch.where(solved, excess, 1.0), leaf, BLOCK)
    solution = solve(factored, right * solved[:, None]).contiguous()

    f, result = torch.empty_like(solution), torch.empty((n, num_classes), dtype=dtype, device=x.device)
    parts, lacks, right = torch.empty_like(degree), torch.empty_like(degree), torch.empty_like(solution)
    classes = power_of_two(num_classes)
    rows = max(1, min(power_of_two(n), (1 << 16 if INTERPRETED else 1024) // classes))
    marks = solved.int()
    launch(
        score_kernel, cdiv(n, rows), x, solution, root, marks, labels, targets, scored.int(),
        degree if class_weight is None else class_weight, f, result, parts, lacks, right, n, num_classes,
        SMOOTHING=smoothing, SPREADING=spreading, TARGET=batch.target, WEIGHTED=class_weight is not None,
        ALL=power_of_two(n), ROWS=rows, COLUMNS=classes,
    )  # fmt: skip
    loss, lack = parts.sum().to(dtype), lacks.amax()
    if not want_gradient:
        return BatchLoss(loss, result, reachable, lack, x.new_empty(0), degree.new_empty(0))

    lam = solve(factored, right)
    lam = (lam if alpha is None else alpha * root[:, None] * lam).contiguous()
    to_degree, to_inner = torch.zeros_like(degree), torch.zeros_like(degree)
    if normalized:
        by_rows(
            to_scale_kernel, weights, f, lam, degree, scale, to_degree, to_inner, n, num_classes,
            SPREADING=spreading, PUBLISHED=published, ROUNDING=ROUNDING,
        )  # fmt: skip
    if published:
        to_degree = -0.5 * (weights @ to_inner) * inner * inner * inner
    grad_cosines, grad_sigma = torch.empty_like(cosines), torch.empty_like(degree)
    by_rows(
        edges_kernel, cosines, inverse_sigma, weights, f, lam, scale, inner, to_degree, to_inner, grad_cosines,
        grad_sigma, n, num_classes, SPREADING=spreading, NORMALIZED=normalized, ROUNDING=ROUNDING,
    )  # fmt: skip
    grad_unit, grad = in_float64(grad_cosines, unit), torch.empty_like(x)
    launch(
        project_rows_kernel, cdiv(n, ROWS), x, unit, inverse_norms, grad_unit, grad, n, d,
        LARGEST=1 / shortest_with_gradient(dtype), **wide,
    )  # fmt: skip
    return BatchLoss(loss, result, reachable, lack, grad, grad_sigma)

"""The dense loss in 200-digit arithmetic: the truth where weights span more powers of ten than float64 has digits."""

from __future__ import annotations

from typing import NamedTuple

import mpmath
import torch
from mpmath import mp, mpf
from torch import Tensor

from gloss_kernels.reference import SMOOTHING

Matrix = list[list[mpf]]


class Truth(NamedTuple):
    probabilities: Tensor  # [n, C]
    loss: float
    grad: Tensor  # [n, d], of the embeddings
    grad_sigma: float


def dot(a: list[mpf], b: list[mpf]) -> mpf:
    return mpmath.fsum(x * y for x, y in zip(a, b, strict=True))


def solve(system: Matrix, right: Matrix) -> Matrix:
    """system^-1 right, [n, C]; Gauss-Jordan, which 200 digits need no pivoting for."""
    rows = [[*a, *b] for a, b in zip(system, right, strict=True)]
    for k, pivot in enumerate(rows):
        pivot[:] = [x / pivot[k] for x in pivot]
        for row in rows:
            if row is not pivot and row[k]:
                factor = row[k]
                row[:] = [x - factor * y for x, y in zip(row, pivot, strict=True)]
    return [row[len(system) :] for row in rows]


def g_loss(
    x: Tensor,
    labels: Tensor,
    classes: int,
    hidden: Tensor,
    sigma: float,
    normalization: str = "row",
    alpha: float | None = None,
) -> Truth:
    """GLoss(classes, sigma=sigma, ...), target "nll", every document with a label. Each must reach a visible label."""
    with mp.workdps(200):
        return _g_loss(x.tolist(), labels.tolist(), classes, hidden.tolist(), mpf(sigma), normalization, alpha)


def _g_loss(
    x: list[list[float]],
    labels: list[int],
    classes: int,
    hidden: list[bool],
    sigma: mpf,
    normalization: str,
    alpha: float | None,
) -> Truth:
    n, every = len(x), range(len(x))
    norms = [mpmath.sqrt(dot([mpf(v) for v in row], [mpf(v) for v in row])) for row in x]
    unit = [[mpf(v) / norm for v in row] for row, norm in zip(x, norms, strict=True)]
    distance = [[dot(unit[i], unit[j]) - 1 for j in every] for i in every]
    w = [[mpmath.exp(distance[i][j] / sigma**2) if i != j else mpf(0) for j in every] for i in every]
    y = [[mpf(int(labels[i] == c and not hidden[i])) for c in range(classes)] for i in every]

    # M_ij = w_ij s_i s_j
    d = [mpmath.fsum(row) for row in w]
    q = [1 / mpmath.sqrt(v) for v in d]
    s = [mpf(1)] * n
    if alpha is not None:
        s = q
    elif normalization == "published":
        s = [1 / dot(row, q) for row in w]
    m = [[w[i][j] * s[i] * s[j] for j in every] for i in every]
    if alpha is None:
        rows = [i for i in every if hidden[i]]
        system = [[(mpmath.fsum(m[i]) if i == j else mpf(0)) - m[i][j] for j in rows] for i in rows]
        right = [[dot(m[i], [y[j][c] for j in every]) for c in range(classes)] for i in rows]
    else:
        rows = list(every)
        system = [[mpf(int(i == j)) - alpha * m[i][j] for j in rows] for i in rows]
        right = [[(1 - mpf(alpha)) * v for v in row] for row in y]
    f = [list(row) for row in y]
    for i, row in zip(rows, solve(system, right), strict=True):
        f[i] = row
    total = [mpmath.fsum(row) for row in f]
    p = [[v / t for v in row] for row, t in zip(f, total, strict=True)]

    scored = sum(hidden)
    smoothing = mpf(SMOOTHING)
    inside = [(1 - smoothing) * p[i][labels[i]] + smoothing / classes for i in every]
    loss = -mpmath.fsum(mpmath.log(inside[i]) for i in every if hidden[i]) / scored
    to_f = [[mpf(0)] * classes for _ in every]
    for i in every:
        if hidden[i]:
            to_f[i][labels[i]] = -(1 - smoothing) / inside[i] / scored
            if alpha is not None:  # through the scaling of rows to sum 1
                along = dot(to_f[i], p[i])
                to_f[i] = [(g - along) / total[i] for g in to_f[i]]
    lam = [[mpf(0)] * classes for _ in every]
    for i, row in zip(rows, solve(system, [to_f[i] for i in rows]), strict=True):
        lam[i] = row

    # of log M_ij, both entries of an edge together
    def of_edge(i: int, j: int) -> mpf:
        if alpha is not None:
            return m[i][j] * alpha * (dot(lam[i], f[j]) + dot(lam[j], f[i]))
        return -m[i][j] * mpmath.fsum((lam[i][c] - lam[j][c]) * (f[i][c] - f[j][c]) for c in range(classes))

    to_log = [[of_edge(i, j) if i != j else mpf(0) for j in every] for i in every]
    to_s = [mpmath.fsum(row) for row in to_log]  # of log s_i
    if alpha is not None:  # log s = -log d / 2
        to_log = [[to_log[i][j] - w[i][j] * (to_s[i] / d[i] + to_s[j] / d[j]) / 2 for j in every] for i in every]
    elif normalization == "published":  # log s_i = -log (W q)_i, log q = -log d / 2
        to_q = [-mpmath.fsum(to_s[i] * s[i] * w[i][j] * q[j] for i in every) for j in every]
        to_log = [
            [
                to_log[i][j]
                - w[i][j] * (to_s[i] * s[i] * q[j] + to_s[j] * s[j] * q[i] + (to_q[i] / d[i] + to_q[j] / d[j]) / 2)
                for j in every
            ]
            for i in every
        ]  # fmt: skip
    to_sigma = -mpmath.fsum(to_log[i][j] * distance[i][j] for i in every for j in range(i)) * 2 / sigma**3
    grad = []
    for i in every:
        to_unit = [dot([v / sigma**2 for v in to_log[i]], [unit[j][k] for j in every]) for k in range(len(x[0]))]
        along = dot(to_unit, unit[i])
        grad.append([float((g - along * u) / norms[i]) for g, u in zip(to_unit, unit[i], strict=True)])
    result = torch.tensor([[float(v) for v in row] for row in p], dtype=torch.float64)
    return Truth(result, float(loss), torch.tensor(grad, dtype=torch.float64), float(to_sigma))

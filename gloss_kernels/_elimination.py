"""Systems X = diag(W 1 + e) - W, W >= 0 symmetric and e >= 0, solved without a single subtraction.

Weights of a graph span tens of powers of ten, and groups of documents hang on the labels by the smallest of them. A
pivot taken as the diagonal less what was eliminated loses these. It is, instead, the sum of what is left in its column,
e among it (Grassmann, Taksar, Heyman 1985). What remains is Cholesky, X = R^T R with R upper triangular, its entries
right of the diagonal <= 0:

    s_k = sum_j>k W_kj + e_k,   R_kk = s_k^1/2,   R_kj = -W_kj / s_k^1/2,   W_ij += R_ki R_kj,   e_i += W_ik e_k / s_k

and each entry of R, and of a solution with a right side >= 0, has a relative error of a few n eps, however small it is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from . import _library

BLOCK = 128  # rows of a step of factor(): the rest of its work is products
ULPS = 4  # a difference of solutions below so many is their rounding, and counts as none

Leaf = Callable[[Tensor, Tensor], Tensor]


def factor(weights: Tensor, excess: Tensor, leaf: Leaf | None = None, block: int | None = None) -> Tensor:
    """R [n, n] of W [n, n], of which the entries right of the diagonal are read, and e [n]; float64.

    leaf(W, e) is the same for at most `block` rows, W with row stride (None: the fastest that there is, and BLOCK).
    """
    leaf = leaf or _fastest_leaf(weights)
    n, block = weights.shape[0], block or BLOCK
    if n <= block:
        return leaf(weights, excess)
    rest = torch.cat([weights, excess[:, None]], dim=1)  # the ground is one more column, never eliminated
    for first in range(0, n, block):
        end = min(first + block, n)
        rows = rest[first:end, first:]
        if first:
            above = rest[:first, first:]
            rows.addmm_(above[:, : end - first].mT, above)
        # Of all that lies outside the block its rows need to know the sum only.
        lower = leaf(rows[:, : end - first], rows[:, end - first :].sum(dim=1))
        rows[:, end - first :] = torch.linalg.solve_triangular(lower.mT, -rows[:, end - first :], upper=False)
        rows[:, : end - first] = lower
    return rest[:, :n].triu_()


def _by_core(x: Tensor) -> bool:
    return _library.core is not None and x.device.type == "cpu"


def _fastest_leaf(x: Tensor) -> Leaf:
    if _by_core(x):
        return functools.partial(leaf_in_core, _library.core.cpu.eliminate)
    if x.device.type == "cuda" and _library.cuda_architectures and torch.cuda.get_device_capability(x.device) >= (8, 0):
        eliminate = functools.partial(
            _library.core.cuda.eliminate, device=x.get_device(), stream=torch.cuda.current_stream(x.device).cuda_stream
        )
        return functools.partial(leaf_in_core, eliminate)
    return leaf_in_torch


def leaf_in_core(eliminate: Callable[..., None], weights: Tensor, excess: Tensor) -> Tensor:
    n = weights.shape[0]
    rest = weights.new_zeros(n, n // 16 * 16 + 16)  # rows of whole vectors
    rest[:, :n], rest[:, n] = weights, excess
    if n:
        eliminate(n=n, stride=rest.shape[1], a=rest.data_ptr())
    factored = rest[:, :n].triu().neg_()
    factored.diagonal().neg_()
    return factored


def leaf_in_torch(weights: Tensor, excess: Tensor) -> Tensor:
    rest = torch.cat([weights, excess[:, None]], dim=1)
    n = weights.shape[0]
    for k in range(n):
        root = rest[k, k + 1 :].sum().sqrt()
        row = rest[k, k + 1 :] / -root
        rest[k, k], rest[k, k + 1 :] = root, row
        rest[k + 1 :, k + 1 :].addcmul_(row[: n - k - 1, None], row[None, :])
    return rest[:, :n].triu()


def solve(factored: Tensor, right: Tensor) -> Tensor:
    """X^-1 B for B [n, C], with an error of a few n eps of X^-1 |B|: R^-1 has no negative entry, and rounding a sum is
    a factor of each term."""
    below = torch.linalg.solve_triangular(factored.mT, right, upper=False)
    found: Tensor = torch.linalg.solve_triangular(factored, below, upper=True)
    return found


def differences(x: Tensor, rows: slice = slice(None)) -> Tensor:
    """x_ic - x_jc [rows, n, C], and 0 where it is within the rounding of x.

    Within a tight group it is that rounding, and what it is multiplied by, the adjoint, may be 1e70.
    """
    difference = x[rows, None] - x
    size = x.detach().abs()
    within = difference.detach().abs() <= ULPS * torch.finfo(x.dtype).eps * torch.maximum(size[rows, None], size)
    return difference.masked_fill(within, 0.0)


def edge_gradient(adjoint: Tensor, x: Tensor, in_core: bool = True) -> Tensor:
    """-(lam_i - lam_j) . (x_i - x_j) [n, n]: dL/dW, both entries of an edge together."""
    n, classes = x.shape
    if in_core and _by_core(x):
        gradient = x.new_empty(n, n)
        stride = -(-n // 64) * 64 + 16  # not a power of two: the columns of a row would share a set of the cache
        columns, adjoint_columns = (nn.functional.pad(t.T, (0, stride - n)).contiguous() for t in (x, adjoint))
        _library.core.cpu.edge_gradients(
            n=n, classes=classes, stride=stride, x=columns.data_ptr(), adjoint=adjoint_columns.data_ptr(),
            gradient=gradient.data_ptr(), threads=torch.get_num_threads(),
        )  # fmt: skip
        return gradient
    some = max(1, (1 << 22) // max(1, n * classes))  # rows at a time: 32 MB
    parts = [
        -((adjoint[i : i + some, None] - adjoint) * differences(x, slice(i, i + some))).sum(dim=2)
        for i in range(0, n, some)
    ]
    return torch.cat(parts) if parts else x.new_zeros(0, 0)


class Eliminated(torch.autograd.Function):
    """X^-1 B of W symmetric, e and B, with derivatives of every order and mode.

    With lam = X^-1 dL/dx: dL/dB = lam, dL/de_i = -lam_i . x_i, dL/dW_ij = -(lam_i - lam_j) . (x_i - x_j) / 2. Plain
    autograd through the elimination would form lam_i . x_j - lam_i . x_i, a difference of products of size lam.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(weights: Tensor, excess: Tensor, right: Tensor) -> Tensor:
        return solve(factor(weights, excess, leaf_in_torch), right)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2], output)
        ctx.save_for_forward(*inputs[:2], output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weights, excess, x = ctx.saved_tensors
        adjoint = eliminated(weights, excess, grad)
        return edge_gradient(adjoint, x, False) / 2, -(adjoint * x).sum(dim=1), adjoint

    @staticmethod
    def jvp(ctx: Any, to_weights: Tensor | None, to_excess: Tensor | None, to_right: Tensor | None) -> Tensor:
        weights, excess, x = ctx.saved_tensors
        right = torch.zeros_like(x) if to_right is None else to_right
        if to_excess is not None:
            right = right - to_excess[:, None] * x
        if to_weights is not None:
            right = right - (to_weights[:, :, None] * differences(x)).sum(dim=1)
        return eliminated(weights, excess, right)


def eliminated(weights: Tensor, excess: Tensor, right: Tensor) -> Tensor:
    x: Tensor = Eliminated.apply(weights, excess, right)  # type: ignore[no-untyped-call]
    return x

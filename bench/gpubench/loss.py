"""The loss of a mini-batch, forward and backward: ours, and plain torch on a dense graph."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

import gloss_kernels as gk
from gpubench.rows import Context, Row
from gpubench.timing import documents, fill

CLASSES, SIGMA = 16, 0.5


class Batch(NamedTuple):
    x: Tensor
    labels: Tensor
    hidden: Tensor


def batch(context: Context, n: int, d: int) -> Batch:
    device = torch.device(context.device)
    hidden = torch.rand(n, generator=torch.Generator(device).manual_seed(2), device=device) < 0.3
    return Batch(documents(n, d, device).requires_grad_(), torch.arange(n, device=device) % CLASSES, hidden)


def loss_row(n: int, d: int, k: int | None, method: str) -> Row:
    """Operations of the cosines, once forward and twice backward."""
    return Row(f"loss {n:,} x {d}, " + ("dense" if k is None else f"k = {k}"), method, operations=6 * n * n * d)


def value(loss: Tensor) -> dict[str, Any]:
    return {"loss": round(float(loss), 4)}


def ours(context: Context, n: int, d: int, n_neighbors: int | None, backend: str) -> Iterator[Row]:
    x, labels, hidden = batch(context, n, d)
    loss_fn = gk.GLoss(CLASSES, sigma=SIGMA, n_neighbors=n_neighbors, backend=backend)

    def run() -> Tensor:
        loss = loss_fn(x, labels, hidden)
        torch.autograd.grad(loss, x)
        return loss.detach()

    yield fill(loss_row(n, d, n_neighbors, backend), lambda: run, x.device, value, context.rounds)


def peers(context: Context, n: int, d: int, n_neighbors: int | None) -> Iterator[Row]:
    x, labels, hidden = batch(context, n, d)
    hide, keep = hidden.nonzero().squeeze(1), (~hidden).nonzero().squeeze(1)
    off_diagonal = 1 - torch.eye(n, device=x.device)

    def run() -> Tensor:
        u = F.normalize(x)
        a = torch.exp((u @ u.T - 1) / SIGMA**2) * off_diagonal
        right = a[hide][:, keep] @ F.one_hot(labels[keep], CLASSES).float()
        f = torch.linalg.solve(torch.diag(a.sum(1)[hide]) - a[hide][:, hide], right)
        loss = -torch.log(0.99 * f.gather(1, labels[hide, None]) + 0.01 / CLASSES).mean()
        torch.autograd.grad(loss, x)
        return loss.detach()

    yield fill(loss_row(n, d, n_neighbors, "plain torch, dense"), lambda: run, x.device, value, context.rounds)

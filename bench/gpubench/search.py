"""The search: ours and its peers, of a corpus in itself, of queries, and its gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import gloss_kernels as gk
from gpubench import peers as others
from gpubench.rows import Context, Row
from gpubench.timing import Run, documents, fill

K = 15


def recall(queries: Tensor, corpus: Tensor | None, k: int, rows: int = 100) -> Callable[[Any], dict[str, Any]]:
    """The share of the chosen whose float64 cosine reaches the true k-th best less 2e-6, on some rows."""

    def check(found: Any) -> dict[str, Any]:
        indices = found.indices if isinstance(found, gk.TopK) else found
        if not isinstance(indices, Tensor):
            indices = torch.as_tensor(indices, device=queries.device)
        at = torch.linspace(0, len(queries) - 1, min(rows, len(queries)), device=queries.device).long()
        chosen = indices[at].long()
        c = F.normalize(queries[at].double()) @ F.normalize((queries if corpus is None else corpus).double()).T
        if corpus is None:
            c[torch.arange(len(at), device=c.device), at] = -torch.inf
            chosen = without_self(chosen, at)
        kth = c.topk(k, dim=1).values[:, -1:]
        return {"recall": float((c.gather(1, chosen[:, :k]) >= kth - 2e-6).double().mean())}

    return check


def without_self(chosen: Tensor, at: Tensor) -> Tensor:
    """Peers find a row itself as well: it goes last, where the cut to k leaves it out."""
    return chosen.gather(1, (chosen == at[:, None]).long().argsort(dim=1, stable=True))


def self_row(n: int, d: int, dtype: str, method: str) -> Row:
    """The symmetric half of the products; reading and writing is nothing beside them."""
    return Row(f"search {n:,} x {d} {dtype}", method, operations=n * n * d)


def ours(context: Context, n: int, d: int, dtype: str, backend: str, k: int = K) -> Iterator[Row]:
    device = torch.device(context.device)
    x = documents(n, d, device, getattr(torch, dtype))
    run = lambda: gk.cosine_topk(x, k=k, backend=backend)  # noqa: E731
    yield fill(self_row(n, d, dtype, backend), lambda: run, device, recall(x, None, k), context.rounds)


def peers(context: Context, n: int, d: int, dtype: str, k: int = K) -> Iterator[Row]:
    device = torch.device(context.device)
    x = documents(n, d, device, getattr(torch, dtype))
    for name, make in others.SEARCH.items():
        row = self_row(n, d, dtype, others.NAMES[name])
        yield fill(row, lambda: make(x, None, k), device, recall(x, None, k), context.rounds)  # noqa: B023


def slow_peer(context: Context, n: int, d: int, dtype: str, name: str, k: int = K) -> Iterator[Row]:
    """One round, after a small search that loads the peer's libraries: no warm-up of many seconds."""
    device = torch.device(context.device)
    x = documents(n, d, device, getattr(torch, dtype))

    def make() -> Run:
        others.SEARCH[name](x[: n // 50 + k + 2].contiguous(), None, k)()
        return others.SEARCH[name](x, None, k)

    yield fill(self_row(n, d, dtype, others.NAMES[name]), make, device, recall(x, None, k), once=True)


def query_problem(context: Context, queries: int, n: int, d: int) -> tuple[Tensor, Tensor, Callable[[str], Row]]:
    device = torch.device(context.device)
    q, c = (documents(rows, d, device, torch.float16, seed) for seed, rows in enumerate((queries, n)))
    job = f"{queries} queries, {n:,} x {d} float16"
    return q, c, lambda method: Row(job, method, bytes=c.nbytes, operations=2 * queries * n * d)  # one reading


def our_queries(context: Context, queries: int, n: int, d: int, backend: str, k: int = K) -> Iterator[Row]:
    q, c, row = query_problem(context, queries, n, d)
    run = lambda: gk.cosine_topk(q, c, k=k, backend=backend)  # noqa: E731
    yield fill(row(backend), lambda: run, q.device, recall(q, c, k), context.rounds)


def query_peers(context: Context, queries: int, n: int, d: int, k: int = K) -> Iterator[Row]:
    q, c, row = query_problem(context, queries, n, d)
    for name, make in others.SEARCH.items():
        yield fill(row(others.NAMES[name]), lambda: make(q, c, k), q.device, recall(q, c, k), context.rounds)  # noqa: B023


# --------------------------------------------------------------------------------------------- gradient
def gradient_row(x: Tensor, method: str, k: int) -> Row:
    return Row(f"search gradient {len(x):,} x {x.shape[1]}", method, bytes=(2 * k + 3) * x.nbytes)


def our_gradient(context: Context, n: int, d: int, backend: str, k: int = K) -> Iterator[Row]:
    x = documents(n, d, torch.device(context.device)).requires_grad_()

    def make() -> Run:
        values = gk.cosine_topk(x, k=k, backend=backend).values
        weight = torch.ones_like(values)
        return lambda: torch.autograd.grad(values, x, weight, retain_graph=True)

    yield fill(gradient_row(x, backend, k), make, x.device, rounds=context.rounds)


def gradient_peers(context: Context, n: int, d: int, k: int = K) -> Iterator[Row]:
    """A neighbour at a time, gathered and scattered: nothing of [n, k, d] is held. Neighbours at random."""
    device = torch.device(context.device)
    u = F.normalize(documents(n, d, device))
    indices = torch.randint(n, (n, k), device=device)
    weight = torch.ones(n, k, device=device)

    def run() -> Tensor:
        grad = torch.zeros_like(u)
        for r in range(k):
            grad += weight[:, r : r + 1] * u[indices[:, r]]
            grad.index_add_(0, indices[:, r], weight[:, r : r + 1] * u)
        return grad

    yield fill(gradient_row(u, "torch index_add", k), lambda: run, device, rounds=context.rounds)

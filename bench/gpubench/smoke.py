"""Every operator against backend="reference" (dense float64) on small problems: a row each, with the largest error.

The sizes cross the tiles' edges (64 to 256 rows) and are no multiples of them; 350 documents in the dense loss need
more shared memory than a kernel gets unless it asks. The test grid says more, and takes minutes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import gloss_kernels as gk
from gpubench.rows import Context, Row
from gpubench.timing import documents, short

Result = dict[str, tuple[Tensor, Tensor, float]]  # what: ours, the reference's, how far apart they may be


def check(job: str, backend: str, compare: Callable[[], Result]) -> Row:
    row = Row(f"smoke {job}", backend)
    begin = time.perf_counter()
    try:
        for what, (ours, truth, near) in compare().items():
            error = float((ours.double() - truth.double()).abs().max())
            row.facts[what] = f"{error:.1e}"
            if not error <= near:  # so that NaN is wrong
                row.error = f"{what}: {error:.2e} off, allowed {near:.0e}"
    except Exception as error:
        row.error = short(error)
    row.first = time.perf_counter() - begin
    return row


def relative(ours: Tensor, truth: Tensor, near: float) -> tuple[Tensor, Tensor, float]:
    largest = truth.double().abs().max().clamp(min=1e-30)
    return ours.double() / largest, truth.double() / largest, near


def rows_of(context: Context, large: int, small: int = 150, d: int = 72) -> Tensor:
    return documents(small if context.rehearsal else large, d, torch.device(context.device))


def labels_of(n: int, classes: int, device: torch.device) -> Tensor:
    """Two of three are labelled."""
    at = torch.arange(n, device=device)
    return torch.where(at % 3 > 0, at % classes, -1)


# ----------------------------------------------------------------------------------------------- search
def neighbors(queries: Tensor, corpus: Tensor | None, k: int, backend: str) -> Result:
    """Which of equals are chosen is free, so the chosen ones' true cosines are compared."""
    found = gk.cosine_topk(queries, corpus, k, backend=backend)
    truth = gk.cosine_topk(queries.double(), None if corpus is None else corpus.double(), k, backend="reference")
    u, v = (F.normalize(x.double()) for x in (queries, queries if corpus is None else corpus))
    chosen = (u[:, None] * v[found.indices]).sum(2)
    near = 1e-12 if queries.dtype == torch.float64 else 2e-6
    return {"values": (found.values, truth.values, near), "chosen": (chosen, truth.values, near)}


def search(context: Context, backend: str) -> Iterator[Row]:
    x = rows_of(context, 3000)
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        yield check(f"search {str(dtype)[6:]}", backend, lambda: neighbors(x.to(dtype), None, 9, backend))  # noqa: B023


def search_queries(context: Context, backend: str) -> Iterator[Row]:
    c = rows_of(context, 5000, d=40)
    q = c[::7][:300] + 0.01
    yield check("search of queries", backend, lambda: neighbors(q, c, 9, backend))
    yield check("search of few queries, float16", backend, lambda: neighbors(q[:3].half(), c.half(), 5, backend))


def search_gradient(context: Context, backend: str) -> Iterator[Row]:
    def gradients(x: Tensor, backend: str) -> Tensor:
        y = x.detach().requires_grad_()
        values = gk.cosine_topk(y, k=6, backend=backend).values
        return torch.autograd.grad((values * torch.arange(1, 7, device=x.device)).sum(), y)[0]

    x = rows_of(context, 700)
    yield check(
        "search gradient",
        backend,
        lambda: {"gradient": relative(gradients(x, backend), gradients(x.double(), "reference"), 1e-5)},
    )


# ------------------------------------------------------------------------------------ graph, propagation
def graph(context: Context, backend: str) -> Iterator[Row]:
    x = rows_of(context, 2000)
    for symmetrize in filter(None, gk.graph.SYMMETRIZE):

        def compare(symmetrize: str = symmetrize) -> Result:
            near = gk.cosine_topk(x.double(), k=7, backend="reference")
            ours = gk.similarity_graph(
                x,
                sigma=0.5,
                symmetrize=symmetrize,
                backend=backend,
                neighbors=gk.TopK(near.values.float(), near.indices),
            )
            truth = gk.similarity_graph(
                x.double(), sigma=0.5, symmetrize=symmetrize, neighbors=near, backend="reference"
            )
            return {
                "rows": (ours.crow_indices, truth.crow_indices, 0),
                "columns": (ours.col_indices, truth.col_indices, 0),
                "weights": (ours.values, truth.values, 2e-6),
            }

        yield check(f"graph {symmetrize}", backend, compare)


VARIANTS: dict[str, dict[str, Any]] = {
    "row": {},
    "published": {"normalization": "published"},
    "prior": {"prior_strength": 0.1},
    "spreading": {"alpha": 0.9},
}


def variants(context: Context) -> dict[str, dict[str, Any]]:
    """Of a rehearsal, two: Triton's interpreter takes seconds for each."""
    return {name: VARIANTS[name] for name in ("published", "spreading")} if context.rehearsal else VARIANTS


def reference_graph(context: Context, n: int) -> tuple[gk.SimilarityGraph, gk.SimilarityGraph, Tensor]:
    truth = gk.similarity_graph(rows_of(context, n, 60).double(), 7, sigma=0.5, backend="reference")
    return truth._replace(values=truth.values.float()), truth, labels_of(truth.num_nodes, 5, truth.values.device)


def propagate(context: Context, backend: str) -> Iterator[Row]:
    graph, truth, labels = reference_graph(context, 1500)
    for name, options in variants(context).items():

        def compare(options: dict[str, Any] = options) -> Result:
            ours = gk.propagate_labels(graph, labels, 5, tol=1e-6, backend=backend, **options)
            true = gk.propagate_labels(truth, labels, 5, backend="reference", **options)
            return {"probabilities": (ours.probabilities, true.probabilities, 2e-5)}

        yield check(f"propagate {name}", backend, compare)


def propagate_gradient(context: Context, backend: str) -> Iterator[Row]:
    graph, truth, labels = reference_graph(context, 600)

    def gradient(graph: gk.SimilarityGraph, backend: str, options: dict[str, Any]) -> Tensor:
        live = graph._replace(values=graph.values.detach().requires_grad_())
        found = gk.propagate_labels(live, labels, 5, tol=1e-6, backend=backend, **options)
        return torch.autograd.grad(found.probabilities.square().sum(), live.values)[0]

    for name, options in variants(context).items():

        def compare(options: dict[str, Any] = options) -> Result:
            true = gradient(truth, "reference", options)
            return {"gradient": relative(gradient(graph, backend, options), true, 1e-3)}

        yield check(f"propagate gradient {name}", backend, compare)


# ------------------------------------------------------------------------------------------------- loss
def losses(job: str, x: Tensor, backend: str, options: dict[str, Any]) -> Row:
    labels = torch.arange(len(x), device=x.device) % 4
    hidden = torch.arange(len(x), device=x.device) % 5 < 2

    def both(x: Tensor, backend: str) -> tuple[Tensor, Tensor]:
        y = x.detach().requires_grad_()
        loss = gk.GLoss(4, backend=backend, **({"tol": 1e-6} | options))(y, labels, hidden)
        return loss.detach(), torch.autograd.grad(loss, y)[0]

    def compare() -> Result:
        (loss, grad), (true_loss, true_grad) = both(x, backend), both(x.double(), "reference")
        return {"loss": (loss, true_loss, 2e-5), "gradient": relative(grad, true_grad, 1e-3)}

    return check(job, backend, compare)


def dense_loss(context: Context, backend: str) -> Iterator[Row]:
    for n in (40,) if context.rehearsal else (128, 350, 512):
        x = documents(n, 72, torch.device(context.device))
        yield losses(f"loss {n}, dense", x, backend, {})
    yield losses("loss, published", x, backend, {"normalization": "published", "target": "published"})
    yield losses("loss, spreading", x, backend, {"alpha": 0.5})


def sparse_loss(context: Context, backend: str) -> Iterator[Row]:
    x = rows_of(context, 700, 40)
    yield losses(f"loss {len(x)}, sparse", x, backend, {"n_neighbors": 8})


def corpus_loss(context: Context, backend: str) -> Iterator[Row]:
    """A step of CorpusGLoss; its graph is searched exactly."""
    x = rows_of(context, 2000, 90)
    labels, ids = torch.arange(len(x), device=x.device) % 4, torch.arange(32, device=x.device)

    def both(backend: str) -> tuple[Tensor, Tensor]:
        loss_fn = gk.CorpusGLoss(labels, x.shape[1], n_neighbors=8, bank_dtype=torch.float32, backend=backend).to(
            x.device
        )
        loss_fn.refresh(x)
        y = x[ids].detach().requires_grad_()
        loss = loss_fn(y, ids)
        return loss.detach(), torch.autograd.grad(loss, y)[0]

    def compare() -> Result:
        (loss, grad), (true_loss, true_grad) = both(backend), both("reference")
        return {"loss": (loss, true_loss, 2e-5), "gradient": relative(grad, true_grad, 1e-3)}

    yield check("corpus loss", backend, compare)

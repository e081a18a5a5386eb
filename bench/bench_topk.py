"""Stage 1, topk: the nearest neighbours of every document among all, ours beside FAISS, scikit-learn and others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from data import SEED, documents
from harness import SIZES, Case, Key, Method, under_pytest
from harness import plan as plan_of
from torch import Tensor

import gloss_kernels

K = 15
SAMPLE = 200  # rows whose recall is looked at
TIE = 2e-6  # cosines nearer than this are ties: what exact=True promises


class Problem(NamedTuple):
    x: Tensor  # float32 [n, d], unit rows
    source: str


@lru_cache(maxsize=2)
def problem(n: int) -> Problem:
    x, _, source = documents(n)
    return Problem(x, source)


# ------------------------------------------------------------------------------------------- methods
# Each gives a function that returns neighbours [n, k] or, itself among them, [n, k + 1]: a peer that cannot leave out
# the document itself is asked for one more, and dropping it is not timed.
def ours(p: Problem) -> Callable[[], Any]:
    return lambda: gloss_kernels.cosine_topk(p.x, k=K).indices


def ours_with_hint(p: Problem) -> Callable[[], Any]:
    earlier = gloss_kernels.cosine_topk(p.x, k=K).indices
    return lambda: gloss_kernels.cosine_topk(p.x, k=K, hint=earlier).indices


def reference(p: Problem) -> Callable[[], Any]:
    return lambda: gloss_kernels.cosine_topk(p.x, k=K, backend="reference").indices


def torch_chunks(p: Problem, rows: int = 1024) -> Callable[[], Any]:
    return lambda: torch.cat([(block @ p.x.T).topk(K + 1).indices for block in p.x.split(rows)])


def faiss_index(p: Problem, make: Callable[[Any, int, int], Any]) -> Callable[[], Any]:
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    x = p.x.numpy()

    def run() -> Any:
        index = make(faiss, *x.shape)
        if not index.is_trained:
            index.train(x)
        index.add(x)
        return index.search(x, K + 1)[1]

    return run


def faiss_flat(p: Problem) -> Callable[[], Any]:
    return faiss_index(p, lambda faiss, n, d: faiss.IndexFlatIP(d))


def faiss_hnsw(p: Problem) -> Callable[[], Any]:
    def make(faiss: Any, n: int, d: int) -> Any:
        index = faiss.IndexHNSWFlat(d, 32, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efSearch = 64
        return index

    return faiss_index(p, make)


def faiss_ivf(p: Problem) -> Callable[[], Any]:
    def make(faiss: Any, n: int, d: int) -> Any:
        lists = max(1, min(int(4 * n**0.5), n // 39))  # FAISS wants 39 training rows a list
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(d), d, lists, faiss.METRIC_INNER_PRODUCT)
        index.nprobe = max(4, lists // 16)
        return index

    return faiss_index(p, make)


def sklearn_brute(p: Problem) -> Callable[[], Any]:
    from sklearn.neighbors import NearestNeighbors

    # Euclidean on unit rows gives the order of the cosine and is sklearn's faster path (2.2 times, n=4096).
    return lambda: NearestNeighbors(n_neighbors=K, algorithm="brute").fit(p.x.numpy()).kneighbors(return_distance=False)


def pynndescent(p: Problem) -> Callable[[], Any]:
    from pynndescent import NNDescent

    return lambda: NNDescent(p.x.numpy(), metric="cosine", n_neighbors=K + 1, random_state=SEED).neighbor_graph[0]


def ours_backward(p: Problem) -> Callable[[], Any]:
    x = p.x.clone().requires_grad_()
    values = gloss_kernels.cosine_topk(x, k=K).values
    return lambda: torch.autograd.grad(values, x, torch.ones_like(values), retain_graph=True)


def torch_backward(p: Problem) -> Callable[[], Any]:
    x = p.x.clone().requires_grad_()
    indices = gloss_kernels.cosine_topk(p.x, k=K).indices
    u = torch.nn.functional.normalize(x, dim=1)
    values = (u[:, None] * u[indices]).sum(dim=2)
    return lambda: torch.autograd.grad(values, x, torch.ones_like(values), retain_graph=True)


GROUPS = {
    "search": {
        "gloss": Method(ours, ours=True),
        "gloss, hint": Method(ours_with_hint, ours=True, compared=False, largest=50_000),
        "FAISS flat": Method(faiss_flat),
        "FAISS HNSW": Method(faiss_hnsw, exact=False, largest=50_000),
        "FAISS IVF": Method(faiss_ivf, exact=False, largest=50_000),
        "sklearn brute": Method(sklearn_brute, largest=50_000),
        "pynndescent": Method(pynndescent, exact=False, smallest=1000, largest=50_000),
        "torch mm + topk": Method(torch_chunks, largest=50_000),
        "dense reference": Method(reference, largest=4096),
    },
    "backward": {
        "gloss": Method(ours_backward, ours=True),
        "torch gather": Method(torch_backward),
    },
}


def plan(sizes: Sequence[int]) -> list[Key]:
    """Above 50,000 documents only ours and FAISS flat, and no backward."""
    keys = plan_of("topk", GROUPS, sizes)
    return [key for key in keys if key.group == "search" or key.n <= 50_000]


def case(key: Key) -> Case:
    p = problem(key.n)
    method = GROUPS[key.group][key.method]
    n, d = p.x.shape
    facts = {"d": d, "k": K, "source": p.source}
    if key.group == "backward":
        return Case(key, method, method.make(p), facts, flops=4.0 * n * K * d)
    return Case(key, method, method.make(p), facts, 2.0 * n * n * d, lambda found: {"recall": recall(p.x, found)})


def recall(x: Tensor, found: Any, rows: int = SAMPLE) -> float:
    """Share of the true neighbours found, by cosine in float64, on a sample of rows; ties count as found."""
    sample = torch.as_tensor(np.random.default_rng(SEED).choice(len(x), min(rows, len(x)), replace=False))
    u = torch.nn.functional.normalize(x[sample].double(), dim=1)
    best = torch.full((len(sample), K), -2.0, dtype=torch.float64)
    for start in range(0, len(x), 50_000):  # blocks: 10^6 documents in float64 would not fit
        block = torch.nn.functional.normalize(x[start : start + 50_000].double(), dim=1)
        cosines = u @ block.T
        here = (sample >= start) & (sample < start + len(block))
        cosines[here, sample[here] - start] = -2.0
        best = torch.cat([best, cosines], dim=1).topk(K).values
    indices = torch.as_tensor(np.asarray(found), dtype=torch.int64)[sample]
    itself = (indices == sample[:, None]) | (indices < 0)
    candidates = torch.nn.functional.normalize(x[indices.clamp(min=0)].double(), dim=2)
    reached = ((u[:, None] * candidates).sum(dim=2) >= best[:, -1:] - TIE) & ~itself
    return float(reached.sum(dim=1).clamp(max=K).sum()) / best.numel()


@pytest.mark.parametrize("key", plan(SIZES), ids=str)
def test_topk(benchmark: Any, key: Key) -> None:
    under_pytest(benchmark, key, case)

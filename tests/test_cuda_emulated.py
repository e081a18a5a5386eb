"""The CUDA kernels under other schedules, with every output and workspace filled with NaN first."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from conftest import documents, labels_for
from torch import Tensor

from gloss_kernels import GLoss, TopK, cosine_topk, propagate_labels, similarity_graph, topk_statistics
from gloss_kernels import _library as library

pytestmark = pytest.mark.skipif(
    not library.emulated, reason="no emulated build: GLOSS_KERNELS_EMULATOR=1 pip install ."
)


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """torch.empty contains NaN or the largest integer; the schedule is reset."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)
    library.emulated.seed(0)


def check_filter(rows: int) -> None:
    """The tensor cores' products are right: else the exact pass finds the neighbours, and the results do not tell."""
    facts = topk_statistics()
    assert facts["recomputed_rows"] == 0 and 6 * rows <= facts["candidates"] <= 20 * rows, facts


def check_neighbors(found: TopK, queries: Tensor, corpus: Tensor | None) -> None:
    """A fault that is the same under all schedules shows here only."""
    truth = cosine_topk(queries.detach(), None if corpus is None else corpus.detach(), k=6, backend="reference")
    torch.testing.assert_close(found.values.detach().double(), truth.values.double(), rtol=0, atol=5e-7)
    assert (found.indices == truth.indices).double().mean() > 0.999  # cosines that are equal in float32


def search() -> list[Tensor]:
    """10 blocks of rows: a dense wave, sparse ones, and half way round (1,100 rows are one dense wave)."""
    x = documents(2500, 40).requires_grad_()
    found = cosine_topk(x, k=6, backend="cuda")
    check_filter(len(x))
    check_neighbors(found, x, None)
    return [*found, *torch.autograd.grad(found.values.sum(), x)]


def search_in_a_corpus() -> list[Tensor]:
    q, c = (documents(n, 72, torch.float16, seed=n).requires_grad_() for n in (140, 3000))
    found = cosine_topk(q, c, k=6, backend="cuda")
    check_filter(len(q))
    check_neighbors(found, q, c)
    return [*found, *torch.autograd.grad(found.values.sum(), (q, c))]


def graph_and_propagation() -> list[Tensor]:
    x = documents(150, 12).requires_grad_()
    graph = similarity_graph(x, 6, sigma=0.5, backend="cuda")
    found = propagate_labels(graph, labels_for(150, 5), 5, backend="cuda")
    return [*graph[:3], *found, *torch.autograd.grad(found.probabilities.square().sum(), x)]


def dense_loss() -> list[Tensor]:
    x = documents(60, 12).requires_grad_()
    labels = torch.arange(60) % 4
    loss_fn = GLoss(4, backend="cuda", normalization="published")
    loss = loss_fn(x, labels, labels_for(60, 4) < 0)
    assert loss_fn.last is not None
    return [loss, *loss_fn.last, *torch.autograd.grad(loss, x)]


@pytest.mark.parametrize("job", [search, search_in_a_corpus, graph_and_propagation, dense_loss])
def test_the_schedule_does_not_show(job) -> None:
    library.emulated.seed(0)
    expected = job()
    assert not any(x.is_floating_point() and x.isnan().any() for x in expected)
    for seed in (1, 2, 3):
        library.emulated.seed(seed)
        for a, b in zip(expected, job(), strict=True):
            assert torch.equal(a, b), seed

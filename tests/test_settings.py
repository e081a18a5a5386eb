"""torch's process-wide settings are the user's: under any default dtype and device the results are the same bits."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import AUTO_AND_KERNELS, DEVICE, documents, is_interpreted, labels_for
from torch import Tensor

import gloss_kernels
from gloss_kernels import (
    CorpusGLoss,
    GLoss,
    NeighborIndex,
    SimilarityGraph,
    cosine_topk,
    g_loss,
    propagate_labels,
    reference,
    sigma,
    similarity_graph,
)

N, D, C = 40, 6, 4
SETTINGS = {
    "float64": lambda: torch.set_default_dtype(torch.float64),
    "float16": lambda: torch.set_default_dtype(torch.float16),
    "meta": lambda: torch.set_default_device("meta"),  # whatever lands there is missed: it has no numbers
}


@pytest.fixture(params=SETTINGS)
def setting(request: pytest.FixtureRequest) -> Iterator[Callable[[], None]]:
    """Sets it when called; undone at the end."""
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    yield SETTINGS[request.param]
    torch.set_default_dtype(dtype)
    torch.set_default_device(None if device.type == "cpu" else device)


def data(labeled: float = 0.6) -> tuple[Tensor, Tensor]:
    return documents(N, D).requires_grad_(), labels_for(N, C, labeled)


def some_ids(start: int, stop: int) -> Tensor:
    return torch.arange(start, stop, device=DEVICE)


def generator() -> torch.Generator:
    return torch.Generator("cpu").manual_seed(3)


def with_gradient(value: Tensor, *inputs: Tensor) -> list[Tensor]:
    return [value, *torch.autograd.grad(value.sum(), inputs)]


def topk(backend: str) -> list[Tensor]:
    x, _ = data()
    found = cosine_topk(x, k=5, backend=backend)
    other = cosine_topk(x[:7].detach().half(), x.detach().half(), 3, hint=None, backend=backend)
    with gloss_kernels.progress(lambda share: None):
        cosine_topk(x.detach(), k=2, backend=backend)
    return [*with_gradient(found.values, x), found.indices, *other, cosine_topk(x[:0].detach(), x.detach(), 3).values]


def graphs(backend: str) -> list[Tensor]:
    out: list[Tensor] = []
    for how in ("sum", "union", "mutual", None):
        x, _ = data()
        width = sigma.sigma_self_tuning(x.detach()).requires_grad_()
        graph = similarity_graph(x, 5, sigma=width, symmetrize=how, backend=backend)
        out += [*with_gradient(graph.values, x, width), graph.crow_indices, graph.edge_index]
        out.append(graph.to_sparse_csr().to_dense())
        if how:
            back = SimilarityGraph.from_scipy(graph.to_scipy()).to(DEVICE)
            out += back[:3]
    return out


def propagation(backend: str) -> list[Tensor]:
    out: list[Tensor] = []
    variants = ({}, {"normalization": "published"}, {"alpha": 0.8}, {"prior_strength": 0.1})
    for options in variants[:1] if is_interpreted(backend) else variants:
        x, y = data()
        graph = similarity_graph(x, 5)
        found = propagate_labels(graph, y, C, backend=backend, **options)
        again = propagate_labels(graph, y, C, initial=found.probabilities.detach(), backend=backend, **options)
        out += [*with_gradient(found.probabilities**2, x), *found[1:], *again]
    return out


def losses(backend: str) -> list[Tensor]:
    out: list[Tensor] = []
    weight = torch.ones(C, dtype=torch.float32, device=DEVICE)
    variants = (
        {}, {"n_neighbors": 5}, {"alpha": 0.8}, {"target": "published", "class_weight": weight},
        {"normalization": "published", "n_neighbors": 6}, {"sigma": "root"}, {"sigma": "self-tuning"},
        {"sigma": "mst", "n_neighbors": 4},
    )  # fmt: skip
    for options in variants[:2] if is_interpreted(backend) else variants:
        x, y = data(0.9)
        gloss = GLoss(C, generator=generator(), backend=backend, **options)
        out += with_gradient(gloss(x, y), x)
        out += gloss.last
    torch.manual_seed(5)  # paper and the last one hide what the global generator draws
    x, y = data(1.0)
    out += with_gradient(GLoss.paper(C, sigma=0.5)(x, y), x)
    out += with_gradient(g_loss(x, y, C, generator=generator()), x)
    return [*out, GLoss(C)(x, y)]


def corpus(backend: str) -> list[Tensor]:
    out: list[Tensor] = []
    for labeled in (0.5,) if is_interpreted(backend) else (1.0, 0.5):
        x, y = data(labeled)
        gloss = CorpusGLoss(y, D, num_classes=C, n_neighbors=4, propagate_every=2, backend=backend)
        gloss.refresh(x[:30], some_ids(0, 30))
        for start in (0, 9, 20):
            ids = some_ids(start, start + 7)
            out += with_gradient(gloss(x[ids], ids), x)
        ids = gloss.add(y[:3], x[:3])
        out += [ids, *gloss.predict(x.detach()), *gloss.propagate(), *gloss.last]
        other = copy.deepcopy(gloss)
        other.load_state_dict(gloss.state_dict())
        out += [*other.state_dict().values(), other.predict(x[:0].detach()).probabilities]
    return out


def indexed_corpus(backend: str) -> list[Tensor]:
    pytest.importorskip("faiss")
    x, y = data(0.5)
    gloss = CorpusGLoss(y, D, num_classes=C, n_neighbors=4, index="flat", refresh_every=1, backend=backend)
    gloss.refresh(x[:30], some_ids(0, 30))
    return [*with_gradient(gloss(x[:7], some_ids(0, 7)), x), *gloss.predict(x.detach())]


def references(backend: str) -> list[Tensor]:
    x, y = data()
    c = reference.cosine(x, None)
    weights = reference.gaussian_weights(c, 0.5) * (c < 0.999)
    f, reachable = reference.propagate_labels(weights, y, C)
    loss = reference.loss_on_hidden(f, y, y >= 0, "nll", None)
    return [*with_gradient(loss, x), f, reachable, *reference.cosine_topk(x, None, 3, True)]


def sigmas(backend: str) -> list[Tensor]:
    x, y = data()
    found = [sigma.sigma_root(x), sigma.sigma_mst(x, y), sigma.sigma_self_tuning(x)]
    return [*found, sigma.sigma_root(x[:1]), sigma.sigma_mst(x[:0], y[:0]), sigma.sigma_self_tuning(x[:1])]


def same_under(setting: Callable[[], None], run: Callable[[], list[Tensor]]) -> None:
    expected = run()
    setting()
    found = run()
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)  # dtypes and devices too


@pytest.mark.parametrize("backend", [*AUTO_AND_KERNELS, "reference"])
@pytest.mark.parametrize("use", [topk, graphs, propagation, losses, corpus])
def test_kernels(use: Callable[[str], list[Tensor]], backend: str, setting: Callable[[], None]) -> None:
    same_under(setting, lambda: use(backend))


@pytest.mark.parametrize("use", [indexed_corpus, references, sigmas])
def test_the_rest(use: Callable[[str], list[Tensor]], setting: Callable[[], None]) -> None:
    same_under(setting, lambda: use("auto"))


def test_a_dense_batch_too_large_for_one_operator(setting: Callable[[], None]) -> None:
    def run() -> list[Tensor]:
        x, y = documents(1100, D).requires_grad_(), labels_for(1100, C)
        return with_gradient(GLoss(C, generator=generator())(x, y), x)

    same_under(setting, run)


@pytest.mark.skipif(DEVICE != "cpu", reason="FAISS is tested on the CPU")
@pytest.mark.parametrize("kind", ["exact", "flat", "ivf_flat", "ivf_pq", "hnsw", "nn_descent"])
def test_indexes(kind: str, setting: Callable[[], None], tmp_path: Path) -> None:
    if kind != "exact":
        faiss = pytest.importorskip("faiss")
        if kind == "nn_descent" and not hasattr(faiss, "IndexNNDescentFlat"):
            pytest.skip("this build of faiss has no NN-descent")
    threads = torch.get_num_threads()

    def run() -> list[Tensor]:
        x = documents(400, 12)
        index = NeighborIndex.build(x[:300], kind, recall_target=0.5)
        index.add(x[300:].half())
        index.measure()
        out = [*index.search(x[:20], 5), *index.search(x[:0], 5), *index.search(x[:3], 390), *index.knn(4)]
        out += index.knn(4, checkpoint=tmp_path / f"kept-{torch.get_default_dtype()}-{torch.get_default_device()}")
        index.save(tmp_path / "index")
        loaded = NeighborIndex.load(tmp_path / "index")
        return [*out, *loaded.search(x[:20], 5), *similarity_graph(x, 4, neighbors=loaded.knn(4))[:3]]

    torch.set_num_threads(1)  # HNSW is then the same every time
    try:
        same_under(setting, run)
    finally:
        torch.set_num_threads(threads)


def test_files(setting: Callable[[], None], tmp_path: Path) -> None:
    def run() -> list[Tensor]:
        x, _ = data()
        graph = similarity_graph(x.detach(), 5)
        graph.save(tmp_path / "graph")
        stream = io.BytesIO()
        torch.save({"graph": graph}, stream)
        stream.seek(0)
        return [*SimilarityGraph.load(tmp_path / "graph")[:3], *torch.load(stream, weights_only=True)["graph"][:3]]

    same_under(setting, run)

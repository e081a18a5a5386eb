"""torch's settings for the speed of float32 products change no result: not one bit, in any public function."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from conftest import AUTO_AND_KERNELS, documents, is_interpreted, labels_for
from torch import Tensor

from gloss_kernels import (
    CorpusGLoss,
    GLoss,
    NeighborIndex,
    _backends,
    _library,
    cosine_topk,
    propagate_labels,
    similarity_graph,
)
from gloss_kernels._product import product, product_op
from gloss_kernels.sigma import HEURISTICS, estimate_sigma

N, D, C = 96, 64, 4  # large enough for a CPU's bfloat16 product to be chosen


def rows(backend: str) -> Tensor:
    return documents(40 if is_interpreted(backend) else N, D).requires_grad_()


def search(backend: str) -> list[Tensor]:
    x = rows(backend)
    found = cosine_topk(x, k=5, backend=backend)
    other = cosine_topk(x[:20], x, k=5, backend=backend, hint=found.indices[:20])
    return [*found, *other, *torch.autograd.grad(found.values.sum() + other.values.sum(), x)]


def propagation(backend: str) -> list[Tensor]:
    slow = is_interpreted(backend)
    x, options = rows(backend), {"num_classes": C, "backend": backend}
    graph, labels = similarity_graph(x, 6, sigma=0.5, backend=backend), labels_for(len(x), C)
    found = [
        propagate_labels(graph, labels, **options, **kind)
        for kind in ({"alpha": 0.8}, {"normalization": "published"}, {}, {"prior_strength": 0.1})[: 1 if slow else 4]
    ]
    grad = torch.autograd.grad(sum(f.probabilities.square().sum() for f in found), x)
    return [*graph[:3], *(f.probabilities for f in found), *grad]


def loss(backend: str, **options: Any) -> list[Tensor]:
    x = rows(backend)
    labels = torch.arange(len(x)) % C
    loss_fn = GLoss(C, backend=backend, **options)
    value = loss_fn(x, labels, labels_for(len(x), C) < 0)
    assert loss_fn.last is not None
    return [value, *loss_fn.last, *torch.autograd.grad(value, x)]


def corpus(backend: str, **options: Any) -> list[Tensor]:
    x, labels = rows(backend), labels_for(len(rows(backend)), C)
    module = CorpusGLoss(labels, D, num_classes=C, n_neighbors=8, backend=backend, **options)
    module.refresh(x.detach())
    ids = torch.arange(0, len(x), 2)
    value = module(x[ids], ids)
    grad = torch.autograd.grad(value, x)
    return [value, *grad, module.predict(x[:30]).probabilities, module.propagate().probabilities]


def index(_: str) -> list[Tensor]:
    x = documents(N, D)
    built = NeighborIndex.build(x, "exact")
    return [*built.search(x[:30], 5), *built.knn(5)]


def torch_loss(backend: str, **options: Any) -> list[Tensor]:
    """The dense path by torch operations, as for more documents."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_backends, "dense_rows", lambda backend: 0)
        return loss(backend, **options)


JOBS: dict[str, Callable[[str], list[Tensor]]] = {
    "search": search,
    "propagation": propagation,
    "dense": loss,
    "published": lambda b: loss(b, normalization="published", target="published"),
    "spreading": lambda b: loss(b, alpha=0.9),
    "dense torch": torch_loss,
    "published torch": lambda b: torch_loss(b, normalization="published", target="published"),
    "spreading torch": lambda b: torch_loss(b, alpha=0.9),
    "sparse": lambda b: loss(b, n_neighbors=6),
    "corpus": corpus,
    "corpus float32": lambda b: corpus(b, bank_dtype=torch.float32, batch_neighbors=3),
    "index": index,
    **{name: lambda _, how=name: [estimate_sigma(how, documents(N, D), labels_for(N, C))] for name in HEURISTICS},
}


@pytest.fixture
def precision() -> Iterator[Callable[[str], None]]:
    before = torch.get_float32_matmul_precision()
    yield torch.set_float32_matmul_precision
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("backend", [*AUTO_AND_KERNELS, "reference"])
@pytest.mark.parametrize("job", JOBS)
def test_no_setting_changes_a_bit(job: str, backend: str, precision: Callable[[str], None]) -> None:
    precision("highest")
    expected = JOBS[job](backend)
    for setting in ("high", "medium"):
        precision(setting)
        for a, b in zip(expected, JOBS[job](backend), strict=True):
            assert torch.equal(a, b), setting


@pytest.mark.parametrize("backend", [*AUTO_AND_KERNELS, "reference"])
@pytest.mark.parametrize("job", JOBS)
def test_every_product_of_torch_is_in_float64(job: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same on any machine, since not each has the instructions that a setting asks for."""
    narrow = []

    def watched(product: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*args: Any, **options: Any) -> Tensor:
            narrow.extend(x.dtype for x in args if isinstance(x, Tensor) and x.dtype != torch.float64)
            return product(*args, **options)

        return call

    for owner, names in ((torch.Tensor, ("__matmul__", "matmul", "mm", "bmm", "mv")),
                         (torch, ("matmul", "mm", "bmm", "mv", "addmm", "baddbmm", "einsum", "cdist", "dot")),
                         (torch.nn.functional, ("linear", "bilinear"))):  # fmt: skip
        for name in names:
            monkeypatch.setattr(owner, name, watched(getattr(owner, name)))
    JOBS[job](backend)
    assert narrow == []


@pytest.mark.skipif(_library.core is None, reason="the native core is not built")
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (7, 300, 65), (128, 768, 128), (129, 513, 300), (6, 0, 4)])
def test_the_cores_own_product(shape: tuple[int, int, int], transposed: bool) -> None:
    n, k, m = shape
    a, b = torch.randn(n, k, device="cpu"), torch.randn(k, m, device="cpu")
    taken = b.T.contiguous() if transposed else b
    results = []
    for threads in (1, 2, 3):
        c = torch.full((n, m), torch.nan, device="cpu")
        _library.core.cpu.dense_product(
            n=n, k=k, m=m, a=a.data_ptr(), b=taken.data_ptr(), transposed=transposed, c=c.data_ptr(), threads=threads
        )
        results.append(c)
    truth = a.double() @ b.double()
    assert (results[0] - truth).abs().max() <= 2 * (a @ b - truth).abs().max() + 1e-6
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.skipif(_library.core is None, reason="the native core is not built")
def test_the_product_as_an_operator() -> None:
    """Its gradient, by any layout of the factors; what is neither float32 nor a matrix is float64's."""
    a, b = (torch.randn(*shape, device="cpu") for shape in ((9, 20), (14, 20)))
    for left, right in ((a, b.T), (a.T.contiguous().T, b.T.contiguous()), (a[:, ::2], b[:, 1::2].T)):
        x, y = (t.detach().requires_grad_() for t in (left, right))
        torch.library.opcheck(product_op, (x, y))
        grad = torch.randn(9, 14, device="cpu")
        exact = [t.double() for t in (x.detach(), y.detach(), grad)]
        torch.testing.assert_close(product(x, y).double(), exact[0] @ exact[1], rtol=0, atol=1e-5)
        of_x, of_y = torch.autograd.grad(product(x, y), (x, y), grad)
        torch.testing.assert_close(of_x.double(), exact[2] @ exact[1].T, rtol=0, atol=1e-5)
        torch.testing.assert_close(of_y.double(), exact[0].T @ exact[2], rtol=0, atol=1e-5)
    assert product(a.double(), b.double().T).dtype == torch.float64
    batched = product(a[:, None], b[:9, :, None])
    torch.testing.assert_close(batched.double(), a[:, None].double() @ b[:9, :, None].double(), rtol=0, atol=1e-6)

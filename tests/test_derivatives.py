"""Derivatives that the operators do not have raise, in every order and mode; those that they have are right.

The first, backwards, stands in the tests of the stages. Second ones and forward mode are the reference's.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable

import pytest
import torch
from conftest import AUTO_AND_KERNELS, documents
from torch import Tensor
from torch.autograd import forward_ad

from gloss_kernels import (
    CorpusGLoss,
    SimilarityGraph,
    _backends,
    _derivatives,
    cosine_topk,
    g_loss,
    propagate_labels,
    similarity_graph,
)
from gloss_kernels._ops.loss import dense_propagate
from gloss_kernels._product import product
from gloss_kernels.corpus.harmonic import harmonic

N, C = 18, 3
LABELS = torch.arange(N) % C
VISIBLE = torch.where(torch.arange(N) % 3 == 1, -1, LABELS)


def rows() -> Tensor:
    return documents(N, 6, torch.float64)


@functools.cache
def graph() -> SimilarityGraph:
    return similarity_graph(rows(), 4)


def edges() -> Tensor:
    return graph().values


def propagation(how: str) -> Callable[[Tensor, str], Tensor]:
    def run(values: Tensor, backend: str) -> Tensor:
        weighted = graph()._replace(values=values)
        found = propagate_labels(weighted, VISIBLE, C, normalization=how, tol=1e-13, backend=backend)
        return (found.probabilities[:, 0] ** 2).sum()

    return run


# Operator -> what reaches it: a function of a tensor and a backend to a scalar, and the tensor.
REACH: dict[str, tuple[Callable[[Tensor, str], Tensor], Callable[[], Tensor]]] = {
    "dense_loss": (lambda x, b: g_loss(x, LABELS, C, VISIBLE < 0, backend=b), rows),
    "cosine_topk": (lambda x, b: (cosine_topk(x, k=4, backend=b).values ** 2).sum(), rows),
    "combine_edges": (lambda x, b: (similarity_graph(x, 4, backend=b).values ** 2).sum(), rows),
    "normalize_edges": (propagation("published"), edges),
    "propagate": (propagation("row"), edges),
    "dense_propagate": (lambda x, b: solve_dense(x), lambda: torch.exp(rows() @ rows().T).fill_diagonal_(0)),
}
# Those that have every derivative, or none: an identity, integers, gradients (guarded where they are called).
BACKWARD = {f"{name}_backward" for name in REACH if name != "dense_loss"}
OTHERS = {"product", "checked", "known_labels", "checked_graph", "knn_structure"} | BACKWARD


def solve_dense(m: Tensor) -> Tensor:
    boundary = torch.nn.functional.one_hot(VISIBLE.clamp(min=0), C).double() * (VISIBLE >= 0)[:, None]
    return (dense_propagate(m, VISIBLE >= 0, boundary, -1.0)[0][:, 0] ** 2).sum()


def test_every_operator_is_accounted_for() -> None:
    """A new operator is either guarded, and reached by a test below, or stands among the others with a reason."""
    namespace = "gloss_kernels::"
    schemas = [str(schema) for schema in torch._C._jit_get_all_schemas()]
    found = {schema.split("(")[0].removeprefix(namespace) for schema in schemas if schema.startswith(namespace)}
    assert {name.removesuffix(".default") for name in found} == set(REACH) | OTHERS
    assert {name.removeprefix(namespace) for name in _derivatives.GUARDED} == set(REACH)


def first(f: Callable[[Tensor], Tensor], x: Tensor, **how: bool) -> Tensor:
    return torch.autograd.grad(f(x), x, **how)[0]


def penalty(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The gradient of the length of the gradient: what a gradient penalty steps along."""
    x = x.clone().requires_grad_()
    first(f, x, create_graph=True).norm().backward()
    assert x.grad is not None
    return x.grad


def twice(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(first(f, x, create_graph=True).sum(), x)[0]


def dual(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor | None:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(x, torch.ones_like(x)))).tangent


MODES: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], object]] = {
    "penalty": penalty,
    "twice": twice,
    "hessian": torch.autograd.functional.hessian,
    "dual": dual,
    "func.jvp": lambda f, x: torch.func.jvp(f, (x,), (torch.ones_like(x),)),
    "func.jacfwd": lambda f, x: torch.func.jacfwd(f)(x),
    "func.grad": lambda f, x: torch.func.grad(f)(x),
    "func.jacrev": lambda f, x: torch.func.jacrev(f)(x),
    "func.hessian": lambda f, x: torch.func.hessian(f)(x),
    "func.grad of vmap": lambda f, x: torch.func.grad(lambda y: torch.func.vmap(f)(y).sum())(torch.stack([x, x])),
}


@pytest.mark.filterwarnings("ignore:.*performance drop")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("backend", AUTO_AND_KERNELS)
@pytest.mark.parametrize("operator", REACH)
def test_what_an_operator_has_not_raises(operator: str, backend: str, mode: str) -> None:
    f, make = REACH[operator]
    message = r"^\w+ has no .* with the kernels; backend='reference' has every order"
    if mode == "func.grad of vmap" and operator in ("normalize_edges", "propagate"):
        message = "vmap"  # the check of the graph reads it, which torch refuses before
    with pytest.raises(RuntimeError, match=message):
        MODES[mode](lambda x: f(x, backend), make())


@pytest.mark.parametrize("n_neighbors", [None, 4])
def test_the_reference_has_second_derivatives_and_forward_mode(n_neighbors: int | None) -> None:
    def f(x: Tensor) -> Tensor:
        return g_loss(x, LABELS, C, VISIBLE < 0, n_neighbors=n_neighbors, backend="reference")

    x = rows().requires_grad_()
    assert torch.autograd.gradgradcheck(f, x)
    along = torch.func.jvp(f, (x.detach(),), (torch.ones_like(x),))[1]
    torch.testing.assert_close(along, first(f, x).sum())


@pytest.mark.parametrize("operator", REACH)
def test_create_graph_alone_changes_nothing(operator: str) -> None:
    f, make = REACH[operator]
    x = make().requires_grad_()
    plain, graphed = (first(lambda y: f(y, "auto"), x, create_graph=create) for create in (False, True))
    assert torch.equal(plain, graphed) and graphed.requires_grad and not plain.requires_grad
    other = torch.ones((), dtype=x.dtype, requires_grad=True)  # what does not depend on the gradient's gradient
    assert torch.autograd.grad((graphed * other).sum(), other)[0] == graphed.sum()


def test_vmap_runs_the_loss_row_by_row() -> None:
    both = torch.stack([rows(), rows().flip(1) + 0.1]).requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = torch.func.vmap(lambda x: g_loss(x, LABELS, C, VISIBLE < 0))(both)
    expected = torch.stack([g_loss(x, LABELS, C, VISIBLE < 0) for x in both])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(x.sum(), both)[0] for x in (found, expected)))


def test_products_have_every_derivative() -> None:
    a, b = torch.randn(4, 3, requires_grad=True), torch.randn(3, 5, requires_grad=True)

    def f(a: Tensor) -> Tensor:
        return (product(a, b) ** 3).sum()

    def plain(a: Tensor) -> Tensor:
        return ((a @ b) ** 3).sum()

    for mode in ("penalty", "hessian", "dual", "func.jacfwd", "func.hessian"):
        torch.testing.assert_close(MODES[mode](f, a.detach()), MODES[mode](plain, a.detach()), rtol=1e-4, atol=1e-4)


def test_the_corpus_loss_has_every_order_backwards() -> None:
    def f(e: Tensor, y: Tensor) -> Tensor:
        return harmonic(e + e.T, y)[0]

    e = torch.rand(5, 5, dtype=torch.float64).fill_diagonal_(0)
    y = torch.rand(5, C, dtype=torch.float64)
    y[3] = 0
    assert torch.autograd.gradgradcheck(f, (e.requires_grad_(), y.requires_grad_()))
    module = CorpusGLoss(LABELS, 6, num_classes=C, n_neighbors=4, bank_dtype=torch.float64)
    module.refresh(rows())
    x, ids = rows()[:6].requires_grad_(), torch.arange(6)
    ahead = first(lambda z: module(z, ids), x, create_graph=True)
    step = 1e-6
    module.flush = lambda: None  # type: ignore[method-assign]  # the bank stays as it is between the two
    beside = ((x.detach() + s).requires_grad_() for s in (step, -step))
    up, down = (first(lambda z: module(z, ids), z) for z in beside)
    found = torch.autograd.grad(ahead.sum(), x)[0]  # H 1, H being symmetric
    torch.testing.assert_close(found, (up - down) / (2 * step), rtol=1e-4, atol=1e-7)
    with pytest.raises(RuntimeError, match=r"^CorpusGLoss has no forward-mode"):
        dual(lambda z: module(z, ids), x.detach())


def test_the_torch_path_of_the_dense_loss_raises_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_backends, "dense_rows", lambda backend: 0)
    for mode in ("penalty", "hessian", "dual", "func.grad"):
        with pytest.raises(RuntimeError, match=r"^GLoss has no .* backend='reference' has every order"):
            MODES[mode](lambda x: g_loss(x, LABELS, C, VISIBLE < 0), rows())

"""Operators called directly, past the checks of the public functions: no index, shape or type of theirs reads or writes
outside the tensors.

The C++ core raises. The kernels of a GPU, which nothing waits for, make NaN of what hangs on an index outside.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from conftest import BACKENDS, DEVICE, documents
from torch import Tensor

from gloss_kernels import _library, cosine_topk
from gloss_kernels._backends import native, protocol

ops: Any = torch.ops.gloss_kernels
C, N, K = 4, 24, 5
on_cpu = pytest.mark.skipif(DEVICE != "cpu", reason="a GPU does not wait to raise")
OUTSIDE = [-2, N * K, N * K + 3, 10**12, -(2**63), 2**63 - 1]
unwaited = [backend for backend in BACKENDS if backend != "cpu"]  # their kernels do not raise


def structure(symmetrize: str = "sum") -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """crow, col, forward, reverse without padding, and weights, which lie amid numbers that are nobody's."""
    crow, col, forward, reverse = ops.knn_structure(cosine_topk(documents(N, 8), k=K).indices, symmetrize, BACKENDS[0])
    nnz = int(crow[-1])
    room = torch.full((N * K + 200,), 1e6)
    weights = room[100:-100].uniform_(0.1, 1.0)
    return crow, col[:nnz].clone(), forward[:nnz].clone(), reverse[:nnz].clone(), weights


def spoiled(x: Tensor, at: int, wrong: int) -> Tensor:
    return x.index_fill(0, torch.tensor([at]), wrong)


@on_cpu
@pytest.mark.parametrize("wrong", OUTSIDE)
@pytest.mark.parametrize("side", ["forward", "reverse"])
def test_places_of_weights_are_checked(side: str, wrong: int) -> None:
    _, _, forward, reverse, weights = structure()
    places = {"forward": forward, "reverse": reverse}
    places[side] = spoiled(places[side], 7, wrong)
    message = rf"^{side} must be -1 or places in 0..{N * K - 1}, got {wrong} for entry 7"
    for symmetrize in ("sum", "union", "mutual", "none"):
        with pytest.raises(ValueError, match=message):
            ops.combine_edges(weights, *places.values(), symmetrize, "cpu")
        with pytest.raises(ValueError, match=message):
            ops.combine_edges_backward(torch.ones(len(forward)), weights, *places.values(), symmetrize, "cpu")


@pytest.mark.parametrize("symmetrize", ["sum", "union", "mutual"])
@pytest.mark.parametrize("side", ["forward", "reverse"])
@pytest.mark.parametrize("backend", unwaited)
def test_a_place_outside_makes_its_entry_nan(backend: str, side: str, symmetrize: str) -> None:
    """And the gradient of the weight at the entry's other place; all else as without the entry."""
    _, _, forward, reverse, weights = structure(symmetrize)
    at = int(((forward >= 0) & (reverse >= 0)).nonzero()[3])  # an entry with both
    grad_values, others = torch.ones(len(forward)), torch.arange(len(forward)) != at
    values = ops.combine_edges(weights, forward, reverse, symmetrize, backend)
    for wrong in OUTSIDE:
        places = {"forward": forward, "reverse": reverse}
        partner = int(places["reverse" if side == "forward" else "forward"][at])
        own = int(places[side][at])
        places[side] = spoiled(places[side], at, wrong)
        found = ops.combine_edges(weights, *places.values(), symmetrize, backend)
        assert found[at].isnan() and torch.equal(found[others], values[others])
        grad = ops.combine_edges_backward(grad_values, weights, *places.values(), symmetrize, backend)
        expected = ops.combine_edges_backward(grad_values, weights, forward, reverse, symmetrize, backend)
        rest = (torch.arange(N * K) != partner) & (torch.arange(N * K) != own)
        assert grad[partner].isnan() and torch.equal(grad[rest], expected[rest])


@on_cpu
@pytest.mark.parametrize("side", ["cpu", *["cuda"] * ("cuda" in BACKENDS)])
def test_no_gradient_is_written_outside(side: str) -> None:
    """Between two walls of numbers that must stand."""
    _, _, forward, reverse, weights = structure()
    core: Any = _library.core.cpu if side == "cpu" else _library.emulated
    tail = {"threads": 1} if side == "cpu" else {"device": 0, "stream": 0}
    for wrong in range(-40, 0), range(N * K, N * K + 40):
        for place in set(wrong) - {-1}:
            for places in ((spoiled(forward, 7, place), reverse), (forward, spoiled(reverse, 7, place))):
                room = torch.full((N * K + 100,), 1e6)
                addresses = {"forward": places[0], "reverse": places[1], "weights": weights,
                             "grad_values": torch.ones(len(forward)), "grad_weights": room[50:]}  # fmt: skip
                with pytest.raises(ValueError, match="must be -1 or places") if side == "cpu" else nullcontext():
                    core.combine_edges_backward(
                        nnz=len(forward), num_weights=N * K, is_double=False, symmetrize="sum",
                        **{name: x.data_ptr() for name, x in addresses.items()}, **tail,
                    )  # fmt: skip
                assert (room[:50] == 1e6).all() and (room[-50:] == 1e6).all()


BROKEN_ROWS = {"negative": (0, -3), "beyond": (N, 10**9), "one beyond": (N, -1), "falling": (5, 10**6)}


def broken_rows(crow: Tensor, how: str) -> Tensor:
    at, value = BROKEN_ROWS[how]
    return spoiled(crow, at, int(crow[-1]) + 1 if how == "one beyond" else value)


@on_cpu
@pytest.mark.parametrize("wrong", [-1, N, 10**12, -(2**63), 2**63 - 1])
def test_columns_are_nodes(wrong: int) -> None:
    crow, col, forward, reverse, weights = structure()
    values = ops.combine_edges(weights, forward, reverse, "sum", "cpu")
    col = spoiled(col, 9, wrong)
    message = rf"^col must be nodes in 0..{N - 1}, got {wrong}"
    for normalization in ("symmetric", "published"):
        with pytest.raises(ValueError, match=message):
            ops.normalize_edges(crow, col, values, normalization, "cpu")
        with pytest.raises(ValueError, match=message):
            ops.normalize_edges_backward(values, crow, col, values, normalization, "cpu")
    for backend in BACKENDS:
        for call in propagation(crow, col, values, backend):
            with pytest.raises(ValueError, match=message):
                call()


@on_cpu
@pytest.mark.parametrize("how", BROKEN_ROWS)
def test_rows_lie_within_the_entries(how: str) -> None:
    crow, col, forward, reverse, weights = structure()
    values = ops.combine_edges(weights, forward, reverse, "sum", "cpu")
    crow = broken_rows(crow, how)
    for normalization in ("row", "symmetric", "published"):
        if normalization == "row" and how in ("negative", "falling"):
            continue  # it copies the entries and reads the last row alone
        with pytest.raises(ValueError, match=r"^crow must rise within 0"):
            ops.normalize_edges(crow, col, values, normalization, "cpu")
        with pytest.raises(ValueError, match=r"^crow must rise within 0"):
            ops.normalize_edges_backward(values, crow, col, values, normalization, "cpu")
    for backend in BACKENDS:
        for call in propagation(crow, col, values, backend):
            with pytest.raises(ValueError, match=r"^crow must rise within 0"):
                call()


def propagation(crow: Tensor, col: Tensor, values: Tensor, backend: str) -> tuple[Callable[[], object], ...]:
    """The solve and its gradient, as operators."""
    fixed, f, prior = torch.arange(N) % 3 == 0, torch.full((N, C), 1 / C), torch.full((C,), 1 / C)
    tol = torch.tensor(1e-4, dtype=torch.float64)
    return (
        lambda: ops.propagate(crow, col, values, fixed, f, False, prior, -1.0, 0.0, 1e-4, 100, backend),
        lambda: ops.propagate_backward(f, crow, col, values, fixed, fixed, prior, f, tol, -1.0, 0.0, 100, backend),
    )


@pytest.mark.parametrize("normalization", ["symmetric", "published"])
@pytest.mark.parametrize("backend", unwaited)
def test_kernels_read_nodes_only(backend: str, normalization: str) -> None:
    """An entry whose column is no node becomes NaN; of rows, what lies outside the arrays is left out."""
    crow, col, forward, reverse, weights = structure()
    values = ops.combine_edges(weights, forward, reverse, "sum", backend)
    for wrong in (-1, N, 10**12, -(2**63), 2**63 - 1):
        spoilt = spoiled(col, 9, wrong)
        assert ops.normalize_edges(crow, spoilt, values, normalization, backend)[9].isnan()
        assert ops.normalize_edges_backward(values, crow, spoilt, values, normalization, backend)[9].isnan()
    for how in BROKEN_ROWS:
        rows = broken_rows(crow, how)
        assert len(ops.normalize_edges(rows, col, values, normalization, backend)) == len(values)
        assert len(ops.normalize_edges_backward(values, rows, col, values, normalization, backend)) == len(values)


@pytest.mark.parametrize("itself", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_gradient_of_a_search_indexes_rows_only(backend: str, itself: bool) -> None:
    x = documents(N, 8)
    indices = cosine_topk(x, k=3).indices
    arguments = (torch.ones(N, 3), x, None if itself else documents(30, 8, seed=2))
    rows = N if itself else 30
    good = ops.cosine_topk_backward(*arguments, indices, True, not itself, backend)
    for wrong in (-1, rows, 10**12, -(2**63), 2**63 - 1):
        spoilt = indices.clone()
        spoilt[7, 2] = wrong
        if backend == "cpu":
            message = f"^indices must be rows of the corpus, 0..{rows - 1}, got {wrong} in row 7"
            with pytest.raises(ValueError, match=message):
                ops.cosine_topk_backward(*arguments, spoilt, True, not itself, backend)
            continue
        queries, corpus = ops.cosine_topk_backward(*arguments, spoilt, True, not itself, backend)
        near = torch.arange(N) == indices[7, 2]  # it lost what row 7 gave it
        others = (torch.arange(N) != 7) & ~(near & itself)
        assert queries[7].isnan().all() and torch.equal(queries[others], good[0][others])
        assert corpus.isfinite().all()


Structured = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
X = documents(N, 8)


def combine(s: Structured, **other: Tensor) -> Tensor:
    given = {"weights": s[4], "forward": s[2], "reverse": s[3]} | other
    return ops.combine_edges(*given.values(), "sum", "cpu")


def backward(s: Structured, grad_values: Tensor) -> Tensor:
    return ops.combine_edges_backward(grad_values, s[4], s[2], s[3], "sum", "cpu")


def normalize(s: Structured, **other: Tensor) -> Tensor:
    given = {"crow": s[0], "col": s[1], "values": s[2].float()} | other
    return ops.normalize_edges(*given.values(), "row", "cpu")


def of_search(grad_values: Tensor, indices: Tensor) -> object:
    return ops.cosine_topk_backward(grad_values, X, None, indices, True, True, "cpu")


SHAPES: dict[str, tuple[Callable[[Structured], object], str]] = {
    "reverse": (lambda s: combine(s, reverse=s[3][:-1].clone()), "reverse must have"),
    "forward": (lambda s: combine(s, forward=s[2].int()), "forward must be torch.int64"),
    "weights": (lambda s: combine(s, weights=s[4].half()), "dtype must be float32 or float64"),
    "strides": (
        lambda s: combine(s, forward=s[2][:1].expand(9**5), reverse=s[3][:1].expand(9**5 - 1)),
        "reverse must have",
    ),
    "grad_values": (lambda s: backward(s, s[4][:3].clone()), "grad_values must have"),
    "their dtype": (lambda s: backward(s, s[2].double()), "grad_values must be torch.float32"),
    "col": (lambda s: normalize(s, col=s[1][1:]), "col must have"),
    "values": (lambda s: normalize(s, values=s[4][:, None]), "values must have"),
    "no rows": (lambda s: normalize(s, crow=s[0][:0]), "crow must have"),
    "grad_normalized": (
        lambda s: ops.normalize_edges_backward(s[4][:1], *s[:2], s[2].float(), "row", "cpu"),
        "grad_normalized must have",
    ),
    "indices": (lambda s: ops.knn_structure(s[2][:20].int().view(10, 2), "sum", "cpu"), "indices must be"),
    "a vector": (lambda s: ops.knn_structure(s[2], "sum", "cpu"), "indices must be"),
    "hint": (lambda s: ops.cosine_topk(X, None, 3, True, s[2][:6].view(2, 3), "cpu"), "hint must have"),
    "corpus": (lambda s: ops.cosine_topk(X, documents(N, 7), 3, False, None, "cpu"), "corpus must have"),
    "found": (lambda s: of_search(s[4][:6].view(2, 3), s[2][:6].view(2, 3)), "grad_values must have"),
    "few": (lambda s: of_search(s[4][: 2 * N].view(N, 2), s[2][:N].view(N, 1)), "indices must have"),
}


@pytest.mark.parametrize("what", SHAPES)
def test_operators_check_shapes(what: str) -> None:
    if DEVICE != "cpu":
        pytest.skip("the shapes are looked at before the device is")
    call, message = SHAPES[what]
    with pytest.raises((ValueError, TypeError), match=f"^{message}"):
        call(structure())


def test_operators_check_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    *_, forward, reverse, weights = structure()
    for backend in ("auto", "reference", "no such"):
        with pytest.raises(ValueError, match=r"^backend must be one of 'cpu', 'cuda', 'triton', got"):
            ops.combine_edges(weights, forward, reverse, "sum", backend)
    elsewhere = protocol.Combination(*(x.to("meta") for x in (weights, forward, reverse)), "sum")
    with pytest.raises(ValueError, match=r"^backend='cpu' must get tensors on cpu, got meta"):
        native.cpu.combine_edges(elsewhere)
    monkeypatch.setattr(_library, "emulated", None)
    if DEVICE == "cpu":
        with pytest.raises(ValueError, match=r"^backend='cuda' must get tensors on cuda, got cpu"):
            ops.combine_edges(weights, forward, reverse, "sum", "cuda")


@on_cpu
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("at", ["fixed", "boundary", "prior", "reachable", "result", "used_tol", "grad_result"])
def test_propagation_checks_shapes(at: str, backend: str) -> None:
    crow, col, forward, reverse, weights = structure()
    values = ops.combine_edges(weights, forward, reverse, "sum", "cpu")
    fixed, f, prior = torch.arange(N) % 3 == 0, torch.full((N, C), 1 / C), torch.full((C,), 1 / C)
    given = {"fixed": fixed, "boundary": f, "prior": prior, "reachable": fixed, "result": f,
             "used_tol": torch.tensor(1e-4, dtype=torch.float64), "grad_result": f}  # fmt: skip
    for wrong in (given[at].flatten()[:1].clone().repeat(2), given[at].to(torch.int32)):
        has = given | {at: wrong}
        with pytest.raises((ValueError, TypeError), match=r"must (have shape|be torch)"):
            if at in ("fixed", "boundary", "prior"):
                ops.propagate(crow, col, values, has["fixed"], has["boundary"], False, has["prior"], -1.0, 0.0, 1e-4, 9,
                              backend)  # fmt: skip
            else:
                ops.propagate_backward(has["grad_result"], crow, col, values, fixed, has["reachable"], prior,
                                       has["result"], has["used_tol"], -1.0, 0.0, 9, backend)  # fmt: skip

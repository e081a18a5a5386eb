"""No input reads or writes outside its tensors, compiled or not: labels, class weights, indices, strides.

Tensors on the CPU raise. On a GPU nothing waits to raise: the row, the loss and its gradient become NaN, which the last
tests show on CPU tensors by the kernels themselves and by the code for a GPU.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from conftest import AUTO_AND_KERNELS, BACKENDS, DEVICE, documents, labels_for
from torch import Tensor

from gloss_kernels import (
    CorpusGLoss,
    GLoss,
    SimilarityGraph,
    TopK,
    _backends,
    _labels,
    _settings,
    cosine_topk,
    propagate_labels,
    similarity_graph,
)
from gloss_kernels._backends.protocol import Batch
from gloss_kernels.sigma import sigma_root, sigma_self_tuning

C, N = 4, 24
WRONG_LABELS = [C, 10**12, -2, -100, -(2**63)]
ALL = [*AUTO_AND_KERNELS, "reference"]
on_cpu = pytest.mark.skipif(DEVICE != "cpu", reason="a GPU does not wait to raise")


@pytest.fixture(params=["dense", "dense torch", "sparse"])
def n_neighbors(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int | None:
    if request.param == "dense torch":
        monkeypatch.setattr(_backends, "dense_rows", lambda backend: 0)
    return 6 if request.param == "sparse" else None


def batch(wrong: int | None = None, at: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings, labels, and the hidden documents, of which 3 is one and 5 is none."""
    x, labels, hidden = documents(N, 8), torch.arange(N) % C, torch.arange(N) % 3 == 0
    if wrong is not None:
        labels[at] = wrong
    return x, labels, hidden


# ---------------------------------------------------------------------------------------------- labels
@on_cpu
@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize("wrong", WRONG_LABELS)
def test_a_wrong_label_raises(wrong: int, backend: str, n_neighbors: int | None) -> None:
    for at in (3, 5):
        with pytest.raises(ValueError, match=f"^labels must be 0..3 or -1, got {wrong} for document {at}"):
            GLoss(C, n_neighbors=n_neighbors, backend=backend)(*batch(wrong, at))


@on_cpu
@pytest.mark.parametrize("backend", AUTO_AND_KERNELS)
def test_a_wrong_label_raises_in_compiled_code(backend: str, n_neighbors: int | None) -> None:
    torch._dynamo.reset()
    loss_fn = GLoss(C, n_neighbors=n_neighbors, backend=backend)
    compiled = torch.compile(loss_fn, fullgraph=True, backend="inductor" if backend == "auto" else "aot_eager")
    assert compiled(*batch()).isfinite()
    for wrong in WRONG_LABELS:
        with pytest.raises(ValueError, match=f"labels must be 0..3 or -1, got {wrong} for document 3"):
            compiled(*batch(wrong))


@on_cpu
@pytest.mark.parametrize("compiled", [False, True])
def test_the_ignore_index_is_the_only_negative_label(compiled: bool, n_neighbors: int | None) -> None:
    torch._dynamo.reset()
    loss_fn = GLoss(C, n_neighbors=n_neighbors, ignore_index=-100)
    loss_fn = torch.compile(loss_fn, fullgraph=True, backend="aot_eager") if compiled else loss_fn
    expected = GLoss(C, n_neighbors=n_neighbors)(*batch(-1))
    torch.testing.assert_close(loss_fn(*batch(-100)), expected)
    for wrong in (-1, -101):
        with pytest.raises(ValueError, match=f"labels must be 0..3 or -100, got {wrong} for document 3"):
            loss_fn(*batch(wrong))


@on_cpu
@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize("wrong", WRONG_LABELS)
def test_propagate_labels_names_a_wrong_label(wrong: int, backend: str) -> None:
    x, labels, _ = batch(wrong)
    with pytest.raises(ValueError, match=f"^labels must be .*, got {wrong} for document 3"):
        propagate_labels(similarity_graph(x, 5), labels, C, backend=backend)


def direct(backend: str, wrong: int, where: str, **how: object) -> tuple[Tensor, ...]:
    """The backend's dense loss as the operator calls it, one label or target wrong, past every check in Python."""
    x, labels, hidden = batch()
    inputs = {"labels": torch.where(hidden, -1, labels), "targets": labels.clone()}
    inputs[where][3 if where == "targets" else 4] = wrong
    options = {"alpha": None, "normalization": "row", "target": "nll", **how}
    weight = torch.linspace(0.5, 2, C, dtype=torch.float64)
    problem = Batch(
        x, torch.full((N,), 2.0, dtype=torch.float64), *inputs.values(), hidden, weight, C, smoothing=0.01, **options
    )
    return _backends.kernels(backend).dense_loss(problem, True)


@pytest.mark.parametrize(
    "how",
    [{}, {"target": "published", "normalization": "published"}, {"alpha": 0.8, "normalization": "symmetric"}],
    ids=str,
)
@pytest.mark.parametrize("where", ["labels", "targets"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_kernels_index_with_classes_only(backend: str, where: str, how: dict[str, object]) -> None:
    at = 3 if where == "targets" else 4
    for wrong in WRONG_LABELS:
        if backend == "cpu":
            with pytest.raises(ValueError, match=f"^labels must be .*, got {wrong} for document {at}"):
                direct(backend, wrong, where, **how)
            continue
        loss, f, _, _, grad, _ = direct(backend, wrong, where, **how)
        assert loss.isnan() and grad.isnan().all()
        others = torch.arange(N) != at
        assert f[at].isnan().all()
        torch.testing.assert_close(f[others].sum(dim=1), torch.ones(N - 1))


@on_cpu
def test_a_scored_document_has_a_class() -> None:
    with pytest.raises(ValueError, match=r"^labels must be 0..3 where scored, got -1 for document 3"):
        direct("cpu", -1, "targets")


@on_cpu
@pytest.mark.parametrize("backend", ALL)
def test_on_a_gpu_a_wrong_label_makes_nan(
    backend: str, n_neighbors: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code for tensors whose labels nobody reads, run on the CPU; its own operator would raise, so it is left out.

    The sparse solve takes a gradient of NaN for nothing to solve: its gradient is 0.
    """
    monkeypatch.setattr(_labels, "may_be_wrong", lambda labels: True)
    monkeypatch.setattr("gloss_kernels.loss.may_be_wrong", lambda labels: True)
    if backend == "auto" and n_neighbors is None:
        monkeypatch.setattr(_backends, "dense_rows", lambda backend: 0)
    for wrong, at in ((C, 3), (10**12, 5), (-2, 3), (-100, 5)):
        x, labels, hidden = batch(wrong, at)
        loss_fn = GLoss(C, n_neighbors=n_neighbors, backend=backend)
        loss = loss_fn(x.requires_grad_(), labels, hidden)
        grad = torch.autograd.grad(loss, x)[0]
        assert loss.isnan() and (grad.isnan().all() if n_neighbors is None else not (grad > 0).any())
        assert loss_fn.last is not None
        f = loss_fn.last.probabilities
        assert f[at].isnan().all() and f[torch.arange(N) != at].isfinite().all()
        f = propagate_labels(similarity_graph(x.detach(), 5), labels, C, backend=backend).probabilities
        assert f[at].isnan().all() and f[torch.arange(N) != at].isfinite().all()
    monkeypatch.setattr(_settings, "CHECK", True)
    with pytest.raises(ValueError, match=r"^labels must be .*, got -100 for document 5"):
        loss_fn(x, labels, hidden)


def test_a_bank_is_not_loaded_with_wrong_labels() -> None:
    module = CorpusGLoss(labels_for(N, C), 8, num_classes=C, n_neighbors=3)
    state = module.state_dict()
    state["bank.labels"] = state["bank.labels"].index_fill(0, torch.tensor([2]), C)
    with pytest.raises(ValueError, match=r"^labels must be .*, got 4 for document 2"):
        module.load_state_dict(state)


# --------------------------------------------------------------------------------- other inputs by address
@pytest.mark.parametrize("backend", AUTO_AND_KERNELS)
def test_class_weights_of_any_stride(backend: str) -> None:
    weight = torch.tensor([1.0, 9.0, 2.0, 9.0, 3.0, 9.0, 4.0], dtype=torch.float64)[::2]
    expected = GLoss(C, class_weight=weight.clone(), backend=backend)(*batch())
    assert torch.equal(GLoss(C, class_weight=weight, backend=backend)(*batch()), expected)
    one = torch.ones((), dtype=torch.float64).expand(C)
    torch.testing.assert_close(GLoss(C, class_weight=one, backend=backend)(*batch()), GLoss(C)(*batch()))


@pytest.mark.parametrize("backend", AUTO_AND_KERNELS)
def test_class_weights_set_later_have_a_weight_a_class(backend: str) -> None:
    loss_fn = GLoss(C, class_weight=torch.ones(C), backend=backend)
    loss_fn.class_weight = torch.ones(2)
    with pytest.raises(ValueError, match="class_weight must have shape"):
        loss_fn(*batch())


@pytest.mark.parametrize("backend", ALL)
def test_a_graph_by_hand_of_any_stride(backend: str) -> None:
    graph, labels = similarity_graph(documents(N, 8), 5), labels_for(N, C)
    expected = propagate_labels(graph, labels, C, backend=backend).probabilities
    spread = [torch.stack([x, torch.full_like(x, 10**6)], dim=1)[:, 0] for x in graph[:3]]
    found = propagate_labels(SimilarityGraph(*spread), labels, C, backend=backend).probabilities
    assert torch.equal(found, expected)


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize("wrong", [-1, N, 10**12])
def test_neighbors_are_nodes(wrong: int, backend: str) -> None:
    x = documents(N, 8)
    values, indices = cosine_topk(x, k=5)
    indices[7, 2] = wrong
    for sigma in (0.5, torch.full((N,), 0.5)):
        with pytest.raises(ValueError, match=f"^neighbors.indices must be rows in 0..{N - 1}, got {wrong}"):
            similarity_graph(x, 5, sigma=sigma, neighbors=TopK(values, indices), backend=backend)


@pytest.mark.parametrize("backend", ALL)
def test_a_hint_may_hold_anything(backend: str) -> None:
    x = documents(60, 8)
    expected = cosine_topk(x, k=5, backend=backend)
    hint = expected.indices.clone()
    hint[::2] = torch.tensor([-1, 60, 10**12, -(2**63), 2**63 - 1])
    assert torch.equal(cosine_topk(x, k=5, hint=hint, backend=backend).indices, expected.indices)


# ------------------------------------------------------------------------------------------ compiled as eager
BROKEN: dict[str, tuple[Callable[[SimilarityGraph], SimilarityGraph], str]] = {
    "columns": (
        lambda g: g._replace(col_indices=g.col_indices.index_fill(0, torch.tensor([10]), 10**9)),
        "col_indices",
    ),
    "negative columns": (
        lambda g: g._replace(col_indices=g.col_indices.index_fill(0, torch.tensor([0]), -1)),
        "col_ind",
    ),
    "rows": (lambda g: g._replace(crow_indices=g.crow_indices.index_fill(0, torch.tensor([N]), 10**9)), "crow_indices"),
    "weights": (lambda g: g._replace(values=g.values.index_fill(0, torch.tensor([3]), -1.0)), "values must be finite"),
}


@on_cpu
@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_graph_raises_in_compiled_code(how: str) -> None:
    torch._dynamo.reset()
    labels = labels_for(N, C)

    def run(crow: Tensor, col: Tensor, values: Tensor) -> Tensor:
        return propagate_labels(SimilarityGraph(crow, col, values), labels, C).probabilities

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    spoil, message = BROKEN[how]
    for n_neighbors in (5, 4, 6):  # three numbers of edges
        good = similarity_graph(documents(N, 8), n_neighbors)
        torch.testing.assert_close(compiled(*good[:3]), run(*good[:3]))
        for f in (run, compiled):
            with pytest.raises(ValueError, match=f"graph.{message}" if "values" not in message else message):
                f(*spoil(good)[:3])


@on_cpu
@pytest.mark.parametrize("mode", ["eager", "compiled", "exported"])
def test_numbers_are_checked_compiled_or_not(mode: str, n_neighbors: int | None) -> None:
    torch._dynamo.reset()
    loss_fn = GLoss(C, n_neighbors=n_neighbors, sigma=torch.nn.Parameter(torch.tensor(0.5)))
    sigma, run = loss_fn.sigma, loss_fn
    if mode == "compiled":
        run = torch.compile(loss_fn, fullgraph=True, backend="aot_eager")
    if mode == "exported":
        run = torch.export.export(loss_fn, batch()).module()
        sigma = next(run.parameters())
    assert run(*batch()).isfinite()
    for wrong in (0.0, torch.nan, -1.0, 1e-30, torch.inf):
        sigma.data = torch.tensor(wrong)
        with pytest.raises(ValueError, match="sigma must be a finite number of at least 1e-06, got"):
            run(*batch())
    sigma.data = torch.tensor(0.5)
    x, labels, hidden = batch()
    x[4, 1] = torch.nan
    with pytest.raises(ValueError, match="embeddings: row 4 contains NaN or Inf"):
        run(x, labels, hidden)
    for wrong in (C, -100):
        with pytest.raises(ValueError, match=f"labels must be 0..3 or -1, got {wrong} for document 3"):
            run(*batch(wrong))


@on_cpu
@pytest.mark.parametrize("heuristic", [sigma_root, sigma_self_tuning])
def test_heuristics_name_the_row_compiled_or_not(heuristic: Callable[[Tensor], Tensor]) -> None:
    torch._dynamo.reset()
    x = documents(N, 8)
    x[4, 1] = torch.nan
    for f in (heuristic, torch.compile(heuristic, fullgraph=True, backend="aot_eager")):
        with pytest.raises(ValueError, match="embeddings: row 4 contains NaN or Inf"):
            f(x)


@pytest.mark.parametrize("backend", ALL)
def test_on_a_gpu_a_wrong_sigma_makes_nan(
    backend: str, n_neighbors: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code for a sigma that nobody reads."""
    monkeypatch.setattr("gloss_kernels._checks._library.capturing", lambda x: x.numel() == 1 and x.is_floating_point())
    monkeypatch.setattr("gloss_kernels.loss.may_be_wrong", lambda labels: True)
    for wrong in (0.0, -1.0, torch.nan):
        loss_fn = GLoss(C, n_neighbors=n_neighbors, sigma=torch.tensor(wrong), backend=backend)
        assert loss_fn(*batch()).isnan()


def test_labels_that_are_no_classes_are_named() -> None:
    x, labels, _ = batch(10**12)
    graph = similarity_graph(x, 5)
    for call in (lambda: propagate_labels(graph, labels), lambda: CorpusGLoss(labels, 8, n_neighbors=3)):
        with pytest.raises(
            ValueError, match=r"^labels must be numbers of classes, .* got 1000000000000 for document 3"
        ):
            call()
    unsigned = batch(-1)[1].to(torch.uint8)  # 255
    for call in (lambda: propagate_labels(graph, unsigned), lambda: GLoss(256)(x, unsigned),
                 lambda: CorpusGLoss(unsigned, 8, n_neighbors=3)):  # fmt: skip
        with pytest.raises(TypeError, match=r"^labels must be torch.int64, where -1 stands for none, got torch.uint8"):
            call()


def test_products_fit() -> None:
    for b in (torch.ones(4, 2), torch.ones(2, 4).T):
        with pytest.raises(ValueError, match=r"^b must be float32 with 3 rows"):
            torch.ops.gloss_kernels.product(torch.ones(2, 3), b)

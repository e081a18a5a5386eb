"""CorpusGLoss against a dense float64 graph of bank and batch; the bank, its life over steps, and resuming."""

from __future__ import annotations

import copy
import io
import itertools

import pytest
import torch
from conftest import AUTO_AND_KERNELS, DTYPES, documents, labels_for
from torch import Tensor

from gloss_kernels import CorpusGLoss, cosine_topk, propagate_labels, reference, similarity_graph
from gloss_kernels.corpus.bank import CHUNK, SLACK, Bank
from gloss_kernels.corpus.harmonic import harmonic

N, D, C = 60, 12, 5


def module(n: int = N, labeled: float = 1.0, dtype: torch.dtype = torch.float64, **options) -> CorpusGLoss:
    """With its bank filled."""
    loss_fn = CorpusGLoss(
        labels_for(n, C, labeled), D, **{"num_classes": C, "n_neighbors": 6, "batch_neighbors": 3, "sigma": 0.5,
                                         "bank_dtype": dtype, **options}
    )  # fmt: skip
    loss_fn.refresh(documents(n, D, torch.float64))
    return loss_fn


def need_index() -> None:
    pytest.importorskip("faiss")


def batch_of(b: int, n: int = N, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Live rows, some way from those in the bank, and ids."""
    ids = torch.randperm(n, generator=torch.Generator().manual_seed(b), device="cpu")[:b]
    return documents(n, D, torch.float64, seed=4)[ids].to(dtype), ids.to(torch.get_default_device())


def one_each(soft: Tensor) -> Tensor:
    """Probabilities as a solve to some tolerance gives them, made to be some."""
    return torch.nn.functional.normalize(soft.double().clamp(min=0), 1, dim=1)


def dense(loss_fn: CorpusGLoss, x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """The loss and F [b, C] by a dense graph of all documents, the batch's rows live, joined by the same edges."""
    bank, b = loss_fn.bank, len(x)
    n, k, m = len(bank), loss_fn.n_neighbors, min(loss_fn.batch_neighbors, len(x) - 1)
    u = reference.unit_rows(bank.rows).index_put((ids,), reference.unit_rows(x))
    inside = torch.zeros(n, dtype=torch.bool).index_fill(0, ids, True)
    c = u @ u.T
    of_batch = c[ids].detach()
    soft = torch.nn.functional.one_hot(bank.labels.clamp(min=0), C).double()
    speaks = bank.labels >= 0
    if len(bank.soft):
        soft = torch.where(speaks[:, None], soft, one_each(bank.soft))
        speaks = speaks | bank.reachable
    order = of_batch.masked_fill(inside | ~bank.filled, -torch.inf).sort(dim=1, descending=True, stable=True)
    wanted = order.indices[:, : min(k, int((bank.filled & ~inside).sum()))]
    weights = reference.gaussian_weights(c[ids], loss_fn.sigma)
    outer = weights * torch.zeros(b, n).double().scatter(1, wanted, 1.0) * speaks
    own = torch.eye(b, dtype=torch.bool)
    nearest = of_batch[:, ids].masked_fill(own, -torch.inf).topk(m).indices
    inner = weights[:, ids] * torch.zeros(b, b).double().scatter(1, nearest, 1.0)
    # As one graph: the batch, every document that speaks for a class, and a node a class that they lean on entirely.
    graph = torch.zeros(b + C, b + C).double()
    graph[:b, :b] = inner + inner.T
    graph[:b, b:] = outer @ soft
    graph[b:, :b] = graph[:b, b:].T
    visible = torch.cat([torch.full((b,), -1), torch.arange(C)])
    f, _ = reference.propagate_labels(graph, visible, C)
    y = bank.labels[ids]
    return reference.loss_on_hidden(f[:b], y, y >= 0, loss_fn.target, loss_fn.class_weight), f[:b]


def loss_and_grad(loss_fn: CorpusGLoss, x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    loss = loss_fn(x, ids)
    return loss.detach(), torch.autograd.grad(loss, x)[0]


VARIANTS = {
    "default": {},
    "paper target": {"target": "published"},
    "weighted": {"class_weight": torch.tensor([0.5, 1.0, 2.0, 4.0, 0.0])},
    "no batch edges": {"batch_neighbors": 0},
    "one neighbour": {"n_neighbors": 1},
    "narrow": {"sigma": 0.2},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("labeled", [1.0, 0.5, 0.05])
@pytest.mark.parametrize("b", [1, 2, 7, 33, 59, 60])
def test_step_against_dense(b: int, labeled: float, variant: str) -> None:
    loss_fn = module(labeled=labeled, **VARIANTS[variant])
    x, ids = batch_of(b)
    loss, grad = loss_and_grad(loss_fn, x, ids)
    x.requires_grad_()
    truth, f = dense(loss_fn, x, ids)
    torch.testing.assert_close(loss, truth.detach(), rtol=0, atol=1e-9)
    assert loss_fn.last is not None
    torch.testing.assert_close(loss_fn.last.probabilities, f.detach(), rtol=0, atol=1e-8)
    truth_grad = torch.autograd.grad(truth, x)[0] if truth.requires_grad else torch.zeros_like(x)
    torch.testing.assert_close(grad, truth_grad, rtol=1e-7, atol=1e-9 * float(truth_grad.abs().max().clamp(min=1)))


def test_the_folded_classes_are_the_whole_graph() -> None:
    """dense() folds labelled documents into class nodes; here it is held to the graph that has them as nodes."""
    loss_fn = module()
    x, ids = batch_of(9)
    _, f = dense(loss_fn, x, ids)
    u = reference.unit_rows(loss_fn.bank.rows).index_put((ids,), reference.unit_rows(x))
    c = u @ u.T
    graph = torch.zeros(N, N).double()
    for i in ids.tolist():
        others = torch.tensor([j for j in range(N) if j not in ids.tolist()])
        mates = torch.tensor([j for j in ids.tolist() if j != i])
        for group, k in ((others, 6), (mates, 3)):
            for j in group[c[i, group].topk(k).indices].tolist():
                weight = torch.exp((c[i, j] - 1) / 0.25)
                graph[i, j] += weight
                graph[j, i] += weight
    visible = loss_fn.bank.labels.index_fill(0, ids, -1)
    whole, _ = reference.propagate_labels(graph, visible, C)
    torch.testing.assert_close(f, whole[ids], rtol=0, atol=1e-10)


@pytest.mark.parametrize("labeled", [1.0, 0.5])
@pytest.mark.parametrize("target", list(reference.TARGETS))
def test_gradcheck(labeled: float, target: str) -> None:
    loss_fn = module(labeled=labeled, target=target).eval()
    x, ids = batch_of(7)
    assert torch.autograd.gradcheck(lambda a: loss_fn(a, ids), (x.requires_grad_(),))


@pytest.mark.parametrize("backend", AUTO_AND_KERNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_of_the_bank(dtype: torch.dtype, backend: str) -> None:
    """The reference has the rows as they are stored, so that only float32 arithmetic differs."""
    loss_fn = module(dtype=dtype, backend=backend, labeled=0.8)
    x, ids = batch_of(9, dtype=torch.float32)
    loss, grad = loss_and_grad(loss_fn.eval(), x, ids)
    truth, _ = dense(loss_fn, x.double(), ids)
    assert loss.dtype == grad.dtype == torch.float32 and loss_fn.bank.rows.dtype == dtype
    torch.testing.assert_close(loss.double(), truth, rtol=0, atol=2e-5)
    with torch.autocast(x.device.type, torch.bfloat16):
        cast, _ = loss_and_grad(loss_fn, x.bfloat16(), ids)
    assert cast.dtype == torch.float32


@pytest.mark.filterwarnings("ignore:gloss_kernels")  # the propagation over the bank, in float32, says so
@pytest.mark.parametrize("labeled", [1.0, 0.3])
@pytest.mark.parametrize("sigma", [0.02, 0.05, 0.1])
def test_weights_beyond_float64(sigma: float, labeled: float) -> None:
    """Rows that hang on all others by exp(-500): what arrives is still right, and everything finite."""
    loss_fn = module(sigma=sigma, labeled=labeled)
    for b in (1, 7, 33, 60):
        loss, grad = loss_and_grad(loss_fn, *batch_of(b))
        assert loss.isfinite() and grad.isfinite().all()
        total = loss_fn.last.probabilities.sum(dim=1)
        torch.testing.assert_close(total, torch.ones_like(total))


def test_a_tight_pair_far_from_the_labels() -> None:
    edges = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).double()
    to_labels = torch.tensor([[3e-80, 0.0, 1e-80], [0.0, 2e-80, 2e-80]], dtype=torch.float64)
    f, reachable = harmonic(edges, to_labels)
    truth = torch.tensor([3.0, 2.0, 3.0]).double() / 8
    torch.testing.assert_close(f, truth.expand(2, 3), rtol=0, atol=1e-9)
    assert reachable.all()


# ------------------------------------------------------------------------------------------- the search
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", ["plain", "copies", "all the same", "half empty", "opposite"])
def test_search_is_exact(case: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gloss_kernels.corpus.bank.CHUNK", 700)  # the exhaustive search in several pieces
    n, k = 2000, 10
    bank = Bank(torch.zeros(n, dtype=torch.int64), D, 1, dtype, None)
    x = documents(n, D, torch.float64)
    if case == "copies":
        x = x[:40].repeat(50, 1)  # more copies of a row than are looked for
    if case == "all the same":
        x = x[:1].expand(n, D)
    bank.write(None if case != "half empty" else torch.arange(0, n, 2), x if case != "half empty" else x[::2])
    left_out = torch.randperm(n, device="cpu")[:200].to(x.device)
    queries = reference.unit_rows(documents(50, D, torch.float64, seed=3) * (-1 if case == "opposite" else 1))
    found, cosines = bank.search(queries.float(), k, left_out, "auto")
    allowed = bank.filled.clone()
    allowed[left_out] = False
    assert allowed[found].all() and all(len(set(row)) == k for row in found.tolist())
    c = queries.float().double() @ reference.unit_rows(bank.rows).T
    selected, others = c.gather(1, found), c.masked_fill(~allowed, -torch.inf).scatter(1, found, -torch.inf)
    assert (selected.amin(dim=1) >= others.amax(dim=1) - 2e-6).all()
    assert (selected.diff(dim=1) <= 2e-6).all()
    torch.testing.assert_close(cosines.double(), selected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_rounded_queries_alone_would_not_be_exact(dtype: torch.dtype) -> None:
    """Rows that are equally near to a query, but lie along or against what rounding adds to it: the search by the
    rounded query finds those along. This is what the proof in Bank.search is for."""
    d, k = 64, 10
    query = torch.nn.functional.normalize(documents(1, d, torch.float64), dim=1)
    added = query.to(dtype).double() @ (torch.eye(d) - query.T @ query)
    farther = torch.arange(3000)[:, None] * (added.norm() / 6)  # from row to row some 1/30 less cosine than it moves
    added = torch.nn.functional.normalize(added, dim=1)
    noise = documents(3000, d, torch.float64, seed=2)
    noise -= noise @ query.T @ query + noise @ added.T @ added
    side = torch.where(torch.arange(3000) % 2 == 0, 1.0, -1.0)[:, None]
    bank = Bank(torch.zeros(3000, dtype=torch.int64), d, 1, dtype, None)
    bank.write(None, query + 0.5 * side * added + (0.3 + farther) * torch.nn.functional.normalize(noise, dim=1))
    c = query.float().double() @ reference.unit_rows(bank.rows).T
    best = c.topk(k).values[:, -1] - 2e-6
    among = cosine_topk(query.to(dtype), bank.rows, k + SLACK).indices
    assert c.gather(1, among).topk(k).values[:, -1] < best
    assert c.gather(1, bank.search(query.float(), k, None, "auto")[0]).amin() >= best


# ------------------------------------------------------------------------------------------- steps
def test_the_batch_does_not_see_its_own_rows_and_labels() -> None:
    loss_fn = module()
    x, ids = batch_of(9)
    before, _ = loss_and_grad(loss_fn, x, ids)
    loss_fn.refresh(documents(9, D, torch.float64, seed=8), ids)
    assert loss_and_grad(loss_fn, x, ids)[0] == before
    y = loss_fn.bank.labels[ids].clone()
    p = loss_fn.last.probabilities
    loss_fn.bank.labels[ids] = (y + 1) % C
    loss_fn(x, ids)
    assert torch.equal(loss_fn.last.probabilities, p)


def test_the_bank_is_written_after_the_step() -> None:
    loss_fn = module()
    rows = loss_fn.bank.rows.clone()
    x, ids = batch_of(9)
    loss = loss_fn(x.requires_grad_(), ids)
    assert torch.equal(loss_fn.bank.rows, rows)
    loss.backward()
    assert torch.equal(loss_fn.bank.rows, rows) and x.grad is not None
    loss_fn.flush()
    truth = rows.index_put((ids,), reference.unit_rows(x.detach()))
    torch.testing.assert_close(loss_fn.bank.rows, truth, rtol=0, atol=1e-15)
    for use in (
        lambda: loss_fn(*batch_of(4)),
        lambda: loss_fn.predict(x.detach()),
        lambda: loss_fn.state_dict(),
        lambda: loss_fn.add(torch.tensor([0])),
        lambda: loss_fn.propagate(),
        lambda: loss_fn.refresh(x.detach()[:0], ids[:0]),
    ):
        loss_fn(2 - x.detach(), ids)
        use()
        torch.testing.assert_close(loss_fn.bank.rows[ids], reference.unit_rows(2 - x.detach()), rtol=0, atol=1e-15)
        loss_fn.refresh(x.detach(), ids)


def test_eval_and_no_grad_leave_the_bank_alone() -> None:
    loss_fn = module(labeled=0.5, propagate_every=1)
    loss_fn.propagate()
    before = {name: value.clone() for name, value in loss_fn.state_dict().items()}
    x, ids = batch_of(9)
    loss_fn.eval()
    inner = loss_fn(x.requires_grad_(), ids)
    inner.backward()
    with torch.no_grad():
        assert loss_fn.train()(x, ids) == inner.detach()
    after = loss_fn.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_two_forwards_before_one_backward() -> None:
    """The second writes rows that the first has used: neither autograd nor the numbers mind."""
    loss_fn, other = module(), module()
    (x, ids), (z, more) = batch_of(9), batch_of(20)
    x.requires_grad_()
    z.requires_grad_()
    (loss_fn(x, ids) + loss_fn(z, more)).backward()
    first = loss_and_grad(other, x, ids)[1]
    second = loss_and_grad(other, z, more)[1]
    assert torch.equal(x.grad, first) and torch.equal(z.grad, second)


def train(loss_fn: CorpusGLoss, start: int, steps: int, weight: Tensor) -> list[float]:
    """Steps of plain gradient descent on a linear map; their losses."""
    x, losses = documents(N, D, torch.float32, seed=6), []
    for step in range(start, start + steps):
        ids = torch.randperm(N, generator=torch.Generator().manual_seed(step), device="cpu")[:13].to(x.device)
        weight.requires_grad_()
        loss = loss_fn(x[ids] @ weight, ids)
        weight = (weight - 0.1 * torch.autograd.grad(loss, weight)[0]).detach()
        losses.append(float(loss.detach()))
    losses += weight.flatten().tolist()
    return losses


@pytest.mark.parametrize("index", [None, "flat"])
@pytest.mark.parametrize("options", [{}, {"propagate_every": 3}, {"propagate_every": None}], ids=str)
@pytest.mark.parametrize("labeled", [1.0, 0.5])
def test_resumed_is_bit_identical(labeled: float, options: dict, index: str | None) -> None:
    """Saved after 4 of 11 steps: in one run it goes on, in the other a new module does."""
    if index:
        need_index()
    options = {"labeled": labeled, "dtype": torch.float16, "index": index, **options}
    options |= {"refresh_every": 3} if index else {}
    weight = torch.eye(D)
    whole = module(**options)
    start = train(whole, 0, 4, weight)
    weight = torch.tensor(start[4:]).view(D, D)
    stream = io.BytesIO()
    torch.save(whole.state_dict(), stream)
    rest = train(whole, 4, 7, weight.clone())
    stream.seek(0)
    resumed = CorpusGLoss(torch.full((N,), -1), D, num_classes=C, n_neighbors=6, batch_neighbors=3, sigma=0.5,
                          index=index, refresh_every=3 if index else None,
                          propagate_every=options.get("propagate_every"))  # fmt: skip
    resumed.load_state_dict(torch.load(stream, weights_only=True))
    assert train(resumed, 4, 7, weight.clone()) == rest
    assert resumed.steps == whole.steps == 11
    mine, theirs = resumed.state_dict(), whole.state_dict()
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_training_separates_classes() -> None:
    loss_fn = module(dtype=torch.float16)
    losses = train(loss_fn, 0, 60, torch.eye(D))[:60]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


# ------------------------------------------------------------------------------------------- unlabelled documents
@pytest.mark.parametrize("filled", [N, 40])
def test_soft_labels_are_those_of_the_stored_graph(filled: int) -> None:
    loss_fn = CorpusGLoss(labels_for(N, C, 0.3), D, num_classes=C, n_neighbors=6, sigma=0.5, tol=1e-5)
    ids = torch.randperm(N, device="cpu")[:filled].sort().values.to(torch.get_default_device())
    loss_fn.refresh(documents(N, D)[ids], ids)
    result = loss_fn.propagate()
    graph = similarity_graph(loss_fn.bank.rows[ids], 6, sigma=0.5)
    truth = propagate_labels(graph, loss_fn.bank.labels[ids], C, tol=1e-5)
    assert torch.equal(result.probabilities[ids], truth.probabilities)
    assert torch.equal(loss_fn.bank.reachable[ids], truth.reachable) and int(loss_fn.bank.reachable.sum()) <= filled
    again = loss_fn.propagate()
    assert again.iterations <= truth.iterations // 2  # it starts from the result before
    torch.testing.assert_close(again.probabilities, result.probabilities, rtol=0, atol=1e-3)


def test_unlabelled_documents_carry_labels_further() -> None:
    """A chain of rows, labels at its ends: in the middle only unlabelled neighbours can tell."""
    angle = torch.linspace(0, 1.5, N)
    x = torch.stack([angle.cos(), angle.sin()], dim=1)
    labels = torch.full((N,), -1)
    labels[:3], labels[-3:] = 0, 1
    labels[20], labels[40] = 0, 1
    hidden = torch.tensor([20, 40])
    loss_fn = CorpusGLoss(labels, 2, n_neighbors=4, sigma=0.1).eval()
    loss_fn.bank.labels[hidden] = -1  # what is propagated must not have seen the answer
    loss_fn.refresh(x)
    loss_fn.propagate()
    loss_fn.bank.labels[hidden] = labels[hidden]
    loss = loss_fn(x[hidden], hidden)
    assert loss_fn.last.reachable.all() and loss < 0.69
    loss_fn.bank.reached.zero_()  # as if nothing had been propagated
    loss = loss_fn(x[hidden], hidden)
    assert not loss_fn.last.reachable.any()
    torch.testing.assert_close(loss, torch.tensor(2.0).log())


def test_when_labels_are_propagated(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    original = CorpusGLoss.propagate

    def counted(self: CorpusGLoss):
        nonlocal calls
        calls += 1
        return original(self)

    monkeypatch.setattr(CorpusGLoss, "propagate", counted)
    for every, batch, steps, wanted in ((1, 9, 5, 5), (3, 9, 7, 3), (None, 20, 7, 3), (None, 20, 3, 1)):
        calls, loss_fn = 0, module(labeled=0.5, propagate_every=every)
        for _ in range(steps):
            loss_fn(*batch_of(batch))
        assert calls == wanted, (every, batch, steps)
    calls, loss_fn = 0, module()
    loss_fn(*batch_of(9))
    assert calls == 0  # every label is known


# ------------------------------------------------------------------------------------------- the rest
def test_predict() -> None:
    for labeled in (1.0, 0.5):
        loss_fn = module(labeled=labeled)
        x = documents(30, D, torch.float64, seed=9)
        result = loss_fn.predict(x)
        bank, u = loss_fn.bank, reference.unit_rows(x)
        c, j = (u @ bank.rows.T).topk(6)
        w = torch.exp((c - 1) / 0.25)
        says = torch.nn.functional.one_hot(bank.labels.clamp(min=0), C).double()
        if labeled < 1:
            says = torch.where(bank.labels[:, None] >= 0, says, one_each(bank.soft))
            assert bank.reachable.all()
        truth = (w[:, :, None] * says[j]).sum(dim=1) / w.sum(dim=1, keepdim=True)
        torch.testing.assert_close(result.probabilities, truth, rtol=0, atol=1e-6)
        assert result.reachable.all()
        one = loss_fn.predict(x[3:4])
        torch.testing.assert_close(one.probabilities, result.probabilities[3:4], rtol=0, atol=1e-12)
        assert loss_fn.predict(x[:0]).probabilities.shape == (0, C)


def test_classes_absent_from_the_neighbours() -> None:
    labels = torch.zeros(N, dtype=torch.int64)
    labels[:9] = 4
    loss_fn = CorpusGLoss(labels, D, n_neighbors=3)
    loss_fn.refresh(documents(N, D))
    x, _ = batch_of(9, dtype=torch.float32)
    loss, grad = loss_and_grad(loss_fn, x, torch.arange(9))
    torch.testing.assert_close(loss, -torch.tensor(0.01 / 5).log())
    assert grad.isfinite().all()


def test_nothing_to_score_nothing_to_reach() -> None:
    loss_fn = module()
    loss_fn.bank.labels[:9] = -1
    loss, grad = loss_and_grad(loss_fn, documents(9, D), torch.arange(9))
    assert loss == 0 and (grad == 0).all()
    loss, grad = loss_and_grad(module(), documents(N, D), torch.arange(N))  # the batch is the corpus
    torch.testing.assert_close(loss, torch.tensor(float(C)).log())
    assert (grad == 0).all()
    loss, grad = loss_and_grad(module(), documents(N, D)[:0], torch.arange(0))
    assert loss == 0 and grad.shape == (0, D)
    x = documents(9, D)
    x[2] = 0
    loss, grad = loss_and_grad(module(), x, torch.arange(9))
    assert loss.isfinite() and grad.isfinite().all() and (grad[2] == 0).all()


def test_refresh_from_and_add() -> None:
    x, seen = documents(N, D), []
    loss_fn = CorpusGLoss(labels_for(N, C, 1.0), D, n_neighbors=6)
    ids = torch.randperm(N, device="cpu").to(x.device)
    loss_fn.refresh_from(lambda rows: 3 * rows, ((some, x[some]) for some in ids.split(16)), progress=seen.append)
    torch.testing.assert_close(loss_fn.bank.rows, reference.unit_rows(x).half(), rtol=0, atol=1e-3)
    assert seen == pytest.approx([16 / 60, 32 / 60, 48 / 60, 1.0])

    new = loss_fn.add(torch.tensor([1, 2, -1]))
    assert new.tolist() == [60, 61, 62] and len(loss_fn.bank) == 63 and loss_fn.bank.has_unlabeled
    some, ids = batch_of(9, dtype=torch.float32)
    loss_fn(some, ids)
    assert not loss_fn.bank.filled[60:].any()  # and are no neighbours, see test_search_is_exact
    loss_fn(documents(3, D, seed=2), new)
    loss_fn.flush()
    assert loss_fn.bank.filled.all()
    last = loss_fn.add(torch.tensor([3]), documents(1, D, seed=5))
    assert loss_fn.predict(documents(1, D, seed=5)).reachable.all() and last.tolist() == [63]
    fresh = CorpusGLoss(labels_for(N, C, 1.0), D, n_neighbors=6)
    fresh.load_state_dict(loss_fn.state_dict())
    assert torch.equal(fresh.predict(x).probabilities, loss_fn.predict(x).probabilities)
    assert copy.deepcopy(fresh).bank.num_filled == 64


def test_moving_keeps_the_dtypes_of_the_bank() -> None:
    loss_fn = module(labeled=0.5, dtype=torch.float16, class_weight=torch.ones(C), bank_device="cpu")
    loss_fn.propagate()
    moved = torch.nn.ModuleDict({"loss": loss_fn}).double()["loss"]
    assert moved.bank.rows.dtype == torch.float16 and moved.bank.soft.dtype == torch.float32
    assert moved.class_weight.dtype == torch.float64
    assert module(labeled=0.5).half().bank.rows.dtype == torch.float64
    meta = module().to("meta")
    assert meta.bank.rows.is_meta and not loss_fn.to("meta").bank.rows.is_meta
    assert "n_neighbors=6" in repr(moved)


def test_host_bank_gives_the_same_numbers() -> None:
    x, ids = batch_of(9)
    here, host = (loss_and_grad(module(labeled=0.5, bank_device=device), x, ids) for device in (None, "cpu"))
    torch.testing.assert_close(here, host, rtol=1e-6, atol=1e-8)


def test_an_index_of_some_rows_gives_the_exact_soft_labels() -> None:
    need_index()
    ids = torch.arange(0, N, 2)
    found = []
    for index in (None, "flat"):
        loss_fn = CorpusGLoss(labels_for(N, C, 0.3), D, num_classes=C, n_neighbors=6, sigma=0.5, index=index)
        loss_fn.refresh(documents(30, D), ids)
        found.append(loss_fn.propagate())
    torch.testing.assert_close(found[1].probabilities, found[0].probabilities, rtol=0, atol=1e-4)
    assert torch.equal(found[1].reachable, found[0].reachable) and found[0].reachable[ids].any()
    assert not found[0].reachable[1::2].any()


@pytest.mark.parametrize("labeled", [1.0, 0.3])
def test_an_exhaustive_index_gives_the_exact_numbers(labeled: float) -> None:
    need_index()
    x, ids = batch_of(9, dtype=torch.float32)
    exact, indexed = module(labeled=labeled), module(labeled=labeled, index={"kind": "flat"}, refresh_every=2)
    for step in range(5):  # the index is up to a step old, and holds the batch's rows
        rows = x + 0.01 * step
        torch.testing.assert_close(loss_and_grad(indexed, rows, ids), loss_and_grad(exact, rows, ids))
    torch.testing.assert_close(indexed.predict(x).probabilities, exact.predict(x).probabilities)


def test_an_index_is_rebuilt_and_skips_what_has_no_row() -> None:
    need_index()
    loss_fn = CorpusGLoss(labels_for(N, C, 1.0), D, n_neighbors=6, index="flat", refresh_every=2)
    x = documents(N, D)
    loss_fn.refresh(x[:40], torch.arange(40))
    built = []
    for step in range(5):
        loss_fn(x[step : step + 4], torch.arange(step, step + 4))
        built.append(loss_fn.index._index)
    assert [a is b for a, b in itertools.pairwise(built)] == [True, False, True, False]
    loss_fn(x[40:50], torch.arange(40, 50))
    new = loss_fn.add(torch.zeros(30, dtype=torch.int64), documents(30, D, seed=3))
    loss_fn(x[:4], torch.arange(4))
    assert loss_fn.last.reachable.all() and len(new) == 30


def test_an_index_moves_and_is_copied_with_the_module() -> None:
    need_index()
    x, ids = batch_of(9, dtype=torch.float32)
    loss_fn = module(index="flat").eval()
    loss_fn(x, ids)
    assert loss_fn.index._index is not None and loss_fn.index._index.recall_k == loss_fn.n_neighbors
    before = loss_fn.predict(x)
    for make in (copy.deepcopy, lambda module: module.to(x.device)):
        other = make(loss_fn)
        assert other.index._index is None  # built anew, where the rows are now
        torch.testing.assert_close(other.predict(x), before)


def test_autocast_changes_nothing() -> None:
    x = documents(30, D, seed=9)
    plain, cast = (module(labeled=0.5, dtype=torch.float32) for _ in range(2))
    with torch.autocast(x.device.type, torch.bfloat16):
        result, soft = cast.predict(x), cast.propagate().probabilities
    assert torch.equal(result.probabilities, plain.predict(x).probabilities)
    assert torch.equal(soft, plain.propagate().probabilities)


def test_soft_labels_follow_a_refreshed_bank() -> None:
    x, turned = documents(20, D, torch.float64, seed=9), torch.randn(N, D, dtype=torch.float64)
    loss_fn, other = module(labeled=0.5), module(labeled=0.5)
    loss_fn.predict(x)  # propagates
    for each in (loss_fn, other):
        each.refresh(turned)
    torch.testing.assert_close(loss_fn.predict(x).probabilities, other.predict(x).probabilities, rtol=0, atol=1e-3)


def test_bad_arguments_are_named() -> None:
    labels, x = labels_for(N, C, 1.0), documents(N, D)
    loss_fn, empty = module(dtype=torch.float32), CorpusGLoss(labels, D)
    bad_row = x[:5].clone()
    bad_row[3, 2] = torch.inf
    five = torch.arange(5)
    for error, match, call in [
        (TypeError, "^labels", lambda: CorpusGLoss([0, 1], D)),
        (TypeError, "^labels", lambda: CorpusGLoss(labels.float(), D)),
        (ValueError, "^labels", lambda: CorpusGLoss(labels[:, None], D)),
        (
            ValueError,
            "^labels must have one of at least 0, got no document",
            lambda: CorpusGLoss(torch.full((40,), -1), D),
        ),
        (ValueError, "^labels must be 0..3 or -1, got 4 for document 4", lambda: CorpusGLoss(labels, D, num_classes=4)),
        (ValueError, "^dim", lambda: CorpusGLoss(labels, 0)),
        (
            ValueError,
            "^n_neighbors must be less than the 60 documents, got 60",
            lambda: CorpusGLoss(labels, D, n_neighbors=60),
        ),
        (ValueError, "^n_neighbors", lambda: CorpusGLoss(labels, D, n_neighbors=0)),
        (ValueError, "^batch_neighbors", lambda: CorpusGLoss(labels, D, batch_neighbors=-1)),
        (ValueError, "^sigma", lambda: CorpusGLoss(labels, D, sigma=0)),
        (ValueError, "^target", lambda: CorpusGLoss(labels, D, target="mse")),
        (ValueError, "^class_weight", lambda: CorpusGLoss(labels, D, class_weight=torch.ones(3))),
        (ValueError, "^bank_dtype", lambda: CorpusGLoss(labels, D, bank_dtype=torch.int8)),
        (TypeError, "^index", lambda: CorpusGLoss(labels, D, index=3)),
        (ValueError, "^index must .*got 'annoy'", lambda: CorpusGLoss(labels, D, index="annoy")),
        (
            ValueError,
            "^index must have arguments of NeighborIndex.build .*, got 'recal'",
            lambda: CorpusGLoss(labels, D, index={"recal": 0.9}),
        ),
        (ValueError, "^refresh_every", lambda: CorpusGLoss(labels, D, index="flat", refresh_every=0)),
        (ValueError, "^refresh_every", lambda: CorpusGLoss(labels, D, refresh_every=5)),
        (ValueError, "^propagate_every", lambda: CorpusGLoss(labels, D, propagate_every=0)),
        (ValueError, "^tol", lambda: CorpusGLoss(labels, D, tol=0)),
        (ValueError, "^backend", lambda: CorpusGLoss(labels, D, backend="gpu")),
        (RuntimeError, "the memory bank is empty", lambda: empty(x[:5], five)),
        (RuntimeError, "the memory bank is empty", lambda: empty.predict(x[:5])),
        (RuntimeError, "the memory bank is empty", lambda: empty.propagate()),
        (TypeError, "^embeddings", lambda: loss_fn(x[:5].tolist(), five)),
        (ValueError, "^embeddings must have dim = 12 columns, got 7", lambda: loss_fn(x[:5, :7], five)),
        (ValueError, "^embeddings: row 3 contains NaN or Inf", lambda: loss_fn(bad_row, five)),
        (ValueError, "^embeddings: row 3 contains NaN or Inf", lambda: loss_fn.refresh(bad_row, five)),
        (ValueError, "^embeddings must have 60 rows where document_ids is None, got 5", lambda: loss_fn.refresh(x[:5])),
        (ValueError, "^embeddings must have a row per label, 4, got 5", lambda: loss_fn.add(labels[:4], x[:5])),
        (TypeError, "^document_ids", lambda: loss_fn(x[:5], five.int())),
        (ValueError, "^document_ids", lambda: loss_fn(x[:5], torch.arange(4))),
        (ValueError, "^document_ids must be in 0..59, got 60 at entry 4", lambda: loss_fn(x[:5], five + 56)),
        (ValueError, "^document_ids must be in 0..59, got -1 at entry 0", lambda: loss_fn(x[:5], five - 1)),
        (
            ValueError,
            "^document_ids must name each document once, got 2 twice",
            lambda: loss_fn(x[:5], torch.tensor([0, 2, 1, 2, 3])),
        ),
        (ValueError, "^labels must .*got 9 for document 0", lambda: loss_fn.add(torch.tensor([9]))),
    ]:
        with pytest.raises(error, match=match):
            call()
    assert len(loss_fn.bank) == N and CHUNK > 0
    with pytest.raises(RuntimeError, match="size mismatch for bank"):
        loss_fn.load_state_dict(CorpusGLoss(labels, D + 1).state_dict())

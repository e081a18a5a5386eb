"""The state of CorpusGLoss is its buffers: inference mode, averages and copies of models, several processes."""

from __future__ import annotations

import copy
import pickle
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import DEVICE, documents, labels_for
from processes import C, D, N, Whole, batches, two_processes
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn

from gloss_kernels import CorpusGLoss

X, IDS = documents(N, D), torch.arange(9, device=DEVICE)


def empty(labeled: float = 0.5, **options) -> CorpusGLoss:
    return CorpusGLoss(labels_for(N, C, labeled), D, **{"num_classes": C, "n_neighbors": 6, **options})


def filled(labeled: float = 0.5, **options) -> CorpusGLoss:
    loss_fn = empty(labeled, **options)
    loss_fn.refresh(X)
    return loss_fn


def step(loss_fn: CorpusGLoss, moved: float = 0.1) -> Tensor:
    """A training step, its rows written; the gradient."""
    x = (X[IDS] + moved).requires_grad_()
    loss_fn(x, IDS).backward()
    loss_fn.flush()
    assert x.grad is not None
    return x.grad


def is_normal(loss_fn: CorpusGLoss) -> bool:
    return not any(buffer.is_inference() for buffer in loss_fn.buffers())


# ------------------------------------------------------------------------------------------- inference mode
def add(loss_fn: CorpusGLoss) -> None:
    loss_fn.add(torch.tensor([1, -1], device=DEVICE), X[:2])


def load(loss_fn: CorpusGLoss) -> None:
    loss_fn.load_state_dict({name: value.clone() for name, value in loss_fn.state_dict().items()})


def assign(loss_fn: CorpusGLoss) -> None:
    loss_fn.load_state_dict({name: value.clone() for name, value in loss_fn.state_dict().items()}, assign=True)


def everything(loss_fn: CorpusGLoss) -> None:
    loss_fn.refresh(X)
    loss_fn(X[IDS], IDS)
    loss_fn.predict(X)
    loss_fn.propagate()
    loss_fn.state_dict()
    loss_fn.flush()


USES = {
    "add": add, "load_state_dict": load, "load_state_dict(assign)": assign, "all else": everything,
    "to(float64)": lambda loss_fn: loss_fn.double(), "to(other device)": lambda loss_fn: loss_fn._apply(torch.clone),
}  # fmt: skip


@pytest.mark.parametrize("index", [None, "exact"])
@pytest.mark.parametrize("use", USES)
def test_inference_mode_leaves_no_trace(use: str, index: str | None) -> None:
    plain, other = (filled(index=index, class_weight=torch.ones(C, device=DEVICE)) for _ in range(2))
    for loss_fn in (plain, other):
        step(loss_fn)
    with torch.no_grad():
        USES[use](plain)
    with torch.inference_mode():
        USES[use](other)
    assert is_normal(other)
    for _ in range(2):
        assert torch.equal(step(other), step(plain))
    mine, theirs = other.state_dict(), plain.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_first_unlabeled_documents_in_inference_mode() -> None:
    """The bank gets buffers that it did not have, those of the propagation."""
    loss_fn = filled(labeled=1.0)
    with torch.inference_mode():
        add(loss_fn)
        loss_fn.propagate()
    assert len(loss_fn.bank.soft) == len(loss_fn.bank) and is_normal(loss_fn)
    assert step(loss_fn).isfinite().all()


def test_built_in_inference_mode() -> None:
    with torch.inference_mode():
        loss_fn = filled(class_weight=torch.ones(C, device=DEVICE))
    assert is_normal(loss_fn)
    assert torch.equal(step(loss_fn), step(filled(class_weight=torch.ones(C, device=DEVICE))))


# ------------------------------------------------------------------------------------------- buffers from outside
def copied(to: nn.Module, source: nn.Module) -> None:
    with torch.no_grad():
        for mine, theirs in zip(to.buffers(), source.buffers(), strict=True):
            mine.copy_(theirs)


@pytest.mark.parametrize("labeled", [1.0, 0.5])
@pytest.mark.parametrize("index", [None, "exact"])
def test_buffers_copied_from_outside(index: str | None, labeled: float) -> None:
    """Into one that has never seen a row, and into one that has an index of other rows."""
    source, new, used = filled(labeled, index=index), empty(labeled, index=index), empty(labeled, index=index)
    used.refresh(X.flip(0))
    used.predict(X)
    step(source)
    source.predict(X)  # propagates
    if source.index is not None:
        source.index.drop()  # of the rows before the step
    for other in (new, used):
        copied(other, source)
        for ours, theirs in zip(other.predict(X), source.predict(X), strict=True):
            assert torch.equal(ours, theirs)
        assert other.steps == source.steps == 1
        assert torch.equal(step(other), step(copy.deepcopy(source)))


def test_labels_written_from_outside_count() -> None:
    loss_fn = filled(1.0)
    with torch.no_grad():
        loss_fn.bank.labels[20:] = -1
    assert loss_fn.bank.has_unlabeled and loss_fn.predict(X).reachable.all()
    assert loss_fn.bank.reachable[20:].all()


def model(loss_fn: CorpusGLoss) -> nn.ModuleDict:
    return nn.ModuleDict({"head": nn.Linear(D, D).to(DEVICE), "loss": loss_fn})


@pytest.mark.parametrize("labeled", [1.0, 0.5])
def test_averaged_model_copies_the_bank(labeled: float) -> None:
    """Made before the bank has rows and labels are propagated: nothing grows meanwhile."""
    source = model(empty(labeled))
    average = AveragedModel(source)
    source["loss"].refresh(X)
    for _ in range(3):
        step(source["loss"])
        average.update_parameters(source)
    for ours, theirs in zip(average.module["loss"].predict(X), source["loss"].predict(X), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("filled_later", [False, True])
def test_averaged_buffers(filled_later: bool) -> None:
    """SWA's mean: documents written after the first update are there, labels are what they were."""
    source = model(empty())
    average = AveragedModel(source, use_buffers=True)
    if filled_later:
        source["loss"].refresh(X[:30], torch.arange(30, device=DEVICE))
        average.update_parameters(source)
    source["loss"].refresh(X)
    source["loss"].propagate()
    for _ in range(3):
        average.update_parameters(source)
    bank = average.module["loss"].bank
    assert bank.filled.all() and torch.equal(bank.labels, source["loss"].bank.labels)
    found, expected = (each["loss"].predict(X).probabilities for each in (average.module, source))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-2)


@pytest.mark.parametrize("options", [{"avg_fn": get_ema_avg_fn(0.9)}, {"multi_avg_fn": get_ema_multi_avg_fn(0.9)}],
                         ids=["one by one", "all at once"])  # fmt: skip
def test_averaged_labels_are_refused(options: dict) -> None:
    """torch averages integers as float32 and cuts: some label may be one too small."""
    source = model(filled())
    average = AveragedModel(source, use_buffers=True, **options)
    for _ in range(3):
        average.update_parameters(source)
    loss_fn = average.module["loss"]
    loss_fn.bank.classes[3] -= 1  # what it does to a label depends on torch; here it certainly happens
    for use in (lambda: loss_fn.predict(X), lambda: loss_fn(X[IDS], IDS), loss_fn.propagate):
        with pytest.raises(RuntimeError, match=r"labels, which are integers.*use_buffers=False"):
            use()
    copied(average.module, source)  # as use_buffers=False does
    assert loss_fn.predict(X).reachable.all()


def test_an_integer_average_does_cut() -> None:
    """What the check is for, without a hand in it: some decay cuts some label, and then the check sees it."""
    seen = 0
    for decay in (0.9, 0.99, 0.999, 0.9999, 0.7):
        source = filled(num_classes=50)
        source.bank.labels.copy_(torch.arange(N, device=DEVICE) % 50)
        other = copy.deepcopy(source)
        copied_by = get_ema_avg_fn(decay)
        for mine, theirs in zip(other.buffers(), source.buffers(), strict=True):
            mine.copy_(copied_by(mine, theirs, 1))
        if not torch.equal(other.bank.labels, source.bank.labels):
            seen += 1
            with pytest.raises(RuntimeError, match="use_buffers=False"):
                other.predict(X)
    assert seen


def test_an_old_checkpoint_loads() -> None:
    """0.1.0 kept the two flags as bool, and soft labels of length 0 until the first propagation."""
    source = filled()
    old = dict(source.state_dict())
    old["bank.filled"], old["bank.reachable"] = old.pop("bank.written") > 0, old.pop("bank.reached")[:0] > 0
    old["bank.soft"], old["counters"] = old["bank.soft"][:0], torch.tensor([0, 0, N])
    loaded = empty()
    loaded.load_state_dict(old)
    assert torch.equal(loaded.predict(X).probabilities, source.predict(X).probabilities)
    assert loaded.bank.written.dtype == torch.float32


@pytest.mark.parametrize("make", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
@pytest.mark.parametrize("index", [None, "exact"])
def test_copies_go_on_by_themselves(make: Callable[[CorpusGLoss], CorpusGLoss], index: str | None) -> None:
    loss_fn = filled(index=index)
    loss_fn((X[IDS] + 0.1).requires_grad_(), IDS)  # rows that wait
    other = make(loss_fn)
    assert torch.equal(step(other, 0.2), step(loss_fn, 0.2))
    step(other, 0.3)
    assert not torch.equal(other.bank.rows, loss_fn.bank.rows)


# ------------------------------------------------------------------------------------------- several processes
@pytest.mark.skipif(DEVICE != "cpu" or not torch.distributed.is_available(), reason="two processes with gloo")
def test_inside_ddp_is_refused_and_the_remedy_is_right(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(two_processes, (port, str(tmp_path)), nprocs=2)
    one = Whole()
    optimizer = torch.optim.SGD(one.encoder.parameters(), 0.1)
    x = documents(N, D)
    for ids in batches():
        optimizer.zero_grad()
        one(x[ids], ids).backward()
        optimizer.step()
    one.loss.flush()
    for rank in (0, 1):
        result = torch.load(tmp_path / f"{rank}.pt")
        for broadcast in (True, False):
            message = result[f"broadcast={broadcast}"]
            assert "must be outside the module that DistributedDataParallel wraps" in message
            assert "in 2 processes" in message and "all_gather" in message
            assert result[f"eval, broadcast={broadcast}"] == 1
        torch.testing.assert_close(result["weight"], one.encoder.weight.detach())
        torch.testing.assert_close(result["rows"], one.loss.bank.rows, rtol=0, atol=1e-3)


@pytest.mark.skipif(DEVICE != "cpu" or not torch.distributed.is_available(), reason="a process group with gloo")
def test_ddp_of_one_process_is_no_danger(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        whole = nn.parallel.DistributedDataParallel(Whole())
        ids = batches()[0]
        whole(documents(N, D)[ids], ids).backward()
        assert whole.module.loss.steps == 1
    finally:
        torch.distributed.destroy_process_group()

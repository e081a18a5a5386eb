"""Offsets past 2^31: by sizes alone, in memory that is reserved and not touched (pages come with the first write)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DEVICE, documents
from torch import Tensor

from gloss_kernels import _library, cosine_topk, reference

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="gigabytes of a GPU are not had by asking alone")
PAST = 2**31 + 5  # as int32: negative
SIDES = ["cpu", *["cuda"] * bool(_library.emulated)]


def reserved(folder: Path, count: int, dtype: type) -> Tensor:
    """``count`` numbers in a file with holes: zeros, without memory or disk behind them until they are written."""
    return torch.from_numpy(np.memmap(folder / f"{np.dtype(dtype)}-{count}", dtype, "w+", shape=(count,)))


def far_apart(folder: Path, x: Tensor) -> Tensor:
    """The same rows, from each to the next more than 2^31 / 2 numbers."""
    stride = PAST // 2 + 7
    memory = reserved(folder, stride * (len(x) - 1) + x.shape[1], np.float16)
    far = memory.as_strided(tuple(x.shape), (stride, 1))
    far.copy_(x)
    return far


@pytest.mark.parametrize("exclude_self", [True, False])
@pytest.mark.parametrize("backend", SIDES)
def test_rows_past_2_31(backend: str, exclude_self: bool, tmp_path: Path) -> None:
    near = documents(6, 40, torch.float16)
    far = far_apart(tmp_path, near)
    assert far.stride(0) * 5 > 2**31
    corpus = None if exclude_self else far
    found = cosine_topk(far, corpus, 3, backend=backend)
    expected = cosine_topk(near, None if exclude_self else near, 3, backend=backend)
    assert torch.equal(found.indices, expected.indices) and torch.equal(found.values, expected.values)

    grads = []
    for x in (near.clone().requires_grad_(), far.requires_grad_()):
        values = cosine_topk(x, None if exclude_self else x, 3, backend=backend).values
        grads += torch.autograd.grad(values.sum(), x)
    assert torch.equal(*grads)


def call(side: str, function: str, workspace: dict[str, object], **arguments: object) -> None:
    """A function of the core by its addresses, tensors as they are."""
    core = _library.core.cpu if side == "cpu" else _library.emulated
    tail: dict[str, object] = {"threads": 2} if side == "cpu" else {"device": 0, "stream": 0}
    if side != "cpu" and hasattr(core, f"{function}_workspace"):
        space = torch.empty(getattr(core, f"{function}_workspace")(**workspace) + 256, dtype=torch.uint8)
        tail["workspace"] = -(-space.data_ptr() // 256) * 256
    addresses = {name: x.data_ptr() if isinstance(x, Tensor) else x for name, x in arguments.items()}
    getattr(core, function)(**workspace, **addresses, **tail)


@pytest.mark.parametrize("side", SIDES)
def test_weights_past_2_31(side: str, tmp_path: Path) -> None:
    """combine_edges: rows x k weights, of which the edges name those at the end."""
    weights = reserved(tmp_path, PAST + 4, np.float32)
    weights[PAST : PAST + 4] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    forward = torch.tensor([PAST, PAST + 1, -1])
    reverse = torch.tensor([PAST + 2, -1, PAST + 3])
    values = torch.empty(3)
    call(side, "combine_edges", {"nnz": 3, "is_double": False}, forward=forward, reverse=reverse, symmetrize="sum",
         weights=weights, values=values)  # fmt: skip
    assert values.tolist() == [4.0, 2.0, 4.0]


@pytest.mark.parametrize("how", ["symmetric", "published"])
def test_entries_past_2_31(how: str, tmp_path: Path) -> None:
    """normalize_edges: a graph whose first entry has that number. (The emulated one visits every entry.)"""
    graph = torch.tensor([[0.0, 2, 1], [2, 0, 4], [1, 4, 0]])
    col = reserved(tmp_path, PAST + 6, np.int64)
    col[PAST:] = torch.tensor([1, 2, 0, 2, 0, 1])
    values, normalized = (reserved(tmp_path / name, PAST + 6, np.float32) for name in made(tmp_path, "a", "b"))
    values[PAST:] = graph[graph > 0]
    crow = torch.tensor([PAST, PAST + 2, PAST + 4, PAST + 6])
    call("cpu", "normalize_edges", {"n": 3, "capacity": PAST + 6, "is_double": False, "normalization": how}, crow=crow,
         col=col, values=values, normalized=normalized)  # fmt: skip
    expected = reference.normalize(graph.double(), how)
    torch.testing.assert_close(normalized[PAST:], expected[graph > 0].float())


def made(folder: Path, *names: str) -> tuple[str, ...]:
    for name in names:
        (folder / name).mkdir()
    return names

"""Offsets past 2^31: by sizes alone, in memory that is reserved and not touched (pages come with the first write).

Of Triton, whose interpreter would go through the programs one by one, the intermediate code is read instead.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DEVICE, HAS_TRITON, PYTHON, ROOT, documents
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
    call(side, "combine_edges", {"nnz": 3, "is_double": False}, num_weights=len(weights), forward=forward,
         reverse=reverse, symmetrize="sum", weights=weights, values=values)  # fmt: skip
    assert values.tolist() == [4.0, 2.0, 4.0]


@pytest.mark.parametrize("how", ["symmetric", "published"])
def test_entries_past_2_31(how: str, tmp_path: Path) -> None:
    """normalize_edges and its gradient: a graph whose first entry has that number. (The emulated ones visit every
    entry, as combine_edges_backward does every weight.)"""
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

    grad_normalized, grad_values = (
        reserved(tmp_path / name, PAST + 6, np.float32) for name in made(tmp_path, "c", "d")
    )
    grad_normalized[PAST:] = graph[graph > 0] * 3
    call("cpu", "normalize_edges_backward", {"n": 3, "capacity": PAST + 6, "is_double": False, "normalization": how},
         crow=crow, col=col, values=values, grad_normalized=grad_normalized, grad_values=grad_values)  # fmt: skip
    near = torch.empty(6)
    call("cpu", "normalize_edges_backward", {"n": 3, "capacity": 6, "is_double": False, "normalization": how},
         crow=crow - PAST, col=col[PAST:].clone(), values=values[PAST:].clone(),
         grad_normalized=grad_normalized[PAST:].clone(), grad_values=near)  # fmt: skip
    assert torch.equal(grad_values[PAST:], near) and near.abs().min() > 0


def made(folder: Path, *names: str) -> tuple[str, ...]:
    for name in names:
        (folder / name).mkdir()
    return names


# -------------------------------------------------------------------------------------------- Triton
def read_by(code: str) -> list[str]:
    """The lines that the code prints, in a process whose kernels are compiled and not interpreted."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": str(ROOT / "bench")}
    code = "import compile_triton as c, triton_offsets as offsets\n" + code
    done = subprocess.run([*PYTHON, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.skipif(not HAS_TRITON, reason="no Triton")
def test_triton_kernels_form_wide_offsets() -> None:
    """Every kernel, of every launch that the stages make: 106 of them, without compiling on to machine code."""
    *found, seen = read_by("""
launches = c.recorded(c.work(90))
for launch in launches:
    text = offsets.ttir(launch)
    for product in offsets.Code(text).narrow():
        lines = (line for line in text.splitlines() if line.strip().startswith(product + " "))
        print(launch.kernel.__name__, next(lines).strip())
print(len({launch.kernel.__name__ for launch in launches}), text.count("tt.addptr") > 0)
""")
    assert found == []
    kernels, has_pointers = seen.split()
    assert int(kernels) >= 25 and has_pointers == "True"


SAMPLES = {  # an offset -> whether it may pass 2^31 in 32 bits
    "row[:, None] * d + column[None, :]": True,
    "row[:, None] * 64 + column[None, :]": True,
    "row.to(tl.int64)[:, None] * d + column[None, :]": False,
    "tl.load(i_ptr + row)[:, None] * d + column[None, :]": True,
    "tl.load(i_ptr + row).to(tl.int64)[:, None] * d + column[None, :]": False,
    "tl.program_id(0) * d + (row[:, None] + column[None, :])": True,
    "row[:, None] + column[None, :]": False,
    "tl.program_id(0).to(tl.int64) * d + tl.arange(0, 4)[:, None] * d + column[None, :]": False,
}


@pytest.mark.skipif(not HAS_TRITON, reason="no Triton")
def test_narrow_offsets_are_seen(tmp_path: Path) -> None:
    kernels = "".join(
        f"""
@triton.jit
def sample_{i}(x_ptr, i_ptr, d, COLUMNS: tl.constexpr):
    row, column = tl.program_id(0) * 4 + tl.arange(0, 4), tl.arange(0, COLUMNS)
    tl.store(x_ptr + ({offset}), 0.0)
"""
        for i, offset in enumerate(SAMPLES)
    )
    (tmp_path / "samples.py").write_text(f"import triton, triton.language as tl\n{kernels}")
    found = read_by(f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import samples
arguments = (("x_ptr", "*fp32", True), ("i_ptr", "*i32", True), ("d", "i32", False))
for i in range({len(SAMPLES)}):
    launch = c.Launch(getattr(samples, f"sample_{{i}}"), arguments, (("COLUMNS", 64),), ())
    print(bool(offsets.Code(offsets.ttir(launch)).narrow()))
""")
    assert found == [str(narrow) for narrow in SAMPLES.values()]

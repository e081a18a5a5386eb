"""What only the Triton backend has: tile shapes and their tuning, tensor descriptors, compilation without a GPU."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import DEVICE, HAS_TRITON, PYTHON, documents
from torch import Tensor

from gloss_kernels import TopK, _backends, available_backends, cosine_topk, reference, topk_statistics

if not HAS_TRITON:
    pytest.skip(available_backends()["triton"].detail, allow_module_level=True)

import triton

from gloss_kernels._backends.triton import _launch
from gloss_kernels._backends.triton.topk import exact, search, sweep, tiles
from gloss_kernels._backends.triton.topk.pack import Packed, Rows

BENCH = Path(__file__).resolve().parents[1] / "bench"
sys.path.insert(0, str(BENCH))

import compile_limits  # noqa: E402
import tune_triton  # noqa: E402

interpreted = pytest.mark.skipif(DEVICE != "cpu", reason="shapes of interpreted kernels")


@pytest.mark.skipif(DEVICE != "cpu" and torch.cuda.get_device_capability() < (9, 0), reason="this GPU has no TMA")
@pytest.mark.parametrize("d", [40, 130], ids=["float32 rows", "float16 rows"])
def test_tensor_descriptors_change_nothing(d: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = documents(700, d)
    described, original = [], sweep.described
    monkeypatch.setattr(sweep, "described", lambda *args: described.append(args) or original(*args))
    for corpus, queries in ((None, x), (x, x[:400])):
        found = []
        for tma in (False, True):
            shape = (128, 256, 64, 4, 1, 64) if DEVICE == "cpu" else (64, 128, 32, 4, 3, 16)
            tile = tiles.Tile(*shape, tma)
            monkeypatch.setattr(search, "sweep_tile", lambda *_, tile=tile: tile)
            found.append(cosine_topk(queries, corpus, k=7, backend="triton"))
            assert topk_statistics()["candidates"] > 0
            assert bool(described) == tma
        described.clear()
        truth = cosine_topk(queries, corpus, k=7, backend="reference")
        assert torch.equal(found[0].indices, found[1].indices) and torch.equal(found[0].values, found[1].values)
        torch.testing.assert_close(found[1].values, truth.values.float(), rtol=0, atol=3e-7)


def test_an_old_triton_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its atomics would leave entries of lists unwritten, without a word."""
    wanted = ".".join(map(str, _backends.OLDEST_TRITON))
    assert f'triton = ["triton>={wanted}"]' in (BENCH.parent / "pyproject.toml").read_text()
    _backends._triton_problem.cache_clear()
    monkeypatch.setattr(triton, "__version__", "3.4.0+git1")
    try:
        said = f"triton must be {wanted} or newer (that of torch 2.9), got 3.4.0+git1"
        assert available_backends()["triton"] == (False, said)
        with pytest.raises(RuntimeError, match=r"backend='triton' cannot run here: triton must be 3\.5 or newer"):
            cosine_topk(documents(9, 4), k=2, backend="triton")
    finally:
        monkeypatch.undo()
        _backends._triton_problem.cache_clear()


class Unlaunched:
    """A kernel that only takes down its grids."""

    __name__ = "some_kernel"

    def __init__(self) -> None:
        self.grids: list[tuple[int, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        self.grids.append(grid)
        return lambda *_, **__: None


def test_a_grid_that_no_gpu_takes_is_refused() -> None:
    kernel, x = Unlaunched(), torch.zeros(1)
    for grid in ((65_536, 65_535), (1 << 17, 1, 65_535), 1 << 20, (70_000, 0)):
        _launch.launch(kernel, grid, x)
    assert len(kernel.grids) == 3
    for grid in ((1, 65_536), (1, 1, 65_536), (1 << 31, 1)):
        said = re.escape(f"some_kernel: the grid must be at most 2147483647 x 65535, got {grid}")
        with pytest.raises(ValueError, match=said):
            _launch.launch(kernel, grid, x)


@pytest.mark.parametrize("sizes", [(2_200_000, 3), (3, 4_300_000)], ids=["many queries", "a large corpus"])
def test_every_pair_of_many_rows_and_few(sizes: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """More than 65,535 tiles of rows or of columns, which only the x of a grid may be."""
    n, m = sizes
    kernel = Unlaunched()
    rows, others = (Rows(torch.ones(1, 1).expand(size, 1), torch.ones(size).double()) for size in sizes)
    monkeypatch.setattr(exact, "INTERPRETED", False)
    monkeypatch.setattr(exact, "scores_kernel", kernel)
    monkeypatch.setattr(exact, "SCORE_BYTES", 1 << 40)
    exact.exact_search(rows, others, False, torch.empty(n, 1), torch.empty(n, 1, dtype=torch.int64))
    assert kernel.grids == [(-(-n // 32) * -(-m // 64),)]


@interpreted
def test_tiles_of_every_pair_cover_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles of rows and of columns, the last ones not full, and several chunks of rows."""
    queries, corpus = documents(700, 6, torch.float64), documents(530, 6, torch.float64, seed=1)
    monkeypatch.setattr(exact, "SCORE_BYTES", 600 * 530 * 8 * 3)
    found, truth = (cosine_topk(queries, corpus, k=9, backend=name) for name in ("triton", "reference"))
    assert torch.equal(found.indices, truth.indices)
    torch.testing.assert_close(found.values, truth.values, rtol=0, atol=1e-13)


# ----------------------------------------------------------------------------------------------- lists
@interpreted
@pytest.mark.parametrize("rows", [32, 64])
def test_parts_of_tiles_and_full_lists(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists of 64 entries and tiles of four parts, against blocks of identical rows: some parts of a tile hold hits
    and some none, rows hold many, and lists lose entries, which must not land in the lists beside them."""
    x = documents(250, 70)
    x[20:120], x[150:200] = x[20], x[150]
    lists, lost = search.new_lists, []

    def short(queries: Packed, k: int) -> sweep.Lists:
        found = lists(queries, k)
        value, other = (t.new_empty(t.shape[0], 64) for t in found[:2])
        lost.append(found._replace(value=value, other=other))
        return lost[-1]

    monkeypatch.setattr(search, "new_lists", short)
    monkeypatch.setattr(search, "sweep_tile", lambda *_: tiles.Tile(rows, 64, 64, 4, 1, 16))
    monkeypatch.setattr(search, "is_filtered", lambda *_: True)
    for queries, corpus in ((x, None), (x[:170], x)):
        found = cosine_topk(queries, corpus, k=9, backend="triton")
        assert (lost[-1].counts > 64).any() and (lost[-1].counts <= 64).any()
        expected = cosine_topk(queries, corpus, k=9, backend="cpu")
        assert torch.equal(found.indices, expected.indices) and torch.equal(found.values, expected.values)


@interpreted
@pytest.mark.parametrize("d", [48, 130])
def test_products_in_float32_decide_nothing(d: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """2,000 cosines a billionth apart, more than a list holds: the pass over the corpus must make again whatever its
    float32 products, off by a hundred times that, may have put behind the 31 best. One query: what one of a group makes
    again serves the others, and 31 with the row itself are as many keys as are kept."""
    monkeypatch.setattr(search, "FEW_PAIRS", 0)
    unit = torch.nn.functional.normalize(torch.randn(d, dtype=torch.float64), dim=0)
    noise = torch.randn(2000, d, dtype=torch.float64)
    noise = torch.nn.functional.normalize(noise - noise @ unit[:, None] * unit)
    cosine = 0.9 + 1e-9 * torch.randperm(2000).double()[:, None]
    x, query = (cosine * unit + (1 - cosine**2).sqrt() * noise).float(), 0.7 * unit[None, :].float()
    values, order = reference.cosine(query, x).float().sort(dim=1, descending=True, stable=True)
    found = cosine_topk(query, x, k=31, exclude_self=False, backend="triton")
    assert topk_statistics()["recomputed_rows"] == 1
    assert torch.equal(found.indices, order[:, :31]) and torch.equal(found.values, values[:, :31])


def test_gradients_of_column_slices() -> None:
    """Of corpus and queries that are parts of wider matrices, of different widths: as of contiguous copies."""
    wide_queries, wide_corpus = documents(40, 30), documents(50, 45, seed=1)
    queries, corpus = wide_queries[:, 4:16], wide_corpus[:, 20:32]
    weight = torch.randn(40, 5)

    def gradients(a: Tensor, b: Tensor | None) -> tuple[Tensor, ...]:
        a, b = a.detach().requires_grad_(), b if b is None else b.detach().requires_grad_()
        values = cosine_topk(a, b, k=5, backend="triton").values
        return torch.autograd.grad((values * weight).sum(), (a,) if b is None else (a, b))

    for a, b in ((queries, corpus), (queries.contiguous(), corpus), (queries, corpus.contiguous()), (queries, None)):
        expected = gradients(a.contiguous(), b if b is None else b.contiguous())
        for ours, plain in zip(gradients(a, b), expected, strict=True):
            assert torch.equal(ours, plain)


# ----------------------------------------------------------------------------------------------- tiles
def test_every_problem_has_a_tile_and_the_nearest_class_gives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    some = {
        name: tiles.Tile(64, 64, 32, 4, 2, 8 * nth) for nth, name in enumerate(["any", "wide", "many", "hopper"], 1)
    }
    table = {
        (0, "float", "any", "any"): some["any"],
        (0, "half", "any", "any"): some["any"],
        (0, "wide", "any", "any"): some["wide"],
        (0, "half", "large", "many"): some["many"],
        (90, "half", "small", "any"): some["hopper"],
    }
    monkeypatch.setattr(tiles, "TABLE", table)
    assert tiles.tile_for(80, 48, 1000, 5) == tiles.tile_for(90, 384, 10**6, 5) == some["any"]
    assert tiles.tile_for(80, 1024, 1000, 5) == some["wide"] and tiles.tile_for(80, 384, 10**6, 100) == some["many"]
    assert tiles.tile_for(90, 384, 1000, 100) == tiles.tile_for(90, 768, 1000, 5) == some["hopper"]
    monkeypatch.setitem(table, (80, "half", "any", "any"), some["hopper"])
    assert tiles.tile_for(80, 384, 1000, 5) == some["hopper"] != tiles.tile_for(86, 384, 1000, 5)


def test_the_committed_shapes_fit() -> None:
    """On every GPU that may take them, for every problem."""
    for arch in (*compile_limits.SHARED, 87, 103, 121):
        shared = {87: 80, 103: 100, 121: 120}.get(arch, arch)  # of the same generation, with at least as much
        for d, n, k in itertools.product((3, 64, 65, 384, 513, 2000), (600, 10**6), (1, 200)):
            tile = tiles.tile_for(arch, d, n, k)
            assert tune_triton.fits(tile, tiles.tile_class(d, n, k)[0], shared), (arch, d, n, k)


def test_tuning_takes_the_faster_shape_and_refuses_wrong_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches whose times are known: with 32 columns a slice the least; with 16 they find other rows."""
    start = tiles.Tile(128, 128, 64, 4, 2, 64)
    problem = tune_triton.Problem(documents(30, 8), 5)
    truth = cosine_topk(problem.x, k=5)

    def run(tile: tiles.Tile) -> TopK:
        time.sleep(0.001 * tile.slice)
        return truth._replace(indices=truth.indices + (tile.slice == 16))

    monkeypatch.setattr(tune_triton, "VALUES", {"slice": (16, 32, 64), "rows": (128,)})
    monkeypatch.setattr(problem, "run", run)
    best, log = tune_triton.tune(problem, start, "half", 90, time.monotonic() + 60)
    assert best.slice == 32
    assert [row["problem"] for row in log if row["tile"]["slice"] == 16] == ["other neighbours than the first shape"]


@interpreted
def test_a_problem_is_searched_with_the_shape_in_question(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(
        search, "filtered_search", lambda *_: seen.append(search.sweep_tile(None, 0, 0, 0)) or (0, 0, 0)
    )
    problem, tile = tune_triton.Problem(documents(700, 80), 5), tiles.Tile(128, 128, 64, 4, 2, 32)
    before = search.sweep_tile
    problem.run(tile)
    assert seen == [tile] and search.sweep_tile is before


def test_tuned_shapes_go_into_the_table() -> None:
    source = tune_triton.TABLE_FILE.read_text()
    key, tile = (90, "half", "large", "few"), tiles.Tile(64, 128, 64, 4, 3, 8, True)
    text = tune_triton.written(source, {key: tile})
    space: dict[str, object] = {
        "__name__": "gloss_kernels._backends.triton.topk.tiles",
        "__package__": "gloss_kernels._backends.triton.topk",
    }
    exec(compile(text, "tiles.py", "exec"), space)
    assert space["TABLE"] == tiles.TABLE | {key: space["Tile"](*tile)}  # type: ignore[operator]
    assert tune_triton.written(source, {}) == source, "the table's order and spelling are those of tune_triton.py"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_tuning_without_a_gpu_says_so() -> None:
    done = subprocess.run([sys.executable, BENCH / "tune_triton.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: tuning wants a GPU and Triton: Triton 3.")


# -------------------------------------------------------------------------------- compilation, without a GPU
def compiled(code: str, cache: Path) -> str:
    """Runs code with kernels that are compiled anew, not interpreted; deprecations are errors."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": str(BENCH), "TRITON_CACHE_DIR": str(cache)}
    command = [*PYTHON, "-W", "error::DeprecationWarning", "-W", "error::UserWarning", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_no_kernel_calls_itself() -> None:
    """Triton before 3.6 compiles no function that does. (Directly: the names of its own source are looked at.)"""
    from compile_triton import modules

    functions = {f for module in modules() for f in vars(module).values() if hasattr(f, "fn") and callable(f)}
    assert len(functions) > 40
    assert [f.fn.__name__ for f in functions if f.fn.__name__ in f.fn.__code__.co_names] == []


def test_no_size_compiles_anew(tmp_path: Path) -> None:
    """The launches of any number of rows, nodes and edges are the same kernels with the same constants, within a class
    of tiles and of list lengths."""
    compiled(
        """
import importlib, torch, compile_triton as c
from gloss_kernels._backends.triton.topk import search, tiles
from gloss_kernels._backends import protocol
from gloss_kernels._backends import triton as _triton
search.check_finite = lambda name, rows: None
search.sweep_tile = lambda device, d, n, k: tiles.tile_for(90, d, n, k)
search.LIST_BYTES = 0  # lists of one length; of very few rows they are longer

def calls(n):
    x = torch.ones(n, 384)
    _, indices = _triton.cosine_topk(protocol.Search(x, None, 15, True, None))
    _triton.cosine_topk(protocol.Search(x[: n // 7], x, 15, False, None))
    _triton.cosine_topk_backward(protocol.SearchGradient(x, None, indices * 0, torch.ones(n, 15), True, True))
    neighbors = (torch.arange(n)[:, None] + torch.arange(1, 8)) % n
    crow, col, forward, reverse = _triton.knn_structure(neighbors, "sum", 2 * neighbors.numel())
    values = torch.ones(len(col))
    _triton.combine_edges(protocol.Combination(torch.ones(n * 7), forward, reverse, "sum"))
    _triton.normalize_edges(protocol.Edges(crow, col, values), "published")
    c.propagate_calls(crow, col, values)

sizes = [c.recorded(lambda: calls(n)) for n in (5001, 9999, 11200, 13312)]
first = set(sizes[0])
assert len(first) > 30
for other in sizes[1:]:
    assert set(other) == first, set(other) ^ first

# Nor does another width, in the kernels that take longest to compile: half a minute for the sweep of the self graph.
def widths(d):
    launches = c.recorded(lambda: _triton.cosine_topk(protocol.Search(torch.ones(5000, d), None, 15, True, None)))
    return {one for one in launches if one.kernel.__name__ in ("sweep_kernel", "pack_kernel")}

assert len(widths(384)) == 3 and widths(384) == widths(80) == widths(448) == widths(512)
""",
        tmp_path,
    )


def test_some_kernels_compile_without_a_word(tmp_path: Path) -> None:
    """Of every new Triton: what it deprecates would show as a warning. (bench/compile_report.py compiles them all.)"""
    shown = compiled(
        """
import compile_triton as c
launches = [one for one in c.recorded(c.work(90)) if one.kernel.__name__ in ("turn_kernel", "select_kernel")]
for launch in {one.kernel.__name__: one for one in launches}.values():
    kernel = c.compile_launch(launch, 90)
    assert kernel.registers > 8 and kernel.spill_bytes == 0, kernel
    print(kernel.name)
""",
        tmp_path,
    )
    assert sorted(shown.split()) == ["select_kernel", "turn_kernel"]


def test_limits_are_held() -> None:
    kernel = compile_limits.Kernel("triton", "sweep_kernel", "fp16", 90, 250, 8, 1000, 24)
    limits = compile_limits.LIMITS["triton"]
    others = [compile_limits.Kernel("triton", name, "", 90, 32, 0, 0) for name in limits if name != kernel.name]
    assert compile_limits.problems([kernel, *others]) == []
    for change, said in (
        ({"registers": 256}, "256 registers, at most 255"),
        ({"spill_bytes": 72}, "72 bytes of spills, at most 64"),
        ({"main_loop_spills": 2}, "2 spill instructions in the main loop"),
        ({"shared_bytes": 250_000}, "250000 bytes of shared memory, at most 232448"),
        ({"tensor_cores": 0}, "no HGMMA in its machine code"),
    ):
        changed = compile_limits.Kernel(**{**vars(kernel), **change})
        assert compile_limits.problems([changed, *others]) == [f"triton sweep_kernel fp16 (sm_90): {said}"]
    assert compile_limits.problems(others) == ["triton sweep_kernel: there is no such kernel"]

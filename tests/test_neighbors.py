"""NeighborIndex: every kind against exact search, its files, its checkpoints, its errors."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PYTHON, documents
from torch import Tensor

from gloss_kernels import NeighborIndex, cosine_topk, propagate_labels, reference, similarity_graph
from gloss_kernels.neighbors import knn as knn_module
from gloss_kernels.neighbors import plan, rows
from gloss_kernels.neighbors.structures import KINDS

FAISS = [kind for kind in KINDS if kind != "exact"]
HAS_FAISS = importlib.util.find_spec("faiss") is not None
if os.environ.get("GLOSS_TEST_DEVICE", "cpu") != "cpu":
    pytest.skip("FAISS is tested on the CPU", allow_module_level=True)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """These inputs are too small for more; and on one thread HNSW is the same every time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def needs(kind: str) -> None:
    if kind != "exact":
        faiss = pytest.importorskip("faiss")
        if kind == "nn_descent" and not hasattr(faiss, "IndexNNDescentFlat"):
            pytest.skip("this build of faiss has no NN-descent")


def build(x: Tensor, kind: str, **options: object) -> NeighborIndex:
    needs(kind)
    return NeighborIndex.build(x, kind, **options)  # type: ignore[arg-type]


def true_recall(x: Tensor, found: Tensor, k: int) -> float:
    c = reference.cosine(x, None).fill_diagonal_(-torch.inf)
    least = c.topk(k).values[:, -1:]
    return float((c.gather(1, found) >= least - 2e-6).double().mean())


def same(a: object, b: object) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))  # type: ignore[call-overload]


# ------------------------------------------------------------------------------------------- what a search finds
@pytest.mark.parametrize("kind", KINDS)
def test_recall_is_what_it_says(kind: str) -> None:
    x = documents(3000, 33, clusters=60)
    index = build(x, kind, recall_target=0.95, recall_k=10)
    found = index.knn(10)
    measured = true_recall(x, found.indices, 10)
    assert index.recall >= 0.95 and abs(index.recall - measured) < 0.03, (index.recall, measured)
    if kind in ("exact", "flat"):
        assert measured == index.recall == 1
    assert f"{index.kind}: 3,000 rows, 33 columns" in index.describe()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_values_are_cosines_of_other_rows(kind: str, dtype: torch.dtype) -> None:
    """Whatever the kind's codes are. Rows of any length, a zero row, a hundred duplicates."""
    x = documents(700, 24, dtype) * torch.linspace(0.1, 9, 700, dtype=dtype)[:, None]
    x[100:200] = x[5]
    x[7] = 0
    values, indices = build(x, kind).knn(15)
    assert values.dtype == torch.float32 and indices.dtype == torch.int64
    assert not (indices == torch.arange(700)[:, None]).any(), "a row is its own neighbour"
    assert all(len(set(row)) == 15 for row in indices.tolist())
    assert ((indices >= 0) & (indices < 700)).all()
    true = reference.cosine(x.double(), None).gather(1, indices)
    assert (values - true).abs().max() < 1e-6
    fall = values.diff(dim=1)
    assert (fall <= 0).all() and (indices.diff(dim=1)[fall == 0] > 0).all()
    twins = indices[100:200]
    assert (((twins >= 100) & (twins < 200)) | (twins == 5)).all(), "the duplicates are each other's nearest"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("copies", [3, 400])
def test_duplicates(kind: str, copies: int) -> None:
    """Each document many times: k + 1 candidates may hold only duplicates, and not the row itself."""
    x = documents(1200 // copies, 16, seed=2).repeat(copies, 1)
    index = build(x, kind)
    values, indices = index.knn(10)
    assert not (indices == torch.arange(len(x))[:, None]).any()
    assert all(len(set(row)) == 10 for row in indices.tolist())
    assert abs(true_recall(x, indices, 10) - index.recall) < 0.05
    assert (values[:, : min(copies - 1, 10)] > 0.999).double().mean() > 0.9


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "nn_descent"])
@pytest.mark.parametrize("n", [1, 2, 5, 40])
def test_smallest_sizes(kind: str, n: int) -> None:
    for dim in (1, 3, 16):
        x = torch.randn(n, dim)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            index = build(x, kind)
        found = index.search(torch.randn(3, dim), n)
        assert torch.equal(found.indices.sort(dim=1).values, torch.arange(n).expand(3, n))
        if n > 1:
            assert index.knn(n - 1).indices.shape == (n, n - 1)


def test_more_care_for_a_higher_target() -> None:
    x = documents(4000, 48, clusters=1)
    low, high = (build(x, "ivf_flat", recall_target=target) for target in (0.5, 0.99))
    assert low.recall < high.recall and high.recall >= 0.99
    assert low._structure.effort["nprobe"] < high._structure.effort["nprobe"]  # type: ignore[union-attr]
    assert true_recall(x, low.knn(15).indices, 15) < true_recall(x, high.knn(15).indices, 15)


def test_a_target_out_of_reach_is_warned_of() -> None:
    """Few links and little care while building, random rows: a poor graph, whatever efSearch is."""
    needs("hnsw")
    with pytest.warns(UserWarning, match="does not reach recall_target 1 with kind 'hnsw'"):
        index = NeighborIndex.build(torch.randn(6000, 64), "hnsw", recall_target=1, links=2, ef_construction=2)
    assert index.recall < 1 and "NOT reached" in index.describe()


def test_queries() -> None:
    x, queries = documents(2800, 20).split([2500, 300])
    queries = queries.half()
    true = reference.cosine(queries.double(), x.double())
    for kind in KINDS:
        if kind == "exact" or HAS_FAISS:
            values, indices = NeighborIndex.build(x, kind).search(queries, 7)
            assert (values - true.gather(1, indices)).abs().max() < 1e-6
            assert (true.gather(1, indices) >= true.topk(7).values[:, -1:] - 2e-6).double().mean() > 0.9
    assert NeighborIndex.build(x, "exact").search(queries[:0], 7).values.shape == (0, 7)


def test_a_smaller_k_has_no_smaller_recall() -> None:
    """4-bit codes: as many candidates are scored again as for the k of the measurement."""
    x = documents(3000, 20)
    index = build(x, "ivf_pq", recall_k=15)
    assert true_recall(x, index.knn(5).indices, 5) > index.recall - 0.01


def test_queries_that_find_too_few_are_searched_exactly() -> None:
    """More neighbours than there are rows in the lists that are read."""
    x = documents(1000, 32, clusters=8)
    index = build(x, "ivf_flat", recall_k=5, recall_target=0.1)
    ids = index._structure.candidates(x[:50], 600)  # type: ignore[union-attr]
    assert (ids < 0).any(dim=1).all()
    values, indices = index.search(x[:50], 600)
    true = reference.cosine(x[:50], x)
    assert (values - true.gather(1, indices)).abs().max() < 1e-6
    assert (true.gather(1, indices) >= true.topk(600).values[:, -1:] - 2e-6).all()


@pytest.mark.parametrize("kind", FAISS)
def test_near_duplicates_reach_a_high_target(kind: str) -> None:
    """Their cosines are nearly 1; codes of 16 bits mix them up, so more candidates must be scored again."""
    x = torch.randn(8, 32).repeat_interleave(125, 0) + 0.01 * torch.randn(1000, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        index = build(x, kind, recall_target=0.95)
    assert true_recall(x, index.knn(15).indices, 15) > 0.93


def test_rows_of_any_length() -> None:
    """Squares that under- and overflow; the scoring takes another path for them."""
    x, scale = documents(400, 12), torch.tensor([1e-30, 1e-3, 1.0, 1e25]).repeat(100)[:, None]
    plain, scaled = (NeighborIndex.build(rows, "exact") for rows in (x, x * scale))
    ids = torch.randint(0, 400, (50, 20))
    unit = torch.nn.functional.normalize(x[:50])
    torch.testing.assert_close(scaled._rows.cosines(unit, ids), plain._rows.cosines(unit, ids), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_add(kind: str) -> None:
    x = documents(2600, 32)
    index = build(x[:2000], kind)
    index.add(x[2000:2003].half())
    index.add(x[2003:])
    assert len(index) == 2600
    if kind != "exact":
        assert "600 rows were added after the measurement" in index.describe()
    found = index.knn(10)
    assert true_recall(x, found.indices, 10) > 0.9
    assert (found.values - reference.cosine(x, None).gather(1, found.indices)).abs().max() < 1e-3  # three are half
    assert index.search(x[2500:2501], 1).indices.item() == 2500
    if kind != "exact":
        assert 0.9 < index.measure() <= 1 and "added after" not in index.describe()


def test_a_later_write_to_the_input_changes_nothing() -> None:
    x = documents(500, 16)
    index, before = NeighborIndex.build(x, "exact"), cosine_topk(x, k=5)
    x.zero_()
    assert same(index.knn(5), before)


# ------------------------------------------------------------------------------------------- numpy and files of rows
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("kind", ["exact", "ivf_flat"])
def test_numpy_and_memmap(tmp_path: Path, kind: str, dtype: str) -> None:
    x = documents(900, 18).numpy().astype(dtype)
    np.save(tmp_path / "x.npy", x)
    expected = build(torch.from_numpy(x), kind).knn(5)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    flipped = np.ascontiguousarray(x[::-1])[::-1]  # negative strides
    for given in (x, np.asfortranarray(x), flipped, mapped):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert same(NeighborIndex.build(given, kind).knn(5), expected)
    index = NeighborIndex.build(mapped, kind)
    assert index._rows.parts[0].data_ptr() == mapped.ctypes.data, "a memmap is not copied"


MEASURE = """
    import threading, time, sys
    import numpy as np, torch
    from gloss_kernels import NeighborIndex, cosine_topk
    from gloss_kernels.neighbors import knn, plan, rows

    def anonymous():
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("RssAnon"))

    rows.BLOCK_BYTES, knn.EXACT_BLOCK = 1 << 20, 512
    plan.available_memory = lambda: 1 << 20
    cosine_topk(torch.randn(2000, 512), k=5)
    base = peak = anonymous()
    done = threading.Event()
    def watch():
        global peak
        while not done.is_set():
            peak = max(peak, anonymous())
            time.sleep(0.002)
    thread = threading.Thread(target=watch)
    thread.start()
    for path in sys.argv[1:]:
        index = NeighborIndex.build(np.load(path, mmap_mode="r"), "exact")
        index.search(torch.randn(64, 512), 5)
        index.knn(2)
    done.set()
    thread.join()
    print((peak - base) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_file_of_rows_is_read_in_blocks(tmp_path: Path) -> None:
    """16,000 rows, 31 MiB in float32: what is allocated stays at a few blocks of 1 MiB."""
    files = [tmp_path / "half.npy", tmp_path / "single.npy"]
    for path, dtype in zip(files, ("float16", "float32"), strict=True):
        np.save(path, documents(16_000, 512).numpy().astype(dtype))
    mebibytes = float(python(MEASURE, *map(str, files)))
    assert mebibytes < 20, f"{mebibytes} MiB allocated"


def python(code: str, *words: str, status: int = 0) -> str:
    # the parent's torch has started threads of its own; two children at once would otherwise take all cores
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*PYTHON, "-c", textwrap.dedent(code), *words]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert result.returncode == status, result.stderr
    return result.stdout


# ------------------------------------------------------------------------------------------- save and load
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vectors", [True, False])
def test_saved_index_is_the_same(tmp_path: Path, kind: str, vectors: bool) -> None:
    x = documents(900, 21)
    index = build(x, kind)
    extra = documents(33, 21, torch.float16, seed=4)
    index.add(extra)  # 33 x 21 x 2 bytes: the next part would start at an odd place
    index.add(x[:5].double())
    path = tmp_path / "an index"
    index.save(path, vectors=vectors)
    assert [file.name for file in tmp_path.iterdir()] == ["an index"]
    if not vectors:
        with pytest.raises(ValueError, match=r"embeddings must be the rows that .*, got others"):  # their dtypes differ
            NeighborIndex.load(path, torch.cat([x, extra.float(), x[:5]]))
        index = build(x, kind)
        index.save(path, vectors=False)
        assert path.stat().st_size < x.numel() * 4 or kind in ("flat", "nn_descent", "hnsw")
    again = NeighborIndex.load(path, None if vectors else x.numpy())
    assert (again.kind, again.dim, len(again)) == (index.kind, index.dim, len(index))
    assert again.describe() == index.describe() and again.fingerprint() == index.fingerprint()
    assert same(again.knn(9), index.knn(9)) and same(again.search(x[:50] + 0.1, 9), index.search(x[:50] + 0.1, 9))
    again.save(path, vectors=vectors)  # over the file that it is mapped from
    assert same(again.knn(9), index.knn(9))
    again.add(x[:3])
    assert again.search(x[:3], 2).values.min() > 0.999
    assert 0.9 < again.measure() <= 1


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "saved.index"
    build(documents(300, 8), "ivf_flat" if HAS_FAISS else "exact").save(path)
    return path


def test_every_cut_is_noticed(saved: Path) -> None:
    whole = saved.read_bytes()
    for length in (0, 5, 23, 24, 100, 700, len(whole) // 2, len(whole) - 1):
        saved.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"path.* .*saved\.index"):
            NeighborIndex.load(saved)
    saved.write_bytes(whole + b"\0")
    with pytest.raises(ValueError, match="cut or damaged"):
        NeighborIndex.load(saved)


def test_every_flipped_byte_is_noticed(saved: Path) -> None:
    whole = bytearray(saved.read_bytes())
    for place in [*range(0, 64), *range(64, len(whole) - 1, len(whole) // 60), len(whole) - 1]:
        broken = whole.copy()
        broken[place] ^= 16
        saved.write_bytes(broken)
        with pytest.raises(ValueError, match=r"^path(:| must) .*saved\.index"):
            NeighborIndex.load(saved)


def test_foreign_files(tmp_path: Path, saved: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((5, 5)))
    with pytest.raises(ValueError, match=r"path must be a file written by NeighborIndex\.save, got .*x\.npy'"):
        NeighborIndex.load(tmp_path / "x.npy")
    with pytest.raises(FileNotFoundError, match="nothing"):
        NeighborIndex.load(tmp_path / "nothing")
    later = bytearray(saved.read_bytes())
    later[8] = 9
    saved.write_bytes(later)
    with pytest.raises(ValueError, match=r"path must be of format 1, .*, got .* of 9"):
        NeighborIndex.load(saved)


def test_wrong_rows_for_a_file(tmp_path: Path, saved: Path) -> None:
    x = documents(300, 8)
    with pytest.raises(ValueError, match=r"embeddings must be None, since .*saved\.index"):
        NeighborIndex.load(saved, x)
    path = tmp_path / "bare.index"
    NeighborIndex.build(x, "exact").save(path, vectors=False)
    for wrong, message in (
        (None, r"be the rows that .*bare\.index' was built from .*, got None"),
        (documents(300, 9), "have 8 columns as the index, got 9"),
        (x[:299], r"be the 300 rows that .*bare\.index' was built from, got 299 rows"),
        (x.roll(1, 0), r"be the rows that .*bare\.index' was built from, got others"),
    ):
        with pytest.raises(ValueError, match=f"^embeddings must {message}"):
            NeighborIndex.load(path, wrong)


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, x = tmp_path / "saved.index", documents(300, 8)
    NeighborIndex.build(x, "exact").save(path)
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("the disk is full")))
    with pytest.raises(OSError, match="the disk is full"):
        NeighborIndex.build(x + 1, "exact").save(path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


# ------------------------------------------------------------------------------------------- knn and its checkpoint
class Stop(Exception):
    pass


def stop_after(share: float, seen: list[float]) -> object:
    def report(done: float) -> None:
        seen.append(done)
        if done >= share:
            raise Stop

    return report


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn_module, "BLOCK", 150)
    monkeypatch.setattr(knn_module, "EXACT_BLOCK", 150)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_graph_goes_on(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = documents(1000, 16)
    index = build(x, kind)
    index.save(tmp_path / "index")
    whole, folder, seen = index.knn(6, checkpoint=tmp_path / "other"), tmp_path / "kept", []
    with pytest.raises(Stop):
        index.knn(6, checkpoint=folder, progress=stop_after(0.4, seen))
    assert seen == [0.15, 0.3, 0.45]

    searched: list[int] = []
    find = NeighborIndex._find_others
    monkeypatch.setattr(
        NeighborIndex, "_find_others", lambda self, start, *rest: searched.append(start) or find(self, start, *rest)
    )
    seen.clear()
    again = NeighborIndex.load(tmp_path / "index")
    result = again.knn(6, checkpoint=folder, progress=seen.append)
    assert searched == [450, 600, 750, 900] and seen == [0.45, 0.6, 0.75, 0.9, 1.0]
    assert same(result, whole)
    assert same(again.knn(6, checkpoint=folder), whole) and len(searched) == 4, "a finished folder is read again"
    if kind != "exact":
        assert same(index.knn(6), whole)


KILLED = """
    import sys
    from gloss_kernels import NeighborIndex
    from gloss_kernels.neighbors import knn

    knn.BLOCK = knn.EXACT_BLOCK = 128
    def report(done):
        print(done, flush=True)
    NeighborIndex.load(sys.argv[1]).knn(6, checkpoint=sys.argv[2], progress=report)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_a_killed_graph_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL while a block is searched or written."""
    index = build(documents(20_000, 32), "ivf_flat" if HAS_FAISS else "exact", recall_target=1.0)
    index.save(tmp_path / "index")
    folder = tmp_path / "kept"
    command = [*PYTHON, "-c", textwrap.dedent(KILLED), str(tmp_path / "index"), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for _ in range(5):
            reached = float(child.stdout.readline())
        child.kill()
    assert child.returncode == -signal.SIGKILL
    done = json.loads((folder / "state.json").read_text())["done"]
    assert 20_000 * reached <= done < 20_000

    monkeypatch.setattr(knn_module, "BLOCK", 128)
    monkeypatch.setattr(knn_module, "EXACT_BLOCK", 128)
    seen: list[float] = []
    result = index.knn(6, checkpoint=folder, progress=seen.append)
    assert seen[0] == done / 20_000 and len(seen) == -(-(20_000 - done) // 128) + 1
    assert same(result, index.knn(6, checkpoint=tmp_path / "other"))


@pytest.mark.usefixtures("small_blocks")
def test_the_state_names_no_rows_that_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flush, calls = np.memmap.flush, 0

    def failing(array: np.memmap) -> None:
        nonlocal calls
        calls += 1
        if calls > 2:  # values and indices of the first block
            raise OSError(28, "No space left on device")
        flush(array)

    monkeypatch.setattr(np.memmap, "flush", failing)
    with pytest.raises(OSError, match="No space left"):
        NeighborIndex.build(documents(400, 12), "exact").knn(5, checkpoint=tmp_path)
    assert json.loads((tmp_path / "state.json").read_text())["done"] == 150


@pytest.mark.usefixtures("small_blocks")
def test_a_checkpoint_of_another_search_is_refused(tmp_path: Path) -> None:
    x = documents(400, 12)
    index, folder = NeighborIndex.build(x, "exact"), tmp_path / "kept"
    index.knn(5, checkpoint=folder)
    with pytest.raises(ValueError, match=r"checkpoint must be of the same search.* k is 5, here it is 6$"):
        index.knn(6, checkpoint=folder)
    with pytest.raises(ValueError, match=r"checkpoint must be of the same search.* index is"):
        NeighborIndex.build(x + 0.01, "exact").knn(5, checkpoint=folder)
    with pytest.raises(
        ValueError, match=r"checkpoint must be of the same search.* the number of rows is 400, here it is 399$"
    ):
        NeighborIndex.build(x[1:], "exact").knn(5, checkpoint=folder)
    (folder / "values.npy").write_bytes(b"")
    with pytest.raises(ValueError, match=r"checkpoint: .*values\.npy' is missing or damaged"):
        index.knn(5, checkpoint=folder)
    for text in ("", "[]", '{"n": 400}', *(f'{{"done": {done}, "n": 400}}' for done in ("-1", "true", "401"))):
        (folder / "state.json").write_text(text)
        with pytest.raises(ValueError, match=r"checkpoint: .*state\.json' is damaged or was not written by knn"):
            index.knn(5, checkpoint=folder)
    (folder / "state.json").unlink()
    with pytest.raises(ValueError, match=r"checkpoint must be a new folder .* has values\.npy but no state\.json"):
        index.knn(5, checkpoint=folder)  # somebody else's arrays are not overwritten


def test_the_same_rows_with_other_care_are_another_search(tmp_path: Path) -> None:
    x = documents(3000, 24, clusters=1)
    build(x, "ivf_flat", recall_target=0.5).knn(5, checkpoint=tmp_path / "kept")
    with pytest.raises(ValueError, match=r"of the same search.* index is"):
        build(x, "ivf_flat", recall_target=1).knn(5, checkpoint=tmp_path / "kept")
    build(x, "ivf_flat", recall_target=0.5, recall_k=20).knn(5, checkpoint=tmp_path / "wide")
    with pytest.raises(ValueError, match=r"of the same search.* index is"):  # it looks for more candidates
        build(x, "ivf_flat", recall_target=0.5, recall_k=5).knn(5, checkpoint=tmp_path / "wide")


@pytest.mark.parametrize("kind", KINDS)
def test_a_search_leaves_the_index_as_it_was(kind: str, tmp_path: Path) -> None:
    x = documents(600, 16)
    index = build(x, kind)
    before = index.fingerprint()
    found = index.knn(60, checkpoint=tmp_path / "kept")
    assert index.fingerprint() == before and same(index.knn(60, checkpoint=tmp_path / "kept"), found)


def test_rows_whose_codes_failed_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    x = documents(600, 16)
    index = build(x[:500], "hnsw")

    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(index._structure, "add", fail)
    with pytest.raises(MemoryError):
        index.add(x[500:])
    monkeypatch.undo()
    index.add(x[500:])
    assert len(index) == 600 and index.search(x[550:551], 1).indices.item() == 550


def test_a_broken_faiss_says_why(tmp_path: Path) -> None:
    (tmp_path / "faiss.py").write_text("raise ImportError('libgomp.so.1: cannot open')")
    code = "import torch, gloss_kernels as g; g.NeighborIndex.build(torch.randn(300, 8), 'flat')"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([*PYTHON, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert "faiss is installed, but cannot be imported: libgomp.so.1: cannot open" in done.stderr


def test_exact_blocks_and_the_whole_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    x = documents(900, 20)
    whole = NeighborIndex.build(x, "exact").knn(8)
    index = NeighborIndex.build(x[:400], "exact")
    index.add(x[400:])
    monkeypatch.setattr(knn_module, "EXACT_BLOCK", 70)
    monkeypatch.setattr(rows, "BLOCK_BYTES", 4 * 20 * 33)
    blocks = index.knn(8)
    assert (blocks.values - whole.values).abs().max() < 5e-7
    assert (blocks.indices == whole.indices).double().mean() > 0.999


def test_progress_can_stop_the_whole_and_the_build() -> None:
    seen: list[float] = []
    index = NeighborIndex.build(documents(20_000, 16), "exact")
    with pytest.raises(Stop):
        index.knn(5, progress=stop_after(0.0, seen))
    assert len(seen) == 1
    if HAS_FAISS:
        with pytest.raises(Stop):
            NeighborIndex.build(documents(1000, 16), "flat", progress=stop_after(0.0, seen))
    for kind in FAISS if HAS_FAISS else ():
        seen.clear()
        NeighborIndex.build(documents(1000, 16), kind, progress=seen.append)
        assert seen[-1] == 1.0


# ------------------------------------------------------------------------------------------- arguments
X = documents(300, 6)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"embeddings": [[1.0]]},
            TypeError,
            "embeddings must be a torch.Tensor, a numpy array or a numpy.memmap, got list",
        ),
        ({"embeddings": X[0]}, ValueError, r"embeddings must .*got shape \(6,\)"),
        ({"embeddings": X[:0]}, ValueError, "embeddings must have at least one row, got none"),
        ({"embeddings": X[:, :0]}, ValueError, "embeddings must .*got shape"),
        ({"embeddings": X.long()}, TypeError, "embeddings must .*got torch.int64"),
        ({"embeddings": X.to_sparse()}, TypeError, "embeddings must .*got layout"),
        (
            {"embeddings": np.zeros((3, 3), np.int64)},
            TypeError,
            "embeddings must be native float16, float32 or float64 numbers, got <i8",
        ),
        (
            {"embeddings": np.zeros((3, 3), ">f4")},
            TypeError,
            "embeddings must be native float16, float32 or float64 numbers, got >f4",
        ),
        ({"embeddings": X.log()}, ValueError, "embeddings: row 0 contains NaN or Inf"),
        ({"kind": "annoy"}, ValueError, "kind must .*got 'annoy'"),
        ({"recall_target": 0}, ValueError, "recall_target must .*got 0"),
        ({"recall_target": 1.5}, ValueError, "recall_target must .*got 1.5"),
        ({"recall_target": "all"}, TypeError, "recall_target must .*got 'all'"),
        ({"recall_k": 0}, ValueError, "recall_k must .*got 0"),
        ({"recall_k": 1.5}, TypeError, "recall_k must .*got 1.5"),
        ({"seed": -1}, ValueError, "seed must .*got -1"),
        ({"memory_limit": 0}, ValueError, "memory_limit must .*got 0"),
        ({"nlist": 3}, ValueError, "nlist must be None for kind 'exact', got 3"),
        ({"kind": "hnsw", "links": 1}, ValueError, "links must .*got 1"),
        ({"kind": "hnsw", "ef_construction": 0}, ValueError, "ef_construction must .*got 0"),
        ({"kind": "ivf_pq", "nlist": 301}, ValueError, "nlist must be at most the 300 rows, got 301"),
        ({"kind": "ivf_flat", "nlist": 2.0}, TypeError, "nlist must .*got 2.0"),
    ],
)
def test_wrong_arguments_of_build(change: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        NeighborIndex.build(**{"embeddings": X, "kind": "exact", **change})  # type: ignore[arg-type]


def test_a_bad_row_past_the_first_block_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "BLOCK_BYTES", 4 * 6 * 50)
    x = X.clone()
    x[217, 3] = torch.inf
    with pytest.raises(ValueError, match="embeddings: row 217 contains NaN or Inf"):
        NeighborIndex.build(x, "exact")


def test_wrong_arguments_later() -> None:
    index = NeighborIndex.build(X, "exact")
    with pytest.raises(ValueError, match=r"^queries must have 6 columns as the index, got 5"):
        index.search(X[:, :5], 3)
    with pytest.raises(
        TypeError, match=r"^queries must be a torch.Tensor, a numpy array or a numpy.memmap, got NoneType"
    ):
        index.search(None, 3)
    with pytest.raises(ValueError, match=r"^k must be at most 300, the rows of the index, got 301$"):
        index.search(X, 301)
    with pytest.raises(ValueError, match=r"^k must be at most 299 \(a row of 300 has no more others\), got 300$"):
        index.knn(300)
    with pytest.raises(TypeError, match=r"^k must .*got '3'"):
        index.knn("3")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^embeddings must have 6 columns as the index, got 7"):
        index.add(torch.zeros(2, 7))
    with pytest.raises(ValueError, match=r"^knn: the index must have at least 2 rows, .*got 1$"):
        NeighborIndex.build(X[:1], "exact").knn(1)
    index.add(X[:0])
    assert len(index) == 300


def test_a_checkpoint_that_is_no_folder(tmp_path: Path) -> None:
    index = NeighborIndex.build(X, "exact")
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match=r"^checkpoint must be a folder, got .*which lies in or is a file"):
            index.knn(3, checkpoint=path)
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(TypeError, match=r"^checkpoint must be the path of a folder, got 5"):
        index.knn(3, checkpoint=5)  # type: ignore[arg-type]


def test_nn_descent_wants_some_rows() -> None:
    needs("nn_descent")
    with pytest.raises(ValueError, match="embeddings must have at least 256 rows for kind 'nn_descent', got 255"):
        NeighborIndex.build(X[:255], "nn_descent")


# ------------------------------------------------------------------------------------------- without FAISS, "auto"
def test_without_faiss() -> None:
    python("""
        import sys
        sys.modules["faiss"] = None  # what an import of a missing module looks like
        import torch
        from gloss_kernels import NeighborIndex, cosine_topk
        from gloss_kernels.neighbors import plan
        x = torch.randn(300, 8)
        assert torch.equal(NeighborIndex.build(x, "exact").knn(5).indices, cosine_topk(x, k=5).indices)
        for kind in ("flat", "ivf_flat", "ivf_pq", "hnsw", "nn_descent"):
            try:
                NeighborIndex.build(x, kind)
            except ImportError as error:
                assert "pip install 'gloss-kernels[faiss-cpu]'" in str(error) and "kind='exact'" in str(error)
            else:
                raise AssertionError(kind)
        plan.EXACT_ROWS = dict.fromkeys(plan.EXACT_ROWS, 100)
        index = NeighborIndex.build(x)
        assert index.kind == "exact" and "faiss is not installed" in index.describe(), index.describe()
    """)


@pytest.mark.parametrize(
    ("n", "device", "limit", "kind", "reason"),
    [
        (1000, "cpu", None, "exact", "up to 40,000 rows with avx2 exact search is the fastest"),
        (40_001, "cpu", 1 << 40, "hnsw", "above 40,000 rows with avx2 hnsw is faster"),
        (1_000_000, "cuda", 1, "exact", "1,000,000 x 384 rows on cuda: up to 2,000,000"),
        (3_000_000, "cuda", 1 << 40, "hnsw", "above 2,000,000 rows hnsw"),
        (10_000_000, "cpu", int(9.3e9 / 0.7), "hnsw", "fits in memory"),
        (10_000_000, "cpu", int(9.2e9 / 0.7), "ivf_flat", "fits in memory"),
        (10_000_000, "cpu", 4 << 30, "ivf_pq", "do not fit in 4,294,967,296 bytes"),
    ],
)
def test_auto(n: int, device: str, limit: int | None, kind: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    monkeypatch.setattr(plan.library.core, "isa", lambda: "avx2")
    monkeypatch.setattr(plan, "has_gpu", lambda faiss: False)
    chosen, why = plan.choose(n, 384, torch.device(device), limit)
    assert chosen == kind and reason in why


def test_auto_by_instruction_set_and_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    for isa in ("generic", "avx2", "avx512", "avx512bf16"):
        monkeypatch.setattr(plan.library.core, "isa", lambda isa=isa: isa)
        limit, where = plan.exact_rows(torch.device("cpu"))
        assert limit == plan.EXACT_ROWS[isa] and where == f" with {isa}"
        kinds = [plan.choose(n, 384, torch.device("cpu"), 1 << 40)[0] for n in (limit, limit + 1)]
        assert kinds == ["exact", "hnsw"]
    monkeypatch.setattr(plan.library, "core", None)  # a source tree that was not built
    assert plan.exact_rows(torch.device("cpu")) == (plan.EXACT_ROWS["generic"], "")
    monkeypatch.setattr(plan, "has_gpu", lambda faiss: True)
    assert plan.choose(3_000_000, 384, torch.device("cuda"), None)[0] == "ivf_flat"


def test_auto_plans_with_free_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    monkeypatch.setattr(plan, "EXACT_ROWS", dict.fromkeys(plan.EXACT_ROWS, 500))
    monkeypatch.setattr(plan, "available_memory", lambda: 100_000)
    x = documents(1000, 32)
    assert NeighborIndex.build(x).kind == "ivf_pq"
    index = NeighborIndex.build(x, memory_limit=1 << 30)
    assert index.kind == "hnsw" and "above 500 rows with " in index.describe()
    assert NeighborIndex.build(x[:500]).kind == "exact"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_free_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(plan, "CGROUP", tmp_path)
    free = plan.available_memory()
    assert free is not None and 1 << 24 < free < 1 << 50
    (tmp_path / "memory.max").write_text("10000000\n")
    (tmp_path / "memory.current").write_text("9000000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 500000\n")
    assert plan.available_memory() == 1_500_000
    (tmp_path / "memory.max").write_text("max\n")
    assert plan.available_memory() > 1 << 24  # type: ignore[operator]


@pytest.mark.parametrize("kind", FAISS)
def test_memory_that_auto_plans_with(kind: str, tmp_path: Path) -> None:
    """The bytes of a row in the docstring against those of the saved structure."""
    x = documents(4000, 64)
    build(x, kind, recall_target=0.1).save(tmp_path / "index", vectors=False)
    size, planned = (tmp_path / "index").stat().st_size, plan.memory(kind, 4000, 64)
    fixed = 252 * 64 * 4 + 64 * 16 * 4 + 10_000  # centroids, codebook, header
    assert size <= planned + fixed and (planned < 1.3 * size or kind == "nn_descent")


# ------------------------------------------------------------------------------------------- into the graph
@pytest.mark.parametrize("kind", ["exact", "flat", "hnsw"])
def test_graph_and_labels_from_it(kind: str) -> None:
    x = documents(1000, 32, clusters=4)
    graph = similarity_graph(x, 10, neighbors=build(x, kind).knn(10))
    expected = similarity_graph(x, 10)
    if kind != "hnsw":
        assert torch.equal(graph.col_indices, expected.col_indices)
        torch.testing.assert_close(graph.values, expected.values, rtol=1e-5, atol=1e-7)
    labels = torch.full((1000,), -1)
    labels[:40] = torch.arange(40) % 4
    assert (propagate_labels(graph, labels).probabilities.argmax(1) == torch.arange(1000) % 4).double().mean() > 0.9

"""`gloss-kernels graph` and `gloss-kernels propagate`, run in this process through the command line's main()."""

import importlib.util
import io
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import documents

from gloss_kernels import NeighborIndex, SimilarityGraph, cosine_topk, propagate_labels, similarity_graph
from gloss_kernels._files import replacing
from gloss_kernels.cli import terminal
from gloss_kernels.cli.components import components
from gloss_kernels.cli.main import main
from gloss_kernels.neighbors import knn as knn_module
from gloss_kernels.neighbors.structures import Structure

if os.environ.get("GLOSS_TEST_DEVICE", "cpu") != "cpu":
    pytest.skip("the commands are tested on the CPU", allow_module_level=True)
HAS_FAISS = importlib.util.find_spec("faiss") is not None
N = 600


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with embeddings x.npy [600, 16] of 4 classes and labels y.npy of one in ten."""
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", documents(N, 16, clusters=4).numpy())
    labels = np.full(N, -1, np.int32)
    labels[:60] = np.arange(60) % 4
    np.save("y.npy", labels)
    return tmp_path


def run(line: str) -> int:
    return main([*shlex.split(line), *(["--device", "cpu"] if line.startswith(("graph", "propagate")) else [])])


def fails(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What it says on stderr: one line."""
    capsys.readouterr()
    assert run(line) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("error: ") and shown.err.count("\n") == 1, shown
    return shown.err.removeprefix("error: ").rstrip()


def equal(a: SimilarityGraph, b: SimilarityGraph) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a[:3], b[:3], strict=True))


# ------------------------------------------------------------------------------------------- graph
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_graph_is_that_of_the_library(folder: Path, dtype: str, capsys: pytest.CaptureFixture[str]) -> None:
    x = np.load("x.npy").astype(dtype)
    np.save("x.npy", x)
    assert run("graph x.npy -k 7 -o graph.npz --kind exact --sigma 0.4") == 0
    shown = capsys.readouterr()
    expected = similarity_graph(torch.from_numpy(x), 7, sigma=0.4)
    graph = SimilarityGraph.load("graph.npz")
    assert torch.equal(graph.col_indices, expected.col_indices) and graph.symmetric
    torch.testing.assert_close(graph.values, expected.values, rtol=1e-5, atol=0)
    assert shown.err == "", "no progress line where stderr is not a terminal"
    for line in (f"600 x 16 {dtype}", "k = 7; exact", "recall: 1, exact", f"{expected.num_edges // 2:,}, mean degree "):
        assert line in shown.out
    for name in ("components", "sigma         0.4", "index ", "neighbours ", "peak memory", "MiB", "graph.npz"):
        assert name in shown.out
    assert sorted(path.name for path in folder.iterdir()) == ["graph.npz", "x.npy", "y.npy"]


def test_graph_file_is_read_without_the_package(folder: Path) -> None:
    sparse = pytest.importorskip("scipy.sparse")
    assert run("graph x.npy -o graph.npz") == 0
    with np.load("graph.npz") as file:
        matrix = sparse.csr_array((file["values"], file["col_indices"], file["crow_indices"]), shape=(N, N))
    expected = similarity_graph(torch.from_numpy(np.load("x.npy"))).to_scipy()
    assert abs(matrix - expected).max() < 1e-6 and abs(matrix - matrix.T).max() == 0


@pytest.mark.parametrize("kind", ["flat", "ivf_flat", "ivf_pq", "hnsw", "nn_descent"])
def test_graph_by_faiss(folder: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    faiss = pytest.importorskip("faiss")
    if kind == "nn_descent" and not hasattr(faiss, "IndexNNDescentFlat"):
        pytest.skip("this build of faiss has no NN-descent")
    assert run(f"graph x.npy -k 9 -o graph.npz --kind {kind} --recall 0.9") == 0
    shown = capsys.readouterr().out
    assert f"k = 9; {kind}: 600 rows" in shown and "of the nearest 9, measured on 512 rows; target 0.9 reached" in shown
    graph, exact = SimilarityGraph.load("graph.npz"), similarity_graph(torch.from_numpy(np.load("x.npy")), 9)
    here, there = (set(zip(g.row_indices.tolist(), g.col_indices.tolist(), strict=True)) for g in (graph, exact))
    assert len(here & there) > 0.85 * len(there)


def test_sigma_by_rule_and_symmetrize(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = torch.from_numpy(np.load("x.npy"))
    found = cosine_topk(x, k=10)
    local = (2 - 2 * found.values[:, 6]).sqrt()
    assert run("graph x.npy -k 10 -o a.npz --sigma self-tuning --symmetrize mutual") == 0
    expected = similarity_graph(x, sigma=local, symmetrize="mutual", neighbors=found)
    torch.testing.assert_close(SimilarityGraph.load("a.npz").values, expected.values, rtol=1e-4, atol=1e-7)
    assert run("graph x.npy -k 10 -o b.npz --sigma root --symmetrize union") == 0
    shown = capsys.readouterr().out
    sigma = float(shown.split("root, ")[1].split()[0])
    expected = similarity_graph(x, sigma=sigma, symmetrize="union", neighbors=found)
    torch.testing.assert_close(SimilarityGraph.load("b.npz").values, expected.values, rtol=1e-2, atol=1e-7)


def test_a_missed_recall_is_a_warning_line(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("faiss")
    monkeypatch.setattr(Structure, "efforts", lambda self: [{"nprobe": 1}])
    assert run("graph x.npy -o graph.npz --kind ivf_flat --recall 1") == 0
    shown = capsys.readouterr()
    assert "target 1 NOT reached" in shown.out
    err = shown.err
    assert err.startswith("warning: NeighborIndex: recall ") and err.count("\n") == 1


@pytest.mark.parametrize("step", [97, 1 << 18])
def test_components(step: int) -> None:
    csgraph = pytest.importorskip("scipy.sparse.csgraph")
    for n, k, seed in ((1, 1, 0), (200, 1, 0), (300, 2, 1), (3000, 1, 2)):
        x = documents(max(n, 2), 3, seed=seed)
        graph = similarity_graph(x, k)
        count, names = csgraph.connected_components(graph.to_scipy())
        assert components(graph, step) == (count, np.bincount(names).max())
    chain = torch.arange(999)  # the longest way round
    order = torch.randperm(1000)
    row, col = order[torch.cat([chain, chain + 1])], order[torch.cat([chain + 1, chain])]
    sparse = pytest.importorskip("scipy.sparse")
    matrix = sparse.coo_array((np.ones(1998), (row.numpy(), col.numpy())), shape=(1001, 1001))
    assert components(SimilarityGraph.from_scipy(matrix), step) == (2, 1000)


# ------------------------------------------------------------------------------------------- checkpoint
@pytest.fixture
def interrupted_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, float], None]:
    """Ctrl-C when a step has come that far; blocks of 100 rows."""
    monkeypatch.setattr(knn_module, "BLOCK", 100)
    monkeypatch.setattr(knn_module, "EXACT_BLOCK", 100)

    def arm(step: str, at: float) -> None:
        def report(self: terminal.Progress, name: str) -> Callable[[float], None]:
            return lambda share: signal.raise_signal(signal.SIGINT) if name == step and share >= at else None

        monkeypatch.setattr(terminal.Progress, "step", report)

    return arm


@pytest.mark.parametrize("kind", ["exact", "ivf_flat", "hnsw"])
def test_interrupted_graph_is_resumed(
    folder: Path, kind: str, interrupted_at: Callable[[str, float], None], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if kind != "exact":
        pytest.importorskip("faiss")
    line = f"graph x.npy -k 5 -o graph.npz --kind {kind} --checkpoint kept"
    interrupted_at("neighbours", 0.4)
    assert run(line) == 130
    shown = capsys.readouterr()
    assert shown.out == "" and not Path("graph.npz").exists()
    again = shown.err.removeprefix("interrupted; to resume: gloss-kernels ").strip()
    assert again == f"{line} --device cpu --resume"
    assert json.loads(Path("kept/state.json").read_text())["done"] == 300
    assert "--checkpoint 'kept' holds an earlier search; --resume continues it" in fails(line, capsys)
    assert "--neighbors must be 5, as in --checkpoint, got 6" in fails(f"{line} --resume -k 6", capsys)
    assert "--recall must be 0.95, as in --checkpoint, got 0.5" in fails(f"{line} --resume --recall 0.5", capsys)

    searched: list[int] = []
    find = NeighborIndex._find_others
    monkeypatch.setattr(
        NeighborIndex, "_find_others", lambda self, start, *rest: searched.append(start) or find(self, start, *rest)
    )
    interrupted_at("never", 0)
    assert main(shlex.split(again)) == 0
    assert searched == [300, 400, 500]
    resumed = SimilarityGraph.load("graph.npz")
    if kind != "hnsw":  # whose build is another each time
        assert run(f"graph x.npy -k 5 -o whole.npz --kind {kind} --checkpoint other") == 0
        assert equal(resumed, SimilarityGraph.load("whole.npz"))
    searched.clear()
    assert main([*shlex.split(again), "--overwrite", "--sigma", "0.3"]) == 0
    assert not searched and not equal(resumed, SimilarityGraph.load("graph.npz")), "another sigma, the same search"

    np.save("x.npy", np.load("x.npy")[::-1].copy())
    message = fails(f"{again} --overwrite", capsys)
    assert "embeddings must be the rows that 'kept/index' was built from, got others" in message


def test_interrupted_without_a_checkpoint_or_an_index(
    folder: Path, interrupted_at: Callable[[str, float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted_at("neighbours", 0)
    assert run("graph x.npy -o graph.npz") == 130
    assert "nothing is kept (--checkpoint FOLDER would keep" in capsys.readouterr().err
    if HAS_FAISS:
        interrupted_at("index", 0)
        assert run("graph x.npy -o graph.npz --kind flat --checkpoint kept") == 130
        assert "while the index was built" in capsys.readouterr().err
        interrupted_at("never", 0)
        assert run("graph x.npy -o graph.npz --kind flat --checkpoint kept --resume") == 0


def test_a_folder_of_other_files_is_left_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "must be a new or empty folder" in fails("graph x.npy -o graph.npz --checkpoint .", capsys)
    assert sorted(path.name for path in folder.iterdir()) == ["x.npy", "y.npy"]
    Path("kept").mkdir()
    for text in ("", "[]", '{"kind": "auto"}'):
        Path("kept/settings.json").write_text(text)
        message = fails("graph x.npy -o graph.npz --checkpoint kept --resume", capsys)
        assert message == "--checkpoint: 'kept/settings.json' is damaged"
    assert "--checkpoint 'x.npy': File exists" in fails("graph x.npy -o graph.npz --checkpoint x.npy", capsys)


# ------------------------------------------------------------------------------------------- propagate
@pytest.mark.parametrize(
    ("line", "options"),
    [
        ("", {}),
        ("--alpha 0.9", {"alpha": 0.9}),
        ("--num-classes 6 --normalization published", {"num_classes": 6, "normalization": "published"}),
        ("--prior-strength 0.1 --tol 1e-3 --max-iter 50", {"prior_strength": 0.1, "tol": 1e-3, "max_iter": 50}),
    ],
)
def test_propagate_is_that_of_the_library(
    folder: Path, line: str, options: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    graph = similarity_graph(torch.from_numpy(np.load("x.npy")), 10)
    graph.save("graph.npz")
    assert run(f"propagate graph.npz y.npy -o out.npz {line}") == 0
    shown = capsys.readouterr()
    labels = torch.from_numpy(np.load("y.npy")).long()
    expected = propagate_labels(graph, labels, **options)  # type: ignore[arg-type]
    with np.load("out.npz") as file:
        assert sorted(file) == ["predictions", "probabilities", "reachable"]
        probabilities, predictions, reachable = file["probabilities"], file["predictions"], file["reachable"]
    assert (probabilities.dtype, predictions.dtype, reachable.dtype) == (np.float32, np.int64, bool)
    assert np.array_equal(probabilities, expected.probabilities.numpy())
    assert np.array_equal(predictions, expected.probabilities.argmax(1).numpy()) and reachable.all()
    assert (predictions == np.arange(N) % 4).mean() > 0.9
    assert f"600, 60 of them labelled (10.00 %), {probabilities.shape[1]} classes" in shown.out
    assert "600 of the documents (100.00 %)" in shown.out and f"{int(expected.iterations)} iterations" in shown.out
    assert shown.err == ""


def test_documents_without_a_way_to_a_label(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = torch.eye(2).repeat_interleave(50, 0).repeat(1, 4) + 0.01 * torch.randn(100, 8)
    similarity_graph(x, 5).save("graph.npz")
    labels = np.full(100, -1)
    labels[:2] = 0, 1
    np.save("y.npy", labels)
    assert run("propagate graph.npz y.npy -o out.npz") == 0
    assert "50 of the documents (50.00 %)" in capsys.readouterr().out
    with np.load("out.npz") as file:
        assert (file["predictions"][50:] == -1).all() and (file["predictions"][:50] >= 0).all()
        assert np.array_equal(file["reachable"], np.arange(100) < 50) and (file["probabilities"][50:] == 0.5).all()


def test_a_solve_that_does_not_end_is_a_warning_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("graph x.npy -o graph.npz") == 0
    capsys.readouterr()
    assert run("propagate graph.npz y.npy -o out.npz --max-iter 1 --tol 1e-9") == 0
    err = capsys.readouterr().err
    assert err.startswith("warning: gloss_kernels: propagate_labels did not converge") and err.count("\n") == 1


# ------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("graph none.npy -o g.npz", "EMBEDDINGS 'none.npy' cannot be read: No such file"),
        ("graph . -o g.npz", "EMBEDDINGS '.' cannot be read: Is a directory"),
        ("graph text.npy -o g.npz", "EMBEDDINGS must be a whole .npy file of numbers, got 'text.npy'"),
        ("graph empty.npy -o g.npz", "EMBEDDINGS must be a whole .npy file of numbers, got 'empty.npy'"),
        ("graph cut.npy -o g.npz", "EMBEDDINGS must be a whole .npy file of numbers, got 'cut.npy'"),
        ("graph objects.npy -o g.npz", "EMBEDDINGS must be a whole .npy file of numbers, got 'objects.npy'"),
        ("graph zip.npz -o g.npz", "EMBEDDINGS must be a .npy file, got 'zip.npz'"),
        ("graph y.npy -o g.npz", "embeddings must be native float16, float32 or float64 numbers, got <i4"),
        ("graph flat.npy -o g.npz", "embeddings must be [rows, dim], got shape (9,)"),
        ("graph nan.npy -o g.npz -k 3", "embeddings: row 3 contains NaN or Inf"),
        ("graph x.npy -o g.npz -k 600", "-k must be less than the 600 rows of EMBEDDINGS, got 600"),
        ("graph x.npy -o g.npz -k 0", "argument -k/--neighbors: must be a whole number of at least 1, got '0'"),
        (
            "graph x.npy -o g.npz --sigma 0",
            "argument --sigma: must be a number at least 1e-06, or root, self-tuning, got '0'",
        ),
        ("graph x.npy -o g.npz --recall 1.5", "argument --recall: must be a number from 0 to 1, got '1.5'"),
        ("graph x.npy -o g.npz --recall 0", "argument --recall: must be a number above 0, got '0'"),
        ("graph x.npy -o g.npz --kind annoy", "argument --kind: invalid choice"),
        ("graph x.npy -o g.npz --resume", "--resume needs --checkpoint"),
        ("graph x.npy", "the following arguments are required: -o/--output"),
        ("graph x.npy -o x.npy", "--output must be another file than EMBEDDINGS, got 'x.npy', which is 'x.npy'"),
        ("graph x.npy -o y.npy", "--output 'y.npy' exists already; --overwrite replaces it"),
        ("graph x.npy -o .", "--output must be a file, got the folder '.'"),
        ("graph x.npy -o no/g.npz", "--output must lie in a folder that exists, got 'no/g.npz'"),
        ("propagate none.npz y.npy -o o.npz", "GRAPH 'none.npz' cannot be read: No such file"),
        ("propagate zip.npz y.npy -o o.npz", "GRAPH must be a graph saved by SimilarityGraph.save, got 'zip.npz'"),
        ("propagate text.npy y.npy -o o.npz", "GRAPH must be a graph saved by SimilarityGraph.save, got 'text.npy'"),
        ("propagate x.npy y.npy -o o.npz", "GRAPH must be a graph saved by SimilarityGraph.save, got 'x.npy'"),
        ("propagate g9.npz none.npy -o o.npz", "LABELS 'none.npy' cannot be read"),
        ("propagate g9.npz y.npy -o o.npz", "LABELS must have a label for each of the 9 documents of GRAPH, got 600"),
        ("propagate g9.npz x.npy -o o.npz", "LABELS must be integers, -1 for no label, got float32"),
        ("propagate g9.npz square.npy -o o.npz", "LABELS must be of shape [documents], got (3, 3)"),
        ("propagate g9.npz none9.npy -o o.npz", "LABELS must have a label of at least 0, got none"),
        ("propagate g9.npz y9.npy -o o.npz --num-classes 2", "labels must be 0..1 or -1, got 2 for document 2"),
        ("propagate g9.npz low.npy -o o.npz", "labels must be 0..1 or -1, got -7 for document 0"),
        ("propagate directed.npz y9.npy -o o.npz", "graph must be symmetric"),
        ("propagate g9.npz y9.npy -o o.npz --alpha 1", "argument --alpha: must be a number between 0 and 1, got '1'"),
        ("propagate g9.npz y9.npy -o x.npy", "--output 'x.npy' exists already"),
        ("propagate g9.npz y9.npy -o o.npz --device tpu", "--device tpu cannot be used"),
        ("propagate g9.npz y9.npy -o o.npz --device meta", "--device must be cpu or cuda, got meta"),
    ],
)
def test_errors_are_one_line(folder: Path, line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("text.npy").write_text("no numbers")
    Path("empty.npy").write_bytes(b"")
    Path("cut.npy").write_bytes(Path("x.npy").read_bytes()[:-1000])
    np.save("objects.npy", np.array([{}, []], dtype=object), allow_pickle=True)
    np.savez("zip.npz", x=np.zeros(3))
    np.save("flat.npy", np.zeros(9))
    np.save("nan.npy", np.where(np.arange(9)[:, None] == 3, np.nan, np.ones((9, 4))))
    np.save("square.npy", np.zeros((3, 3), np.int64))
    np.save("none9.npy", np.full(9, -1))
    np.save("y9.npy", np.arange(9) % 3)
    np.save("low.npy", np.array([-7] + [1] * 8))
    similarity_graph(documents(9, 4), 3).save("g9.npz")
    similarity_graph(documents(9, 4), 3, symmetrize=None).save("directed.npz")
    before = sorted(path.name for path in folder.iterdir())
    capsys.readouterr()
    words = shlex.split(line)
    assert main(words if "--device" in words else [*words, "--device", "cpu"]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1
    assert shown.err.startswith(f"error: {message}"), shown.err
    assert sorted(path.name for path in folder.iterdir()) == before


def test_probabilities_that_memory_cannot_hold(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    similarity_graph(documents(9, 4), 3).save("g9.npz")
    np.save("y9.npy", np.arange(9) + 10**14)
    assert run("propagate g9.npz y9.npy -o o.npz") == 1
    assert "error: --num-classes: 9 x 100,000,000,000,009 probabilities take" in capsys.readouterr().err


def test_overwrite_and_a_failed_write(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("graph.npz").write_text("old")
    assert run("graph x.npy -o graph.npz --overwrite") == 0
    whole = Path("graph.npz").read_bytes()
    assert SimilarityGraph.load("graph.npz").num_nodes == N

    def full(self: SimilarityGraph, path: Path) -> None:
        path.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SimilarityGraph, "save", full)
    capsys.readouterr()
    assert run("graph x.npy -o graph.npz --overwrite") == 1
    assert capsys.readouterr().err == "error: --output 'graph.npz' cannot be written: No space left on device\n"
    assert Path("graph.npz").read_bytes() == whole and len(list(folder.iterdir())) == 3


def test_replacing_leaves_the_old_file_or_the_whole_new_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")) or fsync(fd))
    file, before = Path("new.txt"), sorted(folder.iterdir())
    for old, new in ((None, "one"), ("one", "two")):
        with replacing(file) as beside:
            beside.write_text(new)
            assert (file.read_text() if file.exists() else None) == old
        assert file.read_text() == new
        assert synced.pop() == str(folder / beside), "on the disk before it has its name"
    with pytest.raises(KeyboardInterrupt), replacing(file) as beside:
        beside.write_text("half")
        raise KeyboardInterrupt
    assert file.read_text() == "two" and sorted(folder.iterdir()) == sorted([*before, folder / file])


# ------------------------------------------------------------------------------------------- the terminal
class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("quiet", [False, True])
def test_progress_line(folder: Path, quiet: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn_module, "EXACT_BLOCK", 100)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert run(f"graph x.npy -o graph.npz --kind exact --checkpoint kept {'--quiet' * quiet}") == 0
    shown = terminal.getvalue()
    if quiet:
        assert shown == ""
    else:
        for share in (" 17 %", " 33 %", " 50 %", " 67 %", " 83 %", "100 %"):
            assert f"\rneighbours {share}" in shown
        assert "\n" not in shown and shown.endswith("\r")


def test_both_as_programs(folder: Path) -> None:
    """The one run in processes of their own: also that faiss and scipy are not needed."""
    code = "import sys; sys.modules.update(faiss=None, scipy=None)\n"
    code += "from gloss_kernels.cli.main import main\nsys.exit(main())"

    def program(line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", code, *shlex.split(line)], capture_output=True, text=True)

    done = program("graph x.npy -k 10 -o graph.npz --device cpu")
    assert (done.returncode, done.stderr) == (0, "") and "components" in done.stdout
    done = program("propagate graph.npz y.npy -o out.npz --device cpu")
    assert (done.returncode, done.stderr) == (0, "") and "reachable" in done.stdout and "components" in done.stdout
    info = subprocess.run([sys.executable, "-m", "gloss_kernels"], capture_output=True, text=True)
    assert (info.returncode, info.stderr) == (0, "") and "backends" in info.stdout and "extras" in info.stdout
    done = program("graph x.npy -o other.npz --kind hnsw")
    assert done.returncode == 2 and "gloss-kernels[faiss-cpu]" in done.stderr and done.stderr.count("\n") == 1

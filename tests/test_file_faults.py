"""What a machine does to a run that writes: a full disk, kill -9, a folder that takes no file, no memory, two at once.

Each in a process of its own. The old file stays or the new one is whole, and there is one line. No folder is made
read-only, since root may write there: a folder of /proc, and a file in the place of a folder, take nothing from
anybody. The disk is full by RLIMIT_FSIZE, the memory by RLIMIT_AS.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import documents

from gloss_kernels import NeighborIndex, SimilarityGraph
from gloss_kernels.cli.main import main

if not sys.platform.startswith("linux") or os.environ.get("GLOSS_TEST_DEVICE", "cpu") != "cpu":
    pytest.skip("limits of Linux, on the CPU", allow_module_level=True)
PRELUDE = "import os, resource, signal, sys, torch\nfrom pathlib import Path\nfrom gloss_kernels.cli.main import main\n"
GRAPH = "main('graph x.npy -k 5 -o graph.npz --overwrite --device cpu'.split())"
WRITERS = {
    "graph": ("graph.npz", GRAPH),
    "propagate": ("out.npz", "main('propagate g.npz y.npy -o out.npz --overwrite --device cpu'.split())"),
    "index": ("index", "kept(lambda: NeighborIndex.build(torch.randn(500, 16), 'exact').save('index'))"),
    "state of knn": ("kept/state.json", "main((line + ' --checkpoint kept --resume').split())"),
    "checkpoint": ("checkpoint.pt", "kept(lambda: save_checkpoint(Path('.'), {'model': torch.ones(5000)}))"),
    "results": ("metrics.json", "kept(lambda: write_json(Path('metrics.json'), {'history': [0.5] * 5000}))"),
}
MORE = """
from gloss_kernels import NeighborIndex
from gloss_kernels.finetune.checkpoint import save_checkpoint, write_json
line = 'graph x.npy -k 5 -o graph.npz --overwrite --device cpu'
def kept(save):
    try:
        save()
    except Exception as error:  # as the command says it
        print('error:', error, file=sys.stderr)
        return 1
    return 0
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """x.npy [500, 16], y.npy, and of each writer an old file."""
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", documents(500, 16).numpy())
    np.save("y.npy", np.arange(500) % 5 - 1)
    assert main(["graph", "x.npy", "-k", "5", "-o", "g.npz", "--device", "cpu", "--checkpoint", "kept"]) == 0
    for name in ("graph.npz", "out.npz", "index", "checkpoint.pt", "metrics.json"):
        Path(name).write_text("old")
    capsys.readouterr()
    return tmp_path


def python(code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", PRELUDE + MORE + code]
    return subprocess.run(words, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_killed_in_a_writer(name: str, moment: str, folder: Path) -> None:
    """Before the bytes are on the disk, and before the file has its name; the next run writes it."""
    file, write = WRITERS[name]
    if name == "state of knn":
        write = "main((line + ' --checkpoint new --resume').split())"
        file = "new/state.json"
    old = Path(file).read_bytes() if Path(file).exists() else None
    done = python(f"os.{moment} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n{write}")
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (Path(file).read_bytes() if Path(file).exists() else None) == old
    done = python(f"sys.exit({write})")
    assert done.returncode == 0 and done.stderr == "" and Path(file).read_bytes() != old


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk(name: str, folder: Path) -> None:
    _, write = WRITERS[name]
    if name == "state of knn":
        write = "main((line + ' --checkpoint new').split())"
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    done = python(f"resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))\nsys.exit({write})")
    assert done.returncode in (1, 2), done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before, "no half file either"


def test_a_disk_that_is_full_below_a_mapped_file(folder: Path) -> None:
    """The results of a search are mapped: where the disk is full this was SIGBUS, without a word. A disk of 64 kB of
    the process's own, where it may have one."""
    if subprocess.run(["unshare", "-Urm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no name space of one's own here")
    (folder / "disk").mkdir()
    command = f"{sys.executable} -m gloss_kernels graph x.npy -k 50 -o g2.npz --device cpu --checkpoint disk"
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", f"mount -t tmpfs -o size=64k none disk && {command}"],
        capture_output=True,
        text=True,
        check=False,
    )
    if "mount" in done.stderr:
        pytest.skip("no disk of one's own here")
    assert (done.returncode, done.stderr) == (2, "error: --checkpoint 'disk': No space left on device\n")


@pytest.mark.parametrize("place", ["/proc/self/x", "x.npy/x", "{long}", "none/x"])
@pytest.mark.parametrize("command", ["graph x.npy -o", "propagate g.npz y.npy -o"])
def test_a_folder_that_takes_no_file(
    place: str, command: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is said before the work."""
    place = place.format(long="x" * 300)
    assert main([*command.split(), place, "--device", "cpu"]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: --output ") and shown.err.count("\n") == 1 and shown.out == ""


def test_the_end_of_memory(folder: Path) -> None:
    np.save("wide.npy", np.random.default_rng(0).standard_normal((60_000, 256), np.float32))
    limit = "size = int(open('/proc/self/statm').read().split()[0]) * 4096 + (96 << 20)\n"
    limit += "resource.setrlimit(resource.RLIMIT_AS, (size, size))\n"
    done = python(limit + GRAPH.replace("x.npy", "wide.npy").replace("main(", "sys.exit(main(") + ")")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "memory" in done.stderr, done.stderr
    assert Path("graph.npz").read_text() == "old"


def test_two_processes_write_one_file(folder: Path) -> None:
    """Whoever looks sees a whole graph: of one of them."""
    code = "from gloss_kernels import SimilarityGraph\nfor _ in range(60): SimilarityGraph.load('{}').save('graph.npz')"
    for name, k in (("a", 3), ("b", 9)):
        assert main(f"graph x.npy -k {k} -o {name} --device cpu".split()) == 0
    sizes = {SimilarityGraph.load(name).num_edges for name in ("a", "b")}
    SimilarityGraph.load("a").save("graph.npz")
    both = [subprocess.Popen([sys.executable, "-c", code.format(name)]) for name in ("a", "b")]
    looks = 0
    while any(process.poll() is None for process in both):
        assert SimilarityGraph.load("graph.npz").num_edges in sizes
        looks += 1
    assert [process.returncode for process in both] == [0, 0] and looks > 10
    assert not list(folder.glob("*.tmp"))


# ------------------------------------------------------------------------------------------- inputs that stay
@pytest.mark.parametrize("link", ["hard link", "symbolic link", "other spelling"])
def test_an_output_is_never_an_input(link: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for line in ("graph {x.npy} -o", "propagate {g.npz} y.npy -o", "propagate g.npz {y.npy} -o"):
        source = line[line.index("{") + 1 : line.index("}")]
        other = f"{link[:4].strip()}-{source}"
        if link == "hard link":
            os.link(source, other) if not os.path.exists(other) else None
        elif link == "symbolic link":
            os.symlink(source, other) if not os.path.exists(other) else None
        else:
            other = f"kept/../{source}"
        before = Path(source).read_bytes()
        assert main([*line.replace("{", "").replace("}", "").split(), other, "--overwrite", "--device", "cpu"]) == 2
        assert "--output must be another file than " in capsys.readouterr().err
        assert Path(source).read_bytes() == before


def test_a_checkpoint_is_not_an_output(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = "graph x.npy -k 5 -o kept/index --overwrite --checkpoint kept --resume --device cpu"
    assert main(line.split()) == 2
    assert "--output must be another file than index of --checkpoint" in capsys.readouterr().err


def test_rows_of_an_index_are_not_overwritten(folder: Path) -> None:
    x = np.load("x.npy", mmap_mode="r")
    index = NeighborIndex.build(x, "exact")
    os.symlink("x.npy", "link")
    for path in ("x.npy", "link"):
        with pytest.raises(ValueError, match="path must be another file than that of the rows"):
            index.save(path, vectors=False)
    index.save("index")
    loaded = NeighborIndex.load("index")
    with pytest.raises(ValueError, match="path must be another file"):
        loaded.save("index", vectors=False)
    loaded.add(np.ones((1, 16), np.float32))
    loaded.save("index")  # all that was there is in it
    assert len(NeighborIndex.load("index")) == 501


def test_what_is_no_file_is_written_into(folder: Path) -> None:
    """A pipe and /dev/stdout: without --overwrite, and with the summary on stderr."""
    os.mkfifo("pipe")
    reader = subprocess.Popen(["cat", "pipe"], stdout=open("copy.npz", "wb"))  # noqa: SIM115
    assert main(["graph", "x.npy", "-k", "5", "-o", "pipe", "--device", "cpu"]) == 0
    assert reader.wait(60) == 0 and Path("pipe").is_fifo()
    assert SimilarityGraph.load("copy.npz").num_nodes == 500
    reader = subprocess.Popen(["cat", "pipe"], stdout=open("copy", "wb"))  # noqa: SIM115
    NeighborIndex.build(np.load("x.npy"), "exact").save("pipe")
    assert reader.wait(60) == 0 and len(NeighborIndex.load("copy")) == 500
    command = f"{sys.executable} -m gloss_kernels graph x.npy -k 5 -o /dev/stdout --device cpu | cat > through.npz"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert "components" in done.stderr and SimilarityGraph.load("through.npz").num_nodes == 500


# ------------------------------------------------------------------------------------------- the terminal
@pytest.mark.parametrize("words", ["info", "--help", "graph x.npy -o g3.npz"])
def test_a_closed_pipe(words: str, folder: Path) -> None:
    code = f"import sys; from gloss_kernels.cli.main import main; sys.exit(main({words.split()!r}))"
    command = f"({sys.executable} -c '{code}'; echo $? >&2) | true"
    command = command.replace("'", '"').replace('-c "', "-c '", 1).replace('))"; echo', "))'; echo")
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    # argparse drops the error of --help itself where nothing is buffered
    assert done.stderr in (["141\n", "0\n"] if words == "--help" else ["141\n"]), done.stderr
    if "g3" in words:
        assert SimilarityGraph.load("g3.npz").num_nodes == 500, "nothing is lost"


def test_an_ascii_stdout_and_a_full_one(folder: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    words = [sys.executable, "-m", "gloss_kernels", *["graph", "x.npy", "--device", "cpu", "-o", "café.npz"]]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, "") and "caf\\xe9.npz" in done.stdout
    with open("/dev/full", "w") as full:
        words = [sys.executable, "-m", "gloss_kernels", "info"]
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "error: stdout: No space left on device\n")


@pytest.mark.parametrize(
    "command", ["graph x.npy -o g3.npz", "propagate g.npz y.npy -o o.npz", "finetune --train t.csv"]
)
@pytest.mark.parametrize("backend", ["cuda", "nope"])
def test_a_backend_that_cannot_run(command: str, backend: str, folder: Path) -> None:
    if command.startswith("finetune") and importlib.util.find_spec("transformers") is None:
        pytest.skip("the demo extra is missing")
    hide = "sys.modules['gloss_kernels._C_emulated'] = None\n"
    code = f"import os, sys; os.environ['GLOSS_KERNELS_BACKEND'] = {backend!r}\n{hide}"
    code += f"from gloss_kernels.cli.main import main\nsys.exit(main({[*command.split(), '--device', 'cpu']!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: GLOSS_KERNELS_BACKEND")

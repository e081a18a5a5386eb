"""bench/gpu.py without a GPU: a rehearsal with faults in its plan, an interrupted run, and what its numbers mean."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import HAS_TRITON

from gloss_kernels import _library

TESTS = Path(__file__).resolve().parent
BENCH = TESTS.parent / "bench"
sys.path.insert(0, str(BENCH))

from gpubench import grid, peers, plan, propagation, roofs, search, smoke, tables, timing, tools, warm  # noqa: E402
from gpubench.rows import ROOT, Context, Row  # noqa: E402
from gpubench.runner import Runner  # noqa: E402

CPU = torch.device("cpu")
COUNTERS = """"ID","Kernel Name","sm__pipe_tensor_op_hmma_cycles_active.avg.pct_of_peak_sustained_active",\
"lts__t_sectors.avg.pct_of_peak_sustained_elapsed","l1tex__throughput.avg.pct_of_peak_sustained_active",\
"smsp__average_warps_issue_stalled_barrier_per_issue_active.ratio",\
"smsp__average_warps_issue_stalled_wait_per_issue_active.ratio",\
"smsp__average_warps_issue_stalled_wait_not_issued_per_issue_active.ratio",\
"smsp__average_warps_issue_stalled_selected_per_issue_active.ratio"
"","","%","%","%","inst","inst","inst","inst"
"0","sweep_kernel(Sweep)","41.5","1,020.25","60","3","1","9","1"
"""


def environment(**more: str) -> dict[str, str]:
    paths = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH", "")]))
    return {k: v for k, v in os.environ.items() if k != "GLOSS_TEST_DEVICE"} | {"PYTHONPATH": paths} | more


def start(kind: str, out: Path, *options: str, **more: Any) -> subprocess.Popen[str]:
    command = [sys.executable, str(TESTS / "gpu_faults.py"), kind, "--out", str(out), "--rehearse", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **({"env": environment()} | more))


def report(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "report.json").read_text())
    return found


def states(found: dict[str, Any]) -> dict[tuple[str, str], str]:
    return {(item["section"], item["item"]): item["state"] for item in found["items"]}


def running(process: int) -> bool:
    """A zombie is not: in a container nobody may collect it."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def tool(path: Path, *lines: str) -> None:
    path.write_text("#!/bin/sh\ncat <<'END'\n" + "\n".join(lines) + "\nEND\n")
    path.chmod(0o755)


# -------------------------------------------------------------------------------------------- rehearsal
@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole plan with faults, started in a folder with a package that must not be imported, beside stand-ins of the
    tools that need a GPU."""
    folder = tmp_path_factory.mktemp("rehearsal")
    (folder / "gloss_kernels").mkdir()
    (folder / "gloss_kernels" / "__init__.py").write_text("raise RuntimeError('the unbuilt checkout was imported')\n")
    (folder / "bin").mkdir()
    tool(folder / "bin" / "ncu", *COUNTERS.splitlines())
    tool(folder / "bin" / "compute-sanitizer", *["========= whole report"] * 5000, "ran to its end",
         "========= ERROR SUMMARY: 0 errors")  # fmt: skip
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = start("all", folder / "out", "--minutes", "8", cwd=folder, env=environment(PATH=path))
    output = done.communicate(timeout=480)[0]
    assert done.returncode == 1, output  # something went wrong, and all of it is told
    return folder / "out"


@pytest.mark.skipif(not (_library.emulated and HAS_TRITON), reason="a rehearsal runs the emulator and the interpreter")
def test_rehearsal_brings_the_rest_back(rehearsal: Path) -> None:
    found = report(rehearsal)
    assert found["ended"] == "ran to its end"
    faulty = {section.name for section in __import__("gpu_faults").FAULTS}
    theirs = {item: state for item, state in states(found).items() if item[0] not in faulty}
    planned = {(section.name, item.name) for section in plan.sections(True) for item in section.items}
    assert set(theirs) == planned | {("last", "fine")} and set(theirs.values()) == {"done"}
    rows = [row for row in found["rows"] if row["section"] not in faulty]
    assert not [row for row in rows if row["error"]]
    for backend in plan.BACKENDS:  # every operator, and every measured job
        mine = [row for row in rows if row["method"] == backend]
        assert len({row["job"] for row in mine if row["section"] == f"smoke {backend}"}) >= 15
        assert all(row["seconds"] for row in mine if row["section"] == f"rows {backend}")
        assert {row["facts"]["recall"] for row in mine if "recall" in row["facts"]} == {1.0}
        assert next(r for r in mine if r["job"] == "tests")["facts"] == {"passed": 1}
        counters = next(r["facts"] for r in mine if r["job"].startswith("profile"))
        assert counters["tensor pipe"] == 41.5 and counters["L2"] == 1020.25 and counters["stall barrier"] == "75%"
    assert all(row["seconds"] for row in rows if row["method"].startswith(("torch", "plain torch")))


@pytest.mark.skipif(not (_library.emulated and HAS_TRITON), reason="a rehearsal runs the emulator and the interpreter")
def test_rehearsal_report_and_logs(rehearsal: Path) -> None:
    text = (rehearsal / "report.md").read_text()
    assert "hangs: hang: hung: stopped after 2 s" in text and "about to sleep" in text
    assert "crashes: abort: crashed: SIGABRT" in text and "too long: fine: takes 1000000 s" in text
    assert "| **cuda** |" in text and "torch mm + topk, float16" in text and "FlashLib" in text
    assert (rehearsal / "memcheck.txt").read_text().count("whole report") == 2 * 5000
    logs = (rehearsal / "logs.txt").read_text()
    assert "unbuilt checkout" not in logs and "in hang" in logs  # the stack of what hung


def test_faults_cost_an_item_each(tmp_path: Path) -> None:
    """The faults alone, which need no torch."""
    out = tmp_path / "out"
    assert start("few", out, "--minutes", "5").wait(120) == 1
    found = report(out)
    rows = {row["job"]: row for row in found["rows"]}
    assert states(found) == {
        ("machine", "fine"): "done",
        ("hangs", "hang"): "hung: stopped after 2 s",
        ("hangs", "fine"): "done",
        ("crashes", "abort"): "crashed: SIGABRT",
        ("crashes", "bad_address"): "crashed: SIGSEGV",
        ("crashes", "fine"): "done",
        ("raises", "raises"): "failed: ValueError: something: got this, wants that",
        ("raises", "fine"): "done",
        ("sticks", "sticks"): "failed: left the device with an error that sticks",
        ("sticks", "fine"): "done",
        ("too long", "fine"): states(found)["too long", "fine"],
        ("hangs often", "hang"): "left out: 2 items of its section hung",
        ("last", "fine"): "done",
    }
    assert states(found)["too long", "fine"].startswith("left out: takes 1000000 s")
    assert {"before the hang", "before the abort", "before the error", "last 19"} <= set(rows)
    hung = rows["before the hang"]["facts"]
    assert not running(hung["process"]) and not running(hung["program"])  # killed with all that it had started
    assert rows["after what stuck 0"]["facts"]["process"] != rows["the error that sticks"]["facts"]["process"]
    ends = {(item["section"], item["item"]): item["output_end"] for item in found["items"]}
    assert "about to sleep" in ends["hangs", "hang"] and "in hang" in ends["hangs", "hang"]
    assert "Aborted" in ends["crashes", "abort"] and "Traceback" in ends["raises", "raises"]


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_keeps_its_rows(tmp_path: Path, sent: signal.Signals) -> None:
    out = tmp_path / "out"
    process = start("few", out, "--only", "hangs")
    deadline = time.monotonic() + 60
    rows: list[dict[str, Any]] = []
    while len(rows) < 2 and time.monotonic() < deadline:  # read as fast as it is written: a whole file at any time
        rows = report(out)["rows"] if out.exists() and (out / "report.json").exists() else []
    process.send_signal(sent)
    assert process.wait(30) == 130
    found = report(out)
    assert found["ended"] == "interrupted" and states(found)["hangs", "hang"] == "interrupted"
    assert [row["job"] for row in found["rows"]] == ["first 0", "before the hang"]
    assert not running(found["rows"][1]["facts"]["program"])
    assert "interrupted" in (out / "report.md").read_text()


def test_budget_ends_the_run(tmp_path: Path) -> None:
    """What runs when the budget ends is stopped, what comes after it is left out, and neither is an error."""
    begin = time.monotonic()
    process = start("few", tmp_path, "--minutes", str(2.4 / 60), "--only", "hangs", "last")
    assert process.wait(60) == 0 and time.monotonic() - begin < 20
    found = states(report(tmp_path))
    assert found["hangs", "hang"].startswith(("out of budget after", "left out"))  # the latter on a slow machine
    assert found["last", "fine"].startswith("left out")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCH / "gpu.py"), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
    assert done.returncode == 2 and done.stderr == "error: torch sees no GPU (torch.cuda.is_available() is False)\n"


def test_children_do_not_see_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # conftest.py sets it
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(tmp_path), ""]))
    found = Runner(None, tmp_path, "cuda", 1).environment()  # type: ignore[arg-type]
    assert found["PYTHONPATH"] == str(tmp_path) and found["PYTHONSAFEPATH"] == "1" and "TRITON_INTERPRET" not in found


# ------------------------------------------------------------------------------------- grid, warm, tools
def test_grid_outlives_tests_that_hang_and_crash(tmp_path: Path) -> None:
    pytest.importorskip("xdist")
    pytest.importorskip("pytest_timeout")
    (tmp_path / "test_some.py").write_text(
        "import os, time\n"
        "def test_passes(): pass\n"
        "def test_hangs(): time.sleep(1000)\n"
        "def test_crashes(): os.abort()\n"
        "def test_fails(): assert 1 == 2, 'one is not two'\n"
        "def test_passes_too(): pass\n"
    )
    context = Context("cpu", 60, str(tmp_path))
    *_, row = grid.run(context, [str(tmp_path / "test_some.py")], "cuda", "", processes=2, each=3)
    assert row.facts["passed"] == 2 and row.facts["failed"] == 3 and row.error.startswith("3 failed")
    failed = sorted(test.rpartition("::")[2] for test in row.facts["which"])
    assert failed == ["test_crashes", "test_fails", "test_hangs"]


def test_grid_without_a_test_is_no_pass() -> None:
    assert grid.summary("tests", "cuda", "", 5, 1.0).absent == "no test ran"
    assert grid.summary("tests", "cuda", "", 3, 1.0).error == "pytest ended with exit code 3"
    half_a_line = '{"test": "a", "outcome": "passed"}\n{"test": "b", "outc'
    assert grid.summary("tests", "cuda", half_a_line, None, 1.0).facts == {"passed": 1, "still": "running"}


def test_warm_runs_each_item_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    items = [{"name": name, "call": f"gpu_faults:{name}", "options": {}} for name in ("fine", "abort")]
    (row,) = warm.run(Context("cpu", 60, str(tmp_path)), items)
    assert row.facts == {"items": 2, "ended badly": 1}


def test_sanitizer_findings() -> None:
    finished, clean = "ran to its end", "========= ERROR SUMMARY: 0 errors"
    assert not tools.findings("memcheck", "cuda", 0, [finished, clean]).error
    assert tools.findings("memcheck", "cuda", 1, ["========= Invalid __global__ write of size 4 bytes", finished,
                                                  "========= ERROR SUMMARY: 3 errors"]).error == (
        "3 found, the first: Invalid __global__ write of size 4 bytes")  # fmt: skip
    assert tools.findings("memcheck", "cuda", 9, ["ran: search", clean]).error.startswith("did not finish, exit code 9")
    hazards = "========= RACECHECK SUMMARY: 2 hazards displayed (1 error, 1 warning)"
    assert tools.findings("racecheck", "triton", 0, [finished, hazards]).error.startswith("2 found")


# ------------------------------------------------------------------------------------- what numbers mean
def test_roofs_are_of_random_data_and_count_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    results: list[torch.Tensor] = []
    monkeypatch.setattr(roofs, "fill", lambda row, make, *_, **__: results.append(make()()) or row)
    context = Context("cpu", 60, "")
    (copy,), (product,) = roofs.copy(context, 1), roofs.matrix(context, 64, "float32")
    assert copy.bytes == 2 * (1 << 20) and product.operations == 2 * 64**3
    assert all(len(result.unique()) > 1000 for result in results)


def test_bound_of_queries_is_one_reading() -> None:
    _, corpus, row = search.query_problem(Context("cpu", 60, ""), 5, 300, 16)
    rows = [vars(Row("roof", "copy", seconds=2.0, bytes=4e9)), vars(row("cuda"))]
    assert tables.bound(rows[1], tables.roofs(rows)) == corpus.nbytes / 2e9


def test_targets_say_yes_and_no() -> None:
    queries = "128 queries, 1,000,000 x 384 float16"
    rows = [
        Row("roof", "copy", seconds=1.0, bytes=1e9),
        Row("loss 128 x 768, dense", "cuda", seconds=0.0004),
        Row("loss 128 x 768, dense", "plain torch, dense", seconds=0.0016),
        Row(queries, "cuda", seconds=2.0e-3, bytes=1e6),
        Row(queries, "triton", seconds=1.8e-3, bytes=1e6),
        Row(queries, "fast and wrong", seconds=1e-3, facts={"recall": 0.9}),
        Row(queries, "exact", seconds=3.6e-3, facts={"recall": 1.0}),
        Row("search 1,000,000 x 384 float32", "cuda", seconds=0.5, error="Wrong: wrong"),
    ]
    search_line, queries_line, propagate_line, loss_line = tables.targets([vars(row) for row in rows]).splitlines()[2:]
    assert "| 0.4 ms | not measured | yes | plain torch, dense 1.6 ms | 4.00 | yes |" in loss_line
    assert "(1 ms) | 2 ms | 1.8 ms | no | exact 3.6 ms | 2.00 | no |" in queries_line
    assert search_line.count("not measured") == propagate_line.count("not measured") == 4


def test_a_wrong_result_is_told() -> None:
    right, near = torch.ones(3), 1e-6
    assert not smoke.check("x", "cuda", lambda: {"y": (right, right, near)}).error
    for wrong in (right + 1e-3, right * torch.nan):
        assert smoke.check("x", "cuda", lambda wrong=wrong: {"y": (wrong, right, near)}).error.startswith("y: ")
    assert smoke.check("x", "cuda", lambda: 1 / 0).error == "ZeroDivisionError: division by zero"  # type: ignore[arg-type]


def test_recall_of_a_peer_that_finds_the_row_itself() -> None:
    x = timing.documents(300, 16, CPU)
    truth = peers.torch_search(torch.float64)(x, None, 5)()
    itself = torch.cat([torch.arange(300)[:, None], truth], 1)
    assert search.recall(x, None, 5)(itself) == search.recall(x, None, 5)(truth) == {"recall": 1.0}
    assert search.recall(x, None, 5)(truth.roll(1, 0))["recall"] < 0.5


def test_solver_beside_ours_solves_the_same_system() -> None:
    import gloss_kernels as gk

    graph = gk.similarity_graph(timing.documents(300, 16, CPU), 6, sigma=0.4)
    labels = torch.where(torch.arange(300) % 3 == 0, torch.arange(300) % 4, -1)
    ours = gk.propagate_labels(graph, labels, 4, tol=1e-6)
    theirs = propagation.torch_cg(graph, labels, 4, 1e-6)()
    reached = ours.reachable
    torch.testing.assert_close(ours.probabilities[reached], theirs[reached], rtol=0, atol=1e-4)


def test_once_times_the_first_call() -> None:
    calls: list[float] = []

    def run() -> None:
        calls.append(time.sleep(0.02 if not calls else 0.0) or 1.0)

    found = timing.measure(run, CPU, once=True)
    assert len(calls) == 1 and found.seconds == [found.first] and found.first >= 0.02


def test_every_planned_call_is_there() -> None:
    import importlib
    import inspect

    for rehearsal in (True, False):
        for section in plan.sections(rehearsal):
            for item in section.items:
                module, _, name = item.call.partition(":")
                inspect.signature(getattr(importlib.import_module(module), name)).bind(None, **item.options)
                assert item.expected <= item.limit

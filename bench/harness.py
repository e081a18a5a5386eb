"""How a case is measured, for pytest and for report.py alike.

Each bench_STAGE.py has ``plan(sizes)``, the keys of its cases, and ``case(key)``, which builds one. Time is the median
of some rounds; in report.py the methods of one problem take turns, so that noise hits all of them. Memory is the most
that the process held above what it held before the call (VmHWM of Linux, reset first), on a call of its own after a
small one has loaded every library; it has the outputs and not the inputs.
"""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest

SIZES = (128, 512, 2048, 4096)  # of `pytest bench`
WARM_ROWS = 128  # size of the call that loads libraries and compiles
SLOW = 30.0  # seconds; a slower case is run once

warnings.filterwarnings("ignore", "Sparse CSR tensor support")  # torch says so once a process


class Key(NamedTuple):
    """Names one case; cases of the same stage, group and n solve the same problem."""

    stage: str
    group: str
    n: int
    method: str

    def __str__(self) -> str:
        return f"{self.group}, {self.n}, {self.method}"


@dataclass(frozen=True)
class Method:
    """``make(problem)`` gives the function that is timed; it raises ImportError where a peer is not installed."""

    make: Callable[[Any], Callable[[], Any]]
    ours: bool = False
    exact: bool = True
    compared: bool = True  # False: another job than the rest of the group, so no ratio
    smallest: int = 0
    largest: int = 10**9


@dataclass
class Case:
    key: Key
    method: Method
    run: Callable[[], Any]
    facts: dict[str, Any]  # d, k, classes, source: what the problem was
    flops: float | None = None  # nominal, the same for all methods of a problem
    check: Callable[[Any], dict[str, Any]] = lambda result: {}  # recall, residual, ... of a result
    traffic: Callable[[dict[str, Any]], float | None] = lambda facts: None  # bytes, from the facts and checks


@dataclass
class Row:
    stage: str
    group: str
    method: str
    n: int
    ours: bool
    exact: bool
    compared: bool
    seconds: float
    fastest: float
    rounds: int
    peak_bytes: int | None
    gflops: float | None
    gb_per_s: float | None
    ratio: float | None = None  # seconds of the best exact peer / seconds: above 1 is faster than it
    facts: dict[str, Any] = field(default_factory=dict)


def plan(stage: str, groups: dict[str, dict[str, Method]], sizes: Sequence[int]) -> list[Key]:
    """All keys, those of one problem side by side."""
    return [
        Key(stage, group, n, name)
        for n in sizes
        for group, methods in groups.items()
        for name, method in methods.items()
        if method.smallest <= n <= method.largest
    ]


def measure(
    keys: Sequence[Key], build: Callable[[Key], Case], *, budget: float = 10.0, say: Callable[[str], object] = print
) -> tuple[list[Row], list[str]]:
    """Rows of one problem's cases, timed in turns for about ``budget`` seconds each; and what was left out."""
    firsts: list[tuple[Case, float, int | None]] = []
    left_out = []
    for key in keys:
        try:
            case = build(key)
            seconds, peak = first_call(case, build)
        except ImportError as error:
            left_out.append(f"{key.method} ({error})")
            continue
        say(f"  {key}: {seconds:.4g} s first")
        firsts.append((case, seconds, peak))
    times: dict[Key, list[float]] = {case.key: [] if first < SLOW else [first] for case, first, _ in firsts}
    for turn in range(15):
        for case, first, _ in firsts:
            if first < SLOW and (turn < 1 or turn < budget / first):
                times[case.key] += one_turn(case.run, first)
    rows = [row(case, times[case.key], peak) for case, _, peak in firsts]
    for each in rows:
        peers = [r.seconds for r in rows if r.exact and r.compared and not r.ours]
        if peers and each.compared:
            each.ratio = min(peers) / each.seconds
    return rows, left_out


def one_turn(run: Callable[[], Any], first: float) -> list[float]:
    """Seconds of one call; a fast one is repeated for 50 ms, since for a while the threads of the method before it spin
    (every library here brings its own OpenMP pool)."""
    if first > 0.1:
        return [timed(run)[0]]
    deadline = time.perf_counter() + 0.05
    run()
    seconds = [timed(run)[0]]
    while time.perf_counter() < deadline:
        seconds.append(timed(run)[0])
    return seconds


def first_call(case: Case, build: Callable[[Key], Case]) -> tuple[float, int | None]:
    """Seconds and peak memory of one call; its result is checked and the findings go into ``case.facts``."""
    warm_up(case.key, build)
    gc.collect()
    before = _reset_peak()
    seconds, result = timed(case.run)
    peak = None if before is None else max(_memory("VmHWM") - before, 0)
    case.facts |= case.check(result)
    return seconds, peak


_warm: set[tuple[str, str, str]] = set()


def warm_up(key: Key, build: Callable[[Key], Case]) -> None:
    name = (key.stage, key.group, key.method)
    if name not in _warm:
        build(key._replace(n=WARM_ROWS)).run()
        _warm.add(name)


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def row(case: Case, seconds: Sequence[float], peak: int | None) -> Row:
    median = statistics.median(seconds)
    traffic = case.traffic(case.facts)
    return Row(
        *case.key[:2], case.key.method, case.key.n, case.method.ours, case.method.exact, case.method.compared,
        median, min(seconds), len(seconds), peak,
        None if case.flops is None else case.flops / median / 1e9,
        None if traffic is None else traffic / median / 1e9,
        facts=case.facts,
    )  # fmt: skip


def under_pytest(benchmark: Any, key: Key, build: Callable[[Key], Case]) -> None:
    """One case as a pytest-benchmark test; what a row has stands in its extra_info."""
    try:
        case = build(key)
        seconds, peak = first_call(case, build)
    except ImportError as error:
        pytest.skip(str(error))
    benchmark.group = f"{key.stage}: {key.group}, n={key.n}"
    rounds = max(1, min(15, int(0.5 / seconds)))
    benchmark.pedantic(case.run, rounds=rounds, warmup_rounds=int(rounds > 5))
    found = row(case, benchmark.stats.stats.data, peak)
    benchmark.extra_info.update({"peak_bytes": peak, "gflops": found.gflops, "gb_per_s": found.gb_per_s, **found.facts})


def problems(keys: Sequence[Key]) -> Iterator[list[Key]]:
    """The keys, one list a problem."""
    groups: dict[tuple[str, str, int], list[Key]] = {}
    for key in keys:
        groups.setdefault(key[:3], []).append(key)
    yield from groups.values()


def _reset_peak() -> int | None:
    """Gives freed memory back, sets VmHWM to what is held now and returns that; None where the system is not Linux."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        return _memory("VmRSS")
    except OSError:
        return None


def _memory(name: str) -> int:
    """Bytes of one line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))

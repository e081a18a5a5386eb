"""One exact search of 10^6 x 384 synthetic documents: time, peak memory, recall, and the time scaling predicts."""

from __future__ import annotations

import json
import time
from pathlib import Path

import bench_topk
import machine
import tables
from data import documents
from harness import Case, Key, Row, first_call, row, timed

import gloss_kernels

N, SMALL = 1_000_000, 50_000


def run(path: Path, n: int = N, small: int = SMALL) -> None:
    """Writes PATH.json and PATH.md."""
    peaks = machine.peaks()
    print(f"{small:,} documents first, to predict", flush=True)
    x = documents(small, real=False).x
    seconds = min(timed(lambda: gloss_kernels.cosine_topk(x, k=bench_topk.K))[0] for _ in range(2))
    predicted = seconds * (n / small) ** 2
    print(f"{seconds:.2f} s, so {n:,} documents should take {predicted:,.0f} s; making them", flush=True)
    case = build(Key("topk", "search", n, "gloss"))
    with gloss_kernels.progress(Progress()):
        seconds, peak = first_call(case, build)
    case.facts["predicted_seconds"] = predicted
    write(path, row(case, [seconds], peak), peaks)


def build(key: Key) -> Case:
    x = documents(key.n, real=False).x
    method = bench_topk.GROUPS["search"]["gloss"]
    search = method.make(bench_topk.Problem(x, "synthetic"))
    facts = {"d": x.shape[1], "k": bench_topk.K, "source": "synthetic"}
    return Case(
        key, method, search, facts, 2.0 * len(x) ** 2 * x.shape[1], lambda i: {"recall": bench_topk.recall(x, i)}
    )


class Progress:
    """Prints the share done every five seconds, and how long the rest will take."""

    def __init__(self) -> None:
        self.start = self.shown = time.perf_counter()

    def __call__(self, done: float) -> None:
        now = time.perf_counter()
        if now - self.shown >= 5 and done > 0:
            self.shown = now
            left = (now - self.start) * (1 - done) / done
            print(f"  {done:6.1%}  {now - self.start:6.0f} s, about {left:,.0f} s left", flush=True)


def write(path: Path, found: Row, peaks: dict[str, float | None]) -> None:
    report = {"machine": machine.describe(), "peaks": peaks, "left_out": [], "rows": [vars(found)]}
    path.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    facts = found.facts
    share = found.n**2 * facts["d"] / found.seconds / 1e9 / machine.best_rate(peaks)
    text = (
        f"{found.n:,} x {facts['d']} synthetic documents, k = {facts['k']}: {found.seconds:,.0f} s "
        f"(scaling predicts {facts['predicted_seconds']:,.0f} s), peak memory beyond the input "
        f"{tables.size(found.peak_bytes)}, recall {facts['recall']:.5f} on {bench_topk.SAMPLE} rows, "
        f"{share:.0%} of the arithmetic peak.\n"
    )
    path.with_suffix(".md").write_text(tables.heading(report) + "\n" + text)
    print(text)

"""Measures ours and its peers and writes bench/results/NAME.json, NAME.md and NAME_STAGE.png.

python bench/report.py --quick        # a few minutes: up to 4,096 documents
python bench/report.py                # the default: up to all real documents (about 23,000)
python bench/report.py --full         # and 10^5 synthetic ones
python bench/report.py --million      # only one search of 10^6 synthetic documents: NAME_million.json and .md
python bench/report.py --redraw       # tables and pictures again from NAME.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import bench_graph
import bench_loss
import bench_propagate
import bench_topk
import machine
import million
import pictures
import tables
from data import documents
from harness import Key, Row, measure, problems

RESULTS = Path(__file__).resolve().parent / "results"
STAGES = {"topk": bench_topk, "graph": bench_graph, "propagate": bench_propagate, "loss": bench_loss}
ALL = 0  # stands for all real documents
SETS: dict[str, dict[str, list[int]]] = {
    "quick": {"topk": [1000, 4096], "graph": [4096], "propagate": [1000, 4096], "loss": [128, 512, 2048]},
    "default": {
        "topk": [1000, 4096, 10_000, ALL],
        "graph": [1000, 4096, 10_000, ALL],
        "propagate": [1000, 4096, 10_000, ALL],
        "loss": [128, 512, 2048, 4096, 10_000, ALL],
    },
}
SETS["full"] = SETS["default"] | {"topk": [*SETS["default"]["topk"], 100_000]}
SLOWER_ISAS = ("avx512", "avx2")  # also measured, each in its own process: the variable is read once


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    for name in ("quick", "full", "million", "redraw"):
        which.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--name", default="local", help="of the files written (default: %(default)s)")
    parser.add_argument("--stage", choices=STAGES, action="append", help="only this stage (may be repeated)")
    parser.add_argument("--budget", type=float, help="seconds of timing a case (default: 2 quick, 10 else)")
    parser.add_argument("--worker", nargs=2, metavar=("ISA", "N"), help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    budget = args.budget or (2.0 if args.quick else 10.0)
    if args.worker:
        return worker(args.worker[0], int(args.worker[1]), budget)
    RESULTS.mkdir(exist_ok=True)
    if args.million:
        return million.run(RESULTS / f"{args.name}_million")
    path = RESULTS / f"{args.name}.json"
    if not args.redraw:
        chosen = "quick" if args.quick else "full" if args.full else "default"
        measure_all(path, chosen, args.stage or list(STAGES), budget)
    report = json.loads(path.read_text())
    text = tables.markdown(report)
    path.with_suffix(".md").write_text(text)
    pictures.draw(report, path.with_suffix(""))
    print("\n" + text[text.index("## Targets") :].split("\n## ")[0])
    print(f"written: {path}, {path.with_suffix('.md').name} and {path.stem}_*.png")


def measure_all(path: Path, chosen: str, stages: Sequence[str], budget: float) -> None:
    """Fills the JSON file; it is written after every problem, so an interrupted run is not lost."""
    started = time.perf_counter()

    def say(line: str) -> None:
        print(f"[{time.perf_counter() - started:6.0f} s] {line}", flush=True)

    say("the machine and its peaks")
    report: dict[str, Any] = {"set": chosen, "machine": machine.describe(), "peaks": machine.peaks()}
    report |= {"left_out": [], "rows": []}
    for stage in stages:
        sizes = [n or len(documents().x) for n in SETS[chosen][stage]]
        for keys in problems(STAGES[stage].plan(sizes)):
            say(f"{stage}: {keys[0].group}, n={keys[0].n}")
            rows, left_out = measure(keys, STAGES[stage].case, budget=budget, say=say)
            if stage == "topk" and keys[0].group == "search" and 4096 <= keys[0].n <= 50_000:
                for isa in SLOWER_ISAS:
                    say(f"topk: search, n={keys[0].n} with GLOSS_KERNELS_ISA={isa}")
                    rows += with_isa(isa, keys[0].n, budget)
            report["rows"] += [asdict(row) for row in rows]
            report["left_out"] = sorted({*report["left_out"], *left_out})
            path.write_text(json.dumps(report, indent=1) + "\n")
    say("done")


def with_isa(isa: str, n: int, budget: float) -> list[Row]:
    """Our search with other kernels; its ratio is to FAISS flat, timed in turns with it in the same process."""
    command = [sys.executable, __file__, "--worker", isa, str(n), "--budget", str(budget)]
    done = subprocess.run(command, env=os.environ | {"GLOSS_KERNELS_ISA": isa}, capture_output=True, text=True)
    if done.returncode != 0:
        print(f"  left out: {(done.stderr.strip().splitlines() or ['no output'])[-1]}")
        return []
    found = Row(**json.loads(done.stdout.splitlines()[-1]))
    found.method = f"gloss, {isa}"
    return [found]


def worker(isa: str, n: int, budget: float) -> None:
    from gloss_kernels import _library

    if _library.core is None or _library.core.isa() != isa:
        sys.exit(f"this machine or build has no {isa} kernels")
    keys = [Key("topk", "search", n, method) for method in ("gloss", "FAISS flat")]
    rows, _ = measure(keys, bench_topk.case, budget=budget, say=lambda line: None)
    print(json.dumps(asdict(rows[0])))


if __name__ == "__main__":
    main()

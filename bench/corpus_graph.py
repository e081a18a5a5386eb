"""From embeddings to the classes of all documents: NeighborIndex, graph, propagation, by the size of the corpus.

    python bench/corpus_graph.py [--sizes 10000 100000 1000000] [--kinds exact hnsw ...] [--output FILE]

Synthetic documents (bench/data.py) as float16 rows, d = 384, 20 classes, labels on 1 % of them; k = 15, recall target
0.95. Every kind runs up to the size where it takes minutes, "auto" at every size. Each case is a process of its own, so
that its peak memory is its own. Writes OUTPUT.json (after every case), OUTPUT.md and OUTPUT.png; --resume keeps the
cases that OUTPUT.json has.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import machine
import tables
import torch
from data import documents, hide_labels
from harness import _memory, _reset_peak, timed
from million import Progress

from gloss_kernels import NeighborIndex, cosine_topk, propagate_labels, similarity_graph

D, CLASSES, K, SIGMA, LABELED, ALPHA, TARGET = 384, 20, 15, 0.3, 0.01, 0.9, 0.95
SAMPLE = 200  # rows whose neighbours are compared with exact search once more, beside what the index measured itself
LARGEST = {"exact": 300_000, "flat": 100_000, "ivf_flat": 100_000, "ivf_pq": 100_000, "hnsw": 300_000,
           "nn_descent": 100_000, "auto": 1_000_000}  # fmt: skip
MOST_BYTES = 8e9


def measure(n: int, kind: str) -> dict[str, Any]:
    found = documents(n, D, real=False)
    x, y = found.x.half(), found.y % CLASSES
    del found
    cosine_topk(x[:200], k=3)  # loads the libraries
    held = _reset_peak()
    seconds = {}
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        seconds["build"], index = timed(
            lambda: NeighborIndex.build(x, kind, recall_target=TARGET, recall_k=K, progress=Progress())
        )
    seconds["knn"], neighbors = timed(lambda: index.knn(K, progress=Progress()))
    memory = None if held is None else _memory("VmHWM") - held
    seconds["graph"], graph = timed(lambda: similarity_graph(x, K, sigma=SIGMA, neighbors=neighbors))
    labels = hide_labels(y, LABELED)
    seconds["propagate"], result = timed(lambda: propagate_labels(graph, labels, CLASSES, alpha=ALPHA))
    peak = None if held is None else _memory("VmHWM")
    seconds["harmonic"], harmonic = timed(lambda: propagate_labels(graph, labels, CLASSES))
    hidden = labels < 0

    def accuracy(probabilities: torch.Tensor) -> float:
        return float((probabilities.argmax(1) == y)[hidden].double().mean())

    return {
        "n": n, "kind": kind, "took": index.kind, "described": index.describe(), "recall": index.recall,
        "recall_of_knn": recall(x, neighbors.values), "seconds": seconds, "search_bytes": memory, "process_bytes": peak,
        "edges": graph.col_indices.numel(), "iterations": int(result.iterations), "residual": float(result.residual),
        "reach": float(result.reachable.double().mean()), "warned": [str(w.message) for w in warned],
        "accuracy": accuracy(result.probabilities), "harmonic_accuracy": accuracy(harmonic.probabilities),
        "harmonic_iterations": int(harmonic.iterations),
        "majority": float(y.bincount().max() / n),
    }  # fmt: skip


def recall(x: torch.Tensor, values: torch.Tensor) -> float:
    """Share of the true neighbours of SAMPLE rows among those found, by their cosines (2e-6 nearer is a tie)."""
    rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(7))[:SAMPLE]
    true, indices = cosine_topk(x[rows], x, K + 1)
    itself = indices == rows[:, None]
    itself[:, -1] |= ~itself.any(dim=1)
    least = true[~itself].view(-1, K)[:, -1:]
    return float((values[rows] >= least - 2e-6).double().mean())


def markdown(report: dict[str, Any]) -> str:
    head = ["documents", "kind", "build", "15 neighbours of all", "graph", "spreading", "harmonic", "recall",
            "accuracy", "of the harmonic solution", "memory of the search", "of the process"]  # fmt: skip
    parts = ("build", "knn", "graph", "propagate", "harmonic")
    lines = []
    for r in report["rows"]:
        name = f"**auto** ({r['took']})" if r["kind"] == "auto" else r["kind"]
        lines.append(
            [f"{r['n']:,}", name, *(tables.duration(r["seconds"][part]) for part in parts), f"{r['recall_of_knn']:.3f}",
             f"{r['accuracy']:.3f}", f"{r['harmonic_accuracy']:.3f}", tables.size(r["search_bytes"]),
             tables.size(r["process_bytes"])]
        )  # fmt: skip
    table = ["| " + " | ".join(line) + " |" for line in [head, ["---:", "---", *["---:"] * 10], *lines]]
    last = max(report["rows"], key=lambda r: (r["kind"] == "auto", r["n"]))
    recall, process = last["recall_of_knn"], last["process_bytes"]
    targets = [
        (f"recall at {last['n']:,}", f"{recall:.3f}", f"at least {TARGET}", recall >= TARGET),
        ("memory of the process", tables.size(process), "under 8 GB", process < MOST_BYTES),
    ]
    table += ["", "| target | measured | wanted | met |", "|---|---:|---:|---|"]
    table += [f"| {what} | {got} | {want} | {'yes' if met else 'no'} |" for what, got, want, met in targets]
    notes = (
        f"Synthetic documents, float16 rows, d = {D}, {CLASSES} classes of unequal size (the largest holds "
        f"{last['majority']:.0%}), k = {K}, sigma = {SIGMA}, labels on {LABELED:.0%}; spreading with alpha = {ALPHA}. "
        f"One run a case, each in a process of its own. Recall: of the {K} nearest of {SAMPLE} rows, against exact "
        "search. Accuracy: of the documents without a label. Memory of the search: index and neighbours beyond the "
        "rows; of the process: its peak, with torch, the rows and the making of the documents. The machine was busy "
        "with other work at times: read the ratios.\n\n"
        f"What auto says at {last['n']:,}:\n\n    " + last["described"].replace("\n", "\n    ") + "\n"
    )
    return "\n".join([tables.heading(report), *table, "", notes])


def draw(report: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from pictures import MARKS, OURS, PEERS, _style

    rows, about = report["rows"], report["machine"]
    sizes = sorted({r["n"] for r in rows})
    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(15, 4.4), layout="constrained")
    colors = (OURS[0], *PEERS)
    for kind, color, mark in zip(dict.fromkeys(r["kind"] for r in rows), colors, MARKS, strict=False):
        here = [r for r in rows if r["kind"] == kind]
        style = {"color": color, "marker": mark, "linewidth": 2.6 if kind == "auto" else 1.4, "label": kind}
        left.plot([r["n"] for r in here], [r["seconds"]["build"] + r["seconds"]["knn"] for r in here], **style)
        right.plot([r["n"] for r in here], [r["search_bytes"] / 2**20 for r in here], **style)
    auto = [r for r in rows if r["kind"] == "auto"]
    for part, color in zip(("build", "knn", "graph", "propagate"), OURS, strict=False):
        middle.plot([r["n"] for r in auto], [r["seconds"][part] for r in auto], "o-", color=color, label=part)
    left.set(title=f"the {K} neighbours of all documents: build + knn (s)", ylabel="s")
    middle.set(title="auto: the parts (s)", ylabel="s")
    right.set(title="memory of the search beyond the rows (MiB)", ylabel="MiB")
    for axis in (left, middle, right):
        _style(axis, sizes)
        axis.legend(frameon=False, fontsize=8)
    figure.suptitle(
        f"From embeddings to the classes of all documents (d = {D}, recall target {TARGET})\n{about['processor']}, "
        f"{about['threads']} threads, commit {about['commit']}", fontsize=10,
    )  # fmt: skip
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 300_000, 1_000_000])
    parser.add_argument("--kinds", nargs="+", default=list(LARGEST), choices=list(LARGEST))
    parser.add_argument("--output", type=Path, default=machine.HERE / "results" / "corpus_graph")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--one", nargs=2, metavar=("N", "KIND"), help="one case, its JSON as the last line")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(int(args.one[0]), args.one[1])))
        return
    rows: list[dict[str, Any]] = []
    if args.resume and args.output.with_suffix(".json").exists():
        rows = json.loads(args.output.with_suffix(".json").read_text())["rows"]
    done = {(r["n"], r["kind"]) for r in rows}
    about = {"machine": machine.describe(), "peaks": machine.peaks()}
    report = about | {"rows": rows}
    for n in args.sizes:
        for kind in args.kinds:
            if n <= LARGEST[kind] and (n, kind) not in done:
                print(f"{n:,} {kind}", flush=True)
                command = [sys.executable, __file__, "--one", str(n), kind]
                out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
                rows.append(json.loads(out.splitlines()[-1]))
                print(
                    "  ", {k: v for k, v in rows[-1].items() if k in ("took", "recall_of_knn", "seconds")}, flush=True
                )
                rows.sort(key=lambda r: (r["n"], list(LARGEST).index(r["kind"])))
                args.output.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    args.output.with_suffix(".md").write_text(markdown(report))
    draw(report, args.output.with_suffix(".png"))
    print(markdown(report))


if __name__ == "__main__":
    main()

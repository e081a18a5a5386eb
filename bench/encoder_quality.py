"""What G-Loss adds to cross entropy when the whole encoder is trained: MiniLM on a part of R52 and of ohsumed.

    python bench/encoder_quality.py RUNS [--texts R52 ohsumed] [--documents 1000] [--seeds 5] [--output FILE]

Each run is one `gloss-kernels finetune`, as a user would call it, in a folder under RUNS; finished ones are not
repeated, an interrupted one is resumed. The texts lie in ../shared/data; a seeded part of each is used, of the classes
that its training documents have (ohsumed has no test part: its validation part is the test, 15 % of the training
documents validate). Writes OUTPUT.json and OUTPUT.md.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import random
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import machine
import tables

from gloss_kernels.cli.main import main as gloss_kernels

DATA = machine.HERE.parent.parent / "shared" / "data"
LOSSES = {
    "cross entropy": ["--loss", "ce"],
    "+ mini-batch GLoss": ["--loss", "ce+gloss", "--graph", "batch"],
    "+ CorpusGLoss": ["--loss", "ce+gloss", "--graph", "corpus"],
}
SCORES = {"accuracy": "accuracy", "macro_f1": "macro-F1", "knn_accuracy": "15-NN accuracy", "silhouette": "silhouette"}
EPOCHS, LENGTH, TEST, VALIDATION = 3, 64, 1000, 300


def part_of(text: str, part: str, count: int, folder: Path, classes: set[str] | None = None) -> tuple[str, set[str]]:
    """A CSV file with ``count`` seeded documents of a part, of these classes, and the classes it has."""
    source = DATA / text / f"{part}.csv.gz"
    with gzip.open(source, "rt", encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    random.Random(0).shuffle(rows)
    label = head.index("label")
    rows = [row for row in rows if classes is None or row[label] in classes][:count]
    target = folder / f"{text}_{part}_{count}.csv"
    with open(target, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([head, *rows])
    return str(target), {row[label] for row in rows}


def run(text: str, name: str, seed: int, documents: int, runs: Path) -> dict[str, Any]:
    runs.mkdir(parents=True, exist_ok=True)
    train, classes = part_of(text, "train", documents, runs)
    whole = (DATA / text / "test.csv.gz").exists()
    files = ["--train", train, "--test", part_of(text, "test" if whole else "val", TEST, runs, classes)[0]]
    if whole:
        files += ["--val", part_of(text, "val", VALIDATION, runs, classes)[0]]
    folder = runs / f"{text}_{documents}_{'_'.join(LOSSES[name][1::2]).replace('+', '_')}_{seed}"
    options = ["--epochs", str(EPOCHS), "--patience", "0", "--max-length", str(LENGTH), "--seed", str(seed)]
    code = gloss_kernels(["finetune", *files, *LOSSES[name], *options, "--output", str(folder), "--resume"])
    if code:
        raise SystemExit(code)
    metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    for part in metrics["documents"].values():  # file names, not the folders of this machine
        part["source"] = part["source"].replace(f"{runs}{os.sep}", "")
    return {"text": text, "loss": name, "seed": seed, **metrics["test"], "before": metrics["before"],
            "seconds_per_epoch": metrics["seconds_per_epoch"], "documents": metrics["documents"]}  # fmt: skip


def markdown(report: dict[str, Any]) -> str:
    parts = [tables.heading(report)]
    seeds = len({r["seed"] for r in report["rows"]})
    for text in dict.fromkeys(r["text"] for r in report["rows"]):
        here = [r for r in report["rows"] if r["text"] == text]
        counts = [f"{here[0]['documents'][part]['count']:,}" for part in ("train", "val", "test")]
        parts.append("## {}: {} training, {} validation, {} test documents\n".format(text, *counts))
        table = ["| loss | " + " | ".join(SCORES.values()) + " | seconds an epoch |", "|---|" + "---:|" * 5]
        before = here[0]["before"]
        table.append(f"| (before training) | | | {before['knn_accuracy']:.3f} | {before['silhouette']:.3f} | |")
        for name in LOSSES:
            rows = [r for r in here if r["loss"] == name]
            cells = [spread([r[score] for r in rows]) for score in SCORES]
            seconds = statistics.median(r["seconds_per_epoch"] for r in rows)
            table.append(f"| {name} | " + " | ".join(cells) + f" | {seconds:.0f} |")
        parts.append("\n".join(table) + "\n")
        parts.append("\n".join(differences(here)) + "\n")
    parts.append(
        f"MiniLM, all weights, {EPOCHS} epochs, batches of 64, {LENGTH} tokens, lambda 0.5, sigma 0.5, target 'nll', "
        f"the command's other defaults; mean ± standard deviation over {seeds} seeds. 15-NN: majority of the nearest "
        "other test documents. Nothing was tuned here. The seconds are of a busy machine.\n"
    )
    return "\n".join(parts)


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values) if len(values) > 1 else 0:.3f}"


def differences(rows: list[dict[str, Any]]) -> list[str]:
    """Against cross entropy with the same seed, where the mean difference is beyond two standard errors."""
    base = {r["seed"]: r for r in rows if r["loss"] == "cross entropy"}
    lines = []
    for name in list(LOSSES)[1:]:
        words = []
        for score, title in SCORES.items():
            found = [r[score] - base[r["seed"]][score] for r in rows if r["loss"] == name]
            error = statistics.stdev(found) / len(found) ** 0.5 if len(found) > 1 else float("inf")
            if abs(statistics.mean(found)) > 2 * error:
                words.append(f"{title} {statistics.mean(found):+.3f}")
        lines.append(f"- {name}: {', '.join(words) or 'no difference'} (paired, beyond two standard errors)")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", type=Path, metavar="RUNS", help="folder of the runs")
    parser.add_argument("--texts", nargs="+", default=["R52", "ohsumed"])
    parser.add_argument("--documents", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=machine.HERE / "results" / "encoder_quality")
    args = parser.parse_args()
    rows = [
        run(text, name, seed, args.documents, args.runs)
        for seed in range(args.seeds)
        for text in args.texts
        for name in LOSSES
    ]
    report = {"machine": machine.describe(), "peaks": machine.peaks(), "rows": rows}
    args.output.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    args.output.with_suffix(".md").write_text(markdown(report))
    print(markdown(report))


if __name__ == "__main__":
    main()

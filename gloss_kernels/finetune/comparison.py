"""Two runs side by side: a table as markdown and JSON, and joint pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from gloss_kernels._files import write_text
from gloss_kernels.finetune import checkpoint, plots

TITLES = {"ce": "cross entropy", "gloss": "G-Loss", "ce+gloss": "cross entropy + G-Loss"}
PANELS = {1: 2, 2: 3}  # of projection.png, by runs: one before training and one for each
COLUMNS = (
    ("accuracy", "accuracy", ".3f"),
    ("macro_f1", "macro-F1", ".3f"),
    ("silhouette", "silhouette", ".3f"),
    ("knn_accuracy", "15-NN accuracy", ".3f"),
)


@dataclass
class Result:
    """A finished run: what metrics.json says, and the test embeddings before and after training."""

    metrics: dict[str, Any]
    before: Tensor
    after: Tensor
    labels: Tensor

    @property
    def title(self) -> str:
        return loss_title(self.metrics["settings"])


def loss_title(settings: dict[str, Any]) -> str:
    title = TITLES[settings["loss"]]
    return title.replace("G-Loss", "corpus G-Loss") if settings.get("graph") == "corpus" else title


def table(results: list[Result]) -> str:
    """Markdown: a row of the encoder before training, then one for each run; scores on the test documents."""
    names = [name for _, name, _ in COLUMNS]
    lines = [["loss", *names, "best epoch", "seconds per epoch"]]
    lines.append(["(before training)", *_cells(results[0].metrics["before"]), "", ""])
    for result in results:
        m = result.metrics
        lines.append([result.title, *_cells(m["test"]), str(m["best_epoch"]), f"{m['seconds_per_epoch']:.1f}"])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rule = ["-" * (w - 1) + ":" if i else "-" * w for i, w in enumerate(widths)]
    rows = [lines[0], rule, *lines[1:]]
    return "\n".join("| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in rows)


def _cells(scores: dict[str, Any]) -> list[str]:
    return ["" if scores.get(key) is None else format(scores[key], form) for key, _, form in COLUMNS]


def title(name: str, scores: dict[str, Any]) -> str:
    silhouette = scores["silhouette"]
    return name if silhouette is None else f"{name} (silhouette {silhouette:.2f})"


def draw(results: list[Result], classes: list[str], folder: Path) -> None:
    """curves.png and projection.png of one run or several."""
    runs = [(r.title, r.metrics["history"], r.metrics["best_epoch"]) for r in results]
    plots.curves(runs, folder / "curves.png")
    panels = [(title("before training", results[0].metrics["before"]), results[0].before)]
    panels += [(title(r.title, r.metrics["test"]), r.after) for r in results]
    plots.projection(panels, results[0].labels, classes, folder / "projection.png")


def write(results: list[Result], classes: list[str], folder: Path) -> str:
    """Save and return the comparison."""
    text = table(results)
    write_text(folder / "comparison.md", text + "\n")
    checkpoint.write_json(folder / "comparison.json", {"runs": [result.metrics for result in results]})
    draw(results, classes, folder)
    return text

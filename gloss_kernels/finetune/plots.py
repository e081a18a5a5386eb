"""Two pictures: curves.png (losses and validation scores by epoch), projection.png (test embeddings in the plane)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
import torch
from matplotlib.ticker import MaxNLocator
from sklearn.manifold import TSNE
from torch import Tensor
from torch.nn import functional as F

from gloss_kernels.finetune.evaluation import subsample

Array = npt.NDArray[np.float64]
MAX_POINTS = 1000  # of the projection: t-SNE of 1,000 points takes 2-3 s on two cores
NAMED = 24  # classes named in the legend, the most frequent ones
PARTS = {"ce": ("its cross-entropy part", "-"), "gloss": ("its G-Loss part", "--")}
SCORES = {"val_macro_f1": ("macro-F1", "-"), "val_accuracy": ("accuracy", "--")}


def curves(runs: Sequence[tuple[str, list[dict[str, float]], int]], path: Path) -> None:
    """runs: (name, history, best epoch). One colour per run; the best epoch is marked."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 5), layout="constrained")
    for i, (name, history, best) in enumerate(runs):
        epochs = [record["epoch"] for record in history]
        for axes, lines in ((left, PARTS), (right, SCORES)):
            for key, (label, style) in lines.items():
                if key not in history[0]:
                    continue
                values = [record[key] for record in history]
                axes.plot(epochs, values, style, marker="o", markersize=3.5, color=f"C{i}", label=f"{name}: {label}")
        chosen = history[best - 1]
        right.plot(chosen["epoch"], chosen["val_macro_f1"], "*", markersize=13, color=f"C{i}", zorder=3)
    left.set(title="Training loss", xlabel="epoch", ylabel="mean over the documents")
    right.set(title="Validation (star: the weights kept)", xlabel="epoch", ylabel="score")
    left.set_ylim(bottom=0)
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, handlelength=3, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    figure.savefig(path, dpi=150)
    plt.close(figure)


def projection(panels: Sequence[tuple[str, Tensor]], labels: Tensor, classes: list[str], path: Path) -> None:
    """panels: (title, embeddings [n, dim]) of the same documents; one t-SNE per panel, one colour per class."""
    rows = subsample(len(labels), MAX_POINTS, 0)
    y = labels[rows].numpy()
    width = 4.6 * len(panels) + 2
    figure, grid = plt.subplots(1, len(panels), figsize=(width, 4.8), layout="constrained", squeeze=False)
    order = np.arange(len(classes))
    if len(classes) > NAMED:
        order = np.argsort(-np.bincount(y, minlength=len(classes)), kind="stable")  # name the frequent ones
    for axes, (title, embeddings) in zip(grid[0], panels, strict=True):
        points = plane(embeddings[rows])
        for rank, c in enumerate(order):
            colour, marker = _style(rank)
            label = classes[c][:30] if rank < NAMED and (y == c).any() else None
            axes.scatter(*points[y == c].T, s=13, color=colour, marker=marker, linewidths=0, alpha=0.8, label=label)
        axes.set(title=title, xticks=[], yticks=[])
        axes.set_aspect("equal", adjustable="datalim")
    handles, names = grid[0][0].get_legend_handles_labels()
    unnamed = len(np.unique(y)) - len(names)
    title = f"classes ({unnamed} more not named)" if unnamed else "classes"
    figure.legend(handles, names, loc="outside right center", frameon=False, fontsize=8, markerscale=1.8, title=title)
    figure.supxlabel(f"t-SNE of {len(y):,} test documents, cosine distance, fitted for each panel", fontsize=9)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def plane(embeddings: Tensor) -> Array:
    """Embeddings [n, dim] -> points [n, 2]: t-SNE on unit rows, started from the two first principal components."""
    x = F.normalize(embeddings.double())
    x = x - x.mean(0)
    u, s, _ = torch.linalg.svd(x, full_matrices=False)
    start = torch.zeros(len(x), 2, dtype=torch.float64, device="cpu")
    start[:, : min(2, len(s))] = (u * s)[:, :2]
    spread = float(start[:, 0].std(correction=0))
    if len(x) < 8 or spread < 1e-9:  # too few for neighbourhoods
        return start.numpy()
    tsne = TSNE(perplexity=min(30, (len(x) - 1) / 3), init=(start * (1e-4 / spread)).numpy(), random_state=0)
    points: Array = tsne.fit_transform(x.numpy()).astype(np.float64)
    return points


def _style(rank: int) -> tuple[tuple[float, float, float, float], str]:
    """Ten colours, then the same ten with another marker: more hues are hard to tell apart."""
    colours = matplotlib.colormaps["tab10"]
    return colours(rank % 10), "o^s"[(rank // 10) % 3]

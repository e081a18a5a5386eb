"""Harmonic propagation by sigma and share of labels, beside conjugate gradients by SciPy and by PyAMG.

    python bench/propagate_sigma.py [--output bench/results/propagate_sigma]

The documents of bench/data.py (all real ones where they are), k = 15, 100 classes, float32, two threads. A peer solves
the system D^-1/2 (D - A) D^-1/2, one class after the other: SciPy's cg with the diagonal, and with PyAMG's smoothed
aggregation, set up once. Of a peer 5 classes are solved; its time is the setup and 20 times theirs. "error" is the
largest difference of a probability from our solution in float64 at tol 1e-10, which tests compare with elimination at
smaller n.

Writes OUTPUT.json and OUTPUT.md. Needs pyamg.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import machine
import numpy as np
import torch
from data import cluster_labels, documents, hide_labels
from torch import Tensor

from gloss_kernels import SimilarityGraph, cosine_topk, propagate_labels, similarity_graph

CLASSES, K, TOL, MOST = 100, 15, 1e-4, 500
TIMED = 5  # classes of a peer
SIGMAS, SHARES = (0.2, 0.3, 0.5), (0.7, 0.1, 0.01, 0.002)


def ours(graph: SimilarityGraph, labels: Tensor) -> tuple[dict[str, Any], np.ndarray]:
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        found = propagate_labels(graph, labels, CLASSES, tol=TOL, max_iter=MOST)
        seconds.append(time.perf_counter() - start)
    return {"seconds": statistics.median(seconds), "iterations": int(found.iterations)}, found.probabilities.numpy()


def peer(graph: SimilarityGraph, labels: Tensor, amg: bool) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Figures, the probabilities [hidden, TIMED], and which rows they are."""
    from scipy.sparse import diags_array
    from scipy.sparse.csgraph import connected_components
    from scipy.sparse.linalg import cg

    a, y = graph.to_scipy(), labels.numpy()
    part = connected_components(a, directed=False)[1]
    hidden = (y < 0) & np.isin(part, part[y >= 0])
    rows, fixed = np.flatnonzero(hidden), np.flatnonzero(y >= 0)
    start = time.perf_counter()
    half = diags_array(a[rows].sum(1) ** -0.5)
    system = (half @ (diags_array(a[rows].sum(1)) - a[rows][:, rows]) @ half).tocsr()
    right = half @ a[rows][:, fixed] @ (y[fixed][:, None] == np.arange(TIMED)).astype(np.float32)
    precondition = None
    if amg:
        import pyamg
        from scipy.sparse import csr_matrix

        precondition = pyamg.smoothed_aggregation_solver(csr_matrix(system)).aspreconditioner()
    setup = time.perf_counter() - start
    steps, found = [], np.zeros((len(rows), TIMED))
    start = time.perf_counter()
    for c in range(TIMED):
        residuals: list[None] = []
        z, _ = cg(
            system, right[:, c], rtol=TOL, atol=0.0, maxiter=MOST, M=precondition,
            callback=lambda _, done=residuals: done.append(None),
        )  # fmt: skip
        steps.append(len(residuals))
        found[:, c] = half @ z
    solve = time.perf_counter() - start
    return {"seconds": setup + solve * CLASSES / TIMED, "iterations": max(steps)}, found, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "propagate_sigma")
    options = parser.parse_args()
    torch.set_num_threads(2)
    x = documents().x
    all_labels = cluster_labels(x, CLASSES)
    neighbors = cosine_topk(x, k=K)
    rows = []
    for sigma in SIGMAS:
        graph = similarity_graph(x, neighbors=neighbors, sigma=sigma)
        for share in SHARES:
            labels = hide_labels(all_labels, share)
            wide = graph._replace(values=graph.values.double())
            exact = propagate_labels(wide, labels, CLASSES, tol=1e-10).probabilities.numpy()
            figures, found = ours(graph, labels)
            row: dict[str, Any] = {"sigma": sigma, "share": share, "n": len(x)}
            row["gloss_kernels"] = {**figures, "error": float(np.abs(found - exact).max())}
            for name, amg in (("SciPy cg", False), ("PyAMG", True)):
                figures, some, which = peer(graph, labels, amg)
                row[name] = {**figures, "error": float(np.abs(some - exact[which][:, :TIMED]).max())}
            rows.append(row)
            print(row, flush=True)
    report = {"machine": machine.describe(), "rows": rows}
    options.output.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    options.output.with_suffix(".md").write_text(markdown(report))


def markdown(report: dict[str, Any]) -> str:
    about = report["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items() if version[:1].isdigit())
    lines = [
        f"# Harmonic propagation by sigma and labels, {about['date']}, commit {about['commit']}",
        f"{about['processor']}, {about['cores']} cores, {about['threads']} threads; kernels: {about['kernels']}.",
        f"{versions}.",
        __doc__.split("\n\n")[2].strip(),
    ]
    table = [
        "| sigma | labelled | iterations | seconds | error | SciPy cg: iterations | seconds | error "
        "| PyAMG: iterations | seconds | error | times SciPy |",
        "|" + "---:|" * 12,
    ]
    for row in report["rows"]:
        cells = [f"{row['sigma']}", f"{row['share']:.1%}"]
        for name in ("gloss_kernels", "SciPy cg", "PyAMG"):
            cell = row[name]
            cells += [str(cell["iterations"]), f"{cell['seconds']:.3f}", f"{cell['error']:.0e}"]
        cells.append(f"{row['SciPy cg']['seconds'] / row['gloss_kernels']['seconds']:.1f}")
        table.append("| " + " | ".join(cells) + " |")
    return "\n\n".join(lines) + "\n\n" + "\n".join(table) + "\n"


if __name__ == "__main__":
    main()

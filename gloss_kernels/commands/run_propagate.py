"""`gloss-kernels propagate` from its parsed options to the file of predictions."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gloss_kernels.cli import CommandError
from gloss_kernels.commands import shared
from gloss_kernels.commands.run_graph import components
from gloss_kernels.graph import SimilarityGraph
from gloss_kernels.neighbors.plan import available_memory
from gloss_kernels.propagate import propagate_labels

COPIES = 6  # of [n, C] float32 that a solve holds at a time, about


def run(args: argparse.Namespace) -> int:
    output = shared.check_output(args.output, overwrite=args.overwrite)
    device = shared.choose_device(args.device)
    labels = load_labels(args.labels)
    times = shared.Times()
    with times.part("read"), shared.user_errors(), shared.reading("GRAPH", args.graph):
        try:
            graph = SimilarityGraph.load(args.graph)
        except TypeError:  # of an .npy
            raise CommandError(f"GRAPH: {args.graph!r} is not a graph saved by SimilarityGraph.save") from None
        except ValueError as error:
            raise CommandError(str(error).replace("path", "GRAPH", 1)) from None
    n = graph.num_nodes
    if len(labels) != n:
        raise CommandError(f"LABELS: got {len(labels)} labels, but GRAPH has {n} documents")
    classes = args.num_classes or int(labels.max()) + 1
    needed, free = COPIES * 4 * n * classes, available_memory()
    if device.type == "cpu" and free is not None and needed > free:
        raise CommandError(
            f"LABELS: {n:,} x {classes:,} probabilities take {needed:,} bytes, {free:,} are free", code=1
        )
    with times.part("propagation"), shared.user_errors(), shared.plain_warnings():
        result = propagate_labels(
            graph.to(device),
            labels.to(device),
            classes,
            alpha=args.alpha,
            normalization=args.normalization,
            prior_strength=args.prior_strength,
            tol=args.tol,
            max_iter=args.max_iter,
        )
        probabilities, reachable = result.probabilities.float().cpu(), result.reachable.cpu()
    predictions = torch.where(reachable, probabilities.argmax(dim=1), -1)

    def save(path: Path) -> None:
        with open(path, "wb") as file:  # numpy would append .npz to the name
            np.savez(
                file,
                probabilities=probabilities.numpy(),
                predictions=predictions.numpy(),
                reachable=reachable.numpy(),
            )

    with times.part("write"):
        shared.write(output, save)
    given, (count, largest) = int((labels >= 0).sum()), components(graph)
    shared.show(
        {
            "documents": f"{n:,}, {given:,} of them labelled ({100 * given / n:.2f} %), {classes:,} classes",
            "edges": f"{graph.num_edges // 2:,}, mean degree {graph.num_edges / n:.2f}",
            "components": f"{count:,}, the largest has {100 * largest / n:.2f} % of the documents",
            "reachable": f"{int(reachable.sum()):,} of the documents ({100 * float(reachable.double().mean()):.2f} %)",
            "solve": f"{int(result.iterations)} iterations, residual {float(result.residual):.2g} (--tol {args.tol:g})",
            "time": times,
            "peak memory": shared.peak_memory(),
            "written to": output,
        }
    )
    return 0


def load_labels(path: str) -> Tensor:
    array = shared.load_array("LABELS", path)
    if array.dtype.kind not in "iu":
        raise CommandError(f"LABELS: got {array.dtype} numbers, wants integers, -1 for no label")
    if array.ndim != 1:
        raise CommandError(f"LABELS: got shape {array.shape}, wants [documents]")
    labels = torch.from_numpy(array.astype(np.int64))
    if not bool((labels >= 0).any()):
        raise CommandError("LABELS: no document has a label")
    return labels

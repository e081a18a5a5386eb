"""`gloss-kernels propagate`: its options, and the way from them to the file of predictions."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gloss_kernels._options import NORMALIZATIONS
from gloss_kernels.cli import files, terminal
from gloss_kernels.cli.components import components
from gloss_kernels.cli.errors import CommandError
from gloss_kernels.cli.options import Help, choose_device, number, whole
from gloss_kernels.graph import SimilarityGraph
from gloss_kernels.neighbors.plan import available_memory
from gloss_kernels.propagate import propagate_labels

COPIES = 6  # of [n, C] float32 that a solve holds at a time, about


def add_parser(commands: Any) -> None:
    p = commands.add_parser(
        "propagate",
        help="labels for all documents of a graph from those of some",
        description="Lets labels flow along the edges of a graph. The output is an .npz with probabilities float32 "
        "[n, C], predictions int64 [n] (the likeliest class; -1 where no labelled document can be reached, there the "
        "probabilities are 1 / C) and reachable bool [n].",
        formatter_class=Help,
        allow_abbrev=False,
    )
    p.set_defaults(run=run)
    p.add_argument("graph", metavar="GRAPH", help=".npz file written by gloss-kernels graph or SimilarityGraph.save")
    p.add_argument("labels", metavar="LABELS", help=".npy file [n] of integers, -1 where a document has no label")
    p.add_argument("-o", "--output", required=True, metavar="FILE", help="probabilities and predictions, .npz")
    p.add_argument("--overwrite", action="store_true", help="replace --output")
    p.add_argument("--num-classes", type=whole(1), metavar="C", help="classes (default: the largest label + 1)")
    p.add_argument(
        "--alpha",
        type=number(0, 1, closed=False),
        metavar="A",
        help="label spreading with this alpha (default: the harmonic solution, which leaves given labels as they are)",
    )
    p.add_argument("--normalization", choices=NORMALIZATIONS, default="row", help="of the harmonic solution")
    p.add_argument("--prior-strength", type=number(0), default=0.0, metavar="EPS", help="pull towards equal classes")
    p.add_argument(
        "--tol", type=number(0, closed=False), default=1e-4, help="relative residual at which the solver stops"
    )
    p.add_argument("--max-iter", type=whole(1), default=500, metavar="N", help="solver steps at most")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")


def run(args: argparse.Namespace, words: list[str]) -> int:
    inputs = {"GRAPH": args.graph, "LABELS": args.labels}
    output = files.check_output(args.output, overwrite=args.overwrite, inputs=inputs)
    device = choose_device(args.device)
    labels = load_labels(args.labels)
    times = terminal.Times()
    with times.part("read"), terminal.user_errors(), files.reading("GRAPH", args.graph):
        try:
            graph = SimilarityGraph.load(args.graph)
        except ValueError as error:
            raise CommandError(str(error).replace("path", "GRAPH", 1)) from None
    n = graph.num_nodes
    if len(labels) != n:
        raise CommandError(f"LABELS must have a label for each of the {n} documents of GRAPH, got {len(labels)}")
    classes = args.num_classes or int(labels.max()) + 1
    needed, free = COPIES * 4 * n * classes, available_memory()
    if device.type == "cpu" and free is not None and needed > free:
        raise CommandError(
            f"--num-classes: {n:,} x {classes:,} probabilities take {needed:,} bytes, {free:,} are free", code=1
        )
    with times.part("propagation"), terminal.user_errors(), terminal.plain_warnings():
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
        files.write(output, save)
    given, (count, largest) = int((labels >= 0).sum()), components(graph)
    terminal.show(
        {
            "documents": f"{n:,}, {given:,} of them labelled ({100 * given / n:.2f} %), {classes:,} classes",
            "edges": f"{graph.num_edges // 2:,}, mean degree {graph.num_edges / n:.2f}",
            "components": f"{count:,}, the largest has {100 * largest / n:.2f} % of the documents",
            "reachable": f"{int(reachable.sum()):,} of the documents ({100 * float(reachable.double().mean()):.2f} %)",
            "solve": f"{int(result.iterations)} iterations, residual {float(result.residual):.2g} (--tol {args.tol:g})",
            "time": times,
            "peak memory": terminal.peak_memory(),
            "written to": output,
        },
        output,
    )
    return 0


def load_labels(path: str) -> Tensor:
    array = files.load_array("LABELS", path)
    if array.dtype.kind not in "iu":
        raise CommandError(f"LABELS must be integers, -1 for no label, got {array.dtype} numbers")
    if array.ndim != 1:
        raise CommandError(f"LABELS must be of shape [documents], got {array.shape}")
    if array.dtype.kind == "u" and (array == np.iinfo(array.dtype).max).any():
        raise CommandError(
            f"LABELS must be of a signed dtype, -1 for no label, got {array.dtype} with {np.iinfo(array.dtype).max}, "
            "which is -1 without its sign"
        )
    if array.dtype == np.uint64 and (array > np.iinfo(np.int64).max).any():
        raise CommandError(f"LABELS must be below 2^63, got {array.max()}")
    labels = torch.from_numpy(array.astype(np.int64))
    if not bool((labels >= 0).any()):
        raise CommandError("LABELS must have a label of at least 0, got none")
    return labels

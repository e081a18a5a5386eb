"""The options of `gloss-kernels propagate`."""

from __future__ import annotations

import argparse
from typing import Any

from gloss_kernels.finetune.options import Help, number, whole


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
    p.set_defaults(run=_run)
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
    p.add_argument("--normalization", choices=("row", "published"), default="row", help="of the harmonic solution")
    p.add_argument("--prior-strength", type=number(0), default=0.0, metavar="EPS", help="pull towards equal classes")
    p.add_argument("--tol", type=number(0, closed=False), default=1e-4, help="relative residual at which it ends")
    p.add_argument("--max-iter", type=whole(1), default=500, metavar="N", help="steps at most")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")


def _run(args: argparse.Namespace, words: list[str]) -> int:
    from gloss_kernels.commands.run_propagate import run

    return run(args)

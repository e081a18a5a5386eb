"""The options of `gloss-kernels graph`."""

from __future__ import annotations

import argparse
from typing import Any

from gloss_kernels.finetune.options import Help, number, whole
from gloss_kernels.graph import SMALLEST_SIGMA
from gloss_kernels.neighbors.structures import KINDS


def sigma(text: str) -> str | float:
    if text in ("root", "self-tuning"):
        return text
    try:
        return number(SMALLEST_SIGMA)(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, or root, self-tuning") from None


def share(text: str) -> float:
    value = number(0, 1)(text)
    if value == 0:
        raise argparse.ArgumentTypeError(f"got {text!r}, wants a number above 0")
    return value


def add_parser(commands: Any) -> None:
    p = commands.add_parser(
        "graph",
        help="the nearest-neighbour graph of a file of embeddings",
        description="Joins each row of a file of embeddings to its nearest by cosine, with Gaussian weights. The "
        "output is an .npz with crow_indices int64 [n + 1], col_indices int64 and values (CSR, both directions of an "
        "edge, no self edges); SimilarityGraph.load reads it, and so do numpy.load and scipy.sparse.csr_array((values, "
        "col_indices, crow_indices)). The embeddings are mapped, not read at once: leave the file as it is.",
        formatter_class=Help,
        allow_abbrev=False,
    )
    p.set_defaults(run=_run)
    p.add_argument("embeddings", metavar="EMBEDDINGS", help=".npy file [n, d] of float16, float32 or float64")
    p.add_argument("-o", "--output", required=True, metavar="FILE", help="the graph, .npz")
    p.add_argument("--overwrite", action="store_true", help="replace --output")

    graph = p.add_argument_group("graph")
    graph.add_argument("-k", "--neighbors", type=whole(1), default=15, metavar="K", help="nearest of a row")
    graph.add_argument("--sigma", type=sigma, default=0.5, help="width of the edges; or by rule: root, self-tuning")
    graph.add_argument(
        "--symmetrize", choices=("sum", "union", "mutual"), default="sum", help="W + W', the larger, the smaller"
    )

    search = p.add_argument_group("search")
    search.add_argument("--kind", choices=("auto", *KINDS), default="auto", help="exact, or an index of FAISS")
    search.add_argument(
        "--recall",
        type=share,
        default=0.95,
        metavar="SHARE",
        help="of the true neighbours that an index should find, measured on 512 rows",
    )
    search.add_argument("--seed", type=whole(0), default=0, help="of the rows that an index is trained and measured on")
    search.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    search.add_argument(
        "--checkpoint",
        metavar="FOLDER",
        help="keep the index and the finished blocks of rows there (exact search then takes up to twice the time). It "
        "stays: with --resume and another --sigma the neighbours are not searched again",
    )
    search.add_argument("--resume", action="store_true", help="go on with the search in --checkpoint")
    search.add_argument("--quiet", action="store_true", help="no progress line (nor is there one in a file or pipe)")


def _run(args: argparse.Namespace, words: list[str]) -> int:
    from gloss_kernels.commands.run_graph import run

    return run(args, words)

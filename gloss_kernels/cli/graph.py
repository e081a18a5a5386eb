"""`gloss-kernels graph`: its options, and the way from them to the file of the graph."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gloss_kernels._files import leftovers, write_text
from gloss_kernels.cli import files, terminal
from gloss_kernels.cli.components import components
from gloss_kernels.cli.errors import CommandError
from gloss_kernels.cli.options import Help, choose_device, number, whole
from gloss_kernels.graph import SMALLEST_SIGMA, SYMMETRIZE, SimilarityGraph, similarity_graph
from gloss_kernels.neighbors import NeighborIndex, knn
from gloss_kernels.neighbors.structures import KINDS
from gloss_kernels.sigma import SMALLEST, sigma_root
from gloss_kernels.topk import TopK

SETTINGS, INDEX = "settings.json", "index"  # in --checkpoint, beside the files of NeighborIndex.knn


def sigma(text: str) -> str | float:
    if text in ("root", "self-tuning"):
        return text
    return number(SMALLEST_SIGMA, words="root, self-tuning")(text)


def share(text: str) -> float:
    value = number(0, 1)(text)
    if value == 0:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
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
    p.set_defaults(run=run)
    p.add_argument("embeddings", metavar="EMBEDDINGS", help=".npy file [n, d] of float16, float32 or float64")
    p.add_argument("-o", "--output", required=True, metavar="FILE", help="the graph, .npz")
    p.add_argument("--overwrite", action="store_true", help="replace --output")

    graph = p.add_argument_group("graph")
    graph.add_argument("-k", "--neighbors", type=whole(1), default=15, metavar="K", help="neighbours per row")
    graph.add_argument("--sigma", type=sigma, default=0.5, help="width of the edges; or by rule: root, self-tuning")
    graph.add_argument(
        "--symmetrize",
        choices=[how for how in SYMMETRIZE if how is not None],  # propagation needs an undirected graph
        default="sum",
        help="how the weights of i to j and of j to i become one edge (similarity_graph says it)",
    )

    search = p.add_argument_group("search")
    search.add_argument("--kind", choices=("auto", *KINDS), default="auto", help="exact, or an index of FAISS")
    search.add_argument(
        "--recall",
        type=share,
        default=0.95,
        metavar="SHARE",
        help="share of the true neighbours that an index must find, measured on 512 rows",
    )
    search.add_argument(
        "--seed", type=whole(0), default=0, help="random choice of the rows that an index is trained and measured on"
    )
    search.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    search.add_argument(
        "--checkpoint",
        metavar="FOLDER",
        help="keep the index and the finished blocks of rows there (exact search then takes up to twice the time). It "
        "stays: with --resume and another --sigma the neighbours are not searched again",
    )
    search.add_argument("--resume", action="store_true", help="continue the search in --checkpoint")
    search.add_argument("--quiet", action="store_true", help="no progress line (nor is there one in a file or pipe)")


def run(args: argparse.Namespace, words: list[str]) -> int:
    inputs = {"EMBEDDINGS": Path(args.embeddings)}
    if args.checkpoint is not None:
        inputs |= {f"{name} of --checkpoint": Path(args.checkpoint, name) for name in (SETTINGS, INDEX, *knn.FILES)}
    output = files.check_output(args.output, overwrite=args.overwrite, inputs=inputs)
    if args.resume and args.checkpoint is None:
        raise CommandError("--resume needs --checkpoint FOLDER")
    device = choose_device(args.device)
    x = files.load_array("EMBEDDINGS", args.embeddings)
    if x.ndim == 2 and args.neighbors >= len(x):
        raise CommandError(f"-k must be less than the {len(x)} rows of EMBEDDINGS, got {args.neighbors}")
    folder = open_checkpoint(args)
    times, progress = terminal.Times(), terminal.Progress(quiet=args.quiet)
    try:
        with terminal.user_errors(), terminal.plain_warnings():
            with times.part("index"):
                index = make_index(args, on(device, x), folder, progress)
            with times.part("neighbours"):
                found = index.knn(args.neighbors, progress=progress.step("neighbours"), checkpoint=folder)
            progress.clear()
            with times.part("graph"):
                graph, sigma = weigh(args, index.parts[0], found)
    except KeyboardInterrupt:
        progress.clear()
        print(farewell(folder, words), file=sys.stderr)
        return 130
    except OSError as error:
        raise CommandError(f"--checkpoint {error.filename or args.checkpoint!r}: {error.strerror or error}") from None
    finally:
        progress.clear()
    with times.part("write"):
        files.write(output, graph.save)
    with times.part("components"):
        count, largest = components(graph)
    n = len(index)
    facts: dict[str, object] = {
        "rows": f"{n:,} x {index.dim} {x.dtype}",
        "search": f"k = {args.neighbors}; {index.describe()}",
        "edges": f"{graph.num_edges // 2:,}, mean degree {graph.num_edges / n:.2f}",
        "components": f"{count:,}, the largest has {100 * largest / n:.2f} % of the rows",
        "sigma": sigma,
        "time": times,
        "peak memory": terminal.peak_memory(),
        "written to": output,
    }
    if folder is not None:
        facts["checkpoint"] = f"{folder} is no longer needed, but saves the search for another --sigma"
    terminal.show(facts, output)
    return 0


def on(device: torch.device, x: Any) -> Any:
    """The mapped array itself on the CPU; another device holds all of it."""
    return x if device.type == "cpu" else torch.from_numpy(np.array(x)).to(device)


def open_checkpoint(args: argparse.Namespace) -> Path | None:
    """Its folder; an earlier search there is continued only if that was asked for, with the same settings."""
    if args.checkpoint is None:
        return None
    folder = Path(args.checkpoint)
    mine = {"kind": args.kind, "recall": args.recall, "seed": args.seed, "neighbors": args.neighbors}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / SETTINGS).exists():
            if not args.resume:
                raise CommandError(f"--checkpoint {args.checkpoint!r} holds an earlier search; --resume continues it")
            settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
            for name, value in mine.items():
                if settings[name] != value:
                    raise CommandError(f"--{name} must be {settings[name]}, as in --checkpoint, got {value}")
        elif {*folder.iterdir()} - leftovers(folder / SETTINGS):  # of a run that was killed as it began
            raise CommandError(f"--checkpoint must be a new or empty folder, got {args.checkpoint!r} with other files")
        else:
            write_text(folder / SETTINGS, json.dumps(mine) + "\n")
    except OSError as error:
        raise CommandError(f"--checkpoint {args.checkpoint!r}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CommandError(f"--checkpoint: {str(folder / SETTINGS)!r} is damaged") from None
    return folder


def make_index(args: argparse.Namespace, x: Any, folder: Path | None, progress: terminal.Progress) -> NeighborIndex:
    if folder is not None and (folder / INDEX).exists():
        return NeighborIndex.load(folder / INDEX, x)
    index = NeighborIndex.build(
        x,
        args.kind,
        recall_target=args.recall,
        recall_k=args.neighbors,
        seed=args.seed,
        progress=progress.step("index"),
    )
    if folder is not None:
        index.save(folder / INDEX, vectors=False)
    return index


def weigh(args: argparse.Namespace, x: Tensor, found: TopK) -> tuple[SimilarityGraph, str]:
    """The graph, and what its sigma is."""
    sigma: Any = args.sigma
    said = f"{sigma}"
    if sigma == "root":
        sigma = sigma_root(x)
        said = f"root, {float(sigma):.4g}"
    elif sigma == "self-tuning":
        at = min(6, args.neighbors - 1)
        sigma = (2 - 2 * found.values[:, at]).clamp(min=0).sqrt().clamp(min=SMALLEST)
        said = f"self-tuning, the distance to neighbour {at + 1}: median {float(sigma.median()):.4g}"
    return similarity_graph(x, sigma=sigma, symmetrize=args.symmetrize, neighbors=found), said


def farewell(folder: Path | None, words: list[str]) -> str:
    if folder is None:
        return "interrupted; nothing is kept (--checkpoint FOLDER would keep what is finished)"
    if not (folder / INDEX).exists():
        return "interrupted while the index was built; nothing is kept"
    kept = [word for word in words if word != "--resume"]
    return f"interrupted; to resume: {shlex.join(['gloss-kernels', *kept, '--resume'])}"

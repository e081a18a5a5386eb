"""`gloss-kernels graph` from its parsed options to the file of the graph."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gloss_kernels.cli import CommandError
from gloss_kernels.commands import shared
from gloss_kernels.graph import SimilarityGraph, similarity_graph
from gloss_kernels.neighbors import NeighborIndex
from gloss_kernels.sigma import SMALLEST, sigma_root
from gloss_kernels.topk import TopK

SETTINGS, INDEX = "settings.json", "index"  # in --checkpoint, beside the files of NeighborIndex.knn


def run(args: argparse.Namespace, words: list[str]) -> int:
    output = shared.check_output(args.output, overwrite=args.overwrite)
    if args.resume and args.checkpoint is None:
        raise CommandError("--resume: wants --checkpoint FOLDER")
    device = shared.choose_device(args.device)
    x = shared.load_array("EMBEDDINGS", args.embeddings)
    if x.ndim == 2 and args.neighbors >= len(x):
        raise CommandError(f"-k: got {args.neighbors}, but a row of {len(x)} has only {max(len(x) - 1, 0)} others")
    folder = open_checkpoint(args)
    times, progress = shared.Times(), shared.Progress(quiet=args.quiet)
    try:
        with shared.user_errors(), shared.plain_warnings():
            with times.part("index"):
                index = make_index(args, on(device, x), folder, progress)
            with times.part("neighbours"):
                found = index.knn(args.neighbors, progress=progress.step("neighbours"), checkpoint=folder)
            progress.clear()
            with times.part("graph"):
                graph, sigma = weigh(args, index._rows.parts[0], found)
    except KeyboardInterrupt:
        progress.clear()
        print(farewell(folder, words), file=sys.stderr)
        return 130
    except OSError as error:
        raise CommandError(f"--checkpoint: {error.filename or args.checkpoint!r}: {error.strerror or error}") from None
    finally:
        progress.clear()
    with times.part("write"):
        shared.write(output, graph.save)
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
        "peak memory": shared.peak_memory(),
        "written to": output,
    }
    if folder is not None:
        facts["checkpoint"] = f"{folder} is no longer needed, but spares the search for another --sigma"
    shared.show(facts)
    return 0


def on(device: torch.device, x: Any) -> Any:
    """The mapped array itself on the CPU; another device holds all of it."""
    return x if device.type == "cpu" else torch.from_numpy(np.array(x)).to(device)


def open_checkpoint(args: argparse.Namespace) -> Path | None:
    """Its folder; an earlier search there is only gone on with if it was asked for, with the same settings."""
    if args.checkpoint is None:
        return None
    folder = Path(args.checkpoint)
    mine = {"kind": args.kind, "recall": args.recall, "seed": args.seed, "neighbors": args.neighbors}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / SETTINGS).exists():
            if not args.resume:
                raise CommandError(
                    f"--checkpoint: {args.checkpoint!r} holds an earlier search; --resume goes on with it"
                )
            settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
            for name, value in mine.items():
                if settings[name] != value:
                    raise CommandError(f"--{name}: got {value}, but the search in --checkpoint has {settings[name]}")
        elif any(folder.iterdir()):
            raise CommandError(f"--checkpoint: {args.checkpoint!r} holds other files, wants a new or empty folder")
        else:
            beside = folder / (SETTINGS + ".tmp")
            beside.write_text(json.dumps(mine) + "\n", encoding="utf-8")
            os.replace(beside, folder / SETTINGS)
    except OSError as error:
        raise CommandError(f"--checkpoint: {args.checkpoint!r}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError):
        raise CommandError(f"--checkpoint: {str(folder / SETTINGS)!r} is damaged") from None
    return folder


def make_index(args: argparse.Namespace, x: Any, folder: Path | None, progress: shared.Progress) -> NeighborIndex:
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


def components(graph: SimilarityGraph, step: int = 1 << 18) -> tuple[int, int]:
    """How many parts the graph has, and the documents of the largest one.

    Each document takes the smallest name around it, trees of names are flattened as they grow (FastSV, Zhang et al.
    2020): a few sweeps. Edges are read for ``step`` documents at a time.
    """
    crow, col = graph.crow_indices, graph.col_indices
    name = torch.arange(graph.num_nodes, device=crow.device)
    while True:
        before, grand = name.clone(), name[name]
        least = grand.clone()
        for begin in range(0, graph.num_nodes, step):
            ends = crow[begin : begin + step + 1]
            row = torch.arange(len(ends) - 1, device=crow.device).repeat_interleave(ends.diff()) + begin
            least.scatter_reduce_(0, row, grand[col[int(ends[0]) : int(ends[-1])]], "amin")
        name.scatter_reduce_(0, before, least, "amin")  # the root takes the new name too
        name = torch.minimum(torch.minimum(name, least), grand)
        if torch.equal(name, before):
            sizes = name.bincount()
            return int((sizes > 0).sum()), int(sizes.max())


def farewell(folder: Path | None, words: list[str]) -> str:
    if folder is None:
        return "interrupted; nothing is kept (--checkpoint FOLDER would keep what is finished)"
    if not (folder / INDEX).exists():
        return "interrupted while the index was built; nothing is kept"
    kept = [word for word in words if word != "--resume"]
    return f"interrupted; to go on: {shlex.join(['gloss-kernels', *kept, '--resume'])}"

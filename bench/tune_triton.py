"""The Triton search's tile shapes, found on a GPU: the fastest of some, by width of rows, corpus size and k.

    python bench/tune_triton.py [--only half large few] [--seconds 600] [--write]

Starts from the table's shape of each class and changes one field at a time, keeping what is faster by more than 2 %
(median of searches in turns with the best so far). A shape whose neighbours differ from the first one's is left out.
Prints the lines of gloss_kernels/_backends/triton/topk/tiles.py, puts them there with --write, and writes every time
measured to
bench/results/triton_tiles_GPU.json, class by class. A user's search never tunes: it takes the table's shape.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import machine
import torch
from compile_limits import SHARED
from gpubench.timing import documents, measure
from torch import Tensor

import gloss_kernels

try:
    from gloss_kernels._backends.triton.topk import search, tiles
    from gloss_kernels._backends.triton.topk.tiles import Tile
except ImportError:
    status = gloss_kernels.available_backends()["triton"]
    raise SystemExit(f"error: tuning wants a GPU and Triton: {status.detail}") from None

TABLE_FILE = Path(tiles.__file__)
# The problem that stands for a class: d, n, k.
WIDTHS = {"float": 48, "half": 384, "wide": 768}
SIZES = {"small": 8_192, "large": 131_072}
KS = {"few": 15, "many": 64}
VALUES = {
    "rows": (64, 128, 256), "block": (64, 128, 256), "step": (32, 64, 128), "warps": (4, 8), "stages": (2, 3, 4, 5),
    "slice": (16, 32, 64), "tma": (False, True),
}  # fmt: skip
GAIN = 0.98  # of the time, that a change must come under


def neighbors_of(tile: Tile) -> Iterator[Tile]:
    """The shapes that differ in one field."""
    for field, values in VALUES.items():
        yield from (tile._replace(**{field: value}) for value in values if value != getattr(tile, field))


def fits(tile: Tile, width: str, arch: int) -> bool:
    """Whether a shape makes sense, and its panels fit in shared memory."""
    panel = tile.stages * (tile.rows + tile.block) * tile.step * (4 if width == "float" else 2)
    accumulators = tile.rows * tile.block / (32 * tile.warps)  # registers of a thread
    return (
        tile.block % tile.rows == 0
        and 16 <= tile.slice <= tile.block <= 16 * tile.slice
        and panel <= SHARED.get(arch, 99 << 10)
        and accumulators <= 128
        and not (width == "float" and (tile.step > 64 or tile.tma))
        and not (tile.tma and arch < 90)
    )


class Problem:
    """One class: times shapes on it."""

    def __init__(self, x: Tensor, k: int) -> None:
        self.x, self.k = x, k
        self.indices: Tensor | None = None

    def run(self, tile: Tile) -> Any:
        before, search.sweep_tile = search.sweep_tile, lambda *_: tile
        try:
            return gloss_kernels.cosine_topk(self.x, k=self.k, backend="triton")
        finally:
            search.sweep_tile = before

    def works(self, tile: Tile) -> str:
        """Compiles and runs it; what is wrong with it, or ""."""
        try:
            indices = self.run(tile).indices
        except Exception as error:  # whatever a compiler says of a shape: the search for others goes on
            return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:120]}"
        if self.indices is None:
            self.indices = indices
        return "" if torch.equal(indices, self.indices) else "other neighbours than the first shape"

    def seconds(self, *shapes: Tile, rounds: int = 5) -> list[float]:
        """Medians, the shapes in turns."""
        found: list[list[float]] = [[] for _ in shapes]
        for _ in range(rounds):
            for times, tile in zip(found, shapes, strict=True):
                times.append(measure(lambda: self.run(tile), self.x.device, rounds=1).seconds[0])  # noqa: B023
        return [sorted(times)[rounds // 2] for times in found]


def tune(problem: Problem, start: Tile, width: str, arch: int, until: float) -> tuple[Tile, list[Any]]:
    """The best shape, and what was measured: dicts of shape, seconds, those of the best so far in the same turns."""
    best, log, seen = start, [], {start}
    wrong = problem.works(start)
    if wrong:
        raise RuntimeError(f"the table's shape {start}: {wrong}")
    better = True
    while better and time.monotonic() < until:
        better = False
        for tile in neighbors_of(best):
            if tile in seen or not fits(tile, width, arch) or time.monotonic() > until:
                continue
            seen.add(tile)
            row: dict[str, Any] = {"tile": tile._asdict(), "problem": problem.works(tile)}
            log.append(row)
            if not row["problem"]:
                row["best_seconds"], row["seconds"] = problem.seconds(best, tile)
                if row["seconds"] < GAIN * row["best_seconds"]:
                    best, better = tile, True
                    print(f"  {row['seconds'] / row['best_seconds']:.3f} of the time: {tile}", flush=True)
                    break  # on to the neighbours of the new best
    return best, log


def table_lines(found: dict[tuple[int, str, str, str], Tile]) -> list[str]:
    """Of the table in tiles.py. A shape's numbers stand bare, tma only where it is on."""
    lines = []
    for (capability, *names), tile in found.items():
        numbers = ", ".join(map(str, tile[:6])) + (", True" if tile.tma else "")
        lines.append(f"    ({capability}, " + ", ".join(f'"{name}"' for name in names) + f"): Tile({numbers}),")
    return lines


def written(source: str, found: dict[tuple[int, str, str, str], Tile]) -> str:
    """The text of tiles.py with these entries in its table, in place of those with the same key."""
    table = tiles.TABLE | found
    body = "\n".join(table_lines(dict(sorted(table.items()))))
    text, count = re.subn(r"(TABLE: [^\n]*= \{\n).*?(\n\}\n)", lambda m: m[1] + body + m[2], source, flags=re.DOTALL)
    assert count == 1, "no TABLE in tiles.py"
    return text


def chosen(axis: dict[str, int], names: list[str]) -> list[str]:
    """The names of an axis that were asked for; all where none was."""
    return [name for name in axis if name in names] or list(axis)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", default=[], help="names of classes, as float small many")
    parser.add_argument("--seconds", type=float, default=600, help="for all classes together")
    parser.add_argument("--write", action="store_true", help="put the shapes into tiles.py")
    args = parser.parse_args()
    names = {*WIDTHS, *SIZES, *KS}
    if unknown := set(args.only) - names:
        parser.error(f"--only: {', '.join(sorted(unknown))}, wants some of {', '.join(sorted(names))}")
    status = gloss_kernels.available_backends()["triton"]
    if not torch.cuda.is_available() or not status.available:
        print(f"error: tuning wants a GPU and Triton: {status.detail}", file=sys.stderr)
        return 2
    device = torch.device("cuda")
    major, minor = torch.cuda.get_device_capability()
    capability = 10 * major + minor
    name = re.sub(r"[^a-z0-9]+", "_", torch.cuda.get_device_name(device).lower()).strip("_")
    path = machine.HERE / "results" / f"triton_tiles_{name}.json"
    about = {"machine": machine.describe(), "gpu": name}
    cells = list(itertools.product(*(chosen(axis, args.only) for axis in (WIDTHS, SIZES, KS))))
    found: dict[tuple[int, str, str, str], Tile] = {}
    report: list[dict[str, Any]] = []
    start = time.monotonic()
    for nth, (width, size, many) in enumerate(cells):
        d, n, k = WIDTHS[width], SIZES[size], KS[many]
        print(f"{width} {size} {many}: {n:,} x {d}, k = {k}", flush=True)
        until = start + args.seconds * (nth + 1) / len(cells)
        row: dict[str, Any] = {"class": (width, size, many), "d": d, "n": n, "k": k}
        report.append(row)
        try:
            first = tiles.tile_for(capability, d, n, k)
            case = Problem(documents(n, d, device), k)
            tile, row["tried"] = tune(case, first, width, capability, until)
            row["first_seconds"], row["best_seconds"] = case.seconds(first, tile)
            row |= {"first": first._asdict(), "best": tile._asdict()}
            found[capability, width, size, many] = tile
        except RuntimeError as error:  # a shape that breaks the GPU's context breaks what follows: it is written down
            row["error"] = f"{type(error).__name__}: {error}"
            print(f"  {row['error']}", flush=True)
        path.write_text(json.dumps(about | {"classes": report}, indent=1) + "\n")
    print("\n".join(table_lines(found)))
    if args.write:
        TABLE_FILE.write_text(written(TABLE_FILE.read_text(), found))
        print(f"written to {TABLE_FILE}")
    return 0 if len(found) == len(cells) else 1


if __name__ == "__main__":
    sys.exit(main())

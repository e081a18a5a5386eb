"""Tile shapes of the sweep, by GPU and problem: what `python bench/tune_triton.py` found, and guesses before that."""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import torch

from .._launch import INTERPRETED

SHORT = 64  # columns: rows as short stay in float32, and are multiplied as three products of TF32 parts


class Tile(NamedTuple):
    """rows x block products a program, step columns of d at a time; block: positions of a block of rows as well.

    slice: columns of a part of a tile: the epilogue works only on parts that hold a product which passes, and looks for
    it in as many registers; at least 16 and block / 16. tma: panels come by tensor descriptors, not by pointers (those of
    the TMA unit of capability 9.0 and newer).
    """

    rows: int
    block: int
    step: int
    warps: int
    stages: int
    slice: int
    tma: bool = False


# (compute capability, width of rows, size of the corpus, k) -> Tile, by the classes of tile_class(); "any" and capability
# 0 stand for the others. Not measured yet: chosen by registers, spills and shared memory (bench/compile_report.py).
TABLE: dict[tuple[int, str, str, str], Tile] = {
    (0, "float", "any", "any"): Tile(64, 64, 32, 4, 2, 16),
    (0, "half", "any", "any"): Tile(128, 128, 64, 8, 3, 16),
    (90, "half", "any", "any"): Tile(128, 256, 64, 8, 4, 16),
    (100, "half", "any", "any"): Tile(128, 256, 64, 8, 4, 16),
}


def tile_class(d: int, n: int, k: int) -> tuple[str, str, str]:
    """Of rows of d columns ("float" ones stay in 32 bit, the others are packed in 16), a corpus of n, and k neighbours."""
    width = "float" if d <= SHORT else "half" if d <= 512 else "wide"
    return width, "small" if n < 1 << 14 else "large", "few" if k <= 32 else "many"


def tile_for(capability: int, d: int, n: int, k: int) -> Tile:
    """For GPUs of a compute capability (90 for 9.0), a corpus of n rows of d columns and k neighbours.

    A capability that the table lacks takes those of its generation from 9.0 on; those of 8.0 do not fit 8.6 and 8.9.
    """
    width, size, many = tile_class(d, n, k)
    widths = ("wide", "half") if width == "wide" else (width,)
    generation = capability // 10 * 10 if capability >= 90 else 0
    keys = product((capability, generation, 0), widths, (size, "any"), (many, "any"))
    return next(TABLE[key] for key in keys if key in TABLE)


def sweep_tile(device: torch.device, d: int, n: int, k: int) -> Tile:
    if INTERPRETED:
        return Tile(256, 256, 64, 4, 1, 256)
    major, minor = torch.cuda.get_device_capability(device)
    return tile_for(10 * major + minor, d, n, k)

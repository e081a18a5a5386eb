"""Tile shapes of the sweep, by GPU and problem: what `python bench/tune_triton.py` found, and guesses before that."""

from __future__ import annotations

from typing import NamedTuple

import torch

from .._launch import INTERPRETED

SHORT = 64  # columns: rows as short stay in float32, and are multiplied as three products of TF32 parts


class Tile(NamedTuple):
    """rows x block products a program, step columns of d at a time; block: positions of a block of rows as well.

    slice: columns of a tile that its epilogue works on at once, where a product passes: fewer take fewer registers.
    """

    rows: int
    block: int
    step: int
    warps: int
    stages: int
    slice: int


# (major compute capability, d class, n class) -> Tile. Classes: tile_class(). Capability 0 stands for all others.
# Not measured yet: chosen by counting registers and shared memory (bench/compile_report.py).
TABLE: dict[tuple[int, str, str], Tile] = {
    (0, "half", "any"): Tile(128, 128, 64, 8, 3, 16),
    (0, "float", "any"): Tile(64, 64, 32, 4, 2, 16),
    (9, "half", "any"): Tile(128, 256, 64, 8, 4, 16),
    (10, "half", "any"): Tile(128, 256, 64, 8, 4, 16),
}


def tile_class(d: int, n: int) -> tuple[str, str]:
    """half: rows packed in 16 bit; float: short rows, packed in 32."""
    return "half" if d > SHORT else "float", "small" if n < 1 << 14 else "large"


def tile_for(major: int, d: int, n: int) -> Tile:
    """Of GPUs of compute capability ``major``.*, for n rows of d columns."""
    kind, size = tile_class(d, n)
    for key in ((major, kind, size), (major, kind, "any"), (0, kind, size)):
        if key in TABLE:
            return TABLE[key]
    return TABLE[0, kind, "any"]


def sweep_tile(device: torch.device, d: int, n: int) -> Tile:
    if INTERPRETED:
        return Tile(256, 256, 64, 4, 1, 128)
    return tile_for(torch.cuda.get_device_capability(device)[0], d, n)

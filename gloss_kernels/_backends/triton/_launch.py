"""What every Triton launch needs: where kernels run, and which sizes are worth a block."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import triton
from torch import Tensor

from ... import _settings

# TRITON_INTERPRET=1, set before the first import: kernels run on CPU tensors, a program at a time in numpy.
INTERPRETED = _settings.TRITON_INTERPRET

# Products and sums fused, said aloud: Triton 3.9 warns that its default will change. Every version takes the option. (So
# TRITON_DEFAULT_FP_FUSION changes nothing here.)
OPTIONS = {"enable_fp_fusion": True}

MOST_PROGRAMS = (1 << 31) - 1  # of a launch along x
MOST_ACROSS = (1 << 16) - 1  # along y and along z: extents that grow with rows go along x


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def power_of_two(least: int) -> int:
    return 1 << max(least - 1, 0).bit_length()


def launch(kernel: Any, grid: int | tuple[int, ...], like: Tensor, *args: Any, **meta: Any) -> None:
    """kernel[grid] on the device of ``like``. An empty grid launches nothing; one that no GPU takes raises."""
    grid = grid if isinstance(grid, tuple) else (grid,)
    if 0 in grid:
        return
    if grid[0] > MOST_PROGRAMS or max(grid[1:], default=0) > MOST_ACROSS:
        raise ValueError(f"{kernel.__name__}: the grid must be at most {MOST_PROGRAMS} x {MOST_ACROSS}, got {grid}")
    with torch.cuda.device(like.device) if like.is_cuda else contextlib.nullcontext():
        kernel[grid](*args, **OPTIONS, **meta)


def jit(**options: Any) -> Any:
    """triton.jit; ``run_time`` names integers that change from call to call, so that no value of them recompiles."""
    return triton.jit(do_not_specialize=list(options.pop("run_time", ())), **options)


def rows_a_program(width: int) -> int:
    """Rows that share a program. The interpreter pays for programs, a GPU for what a program holds at once."""
    return max(1, min(64, (1 << 18) // max(width, 1))) if INTERPRETED else 1

"""cosine_topk in CUDA and its gradient, on the emulator, against float64 loops.

topk_check.cpp: several orders of blocks, warps and lanes give the same bits, nothing is written past the end of a
buffer. sweep_check.cpp: each product that the sweep stores or lists is right, and none is left out.
"""

from __future__ import annotations

import pytest

GROUPS = [
    "arguments", "small", "self", "waves", "many", "pairs", "ties", "near_ties", "extremes", "not_finite", "hints",
    "backward",
]  # fmt: skip
SWEEP_GROUPS = ["self", "split", "padding", "pairs"]


@pytest.mark.parametrize("group", GROUPS)
def test_group(run_check, group: str) -> None:
    done = run_check("topk_check", group)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("group", SWEEP_GROUPS)
def test_products_of_the_sweep(run_check, group: str) -> None:
    done = run_check("sweep_check", group)
    assert done.returncode == 0, done.stdout + done.stderr

"""cosine_topk in CUDA and its gradient, on the emulator, against float64 loops (topk_check.cpp).

Several orders of blocks, warps and lanes give the same bits, nothing is written past the end of a buffer.
"""

from __future__ import annotations

import pytest

GROUPS = ["arguments", "small", "self", "waves", "many", "pairs", "ties", "extremes", "not_finite", "hints", "backward"]


@pytest.mark.parametrize("group", GROUPS)
def test_group(run_check, group: str) -> None:
    done = run_check("topk_check", group)
    assert done.returncode == 0, done.stdout + done.stderr

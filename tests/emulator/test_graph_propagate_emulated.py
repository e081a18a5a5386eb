"""Stages graph and propagate of the CUDA core on the emulator, against the CPU core (propagate_check.cpp)."""

from __future__ import annotations

import pytest

CASES = [
    "graph_structure",
    "graph_bad_indices",
    "graph_weights",
    "propagate_classes",
    "propagate_sizes",
    "propagate_variants",
    "propagate_components",
    "propagate_hubs",
    "propagate_weak",
    "propagate_few_iterations",
    "propagate_captured",
]


@pytest.mark.parametrize("case", CASES)
def test_case(run_check, case: str) -> None:
    done = run_check("propagate_check", case)
    assert done.returncode == 0, done.stdout + done.stderr

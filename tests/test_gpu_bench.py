"""bench/gpu.py without a GPU: its rows at small sizes on the CPU, its tables, its error."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCH = Path(__file__).resolve().parents[1] / "bench"
sys.path.insert(0, str(BENCH))

import gpu  # noqa: E402
import gpu_rows  # noqa: E402
from conftest import HAS_TRITON  # noqa: E402

CPU, ROOF = torch.device("cpu"), gpu_rows.Machine(1e10, 1e11)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so() -> None:
    done = subprocess.run([sys.executable, str(BENCH / "gpu.py")], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr == "error: torch sees no GPU (torch.cuda.is_available() is False)\n"


def test_rows_and_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_rows, "ROUNDS", 1)  # Triton is interpreted here
    rows = [
        *gpu_rows.topk_rows(ROOF, CPU, 600, 32, torch.float32, k=5),
        *gpu_rows.query_rows(ROOF, CPU, 700, 32, queries=20, k=5),
        *gpu_rows.gradient_rows(ROOF, CPU, 300, 16, k=5),
        *gpu_rows.propagate_rows(ROOF, CPU, 500, 0.5, classes=4),
        *gpu_rows.loss_rows(ROOF, CPU, 64, 16, None),
        *gpu_rows.loss_rows(ROOF, CPU, 64, 16, 8),
    ]
    rows = [row for row in rows if HAS_TRITON or "triton" not in row.method]
    assert all(row.seconds for row in rows if row.method.startswith(("torch", "gloss"))), rows
    assert all(row.error or row.seconds for row in rows)
    assert {row.facts["recall"] for row in rows if row.method.startswith("gloss") and "recall" in row.facts} == {1.0}
    *ours, plain = (row.facts["loss"] for row in rows if row.job.endswith("dense"))
    assert ours == pytest.approx([plain] * len(ours), abs=2e-4)
    report = {"machine": gpu.machine.describe(), "roofs": vars(ROOF)}
    gpu.write("cpu", report, rows, tmp_path)
    assert len(json.loads((tmp_path / "cpu.json").read_text())["rows"]) == len(rows)
    text = (tmp_path / "cpu.md").read_text()
    assert "| topk 600 x 32 float32 | **gloss** |" in text and "## Targets" in text


def test_peer_agrees() -> None:
    """The conjugate gradients that stand beside ours solve the same system."""
    import gloss_kernels as gk

    graph = gk.similarity_graph(gpu_rows.documents(300, 16, CPU), 6, sigma=0.4)
    labels = torch.where(torch.arange(300) % 3 == 0, torch.arange(300) % 4, -1)
    ours = gk.propagate_labels(graph, labels, 4, tol=1e-6)
    theirs = gpu_rows.torch_cg(graph, labels, 4, 1e-6)()
    reached = ours.reachable
    torch.testing.assert_close(ours.probabilities[reached], theirs[reached], rtol=0, atol=1e-4)


def test_targets_say_yes_and_no() -> None:
    rows = [gpu_rows.Row("loss 128 x 768, dense", "gloss", 0.0004), gpu_rows.Row("128 queries, x", "gloss", 2e-3, 1e-3)]
    text = gpu_rows.targets(rows)
    assert "| 0.4 ms | yes |" in text and "| 2.00 | no |" in text

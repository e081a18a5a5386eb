"""The long run of the properties: ``nox -s properties -- bench/results/properties.json --inputs 100000``.

Inputs are shared out by FUNCTIONS, drawn in lots of 500 with a seed each, and the file is written after every lot: a
run that was stopped goes on where it was. A failure is shrunk and printed, and the run goes on with the next lot; the
lot and its seed stand in the file. A failure becomes a named case in tests/test_properties.py, and the lots in question
are run again with ``--again``.
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from properties import modules, stages

LOT = 500
# The share of the inputs that each property gets, in hundredths.
FUNCTIONS: dict[str, tuple[Callable[..., None], int]] = {
    "cosine_topk": (stages.check_cosine_topk, 24),
    "similarity_graph": (stages.check_similarity_graph, 10),
    "SimilarityGraph.from_scipy": (stages.check_from_scipy, 10),
    "propagate_labels": (stages.check_propagate_labels, 16),
    "g_loss": (modules.check_g_loss, 18),
    "GLoss": (modules.check_gloss_module, 4),
    "sigma": (modules.check_sigma_heuristics, 4),
    "CorpusGLoss": (modules.check_corpus_gloss, 7),
    "NeighborIndex": (modules.check_neighbor_index, 7),
}


def run(function: Callable[..., None], count: int, number: int, *, shrink: bool = True) -> None:
    """``count`` inputs of a seed; raises the smallest failure that hypothesis finds."""
    phases = [Phase.generate, Phase.shrink] if shrink else [Phase.generate]

    @seed(number)
    @settings(max_examples=count, deadline=None, database=None, phases=phases, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def each(data: st.DataObject) -> None:
        function(data.draw)

    each()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, help="the JSON file, read first where it exists")
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--again", action="store_true", help="also the lots that failed")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    report = json.loads(asked.report.read_text()) if asked.report.exists() else {}
    lots = [
        (name, number)
        for number in range(asked.inputs // LOT)
        for name, (_, share) in FUNCTIONS.items()
        if number < asked.inputs * share // (100 * LOT)
    ]
    for name, number in lots:
        entry = report.setdefault(name, {"lot": LOT, "seeds": 0, "inputs": 0, "failed": {}})
        failed_before = asked.again and str(number) in entry["failed"]
        if number < entry["seeds"] and not failed_before:
            continue
        entry["failed"].pop(str(number), None)
        try:
            run(FUNCTIONS[name][0], LOT, number)
        except Exception as error:
            traceback.print_exc(limit=-4)
            entry["failed"][str(number)] = f"{type(error).__name__}: {error}"[:300]
        if not failed_before:
            entry["seeds"] += 1
            entry["inputs"] += LOT
        asked.report.write_text(json.dumps(report, indent=1) + "\n")
    failed = sum(len(entry["failed"]) for entry in report.values())
    print(f"{sum(entry['inputs'] for entry in report.values()):,} inputs, {failed} lots with a failure")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()

"""A pytest plugin of grid.py: writes each test's outcome to a file at once, and gives up a process whose device is dead
(pytest-xdist starts another in its place; else every later test of that process would fail too)."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

IN_PARALLEL = "PYTEST_XDIST_WORKER" in os.environ
rows: Path | None = None


def pytest_addoption(parser: Any) -> None:
    parser.addoption("--rows", help="file for a JSON line a test")


def pytest_configure(config: Any) -> None:
    global rows
    if not IN_PARALLEL:
        rows = Path(config.getoption("--rows"))


def pytest_runtest_logreport(report: Any) -> None:
    """In the process that starts the others, for all of them."""
    if rows is None or not (report.when == "call" or report.outcome != "passed"):
        return
    outcome = "error" if report.failed and report.when in ("setup", "teardown") else report.outcome
    with rows.open("a") as file:
        file.write(json.dumps({"test": report.nodeid.partition("/")[2] or report.nodeid, "outcome": outcome}) + "\n")
    if report.failed:  # pytest itself prints it last: too late for a run that is stopped
        print(f"\n{report.nodeid}\n{report.longreprtext}", flush=True)


def pytest_runtest_logfinish() -> None:
    torch = sys.modules.get("torch")
    if not IN_PARALLEL or torch is None or not torch.cuda.is_initialized():
        return
    try:
        torch.cuda.synchronize()
    except Exception as error:
        print(f"the device is dead: {error}", file=sys.stderr, flush=True)
        os._exit(70)

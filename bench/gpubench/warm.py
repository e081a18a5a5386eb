"""Fills Triton's cache: the items that launch Triton kernels, each once in a process of its own, several at a time.

A kernel compiles in seconds on one core, so that one after another they would take a tenth of the run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from gpubench.rows import Context, Row

WORKER = Path(__file__).with_name("worker.py")
MOST_PROCESSES = 8


def run(context: Context, items: list[dict[str, Any]]) -> Iterator[Row]:
    begin = time.monotonic()
    waiting, running, codes = list(items), [], []
    while waiting or running:
        while waiting and len(running) < min(MOST_PROCESSES, os.cpu_count() or 1):
            running.append(start(waiting.pop(0), context))
        time.sleep(0.1)
        codes += [process.returncode for process in running if process.poll() is not None]
        running = [process for process in running if process.returncode is None]
    facts = {"items": len(items), "ended badly": sum(code != 0 for code in codes)}  # their own rows will say why
    yield Row("warm", "triton", first=time.monotonic() - begin, facts=facts)


def start(item: dict[str, Any], context: Context) -> subprocess.Popen[str]:
    """A worker whose answers go to the log."""
    process = subprocess.Popen([sys.executable, "-u", str(WORKER), "1"], stdin=subprocess.PIPE, text=True)
    assert process.stdin
    process.stdin.write(json.dumps({"item": item, "context": asdict(replace(context, rounds=1))}) + "\n")
    process.stdin.close()
    return process

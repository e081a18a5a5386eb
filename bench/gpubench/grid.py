"""The project's tests on the device, in parallel processes with a limit on each test.

Rows of the counts so far are sent every few seconds under one name, so that a run that is stopped keeps its last.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpubench.rows import ROOT, Context, Row

EACH_TEST = 40  # seconds; a compilation by Triton takes up to 30
MOST_PROCESSES = 12  # each has a context of half a gigabyte on the GPU


def command(files: list[str], keyword: str, results: Path, processes: int, each: int) -> list[str]:
    out = [sys.executable, "-m", "pytest", "-q", "--no-header", "--tb=short", "-p", "no:cacheprovider"]
    out += ["-p", "gpubench.pytest_rows", "--rows", str(results), "-c", str(ROOT / "pyproject.toml")]
    out += ["--rootdir", str(ROOT), *(str(ROOT / "tests" / file) for file in files)]
    if keyword:
        out += ["-k", keyword]
    if importlib.util.find_spec("xdist") and processes > 1:
        out += ["-n", str(processes)]
    if importlib.util.find_spec("pytest_timeout"):
        # A thread that ends the process: a signal would not reach Python while it waits for the device.
        out += ["--timeout", str(each), "--timeout-method", "thread"]
    return out


def run(
    context: Context,
    files: list[str],
    backend: str,
    keyword: str,
    processes: int = MOST_PROCESSES,
    each: int = EACH_TEST,
) -> Iterator[Row]:
    begin = time.monotonic()
    processes = min(processes, os.cpu_count() or 1)
    paths = [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"GLOSS_TEST_DEVICE": context.device, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT"):  # of a pytest that runs us
        environment.pop(name, None)
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results"
        results.touch()
        tests = subprocess.Popen(
            command(files, keyword, results, processes, each), env=environment, cwd=folder, stderr=subprocess.STDOUT
        )
        said, known, code = begin, "", None
        while code is None:
            code, text = wait(tests, 0.3), results.read_text()
            if code is not None or (text != known and time.monotonic() - said > 5):
                said, known = time.monotonic(), text
                yield summary("tests", backend, text, code, said - begin)


def wait(process: subprocess.Popen[Any], seconds: float) -> int | None:
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def summary(job: str, backend: str, text: str, code: int | None, seconds: float) -> Row:
    results = [json.loads(line) for line in text.splitlines() if line.endswith("}")]
    counts = Counter(result["outcome"] for result in results)
    failed = [result["test"] for result in results if result["outcome"] in ("failed", "error")]
    facts: dict[str, Any] = {name: counts[name] for name in ("passed", "skipped", "failed", "error") if counts[name]}
    if failed:
        facts["which"] = failed
    if code is None:
        facts["still"] = "running"
    row = Row(job, backend, first=seconds, facts=facts)
    if failed:
        row.error = f"{len(failed)} failed, the first {failed[0]}"
    elif code not in (None, 0, 5):  # 5: no test was selected
        row.error = f"pytest ended with exit code {code}"
    elif code == 5 or (code == 0 and not counts["passed"]):
        row.absent = "no test ran"
    return row

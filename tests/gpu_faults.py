"""bench/gpu.py with faults put into its plan, for test_gpu_bench.py: python gpu_faults.py all|few OPTIONS OF gpu.py.

"all" is the whole plan with the faults in its middle, "few" the faults alone (no torch, so it is quick).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))

from gpubench.plan import Item, Section, sections
from gpubench.rows import Context, Row


def fine(context: Context, job: str = "fine", count: int = 1) -> Iterator[Row]:
    for nth in range(count):
        yield Row(f"{job} {nth}", "fault", seconds=1.0, facts={"process": os.getpid()})


def hang(context: Context) -> Iterator[Row]:
    """After a row, with a program of its own that outlives a plain kill."""
    program = subprocess.Popen(["sleep", "1000"])
    print("about to sleep", flush=True)
    yield Row("before the hang", "fault", facts={"process": os.getpid(), "program": program.pid})
    time.sleep(1000)


def abort(context: Context) -> Iterator[Row]:
    yield Row("before the abort", "fault")
    os.abort()


def bad_address(context: Context) -> Iterator[Row]:
    os.kill(os.getpid(), signal.SIGSEGV)
    yield Row("after a bad address", "fault")


def raises(context: Context) -> Iterator[Row]:
    yield Row("before the error", "fault")
    raise ValueError("something: got this, wants that")


def sticks(context: Context) -> Iterator[Row]:
    """As torch is after a kernel touched a bad address."""

    def synchronize() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    sys.modules["torch"] = types.SimpleNamespace(
        cuda=types.SimpleNamespace(is_initialized=lambda: True, synchronize=synchronize)
    )  # type: ignore[assignment]
    yield Row("the error that sticks", "fault", error="RuntimeError: CUDA error", facts={"process": os.getpid()})


def item(name: str, expected: float = 0.1, limit: float = 30, **options: object) -> Item:
    return Item(name, f"gpu_faults:{name}", dict(options), expected, limit)


FAULTS = [
    Section("hangs", [item("hang", limit=2), item("fine", job="after the hang")]),
    Section("crashes", [item("abort"), item("bad_address"), item("fine", job="after the crash")]),
    Section("raises", [item("raises"), item("fine", job="after the error")]),
    Section("sticks", [item("sticks"), item("fine", job="after what stuck")]),
    Section("too long", [item("fine", expected=1e6, job="too long")]),
    Section("hangs often", [item("hang", limit=0.5)] * 3),
]
LAST = Section("last", [item("fine", job="last", count=20)])


def all_of_it(rehearsal: bool) -> list[Section]:
    plan = sections(rehearsal)
    return [*plan[:2], *FAULTS, *plan[2:], LAST]


def few(rehearsal: bool) -> list[Section]:
    return [Section("machine", [item("fine", job="first")]), *FAULTS, LAST]


if __name__ == "__main__":
    import gpu

    sys.exit(gpu.main(sys.argv[2:], {"all": all_of_it, "few": few}[sys.argv[1]]))

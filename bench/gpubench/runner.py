"""Runs the plan: one worker process a section, a time limit an item, and a budget that decides what still fits.

The parent never imports torch, so nothing that happens to a device can happen to it. A worker runs in a process group
of its own and is killed with all that it started. What kills a worker costs one item: the next one gets a new worker.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpubench.plan import Item, Section
from gpubench.report import LEFT_OUT, OUT_OF_BUDGET, Outcome, Report
from gpubench.rows import ROOT, Context

WORKER = Path(__file__).with_name("worker.py")
MOST_HANGS = 2  # in a section: its other items would most likely hang as long
END = 6000  # characters of a failed item's output that the report keeps
SAVED = 0.5  # seconds of the budget kept for the last report


class Died(Exception):
    """The worker ended in the middle of an item."""


class Runner:
    def __init__(self, report: Report, out: Path, device: str, budget: float, rounds: int = 0) -> None:
        self.report, self.out, self.device, self.budget, self.rounds = report, out, device, budget, rounds
        self.start = time.monotonic()

    def elapsed(self) -> float:
        return time.monotonic() - self.start

    def left(self) -> float:
        return self.budget - SAVED - self.elapsed()

    def run(self, sections: list[Section]) -> None:
        for section in sections:
            self.section(section)

    def section(self, section: Section) -> None:
        worker: Worker | None = None
        hangs = 0
        try:
            for item in section.items:
                outcome = Outcome(section.name, item.name, expected=item.expected)
                if hangs == MOST_HANGS:
                    outcome.state = f"{LEFT_OUT}{hangs} items of its section hung"
                elif item.expected > self.left():
                    outcome.state = f"{LEFT_OUT}takes {item.expected:.0f} s, {max(self.left(), 0):.0f} s are left"
                else:
                    if worker is None or not worker.running():
                        worker = Worker(self.out / section.log, section.name, self.environment())
                    self.item(worker, item, outcome)
                    hangs += outcome.hung
                self.finish(outcome)
        finally:
            if worker:
                worker.kill()

    def item(self, worker: Worker, item: Item, outcome: Outcome) -> None:
        limit = min(item.limit, self.left())
        context = Context(self.device, limit, str(self.out), self.rounds)
        begin, offset = time.monotonic(), worker.log_size()

        def keep(row: dict[str, Any]) -> None:
            row |= {"section": outcome.section, "at": round(self.elapsed(), 1)}
            self.report.add(row)
            self.say(self.report.line(row))

        try:
            outcome.state = worker.ask({"item": asdict(item), "context": asdict(context)}, begin + limit, keep)
        except TimeoutError:
            outcome.hung = limit == item.limit
            outcome.state = (
                f"hung: stopped after {limit:.0f} s" if outcome.hung else f"{OUT_OF_BUDGET} after {limit:.0f} s"
            )
            worker.dump_stacks()
            if not worker.kill():
                outcome.state += "; its process does not die"
        except Died as error:
            outcome.state = str(error)
        except KeyboardInterrupt:
            outcome.state, outcome.seconds = "interrupted", round(time.monotonic() - begin, 1)
            outcome.output_end = worker.log_end(offset)
            self.finish(outcome)
            raise
        outcome.seconds = round(time.monotonic() - begin, 1)
        if outcome.state != "done":
            outcome.output_end = worker.log_end(offset)

    def finish(self, outcome: Outcome) -> None:
        if outcome.state != "done":
            self.say(f"{outcome.section}: {outcome.item}: {outcome.state}")
        self.report.close(outcome)

    def say(self, text: str) -> None:
        print(f"[{self.elapsed():5.0f} of {self.budget:.0f} s] {text}", flush=True)

    def environment(self) -> dict[str, str]:
        """Children import the installed package: neither the folder they are started in nor the checkout is on their
        path. Those on PYTHONPATH stay, since packages can be installed there."""
        paths = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and Path(p).resolve() != ROOT]
        environment = os.environ | {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(paths)}
        if self.device == "cpu":
            environment |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}  # of tiny problems threads make slow ones
        return environment


class Worker:
    """A child process that runs items on request; its output goes to the end of a log file."""

    def __init__(self, log: Path, name: str, environment: dict[str, str]) -> None:
        self.log = log
        self.inbox, outbox = os.pipe()
        with log.open("ab") as output:
            output.write(f"\n===== {name}\n".encode())
            output.flush()
            self.process = subprocess.Popen(
                [sys.executable, "-u", str(WORKER), str(outbox)], stdin=subprocess.PIPE, stdout=output, stderr=output,
                env=environment, cwd=log.parent, pass_fds=(outbox,), start_new_session=True,
            )  # fmt: skip
        os.close(outbox)
        self.unread = b""

    def running(self) -> bool:
        return self.process.poll() is None

    def ask(self, request: dict[str, Any], until: float, keep: Callable[[dict[str, Any]], None]) -> str:
        """Sends an item and hands each row of it on; the state it ended in. Raises TimeoutError or Died."""
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):  # died since the last item: read() finds out
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
        while True:
            message = self.read(until)
            if "row" in message:
                keep(message["row"])
                continue
            if message["dead"]:  # the device, for this process: the next item gets a new one
                self.kill()
            return str(message["state"])

    def read(self, until: float) -> dict[str, Any]:
        while b"\n" not in self.unread:
            if not select.select([self.inbox], [], [], max(0.0, until - time.monotonic()))[0]:
                raise TimeoutError
            part = os.read(self.inbox, 1 << 16)
            if not part:
                raise Died(self.cause_of_death())
            self.unread += part
        line, _, self.unread = self.unread.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def cause_of_death(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self.process.wait(10)
            self.kill()  # what it had started
            return f"crashed: {signal.Signals(-code).name}" if code < 0 else f"its process ended with exit code {code}"
        self.kill()
        return "closed its pipe and went on"

    def dump_stacks(self) -> None:
        """Where it hangs, into the log (worker.py registers the handler)."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGUSR1)
            time.sleep(0.3)

    def kill(self) -> bool:
        """The process and all that it started and that stayed in its group; False where it does not die."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        if self.inbox >= 0:
            os.close(self.inbox)
            self.inbox = -1
        with contextlib.suppress(subprocess.TimeoutExpired):  # in the driver, a process can outlive SIGKILL for a while
            self.process.wait(10)
            return True
        return False

    def log_size(self) -> int:
        return self.log.stat().st_size

    def log_end(self, offset: int) -> str:
        with self.log.open("rb") as output:
            output.seek(max(offset, self.log_size() - END))
            return output.read().decode(errors="replace").strip()

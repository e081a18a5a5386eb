"""Nsight Compute's counters of the sweep, and compute-sanitizer's checks. The tools' whole output goes to the section's
log; the rows hold what to look at first."""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpubench.rows import Context, Row

PROGRAM = Path(__file__).with_name("under_tools.py")
GROUPS = ("SpeedOfLight", "ComputeWorkloadAnalysis", "MemoryWorkloadAnalysis", "MemoryWorkloadAnalysis_Tables",
          "WarpStateStats", "SchedulerStats", "LaunchStats", "Occupancy")  # fmt: skip
PEAK = r"\.avg\.pct_of_peak_sustained_(?:active|elapsed)"
# Names differ between architectures: the first match of each pattern, in percent of its peak unless said.
COUNTERS = {
    "tensor pipe": r"sm__(?:pipe_tensor\w*cycles_active|inst_executed_pipe_tensor\w*)" + PEAK,
    "L2": r"lts__(?:t_sectors|throughput|lts2xbar_cycles_active)" + PEAK,
    "L1 and shared memory": r"l1tex__(?:throughput|data_pipe_lsu_wavefronts(?:_mem_shared)?|data_bank_reads)" + PEAK,
    "shared memory wavefronts": r"l1tex__data_pipe_lsu_wavefronts_mem_shared\.sum",
    "bank conflicts": r"l1tex__data_bank_conflicts_pipe_lsu_mem_shared\.sum",
    "device memory": r"(?:gpu__)?dram__throughput" + PEAK + r"|gpu__dram_throughput" + PEAK,
    "occupancy": r"sm__warps_active" + PEAK,
    "issue slots": r"sm__inst_issued" + PEAK + r"|sm__instruction_throughput" + PEAK,
    "registers": r"launch__registers_per_thread",
    "microseconds": r"gpu__time_duration\.(?:sum|avg)",
}
STALL = re.compile(
    r"smsp__average_warps?_issue_stalled_(?!selected|not_issued)(\w+?)(?<!not_issued)_per_issue_active\.ratio"
)


def program(what: str, backend: str, context: Context, n: int, d: int) -> list[str]:
    return [sys.executable, str(PROGRAM), what, backend, context.device, str(n), str(d)]


def tee(command: list[str], environment: dict[str, str]) -> tuple[int, list[str]]:
    """Runs it; what it prints goes to the log as it comes."""
    print(" ".join(command), flush=True)
    lines = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=environment
    ) as process:
        assert process.stdout
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.rstrip("\n"))
    return process.returncode, lines


# --------------------------------------------------------------------------------------------- profiler
def profile(context: Context, backend: str, n: int, d: int, launches: int = 8) -> Iterator[Row]:
    """The sweep's launches grow: the last of these is a large one. A kernel runs again for each set of counters."""
    tool = shutil.which("ncu")
    job = f"profile search {n:,} x {d}"
    if tool is None:
        yield Row(job, backend, absent="ncu is not on PATH")
        return
    command = [tool, "--csv", "--page", "raw", "--clock-control", "none", "--kernel-name", "regex:sweep"]
    command += ["--launch-count", str(launches)]
    for group in GROUPS:
        command += ["--section", group]
    code, lines = tee(command + program("search", backend, context, n, d), dict(os.environ))
    kernels = counters(lines)
    for nth, kernel in enumerate(kernels):
        yield Row(f"{job}, launch {nth + 1}: {kernel.pop('kernel')}", backend, facts=kernel)
    if not kernels:
        wrong = [line for line in lines if "==ERROR==" in line or "Error" in line]
        yield Row(job, backend, error=(wrong or [f"no kernel named *sweep*; ncu's exit code {code}"])[-1][:300])


def counters(lines: list[str]) -> list[dict[str, Any]]:
    """One launch each, of ncu's raw page: a line of names, a line of units, then a line a launch."""
    head = next((at for at, line in enumerate(lines) if line.startswith('"ID"')), None)
    if head is None:
        return []
    names, *table = list(csv.reader(line for line in lines[head:] if line.startswith('"')))
    out = []
    for cells in table[1:]:
        values = dict(zip(names, cells, strict=False))
        out.append({"kernel": values.get("Kernel Name", "").split("(")[0][:60], **chosen(values)})
    return out


def chosen(values: dict[str, str]) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for name, pattern in COUNTERS.items():
        found = [number(value) for metric, value in values.items() if re.fullmatch(pattern, metric)]
        if numbers := [x for x in found if x is not None]:
            facts[name] = max(numbers)
    stalls = {}
    for metric, value in values.items():
        match, x = STALL.match(metric), number(value)
        if match and x is not None:
            stalls[match[1]] = x
    total = sum(stalls.values())
    for name, x in sorted(stalls.items(), key=lambda item: -item[1])[:5]:
        facts[f"stall {name}"] = f"{x / total:.0%}" if total else x
    return facts


def number(text: str) -> float | None:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None


# -------------------------------------------------------------------------------------------- sanitizer
def sanitize(context: Context, tool: str, backend: str) -> Iterator[Row]:
    """memcheck without torch's caching allocator, which would hide a step past an array's end from it."""
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        yield Row(tool, backend, absent="compute-sanitizer is not on PATH")
        return
    n = 1500 if tool == "memcheck" else 600  # racecheck follows every access to shared memory
    environment = dict(os.environ)
    if tool == "memcheck":
        environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    command = [sanitizer, "--tool", tool, *program("all", backend, context, n, 72)]
    yield findings(tool, backend, *tee(command, environment))


def findings(tool: str, backend: str, code: int, lines: list[str]) -> Row:
    summaries = [line.strip("= ") for line in lines if "SUMMARY" in line]
    ran = [line for line in lines if line.startswith("ran")]
    row = Row(tool, backend, facts={"summary": "; ".join(summaries), "reached": ran[-1] if ran else "nothing"})
    counts = [0, *(int(x) for line in summaries for x in re.findall(r"(\d+) (?:error|hazard)s?\b", line))]
    if not summaries or "ran to its end" not in ran:
        end = next((line for line in reversed(lines) if line.strip()), "")
        row.error = f"did not finish, exit code {code}: {end[:200]}"
    elif max(counts):
        first = next((line.strip("= ") for line in lines if re.search(r"Invalid|hazard|race|Error:", line)), "")
        row.error = f"{max(counts)} found, the first: {first[:200]}"
    return row

"""How a call is timed on a device, and the documents that all items search."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from gpubench.rows import Row

Run = Callable[[], Any]
ROUNDS = 50  # at most; fewer where they take longer than
SPEND = 1.0  # seconds, but no fewer than
LEAST = 3


class Timing(NamedTuple):
    first: float  # seconds of the first call, by the clock: compilation, loading and allocation are in it
    seconds: list[float]
    peak_bytes: int | None
    result: Any


def sync(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(run: Run, device: torch.device, rounds: int = 0, once: bool = False) -> Timing:
    """Seconds of some calls after a first one, by CUDA events, or by the clock on the CPU; ``once``: of the first."""
    before = 0
    sync(device)
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
    begin = time.perf_counter()
    result = run()
    sync(device)
    first = time.perf_counter() - begin
    seconds = [first] * once
    while not once and len(seconds) < (rounds or ROUNDS) and (len(seconds) < LEAST or sum(seconds) < SPEND):
        seconds.append(timed_call(run, device))
    peak = torch.cuda.max_memory_allocated(device) - before if device.type == "cuda" else None
    return Timing(first, seconds, peak, result)


def timed_call(run: Run, device: torch.device) -> float:
    if device.type != "cuda":
        begin = time.perf_counter()
        run()
        return time.perf_counter() - begin
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def fill(
    row: Row,
    make: Callable[[], Run],
    device: torch.device,
    check: Callable[[Any], dict[str, Any]] = lambda _: {},
    rounds: int = 0,
    once: bool = False,
) -> Row:
    """Measures what ``make`` returns into the row. What goes wrong is written there and stops no other row."""
    try:
        found = measure(make(), device, rounds, once)
        row.seconds, row.fastest, row.rounds = statistics.median(found.seconds), min(found.seconds), len(found.seconds)
        row.first, row.peak_bytes = found.first, found.peak_bytes
        row.facts |= check(found.result)
    except ImportError as error:
        row.absent = f"not installed: {error.name}"
    except Exception as error:  # out of memory, a kernel's error, a peer's
        row.error = short(error)
    gc.collect()
    if device.type == "cuda":
        try:
            torch.cuda.empty_cache()
        except Exception as error:  # an error that sticks: the worker ends after this item
            row.error = row.error or short(error)
    return row


def short(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"


def documents(n: int, d: int, device: torch.device, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Unit rows in clusters of clusters; cosines of near neighbours about 0.5, as in text embeddings."""
    generator = torch.Generator(device).manual_seed(seed)
    out = torch.empty(n, d, dtype=dtype, device=device)
    topics = torch.randn(2000, d, generator=torch.Generator(device).manual_seed(1000), device=device)
    for begin in range(0, n, 1 << 17):
        part = out[begin : begin + (1 << 17)]
        topic = torch.randint(2000, (len(part),), generator=generator, device=device)
        noise = torch.randn(len(part), d, generator=generator, device=device)
        part.copy_(F.normalize(0.9 * topics[topic] + noise))
    return out

"""A row of the report, as the worker sends it. No torch here: the parent process has no need of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
OURS = ("cuda", "triton")  # the methods that are ours bear the name of their backend


@dataclass
class Row:
    job: str
    method: str
    seconds: float | None = None  # median
    fastest: float | None = None
    rounds: int = 0
    first: float | None = None  # seconds of the first call, compilation included
    peak_bytes: int | None = None  # most device memory beyond what was there
    bytes: float | None = None  # least that must be read and written, and least operations of the matrix units:
    operations: float | None = None  # with the roofs they give the bound
    facts: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    absent: str = ""  # what this machine lacks for it, no error


@dataclass
class Context:
    """What every item is told."""

    device: str  # "cuda", or "cpu": a rehearsal on the emulator and Triton's interpreter
    seconds: float  # until the item is stopped
    out: str  # the folder of the report
    rounds: int = 0  # timed calls at most; 0: what the module thinks right

    @property
    def rehearsal(self) -> bool:
        return self.device == "cpu"

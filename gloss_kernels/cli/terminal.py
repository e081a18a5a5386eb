"""What a command shows: errors and warnings as one line each, how far it is, and the summary at its end."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from gloss_kernels.cli.errors import CommandError


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Errors of the library that name an argument, as one line."""
    try:
        yield
    except (ValueError, TypeError, ImportError) as error:
        raise CommandError(str(error)) from None
    except torch.OutOfMemoryError as error:
        raise CommandError(f"out of memory: {str(error).partition('.')[0]}; try --device cpu", code=1) from None


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Warnings as one line each on stderr, without a place in the source."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        finally:
            for text in dict.fromkeys(" ".join(str(warning.message).split()) for warning in caught):
                print("warning:", text, file=sys.stderr)


class Progress:
    """One line on stderr that says how far a step is; nothing unless stderr is a terminal."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.shown, self.text = not quiet and sys.stderr.isatty(), ""

    def step(self, name: str) -> Callable[[float], None]:
        return lambda share: self.show(f"{name} {100 * share:3.0f} %")

    def show(self, text: str) -> None:
        if self.shown and text != self.text:
            print("\r" + text.ljust(len(self.text)), end="", file=sys.stderr, flush=True)
            self.text = text

    def clear(self) -> None:
        if self.text:
            print("\r" + " " * len(self.text) + "\r", end="", file=sys.stderr, flush=True)
            self.text = ""


class Times:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start

    def __str__(self) -> str:
        return ", ".join(f"{name} {seconds:.2f} s" for name, seconds in self.seconds.items())


def peak_memory() -> str:
    """Of this process, mapped files that were read included."""
    try:
        import resource
    except ImportError:  # Windows
        return "not known here"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f"{peak / (1 << 20 if sys.platform == 'darwin' else 1 << 10):,.0f} MiB"


def show(facts: dict[str, object], output: Path) -> None:
    """On stdout, or on stderr where ``output``, the result, went to stdout itself."""
    stream = sys.stderr if _is_stdout(output) else sys.stdout
    for name, fact in facts.items():
        print(f"{name:<13} " + str(fact).replace("\n", "\n" + 14 * " "), file=stream)


def _is_stdout(path: Path) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(sys.stdout.fileno()))
    except (OSError, ValueError, AttributeError):  # no such file, no file descriptor, no stdout
        return False


@contextlib.contextmanager
def any_character() -> Iterator[None]:
    """Characters that the encoding of stdout lacks are printed as escapes: é as \\xe9 where it is ASCII."""
    stream = sys.stdout
    if not isinstance(stream, io.TextIOWrapper):
        yield
        return
    before = stream.errors
    stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        stream.reconfigure(errors=before)


def drop_output() -> None:
    """What is printed from here on goes nowhere, also what Python flushes at its end: stdout takes no more."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def is_out_of_memory(error: BaseException) -> bool:
    """torch says it of the CPU by a RuntimeError like any other."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "DefaultCPUAllocator" in str(error)

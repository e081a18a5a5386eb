"""What the commands share: arrays from files, files by a temporary name, warnings, the progress line, the summary."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gloss_kernels.cli import CommandError


def load_array(name: str, path: str) -> Any:
    """The array of a .npy file, mapped into memory."""
    with reading(name, path):
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError):
            raise CommandError(f"{name}: {path!r} is empty, or not a whole .npy file of numbers") from None
    if not isinstance(array, np.ndarray):
        array.close()
        raise CommandError(f"{name}: {path!r} is an .npz, wants a .npy file")
    return array


@contextlib.contextmanager
def reading(name: str, path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CommandError(f"{name}: {path!r} cannot be read: {error.strerror or error}") from None


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Errors of the library that name an argument, as one line."""
    try:
        yield
    except (ValueError, TypeError, ImportError) as error:
        raise CommandError(str(error)) from None
    except torch.OutOfMemoryError as error:
        raise CommandError(f"out of memory: {str(error).partition('.')[0]}; try --device cpu", code=1) from None


def check_output(path: str, *, overwrite: bool) -> Path:
    """Before the work: whether the result can be written there."""
    output = Path(path)
    if output.is_dir():
        raise CommandError(f"--output: {path!r} is a folder")
    if output.exists() and not overwrite:
        raise CommandError(f"--output: {path!r} is there already; --overwrite replaces it")
    if not output.parent.is_dir():
        raise CommandError(f"--output: there is no folder {str(output.parent)!r}")
    if not os.access(output.parent, os.W_OK):
        raise CommandError(f"--output: the folder {str(output.parent)!r} cannot be written to")
    return output


def write(output: Path, save: Callable[[Path], object]) -> None:
    """By a temporary name: whoever sees the file sees all of it."""
    beside = output.with_name(f"{output.name}.{os.getpid()}.tmp")
    try:
        save(beside)
        os.replace(beside, output)
    except OSError as error:
        raise CommandError(f"--output: {str(output)!r} cannot be written: {error.strerror or error}", code=1) from None
    finally:
        beside.unlink(missing_ok=True)


def choose_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise CommandError(f"--device {name}: cannot be used: {reason}") from None
    if device.type not in ("cpu", "cuda"):
        raise CommandError(f"--device {name}: wants cpu or cuda")
    return device


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

    def __init__(self, *, quiet: bool) -> None:
        self.shown, self.text = not quiet and sys.stderr.isatty(), ""

    def step(self, name: str) -> Callable[[float], None]:
        def report(share: float) -> None:
            text = f"{name} {100 * share:3.0f} %"
            if self.shown and text != self.text:
                print("\r" + text.ljust(len(self.text)), end="", file=sys.stderr, flush=True)
                self.text = text

        return report

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


def show(facts: dict[str, object]) -> None:
    for name, fact in facts.items():
        print(f"{name:<13} " + str(fact).replace("\n", "\n" + 14 * " "))

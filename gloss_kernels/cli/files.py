"""The files that commands read and write, with one line for what can be wrong with them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gloss_kernels._files import replacing
from gloss_kernels.cli.errors import CommandError


def load_array(name: str, path: str) -> Any:
    """The array of a .npy file, mapped into memory."""
    with reading(name, path):
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError):
            raise CommandError(
                f"{name} must be a whole .npy file of numbers, got {path!r}, which is empty or something else"
            ) from None
    if not isinstance(array, np.ndarray):
        array.close()
        raise CommandError(f"{name} must be a .npy file, got {path!r}, an .npz")
    return array


@contextlib.contextmanager
def reading(name: str, path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CommandError(f"{name} {path!r} cannot be read: {error.strerror or error}") from None


def check_output(path: str, *, overwrite: bool) -> Path:
    """Before the work: whether the result can be written there."""
    output = Path(path)
    if output.is_dir():
        raise CommandError(f"--output must be a file, got the folder {path!r}")
    if output.exists() and not overwrite:
        raise CommandError(f"--output {path!r} exists already; --overwrite replaces it")
    if not output.parent.is_dir():
        raise CommandError(f"--output must lie in a folder that exists, got {path!r}: no folder {str(output.parent)!r}")
    if not os.access(output.parent, os.W_OK):
        raise CommandError(f"--output must lie in a folder that can be written to, got {path!r}")
    return output


def write(output: Path, save: Callable[[Path], object]) -> None:
    try:
        with replacing(output) as beside:
            save(beside)
    except OSError as error:
        raise CommandError(f"--output {str(output)!r} cannot be written: {error.strerror or error}", code=1) from None

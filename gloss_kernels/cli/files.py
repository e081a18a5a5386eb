"""The files that commands read and write, with one line for what can be wrong with them."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gloss_kernels._files import is_same, is_stream, replacing
from gloss_kernels.cli.errors import CommandError


def load_array(name: str, path: str) -> Any:
    """The array of a .npy file, mapped into memory."""
    with reading(name, path):
        try:
            with warnings.catch_warnings():  # of headers that numpy mends
                warnings.simplefilter("ignore")
                array = np.load(path, mmap_mode="r", allow_pickle=False)
        except OSError:
            raise
        except Exception:  # what a broken file raises is up to numpy, and to Python's parser for the header
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


def check_output(path: str, *, overwrite: bool, inputs: Mapping[str, str | Path]) -> Path:
    """Before the work: whether the result can be written there, and no file that the command reads (``inputs``, by
    name) is lost by it."""
    output = Path(path)
    for name, source in inputs.items():
        if is_same(path, source) or os.path.realpath(path) == os.path.realpath(source):
            raise CommandError(f"--output must be another file than {name}, got {path!r}, which is {str(source)!r}")
    try:
        if output.is_dir():
            raise CommandError(f"--output must be a file, got the folder {path!r}")
        # A block device holds what a file would; there is nothing to replace in a pipe or a terminal.
        kept = output.exists() and (not is_stream(output) or stat.S_ISBLK(output.stat().st_mode))
        if kept and not overwrite:
            raise CommandError(f"--output {path!r} exists already; --overwrite replaces it")
        if is_stream(output):
            return output
        parent = Path(os.path.realpath(output)).parent  # of the target of a link
        if not parent.is_dir():
            raise CommandError(f"--output must lie in a folder that exists, got {path!r}: no folder {str(parent)!r}")
    except OSError as error:
        raise CommandError(f"--output {path!r} cannot be written: {error.strerror or error}") from None
    try:  # os.access knows nothing of what root may not do either: read-only disks, folders of the system
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise CommandError(
            f"--output must lie in a folder that can be written to, got {path!r}: {error.strerror or error}"
        ) from None
    return output


def write(output: Path, save: Callable[[Path], object]) -> None:
    try:
        with replacing(output) as beside:
            save(beside)
    except OSError as error:
        raise CommandError(f"--output {str(output)!r} cannot be written: {error.strerror or error}", code=1) from None

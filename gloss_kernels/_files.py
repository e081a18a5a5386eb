"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary name beside ``path`` to write to; at the end of the block it takes the place of ``path``.

    Whoever opens ``path`` sees the old file or the whole new one, whenever the process is killed or the machine loses
    power: the bytes are on the disk before the name is. If the block raises, ``path`` stays as it was. The process id
    in the name keeps two processes that write the same file apart. A symbolic link stays, and its target is replaced;
    what exists and is no file, a device or a pipe, is written into.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file() and not target.is_dir():
        yield target
        return
    beside = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    try:
        yield beside
        with open(beside, "r+b") as file:
            os.fsync(file.fileno())
        os.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")

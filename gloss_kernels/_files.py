"""Files that are written whole or not at all, and archives that are read only if they are what they say."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

# An archive may unpack to this many times its size, and to SMALL bytes whatever its size: deflate makes 1 MB out of
# 1 kB of nothing, arrays of a graph shrink to a third.
EXPANSION, SMALL = 100, 16 << 20


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary name beside ``path`` to write to; at the end of the block it takes the place of ``path``.

    Whoever opens ``path`` sees the old file or the whole new one, whenever the process is killed or the machine loses
    power: the bytes are on the disk before the name is. If the block raises, ``path`` stays as it was. The random part
    of the name keeps writers of the same file apart, also those of two containers, which may have the same process id.
    The new file has the permissions of the old one. A symbolic link stays, and its target is replaced; what exists and
    is no file, a device or a pipe, is written into.
    """
    if is_stream(path):
        yield Path(path)
        return
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    # 40 characters of the name: a file system takes 255 bytes, a character up to 4.
    beside = target.with_name(f"{target.name[:40]}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else None
    os.close(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else 0o600))
    try:
        yield beside
        with open(beside, "r+b") as file:
            os.fsync(file.fileno())
        if mode is not None:
            beside.chmod(mode)
        os.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")


def leftovers(path: Path) -> set[Path]:
    """What writers of ``path`` that were killed left beside it."""
    return {*path.parent.glob(f"{path.name[:40]}.*.tmp")}


def is_stream(path: str | os.PathLike[str]) -> bool:
    """Whether something is there that is neither file nor folder: a device, a pipe, a socket."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def is_same(path: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    """Whether two paths lead to one file: by links, or spelt in another way."""
    try:
        return os.path.samefile(path, other)
    except OSError:  # one of them is not there
        return False


def flush_folder(folder: str | os.PathLike[str]) -> None:
    """The bytes of all files below a folder are on the disk when this returns."""
    for path in Path(folder).rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())


def read_arrays(path: str | os.PathLike[str], names: Sequence[str]) -> list[np.ndarray[Any, Any]]:
    """Arrays of an .npz file. No pickle is read, and no memory asked for that is out of proportion to the file.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is damaged or foreign.
    """
    with open(path, "rb") as file:
        try:
            check_archive(file)
            with zipfile.ZipFile(file) as archive:
                return [_read_array(archive, f"{name}.npy") for name in names]
        except MemoryError:
            raise
        except Exception as error:  # what a broken file raises is up to zipfile, zlib, numpy and its parser
            raise ValueError(f"{os.fspath(path)!r} is damaged or foreign: {type(error).__name__}: {error}") from error


def check_archive(file: IO[bytes]) -> None:
    """ValueError where a .zip says that it unpacks to far more than its size; BadZipFile where it is none."""
    size = os.fstat(file.fileno()).st_size
    with zipfile.ZipFile(file) as archive:
        unpacked = sum(info.file_size for info in archive.infolist())
    if unpacked > max(SMALL, EXPANSION * size):
        raise ValueError(f"{size:,} bytes that unpack to {unpacked:,}")
    file.seek(0)


def _read_array(archive: zipfile.ZipFile, name: str) -> np.ndarray[Any, Any]:
    """numpy allocates what the header of an array says before it reads: here the header must fit its bytes first."""
    info = archive.getinfo(name)
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        # 3.0 is 2.0 with names of fields in UTF-8, which no array of ours has
        reads = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, _, dtype = reads[version](member)
        count = 1
        for length in shape:
            count *= length
        if min(shape, default=0) < 0 or member.tell() + count * dtype.itemsize != info.file_size:
            raise ValueError(f"{name}: {info.file_size:,} bytes are not {shape} of {dtype}")
    with archive.open(info) as member:
        array: np.ndarray[Any, Any] = np.lib.format.read_array(member, allow_pickle=False)
    return array

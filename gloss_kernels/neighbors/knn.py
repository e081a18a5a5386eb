"""The neighbours of every row of an index, in blocks that a killed run does not lose."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gloss_kernels._files import write_text
from gloss_kernels._progress import progress
from gloss_kernels.topk import TopK, cosine_topk

from . import plan
from .rows import Report, Rows

BLOCK = 8192  # rows; the results of one are written at once
EXACT_BLOCK = 65_536  # exact search is fastest with many queries at a time
FILES = STATE, VALUES, INDICES = "state.json", "values.npy", "indices.npy"


class Keeping(NamedTuple):
    """Where finished blocks are kept (None: in memory only), and the fingerprint of the index that they are of."""

    folder: Path | None
    fingerprint: str


def run(
    rows: Rows,
    kind: str,
    k: int,
    find: Callable[[int, Tensor, int], TopK],
    keeping: Keeping,
    report: Report | None,
) -> TopK:
    """The k nearest others of all rows. ``find(start, queries, k)`` finds those of the unit rows from ``start`` on."""
    n = len(rows)
    if kind == "exact" and len(rows.parts) == 1 and keeping.folder is None and _fits(rows):
        if report is None:
            return _whole(rows.parts[0], k)
        with progress(report):
            return _whole(rows.parts[0], k)
    blocks = Blocks(n, k, keeping)
    if report is not None and blocks.done:
        report(blocks.done / n)
    size = min(EXACT_BLOCK if kind == "exact" else BLOCK, 4 * rows.block)
    for start, queries in rows.blocks(blocks.done, size):
        blocks.put(start, find(start, queries, k))
        if report is not None:
            report(blocks.done / n)
    return TopK(*(x.to(rows.device) for x in blocks.result()))


def _fits(rows: Rows) -> bool:
    """Whether all rows at once, with the 16-bit copy that cosine_topk makes, can be held."""
    free = plan.available_memory() if rows.mapped else None
    return free is None or plan.memory("exact", len(rows), rows.dim) <= 0.5 * free


def _whole(x: Tensor, k: int) -> TopK:
    values, indices = cosine_topk(x, k=k)
    return TopK(values.float(), indices)


def _allocate(path: Path) -> None:
    """Disk space for all of a file that has holes: a full disk is an error here, in mapped memory it ends the process
    (SIGBUS)."""
    if not hasattr(os, "posix_fallocate"):
        return
    with open(path, "r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # a file system that cannot
                raise


class Blocks:
    """values and indices [n, k], in memory or in a folder: two .npy files, and state.json with the rows that are done.

    The numbers are flushed before the state names them, and the state is replaced by a rename: after a kill at any
    moment the state is true. It is written first, so that a folder with such files and no state is not ours.
    """

    def __init__(self, n: int, k: int, keeping: Keeping) -> None:
        folder = keeping.folder
        self.n, self.folder, self.done = n, folder, 0
        if folder is None:
            self.values: Any = np.empty((n, k), np.float32)
            self.indices: Any = np.empty((n, k), np.int64)
            return
        self.identity = {"format": "gloss_kernels knn", "n": n, "k": k, "index": keeping.fingerprint}
        if (folder / STATE).exists():
            self._read_state(folder)
        else:
            for name in (VALUES, INDICES):
                if (folder / name).exists():
                    raise ValueError(
                        f"checkpoint must be a new folder or one that knn wrote, got {str(folder)!r}, which has "
                        f"{name} but no {STATE}"
                    )
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError):
                raise ValueError(
                    f"checkpoint must be a folder, got {str(folder)!r}, which lies in or is a file"
                ) from None
            self._write_state()
        for name, dtype in ((VALUES, np.float32), (INDICES, np.int64)):
            setattr(self, name.removesuffix(".npy"), self._array(folder / name, (n, k), np.dtype(dtype)))

    def _array(self, path: Path, shape: tuple[int, int], dtype: np.dtype[Any]) -> Any:
        if self.done == 0:
            array = np.lib.format.open_memmap(path, "w+", dtype, shape)
            _allocate(path)
            return array
        try:
            array = np.lib.format.open_memmap(path, "r+")
            if array.shape != shape or array.dtype != dtype:
                raise ValueError
        except Exception:  # what a broken file raises is up to numpy, and to Python's parser for the header
            raise ValueError(f"checkpoint: {str(path)!r} is missing or damaged; another folder starts anew") from None
        return array

    def _read_state(self, folder: Path) -> None:
        try:
            state = json.loads((folder / STATE).read_text(encoding="utf-8"))
            done = state.pop("done")
            if type(done) is not int or not 0 <= done <= state["n"]:
                raise ValueError
        except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
            raise ValueError(
                f"checkpoint: {str(folder / STATE)!r} is damaged or was not written by knn; another folder starts anew"
            ) from None
        for name, mine in self.identity.items():
            if state.get(name) != mine:
                what = {"n": "the number of rows", "index": "the index"}.get(name, name)
                raise ValueError(
                    f"checkpoint must be of the same search, or a new folder: in {str(folder)!r} {what} is "
                    f"{state.get(name)!r:.200}, here it is {mine!r}"
                )
        self.done = done

    def put(self, start: int, found: TopK) -> None:
        stop = start + len(found.values)
        self.values[start:stop] = found.values.cpu().numpy()
        self.indices[start:stop] = found.indices.cpu().numpy()
        self.done = stop
        if self.folder is not None:
            self.values.flush()
            self.indices.flush()
            self._write_state()

    def _write_state(self) -> None:
        assert self.folder is not None
        write_text(self.folder / STATE, json.dumps({**self.identity, "done": self.done}) + "\n")

    def result(self) -> tuple[Tensor, Tensor]:
        if self.folder is None:
            return torch.from_numpy(self.values), torch.from_numpy(self.indices)
        return torch.from_numpy(np.array(self.values)), torch.from_numpy(np.array(self.indices))

"""Files that are written whole or not at all (gloss_kernels/_files.py)."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from gloss_kernels._files import replacing, write_text


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "report"
    write_text(path, "old")
    with pytest.raises(RuntimeError), replacing(path) as beside:
        beside.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["report"]
    write_text(path, "new")
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["report"]


def test_a_symbolic_link_stays(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link, target = tmp_path / "link", tmp_path / "elsewhere" / "file"
    target.write_text("old")
    link.symlink_to(target)
    write_text(link, "new")
    assert link.is_symlink() and target.read_text() == "new"


def test_a_pipe_is_written_into(tmp_path: Path) -> None:
    """As a device is: to put a regular file in its place would take it away from everybody."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    received: list[str] = []
    reader = threading.Thread(target=lambda: received.append(path.read_text()))
    reader.start()
    write_text(path, "through")
    reader.join(timeout=60)
    assert received == ["through"] and path.is_fifo() and os.listdir(tmp_path) == ["pipe"]

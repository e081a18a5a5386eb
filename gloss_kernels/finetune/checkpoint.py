"""A run's folder: its settings, its last checkpoint, its results, and what --resume needs of them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from gloss_kernels.cli import CommandError

SETTINGS, CHECKPOINT, METRICS, EMBEDDINGS, MODEL = (
    "settings.json",
    "checkpoint.pt",
    "metrics.json",
    "test_embeddings.safetensors",
    "model",
)


def open_folder(folder: Path, settings: dict[str, Any], *, resume: bool) -> None:
    """Make the folder of a new run, or check that the run in it has the same settings."""
    path = folder / SETTINGS
    if resume and path.is_file():
        saved = read_json(path)
        for key in dict.fromkeys([*settings, *saved]):
            if saved.get(key) != settings.get(key):
                what = f"{key} was {saved.get(key)}, now {settings.get(key)}"
                what = "its documents differ" if key == "documents" else what
                raise CommandError(f"{folder} holds another run: {what}; give another --output")
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, settings)
    except OSError as error:
        raise CommandError(f"--output {folder}: cannot be written: {error.strerror}") from None


def check_free(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise CommandError(f"--output {folder}: is a file, wants a folder")
    if (folder / SETTINGS).is_file():
        raise CommandError(f"--output {folder}: holds a run; --resume goes on with it, --overwrite replaces it")


def clear(folder: Path) -> None:
    """Remove the parts of an earlier run that a new one could take for its own."""
    for run in (folder, *(path for path in folder.glob("*") if (path / SETTINGS).is_file())):
        for name in (SETTINGS, CHECKPOINT, METRICS, EMBEDDINGS):
            (run / name).unlink(missing_ok=True)
        shutil.rmtree(run / MODEL, ignore_errors=True)


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write beside, then rename: a kill at any moment leaves the old checkpoint or the new one."""
    path = folder / CHECKPOINT
    beside = path.with_suffix(".tmp")
    try:
        torch.save(state, beside)
        os.replace(beside, path)
    except OSError as error:
        raise CommandError(f"{path}: cannot be written: {error.strerror}", code=1) from None
    finally:
        beside.unlink(missing_ok=True)


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    path = folder / CHECKPOINT
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a broken file raises is up to pickle, zip and torch
        raise CommandError(f"{path}: cannot be read ({type(error).__name__}); remove it to start again") from None
    return state


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise CommandError(f"{path}: cannot be read as JSON") from None
    if not isinstance(value, dict):
        raise CommandError(f"{path}: cannot be read: wants a JSON object")
    return value


def write_json(path: Path, value: dict[str, Any]) -> None:
    beside = path.with_suffix(".tmp")
    beside.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(beside, path)

"""A run's folder: its settings, its last checkpoint, its results, and what --resume needs of them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from gloss_kernels._files import check_archive, is_same, replacing, write_text
from gloss_kernels.cli.errors import CommandError
from gloss_kernels.cli.terminal import is_out_of_memory

SETTINGS, CHECKPOINT, METRICS, EMBEDDINGS, MODEL = (
    "settings.json",
    "checkpoint.pt",
    "metrics.json",
    "test_embeddings.safetensors",
    "model",
)
FORMAT = 1  # of the checkpoint; one of another is refused
PICTURES = ("curves.png", "projection.png", "comparison.md", "comparison.json")
COMPARED = ("ce", "gloss", "ce_gloss")


def open_folder(folder: Path, settings: dict[str, Any], *, resume: bool) -> None:
    """Make the folder of a new run, or check that the run in it has the same settings."""
    path = folder / SETTINGS
    if resume and path.is_file():
        saved = read_json(path)
        for key in dict.fromkeys([*settings, *saved]):
            if saved.get(key) != settings.get(key):
                what = f"{key} was {saved.get(key)}, now {settings.get(key)}"
                what = "its documents differ" if key == "documents" else what
                raise CommandError(f"--output {folder} holds another run: {what}; give another folder")
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, settings)
    except OSError as error:
        raise CommandError(f"--output {folder} cannot be written: {error.strerror}") from None


def is_run(folder: Path) -> bool:
    """Whether the folder holds a run of ours, by what its settings say."""
    try:
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(settings, dict) and {"documents", "loss", "labeled_fraction"} <= settings.keys()


def check_output(folder: Path, *, resume: bool, overwrite: bool, inputs: Mapping[str, str | None]) -> None:
    """A folder without our files, or with a run of ours that --resume or --overwrite is meant for. None of ``inputs``,
    the files and folders that the run reads, by option, may be what the run replaces there."""
    try:
        if folder.exists() and not folder.is_dir():
            raise CommandError(f"--output must be a folder, got the file {folder}")
    except OSError as error:  # a name that is too long, a folder that must not be looked into
        raise CommandError(f"--output {folder} cannot be written: {error.strerror or error}") from None
    for option, path in inputs.items():
        if path is not None and (taken := _replaced(folder, Path(path))):
            raise CommandError(
                f"--output must be another folder, got {folder}, whose {taken} is the {option} of this run"
            )
    if is_run(folder):
        if not resume and not overwrite:
            raise CommandError(f"--output {folder} holds a run; --resume continues it, --overwrite replaces it")
        return
    if resume:  # a settings file that is not ours is refused by open_folder
        return
    others = [name for name in (SETTINGS, CHECKPOINT, METRICS, EMBEDDINGS, MODEL) if (folder / name).exists()]
    if others:
        raise CommandError(f"--output {folder} holds {others[0]} but no run of gloss-kernels; give another folder")


def _replaced(folder: Path, path: Path) -> str:
    """The name of what ``path`` is, or lies in, among what a run in the folder, or a run of --compare below it, writes;
    "" for none."""
    lies_in = [path, *Path(os.path.realpath(path)).parents] if path.exists() else []
    for run in (folder, *map(folder.joinpath, COMPARED)):
        for name in (MODEL, CHECKPOINT, METRICS, EMBEDDINGS, *PICTURES, SETTINGS):
            if any(is_same(run / name, part) for part in lies_in):
                return str((run / name).relative_to(folder))
    return ""


def clear(folder: Path) -> None:
    """Remove the files of the run in the folder, and of the runs that --compare put below it; nothing else."""
    below = [path for path in map(folder.joinpath, COMPARED) if is_run(path)]
    for run in (*below, folder):
        if not is_run(run):
            continue
        shutil.rmtree(run / MODEL, ignore_errors=True)
        for name in (CHECKPOINT, METRICS, EMBEDDINGS, *PICTURES, SETTINGS):  # last what says that it is ours
            (run / name).unlink(missing_ok=True)


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """A kill at any moment leaves the old checkpoint or the new one."""
    path = folder / CHECKPOINT
    try:
        with replacing(path) as beside:
            torch.save({"format": FORMAT, **state}, beside)
    except OSError as error:
        raise CommandError(f"{path} cannot be written: {error.strerror}", code=1) from None


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    path = folder / CHECKPOINT
    if not path.is_file():
        return None
    try:
        with open(path, "rb") as file:
            check_archive(file)  # torch also reads older files, whose pickle may ask for any amount of memory
            state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        written = state.get("format", FORMAT)  # 0.1.0 wrote none
    except MemoryError:
        raise
    except Exception as error:  # what a broken file raises is up to pickle, zip and torch
        raise CommandError(f"{path} cannot be read ({type(error).__name__}); remove it to start again") from None
    if written != FORMAT:
        raise CommandError(
            f"{path} must be of format {FORMAT}, which this version of gloss_kernels reads, got {written}; "
            "remove it to start again"
        )
    return state


@contextlib.contextmanager
def restoring(folder: Path) -> Iterator[None]:
    """For the use of what load_checkpoint returned: another version's state has other names and shapes."""
    try:
        yield
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
        if is_out_of_memory(error):
            raise
        raise CommandError(
            f"{folder / CHECKPOINT} is not a state of this run ({type(error).__name__}: {str(error)[:80]}); remove "
            "it to start again"
        ) from None


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise CommandError(f"{path} cannot be read as JSON") from None
    if not isinstance(value, dict):
        raise CommandError(f"{path} must be a JSON object, got {type(value).__name__}")
    return value


def write_json(path: Path, value: dict[str, Any]) -> None:
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")

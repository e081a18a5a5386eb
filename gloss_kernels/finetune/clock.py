"""How long the rest will take: the documents that the encoder still has to read, at the pace of the latest batches."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

from gloss_kernels.cli.terminal import Progress
from gloss_kernels.finetune.settings import Settings

FIRST = 5  # training batches after which the first estimate is given, the very first batch left out: it warms up
MEMORY = 0.95  # weight of the batches before: the pace is that of the latest twenty or so
PANEL_SECONDS = 1.0  # of a panel of projection.png: t-SNE of 300 points on two cores


@dataclass(frozen=True)
class Work:
    """What a run has to do before its first epoch, in an epoch and after the last; 1 is a document trained on."""

    before: float
    epoch: float
    after: float
    read: float  # a document read without gradient

    epochs: int

    def left(self, epochs: int) -> float:
        """With so many epochs still to come."""
        return epochs * self.epoch + self.after

    def all(self) -> float:
        return self.before + self.left(self.epochs)


def work(settings: Settings, counts: dict[str, int], layers: int, sample: int) -> Work:
    """``counts`` of documents by part; ``layers`` of the encoder; ``sample``: documents of an epoch's probe.

    A layer's backward costs two of its forwards, and only the trained layers have one.
    """
    read = 1 / (1 + 2 * (settings.train_layers or layers) / layers)
    train, val, test = counts["train"], counts["val"], counts["test"]
    before = test
    if settings.loss != "ce":
        before += (train if settings.graph == "corpus" else 0) + (sample if settings.sigma in ("root", "mst") else 0)
    probe = sample if settings.loss == "gloss" else 0
    return Work(
        read * before, train + read * (val + probe), read * (test + (train if probe else 0)), read, settings.epochs
    )


class Clock:
    """Times batches, and shows what is left: on the progress line, and once as a line of output."""

    def __init__(self) -> None:
        self.progress = Progress()
        self.title = ""
        self.left = 0.0  # work of this run and those after it
        self.panels = 0  # of pictures still to be drawn
        self._work = self._seconds = 0.0
        self._batches = 0
        self._started = time.perf_counter()

    def seconds_left(self) -> float | None:
        if self._work == 0:
            return None
        return max(self.left, 0.0) * self._seconds / self._work + PANEL_SECONDS * self.panels

    def elapsed(self) -> float:
        return time.perf_counter() - self._started

    @contextlib.contextmanager
    def timed(self, work: float, *, training: bool = False) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        self.left -= work
        if training and self._batches == 0:
            self._batches = 1
            return
        self._work = MEMORY * self._work + work
        self._seconds = MEMORY * self._seconds + seconds
        self._batches += training
        left = self.seconds_left()
        if training and self._batches == FIRST + 1 and left is not None:
            self.progress.clear()
            print(f"  about {in_words(self.elapsed() + left)} in all, by the first {FIRST} batches", flush=True)
        self.progress.show(f"{self.title}{self.left_in_words()}")

    def left_in_words(self) -> str:
        left = self.seconds_left()
        return "" if left is None else f", about {in_words(left)} left"


def in_words(seconds: float) -> str:
    """Rounded to what an estimate is worth: 40 s, 2 min 20 s, 35 min, 3 h 10 min."""
    if seconds < 57.5:
        return f"{max(5 * round(seconds / 5), 1)} s"
    if seconds < 595:
        tens = round(seconds / 10)
        return f"{tens // 6} min" + (f" {tens % 6 * 10} s" if tens % 6 else "")
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    tens = round(minutes / 10)
    return f"{tens // 6} h" + (f" {tens % 6 * 10} min" if tens % 6 else "")

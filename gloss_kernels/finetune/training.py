"""The training loop: epochs, validation, early stopping, the best weights, a checkpoint after each epoch."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from gloss_kernels import CorpusGLoss
from gloss_kernels.cli.errors import CommandError
from gloss_kernels.finetune import checkpoint
from gloss_kernels.finetune.clock import Clock, Work, work
from gloss_kernels.finetune.encoder import (
    Classifier,
    Tokens,
    autocast,
    encoder_layers,
    shuffled_batches,
    train_last_layers,
)
from gloss_kernels.finetune.evaluation import fit_probe, head_scores, subsample
from gloss_kernels.finetune.objective import Objective, choose_sigma, class_weight
from gloss_kernels.finetune.settings import Settings

WARMUP, WEIGHT_DECAY, MAX_NORM = 0.1, 0.01, 1.0
FILL_BATCH = 512  # documents embedded between two writes to the bank
PROBE_ROWS = 2000  # training documents of the probe of an epoch; the last probe takes all


@dataclass
class Part:
    tokens: Tokens
    labels: Tensor


@dataclass
class Progress:
    """What a run has reached; all of it is in the checkpoint."""

    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=dict)

    def is_finished(self, settings: Settings) -> bool:
        since = len(self.history) - self.best.get("epoch", 0)
        return len(self.history) >= settings.epochs or 0 < settings.patience <= since


class Trainer:
    def __init__(
        self,
        settings: Settings,
        model: Classifier,
        parts: dict[str, Part],
        folder: Path,
        device: torch.device,
        clock: Clock,
        later: float = 0.0,
    ) -> None:
        """``later``: the work of the runs after this one, which the clock has to know of."""
        self.settings, self.train, self.val = settings, parts["train"], parts["val"]
        train = self.train
        self.folder, self.device = folder, device
        self.model = model.to(device)
        if settings.train_layers is not None:
            train_last_layers(model.encoder, settings.train_layers)
        self.progress = Progress()
        self.clock, self.later = clock, later
        self.work = run_work(settings, model, parts)
        clock.title = "reading"
        clock.left = self.work.all() + later
        self.sigma: float | str | None = None
        if settings.loss != "ce":
            needed = settings.sigma in ("root", "mst")
            rows = self.sample_rows()
            embeddings = (
                self.embed_rows(rows) if needed else torch.empty(0, model.dim, dtype=torch.float32, device="cpu")
            )
            self.sigma = choose_sigma(settings.sigma, embeddings, train.labels[rows])
        classes = model.head.out_features
        weight = class_weight(settings.class_weights, train.labels, classes)
        weight = None if weight is None else weight.to(device)
        self.objective = Objective(settings, classes, weight, self.sigma, train.labels.to(device), self.model.dim)
        self.optimizer = torch.optim.AdamW(self._parameter_groups(), betas=(0.9, 0.999))
        steps = settings.epochs * -(-len(train.labels) // settings.batch_size)
        self.scheduler = LambdaLR(self.optimizer, _warmup_then_linear(steps))

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """No weight decay on biases and layer norms; the probe's head is not trained."""
        s, encoder = self.settings, [p for p in self.model.encoder.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in encoder if p.ndim > 1], "lr": s.learning_rate, "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in encoder if p.ndim <= 1], "lr": s.learning_rate, "weight_decay": 0.0},
        ]
        if s.loss != "gloss":
            head = list(self.model.head.parameters())
            groups.append({"params": head, "lr": s.head_learning_rate, "weight_decay": 0.0})
        return groups

    def run(self, *, resume: bool) -> None:
        """Train to the end, then put the best weights back."""
        torch.manual_seed(self.settings.seed)
        state = checkpoint.load_checkpoint(self.folder) if resume else None
        if state is not None:
            with checkpoint.restoring(self.folder):
                self._restore(state)
        elif self.objective.corpus is not None:
            self._fill_bank(self.objective.corpus)
        while not self.progress.is_finished(self.settings):
            self._epoch(len(self.progress.history) + 1)
        self.model.load_state_dict(self.progress.best["model"])
        if self.settings.loss == "gloss" and len(self.train.labels) > PROBE_ROWS:
            fit_probe(self.model, self.embed(self.train), self.train.labels, self.settings.class_weights)

    def _fill_bank(self, corpus: CorpusGLoss) -> None:
        """The embeddings of all training documents before the first step; later each is as old as its last step."""
        tokens = self.train.tokens
        order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
        by_length = torch.tensor(order, dtype=torch.int64, device="cpu")
        self.clock.title = "filling the memory bank"
        corpus.refresh_from(self.embed_rows, [(ids, ids) for ids in torch.split(by_length, FILL_BATCH)])

    def _epoch(self, epoch: int) -> None:
        """One pass over the training documents, the validation, and the checkpoint. Epochs count from 1."""
        s, n = self.settings, len(self.train.labels)
        started = time.perf_counter()
        self.model.train()
        sums: dict[str, float] = defaultdict(float)
        clock, done = self.clock, 0
        clock.left = self.work.left(s.epochs - epoch + 1) + self.later
        for rows in shuffled_batches(n, s.batch_size, s.seed, epoch):
            done += len(rows)
            clock.title = f"epoch {epoch}/{s.epochs} {100 * done // n:3d} %"  # shown after the batch
            with clock.timed(len(rows), training=True):
                self._step(rows, sums)
        clock.title = "validation"
        seconds = time.perf_counter() - started
        record = {"epoch": float(epoch), **{name: value / n for name, value in sums.items()}}
        validation = self.validate()
        record |= {f"val_{name}": value for name, value in validation.items()}
        record |= {"seconds": seconds, "total_seconds": time.perf_counter() - started}
        self.progress.history.append(record)
        better = not self.progress.best or validation["macro_f1"] > self.progress.best["macro_f1"]
        if better:
            weights = {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}
            self.progress.best = {"epoch": epoch, "macro_f1": validation["macro_f1"], "model": weights}
        checkpoint.save_checkpoint(self.folder, self._state())
        finished = self.progress.is_finished(s)
        clock.left = self.work.left(0 if finished else s.epochs - epoch) + self.later
        clock.progress.clear()
        print(
            f"  epoch {epoch}/{s.epochs}: loss {record['loss']:.3f}, validation accuracy {validation['accuracy']:.3f}, "
            f"macro-F1 {validation['macro_f1']:.3f}{' (best)' if better else ''}, {seconds:.1f} s"
            f"{clock.left_in_words()}",
            flush=True,
        )

    def _step(self, rows: list[int], sums: dict[str, float]) -> None:
        labels = self.train.labels[rows].to(self.device)
        with autocast(self.device, self.settings.precision):
            embeddings = self.model(*self.model.pad([self.train.tokens[i] for i in rows], self.device))
        loss, parts = self.objective(embeddings, self.model.scores(embeddings), labels, rows)
        value = float(loss.detach())
        if value - value != 0:
            raise CommandError(f"the loss became {value}; try a smaller --learning-rate", code=1)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_NORM)
        self.optimizer.step()
        self.scheduler.step()
        for name, part in {"loss": value, **parts}.items():
            sums[name] += part * len(rows)

    def validate(self) -> dict[str, float]:
        """Scores on the validation documents; with G-Loss alone, of a probe fitted for it."""
        if self.settings.loss == "gloss":
            rows = self.sample_rows()
            fit_probe(self.model, self.embed_rows(rows), self.train.labels[rows], self.settings.class_weights)
        return head_scores(self.model, self.embed(self.val), self.val.labels)

    def embed(self, part: Part) -> Tensor:
        def timed(count: int) -> AbstractContextManager[None]:
            return self.clock.timed(self.work.read * count)

        return self.model.embed(part.tokens, self.device, self.settings.precision, timed=timed)

    def sample_rows(self) -> Tensor:
        """Some training documents, each class at least once."""
        labels = self.train.labels
        first = {int(label): i for i, label in reversed(list(enumerate(labels)))}
        some = subsample(len(labels), PROBE_ROWS, self.settings.seed)
        return torch.tensor(sorted({*some.tolist(), *first.values()}), dtype=torch.int64, device="cpu")

    def embed_rows(self, rows: Tensor) -> Tensor:
        return self.embed(Part([self.train.tokens[i] for i in rows.tolist()], self.train.labels[rows]))

    def _state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "history": self.progress.history,
            "best": self.progress.best,
            "rng": torch.get_rng_state(),
            "rng_cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "objective": self.objective.state(),
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.progress = Progress(state["history"], state["best"])
        if not 1 <= state["best"]["epoch"] <= len(state["history"]):
            raise ValueError(f"epoch {state['best']['epoch']} of {len(state['history'])}")
        torch.set_rng_state(state["rng"])
        if self.device.type == "cuda" and state["rng_cuda"] is not None:
            torch.cuda.set_rng_state(state["rng_cuda"], self.device)
        self.objective.restore(state["objective"])


def run_work(settings: Settings, model: Classifier, parts: dict[str, Part]) -> Work:
    counts = {name: len(part.labels) for name, part in parts.items()}
    layers = 1 if settings.train_layers is None else len(encoder_layers(model.encoder))
    return work(settings, counts, layers, min(counts["train"], PROBE_ROWS))


def _warmup_then_linear(steps: int) -> Callable[[int], float]:
    warmup = max(1, round(WARMUP * steps))
    return lambda step: min((step + 1) / warmup, max(0.0, (steps - step) / max(1, steps - warmup)))

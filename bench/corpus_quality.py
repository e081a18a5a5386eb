"""What G-Loss adds to cross entropy, in a mini-batch and over the whole corpus: accuracy and macro-F1 on real texts.

    python bench/corpus_quality.py [--epochs 15] [--seeds 5] [--output bench/results/corpus_quality]

Frozen MiniLM embeddings of R52 and ohsumed (../shared/embeddings); what is trained is a residual head z = x + MLP(x)
and a linear classifier of z, by CE + lambda * G-Loss(z). Settings are chosen on validation documents, the same for both
texts: the learning rate by cross entropy alone, then lambda and sigma of each G-Loss, the neighbours of CorpusGLoss,
the learning rate again for each, and lambda again for target "published" (earlier "paper"). The final table
is of test documents. ohsumed has no test part: its validation part is the test, and the choices hold out 15 % of its
training documents. Writes OUTPUT.json and OUTPUT.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from concurrent.futures import Future, ProcessPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))

import machine
import numpy as np
import tables
import torch
from data import EMBEDDINGS
from sklearn.metrics import f1_score
from torch import Tensor, nn
from torch.nn import functional as F

from gloss_kernels import CorpusGLoss, GLoss, cosine_topk

TEXTS = ("R52", "ohsumed")
BATCH, VOTES, SWEEP_SEEDS = 128, 15, 3
LEARNING_RATES = (1e-3, 3e-3, 1e-2)
LAMBDAS, SIGMAS = (0.3, 1.0, 3.0, 10.0), (0.3, 0.5, 0.7)
NEIGHBORS, MATES = (8, 16, 32, 64), (0, 8, 16)
SCORES = ("accuracy", "macro_f1", "knn_accuracy", "knn_macro_f1")
NAMES = ("accuracy", "macro-F1", "kNN accuracy", "kNN macro-F1")
Settings = dict[str, Any]  # loss "ce", "batch" or "corpus"; lr; of the others lam, sigma, target; n_neighbors, ...


class Parts(NamedTuple):
    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: int


@lru_cache(maxsize=4)
def load(text: str, choosing: bool) -> Parts:
    """Training documents, and those the scores are of: for the choices or for the final table."""
    with np.load(EMBEDDINGS / f"{text}.npz", allow_pickle=False) as file:
        arrays = {key: file[key] for key in file}
    names = np.unique(arrays["train_y"])
    x = {key[:-2]: torch.as_tensor(a.astype(np.float32)) for key, a in arrays.items() if key.endswith("_x")}
    y = {key[:-2]: torch.as_tensor(np.searchsorted(names, a)) for key, a in arrays.items() if key.endswith("_y")}
    held = "test" if "test" in x and not choosing else "val"
    if "test" in x or not choosing:
        return Parts(x["train"], y["train"], x[held], y[held], len(names))
    order = torch.randperm(len(y["train"]), generator=torch.Generator().manual_seed(0))
    rest, some = order[len(order) * 15 // 100 :], order[: len(order) * 15 // 100]
    return Parts(x["train"][rest], y["train"][rest], x["train"][some], y["train"][some], len(names))


class Head(nn.Module):
    """x [n, d] -> z [n, d] and logits; z is x at the start, scaled so that its entries are about 1: with unit rows as
    they are, cross entropy alone trains badly."""

    def __init__(self, d: int, classes: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(d, d), nn.GELU(), nn.Linear(d, d))
        self.classifier = nn.Linear(d, classes)
        nn.init.zeros_(self.mlp[2].weight)
        nn.init.zeros_(self.mlp[2].bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x * x.shape[1] ** 0.5
        z = x + self.mlp(x)
        return z, self.classifier(z)


def train(text: str, choosing: bool, settings: Settings, epochs: int, seed: int) -> dict[str, float]:
    """Scores and seconds of one run. The same seed: the same first weights and batches."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    parts = load(text, choosing)
    head = Head(parts.x.shape[1], parts.classes)
    optimizer = torch.optim.AdamW(head.parameters(), lr=settings["lr"], weight_decay=0.01)
    n, kind = len(parts.x), settings["loss"]
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings["lr"], total_steps=epochs * -(-n // BATCH), pct_start=0.1
    )
    options = {key: settings[key] for key in settings if key not in ("loss", "lr", "lam")}
    gloss: nn.Module | None = None
    started = time.perf_counter()
    if kind == "batch":
        gloss = GLoss(parts.classes, generator=torch.Generator().manual_seed(seed), **options)
    if kind == "corpus":
        gloss = CorpusGLoss(parts.y, parts.x.shape[1], num_classes=parts.classes, **options)
        gloss.refresh(parts.x)
    batches = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for ids in torch.randperm(n, generator=batches).split(BATCH):
            z, logits = head(parts.x[ids])
            loss = F.cross_entropy(logits, parts.y[ids])
            if gloss is not None:
                loss = loss + settings["lam"] * gloss(z, ids if kind == "corpus" else parts.y[ids])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    seconds = time.perf_counter() - started
    with torch.no_grad():
        (z, _), (test_z, logits) = head(parts.x), head(parts.test_x)
        near = parts.y[cosine_topk(test_z, z, VOTES).indices]
        votes = F.one_hot(near, parts.classes).sum(dim=1).argmax(dim=1)
    return {**scores("", logits.argmax(dim=1), parts.test_y), **scores("knn_", votes, parts.test_y), "seconds": seconds}


def scores(prefix: str, predicted: Tensor, truth: Tensor) -> dict[str, float]:
    return {
        f"{prefix}accuracy": float((predicted == truth).double().mean()),
        f"{prefix}macro_f1": float(f1_score(truth.numpy(), predicted.numpy(), average="macro", zero_division=0)),
    }


class Runs:
    """Runs many at a time, one thread each, and keeps a row of every setting: mean and deviation over the seeds."""

    def __init__(self, pool: ProcessPoolExecutor, epochs: int) -> None:
        self.pool, self.epochs = pool, epochs
        self.rows: list[dict[str, Any]] = []
        self.started: dict[str, Future[dict[str, float]]] = {}

    def __call__(self, stage: str, many: list[Settings], seeds: int, *, choosing: bool) -> list[dict[str, Any]]:
        jobs = [(settings, text) for settings in many for text in TEXTS]
        running = [
            [self.run(text, choosing, settings, self.epochs, seed) for seed in range(seeds)] for settings, text in jobs
        ]
        new = []
        for (settings, text), futures in zip(jobs, running, strict=True):
            runs = [future.result() for future in futures]
            row: dict[str, Any] = {"stage": stage, "text": text, "settings": settings, "seeds": seeds}
            for key in (*SCORES, "seconds"):
                values = [run[key] for run in runs]
                row[key] = statistics.mean(values)
                row[f"{key}_deviation"] = statistics.stdev(values) if len(values) > 1 else 0.0
            print(stage, text, settings, {key: round(row[key], 4) for key in (*SCORES, "seconds")}, flush=True)
            new.append(row)
        self.rows += new
        return new

    def run(self, *job: Any) -> Future[dict[str, float]]:
        """A run, if it is not one of an earlier stage."""
        key = json.dumps(job, sort_keys=True)
        if key not in self.started:
            self.started[key] = self.pool.submit(train, *job)
        return self.started[key]

    def best(self, stage: str, many: list[Settings]) -> Settings:
        """Of these settings the one with the best mean of the classifier's accuracy and macro-F1 over the texts."""
        rows = self(stage, many, SWEEP_SEEDS, choosing=True)
        return max(many, key=lambda s: sum(r["accuracy"] + r["macro_f1"] for r in rows if r["settings"] == s))


def experiment(epochs: int, seeds: int, workers: int) -> dict[str, Any]:
    with ProcessPoolExecutor(workers) as pool:
        runs = Runs(pool, epochs)
        ce = runs.best("learning rate", [{"loss": "ce", "lr": lr} for lr in LEARNING_RATES])
        chosen = [ce]
        for loss in ("batch", "corpus"):
            base = {**ce, "loss": loss, "target": "nll"}
            base |= {"n_neighbors": 32, "batch_neighbors": 8} if loss == "corpus" else {}
            grid = [base | {"lam": lam, "sigma": sigma} for lam in LAMBDAS for sigma in SIGMAS]
            found = runs.best(f"lambda and sigma, {loss}", grid)
            if loss == "corpus":
                found = runs.best("neighbours in the bank", [found | {"n_neighbors": k} for k in NEIGHBORS])
                found = runs.best("neighbours in the batch", [found | {"batch_neighbors": m} for m in MATES])
            again = [found | {"lr": lr} for lr in LEARNING_RATES]
            found = runs.best(f"learning rate again, {loss}", again)
            published = [found | {"target": "published", "lam": lam} for lam in LAMBDAS]
            chosen += [found, runs.best(f"lambda of target 'published', {loss}", published)]
        runs("final", chosen, seeds, choosing=False)
    return {"epochs": epochs, "workers": workers, "rows": runs.rows}


# -------------------------------------------------------------------------------------------- the tables
TITLES = {"ce": "cross entropy", "batch": "+ mini-batch GLoss", "corpus": "+ CorpusGLoss"}


def name(settings: Settings) -> str:
    target = f", target {settings['target']!r}" if "target" in settings else ""
    return TITLES[settings["loss"]] + target


def detail(settings: Settings) -> str:
    words = {"lr": "lr", "lam": "lambda", "sigma": "sigma", "n_neighbors": "k", "batch_neighbors": "batch"}
    return ", ".join(f"{word} {settings[key]:g}" for key, word in words.items() if key in settings)


def markdown(report: dict[str, Any]) -> str:
    final = [row for row in report["rows"] if row["stage"] == "final"]
    parts = [tables.heading(report)]
    parts.append(
        f"Frozen MiniLM embeddings, a residual head and a linear classifier, {report['epochs']} epochs, batch {BATCH}; "
        f"mean ± standard deviation over {final[0]['seeds']} seeds on test documents. kNN: vote of the {VOTES} nearest "
        "training documents. Seconds: a run on one thread, two runs at a time."
    )
    for text in TEXTS:
        rows = [row for row in final if row["text"] == text]
        parts.append(f"## {text}\n\n" + table(rows, "loss", lambda r: name(r["settings"])) + "\n\n" + verdict(rows))
    parts.append("## The choices\n\nOn validation documents, the same for both texts; by the mean of accuracy and "
                 f"macro-F1 of the classifier, {SWEEP_SEEDS} seeds.")  # fmt: skip
    for stage in dict.fromkeys(row["stage"] for row in report["rows"]):
        if stage == "final":
            continue
        rows = [row for row in report["rows"] if row["stage"] == stage]
        parts.append(f"### {stage}\n\n" + table(rows, "settings", lambda r: f"{r['text']}: {detail(r['settings'])}"))
    return "\n\n".join(parts) + "\n"


def verdict(rows: list[dict[str, Any]]) -> str:
    """Where the others differ from cross entropy, the first row, by more than two standard errors."""
    base, lines = rows[0], ["Against cross entropy, by more than two standard errors of the difference:"]
    for row in rows[1:]:
        words: dict[str, list[str]] = {"better": [], "worse": [], "no difference": []}
        for key, title in zip(SCORES, NAMES, strict=True):
            gain = row[key] - base[key]
            error = ((row[f"{key}_deviation"] ** 2 + base[f"{key}_deviation"] ** 2) / row["seeds"]) ** 0.5
            kind = "no difference" if abs(gain) <= 2 * error else "better" if gain > 0 else "worse"
            words[kind].append(f"{title} ({gain:+.3f})" if kind != "no difference" else title)
        said = "; ".join(f"{kind} in {', '.join(titles)}" for kind, titles in words.items() if titles)
        lines.append(f"- {name(row['settings'])}: {said}")
    return "\n".join([lines[0], "", *lines[1:]])


def table(rows: list[dict[str, Any]], title: str, first: Any) -> str:
    is_final = rows[0]["stage"] == "final"
    names = [title, *NAMES, "seconds"]
    names += ["settings"] if is_final else []
    lines = ["| " + " | ".join(names) + " |", "|---|" + "---:|" * 5 + ("---|" if is_final else "")]
    for row in rows:
        cells = [first(row)]
        cells += [
            f"{row[key]:.3f} ± {row[f'{key}_deviation']:.3f}" if is_final else f"{row[key]:.3f}" for key in SCORES
        ]
        cells.append(f"{row['seconds']:.1f}")
        cells += [detail(row["settings"])] if is_final else []
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--output", type=Path, default=machine.HERE / "results" / "corpus_quality")
    parser.add_argument("--redraw", action="store_true", help="the tables again from OUTPUT.json")
    args = parser.parse_args()
    path = args.output.with_suffix(".json")
    if not args.redraw:
        found = experiment(args.epochs, args.seeds, args.workers)
        report = {"machine": machine.describe(), "peaks": machine.peaks(), **found}
        path.write_text(json.dumps(report, indent=1) + "\n")
    text = markdown(json.loads(path.read_text()))
    args.output.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()

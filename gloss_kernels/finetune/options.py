"""The options of `gloss-kernels finetune`."""

from __future__ import annotations

import argparse
from typing import Any

from gloss_kernels.cli.errors import CommandError
from gloss_kernels.cli.options import Help, number, whole
from gloss_kernels.finetune.clock import Clock
from gloss_kernels.finetune.settings import (
    DEMO_EPOCHS,
    DEMO_GRAPH,
    DEMO_MAX_LENGTH,
    DEMO_TRAIN_LAYERS,
    EPOCHS,
    GRAPH,
    GRAPHS,
    LABELED_FRACTION,
    LOSSES,
    MAX_LENGTH,
)
from gloss_kernels.sigma import HEURISTICS


def batch_size(text: str) -> int:
    if text.strip() == "1":
        raise argparse.ArgumentTypeError("must be at least 2, got 1: a batch of one document has no graph")
    return whole(2)(text)


def sigma(text: str) -> str:
    if text in HEURISTICS:
        return text
    return str(number(0, closed=False, words=", ".join(HEURISTICS))(text))


def add_parser(commands: Any) -> None:
    p = commands.add_parser(
        "finetune",
        help="fine-tune a text encoder with cross entropy, G-Loss or both",
        description="Fine-tune a text encoder with (1 - lambda) cross entropy + lambda G-Loss, one encoder forward per "
        "step; or with G-Loss alone, followed by a linear probe on the frozen embeddings. Without --train it is a demo "
        "on docstrings of the libraries installed here, to be told apart by library: it compares cross entropy with "
        "--loss, and takes two to three minutes on two CPU cores, since what costs time is set lower (see the defaults "
        "below). After the first batches it says how long it will take.",
        formatter_class=Help,
        allow_abbrev=False,
    )
    p.set_defaults(run=_run)

    data = p.add_argument_group("documents (CSV, or CSV.gz, with the columns text and label)")
    data.add_argument("--train", metavar="FILE", help="training documents (default: the built-in docstrings)")
    data.add_argument("--val", metavar="FILE", help="validation documents (default: 15%% of --train, by class)")
    data.add_argument("--test", metavar="FILE", help="test documents (default: 15%% of --train, by class)")
    data.add_argument("--limit", type=whole(2), metavar="N", help="train on a random N of the training documents")

    model = p.add_argument_group("encoder")
    model.add_argument("--model", metavar="NAME", help="Hugging Face name or folder (default: the packaged MiniLM)")
    model.add_argument("--pooling", choices=("mean", "cls"), default="mean", help="tokens to one embedding")
    model.add_argument(
        "--max-length",
        type=whole(4),
        metavar="N",
        help=f"tokens kept per document (default: {MAX_LENGTH}, demo {DEMO_MAX_LENGTH}: an epoch in half the time)",
    )
    model.add_argument(
        "--train-layers",
        type=whole(1),
        metavar="N",
        help=f"train only the last N layers (default: all, with the word embeddings; demo {DEMO_TRAIN_LAYERS} of 6: an "
        "epoch in half the time, since the others have no backward)",
    )

    loss = p.add_argument_group("loss")
    loss.add_argument("--loss", choices=LOSSES, default="ce+gloss", help="what is minimised")
    loss.add_argument("--lam", "--lambda", dest="lam", type=number(0, 1), default=0.5, help="share of G-Loss")
    loss.add_argument(
        "--graph",
        choices=GRAPHS,
        help="G-Loss joins a batch's documents to each other, or to the nearest of all training documents, by a memory "
        f"bank of their embeddings (default: {GRAPH}, demo {DEMO_GRAPH})",
    )
    loss.add_argument(
        "--sigma",
        type=sigma,
        default="0.5",
        help=f"width of the Gaussian edges; or by rule: {', '.join(HEURISTICS)}",
    )
    loss.add_argument(
        "--labeled-fraction",
        type=number(0, 1, closed=False),
        metavar="SHARE",
        help=f"share of a batch that keeps its label, with --graph batch (default: {LABELED_FRACTION})",
    )
    loss.add_argument(
        "--neighbors",
        type=whole(1),
        metavar="K",
        help="neighbours per document (default: the whole batch, with --graph corpus 32)",
    )
    loss.add_argument("--class-weights", choices=("none", "balanced"), default="none", help="weights of the classes")

    train = p.add_argument_group("training")
    train.add_argument(
        "--epochs",
        type=whole(1),
        metavar="N",
        help=f"passes over the training documents (default: {EPOCHS}, demo {DEMO_EPOCHS})",
    )
    train.add_argument("--batch-size", type=batch_size, default=64, help="documents per step, at most")
    train.add_argument("--learning-rate", type=number(0, closed=False), default=2e-4, help="of the encoder")
    train.add_argument("--head-learning-rate", type=number(0, closed=False), default=5e-3, help="of the linear head")
    train.add_argument(
        "--patience", type=whole(0), default=2, help="stop after this many epochs without a better validation; 0: never"
    )
    train.add_argument("--seed", type=whole(0), default=0, help="of the split, the head, the shuffles, the dropout")
    train.add_argument(
        "--precision", choices=("auto", "bf16", "fp32"), default="auto", help="auto: bf16 where it is fast"
    )
    train.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")

    out = p.add_argument_group("output")
    out.add_argument("--output", metavar="DIR", help="folder of the run (default: gloss-runs/<date-time>)")
    out.add_argument("--resume", action="store_true", help="resume the run in --output after interruption")
    out.add_argument("--overwrite", action="store_true", help="replace the run in --output")
    out.add_argument(
        "--compare",
        action=argparse.BooleanOptionalAction,
        help="train with ce and with --loss, print both side by side (default: only in the demo)",
    )


def _run(args: argparse.Namespace, words: list[str]) -> int:
    clock = Clock()  # the import below takes some seconds
    try:
        from gloss_kernels.finetune.command import run
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name in ("", "gloss_kernels"):
            raise
        raise CommandError(f"{name} is missing: pip install '.[demo]'") from None
    return run(args, words, clock)

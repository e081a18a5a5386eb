"""`gloss-kernels finetune` from its parsed options to the files in --output."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import platform
import shlex
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import gloss_kernels
from gloss_kernels._files import flush_folder, replacing
from gloss_kernels.cli.errors import CommandError
from gloss_kernels.cli.options import choose_device
from gloss_kernels.cli.terminal import is_out_of_memory
from gloss_kernels.finetune import checkpoint, comparison
from gloss_kernels.finetune.clock import Clock, in_words
from gloss_kernels.finetune.comparison import Result
from gloss_kernels.finetune.data import Dataset, load_dataset
from gloss_kernels.finetune.encoder import Classifier, load_encoder, packaged_model, tokenize
from gloss_kernels.finetune.evaluation import embedding_scores, head_scores
from gloss_kernels.finetune.settings import (
    DEMO_EPOCHS,
    DEMO_GRAPH,
    DEMO_MAX_LENGTH,
    DEMO_TRAIN_LAYERS,
    EPOCHS,
    GRAPH,
    LABELED_FRACTION,
    MAX_LENGTH,
    Settings,
)
from gloss_kernels.finetune.training import Part, Trainer, run_work

PACKAGED = "packaged MiniLM"  # its folder differs between machines; the settings hold this name


@dataclasses.dataclass
class Task:
    """What the runs of one command share: the encoder as it came, the documents as tokens."""

    data: Dataset
    encoder: torch.nn.Module
    tokenizer: Any
    parts: dict[str, Part]
    device: torch.device
    clock: Clock

    def model(self, settings: Settings) -> Classifier:
        """A copy of the encoder with a new head; the same seed gives the same head."""
        return Classifier(
            copy.deepcopy(self.encoder),
            self.tokenizer,
            settings.pooling,
            len(self.data.classes),
            unit_rows=settings.loss == "gloss",
            seed=settings.seed,
        ).to(self.device)


def run(args: argparse.Namespace, words: list[str], clock: Clock) -> int:
    device = choose_device(args.device)
    settings = choose_settings(args, device)
    output = choose_output(args)
    task = load_task(args, settings, device, clock)
    if args.overwrite:
        checkpoint.clear(output)
    describe(task, settings, output)
    try:
        if wants_comparison(args):
            text = compare(settings, task, output, resume=args.resume)
        else:
            clock.panels = comparison.PANELS[1]
            text = comparison.table([finetune(settings, task, output, resume=args.resume)])
    except KeyboardInterrupt:
        clock.progress.clear()
        print(f"\ninterrupted; to resume: {resume_command(words, output)}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # of stdout; the last checkpoint is whole
        clock.progress.clear()
        print(f"\nstdout was closed; to resume: {resume_command(words, output)}", file=sys.stderr)
        raise
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise CommandError(f"{device} is out of memory; try a smaller --batch-size or --max-length", code=1) from None
    except OSError as error:  # a full disk; the last checkpoint is whole
        reason = f"{error.filename or output}: {error.strerror or error}"
        raise CommandError(f"cannot be written: {reason}; to resume: {resume_command(words, output)}") from None
    finally:
        clock.progress.clear()
    print(f"\n{text}\n\npictures: {output / 'projection.png'}, {output / 'curves.png'}")
    print(f"written to {output} in {in_words(clock.elapsed())}")
    return 0


def load_task(args: argparse.Namespace, settings: Settings, device: torch.device, clock: Clock) -> Task:
    data = load_dataset(args.train, args.val, args.test, limit=args.limit, seed=args.seed)
    name = packaged_model() if settings.model == PACKAGED else settings.model
    encoder, tokenizer = load_encoder(name, settings.max_length, settings.seed)
    parts = {
        name: Part(
            tokenize(tokenizer, part.texts, settings.max_length),
            torch.tensor(data.ids(part), dtype=torch.int64, device="cpu"),
        )
        for name, part in (("train", data.train), ("val", data.val), ("test", data.test))
    }
    return Task(data, encoder, tokenizer, parts, device, clock)


def compare(settings: Settings, task: Task, folder: Path, *, resume: bool) -> str:
    """Cross entropy against another loss, each in a folder of its own; the table."""
    losses = ("ce", "ce+gloss" if settings.loss == "ce" else settings.loss)
    both = dataclasses.replace(settings, loss=" against ".join(losses))
    checkpoint.open_folder(folder, identity(both, task.data), resume=resume)
    results = []
    for i, loss in enumerate(losses):
        one = dataclasses.replace(settings, loss=loss)
        print(comparison.loss_title(dataclasses.asdict(one)), flush=True)
        task.clock.panels = comparison.PANELS[2] + (2 - i) * comparison.PANELS[1]
        results.append(finetune(one, task, folder / loss.replace("+", "_"), resume=resume, then=losses[i + 1 :]))
    task.clock.progress.show("pictures")
    return comparison.write(results, task.data.classes, folder)


def identity(settings: Settings, data: Dataset) -> dict[str, Any]:
    return {**dataclasses.asdict(settings), "documents": data.fingerprint()}


def finetune(settings: Settings, task: Task, folder: Path, *, resume: bool, then: tuple[str, ...] = ()) -> Result:
    """One run: train, score the best weights on the test documents, save everything in its folder.

    ``then``: the losses of the runs after it, for the time that is left.
    """
    data, device = task.data, task.device
    checkpoint.open_folder(folder, identity(settings, data), resume=resume)
    if resume and (folder / checkpoint.METRICS).is_file():
        print("  finished already", flush=True)
        return load_result(folder)
    started = time.perf_counter()
    model, test = task.model(settings), task.parts["test"]
    later = sum(run_work(dataclasses.replace(settings, loss=loss), model, task.parts).all() for loss in then)
    trainer = Trainer(settings, model, task.parts, folder, device, task.clock, later)
    before = trainer.embed(test)
    trainer.run(resume=resume)
    task.clock.title = "test documents"
    after = trainer.embed(test)
    task.clock.progress.show("pictures")
    history, best = trainer.progress.history, int(trainer.progress.best["epoch"])
    metrics: dict[str, Any] = {
        "test": head_scores(model, after, test.labels) | embedding_scores(after, test.labels, settings.seed),
        "before": embedding_scores(before, test.labels, settings.seed),
        "best_epoch": best,
        "seconds_per_epoch": statistics.median(record["seconds"] for record in history),
        "sigma": trainer.sigma,
        "history": history,
        "settings": dataclasses.asdict(settings),
        "documents": {
            name: {"source": part.source, "count": len(part)}
            for name, part in (("train", data.train), ("val", data.val), ("test", data.test))
        },
        "classes": data.classes,
        "versions": {
            "gloss_kernels": gloss_kernels.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "device": str(device),
        "threads": torch.get_num_threads(),
    }
    result = Result(metrics, before, after, test.labels)
    model.save(folder / checkpoint.MODEL, data.classes)
    with replacing(folder / checkpoint.EMBEDDINGS) as beside:
        save_file({"before": before, "after": after, "labels": test.labels}, beside)
    comparison.draw([result], data.classes, folder)
    flush_folder(folder / checkpoint.MODEL)
    metrics["seconds"] = time.perf_counter() - started
    checkpoint.write_json(folder / checkpoint.METRICS, metrics)  # last: its presence says that the run is finished
    (folder / checkpoint.CHECKPOINT).unlink(missing_ok=True)
    return result


def load_result(folder: Path) -> Result:
    try:
        metrics = checkpoint.read_json(folder / checkpoint.METRICS)
        saved = load_file(folder / checkpoint.EMBEDDINGS)
        result = Result(metrics, saved["before"], saved["after"], saved["labels"])
        comparison.table([result])  # that all of what is shown is there
        if not len(result.before) == len(result.after) == len(result.labels):
            raise ValueError("embeddings and labels of different length")
    except CommandError:
        raise
    except Exception as error:  # what a broken file raises is up to safetensors
        reason = f"{type(error).__name__}: {error}"
        raise CommandError(f"the results in {folder} cannot be read ({reason}); use --overwrite") from None
    return result


def choose_settings(args: argparse.Namespace, device: torch.device) -> Settings:
    values = {field.name: getattr(args, field.name) for field in dataclasses.fields(Settings)}
    values["model"] = args.model or PACKAGED
    demo = args.train is None
    values["epochs"] = args.epochs or (DEMO_EPOCHS if demo else EPOCHS)
    values["max_length"] = args.max_length or (DEMO_MAX_LENGTH if demo else MAX_LENGTH)
    # Another model than the packaged one may have no list of layers, and time enough was taken to choose it.
    values["train_layers"] = args.train_layers or (DEMO_TRAIN_LAYERS if demo and args.model is None else None)
    if args.precision == "auto":
        values["precision"] = "bf16" if fast_bf16(device) else "fp32"
    if args.loss == "ce+gloss" and args.lam == 1:
        values["loss"] = "gloss"  # nothing is left to train a head with
    values["graph"] = choose_graph(args)
    if values["graph"] == "batch":
        values["labeled_fraction"] = args.labeled_fraction or LABELED_FRACTION
        if args.neighbors is not None and args.neighbors >= args.batch_size:
            raise CommandError(f"--neighbors must be less than --batch-size {args.batch_size}, got {args.neighbors}")
    elif args.labeled_fraction is not None:
        raise CommandError("--labeled-fraction is for --graph batch; with --graph corpus a batch hides all its labels")
    elif args.sigma == "self-tuning":
        raise CommandError("--sigma must be a number, root or mst with --graph corpus, got self-tuning")
    elif args.loss == "ce" and not wants_comparison(args):
        raise CommandError("--loss must be gloss or ce+gloss with --graph corpus, got ce")
    return Settings(**values)


def choose_graph(args: argparse.Namespace) -> str:
    """Said, or else the demo's, unless another option is for the graph of a batch only."""
    if args.graph is not None:
        return str(args.graph)
    of_batch = args.labeled_fraction is not None or args.sigma == "self-tuning"
    trains_gloss = args.loss != "ce" or wants_comparison(args)
    return DEMO_GRAPH if args.train is None and trains_gloss and not of_batch else GRAPH


def wants_comparison(args: argparse.Namespace) -> bool:
    """Said, or else the demo's."""
    said: bool | None = args.compare
    return args.train is None if said is None else said


def fast_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)  # without it bf16 is emulated, slower than fp32
    usable = torch.backends.cpu.get_cpu_capability() == "AVX512"  # ATEN_CPU_CAPABILITY may have set it lower
    return device.type == "cpu" and usable and supported is not None and bool(supported())


def choose_output(args: argparse.Namespace) -> Path:
    if args.resume and args.overwrite:
        raise CommandError("--resume and --overwrite exclude each other")
    if args.output is None:
        if args.resume or args.overwrite:
            raise CommandError(f"--{'resume' if args.resume else 'overwrite'} needs --output DIR")
        return Path("gloss-runs") / time.strftime("%Y%m%d-%H%M%S")
    output = Path(args.output)
    if args.resume and not (output / checkpoint.SETTINGS).is_file():
        print(f"no run in {output} yet: starting one", flush=True)
    inputs = {f"--{name}": getattr(args, name) for name in ("train", "val", "test", "model")}
    checkpoint.check_output(output, resume=args.resume, overwrite=args.overwrite, inputs=inputs)
    return output


def describe(task: Task, settings: Settings, output: Path) -> None:
    data, device = task.data, task.device
    counts = f"{len(data.train):,} training, {len(data.val):,} validation, {len(data.test):,} test documents"
    print(f"{data.train.source}: {counts}, {len(data.classes)} classes")
    where = f"{device}, {torch.get_num_threads()} threads" if device.type == "cpu" else str(device)
    print(f"{settings.model}, {settings.pooling} pooling, {settings.precision}, {where} -> {output}", flush=True)


def resume_command(words: list[str], output: Path) -> str:
    kept = [word for word in words if word not in ("--resume", "--overwrite")]
    if not any(word == "--output" or word.startswith("--output=") for word in kept):
        kept += ["--output", str(output)]
    return shlex.join(["gloss-kernels", *kept, "--resume"])

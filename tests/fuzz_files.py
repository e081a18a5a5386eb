"""Hostile files for every reader: ``python tests/fuzz_files.py --inputs 100000 --seed 0`` (some minutes).

A good file is cut, bit-flipped, spliced with another format, given huge or negative numbers; what has a checksum gets
the right one again half of the time, so that the code behind the check is reached. A reader may return, or raise what
its docstring names. A crash, another exception, or more than MOST bytes of memory is a finding; it is printed with the
number of its input, and ``--only READER --start NUMBER --inputs 1`` repeats it. Each reader runs in a process of its
own, whose memory is limited. tests/test_hostile_files.py runs a few hundred inputs of each, and keeps what was found.
"""

from __future__ import annotations

import argparse
import functools
import gzip
import io
import json
import os
import random
import re
import resource
import struct
import subprocess
import sys
import tempfile
import traceback
import types
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gloss_kernels import CorpusGLoss, NeighborIndex, SimilarityGraph, similarity_graph
from gloss_kernels.cli import files, propagate
from gloss_kernels.cli.errors import CommandError
from gloss_kernels.neighbors import files as index_files
from gloss_kernels.neighbors import knn

MOST = 96 << 20  # bytes that a reader may touch for a file of some kilobytes: 16 MiB unpacked, and what it makes of it
LIMIT = 6 << 30  # of the address space above what the imports took
NUMBERS = (0, 1, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**64 - 1)
WORDS = (
    b"-1", b"0", b"1e999", b"NaN", b"99999999999999999999", b"4611686018427387904", b"null", b"[]", b"{}", b"true",
    b"'|O'", b"'<i4'", b"'<f8'", b"'V0'", b"'<U9'", b"[('a','O')]", b"True", b"../../x", b"/proc/self/mem", b"\x00",
    b'"', b"\xff", b"\xed\xa0\x80", b",", b"\n", b"(" * 200, b"[" * 3000, b"cos\nsystem\n(S'true'\ntR.",
)  # fmt: skip
Reader = Callable[[Path], object]


def mutate(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """One to four changes; others: files to take pieces from."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(data) + 1) if rng.random() < 0.5 else min(len(data), int(rng.expovariate(1 / 60)))
        until = min(len(data), at + rng.choice((1, 2, 4, 8, 60, 1000)))
        change = rng.randrange(8)
        if change == 0:
            data = data[:at]
        elif change == 1 and at < len(data):
            data = data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        elif change == 2:
            data = data[:at] + data[until:]
        elif change == 3:
            data = data[:until] + data[at:until] * rng.choice((1, 3, 50)) + data[until:]
        elif change == 4:
            form, bits = rng.choice((("<B", 8), ("<H", 16), ("<I", 32), ("<Q", 64)))
            data = data[:at] + struct.pack(form, rng.choice(NUMBERS) % 2**bits) + data[at + bits // 8 :]
        elif change == 5:
            data = data[:at] + rng.choice(WORDS) + data[rng.choice((at, until)) :]
        elif change == 6 and (
            found := list(re.finditer(rb"-?\d+|'[^']*'|\"[^\"]*\"|True|False|true|false", data[:4096]))
        ):
            part = rng.choice(found)
            data = data[: part.start()] + rng.choice(WORDS) + data[part.end() :]
        elif change == 7:
            other = rng.choice(others)
            cut = rng.randrange(len(other) + 1)
            data = data[:at] + other[cut:] if rng.random() < 0.5 else other[:cut] + data[at:]
    return data


def mutate_zip(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """A member is changed and the archive packed anew, with the right checksums; or the archive itself is changed."""
    if rng.random() < 0.4:
        return mutate(data, rng, others)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    name = rng.choice([*members])
    change = rng.randrange(10)
    if change == 0:
        members[name + ".old"] = members.pop(name)
    elif change == 1:
        members["../../" + name] = members[name]
    elif change == 2:
        members[name] += bytes(rng.choice((1, 1 << 10, 1 << 26)))  # a bomb, where it is deflated
    else:
        members[name] = mutate(members[name], rng, [*members.values(), *others])
    out = io.BytesIO()
    packing = zipfile.ZIP_DEFLATED if change < 3 or rng.random() < 0.2 else zipfile.ZIP_STORED
    with zipfile.ZipFile(out, "w", packing, compresslevel=1) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def mutate_gzip(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    if rng.random() < 0.002:
        return bomb()
    if rng.random() < 0.5:
        return mutate(data, rng, others)
    packed = gzip.compress(mutate(data, rng, others), 1)
    return mutate(packed, rng, others) if rng.random() < 0.3 else packed


@functools.cache
def bomb() -> bytes:
    """64 kB that unpack to 64 MiB of rows."""
    return gzip.compress(b"text,label\n" + b"many documents of one kind,kind\n" * (1 << 21))


def mutate_index(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """Half of the time the header gets the right checksum. FAISS's own bytes keep theirs: SECURITY.md says why."""
    if rng.random() < 0.5:
        return mutate(data, rng, others)
    magic, version, _, length = index_files.START.unpack_from(data)
    size = index_files.START.size
    text = mutate(data[size : size + length], rng, others)
    text += b" " * (-(size + len(text)) % 64) if rng.random() < 0.8 else b""
    return index_files.START.pack(magic, version, zlib.crc32(text), len(text)) + text + data[size + length :]


# ------------------------------------------------------------------------------------------- readers
def npy(folder: Path) -> tuple[list[bytes], Any, Reader]:
    def read(path: Path) -> None:
        files.load_array("EMBEDDINGS", str(path))
        propagate.load_labels(str(path))

    arrays = [np.arange(40) % 4 - 1, np.arange(40, dtype=np.uint8), np.ones((5, 8), np.float32, order="F")]
    return [_saved(folder, lambda path, a=a: np.save(path, a), ".npy") for a in arrays], mutate, read


def npz(folder: Path) -> tuple[list[bytes], Any, Reader]:
    graph = similarity_graph(torch.randn(20, 4, generator=torch.Generator().manual_seed(0)), 3)
    return [_saved(folder, graph.save)], mutate_zip, lambda path: SimilarityGraph.load(path)


def csv(folder: Path) -> tuple[list[bytes], Any, Reader]:
    from gloss_kernels.finetune.data import one_spelling, read_csv

    def read(path: Path) -> None:
        documents = read_csv(str(path))
        (spelt,) = one_spelling([documents])
        assert len(spelt.texts) == len(spelt.labels) and all(spelt.texts) and all(spelt.labels)

    rows = 'text,label\n"a, b",sky\n"say ""x""\nand y",food\ncafé,n\u0303\n\ncafe\u0301,\u200bsky\n'
    return [rows.encode(), ("\ufeffid;" + rows).replace(";", ",").encode("utf-8")], mutate_gzip, read


def index(folder: Path) -> tuple[list[bytes], Any, Reader]:
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))

    def read(path: Path) -> None:
        try:
            found = NeighborIndex.load(path)
        except ValueError as error:
            if "embeddings must be the rows" not in str(error):
                raise
            found = NeighborIndex.load(path, x)
        found.describe()
        found.knn(3)

    seeds = []
    for kind in ("exact", "flat", "hnsw") if _has("faiss") else ("exact",):
        built = NeighborIndex.build(x, kind)
        seeds += [_saved(folder, lambda path, i=built, v=v: i.save(path, vectors=v)) for v in (True, False)]
    built.add(x[:7].double())
    return [*seeds, _saved(folder, built.save)], mutate_index, read


def knn_folder(folder: Path) -> tuple[list[bytes], Any, Reader]:
    """Of the three files of a search that was interrupted, one is hostile."""
    keeping = knn.Keeping(folder / "kept", "of x")
    blocks = knn.Blocks(8, 2, keeping)
    blocks.put(0, knn.TopK(torch.ones(4, 2), torch.ones(4, 2, dtype=torch.int64)))
    good = {name: (folder / "kept" / name).read_bytes() for name in knn.FILES}

    def read(path: Path) -> None:
        data = path.read_bytes()
        for name, content in good.items():
            kind = (knn.STATE, knn.INDICES, knn.VALUES)[zlib.crc32(data) % 3]
            (folder / "kept" / name).write_bytes(data if name == kind else content)
        knn.Blocks(8, 2, keeping)

    return [*good.values()], mutate, read


def checkpoint(folder: Path) -> tuple[list[bytes], Any, Reader]:
    """Through what a run does with it, for a model of one layer."""
    from gloss_kernels.finetune import checkpoint as file
    from gloss_kernels.finetune.training import Trainer

    corpus = CorpusGLoss(torch.arange(6) % 2, 3, num_classes=2, n_neighbors=2)
    corpus.refresh(torch.eye(3).repeat(2, 1), torch.arange(6))

    class Objective:
        def restore(self, state: dict[str, Any]) -> None:
            corpus.load_state_dict(state["corpus"])

    model = torch.nn.Linear(3, 2)
    run = types.SimpleNamespace(model=model, device=torch.device("cpu"), objective=Objective(), progress=None)
    run.optimizer = torch.optim.AdamW(model.parameters())
    run.scheduler = torch.optim.lr_scheduler.LambdaLR(run.optimizer, lambda step: 1.0)
    model(torch.ones(1, 3)).sum().backward()
    run.optimizer.step()
    parts = {name: getattr(run, name).state_dict() for name in ("model", "optimizer", "scheduler")}
    best = {"epoch": 1, "macro_f1": 0.5, "model": dict(model.state_dict())}
    objective = {"corpus": corpus.state_dict()}
    state = {**parts, "history": [{"epoch": 1.0}], "best": best, "rng": torch.get_rng_state(), "rng_cuda": None}
    file.save_checkpoint(folder, {**state, "objective": objective})

    def read(path: Path) -> None:
        os.replace(path, folder / file.CHECKPOINT)
        loaded = file.load_checkpoint(folder)
        with file.restoring(folder):
            Trainer._restore(run, loaded)

    return [(folder / file.CHECKPOINT).read_bytes()], mutate_zip, read


def results(folder: Path) -> tuple[list[bytes], Any, Reader]:
    """metrics.json or the embeddings of a finished run."""
    from safetensors.torch import save_file

    from gloss_kernels.finetune import checkpoint as file
    from gloss_kernels.finetune.command import load_result

    scores = {"accuracy": 1.0, "macro_f1": 1.0, "silhouette": None, "knn_accuracy": 0.5}
    metrics = {"test": scores, "before": scores, "best_epoch": 1, "seconds_per_epoch": 0.1, "settings": {"loss": "ce"}}
    metrics |= {"history": [{"epoch": 1.0, "val_macro_f1": 1.0}]}
    file.write_json(folder / file.METRICS, metrics)
    rows = torch.ones(4, 3)
    save_file({"before": rows, "after": rows + 1, "labels": torch.arange(4)}, folder / file.EMBEDDINGS)
    good = {name: (folder / name).read_bytes() for name in (file.METRICS, file.EMBEDDINGS)}

    def read(path: Path) -> None:
        data = path.read_bytes()
        hostile = file.METRICS if zlib.crc32(data) % 2 else file.EMBEDDINGS
        for name, content in good.items():
            (folder / name).write_bytes(data if name == hostile else content)
        load_result(folder)

    return [*good.values()], mutate, read


READERS = {
    "npy": npy,
    "npz": npz,
    "csv": csv,
    "index": index,
    "knn": knn_folder,
    "checkpoint": checkpoint,
    "results": results,
}
ALLOWED: dict[str, tuple[type[Exception], ...]] = {name: (CommandError,) for name in READERS}
ALLOWED |= {"npz": (ValueError,), "index": (ValueError,), "knn": (ValueError,)}


def _has(name: str) -> bool:
    return __import__("importlib.util").util.find_spec(name) is not None


def _saved(folder: Path, save: Callable[[Path], object], suffix: str = "") -> bytes:
    path = folder / f"seed{suffix}"
    save(path)
    return path.read_bytes()


# ------------------------------------------------------------------------------------------- the run
def peak() -> int:
    """Bytes that this process held at most since the last reset."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) << 10
    return 0


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def run_reader(name: str, seed: int, start: int, inputs: int, limit: bool = True) -> dict[str, Any]:
    """Counts of what the reader said of its inputs, and the findings."""
    said: Counter[str] = Counter()
    findings: list[str] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        seeds, change, read = READERS[name](folder)
        others = [
            *seeds,
            b"",
            bytes(range(256)),
            b"\x89PNG\r\n",
            b"PK\x05\x06" + bytes(18),
            b"\x93NUMPY\x01\x00\xff\xff{",
        ]
        if limit:
            size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + LIMIT
            resource.setrlimit(resource.RLIMIT_AS, (size, size))
        for i in range(start, start + inputs):
            rng = random.Random(f"{name} {seed} {i}")
            data = change(rng.choice(seeds), rng, others)
            path = folder / "hostile"
            path.write_bytes(data)
            del data
            reset_peak()
            before = peak()
            try:
                read(path)
                said["read"] += 1
            except ALLOWED[name] as error:
                said["refused"] += 1
                if len(str(error)) > 2000 or not str(error):
                    findings.append(f"{name} {i}: a message of {len(str(error))} characters")
            except BaseException as error:
                said["other"] += 1
                at = traceback.extract_tb(error.__traceback__)[-1]
                findings.append(f"{name} {i}: {type(error).__name__}: {str(error)[:200]} ({at.filename}:{at.lineno})")
            if (grown := peak() - before) > MOST:
                findings.append(
                    f"{name} {i}: {grown >> 20} MiB for {path.stat().st_size if path.exists() else 0} bytes"
                )
    return {"said": dict(said), "findings": findings}


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    p.add_argument("--inputs", type=int, default=100_000, help="of each reader")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--start", type=int, default=0, help="number of the first input")
    p.add_argument("--only", choices=READERS)
    p.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.child:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (warnings of labels that look alike)
        print(json.dumps(run_reader(args.only, args.seed, args.start, args.inputs)))
        return 0
    failed = False
    for name in [args.only] if args.only else READERS:
        words = [f"--seed={args.seed}", f"--start={args.start}", f"--inputs={args.inputs}", f"--only={name}", "--child"]
        done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{name}: the process ended with {done.returncode}\n{done.stderr[-2000:]}")
            failed = True
            continue
        outcome = json.loads(done.stdout.splitlines()[-1])
        counts = ", ".join(f"{count:,} {what}" for what, count in sorted(outcome["said"].items()))
        print(f"{name}: {args.inputs:,} inputs: {counts}; {len(outcome['findings'])} findings", flush=True)
        for finding in outcome["findings"][:20]:
            print("  " + finding)
        failed |= bool(outcome["findings"])
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

"""Cost of a CorpusGLoss step (forward + backward) by the size of the corpus, beside the same step in plain torch.

    python bench/corpus_cost.py [--sizes 10000 100000 1000000] [--output bench/results/corpus_cost]

Synthetic documents (bench/data.py), d = 384, 20 classes, all labelled, a float16 bank, batches of 128. The peer
computes the same loss: the bank in pieces, converted to float32, times the batch, topk of each piece, topk of all; then
the same weights and a dense solve under autograd. Writes OUTPUT.json, OUTPUT.md and OUTPUT.png.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import machine
import tables
import torch
from data import documents
from harness import _memory, _reset_peak, timed
from torch import Tensor

from gloss_kernels import CorpusGLoss, cosine_topk

D, CLASSES, BATCH, NEIGHBORS, MATES, SIGMA = 384, 20, 128, 32, 8, 0.5
PIECES = (1 << 12, 1 << 13, 1 << 14, 1 << 16)  # rows of the bank that the peer converts at a time: its fastest
MINILM_STEP = 6.7  # seconds: MiniLM forward and backward, 128 documents of 128 tokens, on two such cores


def torch_step(bank: Tensor, labels: Tensor, x: Tensor, ids: Tensor, piece: int, *, normalize: bool = False) -> Tensor:
    """The loss of CorpusGLoss in plain torch. bank [n, d] float16 unit rows, x [b, d] float32.

    Rows stored as float16 have length 1 to 1e-4. It is not timed with normalize=True, which makes them exact for the
    comparison of results: near ties for the last place would go to other neighbours.
    """
    u = torch.nn.functional.normalize(x)
    with torch.no_grad():
        values, indices = [], []
        own = torch.zeros(len(bank), dtype=torch.bool)
        own[ids] = True
        for start in range(0, len(bank), piece):
            rows = bank[start : start + piece].float()
            c = u @ (torch.nn.functional.normalize(rows) if normalize else rows).T
            c.masked_fill_(own[start : start + piece], -torch.inf)
            best = c.topk(min(NEIGHBORS, c.shape[1]))
            values.append(best.values)
            indices.append(best.indices + start)
        best = torch.cat(values, dim=1).topk(NEIGHBORS).indices
        near = torch.cat(indices, dim=1).gather(1, best)  # [b, k]
    rows = torch.nn.functional.normalize(bank[near].float(), dim=2)
    w = torch.exp((torch.bmm(u[:, None], rows.transpose(1, 2)).squeeze(1) - 1) / SIGMA**2)
    outer = w.new_zeros(len(u), CLASSES).scatter_add(1, labels[near], w)
    c = u @ u.T
    mates = c.detach().clone().fill_diagonal_(-torch.inf).topk(MATES).indices
    w = torch.exp((c.gather(1, mates) - 1) / SIGMA**2)
    inner = torch.zeros_like(c).scatter(1, mates, w)
    inner = inner + inner.T
    f = torch.linalg.solve(torch.diag(inner.sum(1) + outer.sum(1)) - inner, outer)
    return -torch.log(0.99 * f[range(len(u)), labels[ids]] + 0.01 / CLASSES).mean()


def measure(n: int, rounds: int) -> dict[str, Any]:
    found = documents(n, real=False)
    labels = found.y % CLASSES
    loss_fn = CorpusGLoss(labels, D, num_classes=CLASSES, n_neighbors=NEIGHBORS, batch_neighbors=MATES, sigma=SIGMA)
    loss_fn.refresh(found.x)
    bank, generator = loss_fn.bank.rows, torch.Generator().manual_seed(0)
    del found

    def batch() -> tuple[Tensor, Tensor]:
        ids = torch.randperm(n, generator=generator)[:BATCH]
        return (bank[ids].float() + 0.02 * torch.randn(BATCH, D, generator=generator)).requires_grad_(), ids

    def ours(x: Tensor, ids: Tensor) -> Tensor:
        loss = loss_fn(x, ids)
        loss.backward()
        return loss.detach()

    def peer(x: Tensor, ids: Tensor, *, normalize: bool = False) -> Tensor:
        loss = torch_step(bank, labels, x, ids, piece, normalize=normalize)
        loss.backward()
        return loss.detach()

    by_piece = {}
    for piece in PIECES:
        peer(*batch())
        by_piece[piece] = min(timed(lambda: peer(*batch()))[0] for _ in range(3))
    piece = min(by_piece, key=by_piece.__getitem__)
    parts = {
        "write": lambda x, ids: (loss_fn._pending.append((ids, x.detach())), loss_fn.flush()),
        "search": lambda x, ids: loss_fn.bank.search(torch.nn.functional.normalize(x.detach()), NEIGHBORS, ids, "auto"),
        "kernel": lambda x, ids: cosine_topk(x.detach().half(), bank, NEIGHBORS + 8),
    }
    row: dict[str, Any] = {"n": n, "bank_bytes": bank.nbytes, "rounds": rounds, "piece": piece}
    for name, step in (("ours", ours), ("torch", peer)):
        step(*batch())
        x, ids = batch()
        gc.collect()
        before = _reset_peak()
        step(x, ids)
        row[f"{name}_peak_bytes"] = None if before is None else max(_memory("VmHWM") - before, 0)
    times: dict[str, list[float]] = {name: [] for name in ("ours", "torch", *parts)}
    for _ in range(rounds):
        x, ids = batch()
        for name, step in {"torch": peer, "ours": ours, **parts}.items():
            loss_fn.flush()
            times[name].append(timed(lambda: step(x, ids))[0])  # noqa: B023
    x, ids = batch()
    y = x.detach().clone().requires_grad_()
    row["loss_difference"] = abs(float(ours(x, ids) - peer(y, ids, normalize=True)))
    row["gradient_difference"] = float((x.grad - y.grad).abs().max() / x.grad.abs().max())
    return row | {name: statistics.median(seconds) for name, seconds in times.items()}


def markdown(report: dict[str, Any]) -> str:
    head = ["documents", "CorpusGLoss", "plain torch", "times faster", "of which search", "memory", "torch's", "bank"]
    lines = [
        [f"{r['n']:,}", tables.duration(r["ours"]), tables.duration(r["torch"]), f"{r['torch'] / r['ours']:.1f}",
         tables.duration(r["search"]), tables.size(r["ours_peak_bytes"]), tables.size(r["torch_peak_bytes"]),
         tables.size(r["bank_bytes"])]
        for r in report["rows"]
    ]  # fmt: skip
    table = ["| " + " | ".join(line) + " |" for line in [head, ["---:"] * len(head), *lines]]
    last = report["rows"][-1]
    targets = [
        ("time over plain torch's", last["ours"] / last["torch"], 1 / 3),
        ("time over that of a MiniLM step", last["ours"] / MINILM_STEP, 1 / 10),
    ]
    table += ["", f"| at {last['n']:,} documents | measured | target | met |", "|---|---:|---:|---|"]
    table += [
        f"| {what} | {value:.3f} | at most {most:.3f} | {'yes' if value <= most else 'no'} |"
        for what, value, most in targets
    ]
    worst = {key: max(r[key] for r in report["rows"]) for key in ("loss_difference", "gradient_difference")}
    rounds, pieces = (", ".join(f"{r[key]:,}" for r in report["rows"]) for key in ("rounds", "piece"))
    notes = (
        f"One step, forward and backward: batch {BATCH}, d = {D}, {CLASSES} classes, {NEIGHBORS} neighbours in the "
        f"bank and {MATES} in the batch, float16 bank, all labelled, synthetic documents; medians of {rounds} steps, "
        f"both in turns on the same batches; plain torch reads the bank in pieces of {pieces} "
        "rows, its fastest. Memory is the peak beyond the bank and the labels. Search: exact "
        "neighbours with their proof; the kernel cosine_topk alone takes "
        f"{', '.join(tables.duration(r['kernel']) for r in report['rows'])}. Largest difference of the two: loss "
        f"{worst['loss_difference']:.0e}, gradient {worst['gradient_difference']:.0e} of its largest entry. The "
        f"MiniLM step ({MINILM_STEP} s for 128 documents of 128 tokens, forward and backward) was measured on two "
        "such cores.\n"
    )
    return "\n".join([tables.heading(report), *table, "", notes])


def draw(report: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from pictures import OURS, PEERS, _style

    rows, about = report["rows"], report["machine"]
    sizes = [r["n"] for r in rows]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    for name, label, color, width in (
        ("ours", "CorpusGLoss", OURS[0], 2.6), ("torch", "plain torch", PEERS[0], 1.4),
    ):  # fmt: skip
        left.plot(sizes, [r[name] for r in rows], "o-", color=color, linewidth=width, label=label)
        right.plot(sizes, [r[f"{name}_peak_bytes"] / 2**20 for r in rows], "o-", color=color, linewidth=width,
                   label=label)  # fmt: skip
    left.plot(sizes, [r["search"] for r in rows], "s--", color=OURS[1], linewidth=1.2, label="its search")
    left.axhline(MINILM_STEP, color="#222222", linewidth=1.2, linestyle=":", label="MiniLM forward + backward")
    right.plot(sizes, [r["bank_bytes"] / 2**20 for r in rows], "-.", color="#222222", linewidth=1.2, label="the bank")
    left.set(title="time of a step (s)", ylabel="s")
    right.set(title="memory beside the bank (MiB)", ylabel="MiB")
    for axis in (left, right):
        _style(axis, sizes)
        axis.legend(frameon=False, fontsize=8)
    figure.suptitle(
        f"A training step against the whole corpus (batch {BATCH}, d = {D})\n{about['processor']}, "
        f"{about['threads']} threads, commit {about['commit']}", fontsize=10,
    )  # fmt: skip
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--output", type=Path, default=machine.HERE / "results" / "corpus_cost")
    args = parser.parse_args()
    rows = []
    for n in args.sizes:
        rows.append(measure(n, rounds=max(7, min(30, 3_000_000 // n))))
        print(json.dumps(rows[-1]), flush=True)
    report = {"machine": machine.describe(), "peaks": machine.peaks(), "rows": rows}
    args.output.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    args.output.with_suffix(".md").write_text(markdown(report))
    draw(report, args.output.with_suffix(".png"))
    print(markdown(report))


if __name__ == "__main__":
    main()

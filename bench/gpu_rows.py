"""What bench/gpu.py measures: one function a job, ours beside its peers, on any device (tests run them on the CPU)."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import gloss_kernels as gk

Run = Callable[[], Any]
ROUNDS = 5
TRITON = "gloss, triton"  # the same functions with backend="triton"


@dataclass
class Row:
    job: str
    method: str  # "gloss" and "gloss, triton" are ours
    seconds: float | None = None
    bound: float | None = None  # seconds: bytes over copy bandwidth, or operations over matrix rate
    peak_bytes: int | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    error: str = ""


@dataclass
class Machine:
    """The measured roofs."""

    copy_bytes: float  # read plus written a second
    matrix_flops: float  # half precision, float32 accumulation


def sync(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(run: Run, device: torch.device, rounds: int | None = None) -> tuple[float, int | None, Any]:
    """Median seconds by CUDA events (a clock on the CPU) after a warm-up, most memory beyond what was there, result."""
    result = run()
    sync(device)
    seconds: list[float] = []
    before = 0
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
    for _ in range(rounds or ROUNDS):
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            end.synchronize()
            seconds.append(start.elapsed_time(end) / 1e3)
        else:
            begin = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - begin)
        if sum(seconds) > 20:
            break
    peak = torch.cuda.max_memory_allocated(device) - before if device.type == "cuda" else None
    return statistics.median(seconds), peak, result


def timed(row: Row, make: Callable[[], Run], device: torch.device, check: Callable[[Any], dict[str, Any]]) -> Row:
    """Fills the row; what goes wrong is written into it and stops nothing else."""
    try:
        row.seconds, row.peak_bytes, result = measure(make(), device)
        row.facts |= check(result)
    except ImportError as error:
        row.error = f"not installed: {error.name}"
    except Exception as error:  # out of memory, a kernel's error, a peer's
        row.error = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return row


def documents(n: int, d: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Unit rows in clusters of clusters; cosines of near neighbours about 0.5, as in text embeddings."""
    generator = torch.Generator(device).manual_seed(0)
    out = torch.empty(n, d, dtype=dtype, device=device)
    topics = torch.randn(2000, d, generator=generator, device=device)
    for begin in range(0, n, 1 << 17):
        part = out[begin : begin + (1 << 17)]
        topic = torch.randint(2000, (len(part),), generator=generator, device=device)
        noise = torch.randn(len(part), d, generator=generator, device=device)
        part.copy_(F.normalize(0.9 * topics[topic] + noise))
    return out


# ------------------------------------------------------------------------------------------------ topk
def mm_topk(queries: Tensor, corpus: Tensor | None, k: int, dtype: torch.dtype) -> Run:
    """Chunks of a matrix product and torch.topk, self left out; TF32 is off by torch's default."""
    rows = (queries if corpus is None else corpus).to(dtype)
    asked = queries.to(dtype)
    chunk = max(1, min(len(asked), (1 << 30) // (len(rows) * rows.element_size())))

    def run() -> Tensor:
        found = []
        for begin in range(0, len(asked), chunk):
            scores = asked[begin : begin + chunk] @ rows.T
            if corpus is None:
                at = torch.arange(len(scores), device=scores.device)
                scores[at, at + begin] = -torch.inf
            found.append(scores.topk(k, dim=1).indices)
        return torch.cat(found)

    return run


def faiss_flat(queries: Tensor, corpus: Tensor | None, k: int) -> Run:
    import faiss
    import faiss.contrib.torch_utils

    rows, asked = (queries if corpus is None else corpus).float(), queries.float()
    index = faiss.GpuIndexFlatIP(faiss.StandardGpuResources(), rows.shape[1])
    index.add(rows)
    return lambda: index.search(asked, k + (corpus is None))[1]


def cuvs_brute_force(queries: Tensor, corpus: Tensor | None, k: int) -> Run:
    import cupy
    from cuvs.neighbors import brute_force

    rows, asked = (cupy.from_dlpack(x.float()) for x in (queries if corpus is None else corpus, queries))
    index = brute_force.build(rows, metric="inner_product")
    return lambda: torch.as_tensor(brute_force.search(index, asked, k + (corpus is None))[1], device=queries.device)


def flash_knn(queries: Tensor, corpus: Tensor | None, k: int) -> Run:
    from flashlib import knn

    return lambda: knn(queries, queries if corpus is None else corpus, k=k + (corpus is None), metric="cosine")


def recall(queries: Tensor, corpus: Tensor | None, k: int, rows: int = 100) -> Callable[[Any], dict[str, Any]]:
    """The share of the chosen whose float64 cosine reaches the true k-th best less 2e-6, on some rows."""

    def check(found: Any) -> dict[str, Any]:
        indices = found.indices if isinstance(found, gk.TopK) else found
        if not isinstance(indices, Tensor):
            return {}
        at = torch.linspace(0, len(queries) - 1, min(rows, len(queries)), device=queries.device).long()
        c = F.normalize(queries[at].double()) @ F.normalize((queries if corpus is None else corpus).double()).T
        if corpus is None:
            c[torch.arange(len(at), device=c.device), at] = -torch.inf
        kth = c.topk(k, dim=1).values[:, -1:]
        return {"recall": float((c.gather(1, indices[at].long()[:, :k]) >= kth - 2e-6).double().mean())}

    return check


def topk_rows(machine: Machine, device: torch.device, n: int, d: int, dtype: torch.dtype, k: int = 15) -> Iterator[Row]:
    x = documents(n, d, device, dtype)
    job, bound = f"topk {n:,} x {d} {str(dtype)[6:]}", n * n * d / machine.matrix_flops
    methods: dict[str, Callable[[], Run]] = {
        "gloss": lambda: lambda: gk.cosine_topk(x, k=k),
        TRITON: lambda: lambda: gk.cosine_topk(x, k=k, backend="triton"),
        "torch mm + topk, float32": lambda: mm_topk(x, None, k, torch.float32),
        "torch mm + topk, float16": lambda: mm_topk(x, None, k, torch.float16),
        "FAISS GpuIndexFlatIP": lambda: faiss_flat(x, None, k),
        "cuVS brute force": lambda: cuvs_brute_force(x, None, k),
        "FlashLib": lambda: flash_knn(x, None, k),
    }
    for name, make in methods.items():
        ours = name.startswith("gloss")
        checked = recall(x, None, k) if ours or "mm" in name else (lambda _: {})
        row = timed(Row(job, name, bound=bound), make, device, checked)
        if row.seconds:
            row.facts["share of the matrix rate"] = round(bound / row.seconds, 3)
        yield row


def query_rows(
    machine: Machine, device: torch.device, n: int, d: int, queries: int = 128, k: int = 15
) -> Iterator[Row]:
    c, q = documents(n, d, device, torch.float16), documents(queries, d, device, torch.float16)
    job, bound = f"{queries} queries, {n:,} x {d} float16", 2 * c.nbytes / machine.copy_bytes
    methods: dict[str, Callable[[], Run]] = {
        "gloss": lambda: lambda: gk.cosine_topk(q, c, k=k),
        TRITON: lambda: lambda: gk.cosine_topk(q, c, k=k, backend="triton"),
        "torch mm + topk, float16": lambda: mm_topk(q, c, k, torch.float16),
        "FAISS GpuIndexFlatIP": lambda: faiss_flat(q, c, k),
        "cuVS brute force": lambda: cuvs_brute_force(q, c, k),
    }
    for name, make in methods.items():
        yield timed(
            Row(job, name, bound=bound),
            make,
            device,
            recall(q, c, k) if name != "FAISS GpuIndexFlatIP" else lambda _: {},
        )


def gradient_rows(machine: Machine, device: torch.device, n: int, d: int, k: int = 15) -> Iterator[Row]:
    x = documents(n, d, device).requires_grad_()
    found = gk.cosine_topk(x, k=k)
    weight = torch.randn_like(found.values.detach())
    u = F.normalize(x.detach()).requires_grad_()

    def torchs() -> Run:
        row = torch.arange(n, device=device)[:, None].expand_as(found.indices)

        def run() -> Tensor:
            grad = torch.zeros_like(u)
            for r in range(k):  # gather and scatter a neighbour at a time: no [n, k, d]
                grad += weight[:, r : r + 1] * u[found.indices[:, r]]
                grad.index_add_(0, found.indices[:, r], weight[:, r : r + 1] * u[row[:, r]])
            return grad

        return run

    job, bound = f"topk gradient {n:,} x {d}", (2 * k + 3) * x.nbytes / machine.copy_bytes

    def ours(backend: str) -> Run:
        values = found.values if backend == "auto" else gk.cosine_topk(x, k=k, backend=backend).values
        return lambda: torch.autograd.grad(values, x, weight, retain_graph=True)

    with torch.no_grad():
        peer = torchs()
    yield timed(Row(job, "gloss", bound=bound), lambda: ours("auto"), device, lambda _: {})
    yield timed(Row(job, TRITON, bound=bound), lambda: ours("triton"), device, lambda _: {})
    yield timed(Row(job, "torch index_add", bound=bound), lambda: torch.no_grad()(peer), device, lambda _: {})


# ------------------------------------------------------------------------------------ graph, propagate
def torch_cg(graph: gk.SimilarityGraph, labels: Tensor, classes: int, tol: float) -> Run:
    """Diagonal-preconditioned conjugate gradients, all columns at once, with torch's sparse matrix product."""
    a = graph.to_sparse_csr()
    degree = a @ torch.ones(len(labels), 1, device=labels.device)
    hidden = (labels < 0)[:, None].float()
    y = F.one_hot(labels.clamp(min=0), classes).float() * (1 - hidden)

    def apply(x: Tensor) -> Tensor:
        return hidden * (degree * x - a @ x)

    def run() -> Tensor:
        b = hidden * (a @ y)
        x, r = torch.zeros_like(b), b
        z = r / degree.clamp(min=1e-30)
        p, rz = z, (r * z).sum(0)
        target = tol**2 * rz
        for iteration in range(500):
            q = apply(p)
            step = torch.where(rz > target, rz / (p * q).sum(0).clamp(min=1e-30), 0.0)
            x, r = x + step * p, r - step * q
            z = r / degree.clamp(min=1e-30)
            new = (r * z).sum(0)
            p, rz = z + (new / rz.clamp(min=1e-30)) * p, new
            if iteration % 8 == 7 and bool((rz <= target).all()):
                break
        return x + y

    return run


def propagate_rows(
    machine: Machine, device: torch.device, n: int, labeled: float, classes: int = 32, tol: float = 1e-4, k: int = 15
) -> Iterator[Row]:
    found = gk.cosine_topk(documents(n, 64, device), k=k)
    generator = torch.Generator(device).manual_seed(1)
    labels = torch.randint(classes, (n,), generator=generator, device=device)
    labels[torch.rand(n, generator=generator, device=device) >= labeled] = -1
    plain = gk.TopK(found.values.detach(), found.indices)
    x = torch.empty(n, 1, device=device)
    for name, backend in (("gloss", "auto"), (TRITON, "triton")):
        yield timed(
            Row(f"graph {n:,}, k = {k}", name, bound=n * k * 100 / machine.copy_bytes),
            lambda: lambda: gk.similarity_graph(x, sigma=0.3, neighbors=plain, backend=backend),  # noqa: B023
            device,
            lambda graph: {"edges": graph.num_edges},
        )
    graph = gk.similarity_graph(x, sigma=0.3, neighbors=plain)
    values = graph.values.detach().clone().requires_grad_()

    def both(backend: str) -> Run:
        def run() -> gk.Propagation:
            live = graph._replace(values=values)
            result = gk.propagate_labels(live, labels, classes, tol=tol, backend=backend)
            torch.autograd.grad(result.probabilities.square().sum(), values)
            return result

        return run

    def facts(result: Any) -> dict[str, Any]:
        return {"iterations": int(result.iterations), "residual": float(result.residual)}

    job = f"propagate {n:,}, C = {classes}, {labeled:.0%} labelled"
    # The graph once, boundary and result once: below this no solver gets.
    bound = (graph.num_edges * 12 + 2 * n * classes * 4) / machine.copy_bytes
    for name, backend in (("gloss", "auto"), (TRITON, "triton")):
        ours = lambda: gk.propagate_labels(graph, labels, classes, tol=tol, backend=backend)  # noqa: E731, B023
        yield timed(Row(job, name, bound=bound), lambda: ours, device, facts)  # noqa: B023
        yield timed(Row(job, f"{name}, forward + backward", bound=bound), lambda: both(backend), device, facts)  # noqa: B023
    yield timed(
        Row(job, "torch sparse cg", bound=bound), lambda: torch_cg(graph, labels, classes, tol), device, lambda _: {}
    )


# ------------------------------------------------------------------------------------------------ loss
def loss_rows(machine: Machine, device: torch.device, n: int, d: int, n_neighbors: int | None) -> Iterator[Row]:
    classes, sigma = 16, 0.5
    x = documents(n, d, device).requires_grad_()
    y = torch.arange(n, device=device) % classes
    hidden = torch.rand(n, generator=torch.Generator(device).manual_seed(2), device=device) < 0.3
    hide, keep = hidden.nonzero().squeeze(1), (~hidden).nonzero().squeeze(1)
    eye = torch.eye(n, device=device)

    def ours(backend: str) -> Run:
        loss_fn = gk.GLoss(classes, sigma=sigma, n_neighbors=n_neighbors, backend=backend)

        def run() -> Tensor:
            loss = loss_fn(x, y, hidden)
            torch.autograd.grad(loss, x)
            return loss.detach()

        return run

    def plain() -> Tensor:
        u = F.normalize(x)
        a = torch.exp((u @ u.T - 1) / sigma**2) * (1 - eye)
        right = a[hide][:, keep] @ F.one_hot(y[keep], classes).float()
        f = torch.linalg.solve(torch.diag(a.sum(1)[hide]) - a[hide][:, hide], right)
        loss = -torch.log(0.99 * f.gather(1, y[hide, None]) + 0.01 / classes).mean()
        torch.autograd.grad(loss, x)
        return loss.detach()

    job = f"loss {n:,} x {d}, " + ("dense" if n_neighbors is None else f"k = {n_neighbors}")
    bound = 2 * n * n * d / machine.matrix_flops
    for name, backend in (("gloss", "auto"), (TRITON, "triton")):
        run = ours(backend)
        yield timed(Row(job, name, bound=bound), lambda: run, device, lambda v: {"loss": round(float(v), 4)})  # noqa: B023
    yield timed(
        Row(job, "plain torch, dense", bound=bound), lambda: plain, device, lambda v: {"loss": round(float(v), 4)}
    )


# ---------------------------------------------------------------------------------------------- tables
TARGETS = (  # job prefix, what, seconds
    ("topk 1,000,000 x 384 float32", "1.0 s (goal 0.65 s)", 1.0),
    ("propagate 1,000,000, C = 32, 70% labelled", "20 ms", 0.020),
    ("loss 128 x 768, dense", "0.5 ms", 0.0005),
)


def readable(seconds: float | None) -> str:
    if seconds is None or not math.isfinite(seconds):
        return ""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def table(rows: list[Row]) -> str:
    """Markdown: each row beside the best peer of its job."""
    lines = ["| job | method | time | times the best peer's speed | bound | memory | facts |"]
    lines.append("|---|---|---:|---:|---:|---:|---|")
    for row in rows:
        peers = [r.seconds for r in rows if r.job == row.job and r.seconds and not r.method.startswith("gloss")]
        ours = row.method in ("gloss", TRITON)
        ratio = f"{min(peers) / row.seconds:.2f}" if ours and peers and row.seconds else ""
        memory = "" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:,.0f} MiB"
        facts = row.error or ", ".join(f"{name} {value}" for name, value in row.facts.items())
        name = f"**{row.method}**" if row.method.startswith("gloss") else row.method
        lines.append(
            f"| {row.job} | {name} | {readable(row.seconds)} | {ratio} | {readable(row.bound)} | {memory} | {facts} |"
        )
    return "\n".join(lines)


def targets(rows: list[Row]) -> str:
    ours = {row.job: row for row in rows if row.method == "gloss" and row.seconds}
    lines = ["| target | measured | met |", "|---|---:|---|"]
    for job, text, seconds in TARGETS:
        if job in ours:
            lines.append(
                f"| {job}: {text} | {readable(ours[job].seconds)} | {'yes' if ours[job].seconds <= seconds else 'no'} |"
            )
    for job, row in ours.items():
        if job.startswith("128 queries"):
            ratio = row.seconds / row.bound if row.bound else math.inf
            lines.append(
                f"| {job}: at most 1.5 times reading the corpus | {ratio:.2f} | {'yes' if ratio <= 1.5 else 'no'} |"
            )
    return "\n".join(lines)

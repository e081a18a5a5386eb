"""The rows as Markdown: what was measured where, the targets, one table a stage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import machine

Report = dict[str, Any]
Cell = Callable[[dict[str, Any]], str]


def markdown(report: Report) -> str:
    parts = [heading(report), "## Targets\n\n" + targets(report)]
    for stage in dict.fromkeys(row["stage"] for row in report["rows"]):
        parts.append(f"## {stage}\n\n" + stage_table([row for row in report["rows"] if row["stage"] == stage]))
    if report["left_out"]:
        parts.append("Left out: " + "; ".join(report["left_out"]) + ".")
    parts.append(
        "Time is the median. Memory is the peak above what the process held before the call, outputs included, inputs "
        "not. GFLOP/s counts 2 n² d for every search, also where only half is computed. Times faster is the time of "
        "the fastest exact peer of the same n over the row's time (rows with an instruction set: FAISS flat's). "
        "Residual: relative, the worst class. Error: largest difference from the exact probabilities."
    )
    return "\n\n".join(parts) + "\n"


def heading(report: Report) -> str:
    about, peaks = report["machine"], report["peaks"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items() if version[0].isdigit())

    def rate(name: str) -> str:
        return f"{peaks[name]:,.0f}" if peaks.get(name) else "not measured"

    return (
        f"# Measured {about['date']}, commit {about['commit']}\n\n"
        f"{about['processor']}, {about['cores']} cores, {about['threads']} threads, {about['memory_gib']} GiB; "
        f"kernels: {about['kernels']}.\n"
        f"{versions}.\n"
        f"Measured peaks: arithmetic {rate('float32_gflops')} GFLOP/s float32 and {rate('bf16_gflops')} bf16 "
        f"(registers only), torch.mm {rate('torch_mm_float32_gflops')} and {rate('torch_mm_bf16_gflops')}, copy "
        f"{rate('copy_gb_per_s')} GB/s.\n"
    )


def stage_table(rows: list[dict[str, Any]]) -> str:
    columns: dict[str, Cell] = {
        "job": lambda r: r["group"],
        "n": lambda r: f"{r['n']:,}",
        "method": lambda r: f"**{r['method']}**" if r["ours"] else r["method"],
        "time": lambda r: duration(r["seconds"]),
        "times faster": lambda r: number(r["ratio"]),
        "memory": lambda r: size(r["peak_bytes"]),
        "GFLOP/s": lambda r: number(r["gflops"]),
        "GB/s": lambda r: number(r["gb_per_s"]),
        "recall": lambda r: f"{r['facts']['recall']:.4f}" if "recall" in r["facts"] else "",
        "steps": lambda r: str(r["facts"].get("iterations") or ""),
        "residual": lambda r: small(r["facts"].get("residual")),
        "error": lambda r: small(r["facts"].get("error")),
        "loss": lambda r: number(r["facts"].get("loss"), 5),
    }
    lines = [[cell(row) for cell in columns.values()] for row in rows]
    used = [at for at in range(len(columns)) if any(line[at] for line in lines)]
    names = list(columns)
    table = ["| " + " | ".join(names[at] for at in used) + " |"]
    table.append("|" + "|".join("---" if names[at] in ("job", "method") else "---:" for at in used) + "|")
    table += ["| " + " | ".join(line[at] for at in used) + " |" for line in lines]
    return "\n".join(table)


# -------------------------------------------------------------------------------------------- targets
def targets(report: Report) -> str:
    """The speed the project aims at, as far as this report measured it."""
    rows = report["rows"]
    times = {(r["stage"], r["group"], r["method"], r["n"]): r["seconds"] for r in rows}
    largest = {stage: max((r["n"] for r in rows if _real(r, stage)), default=0) for stage in ("topk", "propagate")}
    n, m = largest["topk"], largest["propagate"]

    def over(stage: str, group: str, slow: str, fast: str, n: int) -> float | None:
        a, b = times.get((stage, group, slow, n)), times.get((stage, group, fast, n))
        return a / b if a and b else None

    def isa_ratio(isa: str) -> float | None:
        return next((r["ratio"] for r in rows if r["method"] == f"gloss, {isa}" and r["n"] == n), None)

    lines: list[tuple[str, float | None, float, bool]] = [
        (f"search, n={n:,}: FAISS flat's time over ours", over("topk", "search", "FAISS flat", "gloss", n), 3.5, True),
        (f"the same with AVX512-BF16 switched off, n={n:,}", isa_ratio("avx512"), 2.5, True),
        ("the same, n=1,000", over("topk", "search", "FAISS flat", "gloss", 1000), 1.0, True),
    ]
    for share in ("70", "10"):
        group = f"harmonic, {share} % labelled"
        both = over("propagate", group, "gloss forward + backward", "gloss", m)
        lines += [
            (f"{group}, n={m:,}: SciPy's time over ours", over("propagate", group, "scipy cg", "gloss", m), 4.0, True),
            (f"{group}, n={m:,}: forward + backward over forward", both, 2.5, False),
        ]
    graph_given = over("propagate", "spreading", "sklearn LabelSpreading", "gloss", m)
    fit = over("propagate", "spreading from embeddings", "sklearn LabelSpreading(kernel='knn')", "gloss", m)
    step = "forward + backward"
    lines += [
        (f"label spreading on the same graph, n={m:,}: scikit-learn's time over ours", graph_given, 20.0, True),
        (f"label spreading from embeddings, n={m:,}: scikit-learn's fit over ours", fit, 20.0, True),
        ("dense loss, n=128: reference's time over ours", over("loss", step, "dense reference", "gloss dense", 128),
         2.0, True),
        ("sparse loss, n=4,096: dense reference's time over ours",
         over("loss", step, "dense reference", "gloss sparse", 4096), 100.0, True),
    ]  # fmt: skip
    table = ["| what | measured | target | met |", "|---|---:|---:|---|"]
    for text, value, wanted, at_least in lines:
        if value is not None:
            met = value >= wanted if at_least else value <= wanted
            sign = "at least" if at_least else "at most"
            table.append(f"| {text} | {number(value)} | {sign} {wanted:g} | {'yes' if met else 'no'} |")
    ours = times.get(("topk", "search", "gloss", n))
    if ours:
        share = n * n * _dim(rows) / ours / 1e9 / machine.best_rate(report["peaks"])
        table.append(
            f"| search, n={n:,}: share of the measured arithmetic peak (n² d, one triangle) | {share:.0%} | | |"
        )
    return "\n".join(table)


def _real(row: dict[str, Any], stage: str) -> bool:
    return bool(row["stage"] == stage and row["method"] == "gloss" and row["n"] <= 50_000)


def _dim(rows: list[dict[str, Any]]) -> int:
    return int(rows[0]["facts"]["d"])


# -------------------------------------------------------------------------------------------- numbers
def duration(seconds: float) -> str:
    if seconds >= 1000:
        return f"{seconds:,.0f} s"
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def size(count: int | None) -> str:
    if count is None:
        return ""
    return f"{count / 2**20:,.0f} MiB" if count < 2**30 else f"{count / 2**30:.2f} GiB"


def number(value: float | None, digits: int = 3) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"


def small(value: float | None) -> str:
    return "" if value is None else f"{value:.0e}"

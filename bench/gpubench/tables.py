"""The rows as Markdown: the targets, what was measured beside its bound and its best peer, and the checks."""

from __future__ import annotations

import math
from typing import Any

from gpubench.rows import OURS

Rows = list[dict[str, Any]]
READING = 1.5  # times one reading of the corpus
PEER = 3.0  # times as fast as the best peer
TARGETS = (  # job, what, seconds; None: READING times the bytes over the copy's rate
    ("search 1,000,000 x 384 float32", "exact, at most 1.0 s (goal 0.65 s)", 1.0),
    ("128 queries, 1,000,000 x 384 float16", f"at most {READING} times one reading", None),
    ("propagate 1,000,000, C = 32, 70% labelled", "at most 20 ms", 0.020),
    ("loss 128 x 768, dense", "forward and backward, at most 0.5 ms", 0.0005),
)


def targets(rows: Rows) -> str:
    lines = [
        "| target | cuda | triton | met | best peer | times as fast | at least 3 |",
        "|---|---:|---:|---|---:|---:|---|",
    ]
    for job, text, seconds in TARGETS:
        ours, best = {name: time_of(rows, job, name) for name in OURS}, best_peer(rows, job)
        times = [t for t in ours.values() if t]
        fastest = min(times, default=None)
        if seconds is None:
            one = next(
                (r["bytes"] / roofs(rows)["bytes"] for r in rows if r["job"] == job and "bytes" in roofs(rows)), None
            )
            limit = one and READING * one
            text += f" ({duration(one)})" if one else ""
        else:
            limit = seconds
        peer = f"{best['method']} {duration(best['seconds'])}" if best else "none"
        ratio = best["seconds"] / fastest if best and fastest else None
        cells = [
            f"{job}: {text}", *(duration(ours[name]) or "not measured" for name in OURS),
            verdict(fastest is not None and limit is not None, fastest is not None and fastest <= (limit or 0)),
            peer, "" if ratio is None else f"{ratio:.2f}", verdict(ratio is not None, (ratio or 0) >= PEER),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def verdict(known: bool, met: bool) -> str:
    return ("yes" if met else "no") if known else "not measured"


def time_of(rows: Rows, job: str, method: str) -> float | None:
    """Of a right result only."""
    return next((r["seconds"] for r in rows if (r["job"], r["method"]) == (job, method) and not r["error"]), None)


def best_peer(rows: Rows, job: str) -> dict[str, Any] | None:
    """The fastest whose result is right as far as it was checked: float16 products find other neighbours."""
    found = [r for r in rows if r["job"] == job and r["seconds"] and r["method"] not in OURS and not r["error"]]
    exact = [r for r in found if r["facts"].get("recall", 1.0) >= 0.999]
    return min(exact or found, key=lambda r: r["seconds"], default=None)


def measured(rows: Rows) -> str:
    """Each row beside its bound; ours beside the best peer of the job."""
    timed = [r for r in rows if r["job"] not in ("machine", "roof") and (r["seconds"] or r["error"]) and not is_fact(r)]
    if not timed:
        return ""
    lines = ["| job | method | time | fastest | first call | times the bound | times the peer | memory | facts |"]
    lines.append("|---|---|---:|---:|---:|---:|---:|---:|---|")
    for row in sorted(timed, key=lambda r: [x["job"] for x in timed].index(r["job"])):  # jobs side by side
        ours, peer, least = row["method"] in OURS, best_peer(rows, row["job"]), bound(row, roofs(rows))
        seconds = row["seconds"]
        facts = row["error"] or listed(row["facts"])
        cells = [
            row["job"], f"**{row['method']}**" if ours else row["method"], duration(seconds), duration(row["fastest"]),
            duration(row["first"]), f"{seconds / least:.2f}" if seconds and least else "",
            f"{peer['seconds'] / seconds:.2f}" if ours and peer and seconds else "",
            "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:,.0f} MiB", facts,
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    absent = sorted({f"{r['method']} ({r['absent']})" for r in rows if r["absent"] and not is_fact(r)})
    return "\n".join(lines) + (f"\n\nNot measured: {'; '.join(absent)}." if absent else "")


def is_fact(row: dict[str, Any]) -> bool:
    return row["job"].startswith(("smoke", "warm", "tests", "profile", "memcheck", "racecheck"))


def checks(rows: Rows) -> str:
    found = [r for r in rows if r["job"].startswith("smoke")]
    lines = ["| operator | backend | right | took | largest errors |", "|---|---|---|---:|---|"]
    for row in found:
        right = "yes" if not row["error"] else f"**no**: {row['error']}"
        lines.append(
            f"| {row['job'][6:]} | {row['method']} | {right} | {duration(row['first'])} | {listed(row['facts'])} |"
        )
    return "\n".join(lines) if found else ""


def facts(rows: Rows, *kinds: str) -> str:
    found = [r for r in rows if r["job"].startswith(kinds)]
    lines = ["| what | backend | found | problem |", "|---|---|---|---|"]
    for row in found:
        lines.append(f"| {row['job']} | {row['method']} | {listed(row['facts']) or row['absent']} | {row['error']} |")
    return "\n".join(lines) if found else ""


def listed(facts: dict[str, Any]) -> str:
    """``which`` is long, and in the JSON."""
    return ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in facts.items() if k != "which")


# --------------------------------------------------------------------------------------------- numbers
def roofs(rows: Rows) -> dict[str, float]:
    """bytes: read plus written a second. operations: of the faster 16-bit product."""
    out: dict[str, float] = {}
    for row in rows:
        if row["job"] == "roof" and row["seconds"]:
            for unit in ("bytes", "operations"):
                if row[unit]:
                    out[unit] = max(out.get(unit, 0.0), row[unit] / row["seconds"])
    return out


def bound(row: dict[str, Any], roofs: dict[str, float]) -> float | None:
    """Seconds that neither the memory nor the matrix units allow to undercut."""
    if row["job"] == "roof":
        return None
    return max((row[unit] / rate for unit, rate in roofs.items() if row[unit]), default=None)


def rate(row: dict[str, Any]) -> str:
    if not row["seconds"]:
        return ""
    if row["bytes"]:
        return f"{row['bytes'] / row['seconds'] / 1e9:,.0f} GB/s"
    return f"{row['operations'] / row['seconds'] / 1e12:,.3g} TFLOP/s"


def duration(seconds: float | None) -> str:
    if seconds is None or not math.isfinite(seconds):
        return ""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"

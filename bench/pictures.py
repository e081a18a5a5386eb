"""Time and memory against n, log-log: ours thick, peers thin, the bound dashed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import machine

OURS = ("#0b6e4f", "#2a9d8f", "#7fb800", "#0077b6", "#48cae4")
PEERS = ("#d1495b", "#edae49", "#8d6a9f", "#e07a5f", "#6c757d", "#a98467", "#3d405b")
MARKS = "osD^vPX*"
PICTURES = {  # stage: the groups it shows, one row of axes each
    "topk": ["search"],
    "propagate": ["harmonic, 10 % labelled", "spreading"],
    "loss": ["forward + backward"],
}
TITLES = {
    "topk": "Nearest neighbours of every document (exact cosine, k = 15, d = 384)",
    "propagate": "Label propagation on the k-nearest-neighbour graph (k = 15, 100 classes)",
    "loss": "One G-Loss step, forward and backward (d = 384)",
}


def draw(report: dict[str, Any], path: Path) -> None:
    """Writes PATH_STAGE.png for every stage that has rows."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    about = report["machine"]
    for stage, groups in PICTURES.items():
        rows = [row for row in report["rows"] if row["stage"] == stage]
        groups = [group for group in groups if any(row["group"] == group for row in rows)]
        if not groups:
            continue
        shape: dict[str, Any] = {"figsize": (11, 4.4 * len(groups)), "squeeze": False, "layout": "constrained"}
        figure, axes = pyplot.subplots(len(groups), 2, **shape)
        for (left, right), group in zip(axes, groups, strict=True):
            here = [row for row in rows if row["group"] == group]
            _lines(left, here, "seconds", 1.0)
            _lines(right, here, "peak_bytes", 2.0**20)
            _bound(left, right, stage, group, here, report["peaks"])
            left.set(title=group, ylabel="time (s)")
            right.set(title=group, ylabel="peak memory beyond the input (MiB)")
            handles: dict[str, Any] = {}
            for axis in (left, right):
                _style(axis, sorted({row["n"] for row in here}))
                handles |= {line.get_label(): line for line in axis.get_lines()}
            beside = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5), "frameon": False, "fontsize": 8}
            right.legend(handles.values(), handles.keys(), **beside)
        where = f"{about['processor']}, {about['threads']} threads, commit {about['commit']}"
        figure.suptitle(f"{TITLES[stage]}\n{where}", fontsize=10)
        figure.savefig(f"{path}_{stage}.png", dpi=130)
        pyplot.close(figure)


def _style(axis: Any, sizes: list[int]) -> None:
    """Logarithmic, the measured sizes as ticks."""
    axis.set(xscale="log", yscale="log", xlabel="documents n")
    axis.set_xticks(sizes, [f"{n:,}" for n in sizes])
    axis.minorticks_off()
    axis.grid(color="#dddddd", linewidth=0.7)
    axis.tick_params(labelsize=8)
    axis.title.set_fontsize(10)
    axis.spines[["top", "right"]].set_visible(False)


def _lines(axis: Any, rows: list[dict[str, Any]], what: str, unit: float) -> None:
    """One line a method; the colour and mark of a method depend on the rows only, so both axes agree."""
    methods = {row["method"]: row["ours"] for row in rows}
    counts = {True: 0, False: 0}
    for method, is_ours in methods.items():
        at = counts[is_ours]
        counts[is_ours] += 1
        points = [(row["n"], row[what] / unit) for row in rows if row["method"] == method and row[what]]
        if not points:
            continue
        exact = all(row["exact"] for row in rows if row["method"] == method)
        axis.plot(
            *zip(*sorted(points), strict=True),
            color=(OURS if is_ours else PEERS)[at % (len(OURS) if is_ours else len(PEERS))],
            linewidth=2.6 if is_ours and at == 0 else 1.4,
            linestyle="-" if exact else ":",
            marker=MARKS[at % len(MARKS)],
            markersize=5,
            label=method if exact else f"{method} (approximate)",
            zorder=3 if is_ours else 2,
        )


def _bound(left: Any, right: Any, stage: str, group: str, rows: list[dict[str, Any]], peaks: dict[str, Any]) -> None:
    """The time that the machine's peak allows, and the memory that the result takes."""
    sizes = sorted({row["n"] for row in rows})
    d = rows[0]["facts"]["d"]
    style = {"color": "#222222", "linewidth": 1.2, "linestyle": "--", "zorder": 1}
    if stage == "propagate":
        steps = [(r["n"], r["gb_per_s"] * r["seconds"] / peaks["copy_gb_per_s"]) for r in rows if _solve(r)]
        if steps:
            left.plot(*zip(*sorted(steps), strict=True), label="bound: data of the steps\nat copy speed", **style)
        result = [n * rows[0]["facts"]["classes"] * 4 for n in sizes]
    else:
        rate = machine.best_rate(peaks) * 1e9
        work = "one triangle" if stage == "topk" else "the search alone"
        label = f"bound: {work}\nat the measured peak"
        left.plot(sizes, [n * n * d / rate for n in sizes], label=label, **style)
        result = [n * (15 * 12 if stage == "topk" else 4 * d) for n in sizes]
    right.plot(sizes, [size / 2**20 for size in result], label="the result alone", **(style | {"linestyle": "-."}))


def _solve(row: dict[str, Any]) -> bool:
    return bool(row["method"] == "gloss" and row["gb_per_s"])

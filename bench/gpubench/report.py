"""report.json and report.md, both whole after every row: written beside, then renamed."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpubench import tables

LEFT_OUT, OUT_OF_BUDGET = "left out: ", "out of budget"


@dataclass
class Outcome:
    """How an item of the plan ended."""

    section: str
    item: str
    state: str = "done"  # or what stopped it, or why it was left out
    seconds: float = 0.0
    expected: float = 0.0
    hung: bool = False
    output_end: str = ""  # of what it printed, unless it is done


class Report:
    def __init__(self, out: Path, about: dict[str, Any]) -> None:
        self.out = out
        self.rows: list[dict[str, Any]] = []
        self.outcomes: list[Outcome] = []
        self.about = {
            "started": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
            "ended": "still running",
        } | about
        self.save()

    def add(self, row: dict[str, Any]) -> None:
        """A row of the same job, method and section takes the place of the one before."""
        at = next((at for at, old in enumerate(self.rows) if key(old) == key(row)), len(self.rows))
        self.rows[at : at + 1] = [row]
        self.save()

    def close(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self.save()

    def end(self, how: str, seconds: float) -> None:
        self.about |= {"ended": how, "seconds": round(seconds, 1)}
        self.save()

    def line(self, row: dict[str, Any]) -> str:
        """For the terminal."""
        bound = tables.bound(row, self.roofs())
        parts = [f"{row['job']}, {row['method']}:", tables.duration(row["seconds"])]
        if row["seconds"] and bound:
            parts.append(f"({row['seconds'] / bound:.2f} times the bound)")
        if row["job"] == "roof":
            parts.append(tables.rate(row))
        elif row["job"] != "machine":
            parts.append(tables.listed(row["facts"]))
        return " ".join(filter(None, [*parts, row["absent"], row["error"] and f"WRONG: {row['error']}"]))

    def roofs(self) -> dict[str, float]:
        return tables.roofs(self.rows)

    def wrong(self) -> list[str]:
        """Why the run is no clean one: what its exit code says."""
        return [f"{o.section}: {o.item}: {o.state}" for o in self.outcomes if o.state != "done" and not left_out(o)]

    def save(self) -> None:
        content = self.about | {"roofs": self.roofs(), "rows": self.rows, "items": [asdict(o) for o in self.outcomes]}
        write(self.out / "report.json", json.dumps(content, indent=1) + "\n")
        write(self.out / "report.md", self.markdown())

    # ----------------------------------------------------------------------------------------- markdown
    def markdown(self) -> str:
        parts = [
            self.heading(),
            section("Targets", tables.targets(self.rows)),
            section("Went wrong", self.failures()),
            section("Measured", tables.measured(self.rows)),
            section("Against the reference (largest errors)", tables.checks(self.rows)),
            section("Tests", tables.facts(self.rows, "tests")),
            section("Counters of the sweep (percent of the peak)", tables.facts(self.rows, "profile")),
            section("Sanitizer", tables.facts(self.rows, "memcheck", "racecheck")),
            section(
                "Left out",
                "\n".join(
                    f"- {o.section}: {o.item}: {o.state.removeprefix(LEFT_OUT)}" for o in self.outcomes if left_out(o)
                ),
            ),
            section("What each section took", self.costs()),
            section("Ends of the output", self.ends()),
        ]
        return "\n\n".join(filter(None, parts)) + "\n"

    def heading(self) -> str:
        about = next((row["facts"] for row in self.rows if row["job"] == "machine"), {})
        lines = [f"# {about.get('gpu') or about.get('processor', 'bench/gpu.py')}, {self.about['started']}", ""]
        lines.append(f"{self.about['ended']}; {self.about.get('seconds', '?')} of {self.about['budget']:.0f} s.")
        if self.about["device"] == "cpu":
            lines.append("A rehearsal on the emulator and Triton's interpreter: its times mean nothing.")
        if about:
            versions = ", ".join(f"{k} {v}" for k, v in about["versions"].items() if v != "not installed")
            lines.append(f"Commit {about['commit']}; {versions}; driver {about.get('driver') or 'none'}.")
            lines += [f"`{name}`: {detail}." for name, (_, detail) in about["backends"].items()]
        rates = [f"{row['method']} {tables.rate(row)}" for row in self.rows if row["job"] == "roof" and row["seconds"]]
        if rates:
            lines.append(f"Measured on random data: {', '.join(rates)} (a copy counts bytes read plus bytes written).")
        return "\n".join(lines)

    def failures(self) -> str:
        rows = [f"- {r['section']}: {r['job']}, {r['method']}: {r['error']}" for r in self.rows if r["error"]]
        return "\n".join([f"- **{text}**" for text in self.wrong()] + rows)

    def costs(self) -> str:
        lines = ["| section | items | took | expected |", "|---|---:|---:|---:|"]
        for name in dict.fromkeys(o.section for o in self.outcomes):
            ran = [o for o in self.outcomes if o.section == name and not o.state.startswith(LEFT_OUT)]
            took, expected = sum(o.seconds for o in ran), sum(o.expected for o in ran)
            lines.append(f"| {name} | {len(ran)} | {took:.1f} s | {expected:.0f} s |")
        return "\n".join(lines) if len(lines) > 2 else ""

    def ends(self) -> str:
        """The last lines; report.json has more of them, the logs all."""
        parts = []
        for o in self.outcomes:
            if o.output_end:
                text = "\n".join(o.output_end.splitlines()[-25:]).replace("```", "'''")
                parts.append(f"{o.section}: {o.item}: {o.state}\n\n```\n{text}\n```")
        return "\n\n".join(parts)


def key(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["section"], row["job"], row["method"]


def left_out(outcome: Outcome) -> bool:
    """By the budget: no fault of the item's."""
    return outcome.state.startswith((LEFT_OUT, OUT_OF_BUDGET))


def section(title: str, text: str) -> str:
    return f"## {title}\n\n{text}" if text else ""


def write(path: Path, text: str) -> None:
    """At every moment the file is a whole one."""
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(text)
    os.replace(beside, path)

"""Everything that only a GPU can show, in one run of a few minutes: bench/README.md.

python bench/gpu.py --out DIR [--minutes 9]     # report.json, report.md and logs in DIR, complete after every row
python bench/gpu.py --out DIR --only "rows cuda" peers   # these sections alone
python bench/gpu.py --out DIR --rehearse        # without a GPU: tiny, on the emulator and on Triton's interpreter

It measures the installed package. A hang, a crash or an error that sticks to the device costs one item of the plan
(gpubench/plan.py), is reported with the end of its output, and the rest goes on. Exit code 0: all that ran was right;
1: something was not; 2: nothing could be measured; 130: interrupted, with all rows so far kept.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from gpubench import plan
from gpubench.plan import Section
from gpubench.report import Report
from gpubench.runner import Runner


def main(argv: list[str] | None = None, sections: Callable[[bool], list[Section]] = plan.sections) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the report; made if it is not there")
    parser.add_argument("--minutes", type=float, default=9.0, help="when it ends, whatever is left (default: 9)")
    parser.add_argument("--only", nargs="+", metavar="SECTION", help="sections of the plan, by name")
    parser.add_argument("--rounds", type=int, default=0, help="timed calls a row, at most (default: a second's worth)")
    parser.add_argument("--rehearse", action="store_true", help="without a GPU, small")
    parser.add_argument("--list", action="store_true", help="print the plan and what it is expected to take")
    args = parser.parse_args(argv)
    chosen = sections(args.rehearse)
    unknown = set(args.only or ()) - {section.name for section in chosen}
    if unknown:
        parser.error(f"--only: no section {', '.join(sorted(unknown))}; there are {', '.join(s.name for s in chosen)}")
    chosen = [section for section in chosen if not args.only or section.name in (*args.only, "machine")]
    if args.list:
        print(
            "\n".join(
                f"{sum(item.expected for item in s.items):4.0f} s  {s.name}, {len(s.items)} items" for s in chosen
            )
        )
        return 0
    args.out.mkdir(parents=True, exist_ok=True)
    return measure(chosen, args)


def measure(sections: list[Section], args: argparse.Namespace) -> int:
    device, budget = "cpu" if args.rehearse else "cuda", 60 * args.minutes
    out = args.out.resolve()
    for log in {section.log for section in sections}:
        (out / log).unlink(missing_ok=True)
    report = Report(out, {"device": device, "budget": budget, "command": " ".join(sys.argv)})
    runner = Runner(report, out, device, budget, args.rounds or int(args.rehearse))
    signal.signal(signal.SIGTERM, interrupt)
    how, code = "ran to its end", 0
    try:
        runner.run(sections[:1])  # the machine
        problem = next((row["error"] for row in report.rows if row["job"] == "machine"), "")
        if problem:
            print(f"error: {problem}", file=sys.stderr)
            how, code = f"could not start: {problem}", 2
        else:
            runner.run(sections[1:])
    except KeyboardInterrupt:
        how, code = "interrupted", 130
    report.end(how, runner.elapsed())
    wrong = report.wrong()
    print(f"\n{how} after {runner.elapsed():.0f} s; {len(report.rows)} rows in {out / 'report.md'}")
    print("\n".join(f"went wrong: {text}" for text in wrong))
    return code or int(bool(wrong))


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())

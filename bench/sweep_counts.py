"""What a tile of the CUDA sweep costs, counted in machine code and on the emulator; no GPU is asked for.

    python bench/sweep_counts.py --embeddings FILE [--root CHECKOUT] [--arch 90] [--rows 3000] [--label NAME] [--out MD]

Compiles csrc/topk/sweep.cu of a checkout with nvcc, and of its self sweep takes the variant with the deepest stages
apart: the step loop, the code that each tile runs once, the comparisons, and the code that only hits reach, per group
of products (a group is what one vote or one flag covers) and per hit. Cycles of a part are the stall counts of its
instructions (each says how many cycles the warp waits before the next one) and LATENCY for what has no fixed latency;
a part whose warps are alike takes two warps a scheduler, 2 cycles an instruction, at least. Then a search of real rows
on the emulator counts appends and compactions of every wave, and beside them stands what the formula says, k (g - 1)
appends a row where a wave brings the blocks that a row has met from m to g m. Both together give an ESTIMATE for
10^6 x 384, k 15 on an H100. The markdown has a section a label; a later run replaces its own.
"""

from __future__ import annotations

import argparse
import math
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from compile_cuda import ROOT, disassembler, readable

SOURCES = ["sweep", "pack", "lists", "exact", "redo"]
K = 15
TILE_STEPS = 384 // 32  # of 32 columns
# Cycles that an instruction without a fixed latency adds where its result is waited for. Orders of magnitude.
LATENCY = {"MUFU": 20, "I2F": 20, "F2I": 20, "LDS": 10, "LDC": 10, "S2R": 20, "S2UR": 20, "REDUX": 25, "ATOMS": 50}
LATENCY |= {"BREV": 10, "FLO": 10, "POPC": 10, "SHFL": 25, "ATOMG": 700}
# An H100 at 1.755 GHz. mma.sync reaches 62 % of what wgmma does: 6.5 cycles a 16 x 8 x 16 product and scheduler. A
# barrier, and the first fragments behind it: 125 cycles. A compaction of a row: 2 ns (300 bytes, some 1,500
# instructions a warp, 4 warps at a time on each multiprocessor).
GHZ, PROCESSORS, PRODUCT, BARRIER, COMPACTION_NS = 1.755, 132, 6.5, 125, 2.0


@dataclass
class Instruction:
    address: int
    text: str
    stall: int

    @property
    def name(self) -> str:
        return re.sub(r"^@!?U?P\w+\s+", "", self.text).split()[0].split(".")[0].rstrip(";")

    @property
    def target(self) -> int | None:
        found = re.search(r"\bBRA (?:\w+, )?0x([0-9a-f]+)", self.text)
        return int(found[1], 16) if found else None

    @property
    def cycles(self) -> int:
        return max(self.stall, 1) + LATENCY.get(self.name, 0)


Code = list[Instruction]


def instructions(sass: str) -> Code:
    """Of one function; the stall count is in bits 105 to 108 of the 128 bits of an instruction."""
    pattern = r"/\*([0-9a-f]{4,5})\*/\s+(\S.*?;)\s+/\* 0x[0-9a-f]{16} \*/\s+/\* 0x([0-9a-f]{16}) \*/"
    return [Instruction(int(a, 16), t, int(high, 16) >> 41 & 15) for a, t, high in re.findall(pattern, sass)]


def inside(code: Code, first: int, last: int) -> Code:
    return [i for i in code if first <= i.address <= last]


def loops(code: Code) -> list[tuple[int, int]]:
    """First and last address of what backward branches repeat, the shortest first."""
    found = [(i.target, i.address) for i in code if i.target is not None and code[0].address <= i.target < i.address]
    return sorted(found, key=lambda span: span[1] - span[0])


def guarded(code: Code) -> list[tuple[int, int]]:
    """What conditional forward branches jump over, the shortest first."""
    found = [(i.address + 16, i.target - 16) for i in code if i.target and i.target > i.address and i.text[0] == "@"]
    return sorted(found, key=lambda span: span[1] - span[0])


def without(code: Code, spans: list[tuple[int, int]]) -> Code:
    return [i for i in code if not any(first <= i.address <= last for first, last in spans)]


def cycles(code: Code) -> int:
    return sum(i.cycles for i in code)


def count(code: Code, *names: str) -> int:
    return sum(i.name in names for i in code)


def slow_path(code: Code, spans: list[tuple[int, int]]) -> tuple[float, float, int]:
    """Cycles of a group and of a hit, and rounds over the products of a group."""
    part = inside(code, *spans[0])
    outer = loops(part)[-1]
    loop = inside(part, *outer)
    if count(loop, "FSETP") <= 2:  # a round a product; the hits are guarded blocks in it
        hits = [inside(loop, *g) for g in guarded(loop) if count(inside(loop, *g), "ATOMG") == 1]
        blocks = [(h[0].address, h[-1].address) for h in hits]
        return (
            cycles(without(part, [outer])) + 16 * cycles(without(loop, blocks)),
            sum(map(cycles, hits)) / len(hits),
            16,
        )
    # A round a group. One of the blocks that only store products runs, and neither the sums over full warps nor what
    # a full queue and padding need.
    nested = [span for span in loops(loop) if span != outer]
    hit = next(span for span in nested if count(inside(loop, *span), "STS"))
    stores = [g for g in guarded(loop) if {i.name for i in inside(loop, *g)} <= {"STS"}]
    rare = [g for g in guarded(loop) if g[1] - g[0] < 800 and {"SHFL", "ATOMG"} & {i.name for i in inside(loop, *g)}]
    body = without(loop, [*nested, *stores, *rare])
    one_store = sum(cycles(inside(loop, *g)) for g in stores) / len(stores)
    overflow = [g for g in guarded(inside(loop, *hit)) if count(inside(loop, *g), "STG")]
    return cycles(body) + one_store, cycles(without(inside(loop, *hit), overflow)), 1


@dataclass
class Tile:
    """Of a tile and warp."""

    variant: str
    registers: int
    depth: int  # steps a stage
    steps: int  # times round the step loop, at 384 columns
    products: int  # mma instructions
    parts: dict[str, tuple[int, float]]  # instructions in the code, cycles
    divisions: int
    compares: str
    barriers: int
    group_cycles: float
    hit_cycles: float
    groups: int  # of a warp
    rounds: int


def machine_code(root: Path, arch: int, folder: Path) -> Tile:
    nvcc, tool = shutil.which("nvcc"), disassembler()
    if nvcc is None or tool is None:
        raise SystemExit("needs nvcc, and a cuobjdump (the triton package brings one)")
    cubin = folder / "sweep.cubin"
    command = [nvcc, "-std=c++17", "-O3", f"-I{root / 'csrc'}", f"-arch=sm_{arch}", "-Xptxas", "-v", "-cubin", "-o"]
    log = subprocess.run([*command, cubin, root / "csrc/topk/sweep.cu"], capture_output=True, text=True, check=True)
    text = subprocess.run([tool, "-sass", cubin], capture_output=True, text=True, check=True).stdout
    functions = {p.partition("\n")[0].strip(): p for p in text.split("Function : ")[1:]}
    symbol = sorted(name for name in functions if "WayE2" in name)[-1]  # both sides; the deepest stages sort last
    used = re.search(rf"'{symbol}'.*?Used (\d+) registers", log.stderr, re.DOTALL)
    code = instructions(functions[symbol])

    products = [i.address for i in code if i.name == "HMMA"]
    around = [span for span in loops(code) if span[0] < products[0] and span[1] > products[-1]]
    step, tile = around[0], next(span for span in around if span[0] < around[0][0] and span[1] > around[0][1])
    copied = max(i.address for i in inside(code, *step) if i.name == "LDGDEPBAR")
    tail = inside(code, step[1] + 16, tile[1])
    votes = [k for k, i in enumerate(tail) if i.text.startswith("VOTE.ANY P")]
    branches = [next(i for i in tail[k:] if i.target) for k in votes]
    slow = [(b.address + 16, b.target - 16) for b in branches if b.target]
    slow = [s for s in slow if not any(o[0] < s[0] and s[1] < o[1] for o in slow)]
    straight = without(tail, slow)
    copies = inside(code, step[0], copied)
    depth = len(products) // 64
    steps = math.ceil(TILE_STEPS / depth)

    def once(part: Code) -> tuple[int, float]:  # both warps of a scheduler run it
        # Not the division of numbers past 32 bits, nor a second hit of a thread. The counter of the first is not
        # waited for: other warps multiply meanwhile.
        rare = [g for g in guarded(part) if g[1] - g[0] < 512 and count(inside(part, *g), "CALL")]
        rare += [span for span in loops(part) if count(inside(part, *span), "ATOMG")]
        usual = without(part, rare)
        return len(part), max(cycles(usual) - LATENCY["ATOMG"] * count(usual, "ATOMG"), 4 * len(usual))

    group, hit, rounds = slow_path(code, slow)
    each = 4 * count(copies, "LDGSTS") * (steps - 1)
    once_a_tile = [*inside(code, tile[0], step[0] - 16), *copies]
    return Tile(
        variant=readable(symbol),
        registers=int(used[1]) if used else 0,
        depth=depth,
        steps=steps,
        products=64 * TILE_STEPS,
        parts={
            "index arithmetic, copies, drained hits": (len(once_a_tile), once(once_a_tile)[1] + each),
            "a step: fragments, products": (len(inside(code, copied + 16, step[1])), 0),
            "comparisons": once(straight),
            "only where a warp has a hit": (sum(len(inside(code, *s)) for s in slow), 0),
        },
        divisions=sum(count(p, "MUFU") for p in (once_a_tile, straight)),
        compares=", ".join(
            f"{n} {name}" for name in ("FSETP", "FMNMX", "VIMNMX3", "VIMNMX", "ISETP") if (n := count(straight, name))
        ),
        barriers=steps + count(straight, "BAR"),
        group_cycles=group,
        hit_cycles=hit,
        groups=8 if rounds > 1 else 24,
        rounds=rounds,
    )


@dataclass
class Wave:
    dense: bool
    met: tuple[int, int]
    tiles: int
    appended: int


class Emulated:
    def __init__(self, root: Path, folder: Path) -> None:
        self.program = folder / "sweep_counts"
        flags = ["-std=c++17", "-O2", "-w", "-DGLOSS_EMULATE", f"-I{root / 'csrc/emulator'}", f"-I{root / 'csrc'}"]
        sources = [ROOT / "bench/sweep_counts.cpp", *(root / f"csrc/topk/{name}.cu" for name in SOURCES)]
        subprocess.run(["g++", *flags, "-x", "c++", *sources, "-o", self.program], check=True)

    def waves(self, *arguments: object) -> tuple[list[Wave], dict[str, int]]:
        done = subprocess.run([self.program, *map(str, arguments)], capture_output=True, text=True, check=True)
        waves, facts = [], {}
        for name, *numbers in map(str.split, done.stdout.splitlines()):
            n = list(map(int, numbers))
            if name == "wave":
                waves.append(Wave(bool(n[0]), (n[1], n[2]), n[3], n[4]))
            else:
                facts[name] = n[0]
        return waves, facts


def formula(wave: Wave) -> float:
    """Appends a row."""
    return 0.0 if wave.dense else K * (wave.met[1] / wave.met[0] - 1)


def most_of_eight(mean: float) -> float:
    """The largest of eight Poisson numbers, on average: the warps wait for the slowest."""
    total, below, term, at = 0.0, 0.0, math.exp(-mean), 0
    while below < 1 - 1e-9 and at < 2000:
        below += term
        total += 1 - min(below, 1.0) ** 8
        at += 1
        term *= mean / at
    return total


def estimate(tile: Tile, waves: list[Wave], rows: int) -> list[tuple[str, float]]:
    """Seconds by part."""
    tiles = sum(w.tiles for w in waves)
    second = PROCESSORS * GHZ * 1e9
    slow = 0.0
    for w in waves:
        hits = min(formula(w) * rows / w.tiles, 2 * 128 * 256) / 8  # of a warp
        groups = most_of_eight(hits) if hits < 3 else tile.groups * (1 - math.exp(-1.2 * hits / tile.groups))
        rounds = most_of_eight(hits) if hits < 3 or tile.rounds > 1 else groups * max(1.0, hits / groups / 8)
        slow += w.tiles * (groups * tile.group_cycles + rounds * tile.hit_cycles)
    compactions = sum(1 for _ in waves[:-1])
    return [
        ("products", tiles * 2 * tile.products * PRODUCT / second),
        ("barriers and first fragments", tiles * tile.barriers * BARRIER / second),
        ("index arithmetic, copies, comparisons", tiles * sum(c for _, c in tile.parts.values()) / second),
        ("hits", slow / second),
        ("compactions", compactions * rows * COMPACTION_NS * 1e-9),
    ]


def report(args: argparse.Namespace, folder: Path) -> list[str]:
    root = args.root.resolve()
    tile, emulated = machine_code(root, args.arch, folder), Emulated(root, folder)
    lines = [f"## {args.label}: sm_{args.arch}, commit {args.commit}", ""]
    lines += [f"`{tile.variant}`, {tile.registers} registers, {tile.depth} steps a stage, {tile.barriers} barriers a "]
    lines[-1:] = [lines[-1] + "tile.", ""]
    lines += ["| part | instructions | cycles a tile |", "|---|---|---|"]
    lines += [f"| {name} | {n} | {round(c) if c else ''} |" for name, (n, c) in tile.parts.items()]
    lines += [f"| divisions by a reciprocal among them | {tile.divisions} | |", f"| compares | {tile.compares} | |"]
    lines += [f"| a group with a hit ({tile.groups} a warp, {tile.rounds} rounds) | | {round(tile.group_cycles)} |"]
    lines += [f"| each hit beside | | {round(tile.hit_cycles)} |", ""]

    data = np.load(args.embeddings)
    x = np.concatenate([data[name] for name in data.files if name.endswith("x")])[: args.rows].astype(np.float32)
    raw = folder / "rows"
    x.tofile(raw)
    measured, facts = emulated.waves("run", raw, *x.shape, K)
    lines += [f"Measured: {args.embeddings.stem}, {len(x)} x {x.shape[1]}, k {K}, on the emulator.", ""]
    lines += ["| blocks met | tiles | hits a tile | appends a row | by the formula |", "|---|---|---|---|---|"]
    for w in measured:
        hits = f"{w.appended / w.tiles:.1f} | {w.appended / len(x):.1f} | {formula(w):.1f}"
        lines += [f"| {w.met[0]} to {w.met[1]} | {w.tiles} | {'stored' if w.dense else hits}{' | | ' * w.dense} |"]
    sums = f"{sum(w.appended for w in measured) / len(x):.1f}; by the formula {sum(map(formula, measured)):.1f}"
    lines += ["", f"Appends a row {sums}. Compactions a row {facts['compactions']}, lists that overflowed "]
    lines[-1] += f"{facts['lost']}, candidates a row {facts['candidates'] / len(x):.1f}."

    rows = 10**6
    planned, facts = emulated.waves("plan", rows, K)
    tiles, appends = sum(w.tiles for w in planned), sum(map(formula, planned))
    seconds = estimate(tile, planned, rows)
    lines += ["", f"10^6 x 384, k {K}: {tiles:,} tiles, {len(planned)} waves, {facts['compactions']} compactions, "]
    lines[-1] += f"{appends:.0f} appends a row, {appends * rows / tiles:.1f} hits a tile "
    lines[-1] += f"({formula(planned[-1]) * rows / planned[-1].tiles:.1f} in the last wave)."
    lines += [f"Estimate on an H100: **{sum(s for _, s in seconds):.2f} s** ("]
    lines[-1] += ", ".join(f"{name} {s:.2f}" for name, s in seconds) + ")."
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--embeddings", type=Path, required=True, help=".npz whose arrays ...x are rows")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout to count; default: this one")
    parser.add_argument("--arch", type=int, default=90)
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--label", default="now")
    parser.add_argument("--commit", help="default: that of the checkout")
    parser.add_argument("--out", type=Path, help="markdown to write the section to")
    args = parser.parse_args()
    if not args.commit:
        git = ["git", "-C", str(args.root), "rev-parse", "--short", "HEAD"]
        args.commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    with tempfile.TemporaryDirectory() as folder:
        lines = report(args, Path(folder))
    print("\n".join(lines))
    if args.out:
        parts = re.split(r"(?m)^(?=## )", args.out.read_text()) if args.out.exists() else [HEAD]
        same = [k for k, part in enumerate(parts) if part.startswith(lines[0].partition(":")[0] + ":")]
        parts[same[0] : same[0] + 1] if same else parts.append("")
        parts[same[0] if same else -1] = "\n".join(lines) + "\n"
        args.out.write_text("".join(parts).rstrip() + "\n")
    return 0


HEAD = """# What a tile of the CUDA sweep costs, counted

`python bench/sweep_counts.py` writes this; its docstring says what is counted and how. No GPU was there: instructions,
registers, barriers, hits and appends are facts, cycles and seconds are estimates.

"""

if __name__ == "__main__":
    sys.exit(main())

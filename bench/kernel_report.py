"""What the compiler made of the CUDA kernels, without a GPU: registers, spills, shared memory, tensor cores.

python bench/kernel_report.py [--arch 80 90] [--json FILE]

Compiles every .cu file for each architecture (about a minute each), prints a table, and fails past the limits below.
Needs nvcc; the disassembly needs cuobjdump (CUDA toolkit, or the one inside the triton package), else the PTX is read.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "csrc").glob("*/*.cu"))

# Kernels whose time is that of the stage: no spills, and registers that leave room for so many threads.
MAIN_LOOPS = {
    "sweep_kernel": 255,  # one block of 256 threads a multiprocessor, half of the registers accumulators
    "apply_kernel": 64,
    "advance_kernel": 64,
    "gradient_kernel": 72,
    "refine_kernel": 80,
    "compact_kernel": 64,
    "pack_kernel": 64,
}
MOST_SPILL_BYTES = 256  # of the others
NO_SPILLS = ("sweep_kernel", "advance_kernel", "refine_kernel", "compact_kernel", "pack_kernel")
TENSOR_CORES = {"sweep_kernel": "HMMA"}  # what its machine code must hold
MOST_STATIC_SHARED = 48 << 10


@dataclass
class Kernel:
    name: str
    source: str
    arch: int
    registers: int
    spill_bytes: int
    shared_bytes: int  # static
    tensor_core_instructions: int | None = None


def compile_one(nvcc: str, source: Path, arch: int, folder: Path) -> tuple[list[Kernel], Path]:
    cubin = folder / f"{source.parent.name}_{source.stem}_{arch}.cubin"
    command = [nvcc, "-std=c++17", "-O3", f"-I{ROOT / 'csrc'}", f"-arch=sm_{arch}", "-Xptxas", "-v", "-cubin"]
    done = subprocess.run([*command, "-o", str(cubin), str(source)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{source.relative_to(ROOT)} does not compile for sm_{arch}:\n{done.stderr}")
    kernels = []
    for block in done.stderr.split("Compiling entry function")[1:]:
        symbol = re.search(r"'([^']+)'", block)
        spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", block)
        registers = re.search(r"Used (\d+) registers", block)
        shared = re.search(r"(\d+) bytes smem", block)
        assert symbol and registers
        kernels.append(
            Kernel(
                name=readable(symbol[1]),
                source=str(source.relative_to(ROOT / "csrc")),
                arch=arch,
                registers=int(registers[1]),
                spill_bytes=sum(map(int, spills.groups())) if spills else 0,
                shared_bytes=int(shared[1]) if shared else 0,
            )
        )
    return kernels, cubin


def readable(symbol: str) -> str:
    """The kernel's name of a mangled symbol, with its template arguments in short."""
    text = subprocess.run(["c++filt", symbol], capture_output=True, text=True, check=False).stdout.strip()
    text = text.replace("gloss::cuda::", "").replace("(anonymous namespace)::", "").replace("gloss::", "")
    text = text.removeprefix("void ")
    depth = 0
    for at, letter in enumerate(text):  # up to the parameter list
        depth += {"<": 1, ">": -1}.get(letter, 0)
        if letter == "(" and depth == 0:
            return text[:at]
    return text


def tensor_core_instructions(cubin: Path, kernel: str, instruction: str) -> int | None:
    """How often the instruction stands in the kernel's machine code; None without a disassembler."""
    tool = shutil.which("cuobjdump")
    if tool is None and (spec := importlib.util.find_spec("triton")) and spec.submodule_search_locations:
        found = list(Path(next(iter(spec.submodule_search_locations))).rglob("cuobjdump"))
        tool = str(found[0]) if found else None
    if tool is None:
        return None
    text = subprocess.run([tool, "-sass", str(cubin)], capture_output=True, text=True, check=True).stdout
    parts = re.split(r"Function : ", text)
    return sum(part.count(instruction) for part in parts if kernel in part.partition("\n")[0])


def problems(kernels: list[Kernel]) -> list[str]:
    out = []
    for k in kernels:
        base = k.name.partition("<")[0]
        where = f"{k.name} (sm_{k.arch})"
        if base in MAIN_LOOPS and k.registers > MAIN_LOOPS[base]:
            out.append(f"{where}: {k.registers} registers, at most {MAIN_LOOPS[base]}")
        most = 0 if base in NO_SPILLS else MOST_SPILL_BYTES
        if k.spill_bytes > most:
            out.append(f"{where}: {k.spill_bytes} bytes of spills, at most {most}")
        if k.shared_bytes > MOST_STATIC_SHARED:
            out.append(f"{where}: {k.shared_bytes} bytes of static shared memory")
        if base in TENSOR_CORES and k.tensor_core_instructions == 0:
            out.append(f"{where}: no {TENSOR_CORES[base]} instruction")
    names = {k.name.partition("<")[0] for k in kernels}
    return out + [f"{name}: there is no such kernel" for name in MAIN_LOOPS if name not in names]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", type=int, nargs="+", default=[80, 90])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        print("error: no nvcc on PATH", file=sys.stderr)
        return 2
    kernels: list[Kernel] = []
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor() as pool:
        jobs = [pool.submit(compile_one, nvcc, s, arch, Path(folder)) for arch in args.arch for s in SOURCES]
        for job in jobs:
            found, cubin = job.result()
            for kernel in found:
                base = kernel.name.partition("<")[0]
                if base in TENSOR_CORES:
                    kernel.tensor_core_instructions = tensor_core_instructions(cubin, base, TENSOR_CORES[base])
            kernels += found
    print(f"{'kernel':60} {'source':22} {'sm':>3} {'registers':>9} {'spills':>6} {'shared':>6}  tensor cores")
    for k in kernels:
        cores = "" if k.tensor_core_instructions is None else f"{k.tensor_core_instructions}"
        name = k.name if len(k.name) <= 60 else k.name[:57] + "..."
        print(f"{name:60} {k.source:22} {k.arch:3} {k.registers:9} {k.spill_bytes:6} {k.shared_bytes:6}  {cores}")
    if args.json:
        args.json.write_text(json.dumps([asdict(k) for k in kernels], indent=1) + "\n")
    wrong = problems(kernels)
    print("\n" + ("\n".join(wrong) if wrong else f"{len(kernels)} kernels within the limits"))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

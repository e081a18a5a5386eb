"""The CUDA kernels compiled for GPUs that need not be there; bench/compile_report.py prints what came out."""

from __future__ import annotations

import concurrent.futures
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from compile_limits import TENSOR_CORES, Kernel

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "csrc").glob("*/*.cu"))
ON_TENSOR_CORES = "sweep_kernel"


def kernels(archs: list[int]) -> Iterator[Kernel]:
    nvcc = shutil.which("nvcc")
    assert nvcc, "no nvcc on PATH"
    tool = disassembler()
    assert tool, "no cuobjdump"
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [pool.submit(compile_one, nvcc, s, arch, Path(folder)) for arch in archs for s in SOURCES]
        for job in jobs:
            found, cubin = job.result()
            for kernel in found:
                if kernel.name == ON_TENSOR_CORES:
                    instruction = TENSOR_CORES["cuda"][kernel.arch // 10]
                    kernel.tensor_cores, kernel.main_loop_spills = in_main_loop(tool, cubin, kernel.name, instruction)
                yield kernel


def compile_one(nvcc: str, source: Path, arch: int, folder: Path) -> tuple[list[Kernel], Path]:
    cubin = folder / f"{source.parent.name}_{source.stem}_{arch}.cubin"
    command = [nvcc, "-std=c++17", "-O3", f"-I{ROOT / 'csrc'}", f"-arch=sm_{arch}", "-Xptxas", "-v", "-cubin"]
    done = subprocess.run([*command, "-o", str(cubin), str(source)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{source.relative_to(ROOT)} does not compile for sm_{arch}:\n{done.stderr}")
    found = []
    for block in done.stderr.split("Compiling entry function")[1:]:
        symbol = re.search(r"'([^']+)'", block)
        spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", block)
        registers = re.search(r"Used (\d+) registers", block)
        shared = re.search(r"(\d+) bytes smem", block)
        assert symbol and registers
        name, _, arguments = readable(symbol[1]).partition("<")
        found.append(
            Kernel(
                backend="cuda",
                name=name,
                variant=f"{source.relative_to(ROOT / 'csrc')} {arguments.removesuffix('>')}".strip(),
                arch=arch,
                registers=int(registers[1]),
                spill_bytes=sum(map(int, spills.groups())) if spills else 0,
                shared_bytes=int(shared[1]) if shared else 0,
            )
        )
    return found, cubin


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


def disassembler() -> str | None:
    """cuobjdump of the CUDA toolkit, or the one inside the triton package."""
    tool = shutil.which("cuobjdump")
    if tool is None and (spec := importlib.util.find_spec("triton")) and spec.submodule_search_locations:
        tool = next((str(path) for path in Path(next(iter(spec.submodule_search_locations))).rglob("cuobjdump")), None)
    return tool


def in_main_loop(tool: str, cubin: Path, kernel: str, instruction: str) -> tuple[int, int]:
    """Of all variants of a kernel in a file: see main_loop()."""
    text = subprocess.run([tool, "-sass", str(cubin)], capture_output=True, text=True, check=True).stdout
    parts = [part for part in re.split(r"Function : ", text) if kernel in part.partition("\n")[0]]
    counts = [main_loop(part, instruction) for part in parts]
    return min(c[0] for c in counts), max(c[1] for c in counts)


def main_loop(code: str, instruction: str) -> tuple[int, int]:
    """How often the instruction stands in machine code, and spill instructions between its first and its last."""
    at = [match.start() for match in re.finditer(rf"\b{instruction}\b", code)]
    return len(at), len(re.findall(r"\b(?:STL|LDL)\b", code[at[0] : at[-1]])) if at else 0

"""What the compilers made of every kernel, without a GPU: registers, spills, shared memory, tensor cores.

    python bench/compile_report.py [--arch 80 90 100] [--backend cuda triton] [--json FILE]

Compiles every .cu file (about a minute a capability) and every kernel that a call of the Triton backend launches (as
long), prints a table, and fails past the limits of compile_limits.py: spills in a main loop, more shared memory than
the card has, no tensor-core instruction in the half-precision sweep (wgmma on 9.x for Triton), more registers than its
kernel may have. CUDA needs nvcc and a disassembler, Triton the package (3.5 or newer), which brings one.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import compile_cuda
import compile_triton
from compile_limits import SHARED, Kernel, problems

HEAD = f"{'backend':7} {'kernel':24} {'variant':88} {'sm':>3} {'registers':>9} {'spills':>6} {'shared':>7} {'mma':>5}"


def line(k: Kernel) -> str:
    cores = "" if k.tensor_cores is None else k.tensor_cores
    variant = k.variant if len(k.variant) <= 88 else k.variant[:85] + "..."
    return (
        f"{k.backend:7} {k.name:24} {variant:88} {k.arch:3} {k.registers:9} {k.spill_bytes:6} {k.shared_bytes:7}"
        f" {cores:>5}"
    )


def missing(backend: str) -> str:
    """Why the kernels of a backend cannot be compiled here; "" if they can."""
    if backend == "cuda":
        if shutil.which("nvcc") is None:
            return "no nvcc on PATH"
        return "" if compile_cuda.disassembler() else "no cuobjdump on PATH, and none in a triton package"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (pip install '.[triton]')"
    version = importlib.metadata.version("triton")
    return f"Triton {version}, wants 3.5 or newer" if version.startswith(("3.2", "3.3", "3.4")) else ""


def compiled(backends: list[str], archs: list[int]) -> Iterator[Kernel]:
    for backend in backends:
        yield from (compile_cuda if backend == "cuda" else compile_triton).kernels(archs)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--arch", type=int, nargs="+", default=[80, 90, 100], choices=list(SHARED), metavar="CAPABILITY"
    )
    parser.add_argument("--backend", nargs="+", choices=["cuda", "triton"], help="default: what can be compiled here")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    reasons = {backend: missing(backend) for backend in args.backend or ["cuda", "triton"]}
    able = [backend for backend, reason in reasons.items() if not reason]
    for backend, reason in reasons.items():
        if reason:
            print(f"{'error' if args.backend or not able else 'left out'}: {backend}: {reason}", file=sys.stderr)
    if not able or (args.backend and len(able) < len(reasons)):
        return 2
    print(HEAD)
    kernels = []
    for kernel in compiled(able, args.arch):
        kernels.append(kernel)
        print(line(kernel), flush=True)
    if args.json:
        args.json.write_text(json.dumps([asdict(k) for k in kernels], indent=1) + "\n")
    wrong = problems(kernels)
    print("\n" + ("\n".join(wrong) if wrong else f"{len(kernels)} kernels within the limits"))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

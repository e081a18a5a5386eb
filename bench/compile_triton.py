"""What the compiler made of the Triton kernels, without a GPU.

The stages run on CPU tensors with every launch recorded instead of done; each is then compiled for GPUs with the types,
constants and alignments that the call had.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Compute capability: the shared memory a block may have.
SHARED = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
TENSOR_CORES = {8: "HMMA", 9: "HGMMA", 10: "UTCHMMA", 12: "HMMA"}  # by major capability, of the sweep in half precision
MOST_SPILL_BYTES = 64  # in the epilogue of the sweep
TYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.uint8: "u8",
    torch.bool: "i1",
}


@dataclass
class Kernel:
    """One compiled variant."""

    name: str
    variant: str
    arch: int
    registers: int
    spill_bytes: int
    shared_bytes: int
    warps: int
    tensor_core_instructions: int
    seconds: float


@dataclass(frozen=True)
class Launch:
    """What decides the machine code of a launch; the arguments as (name, type, whether divisible by 16)."""

    kernel: Any
    arguments: tuple[tuple[str, str, bool], ...]
    constants: tuple[tuple[str, Any], ...]
    options: tuple[tuple[str, int], ...]


def recorded(work: Callable[[], None]) -> list[Launch]:
    """The launches of ``work``, each kind once. None is carried out."""
    launches: dict[Launch, None] = {}

    def record(kernel: Any, grid: Any, like: Tensor, *values: Any, **meta: Any) -> None:
        options = {name: meta.pop(name) for name in ("num_warps", "num_stages") if name in meta}
        arguments, constants = [], list(meta.items())
        for parameter, value in zip([p for p in kernel.params if p.name not in meta], values, strict=True):
            if isinstance(value, Tensor):
                arguments.append((parameter.name, "*" + TYPES[value.dtype], True))
            elif isinstance(value, bool):
                arguments.append((parameter.name, "i1", False))
            elif isinstance(value, float):
                arguments.append((parameter.name, "fp32", False))
            elif value == 1 and not parameter.do_not_specialize:
                constants.append((parameter.name, 1))
            else:
                kind = "i32" if -(1 << 31) <= value < 1 << 31 else "i64"
                arguments.append((parameter.name, kind, value % 16 == 0 and not parameter.do_not_specialize))
        launches[Launch(kernel, tuple(arguments), tuple(sorted(constants)), tuple(sorted(options.items())))] = None

    package = importlib.import_module("gloss_kernels._triton")
    names = [info.name for info in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
    modules = [importlib.import_module(name) for name in names]
    before = [(module, module.launch) for module in modules if hasattr(module, "launch")]
    for module, _ in before:
        module.launch = record
    try:
        work()
    finally:
        for module, launch in before:
            module.launch = launch
    return list(launches)


def compile_launch(launch: Launch, arch: int, tool: Path) -> Kernel:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = [parameter.name for parameter in launch.kernel.params]
    constants = dict(launch.constants)
    types = {name: kind for name, kind, _ in launch.arguments}
    source = ASTSource(
        fn=launch.kernel,
        signature={name: "constexpr" if name in constants else types[name] for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name, _, divisible in launch.arguments if divisible},
    )
    start = time.perf_counter()
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=dict(launch.options))
    seconds = time.perf_counter() - start
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage, code = (
            subprocess.run([tool, option, file.name], capture_output=True, text=True, check=True).stdout
            for option in ("--dump-resource-usage", "-sass")
        )
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found, usage
    kinds = [kind.removeprefix("*") for _, kind, _ in launch.arguments if kind.startswith("*")]
    shown = [f"{name}={value}" for name, value in launch.constants if name.isupper()]
    return Kernel(
        name=launch.kernel.__name__,
        variant=" ".join([kinds[0], *shown]),
        arch=arch,
        registers=int(found[1]),
        spill_bytes=int(found[2]),
        shared_bytes=compiled.metadata.shared,
        warps=compiled.metadata.num_warps,
        tensor_core_instructions=len(re.findall(rf"\b{TENSOR_CORES[arch // 10]}\b", code)),
        seconds=seconds,
    )


def problems(kernels: list[Kernel]) -> list[str]:
    out = []
    for k in kernels:
        where = f"{k.name} {k.variant} (sm_{k.arch})"
        if k.spill_bytes > MOST_SPILL_BYTES:
            out.append(f"{where}: {k.spill_bytes} bytes of spills")
        if k.shared_bytes > SHARED[k.arch]:
            out.append(f"{where}: {k.shared_bytes} bytes of shared memory, the card has {SHARED[k.arch]}")
        if k.name == "sweep_kernel" and k.variant.startswith("fp16") and not k.tensor_core_instructions:
            out.append(f"{where}: no {TENSOR_CORES[k.arch // 10]} in its machine code")
    return out


def work(arch: int) -> Callable[[], None]:
    """Calls of every stage whose launches between them cover every kernel."""

    def run() -> None:
        from gloss_kernels import _triton
        from gloss_kernels._triton.topk import search, tiles

        search.sweep_tile = lambda device, d, n: tiles.tile_for(arch // 10, d, n)
        search.check_finite = lambda name, rows: None
        n, k = 20_000, 15
        for dtype, d in ((torch.float32, 384), (torch.float16, 384), (torch.float32, 48)):
            x = torch.ones(n, d, dtype=dtype)
            _, indices = _triton.cosine_topk(x, None, k, True, None)
            _triton.cosine_topk(x[:600], x, k, False, torch.zeros(600, 20, dtype=torch.int64))
            _triton.cosine_topk(x[:100], None, k, True, None)
        for dtype in (torch.float64, torch.float32):
            x = torch.ones(300, 384, dtype=dtype)
            _, indices = _triton.cosine_topk(x, None, k, True, None)
            _triton.cosine_topk_backward(x, None, indices * 0, torch.ones(300, k, dtype=dtype), (True, True))

    return run


def report(archs: list[int], tool: Path) -> list[Kernel]:
    kernels = []
    for arch in archs:
        if arch // 10 not in TENSOR_CORES or arch not in SHARED:
            raise SystemExit(f"--arch {arch}: wants one of {', '.join(map(str, SHARED))}")
        for launch in recorded(work(arch)):
            kernels.append(compile_launch(launch, arch, tool))
            k = kernels[-1]
            print(
                f"{k.name:24} {k.variant[:84]:84} {k.arch:3} {k.registers:9} {k.spill_bytes:6} {k.shared_bytes:6}"
                f" {k.tensor_core_instructions or '':>5}",
                flush=True,
            )
    return kernels


def main() -> int:
    """python bench/compile_triton.py [80 90 100]"""
    import triton

    tool = next(Path(triton.__file__).parent.rglob("cuobjdump"))
    wrong = problems(report([int(arch) for arch in sys.argv[1:]] or [80, 90, 100], tool))
    print("\n" + ("\n".join(wrong) if wrong else "all kernels within the limits"))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

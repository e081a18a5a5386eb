"""The Triton kernels compiled for GPUs that need not be there; bench/compile_report.py prints what came out.

The stages run on CPU tensors with every launch recorded instead of done; each is then compiled with the types,
constants and alignments that the call had.
"""

from __future__ import annotations

import concurrent.futures
import importlib
import multiprocessing
import os
import pkgutil
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from compile_cuda import main_loop
from compile_limits import TENSOR_CORES, Kernel
from torch import Tensor

TYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "i1",
}


@dataclass(frozen=True)
class Launch:
    """What decides the machine code of a launch; the arguments as (name, type, whether divisible by 16)."""

    kernel: Any
    arguments: tuple[tuple[str, str, bool], ...]
    constants: tuple[tuple[str, Any], ...]
    options: tuple[tuple[str, int], ...]


def modules() -> list[Any]:
    """Of the Triton backend."""
    package = importlib.import_module("gloss_kernels._backends.triton")
    names = [info.name for info in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
    return [importlib.import_module(name) for name in names]


def all_kernels() -> set[str]:
    """module.kernel of every kernel there is."""
    named = ((module.__name__, name) for module in modules() for name in vars(module) if name.endswith("_kernel"))
    return {f"{module}.{name}" for module, name in named}


def recorded(work: Callable[[], None]) -> list[Launch]:
    """The launches of ``work``, each kind once. None is carried out."""
    launches: dict[Launch, None] = {}

    def record(kernel: Any, grid: Any, like: Tensor, *values: Any, **meta: Any) -> None:
        options = importlib.import_module("gloss_kernels._backends.triton._launch").OPTIONS | {
            name: meta.pop(name) for name in ("num_warps", "num_stages") if name in meta
        }
        arguments, constants = [], list(meta.items())
        for parameter, value in zip([p for p in kernel.params if p.name not in meta], values, strict=True):
            if isinstance(value, Tensor):
                arguments.append((parameter.name, "*" + TYPES[value.dtype], True))
            elif hasattr(value, "block_shape"):  # a tensor descriptor
                shape = ", ".join(map(str, value.block_shape))
                arguments.append((parameter.name, f"tensordesc<{TYPES[value.base.dtype]}[{shape}]>", False))
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

    before = [(module, module.launch) for module in modules() if hasattr(module, "launch")]
    for module, _ in before:
        module.launch = record
    try:
        work()
    finally:
        for module, launch in before:
            module.launch = launch
    return list(launches)


def ast_source(launch: Launch) -> Any:
    """As triton.compile takes it."""
    from triton.compiler import ASTSource

    names = [parameter.name for parameter in launch.kernel.params]
    constants = dict(launch.constants)
    types = {name: kind for name, kind, _ in launch.arguments}
    return ASTSource(
        fn=launch.kernel,
        signature={name: "constexpr" if name in constants else types[name] for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name, _, divisible in launch.arguments if divisible},
    )


def compile_launch(launch: Launch, arch: int) -> Kernel:
    import triton
    from triton.backends.compiler import GPUTarget

    start = time.perf_counter()
    compiled = triton.compile(ast_source(launch), target=GPUTarget("cuda", arch, 32), options=dict(launch.options))
    seconds = time.perf_counter() - start
    tool = next(Path(triton.__file__).parent.rglob("cuobjdump"))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage, code = (
            subprocess.run([tool, option, file.name], capture_output=True, text=True, check=True).stdout
            for option in ("--dump-resource-usage", "-sass")
        )
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found, usage
    kernel = Kernel(
        backend="triton",
        name=launch.kernel.__name__,
        variant=variant(launch),
        arch=arch,
        registers=int(found[1]),
        spill_bytes=int(found[2]),
        shared_bytes=compiled.metadata.shared,
        seconds=seconds,
    )
    if kernel.name == "sweep_kernel" and "fp16" in kernel.variant:
        kernel.tensor_cores, kernel.main_loop_spills = main_loop(code, TENSOR_CORES["triton"][arch // 10])
    return kernel


def variant(launch: Launch) -> str:
    """The types of its numbers, and its constants: a flag by its name where it is set."""
    kinds = re.findall(r"fp\d\d|bf16", " ".join(kind for _, kind, _ in launch.arguments))
    shown = [
        name if value is True else f"{name}={value}"
        for name, value in launch.constants
        if name.isupper() and value is not False
    ]
    return " ".join([*dict.fromkeys(kinds), *shown])


# ------------------------------------------------- calls whose launches are all that a user's calls make
def topk_calls(arch: int) -> None:
    from gloss_kernels._backends import protocol
    from gloss_kernels._backends import triton as _triton
    from gloss_kernels._backends.triton.topk import search, tiles

    n, k = 20_000, 15
    cases = [(torch.float32, 384, False), (torch.float32, 48, False), (torch.float16, 384, False)]
    before = search.check_finite, search.sweep_tile
    search.check_finite = lambda name, rows: None
    try:
        for dtype, d, tma in [*cases, *[(torch.float32, 384, True)] * (arch >= 90)]:
            search.sweep_tile = lambda device, d, n, k, tma=tma: tiles.tile_for(arch, d, n, k)._replace(tma=tma)
            x = torch.ones(n, d, dtype=dtype)
            _triton.cosine_topk(protocol.Search(x, None, k, True, None))
            if dtype == torch.float32:
                _triton.cosine_topk(protocol.Search(x[:600], x, k, False, torch.zeros(600, 20, dtype=torch.int64)))
        for dtype in (torch.float64, torch.float32):
            x = torch.ones(300, 384, dtype=dtype)
            _, indices = _triton.cosine_topk(protocol.Search(x, None, k, True, None))
            grad = torch.ones(300, k, dtype=dtype)
            _triton.cosine_topk_backward(protocol.SearchGradient(x, None, indices * 0, grad, True, True))
    finally:
        search.check_finite, search.sweep_tile = before


def graph_calls() -> tuple[Tensor, ...]:
    """Returns a graph for the calls of the next stage."""
    from gloss_kernels import reference
    from gloss_kernels._backends import protocol
    from gloss_kernels._backends import triton as _triton

    n, k = 2000, 15
    indices = (torch.arange(n)[:, None] + torch.arange(1, k + 1)) % n
    weights = torch.ones(n * k)
    for symmetrize in reference.SYMMETRIZE:
        crow, col, *origin = _triton.knn_structure(indices, symmetrize, 2 * n * k)
        values = torch.ones(int(crow[-1]))
        forward, reverse = (places[: len(values)] for places in origin)
        combination = protocol.Combination(weights, forward, reverse, symmetrize)
        _triton.combine_edges(combination)
        _triton.combine_edges_backward(combination, values)
        if symmetrize == "sum":
            graph = protocol.Edges(crow, col[: len(values)], values)
    for normalization in ("row", "symmetric", "published"):
        _triton.normalize_edges(graph, normalization)
        _triton.normalize_edges_backward(graph, normalization, graph.values)
    return graph


def propagate_calls(crow: Tensor, col: Tensor, values: Tensor) -> None:
    """No kernel writes anything: the tolerance -1 keeps spreading going, all rows are declared reachable,
    and the kernels of the multilevel solver are called by themselves."""
    from gloss_kernels._backends import protocol

    forward, backward = (
        importlib.import_module(f"gloss_kernels._backends.triton.{name}")
        for name in ("propagate", "propagate_backward")
    )
    from gloss_kernels._backends import hierarchy, multilevel
    from gloss_kernels._backends.triton import flow

    n = len(crow) - 1
    fixed, reachable = torch.arange(n) % 3 == 0, torch.ones(n, dtype=torch.bool)
    before = multilevel.reachable_rows, backward.solve
    multilevel.reachable_rows = lambda *_: reachable
    backward.solve = lambda system, b, *_: (torch.zeros_like(b), b.new_zeros(b.shape[1]), 0)
    try:
        for classes in (4, 20, 100):
            f, prior, edges = values.new_ones(n, classes), values.new_ones(classes), protocol.Edges(crow, col, values)
            system = protocol.System(edges, fixed, prior, 0.5, 0.0, 8)
            forward.propagate(system, f, False, -1.0)
            backward.propagate_backward(system, f, reachable, torch.tensor(1e-4), f)
            level = hierarchy.Level(crow, col.int(), values, values[:n], values[:0], crow[:1], crow[:0])
            for right in (None, f):
                flow.flow(level, f, right)
            ends = multilevel.Ends(f.double(), f.double(), f[:, 0].double(), reachable, 1e-14, 1e-15)
            flow.flow_gradient(edges, ends)
    finally:
        multilevel.reachable_rows, backward.solve = before


def dense_calls() -> None:
    from gloss_kernels import reference
    from gloss_kernels._backends import protocol
    from gloss_kernels._backends.triton import loss

    n = 128
    x, sigma, y = torch.ones(n, 384), torch.ones(n, dtype=torch.float64), torch.arange(n) % 4
    labels = torch.where(y > 0, y, -1)
    for alpha, normalization in ((None, "row"), (None, "published"), (0.5, "symmetric")):
        for target in reference.TARGETS:
            for weight in (None, torch.ones(4, dtype=torch.float64)):
                batch = protocol.Batch(x, sigma, labels, y, y == 0, weight, 4, alpha, normalization, target, 0.01)
                loss.dense_loss(batch, True)


def work(arch: int) -> Callable[[], None]:
    """Calls of every stage whose launches between them cover every kernel."""

    def run() -> None:
        topk_calls(arch)
        propagate_calls(*graph_calls())
        dense_calls()

    return run


_launches: list[tuple[Launch, int]] = []  # kernels cannot be sent to another process: it inherits them


def _compile_nth(nth: int) -> Kernel:
    return compile_launch(*_launches[nth])


def kernels(archs: list[int]) -> Iterator[Kernel]:
    """Compiled by as many processes as there are processors."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise SystemExit("TRITON_INTERPRET=1 is set: kernels would be interpreted, not compiled")
    _launches.clear()
    for arch in archs:
        found = recorded(work(arch))
        never = all_kernels() - {f"{launch.kernel.fn.__module__}.{launch.kernel.__name__}" for launch in found}
        if never:
            raise SystemExit(f"no call of compile_triton.work() launches {', '.join(sorted(never))}")
        _launches.extend((launch, arch) for launch in found)
    forked = multiprocessing.get_context("fork")
    processes = len(os.sched_getaffinity(0))
    with concurrent.futures.ProcessPoolExecutor(processes, mp_context=forked) as pool:
        yield from pool.map(_compile_nth, range(len(_launches)))

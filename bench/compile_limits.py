"""What bench/compile_report.py prints of a kernel, and the limits that it holds kernels to."""

from __future__ import annotations

from dataclasses import dataclass

# Compute capability: the shared memory that a block may have.
SHARED = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
# By backend and major capability: the instruction of the sweep's main loop. The CUDA one is mma.sync everywhere; Triton
# takes wgmma on 9.x and tcgen05 on 10.x.
TENSOR_CORES = {
    "cuda": {8: "HMMA", 9: "HMMA", 10: "HMMA", 12: "HMMA"},
    "triton": {8: "HMMA", 9: "HGMMA", 10: "UTCHMMA", 12: "HMMA"},
}


@dataclass
class Kernel:
    """One compiled variant."""

    backend: str
    name: str
    variant: str  # template arguments or constants
    arch: int
    registers: int
    spill_bytes: int  # CUDA: stored and loaded, as ptxas counts; Triton: of the stack frame
    shared_bytes: int  # CUDA: the static part
    tensor_cores: int | None = None  # how many such instructions; None: not looked at
    main_loop_spills: int = 0  # spill instructions between its first tensor-core instruction and its last
    seconds: float = 0.0


@dataclass(frozen=True)
class Limit:
    registers: int
    spill_bytes: int = 0


# Kernels whose time is that of a stage. Registers decide how many threads hide the latency of memory: 65,536 a
# multiprocessor, so 64 a thread are 1,024 threads, 128 are 512. 255 is all a thread can have: there the spills count.
LIMITS = {
    "cuda": {
        "sweep_kernel": Limit(255),  # one block of 256 threads a multiprocessor, half of the registers accumulators
        "redo_kernel": Limit(128),  # two blocks of 256 threads, half of the registers accumulators
        "lead_kernel": Limit(64),
        "solve_kernel": Limit(128),  # one block of 512 threads in all
        "apply_kernel": Limit(64),
        "advance_kernel": Limit(64),
        "gradient_kernel": Limit(72, 64),
        "refine_kernel": Limit(80),
        "compact_kernel": Limit(64),
        "pack_kernel": Limit(64),
    },
    "triton": {
        "sweep_kernel": Limit(255, 64),  # spills in its epilogue, which few tiles reach
        "redo_kernel": Limit(240),  # one block of 256 threads: products in float32 and in float64, and 512 order keys
        "bound_kernel": Limit(128),
        "multiply_kernel": Limit(128),
        "advance_kernel": Limit(128),
        "turn_kernel": Limit(64),
        "entries_kernel": Limit(128),
        "score_kernel": Limit(128),
        "compact_kernel": Limit(128),
        "select_kernel": Limit(128),
        "pack_kernel": Limit(96),
        "gather_kernel": Limit(128),
    },
}
# Where one capability needs more than the others.
LIMITS_ON = {
    ("cuda", "weights_kernel", 100): Limit(64, 16),  # around the exponential, once per row of a mini-batch
    ("triton", "sweep_kernel", 100): Limit(255, 192),  # in the epilogue of tiles with hits; none in the main loop
}
OTHERS = {"cuda": Limit(255), "triton": Limit(255, 64)}


def problems(kernels: list[Kernel]) -> list[str]:
    """What is past a limit, in words."""
    out = []
    for k in kernels:
        where = f"{k.backend} {k.name} {k.variant} (sm_{k.arch})"
        limit = LIMITS_ON.get((k.backend, k.name, k.arch)) or LIMITS[k.backend].get(k.name, OTHERS[k.backend])
        if k.registers > limit.registers:
            out.append(f"{where}: {k.registers} registers, at most {limit.registers}")
        if k.spill_bytes > limit.spill_bytes:
            out.append(f"{where}: {k.spill_bytes} bytes of spills, at most {limit.spill_bytes}")
        if k.main_loop_spills:
            out.append(f"{where}: {k.main_loop_spills} spill instructions in the main loop")
        most = min(SHARED[k.arch], 48 << 10) if k.backend == "cuda" else SHARED[k.arch]
        if k.shared_bytes > most:
            out.append(f"{where}: {k.shared_bytes} bytes of shared memory, at most {most}")
        if k.tensor_cores == 0:
            out.append(f"{where}: no {TENSOR_CORES[k.backend][k.arch // 10]} in its machine code")
    for backend in {k.backend for k in kernels}:
        names = {k.name for k in kernels if k.backend == backend}
        out += [f"{backend} {name}: there is no such kernel" for name in LIMITS[backend] if name not in names]
    return out

"""One command for a CUDA machine: the test grid on the device, the sanitizer, and every stage beside its peers.

python bench/gpu.py                  # about ten minutes; writes bench/results/NAME.json and NAME.md
python bench/gpu.py --quick          # about two: fewer sizes, no sanitizer
python bench/gpu.py --name h200      # default: the GPU's name

The package must have been built with its CUDA core (pip install --no-build-isolation ., or pip install .), or Triton be
installed: what is there is measured, "gloss" is what backend="auto" takes, "gloss, triton" the Triton kernels.
Results so far are written after every section, so that an interrupted run keeps them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gpu_rows
import machine
import torch
from gpu_rows import Machine, Row

import gloss_kernels

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"

SANITIZED = """
import torch, gloss_kernels as gk
torch.manual_seed(0)
x = torch.randn(1500, 72, device="cuda").requires_grad_()
gk.cosine_topk(x, k=9).values.sum().backward()
gk.cosine_topk(x.detach()[:40].half(), x.detach().half(), k=9)
gk.cosine_topk(x.detach()[:300].double(), k=9)
graph = gk.similarity_graph(x, 7, sigma=0.5)
labels = torch.arange(1500, device="cuda") % 5
labels[::3] = -1
gk.propagate_labels(graph, labels, 5).probabilities.square().sum().backward()
y = torch.arange(96, device="cuda") % 4
for options in ({}, {"normalization": "published"}, {"alpha": 0.5}):
    gk.GLoss(4, **options)(x[:96], y).backward()
torch.cuda.synchronize()
print("sanitized")
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two minutes")
    parser.add_argument("--name", help="of the results (default: the GPU's)")
    parser.add_argument("--skip-tests", action="store_true")
    parser.add_argument("--skip-sanitizer", action="store_true")
    args = parser.parse_args()
    wrong = problem()
    if wrong:
        print(f"error: {wrong}", file=sys.stderr)
        return 2
    device = torch.device("cuda", torch.cuda.current_device())
    gpu = torch.cuda.get_device_name(device)
    name = args.name or re.sub(r"[^a-z0-9]+", "_", gpu.lower()).strip("_")
    print(f"{gpu}, torch {torch.__version__}, gloss_kernels {gloss_kernels.__version__}")
    print(
        f"{'about 2 minutes' if args.quick else 'about 10 minutes'}; results go to bench/results/{name}.json and .md\n"
    )
    report: dict[str, Any] = {"machine": machine.describe() | {"gpu": gpu, "driver": driver()}, "rows": []}

    roof = roofs(device)
    report["roofs"] = asdict(roof)
    say(f"copy {roof.copy_bytes / 1e9:,.0f} GB/s, float16 matrix rate {roof.matrix_flops / 1e12:,.0f} TFLOP/s")
    write(name, report, [])
    if not args.skip_tests:
        report["tests"] = tests(args.quick)
        say(report["tests"]["summary"])
        write(name, report, [])
    if not (args.skip_sanitizer or args.quick):
        report["sanitizer"] = sanitizer()
        say(str(report["sanitizer"]))
        write(name, report, [])
    rows: list[Row] = []
    for make in jobs(roof, device, args.quick):
        for row in make:
            say(f"{row.job}, {row.method}: {gpu_rows.readable(row.seconds) or row.error}")
            rows.append(row)
        write(name, report, rows)
    print("\n" + (RESULTS / f"{name}.md").read_text())
    return 0


def problem() -> str:
    if not torch.cuda.is_available():
        return "torch sees no GPU (torch.cuda.is_available() is False)"
    statuses = gloss_kernels.available_backends()
    if backends():
        return ""
    return (
        f"the CUDA backend cannot run: {statuses['cuda'].detail}; nor can Triton's: {statuses['triton'].detail}; build "
        "with pip install --no-build-isolation ., or install triton"
    )


def backends() -> list[str]:
    """Those of ours that can run on the GPU."""
    statuses = gloss_kernels.available_backends()
    return [name for name in ("cuda", "triton") if statuses[name].available]


def jobs(roof: Machine, device: torch.device, quick: bool) -> Any:
    """Generators of rows: nothing is allocated before its turn."""
    for n in (10_000, 100_000) if quick else (10_000, 100_000, 1_000_000):
        yield gpu_rows.topk_rows(roof, device, n, 384, torch.float32)
    yield gpu_rows.topk_rows(roof, device, 100_000, 384, torch.float16)
    yield gpu_rows.query_rows(roof, device, 1_000_000, 384)
    yield gpu_rows.gradient_rows(roof, device, 100_000, 384)
    for share in (0.7, 0.1):
        yield gpu_rows.propagate_rows(roof, device, 100_000 if quick else 1_000_000, share)
    for n, d, k in ((128, 768, None), (512, 768, None), (4096, 384, 15)):
        yield gpu_rows.loss_rows(roof, device, n, d, k)


def roofs(device: torch.device) -> Machine:
    def copy() -> float:
        a = torch.ones(1 << 28, device=device)
        b = torch.empty_like(a)
        return 2 * a.nbytes / gpu_rows.measure(lambda: b.copy_(a), device)[0]

    def matrix() -> float:
        m = torch.ones(8192, 8192, dtype=torch.float16, device=device)
        return 2 * 8192**3 / gpu_rows.measure(lambda: m @ m, device)[0]

    return Machine(copy(), matrix())


def tests(quick: bool) -> dict[str, Any]:
    stages = ["topk", "graph", "propagate", "loss", "paper_parity", "triton"]
    command = [sys.executable, "-m", "pytest", "-q", "-x" if quick else "-q", "--no-header", "-p", "no:cacheprovider"]
    command += [str(ROOT / "tests" / f"test_{stage}.py") for stage in stages]
    say("tests on the device")
    start = time.perf_counter()
    environment = os.environ | {"GLOSS_TEST_DEVICE": "cuda"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    lines = (done.stdout + done.stderr).strip().splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {"summary": lines[-1] if lines else "", "failed": failed, "seconds": round(time.perf_counter() - start, 1)}


def sanitizer() -> dict[str, str]:
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return {"compute-sanitizer": "not on PATH"}
    out = {}
    for backend in backends():
        environment = os.environ | {"GLOSS_KERNELS_BACKEND": backend}
        for kind in ("memcheck", "racecheck"):
            command = [tool, "--tool", kind, sys.executable, "-c", SANITIZED]
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
            lines = [line for line in (done.stdout + done.stderr).splitlines() if "SUMMARY" in line or "Error" in line]
            out[f"{backend} {kind}"] = lines[-1] if lines else f"exit code {done.returncode}"
    return out


def driver() -> str:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ""
    command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def write(name: str, report: dict[str, Any], rows: list[Row], folder: Path = RESULTS) -> None:
    report["rows"] = [asdict(row) for row in rows]
    (folder / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    about = report["machine"]
    versions = ", ".join(f"{package} {version}" for package, version in about["versions"].items())
    lines = [f"# {about.get('gpu', about['machine'])}, {about['date']}, commit {about['commit']}", "", versions + "."]
    if "roofs" in report:
        roof = report["roofs"]
        lines.append(
            f"Copy {roof['copy_bytes'] / 1e9:,.0f} GB/s, matrix rate {roof['matrix_flops'] / 1e12:,.1f} TFLOP/s."
        )
    for section in ("tests", "sanitizer"):
        if section in report:
            lines += ["", f"{section}: {report[section]}"]
    lines += ["", "## Targets", "", gpu_rows.targets(rows), "", "## Measured", "", gpu_rows.table(rows), ""]
    (folder / f"{name}.md").write_text("\n".join(lines))


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())

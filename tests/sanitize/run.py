"""The C++ core under sanitizers: ``nox -s sanitize``, or ``python tests/sanitize/run.py [address] [thread]``.

address: AddressSanitizer and UndefinedBehaviorSanitizer, over the tests of the C++ core (by each instruction set that
this processor has) and over the CUDA core on the emulator: its check programs and tests.
thread: ThreadSanitizer over the threaded parts of the C++ core, four threads a call.

Each builds into build/sanitize/NAME, with gcc, and runs pytest with the sanitizer's runtime loaded first. A report does
not stop the tests where the sanitizer can go on; every report is printed at the end, and one is enough to fail. Beside
AddressSanitizer gcc's runtime for undefined behaviour writes to stderr, whatever log_path says: what is written there
is kept, past pytest, and looked through; a check program ends at its first report.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

ON_THE_CPU = [
    "tests/test_topk.py", "tests/test_graph.py", "tests/test_propagate.py", "tests/test_loss.py",
    "tests/test_precision.py", "tests/test_memory_safety.py", "tests/test_operator_memory.py", "tests/test_corpus.py",
    "tests/test_paper_parity.py", "tests/test_multilevel.py", "tests/test_elimination.py",
]  # fmt: skip
# Selected by backend: Triton and the reference run no code of the core; compiled code calls the same operators.
CPU = "not cuda and not triton and not reference and not compile and not graph_capture"
EMULATED = ["tests/emulator", "tests/test_topk.py", "tests/test_graph.py", "tests/test_propagate.py",
            "tests/test_loss.py", "tests/test_memory_safety.py", "tests/test_operator_memory.py",
            "tests/test_multilevel.py", "tests/test_elimination.py"]  # fmt: skip
RUNS: dict[str, list[tuple[dict[str, str], list[str]]]] = {
    "address": [
        ({}, [*ON_THE_CPU, "-k", CPU]),
        ({"GLOSS_KERNELS_ISA": "avx2"}, [*ON_THE_CPU[:4], "-k", CPU]),
        ({"GLOSS_KERNELS_ISA": "generic"}, [*ON_THE_CPU[:4], "-k", CPU]),
        ({}, [*EMULATED, "-k", "(emulator or cuda) and not compile"]),  # nvcc does not run under a sanitizer
    ],
    "thread": [({}, [*ON_THE_CPU, "-k", CPU])],
}
THREADS = {"address": 2, "thread": 4}  # of a call; torch's own default stops at the number of cores
# Python and torch end without freeing all they have. ASan's own allocator gives aligned memory to torch, with room
# around each tensor that may not be touched. TSan: torch's threads wait for each other by libgomp, which it cannot see.
OPTIONS = {
    "address": {
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0:log_path={log}",
        "UBSAN_OPTIONS": "print_stacktrace=1:log_path={log}",
    },
    "thread": {"TSAN_OPTIONS": "exitcode=0:report_signal_unsafe=0:ignore_noninstrumented_modules=1:log_path={log}"},
}
RUNTIME = {"address": ["libasan.so", "libubsan.so", "libstdc++.so"], "thread": ["libtsan.so", "libstdc++.so"]}


def build(name: str, folder: Path) -> Path:
    """The package with the instrumented core, in a folder for PYTHONPATH."""
    environment = {
        **os.environ,
        "GLOSS_KERNELS_SANITIZE": name,
        "GLOSS_KERNELS_CUDA": "0",
        "GLOSS_KERNELS_EMULATOR": str(int(name == "address")),  # ThreadSanitizer: its threads are fibers of one thread
    }
    pybind11 = subprocess.check_output([sys.executable, "-m", "pybind11", "--cmakedir"], text=True).strip()
    ccache = ["-DCMAKE_CXX_COMPILER_LAUNCHER=ccache"] if shutil.which("ccache") else []
    configure = ["cmake", "-G", "Ninja", "-S", ROOT, "-B", folder, f"-DPython_EXECUTABLE={sys.executable}",
                 f"-Dpybind11_DIR={pybind11}", "-DCMAKE_CXX_COMPILER=g++", *ccache]  # fmt: skip
    subprocess.run(configure, env=environment, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", folder], env=environment, check=True)
    package = folder / "package"
    shutil.rmtree(package, ignore_errors=True)
    shutil.copytree(
        ROOT / "gloss_kernels", package / "gloss_kernels", ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    subprocess.run(["cmake", "--install", folder, "--prefix", package], check=True, stdout=subprocess.DEVNULL)
    if name == "thread":
        (module,) = package.glob("gloss_kernels/_C.*.so")
        symbols = subprocess.check_output(["nm", "-D", "--undefined-only", module], text=True).split()
        left = [symbol for symbol in symbols if symbol.startswith(("GOMP_", "omp_"))]
        if left:
            sys.exit(f"tests/sanitize/openmp_threads.cpp must have {', '.join(left)}: the core calls them")
    return package


def runtime(names: list[str]) -> str:
    """For LD_PRELOAD: Python was linked without them. libstdc++ as well, or the sanitizer finds no exceptions."""
    paths = [subprocess.check_output(["g++", f"-print-file-name={name}"], text=True).strip() for name in names]
    return " ".join(str(Path(path).resolve()) for path in paths)


def sanitize(name: str, extra: list[str]) -> bool:
    folder = ROOT / "build" / "sanitize" / name
    package = build(name, folder)
    reports = folder / "reports"
    shutil.rmtree(reports, ignore_errors=True)
    reports.mkdir()
    environment = {
        **os.environ,
        "OMP_WAIT_POLICY": "passive",
        "LD_PRELOAD": runtime(RUNTIME[name]),
        "PYTHONPATH": str(package),
        "PYTHONMALLOC": "malloc",
        "GLOSS_TEST_PROGRAMS": str(folder / "emulator"),
        **{key: value.format(log=reports / "report") for key, value in OPTIONS[name].items()},
    }
    passed = True
    for nth, (variables, arguments) in enumerate(RUNS[name]):
        print(f"\n=== {name} {variables or ''} pytest {' '.join(arguments)}", flush=True)
        threads = f"torch.set_num_threads({THREADS[name]})"
        start = f"import sys, pytest, torch; {threads}; sys.exit(pytest.main(sys.argv[1:]))"
        options = ["-q", "--capture=sys", "-p", "no:cacheprovider"]
        command = [sys.executable, "-P", "-c", start, *options, *arguments, *extra]
        written = reports / f"stderr.{nth}"
        with written.open("w") as stderr:
            done = subprocess.run(command, cwd=ROOT, env=environment | variables, stderr=stderr, check=False)
        passed &= done.returncode == 0
        if done.returncode == 0 and "runtime error:" not in written.read_text(errors="replace"):
            written.unlink()
    found = sorted(reports.iterdir())
    for report in found:
        print(f"\n=== {report.name}\n{report.read_text(errors='replace')[:20_000]}")
    print(f"\n{name}: tests {'passed' if passed else 'FAILED'}, {len(found)} processes with reports")
    return passed and not found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sanitizers", nargs="*", default=list(RUNS), help="address, thread; default both")
    parser.add_argument("--pytest", nargs=argparse.REMAINDER, default=[], help="arguments for pytest, last")
    asked = parser.parse_args()
    unknown = set(asked.sanitizers) - set(RUNS)
    if unknown:
        parser.error(f"sanitizers must be {' or '.join(RUNS)}, got {' '.join(unknown)}")
    if not all([sanitize(name, asked.pytest) for name in asked.sanitizers]):  # both run, whatever the first found
        sys.exit(1)


if __name__ == "__main__":
    main()

"""Seeds the faults of tests/faults.py one at a time and says which of them the tests notice.

    python tests/mutation.py [WORD ...] [--all] [--list] [--folder FOLDER]

WORD: only faults with one of these words in their name ("cpu:", "sign"). --all: against the whole fast set, not against
the tests that are to notice. --folder: where the copy is made; it stays, and the next run builds only what differs.

Works in a copy of the checkout, built there with CMake (which must be on PATH, with ninja and pybind11); a fault in C++
or CUDA costs a build of what includes it. Exit status 1: a fault was not noticed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from faults import FAULTS, Fault

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {".py", ".cpp", ".h", ".cu", ".cuh"}
LIMIT = 900  # seconds: a test that hangs has noticed


def sources(root: Path) -> dict[Path, str]:
    folders = (root / "csrc", root / "gloss_kernels")
    return {p: p.read_text() for folder in folders for p in sorted(folder.rglob("*")) if p.suffix in SOURCES}


def places(fault: Fault, texts: dict[Path, str]) -> list[Path]:
    """The file of each place where the fault's text stands."""
    return [path for path, text in texts.items() for _ in range(text.count(fault.old))]


def refresh(root: Path) -> None:
    """Copies the files that differ: what was built from the others is still good."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        source, target = ROOT / name, root / name
        if source.exists() and not (target.exists() and source.read_bytes() == target.read_bytes()):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)


class Copy:
    """A copy of the checkout in which tests run."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "tree"
        refresh(self.root)
        if (ROOT.parent / "shared").exists() and not (folder / "shared").exists():  # data that some tests read
            (folder / "shared").symlink_to((ROOT.parent / "shared").resolve())
        path = os.pathsep.join([str(self.root), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.environment = {
            **os.environ, "GLOSS_KERNELS_EMULATOR": "1", "GLOSS_KERNELS_CUDA": "0", "PYTHONPATH": path,
            "PYTHONDONTWRITEBYTECODE": "1",  # two versions of a file may have the same size and second
        }  # fmt: skip
        pybind11 = self.run(sys.executable, "-m", "pybind11", "--cmakedir").stdout.strip()
        self.build_folder = folder / "build"
        options = [f"-Dpybind11_DIR={pybind11}", f"-DPython_EXECUTABLE={sys.executable}", "-G", "Ninja"]
        done = self.run("cmake", "-S", str(self.root), "-B", str(self.build_folder), *options)
        if done.returncode or not self.build():
            sys.exit(f"{done.stdout}{done.stderr}\nerror: the copy cannot be built")

    def run(self, *command: str, limit: float = LIMIT) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=self.root, env=self.environment, capture_output=True, text=True, timeout=limit, check=False
        )

    def build(self) -> bool:
        if self.run("cmake", "--build", str(self.build_folder)).returncode:
            return False
        return self.run("cmake", "--install", str(self.build_folder), "--prefix", str(self.root)).returncode == 0

    def test(self, *arguments: str) -> str:
        safe = ["-P"] * (sys.version_info >= (3, 11))
        try:
            done = self.run(sys.executable, *safe, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *arguments)
        except subprocess.TimeoutExpired:
            return "caught (hangs)"
        failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED ")]
        if done.returncode == 1 and failed:
            return f"caught by {failed[0].partition('::')[2].partition(' - ')[0]}"
        if done.returncode < 0 or "Fatal Python error" in done.stderr:
            return "caught (crashes)"
        return "NOT CAUGHT" if done.returncode == 0 else f"no verdict: {done.stdout[-300:]}{done.stderr[-300:]}"


def try_fault(copy: Copy, fault: Fault, whole: bool) -> tuple[str, str]:
    """The file, and what came of it."""
    texts = sources(copy.root)
    found = places(fault, texts)
    if len(found) != 1:
        return "?", f"no verdict: its text stands {len(found)} times in the tree"
    path = found[0]
    path.write_text(texts[path].replace(fault.old, fault.new))
    try:
        if path.suffix != ".py" and not copy.build():
            verdict = "no verdict: does not build"
        elif whole:
            verdict = copy.test("-n", "2")
        else:
            tests = [f"tests/{name}" for name in fault.tests.split()]
            verdict = copy.test(*tests, *(["-k", fault.only] if fault.only else []))
    finally:
        path.write_text(texts[path])  # the next build takes it in
    return str(path.relative_to(copy.root)), verdict


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("words", nargs="*", metavar="WORD")
    parser.add_argument("--all", action="store_true", help="run the whole fast set against each fault")
    parser.add_argument("--list", action="store_true", help="only name the faults")
    parser.add_argument("--folder", type=Path, help="keep the copy here (default: a temporary folder)")
    options = parser.parse_args()
    chosen = [f for f in FAULTS if not options.words or any(word in f.name for word in options.words)]
    if options.list:
        print("\n".join(fault.name for fault in chosen))
        return 0
    results = []
    print("| fault | file | result | seconds |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory(prefix="gloss-mutation-") as temporary:
        copy = Copy(options.folder or Path(temporary))
        for fault in chosen:
            started = time.monotonic()
            path, verdict = try_fault(copy, fault, options.all)
            results.append(verdict)
            print(f"| {fault.name} | {path} | {verdict} | {time.monotonic() - started:.0f} |", flush=True)
    caught = sum(verdict.startswith("caught") for verdict in results)
    print(f"\n{caught} of {len(results)} caught")
    return 0 if caught == len(results) else 1


if __name__ == "__main__":
    sys.exit(main())

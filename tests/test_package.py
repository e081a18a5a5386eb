"""What a new user meets first: import, the report, the backend variable, the CUDA build on a machine without a GPU."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import PYTHON, ROOT

import gloss_kernels
from gloss_kernels import _library as library
from gloss_kernels import available_backends, cosine_topk


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PYTHON, "-c", code], capture_output=True, text=True, env={**os.environ, **environment})


def test_report() -> None:
    shown = subprocess.run([*PYTHON, "-m", "gloss_kernels"], capture_output=True, text=True, check=True).stdout
    for name, (available, detail) in available_backends().items():
        assert f"{name:<10} {'yes' if available else 'no'}" in shown and detail in shown
    assert available_backends()["cpu"].available


@pytest.fixture
def unbuilt(tmp_path: Path) -> Path:
    """A checkout that was not built, with one test."""
    root = tmp_path / "unbuilt"
    shutil.copytree(ROOT / "gloss_kernels", root / "gloss_kernels", ignore=shutil.ignore_patterns("*.so", "*.pyd"))
    shutil.copy(ROOT / "pyproject.toml", root)
    (root / "tests").mkdir()
    shutil.copy(ROOT / "tests/conftest.py", root / "tests")
    test = "import gloss_kernels\ndef test() -> None:\n    print(gloss_kernels.__file__)\n"
    (root / "tests/test_where.py").write_text(test)
    return root


def run_in(folder: Path, *words: str, path: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(path)}
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def without_core(tmp_path: Path) -> Path:
    """A folder for PYTHONPATH: an editable installation's core, elsewhere, is not found either."""
    folder = tmp_path / "without core"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text("import sys\nsys.modules['gloss_kernels._C'] = None\n")
    return folder


def test_an_unbuilt_tree_says_what_to_do(unbuilt: Path, without_core: Path) -> None:
    code = "import torch, gloss_kernels as gk; gk.cosine_topk(torch.randn(9, 4), k=2, backend='cpu')"
    said = run_in(unbuilt, "-c", code, path=without_core).stderr.splitlines()[-1]
    assert "the native core is not built" in said and "run `pip install -e .` in the source tree" in said


def test_pytest_in_an_unbuilt_tree_takes_the_installed_package(unbuilt: Path, tmp_path: Path) -> None:
    installed = tmp_path / "installed"
    installed.mkdir()
    (installed / "gloss_kernels").symlink_to(Path(gloss_kernels.__file__).parent)
    done = run_in(unbuilt, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", path=installed)
    assert done.returncode == 0 and str(installed) in done.stdout, done.stdout + done.stderr


def test_pytest_without_a_core_says_so_in_one_line(unbuilt: Path, without_core: Path) -> None:
    (unbuilt / "gloss_kernels").rename(without_core / "gloss_kernels")
    done = run_in(unbuilt, "-m", "pytest", "-q", "-p", "no:cacheprovider", path=without_core)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert done.stderr.startswith("ERROR: the native core is not built") and done.stderr.count("\n") <= 2, done.stderr


def test_import_needs_only_torch_and_numpy() -> None:
    blocked = "import sys; sys.modules.update(dict.fromkeys(['faiss', 'triton', 'scipy', 'sklearn', 'transformers']))"
    result = run(f"{blocked}; import gloss_kernels, torch; gloss_kernels.cosine_topk(torch.randn(9, 4), k=2)")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(("name", "works"), [("reference", True), ("cpu", True), ("triton", False), ("gpu", False)])
def test_backend_variable(name: str, works: bool) -> None:
    code = "import gloss_kernels, torch; gloss_kernels.cosine_topk(torch.randn(9, 4), k=2)"
    result = run(code, GLOSS_KERNELS_BACKEND=name, TRITON_INTERPRET="0")
    assert (result.returncode == 0) == works, result.stderr
    assert works or name in result.stderr


def test_backend_that_cannot_run_is_named() -> None:
    code = "import gloss_kernels as gk, torch; gk.GLoss(4, backend='triton')(torch.randn(9, 4), torch.arange(9) % 4)"
    assert "RuntimeError: backend='triton' cannot run here: " in run(code, TRITON_INTERPRET="0").stderr


@pytest.mark.parametrize("isa", ["generic", "avx2", "avx512", "avx512bf16"])
def test_every_instruction_set_gives_the_same_neighbours(isa: str) -> None:
    order = ["generic", "avx2", "avx512", "avx512bf16"]
    if order.index(isa) > order.index(library.core.isa()):
        pytest.skip(f"this processor has no {isa}")
    code = (
        "import torch, gloss_kernels as gk; torch.manual_seed(0); x = torch.randn(700, 50);"
        "v, j = gk.cosine_topk(x, k=12); g = gk.similarity_graph(x, 12); i = torch.arange(700);"
        "p = gk.propagate_labels(g, torch.where(i % 3 == 0, i % 5, -1), 5).probabilities;"
        "print(gk._library.core.isa(), int((j * torch.arange(12)).sum()), round(float(p[:, 0].sum()), 2))"
    )
    result = run(code, GLOSS_KERNELS_ISA=isa)
    assert result.returncode == 0, result.stderr
    name, indices, share = result.stdout.split()
    torch.manual_seed(0)
    truth = cosine_topk(torch.randn(700, 50), k=12, backend="reference").indices
    assert name == isa and int(indices) == int((truth * torch.arange(12)).sum())
    baseline = run(code, GLOSS_KERNELS_ISA="generic").stdout.split()
    assert share == baseline[2]


def test_unknown_instruction_set() -> None:
    result = run(
        "import torch, gloss_kernels; gloss_kernels.cosine_topk(torch.randn(9, 4), k=2)", GLOSS_KERNELS_ISA="x"
    )
    assert result.returncode != 0 and "GLOSS_KERNELS_ISA=x is unknown" in result.stderr


def test_progress_and_cancelling() -> None:
    x = torch.randn(6000, 64)
    shares: list[float] = []
    with gloss_kernels.progress(shares.append):
        cosine_topk(x, k=5)
    assert shares == sorted(shares) and all(0 <= share <= 1 for share in shares)

    def stop(share: float) -> None:
        raise InterruptedError(f"stopped at {share:.0%}")

    with gloss_kernels.progress(stop), pytest.raises(InterruptedError, match="stopped at"):
        cosine_topk(x, k=5)
    cosine_topk(x, k=5)  # and nothing is left behind


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_cuda_kernel_without_a_driver_says_so() -> None:
    architectures = library.core.cuda_architectures
    if not architectures:
        pytest.skip("this build has no CUDA core (no nvcc was found)")
    assert "90" in architectures
    with pytest.raises(RuntimeError, match="CUDA: "):
        size = {"n": 4, "cols": 4, "is_double": False}
        library.core.cuda.dense_unit_rows(**size, x=0, unit=0, inverse_norms=0, device=0, stream=0)
    assert "built for" in available_backends()["cuda"].detail


@pytest.mark.skipif(shutil.which("cmake") is None, reason="needs CMake")
@pytest.mark.parametrize(
    ("shown", "version", "expected"),
    [
        (None, "13.0", "80;90;100"),
        (None, "12.4", "80;90"),
        ("printf '9.0\\n8.0\\n9.0\\n'", "13.0", "80;90"),
        ("printf '12.0\\n10.0\\n'", "13.0", "100;120"),
        ("printf '7.5\\n8.6\\n'", "13.0", "86"),
        ("printf '12.0\\n'", "12.4", "80;90"),  # a GPU that this nvcc does not know
        ("echo 'No devices were found'; exit 6", "13.0", "80;90;100"),
        ("echo '[N/A]'", "12.8", "80;90;100"),
    ],
)
def test_default_cuda_architectures(tmp_path: Path, shown: str | None, version: str, expected: str) -> None:
    known = [80, 86, 89, 90] + [100, 120] * (version != "12.4")
    programs = {"nvcc": "\n".join(f"echo compute_{one}" for one in known), "nvidia-smi": shown}
    for name, does in programs.items():
        if does is not None:
            (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
            (tmp_path / name).chmod(0o755)
    if shown is None and shutil.which("nvidia-smi"):
        pytest.skip("there is an nvidia-smi here")
    script = tmp_path / "script.cmake"
    script.write_text(
        f"include({ROOT / 'cmake/cuda_architectures.cmake'})\n"
        f'default_cuda_architectures(found {tmp_path / "nvcc"} {version})\nmessage(STATUS "${{found}}")\n'
    )
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["cmake", "-P", script], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == f"-- {expected}"

"""What a new user meets first: import, the report, the backend variable, the CUDA build on a machine without a GPU."""

import os
import subprocess
import sys

import pytest
import torch

import gloss_kernels
from gloss_kernels import _library as library
from gloss_kernels import available_backends, cosine_topk


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}
    )


def test_report() -> None:
    shown = subprocess.run([sys.executable, "-m", "gloss_kernels"], capture_output=True, text=True, check=True).stdout
    for name, (available, detail) in available_backends().items():
        assert f"{name:<10} {'yes' if available else 'no'}" in shown and detail in shown
    assert available_backends()["cpu"].available


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

"""Shared by the tests: where the data lies, the inputs of the grid, and the tolerance rule."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# pytest knows this file as tests.conftest (importmode importlib); the tests import its helpers by the short name.
sys.modules.setdefault("conftest", sys.modules[__name__])
# `python -m pytest` puts the source tree first; where that is not built in place, the installed package is meant.
ROOT = Path(__file__).resolve().parents[1]
if all(path.suffix == ".pyi" for path in (ROOT / "gloss_kernels").glob("_C.*")):
    sys.path[:] = [folder for folder in sys.path if Path(folder).resolve() != ROOT]
PYTHON = [sys.executable, *["-P"] * (sys.version_info >= (3, 11))]  # a child does not look into its working folder

# Where the tensors live: GLOSS_TEST_DEVICE=cuda runs the same grid on a GPU. On the CPU Triton kernels are interpreted,
# if they were told so before their import.
DEVICE = os.environ.get("GLOSS_TEST_DEVICE", "cpu")
if DEVICE == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Workers share the cores: as many threads as cores in each of them would wait for each other, spinning.
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if WORKERS > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // WORKERS)))

import pytest  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from gloss_kernels import _library as library  # noqa: E402
from gloss_kernels import available_backends  # noqa: E402

SHARED = ROOT.parent / "shared"
# The kernels; each is compared with backend="reference". The CUDA kernels run on CPU tensors where their emulated build
# is installed (GLOSS_KERNELS_EMULATOR=1 pip install ...).
HAS_TRITON = available_backends()["triton"].available  # installed, and new enough
BACKENDS = ["cpu", *["cuda"] * bool(library.emulated)] if DEVICE == "cpu" else ["cuda"]
BACKENDS += ["triton"] * HAS_TRITON
AUTO_AND_KERNELS = ["auto", *(name for name in BACKENDS if name != "cpu")]  # on the CPU "auto" is "cpu"
if DEVICE != "cpu":
    torch.set_default_device(DEVICE)
    os.environ["GLOSS_KERNELS_CHECK"] = "1"
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]

torch.manual_seed(0)


def is_interpreted(backend: str) -> bool:
    """Triton in numpy: a thousand times slower, so its cases are smaller."""
    return backend == "triton" and DEVICE == "cpu"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Stops without a native core. Among `pytest -n 2` workers the last slow tests would be one worker's: the other
    takes some of them."""
    if not library.core:
        raise pytest.UsageError(library.missing)
    if getattr(config.option, "numprocesses", None) and config.option.dist == "no":
        config.option.dist = "worksteal"


def shared_file(name: str) -> Path:
    """A file beside the checkout, or a skip that says which one is missing."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"needs {path.relative_to(SHARED.parent)} beside the checkout")
    return path


def documents(n: int, d: int, dtype: torch.dtype = torch.float32, *, seed: int = 0, clusters: int = 5) -> Tensor:
    """Clustered rows of length about 1, with a common offset: cosines lie between 0.2 and 1, as in text embeddings."""
    generator = torch.Generator("cpu").manual_seed(seed)
    options = {"generator": generator, "dtype": torch.float64, "device": "cpu"}
    centers, noise = torch.randn(clusters, d, **options), torch.randn(n, d, **options)
    rows = centers[torch.arange(n, device="cpu") % clusters] + noise + 0.7
    return (rows / d**0.5).to(DEVICE, dtype)


def labels_for(n: int, num_classes: int, labeled: float = 0.7, *, seed: int = 1) -> Tensor:
    """Labels by cluster, -1 (unlabelled) on a random part."""
    generator = torch.Generator("cpu").manual_seed(seed)
    labels = torch.arange(n, device="cpu") % num_classes
    keys = torch.rand(n, generator=generator, dtype=torch.float32, device="cpu")
    return torch.where(keys < labeled, labels, -1).to(DEVICE)


def assert_no_worse(ours: Tensor, torchs: Tensor, truth: Tensor, *, slack: float = 2.0, tiny: float = 1e-6) -> None:
    """|ours - float64| <= 2 |torch in that dtype - float64| + tiny, both as the largest error over the tensor."""
    error = (ours.double() - truth).abs().max().item()
    allowed = slack * (torchs.double() - truth).abs().max().item() + tiny * max(1.0, truth.abs().max().item())
    assert error <= allowed, f"error {error:.2e}, allowed {allowed:.2e}"

"""Which backend "auto" takes on a GPU that is there for torch: on pretended machines, and by the emulated runtime."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gloss_kernels import _backends, _library, _settings, available_backends

GPU, SECOND = torch.device("cuda", 0), torch.device("cuda", 1)
OLD_DRIVER = "the NVIDIA driver supports CUDA 12.4, and this build needs 13.0"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Two GPUs of capability 9.0, this build's CUDA core and Triton; what the tests change is read at every call."""
    pretended = SimpleNamespace(problems={}, triton="", gpu="", asked=[])

    def cuda_problem(device: int) -> str:
        pretended.asked.append(device)
        return pretended.problems.get(device, "")

    monkeypatch.setattr(_backends, "_gpu_problem", lambda index: pretended.gpu)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    core = type("Core", (), {"cuda": SimpleNamespace(problem=cuda_problem), "isa": staticmethod(lambda: "generic")})
    monkeypatch.setattr(_library, "core", core)
    monkeypatch.setattr(_library, "cuda_architectures", "80 90")
    monkeypatch.setattr(_library, "emulated", None)
    monkeypatch.setattr(_backends, "_triton", lambda: SimpleNamespace(INTERPRETED=False))
    monkeypatch.setattr(_backends, "_triton_problem", lambda: pretended.triton)
    return pretended


def test_auto_takes_what_runs(machine: Any) -> None:
    assert _backends.resolve("auto", GPU) == "cuda"
    machine.gpu = "this GPU has compute capability 7.5, below 8.0"
    assert _backends.resolve("auto", GPU) == "reference"
    assert not available_backends()["cuda"].available and not available_backends()["triton"].available


@pytest.mark.parametrize("problem", [OLD_DRIVER, "it holds no code for the architecture of GPU 0"])
def test_auto_leaves_out_a_cuda_runtime_that_cannot_run(machine: Any, problem: str) -> None:
    machine.problems[0] = problem
    assert _backends.resolve("auto", GPU) == "triton"
    with pytest.raises(RuntimeError, match=f"^backend='cuda' cannot run here: built for 80 90, but {problem}"):
        _backends.resolve("cuda", GPU)
    assert available_backends()["cuda"] == (False, f"built for 80 90, but {problem}")
    machine.triton = "triton is not installed"
    assert _backends.resolve("auto", GPU) == "reference"


def test_the_variable_is_an_explicit_choice(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.problems[0] = OLD_DRIVER
    monkeypatch.setattr(_settings, "BACKEND", "cuda")
    with pytest.raises(RuntimeError, match="supports CUDA 12"):
        _backends.resolve("auto", GPU)


def test_each_gpu_is_asked_for_itself(machine: Any) -> None:
    machine.problems[1] = "it holds no code for the architecture of GPU 1"
    for _ in range(2):
        assert _backends.resolve("auto", GPU) == "cuda"
        assert _backends.resolve("auto", SECOND) == "triton"
    assert machine.asked == [0, 1]  # once each: the answer loads a kernel, and makes a context on no other GPU
    with pytest.raises(RuntimeError, match="of GPU 1"):
        _backends.resolve("cuda", SECOND)


def test_the_choice_is_a_constant_of_a_trace(machine: Any) -> None:
    machine.problems[1] = OLD_DRIVER
    torch._dynamo.reset()

    def choose(x: torch.Tensor) -> torch.Tensor:
        return x + (_backends.resolve("auto", SECOND) == "triton") + 2 * (_backends.resolve("auto", GPU) == "cuda")

    assert torch.compile(choose, fullgraph=True, backend="eager")(torch.zeros(())) == 3


@pytest.fixture
def emulated() -> Iterator[Any]:
    if not _library.emulated:
        pytest.skip("no emulated build: GLOSS_KERNELS_EMULATOR=1 pip install .")
    yield _library.emulated
    _library.emulated.pretend(13000, 0, 0, 0)


INSUFFICIENT_DRIVER, NO_IMAGE, UNSUPPORTED_PTX = 35, 209, 222  # of cudaError_t


def test_the_core_says_why_it_cannot_run(emulated: Any) -> None:
    assert emulated.problem(0) == ""
    assert emulated.problem(7) == "there is no GPU 7"
    for driver, count_error, kernel_error, problem in [
        (0, INSUFFICIENT_DRIVER, 0, "there is no NVIDIA driver"),
        (12040, INSUFFICIENT_DRIVER, 0, OLD_DRIVER),
        (13000, 0, NO_IMAGE, "it holds no code for the architecture of GPU 0"),
        (13000, 0, UNSUPPORTED_PTX, "unknown error"),  # in the emulator's words
    ]:
        emulated.pretend(driver, count_error, kernel_error, 0)
        assert emulated.problem(0) == problem
    emulated.pretend(13000, 0, 0, 0)
    assert emulated.problem(0) == ""  # nothing sticks

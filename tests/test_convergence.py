"""Warnings of solves on a GPU that did not converge, with stand-ins for its residuals, streams and events."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from gloss_kernels import _convergence, _library


class _Residual:
    """A residual on a GPU that is not there: its comparison gives a tensor on the CPU."""

    device = torch.device("cuda", 0)

    def __le__(self, limit: Tensor) -> Tensor:
        return torch.zeros(1) > limit


class _Event:
    """Done once `late` is over; asking takes a while, so that other threads come in between."""

    late = False

    def query(self) -> bool:
        time.sleep(1e-4)
        return not self.late


@pytest.fixture
def warned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was warned of; CUDA's streams and events are stand-ins."""
    found: list[str] = []
    monkeypatch.setattr(_convergence, "_pending", [])
    monkeypatch.setattr(_convergence, "_warn", found.append)
    monkeypatch.setattr(_library, "capturing", lambda x: False)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(record_event=_Event))
    return found


def test_threads_report_each_failure_once(warned: list[str]) -> None:
    errors: list[BaseException] = []

    def solves(name: int) -> None:
        try:
            for number in range(40):
                _convergence.check(f"{name} {number}", _Residual(), torch.zeros(()))  # type: ignore[arg-type]
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=solves, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert sorted(warned) == sorted(f"{name} {number}" for name in range(4) for number in range(40))


def test_a_slow_device_does_not_hold_back_another(warned: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Event, "late", True)
    _convergence.check("slow", _Residual(), torch.zeros(()))  # type: ignore[arg-type]
    slow = _convergence._pending[0][2]
    monkeypatch.setattr(_Event, "late", False)
    slow.late = True  # type: ignore[attr-defined]
    _convergence.check("quick", _Residual(), torch.zeros(()))  # type: ignore[arg-type]
    assert warned == ["quick"]
    slow.late = False  # type: ignore[attr-defined]
    _convergence.check("next", _Residual(), torch.zeros(()))  # type: ignore[arg-type]
    assert sorted(warned) == ["next", "quick", "slow"]

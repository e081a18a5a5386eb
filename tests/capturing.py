"""A CUDA graph on the CPU: what a function does to CPU tensors is recorded, the CUDA core's work by the emulator
(csrc/emulator/capture.h), torch's by a dispatch mode, and replayed in the order in which it was queued.

As under a real capture the core does not run while it is recorded, and whatever would bring a number to the host fails.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gloss_kernels import _library

READS = {"_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "unique", "_unique2"}
METHODS = {Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__bool__, Tensor.__int__, Tensor.__float__}
ALLOCATES = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"}


class HostReadError(RuntimeError):
    pass


class Graph:
    """What ``capture`` recorded."""

    def __init__(self, steps: list[Callable[[], None]], output: Any) -> None:
        self._steps, self.output = steps, output

    def replay(self) -> Any:
        with torch._C._AutoDispatchBelowAutograd():  # the steps were recorded there
            for step in self._steps:
                step()
        return self.output


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Callable[[], None]] = []
        self._recorded = 0  # of the emulator's work, how much is among the steps

    def take_core(self) -> None:
        first, last = self._recorded, _library.emulated.captured()
        if last > first:
            self.steps.append(lambda: _library.emulated.replay(first, last))
        self._recorded = last

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        if name in READS:
            raise HostReadError(f"{func} reads the device while a graph is captured")
        if func.namespace == "gloss_kernels":  # its body, with the mode on: the torch operations in it are recorded too
            with self, _NoReads():  # torch leaves function modes behind on its way here
                return OPERATORS[name]._init_fn(*args, **kwargs)
        output = func(*args, **kwargs)
        self.take_core()

        def run() -> None:
            for kept, new in zip(tree_leaves(output), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(kept, Tensor) and kept.data_ptr() != new.data_ptr():
                    kept.copy_(new)

        self.steps.append((lambda: output) if name in ALLOCATES else run)  # either way the memory is kept
        return output


class _NoReads(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in METHODS:
            raise HostReadError(f"Tensor.{func.__name__} reads the device while a graph is captured")
        return func(*args, **(kwargs or {}))


def _operators() -> dict[str, Any]:
    from gloss_kernels import _ops

    stages = (_ops.topk, _ops.graph, _ops.propagate, _ops.loss)
    found = [x for stage in stages for x in vars(stage).values()]
    return {op._name: op for op in found if isinstance(op, torch.library.CustomOpDef)}


OPERATORS = _operators()


def capture(function: Callable[[], Any]) -> Graph:
    """Records function() once; replay() computes its output, in the same tensors, from what its inputs then hold."""
    recorder = _Recorder()
    _library.emulated.begin_capture()
    try:
        with recorder, _NoReads():
            output = function()
        recorder.take_core()
    finally:
        _library.emulated.end_capture()
    return Graph(recorder.steps, output)

"""Checks of arguments that the stages share. Messages: "NAME must be WHAT IS WANTED, got WHAT CAME", or the bad row."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import _library, _settings

FLOAT_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def matrix(name: str, x: Any, *, dim: int | None = None) -> Tensor:
    if not isinstance(x, Tensor):
        raise TypeError(
            f"{name} must be a torch.Tensor (torch.as_tensor converts numpy arrays), got {type(x).__name__}"
        )
    if x.ndim != 2:
        raise ValueError(f"{name} must be [rows, dim], got shape {tuple(x.shape)}")
    if x.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got layout {x.layout}")
    if x.device.type == "meta" and not torch.compiler.is_compiling():
        raise ValueError(f"{name} must be on a device with numbers, got the meta device")
    if x.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{name} must be float64, float32, float16 or bfloat16, got {x.dtype}")
    if x.shape[1] == 0:
        raise ValueError(f"{name} must have at least one column, got shape {tuple(x.shape)}")
    if dim is not None and x.shape[1] != dim:
        raise ValueError(f"{name} must have {dim} columns as the other matrix, got {x.shape[1]}")
    return x


def tensor(name: str, x: Any, shape: tuple[Any, ...], dtype: torch.dtype | None) -> Tensor:
    if not isinstance(x, Tensor):
        raise TypeError(
            f"{name} must be a torch.Tensor (torch.as_tensor converts numpy arrays), got {type(x).__name__}"
        )
    if dtype is not None and x.dtype != dtype:
        raise TypeError(f"{name} must be {dtype}, got {x.dtype}")
    if tuple(x.shape) != shape:
        raise ValueError(f"{name} must have shape ({', '.join(map(str, shape))}), got {tuple(x.shape)}")
    return x


def operands(like: Tensor, **wanted: tuple[Tensor, tuple[Any, ...], torch.dtype]) -> None:
    """Shape, dtype and device of what an operator was given: torch.ops calls it past all other checks, and kernels know
    addresses only."""
    for name, (x, shape, dtype) in wanted.items():
        tensor(name, x, shape, dtype)
        same_device(name, x, like)


def integers(name: str, x: Any, shape: tuple[Any, ...]) -> Tensor:
    if isinstance(x, Tensor) and not x.dtype.is_signed and x.dtype != torch.bool:  # 255 would be one class more
        raise TypeError(f"{name} must be torch.int64, where -1 stands for none, got {x.dtype}, which has no -1")
    return tensor(name, x, shape, torch.int64)


# What reads a tensor. Compiled code, which cannot, calls the same function by an operator.


def finite_rows(name: str, x: Tensor) -> Tensor:
    """x; raises with the first row that contains NaN or Inf. Reads the tensor, wherever it lies."""
    if torch.compiler.is_compiling():
        checked: Tensor = checked_op(name, x, "finite_rows", 0.0)
        return checked
    return _finite_rows(name, x)


def at_least(name: str, x: Tensor, low: float) -> Tensor:
    """x, finite numbers of at least ``low`` > 0. Others raise; on a GPU, where to look means to wait, they become NaN,
    unless GLOSS_KERNELS_CHECK=1 asks to look."""
    if torch.compiler.is_compiling():
        checked: Tensor = checked_op(name, x, "at_least", low)
        return checked
    return _at_least(name, x, low)


def _finite_rows(name: str, x: Tensor, _: float = 0.0) -> Tensor:
    bad = ~torch.isfinite(x).all(dim=1)
    if bool(bad.any()):
        raise ValueError(f"{name}: row {int(bad.nonzero()[0])} contains NaN or Inf")
    return x


def _at_least(name: str, x: Tensor, low: float) -> Tensor:
    good = (x >= low) & torch.isfinite(x)
    if _library.capturing(x) or not (x.device.type == "cpu" or _settings.CHECK):
        return torch.where(good, x, torch.nan)
    if not bool(good.all()):
        raise ValueError(
            f"{name} must be a finite number of at least {low:g}, got {float(x.detach()[~good].flatten()[0])}"
        )
    return x


_READING: dict[str, Callable[[str, Tensor, float], Tensor]] = {"finite_rows": _finite_rows, "at_least": _at_least}


@torch.library.custom_op("gloss_kernels::checked", mutates_args=())
def checked_op(name: str, x: Tensor, check: str, number: float) -> Tensor:
    return _READING[check](name, x.detach(), number).clone()


@checked_op.register_fake
def _(name: str, x: Tensor, check: str, number: float) -> Tensor:
    return torch.empty_like(x)


checked_op.register_autograd(lambda ctx, grad: (None, grad, None, None))


def whole_number(name: str, value: Any, least: int | None = None) -> Any:
    """An int (numpy's too), at least ``least``."""
    if isinstance(value, torch.SymInt):
        return value
    try:
        if isinstance(value, bool):
            raise TypeError
        value = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, got {value!r}") from None
    if least is not None and value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return value


def number(name: str, value: Any, low: float, high: float = math.inf, *, open_low: bool = False) -> float:
    """A finite real number (numpy's too) in low..high."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    value = float(value)
    above = value > low if open_low else value >= low
    if not (above and value <= high and value < math.inf):  # compiled, it may be a symbol: math.isinf takes none
        wanted = f"a finite number {'above' if open_low else 'of at least'} {low:g}"
        wanted += "" if high == math.inf else f" and at most {high:g}"
        raise ValueError(f"{name} must be {wanted}, got {value}")
    return float(value)


def choice(name: str, value: Any, allowed: tuple[Any, ...]) -> Any:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
    return value


def same_device(name: str, x: Tensor, other: Tensor) -> None:
    if x.device != other.device:
        raise ValueError(f"{name} must be on {other.device} as the other tensor, got {x.device}")


def condition(holds: Tensor, message: str) -> None:
    """ValueError where a bool tensor [] is false.

    On a GPU nothing waits for it, and a CUDA graph can be captured: false stops the device by an assertion, as an index
    out of bounds in torch does, before a kernel of ours reads on. GLOSS_KERNELS_CHECK=1 waits and raises. Compiled code
    has torch's assertion on every device: a RuntimeError on the CPU, with the same words.
    """
    if torch.compiler.is_compiling():
        torch._assert_async(holds, message)
        return
    waits = holds.device.type == "cpu" or _settings.CHECK
    if _library.capturing(holds) or not waits:
        torch._assert_async(holds, message)
    elif not bool(holds):
        raise ValueError(message)

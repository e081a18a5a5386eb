"""Checks of arguments shared by the stages. Each message names the argument, what was got and what is wanted."""

from __future__ import annotations

import math
import numbers
import operator
import os
from typing import Any

import torch
from torch import Tensor

from . import _native

FLOAT_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def matrix(name: str, x: Any, *, dim: int | None = None) -> Tensor:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: got {type(x).__name__}, wants a torch.Tensor (torch.as_tensor converts numpy arrays)")
    if x.ndim != 2:
        raise ValueError(f"{name}: got shape {tuple(x.shape)}, wants [rows, dim]")
    if x.layout != torch.strided:
        raise TypeError(f"{name}: got layout {x.layout}, wants a dense tensor")
    if x.device.type == "meta" and not torch.compiler.is_compiling():
        raise ValueError(f"{name}: is on the meta device, which holds no numbers")
    if x.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{name}: got {x.dtype}, wants float64, float32, float16 or bfloat16")
    if x.shape[1] == 0:
        raise ValueError(f"{name}: got shape {tuple(x.shape)}, wants at least one column")
    if dim is not None and x.shape[1] != dim:
        raise ValueError(f"{name}: got {x.shape[1]} columns, wants {dim} as in the other matrix")
    return x


def tensor(name: str, x: Any, shape: tuple[Any, ...], dtype: torch.dtype | None) -> Tensor:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: got {type(x).__name__}, wants a torch.Tensor")
    if dtype is not None and x.dtype != dtype:
        raise TypeError(f"{name}: got {x.dtype}, wants {dtype}")
    if tuple(x.shape) != shape:
        raise ValueError(f"{name}: got shape {tuple(x.shape)}, wants ({', '.join(map(str, shape))})")
    return x


def integers(name: str, x: Any, shape: tuple[Any, ...]) -> Tensor:
    return tensor(name, x, shape, torch.int64)


def whole_number(name: str, value: Any, least: int | None = None) -> Any:
    """An int (numpy's too), at least ``least``."""
    if isinstance(value, torch.SymInt):
        return value
    try:
        if isinstance(value, bool):
            raise TypeError
        value = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: got {value!r}, wants an int") from None
    if least is not None and value < least:
        raise ValueError(f"{name}: got {value}, wants at least {least}")
    return value


def number(name: str, value: Any, low: float, high: float = math.inf, *, open_low: bool = False) -> float:
    """A finite real number (numpy's too) in low..high."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: got {value!r}, wants a number")
    value = float(value)
    above = value > low if open_low else value >= low
    if not (above and value <= high) or math.isinf(value):
        wanted = f"a finite number {'above' if open_low else 'of at least'} {low:g}"
        wanted += "" if high == math.inf else f" and at most {high:g}"
        raise ValueError(f"{name}: got {value}, wants {wanted}")
    return float(value)


def choice(name: str, value: Any, allowed: tuple[Any, ...]) -> Any:
    if value not in allowed:
        raise ValueError(f"{name}: got {value!r}, wants one of {', '.join(map(repr, allowed))}")
    return value


def same_device(name: str, x: Tensor, other: Tensor) -> None:
    if x.device != other.device:
        raise ValueError(f"{name}: is on {x.device}, wants {other.device} as the other tensor")


def holds(condition: Tensor, message: str) -> None:
    """ValueError where a bool tensor [] is false.

    On a GPU nothing waits for it, and a CUDA graph can be captured: false stops the device by an assertion, as an index
    out of bounds in torch does, before a kernel of ours reads on. GLOSS_KERNELS_CHECK=1 waits and raises.
    """
    waits = condition.device.type == "cpu" or os.environ.get("GLOSS_KERNELS_CHECK") == "1"
    if _native.capturing(condition) or not waits:
        torch._assert_async(condition, message)
    elif not bool(condition):
        raise ValueError(message)

"""Checks of arguments shared by the stages. Each message names the argument, what was got and what is wanted."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

FLOAT_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def matrix(name: str, x: Any, *, dim: int | None = None) -> Tensor:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: got {type(x).__name__}, wants a torch.Tensor (torch.as_tensor converts numpy arrays)")
    if x.ndim != 2:
        raise ValueError(f"{name}: got shape {tuple(x.shape)}, wants [rows, dim]")
    if x.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{name}: got {x.dtype}, wants float64, float32, float16 or bfloat16")
    if x.shape[1] == 0:
        raise ValueError(f"{name}: got shape {tuple(x.shape)}, wants at least one column")
    if dim is not None and x.shape[1] != dim:
        raise ValueError(f"{name}: got {x.shape[1]} columns, wants {dim} as in the other matrix")
    return x


def integers(name: str, x: Any, shape: tuple[int, ...]) -> Tensor:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: got {type(x).__name__}, wants a torch.Tensor")
    if x.dtype != torch.int64:
        raise TypeError(f"{name}: got {x.dtype}, wants int64")
    if tuple(x.shape) != shape:
        raise ValueError(f"{name}: got shape {tuple(x.shape)}, wants {shape}")
    return x


def whole_number(name: str, value: Any, least: int, most: int | None = None) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{name}: got {value!r}, wants an int")
    if value < least or (most is not None and value > most):
        wanted = f"at least {least}" if most is None else f"{least} to {most}"
        raise ValueError(f"{name}: got {value}, wants {wanted}")
    return value


def number(name: str, value: Any, low: float, high: float = math.inf, *, open_low: bool = False) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: got {value!r}, wants a number")
    above = value > low if open_low else value >= low
    if not (above and value <= high):
        wanted = f"a finite number {'above' if open_low else 'of at least'} {low:g}"
        wanted += "" if high == math.inf else f" and at most {high:g}"
        raise ValueError(f"{name}: got {value}, wants {wanted}")
    if math.isinf(value):
        raise ValueError(f"{name}: got {value}, wants a finite number")
    return float(value)


def choice(name: str, value: Any, allowed: tuple[Any, ...]) -> Any:
    if value not in allowed:
        raise ValueError(f"{name}: got {value!r}, wants one of {', '.join(map(repr, allowed))}")
    return value


def same_device(name: str, x: Tensor, other: Tensor) -> None:
    if x.device != other.device:
        raise ValueError(f"{name}: is on {x.device}, wants {other.device} as the other tensor")

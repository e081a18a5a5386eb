"""What the properties draw: matrices of every content, layout and dtype, labels, numbers, and what is wrong with them.

A drawn input comes with its faults: the names of the arguments that the package must refuse. `outcome` calls a function
and holds it to that: with no fault it returns, with a fault it raises TypeError or ValueError and names one of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
Draw = Callable[[st.SearchStrategy[Any]], Any]


class Matrix(NamedTuple):
    x: Any  # a Tensor, except where that is the fault
    faulty: bool
    content: str


def seldom(draw: Draw, one_in: int) -> bool:
    return draw(st.integers(0, one_in - 1)) == one_in - 1


def one_of(draw: Draw, values: list[Any]) -> Any:
    return values[draw(st.integers(0, len(values) - 1))]


# ------------------------------------------------------------------------------------------- matrices
def _contents(name: str, n: int, d: int, rng: np.random.Generator) -> np.ndarray:
    x = rng.standard_normal((n, d))
    if name == "clusters":
        x = x * 0.1 + rng.standard_normal((3, d))[np.arange(n) % 3] + 0.5
    elif name == "few values":  # many equal cosines
        x = rng.integers(-1, 2, (n, d)).astype(float)
    elif name == "duplicates":
        x = x[rng.integers(0, max(1, n // 3), n)] if n else x
    elif name == "opposite":  # rows and their negatives
        x = x * 0 + rng.standard_normal(d) * rng.choice([-1, 1], (n, 1))
    elif name == "zero rows":
        x[rng.random(n) < 0.5] = 0
    elif name == "all zero":
        x = x * 0
    elif name == "denormal":
        x = x * 1e-41
    elif name == "tiny":
        x = x * 1e-30
    elif name == "huge":
        x = x * 1e37
    elif name == "scales":  # each row its own length
        x = x * 10.0 ** rng.integers(-6, 5, (n, 1))
    elif name == "columns of scales":
        x = x * 10.0 ** rng.integers(-6, 5, (1, d))
    return x


PLAIN = ["normal", "clusters"]
CONTENTS = [*PLAIN, "few values", "duplicates", "opposite", "zero rows", "all zero", "denormal", "tiny", "huge",
            "scales", "columns of scales"]  # fmt: skip
LAYOUTS = ["contiguous", "transposed", "columns apart", "rows apart", "inside", "one row", "one column"]


def _layout(name: str, x: Tensor) -> Tensor:
    """The same shape with other strides; "one row" and "one column" repeat one, by stride 0."""
    n, d = x.shape
    if name == "transposed":
        return x.T.contiguous().T
    if name == "columns apart":
        return torch.stack([x, torch.full_like(x, torch.nan)], dim=2)[:, :, 0]
    if name == "rows apart":
        return torch.stack([x, torch.full_like(x, torch.nan)], dim=1)[:, 0]
    if name == "inside":  # between numbers that no kernel may use
        around = torch.full((n + 2, d + 3), torch.nan, dtype=x.dtype)
        around[1 : n + 1, 2 : d + 2] = x
        return around[1 : n + 1, 2 : d + 2]
    if name == "one row" and n:
        return x[:1].expand(n, d)
    if name == "one column" and d:
        return x[:, :1].expand(n, d)
    return x


def matrix(
    draw: Draw, n: int, d: int, dtype: torch.dtype | None = None, *, faults: bool = True, contents: list[str] = CONTENTS
) -> Matrix:
    dtype = one_of(draw, DTYPES) if dtype is None else dtype
    content = one_of(draw, contents)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = torch.from_numpy(_contents(content, n, d, rng)).clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max).to(dtype)
    fault = draw(st.integers(0, 79)) if faults else 79
    if fault < 3 and n and d:  # NaN or Inf at one place
        x[rng.integers(n), rng.integers(d)] = [torch.nan, torch.inf, -torch.inf][fault]
        return Matrix(_layout(one_of(draw, LAYOUTS[:5]), x), True, "not finite")
    x = _layout(one_of(draw, LAYOUTS), x)
    if 3 <= fault < 14:
        wrong: list[Callable[[], Any]] = [
            lambda: x.numpy() if dtype != torch.bfloat16 else x.tolist(),
            lambda: x[None],
            lambda: x.flatten(),
            lambda: x.clamp(-9, 9).to(torch.int64),
            lambda: x > 0,
            lambda: torch.complex(x.float(), x.float()),
            lambda: x.float().to_sparse(),
            lambda: x[:, :0],
            lambda: None,
            lambda: torch.empty(n, d, device="meta"),
            lambda: x.float().to(torch.float8_e4m3fn),
        ]
        return Matrix(wrong[fault - 3](), True, "not a matrix of floats")
    return Matrix(x, d == 0, content)


# --------------------------------------------------------------------------------------------- labels
def labels(draw: Draw, n: int, num_classes: int, *, faults: bool = True) -> tuple[Any, bool]:
    """Of n documents, and whether they are to be refused."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    y = torch.from_numpy(rng.integers(0, num_classes, n))
    y[torch.from_numpy(rng.random(n) < one_of(draw, [0.0, 0.3, 0.9, 1.0]))] = -1
    if seldom(draw, 8):
        y = torch.where(y >= 0, 0, y)  # one class
    fault = draw(st.integers(0, 79)) if faults else 79
    if fault < 8:
        dtype = [torch.int8, torch.int16, torch.int32, torch.uint8, torch.uint16, torch.float32, torch.bool][fault % 7]
        return y.clamp(min=0).to(dtype), True
    if fault < 12:
        return [lambda: y[:, None], lambda: y.tolist(), lambda: None, lambda: torch.cat([y, y[:1], y.new_zeros(1)])][
            fault - 8
        ](), True
    if fault < 16 and n:
        y[rng.integers(n)] = one_of(draw, [num_classes, 10**12, -2, -100, -(2**63), 2**63 - 1])
        return y, True
    if seldom(draw, 4):
        y = torch.stack([y, torch.full_like(y, 10**9)], dim=1)[:, 0]  # every second number
    return y, False


# -------------------------------------------------------------------------------------------- numbers
def whole(draw: Draw, low: int, high: int, *, faults: bool = True) -> tuple[Any, bool]:
    """From low to high, at times just outside or no whole number; whether it is to be refused. high < low: always."""
    fault = draw(st.integers(0, 39)) if faults else 39
    if fault < 8:
        return [0, -1, high + 1, 10**10, 2.0, "3", None, True][fault], True
    value = draw(st.integers(low, max(low, high)))
    return (np.int64(value) if seldom(draw, 10) else value), bool(value > high)


def sigma(draw: Draw, n: int, least: float, *, faults: bool = True) -> tuple[Any, bool]:
    fault = draw(st.integers(0, 59)) if faults else 59
    if fault < 10:
        return [0.0, -0.5, float("nan"), float("inf"), "wide", torch.tensor(0.0), torch.tensor(-1.0), torch.tensor(2),
                torch.ones(n + 2), torch.ones(1, 1, 1)][fault], True  # fmt: skip
    value = one_of(draw, [least, 0.5, 1.0, 7.0, 1e3])
    shape = draw(st.integers(0, 5))
    if shape == 0:
        return torch.tensor(value, dtype=one_of(draw, [torch.float32, torch.float64])), False
    if shape == 1:
        return value * torch.linspace(1, 2, n), False
    return value, False


# -------------------------------------------------------------------------------------------- outcomes
def outcome(function: Callable[[], Any], faults: list[str]) -> Any:
    """What the function returns, or None where it refused a fault as it should."""
    if not faults:
        return function()
    try:
        function()
    except (TypeError, ValueError) as error:
        words = set(re.findall(r"\w+", str(error)))
        assert words & set(faults), f"{type(error).__name__} names none of {faults}: {error}"
        return None
    raise AssertionError(f"accepted a wrong {' or '.join(faults)}")


def none_is_nan(*tensors: Tensor | None) -> None:
    for at, x in enumerate(tensors):
        assert x is None or not bool(x.isnan().any()), f"NaN in tensor {at}"


def all_finite(*tensors: Tensor | None) -> None:
    for at, x in enumerate(tensors):
        assert x is None or bool(x.isfinite().all()), f"not finite: tensor {at}"


def gradient_fits(x: Tensor, gradient: Tensor | None) -> None:
    """No NaN, and finite: but for rows so short that 1 / |x|, which the gradient grows with, leaves the dtype."""
    if gradient is None:
        return
    none_is_nan(gradient)
    length = torch.linalg.vector_norm(x.detach().double(), dim=1)
    short = (length > 0) & (length < 1e4 / torch.finfo(x.dtype).max)
    all_finite(gradient[~short])

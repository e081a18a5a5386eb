"""Products of matrices that decide weights or gradients: the only place that multiplies them.

For the sake of a model's speed torch may be told to multiply float32 in TF32 or bfloat16: cosines with 8 to 11 bits
would order no neighbours, and at sigma 0.1 an error of 1e-3 in a cosine changes its weight by 10 %. Those settings are
the process's, so another one, set here for the time of a product, would reach the products of other threads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _derivatives, _library


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in the dtype of a, in full precision, with gradient: float32 matrices on the CPU by the core, others, and
    derivatives that a custom operator cannot have (torch.func, forward mode), in float64."""
    by_core = (
        _library.core is not None and a.device.type == "cpu" and a.dtype == torch.float32 and a.ndim == b.ndim == 2
    )
    if by_core and not any(_derivatives.transform_of(x) for x in (a, b)):
        c: Tensor = product_op(a, b)
        return c
    return in_float64(a, b)


def in_float64(a: Tensor, b: Tensor) -> Tensor:
    """What neither the settings nor autocast touch, under torch.compile too. It costs next to nothing on a GPU with
    float64 tensor cores, and half of the speed on a CPU."""
    return (a.double() @ b.double()).to(a.dtype)


def in_core(a: Tensor, b: Tensor) -> Tensor:
    """By the C++ core (csrc/loss/product_simd.cpp), without gradient; float32 [n, k] and [k, m] on the CPU."""
    transposed = not b.is_contiguous() and b.mT.is_contiguous()
    a, b = a.contiguous(), b.mT if transposed else b.contiguous()
    (n, k), m = a.shape, b.shape[0 if transposed else 1]
    if b.shape[1 if transposed else 0] != k or not a.dtype == b.dtype == torch.float32:
        raise ValueError(f"b must be float32 with {k} rows as a has columns, got {b.dtype} {tuple(b.shape)}")
    c = torch.empty(n, m, dtype=torch.float32, device=a.device)
    _library.core.cpu.dense_product(
        n=n, k=k, m=m, a=a.data_ptr(), b=b.data_ptr(), transposed=transposed, c=c.data_ptr(),
        threads=torch.get_num_threads(),
    )  # fmt: skip
    return c


@torch.library.custom_op("gloss_kernels::product", mutates_args=(), device_types="cpu")
def product_op(a: Tensor, b: Tensor) -> Tensor:
    return in_core(a, b)


@product_op.register_fake
def _(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty((a.shape[0], b.shape[1]))


def _setup(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    a, b = ctx.saved_tensors
    need_a, need_b = ctx.needs_input_grad
    return product(grad, b.mT) if need_a else None, product(a.mT, grad) if need_b else None


product_op.register_autograd(_backward, setup_context=_setup)

"""Products of matrices that decide weights or gradients: the only place that multiplies them."""

from __future__ import annotations

from torch import Tensor


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in the dtype of a, computed in float64.

    For the sake of a model's speed torch may be told to multiply float32 in TF32 or bfloat16: cosines with 8 to 11 bits
    would order no neighbours, and at sigma 0.1 an error of 1e-3 in a cosine changes its weight by 10 %. Those settings
    are the process's, so another one, set here for the time of a product, would reach the products of other threads.
    float64 is what neither they nor autocast touch, under torch.compile too. It costs up to twice the time on a CPU
    and next to nothing on a GPU with float64 tensor cores; where that counts the native core has a product of its own
    (csrc/loss/product_simd.cpp).
    """
    return (a.double() @ b.double()).to(a.dtype)

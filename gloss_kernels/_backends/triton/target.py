"""What a hidden document's probabilities are scored by (csrc/loss/target.h, reference.TARGETS)."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def target_loss(probability, of_target, is_target, weight, mask, there, prior, TARGET: tl.constexpr,
                SMOOTHING: tl.constexpr):  # fmt: skip
    """The loss of each row [ROWS] and weight * dloss/dp [ROWS, COLUMNS], from p and the probability of_target of its class.

    prior is 1 / C, is_target and mask tell the row's class and the columns that exist, there the rows that exist.
    """
    tl.static_assert((TARGET == "nll") | (TARGET == "published"))
    if TARGET == "published":
        power = tl.where(mask, tl.exp(probability), 0.0)
        powers = tl.where(there, tl.sum(power, 1), 1.0)
        loss = tl.log(powers) - of_target
        grad = weight[:, None] * (power / powers[:, None] - is_target.to(tl.float64))
    else:
        q = (1 - SMOOTHING) * tl.where(of_target < 0, 0.0, of_target) + SMOOTHING * prior
        loss = -tl.log(tl.where(weight > 0, q, 1.0))
        slope = -weight * (1 - SMOOTHING) / tl.where(weight > 0, q, 1.0)
        grad = tl.where(is_target & mask, slope[:, None], 0.0)
    return loss, grad

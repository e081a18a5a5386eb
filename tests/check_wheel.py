"""An installed wheel, tried in an environment of its own: the C++ core is there and finds what the reference finds.

python tests/check_wheel.py    # in any folder; needs nothing but the wheel and what it depends on
"""

from __future__ import annotations

import torch

import gloss_kernels as gk


def main() -> None:
    available, detail = gk.available_backends()["cpu"]
    assert available, detail
    torch.manual_seed(0)
    x, labels = torch.randn(3000, 64), torch.arange(3000) % 5
    ours, truth = (gk.cosine_topk(x, k=7, backend=backend) for backend in ("cpu", "reference"))
    assert (ours.values - truth.values).abs().max() < 1e-6
    assert (ours.indices == truth.indices).float().mean() > 0.999  # near ties may come in either order
    for n_neighbors in (None, 10):  # dense and sparse
        z = x[:100].clone().requires_grad_()
        gk.GLoss(5, n_neighbors=n_neighbors)(z, labels[:100]).backward()
        assert z.grad is not None and bool(torch.isfinite(z.grad).all()) and bool(z.grad.any())
    print(f"gloss_kernels {gk.__version__}: {detail}")


if __name__ == "__main__":
    main()

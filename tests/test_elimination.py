"""Elimination without subtractions: right to the last digits whatever the range of the weights is."""

from __future__ import annotations

import functools

import high_precision
import pytest
import torch
from conftest import AUTO_AND_KERNELS
from torch import Tensor

from gloss_kernels import GLoss, _backends, _elimination

C = 3
SIGMAS = [0.05, 0.07, 0.1, 0.15, 0.3, 1.0]
VARIANTS = {
    "row": {},
    "published": {"normalization": "published"},
    "spreading": {"alpha": 0.9},
    "spreading far": {"alpha": 0.999},
}


@functools.cache
def clusters(spread: float) -> tuple[Tensor, Tensor, Tensor]:
    """22 documents in five groups, two of which have no visible label; two documents are nearly the same one."""
    generator = torch.Generator("cpu").manual_seed(5)
    kind = {"dtype": torch.float64, "device": "cpu"}
    centers = torch.randn(5, 6, generator=generator, **kind) + 0.8
    group = torch.arange(22, device="cpu") % 5
    x = centers[group] / centers[group].norm(dim=1, keepdim=True)
    x = x + spread * torch.randn(22, 6, generator=generator, **kind)
    x[7] = x[2] + 1e-7 * torch.randn(6, generator=generator, **kind)
    labels = torch.tensor([0, 1, 2, 0, 1], device="cpu")[group]
    labels[::6] = (labels[::6] + 1) % C  # groups are not pure
    hidden = (group >= 3) | (torch.rand(22, generator=generator, device="cpu") < 0.5)
    return x, labels, hidden


@functools.cache
def truth(spread: float, sigma: float, variant: str) -> high_precision.Truth:
    x, labels, hidden = clusters(spread)
    return high_precision.g_loss(x, labels, C, hidden, sigma, **VARIANTS[variant])


@pytest.fixture(params=["dense", "dense torch"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The operator, and torch operations as for more documents: in blocks so small that there are several."""
    if request.param == "dense torch":
        monkeypatch.setattr(_backends, "dense_rows", lambda backend: 0)
        monkeypatch.setattr(_elimination, "BLOCK", 5)
    return str(request.param)


@pytest.mark.parametrize("backend", [*AUTO_AND_KERNELS, "reference"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("spread", [0.02, 0.1])
def test_the_loss_in_200_digits(spread: float, sigma: float, variant: str, backend: str, path: str) -> None:
    if path == "dense torch" and backend not in ("auto", "reference"):
        pytest.skip("no backend has a part in the torch path")
    found = truth(spread, sigma, variant)
    x, labels, hidden = (t.to(torch.get_default_device()) for t in clusters(spread))
    x, width = x.clone().requires_grad_(), torch.tensor(sigma, dtype=torch.float64, requires_grad=True)
    loss_fn = GLoss(C, sigma=width, backend=backend, **VARIANTS[variant])
    loss = loss_fn(x, labels, hidden)
    grad, grad_sigma = torch.autograd.grad(loss, (x, width))
    assert loss_fn.last is not None and loss_fn.last.reachable.all()
    torch.testing.assert_close(loss_fn.last.probabilities.cpu(), found.probabilities, rtol=0, atol=1e-8)
    torch.testing.assert_close(loss.item(), found.loss, rtol=0, atol=1e-8)
    torch.testing.assert_close(grad.cpu(), found.grad, rtol=0, atol=1e-6 * found.grad.abs().max().item())
    torch.testing.assert_close(
        grad_sigma.item(), found.grad_sigma, rtol=1e-6, atol=1e-6 * found.grad.abs().max().item()
    )

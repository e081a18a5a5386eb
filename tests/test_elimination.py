"""Elimination without subtractions: right to the last digits whatever the range of the weights is."""

from __future__ import annotations

import functools

import high_precision
import mpmath
import pytest
import torch
from conftest import AUTO_AND_KERNELS
from mpmath import mp, mpf
from torch import Tensor

from gloss_kernels import GLoss, _backends, _elimination, _library
from gloss_kernels.corpus.harmonic import harmonic

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
def truth(spread: float, sigma: float, variant: str, dtype: torch.dtype = torch.float64) -> high_precision.Truth:
    x, labels, hidden = clusters(spread)
    x = x.to(dtype).double()
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


@pytest.mark.parametrize("backend", AUTO_AND_KERNELS)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("sigma", [0.05, 0.1, 0.3])
def test_float32_rounds_the_cosines_and_nothing_else(sigma: float, variant: str, backend: str, path: str) -> None:
    """By 6e-8 / sigma^2 of a weight, 2e-5 at sigma 0.05."""
    if path == "dense torch" and backend != "auto":
        pytest.skip("no backend has a part in the torch path")
    found = truth(0.02, sigma, variant, torch.float32)
    x, labels, hidden = (t.to(torch.get_default_device()) for t in clusters(0.02))
    x = x.float().requires_grad_()
    loss_fn = GLoss(C, sigma=sigma, backend=backend, **VARIANTS[variant])
    (grad,) = torch.autograd.grad(loss_fn(x, labels, hidden), x)
    assert loss_fn.last is not None
    torch.testing.assert_close(loss_fn.last.probabilities.cpu().double(), found.probabilities, rtol=0, atol=2e-4)
    torch.testing.assert_close(grad.cpu().double(), found.grad, rtol=0, atol=1e-3 * found.grad.abs().max().item())


@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_solution_of_a_batch_beside_a_corpus(sigma: float) -> None:
    """corpus.harmonic, of A and B, and its gradient of their logarithms."""
    x, labels, hidden = clusters(0.02)
    unit = x / x.norm(dim=1, keepdim=True)
    w = torch.exp((unit @ unit.T - 1) / sigma**2).fill_diagonal_(0)
    edges = w[hidden][:, hidden].requires_grad_()
    to_labels = (w[hidden][:, ~hidden] @ torch.nn.functional.one_hot(labels[~hidden], C).double()).requires_grad_()
    f, reachable = harmonic(edges, to_labels)
    direction = torch.sin(torch.arange(f.numel(), dtype=f.dtype, device=f.device)).view_as(f)
    to_edges, to_own = torch.autograd.grad(f, (edges, to_labels), direction)
    got = [to_edges * edges.detach(), to_own * to_labels.detach()]

    every = range(len(edges))
    with mp.workdps(200):
        a, b = ([[mpf(v) for v in row] for row in t.tolist()] for t in (edges, to_labels))
        d = [mpmath.fsum(a[i]) + mpmath.fsum(b[i]) for i in every]
        system = [[(d[i] if i == j else mpf(0)) - a[i][j] for j in every] for i in every]
        true_f = high_precision.solve(system, b)
        lam = high_precision.solve(system, [[mpf(v) for v in row] for row in direction.tolist()])
        to_a = [
            [
                -a[i][j] / 2 * mpmath.fsum((lam[i][c] - lam[j][c]) * (true_f[i][c] - true_f[j][c]) for c in range(C))
                for j in every
            ]
            for i in every
        ]
        to_b = [[b[i][c] * (lam[i][c] - high_precision.dot(lam[i], true_f[i])) for c in range(C)] for i in every]
    assert reachable.all()
    f64 = {"dtype": torch.float64}
    true_f, to_a, to_b = (torch.tensor([[float(v) for v in row] for row in t], **f64) for t in (true_f, to_a, to_b))
    torch.testing.assert_close(f.detach(), true_f, rtol=0, atol=1e-12)
    near = 1e-9 * to_b.abs().max().item()
    torch.testing.assert_close(got[0], to_a, rtol=0, atol=near)
    torch.testing.assert_close(got[1], to_b, rtol=0, atol=near)


def test_a_block_at_a_time() -> None:
    """Several blocks give the factor of one, and R^T R = diag(W 1 + e) - W."""
    w = torch.exp(-40 * torch.rand(300, 300, dtype=torch.float64))
    w = (w + w.T).fill_diagonal_(0)
    e = torch.exp(-60 * torch.rand(300, dtype=torch.float64))
    leaves = [None, _elimination.leaf_in_torch]
    if _library.emulated is not None and w.device.type == "cpu":
        eliminate = functools.partial(_library.emulated.eliminate, device=0, stream=0)
        leaves.append(functools.partial(_elimination.leaf_in_core, eliminate))
    for leaf in leaves:
        factors = [_elimination.factor(w, e, leaf, block) for block in (300, 128, 37, 1)]
        for r in factors[1:]:
            torch.testing.assert_close(r, factors[0], rtol=1e-12, atol=0)
        torch.testing.assert_close(factors[0].T @ factors[0], torch.diag(w.sum(dim=1) + e) - w, rtol=0, atol=1e-12)

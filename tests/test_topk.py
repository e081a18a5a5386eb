"""Stage topk against the float64 reference."""

import pytest
import torch
from conftest import BACKENDS, DEVICE, DTYPES, assert_no_worse, documents, is_interpreted
from grid import SIMULATED, grid, sizes
from torch import Tensor

from gloss_kernels import cosine_topk, reference, topk_statistics
from gloss_kernels._math import compute_dtype
from gloss_kernels._ops.topk import cosine_topk_op

# (n, d, k): smallest sizes; k = n - 1; d = 1; odd ones; d past 1024; several tiles and row blocks, not multiples. 800
# rows are four blocks of the GPU's 256, an even number: half way round each pair would come up twice.
SHAPES = [(2, 3, 1), (3, 7, 2), (5, 1, 2), (33, 7, 32), (100, 384, 15), (130, 1025, 5), (517, 48, 70), (800, 65, 15)]
SHAPES += [(1500, 65, 15)]


def check_exact(values: Tensor, indices: Tensor, queries: Tensor, corpus: Tensor | None, exclude_self: bool) -> None:
    """The contract: every selected true cosine >= every unselected one - 2e-6; sorted; no repeats; values are right."""
    c = reference.cosine(queries, corpus)
    if exclude_self:
        c.fill_diagonal_(-torch.inf)
        assert not (indices == torch.arange(len(queries))[:, None]).any()
    chosen = c.gather(1, indices)
    rest = c.scatter(1, indices, -torch.inf)
    assert (chosen.amin(dim=1) >= rest.amax(dim=1) - 2e-6).all()
    assert all(len(set(row)) == len(row) for row in indices.tolist())
    assert (values.diff(dim=1) <= 0).all()
    tie = values.diff(dim=1) == 0
    assert (indices.diff(dim=1)[tie] > 0).all(), "equal values must be sorted by index"
    tiny = 1e-12 if values.dtype == torch.float64 else 3e-7
    assert (values.double() - chosen).abs().max() <= tiny


@grid(
    simulated=lambda shape, **_: shape[0] <= 800,
    shape=SHAPES,
    dtype=DTYPES,
    backend=BACKENDS,
)
def test_self_search(shape: tuple[int, int, int], dtype: torch.dtype, backend: str) -> None:
    n, d, k = shape
    x = documents(n, d, dtype)
    values, indices = cosine_topk(x, k=k, backend=backend)
    assert values.dtype == compute_dtype(x) and indices.dtype == torch.int64
    assert values.shape == indices.shape == (n, k)
    check_exact(values, indices, x, None, True)


# 1,700 queries: more than the CPU sweeps a packed piece of the corpus for
@grid(
    only=lambda shape, backend: shape[0] <= 1100 or backend == "cpu",
    shape=[(1, 1, 1), (1, 700, 10), (70, 33, 33), (300, 1100, 15), (1100, 300, 4), (1700, 300, 4), (3200, 300, 4)],
    backend=BACKENDS,
)
def test_queries_against_corpus(shape: tuple[int, int, int], backend: str) -> None:
    n, m, k = shape
    queries, corpus = documents(n, 40, seed=3), documents(m, 40, seed=4)
    values, indices = cosine_topk(queries, corpus, k=k, backend=backend)
    check_exact(values, indices, queries, corpus, False)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("columns", [slice(8, 56), slice(3, 44)], ids=["in steps of 16 bytes", "at odd places"])
def test_few_queries_against_a_half_precision_corpus(columns: slice, backend: str) -> None:
    """Sorted by cluster, with a zero row and duplicates; the corpus is a part of a wider matrix."""
    wide = documents(1300, 64, torch.float16, seed=4)
    wide = wide[(torch.arange(1300) % 5).argsort()]
    wide[9] = 0
    wide[40:60] = wide[700]
    wide[:, columns.stop :] = torch.nan
    corpus = wide[:, columns]
    queries = documents(40, 64, torch.float16, seed=3)[:, columns].contiguous()
    for exclude_self in (False, True):
        values, indices = cosine_topk(queries, corpus, k=12, exclude_self=exclude_self, backend=backend)
        check_exact(values, indices, queries, corpus.contiguous(), exclude_self)


@pytest.mark.parametrize("backend", BACKENDS)
def test_same_neighbours_as_the_reference(backend: str) -> None:
    x = documents(400, 32, torch.float64)
    ours, truth = (cosine_topk(x, k=10, backend=name) for name in (backend, "reference"))
    assert torch.equal(ours.indices, truth.indices)
    torch.testing.assert_close(ours.values, truth.values, rtol=0, atol=1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
def test_exclude_self_by_index_not_by_rank(backend: str) -> None:
    x = documents(6, 8)[torch.tensor([0, 1, 0, 2, 0, 1])]  # duplicates have cosine 1 too
    values, indices = cosine_topk(x, k=2, backend=backend)
    assert indices[0].tolist() == [2, 4] and indices[2].tolist() == [0, 4] and indices[4].tolist() == [0, 2]
    assert indices[1, 0] == 5 and indices[5, 0] == 1
    torch.testing.assert_close(values[0], torch.ones(2))
    with_self = cosine_topk(x, x, k=1, backend=backend)
    assert with_self.indices.squeeze(1).tolist() == [0, 1, 0, 3, 0, 1]


@sizes(BACKENDS, 700, 3000, simulated=520)
def test_all_rows_equal(n: int, backend: str) -> None:
    """Every cosine ties: the smallest indices win, without quadratic memory."""
    if backend in SIMULATED:  # all rows are redone exactly, n^2 d steps of a fiber
        n = min(n, 1100)
    x = documents(1, 24).expand(n, 24)
    values, indices = cosine_topk(x, k=5, backend=backend)
    assert torch.equal(values, values[:1, :1].expand(n, 5))
    expected = [[j for j in range(6) if j != i][:5] for i in range(n)]
    assert indices.tolist() == expected


@grid(
    dtype=[torch.float32, torch.float16],
    noise=[1e-7, 1e-6, 1e-4],
    backend=BACKENDS,
    interpreted=lambda dtype, noise: dtype == torch.float32 and noise == 1e-6,
)
def test_near_duplicates_overflow_the_lists(dtype: torch.dtype, noise: float, backend: str) -> None:
    """Two clusters of rows that the filter cannot tell apart: the order is that of float64, rounded to float32."""
    generator = torch.Generator("cpu").manual_seed(3)
    copies, asked = (600, 210) if is_interpreted(backend) else (2150, 80)  # its lists hold 512
    x = documents(2, 24, torch.float64).repeat(copies, 1)
    x *= 1 + noise * torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.device)
    corpus = torch.cat([x, documents(100, 24, torch.float64, seed=4)]).to(dtype)
    queries = corpus[:asked].contiguous()
    for k, exclude_self in ((12, True), (40, False)):
        values, indices = cosine_topk(queries, corpus, k=k, exclude_self=exclude_self, backend=backend)
        if topk_statistics():
            assert topk_statistics()["recomputed_rows"] > 0
        check_exact(values, indices, queries, corpus, exclude_self)
        truth = reference.cosine(queries, corpus).float()
        if exclude_self:
            truth.fill_diagonal_(-torch.inf)
        expected, order = truth.sort(dim=1, descending=True, stable=True)
        assert torch.equal(indices, order[:, :k]) and torch.equal(values, expected[:, :k])


def rounded_against(step: float) -> tuple[Tensor, Tensor]:
    """A query [256] of length 4096 and 700 rows of +-1, which no filter rounds. Its rounding to multiples of ``step``,
    in a format that has such steps from 256 to 512, goes along with twelve rows and against twelve others: the former's
    products are larger by 15 steps, after rounding smaller by 108, and a guard is 87."""
    a, b, fine = 116, 128, 256 * step / 2 ** torch.arange(12).double()  # coordinates: common, rounded, fine
    c = torch.arange(290, 310, step).double()
    common = ((4096.0**2 - b * c**2 - fine.square().sum()) / a).sqrt()  # 128 to 256: steps of half the size
    best = (common / step * 2 - (common / step * 2).round()).abs().argmin()  # nearly no rounding there
    lost = 0.48 * step
    signs = 1 - 2 * (torch.arange(b).double() % 2)
    query = torch.cat([common[best].expand(a), signs * c[best] + lost, fine])
    along, against = torch.ones(256), torch.ones(256)
    along[a + b :] = -1
    against[a : a + b] = -1
    rest = b * 2 * lost - 2 * 16 * lost  # what the fine coordinates take back
    for j, value in enumerate(fine.tolist()):  # from the coarse to the fine
        if 2 * value <= rest:
            rest -= 2 * value
        else:
            against[a + b + j] = -1
    rows = torch.cat([along.expand(12, -1), against.expand(12, -1), torch.randn(676, 256).sign()])
    return query, rows[torch.randperm(len(rows))]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("step", [0.25, 2.0], ids=["half", "bf16"])
def test_rounding_against_the_nearest(step: float, backend: str) -> None:
    """Rows that the filter takes for the nearest are further away, by more than the contract's 2e-6 and by less than
    its guards: one guard below the twelfth product would lose the true ones, two keep them."""
    query, x = rounded_against(step)
    queries = query.float().expand(400, -1).contiguous()
    truth = reference.cosine(queries[:1], x)[0].sort(descending=True).values
    gap = 15.4 * step / 65536  # 6e-5, 5e-4
    assert 0.9 * gap < truth[11] - truth[12] < 1.1 * gap and truth[23] - truth[24] > 0.01
    values, indices = cosine_topk(queries, x, k=12, exclude_self=False, backend=backend)
    facts = topk_statistics()
    assert facts["recomputed_rows"] == 0 and facts["candidates"] >= 12 * 400, facts
    check_exact(values, indices, queries, x, False)


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name == "cpu"])
def test_thresholds_rise(backend: str) -> None:
    """Or else all rows overflow their lists, and are right but recomputed."""
    for x in (documents(3000, 40), documents(2000, 384, torch.float16)):
        cosine_topk(x, k=10, backend=backend)
        facts = topk_statistics()
        assert facts["recomputed_rows"] == 0 and 10 * len(x) <= facts["candidates"] <= 20 * len(x), facts


@grid(d=[48, 384], backend=[name for name in BACKENDS if not is_interpreted(name)])  # that one has its own test
def test_near_ties_are_told_apart(d: int, backend: str) -> None:
    """600 rows whose cosines with a query differ by less than what the filter's sums are off by: the guard keeps them
    until they are scored in float64, or their lists are too short and they are redone. The contract of 2e-6 would not
    tell."""
    unit = torch.nn.functional.normalize(torch.randn(d, dtype=torch.float64), dim=0)
    noise = torch.randn(600, d, dtype=torch.float64)
    noise = torch.nn.functional.normalize(noise - noise @ unit[:, None] * unit)
    cosine = 0.9 + 5e-9 * torch.randperm(600).double()[:, None]
    x = (cosine * unit + (1 - cosine**2).sqrt() * noise).float()
    k = 10
    asked = 40 if backend == "cpu" else 450  # fewer are scored without a filter
    queries = (torch.linspace(0.5, 2, asked)[:, None].double() * unit).float()
    truth = reference.cosine(queries, x).float().sort(dim=1, descending=True, stable=True).indices[:, :k]
    assert torch.equal(cosine_topk(queries, x, k=k, backend=backend).indices, truth)


@sizes(BACKENDS, 2600, simulated=1100)
def test_rows_opposite_to_all_others(n: int, backend: str) -> None:
    """Their best cosines are far below 0, the product of padding with anything; sizes of several waves of tiles."""
    x = torch.rand(n, 24) + 0.3
    x[7] = -1
    x[n - 103 : n - 100] *= -1
    check_exact(*cosine_topk(x, k=5, backend=backend), x, None, True)
    values, indices = cosine_topk(-x[:250], x, k=5, backend=backend)
    check_exact(values, indices, -x[:250], x, False)


@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_rows(backend: str) -> None:
    x = documents(50, 9)
    x[[3, 20, 21]] = 0
    x[5] = -x[4]
    values, indices = cosine_topk(x, k=49, backend=backend)
    check_exact(values, indices, x, None, True)
    assert (values[3] == 0).all() and indices[3].tolist() == [j for j in range(50) if j != 3]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_extreme_row_lengths(scale: float, backend: str) -> None:
    x = documents(60, 12)
    x[::2] *= scale
    check_exact(*cosine_topk(x, k=7, backend=backend), x, None, True)


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bad_rows_are_named(dtype: torch.dtype, backend: str) -> None:
    for bad in (torch.nan, torch.inf, -torch.inf):
        x = documents(40, 6, dtype)
        x[17, 3] = bad
        x[30, 0] = bad
        with pytest.raises(ValueError, match=r"queries: row 17 contains NaN or Inf"):
            cosine_topk(x, k=3, backend=backend)
        with pytest.raises(ValueError, match=r"corpus: row 17 contains NaN or Inf"):
            cosine_topk(documents(40, 6, dtype), x, k=3, backend=backend)


@sizes(BACKENDS, 1100, simulated=520)
def test_hint_changes_nothing(n: int, backend: str) -> None:
    x = documents(n, 30)
    plain = cosine_topk(x, k=8, backend=backend)
    noisy = torch.randint(-1, n, (n, 20))
    repeated = plain.indices[:, [0] * 8 + [1]]  # counted eight times, the nearest would be the eighth
    hints = (plain.indices, noisy, noisy[:, :1], repeated)
    if is_interpreted(backend):  # 5 s a search: the right ones among wrong ones, and what must not count twice
        hints = (torch.cat([plain.indices, noisy], 1), repeated)
    for hint in hints:
        hinted = cosine_topk(x, k=8, hint=hint, backend=backend)
        assert torch.equal(hinted.indices, plain.indices) and torch.equal(hinted.values, plain.values)
        if DEVICE == "cpu":  # nor do too high thresholds lose rows, which would then be searched exhaustively
            assert topk_statistics()["recomputed_rows"] == 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_any_layout(dtype: torch.dtype, backend: str) -> None:
    x = documents(80, 20, dtype)
    wide = torch.full((80, 50), torch.nan, dtype=dtype)
    wide[:, 10:30] = x
    expected = cosine_topk(x, k=5, backend=backend)
    for layout in (wide[:, 10:30], x.T.contiguous().T, x.repeat_interleave(2, dim=0)[::2]):
        assert torch.equal(cosine_topk(layout, k=5, backend=backend).indices, expected.indices)


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name == "cpu"])
def test_same_bits_for_any_number_of_threads(backend: str) -> None:
    x = documents(1500, 50).requires_grad_()
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            values, indices = cosine_topk(x, k=9, backend=backend)
            (grad,) = torch.autograd.grad((values * torch.linspace(-1, 2, 9)).sum(), x)
            results.append((values, indices, grad))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_no_queries() -> None:
    values, indices = cosine_topk(torch.zeros(0, 4), documents(9, 4), k=3)
    assert values.shape == indices.shape == (0, 3)


# ------------------------------------------------------------------------------------------- gradient
@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
@pytest.mark.parametrize("shape", [(6, 4, 3), (9, 1, 8), (2, 5, 1)], ids=str)
def test_gradcheck(shape: tuple[int, int, int], backend: str) -> None:
    n, d, k = shape
    x = documents(n, d, torch.float64).requires_grad_()
    other = documents(k + 2, d, torch.float64, seed=5).requires_grad_()
    if d > 1:  # in one dimension all cosines are 1 or -1, and ties have no gradient to compare
        fast = backend in SIMULATED
        assert torch.autograd.gradcheck(lambda a: cosine_topk(a, k=k, backend=backend).values, x, fast_mode=fast)
        assert torch.autograd.gradcheck(
            lambda a, b: cosine_topk(a, b, k=k, backend=backend).values, (x, other), fast_mode=fast
        )


@grid(
    shape=[(2, 3, 1), (33, 7, 32), (100, 384, 15), (517, 130, 40)],
    dtype=DTYPES,
    backend=BACKENDS,
    interpreted=lambda shape, dtype: shape[0] <= 100 or dtype == torch.bfloat16,
)
def test_gradient(shape: tuple[int, int, int], dtype: torch.dtype, backend: str) -> None:
    n, d, k = shape
    x = documents(n, d, dtype).requires_grad_()
    values, indices = cosine_topk(x, k=k, backend=backend)
    weight = torch.randn(n, k, dtype=torch.float64)
    (ours,) = torch.autograd.grad((values * weight.to(values.dtype)).sum(), x)

    def gradient(y: Tensor) -> Tensor:
        u = torch.nn.functional.normalize(y)
        return torch.autograd.grad(((u @ u.T).gather(1, indices) * weight.to(y.dtype)).sum(), y)[0]

    truth = gradient(x.detach().double().requires_grad_())
    same = x.detach() if dtype in (torch.float32, torch.float64) else x.detach().float()
    torchs = gradient(same.requires_grad_()).to(dtype)
    assert ours.dtype == dtype
    assert_no_worse(ours, torchs, truth, tiny=1e-12 if dtype == torch.float64 else 1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_partial_gradients(backend: str) -> None:
    a, b = documents(30, 8), documents(40, 8, seed=2)
    full = torch.autograd.grad(
        cosine_topk(a.requires_grad_(), b.requires_grad_(), k=4, backend=backend).values.sum(), (a, b)
    )
    (only_a,) = torch.autograd.grad(cosine_topk(a, b.detach(), k=4, backend=backend).values.sum(), a)
    (only_b,) = torch.autograd.grad(cosine_topk(a.detach(), b, k=4, backend=backend).values.sum(), b)
    assert torch.equal(only_a, full[0]) and torch.equal(only_b, full[1])
    assert not cosine_topk(a.detach(), b.detach(), k=4, backend=backend).values.requires_grad


@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_row_has_no_gradient(backend: str) -> None:
    x = documents(12, 5)
    x[4] = 0
    x.requires_grad_()
    cosine_topk(x, k=6, backend=backend).values.sum().backward()
    assert x.grad is not None and x.grad.isfinite().all() and (x.grad[4] == 0).all() and (x.grad[5] != 0).any()


@pytest.mark.parametrize("grad_corpus", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_opcheck(dtype: torch.dtype, grad_corpus: bool) -> None:
    x = documents(20, 6, dtype).requires_grad_()
    corpus = documents(15, 6, dtype, seed=2).requires_grad_() if grad_corpus else None
    torch.library.opcheck(cosine_topk_op, (x, corpus, 4, corpus is None, None, "cpu"))

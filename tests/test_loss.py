"""Stage loss: GLoss and g_loss, dense and sparse, against the reference."""

import functools

import pytest
import torch
from conftest import AUTO_AND_KERNELS, documents, labels_for
from grid import SIMULATED, grid
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gloss_kernels import GLoss, _backends, g_loss, reference
from gloss_kernels._ops.loss import dense_loss_op, dense_propagate_op
from gloss_kernels.loss import draw_hidden
from gloss_kernels.sigma import estimate_sigma, sigma_mst, sigma_root, sigma_self_tuning

VARIANTS = {
    "default": {},
    "published": {"normalization": "published", "target": "published"},
    "spreading": {"alpha": 0.9},
    "weighted": {"class_weight": torch.tensor([0.5, 1.0, 2.0, 4.0])},
}


PATHS = ["dense", "dense torch", "sparse"]


def differs(n_neighbors: str, backend: str, n: int = 128, **_: object) -> bool:
    """No backend has a part in the torch path, and few documents are dense whatever the number of neighbours."""
    return backend == "auto" if n_neighbors == "dense torch" else n_neighbors == "dense" or n > 7


@pytest.fixture(params=PATHS)
def n_neighbors(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int | None:
    """The dense path by its operator and, as for more documents, by torch operations; the sparse path."""
    if request.param == "dense torch":
        monkeypatch.setattr(_backends, "dense_rows", lambda backend: 0)
    return 6 if request.param == "sparse" else None


def batch(n: int, dtype: torch.dtype = torch.float32, d: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    x, labels = documents(n, d, dtype), torch.arange(n) % 4
    return x, labels, (torch.rand(n, generator=torch.Generator("cpu").manual_seed(3), device="cpu") < 0.4).to(x.device)


@grid(
    only=differs,
    indirect=["n_neighbors"],
    n=[1, 2, 3, 7, 8, 128, 300],
    dtype=[torch.float64, torch.float32, torch.bfloat16],
    variant=list(VARIANTS),
    n_neighbors=PATHS,
    backend=AUTO_AND_KERNELS,
)
def test_against_reference(n: int, dtype: torch.dtype, variant: str, backend: str, n_neighbors: int | None) -> None:
    x, labels, hidden = batch(n, dtype)
    results = []
    for name, kind in ((backend, dtype), ("reference", torch.float64)):
        y = x.detach().to(kind).requires_grad_()
        options = {"n_neighbors": n_neighbors, "tol": 1e-12 if dtype == torch.float64 else 1e-6, **VARIANTS[variant]}
        loss_fn = GLoss(4, backend=name, **options)
        loss = loss_fn(y, labels, hidden)
        results.append((loss.detach().double(), torch.autograd.grad(loss, y)[0].double(), loss_fn.last))
        assert loss.dtype == (torch.float64 if kind == torch.float64 else torch.float32)
    (loss, grad, last), (true_loss, true_grad, true_last) = results
    exact = 1e-12 if n_neighbors is None else 1e-9  # dense: all in float64; sparse: solved to a tol
    near = {torch.float64: exact, torch.float32: 2e-5, torch.bfloat16: 2e-5}[dtype]
    torch.testing.assert_close(loss, true_loss, rtol=0, atol=near)
    assert torch.equal(last.reachable, true_last.reachable)
    largest = true_grad.abs().max().clamp(min=1e-4)
    near = {torch.float64: 1e-7, torch.float32: 1e-3, torch.bfloat16: 1e-2}[dtype]  # the gradient itself is bfloat16
    torch.testing.assert_close(grad / largest, true_grad / largest, rtol=0, atol=near)


@grid(
    only=differs,
    simulated=lambda variant, n_neighbors: n_neighbors == "dense" or variant == "default",  # 30 solves to 1e-13 a case
    indirect=["n_neighbors"],
    variant=list(VARIANTS),
    n_neighbors=PATHS,
    backend=AUTO_AND_KERNELS,
)
def test_gradcheck(variant: str, backend: str, n_neighbors: int | None) -> None:
    x, labels, hidden = batch(11, torch.float64, d=5)
    options = {"n_neighbors": n_neighbors, "tol": 1e-13, **VARIANTS[variant]}
    one, per_document = torch.tensor(0.7, dtype=torch.float64), torch.linspace(0.5, 0.9, 11, dtype=torch.float64)
    for sigma in (per_document,) if backend in SIMULATED else (one, per_document):
        assert torch.autograd.gradcheck(
            lambda a, s: g_loss(a, labels, 4, hidden, sigma=s, backend=backend, **options),
            (x.requires_grad_(), sigma.requires_grad_()),
            fast_mode=backend in SIMULATED,
        )


@grid(only=differs, indirect=["n_neighbors"], n_neighbors=PATHS, backend=[*AUTO_AND_KERNELS, "reference"])
def test_loss_where_no_label_of_the_class_arrives(n_neighbors: int | None, backend: str) -> None:
    """-log(0.01 / C): what the target "nll" leaves a class of which nothing comes."""
    x, labels, hidden = documents(20, 8), torch.zeros(20, dtype=torch.int64), torch.zeros(20, dtype=torch.bool)
    labels[[3, 8]], hidden[[3, 8]] = 3, True
    loss = GLoss(4, n_neighbors=n_neighbors, backend=backend)(x, labels, hidden)
    torch.testing.assert_close(loss, -torch.tensor(0.01 / 4).log(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_all_hidden_none_hidden(n_neighbors: int | None, backend: str) -> None:
    for n in (1, 2, 20):
        x, labels, _ = batch(n)
        x.requires_grad_()
        loss_fn = GLoss(4, n_neighbors=n_neighbors, backend=backend)
        none = loss_fn(x, labels, torch.zeros(n, dtype=torch.bool))
        none.backward()
        assert none == 0 and x.grad is not None and (x.grad == 0).all()
        full = loss_fn(x, labels, torch.ones(n, dtype=torch.bool))
        torch.testing.assert_close(full.detach(), torch.tensor(4.0).log())  # every document has the uniform prior
        full.backward()
        assert x.grad.isfinite().all()


@pytest.mark.filterwarnings("ignore:gloss_kernels")  # weights of 1e-30 are beyond float32, and it says so
def test_zero_rows_and_duplicates(n_neighbors: int | None) -> None:
    x, labels, hidden = batch(40)
    x[[1, 2]] = 0
    x[10:20] = x[10]
    x.requires_grad_()
    loss = GLoss(4, n_neighbors=n_neighbors, sigma=0.1)(x, labels, hidden)
    loss.backward()
    assert loss.isfinite() and x.grad is not None and x.grad.isfinite().all() and (x.grad[1:3] == 0).all()


@pytest.mark.filterwarnings("ignore:gloss_kernels")
@pytest.mark.parametrize("sigma", [0.02, 0.05])
def test_weights_that_underflow(sigma: float, n_neighbors: int | None) -> None:
    """exp((c - 1) / sigma^2) vanishes: documents become unreachable, the loss stays finite."""
    x, labels, hidden = batch(60, d=64)
    x.requires_grad_()
    loss_fn = GLoss(4, n_neighbors=n_neighbors, sigma=sigma)
    loss = loss_fn(x, labels, hidden)
    loss.backward()
    assert loss.isfinite() and x.grad is not None and x.grad.isfinite().all()
    assert loss_fn.last is not None and (sigma > 0.02 or not loss_fn.last.reachable.all())


def test_unlabeled_documents_take_part_and_are_not_scored() -> None:
    x, labels, hidden = batch(50)
    for ignore in (-1, -100):
        partly = torch.where(torch.arange(50) % 5 == 0, ignore, labels)
        loss_fn = GLoss(4, ignore_index=ignore)
        loss = loss_fn(x, partly, hidden)
        visible = torch.where(hidden | (partly == ignore), -1, labels)
        p, _ = reference.propagate_labels(reference.adjacency(x, None, 0.5), visible, 4)
        expected = reference.loss_on_hidden(p, labels, hidden & (partly != ignore), "nll")
        torch.testing.assert_close(loss.double(), expected, rtol=0, atol=1e-5)


def test_tight_clusters_at_small_sigma() -> None:
    """One cluster has all its labels hidden and hangs on the others by weights of exp(-0.65 / sigma^2)."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.tensor([[1.0, 0.1, 0.35], [0.1, 1.0, 0.0], [0.35, 0.0, 1.0]])
    x = torch.linalg.cholesky((centers + centers.T) / 2)[torch.arange(90) % 3]
    x = torch.cat([x, torch.zeros(90, 20)], dim=1) + 0.01 * torch.randn(90, 23, generator=generator)
    labels = torch.tensor([0, 1, 0])[torch.arange(90) % 3]
    hidden = torch.arange(90) % 3 == 2
    for sigma in (0.3, 0.2, 0.15, 0.1):  # at 0.1 the weights between clusters are 1e-28
        loss_fn = GLoss(2, sigma=sigma)
        y = x.clone().requires_grad_()
        loss_fn(y, labels, hidden).backward()
        wide = x.double().requires_grad_()
        truth_fn = GLoss(2, sigma=sigma, backend="reference")
        truth_fn(wide, labels, hidden).backward()
        assert loss_fn.last is not None and truth_fn.last is not None
        p, truth = loss_fn.last.probabilities[hidden], truth_fn.last.probabilities[hidden]
        assert (truth[:, 0] > 0.95).all()
        torch.testing.assert_close(p.double(), truth, rtol=0, atol=1e-3)
        near = max(1e-3 * wide.grad.abs().max().item(), 1e-12)  # at 0.1 p is 1 but for 1e-14, and so is its gradient
        torch.testing.assert_close(y.grad.double(), wide.grad, rtol=0, atol=near)


def test_drawn_hidden_documents() -> None:
    known = torch.arange(100) % 10 != 0  # 90 of 100
    for fraction, keep in ((0.7, 63), (0.0, 0), (1.0, 90), (0.5, 45), (0.01, 1), (0.1, 9)):
        hidden = draw_hidden(known, fraction)
        assert int((known & ~hidden).sum()) == keep and not (hidden & ~known).any()
    for m in range(1, 400):
        for percent in (10, 30, 50, 70, 90):
            kept = m - int(draw_hidden(torch.ones(m, dtype=torch.bool), percent / 100).sum())
            assert kept == -(-m * percent // 100)
    first, again, other = (draw_hidden(known, 0.5, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_module() -> None:
    x, labels, hidden = batch(30)
    sigma = torch.nn.Parameter(torch.tensor(0.5))
    loss_fn = GLoss(4, sigma=sigma, class_weight=torch.ones(4), generator=torch.Generator().manual_seed(0))
    assert dict(loss_fn.named_parameters())["sigma"] is sigma and "class_weight" in loss_fn.state_dict()
    loss_fn(x, labels).backward()
    assert sigma.grad is not None and sigma.grad != 0
    assert "sigma" in repr(loss_fn)
    torch.testing.assert_close(g_loss(x, labels, 4, hidden), GLoss(4)(x, labels, hidden))


def test_autocast_gives_float32() -> None:
    x, labels, hidden = batch(64)
    for n_neighbors in (None, 6):
        loss_fn = GLoss(4, n_neighbors=n_neighbors)
        plain = loss_fn(x, labels, hidden)
        with torch.autocast("cpu", torch.bfloat16):
            cast = loss_fn(x, labels, hidden)
        assert cast.dtype == torch.float32 and cast == plain


@pytest.mark.parametrize("how", ["root", "mst", "self-tuning"])
def test_heuristics_in_the_loss(how: str, n_neighbors: int | None) -> None:
    x, labels, hidden = batch(40, torch.float64)
    loss = GLoss(4, sigma=how, n_neighbors=n_neighbors, tol=1e-10)(x, labels, hidden)
    visible = torch.where(hidden, -1, labels)
    by_value = GLoss(4, sigma=estimate_sigma(how, x, visible), n_neighbors=n_neighbors, tol=1e-10)(x, labels, hidden)
    in_reference = GLoss(4, sigma=how, n_neighbors=n_neighbors, backend="reference")(x, labels, hidden)
    assert loss == by_value
    torch.testing.assert_close(loss, in_reference, rtol=0, atol=1e-5)


def test_heuristics_by_hand() -> None:
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0], [-1.0, 0.0]])  # distances: sqrt2 x 3, 2 x 2, 0
    labels = torch.tensor([0, 1, 0, 1])
    torch.testing.assert_close(sigma_root(x), (torch.tensor(2.0).sqrt() / 3).sqrt())
    torch.testing.assert_close(sigma_mst(x, labels), torch.tensor(2.0).sqrt() / 3)
    torch.testing.assert_close(sigma_mst(x, torch.zeros(4, dtype=torch.int64)), sigma_root(x))
    torch.testing.assert_close(sigma_self_tuning(x, 1), torch.tensor([0.01, 2.0**0.5, 0.01, 2.0**0.5]))


def test_a_document_without_label_is_no_class_of_its_own() -> None:
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])  # the last is the nearest of both
    torch.testing.assert_close(sigma_mst(x, torch.tensor([0, 1, -1])), torch.tensor(2.0).sqrt() / 3)


@pytest.mark.parametrize("how", ["root", "mst"])
def test_heuristics_look_at_evenly_spaced_rows(how: str) -> None:
    """4,096 rows, half of them wide, half of them narrow: the first 2,048 would tell of one half."""
    spread = torch.where(torch.arange(4096) < 2048, 0.5, 0.05)[:, None]
    x, labels = torch.ones(4096, 8) + spread * torch.randn(4096, 8), torch.arange(4096) // 2 % 3
    sigma = estimate_sigma(how, x, labels)
    assert sigma == estimate_sigma(how, x[::2], labels[::2]) != estimate_sigma(how, x[:2048], labels[:2048])


@grid(only=differs, indirect=["n_neighbors"], sigma=[0.5, "self-tuning"], n_neighbors=PATHS, backend=AUTO_AND_KERNELS)
def test_graph_is_whole(n_neighbors: int | None, sigma: float | str, backend: str) -> None:
    """Traced and differentiated by the compiler, but not made into code, which takes 5 to 15 s a case."""
    compile_and_compare(n_neighbors, sigma, backend, "aot_eager")


@pytest.mark.parametrize(
    "backend", AUTO_AND_KERNELS[:1] + [pytest.param(b, marks=pytest.mark.slow) for b in AUTO_AND_KERNELS[1:]]
)
def test_compile_fullgraph(n_neighbors: int | None, backend: str) -> None:
    compile_and_compare(n_neighbors, "self-tuning", backend, "inductor")


SIZES = (48, 33, 64)  # of batches: the second one makes the shapes symbols, the third must find them so


def compile_and_compare(
    n_neighbors: int | None, sigma: float | str, backend: str, compiler: str, dynamic: bool | None = None
) -> None:
    torch._dynamo.reset()  # the variants before this one count against the limit of recompilations
    plain, to_compile = (GLoss(4, n_neighbors=n_neighbors, sigma=sigma, backend=backend) for _ in range(2))
    compiled = torch.compile(to_compile, fullgraph=True, backend=compiler, dynamic=dynamic)
    for n in (*SIZES, *reversed(SIZES)):
        results = []
        x, labels, hidden = batch(n)
        for loss_fn in (plain, compiled):
            y = x.clone().requires_grad_()
            loss = loss_fn(y, labels, hidden)
            loss.backward()
            results.append((loss.detach(), y.grad))
        torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-6)
        loss = compiled(y, labels)  # draws the hidden documents inside the graph
        loss.backward()
        assert loss.isfinite() and compiled.last is not None and compiled.last.probabilities.shape == (n, 4)


COMPILED = {
    "default": {},
    "sparse": {"n_neighbors": 6},
    "root": {"sigma": "root"},
    "mst": {"sigma": "mst"},
    "published": {"normalization": "published", "target": "published"},
    "spreading": {"alpha": 0.9},
}


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("how", COMPILED)
def test_compiled_at_many_sizes(how: str, dynamic: bool | None) -> None:
    """As a user compiles a step: the hidden documents are drawn inside; also g_loss, and sigma as an argument."""
    torch._dynamo.reset()

    def step(x: Tensor, labels: Tensor, hidden: Tensor | None, scale: float) -> Tensor:
        sigma = COMPILED[how].get("sigma", scale)
        return g_loss(x, labels, 4, hidden, **COMPILED[how] | {"sigma": sigma})

    module = torch.compile(GLoss(4, **COMPILED[how]), fullgraph=True, backend="aot_eager", dynamic=dynamic)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for n in (*SIZES, *reversed(SIZES)):
        x, labels, hidden = batch(n)
        assert module(x, labels).isfinite()
        for scale in (0.4, 0.5, 0.6):
            expected = step(x, labels, hidden, scale)
            torch.testing.assert_close(compiled(x, labels, hidden, scale), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("how", COMPILED)
def test_exported_with_a_dynamic_batch(how: str, strict: bool) -> None:
    torch._dynamo.reset()
    loss_fn, n = GLoss(4, **COMPILED[how]), torch.export.Dim("n", min=8, max=512)
    for example in SIZES:
        shapes = {"embeddings": {0: n}, "labels": {0: n}, "hide_mask": {0: n}}
        program = torch.export.export(loss_fn, batch(example), dynamic_shapes=shapes, strict=strict).module()
        for size in (*SIZES, *reversed(SIZES)):
            x, labels, hidden = batch(size)
            y, z = x.clone().requires_grad_(), x.clone().requires_grad_()
            found, expected = program(y, labels, hidden), loss_fn(z, labels, hidden)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
            found.backward()
            expected.backward()
            torch.testing.assert_close(y.grad, z.grad, rtol=1e-3, atol=1e-5)


def test_a_compiled_loss_with_a_generator_draws_the_same() -> None:
    torch._dynamo.reset()
    plain, to_compile = (GLoss(4, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    compiled = torch.compile(to_compile, backend="aot_eager")
    for n in (*SIZES, *reversed(SIZES)):
        x, labels, _ = batch(n)
        torch.testing.assert_close(compiled(x, labels), plain(x, labels), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing(use_reentrant: bool) -> None:
    """The forward pass runs again: with the global generator it hides the same documents, with another it says so."""
    x, labels, hidden = batch(60)
    x.requires_grad_()
    again = functools.partial(checkpoint, use_reentrant=use_reentrant)
    torch.manual_seed(5)
    wanted = torch.autograd.grad(GLoss(4)(x, labels), x)[0]
    torch.manual_seed(5)
    again(GLoss(4), x, labels).backward()
    assert x.grad is not None and torch.equal(x.grad, wanted)
    own = GLoss(4, generator=torch.Generator().manual_seed(1))
    again(own, x, labels, hidden).backward()
    loss = again(own, x, labels)
    with pytest.raises(RuntimeError, match=r"^GLoss\(generator=...\) must not run again .* Give hide_mask"):
        loss.backward()


@pytest.mark.parametrize("backend", [*AUTO_AND_KERNELS, "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_too_short_for_a_gradient(dtype: torch.dtype, backend: str, n_neighbors: int | None) -> None:
    """1 / |x| of them is beyond their dtype: gradient 0, as of a zero row, and no NaN in that of the others."""
    for length in (1e-42, 1e-45) if dtype == torch.float32 else (1e-290, 1e-310, 1e-320):
        x, labels, hidden = batch(24, torch.float64)
        x[5] *= length
        x = x.to(dtype).requires_grad_()
        loss = GLoss(4, n_neighbors=n_neighbors, backend=backend)(x, labels, hidden)
        grad = torch.autograd.grad(loss, x)[0]
        assert loss.isfinite() and grad.isfinite().all() and (grad[5] == 0).all() and (grad[4] != 0).any()


def test_class_weights_are_constant(n_neighbors: int | None) -> None:
    x, labels, hidden = batch(24)
    weight = torch.ones(4, requires_grad=True)
    with pytest.raises(ValueError, match=r"^class_weight must be constant"):
        GLoss(4, n_neighbors=n_neighbors, class_weight=weight)
    loss_fn = GLoss(4, n_neighbors=n_neighbors, class_weight=torch.ones(4))
    loss_fn.class_weight = weight  # set later: no gradient, whatever the path
    assert not loss_fn(x, labels, hidden).requires_grad


def test_non_contiguous_and_partly_frozen() -> None:
    x, labels, hidden = batch(40)
    wide = torch.randn(40, 30)
    wide[:, 5:17] = x
    for n_neighbors in (None, 6):
        loss_fn = GLoss(4, n_neighbors=n_neighbors)
        torch.testing.assert_close(loss_fn(wide[:, 5:17], labels, hidden), loss_fn(x, labels, hidden))
        live = x[:20].clone().requires_grad_()
        loss_fn(torch.cat([live, x[20:]]), labels, hidden).backward()
        assert live.grad is not None and (live.grad != 0).any()
        assert not loss_fn(x, labels, hidden).requires_grad


def test_bad_arguments_are_named() -> None:
    x, labels, hidden = batch(10)
    wrong = labels.index_fill(0, torch.tensor([2]), -7)
    bad_row = x.clone()
    bad_row[4, 1] = torch.nan
    for error, match, call in [
        (ValueError, "^num_classes", lambda: GLoss(0)),
        (TypeError, "^num_classes", lambda: GLoss(2.5)),
        (ValueError, "^n_neighbors", lambda: GLoss(3, n_neighbors=0)),
        (ValueError, "^sigma", lambda: GLoss(3, sigma=0.0)),
        (ValueError, "^sigma", lambda: GLoss(3, sigma="median")),
        (ValueError, "^labeled_fraction", lambda: GLoss(3, labeled_fraction=1.2)),
        (ValueError, "^alpha", lambda: GLoss(3, alpha=1.5)),
        (ValueError, "^target", lambda: GLoss(3, target="mse")),
        (ValueError, "^class_weight", lambda: GLoss(3, class_weight=torch.ones(4))),
        (ValueError, "^backend", lambda: GLoss(3, backend="gpu")),
        (ValueError, "^labels must be 0..2 or -1, got 3 for document 3", lambda: GLoss(3)(x, labels)),
        (ValueError, "^labels must be 0..3 or -1, got -7 for document 2", lambda: GLoss(4)(x, wrong)),
        (ValueError, "^embeddings: row 4 contains NaN", lambda: GLoss(4)(bad_row, labels)),
        (ValueError, "^embeddings: row 4 contains NaN", lambda: GLoss(4, n_neighbors=3)(bad_row, labels)),
        (ValueError, "^embeddings must be .*, got shape", lambda: GLoss(4)(x[0], labels)),
        (TypeError, "^embeddings must be .*, got torch.int64", lambda: GLoss(4)(x.long(), labels)),
        (ValueError, "^hide_mask", lambda: GLoss(4)(x, labels, hidden[:3])),
        (TypeError, "^hide_mask", lambda: GLoss(4)(x, labels, hidden.long())),
        (TypeError, "^ignore_index", lambda: GLoss(4, ignore_index="a")),
        (TypeError, "^generator", lambda: GLoss(4, generator=3)),
        (ValueError, "^sigma", lambda: GLoss(4, sigma=1e-200)),
    ]:  # fmt: skip
        with pytest.raises(error, match=match):
            call()


@pytest.mark.parametrize("alpha", [-1.0, 0.8])
def test_opcheck(alpha: float) -> None:
    a = reference.adjacency(documents(12, 5), None, 0.6)
    m = reference.normalize(a, "row" if alpha < 0 else "symmetric").requires_grad_()
    labels = labels_for(12, 3, 0.5)
    boundary = torch.nn.functional.one_hot(labels.clamp(min=0), 3).double() * (labels >= 0)[:, None]
    root = None if alpha < 0 else a.sum(dim=1).sqrt()
    torch.library.opcheck(dense_propagate_op, (m, labels >= 0, boundary, alpha, root))


@pytest.mark.parametrize("alpha", [-1.0, 0.8])
@pytest.mark.parametrize("want_gradient", [True, False])
def test_dense_loss_opcheck(alpha: float, want_gradient: bool) -> None:
    x, labels, hidden = batch(12, torch.float64)
    sigma = torch.full((12,), 2.0, dtype=torch.float64)
    if want_gradient:
        x, sigma = x.requires_grad_(), sigma.requires_grad_()
    visible, weight = torch.where(hidden, -1, labels), torch.ones(4, dtype=torch.float64)
    how = ("row" if alpha < 0 else "symmetric", "nll", 0.01, want_gradient, "cpu")
    torch.library.opcheck(dense_loss_op, (x, sigma, visible, labels, hidden, weight, 4, alpha, *how))

"""Properties of topk, graph and propagate. Each takes hypothesis's draw, makes one input and holds the result to it."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from gloss_kernels import SimilarityGraph, _library, cosine_topk, propagate_labels, reference, similarity_graph
from gloss_kernels.graph import SYMMETRIZE, check_graph

from .inputs import DTYPES, PLAIN, Draw, all_finite, labels, matrix, none_is_nan, one_of, outcome, seldom, sigma, whole

# Below, solves by conjugate gradients are not held to the reference.
SMALLEST_SIGMA = 0.3
st_size = st.integers(0, 24)
st_bool, st_seed, st_count = st.booleans(), st.integers(0, 2**32 - 1), st.integers(0, 60)
st_fault, st_variant = st.integers(0, 39), st.integers(0, 6)
BACKENDS = ["auto", "auto", "auto", "reference", *["cuda"] * bool(_library.emulated)]


def _backend(draw: Draw) -> str:
    return one_of(draw, BACKENDS)


def _near(x: Tensor) -> float:
    """Of a cosine: 2e-6 is what cosine_topk promises."""
    return 1e-12 if x.dtype == torch.float64 else 2e-6


# ----------------------------------------------------------------------------------------------- topk
def check_cosine_topk(draw: Draw) -> None:
    n, d = draw(st_size), one_of(draw, [1, 2, 3, 7, 16, 33])
    first = matrix(draw, n, d)
    faults = ["queries"] * first.faulty
    dtype = getattr(first.x, "dtype", torch.float32)
    corpus, rows, same = None, n, draw(st_bool)
    if not same:
        rows = draw(st_size)
        second = matrix(draw, rows, d, dtype if dtype in DTYPES else torch.float32)
        corpus = second.x
        if corpus is None:  # the queries are searched
            rows, same, second = n, True, second._replace(faulty=False)
        faults += ["corpus"] * (second.faulty and (n > 0 or second.content != "not finite"))  # no query reads none
        if corpus is not None and not second.faulty and seldom(draw, 20):
            corpus, rows = _mismatched(draw, corpus)
            faults.append("corpus")
    exclude_self = one_of(draw, [None, True, False])
    leaves_out = exclude_self if exclude_self is not None else same
    most = rows - leaves_out
    k, wrong_k = whole(draw, 1, most)
    if n == 0 and isinstance(k, int | np.integer) and not isinstance(k, bool) and k >= 1:
        wrong_k = False  # without a query none lacks neighbours
    faults += ["k"] * wrong_k
    faults += ["exclude_self"] * (leaves_out and n > rows)
    hint = None
    if seldom(draw, 4):
        hint = torch.from_numpy(np.random.default_rng(draw(st_seed)).integers(-2, rows + 2, (n, 3)))
        if seldom(draw, 6):
            hint = one_of(draw, [hint.int(), hint[:, 0], torch.cat([hint, hint[:1], hint[:1]]), [1], hint.double()])
            faults.append("hint")
    backend = _backend(draw)

    wants_gradient = not faults and n > 0 and draw(st_bool)
    queries = first.x.detach().requires_grad_() if wants_gradient else first.x
    found = outcome(
        lambda: cosine_topk(queries, corpus, k, exclude_self=exclude_self, hint=hint, backend=backend), faults
    )
    if found is None:
        return
    values, indices = found
    assert values.shape == indices.shape == (n, int(k))
    assert values.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    if n == 0:
        return
    c = reference.cosine(first.x, corpus)
    assert bool(((indices >= 0) & (indices < rows)).all())
    assert all(len(set(row)) == int(k) for row in indices.tolist()), "a neighbour twice"
    assert bool((values.diff(dim=1) <= 0).all()), "values must fall"
    chosen = c.gather(1, indices)
    assert (values.double() - chosen).abs().max() <= _near(values), "a value is not the cosine"
    others = c.scatter(1, indices, -torch.inf)
    if leaves_out:
        at = torch.arange(n)
        assert bool((indices != at[:, None]).all()), "itself"
        others[at, at] = -torch.inf
    assert bool((chosen.amin(dim=1) >= others.amax(dim=1) - _near(values)).all()), "a nearer row was left out"
    if wants_gradient:
        _same_gradient(queries, corpus, values, indices)


def _mismatched(draw: Draw, corpus: Tensor) -> tuple[Tensor, int]:
    other = torch.float32 if corpus.dtype != torch.float32 else torch.float64
    corpus = one_of(draw, [corpus.to(other), torch.cat([corpus, corpus], dim=1)])
    return corpus, len(corpus)


def _same_gradient(queries: Tensor, corpus: Tensor | None, values: Tensor, indices: Tensor) -> None:
    weight = torch.from_numpy(np.random.default_rng(0).standard_normal(values.shape)).to(values)
    (ours,) = torch.autograd.grad((values * weight).sum(), queries)
    x = queries.detach().double().requires_grad_()
    c = reference.cosine(x, None if corpus is None else corpus.double())
    (truth,) = torch.autograd.grad((c.gather(1, indices) * weight).sum(), x)
    none_is_nan(ours)
    # Row by row, in units of what one cosine contributes: 1 / |x|. That may be more than the dtype holds.
    length = torch.linalg.vector_norm(x.detach(), dim=1, keepdim=True)
    holds = (truth.abs() < torch.finfo(ours.dtype).max / 64) & (length > 4 * torch.finfo(ours.dtype).tiny)
    off = torch.where(holds, (ours.double() - truth) * length, 0)
    relative = {torch.float64: 1e-9, torch.float32: 2e-5, torch.float16: 2e-2, torch.bfloat16: 0.1}[ours.dtype]
    # a number below the smallest normal one is stored by steps
    steps = 4 * torch.finfo(ours.dtype).smallest_normal * length
    assert bool((off.abs() <= relative * values.shape[0] + steps).all()), "the gradient differs"


# ---------------------------------------------------------------------------------------------- graph
def check_similarity_graph(draw: Draw) -> None:
    n, d = draw(st_size), one_of(draw, [1, 2, 7, 16])
    drawn = matrix(draw, n, d)
    k, wrong_k = whole(draw, 1, n - 1)
    s, wrong_sigma = sigma(draw, n, 0.05)
    how = one_of(draw, [*SYMMETRIZE, *SYMMETRIZE, "both"])
    faults = ["embeddings"] * (drawn.faulty or n < 2) + ["n_neighbors"] * wrong_k + ["sigma"] * wrong_sigma
    faults += ["symmetrize"] * (how == "both")
    backend = _backend(draw)
    graph = outcome(lambda: similarity_graph(drawn.x, k, sigma=s, symmetrize=how, backend=backend), faults)
    if graph is None:
        return
    check_graph("graph", graph)
    assert graph.num_nodes == n and graph.symmetric == (how is not None)
    c, j = cosine_topk(drawn.x, k=int(k), backend=backend)
    width = torch.as_tensor(s, dtype=torch.float64)
    square = width[:, None] * width[j] if width.ndim == 1 else width**2
    w = torch.zeros(n, n, dtype=torch.float64)
    w.scatter_(1, j, torch.exp((c.double() - 1).clamp(max=0) / square))
    expected = reference.symmetrize(w, how)
    near = 1e-12 if graph.values.dtype == torch.float64 else 1e-6
    dense = graph.to_sparse_csr().to_dense().double()
    assert (dense - expected).abs().max() <= near * (1 + float(1 / (width**2).min()) / 8), "weights differ"
    assert how is None or bool((dense == dense.T).all())
    assert graph.num_edges <= reference.SYMMETRIZE[how or "none"].most_entries * n * int(k)


def check_from_scipy(draw: Draw) -> None:
    import scipy.sparse

    n = draw(st_size)
    rng = np.random.default_rng(draw(st_seed))
    nnz = draw(st_count) if n else 0
    kind = one_of(
        draw, [np.float64, np.float32, np.int64, np.int8, np.uint8, np.bool_, np.uint32, np.longdouble, np.complex64]
    )
    data = np.abs(rng.standard_normal(nnz)) * one_of(draw, [1, 1e-320, 1e30, 0])
    data = (data if kind in (np.float64, np.float32) else data % 100).astype(kind)
    row, col = rng.integers(0, max(n, 1), (2, nnz))
    if draw(st_bool):  # symmetric
        data, row, col = np.concatenate([data, data]), np.concatenate([row, col]), np.concatenate([col, row])
    faults, shape = [], (n, n)
    fault = draw(st_fault)
    if fault == 0 and len(data) and kind in (np.float64, np.float32) and (row != col).any():
        data[row != col] = one_of(draw, [-1.0, np.nan, np.inf])
        faults.append("matrix")
    elif kind == np.complex64:
        faults.append("matrix")
    elif fault == 1:
        shape = (n, n + 1)
        faults.append("matrix")
    made = scipy.sparse.coo_array((data, (row, col)), shape=shape)
    expected = np.zeros(shape)
    np.add.at(expected, (row, col), data.real.astype(np.float64))
    formats = ["coo", "csr", "csc", "lil", "dok", "bsr", "dia"]
    form = one_of(draw, formats)
    if n == 0 or shape[0] != shape[1] or kind in (np.int8, np.uint8, np.bool_):  # scipy adds these in their dtype
        form = "coo"
    sparse = made.asformat(form)
    if fault == 2:
        sparse, faults = one_of(draw, [made.toarray(), [[0.0]], None, torch.eye(2)]), ["matrix"]
    graph = outcome(lambda: SimilarityGraph.from_scipy(sparse), faults)
    if graph is None:
        return
    check_graph("graph", graph)
    np.fill_diagonal(expected, 0)
    found = graph.to_scipy().toarray()
    assert np.allclose(found, expected, rtol=1e-5, atol=1e-30), "other weights"
    if graph.symmetric:
        assert (found == found.T).all()


# ------------------------------------------------------------------------------------------ propagate
def random_graph(draw: Draw, n: int, dtype: torch.dtype) -> SimilarityGraph:
    """By neighbours, or any symmetric weights, with isolated nodes and several components."""
    rng = np.random.default_rng(draw(st_seed))
    if n >= 2 and draw(st_bool):
        x = matrix(draw, n, 6, dtype, faults=False, contents=[*PLAIN, "duplicates", "few values"]).x
        width = one_of(draw, [SMALLEST_SIGMA, 0.5, 2.0])
        how = one_of(draw, ["sum", "union", "mutual"])
        return similarity_graph(x, int(rng.integers(1, n)), sigma=width, symmetrize=how)
    a = rng.random((n, n)) * (rng.random((n, n)) < one_of(draw, [0.0, 0.1, 0.4, 1.0]))
    a = np.triu(a, 1) * one_of(draw, [1.0, 1e-6, 1e6])
    a = torch.from_numpy(a + a.T).to(dtype)
    at = a.nonzero(as_tuple=True)
    crow = torch.nn.functional.pad((a != 0).sum(dim=1).cumsum(0), (1, 0))
    return SimilarityGraph(crow, at[1], a[at])


def check_propagate_labels(draw: Draw) -> None:
    n, num_classes = draw(st_size), one_of(draw, [1, 2, 3, 17])
    dtype = one_of(draw, [torch.float32, torch.float64])
    graph = random_graph(draw, n, dtype)
    y, wrong_labels = labels(draw, n, num_classes)
    faults = ["labels"] * wrong_labels
    options: dict[str, object] = {"tol": 1e-6 if dtype == torch.float32 else 1e-10}
    variant = draw(st_variant)
    if variant == 1:
        options["alpha"] = one_of(draw, [0.1, 0.5, 0.9])
    elif variant == 2:
        options["normalization"] = "published"
    elif variant == 3:
        options["prior_strength"] = one_of(draw, [0.01, 1.0])
    elif variant == 4:
        p = torch.rand(num_classes, generator=torch.Generator().manual_seed(draw(st_seed) % 2**31)) + 0.1
        options["prior"] = p / p.sum()
    if seldom(draw, 3):
        options["initial"] = torch.rand(n, num_classes, generator=torch.Generator().manual_seed(n))
    fault = draw(st_fault)
    if fault < len(WRONG_OPTIONS):
        name, values = WRONG_OPTIONS[fault]
        options[name] = one_of(draw, values)
        faults.append(name)
    backend = _backend(draw)
    values = graph.values.detach().requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = outcome(
            lambda: propagate_labels(graph._replace(values=values), y, num_classes, backend=backend, **options), faults
        )
    if found is None:
        return
    f = found.probabilities
    assert f.shape == (n, num_classes) and f.dtype == dtype and found.reachable.shape == (n,)
    all_finite(f, found.residual.to(dtype))
    if n == 0:
        return
    harmonic = "alpha" not in options
    assert bool(((f >= -1e-3) & (f <= 1 + 1e-3)).all()), f"probabilities from {f.min()} to {f.max()}"
    assert (f.sum(dim=1) - 1).abs().max() <= 1e-2, "a row does not sum to 1"
    labeled = y >= 0
    if harmonic:
        assert torch.equal(f[labeled], torch.nn.functional.one_hot(y[labeled], num_classes).to(dtype))
    dense = graph.to_sparse_csr().to_dense().double()
    kept = {name: options[name] for name in ("alpha", "normalization", "prior_strength", "prior") if name in options}
    truth, reachable = reference.propagate_labels(dense, y, num_classes, **kept)
    near = 1e-3 if dtype == torch.float32 else 1e-6
    if harmonic:
        assert torch.equal(found.reachable, reachable), "reachable differs"
        assert (f.double() - truth).abs().max() <= near, "other probabilities"
    else:
        both = found.reachable & reachable
        assert bool(((f.double() - truth).abs() <= 10 * near)[both].all()), "other probabilities"
    weight = torch.linspace(-1, 1, num_classes, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (grad,) = torch.autograd.grad((f * weight).sum(), values, allow_unused=True)
    all_finite(grad)


WRONG_OPTIONS = [
    ("alpha", [0.0, 1.0, 1.5, -0.1, float("nan"), "0.5"]),
    ("normalization", ["rows", None, 3]),
    ("prior_strength", [-1.0, float("inf"), float("nan"), None]),
    ("tol", [0.0, -1e-3, float("nan"), None]),
    ("max_iter", [0, -1, 2.5, None]),
    ("prior", [torch.ones(99), torch.tensor(1.0), [1.0], "uniform"]),
    ("initial", [torch.ones(1, 99), torch.ones(3), 0.5]),
]

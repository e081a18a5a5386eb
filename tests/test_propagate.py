"""Stage propagate against the dense float64 solve."""

import warnings

import pytest
import torch
from conftest import BACKENDS, documents, is_interpreted, labels_for
from grid import SIMULATED, grid, sizes
from torch import Tensor

from gloss_kernels import SimilarityGraph, propagate_labels, similarity_graph
from gloss_kernels._ops.graph import normalize_edges_op
from gloss_kernels._ops.propagate import propagate_op

VARIANTS = {
    "row": {},
    "published": {"normalization": "published"},
    "prior": {"prior_strength": 0.1},
    "spreading": {"alpha": 0.8},
    "spreading 0.99": {"alpha": 0.99},
}
# n, k, C, share labelled; class counts around the vector widths
CASES = [
    (2, 1, 2, 0.5),
    (3, 2, 1, 0.5),
    (40, 5, 3, 0.5),
    (200, 8, 7, 0.1),
    (300, 6, 16, 0.7),
    (300, 6, 17, 0.7),
    (600, 10, 105, 0.4),
]


def sized(n: int, backend: str) -> int:
    """Interpreted: more than one block of rows still, in few programs."""
    return min(n, 150) if is_interpreted(backend) else n


def graph_of(n: int, k: int, dtype: torch.dtype, sigma: float = 0.5) -> SimilarityGraph:
    return similarity_graph(documents(n, 16, dtype), k, sigma=sigma)


def from_dense(a: Tensor) -> SimilarityGraph:
    row, col = a.nonzero(as_tuple=True)
    crow = torch.nn.functional.pad((a != 0).sum(dim=1).cumsum(0), (1, 0))
    return SimilarityGraph(crow, col, a[row, col])


@grid(case=CASES, variant=list(VARIANTS), dtype=[torch.float64, torch.float32], backend=BACKENDS)
def test_against_reference(case, variant: str, dtype: torch.dtype, backend: str) -> None:
    n, k, num_classes, share = case
    n = sized(n, backend)
    graph, labels = graph_of(n, k, dtype), labels_for(n, num_classes, share)
    labels[0] = 0
    # float32 cannot hold the solution of 1 - alpha = 0.01 to more: rounding x alone leaves a residual near 1e-5
    tol = 1e-11 if dtype == torch.float64 else 2e-5 if variant == "spreading 0.99" else 1e-6
    ours = propagate_labels(graph, labels, num_classes, tol=tol, **VARIANTS[variant], backend=backend)
    truth = propagate_labels(graph, labels, num_classes, **VARIANTS[variant], backend="reference")
    assert ours.probabilities.dtype == dtype
    assert torch.equal(ours.reachable, truth.reachable)
    near = 1e-8 if dtype == torch.float64 else 1e-3 if variant == "spreading 0.99" else 2e-5
    torch.testing.assert_close(ours.probabilities, truth.probabilities, rtol=0, atol=near)
    assert ours.residual <= tol
    torch.testing.assert_close(ours.probabilities.sum(dim=1), torch.ones(n, dtype=dtype), rtol=0, atol=10 * near)


@grid(case=CASES, variant=list(VARIANTS), dtype=[torch.float64, torch.float32], backend=BACKENDS)
def test_gradient(case, variant: str, dtype: torch.dtype, backend: str) -> None:
    n, k, num_classes, share = case
    n = sized(n, backend)
    graph, labels = graph_of(n, k, dtype), labels_for(n, num_classes, share)
    labels[0] = 0
    weight = torch.randn(n, num_classes, dtype=torch.float64)
    grads = []
    for name, values in ((backend, graph.values), ("reference", graph.values.double())):
        values = values.detach().requires_grad_()
        tol = 1e-12 if values.dtype == torch.float64 else 2e-5 if variant == "spreading 0.99" else 1e-6
        result = propagate_labels(
            graph._replace(values=values), labels, num_classes, tol=tol, **VARIANTS[variant], backend=name
        )
        grads += torch.autograd.grad((result.probabilities * weight).sum(), values)
    largest = grads[1].abs().max().clamp(min=1e-3)
    # float32: the solve is to 1e-6, and 1 - alpha = 0.01 multiplies its error by up to 100
    near = 1e-8 if dtype == torch.float64 else 1e-2 if variant == "spreading 0.99" else 5e-4
    torch.testing.assert_close(grads[0].double() / largest, grads[1] / largest, rtol=0, atol=near)


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradcheck_from_embeddings(variant: str, backend: str) -> None:
    x = documents(9, 4, torch.float64).requires_grad_()
    sigma = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 2, -1, -1, -1, 0, -1, 1])

    def f(embeddings: Tensor, s: Tensor) -> Tensor:
        graph = similarity_graph(embeddings, 4, sigma=s, backend=backend)
        options = {"tol": 1e-13, **VARIANTS[variant]}
        return propagate_labels(graph, labels, 3, **options, backend=backend).probabilities

    assert torch.autograd.gradcheck(f, (x, sigma), fast_mode=backend in SIMULATED)


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_documents_that_reach_no_label(variant: str, backend: str) -> None:
    """Two components, one without a label, and an isolated node: prior there, finite results, gradient zero there."""
    a = torch.zeros(9, 9)
    a[:4, :4] = torch.rand(4, 4) + 0.1
    a[4:8, 4:8] = torch.rand(4, 4) + 0.1
    a = (a + a.T).fill_diagonal_(0)
    graph = from_dense(a)
    values = graph.values.clone().requires_grad_()
    labels = torch.tensor([0, 1, -1, -1, -1, -1, -1, -1, -1])
    prior = torch.tensor([0.2, 0.5, 0.3])
    options = {"prior": prior, **VARIANTS[variant]}
    result = propagate_labels(graph._replace(values=values), labels, 3, **options, backend=backend)
    assert result.reachable.tolist() == [True] * 4 + [False] * 5
    torch.testing.assert_close(result.probabilities[4:].detach(), prior.expand(5, 3))
    (result.probabilities**2).sum().backward()
    grad = values.grad
    assert grad is not None and grad.isfinite().all() and (grad[graph.row_indices < 4] != 0).any()
    assert (grad[graph.row_indices >= 4] == 0).all()


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_all_and_none_labeled(variant: str, backend: str) -> None:
    graph = graph_of(20, 4, torch.float32)
    none = propagate_labels(graph, torch.full((20,), -1), 4, **VARIANTS[variant], backend=backend)
    assert not none.reachable.any()
    torch.testing.assert_close(none.probabilities, torch.full((20, 4), 0.25))
    labels = torch.arange(20) % 4
    full = propagate_labels(graph, labels, 4, **VARIANTS[variant], backend=backend)
    assert full.reachable.all()
    if "alpha" not in VARIANTS[variant]:
        assert torch.equal(full.probabilities, torch.nn.functional.one_hot(labels).float())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("weight", [1e-30, 1e-44, 0.0])
def test_vanishing_weights(weight: float, backend: str) -> None:
    """A bridge of weight 1e-30 (1e-44 and 0 are none) between two clusters never gives NaN; rows still sum to 1."""
    a = torch.zeros(8, 8)
    a[:4, :4], a[4:, 4:] = 1.0, 1.0
    a[3, 4] = a[4, 3] = 2.0  # keeps the entry in the pattern; its weight is set below
    graph = from_dense(a.fill_diagonal_(0))
    bridge = (graph.row_indices < 4) != (graph.col_indices < 4)
    values = torch.where(bridge, weight, graph.values).requires_grad_()
    labels = torch.tensor([0, 1, -1, -1, -1, -1, -1, -1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this is beyond the arithmetic is warned of
        result = propagate_labels(graph._replace(values=values), labels, 2, backend=backend)
        torch.testing.assert_close(result.probabilities.sum(dim=1), torch.ones(8))
        result.probabilities[:, 0].sum().backward()
    assert values.grad is not None and values.grad.isfinite().all()
    assert bool(result.reachable[7]) == (weight >= 1e-32)


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_an_edge_of_weight_zero_is_none(variant: str, backend: str) -> None:
    """Beside edges of the same rows; as the only way to a label, of a row alone and of two that have each other."""
    a = torch.zeros(12, 12)
    a[:8, :8] = torch.rand(8, 8) + 0.1
    a[8, 9] = 0.5
    a[2, 3] = a[0, 4] = a[1, 10] = a[5, 11] = a[3, 8] = 7.0  # to be 0
    a = (a + a.T).fill_diagonal_(0)
    labels = torch.tensor([0, 1, -1, -1, -1, -1, 2, -1, -1, -1, -1, -1])
    with_zeros = from_dense(a)
    zero = torch.isin(12 * with_zeros.row_indices + with_zeros.col_indices, from_pairs(12, [
        (2, 3), (0, 4), (1, 10), (5, 11), (3, 8)]))  # fmt: skip
    values = with_zeros.values.masked_fill(zero, 0.0)
    without = from_dense(with_zeros._replace(values=values).to_sparse_csr().to_dense())
    assert without.num_edges == with_zeros.num_edges - 10
    found = []
    for graph in (with_zeros._replace(values=values), without):
        leaf = graph.values.clone().requires_grad_()
        result = propagate_labels(graph._replace(values=leaf), labels, 3, **VARIANTS[variant], backend=backend)
        assert result.reachable.tolist() == [True] * 8 + [False] * 4
        found.append((result.probabilities.detach(), torch.autograd.grad(result.probabilities[:, 0].sum(), leaf)[0]))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=1e-6)
    torch.testing.assert_close(found[0][1][~zero], found[1][1], rtol=0, atol=1e-5)
    assert found[0][1].isfinite().all()


def from_pairs(n: int, pairs: list[tuple[int, int]]) -> Tensor:
    """The entries (i, j) and (j, i) as numbers n i + j."""
    return torch.tensor([n * i + j for pair in pairs for i, j in (pair, pair[::-1])])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_component_on_a_thin_bridge(dtype: torch.dtype, backend: str) -> None:
    """20 documents that hang on class 1 by one small weight are of class 1, however small their right-hand side."""
    a = torch.zeros(60, 60, dtype=dtype)
    for block in range(3):
        a[20 * block : 20 * block + 20, 20 * block : 20 * block + 20] = 1
    bridge = 1e-5 if dtype == torch.float64 else 1e-2  # among weights that sum to 380
    a[5, 45] = a[45, 5] = bridge
    a[25, 46] = a[46, 25] = bridge / 1000
    graph = from_dense(a.fill_diagonal_(0))
    labels = torch.full((60,), -1)
    labels[20:40], labels[:20] = 0, 1
    result = propagate_labels(graph, labels, 2, backend=backend)
    truth = propagate_labels(graph, labels, 2, backend="reference")
    torch.testing.assert_close(result.probabilities, truth.probabilities, rtol=0, atol=0.02)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_max_iter_holds_over_all_attempts(dtype: torch.dtype, backend: str) -> None:
    """A grid of 20 x 20 with a label in two corners, too large to be eliminated at once."""
    side = 20
    a = torch.zeros(side, side, side, side, dtype=dtype)
    at = torch.arange(side)
    for i in range(side - 1):
        a[i, at, i + 1, at] = a[at, i, at, i + 1] = 1
    a = a.reshape(side * side, side * side)
    graph, labels = from_dense(a + a.T), torch.full((side * side,), -1)
    labels[0], labels[-1] = 0, 1
    assert propagate_labels(graph, labels, 2, tol=1e-5, backend=backend).iterations > 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it did not converge
        for most in (1, 2, 3):
            result = propagate_labels(graph, labels, 2, tol=1e-5, max_iter=most, backend=backend)
            assert result.iterations <= most and result.residual > 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_any_start_gives_the_same_result(dtype: torch.dtype, backend: str) -> None:
    """In every column of a panel; that of class 5, which no document has, is 0."""
    graph, labels = graph_of(150, 6, dtype), labels_for(150, 5, 0.4)
    cold, started = (
        propagate_labels(graph, labels, 6, tol=1e-6, initial=initial, backend=backend)
        for initial in (None, torch.rand(150, 6, dtype=dtype))
    )
    torch.testing.assert_close(started.probabilities, cold.probabilities, rtol=0, atol=2e-5)
    assert started.residual <= 1e-6 and (started.probabilities[:, 5] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_finer_tol_costs_iterations_and_is_kept(backend: str) -> None:
    graph, labels = graph_of(300, 6, torch.float64, 0.3), labels_for(300, 5, 0.1)
    found = [propagate_labels(graph, labels, 5, tol=tol, backend=backend) for tol in (1e-2, 1e-4, 1e-6)]
    for tol, result in zip((1e-2, 1e-4, 1e-6), found, strict=True):
        assert 1e-3 * tol < result.residual <= tol
    assert found[0].iterations < found[1].iterations < found[2].iterations


@sizes(BACKENDS, 800, simulated=300)
def test_warm_start_and_not_converging(n: int, backend: str) -> None:
    graph, labels = graph_of(n, 5, torch.float32, 0.3), labels_for(n, 6, 0.02)
    labels[:6] = torch.arange(6)
    cold = propagate_labels(graph, labels, 6, tol=1e-5, backend=backend)
    warm = propagate_labels(graph, labels, 6, tol=1e-5, initial=cold.probabilities, backend=backend)
    assert cold.iterations > 5 and warm.iterations <= 2
    with pytest.warns(UserWarning, match="did not converge"):
        short = propagate_labels(graph, labels, 6, tol=1e-5, max_iter=2, backend=backend)
    assert short.iterations == 2 and short.residual > 1e-5


@sizes(BACKENDS, 1500, simulated=200)
def test_same_bits_for_any_number_of_threads(n: int, backend: str) -> None:
    graph, labels = graph_of(n, 8, torch.float32), labels_for(n, 20, 0.3)
    values = graph.values.clone().requires_grad_()
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            options = {"normalization": "published", "backend": backend}
            result = propagate_labels(graph._replace(values=values), labels, 20, **options)
            (grad,) = torch.autograd.grad((result.probabilities**2).sum(), values)
            results.append((result.probabilities, grad))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_equals_scikit_learn() -> None:
    """LabelSpreading on the same kernel matrix (its distributions are the rows of F scaled to sum 1)."""
    semi = pytest.importorskip("sklearn.semi_supervised")
    x, labels = documents(150, 10, torch.float64), labels_for(150, 4, 0.3)
    graph = similarity_graph(x, 12, sigma=0.5)
    dense = graph.to_sparse_csr().to_dense().numpy()
    model = semi.LabelSpreading(kernel=lambda a, b: dense, alpha=0.7, max_iter=5000, tol=1e-12).fit(x, labels)
    ours = propagate_labels(graph, labels, 4, alpha=0.7, tol=1e-12)
    torch.testing.assert_close(ours.probabilities, torch.as_tensor(model.label_distributions_), rtol=0, atol=1e-8)


def test_bad_arguments_are_named() -> None:
    graph, labels = graph_of(10, 3, torch.float32), torch.zeros(10, dtype=torch.int64)
    wrong = labels.index_fill(0, torch.tensor([3]), 7)
    swapped = graph.col_indices.clone()
    swapped[[0, 1]] = swapped[[1, 0]]
    unsorted = graph._replace(col_indices=swapped)
    not_a_number = torch.full((10, 2), torch.nan)
    shifted = graph._replace(col_indices=graph.col_indices + 5)
    directed = similarity_graph(documents(10, 4), 3, symmetrize=None)
    for error, match, call in [
        (TypeError, "^graph must be a SimilarityGraph .*, got Tensor", lambda: propagate_labels(torch.eye(3), labels)),
        (ValueError, "^graph must be symmetric .*, got a directed one", lambda: propagate_labels(directed, labels)),
        (ValueError, "^labels must be 0..4 or -1, got 7 for document 3", lambda: propagate_labels(graph, wrong, 5)),
        (TypeError, "^labels must be torch.int64, got torch.float32", lambda: propagate_labels(graph, labels.float())),
        (ValueError, "^labels must have shape .*, got", lambda: propagate_labels(graph, labels[:4])),
        (ValueError, "^alpha", lambda: propagate_labels(graph, labels, alpha=1.0)),
        (ValueError, "^tol", lambda: propagate_labels(graph, labels, tol=0)),
        (ValueError, "^max_iter", lambda: propagate_labels(graph, labels, max_iter=0)),
        (ValueError, "^normalization", lambda: propagate_labels(graph, labels, normalization="none")),
        (ValueError, "^prior_strength", lambda: propagate_labels(graph, labels, prior_strength=-1)),
        (ValueError, "^prior must be", lambda: propagate_labels(graph, labels, 2, prior=torch.tensor([0.9, 0.9]))),
        (ValueError, "^initial", lambda: propagate_labels(graph, labels, 2, initial=torch.zeros(3, 2))),
        (ValueError, "^backend", lambda: propagate_labels(graph, labels, backend="gpu")),
        (ValueError, "col_indices", lambda: propagate_labels(shifted, labels)),
        (ValueError, "col_indices must rise", lambda: propagate_labels(unsorted, labels)),
        (ValueError, "^initial must be finite", lambda: propagate_labels(graph, labels, 2, initial=not_a_number)),
        (ValueError, "^prior must be", lambda: propagate_labels(graph, labels, 2, prior=torch.full((2,), torch.nan))),
        (TypeError, "^initial", lambda: propagate_labels(graph, labels, 2, initial=[1])),
        (ValueError, "values", lambda: propagate_labels(graph._replace(values=-graph.values), labels)),
    ]:  # fmt: skip
        with pytest.raises(error, match=match):
            call()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_opcheck(dtype: torch.dtype) -> None:
    graph, labels = graph_of(30, 4, dtype), labels_for(30, 3, 0.5)
    values = graph.values.clone().requires_grad_()
    for how in ("row", "symmetric", "published"):
        torch.library.opcheck(normalize_edges_op, (graph.crow_indices, graph.col_indices, values, how, "cpu"))
    boundary = torch.nn.functional.one_hot(labels.clamp(min=0), 3).to(dtype)
    prior = torch.full((3,), 1 / 3, dtype=dtype)
    values = (values.detach() / 10).requires_grad_()  # I - alpha M must be positive definite
    for alpha in (-1.0, 0.5):
        torch.library.opcheck(
            propagate_op,
            (
                graph.crow_indices,
                graph.col_indices,
                values,
                labels >= 0,
                boundary,
                False,
                prior,
                alpha,
                0.1,
                1e-6,
                200,
                "cpu",
            ),
        )

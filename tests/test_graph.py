"""Stage graph against the float64 reference."""

import numpy as np
import pytest
import torch
from conftest import BACKENDS, assert_no_worse, documents, labels_for
from grid import SIMULATED, grid

from gloss_kernels import SimilarityGraph, cosine_topk, propagate_labels, reference, similarity_graph
from gloss_kernels._ops.graph import combine_edges_op, knn_structure_op
from gloss_kernels.graph import SYMMETRIZE

SHAPES = [(2, 3, 1), (3, 4, 2), (33, 7, 32), (100, 24, 15), (700, 16, 9)]


@grid(
    shape=SHAPES,
    dtype=[torch.float64, torch.float32, torch.bfloat16],
    symmetrize=SYMMETRIZE,
    backend=[*BACKENDS, "reference"],
)
def test_same_graph(shape: tuple[int, int, int], dtype: torch.dtype, symmetrize: str | None, backend: str) -> None:
    n, d, k = shape
    x = documents(n, d, dtype)
    graph = similarity_graph(x, k, sigma=0.4, symmetrize=symmetrize, backend=backend)
    neighbors = cosine_topk(x, k=k, backend=backend)
    edges = torch.zeros(n, n, dtype=torch.bool).scatter(1, neighbors.indices, True)
    truth = reference.symmetrize(reference.gaussian_weights(reference.cosine(x), 0.4) * edges, symmetrize)
    pattern = {"mutual": edges & edges.T, None: edges}.get(symmetrize, edges | edges.T)

    row, col = pattern.nonzero(as_tuple=True)
    assert torch.equal(graph.row_indices, row) and torch.equal(graph.col_indices, col)
    assert graph.symmetric == (symmetrize is not None) and graph.num_nodes == n and graph.num_edges == len(row)
    assert graph.values.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    tiny = 1e-12 if dtype == torch.float64 else 4e-6  # an error of 3e-7 in c is divided by sigma^2 = 0.16, twice
    torch.testing.assert_close(graph.values.double(), truth[row, col], rtol=tiny, atol=tiny)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("symmetrize", SYMMETRIZE, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_gradient_to_embeddings_and_sigma(dtype: torch.dtype, symmetrize: str | None, backend: str) -> None:
    n, k = 60, 7
    results = []
    for name, kind in ((backend, dtype), ("reference", torch.float64), ("reference", dtype)):
        x = documents(n, 12, dtype).to(kind).requires_grad_()
        sigma = torch.tensor(0.6, dtype=kind, requires_grad=True)
        graph = similarity_graph(x, k, sigma=sigma, symmetrize=symmetrize, backend=name)
        # symmetric weights: that of (i, j) and (j, i) must be the same for max and min, whose ties may fall either way
        weight = torch.cos(graph.row_indices.double() + graph.col_indices).to(kind)
        results.append(torch.autograd.grad((graph.values * weight).sum(), (x, sigma)))
    for ours, truth, torchs in zip(*results, strict=True):
        assert_no_worse(ours, torchs, truth, tiny=1e-11 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("symmetrize", SYMMETRIZE, ids=str)
@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
def test_gradcheck(backend: str, symmetrize: str | None) -> None:
    x = documents(8, 5, torch.float64).requires_grad_()
    sigma = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    per_document = torch.linspace(0.5, 0.9, 8, dtype=torch.float64).requires_grad_()
    for s in (sigma, per_document):
        assert torch.autograd.gradcheck(
            lambda a, b: similarity_graph(a, 3, sigma=b, symmetrize=symmetrize, backend=backend).values,
            (x, s),
            fast_mode=backend in SIMULATED,
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_given_neighbors(backend: str) -> None:
    x = documents(90, 8).requires_grad_()
    found = cosine_topk(x, k=6)
    ours = similarity_graph(x, neighbors=found, backend=backend)
    again = similarity_graph(x, 6, backend=backend)
    assert torch.equal(ours.values, again.values) and torch.equal(ours.col_indices, again.col_indices)
    ours.values.sum().backward()
    assert x.grad is not None and (x.grad != 0).any()


def test_given_neighbors_of_another_dtype() -> None:
    x = documents(400, 8)
    found = cosine_topk(x, k=6)
    halved = similarity_graph(x, neighbors=found._replace(values=found.values.half()))
    assert halved.values.dtype == torch.float32
    torch.testing.assert_close(halved.values, similarity_graph(x, neighbors=found).values, rtol=0, atol=1e-2)
    with pytest.raises(TypeError, match=r"^neighbors.values must have a floating dtype, got torch.int64"):
        similarity_graph(x, neighbors=found._replace(values=found.values.long()))
    with pytest.raises(TypeError, match="float16"):
        combine_edges_op(found.values.half(), found.indices[0], found.indices[0], "sum", "cpu")


def test_bad_arguments_are_named() -> None:
    x = documents(10, 4)
    bad = x.clone()
    bad[3, 0] = torch.nan
    for match, call in [
        ("^n_neighbors must be at most 9 .*, got 50", lambda: similarity_graph(x, 50)),
        ("^embeddings: row 3 contains NaN", lambda: similarity_graph(bad, 3)),
        ("^symmetrize", lambda: similarity_graph(x, 3, symmetrize="no such")),
        ("^sigma", lambda: similarity_graph(x, 3, sigma=-1)),
        ("^sigma", lambda: similarity_graph(x, 3, sigma=torch.ones(4))),
    ]:
        with pytest.raises(ValueError, match=match):
            call()


def test_conversions(tmp_path) -> None:
    scipy_sparse = pytest.importorskip("scipy.sparse")
    graph = similarity_graph(documents(40, 6), 5)
    dense = graph.to_sparse_csr().to_dense()
    np.testing.assert_array_equal(graph.to_scipy().toarray(), dense)
    back = SimilarityGraph.from_scipy(graph.to_scipy())
    assert all(torch.equal(a, b) for a, b in zip(back[:3], graph[:3], strict=True)) and back.symmetric
    source, target = graph.edge_index
    assert torch.equal(dense[target, source], graph.values)
    graph.save(tmp_path / "graph")
    loaded = SimilarityGraph.load(tmp_path / "graph")
    assert all(torch.equal(a, b) for a, b in zip(loaded[:3], graph[:3], strict=True))
    assert not SimilarityGraph.from_scipy(scipy_sparse.coo_array(np.triu(np.ones((3, 3))))).symmetric
    (tmp_path / "other").write_bytes(b"PK no graph")
    with pytest.raises(ValueError, match="must be a graph saved by"):
        SimilarityGraph.load(tmp_path / "other")
    with pytest.raises(ValueError, match="negative"):
        SimilarityGraph.from_scipy(scipy_sparse.coo_array(-np.ones((3, 3))))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_from_scipy_within_rounding_is_symmetric(scale: float, dtype: type) -> None:
    """Of each pair the mean: products computed twice differ in their last digits, or lack a tiny weight on one side."""
    sparse = pytest.importorskip("scipy.sparse")
    rng, eps = np.random.default_rng(0), np.finfo(dtype).eps
    upper = np.triu(rng.uniform(0.1, 1, (30, 30)) * (rng.uniform(size=(30, 30)) < 0.3), 1)
    exact = (upper + upper.T) * scale
    off = (exact * (1 + 50 * eps * rng.uniform(-1, 1, exact.shape))).astype(dtype)
    off[0, 1], off[1, 0] = 0.5 * eps * scale, 0
    assert (off != off.T).any()
    graph = SimilarityGraph.from_scipy(sparse.csr_array(off))
    assert graph.symmetric and graph.values.dtype == torch.from_numpy(off).dtype
    dense = graph.to_sparse_csr().to_dense()
    assert torch.equal(dense, dense.T)
    np.testing.assert_allclose(dense, (off.astype(np.float64) + off.T) / 2, rtol=4 * eps)
    propagate_labels(graph, labels_for(30, 3, 0.5).cpu(), 3)

    for i, j, factor in ((2, 3, 1 + 5000 * eps), (2, 3, 2.0), (2, 3, 0.0)):  # beyond: a directed graph, as it is
        directed = exact.astype(dtype)
        directed[i, j], directed[j, i] = scale, scale * factor
        graph = SimilarityGraph.from_scipy(sparse.csr_array(directed))
        assert not graph.symmetric
        np.testing.assert_array_equal(graph.to_sparse_csr().to_dense(), directed)
        with pytest.raises(ValueError, match=r"^graph must be symmetric .*from_scipy\(\(matrix \+ matrix\.T\) / 2\)"):
            propagate_labels(graph, labels_for(30, 3, 0.5).cpu(), 3)
        mended = SimilarityGraph.from_scipy((graph.to_scipy() + graph.to_scipy().T) / 2)
        propagate_labels(mended, labels_for(30, 3, 0.5).cpu(), 3)


def test_from_scipy_takes_scikit_learns_kernel() -> None:
    pairwise, sparse = pytest.importorskip("sklearn.metrics.pairwise"), pytest.importorskip("scipy.sparse")
    x = 100 * (documents(80, 8, torch.float64).cpu().numpy() + 10)  # far from the origin: the worst of its rounding
    kernel = pairwise.rbf_kernel(x, gamma=1e-5)
    assert (kernel != kernel.T).any()
    assert SimilarityGraph.from_scipy(sparse.csr_array(kernel)).symmetric


def test_from_scipy_of_other_numbers() -> None:
    sparse = pytest.importorskip("scipy.sparse")
    ring = np.roll(np.eye(5), 1, axis=1) + np.roll(np.eye(5), -1, axis=1)
    for dtype, wanted in (("bool", "float32"), ("int64", "float32"), ("uint8", "float32"), ("longdouble", "float64")):
        graph = SimilarityGraph.from_scipy(sparse.csr_array(ring.astype(dtype)))
        assert graph.symmetric and str(graph.values.dtype) == f"torch.{wanted}" and graph.num_edges == 10
    with pytest.raises(TypeError, match=r"^matrix must hold real numbers, got complex128"):
        SimilarityGraph.from_scipy(sparse.csr_array(ring * 1j))
    assert SimilarityGraph.from_scipy(sparse.csr_array((3, 3))).num_edges == 0


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([[1], [2], [7]], "indices: row 2 "),
        ([[1], [1], [0]], "indices: row 1 "),
        ([[1, 1], [0, 2], [0, 1]], "indices: row 0 "),
        ([[1], [-1], [0]], "indices: row 1 "),
    ],
)
def test_bad_neighbors_are_named(indices: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        knn_structure_op(torch.tensor(indices), "sum", "cpu")


@pytest.mark.parametrize("symmetrize", reference.SYMMETRIZE)
def test_opcheck(symmetrize: str) -> None:
    indices = cosine_topk(documents(20, 5), k=4).indices
    torch.library.opcheck(knn_structure_op, (indices, symmetrize, "cpu"))
    crow, _, forward, reverse = knn_structure_op(indices, symmetrize, "cpu")
    nnz = int(crow[-1])
    for dtype in (torch.float64, torch.float32):
        weights = torch.rand(20, 4, dtype=dtype, requires_grad=True)
        torch.library.opcheck(
            combine_edges_op, (weights, forward[:nnz].clone(), reverse[:nnz].clone(), symmetrize, "cpu")
        )

"""Properties of the public functions: some inputs of each here, 10^5 of them by tests/properties/campaign.py.

Any input is refused by an error that names the argument, or its result is right: it agrees with the reference, or holds
what the docstring promises. What the long run found stands below, a test each.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DEVICE, documents

from gloss_kernels import NeighborIndex, SimilarityGraph, cosine_topk, g_loss
from gloss_kernels import sigma as heuristics

pytest.importorskip("hypothesis", reason="needs hypothesis: pip install 'gloss-kernels[test]'")
from properties.campaign import FUNCTIONS, run

on_cpu = pytest.mark.skipif(DEVICE != "cpu", reason="the inputs lie on the CPU")


@on_cpu
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_some_inputs(name: str) -> None:
    function, share = FUNCTIONS[name]
    run(function, 5 * share, 0)


# --------------------------------------------------------------------------------------- what was found
@on_cpu
@pytest.mark.parametrize("how", heuristics.HEURISTICS)
def test_a_row_that_is_not_finite_has_no_sigma(how: str) -> None:
    """NaN came back, and g_loss complained of sigma."""
    x, y = documents(20, 8), torch.arange(20) % 4
    x[3, 2] = torch.nan
    for call in (lambda: heuristics.estimate_sigma(how, x, y), lambda: g_loss(x, y, 4, sigma=how)):
        with pytest.raises(ValueError, match=r"^embeddings: row 3 contains NaN or Inf"):
            call()


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.bool_, np.int64, np.longdouble])
def test_repeated_entries_of_small_integers_are_added(dtype: type) -> None:
    """scipy added them in the dtype of the matrix: in int8, 100 + 100 is -56, in uint8 200 + 200 is 144."""
    coo = pytest.importorskip("scipy.sparse").coo_matrix
    weight = {np.int8: 100, np.uint8: 200}.get(dtype, 1)
    entries = (np.full(4, weight, dtype), ([0, 0, 1, 1], [1, 1, 0, 0]))
    graph = SimilarityGraph.from_scipy(coo(entries, shape=(2, 2)))
    assert graph.values.tolist() == [2 * weight] * 2 and graph.symmetric


def test_complex_weights_are_refused() -> None:
    """The imaginary part was dropped."""
    csr = pytest.importorskip("scipy.sparse").csr_matrix
    with pytest.raises(TypeError, match=r"^matrix must hold real numbers, got complex"):
        SimilarityGraph.from_scipy(csr(np.array([[0, 1 + 2j], [1 - 2j, 0]])))


@pytest.mark.parametrize("kind", ["exact", "flat"])
def test_an_index_takes_numbers_of_numpy(kind: str, tmp_path: Path) -> None:
    """FAISS knew no numpy.int64, and JSON, for the file and the checkpoint, neither."""
    if kind == "flat":
        pytest.importorskip("faiss")
    x = documents(30, 8)
    index = NeighborIndex.build(x, kind, recall_k=np.int64(4), seed=np.int64(1))
    expected = cosine_topk(x, k=3)
    assert torch.equal(index.search(x, np.int64(4)).indices, index.search(x, 4).indices)
    assert torch.equal(index.knn(np.int64(3)).indices, expected.indices)
    assert torch.equal(index.knn(np.int64(3), checkpoint=tmp_path / "blocks").indices, expected.indices)
    index.save(tmp_path / "index")
    assert NeighborIndex.load(tmp_path / "index").recall_k == 4

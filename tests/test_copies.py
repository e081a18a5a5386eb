"""Copies that Python and torch make: pickle, deepcopy, other processes, torch.save."""

from __future__ import annotations

import copy
import io
import multiprocessing
import pickle
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DEVICE, documents, labels_for
from processes import searched

from gloss_kernels import CorpusGLoss, NeighborIndex, TopK, cosine_topk, propagate_labels, similarity_graph
from gloss_kernels.neighbors.structures import KINDS

ON_CPU = pytest.mark.skipif(DEVICE != "cpu", reason="FAISS is tested on the CPU")


def build(kind: str, **options) -> NeighborIndex:
    if kind != "exact":
        faiss = pytest.importorskip("faiss")
        if kind == "nn_descent" and not hasattr(faiss, "IndexNNDescentFlat"):
            pytest.skip("this build of faiss has no NN-descent")
    index = NeighborIndex.build(documents(600, 11), kind, recall_target=0.7, **options)
    if kind != "nn_descent":
        index.add(documents(50, 11, torch.float16, seed=4))
    return index


def same(a: TopK, b: TopK) -> bool:
    return torch.equal(a.values, b.values) and torch.equal(a.indices, b.indices)


def by_joblib(index: NeighborIndex) -> NeighborIndex:
    joblib = pytest.importorskip("joblib")
    stream = io.BytesIO()
    joblib.dump(index, stream)
    stream.seek(0)
    return joblib.load(stream)


COPIES = {
    "pickle": lambda index: pickle.loads(pickle.dumps(index)),
    "oldest pickle": lambda index: pickle.loads(pickle.dumps(index, protocol=2)),
    "deepcopy": copy.deepcopy,
    "joblib": by_joblib,
}


@ON_CPU
@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_of_an_index(kind: str, how: str) -> None:
    index = build(kind)
    other, queries = COPIES[how](index), documents(40, 11, seed=7)
    assert other.describe() == index.describe() and other.fingerprint() == index.fingerprint()
    assert same(other.search(queries, 5), index.search(queries, 5)) and same(other.knn(4), index.knn(4))
    if kind != "nn_descent":
        other.add(queries)  # the copy is its own
        assert len(other) == len(index) + 40 and other.search(queries[:1], 1).indices.item() == len(index)
        assert index.search(queries[:1], 1).indices.item() < len(index)


@ON_CPU
def test_a_copy_of_a_loaded_index_needs_no_file(tmp_path: Path) -> None:
    index = build("ivf_flat")
    index.save(tmp_path / "index")
    data = pickle.dumps(NeighborIndex.load(tmp_path / "index"))
    (tmp_path / "index").unlink()
    assert same(pickle.loads(data).knn(4), index.knn(4))
    np.save(tmp_path / "x.npy", documents(100, 11).numpy())
    mapped = NeighborIndex.build(np.load(tmp_path / "x.npy", mmap_mode="r"), "exact")
    assert same(pickle.loads(pickle.dumps(mapped)).knn(4), mapped.knn(4))


@ON_CPU
@pytest.mark.parametrize("pool", ["spawn", "joblib"])
def test_an_index_in_other_processes(pool: str) -> None:
    index, queries = build("hnsw"), documents(40, 11, seed=7).numpy()
    halves = [queries[:20], queries[20:]]
    if pool == "spawn":  # no multiprocessing.Pool: it waits for ever where a worker dies of what it is sent
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as workers:
            found = list(workers.map(searched, [index, index], halves))
    else:
        joblib = pytest.importorskip("joblib")
        tasks = [joblib.delayed(searched)(index, half) for half in halves]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own: a worker that stops, semaphores
            found = joblib.Parallel(n_jobs=2, max_nbytes=1000)(tasks)  # arrays over 1000 bytes by read-only memmaps
    for mine, half in zip(found, halves, strict=True):
        assert same(mine, searched(index, half))


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"epoch": 3, "of": [x]}], ids=["alone", "in a checkpoint"])
def test_tuples_of_tensors_load_with_weights_only(wrap: Callable[[object], object]) -> None:
    x = documents(40, 6)
    neighbors = cosine_topk(x, k=5)
    graph = similarity_graph(x, 5, neighbors=neighbors)
    for value in (neighbors, graph, graph._replace(symmetric=False), propagate_labels(graph, labels_for(40, 3), 3)):
        stream = io.BytesIO()
        torch.save(wrap(value), stream)
        stream.seek(0)
        loaded = torch.load(stream, weights_only=True)
        loaded = loaded["of"][0] if isinstance(loaded, dict) else loaded
        assert type(loaded) is type(value)
        torch.testing.assert_close(tuple(loaded), tuple(value), rtol=0, atol=0)


def test_a_module_with_all_of_them_loads_with_weights_only(tmp_path: Path) -> None:
    loss_fn = CorpusGLoss(labels_for(60, 4), 6, num_classes=4, n_neighbors=5)
    loss_fn.refresh(documents(60, 6))
    found = loss_fn.predict(documents(9, 6, seed=3))
    torch.save({"loss": loss_fn.state_dict(), "found": found}, tmp_path / "kept")
    torch.testing.assert_close(torch.load(tmp_path / "kept", weights_only=True)["found"], found, rtol=0, atol=0)

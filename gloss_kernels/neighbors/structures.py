"""The FAISS side of an index: which structure a kind is, how it is filled, and its search efforts."""

from __future__ import annotations

import contextlib
import importlib.util
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .rows import Rows

KINDS = ("exact", "flat", "ivf_flat", "ivf_pq", "hnsw", "nn_descent")
TRAIN_ROWS_PER_LIST = 64  # of k-means; FAISS takes up to 256
GPU_KINDS = ("flat", "ivf_flat")
GPU_MOST = 2048  # neighbours that FAISS finds on a GPU, and lists that it reads


def load_faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        if importlib.util.find_spec("faiss") is not None:
            raise ImportError(f"faiss is installed, but cannot be imported: {error}") from error
        raise ImportError(
            "faiss is missing: pip install 'gloss-kernels[faiss-cpu]' (or faiss-gpu); kind='exact' needs none"
        ) from None
    return faiss


@contextlib.contextmanager
def threads(faiss: Any, *, work: float = math.inf) -> Iterator[None]:
    """FAISS on as many threads as torch: both may bring an OpenMP of their own, each with a pool of all cores. On one
    for few multiplications: the codes of ivf_pq are trained in thousands of short steps (5,000 x 64 rows on two cores:
    0.2 s instead of 0.5 s, and instead of 5 to 12 s where the cores are busy)."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(torch.get_num_threads() if work > 1e9 else 1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


class Structure:
    """A FAISS index of one kind over unit rows. Cosines are inner products; its own values are never given out."""

    def __init__(self, kind: str, index: Any, dim: int, device: torch.device | None = None) -> None:
        self.faiss = load_faiss()
        self.kind, self.dim, self.index, self.device = kind, dim, index, device
        self.effort: dict[str, int] = {}

    @classmethod
    def build(
        cls, kind: str, rows: Rows, options: dict[str, int], seed: int, report: Callable[[float], object] | None
    ) -> Structure:
        faiss = load_faiss()
        width = rows.dim + rows.dim % 2 if kind == "ivf_pq" else rows.dim  # codes are of two dimensions each
        structure = cls(kind, _new(faiss, kind, width, options), rows.dim, _gpu(faiss, kind, rows.device))
        structure._to_gpu()
        if structure.index is not None and not structure.index.is_trained:
            sample = _sample(rows, options, seed)
            with threads(faiss, work=sample.numel() * options["nlist"]):
                structure.index.train(structure.numbers(sample))
        structure.add(rows, 0, report)
        structure.set_effort(structure.efforts()[0])
        return structure

    def add(self, rows: Rows, start: int, report: Callable[[float], object] | None = None) -> None:
        """Rows from ``start`` on, in blocks; nn_descent takes all at once, since it cannot grow."""
        with threads(self.faiss):
            if self.kind == "nn_descent":
                self._nn_descent(rows)
                if report is not None:
                    report(1.0)
                return
            for begin, block in rows.blocks(start):
                self.index.add(self.numbers(block))
                if report is not None:
                    report((begin + len(block)) / len(rows))

    def _nn_descent(self, rows: Rows) -> None:
        if not hasattr(self.faiss, "IndexNNDescentFlat"):
            raise ImportError("kind 'nn_descent' is not in this build of faiss; use 'hnsw'")
        if len(rows) < 256:
            raise ValueError(
                f"embeddings must have at least 256 rows for kind 'nn_descent', got {len(rows)}; use 'exact'"
            )
        whole = np.concatenate([self.numbers(block) for _, block in rows.blocks()])
        self.index = self.faiss.IndexNNDescentFlat(self.dim, 32, self.faiss.METRIC_INNER_PRODUCT)
        self.index.add(whole)
        self._set_lengths(0)

    def candidates(self, queries: Tensor, k: int, least: int = 1) -> Tensor:
        """int64 [m, c], c >= k: ids that are probably near the unit rows ``queries``; -1 where too few were found.
        As many as for a search of ``least``, the k of the measurement."""
        c = min(max(k, least) * self.effort.get("candidates", 1), self.index.ntotal)
        if self.device is not None:
            c = min(c, GPU_MOST)
        self._set_lengths(c)
        try:
            with threads(self.faiss):
                _, found = self.index.search(self.numbers(queries), c)
        finally:
            self._set_lengths(0)  # what is saved, and its checksum, do not depend on earlier searches
        ids = torch.as_tensor(found, dtype=torch.int64, device=queries.device)
        return torch.nn.functional.pad(ids, (0, k - c), value=-1) if c < k else ids

    def efforts(self) -> list[dict[str, int]]:
        """Search efforts, from the least to the most; the last ones of the ivf kinds read every list.

        candidates: rows scored again in float32, as a multiple of k. Codes of 4 bits order the neighbours only roughly,
        16 bits do not tell near duplicates apart.
        """
        if self.kind in ("ivf_flat", "ivf_pq"):
            lists = self.index.nlist
            probes = [p for p in (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024) if p < lists]
            least, share = (8, 2) if self.kind == "ivf_pq" else (1, 16)
            ladder = [{"nprobe": p, "candidates": min(max(least, p // share), 64)} for p in probes]
            most = lists if self.device is None else min(lists, GPU_MOST)
            return ladder + [{"nprobe": most, "candidates": c} for c in (8, 64)]
        if self.kind == "hnsw":
            efs = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024, 2048)
            return [{"efSearch": ef, "candidates": max(1, ef // 32)} for ef in efs]
        if self.kind == "nn_descent":
            return [{"search_L": length} for length in (32, 64, 128, 256, 512, 1024)]
        return [{}]

    def set_effort(self, effort: dict[str, int]) -> None:
        self.effort = dict(effort)
        if "nprobe" in effort:
            self.index.nprobe = effort["nprobe"]
        self._set_lengths(0)

    def _set_lengths(self, least: int) -> None:
        """Of the lists that a search in a graph keeps: those of the effort, or more."""
        if "efSearch" in self.effort:
            self.index.hnsw.efSearch = max(self.effort["efSearch"], least)
        if "search_L" in self.effort:
            self.index.nndescent.search_L = max(self.effort["search_L"], least)

    def numbers(self, rows: Tensor) -> Any:
        """Rows as FAISS takes them: on a GPU tensors, else contiguous float32 numpy rows, padded to its width."""
        if self.device is not None:
            return rows.to(self.device).contiguous()
        if self.index is not None and self.index.d > rows.shape[1]:
            rows = torch.nn.functional.pad(rows, (0, self.index.d - rows.shape[1]))
        return rows.contiguous().cpu().numpy()

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copies: FAISS's own format for its index, and no module."""
        return {
            "kind": self.kind,
            "codes": np.frombuffer(self.to_bytes(), np.uint8),
            "dim": self.dim,
            "effort": self.effort,
            "device": self.device,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        faiss = load_faiss()
        device = None if state["device"] is None else _gpu(faiss, state["kind"], state["device"])
        self.__init__(state["kind"], faiss.deserialize_index(state["codes"]), state["dim"], device)  # type: ignore[misc]
        self._to_gpu()
        self.set_effort(state["effort"])

    def to_bytes(self) -> memoryview:
        index = self.index if self.device is None else self.faiss.index_gpu_to_cpu(self.index)
        return memoryview(self.faiss.serialize_index(index))

    @classmethod
    def from_bytes(
        cls, kind: str, data: np.ndarray[Any, Any], dim: int, effort: dict[str, int], device: torch.device
    ) -> Structure:
        faiss = load_faiss()
        structure = cls(kind, faiss.deserialize_index(data), dim, _gpu(faiss, kind, device))
        structure._to_gpu()
        structure.set_effort(effort)
        return structure

    def _to_gpu(self) -> None:
        if self.device is not None:
            import faiss.contrib.torch_utils  # noqa: F401 (FAISS then takes CUDA tensors where they are)

            resources = self.faiss.StandardGpuResources()
            self.index = self.faiss.index_cpu_to_gpu(resources, self.device.index or 0, self.index)


def default_options(kind: str, n: int) -> dict[str, int]:
    """The sizes of a structure for n rows; bench/corpus_graph.py is where they were measured."""
    if kind in ("ivf_flat", "ivf_pq"):
        return {"nlist": max(1, min(int(4 * n**0.5), n // 39))}
    if kind == "hnsw":
        return {"links": 16, "ef_construction": 60}
    return {}


def _new(faiss: Any, kind: str, dim: int, options: dict[str, int]) -> Any:
    ip = faiss.METRIC_INNER_PRODUCT
    if kind == "nn_descent":  # made when its rows are there
        return None
    if kind == "flat":
        return faiss.IndexFlatIP(dim)
    half = faiss.ScalarQuantizer.QT_fp16
    if kind == "hnsw":  # in 16 bit: the recall of float32 to 0.001, half the memory
        index = faiss.IndexHNSWSQ(dim, half, options["links"], ip)
        index.hnsw.efConstruction = options["ef_construction"]
        return index
    coarse = faiss.IndexFlatIP(dim)
    if kind == "ivf_flat":
        index = faiss.IndexIVFScalarQuantizer(coarse, dim, options["nlist"], half, ip)
        index.by_residual = False
    else:
        index = faiss.IndexIVFPQFastScan(coarse, dim, options["nlist"], dim // 2, 4, ip)
        index.pq.cp.min_points_per_centroid = 1
    index.own_fields, _ = True, coarse.this.disown()
    index.cp.niter, index.cp.spherical, index.cp.min_points_per_centroid = 10, True, 1
    return index


def _sample(rows: Rows, options: dict[str, int], seed: int) -> Tensor:
    """Training rows: a seeded choice; of few rows repeated, since FAISS needs 16 for a 4-bit code."""
    count = min(len(rows), max(TRAIN_ROWS_PER_LIST * options.get("nlist", 1), 1024))
    order = permutation(len(rows), seed)[:count].sort().values
    return rows.take(order[torch.arange(max(count, 64), dtype=torch.int64, device=order.device) % count])


def permutation(n: int, seed: int) -> Tensor:
    """int64 [n] on the CPU, the same for every device."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randperm(n, generator=generator, dtype=torch.int64, device="cpu")


def has_gpu(faiss: Any) -> bool:
    return hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0


def _gpu(faiss: Any, kind: str, device: torch.device) -> torch.device | None:
    return device if device.type == "cuda" and kind in GPU_KINDS and has_gpu(faiss) else None

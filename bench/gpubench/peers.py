"""Searches to compare with: make(queries, corpus or None, k) returns the call that is timed, which returns indices.

Those that are not installed raise ImportError. Where corpus is None, libraries find a row itself too, so they are asked
for k + 1. Rows are unit, so inner products and distances order as cosines do.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gpubench.timing import Run


def torch_search(dtype: torch.dtype) -> Callable[[Tensor, Tensor | None, int], Run]:
    """Chunks of a matrix product and torch.topk, self left out; TF32 is off by torch's default."""

    def make(queries: Tensor, corpus: Tensor | None, k: int) -> Run:
        rows, asked = (queries if corpus is None else corpus).to(dtype), queries.to(dtype)
        chunk = max(1, min(len(asked), (1 << 30) // (len(rows) * rows.element_size())))

        def run() -> Tensor:
            found = []
            for begin in range(0, len(asked), chunk):
                scores = asked[begin : begin + chunk] @ rows.T
                if corpus is None:
                    at = torch.arange(len(scores), device=scores.device)
                    scores[at, at + begin] = -torch.inf
                found.append(scores.topk(k, dim=1).indices)
            return torch.cat(found)

        return run

    return make


def faiss_flat(queries: Tensor, corpus: Tensor | None, k: int) -> Run:
    import faiss
    import faiss.contrib.torch_utils

    if not hasattr(faiss, "GpuIndexFlatIP"):
        raise ImportError(name="faiss with GPU support")
    rows, asked = (queries if corpus is None else corpus).float(), queries.float()
    index = faiss.GpuIndexFlatIP(faiss.StandardGpuResources(), rows.shape[1])
    index.add(rows)
    return lambda: index.search(asked, k + (corpus is None))[1]


def cuvs_brute_force(queries: Tensor, corpus: Tensor | None, k: int) -> Run:
    import cupy
    from cuvs.neighbors import brute_force

    rows, asked = (cupy.from_dlpack(x.float()) for x in (queries if corpus is None else corpus, queries))
    index = brute_force.build(rows, metric="inner_product")
    return lambda: torch.as_tensor(brute_force.search(index, asked, k + (corpus is None))[1], device=queries.device)


def certex_index(queries: Tensor, corpus: Tensor | None, k: int) -> Run:
    """Exact: half-precision screen with an error bound, float64 verification."""
    import certex

    rows, asked = (queries if corpus is None else corpus).float(), queries.float()
    index = certex.Index(dim=rows.shape[1], metric="cosine")
    index.add(rows)
    return lambda: index.search(asked, k=k + (corpus is None))[1]


def flash_knn(queries: Tensor, corpus: Tensor | None, k: int) -> Run:
    from flashlib import flash_knn

    rows = queries if corpus is None else corpus
    return lambda: flash_knn(queries, rows, k + (corpus is None), return_distances=False)


SEARCH: dict[str, Callable[[Tensor, Tensor | None, int], Run]] = {
    "torch_float32": torch_search(torch.float32),
    "torch_float16": torch_search(torch.float16),
    "faiss": faiss_flat,
    "cuvs": cuvs_brute_force,
    "certex": certex_index,
    "flashlib": flash_knn,
}
NAMES = {
    "torch_float32": "torch mm + topk, float32",
    "torch_float16": "torch mm + topk, float16",
    "faiss": "FAISS GpuIndexFlatIP",
    "cuvs": "cuVS brute force",
    "certex": "certex",
    "flashlib": "FlashLib",
}

"""The connected components of a graph, for the summaries of the commands."""

from __future__ import annotations

import torch

from gloss_kernels.graph import SimilarityGraph


def components(graph: SimilarityGraph, step: int = 1 << 18) -> tuple[int, int]:
    """How many parts the graph has, and the documents of the largest one.

    Each document takes the smallest name around it, trees of names are flattened as they grow (FastSV, Zhang et al.
    2020): a few sweeps. Edges are read for ``step`` documents at a time.
    """
    crow, col = graph.crow_indices, graph.col_indices
    name = torch.arange(graph.num_nodes, dtype=torch.int64, device=crow.device)
    while True:
        before, grand = name.clone(), name[name]
        least = grand.clone()
        for begin in range(0, graph.num_nodes, step):
            ends = crow[begin : begin + step + 1]
            row = (
                torch.arange(len(ends) - 1, dtype=torch.int64, device=crow.device).repeat_interleave(ends.diff())
                + begin
            )
            least.scatter_reduce_(0, row, grand[col[int(ends[0]) : int(ends[-1])]], "amin")
        name.scatter_reduce_(0, before, least, "amin")  # the root takes the new name too
        name = torch.minimum(torch.minimum(name, least), grand)
        if torch.equal(name, before):
            sizes = name.bincount()
            return int((sizes > 0).sum()), int(sizes.max())

"""The Triton backend: the functions of protocol.Backend, one folder or file per stage.

With TRITON_INTERPRET=1, set before the import, the kernels run on CPU tensors, a program at a time in numpy: for tests.
"""

from ._launch import INTERPRETED
from .graph import combine_edges, combine_edges_backward, knn_structure, normalize_edges, normalize_edges_backward
from .loss import dense_loss, dense_rows
from .propagate import propagate
from .propagate_backward import propagate_backward
from .topk import cosine_topk, cosine_topk_backward

__all__ = [
    "INTERPRETED",
    "combine_edges",
    "combine_edges_backward",
    "cosine_topk",
    "cosine_topk_backward",
    "dense_loss",
    "dense_rows",
    "knn_structure",
    "normalize_edges",
    "normalize_edges_backward",
    "propagate",
    "propagate_backward",
]

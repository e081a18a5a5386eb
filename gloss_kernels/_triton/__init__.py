"""The Triton backend: the same functions as _cpu.py and _cuda.py, one folder or file a stage.

With TRITON_INTERPRET=1, set before the import, the kernels run on CPU tensors, a program at a time in numpy: for tests.
"""

from ._launch import INTERPRETED
from .dense import dense_loss
from .graph import combine_edges, combine_edges_backward, knn_structure, normalize_edges, normalize_edges_backward
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
    "knn_structure",
    "normalize_edges",
    "normalize_edges_backward",
    "propagate",
    "propagate_backward",
]

"""Stage topk in Triton: filter in 16 bit on the tensor cores, compact, refine (csrc/topk has the same in CUDA C++)."""

from .backward import cosine_topk_backward
from .search import cosine_topk

__all__ = ["cosine_topk", "cosine_topk_backward"]

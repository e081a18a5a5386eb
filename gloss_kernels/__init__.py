"""Graph-propagation kernels for G-Loss: exact cosine top-k graphs, label propagation with exact gradients, the loss.

Four stages, the same four names on every floor::

    embeddings --topk--> neighbours --graph--> sparse graph --propagate--> probabilities --loss--> scalar
"""

import torch

from . import sigma
from ._backends import BackendStatus, available_backends
from ._progress import progress, topk_statistics
from .corpus import CorpusGLoss
from .graph import SimilarityGraph, similarity_graph
from .loss import GLoss, g_loss
from .neighbors import NeighborIndex
from .propagate import Propagation, propagate_labels
from .topk import TopK, cosine_topk

__version__ = "0.1.0"

# Tuples of tensors: torch.load(weights_only=True) may make them again.
torch.serialization.add_safe_globals([Propagation, SimilarityGraph, TopK])

__all__ = [
    "BackendStatus",
    "CorpusGLoss",
    "GLoss",
    "NeighborIndex",
    "Propagation",
    "SimilarityGraph",
    "TopK",
    "__version__",
    "available_backends",
    "cosine_topk",
    "g_loss",
    "progress",
    "propagate_labels",
    "sigma",
    "similarity_graph",
    "topk_statistics",
]

"""The custom operators, a file per stage: schema, fake implementation and gradient, once for all backends.

An operator's name is that of the backend's function (_backends/protocol.py) and ``torch.ops.gloss_kernels.NAME``; its
last argument names the backend. Schemas have no optional numbers that every torch reads the same: alpha < 0 stands for
None, symmetrize="none" for None.
"""

from . import graph, loss, propagate, topk

__all__ = ["graph", "loss", "propagate", "topk"]

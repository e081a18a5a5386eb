"""Stage 4, loss: G-Loss whose graph is the whole corpus.

module (CorpusGLoss) -> bank (rows, labels, exact search), index (approximate search), harmonic (the solve of a step),
ddp (refused).
"""

from .module import CorpusGLoss

__all__ = ["CorpusGLoss"]

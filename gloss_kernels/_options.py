"""The options of the stages that take many: made and checked once, at the door, and handed on whole."""

from __future__ import annotations

from typing import NamedTuple

from . import _backends, _checks, reference

NORMALIZATIONS = ("row", "published")
TARGETS = tuple(reference.TARGETS)


class PropagateOptions(NamedTuple):
    """Of :func:`gloss_kernels.propagate_labels`, whose docstring says what they mean."""

    alpha: float | None = None
    normalization: str = "row"
    prior_strength: float = 0.0
    tol: float = 1e-4
    max_iter: int = 500

    def checked(self) -> PropagateOptions:
        alpha = self.alpha
        if alpha is not None and not 0 < _checks.number("alpha", alpha, 0) < 1:
            raise ValueError(f"alpha must be None or a number above 0 and below 1, got {alpha}")
        _checks.choice("normalization", self.normalization, NORMALIZATIONS)
        return PropagateOptions(
            None if alpha is None else float(alpha),
            self.normalization,
            _checks.number("prior_strength", self.prior_strength, 0),
            _checks.number("tol", self.tol, 0, open_low=True),
            _checks.whole_number("max_iter", self.max_iter, 1),
        )

    @property
    def applied_normalization(self) -> str:
        """Label spreading has its own."""
        return self.normalization if self.alpha is None else "symmetric"


class LossOptions(NamedTuple):
    """Of :class:`gloss_kernels.GLoss`, whose docstring says what they mean."""

    num_classes: int
    n_neighbors: int | None = None
    labeled_fraction: float = 0.7
    target: str = "nll"
    ignore_index: int = -1
    propagate: PropagateOptions = PropagateOptions()
    backend: str = "auto"

    def checked(self) -> LossOptions:
        return LossOptions(
            _checks.whole_number("num_classes", self.num_classes, 1),
            None if self.n_neighbors is None else _checks.whole_number("n_neighbors", self.n_neighbors, 1),
            _checks.number("labeled_fraction", self.labeled_fraction, 0, 1),
            _checks.choice("target", self.target, TARGETS),
            _checks.whole_number("ignore_index", self.ignore_index),
            self.propagate.checked(),
            _checks.choice("backend", self.backend, _backends.BACKENDS),
        )

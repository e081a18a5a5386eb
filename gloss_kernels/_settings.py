"""What the environment says, read once at import: the run-time variables of the README's table."""

from __future__ import annotations

import os

# Backend where an argument is "auto". A name that is unknown raises at the first call (_backends.resolve).
BACKEND = os.environ.get("GLOSS_KERNELS_BACKEND", "auto")
# Operators on a GPU wait for the device and raise what only the device knows, such as a row that contains NaN.
CHECK = os.environ.get("GLOSS_KERNELS_CHECK") == "1"
# Triton kernels run on CPU tensors, a program at a time in numpy (Triton's own variable).
TRITON_INTERPRET = os.environ.get("TRITON_INTERPRET", "0") == "1"

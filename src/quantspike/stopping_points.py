"""Where a simulation may be ended early, for how much accuracy."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

LOSSES = (0.001, 0.005, 0.01)
"""Accuracies that one may be willing to lose, as shares of the test images: 0.1, 0.5 and 1 percentage points."""

_DIGITS = 9
"""Decimal places that count: 0.9264 - 0.9254 is not quite 0.001 in binary."""


def stopping_step(accuracy: ArrayLike, loss: float) -> int:
    """First step, from 1, from which the accuracy stays within `loss` of the last one, or above it.

    Args:
        accuracy: after each step, from 0 to 1, [T].
        loss: largest distance below the last accuracy, from 0 to 1.
    """
    curve = np.asarray(accuracy, np.float64)
    too_low = np.flatnonzero(np.round(curve[-1] - curve, _DIGITS) > loss)
    return int(too_low[-1]) + 2 if len(too_low) else 1

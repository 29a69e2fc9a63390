"""Learning-rate schedules: pure functions from the share of the training done to a factor of the learning rate.

A share in [0, 1] rather than a step number: the same schedule then serves any number of steps, and nothing but the
step has to be remembered when a run is resumed.
"""

import math
from collections.abc import Callable

Schedule = Callable[[float], float]


def constant(progress: float) -> float:
    """1, always."""
    return 1.0


def one_cycle(warmup: float) -> Schedule:
    """Linear from 0 to 1 over the share ``warmup``, then to 0 along a cosine (after Smith and Topin 2018).

    Raises:
        ValueError: ``warmup`` is not in [0, 1).
    """
    if not 0 <= warmup < 1:
        raise ValueError(f"warmup is the share of the training spent warming up, in [0, 1), not {warmup}")

    def factor(progress: float) -> float:
        if progress < warmup:
            return progress / warmup
        return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))

    return factor

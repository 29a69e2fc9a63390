"""L-BFGS that steps like any other optimizer."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

HISTORY_SIZE = 20  # pairs of differences that are kept; each is two images
EPSILON = 1e-30  # instead of 0, where there is no slope
MAX_FIRST_CHANGE, MAX_CHANGE = (
    0.02,
    0.1,
)  # that a value may change in the first step, and in any other: values are from 0 to 1


class LBFGS(torch.optim.LBFGS):
    """torch's L-BFGS, one iteration a step, from gradients that are there already.

    Liu and Nocedal, "On the Limited Memory BFGS Method for Large Scale Optimization", 1989. Without a line search: each
    step has the length ``lr``, as long as no value changes by more than ``max_change``. The first one, of which no
    curvature is known, changes a value by ``max_first_change`` at most. torch's is so short where there are many values
    that what it tells of the curvature is rounding, and the second step may lead anywhere.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter] | list[dict[str, Any]],
        lr: float = 1.0,
        *,
        max_first_change: float = MAX_FIRST_CHANGE,
        max_change: float = MAX_CHANGE,
    ) -> None:
        super().__init__(parameters, lr, max_iter=1, tolerance_grad=0, tolerance_change=0, history_size=HISTORY_SIZE)
        self.max_first_change, self.max_change = max_first_change, max_change

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Tensor:  # type: ignore[override]
        """One iteration; what the loss is makes no difference to it."""
        loss: Tensor = super().step(closure or (lambda: torch.zeros(())))  # type: ignore[no-untyped-call]
        state = self.state[self._params[0]]
        length, greatest = float(state["t"]), max(float(state["d"].abs().max()), EPSILON)
        wanted = self.max_first_change / greatest if state["n_iter"] == 1 else min(length, self.max_change / greatest)
        self._add_grad(wanted - length, state["d"])
        state["t"] = wanted
        return loss

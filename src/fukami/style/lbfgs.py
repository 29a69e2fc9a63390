"""L-BFGS with the step interface of other optimizers."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

HISTORY_SIZE = 20  # stored update pairs; each takes the memory of two images
EPSILON = 1e-30  # avoids a division by 0 where the gradient is 0
# maximum change of a pixel value, in 0..1, in the first step and in later ones
MAX_FIRST_CHANGE, MAX_CHANGE = 0.02, 0.1


class LBFGS(torch.optim.LBFGS):
    """torch's L-BFGS with one iteration per step, from gradients computed by the caller.

    Liu and Nocedal, "On the Limited Memory BFGS Method for Large Scale Optimization", 1989. There is no line search:
    each step has the length ``lr``, reduced where a parameter would change by more than ``max_change``. The first step,
    without an estimate of the curvature, changes a parameter by at most ``max_first_change``. torch's first step is so
    short for many parameters that rounding dominates its curvature estimate, and the second step is arbitrary.
    """

    def __init__(
        self,
        parameters: ParamsT,
        lr: float = 1.0,
        *,
        max_first_change: float = MAX_FIRST_CHANGE,
        max_change: float = MAX_CHANGE,
    ) -> None:
        super().__init__(parameters, lr, max_iter=1, tolerance_grad=0, tolerance_change=0, history_size=HISTORY_SIZE)
        self.max_first_change, self.max_change = max_first_change, max_change

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor:  # type: ignore[override]
        """Do one iteration; the value of the loss has no influence."""
        loss: Tensor = super().step(closure or (lambda: torch.zeros(())))  # type: ignore[no-untyped-call]
        state = self.state[self._params[0]]
        if "t" not in state:  # the first gradient is 0
            return loss
        length, largest = float(state["t"]), max(float(state["d"].abs().max()), EPSILON)
        target = self.max_first_change / largest if state["n_iter"] == 1 else min(length, self.max_change / largest)
        self._add_grad(target - length, state["d"])
        state["t"] = target
        return loss

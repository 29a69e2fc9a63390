"""L-BFGS that steps like any other optimizer."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

HISTORY = 20  # pairs of differences that are kept; each is two pictures


class LBFGS(torch.optim.LBFGS):
    """torch's L-BFGS, one iteration a step, from gradients that are there already.

    Liu and Nocedal, "On the Limited Memory BFGS Method for Large Scale Optimization", 1989. Without a line search: each
    step has the length ``lr``, but for the first one.
    """

    def __init__(self, parameters: Iterable[nn.Parameter] | list[dict[str, Any]], lr: float = 1.0) -> None:
        super().__init__(parameters, lr, max_iter=1, tolerance_grad=0, tolerance_change=0, history_size=HISTORY)

    def step(self, closure: Callable[[], Any] | None = None) -> Tensor:  # type: ignore[override]
        """One iteration; what the loss is makes no difference to it."""
        return super().step(closure or (lambda: torch.zeros(())))  # type: ignore[no-any-return, no-untyped-call]

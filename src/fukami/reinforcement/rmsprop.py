"""Centered RMSprop with the constant inside the square root, the optimizer of the Deep Q-Network."""

from collections.abc import Callable

import torch
from torch.optim.optimizer import ParamsT

DECAY = 0.95  # "gradient momentum" and "squared gradient momentum" (Mnih et al. 2015, extended data table 1)
MIN_SQUARED_GRADIENT = 0.01  # "min squared gradient" (the same table)


class CenteredRMSprop(torch.optim.Optimizer):
    """Centered RMSprop of DeepMind's ``NeuralQLearner.lua`` (Mnih et al. 2015, extended data table 1).

    With the gradient ``d`` of a weight::

        g  = 0.95 g  + 0.05 d
        g2 = 0.95 g2 + 0.05 d²
        weight -= lr · d / sqrt(g2 - g² + 0.01)

    :class:`torch.optim.RMSprop` adds its ``eps`` after the square root. With ``eps=0.01``, its steps are up to ten
    times as large for small gradients, since the square root of 0.01 is 0.1. All computation is on the device of the
    weights, so a CUDA graph can capture a step.
    """

    def __init__(self, params: ParamsT, lr: float = 2.5e-4) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update the weights that have gradients; ``closure`` is not called."""
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            for weight in weights:
                if weight not in self.state:
                    self.state[weight] = {"mean": torch.zeros_like(weight), "square": torch.zeros_like(weight)}
            gradients = [weight.grad for weight in weights]
            means, squares = ([self.state[weight][name] for weight in weights] for name in ("mean", "square"))
            torch._foreach_lerp_(means, gradients, 1 - DECAY)
            torch._foreach_mul_(squares, DECAY)
            torch._foreach_addcmul_(squares, gradients, gradients, 1 - DECAY)
            roots = torch._foreach_addcmul(squares, means, means, -1)
            torch._foreach_clamp_min_(roots, 0.0)  # rounding of large squares may make a variance negative
            torch._foreach_add_(roots, MIN_SQUARED_GRADIENT)
            torch._foreach_sqrt_(roots)
            steps = torch._foreach_div(gradients, roots)
            torch._foreach_mul_(steps, group["lr"])
            torch._foreach_sub_(weights, steps)

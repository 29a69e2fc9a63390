"""The optimizers of "Deep Learning from Scratch" (Saito, 2016).

``update(params, grads)`` changes the arrays of ``params`` in place, in their own dtype; the state and the step are
computed in that dtype, but never in less than float32.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Optimizer:
    """What the optimizers share: they differ in the step that they take along a gradient."""

    def __init__(self, lr: float) -> None:
        self.lr = lr
        self.iter = 0

    def update(self, params: Mapping[str, Array], grads: Mapping[str, Array]) -> None:
        """Take one step with every parameter, in place."""
        self.iter += 1
        for key, param in params.items():
            grad = np.asarray(grads[key], dtype=np.result_type(param, np.float32))
            param += self.step(key, grad).astype(param.dtype, copy=False)

    def step(self, key: str, grad: Array) -> Array:
        """What to add to the parameter ``key``, whose gradient is ``grad``."""
        raise NotImplementedError


class SGD(Optimizer):
    """Stochastic gradient descent: ``-lr g``."""

    def __init__(self, lr: float = 0.01) -> None:
        super().__init__(lr)

    def step(self, key: str, grad: Array) -> Array:
        """What to add to the parameter."""
        return -self.lr * grad


class Momentum(Optimizer):
    """Gradient descent with inertia: the velocity ``v = momentum v - lr g`` (Polyak, 1964)."""

    def __init__(self, lr: float = 0.01, momentum: float = 0.9) -> None:
        super().__init__(lr)
        self.momentum = momentum
        self.v: dict[str, Array] = {}

    def step(self, key: str, grad: Array) -> Array:
        """What to add to the parameter."""
        self.v[key] = self.momentum * self.v.get(key, 0.0) - self.lr * grad
        return self.v[key]


class Nesterov(Momentum):
    """Momentum that looks ahead (Nesterov, 1983), in the form of Bengio et al. (2012), https://arxiv.org/abs/1212.0901."""

    def step(self, key: str, grad: Array) -> Array:
        """What to add to the parameter."""
        return self.momentum * super().step(key, grad) - self.lr * grad


class AdaGrad(Optimizer):
    """Steps divided by the root of all squared gradients so far (Duchi et al., 2011)."""

    def __init__(self, lr: float = 0.01) -> None:
        super().__init__(lr)
        self.h: dict[str, Array] = {}

    def step(self, key: str, grad: Array) -> Array:
        """What to add to the parameter."""
        self.h[key] = self.h.get(key, 0.0) + grad * grad
        return -self.lr * grad / (np.sqrt(self.h[key]) + 1e-7)


class RMSprop(Optimizer):
    """Steps divided by the root of a running mean of squared gradients (Tieleman and Hinton, 2012)."""

    def __init__(self, lr: float = 0.01, decay_rate: float = 0.99) -> None:
        super().__init__(lr)
        self.decay_rate = decay_rate
        self.h: dict[str, Array] = {}

    def step(self, key: str, grad: Array) -> Array:
        """What to add to the parameter."""
        self.h[key] = self.decay_rate * self.h.get(key, 0.0) + (1 - self.decay_rate) * grad * grad
        return -self.lr * grad / (np.sqrt(self.h[key]) + 1e-7)


class Adam(Optimizer):
    """A running mean of gradients over the root of one of their squares (Kingma and Ba, 2014).

    The bias of both is corrected in the step size, as at the end of the paper's section 2.
    """

    def __init__(self, lr: float = 0.001, beta1: float = 0.9, beta2: float = 0.999) -> None:
        super().__init__(lr)
        self.beta1, self.beta2 = beta1, beta2
        self.m: dict[str, Array] = {}
        self.v: dict[str, Array] = {}

    def step(self, key: str, grad: Array) -> Array:
        """What to add to the parameter."""
        self.m[key] = self.beta1 * self.m.get(key, 0.0) + (1 - self.beta1) * grad
        self.v[key] = self.beta2 * self.v.get(key, 0.0) + (1 - self.beta2) * grad * grad
        lr = self.lr * np.sqrt(1 - self.beta2**self.iter) / (1 - self.beta1**self.iter)
        return -float(lr) * self.m[key] / (np.sqrt(self.v[key]) + 1e-7)

"""Optimizers of "Deep Learning from Scratch" (Saitoh, 2016)."""

from collections.abc import Mapping

import numpy as np

from fukami.scratch.layers import Array


class SGD:
    """Stochastic gradient descent with the step ``-lr * grad``; base class of the other optimizers."""

    def __init__(self, lr: float = 0.01) -> None:
        self.lr, self.iter, self.m, self.v = lr, 0, dict[str, Array](), dict[str, Array]()

    def update(self, params: Mapping[str, Array], grads: Mapping[str, Array]) -> None:
        """Update all parameters by one step, in place and in their dtype; steps are computed in float32 or higher."""
        self.iter += 1
        for key, param in params.items():
            param += self._step(key, np.asarray(grads[key], np.result_type(param, np.float32))).astype(param.dtype)

    def _step(self, key: str, grad: Array) -> Array:
        return -self.lr * grad


class Momentum(SGD):
    """SGD with momentum: the step is a velocity ``v``, changed by the gradient (Polyak 1964)."""

    def __init__(self, lr: float = 0.01, momentum: float = 0.9) -> None:
        super().__init__(lr)
        self.momentum = momentum

    def _step(self, key: str, grad: Array) -> Array:
        self.v[key] = self.momentum * self.v.get(key, 0.0) - self.lr * grad
        return self.v[key]


class Nesterov(Momentum):
    """SGD with Nesterov momentum (Nesterov 1983, in the form of Bengio et al., arXiv 1212.0901)."""

    def _step(self, key: str, grad: Array) -> Array:
        return self.momentum * super()._step(key, grad) - self.lr * grad


class AdaGrad(SGD):
    """AdaGrad: SGD divided by the root of ``v``, the sum of the squared gradients (Duchi et al. 2011)."""

    decay_rate, update_rate = 1.0, 1.0

    def _step(self, key: str, grad: Array) -> Array:
        self.v[key] = self.decay_rate * self.v.get(key, 0.0) + self.update_rate * grad**2
        return -self.lr * grad / (np.sqrt(self.v[key]) + 1e-7)


class RMSprop(AdaGrad):
    """RMSprop: AdaGrad with a running mean of the squared gradients (Tieleman and Hinton 2012)."""

    def __init__(self, lr: float = 0.01, decay_rate: float = 0.99) -> None:
        super().__init__(lr)
        self.decay_rate, self.update_rate = decay_rate, 1 - decay_rate


class Adam(SGD):
    """Adam: running means ``m`` and ``v`` of gradients and squared gradients, bias-corrected (Kingma and Ba 2014)."""

    def __init__(self, lr: float = 0.001, beta1: float = 0.9, beta2: float = 0.999) -> None:
        super().__init__(lr)
        self.beta1, self.beta2 = beta1, beta2

    def _step(self, key: str, grad: Array) -> Array:
        self.m[key] = self.beta1 * self.m.get(key, 0.0) + (1 - self.beta1) * grad
        self.v[key] = self.beta2 * self.v.get(key, 0.0) + (1 - self.beta2) * grad**2
        lr = self.lr * np.sqrt(1 - self.beta2**self.iter) / (1 - self.beta1**self.iter)
        return -float(lr) * self.m[key] / (np.sqrt(self.v[key]) + 1e-7)

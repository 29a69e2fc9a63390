"""The optimizers and the training loop of "Deep Learning from Scratch" (Saito, 2016)."""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from fukami.errors import unknown
from fukami.scratch.layers import Array
from fukami.scratch.network import DeepConvNet


class SGD:
    """Gradient descent, ``-lr * grad``; the other optimizers differ in the step they take and what they remember."""

    def __init__(self, lr: float = 0.01) -> None:
        self.lr, self.iter, self.m, self.v = lr, 0, dict[str, Array](), dict[str, Array]()

    def update(self, params: Mapping[str, Array], grads: Mapping[str, Array]) -> None:
        """Move every parameter by one step, in place and in its own dtype; steps are computed in float32 or more."""
        self.iter += 1
        for key, param in params.items():
            grad = np.asarray(grads[key], np.result_type(param, np.float32))
            param += self._step(key, grad).astype(param.dtype)

    def _step(self, key: str, grad: Array) -> Array:
        return -self.lr * grad


class Momentum(SGD):
    """Descent with inertia: the step is the velocity ``v`` (Polyak, 1964)."""

    def __init__(self, lr: float = 0.01, momentum: float = 0.9) -> None:
        super().__init__(lr)
        self.momentum = momentum

    def _step(self, key: str, grad: Array) -> Array:
        self.v[key] = self.momentum * self.v.get(key, 0.0) - self.lr * grad
        return self.v[key]


class Nesterov(Momentum):
    """Momentum that looks one step ahead (Nesterov, 1983; in the form of Bengio et al., arXiv 1212.0901)."""

    def _step(self, key: str, grad: Array) -> Array:
        return self.momentum * super()._step(key, grad) - self.lr * grad


class AdaGrad(SGD):
    """Descent over the root of ``v``, the sum of all squared gradients (Duchi et al., 2011)."""

    def _step(self, key: str, grad: Array) -> Array:
        self.v[key] = self.v.get(key, 0.0) + grad**2
        return -self.lr * grad / (np.sqrt(self.v[key]) + 1e-7)


class RMSprop(SGD):
    """Descent over the root of ``v``, the running mean of squared gradients (Tieleman and Hinton, 2012)."""

    def __init__(self, lr: float = 0.01, decay_rate: float = 0.99) -> None:
        super().__init__(lr)
        self.decay_rate = decay_rate

    def _step(self, key: str, grad: Array) -> Array:
        self.v[key] = self.decay_rate * self.v.get(key, 0.0) + (1 - self.decay_rate) * grad**2
        return -self.lr * grad / (np.sqrt(self.v[key]) + 1e-7)


class Adam(SGD):
    """RMSprop along ``m``, the running mean of gradients, both without their bias to 0 (Kingma and Ba, 2014)."""

    def __init__(self, lr: float = 0.001, beta1: float = 0.9, beta2: float = 0.999) -> None:
        super().__init__(lr)
        self.beta1, self.beta2 = beta1, beta2

    def _step(self, key: str, grad: Array) -> Array:
        self.m[key] = self.beta1 * self.m.get(key, 0.0) + (1 - self.beta1) * grad
        self.v[key] = self.beta2 * self.v.get(key, 0.0) + (1 - self.beta2) * grad**2
        lr = self.lr * (1 - self.beta2**self.iter) ** 0.5 / (1 - self.beta1**self.iter)
        return -lr * self.m[key] / (np.sqrt(self.v[key]) + 1e-7)


OPTIMIZERS = {optimizer.__name__.lower(): optimizer for optimizer in (SGD, Momentum, Nesterov, AdaGrad, RMSprop, Adam)}


class Trainer:
    """Trains a network on random mini batches; after each epoch it measures the accuracy on the first so many samples.

    ``train_loss_list`` has an entry per mini batch, ``train_acc_list`` and ``test_acc_list`` have one per epoch.
    """

    def __init__(
        self, network: DeepConvNet, x_train: Array, t_train: Array, x_test: Array, t_test: Array,
        epochs: int = 20, mini_batch_size: int = 100,
        optimizer: str = "Adam", optimizer_param: Mapping[str, float] = MappingProxyType({"lr": 0.001}),
        evaluate_sample_num_per_epoch: int | None = 1000, verbose: bool = True,
    ) -> None:  # fmt: skip
        if optimizer.lower() not in OPTIMIZERS:
            raise unknown("optimizer", optimizer, OPTIMIZERS)
        self.optimizer = OPTIMIZERS[optimizer.lower()](**optimizer_param)
        self.network, self.epochs, self.batch_size, self.verbose = network, epochs, mini_batch_size, verbose
        self.x_train, self.t_train, self.x_test, self.t_test = x_train, t_train, x_test, t_test
        self.evaluated = slice(evaluate_sample_num_per_epoch)
        self.train_loss_list, self.train_acc_list, self.test_acc_list = list[float](), list[float](), list[float]()

    def train(self) -> None:
        """Train for as many mini batches as ``epochs`` training sets fill."""
        some = self.evaluated
        for epoch in range(1, self.epochs + 1):
            for _ in range(max(len(self.x_train) // self.batch_size, 1)):
                batch = np.random.choice(len(self.x_train), self.batch_size)
                grads = self.network.gradient(self.x_train[batch], self.t_train[batch])
                self.optimizer.update(self.network.params, grads)
                self.train_loss_list.append(self.network.last_layer.loss)
            self.train_acc_list.append(self.network.accuracy(self.x_train[some], self.t_train[some]))
            self.test_acc_list.append(self.network.accuracy(self.x_test[some], self.t_test[some]))
            if self.verbose:
                accuracies = f"train acc:{self.train_acc_list[-1]:.4f}, test acc:{self.test_acc_list[-1]:.4f}"
                print(f"=== epoch:{epoch}, train loss:{self.train_loss_list[-1]:.4f}, {accuracies} ===")  # noqa: T201

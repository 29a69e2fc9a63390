"""The training loop of "Deep Learning from Scratch" (Saito, 2016)."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fukami.errors import unknown
from fukami.scratch.layers import SoftmaxWithLoss
from fukami.scratch.optimizers import SGD, AdaGrad, Adam, Momentum, Nesterov, Optimizer, RMSprop

Array = npt.NDArray[Any]
OPTIMIZERS: Mapping[str, type[Optimizer]] = {
    cls.__name__.lower(): cls for cls in (SGD, Momentum, Nesterov, AdaGrad, RMSprop, Adam)
}


class Network(Protocol):
    """What the trainer asks of a network."""

    params: dict[str, Array]
    last_layer: SoftmaxWithLoss

    def gradient(self, x: Array, t: Array) -> dict[str, Array]:
        """The gradient of every parameter; the loss is left in ``last_layer.loss``."""

    def accuracy(self, x: Array, t: Array) -> float:
        """The share of right answers."""


class Trainer:
    """Trains a network on random mini batches and watches its accuracy.

    Args:
        optimizer: sgd, momentum, nesterov, adagrad, rmsprop or adam, in any case of letters.
        optimizer_param: the arguments of the optimizer.
        evaluate_sample_num_per_epoch: how many samples of either set the accuracy of an epoch is measured on; None: all.

    The lists ``train_loss_list`` (one entry per mini batch), ``train_acc_list`` and ``test_acc_list`` (one per epoch)
    hold what was seen.
    """

    def __init__(
        self,
        network: Network,
        x_train: Array,
        t_train: Array,
        x_test: Array,
        t_test: Array,
        epochs: int = 20,
        mini_batch_size: int = 100,
        optimizer: str = "Adam",
        optimizer_param: Mapping[str, float] = MappingProxyType({"lr": 0.001}),
        evaluate_sample_num_per_epoch: int | None = 1000,
        verbose: bool = True,
    ) -> None:
        if optimizer.lower() not in OPTIMIZERS:
            raise unknown("optimizer", optimizer, OPTIMIZERS)
        self.network = network
        self.x_train, self.t_train, self.x_test, self.t_test = x_train, t_train, x_test, t_test
        self.epochs, self.batch_size = epochs, mini_batch_size
        self.optimizer = OPTIMIZERS[optimizer.lower()](**optimizer_param)
        self.evaluate_sample_num_per_epoch = evaluate_sample_num_per_epoch
        self.verbose = verbose
        self.train_loss_list: list[float] = []
        self.train_acc_list: list[float] = []
        self.test_acc_list: list[float] = []

    def train(self) -> None:
        """Train for ``epochs`` times as many mini batches as the training set fills."""
        count = self.evaluate_sample_num_per_epoch
        for epoch in range(1, self.epochs + 1):
            for _ in range(max(len(self.x_train) // self.batch_size, 1)):
                self.train_step()
            self.train_acc_list.append(self.network.accuracy(self.x_train[:count], self.t_train[:count]))
            self.test_acc_list.append(self.network.accuracy(self.x_test[:count], self.t_test[:count]))
            self._say(
                f"=== epoch:{epoch}, train loss:{self.train_loss_list[-1]:.4f}, "
                f"train acc:{self.train_acc_list[-1]:.4f}, test acc:{self.test_acc_list[-1]:.4f} ==="
            )
        if self.verbose:
            self._say(f"=== Final Test Accuracy: {self.network.accuracy(self.x_test, self.t_test):.4f} ===")

    def train_step(self) -> None:
        """One update on a random mini batch."""
        batch = np.random.choice(len(self.x_train), self.batch_size)
        grads = self.network.gradient(self.x_train[batch], self.t_train[batch])
        self.optimizer.update(self.network.params, grads)
        self.train_loss_list.append(self.network.last_layer.loss)

    def _say(self, line: str) -> None:
        if self.verbose:
            print(line)  # noqa: T201

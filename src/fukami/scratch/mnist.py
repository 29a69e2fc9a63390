"""MNIST in the shapes that the note asks for."""

from typing import Any

import numpy as np
import numpy.typing as npt

Split = tuple[npt.NDArray[Any], npt.NDArray[Any]]


def load_mnist(normalize: bool = True, flatten: bool = True, one_hot_label: bool = False) -> tuple[Split, Split]:
    """``(x_train, t_train), (x_test, t_test)``, 60,000 and 10,000 digits.

    Args:
        normalize: pictures as float32 in 0..1 rather than uint8 in 0..255.
        flatten: pictures as ``(N, 784)`` rather than ``(N, 1, 28, 28)``.
        one_hot_label: labels as ``(N, 10)`` with a 1 at the digit rather than ``(N,)``.
    """
    from fukami.data import mnist

    def shaped(pictures: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8]) -> Split:
        x: npt.NDArray[Any] = pictures.reshape((-1, 784) if flatten else (-1, 1, 28, 28))
        x = np.divide(x, 255, dtype=np.float32) if normalize else x.copy()
        return x, np.eye(10)[labels] if one_hot_label else labels.copy()

    train, test = mnist.read()
    return shaped(*train), shaped(*test)

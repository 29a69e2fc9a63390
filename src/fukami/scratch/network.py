"""The note's network: six convolutions and two affine layers, 99.3 % and more on MNIST (Saito, 2016)."""

import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from fukami.errors import Error
from fukami.scratch.layers import Affine, Convolution, Dropout, Pooling, Relu, SoftmaxWithLoss
from fukami.scratch.params import read_params, write_params

Array = npt.NDArray[Any]
ConvParam = Mapping[str, int]

FILTERS_16: ConvParam = MappingProxyType({"filter_num": 16, "filter_size": 3, "pad": 1, "stride": 1})
FILTERS_32: ConvParam = MappingProxyType({"filter_num": 32, "filter_size": 3, "pad": 1, "stride": 1})
FILTERS_32_WIDE: ConvParam = MappingProxyType({"filter_num": 32, "filter_size": 3, "pad": 2, "stride": 1})
FILTERS_64: ConvParam = MappingProxyType({"filter_num": 64, "filter_size": 3, "pad": 1, "stride": 1})


class DeepConvNet:
    """Three times conv - relu - conv - relu - pool, then affine - relu - dropout - affine - dropout, then softmax.

    ``params`` holds ``W1..W8`` and ``b1..b8``, the very arrays that ``layers`` compute with: changing one in place
    changes the network. They are float64; the arithmetic is done in the dtype of the pictures.
    """

    def __init__(
        self,
        input_dim: tuple[int, int, int] = (1, 28, 28),
        conv_param_1: ConvParam = FILTERS_16,
        conv_param_2: ConvParam = FILTERS_16,
        conv_param_3: ConvParam = FILTERS_32,
        conv_param_4: ConvParam = FILTERS_32_WIDE,
        conv_param_5: ConvParam = FILTERS_64,
        conv_param_6: ConvParam = FILTERS_64,
        hidden_size: int = 50,
        output_size: int = 10,
    ) -> None:
        self.input_dim = tuple(input_dim)
        self.params: dict[str, Array] = {}
        self.layers: list[Convolution | Relu | Pooling | Affine | Dropout] = []
        conv_params = conv_param_1, conv_param_2, conv_param_3, conv_param_4, conv_param_5, conv_param_6
        channels, *sides = input_dim
        for number, param in enumerate(conv_params, 1):
            size, pad, stride = param["filter_size"], param["pad"], param["stride"]
            W, b = self._new((param["filter_num"], channels, size, size), channels * size * size, param["filter_num"])
            self.layers += [Convolution(W, b, stride, pad), Relu()]
            channels = param["filter_num"]
            sides = [(side + 2 * pad - size) // stride + 1 for side in sides]
            if number % 2 == 0:
                self.layers.append(Pooling(pool_h=2, pool_w=2, stride=2))
                sides = [side // 2 for side in sides]
            if min(sides) < 1:
                raise Error(f"pictures of {self.input_dim} are too small: nothing is left of them after conv {number}")
        features = channels * math.prod(sides)
        hidden = self._new((features, hidden_size), features, hidden_size)
        output = self._new((hidden_size, output_size), hidden_size, output_size)
        self.layers += [Affine(*hidden), Relu(), Dropout(0.5), Affine(*output), Dropout(0.5)]
        self.last_layer = SoftmaxWithLoss()

    def predict(self, x: Array, train_flg: bool = False) -> Array:
        """The scores ``(N, output_size)`` of the pictures ``x`` ``(N, C, H, W)``.

        Without ``train_flg`` they are computed for 100 pictures at a time, so that any number of them fits in memory.
        """
        if x.shape[1:] != self.input_dim:
            raise Error(f"pictures of shape {x.shape} were given, {('N', *self.input_dim)} expected: reshape them")
        count = len(x) if train_flg else 100
        return np.concatenate([self._forward(x[i : i + count], train_flg) for i in range(0, len(x), count)])

    def loss(self, x: Array, t: Array) -> float:
        """The mean cross-entropy in training, with dropout; ``t`` is labels ``(N,)`` or one-hot."""
        return self.last_layer.forward(self.predict(x, train_flg=True), t)

    def accuracy(self, x: Array, t: Array, batch_size: int = 100) -> float:
        """The share of the pictures whose highest score is at the label; every picture counts."""
        labels = t if t.ndim == 1 else t.argmax(axis=1)
        starts = range(0, len(x), batch_size)
        answers = np.concatenate([self.predict(x[i : i + batch_size]).argmax(axis=1) for i in starts])
        return float((answers == labels).mean())

    def gradient(self, x: Array, t: Array) -> dict[str, Array]:
        """The gradient of the loss with respect to every parameter, by its name."""
        self.loss(x, t)
        dout = self.last_layer.backward()
        for layer in reversed(self.layers):
            dout = layer.backward(dout)
        grads = {}
        for number, layer in enumerate(self._weighted(), 1):
            grads[f"W{number}"], grads[f"b{number}"] = layer.dW, layer.db
        return grads

    def save_params(self, file_name: str | Path = "params.pkl") -> None:
        """Write ``params`` to a file: safetensors if that is its suffix, else a pickle as the note's."""
        write_params(file_name, self.params)

    def load_params(self, file_name: str | Path = "params.pkl") -> None:
        """Take over the parameters of a file, safetensors or a pickle as the note's, and their dtype.

        Raises:
            Error: the file is broken, hostile or of another network; this network is then as it was.
        """
        loaded = read_params(file_name)
        problems = [f"{key} is missing" for key in self.params.keys() - loaded.keys()]
        problems += [f"{key:.50} is unknown" for key in loaded.keys() - self.params.keys()]
        for key in self.params.keys() & loaded.keys():
            expected, found = self.params[key].shape, loaded[key]
            if found.shape != expected:
                problems.append(f"{key} has shape {found.shape}, expected {expected}")
            elif found.dtype.kind != "f":
                problems.append(f"{key} is {found.dtype}, expected floating point")
        if problems:
            raise Error(f"{file_name} does not fit this network: {'; '.join(sorted(problems)[:8])}")
        for number, layer in enumerate(self._weighted(), 1):
            self.params[f"W{number}"] = layer.W = loaded[f"W{number}"]
            self.params[f"b{number}"] = layer.b = loaded[f"b{number}"]

    def _new(self, shape: tuple[int, ...], fan_in: int, outputs: int) -> tuple[Array, Array]:
        """Weights and biases of the next layer, scaled for what ReLU halves (He et al., 2015)."""
        number = len(self.params) // 2 + 1
        W = self.params[f"W{number}"] = np.sqrt(2.0 / fan_in) * np.random.randn(*shape)
        b = self.params[f"b{number}"] = np.zeros(outputs)
        return W, b

    def _forward(self, x: Array, train_flg: bool) -> Array:
        for layer in self.layers:
            x = layer.forward(x, train_flg) if isinstance(layer, Dropout) else layer.forward(x)
        return x

    def _weighted(self) -> list[Convolution | Affine]:
        return [layer for layer in self.layers if isinstance(layer, Convolution | Affine)]

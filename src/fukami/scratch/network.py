"""The note's network: six convolutions and two affine layers (Saito, 2016, chapter 8)."""

import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np

from fukami.errors import Error
from fukami.scratch.files import read_params
from fukami.scratch.layers import Affine, Array, Convolution, Dropout, Pooling, Relu, SoftmaxWithLoss

Filters = Mapping[str, int]
FILTERS_16: Filters = MappingProxyType({"filter_num": 16, "filter_size": 3, "pad": 1, "stride": 1})
FILTERS_32: Filters = MappingProxyType({"filter_num": 32, "filter_size": 3, "pad": 1, "stride": 1})
FILTERS_32_PAD_2: Filters = MappingProxyType({"filter_num": 32, "filter_size": 3, "pad": 2, "stride": 1})
FILTERS_64: Filters = MappingProxyType({"filter_num": 64, "filter_size": 3, "pad": 1, "stride": 1})


class DeepConvNet:
    """Three times conv - relu - conv - relu - pool, then affine - relu - dropout - affine - dropout, then softmax.

    ``params`` holds ``W1..W8`` and ``b1..b8``, the very arrays that the ``layers`` compute with: changing them in place
    changes the network. They begin as float64, scaled for ReLU as He et al. (2015) do.
    """

    def __init__(
        self, input_dim: tuple[int, int, int] = (1, 28, 28),
        conv_param_1: Filters = FILTERS_16, conv_param_2: Filters = FILTERS_16,
        conv_param_3: Filters = FILTERS_32, conv_param_4: Filters = FILTERS_32_PAD_2,
        conv_param_5: Filters = FILTERS_64, conv_param_6: Filters = FILTERS_64,
        hidden_size: int = 50, output_size: int = 10,
    ) -> None:  # fmt: skip
        self.input_dim, (channels, h, w) = tuple(input_dim), input_dim
        self.params: dict[str, Array] = {}
        self.layers: list[Convolution | Relu | Pooling | Affine | Dropout] = []

        def weights(outputs: int, *shape: int) -> tuple[Array, Array]:
            number = len(self.params) // 2 + 1
            W = self.params[f"W{number}"] = np.sqrt(2.0 * outputs / math.prod(shape)) * np.random.randn(*shape)
            b = self.params[f"b{number}"] = np.zeros(outputs)
            return W, b

        filters = conv_param_1, conv_param_2, conv_param_3, conv_param_4, conv_param_5, conv_param_6
        for number, param in enumerate(filters, 1):
            count, size, pad, stride = (param[key] for key in ("filter_num", "filter_size", "pad", "stride"))
            self.layers += [Convolution(*weights(count, count, channels, size, size), stride, pad), Relu()]
            channels, h, w = count, (h + 2 * pad - size) // stride + 1, (w + 2 * pad - size) // stride + 1
            if number % 2 == 0:
                self.layers.append(Pooling(pool_h=2, pool_w=2, stride=2))
                h, w = h // 2, w // 2
            if min(h, w) < 1:
                raise Error(f"pictures of {self.input_dim} are too small: conv {number} leaves nothing of them")
        self.layers += [Affine(*weights(hidden_size, channels * h * w, hidden_size)), Relu(), Dropout(0.5)]
        self.layers += [Affine(*weights(output_size, hidden_size, output_size)), Dropout(0.5)]
        self.weighted = [layer for layer in self.layers if isinstance(layer, Convolution | Affine)]
        self.last_layer = SoftmaxWithLoss()

    def predict(self, x: Array, train_flg: bool = False) -> Array:
        """The scores ``(N, output_size)`` of pictures ``(N, C, H, W)``; at test time 100 at once, to save memory."""
        if x.shape[1:] != self.input_dim:
            raise Error(f"pictures of shape {x.shape} were given, {('N', *self.input_dim)} expected; reshape them")
        if not train_flg and len(x) > 100:
            return np.concatenate([self.predict(x[i : i + 100]) for i in range(0, len(x), 100)])
        for layer in self.layers:
            x = layer.forward(x, train_flg) if isinstance(layer, Dropout) else layer.forward(x)
        return x

    def loss(self, x: Array, t: Array) -> float:
        """The mean cross-entropy in training, with dropout; ``t`` is labels ``(N,)`` or one-hot."""
        return self.last_layer.forward(self.predict(x, train_flg=True), t)

    def accuracy(self, x: Array, t: Array, batch_size: int = 100) -> float:
        """The share of the pictures whose highest score is at the label; every picture counts."""
        starts = range(0, len(x), batch_size)
        answers = np.concatenate([self.predict(x[i : i + batch_size]).argmax(axis=1) for i in starts])
        return float((answers == (t if t.ndim == 1 else t.argmax(axis=1))).mean())

    def gradient(self, x: Array, t: Array) -> dict[str, Array]:
        """The gradient of the loss with respect to every parameter, by its name."""
        self.loss(x, t)
        dout = self.last_layer.backward()
        for layer in reversed(self.layers):
            dout = layer.backward(dout)
        grads = {}
        for number, layer in enumerate(self.weighted, 1):
            grads[f"W{number}"], grads[f"b{number}"] = layer.dW, layer.db
        return grads

    def save_params(self, file_name: str | Path = "params.pkl") -> None:
        """Write the parameters: as safetensors if that is the suffix, else pickled as the note does."""
        if Path(file_name).suffix == ".safetensors":
            from safetensors.numpy import save_file

            save_file(self.params, file_name)
        else:
            Path(file_name).write_bytes(pickle.dumps(self.params))

    def load_params(self, file_name: str | Path = "params.pkl") -> None:
        """Take over the parameters of a file and their dtype; if they do not fit, raise Error and change nothing."""
        loaded = read_params(file_name)
        expected, found = ({key: value.shape for key, value in params.items()} for params in (self.params, loaded))
        if wrong := sorted({key for key, _ in expected.items() ^ found.items()}):
            what = (f"{k:.50} is {found.get(k, 'missing')}, expected {expected.get(k, 'nothing')}" for k in wrong[:5])
            raise Error(f"{file_name} does not fit this network: {'; '.join(what)}")
        self.params.update(loaded)
        for number, layer in enumerate(self.weighted, 1):
            layer.W, layer.b = self.params[f"W{number}"], self.params[f"b{number}"]

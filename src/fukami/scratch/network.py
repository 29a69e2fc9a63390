"""Network of six convolutions and two fully connected layers (Saitoh, 2016), as in the note, and its trainer."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np

from fukami.errors import Error, build_unknown_error
from fukami.scratch.files import read_params
from fukami.scratch.layers import Affine, Array, Convolution, Dropout, Pooling, Relu, SoftmaxWithLoss
from fukami.scratch.optimizers import SGD, AdaGrad, Adam, Momentum, Nesterov, RMSprop

OPTIMIZERS = {optimizer.__name__.lower(): optimizer for optimizer in (SGD, Momentum, Nesterov, AdaGrad, RMSprop, Adam)}
Filters = Mapping[str, int]
FILTERS_16: Filters = MappingProxyType({"filter_num": 16, "filter_size": 3, "pad": 1, "stride": 1})
FILTERS_32: Filters = MappingProxyType({"filter_num": 32, "filter_size": 3, "pad": 1, "stride": 1})
FILTERS_32_PAD2: Filters = MappingProxyType({"filter_num": 32, "filter_size": 3, "pad": 2, "stride": 1})
FILTERS_64: Filters = MappingProxyType({"filter_num": 64, "filter_size": 3, "pad": 1, "stride": 1})


class DeepConvNet:
    """Three blocks of conv - relu - conv - relu - pool, then affine - relu - dropout - affine - dropout - softmax."""

    def __init__(self, input_dim: tuple[int, int, int] = (1, 28, 28),
                 conv_param_1: Filters = FILTERS_16, conv_param_2: Filters = FILTERS_16,
                 conv_param_3: Filters = FILTERS_32, conv_param_4: Filters = FILTERS_32_PAD2,
                 conv_param_5: Filters = FILTERS_64, conv_param_6: Filters = FILTERS_64,
                 hidden_size: int = 50, output_size: int = 10) -> None:  # fmt: skip
        self.input_dim, (channels, h, w) = tuple(input_dim), input_dim
        self.params: dict[str, Array] = {}  # the arrays used by the layers, not copies
        self.layers: list[Convolution | Relu | Pooling | Affine | Dropout] = []

        def weights(outputs: int, *shape: int) -> tuple[Array, Array]:
            index, W, b = len(self.params) // 2 + 1, np.random.randn(*shape), np.zeros(outputs)
            W *= np.sqrt(2.0 / (W.size // outputs))  # He initialization with the fan-in (He et al. 2015)
            self.params |= {f"W{index}": W, f"b{index}": b}
            return W, b

        filters = conv_param_1, conv_param_2, conv_param_3, conv_param_4, conv_param_5, conv_param_6
        for index, param in enumerate(filters, 1):
            count, size, pad, stride = (param[key] for key in ("filter_num", "filter_size", "pad", "stride"))
            self.layers += [Convolution(*weights(count, count, channels, size, size), stride, pad), Relu()]
            channels, h, w = count, (h + 2 * pad - size) // stride + 1, (w + 2 * pad - size) // stride + 1
            if index % 2 == 0:
                self.layers.append(Pooling(pool_h=2, pool_w=2, stride=2))
                h, w = h // 2, w // 2
            if min(h, w) < 1:
                raise Error(f"images of {self.input_dim} are too small: the output of conv {index} is empty")
        self.layers += [Affine(*weights(hidden_size, channels * h * w, hidden_size)), Relu(), Dropout(0.5)]
        self.layers += [Affine(*weights(output_size, hidden_size, output_size)), Dropout(0.5)]
        self.weighted_layers = [layer for layer in self.layers if isinstance(layer, Convolution | Affine)]
        self.last_layer = SoftmaxWithLoss()

    def predict(self, x: Array, train_flg: bool = False) -> Array:
        """Predict the scores ``(N, output_size)`` of images ``(N, C, H, W)``, at test time in batches of 100."""
        if x.shape[1:] != self.input_dim:
            raise Error(f"the images have the shape {x.shape}, expected {('N', *self.input_dim)}; reshape them")
        if not train_flg and len(x) > 100:
            return np.concatenate([self.predict(x[i : i + 100]) for i in range(0, len(x), 100)])
        for layer in self.layers:
            x = layer.forward(x, train_flg) if isinstance(layer, Dropout) else layer.forward(x)
        return x

    def loss(self, x: Array, t: Array) -> float:
        """Compute the mean cross-entropy loss, with dropout; ``t`` is labels ``(N,)`` or one-hot."""
        return self.last_layer.forward(self.predict(x, train_flg=True), t)

    def accuracy(self, x: Array, t: Array, batch_size: int = 100) -> float:
        """Compute the accuracy over all images; ``t`` is labels ``(N,)`` or one-hot."""
        predictions = [self.predict(x[i : i + batch_size]).argmax(axis=1) for i in range(0, len(x), batch_size)]
        return float((np.concatenate(predictions) == (t if t.ndim == 1 else t.argmax(axis=1))).mean())

    def gradient(self, x: Array, t: Array) -> dict[str, Array]:
        """Compute the gradient of the loss with respect to each parameter, by its name."""
        self.loss(x, t)
        dout = self.last_layer.backward()
        for layer in reversed(self.layers):
            dout = layer.backward(dout)
        return {f"{p}{i}": getattr(layer, f"d{p}") for i, layer in enumerate(self.weighted_layers, 1) for p in "Wb"}

    def save_params(self, file_name: str | Path = "params.pkl") -> None:
        """Save the parameters: as safetensors if that is the suffix, else as a pickle, as in the note."""
        from safetensors.numpy import save

        path = Path(file_name)
        path.write_bytes(save(self.params) if path.suffix == ".safetensors" else pickle.dumps(self.params))

    def load_params(self, file_name: str | Path = "params.pkl") -> None:
        """Load the parameters of a file with their dtype.

        Raises:
            Error: the parameters do not match; the network is unchanged.
        """
        loaded = read_params(file_name)
        expected, actual = ({key: value.shape for key, value in params.items()} for params in (self.params, loaded))
        if wrong := sorted({key for key, _ in expected.items() ^ actual.items()}):
            parts = (f"{k:.50} is {actual.get(k, 'missing')}, expected {expected.get(k, 'nothing')}" for k in wrong[:5])
            raise Error(f"{file_name} does not match this network: {'; '.join(parts)}")
        for i, layer in enumerate(self.weighted_layers, 1):
            layer.W, layer.b = self.params[f"W{i}"], self.params[f"b{i}"] = loaded[f"W{i}"], loaded[f"b{i}"]


class Trainer:
    """Trainer with random mini-batches; it evaluates the accuracy on the first samples after each epoch."""

    def __init__(self, network: DeepConvNet, x_train: Array, t_train: Array, x_test: Array, t_test: Array,
                 epochs: int = 20, mini_batch_size: int = 100, optimizer: str = "Adam",
                 optimizer_param: Mapping[str, float] = MappingProxyType({"lr": 0.001}),
                 evaluate_sample_num_per_epoch: int | None = 1000, verbose: bool = True) -> None:  # fmt: skip
        if optimizer.lower() not in OPTIMIZERS:
            raise build_unknown_error("optimizer", optimizer, OPTIMIZERS)
        self.optimizer = OPTIMIZERS[optimizer.lower()](**optimizer_param)
        self.network, self.epochs, self.batch_size, self.verbose = network, epochs, mini_batch_size, verbose
        self.x_train, self.t_train, self.x_test, self.t_test = x_train, t_train, x_test, t_test
        self.eval_slice = slice(evaluate_sample_num_per_epoch)
        self.train_loss_list, self.train_acc_list, self.test_acc_list = list[float](), list[float](), list[float]()

    def train(self) -> None:
        """Train for ``epochs`` epochs, and append losses and accuracies to the lists."""
        for epoch in range(1, self.epochs + 1):
            for _ in range(max(len(self.x_train) // self.batch_size, 1)):
                batch = np.random.choice(len(self.x_train), self.batch_size)
                grads = self.network.gradient(self.x_train[batch], self.t_train[batch])
                self.optimizer.update(self.network.params, grads)
                self.train_loss_list.append(self.network.last_layer.loss)
            self.train_acc_list.append(
                self.network.accuracy(self.x_train[self.eval_slice], self.t_train[self.eval_slice])
            )
            self.test_acc_list.append(self.network.accuracy(self.x_test[self.eval_slice], self.t_test[self.eval_slice]))
            if self.verbose:
                print(f"=== epoch:{epoch}, train acc:{self.train_acc_list[-1]}, test acc:{self.test_acc_list[-1]} ===")  # noqa: T201

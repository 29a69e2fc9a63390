"""Speed of fukami.scratch compared with the im2col layers of the book, on MNIST, in one process.

    python benchmarks/scratch.py [--images 10000] [--batches 30]

Appends the ratios to results.csv and prints one JSON object. It contains the seconds to evaluate the images and to
train on mini-batches of 100 for ours, for the book's layers, and for these with float32 instead of float64 column
buffers. It also contains the speedups of ours, and the peak memory of ours, which runs first.
"""
# ruff: noqa: D102 -- forward and backward are those of fukami.scratch

import argparse
import json
import resource
import time

import numpy as np

from common.record import record
from fukami import scratch


def im2col(images, kh, kw, stride, pad, dtype):
    """Unfold windows to rows ``(N * OH * OW, C * kh * kw)``, as in the book."""
    n, channels, h, w = images.shape
    oh, ow = (h + 2 * pad - kh) // stride + 1, (w + 2 * pad - kw) // stride + 1
    padded = np.pad(images, [(0, 0), (0, 0), (pad, pad), (pad, pad)])
    columns = np.zeros((n, channels, kh, kw, oh, ow), dtype)
    for i in range(kh):
        for j in range(kw):
            columns[:, :, i, j] = padded[:, :, i : i + stride * oh : stride, j : j + stride * ow : stride]
    return columns.transpose(0, 4, 5, 1, 2, 3).reshape(n * oh * ow, -1)


def col2im(columns, shape, kh, kw, stride, pad, dtype):
    """Sum rows of windows to images, as in the book."""
    n, channels, h, w = shape
    oh, ow = (h + 2 * pad - kh) // stride + 1, (w + 2 * pad - kw) // stride + 1
    columns = columns.reshape(n, oh, ow, channels, kh, kw).transpose(0, 3, 4, 5, 1, 2)
    images = np.zeros((n, channels, h + 2 * pad + stride - 1, w + 2 * pad + stride - 1), dtype)
    for i in range(kh):
        for j in range(kw):
            images[:, :, i : i + stride * oh : stride, j : j + stride * ow : stride] += columns[:, :, i, j]
    return images[:, :, pad : h + pad, pad : w + pad]


class Convolution:
    """Convolution of the book."""

    def __init__(self, layer, dtype):
        self.W, self.b, self.stride, self.pad, self.dtype = layer.W, layer.b, layer.stride, layer.pad, dtype

    def forward(self, x):
        out, _, kh, kw = self.W.shape
        n, _, h, w = self.shape = x.shape
        oh, ow = (h + 2 * self.pad - kh) // self.stride + 1, (w + 2 * self.pad - kw) // self.stride + 1
        self.columns = im2col(x, kh, kw, self.stride, self.pad, self.dtype)
        self.matrix = self.W.reshape(out, -1).T
        return (np.dot(self.columns, self.matrix) + self.b).reshape(n, oh, ow, -1).transpose(0, 3, 1, 2)

    def backward(self, dout):
        out, _, kh, kw = self.W.shape
        dout = dout.transpose(0, 2, 3, 1).reshape(-1, out)
        self.db = np.sum(dout, axis=0)
        self.dW = np.dot(self.columns.T, dout).transpose(1, 0).reshape(self.W.shape)
        columns = np.dot(dout, self.matrix.T)
        return col2im(columns, self.shape, kh, kw, self.stride, self.pad, self.dtype)


class Pooling:
    """2×2 max pooling of the book."""

    def __init__(self, layer, dtype):
        self.dtype = dtype

    def forward(self, x):
        n, channels, h, w = self.shape = x.shape
        columns = im2col(x, 2, 2, 2, 0, self.dtype).reshape(-1, 4)
        self.max_indices = np.argmax(columns, axis=1)
        return np.max(columns, axis=1).reshape(n, h // 2, w // 2, channels).transpose(0, 3, 1, 2)

    def backward(self, dout):
        dout = dout.transpose(0, 2, 3, 1)
        columns = np.zeros((dout.size, 4), self.dtype)
        columns[np.arange(self.max_indices.size), self.max_indices] = dout.flatten()
        columns = columns.reshape(dout.shape[0] * dout.shape[1] * dout.shape[2], -1)
        return col2im(columns, self.shape, 2, 2, 2, 0, self.dtype)


class Relu:
    """ReLU of the book."""

    def __init__(self, layer, dtype):
        pass

    def forward(self, x):
        self.mask = x <= 0
        out = x.copy()
        out[self.mask] = 0
        return out

    def backward(self, dout):
        dout[self.mask] = 0
        return dout


def build_network(column_dtype=None):
    """Build DeepConvNet in float32; with ``column_dtype``, from the book's layers with column buffers of this dtype."""
    np.random.seed(0)
    net = scratch.DeepConvNet()
    for layer in net.weighted_layers:
        layer.W, layer.b = layer.W.astype(np.float32), layer.b.astype(np.float32)
    net.params = {f"{p}{i}": getattr(layer, p) for i, layer in enumerate(net.weighted_layers, 1) for p in "Wb"}
    if column_dtype is not None:
        book_layers = {scratch.Convolution: Convolution, scratch.Pooling: Pooling, scratch.Relu: Relu}
        net.layers = [
            book_layers[type(layer)](layer, column_dtype) if type(layer) in book_layers else layer
            for layer in net.layers
        ]
        net.weighted_layers = [layer for layer in net.layers if hasattr(layer, "W")]
    return net


def measure(net, train, test, batches):
    """Return evaluation seconds, training seconds, accuracy and last loss, after a short warm-up."""
    (x, t), (x_test, t_test) = train, test
    optimizer = scratch.Adam()
    net.accuracy(x_test[:200], t_test[:200])
    net.gradient(x[:100], t[:100])
    start = time.perf_counter()
    accuracy = net.accuracy(x_test, t_test)
    training_start = time.perf_counter()
    for batch in range(batches):
        rows = slice(100 * batch, 100 * batch + 100)
        optimizer.update(net.params, net.gradient(x[rows], t[rows]))
    return training_start - start, time.perf_counter() - training_start, accuracy, net.last_layer.loss


def main():
    """Measure, record and print."""
    options = argparse.ArgumentParser()
    options.add_argument("--images", type=int, default=10_000)
    options.add_argument("--batches", type=int, default=30)
    options = options.parse_args()
    train, test = ((x[:count], t[:count]) for (x, t), count in zip(
        scratch.load_mnist(flatten=False), (100 * max(options.batches, 1), options.images), strict=True
    ))  # fmt: skip
    seconds, peak = {}, 0
    for name, column_dtype in (("ours", None), ("book", np.float64), ("book_float32", np.float32)):
        seconds[name] = measure(build_network(column_dtype), train, test, options.batches)
        peak = peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    evaluate, training, accuracy, loss = zip(*seconds.values(), strict=True)
    command = f"python benchmarks/scratch.py --images {options.images} --batches {options.batches}"
    for index, action in enumerate(("evaluate", "train")):
        for name in ("book", "book_float32"):
            ratio = seconds[name][index] / seconds["ours"][index]
            record(
                "scratch",
                f"{action}, {name} seconds / ours",
                ratio,
                command=command,
                seconds=seconds["ours"][index],
                device="cpu",
            )
    record("scratch", "peak megabytes", peak, command=command, device="cpu")
    print(json.dumps({
        "images": options.images,
        "batches": options.batches,
        "evaluate_seconds": dict(zip(seconds, evaluate, strict=True)),
        "train_seconds": dict(zip(seconds, training, strict=True)),
        "evaluate_times_faster": {name: seconds[name][0] / seconds["ours"][0] for name in ("book", "book_float32")},
        "train_times_faster": {name: seconds[name][1] / seconds["ours"][1] for name in ("book", "book_float32")},
        "accuracy": dict(zip(seconds, accuracy, strict=True)),
        "last_loss": dict(zip(seconds, loss, strict=True)),
        "peak_megabytes": peak,
    }, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()

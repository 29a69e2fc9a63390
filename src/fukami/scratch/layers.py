"""The layers of "Deep Learning from Scratch" (Saitoh, 2016), each with its gradient derived by hand.

``forward(x)`` gives the answer, ``backward(dout)`` the gradient of ``x``, and leaves those of the parameters in ``dW``
and so on. Images are ``(N, C, H, W)`` views of memory in the order ``(C, H, W, N)``, where windows are copied in long
runs. The arithmetic is in the dtype of ``x``: for integers in that of the parameters, for float16 in float32, rounded.
"""
# ruff: noqa: D102 -- forward and backward are described once, above

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

Array = npt.NDArray[Any]
MAX_BLOCK_BYTES = 8 * 2**20  # bytes of windows that are copied at a time


class Convolution:
    """Filters ``W`` ``(out, in, kh, kw)`` slid over ``(N, in, H, W)``, plus ``b`` ``(out,)``: ``(N, out, OH, OW)``."""

    def __init__(self, W: Array, b: Array, stride: int = 1, pad: int = 0) -> None:
        self.W, self.b, self.stride, self.pad = W, b, stride, pad

    def forward(self, x: Array) -> Array:
        (out, _, *size), (self.dtype, precision) = self.W.shape, resolve_dtypes(x, self.W)
        self.pixels = move_batch_last(np.asarray(x, precision), self.pad)
        windows = extract_windows(self.pixels, size, self.stride)
        W, y = np.asarray(self.W, precision).reshape(out, -1), np.empty((out, *windows.shape[3:]), precision)
        for _, place, columns in unroll_windows(windows):
            np.matmul(W, columns, out=y.reshape(out, -1)[:, place])
        y += np.asarray(self.b, precision)[:, None, None, None]
        return np.asarray(move_batch_first(y), self.dtype)

    def backward(self, dout: Array) -> Array:
        (out, _, *size), precision = self.W.shape, self.pixels.dtype
        W, dx = np.asarray(self.W, precision).reshape(out, -1), np.zeros(self.pixels.shape, precision)
        dy, dW = np.asarray(move_batch_last(dout), precision).reshape(out, -1), np.zeros(W.T.shape, precision)
        windows, dwindows = (extract_windows(pixels, size, self.stride) for pixels in (self.pixels, dx))
        for rows, place, columns in unroll_windows(windows):
            dW += columns @ dy[:, place].T
            dcolumns = np.matmul(W.T, dy[:, place], out=columns).reshape(dwindows[:, :, :, rows].shape)
            for i, j in np.ndindex(*size):
                dwindows[:, i, j, rows] += dcolumns[:, i, j]
        self.dW, self.db = dW.T.reshape(self.W.shape).astype(self.dtype), dy.sum(axis=1).astype(self.dtype)
        return np.asarray(move_batch_first(dx, self.pad), self.dtype)


class Pooling:
    """The largest value of each window, where padding never wins: ``(N, C, H, W)`` to ``(N, C, OH, OW)``."""

    def __init__(self, pool_h: int, pool_w: int, stride: int = 2, pad: int = 0) -> None:
        self.size, self.stride, self.pad = (pool_h, pool_w), stride, pad

    def forward(self, x: Array) -> Array:
        self.pixels = move_batch_last(x, self.pad, fill=-np.inf)
        self.out = np.max(extract_windows(self.pixels, self.size, self.stride), axis=(1, 2))
        return move_batch_first(self.out)

    def backward(self, dout: Array) -> Array:
        dy, dx, untaken = move_batch_last(dout), np.zeros(self.pixels.shape, dout.dtype), np.ones(self.out.shape, bool)
        windows, dwindows = (extract_windows(pixels, self.size, self.stride) for pixels in (self.pixels, dx))
        for i, j in np.ndindex(*self.size):  # of equal values, the first one gets the gradient
            won = untaken & (windows[:, i, j] == self.out)
            dwindows[:, i, j] += dy * won
            untaken ^= won
        return move_batch_first(dx, self.pad)


class Affine:
    """``x @ W + b`` with ``W`` ``(in, out)``: ``(N, ...)`` with ``in`` values per sample to ``(N, out)``."""

    def __init__(self, W: Array, b: Array) -> None:
        self.W, self.b = W, b

    def forward(self, x: Array) -> Array:
        self.shape, self.dtype, precision = x.shape, *resolve_dtypes(x, self.W)
        self.x = np.asarray(x.reshape(len(x), -1), precision)
        return np.asarray(self.x @ np.asarray(self.W, precision) + np.asarray(self.b, precision), self.dtype)

    def backward(self, dout: Array) -> Array:
        dy = np.asarray(dout, self.x.dtype)
        self.dW, self.db = np.asarray(self.x.T @ dy, self.dtype), dy.sum(axis=0).astype(self.dtype)
        return np.asarray(dy @ np.asarray(self.W, dy.dtype).T, self.dtype).reshape(self.shape)


class Relu:
    """``max(x, 0)``; any shape."""

    def forward(self, x: Array) -> Array:
        self.out: Array = np.maximum(x, 0)
        return self.out

    def backward(self, dout: Array) -> Array:
        return np.asarray(dout * (self.out > 0))


class Sigmoid:
    """``1 / (1 + exp(-x))``, without overflow; any shape."""

    def forward(self, x: Array) -> Array:
        self.out = np.asarray(np.exp(np.minimum(x, 0)) / (1 + np.exp(-np.abs(x))))
        return self.out

    def backward(self, dout: Array) -> Array:
        return np.asarray(dout * self.out * (1 - self.out))


class Dropout:
    """Silences a share of the values in training; at test time scales all to that mean (Hinton et al., 2012)."""

    def __init__(self, dropout_ratio: float = 0.5) -> None:
        self.dropout_ratio = dropout_ratio

    def forward(self, x: Array, train_flg: bool = True) -> Array:
        self.mask: Any = np.random.rand(*x.shape) > self.dropout_ratio if train_flg else 1 - self.dropout_ratio
        return np.asarray(x * self.mask)

    def backward(self, dout: Array) -> Array:
        return np.asarray(dout * self.mask)


class BatchNormalization:
    """Each feature of ``(N, ...)`` to mean 0 and variance 1, times ``gamma``, plus ``beta`` (Ioffe, Szegedy, 2015)."""

    def __init__(self, gamma: Array, beta: Array, momentum: float = 0.9,
                 running_mean: Array | None = None, running_var: Array | None = None) -> None:  # fmt: skip
        self.gamma, self.beta, self.momentum = gamma, beta, momentum
        self.running_mean, self.running_var = (0 * gamma if r is None else r for r in (running_mean, running_var))

    def forward(self, x: Array, train_flg: bool = True) -> Array:
        self.dtype, precision = resolve_dtypes(x, self.gamma)
        self.train_flg, features = train_flg, np.asarray(x.reshape(len(x), -1), precision)
        mean, var = self.running_mean, self.running_var
        if train_flg:
            mean, var = features.mean(axis=0), features.var(axis=0)
            self.running_mean = self.momentum * self.running_mean + (1 - self.momentum) * mean
            self.running_var = self.momentum * self.running_var + (1 - self.momentum) * var
        self.std = np.sqrt(np.asarray(var, precision) + 1e-6)
        self.xn = (features - np.asarray(mean, precision)) / self.std
        return np.asarray(self.gamma * self.xn + self.beta, self.dtype).reshape(x.shape)

    def backward(self, dout: Array) -> Array:
        dy = np.asarray(dout.reshape(self.xn.shape), self.xn.dtype)
        self.dgamma, self.dbeta = (dy * self.xn).sum(axis=0).astype(self.dtype), dy.sum(axis=0).astype(self.dtype)
        dxn = self.gamma * dy
        if self.train_flg:  # the batch's own mean and variance depend on x too
            dxn = dxn - dxn.mean(axis=0) - self.xn * (dxn * self.xn).mean(axis=0)
        return np.asarray(dxn / self.std, self.dtype).reshape(dout.shape)


class SoftmaxWithLoss:
    """The mean cross-entropy of the softmax ``y`` of scores ``(N, classes)``; ``t`` is labels ``(N,)`` or one-hot."""

    def forward(self, x: Array, t: Array) -> float:
        scores = np.subtract(x, x.max(axis=1, keepdims=True), dtype=np.result_type(x, np.float32))
        log_y = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
        self.t, self.y = t if t.ndim == 2 else t[:, None] == np.arange(x.shape[1]), np.exp(log_y)
        self.loss = -float((self.t * log_y).sum()) / len(x)
        return self.loss

    def backward(self, dout: float = 1) -> Array:
        return np.asarray((self.y - self.t) * (dout / len(self.y)))


def resolve_dtypes(x: Array, parameter: Array) -> tuple[np.dtype[Any], np.dtype[Any]]:
    """The dtype of a layer's answer to ``x``, and that of its arithmetic."""
    answer = x.dtype if x.dtype.kind == "f" else parameter.dtype
    return answer, np.result_type(answer, np.float32)  # BLAS has no product of float16


def move_batch_last(x: Array, pad: int = 0, fill: float = 0) -> Array:
    """``(N, C, H, W)`` as ``(C, H + 2 pad, W + 2 pad, N)`` with ``fill`` around it; a view where ``pad`` is 0."""
    x = x.transpose(1, 2, 3, 0)
    return np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)), constant_values=fill) if pad else x


def move_batch_first(pixels: Array, pad: int = 0) -> Array:
    """The inverse of ``image_last``, a view."""
    return np.transpose(pixels[:, pad : pixels.shape[1] - pad, pad : pixels.shape[2] - pad], (3, 0, 1, 2))


def extract_windows(pixels: Array, size: Sequence[int], stride: int) -> Array:
    """Every window of ``(C, H, W, N)``, a view ``(C, kh, kw, OH, OW, N)`` with ``OH = (H - kh) // stride + 1``."""
    windows = sliding_window_view(pixels, size, axis=(1, 2), writeable=True)[:, ::stride, ::stride]
    return windows.transpose(0, 4, 5, 1, 2, 3)


def unroll_windows(windows: Array) -> Iterator[tuple[slice, slice, Array]]:
    """Some rows of windows at a time: the rows, their place among all columns, and their own ``(C * kh * kw, ...)``."""
    (channels, kh, kw, height, *_), width = windows.shape, windows[0, 0, 0, 0].size
    rows = min(max(1, MAX_BLOCK_BYTES // windows[:, :, :, 0].nbytes), height)
    memory = np.empty(windows[:, :, :, :rows].size, windows.dtype)
    for row in range(0, height, rows):
        block = windows[:, :, :, row : row + rows]
        columns = memory[: block.size].reshape(channels * kh * kw, -1)
        columns.reshape(block.shape)[...] = block
        yield slice(row, row + rows), slice(row * width, (row + rows) * width), columns

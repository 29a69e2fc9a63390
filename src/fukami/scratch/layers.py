"""Layers of "Deep Learning from Scratch" (Saitoh, 2016) with hand-derived gradients.

``forward(x)`` returns the output. ``backward(dout)`` returns the gradient of ``x`` and stores those of the parameters
in ``dW`` and so on. Images are ``(N, C, H, W)`` views of memory in the order ``(C, H, W, N)``, so that windows are
copied in long runs. Computations use the dtype of ``x``: for integers that of the parameters, for float16 float32 with
a rounded output.
"""
# ruff: noqa: D102 -- the module docstring describes forward and backward

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

Array = npt.NDArray[Any]
MAX_BLOCK_BYTES = 8 * 2**20  # bytes of windows copied at a time


class Convolution:
    """Convolution of ``(N, in, H, W)`` with ``W`` ``(out, in, kh, kw)`` plus ``b`` ``(out,)``: ``(N, out, OH, OW)``."""

    def __init__(self, W: Array, b: Array, stride: int = 1, pad: int = 0) -> None:
        self.W, self.b, self.stride, self.pad = W, b, stride, pad

    def forward(self, x: Array) -> Array:
        (out, _, *size), (self.dtype, precision) = self.W.shape, resolve_dtypes(x, self.W)
        self.pixels = move_batch_last(np.asarray(x, precision), self.pad)
        windows = extract_windows(self.pixels, size, self.stride)
        W, y = np.asarray(self.W, precision).reshape(out, -1), np.empty((out, *windows.shape[3:]), precision)
        for _, position, columns in unroll_windows(windows):
            np.matmul(W, columns, out=y.reshape(out, -1)[:, position])
        y += np.asarray(self.b, precision)[:, None, None, None]
        return np.asarray(move_batch_first(y), self.dtype)

    def backward(self, dout: Array) -> Array:
        (out, _, *size), precision = self.W.shape, self.pixels.dtype
        W, dx = np.asarray(self.W, precision).reshape(out, -1), np.zeros(self.pixels.shape, precision)
        dy, dW = np.asarray(move_batch_last(dout), precision).reshape(out, -1), np.zeros(W.T.shape, precision)
        windows, dwindows = (extract_windows(pixels, size, self.stride) for pixels in (self.pixels, dx))
        for rows, position, columns in unroll_windows(windows):
            dW += columns @ dy[:, position].T
            dcolumns = np.matmul(W.T, dy[:, position], out=columns).reshape(dwindows[:, :, :, rows].shape)
            for i, j in np.ndindex(*size):
                dwindows[:, i, j, rows] += dcolumns[:, i, j]
        self.dW, self.db = dW.T.reshape(self.W.shape).astype(self.dtype), dy.sum(axis=1).astype(self.dtype)
        return np.asarray(move_batch_first(dx, self.pad), self.dtype)


class Pooling:
    """Max pooling of ``(N, C, H, W)`` to ``(N, C, OH, OW)``; padding is never the maximum."""

    def __init__(self, pool_h: int, pool_w: int, stride: int = 2, pad: int = 0) -> None:
        self.size, self.stride, self.pad = (pool_h, pool_w), stride, pad

    def forward(self, x: Array) -> Array:
        self.pixels = move_batch_last(x, self.pad, fill=-np.inf)
        self.out = np.max(extract_windows(self.pixels, self.size, self.stride), axis=(1, 2))
        return move_batch_first(self.out)

    def backward(self, dout: Array) -> Array:
        dy, dx, pending = move_batch_last(dout), np.zeros(self.pixels.shape, dout.dtype), np.ones(self.out.shape, bool)
        windows, dwindows = (extract_windows(pixels, self.size, self.stride) for pixels in (self.pixels, dx))
        for i, j in np.ndindex(*self.size):  # among equal values, the first one gets the gradient
            is_max = pending & (windows[:, i, j] == self.out)
            dwindows[:, i, j] += dy * is_max
            pending ^= is_max
        return move_batch_first(dx, self.pad)


class Affine:
    """Fully connected layer ``x @ W + b`` with ``W`` ``(in, out)``: flattened ``(N, ...)`` to ``(N, out)``."""

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
    """ReLU ``max(x, 0)``, for any shape."""

    def forward(self, x: Array) -> Array:
        self.out: Array = np.maximum(x, 0)
        return self.out

    def backward(self, dout: Array) -> Array:
        return np.asarray(dout * (self.out > 0))


class Sigmoid:
    """Sigmoid ``1 / (1 + exp(-x))`` without overflow, for any shape."""

    def forward(self, x: Array) -> Array:
        self.out = np.asarray(np.exp(np.minimum(x, 0)) / (1 + np.exp(-np.abs(x))))
        return self.out

    def backward(self, dout: Array) -> Array:
        return np.asarray(dout * self.out * (1 - self.out))


class Dropout:
    """Dropout: set a fraction of the values to 0 in training, scale all at test time (Hinton et al. 2012)."""

    def __init__(self, dropout_ratio: float = 0.5) -> None:
        self.dropout_ratio = dropout_ratio

    def forward(self, x: Array, train_flg: bool = True) -> Array:
        self.mask: Array | float = (
            np.random.rand(*x.shape) > self.dropout_ratio if train_flg else 1 - self.dropout_ratio
        )
        return np.asarray(x * self.mask)

    def backward(self, dout: Array) -> Array:
        return np.asarray(dout * self.mask)


class BatchNormalization:
    """Batch normalization of each feature of ``(N, ...)``, with ``gamma`` and ``beta`` (Ioffe and Szegedy 2015)."""

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
    """Softmax ``y`` of scores ``(N, classes)`` with mean cross-entropy loss; ``t`` is labels ``(N,)`` or one-hot."""

    def forward(self, x: Array, t: Array) -> float:
        scores = np.subtract(x, x.max(axis=1, keepdims=True), dtype=np.result_type(x, np.float32))
        log_y = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
        self.t, self.y = t if t.ndim == 2 else t[:, None] == np.arange(x.shape[1]), np.exp(log_y)
        self.loss = -float((self.t * log_y).sum()) / len(x)
        return self.loss

    def backward(self, dout: float = 1) -> Array:
        return np.asarray((self.y - self.t) * (dout / len(self.y)))


def resolve_dtypes(
    x: Array, parameter: Array
) -> tuple[np.dtype[np.floating], np.dtype[np.floating | np.integer | np.bool]]:
    """Return the dtype of a layer's output for ``x``, and that of its computation."""
    dtype = x.dtype if x.dtype.kind == "f" else parameter.dtype
    return dtype, np.result_type(dtype, np.float32)  # BLAS does not support float16


def move_batch_last(x: Array, pad: int = 0, fill: float = 0) -> Array:
    """Convert ``(N, C, H, W)`` to ``(C, H + 2 pad, W + 2 pad, N)``, padded with ``fill``; a view if ``pad`` is 0."""
    x = x.transpose(1, 2, 3, 0)
    return np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)), constant_values=fill) if pad else x


def move_batch_first(pixels: Array, pad: int = 0) -> Array:
    """Convert ``(C, H + 2 pad, W + 2 pad, N)`` to ``(N, C, H, W)``, the inverse of :func:`move_batch_last`; a view."""
    return np.transpose(pixels[:, pad : pixels.shape[1] - pad, pad : pixels.shape[2] - pad], (3, 0, 1, 2))


def extract_windows(pixels: Array, size: Sequence[int], stride: int) -> Array:
    """Return all windows of ``(C, H, W, N)`` as a view ``(C, kh, kw, OH, OW, N)``, ``OH = (H - kh) // stride + 1``."""
    windows = sliding_window_view(pixels, size, axis=(1, 2), writeable=True)[:, ::stride, ::stride]
    return windows.transpose(0, 4, 5, 1, 2, 3)


def unroll_windows(windows: Array) -> Iterator[tuple[slice, slice, Array]]:
    """Yield blocks of rows of windows: the rows, their column slice, and their columns ``(C * kh * kw, ...)``."""
    (channels, kh, kw, height, *_), width = windows.shape, windows[0, 0, 0, 0].size
    rows = min(max(1, MAX_BLOCK_BYTES // windows[:, :, :, 0].nbytes), height)
    memory = np.empty(windows[:, :, :, :rows].size, windows.dtype)
    for row in range(0, height, rows):
        block = windows[:, :, :, row : row + rows]
        columns = memory[: block.size].reshape(channels * kh * kw, -1)
        columns.reshape(block.shape)[...] = block
        yield slice(row, row + rows), slice(row * width, (row + rows) * width), columns

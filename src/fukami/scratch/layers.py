"""The layers of "Deep Learning from Scratch" (Saito, 2016), each with its gradient derived by hand.

``forward(x)`` gives the answer; ``backward(dout)`` gives the gradient of ``x`` and leaves those of the parameters in
``dW`` and ``db``. Pictures are ``(N, C, H, W)`` views of memory in the order ``(H, C, W, N)``, in which a window over
all of them is copied in runs of ``W * N`` values. The arithmetic is in the dtype of ``x``; where that is an integer, in
that of the parameters; where it is float16, which no BLAS multiplies, in float32 and then rounded.
"""
# ruff: noqa: D102 -- forward and backward are described once, above

from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import as_strided, sliding_window_view

Array = npt.NDArray[Any]


class Convolution:
    """Filters ``W`` ``(out, in, kh, kw)`` slid over ``(N, in, H, W)``, plus ``b`` ``(out,)``: ``(N, out, OH, OW)``."""

    def __init__(self, W: Array, b: Array, stride: int = 1, pad: int = 0) -> None:
        self.W, self.b, self.stride, self.pad = W, b, stride, pad

    def forward(self, x: Array) -> Array:
        self.shape, self.dtype, precision = x.shape, *dtypes(x, self.W)
        out, _, kh, kw = self.W.shape
        self.columns = unroll(picture_last(np.asarray(x, precision), self.pad), kh, kw, self.stride)
        y = np.asarray(self.W, precision).transpose(0, 2, 1, 3).reshape(out, -1) @ self.columns
        y += np.asarray(self.b, precision)[:, None]
        return np.asarray(y.reshape(len(y), out, -1, len(x)).transpose(3, 1, 0, 2), self.dtype)

    def backward(self, dout: Array) -> Array:
        (n, channels, h, w), (_, out, oh, ow) = self.shape, dout.shape
        (_, _, kh, kw), s, p = self.W.shape, self.stride, self.pad
        rows = np.ascontiguousarray(picture_last(dout), self.columns.dtype).reshape(oh, out, ow * n)
        dW = (self.columns @ rows.transpose(0, 2, 1)).sum(axis=0).reshape(kh, channels, kw, out)
        self.dW, self.db = dW.transpose(3, 1, 0, 2).astype(self.dtype), rows.sum(axis=2).sum(axis=0).astype(self.dtype)
        # x[i] meets y[o] through W[i - s * o]: dx is dout, spread by the stride, under the filters turned around
        spread = np.zeros((h + 2 * p + kh - 1, out, w + 2 * p + kw - 1, n), rows.dtype)
        spread[kh - 1 : kh - 1 + s * oh : s, :, kw - 1 : kw - 1 + s * ow : s] = picture_last(dout)
        turned = np.asarray(self.W[:, :, ::-1, ::-1], rows.dtype).transpose(1, 2, 0, 3).reshape(channels, -1)
        dx = turned @ unroll(spread[p : p + h + kh - 1, :, p : p + w + kw - 1], kh, kw, stride=1)
        return np.asarray(dx.reshape(h, channels, w, n).transpose(3, 1, 0, 2), self.dtype)


class Pooling:
    """The largest value of each window, where padding never wins: ``(N, C, H, W)`` to ``(N, C, OH, OW)``."""

    def __init__(self, pool_h: int, pool_w: int, stride: int = 2, pad: int = 0) -> None:
        self.pool_h, self.pool_w, self.stride, self.pad = pool_h, pool_w, stride, pad

    def forward(self, x: Array) -> Array:
        self.pixels = picture_last(x, self.pad, fill=-np.inf)
        self.out: Array = self._windows(self.pixels).max(axis=(-2, -1))
        return np.transpose(self.out, (3, 1, 0, 2))

    def backward(self, dout: Array) -> Array:
        dy, dx = picture_last(dout), np.zeros(self.pixels.shape, dout.dtype)
        windows, dwindows = self._windows(self.pixels), self._windows(dx)
        untaken = np.ones(dy.shape, bool)
        for place in np.ndindex(self.pool_h, self.pool_w):  # of equal values, the first one gets the gradient
            won = untaken & (windows[..., *place] == self.out)
            dwindows[..., *place] += dy * won
            untaken ^= won
        inside = slice(self.pad, -self.pad or None)
        return np.transpose(dx[inside, :, inside], (3, 1, 0, 2))

    def _windows(self, pixels: Array) -> Array:
        windows = sliding_window_view(pixels, (self.pool_h, self.pool_w), axis=(0, 2), writeable=True)
        return windows[:: self.stride, :, :: self.stride]  # (OH, C, OW, N, pool_h, pool_w)


class Affine:
    """``x @ W + b`` with ``W`` ``(in, out)``: ``(N, ...)`` with ``in`` values per sample to ``(N, out)``."""

    def __init__(self, W: Array, b: Array) -> None:
        self.W, self.b = W, b

    def forward(self, x: Array) -> Array:
        self.shape, self.dtype, precision = x.shape, *dtypes(x, self.W)
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

    def __init__(
        self, gamma: Array, beta: Array, momentum: float = 0.9,
        running_mean: Array | None = None, running_var: Array | None = None,
    ) -> None:  # fmt: skip
        self.gamma, self.beta, self.momentum = gamma, beta, momentum
        self.running_mean, self.running_var = (0 * gamma if r is None else r for r in (running_mean, running_var))

    def forward(self, x: Array, train_flg: bool = True) -> Array:
        self.dtype, precision = dtypes(x, self.gamma)
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


def dtypes(x: Array, parameter: Array) -> tuple[np.dtype[Any], np.dtype[Any]]:
    """The dtype of a layer's answer to ``x``, and that of its arithmetic."""
    answer = x.dtype if x.dtype.kind == "f" else parameter.dtype
    return answer, np.result_type(answer, np.float32)


def picture_last(x: Array, pad: int = 0, fill: float = 0) -> Array:
    """``(N, C, H, W)`` as ``(H + 2 pad, C, W + 2 pad, N)`` with ``fill`` around it; a view where ``pad`` is 0."""
    x = x.transpose(2, 1, 3, 0)
    return np.pad(x, ((pad, pad), (0, 0), (pad, pad), (0, 0)), constant_values=fill) if pad else x


def unroll(pixels: Array, kh: int, kw: int, stride: int) -> Array:
    """Every window of ``(H, C, W, N)`` as a column of ``(OH, kh * C * kw, OW * N)``; ``OH = (H - kh) // stride + 1``.
    Only a window's columns are copied, to ``(H, C, kw, OW, N)``: its rows follow each other there, so the windows of
    one output row are a matrix as they lie, and those of the next row begin ``stride`` rows later.
    """
    copied = np.ascontiguousarray(sliding_window_view(pixels, kw, 2)[:, :, ::stride].transpose(0, 1, 4, 2, 3))
    (h, channels, _, ow, n), (row, _, column, _, value) = copied.shape, copied.strides
    shape = (h - kh) // stride + 1, kh * channels * kw, ow * n
    return as_strided(copied, shape, (stride * row, column, value), writeable=False)

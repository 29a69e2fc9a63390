"""The layers of "Deep Learning from Scratch" (Saito, 2016), each with its gradient derived by hand.

Pictures go in and out as ``(N, C, H, W)``. In memory the layers keep them as ``(H, C, W, N)``, the picture's number
last, so that a window over all pictures is copied in runs of ``W * N`` values; the outer shape is a transposed view.

The arithmetic is done in the dtype of the input. Where that is float16, for which no BLAS has a product, the products
are computed in float32 and rounded; where it is an integer, the dtype of the parameters is used.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import as_strided, sliding_window_view

Array = npt.NDArray[Any]


class Convolution:
    """Slides the filters ``W`` ``(out, in, kh, kw)`` over pictures and adds ``b`` ``(out,)``.

    Shapes: ``(N, in, H, W)`` to ``(N, out, OH, OW)`` with ``OH = (H + 2 pad - kh) // stride + 1``.
    """

    def __init__(self, W: Array, b: Array, stride: int = 1, pad: int = 0) -> None:
        self.W, self.b, self.stride, self.pad = W, b, stride, pad

    def forward(self, x: Array) -> Array:
        """The answer: one matrix product of the filters with every window."""
        n, _, h, w = self.shape = x.shape
        out, _, kh, kw = self.W.shape
        self.dtype, precision = precisions(x, self.W)
        pixels = picture_last(x.astype(precision, copy=False), self.pad)
        self.columns = unroll(pixels, kh, kw, self.stride)
        y = self.W.astype(precision, copy=False).transpose(0, 2, 1, 3).reshape(out, -1) @ self.columns
        y += self.b.astype(precision, copy=False)[:, None]
        width = (w + 2 * self.pad - kw) // self.stride + 1
        return picture_first(y.reshape(-1, out, width, n)).astype(self.dtype, copy=False)

    def backward(self, dout: Array) -> Array:
        """The gradient of ``x``; those of ``W`` and ``b`` are left in ``dW`` and ``db``."""
        n, channels, h, w = self.shape
        out, _, kh, kw = self.W.shape
        _, _, oh, ow = dout.shape
        dy = np.ascontiguousarray(picture_last(dout), dtype=self.columns.dtype)
        rows = dy.reshape(oh, out, ow * n)
        self.db = rows.sum(axis=2).sum(axis=0).astype(self.dtype, copy=False)
        dW = (self.columns @ rows.transpose(0, 2, 1)).sum(axis=0)
        self.dW = dW.reshape(kh, channels, kw, out).transpose(3, 1, 0, 2).astype(self.dtype, copy=False)

        # x[i] reaches y[o] through W[i - o * stride]: dx is dy, spread by the stride, convolved with the turned filter
        s, p = self.stride, self.pad
        spread = np.zeros((h + 2 * p + kh - 1, out, w + 2 * p + kw - 1, n), dy.dtype)
        spread[kh - 1 : kh - 1 + s * oh : s, :, kw - 1 : kw - 1 + s * ow : s] = dy
        turned = self.W[:, :, ::-1, ::-1].astype(dy.dtype, copy=False).transpose(1, 2, 0, 3).reshape(channels, -1)
        dx = turned @ unroll(spread[p : p + h + kh - 1, :, p : p + w + kw - 1], kh, kw, stride=1)
        return picture_first(dx.reshape(h, channels, w, n)).astype(self.dtype, copy=False)


class Pooling:
    """The largest value of each window of ``pool_h`` by ``pool_w``; padding never wins.

    Shapes: ``(N, C, H, W)`` to ``(N, C, OH, OW)`` with ``OH = (H + 2 pad - pool_h) // stride + 1``.
    """

    def __init__(self, pool_h: int, pool_w: int, stride: int = 2, pad: int = 0) -> None:
        self.pool_h, self.pool_w, self.stride, self.pad = pool_h, pool_w, stride, pad

    def forward(self, x: Array) -> Array:
        """The answer, in the dtype of ``x``."""
        self.pixels = picture_last(x, self.pad, fill=-np.inf)
        self.out = self._windows(self.pixels).max(axis=(-2, -1))
        return picture_first(self.out)

    def backward(self, dout: Array) -> Array:
        """The gradient of ``x``: all of ``dout`` goes to the first largest value of its window."""
        dy, dx = picture_last(dout), np.zeros(self.pixels.shape, dout.dtype)
        windows, dwindows = self._windows(self.pixels), self._windows(dx)
        untaken = np.ones(dy.shape, bool)
        for place in np.ndindex(self.pool_h, self.pool_w):
            won = untaken & (windows[..., *place] == self.out)
            dwindows[..., *place] += dy * won
            untaken ^= won
        h, _, w, _ = dx.shape
        return picture_first(dx[self.pad : h - self.pad, :, self.pad : w - self.pad])

    def _windows(self, pixels: Array) -> Array:
        windows = sliding_window_view(pixels, (self.pool_h, self.pool_w), axis=(0, 2), writeable=True)
        return windows[:: self.stride, :, :: self.stride]  # (OH, C, OW, N, pool_h, pool_w)


class Affine:
    """``x @ W + b`` of the flattened input; ``W`` is ``(in, out)``.

    Shapes: ``(N, in)``, or ``(N, ...)`` with ``in`` values per sample, to ``(N, out)``.
    """

    def __init__(self, W: Array, b: Array) -> None:
        self.W, self.b = W, b

    def forward(self, x: Array) -> Array:
        """The answer, ``(N, out)``."""
        self.shape = x.shape
        self.dtype, precision = precisions(x, self.W)
        self.x = x.reshape(len(x), -1).astype(precision, copy=False)
        y = self.x @ self.W.astype(precision, copy=False) + self.b.astype(precision, copy=False)
        return y.astype(self.dtype, copy=False)

    def backward(self, dout: Array) -> Array:
        """The gradient of ``x``; those of ``W`` and ``b`` are left in ``dW`` and ``db``."""
        dy = dout.astype(self.x.dtype, copy=False)
        self.dW = (self.x.T @ dy).astype(self.dtype, copy=False)
        self.db = dy.sum(axis=0).astype(self.dtype, copy=False)
        return (dy @ self.W.T.astype(dy.dtype, copy=False)).reshape(self.shape).astype(self.dtype, copy=False)


class Relu:
    """``max(x, 0)``; any shape."""

    def forward(self, x: Array) -> Array:
        """The answer, of the same shape."""
        self.out = np.maximum(x, 0)
        return self.out

    def backward(self, dout: Array) -> Array:
        """The gradient of ``x``: ``dout`` where ``x`` was positive."""
        return dout * (self.out > 0)


class Sigmoid:
    """``1 / (1 + exp(-x))``, without overflow; any shape."""

    def forward(self, x: Array) -> Array:
        """The answer, of the same shape."""
        small = np.exp(-np.abs(x))
        self.out: Array = np.where(x < 0, small, 1) / (1 + small)
        return self.out

    def backward(self, dout: Array) -> Array:
        """The gradient of ``x``, from ``y' = y (1 - y)``."""
        return dout * self.out * (1 - self.out)


class Dropout:
    """Silences a share of the values in training and scales all of them to the same mean at test time; any shape.

    The first form, of Hinton et al. (2012): training does not rescale.
    """

    def __init__(self, dropout_ratio: float = 0.5) -> None:
        self.dropout_ratio = dropout_ratio

    def forward(self, x: Array, train_flg: bool = True) -> Array:
        """The answer, of the same shape; ``mask`` is what it was multiplied by."""
        keep = 1.0 - self.dropout_ratio
        self.mask: Array | float = np.random.rand(*x.shape) > self.dropout_ratio if train_flg else keep
        return x * self.mask

    def backward(self, dout: Array) -> Array:
        """The gradient of ``x``."""
        return dout * self.mask


class BatchNormalization:
    """Each feature to mean 0 and variance 1 over the batch, then times ``gamma`` plus ``beta`` (Ioffe and Szegedy, 2015).

    Shapes: ``(N, D)`` or ``(N, C, H, W)``; the latter has ``D = C * H * W`` features, as in the book.
    """

    def __init__(
        self,
        gamma: Array | float,
        beta: Array | float,
        momentum: float = 0.9,
        running_mean: Array | None = None,
        running_var: Array | None = None,
    ) -> None:
        self.gamma, self.beta, self.momentum = gamma, beta, momentum
        self.running_mean, self.running_var = running_mean, running_var

    def forward(self, x: Array, train_flg: bool = True) -> Array:
        """The answer, of the same shape: by the batch's mean and variance in training, else by the running ones."""
        self.train_flg = train_flg
        self.dtype, precision = precisions(x, np.asarray(self.gamma))
        features = x.reshape(len(x), -1).astype(precision, copy=False)
        if self.running_mean is None or self.running_var is None:
            self.running_mean, self.running_var = np.zeros((2, features.shape[1]), precision)
        if train_flg:
            mean, var = features.mean(axis=0), features.var(axis=0)
            self.running_mean = self.momentum * self.running_mean + (1 - self.momentum) * mean
            self.running_var = self.momentum * self.running_var + (1 - self.momentum) * var
        else:
            mean, var = self.running_mean.astype(precision), self.running_var.astype(precision)
        self.std = np.sqrt(var + 1e-6)
        self.xn = (features - mean) / self.std
        return (self.gamma * self.xn + self.beta).reshape(x.shape).astype(self.dtype, copy=False)

    def backward(self, dout: Array) -> Array:
        """The gradient of ``x``; those of ``gamma`` and ``beta`` are left in ``dgamma`` and ``dbeta``."""
        dy = dout.reshape(self.xn.shape).astype(self.xn.dtype, copy=False)
        self.dbeta = dy.sum(axis=0).astype(self.dtype, copy=False)
        self.dgamma = (dy * self.xn).sum(axis=0).astype(self.dtype, copy=False)
        dxn = self.gamma * dy
        if self.train_flg:  # the batch's own mean and variance depend on x too
            dxn = dxn - dxn.mean(axis=0) - self.xn * (dxn * self.xn).mean(axis=0)
        return (dxn / self.std).reshape(dout.shape).astype(self.dtype, copy=False)


class SoftmaxWithLoss:
    """Softmax and the mean cross-entropy to ``t``, which is labels ``(N,)`` or one-hot ``(N, classes)``."""

    def forward(self, x: Array, t: Array) -> float:
        """The loss of the scores ``x`` ``(N, classes)``; ``y`` holds the probabilities."""
        self.t = t
        self.dtype, precision = precisions(x, np.zeros(()))
        scores = x.astype(precision) - x.max(axis=1, keepdims=True)
        log_y = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
        self.y: Array = np.exp(log_y)
        self.loss = -float((log_y * self._one_hot()).sum()) / len(x)
        return self.loss

    def backward(self, dout: float = 1) -> Array:
        """The gradient of ``x``: ``(y - t) / N``."""
        return (dout * (self.y - self._one_hot()) / len(self.y)).astype(self.dtype, copy=False)

    def _one_hot(self) -> Array:
        return self.t if self.t.ndim == 2 else self.t[:, None] == np.arange(self.y.shape[1])


def precisions(x: Array, parameter: Array) -> tuple[np.dtype[Any], np.dtype[Any]]:
    """The dtype of a layer's answer to ``x``, and that of its arithmetic."""
    answer = x.dtype if x.dtype.kind == "f" else parameter.dtype
    return answer, np.result_type(answer, np.float32)


def picture_last(x: Array, pad: int = 0, fill: float = 0.0) -> Array:
    """``(N, C, H, W)`` as ``(H + 2 pad, C, W + 2 pad, N)``, with ``fill`` around the pictures; a view if ``pad`` is 0."""
    x = x.transpose(2, 1, 3, 0)
    return np.pad(x, ((pad, pad), (0, 0), (pad, pad), (0, 0)), constant_values=fill) if pad else x


def picture_first(x: Array) -> Array:
    """``(H, C, W, N)`` viewed as ``(N, C, H, W)``."""
    return x.transpose(3, 1, 0, 2)


def unroll(pixels: Array, kh: int, kw: int, stride: int) -> Array:
    """Every window of ``(H, C, W, N)`` as a column: ``(OH, kh * C * kw, OW * N)``.

    Only the columns of a window are copied, ``(H, C, kw, OW, N)``. Its ``kh`` rows follow each other in that copy, so
    the windows of one output row are a matrix in it, and those of the next row the same matrix ``stride`` rows on.
    """
    copies = sliding_window_view(pixels, kw, axis=2)[:, :, ::stride].transpose(0, 1, 4, 2, 3)
    copies = np.ascontiguousarray(copies)
    h, channels, _, ow, n = copies.shape
    row, _, column, _, value = copies.strides
    shape = ((h - kh) // stride + 1, kh * channels * kw, ow * n)
    return as_strided(copies, shape, (stride * row, column, value), writeable=False)

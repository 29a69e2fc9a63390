"""The kernels of the 1-bit layers for the CPU: numba compiles them for the processor that they run on.

A word holds the bits of 64 channels, 1 for +1. The heart is :func:`_build_tile_kernel`, written as vectors of eight
words, which LLVM turns into VPOPCNTQ where AVX-512 has it, and into the table look-ups of AVX2 or the CNT of NEON
elsewhere. Its sums stay in registers: a few neighbouring pixels and 8 or 16 outputs at a time, so that each word read
serves many.
"""

from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
import numba
import numpy as np
import torch
from llvmlite import ir
from numba import njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from fukami.quantization import kernel_compilation

LANES = 8  # words, or floats, in a vector
_HAS_AVX512_POPCNT = llvm.get_host_cpu_features().get("avx512vpopcntdq", False)
TILE_PIXELS = 4 if _HAS_AVX512_POPCNT else 2  # of a tile; they share the weights that are read
TILE_VECTORS = 2 if _HAS_AVX512_POPCNT else 1  # of outputs of a tile; they share the pixels that are read
BLOCK_OUTPUTS = LANES * TILE_VECTORS  # outputs of a tile
MIN_PARALLEL_WORK = 1e8  # bits to compare from which on a second thread is worth waking


def prepack_weights(weight: Tensor) -> Tensor:
    """Weights ``(outputs, kh, kw, words)`` as :func:`convolve` reads them: ``(blocks, kh, kw * words, BLOCK)``."""
    outputs, kh, kw, words = weight.shape
    blocks = -(-outputs // BLOCK_OUTPUTS)
    padded = weight.new_zeros(blocks * BLOCK_OUTPUTS, kh, kw * words)
    padded[:outputs] = weight.flatten(2)
    return padded.view(blocks, BLOCK_OUTPUTS, kh, kw * words).permute(0, 2, 3, 1).contiguous()


def pack_signs(x: Tensor, threshold: Tensor, direction: Tensor) -> Tensor:
    """Words ``(N, H, W, words)`` of ``x`` ``(N, C, H, W)``: 1 where ``x * direction >= edge``, both ``(C,)``."""
    pixels = x.float().permute(0, 2, 3, 1).contiguous()
    words = np.zeros((*pixels.shape[:3], -(-pixels.shape[3] // 64)), np.int64)
    _run_kernel(_pack_signs_kernel, pixels.numpy(), threshold.numpy(), direction.numpy(), words)
    return torch.from_numpy(words)


def convolve(
    x: Tensor,
    prepacked: Tensor,
    count_offsets: Tensor,
    offset_index: Tensor,
    num_terms: Tensor | None,
    outputs: int,
    stride: int,
    padding: int,
) -> Tensor:
    """Count, for each output and pixel, the bits that differ, as ``convolve`` of ``binary_reference`` does."""
    height, width = offset_index.shape
    work = len(x) * height * width * prepacked.numel() * 64
    function = _convolve_parallel if work > MIN_PARALLEL_WORK and torch.get_num_threads() > 1 else _convolve_serial
    sums = num_terms is not None
    shape = (len(x), height, width, prepacked.shape[0] * BLOCK_OUTPUTS if sums else -(-outputs // 64))
    result = np.empty(shape, np.float32) if sums else np.zeros(shape, np.int64)
    limits = np.empty(0, np.int64) if num_terms is None else num_terms.numpy()
    _run_kernel(
        function,
        x.numpy(),
        prepacked.numpy(),
        count_offsets.numpy(),
        offset_index.numpy(),
        limits,
        result,
        stride,
        padding,
    )
    found = torch.from_numpy(result)
    return found[..., :outputs].permute(0, 3, 1, 2) if sums else found


def max_pool(x: Tensor, min_mask: Tensor, size: int, stride: int) -> Tensor:
    """Max pooling of words ``(N, H, W, words)``; of the bits set in ``min_mask`` ``(words,)`` the smallest is taken."""
    count, height, width, words = x.shape
    result = np.empty((count, (height - size) // stride + 1, (width - size) // stride + 1, words), np.int64)
    _run_kernel(_max_pool_kernel, x.numpy(), min_mask.numpy(), size, stride, result)
    return torch.from_numpy(result)


def _run_kernel(function: Callable[..., None], *arguments: Any) -> None:
    threads = torch.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    with kernel_compilation.log_compile_time(function, "processor"):
        function(*arguments)
    if torch.get_num_threads() != threads:  # numba sets those of OpenMP when it starts its own, which torch shares
        torch.set_num_threads(threads)


def _load_vector(builder: ir.IRBuilder, address: ir.Value, element: ir.Type) -> ir.Value:
    """Eight numbers from memory that is aligned for one of them."""
    vector = ir.VectorType(element, LANES)
    loaded = builder.load(builder.inttoptr(address, vector.as_pointer()))
    loaded.align = element.width // 8 if isinstance(element, ir.IntType) else 4
    return loaded


def _store_vector(builder: ir.IRBuilder, value: ir.Value, address: ir.Value, align: int) -> None:
    builder.store(value, builder.inttoptr(address, value.type.as_pointer())).align = align


def _broadcast(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """A vector of eight times the same number."""
    vector = ir.VectorType(value.type, LANES)
    nothing = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(nothing, value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES))


def _build_tile_kernel(pixels: int, sums: bool) -> Any:
    """The function that counts for so many neighbouring pixels and BLOCK outputs.

    Its arguments are addresses and distances in bytes: of the input, between its rows and between the pixels; the
    kernel's rows and the words of each; of the weights; of the pixels' kinds; of ``start`` and between its rows; of
    ``valid`` (where ``sums`` are asked for, not bits); of the result and between its pixels.
    """
    word, byte = ir.IntType(64), ir.IntType(8)
    vector = ir.VectorType(word, LANES)

    @intrinsic
    def tile(
        context: Any, x: Any, row: Any, step: Any, rows: Any, run: Any, weight: Any, kinds: Any, start: Any, width: Any,
        valid: Any, out: Any, distance: Any,
    ) -> Any:  # fmt: skip
        def emit(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
            x, row, step, rows, run, weight, kinds, start, width, valid, out, distance = arguments

            def at(base: ir.Value, number: int, size: ir.Value | int) -> ir.Value:
                size = ir.Constant(word, size) if isinstance(size, int) else size
                return builder.add(base, builder.mul(size, ir.Constant(word, number)))

            def read(address: ir.Value) -> ir.Value:
                return builder.load(builder.inttoptr(address, word.as_pointer()))

            count = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(vector, [vector]), f"llvm.ctpop.v{LANES}i64"
            )
            counts = [[cgutils.alloca_once(builder, vector) for _ in range(TILE_VECTORS)] for _ in range(pixels)]
            kind = [read(at(kinds, p, 8)) for p in range(pixels)]
            for p in range(pixels):
                begin = builder.add(start, builder.mul(kind[p], width))
                for v in range(TILE_VECTORS):
                    builder.store(_load_vector(builder, at(begin, v, 8 * LANES), word), counts[p][v])
            with cgutils.for_range(builder, rows) as outer:
                line = builder.add(x, builder.mul(outer.index, row))
                first = builder.mul(outer.index, run)
                with cgutils.for_range(builder, run) as inner:
                    under = builder.add(line, builder.mul(inner.index, ir.Constant(word, 8)))
                    index = builder.mul(builder.add(first, inner.index), ir.Constant(word, 8 * BLOCK_OUTPUTS))
                    weights = [
                        _load_vector(builder, at(builder.add(weight, index), v, 8 * LANES), word)
                        for v in range(TILE_VECTORS)
                    ]
                    for p in range(pixels):
                        bits = _broadcast(builder, read(at(under, p, step)))
                        for v in range(TILE_VECTORS):
                            differ = builder.call(count, [builder.xor(bits, weights[v])])
                            builder.store(builder.add(builder.load(counts[p][v]), differ), counts[p][v])
            for p in range(pixels):
                for v in range(TILE_VECTORS):
                    total, target = builder.load(counts[p][v]), at(out, p, distance)
                    if sums:
                        top = _broadcast(builder, read(builder.add(valid, builder.mul(kind[p], ir.Constant(word, 8)))))
                        number = builder.sub(top, builder.shl(total, ir.Constant(vector, [1] * LANES)))
                        narrow = builder.trunc(number, ir.VectorType(ir.IntType(32), LANES))
                        real = builder.sitofp(narrow, ir.VectorType(ir.FloatType(), LANES))
                        _store_vector(builder, real, at(target, v, 4 * LANES), 4)
                    else:
                        small = builder.icmp_signed("<", total, ir.Constant(vector, [1] * LANES))
                        _store_vector(builder, builder.bitcast(small, byte), at(target, v, 1), 1)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 12), emit

    return tile


@intrinsic
def _compare_to_threshold(context: Any, x: Any, edge: Any, direction: Any, out: Any) -> Any:
    """Write the byte of whether each of eight floats reaches its edge in its direction; arguments are addresses."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        value, edge, direction = (_load_vector(builder, address, ir.FloatType()) for address in arguments[:3])
        reached = builder.fcmp_ordered(">=", builder.fmul(value, direction), edge)
        _store_vector(builder, builder.bitcast(reached, ir.IntType(8)), arguments[3], 1)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), emit


_pack_tile, _pack_pixel = _build_tile_kernel(TILE_PIXELS, False), _build_tile_kernel(1, False)
_sum_tile, _sum_pixel = _build_tile_kernel(TILE_PIXELS, True), _build_tile_kernel(1, True)


@njit(cache=True, nogil=True)
def _pack_signs_kernel(x, edge, direction, words):  # pragma: no cover
    count, height, width, channels = x.shape
    whole = channels // 8 * 8
    for pixel in range(count * height * width):
        source, target = x.ctypes.data + pixel * channels * 4, words.ctypes.data + pixel * words.shape[3] * 8
        for c in range(0, whole, 8):
            _compare_to_threshold(
                source + c * 4, edge.ctypes.data + c * 4, direction.ctypes.data + c * 4, target + c // 8
            )
    if whole < channels:
        for n in range(count):
            for h in range(height):
                for w in range(width):
                    for c in range(whole, channels):
                        if x[n, h, w, c] * direction[c] >= edge[c]:
                            words[n, h, w, c // 64] |= np.int64(1) << (c % 64)


def _convolve_kernel(x, weight, start, kind, valid, out, stride, padding):  # pragma: no cover
    count, height, width, words = x.shape
    blocks, kh, run, _ = weight.shape
    rows, columns = kind.shape
    if padding:
        bordered = np.zeros((count, height + 2 * padding, width + 2 * padding, words), np.int64)
        for n in range(count):
            bordered[n, padding : padding + height, padding : padding + width] = x[n]
    else:
        bordered = x
    pitch, step, distance = bordered.shape[2] * words * 8, stride * words * 8, out.shape[3] * out.itemsize
    size = BLOCK_OUTPUTS * out.itemsize if valid.size else BLOCK_OUTPUTS // 8
    for task in prange(count * blocks * rows):
        image, block, row = task // (blocks * rows), task // rows % blocks, task % rows
        starts, width = start.ctypes.data + block * BLOCK_OUTPUTS * 8, start.shape[1] * 8
        weights = weight.ctypes.data + block * kh * run * BLOCK_OUTPUTS * 8
        source = bordered.ctypes.data + (image * bordered.shape[1] + row * stride) * pitch
        target = out.ctypes.data + (image * rows + row) * columns * distance + block * size
        column = 0
        while column < columns:
            a, b = source + column * step, target + column * distance
            k, v = kind.ctypes.data + (row * columns + column) * 8, valid.ctypes.data
            if column + TILE_PIXELS <= columns:
                if valid.size:
                    _sum_tile(a, pitch, step, kh, run, weights, k, starts, width, v, b, distance)
                else:
                    _pack_tile(a, pitch, step, kh, run, weights, k, starts, width, v, b, distance)
                column += TILE_PIXELS
            else:
                if valid.size:
                    _sum_pixel(a, pitch, step, kh, run, weights, k, starts, width, v, b, distance)
                else:
                    _pack_pixel(a, pitch, step, kh, run, weights, k, starts, width, v, b, distance)
                column += 1


_convolve_serial = njit(cache=True, nogil=True)(_convolve_kernel)
_convolve_parallel = njit(cache=True, nogil=True, parallel=True)(_convolve_kernel)


@njit(cache=True, nogil=True)
def _max_pool_kernel(x, minimum, size, stride, out):  # pragma: no cover
    for n in range(out.shape[0]):
        for h in range(out.shape[1]):
            for w in range(out.shape[2]):
                for k in range(out.shape[3]):
                    found = np.int64(0)
                    for i in range(size):
                        for j in range(size):
                            found |= x[n, h * stride + i, w * stride + j, k] ^ minimum[k]
                    out[n, h, w, k] = found ^ minimum[k]

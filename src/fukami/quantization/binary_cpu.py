"""Kernels of the 1-bit layers for CPUs, compiled by numba for the host processor.

A word contains the bits of 64 channels, 1 for +1. The main kernel is :func:`_build_tile_kernel`. It uses vectors of
eight words, which LLVM compiles to VPOPCNTQ with AVX-512, and to table look-ups (AVX2) or CNT (NEON) otherwise. Its
sums stay in registers for a few neighboring pixels and 8 or 16 outputs at a time, so that each loaded word is reused.
"""

from collections.abc import Callable, Sequence

import llvmlite.binding as llvm
import numba
import numpy as np
import numpy.typing as npt
import torch
from llvmlite import ir
from numba import njit, prange, types
from numba.core import cgutils
from numba.core.base import BaseContext
from numba.core.typing import Context, Signature
from numba.extending import intrinsic
from torch import Tensor

from fukami.quantization import kernel_compilation

# writes the instructions of an intrinsic function
Emitter = Callable[[BaseContext, ir.IRBuilder, Signature, Sequence[ir.Value]], ir.Value]
LANES = 8  # words or floats per vector
_HAS_AVX512_POPCNT = llvm.get_host_cpu_features().get("avx512vpopcntdq", False)
TILE_PIXELS = 4 if _HAS_AVX512_POPCNT else 2  # pixels of a tile, which share the loaded weights
TILE_VECTORS = 2 if _HAS_AVX512_POPCNT else 1  # vectors of outputs of a tile, which share the loaded pixels
BLOCK_OUTPUTS = LANES * TILE_VECTORS  # outputs of a tile
MIN_PARALLEL_WORK = 1e8  # bits to compare above which several threads are faster


def prepack_weights(weight: Tensor) -> Tensor:
    """Reorder weights ``(outputs, kh, kw, words)`` to ``(blocks, kh, kw * words, BLOCK_OUTPUTS)``."""
    outputs, kh, kw, words = weight.shape
    blocks = -(-outputs // BLOCK_OUTPUTS)
    padded = weight.new_zeros(blocks * BLOCK_OUTPUTS, kh, kw * words)
    padded[:outputs] = weight.flatten(2)
    return padded.view(blocks, BLOCK_OUTPUTS, kh, kw * words).permute(0, 2, 3, 1).contiguous()


def pack_signs(x: Tensor, threshold: Tensor, direction: Tensor) -> Tensor:
    """Pack signs of ``x`` ``(N, C, H, W)`` to words ``(N, H, W, words)``: 1 where ``x * direction >= threshold``."""
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
    """Binary convolution; see :func:`fukami.quantization.binary_reference.convolve`."""
    height, width = offset_index.shape
    work = len(x) * height * width * prepacked.numel() * 64
    function = _convolve_parallel if work > MIN_PARALLEL_WORK and torch.get_num_threads() > 1 else _convolve_serial
    returns_sums = num_terms is not None
    shape = (len(x), height, width, prepacked.shape[0] * BLOCK_OUTPUTS if returns_sums else -(-outputs // 64))
    result = np.empty(shape, np.float32) if returns_sums else np.zeros(shape, np.int64)
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
    output = torch.from_numpy(result)
    return output[..., :outputs].permute(0, 3, 1, 2) if returns_sums else output


def max_pool(x: Tensor, min_mask: Tensor, size: int, stride: int) -> Tensor:
    """Max-pool words ``(N, H, W, words)``; the bits set in ``min_mask`` ``(words,)`` are min-pooled."""
    count, height, width, words = x.shape
    result = np.empty((count, (height - size) // stride + 1, (width - size) // stride + 1, words), np.int64)
    _run_kernel(_max_pool_kernel, x.numpy(), min_mask.numpy(), size, stride, result)
    return torch.from_numpy(result)


def _run_kernel(function: Callable[..., None], *arguments: npt.NDArray[np.generic] | int) -> None:
    threads = torch.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    with kernel_compilation.log_compile_time(function, "processor"):
        function(*arguments)
    if torch.get_num_threads() != threads:  # numba changes the OpenMP threads, which torch shares
        torch.set_num_threads(threads)


def _load_vector(builder: ir.IRBuilder, address: ir.Value, element: ir.Type) -> ir.Value:
    """Load eight numbers with the alignment of one."""
    vector = ir.VectorType(element, LANES)
    loaded = builder.load(builder.inttoptr(address, vector.as_pointer()))
    loaded.align = element.width // 8 if isinstance(element, ir.IntType) else 4
    return loaded


def _store_vector(builder: ir.IRBuilder, value: ir.Value, address: ir.Value, align: int) -> None:
    builder.store(value, builder.inttoptr(address, value.type.as_pointer())).align = align


def _broadcast(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """Broadcast a number to a vector of eight."""
    vector = ir.VectorType(value.type, LANES)
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES))


def _build_tile_kernel(pixels: int, sums: bool) -> Callable[..., None]:
    """Build the function that counts differing bits for ``pixels`` neighboring pixels and ``BLOCK_OUTPUTS`` outputs.

    Its arguments are addresses and strides in bytes: input, its row stride and its pixel stride; rows of the kernel and
    words of each row; weights; offset indices of the pixels; count offsets and their row stride; numbers of terms (for
    ``sums`` instead of bits); output and its pixel stride.
    """
    word, byte = ir.IntType(64), ir.IntType(8)
    vector = ir.VectorType(word, LANES)

    @intrinsic
    def tile(
        context: Context, x: types.Type, row: types.Type, step: types.Type, rows: types.Type, row_words: types.Type,
        weight: types.Type, index_address: types.Type, count_offsets: types.Type, width: types.Type,
        num_terms: types.Type, out: types.Type, distance: types.Type,
    ) -> tuple[Signature, Emitter]:  # fmt: skip
        def emit(
            context: BaseContext, builder: ir.IRBuilder, signature: Signature, arguments: Sequence[ir.Value]
        ) -> ir.Value:
            x, row, step, rows, row_words, weight, index_address, count_offsets, width, num_terms, out, distance = (
                arguments
            )

            def offset(base: ir.Value, index: int, size: ir.Value | int) -> ir.Value:
                size = ir.Constant(word, size) if isinstance(size, int) else size
                return builder.add(base, builder.mul(size, ir.Constant(word, index)))

            def read(address: ir.Value) -> ir.Value:
                return builder.load(builder.inttoptr(address, word.as_pointer()))

            count = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(vector, [vector]), f"llvm.ctpop.v{LANES}i64"
            )
            counts = [[cgutils.alloca_once(builder, vector) for _ in range(TILE_VECTORS)] for _ in range(pixels)]
            offset_indices = [read(offset(index_address, p, 8)) for p in range(pixels)]
            for p in range(pixels):
                offsets = builder.add(count_offsets, builder.mul(offset_indices[p], width))
                for v in range(TILE_VECTORS):
                    builder.store(_load_vector(builder, offset(offsets, v, 8 * LANES), word), counts[p][v])
            with cgutils.for_range(builder, rows) as outer:
                line = builder.add(x, builder.mul(outer.index, row))
                first = builder.mul(outer.index, row_words)
                with cgutils.for_range(builder, row_words) as inner:
                    word_address = builder.add(line, builder.mul(inner.index, ir.Constant(word, 8)))
                    index = builder.mul(builder.add(first, inner.index), ir.Constant(word, 8 * BLOCK_OUTPUTS))
                    weights = [
                        _load_vector(builder, offset(builder.add(weight, index), v, 8 * LANES), word)
                        for v in range(TILE_VECTORS)
                    ]
                    for p in range(pixels):
                        bits = _broadcast(builder, read(offset(word_address, p, step)))
                        for v in range(TILE_VECTORS):
                            num_differing = builder.call(count, [builder.xor(bits, weights[v])])
                            builder.store(builder.add(builder.load(counts[p][v]), num_differing), counts[p][v])
            for p in range(pixels):
                for v in range(TILE_VECTORS):
                    total, target = builder.load(counts[p][v]), offset(out, p, distance)
                    if sums:
                        terms = _broadcast(
                            builder, read(builder.add(num_terms, builder.mul(offset_indices[p], ir.Constant(word, 8))))
                        )
                        value = builder.sub(terms, builder.shl(total, ir.Constant(vector, [1] * LANES)))
                        narrow = builder.trunc(value, ir.VectorType(ir.IntType(32), LANES))
                        real = builder.sitofp(narrow, ir.VectorType(ir.FloatType(), LANES))
                        _store_vector(builder, real, offset(target, v, 4 * LANES), 4)
                    else:
                        small = builder.icmp_signed("<", total, ir.Constant(vector, [1] * LANES))
                        _store_vector(builder, builder.bitcast(small, byte), offset(target, v, 1), 1)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 12), emit

    kernel: Callable[..., None] = tile
    return kernel


@intrinsic
def _compare_to_threshold(
    context: Context, x: types.Type, threshold: types.Type, direction: types.Type, out: types.Type
) -> tuple[Signature, Emitter]:
    """Compare eight floats with their thresholds in their directions and store the bits; arguments are addresses."""

    def emit(
        context: BaseContext, builder: ir.IRBuilder, signature: Signature, arguments: Sequence[ir.Value]
    ) -> ir.Value:
        value, threshold, direction = (_load_vector(builder, address, ir.FloatType()) for address in arguments[:3])
        reached = builder.fcmp_ordered(">=", builder.fmul(value, direction), threshold)
        _store_vector(builder, builder.bitcast(reached, ir.IntType(8)), arguments[3], 1)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), emit


_pack_tile, _pack_pixel = _build_tile_kernel(TILE_PIXELS, False), _build_tile_kernel(1, False)
_sum_tile, _sum_pixel = _build_tile_kernel(TILE_PIXELS, True), _build_tile_kernel(1, True)


@njit(cache=True, nogil=True)
def _pack_signs_kernel(x, threshold, direction, words):  # pragma: no cover
    count, height, width, channels = x.shape
    num_aligned = channels // 8 * 8
    for pixel in range(count * height * width):
        source, target = x.ctypes.data + pixel * channels * 4, words.ctypes.data + pixel * words.shape[3] * 8
        for c in range(0, num_aligned, 8):
            _compare_to_threshold(
                source + c * 4, threshold.ctypes.data + c * 4, direction.ctypes.data + c * 4, target + c // 8
            )
    if num_aligned < channels:
        for n in range(count):
            for h in range(height):
                for w in range(width):
                    for c in range(num_aligned, channels):
                        if x[n, h, w, c] * direction[c] >= threshold[c]:
                            words[n, h, w, c // 64] |= np.int64(1) << (c % 64)


def _convolve_kernel(x, weight, count_offsets, offset_index, num_terms, out, stride, padding):  # pragma: no cover
    count, height, width, words = x.shape
    blocks, kh, row_words, _ = weight.shape
    rows, columns = offset_index.shape
    if padding:
        padded = np.zeros((count, height + 2 * padding, width + 2 * padding, words), np.int64)
        for n in range(count):
            padded[n, padding : padding + height, padding : padding + width] = x[n]
    else:
        padded = x
    pitch, step, distance = padded.shape[2] * words * 8, stride * words * 8, out.shape[3] * out.itemsize
    size = BLOCK_OUTPUTS * out.itemsize if num_terms.size else BLOCK_OUTPUTS // 8
    for task in prange(count * blocks * rows):
        image, block, row = task // (blocks * rows), task // rows % blocks, task % rows
        starts, width = count_offsets.ctypes.data + block * BLOCK_OUTPUTS * 8, count_offsets.shape[1] * 8
        weights = weight.ctypes.data + block * kh * row_words * BLOCK_OUTPUTS * 8
        source = padded.ctypes.data + (image * padded.shape[1] + row * stride) * pitch
        target = out.ctypes.data + (image * rows + row) * columns * distance + block * size
        column = 0
        while column < columns:
            a, b = source + column * step, target + column * distance
            k, v = offset_index.ctypes.data + (row * columns + column) * 8, num_terms.ctypes.data
            if column + TILE_PIXELS <= columns:
                if num_terms.size:
                    _sum_tile(a, pitch, step, kh, row_words, weights, k, starts, width, v, b, distance)
                else:
                    _pack_tile(a, pitch, step, kh, row_words, weights, k, starts, width, v, b, distance)
                column += TILE_PIXELS
            else:
                if num_terms.size:
                    _sum_pixel(a, pitch, step, kh, row_words, weights, k, starts, width, v, b, distance)
                else:
                    _pack_pixel(a, pitch, step, kh, row_words, weights, k, starts, width, v, b, distance)
                column += 1


_convolve_serial = njit(cache=True, nogil=True)(_convolve_kernel)
_convolve_parallel = njit(cache=True, nogil=True, parallel=True)(_convolve_kernel)


@njit(cache=True, nogil=True)
def _max_pool_kernel(x, min_mask, size, stride, out):  # pragma: no cover
    for n in range(out.shape[0]):
        for h in range(out.shape[1]):
            for w in range(out.shape[2]):
                for k in range(out.shape[3]):
                    bits = np.int64(0)
                    for i in range(size):
                        for j in range(size):
                            bits |= x[n, h * stride + i, w * stride + j, k] ^ min_mask[k]
                    out[n, h, w, k] = bits ^ min_mask[k]

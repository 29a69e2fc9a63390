"""Kernels of the 1-bit layers for NVIDIA GPUs, compiled by Triton on their first call.

A word contains the bits of 64 channels, 1 for +1. The 32 lanes of a warp load the weights of 32 outputs, which are
contiguous, and share the same few pixels. Each loaded word is thus used in many counts, and half a word of the result
is one reduction over the warp. Borders are masked, not copied.

A multiprocessor counts the bits of 16 words of 32 bits per cycle, a quarter of its rate for other operations. A
carry-save adder therefore combines the two halves of a word with the previous remainder, and one population count per
word counts the carries (Harley-Seal; Warren, Hacker's Delight, section 5-1). Triton has no tensor-core exclusive or.
"""

import torch
import triton
from torch import Tensor
from torch.nn import functional as F
from triton import language as tl

from fukami.quantization import kernel_compilation

BLOCK_OUTPUTS = tl.constexpr(32)  # outputs or channels per warp: half a word
BLOCK_PIXELS = 32  # output pixels per block of four warps
SMALL_BLOCK_PIXELS = 8  # the same if larger blocks would leave multiprocessors idle
MIN_BUSY_BLOCKS = 512  # enough blocks to fill a GPU: about four for each of the 132 multiprocessors of an H100
SIGN_BLOCK_PIXELS = 64  # pixels per block of four warps in sign packing
POOL_BLOCK_WORDS = 256  # output words per block of four warps in pooling
LAUNCH_OPTIONS = {"enable_fp_fusion": False}  # nothing to fuse; without the option Triton 3.9 warns


def prepack_weights(weight: Tensor) -> Tensor:
    """Reorder weights ``(outputs, kh, kw, words)`` for :func:`convolve`: ``(kh, kw, words, outputs)``, padded."""
    padded = F.pad(weight, (0, 0, 0, 0, 0, 0, 0, -len(weight) % BLOCK_OUTPUTS.value))
    return padded.permute(1, 2, 3, 0).contiguous()


def pack_signs(x: Tensor, threshold: Tensor, direction: Tensor) -> Tensor:
    """Pack signs of ``x`` ``(N, C, H, W)`` to words ``(N, H, W, words)``: 1 where ``x * direction >= threshold``."""
    count, channels, height, width = x.shape
    words = torch.empty(count, height, width, -(-channels // 64), dtype=torch.int64, device=x.device)
    pixels = x.flatten(2)
    blocks = triton.cdiv(height * width, SIGN_BLOCK_PIXELS)
    with torch.cuda.device_of(x), kernel_compilation.log_compile_time(_pack_signs_kernel, "GPU"):
        _pack_signs_kernel[count * blocks, 2 * words.shape[3]](
            pixels, threshold, direction, words.view(torch.int32), channels, height * width, *pixels.stride(),
            SIGN_BLOCK_PIXELS, **LAUNCH_OPTIONS,
        )  # fmt: skip
    return words


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
    kh, kw, words, filled = prepacked.shape
    blocks = filled // BLOCK_OUTPUTS.value
    pixels = len(x) * offset_index.numel()
    block_pixels = BLOCK_PIXELS if triton.cdiv(pixels, BLOCK_PIXELS) * blocks >= MIN_BUSY_BLOCKS else SMALL_BLOCK_PIXELS
    if num_terms is None:
        create = torch.zeros if blocks % 2 else torch.empty  # half of the last word may be unused
        result = create(len(x), *offset_index.shape, -(-outputs // 64), dtype=torch.int64, device=x.device)
    else:
        result = torch.empty(len(x), *offset_index.shape, outputs, dtype=torch.float32, device=x.device)
    with (
        torch.cuda.device_of(x),
        kernel_compilation.log_compile_time((_convolve_kernel, block_pixels, num_terms is None), "GPU"),
    ):
        _convolve_kernel[(triton.cdiv(pixels, block_pixels) * blocks,)](
            x.contiguous(), prepacked, count_offsets, offset_index, num_terms,
            result.view(torch.int32) if num_terms is None else result, *x.shape[1:3], words, *offset_index.shape,
            pixels, kh, kw, outputs, blocks, count_offsets.shape[1], stride, padding, block_pixels, **LAUNCH_OPTIONS,
        )  # fmt: skip
    return result if num_terms is None else result.permute(0, 3, 1, 2)


def max_pool(x: Tensor, min_mask: Tensor, size: int, stride: int) -> Tensor:
    """Max-pool words ``(N, H, W, words)``; the bits set in ``min_mask`` ``(words,)`` are min-pooled."""
    count, height, width, words = x.shape
    rows, columns = (height - size) // stride + 1, (width - size) // stride + 1
    result = torch.empty(count, rows, columns, words, dtype=torch.int64, device=x.device)
    with torch.cuda.device_of(x), kernel_compilation.log_compile_time(_max_pool_kernel, "GPU"):
        _max_pool_kernel[(triton.cdiv(result.numel(), POOL_BLOCK_WORDS),)](
            x.contiguous(), min_mask, result, height, width, words, rows, columns, result.numel(), size, stride,
            POOL_BLOCK_WORDS, **LAUNCH_OPTIONS,
        )  # fmt: skip
    return result


@triton.jit
def _popcount(x):  # pragma: no cover
    """Count the 1 bits of each int32, by the formula of ``binary_reference.popcount``, which compiles to ``popc``."""
    x = x.to(tl.uint32, bitcast=True)
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    return ((x * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def _pack_half_word(bits):  # pragma: no cover
    """Pack ``bits`` ``(pixels, BLOCK_OUTPUTS)`` to half a word for each pixel."""
    return tl.sum(bits.to(tl.int32) << tl.arange(0, BLOCK_OUTPUTS)[None, :], axis=1)


@triton.jit
def _pack_signs_kernel(
    x, edge, direction, words, channels, pixels, image_step, channel_step, pixel_step, SIGNS: tl.constexpr
):  # pragma: no cover  # fmt: skip
    blocks = tl.cdiv(pixels, SIGNS)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    pixel = tl.program_id(0) % blocks * SIGNS + tl.arange(0, SIGNS)
    channel = tl.program_id(1) * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
    pixel_mask, channel_mask = pixel < pixels, channel < channels
    mask = pixel_mask[:, None] & channel_mask[None, :]
    source = x + image * image_step + pixel[:, None] * pixel_step + channel[None, :] * channel_step
    value = tl.load(source, mask=mask, other=0).to(tl.float32)
    signed_value = value * tl.load(direction + channel, mask=channel_mask, other=0)[None, :]
    reached = signed_value >= tl.load(edge + channel, mask=channel_mask, other=0)[None, :]
    target = words + (image * pixels + pixel) * tl.num_programs(1) + tl.program_id(1)
    tl.store(target, _pack_half_word(reached & mask), mask=pixel_mask)


@triton.jit(
    do_not_specialize=[
        "height", "width", "words", "rows", "columns", "pixels", "kh", "kw", "outputs", "blocks", "offset_stride",
        "stride", "padding",
    ]
)  # fmt: skip
def _convolve_kernel(
    x, weight, count_offsets, offset_index, num_terms, out, height, width, words, rows, columns, pixels, kh, kw,
    outputs, blocks, offset_stride, stride, padding, PIXELS: tl.constexpr,
):  # pragma: no cover  # fmt: skip
    pixel = tl.program_id(0) // blocks * PIXELS + tl.arange(0, PIXELS)
    block = tl.program_id(0) % blocks
    output = block * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
    pixel_mask, output_mask = pixel < pixels, output < outputs
    position = pixel % (rows * columns)
    image = (pixel // (rows * columns)).to(tl.int64)
    top, left = position // columns * stride - padding, position % columns * stride - padding
    # differing bits: parity of the count at each of the 32 bit positions, and number of pairs over all positions
    odd, pairs = tl.zeros((PIXELS, BLOCK_OUTPUTS), tl.int32), tl.zeros((PIXELS, BLOCK_OUTPUTS), tl.int32)
    weights = weight + output
    corner = x + ((image * height + top) * width + left) * words
    for i in range(kh):
        row_mask = pixel_mask & (top + i >= 0) & (top + i < height)
        for j in range(kw):
            position_mask = row_mask & (left + j >= 0) & (left + j < width)
            source = corner + (i * width + j) * words
            for k in tl.range(words, loop_unroll_factor=2):
                bits = tl.load(source + k, mask=position_mask, other=0)
                differing = bits[:, None] ^ tl.load(weights)[None, :]
                low, high = differing.to(tl.int32), (differing >> 32).to(tl.int32)
                pairs += _popcount((odd & low) | (odd & high) | (low & high))
                odd ^= low ^ high
                weights += blocks * BLOCK_OUTPUTS
    indices = tl.load(offset_index + position)
    mask = pixel_mask[:, None] & output_mask[None, :]
    offset = tl.load(
        count_offsets + indices[:, None] * offset_stride + output[None, :], mask=output_mask[None, :], other=1
    )
    total = offset + 2 * pairs + _popcount(odd)
    if num_terms is None:
        halves = (outputs + 63) // 64 * 2
        tl.store(out + pixel.to(tl.int64) * halves + block, _pack_half_word((total <= 0) & mask), mask=pixel_mask)
    else:
        sums = (tl.load(num_terms + indices)[:, None] - 2 * total).to(tl.float32)
        tl.store(out + pixel.to(tl.int64)[:, None] * outputs + output[None, :], sums, mask=mask)


@triton.jit(do_not_specialize=["height", "width", "words", "rows", "columns", "count", "size", "stride"])
def _max_pool_kernel(
    x, minimum, out, height, width, words, rows, columns, count, size, stride, WORDS: tl.constexpr
):  # pragma: no cover  # fmt: skip
    index = tl.program_id(0).to(tl.int64) * WORDS + tl.arange(0, WORDS)
    mask = index < count
    word, position = index % words, index // words
    column, line = position % columns, position // columns
    row, image = line % rows, line // rows
    corner = x + ((image * height + row * stride) * width + column * stride) * words + word
    inverted = tl.load(minimum + word)
    bits = tl.zeros((WORDS,), tl.int64)
    for i in range(size):
        for j in range(size):
            bits |= tl.load(corner + (i * width + j) * words, mask=mask, other=0) ^ inverted
    tl.store(out + index, bits ^ inverted, mask=mask)

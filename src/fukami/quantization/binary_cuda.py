"""The kernels of the 1-bit layers for NVIDIA GPUs: Triton compiles them when they are first called.

A word holds the bits of 64 channels, 1 for +1. The 32 lanes of a warp take the weights of 32 outputs, which lie side by
side, and each lane the same few pixels, so that a word that is read serves many counts, and half a word of the result
is one reduction over the warp. Borders are masked, not copied.

A multiprocessor counts 16 words of 32 bits in a cycle, and a quarter of what it can do besides. So the two halves of a
word are first added, bit by bit, to what is left over: one count for each word then counts the pairs (Harley and Seal's
way; Warren, Hacker's Delight, section 5-1). The tensor cores, which Triton cannot ask for exclusive or, stay idle.
"""

import torch
import triton
from torch import Tensor
from torch.nn import functional as F
from triton import language as tl

from fukami.quantization import kernel_compilation

BLOCK_OUTPUTS = tl.constexpr(32)  # outputs, or channels, that a warp takes: half a word
BLOCK_PIXELS = 32  # of the result that a block of four warps takes
SMALL_BLOCK_PIXELS = 8  # the same where blocks of PIXELS would leave multiprocessors idle
MIN_BUSY_BLOCKS = 512  # blocks from which on they are busy: four for each of an H100's 132
SIGN_BLOCK_PIXELS = 64  # pixels of which a block of four warps takes the signs
POOL_BLOCK_WORDS = 256  # of the result of a pooling that a block of four warps takes
LAUNCH_OPTIONS = {"enable_fp_fusion": False}  # there is nothing to fuse; Triton 3.9 warns where it is not told


def prepack_weights(weight: Tensor) -> Tensor:
    """Weights ``(outputs, kh, kw, words)`` as :func:`convolve` reads them: ``(kh, kw, words, outputs)``, filled up."""
    padded = F.pad(weight, (0, 0, 0, 0, 0, 0, 0, -len(weight) % BLOCK_OUTPUTS.value))
    return padded.permute(1, 2, 3, 0).contiguous()


def pack_signs(x: Tensor, threshold: Tensor, direction: Tensor) -> Tensor:
    """Words ``(N, H, W, words)`` of ``x`` ``(N, C, H, W)``: 1 where ``x * direction >= edge``, both ``(C,)``."""
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
    """Count, for each output and pixel, the bits that differ, as ``convolve`` of ``binary_reference`` does."""
    kh, kw, words, filled = prepacked.shape
    blocks = filled // BLOCK_OUTPUTS.value
    pixels = len(x) * offset_index.numel()
    share = BLOCK_PIXELS if triton.cdiv(pixels, BLOCK_PIXELS) * blocks >= MIN_BUSY_BLOCKS else SMALL_BLOCK_PIXELS
    if num_terms is None:
        make = torch.zeros if blocks % 2 else torch.empty  # half of the last word may be nobody's
        result = make(len(x), *offset_index.shape, -(-outputs // 64), dtype=torch.int64, device=x.device)
    else:
        result = torch.empty(len(x), *offset_index.shape, outputs, dtype=torch.float32, device=x.device)
    with (
        torch.cuda.device_of(x),
        kernel_compilation.log_compile_time((_convolve_kernel, share, num_terms is None), "GPU"),
    ):
        _convolve_kernel[(triton.cdiv(pixels, share) * blocks,)](
            x.contiguous(), prepacked, count_offsets, offset_index, num_terms,
            result.view(torch.int32) if num_terms is None else result, *x.shape[1:3], words, *offset_index.shape,
            pixels, kh, kw, outputs, blocks, count_offsets.shape[1], stride, padding, share, **LAUNCH_OPTIONS,
        )  # fmt: skip
    return result if num_terms is None else result.permute(0, 3, 1, 2)


def max_pool(x: Tensor, min_mask: Tensor, size: int, stride: int) -> Tensor:
    """Max pooling of words ``(N, H, W, words)``; of the bits set in ``min_mask`` ``(words,)`` the smallest is taken."""
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
    """How many bits of each int32 are 1: the formula of ``words.popcount``, which the compiler knows for ``popc``."""
    x = x.to(tl.uint32, bitcast=True)
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    return ((x * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def _pack_half_word(bits):  # pragma: no cover
    """Half a word for each pixel of ``bits`` ``(pixels, BLOCK)``."""
    return tl.sum(bits.to(tl.int32) << tl.arange(0, BLOCK_OUTPUTS)[None, :], axis=1)


@triton.jit
def _pack_signs_kernel(
    x, edge, direction, words, channels, pixels, image_step, channel_step, pixel_step, SIGNS: tl.constexpr
):  # pragma: no cover  # fmt: skip
    blocks = tl.cdiv(pixels, SIGNS)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    pixel = tl.program_id(0) % blocks * SIGNS + tl.arange(0, SIGNS)
    channel = tl.program_id(1) * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
    here, known = pixel < pixels, channel < channels
    both = here[:, None] & known[None, :]
    source = x + image * image_step + pixel[:, None] * pixel_step + channel[None, :] * channel_step
    value = tl.load(source, mask=both, other=0).to(tl.float32)
    turned = value * tl.load(direction + channel, mask=known, other=0)[None, :]
    reached = turned >= tl.load(edge + channel, mask=known, other=0)[None, :]
    target = words + (image * pixels + pixel) * tl.num_programs(1) + tl.program_id(1)
    tl.store(target, _pack_half_word(reached & both), mask=here)


@triton.jit(
    do_not_specialize=[
        "height", "width", "words", "rows", "columns", "pixels", "kh", "kw", "outputs", "blocks", "starts", "stride",
        "padding",
    ]
)  # fmt: skip
def _convolve_kernel(
    x, weight, start, kind, valid, out, height, width, words, rows, columns, pixels, kh, kw, outputs, blocks, starts,
    stride, padding, PIXELS: tl.constexpr,
):  # pragma: no cover  # fmt: skip
    pixel = tl.program_id(0) // blocks * PIXELS + tl.arange(0, PIXELS)
    block = tl.program_id(0) % blocks
    output = block * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
    here, known = pixel < pixels, output < outputs
    place = pixel % (rows * columns)
    image = (pixel // (rows * columns)).to(tl.int64)
    top, left = place // columns * stride - padding, place % columns * stride - padding
    # of the bits that differ at each of 32 places: whether their number is odd; and of all: how many pairs there are
    odd, pairs = tl.zeros((PIXELS, BLOCK_OUTPUTS), tl.int32), tl.zeros((PIXELS, BLOCK_OUTPUTS), tl.int32)
    weights = weight + output
    corner = x + ((image * height + top) * width + left) * words
    for i in range(kh):
        above = here & (top + i >= 0) & (top + i < height)
        for j in range(kw):
            inside = above & (left + j >= 0) & (left + j < width)
            source = corner + (i * width + j) * words
            for k in tl.range(words, loop_unroll_factor=2):
                under = tl.load(source + k, mask=inside, other=0)
                differ = under[:, None] ^ tl.load(weights)[None, :]
                low, high = differ.to(tl.int32), (differ >> 32).to(tl.int32)
                pairs += _popcount((odd & low) | (odd & high) | (low & high))
                odd ^= low ^ high
                weights += blocks * BLOCK_OUTPUTS
    kinds = tl.load(kind + place)
    both = here[:, None] & known[None, :]
    begin = tl.load(start + kinds[:, None] * starts + output[None, :], mask=known[None, :], other=1)
    total = begin + 2 * pairs + _popcount(odd)
    if valid is None:
        halves = (outputs + 63) // 64 * 2
        tl.store(out + pixel.to(tl.int64) * halves + block, _pack_half_word((total <= 0) & both), mask=here)
    else:
        sums = (tl.load(valid + kinds)[:, None] - 2 * total).to(tl.float32)
        tl.store(out + pixel.to(tl.int64)[:, None] * outputs + output[None, :], sums, mask=both)


@triton.jit(do_not_specialize=["height", "width", "words", "rows", "columns", "count", "size", "stride"])
def _max_pool_kernel(
    x, minimum, out, height, width, words, rows, columns, count, size, stride, WORDS: tl.constexpr
):  # pragma: no cover  # fmt: skip
    index = tl.program_id(0).to(tl.int64) * WORDS + tl.arange(0, WORDS)
    here = index < count
    word, place = index % words, index // words
    column, line = place % columns, place // columns
    row, image = line % rows, line // rows
    corner = x + ((image * height + row * stride) * width + column * stride) * words + word
    least = tl.load(minimum + word)
    found = tl.zeros((WORDS,), tl.int64)
    for i in range(size):
        for j in range(size):
            found |= tl.load(corner + (i * width + j) * words, mask=here, other=0) ^ least
    tl.store(out + index, found ^ least, mask=here)

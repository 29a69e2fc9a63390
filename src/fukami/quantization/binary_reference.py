"""Reference kernels of the 1-bit layers in plain torch, for every device.

:mod:`fukami.quantization.binary_cpu` and :mod:`fukami.quantization.binary_cuda` have the same functions and are tested
against these. A word contains the bits of 64 channels, 1 for +1; activations are ``(N, H, W, words)`` int64.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_CHUNK_WORDS = 2**22  # words compared at a time


def prepack_weights(weight: Tensor) -> Tensor:
    """Return weights ``(outputs, kh, kw, words)`` for :func:`convolve`, here unchanged."""
    return weight


def pack_signs(x: Tensor, threshold: Tensor, direction: Tensor) -> Tensor:
    """Pack signs of ``x`` ``(N, C, H, W)`` to words ``(N, H, W, words)``: 1 where ``x * direction >= threshold``.

    ``threshold`` and ``direction`` are ``(C,)``.
    """
    return pack_words(x.float().permute(0, 2, 3, 1) * direction >= threshold)


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
    """Binary convolution: count the bits in which weights and input differ, for each output and pixel.

    Args:
        x: words ``(N, H, W, words)``, zero-padded.
        prepacked: weights from :func:`prepack_weights`.
        count_offsets: initial values of the counts, ``(kinds, outputs or more)`` int64.
        offset_index: row of ``count_offsets`` for each output pixel, ``(H', W')`` int64.
        num_terms: None: return words ``(N, H', W', words')`` with a 1 where the count is at most 0. Otherwise the
            number of products in a sum, ``(kinds,)`` int64: return ``num_terms - 2 * count``, float32
            ``(N, outputs, H', W')``.
        outputs, stride, padding: parameters of the layer.
    """
    _, kh, kw, _ = prepacked.shape
    padded = F.pad(x, (0, 0, padding, padding, padding, padding))
    windows = padded.unfold(1, kh, stride).unfold(2, kw, stride).permute(0, 1, 2, 4, 5, 3).flatten(3)
    weights = prepacked.flatten(1)
    chunk_size = max(1, MAX_CHUNK_WORDS // windows.numel())
    # (N, H', W', outputs)
    counts = torch.cat(
        [popcount(windows.unsqueeze(3) ^ chunk).sum(4) for chunk in torch.split(weights, chunk_size)], dim=3
    )
    counts += count_offsets[offset_index, :outputs]
    if num_terms is None:
        return pack_words(counts <= 0)
    return (num_terms[offset_index].unsqueeze(2) - 2 * counts).float().permute(0, 3, 1, 2)


def max_pool(x: Tensor, min_mask: Tensor, size: int, stride: int) -> Tensor:
    """Max-pool words ``(N, H, W, words)``; the bits set in ``min_mask`` ``(words,)`` are min-pooled."""
    windows = (x ^ min_mask).unfold(1, size, stride).unfold(2, size, stride).flatten(4)
    result = windows[..., 0]
    for other in windows.unbind(-1)[1:]:
        result = result | other
    return result ^ min_mask


def pack_words(bits: Tensor) -> Tensor:
    """Pack bools ``(..., C)`` to words ``(..., words)`` int64, zero-padded."""
    num_padding = -bits.shape[-1] % 64
    return pack_bytes(F.pad(bits, (0, num_padding))).view(torch.int64)


def unpack_words(words: Tensor, count: int) -> Tensor:
    """Unpack the first ``count`` bits of words ``(..., words)`` to bools ``(..., count)``."""
    return unpack_bytes(words.contiguous().view(torch.uint8), count)


def pack_bytes(bits: Tensor) -> Tensor:
    """Pack bools ``(..., C)`` to bytes ``(..., ceil(C / 8))`` uint8, least significant bit first."""
    padded = F.pad(bits, (0, -bits.shape[-1] % 8)).to(torch.uint8)
    shifts = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (padded.view(*padded.shape[:-1], -1, 8) << shifts).sum(-1, dtype=torch.uint8)


def unpack_bytes(packed: Tensor, count: int) -> Tensor:
    """Unpack the first ``count`` bits of bytes ``(..., bytes)`` to bools ``(..., count)``."""
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return (packed.unsqueeze(-1) >> shifts & 1).flatten(-2)[..., :count].bool()


def popcount(x: Tensor) -> Tensor:
    """Count the 1 bits of each int64 (Warren, Hacker's Delight, section 5-1)."""
    x = x - (x >> 1 & 0x5555555555555555)
    x = (x & 0x3333333333333333) + (x >> 2 & 0x3333333333333333)
    x = x + (x >> 4) & 0x0F0F0F0F0F0F0F0F
    return x * 0x0101010101010101 >> 56

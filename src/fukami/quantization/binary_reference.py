"""The kernels of the 1-bit layers in plain torch: on every device, and what the fast ones are measured against.

:mod:`fukami.quantization.binary_cpu` and :mod:`fukami.quantization.binary_cuda` have the same functions. A word holds
the bits of 64 channels, 1 for +1; words lie behind each other as the pixels do: ``(N, H, W, words)`` int64.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_CHUNK_WORDS = 2**22  # words that are compared at a time


def prepack_weights(weight: Tensor) -> Tensor:
    """Weights ``(outputs, kh, kw, words)`` as :func:`convolve` reads them: as they are."""
    return weight


def pack_signs(x: Tensor, threshold: Tensor, direction: Tensor) -> Tensor:
    """Words ``(N, H, W, words)`` of ``x`` ``(N, C, H, W)``: 1 where ``x * direction >= edge``, both ``(C,)``."""
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
    """Count, for each output and pixel, the bits in which the weights differ from what lies under them.

    Args:
        x: words ``(N, H, W, words)``; beyond its borders lie zeros.
        prepacked: from :func:`prepack_weights`.
        count_offsets: what the counts begin with, ``(kinds, outputs or more)`` int64.
        offset_index: of each pixel of the result, ``(H', W')`` int64: its row of ``count_offsets``.
        num_terms: None: the result is words ``(N, H', W', words')`` with a 1 where the count is not above 0. Otherwise
            what twice the count is subtracted from, ``(kinds,)`` int64, which gives float32 ``(N, outputs, H', W')``.
        outputs, stride, padding: of the layer.
    """
    _, kh, kw, _ = prepacked.shape
    bordered = F.pad(x, (0, 0, padding, padding, padding, padding))
    under = bordered.unfold(1, kh, stride).unfold(2, kw, stride).permute(0, 1, 2, 4, 5, 3).flatten(3)
    weights = prepacked.flatten(1)
    at_once = max(1, MAX_CHUNK_WORDS // under.numel())
    counts = torch.cat(
        [popcount(under.unsqueeze(3) ^ part).sum(4) for part in torch.split(weights, at_once)], dim=3
    )  # (N, H', W', outputs)
    counts += count_offsets[offset_index, :outputs]
    if num_terms is None:
        return pack_words(counts <= 0)
    return (num_terms[offset_index].unsqueeze(2) - 2 * counts).float().permute(0, 3, 1, 2)


def max_pool(x: Tensor, min_mask: Tensor, size: int, stride: int) -> Tensor:
    """Max pooling of words ``(N, H, W, words)``; of the bits set in ``min_mask`` ``(words,)`` the smallest is taken."""
    windows = (x ^ min_mask).unfold(1, size, stride).unfold(2, size, stride).flatten(4)
    found = windows[..., 0]
    for other in windows.unbind(-1)[1:]:
        found = found | other
    return found ^ min_mask


def pack_words(bits: Tensor) -> Tensor:
    """Bools ``(..., C)`` as words ``(..., words)`` int64, with zeros behind the last."""
    missing = -bits.shape[-1] % 64
    return pack_bytes(F.pad(bits, (0, missing))).view(torch.int64)


def unpack_words(words: Tensor, count: int) -> Tensor:
    """The first ``count`` bits of words ``(..., words)``, ``(..., count)`` bool."""
    return unpack_bytes(words.contiguous().view(torch.uint8), count)


def pack_bytes(bits: Tensor) -> Tensor:
    """Bools ``(..., C)`` as bytes ``(..., ceil(C / 8))`` uint8, the first bit the lowest."""
    padded = F.pad(bits, (0, -bits.shape[-1] % 8)).to(torch.uint8)
    places = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (padded.view(*padded.shape[:-1], -1, 8) << places).sum(-1, dtype=torch.uint8)


def unpack_bytes(packed: Tensor, count: int) -> Tensor:
    """The first ``count`` bits of bytes ``(..., bytes)``, ``(..., count)`` bool."""
    places = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return (packed.unsqueeze(-1) >> places & 1).flatten(-2)[..., :count].bool()


def popcount(x: Tensor) -> Tensor:
    """How many bits of each int64 are 1 (Warren, Hacker's Delight, section 5-1)."""
    x = x - (x >> 1 & 0x5555555555555555)
    x = (x & 0x3333333333333333) + (x >> 2 & 0x3333333333333333)
    x = x + (x >> 4) & 0x0F0F0F0F0F0F0F0F
    return x * 0x0101010101010101 >> 56

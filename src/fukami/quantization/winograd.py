"""3×3 convolutions for inference on a CPU by minimal filtering, after Winograd.

Lavin and Gray, "Fast algorithms for convolutional neural networks", CVPR 2016, sections 4.1 and 4.3: F(4×4, 3×3)
computes tiles of 4×4 outputs from tiles of 6×6 inputs with 36 multiplications per channel instead of 144. With the
matrices B, G and A of the section, an output tile is

    Y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A

for a filter g and an input tile d. The products over the channels of many tiles are 36 matrix multiplications. Results
differ from those of a direct convolution by the rounding of float32, about 1e-5 of the largest value.
"""

import threading
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fukami.errors import require_extra

with require_extra("self-play", "the fast 3×3 convolution"):
    from numba import njit

TILE, PATCH = 4, 6  # rows and columns of the outputs and the inputs of a tile
GROUP_TILES = 64  # tiles whose transforms are multiplied at once, so that they stay in the cache
MIN_TILES = 32  # with fewer, the direct convolution is faster
MIN_CHANNELS = 16
FILTER_TRANSFORM = np.array(  # G
    [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6],
     [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]]
)  # fmt: skip
TWO, FOUR, FIVE, EIGHT = np.float32(2), np.float32(4), np.float32(5), np.float32(8)  # int times float32 is float64
FLAGS = {"contract", "reassoc", "nsz"}  # of fast arithmetic; without nnan and ninf, so that NaN is not optimized away
Array = npt.NDArray[np.float32]
Transform = Callable[..., None]


def is_faster_than_direct() -> bool:
    """Return whether the convolution is faster here than torch's, which is 1.5 times as fast with AVX-512."""
    return torch.backends.cpu.get_cpu_capability() != "AVX512"


def replace_convolutions(network: nn.Module) -> None:
    """Replace the 3×3 convolutions with stride 1 of a network in float32 on the CPU; the network is for inference."""
    for name, module in list(network.named_modules()):
        if type(module) is nn.Conv2d and can_replace(module):
            network.set_submodule(name, WinogradConv2d(module))


def can_replace(conv: nn.Conv2d) -> bool:
    """Return whether :class:`WinogradConv2d` computes this convolution."""
    return (
        (conv.kernel_size, conv.stride, conv.padding, conv.dilation) == ((3, 3), (1, 1), (1, 1), (1, 1))
        and conv.groups == 1
        and conv.padding_mode == "zeros"
        and min(conv.in_channels, conv.out_channels) >= MIN_CHANNELS
        and (conv.weight.dtype, conv.weight.device.type) == (torch.float32, "cpu")
    )


class WinogradConv2d(nn.Module):
    """3×3 convolution with stride 1 and padding 1, for inference in float32 on the CPU.

    It is for one thread, such as those that search groups of games. With more threads, and for few tiles, the direct
    convolution is computed, which is faster then.

    Args:
        conv: the convolution; later changes of its weights have no effect.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        filters = FILTER_TRANSFORM @ conv.weight.detach().double().numpy() @ FILTER_TRANSFORM.T  # (K, C, 6, 6)
        self.matrices = torch.from_numpy(filters.transpose(2, 3, 1, 0).reshape(-1, *filters.shape[1::-1])).float()
        self.bias = np.zeros(conv.out_channels, np.float32)
        if conv.bias is not None:
            self.bias += conv.bias.detach().numpy()
        self.transform_inputs = compile_input_transform(conv.in_channels)
        self.transform_outputs = compile_output_transform(conv.out_channels)

    def forward(self, inputs: Tensor) -> Tensor:
        """Convolve inputs ``(N, C, H, W)``; the outputs ``(N, K, H, W)`` are in the channels-last format."""
        if not self.is_supported(inputs):
            return F.conv2d(inputs, self.conv.weight, self.conv.bias, padding=1)
        count, channels, height, width = inputs.shape
        pixels = inputs.permute(0, 2, 3, 1).contiguous().view(-1).numpy()
        outputs = torch.empty(count, height, width, len(self.bias))
        output_pixels = outputs.view(-1).numpy()
        memory = get_memory(channels, len(self.bias))
        transformed = torch.from_numpy(memory.inputs).view(GROUP_TILES, -1, channels).transpose(0, 1)
        products = torch.from_numpy(memory.products).view(-1, GROUP_TILES, len(self.bias))
        num_tiles = count_tiles(inputs)
        for first in range(0, num_tiles, GROUP_TILES):
            size = min(GROUP_TILES, num_tiles - first)
            self.transform_inputs(pixels, height, width, first, size, memory.inputs, memory.patch, memory.rows)
            torch.bmm(transformed[:, :size], self.matrices, out=products[:, :size])
            self.transform_outputs(
                memory.products, height, width, first, size, self.bias, output_pixels, memory.columns, memory.line
            )
        return outputs.permute(0, 3, 1, 2)

    def is_supported(self, inputs: Tensor) -> bool:
        """Return whether the inputs are valid, and this convolution is faster than the direct one for them."""
        is_valid = inputs.ndim == 4 and inputs.shape[1] == self.conv.in_channels and inputs.dtype == torch.float32
        return is_valid and torch.get_num_threads() == 1 and count_tiles(inputs) >= MIN_TILES


def count_tiles(inputs: Tensor) -> int:
    """Count the tiles of inputs ``(N, C, H, W)``."""
    count, _, height, width = inputs.shape
    return count * -(-height // TILE) * -(-width // TILE)


class Memory(NamedTuple):
    """Buffers of a thread for ``T`` tiles, C input channels and K output channels, each of one dimension.

    Attributes:
        inputs: transformed inputs ``(T, 36, C)``.
        products: products ``(36, T, K)``.
        patch, rows: input tile ``(6, 6, C)``, and after the transform of its columns.
        columns, line: output tile ``(4, 6, K)`` after the transform of its columns, and one of its rows ``(4, K)``.
    """

    inputs: Array
    products: Array
    patch: Array
    rows: Array
    columns: Array
    line: Array


class Memories(threading.local):
    """Buffers of this thread by the numbers of channels."""

    def __init__(self) -> None:
        self.by_channels: dict[tuple[int, int], Memory] = {}


_memories = Memories()


def get_memory(in_channels: int, out_channels: int) -> Memory:
    """Return the buffers of this thread."""
    memories, key = _memories.by_channels, (in_channels, out_channels)
    if key not in memories:
        square = PATCH * PATCH
        sizes_in, sizes_out = (GROUP_TILES * square, square, square), (GROUP_TILES * square, TILE * PATCH, TILE)
        inputs, patch, rows = (np.empty(size * in_channels, np.float32) for size in sizes_in)
        products, columns, line = (np.empty(size * out_channels, np.float32) for size in sizes_out)
        memories[key] = Memory(inputs, products, patch, rows, columns, line)
    return memories[key]


@lru_cache
def compile_input_transform(channels: int) -> Transform:
    """Compile the transform Bᵀ d B of input tiles.

    The number of channels is a constant of the compiled code: only then the compiler knows that rows do not overlap,
    and uses vector instructions. Arrays have one dimension for the same reason.
    """
    size = PATCH * channels  # floats of a row of a tile

    def transform_inputs(
        pixels: Array, height: int, width: int, first: int, count: int, inputs: Array, patch: Array, rows: Array
    ) -> None:
        tile_columns = (width + TILE - 1) // TILE
        tiles = (height + TILE - 1) // TILE * tile_columns
        for index in range(count):
            image, tile = divmod(first + index, tiles)
            top, left = tile // tile_columns * TILE - 1, tile % tile_columns * TILE - 1
            start, stop = max(0, -left), min(PATCH, width - left)
            for row in range(PATCH):
                target = patch[row * size : row * size + size]
                if 0 <= top + row < height:
                    offset = (image * height + top + row) * width + left
                    source = pixels[(offset + start) * channels : (offset + stop) * channels]
                    inside = target[start * channels :]
                    for c in range(start * channels):
                        target[c] = 0
                    for c in range(len(source)):
                        inside[c] = source[c]
                    for c in range(stop * channels, size):
                        target[c] = 0
                else:
                    for c in range(size):
                        target[c] = 0
            for c in range(size):
                values = transform_patch(patch[c], patch[c + size], patch[c + 2 * size], patch[c + 3 * size],
                                         patch[c + 4 * size], patch[c + 5 * size])  # fmt: skip
                rows[c], rows[c + size], rows[c + 2 * size] = values[0], values[1], values[2]
                rows[c + 3 * size], rows[c + 4 * size], rows[c + 5 * size] = values[3], values[4], values[5]
            for row in range(PATCH):
                source = rows[row * size : row * size + size]
                target = inputs[(PATCH * index + row) * size : (PATCH * index + row + 1) * size]
                for c in range(channels):
                    values = transform_patch(source[c], source[c + channels], source[c + 2 * channels],
                                             source[c + 3 * channels], source[c + 4 * channels],
                                             source[c + 5 * channels])  # fmt: skip
                    target[c], target[c + channels], target[c + 2 * channels] = values[0], values[1], values[2]
                    target[c + 3 * channels], target[c + 4 * channels] = values[3], values[4]
                    target[c + 5 * channels] = values[5]

    return compile_transform(transform_inputs, channels)


@lru_cache
def compile_output_transform(channels: int) -> Transform:
    """Compile the transform Aᵀ m A of the products of tiles, which also adds the bias."""
    size = PATCH * channels
    stride = PATCH * GROUP_TILES * channels  # floats from a row of the products to the next

    def transform_outputs(
        products: Array, height: int, width: int, first: int, count: int, bias: Array, pixels: Array, columns: Array,
        line: Array,
    ) -> None:  # fmt: skip
        tile_columns = (width + TILE - 1) // TILE
        tiles = (height + TILE - 1) // TILE * tile_columns
        for index in range(count):
            image, tile = divmod(first + index, tiles)
            top, left = tile // tile_columns * TILE, tile % tile_columns * TILE
            for column in range(PATCH):
                offset = (column * GROUP_TILES + index) * channels
                source = products[offset : offset + 5 * stride + channels]
                target = columns[column * channels : column * channels + 3 * size + channels]
                for c in range(channels):
                    values = transform_products(source[c], source[c + stride], source[c + 2 * stride],
                                                source[c + 3 * stride], source[c + 4 * stride],
                                                source[c + 5 * stride])  # fmt: skip
                    target[c], target[c + size] = values[0], values[1]
                    target[c + 2 * size], target[c + 3 * size] = values[2], values[3]
            for row in range(min(TILE, height - top)):
                source = columns[row * size : row * size + size]
                for c in range(channels):
                    values = transform_products(source[c], source[c + channels], source[c + 2 * channels],
                                                source[c + 3 * channels], source[c + 4 * channels],
                                                source[c + 5 * channels])  # fmt: skip
                    line[c], line[c + channels] = values[0] + bias[c], values[1] + bias[c]
                    line[c + 2 * channels], line[c + 3 * channels] = values[2] + bias[c], values[3] + bias[c]
                offset = (image * height + top + row) * width + left
                outputs = pixels[offset * channels : (offset + min(TILE, width - left)) * channels]
                for c in range(len(outputs)):
                    outputs[c] = line[c]

    return compile_transform(transform_outputs, channels)


def compile_transform(transform: Transform, channels: int) -> Transform:
    """Compile a transform for a number of channels."""
    transform.__qualname__ += f"_{channels}"  # numba's cache would not distinguish closures of the same name
    compiled: Transform = njit(cache=True, nogil=True, error_model="numpy", fastmath=FLAGS)(transform)
    return compiled


@njit(inline="always")
def transform_patch(d0, d1, d2, d3, d4, d5):
    """Multiply six values with Bᵀ."""
    even, odd = d4 - FOUR * d2, d3 - FOUR * d1
    even2, odd2 = d4 - d2, TWO * (d3 - d1)
    return (FOUR * d0 - FIVE * d2 + d4, even + odd, even - odd, even2 + odd2, even2 - odd2,
            FOUR * d1 - FIVE * d3 + d5)  # fmt: skip


@njit(inline="always")
def transform_products(m0, m1, m2, m3, m4, m5):
    """Multiply six values with Aᵀ."""
    even, odd, even2, odd2 = m1 + m2, m1 - m2, m3 + m4, m3 - m4
    return m0 + even + even2, odd + TWO * odd2, even + FOUR * even2, odd + EIGHT * odd2 + m5

"""Inference of binarized networks with packed bits, exclusive or and population count.

The product of two signs is +1 where their bits agree: a sum of K products is ``K - 2 * popcount(a ^ b)``. The
operations between a binarized layer and the next sign (scale, batch normalization, threshold) are a monotone function
of this integer. They are therefore replaced by one integer threshold for each output: the smallest sum with sign +1. A
binary search evaluates the layers themselves, so that the packed network equals the simulated one bit for bit.
"""

import copy
import functools
import importlib
import logging
from collections.abc import Callable, Iterator
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fukami.errors import Error, get_install_command
from fukami.layers.binary import BinaryConv2d, BinaryLinear, Sign, compute_scaling_factors
from fukami.quantization import binary_reference

BinaryLayer = BinaryConv2d | BinaryLinear
FLOAT_INFINITY_BITS = 0x7F800000  # bit pattern of float32 infinity as an integer
OUTPUT_ALIGNMENT = 16  # the tables of the kernels are padded to a multiple of it


def pack_model(network: nn.Module) -> nn.Module:
    """Return an equivalent copy of the network with 1-bit weights and integer thresholds.

    Raises:
        Error: the network has no binarized layer.
    """
    if not any(isinstance(module, BinaryLayer) for module in network.modules()):
        layers = [f"{n} ({type(m).__name__})" for n, m in network.named_modules() if not any(m.children()) and n]
        raise Error(
            f"the network has no binarized layer: the first is {layers[0]}, of full precision, and so are the others; "
            f"train binary-convnet, binary-deep-convnet or binary-resnet18, or use int8"
        )
    device = next(network.parameters()).device
    network = copy.deepcopy(network).eval()
    # thresholds are searched on the CPU
    return _pack_module(network.cpu() if device.type == "cuda" else network).to(device)


def _pack_module(module: nn.Module) -> nn.Module:
    if isinstance(module, nn.Sequential):
        return nn.Sequential(*_pack_sequence(list(module)))
    if isinstance(module, BinaryLayer):
        return BinaryWeightLayer(module)
    for name, child in module.named_children():
        setattr(module, name, _pack_module(child))
    return module


def _pack_sequence(layers: list[nn.Module]) -> Iterator[nn.Module]:
    """Yield the packed layers; between a sign and the next binarized layer, activations are words."""
    layers = [layer for layer in layers if not isinstance(layer, nn.Dropout | nn.Identity)]
    channels = 0  # channels of the words at this point; 0: real numbers
    while layers:
        signs = _find_leading_sign(layers)
        layer = layers[0]
        if channels and isinstance(layer, BinaryLayer):
            del layers[0]
            pool = (
                layers[0] if layers and isinstance(layers[0], nn.MaxPool2d) and _is_supported_pool(layers[0]) else None
            )
            following = _find_leading_sign(layers[1:] if pool else layers)
            packed = PackedLayer(layer, following, channels)
            yield packed
            channels = packed.outputs if following else 0
            del layers[: len(following) + 1 if pool and following else len(following)]
            if pool and following:
                yield PackedPool(pool, packed.falling)
        elif channels and isinstance(layer, nn.Flatten) and any(isinstance(x, BinaryLinear) for x in layers[1:2]):
            yield layers.pop(0)
        elif channels:
            yield Unpack(channels)
            channels = 0
        elif signs and (channels := _count_packed_channels(signs, layers[len(signs) :])):
            yield PackedSign(signs, channels)
            del layers[: len(signs)]
        else:
            yield _pack_module(layers.pop(0))
    if channels:
        yield Unpack(channels)


def _find_leading_sign(layers: list[nn.Module]) -> list[nn.Module]:
    """Return the leading sign of ``layers`` with the batch normalization before it, if any; otherwise no layers."""
    norm = 1 if layers and isinstance(layers[0], nn.BatchNorm1d | nn.BatchNorm2d) else 0
    return layers[: norm + 1] if len(layers) > norm and isinstance(layers[norm], Sign) else []


def _count_packed_channels(signs: list[nn.Module], following: list[nn.Module]) -> int:
    """Return the number of channels of the signs if a binarized layer reads them, else 0."""
    is_flattened = bool(following) and isinstance(following[0], nn.Flatten)
    reader = following[is_flattened] if len(following) > is_flattened else None
    if not isinstance(reader, BinaryLayer):
        return 0
    sizes = [len(tensor) for layer in signs for tensor in layer.state_dict().values() if tensor.ndim]
    inputs = reader.in_channels if isinstance(reader, BinaryConv2d) else reader.in_features
    return sizes[0] if sizes else 0 if is_flattened else inputs


def _is_supported_pool(pool: nn.MaxPool2d) -> bool:
    """Return whether the pooling has square windows within the image."""
    is_square = isinstance(pool.kernel_size, int) and isinstance(pool.stride, int)
    return is_square and (pool.padding, pool.dilation, pool.ceil_mode) == (0, 1, False)


class PackedSign(nn.Module):
    """Sign function, optionally after batch normalization, from real numbers ``(N, C, ...)`` to words."""

    edge: Tensor
    falling: Tensor

    def __init__(self, layers: list[nn.Module], channels: int) -> None:
        super().__init__()
        edge, falling = find_thresholds(layers, channels, -FLOAT_INFINITY_BITS, FLOAT_INFINITY_BITS, _decode_float_key)
        self.register_buffer("edge", edge.int())
        self.register_buffer("falling", falling)
        self.device_constants: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to words ``(N, H, W, words)``, or ``(N, C)`` to ``(N, words)``."""
        if x.device not in self.device_constants:
            self.device_constants[x.device] = _decode_float_key(self.edge), 1 - 2 * self.falling.float()
        words: Tensor = get_kernels(x.device).pack_signs(
            x[..., None, None] if x.ndim == 2 else x, *self.device_constants[x.device]
        )
        return words.flatten(1) if x.ndim == 2 else words


class PackedLayer(nn.Module):
    """Binarized convolution or fully connected layer from words to words, or to real numbers if no sign follows.

    Args:
        layer: binarized layer with its latent weights.
        following: batch normalization and sign after it, or an empty list.
        channels: number of channels of its input.
    """

    bits: Tensor
    edge: Tensor | None
    scale: Tensor | None

    def __init__(self, layer: BinaryLayer, following: list[nn.Module], channels: int) -> None:
        super().__init__()
        weight = layer.weight.detach()
        # The memory format of the convolution is kept, since it affects the rounding of batch normalization.
        is_channels_last = weight.is_meta or not weight.is_contiguous()
        self.memory_format = torch.channels_last if is_channels_last else torch.contiguous_format
        if isinstance(layer, BinaryConv2d):
            self.stride, self.padding = layer.stride[0], int(layer.padding[0])
            weight = weight.permute(0, 2, 3, 1).unsqueeze(3)
        else:  # a 1×1 convolution over the samples, with the words of all input pixels
            self.stride, self.padding = 1, 0
            weight = weight.view(len(weight), channels, -1).mT[:, None, None]
        self.is_linear = isinstance(layer, BinaryLinear)
        self.weight_shape = weight.shape  # outputs, kernel height and width, pixels per kernel position, channels
        self.outputs = len(weight)
        bits, edge, scale = (
            weight >= 0,
            None,
            compute_scaling_factors(layer).detach() if layer.scaling_factors else None,
        )
        if following:
            max_sum = weight[0].numel()
            edge, self.falling = find_thresholds(
                following, self.outputs, -max_sum, max_sum, lambda sums: sums.float() * (1 if scale is None else scale)
            )
            edge, scale = edge.int(), None
            bits ^= self.falling.view(-1, 1, 1, 1, 1)  # inverted, so that every sign rises with its sum
        self.register_buffer("bits", binary_reference.pack_bytes(bits.flatten(1)))
        self.register_buffer("edge", edge)
        self.register_buffer("scale", scale)
        self.prepacked: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self.plans: dict[tuple[torch.device, int, int], tuple[Tensor, Tensor, Tensor | None]] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Map words ``(N, H, W, words)`` or ``(N, words)`` to words, ``(N, outputs, H', W')`` or ``(N, outputs)``.

        Raises:
            Error: the input is smaller than the kernel, or a fully connected layer has another number of words.
        """
        kernels = get_kernels(x.device)
        x = x.flatten(1)[None, None] if self.is_linear else x
        if self.is_linear and x.shape[-1] != (num_words := self.weight_shape[3] * -(-self.weight_shape[4] // 64)):
            raise Error(
                f"a fully connected layer has an input of {x.shape[-1]} words and needs {num_words}; use images of the "
                "training size"
            )
        height, width = x.shape[1:3]
        size = (x.device, height, width)
        if x.device not in self.prepacked:
            bits = binary_reference.unpack_bytes(self.bits, self.weight_shape[1:].numel()).view(self.weight_shape)
            self.prepacked[x.device] = (
                kernels.prepack_weights(binary_reference.pack_words(bits).flatten(3)),
                bits.sum((3, 4)).flatten(1),
            )
        weights, ones = self.prepacked[x.device]
        if size not in self.plans:
            self.plans[size] = self.compute_plan(ones, height, width)
        output: Tensor = kernels.convolve(x, weights, *self.plans[size], self.outputs, self.stride, self.padding)
        if self.is_linear:
            output = output[0, 0] if self.edge is not None else output[0, :, 0].T.contiguous()
        elif self.edge is None:
            output = output.contiguous(memory_format=self.memory_format)
        if self.scale is not None:
            output = output * (self.scale if self.is_linear else self.scale.view(-1, 1, 1))
        return output

    def compute_plan(self, ones: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Compute ``count_offsets``, ``offset_index`` and ``num_terms`` of the kernels for an input size.

        Padding contributes nothing to the sum, but its zero bits are read as -1. The offsets subtract their count, and
        the threshold applies to the shorter sum. Pixels with the same padded kernel positions share a row of offsets.
        ``ones`` contains the number of +1 weights of each output at each kernel position.
        """
        patterns = []
        for size, reach in zip((height, width), self.weight_shape[1:3], strict=True):
            if size + 2 * self.padding < reach:
                raise Error(
                    f"an input of {height}×{width} is too small for a kernel of {reach}×{reach}; use larger images"
                )
            first = torch.arange(0, size + 2 * self.padding - reach + 1, self.stride) - self.padding
            positions = first[:, None] + torch.arange(reach)
            patterns.append(torch.unique((positions >= 0) & (positions < size), dim=0, return_inverse=True))
        (rows, row), (columns, column) = patterns
        inside = (rows[:, None, :, None] & columns[None, :, None, :]).flatten(0, 1).flatten(1)
        offset_index = (row[:, None] * len(columns) + column).to(ones.device)
        num_terms = (inside.sum(1) * self.weight_shape[3:].numel()).to(ones.device)
        count_offsets = -torch.einsum("kt,ot->ko", (~inside).long().to(ones.device), ones)
        if self.edge is not None:
            count_offsets -= (num_terms[:, None] - self.edge.long()).div(2, rounding_mode="floor")
        # A count of 1 leaves the padding bits at 0.
        count_offsets = F.pad(count_offsets, (0, -self.outputs % OUTPUT_ALIGNMENT), value=1)
        return count_offsets, offset_index, num_terms if self.edge is None else None


class PackedPool(nn.Module):
    """Max pooling of sums on their sign words; where the sign falls with the sum, the minimum of the signs."""

    minimum: Tensor

    def __init__(self, pool: nn.MaxPool2d, decreasing: Tensor) -> None:
        super().__init__()
        self.size, self.stride = pool.kernel_size, pool.stride
        self.register_buffer("minimum", binary_reference.pack_words(decreasing))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, H, W, words)`` to ``(N, H', W', words)``."""
        words: Tensor = get_kernels(x.device).max_pool(x, self.minimum, self.size, self.stride)
        return words


class Unpack(nn.Module):
    """Conversion of words to real numbers -1 and +1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, H, W, words)`` to ``(N, channels, H, W)``, or ``(N, words)`` to ``(N, channels)``."""
        real = binary_reference.unpack_words(x, self.channels).float() * 2 - 1
        return real if real.ndim == 2 else real.permute(0, 3, 1, 2)


class BinaryWeightLayer(nn.Module):
    """Layer with 1-bit weights for real inputs such as images, computed in full precision."""

    bits: Tensor
    scale: Tensor | None

    def __init__(self, layer: BinaryLayer) -> None:
        super().__init__()
        self.weight_shape = layer.weight.shape
        self.conv_args = (layer.stride[0], int(layer.padding[0])) if isinstance(layer, BinaryConv2d) else None
        self.register_buffer("bits", binary_reference.pack_bytes((layer.weight >= 0).flatten(1)))
        self.register_buffer("scale", compute_scaling_factors(layer).detach() if layer.scaling_factors else None)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, inputs, H, W)`` to ``(N, outputs, H', W')``, or ``(N, inputs)`` to ``(N, outputs)``."""
        weight = (
            binary_reference.unpack_bytes(self.bits, self.weight_shape[1:].numel()).view(self.weight_shape).to(x.dtype)
            * 2
            - 1
        )
        x = F.linear(x, weight) if self.conv_args is None else F.conv2d(x, weight, None, *self.conv_args)
        return x if self.scale is None else x * self.scale.view(-1, *[1] * (x.ndim - 2))


def find_thresholds(
    layers: list[nn.Module], channels: int, low: int, high: int, decode: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Find the integer thresholds at which the signs of monotone layers change, by binary search.

    Args:
        layers: layers that end with a sign.
        channels: number of channels.
        low, high: search interval; ``low`` is ``-high``.
        decode: function from integers ``(channels,)`` to the input of the layers.

    Returns:
        For each channel the smallest integer with sign +1 (``high + 1`` if there is none), and whether the sign falls
        with the integer; such a threshold is negated.
    """
    shape = (1, -1, 1, 1) if any(isinstance(layer, nn.BatchNorm2d) for layer in layers) else (1, -1)

    @torch.no_grad()
    def is_positive(key: Tensor) -> Tensor:
        x = decode(key.clamp(low, high)).view(shape)
        for layer in layers:
            x = layer(x)
        return x.flatten() > 0

    first, last = torch.full((channels,), low), torch.full((channels,), high)
    if first.is_meta:  # packed on the meta device, to load the values later
        return first, first > 0
    falling = is_positive(first) & ~is_positive(last)
    direction = 1 - 2 * falling.long()
    last = last + 1
    while bool((first < last).any()):
        middle = (first + last).div(2, rounding_mode="floor")
        reached = is_positive(middle * direction) | (first >= last)
        first, last = torch.where(reached, first, middle + 1), torch.where(reached, torch.minimum(middle, last), last)
    return last, falling


def _decode_float_key(key: Tensor) -> Tensor:
    """Map integers to floats in the same order; a negated integer maps to the negated float."""
    bits = key.abs().to(torch.int32).view(torch.float32)
    return torch.where(key < 0, -bits, bits)


@functools.cache
def get_kernels(device: torch.device) -> ModuleType:
    """Return the kernel module of a device: compiled if possible, otherwise plain torch."""
    if device.type not in ("cpu", "cuda"):
        return binary_reference
    try:
        module = importlib.import_module(f"fukami.quantization.binary_{device.type}")
        one = torch.ones(1, 1, 1, 1, dtype=torch.long, device=device)
        module.convolve(one, module.prepack_weights(one), one[0, 0], one[0, 0], None, 1, 1, 0)
    except Exception as error:  # no compiler, no numba, a processor unknown to LLVM
        logging.getLogger("fukami").warning(
            "the 1-bit kernels cannot be compiled here (%s: %s), so they run in plain torch, which is slow; CPUs need "
            "numba (%s), GPUs need triton", type(error).__name__, error, get_install_command("binary"),
        )  # fmt: skip
        return binary_reference
    return module

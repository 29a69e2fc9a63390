"""Networks of one bit as they are computed: bits in words, exclusive or, and the population count.

The product of two signs is +1 where their bits agree: a sum of K products is ``K - 2 * popcount(a ^ b)``. What follows
a binarized layer up to the next sign (scale, batch normalisation, threshold) is a monotone function of that whole
number, so it becomes one whole number for each output: the smallest that turns the sign to +1. It is found by asking
the layers themselves, so that the packed network answers as the simulated one does, bit for bit.
"""

import copy
import functools
import importlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fukami.errors import Error
from fukami.layers.binary import BinaryConv2d, BinaryLinear, Sign, compute_scaling_factors
from fukami.quantization import binary_reference

BinaryLayer = BinaryConv2d | BinaryLinear
FLOAT_INFINITY_BITS = 0x7F800000  # the whole number that has the bits of the float
OUTPUT_ALIGNMENT = 16  # outputs to which the tables of the kernels are filled up


def pack_model(network: nn.Module) -> nn.Module:
    """A copy of the network that answers as it does, with weights of one bit and thresholds for what follows them.

    Raises:
        Error: the network has no binarized layer.
    """
    if not any(isinstance(module, BinaryLayer) for module in network.modules()):
        layers = [f"{n} ({type(m).__name__})" for n, m in network.named_modules() if not any(m.children()) and n]
        raise Error(
            f"no layer was trained to have one bit: the first is {layers[0]}, of full precision, and so are the "
            f"others; train binary-convnet, binary-deep-convnet or binary-resnet18, or take int8"
        )
    device = next(network.parameters()).device
    network = copy.deepcopy(network).eval()
    return _pack_module(network.cpu() if device.type == "cuda" else network).to(
        device
    )  # thresholds are found on the CPU


def _pack_module(module: nn.Module) -> nn.Module:
    if isinstance(module, nn.Sequential):
        return nn.Sequential(*_pack_sequence(list(module)))
    if isinstance(module, BinaryLayer):
        return BinaryWeightLayer(module)
    for name, child in module.named_children():
        setattr(module, name, _pack_module(child))
    return module


def _pack_sequence(layers: list[nn.Module]) -> Iterator[nn.Module]:
    """The layers, packed: between a sign and the binarized layer that reads it there are words."""
    layers = [layer for layer in layers if not isinstance(layer, nn.Dropout | nn.Identity)]
    channels = 0  # of the words at this point; 0: there are real numbers
    while layers:
        signs = _find_leading_sign(layers)
        layer = layers[0]
        if channels and isinstance(layer, BinaryLayer):
            del layers[0]
            pool = (
                layers[0] if layers and isinstance(layers[0], nn.MaxPool2d) and _is_supported_pool(layers[0]) else None
            )
            step = _find_leading_sign(layers[1:] if pool else layers)
            packed = PackedLayer(layer, step, channels)
            yield packed
            channels = packed.outputs if step else 0
            del layers[: len(step) + 1 if pool and step else len(step)]
            if pool and step:
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
    """The layers up to a sign at the beginning of ``layers``: a batch normalisation, or none, and the sign itself."""
    norm = 1 if layers and isinstance(layers[0], nn.BatchNorm1d | nn.BatchNorm2d) else 0
    return layers[: norm + 1] if len(layers) > norm and isinstance(layers[norm], Sign) else []


def _count_packed_channels(signs: list[nn.Module], following: list[nn.Module]) -> int:
    """The channels of the signs, where a binarized layer reads them; otherwise 0."""
    flat = bool(following) and isinstance(following[0], nn.Flatten)
    reader = following[flat] if len(following) > flat else None
    if not isinstance(reader, BinaryLayer):
        return 0
    own = [len(tensor) for layer in signs for tensor in layer.state_dict().values() if tensor.ndim]
    inputs = reader.in_channels if isinstance(reader, BinaryConv2d) else reader.in_features
    return own[0] if own else 0 if flat else inputs


def _is_supported_pool(pool: nn.MaxPool2d) -> bool:
    """Whether the pooling has square windows, and none that reaches beyond the image."""
    sizes = isinstance(pool.kernel_size, int) and isinstance(pool.stride, int)
    return sizes and (pool.padding, pool.dilation, pool.ceil_mode) == (0, 1, False)


class PackedSign(nn.Module):
    """The words of the signs that ``layers``, a normalisation and a sign, gives to real numbers ``(N, C, ...)``."""

    edge: Tensor
    falling: Tensor

    def __init__(self, layers: list[nn.Module], channels: int) -> None:
        super().__init__()
        edge, falling = find_thresholds(layers, channels, -FLOAT_INFINITY_BITS, FLOAT_INFINITY_BITS, _decode_float_key)
        self.register_buffer("edge", edge.int())
        self.register_buffer("falling", falling)
        self.device_constants: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Words ``(N, H, W, words)`` of ``(N, C, H, W)``, or ``(N, words)`` of ``(N, C)``."""
        if x.device not in self.device_constants:
            self.device_constants[x.device] = _decode_float_key(self.edge), 1 - 2 * self.falling.float()
        found = get_kernels(x.device).pack_signs(
            x[..., None, None] if x.ndim == 2 else x, *self.device_constants[x.device]
        )
        return found.flatten(1) if x.ndim == 2 else found  # type: ignore[no-any-return]


class PackedLayer(nn.Module):
    """A binarized convolution or affine layer between words and words, or real numbers where no sign follows.

    Args:
        layer: with its latent weights.
        following: the normalisation and the sign that follow it; may be empty.
        channels: of the words that it reads.
    """

    bits: Tensor
    edge: Tensor | None
    scale: Tensor | None

    def __init__(self, layer: BinaryLayer, following: list[nn.Module], channels: int) -> None:
        super().__init__()
        weight = layer.weight.detach()
        # sums lie in memory as the convolution's do, and a run's do channels last: a normalisation rounds accordingly
        last = weight.is_meta or not weight.is_contiguous()
        self.memory_format = torch.channels_last if last else torch.contiguous_format
        if isinstance(layer, BinaryConv2d):
            self.stride, self.padding = layer.stride[0], int(layer.padding[0])
            weight = weight.permute(0, 2, 3, 1).unsqueeze(3)
        else:  # an affine layer is a convolution over the samples, whose words are those of all pixels it reads
            self.stride, self.padding = 1, 0
            weight = weight.view(len(weight), channels, -1).mT[:, None, None]
        self.is_linear = isinstance(layer, BinaryLinear)
        self.weight_shape = (
            weight.shape
        )  # outputs, kernel height and width, pixels at each place of the kernel, channels
        self.outputs = len(weight)
        bits, edge, factor = (
            weight >= 0,
            None,
            compute_scaling_factors(layer).detach() if layer.scaling_factors else None,
        )
        if following:
            most = weight[0].numel()
            edge, self.falling = find_thresholds(
                following, self.outputs, -most, most, lambda sums: sums.float() * (1 if factor is None else factor)
            )
            edge, factor = edge.int(), None
            bits ^= self.falling.view(-1, 1, 1, 1, 1)  # turned round, so that every sign rises with its sum
        self.register_buffer("bits", binary_reference.pack_bytes(bits.flatten(1)))
        self.register_buffer("edge", edge)
        self.register_buffer("scale", factor)
        self.prepacked: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self.plans: dict[tuple[Any, ...], tuple[Tensor, Tensor, Tensor | None]] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Words ``(N, H, W, words)`` or ``(N, words)`` to words, or to ``(N, outputs, H', W')`` or ``(N, outputs)``.

        Raises:
            Error: the image is smaller than the kernel.
        """
        kernel = get_kernels(x.device)
        x = x.flatten(1)[None, None] if self.is_linear else x
        size = (x.device, *x.shape[1:3])
        if x.device not in self.prepacked:
            bools = binary_reference.unpack_bytes(self.bits, self.weight_shape[1:].numel()).view(self.weight_shape)
            self.prepacked[x.device] = (
                kernel.prepack_weights(binary_reference.pack_words(bools).flatten(3)),
                bools.sum((3, 4)).flatten(1),
            )
        laid, ones = self.prepacked[x.device]
        if size not in self.plans:
            self.plans[size] = self.compute_plan(ones, *x.shape[1:3])
        found = kernel.convolve(x, laid, *self.plans[size], self.outputs, self.stride, self.padding)
        if self.is_linear:
            found = found[0, 0] if self.edge is not None else found[0, :, 0].T.contiguous()
        elif self.edge is None:
            found = found.contiguous(memory_format=self.memory_format)
        if self.scale is not None:
            found = found * (self.scale if self.is_linear else self.scale.view(-1, 1, 1))
        return found  # type: ignore[no-any-return]

    def compute_plan(self, ones: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """``start``, ``kind`` and ``valid``, as the kernels take them, for inputs of this size.

        Pixels differ in which parts of the kernel lie beyond the border. These count nothing in the sum, but the zeros
        that are read there are taken for -1: what they add to the count is subtracted beforehand, and the threshold is
        that of the shorter sum. ``ones`` are the weights of +1 of each output at each place of the kernel.
        """
        insides = []
        for size, reach in zip((height, width), self.weight_shape[1:3], strict=True):
            if size + 2 * self.padding < reach:
                raise Error(f"{height}×{width} is too small for a kernel of {reach}×{reach}; give larger images")
            first = torch.arange(0, size + 2 * self.padding - reach + 1, self.stride) - self.padding
            at = first[:, None] + torch.arange(reach)
            insides.append(torch.unique((at >= 0) & (at < size), dim=0, return_inverse=True))
        (rows, row), (columns, column) = insides
        inside = (rows[:, None, :, None] & columns[None, :, None, :]).flatten(0, 1).flatten(1)
        kind = (row[:, None] * len(columns) + column).to(ones.device)
        terms = (inside.sum(1) * self.weight_shape[3:].numel()).to(ones.device)
        start = -torch.einsum("kt,ot->ko", (~inside).long().to(ones.device), ones)
        if self.edge is not None:
            start -= (terms[:, None] - self.edge.long()).div(2, rounding_mode="floor")
        start = F.pad(start, (0, -self.outputs % OUTPUT_ALIGNMENT), value=1)  # a count of 1 leaves the bits beyond at 0
        return start, kind, terms if self.edge is None else None


class PackedPool(nn.Module):
    """Max pooling of words, of the sums that they are the signs of: where the sign falls with the sum, the smallest."""

    minimum: Tensor

    def __init__(self, pool: nn.MaxPool2d, decreasing: Tensor) -> None:
        super().__init__()
        self.size, self.stride = pool.kernel_size, pool.stride
        self.register_buffer("minimum", binary_reference.pack_words(decreasing))

    def forward(self, x: Tensor) -> Tensor:
        """``(N, H, W, words)`` to ``(N, H', W', words)``."""
        return get_kernels(x.device).max_pool(x, self.minimum, self.size, self.stride)  # type: ignore[no-any-return]


class Unpack(nn.Module):
    """Words as real numbers -1 and +1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """``(N, H, W, words)`` to ``(N, channels, H, W)``, ``(N, words)`` to ``(N, channels)``."""
        real = binary_reference.unpack_words(x, self.channels).float() * 2 - 1
        return real if real.ndim == 2 else real.permute(0, 3, 1, 2)


class BinaryWeightLayer(nn.Module):
    """A binarized layer that reads real numbers, such as images: one bit for each weight, computed in full."""

    bits: Tensor
    scale: Tensor | None

    def __init__(self, layer: BinaryLayer) -> None:
        super().__init__()
        self.weight_shape = layer.weight.shape
        self.conv_args = (layer.stride[0], int(layer.padding[0])) if isinstance(layer, BinaryConv2d) else None
        self.register_buffer("bits", binary_reference.pack_bytes((layer.weight >= 0).flatten(1)))
        self.register_buffer("scale", compute_scaling_factors(layer).detach() if layer.scaling_factors else None)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, inputs, H, W)`` to ``(N, outputs, H', W')``, ``(N, inputs)`` to ``(N, outputs)``."""
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
    """Where the signs that monotone layers give turn, found by halving.

    Args:
        layers: layers of which the last gives signs.
        channels: how many there are.
        low, high: the whole numbers between which each channel turns; one is minus the other.
        decode: what the layers are given for whole numbers ``(channels,)``.

    Returns:
        The smallest number at which each channel gives +1 (one above ``high`` where none does), and whether its sign
        falls as the number rises: then it is minus the number that is meant.
    """
    spread = (1, -1, 1, 1) if any(isinstance(layer, nn.BatchNorm2d) for layer in layers) else (1, -1)

    @torch.no_grad()
    def positive(key: Tensor) -> Tensor:
        x = decode(key.clamp(low, high)).view(spread)
        for layer in layers:
            x = layer(x)
        return x.flatten() > 0

    first, last = torch.full((channels,), low), torch.full((channels,), high)
    if first.is_meta:  # a network without numbers is packed to be given them
        return first, first > 0
    falling = positive(first) & ~positive(last)
    direction = 1 - 2 * falling.long()
    last = last + 1
    while bool((first < last).any()):
        middle = (first + last).div(2, rounding_mode="floor")
        above = positive(middle * direction) | (first >= last)
        first, last = torch.where(above, first, middle + 1), torch.where(above, torch.minimum(middle, last), last)
    return last, falling


def _decode_float_key(key: Tensor) -> Tensor:
    """The floats that whole numbers stand for, in the same order; minus a number stands for minus the float."""
    bits = key.abs().to(torch.int32).view(torch.float32)
    return torch.where(key < 0, -bits, bits)


@functools.cache
def get_kernels(device: torch.device) -> Any:
    """The module of the kernels for a device: compiled ones where they can be, those in plain torch elsewhere."""
    if device.type not in ("cpu", "cuda"):
        return binary_reference
    try:
        module = importlib.import_module(f"fukami.quantization.binary_{device.type}")
        one = torch.ones(1, 1, 1, 1, dtype=torch.long, device=device)
        module.convolve(one, module.prepack_weights(one), one[0, 0], one[0, 0], None, 1, 1, 0)
    except Exception as error:  # no compiler, no numba, a processor that LLVM does not know
        logging.getLogger("fukami").warning(
            "the 1-bit kernels cannot be compiled here (%s: %s), so plain torch computes them, slowly; on the CPU they "
            "need numba (pip install numba), on a GPU triton", type(error).__name__, error,
        )  # fmt: skip
        return binary_reference
    return module

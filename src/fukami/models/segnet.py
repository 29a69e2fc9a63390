"""SegNet: a decoder that puts each value back where the encoder's pooling found it.

Badrinarayanan, Kendall and Cipolla, "SegNet: A Deep Convolutional Encoder-Decoder Architecture for Image Segmentation",
PAMI 2017, figure 2. The encoder is VGG-16's 13 convolutions, each with batch normalisation and ReLU; every pooling
remembers where in its 2×2 pixels the greatest value lay. The decoder mirrors it:

    encoder                                decoder
    64   64           pool ─── places ───→ unpool   64   classes
    128  128          pool ─── places ───→ unpool   128  64
    256  256  256     pool ─── places ───→ unpool   256  256  128
    512  512  512     pool ─── places ───→ unpool   512  512  256
    512  512  512     pool ─── places ───→ unpool   512  512  512

SegNet-Basic (section 3.1) has four poolings, a convolution of 7×7 and 64 filters before each and after each unpooling,
no ReLU in the decoder, and a 1×1 convolution for the classes. The names of the encoder's parameters are those of
torchvision's ``vgg16_bn``.
"""

from collections import OrderedDict
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fukami.layers.stem import StemConv2d
from fukami.layers.upsample import apply_with_padding
from fukami.models.vgg import CONFIGS, build_vgg_features, renumber_conv_weights


def segnet_vgg16(num_classes: int = 11, *, width_multiplier: float = 1.0) -> "SegNet":
    """SegNet: ``(N, 3, H, W)`` to scores ``(N, classes, H, W)``. H and W: any; 360 and 480 in the paper.

    Args:
        num_classes: number of scores at a pixel; 11 are those of CamVid.
        width_multiplier: share of the paper's channels.
    """
    widths = [[round(width_multiplier * channels) for channels in group] for group in CONFIGS["D"]]
    decoder = []
    for number in range(4, -1, -1):
        group = widths[number]
        last = widths[number - 1][-1] if number else num_classes
        channels = [group[-1], *reversed(group[1:]), last]
        decoder.append(nn.Sequential(*_build_decoder_stage(list(pairwise(channels)), outputs_scores=number == 0)))
    return SegNet(build_vgg_features("D", batch_norm=True, width_multiplier=width_multiplier), decoder)


def segnet_basic(num_classes: int = 11, *, channels: int = 3, num_filters: int = 64) -> "SegNet":
    """SegNet-Basic: ``(N, channels, H, W)`` to scores ``(N, classes, H, W)``. H and W: any.

    Args:
        num_classes: number of scores at a pixel.
        channels: of the images.
        num_filters: of every convolution.
    """
    encoder: list[nn.Module] = []
    for number in range(4):
        first = StemConv2d(channels, num_filters, 7, padding=3) if number == 0 else _conv7x7(num_filters)
        encoder += [first, nn.BatchNorm2d(num_filters), nn.ReLU(inplace=True), nn.MaxPool2d(2, 2)]
    decoder = [nn.Sequential(_conv7x7(num_filters), nn.BatchNorm2d(num_filters)) for _ in range(4)]
    decoder[-1].append(nn.Conv2d(num_filters, num_classes, 1))
    for layer in [*encoder, *(layer for stage in decoder for layer in stage)]:
        _init_weights(layer)
    return SegNet(nn.Sequential(*encoder), decoder)


class SegNet(nn.Module):
    """An encoder whose poolings remember their places, and the stages of a decoder that begin with them."""

    backbone_prefix = "features"

    def __init__(self, features: nn.Sequential, decoder: Iterable[nn.Sequential]) -> None:
        super().__init__()
        self.features = features
        self.decoder = nn.ModuleList(decoder)
        ends = [number for number, layer in enumerate(features) if isinstance(layer, nn.MaxPool2d)]
        between = pairwise([-1, *ends])
        # in a list, since their layers are the network's already
        self.class_prefixes = (f"decoder.{len(self.decoder) - 1}.{len(self.decoder[-1]) - 1}.",)  # type: ignore[arg-type]
        self.stages = [*(features[before + 1 : end] for before, end in between), *self.decoder]

    def forward(self, images: Tensor) -> Any:
        """Normalised ``(N, C, H, W)`` to scores ``(N, classes, H, W)``."""
        return apply_with_padding(self.compute_scores, images, 2 ** len(self.decoder))

    def compute_scores(self, images: Tensor) -> Tensor:
        """The same where H and W are multiples of 2 to the number of poolings."""
        x, places = images, []
        depth = len(self.decoder)
        for stage in self.stages[:depth]:
            x, indices = F.max_pool2d(stage(x), 2, return_indices=True)
            places.append(indices)
        for stage in self.stages[depth:]:
            x = stage(unpool(x, places.pop()))
        return x

    def get_traceable_module(self) -> nn.Module:
        """The layers as a chain, in which plain enlarging stands for the unpooling."""
        layers: dict[str, nn.Module] = {"features": self.features}
        for number, stage in enumerate(self.decoder):
            layers |= {f"unpool{number}": nn.Upsample(scale_factor=2), f"decoder{number}": stage}
        return nn.Sequential(OrderedDict(layers))

    def list_backbone_layers(self) -> list[nn.Module]:
        """The layers of the classifier, one after another."""
        return [*self.features]

    def convert_classifier_weights(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of the tensors of VGG-16, with batch normalisation or without it, those that fit here."""
        return renumber_conv_weights(tensors, self.features)


def unpool(x: Tensor, indices: Tensor) -> Tensor:
    """Maps ``(N, C, H, W)`` as ``(N, C, 2 H, 2 W)``: each value at its place, 0 elsewhere (figure 3)."""
    size = (2 * x.shape[2], 2 * x.shape[3])
    if torch.compiler.is_exporting():  # to a format that has no unpooling
        flat = x.new_zeros(1).expand(*x.shape[:2], size[0] * size[1])
        return flat.scatter(2, indices.flatten(2), x.flatten(2)).view(*x.shape[:2], *size)
    return F.max_unpool2d(x, indices, (2, 2), output_size=list(size))


def _build_decoder_stage(pairs: list[tuple[int, int]], outputs_scores: bool) -> list[nn.Module]:
    """3×3 convolutions, each with batch normalisation and ReLU; with ``outputs_scores`` the last gives the scores."""
    layers: list[nn.Module] = []
    for number, (inputs, outputs) in enumerate(pairs, 1):
        layers.append(nn.Conv2d(inputs, outputs, 3, padding=1))
        if not (outputs_scores and number == len(pairs)):
            layers += [nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    for layer in layers:
        if not (outputs_scores and layer is layers[-1]):  # else scores begin as alike as torch has them
            _init_weights(layer)
    return layers


def _conv7x7(filters: int) -> nn.Conv2d:
    return nn.Conv2d(filters, filters, 7, padding=3)


def _init_weights(layer: nn.Module) -> None:
    if isinstance(layer, nn.Conv2d):
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

"""SegNet: semantic segmentation by an encoder and a decoder that unpools with the encoder's max-pooling indices.

Badrinarayanan, Kendall and Cipolla, "SegNet: A Deep Convolutional Encoder-Decoder Architecture for Image Segmentation",
PAMI 2017, figure 2. The encoder is VGG-16's 13 convolutions, each with batch normalization and ReLU; every pooling
stores the index of the maximum of each 2×2 window. The decoder mirrors it:

    encoder                                decoder
    64   64           pool ── indices ───→ unpool   64   classes
    128  128          pool ── indices ───→ unpool   128  64
    256  256  256     pool ── indices ───→ unpool   256  256  128
    512  512  512     pool ── indices ───→ unpool   512  512  256
    512  512  512     pool ── indices ───→ unpool   512  512  512

SegNet-Basic (section 3.1) has four poolings, and a 7×7 convolution with 64 filters before each pooling and after each
unpooling. The decoder has no ReLU, and a 1×1 convolution for the classes. The encoder's parameter names are those of
torchvision's ``vgg16_bn``.
"""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fukami.layers.initialization import zero_bias
from fukami.layers.segmentation_model import SegmentationModel
from fukami.layers.stem import StemConv2d
from fukami.layers.upsample import Scores, apply_with_padding
from fukami.models.vgg import CONFIGS, build_vgg_features, renumber_conv_weights


def segnet_vgg16(num_classes: int = 11, *, width_multiplier: float = 1.0, channels: int = 3) -> "SegNet":
    """Build SegNet: ``(N, channels, H, W)`` to scores ``(N, classes, H, W)``. H and W: any; 360 and 480 in the paper.

    Args:
        num_classes: number of classes; CamVid has 11.
        width_multiplier: number of channels, as a fraction of the paper's.
        channels: number of input channels.
    """
    widths = [[round(width_multiplier * width) for width in group] for group in CONFIGS["D"]]
    decoder = []
    for index in range(4, -1, -1):
        group = widths[index]
        last = widths[index - 1][-1] if index else num_classes
        outputs = [group[-1], *reversed(group[1:]), last]
        decoder.append(nn.Sequential(*_build_decoder_stage(list(pairwise(outputs)), outputs_scores=index == 0)))
    return SegNet(build_vgg_features("D", channels, True, width_multiplier), decoder)


def segnet_basic(num_classes: int = 11, *, channels: int = 3, num_filters: int = 64) -> "SegNet":
    """Build SegNet-Basic: ``(N, channels, H, W)`` to scores ``(N, classes, H, W)``. H and W: any.

    Args:
        num_classes: number of classes.
        channels: number of input channels.
        num_filters: number of filters of every convolution.
    """
    encoder: list[nn.Module] = []
    for index in range(4):
        first = StemConv2d(channels, num_filters, 7, padding=3) if index == 0 else _conv7x7(num_filters)
        encoder += [first, nn.BatchNorm2d(num_filters), nn.ReLU(inplace=True), nn.MaxPool2d(2, 2)]
    decoder = [nn.Sequential(_conv7x7(num_filters), nn.BatchNorm2d(num_filters)) for _ in range(4)]
    decoder[-1].append(nn.Conv2d(num_filters, num_classes, 1))
    for layer in [*encoder, *(layer for stage in decoder for layer in stage)]:
        _init_weights(layer)
    return SegNet(nn.Sequential(*encoder), decoder)


class SegNet(SegmentationModel):
    """Encoder and decoder; each decoder stage unpools with the indices of the matching max pooling."""

    backbone_prefix = "features"

    def __init__(self, features: nn.Sequential, decoder: Sequence[nn.Sequential]) -> None:
        super().__init__()
        self.features = features
        self.decoder = nn.ModuleList(decoder)
        pool_indices = [index for index, layer in enumerate(features) if isinstance(layer, nn.MaxPool2d)]
        stage_bounds = pairwise([-1, *pool_indices])
        self.class_prefixes = (f"decoder.{len(decoder) - 1}.{len(decoder[-1]) - 1}.",)
        # a list, so that the layers are not registered twice
        self.stages = [*(features[previous + 1 : pool] for previous, pool in stage_bounds), *decoder]

    def forward(self, images: Tensor) -> Scores:
        """Compute scores ``(N, classes, H, W)`` of normalized images ``(N, C, H, W)``."""
        return apply_with_padding(self.compute_scores, images, 2 ** len(self.decoder))

    def compute_scores(self, images: Tensor) -> Tensor:
        """Compute scores of images whose sides are multiples of 2 to the power of the number of poolings."""
        x, pooling_indices = images, []
        depth = len(self.decoder)
        for stage in self.stages[:depth]:
            x, indices = F.max_pool2d(stage(x), 2, return_indices=True)
            pooling_indices.append(indices)
        for stage in self.stages[depth:]:
            x = stage(unpool(x, pooling_indices.pop()))
        return x

    def get_traceable_module(self) -> nn.Module:
        """Return the layers as a sequential model, with nearest-neighbor upsampling instead of unpooling."""
        layers: dict[str, nn.Module] = {"features": self.features}
        for index, stage in enumerate(self.decoder):
            layers |= {f"unpool{index}": nn.Upsample(scale_factor=2), f"decoder{index}": stage}
        return nn.Sequential(OrderedDict(layers))

    def list_backbone_layers(self) -> list[nn.Module]:
        """Return the layers of the classifier in order."""
        return [*self.features]

    def convert_classifier_weights(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Convert the weights of VGG-16, with or without batch normalization."""
        return renumber_conv_weights(tensors, self.features)


def unpool(x: Tensor, indices: Tensor) -> Tensor:
    """Unpool maps ``(N, C, H, W)`` to ``(N, C, 2 H, 2 W)``: each value at its index, 0 elsewhere."""
    size = (2 * x.shape[2], 2 * x.shape[3])
    if torch.compiler.is_exporting():  # the export format has no unpooling
        flat = x.new_zeros(1).expand(*x.shape[:2], size[0] * size[1])
        return flat.scatter(2, indices.flatten(2), x.flatten(2)).view(*x.shape[:2], *size)
    return F.max_unpool2d(x, indices, (2, 2), output_size=list(size))


def _build_decoder_stage(pairs: list[tuple[int, int]], outputs_scores: bool) -> list[nn.Module]:
    """Build 3×3 convolutions, each with batch normalization and ReLU, except the last one with ``outputs_scores``."""
    layers: list[nn.Module] = []
    for layer_number, (inputs, outputs) in enumerate(pairs, 1):
        layers.append(nn.Conv2d(inputs, outputs, 3, padding=1))
        if not (outputs_scores and layer_number == len(pairs)):
            layers += [nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    for layer in layers:
        if not (
            outputs_scores and layer is layers[-1]
        ):  # the score layer keeps torch's initialization, with smaller scores
            _init_weights(layer)
    return layers


def _conv7x7(filters: int) -> nn.Conv2d:
    return nn.Conv2d(filters, filters, 7, padding=3)


def _init_weights(layer: nn.Module) -> None:
    if isinstance(layer, nn.Conv2d):
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        zero_bias(layer)

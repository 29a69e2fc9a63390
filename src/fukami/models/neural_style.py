"""Neural style: VGG as an eye that tells what an image shows from how it is painted.

Gatys, Ecker and Bethge, "Image Style Transfer Using Convolutional Neural Networks", CVPR 2016, section 2. Of an image
only these maps are looked at, each after its ReLU:

    VGG-16 or VGG-19     64      128      256      512      512
    style (section 2.2)  conv1_1 conv2_1  conv3_1  conv4_1  conv5_1
    content (2.1)                                  conv4_2

Poolings average (section 2). What comes after the last map is left out. The names of the parameters are torchvision's.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from fukami.models.vgg import CONFIGS, build_vgg_features


def neural_style_vgg16() -> "StyleFeatures":
    """The maps of VGG-16 that style and content are read from: 11 of its convolutions."""
    return StyleFeatures("D")


def neural_style_vgg19() -> "StyleFeatures":
    """The maps of VGG-19 that style and content are read from, as in the paper: 13 of its convolutions."""
    return StyleFeatures("E")


class StyleFeatures(nn.Module):
    """Convolutions of a column of VGG's table, up to conv5_1, whose poolings average."""

    def __init__(self, column: str) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self.style_layers: list[int] = []  # numbers of the ReLUs whose maps tell the style
        group = within = 0
        for layer in build_vgg_features(column).children():
            if isinstance(layer, nn.MaxPool2d):
                layer, group, within = nn.AvgPool2d(2, 2), group + 1, 0
            layers.append(layer)
            if isinstance(layer, nn.ReLU):
                within += 1
                if within == 1:
                    self.style_layers.append(len(layers) - 1)
                if (group, within) == (3, 2):
                    self.content_layer = len(layers) - 1
            if len(self.style_layers) == len(CONFIGS[column]):
                break
        self.features = nn.Sequential(*layers)
        self.style_channels = [group[0] for group in CONFIGS[column]]  # of the maps that tell the style

    def get_traceable_module(self) -> nn.Module:
        """The layers as a chain."""
        return nn.Sequential(OrderedDict(features=self.features))

    def forward(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """The five maps of the style and the one of the content of normalised images ``(N, 3, H, W)``.

        Their sizes are ``(N, 64, H, W)`` to ``(N, 512, H/16, W/16)``, and ``(N, 512, H/8, W/8)``.
        """
        first, *layers = self.features
        with torch.autocast(images.device.type, enabled=False):  # bfloat16 would not see small changes of a pixel
            x = first(images)
        style, content = [], x
        for number, layer in enumerate(layers, 1):
            x = layer(x)
            if number in self.style_layers:
                style.append(x)
            if number == self.content_layer:
                content = x
        return style, content

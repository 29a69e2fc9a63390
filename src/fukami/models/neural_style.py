"""Neural style transfer: VGG feature maps for style and content.

Gatys, Ecker and Bethge, "Image Style Transfer Using Convolutional Neural Networks", CVPR 2016, section 2. The maps,
each after its ReLU, are:

    VGG-16 or VGG-19     64      128      256      512      512
    style (section 2.2)  conv1_1 conv2_1  conv3_1  conv4_1  conv5_1
    content (2.1)                                  conv4_2

Average pooling replaces max pooling (section 2). Layers after the last map are omitted. The parameter names are
torchvision's.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from fukami.models.vgg import CONFIGS, build_vgg_features


def neural_style_vgg16() -> "StyleFeatures":
    """Build the style and content features of VGG-16: its first 11 convolutions."""
    return StyleFeatures("D")


def neural_style_vgg19() -> "StyleFeatures":
    """Build the style and content features of VGG-19, as in the paper: its first 13 convolutions."""
    return StyleFeatures("E")


class StyleFeatures(nn.Module):
    """Convolutions of a VGG configuration up to conv5_1, with average pooling."""

    def __init__(self, column: str) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self.style_layers: list[int] = []  # indices of the ReLUs with style maps
        group = relu_in_group = 0
        for layer in build_vgg_features(column).children():
            if isinstance(layer, nn.MaxPool2d):
                layer, group, relu_in_group = nn.AvgPool2d(2, 2), group + 1, 0
            layers.append(layer)
            if isinstance(layer, nn.ReLU):
                relu_in_group += 1
                if relu_in_group == 1:
                    self.style_layers.append(len(layers) - 1)
                if (group, relu_in_group) == (3, 2):
                    self.content_layer = len(layers) - 1
            if len(self.style_layers) == len(CONFIGS[column]):
                break
        self.features = nn.Sequential(*layers)
        self.style_channels = [group[0] for group in CONFIGS[column]]  # channels of the style maps

    def get_traceable_module(self) -> nn.Module:
        """Return the layers as a sequential model."""
        return nn.Sequential(OrderedDict(features=self.features))

    def forward(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Compute the five style maps and the content map of normalized images ``(N, 3, H, W)``.

        The style maps are ``(N, 64, H, W)`` to ``(N, 512, H/16, W/16)``, the content map ``(N, 512, H/8, W/8)``.
        """
        first, *layers = self.features
        with torch.autocast(images.device.type, enabled=False):  # bfloat16 loses small changes of a pixel
            x = first(images)
        style, content = [], x
        for index, layer in enumerate(layers, 1):
            x = layer(x)
            if index in self.style_layers:
                style.append(x)
            if index == self.content_layer:
                content = x
        return style, content

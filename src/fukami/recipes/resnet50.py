"""ResNet-50: residual learning with bottlenecks."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from fukami.recipes.resnet18 import ResNet18

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class ResNet50(ResNet18):
    """ResNet-50 (He et al. 2016, table 1): 16 bottleneck blocks."""

    published: ClassVar[str] = "77.15 % ImageNet top-1, 10 crops"

    stride_in: Literal["3x3", "1x1"] = "3x3"
    """Which convolution of a bottleneck halves the maps: 1x1 in the paper, 3x3 in torchvision and its weights."""

    def network(self, classes: int) -> "nn.Module":
        """The network of the recipe's name."""
        from fukami import models

        network: nn.Module = getattr(models, self.architecture)(
            classes, channels=self.channels, stem=self.stem, stride_in=self.stride_in
        )
        return network

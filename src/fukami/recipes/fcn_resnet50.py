"""FCN on a dilated ResNet-50, as torchvision has it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fukami.segmenter import Segmenter

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class FCNResNet50(Segmenter):
    """FCN on a dilated ResNet-50 (Long et al. 2015), as torchvision has it."""

    paper: ClassVar[str] = "Long et al., Fully Convolutional Networks for Semantic Segmentation"
    year: ClassVar[int] = 2015
    published: ClassVar[str] = "60.5 % mIoU COCO, VOC classes (torchvision)"
    backbone: ClassVar[str] = "resnet50"

    init: str = ""
    """Weights to begin with: coco or imagenet (torchvision's network or classifier, downloaded), a file of a state dict
    of either, or a run's folder."""
    auxiliary: bool = True
    """A second answer from layer3 in training, whose loss counts a half."""

    def network(self, classes: int) -> "nn.Module":
        """The network on the recipe's ResNet."""
        from fukami import models

        network: nn.Module = getattr(models, f"fcn_{self.backbone}")(classes, auxiliary=self.auxiliary)
        return network

"""FCN on a dilated ResNet-101, as torchvision has it."""

from dataclasses import dataclass
from typing import ClassVar

from fukami.recipes.fcn_resnet50 import FCNResNet50


@dataclass(frozen=True, kw_only=True)
class FCNResNet101(FCNResNet50):
    """FCN on a dilated ResNet-101 (Long et al. 2015), as torchvision has it."""

    published: ClassVar[str] = "63.7 % mIoU COCO, VOC classes (torchvision)"
    backbone: ClassVar[str] = "resnet101"

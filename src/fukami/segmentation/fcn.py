"""FCN (Long et al. 2015): fully convolutional networks on VGG-16, and on dilated ResNets as torchvision has them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fukami.segmentation.recipe import FCNVGG, SegmentationRecipe, SkipFCN

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class FCN32sVGG16(FCNVGG):
    """FCN-32s (Long et al. 2015): VGG-16 as convolutions, its scores enlarged 32 times."""

    paper: ClassVar[str] = "Long et al., Fully Convolutional Networks for Semantic Segmentation"
    year: ClassVar[int] = 2015
    paper_result: ClassVar[str] = "59.4 % mIoU VOC 2011"


@dataclass(frozen=True, kw_only=True)
class FCN16sVGG16(SkipFCN):
    """FCN-16s (Long et al. 2015): FCN-32s with the scores of pool4, enlarged 16 times."""

    paper: ClassVar[str] = "Long et al., Fully Convolutional Networks for Semantic Segmentation"
    year: ClassVar[int] = 2015
    paper_result: ClassVar[str] = "62.4 % mIoU VOC 2011"
    coarser_recipes: ClassVar[tuple[str, ...]] = ("fcn32s-vgg16",)


@dataclass(frozen=True, kw_only=True)
class FCN8sVGG16(SkipFCN):
    """FCN-8s (Long et al. 2015): FCN-16s with the scores of pool3, enlarged 8 times."""

    paper: ClassVar[str] = "Long et al., Fully Convolutional Networks for Semantic Segmentation"
    year: ClassVar[int] = 2015
    paper_result: ClassVar[str] = "62.7 % mIoU VOC 2011"
    reproduced_result: ClassVar[str] = "56.95 % mIoU CamVid at half the size, one seed"
    coarser_recipes: ClassVar[tuple[str, ...]] = ("fcn32s-vgg16", "fcn16s-vgg16")


@dataclass(frozen=True, kw_only=True)
class FCNResNet50(SegmentationRecipe):
    """FCN on a dilated ResNet-50 (Long et al. 2015), as torchvision has it."""

    paper: ClassVar[str] = "Long et al., Fully Convolutional Networks for Semantic Segmentation"
    year: ClassVar[int] = 2015
    paper_result: ClassVar[str] = "60.5 % mIoU COCO, VOC classes (torchvision)"
    backbone: ClassVar[str] = "resnet50"

    init: str = ""
    """Weights to begin with: coco or imagenet (torchvision's network or classifier, downloaded), a file of a state dict
    of either, or a run's folder."""
    aux_loss: bool = True
    """A second answer from layer3 in training, whose loss counts a half."""

    def build_model(self, num_classes: int) -> "nn.Module":
        """The network on the recipe's ResNet."""
        from fukami import models

        network: nn.Module = getattr(models, f"fcn_{self.backbone}")(num_classes, aux_loss=self.aux_loss)
        return network


@dataclass(frozen=True, kw_only=True)
class FCNResNet101(FCNResNet50):
    """FCN on a dilated ResNet-101 (Long et al. 2015), as torchvision has it."""

    paper_result: ClassVar[str] = "63.7 % mIoU COCO, VOC classes (torchvision)"
    backbone: ClassVar[str] = "resnet101"

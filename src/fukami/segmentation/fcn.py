"""FCN recipes (Long et al. 2015): fully convolutional networks on VGG-16 and on torchvision's dilated ResNets."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fukami.segmentation.recipe import FCNVGG, SegmentationRecipe, SkipFCN

if TYPE_CHECKING:
    from fukami.layers.segmentation_model import SegmentationModel


@dataclass(frozen=True, kw_only=True)
class FCN32sVGG16(FCNVGG):
    """FCN-32s: VGG-16 as a fully convolutional network with 32× upsampling (Long et al. 2015, section 4.1).

    Not trained here; training runs at 3.9 images per second of 192×160 on 2 cores of an AMD EPYC. The paper: 59.4 %
    mIoU on VOC 2011.

    Example:
        fukami train fcn32s-vgg16 --data camvid --init imagenet
    """


@dataclass(frozen=True, kw_only=True)
class FCN16sVGG16(SkipFCN):
    """FCN-16s: FCN-32s with a skip connection from pool4 (Long et al. 2015, section 4.2).

    Not trained here; training runs at 3.9 images per second of 192×160 on 2 cores of an AMD EPYC. The paper: 62.4 %
    mIoU on VOC 2011.

    Example:
        fukami train fcn16s-vgg16 --data camvid --init imagenet
    """

    coarser_recipes: ClassVar[tuple[str, ...]] = ("fcn32s-vgg16",)


@dataclass(frozen=True, kw_only=True)
class FCN8sVGG16(SkipFCN):
    """FCN-8s: FCN-16s with a skip connection from pool3 (Long et al. 2015, section 4.2).

    Result: 56.95 % mIoU on CamVid at half the size after 16 epochs in 31 minutes on 2 cores of an AMD EPYC. The paper:
    62.7 % mIoU on VOC 2011.

    Example:
        fukami train fcn8s-vgg16 --data camvid --init vgg16_features_imagenet.safetensors --batch-norm --hidden
            512 --lr 2e-3 --backbone-lr-factor 0.1 --min-size 180 --epochs 16 --batch-size 2 --balance root
            --augment flip crop=0.5 brightness=0.3
    """

    coarser_recipes: ClassVar[tuple[str, ...]] = ("fcn32s-vgg16", "fcn16s-vgg16")


@dataclass(frozen=True, kw_only=True)
class FCNResNet50(SegmentationRecipe):
    """FCN with a dilated ResNet-50, as in torchvision (Long et al. 2015).

    Not trained here; training runs at 4.9 images per second of 192×160 on 2 cores of an AMD EPYC. torchvision's
    weights, which --init coco downloads, have 60.5 % mIoU on COCO with the VOC classes.

    Example:
        fukami train fcn-resnet50 --data camvid --init coco
    """

    backbone: ClassVar[str] = "resnet50"

    init: str = ""
    """Initial weights: coco or imagenet (torchvision's network or classifier, downloaded), a state-dict file of either
    or a run's folder."""
    aux_loss: bool = True
    """Auxiliary loss on the scores of layer3 in training, with weight 0.5."""

    def build_model(self, num_classes: int) -> "SegmentationModel":
        """Build the FCN on the recipe's ResNet."""
        from fukami import models

        network: SegmentationModel = getattr(models, f"fcn_{self.backbone}")(num_classes, aux_loss=self.aux_loss)
        return network


@dataclass(frozen=True, kw_only=True)
class FCNResNet101(FCNResNet50):
    """FCN with a dilated ResNet-101, as in torchvision (Long et al. 2015).

    Not trained here; training runs at 3.7 images per second of 192×160 on 2 cores of an AMD EPYC. torchvision's
    weights, which --init coco downloads, have 63.7 % mIoU on COCO with the VOC classes.

    Example:
        fukami train fcn-resnet101 --data camvid --init coco
    """

    backbone: ClassVar[str] = "resnet101"

"""ResNet recipes for photographs and for 32×32 images (He et al. 2016)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from fukami.classification.recipe import ClassificationRecipe
from fukami.engine.recipe import FieldGroup


@dataclass(frozen=True, kw_only=True)
class ResNetFields(FieldGroup):
    """Fields of a ResNet for photographs."""

    model_arguments: ClassVar[tuple[str, ...]] = ("channels", "stem")

    augment: tuple[str, ...] = ("crop=0.3", "flip")
    """Data augmentation of the training images, such as flip crop=0.3 trivial mixup=0.2; the flag without a value
    disables it."""
    stem: Literal["7x7", "3x3"] = "7x7"
    """Stem: 7x7, the paper's, divides the side by 4; 3x3, for images of 32 to 64 pixels, preserves it."""


@dataclass(frozen=True, kw_only=True)
class BottleneckResNetFields(ResNetFields):
    """Fields of a ResNet for photographs with bottleneck blocks."""

    model_arguments: ClassVar[tuple[str, ...]] = ("channels", "stem", "stride_in")

    stride_in: Literal["3x3", "1x1"] = "3x3"
    """Convolution of a bottleneck block with stride 2: 1x1 in the paper, 3x3 in torchvision's weights."""


@dataclass(frozen=True, kw_only=True)
class SmallImageResNetFields(FieldGroup):
    """Fields of a ResNet for 32×32 images."""

    model_arguments: ClassVar[tuple[str, ...]] = ("channels", "shortcut")

    size: int = 32
    """Input size: side of the square input image, in pixels."""
    epochs: int = 30
    """Number of epochs."""
    batch_size: int = 128
    """Global batch size, over all processes."""
    lr: float = 0.2
    """Peak learning rate."""
    augment: tuple[str, ...] = ("flip", "pad-crop=4")
    """Data augmentation of the training images, such as flip crop=0.3 trivial mixup=0.2; the flag without a value
    disables it."""
    shortcut: Literal["A", "B"] = "A"
    """Shortcut at reduced resolution: A pads with zero channels, as in the paper on CIFAR, B is a 1×1 convolution."""


@dataclass(frozen=True, kw_only=True)
class ResNet18(ResNetFields, ClassificationRecipe):
    """ResNet-18: eight blocks of two 3×3 convolutions (He et al. 2016, table 1).

    Accuracy not measured; training runs at 54 images per second of 224×224 on 2 cores of an AMD EPYC. The paper:
    72.12 % top-1 accuracy on ImageNet, 10 crops.

    Example:
        fukami train resnet18 --data flowers --init imagenet
    """


@dataclass(frozen=True, kw_only=True)
class ResNet34(ResNetFields, ClassificationRecipe):
    """ResNet-34: sixteen blocks of two 3×3 convolutions (He et al. 2016, table 1).

    Accuracy not measured; training runs at 30 images per second of 224×224 on 2 cores of an AMD EPYC. The paper:
    75.48 % top-1 accuracy on ImageNet, 10 crops.

    Example:
        fukami train resnet34 --data flowers --init imagenet
    """


@dataclass(frozen=True, kw_only=True)
class ResNet50(BottleneckResNetFields, ClassificationRecipe):
    """ResNet-50: 16 bottleneck blocks (He et al. 2016, table 1).

    Accuracy not measured; training runs at 22 images per second of 224×224 on 2 cores of an AMD EPYC. The paper:
    77.15 % top-1 accuracy on ImageNet, 10 crops.

    Example:
        fukami train resnet50 --data flowers --init imagenet
    """


@dataclass(frozen=True, kw_only=True)
class ResNet101(BottleneckResNetFields, ClassificationRecipe):
    """ResNet-101: 33 bottleneck blocks (He et al. 2016, table 1).

    Accuracy not measured; training runs at 13 images per second of 224×224 on 2 cores of an AMD EPYC. The paper:
    78.25 % top-1 accuracy on ImageNet, 10 crops.

    Example:
        fukami train resnet101 --data flowers --init imagenet
    """


@dataclass(frozen=True, kw_only=True)
class ResNet152(BottleneckResNetFields, ClassificationRecipe):
    """ResNet-152: 50 bottleneck blocks (He et al. 2016, table 1).

    Accuracy not measured; training runs at 8.8 images per second of 224×224 on 2 cores of an AMD EPYC. The paper:
    78.57 % top-1 accuracy on ImageNet, 10 crops.

    Example:
        fukami train resnet152 --data flowers --init imagenet
    """


@dataclass(frozen=True, kw_only=True)
class ResNet20(SmallImageResNetFields, ClassificationRecipe):
    """ResNet-20 for 32×32 images: 0.27 million parameters (He et al. 2016, section 4.2).

    Result: 88.32 % test accuracy on CIFAR-10 in JPEG files after 64 epochs in 38 minutes on 2 cores of an AMD EPYC; the
    paper: 91.25 %.

    Example:
        fukami train resnet20 --data cifar10 --epochs 64 --lr 0.15 --label-smoothing 0.1 --augment flip
            pad-crop=4 erase=0.5
    """


@dataclass(frozen=True, kw_only=True)
class ResNet32(SmallImageResNetFields, ClassificationRecipe):
    """ResNet-32 for 32×32 images: five blocks per stage (He et al. 2016, section 4.2).

    Accuracy not measured; training runs at 449 images per second of 32×32 on 2 cores of an AMD EPYC. The paper: 92.49 %
    test accuracy on CIFAR-10.

    Example:
        fukami train resnet32 --data cifar10
    """


@dataclass(frozen=True, kw_only=True)
class ResNet44(SmallImageResNetFields, ClassificationRecipe):
    """ResNet-44 for 32×32 images: seven blocks per stage (He et al. 2016, section 4.2).

    Accuracy not measured; training runs at 330 images per second of 32×32 on 2 cores of an AMD EPYC. The paper: 92.83 %
    test accuracy on CIFAR-10.

    Example:
        fukami train resnet44 --data cifar10
    """


@dataclass(frozen=True, kw_only=True)
class ResNet56(SmallImageResNetFields, ClassificationRecipe):
    """ResNet-56 for 32×32 images: nine blocks per stage (He et al. 2016, section 4.2).

    Accuracy not measured; training runs at 269 images per second of 32×32 on 2 cores of an AMD EPYC. The paper: 93.03 %
    test accuracy on CIFAR-10.

    Example:
        fukami train resnet56 --data cifar10
    """


@dataclass(frozen=True, kw_only=True)
class ResNet110(SmallImageResNetFields, ClassificationRecipe):
    """ResNet-110 for 32×32 images: eighteen blocks per stage (He et al. 2016, section 4.2).

    Accuracy not measured; training runs at 140 images per second of 32×32 on 2 cores of an AMD EPYC. The paper: 93.57 %
    test accuracy on CIFAR-10.

    Example:
        fukami train resnet110 --data cifar10
    """

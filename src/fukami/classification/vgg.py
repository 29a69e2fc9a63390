"""VGG recipes (Simonyan and Zisserman 2015)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fukami.classification.recipe import ClassificationRecipe
from fukami.engine.recipe import MAX_INPUT_SIZE, FieldGroup, check_range, get_network_name


@dataclass(frozen=True, kw_only=True)
class VGGFields(FieldGroup):
    """Fields of VGG with 11 to 19 layers."""

    encoder_overrides: ClassVar[dict[str, int]] = {"hidden": 0}  # published features have no fully connected layers
    model_arguments: ClassVar[tuple[str, ...]] = ("channels", "size", "hidden", "dropout")
    init_defaults: ClassVar[Mapping[str, object]] = {**ClassificationRecipe.init_defaults, "lr": 3e-3}
    freeze_defaults: ClassVar[Mapping[str, object]] = {"optimizer": "adamw", "lr": 3e-4}

    lr: float = 0.01
    """Peak learning rate."""
    augment: tuple[str, ...] = ("crop=0.3", "flip")
    """Data augmentation of the training images, such as flip crop=0.3 trivial mixup=0.2; the flag without a value
    disables it."""
    batch_norm: bool = False
    """Batch normalization after every convolution (Ioffe and Szegedy 2015)."""
    hidden: int = 4096
    """Number of units of the two hidden fully connected layers; 0 classifies the global average of the last maps."""
    dropout: float = 0.5
    """Dropout probability."""

    def __post_init__(self) -> None:
        """Validate the fields."""
        super().__post_init__()
        check_range(self, 32, MAX_INPUT_SIZE, "size")
        check_range(self, 0, math.inf, "hidden")
        check_range(self, 0, 0.99, "dropout")

    @property
    def architecture(self) -> str:
        """Name of the network's function in :mod:`fukami.models`."""
        return get_network_name(type(self)) + ("_bn" if self.batch_norm else "")


@dataclass(frozen=True, kw_only=True)
class VGG16(VGGFields, ClassificationRecipe):
    """VGG-16: 13 3×3 convolutions and three fully connected layers (Simonyan and Zisserman 2015, table 1, D).

    Result: 70.84 % on 1,000 test images of CIFAR-10, fine-tuned from ImageNet features on 3,000 images at 64 pixels,
    mean of 4 seeds, 7 minutes each on 2 cores of an AMD EPYC. The paper: 74.4 % top-1 accuracy on ImageNet, one scale.

    Example:
        fukami train vgg16 --data flowers --init imagenet
    """


@dataclass(frozen=True, kw_only=True)
class VGG11(VGGFields, ClassificationRecipe):
    """VGG-11: eight 3×3 convolutions and three fully connected layers (Simonyan and Zisserman 2015, table 1, A).

    Accuracy not measured; training runs at 16 images per second of 224×224 on 2 cores of an AMD EPYC. The paper: 70.4 %
    top-1 accuracy on ImageNet, one scale.

    Example:
        fukami train vgg11 --data flowers --init imagenet
    """


@dataclass(frozen=True, kw_only=True)
class VGG13(VGGFields, ClassificationRecipe):
    """VGG-13: ten 3×3 convolutions and three fully connected layers (Simonyan and Zisserman 2015, table 1, B).

    Accuracy not measured; training runs at 11 images per second of 224×224 on 2 cores of an AMD EPYC. The paper: 71.3 %
    top-1 accuracy on ImageNet, one scale.

    Example:
        fukami train vgg13 --data flowers --init imagenet
    """


@dataclass(frozen=True, kw_only=True)
class VGG19(VGGFields, ClassificationRecipe):
    """VGG-19: 16 3×3 convolutions and three fully connected layers (Simonyan and Zisserman 2015, table 1, E).

    Accuracy not measured; training runs at 7.0 images per second of 224×224 on 2 cores of an AMD EPYC. The paper:
    74.5 % top-1 accuracy on ImageNet, one scale.

    Example:
        fukami train vgg19 --data flowers --init imagenet
    """

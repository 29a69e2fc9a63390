"""ResNet (He et al. 2016): residual learning, for photographs and for images of 32×32."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from fukami.classification.recipe import ClassificationRecipe


@dataclass(frozen=True, kw_only=True)
class ResNet18(ClassificationRecipe):
    """ResNet-18 (He et al. 2016, table 1): eight blocks of two 3×3 convolutions."""

    paper: ClassVar[str] = "He et al., Deep Residual Learning for Image Recognition"
    year: ClassVar[int] = 2016
    paper_result: ClassVar[str] = "72.12 % ImageNet top-1, 10 crops"
    model_arguments: ClassVar[tuple[str, ...]] = ("channels", "stem")

    augment: tuple[str, ...] = ("crop=0.3", "flip")
    """Changes of the training images, such as flip crop=0.3 trivial mixup=0.2; none: give the flag alone."""
    stem: Literal["7x7", "3x3"] = "7x7"
    """How the network begins: 7x7, the paper's, leaves a quarter of the side; 3x3, for images of 32 to 64 pixels, all
    of it."""


@dataclass(frozen=True, kw_only=True)
class ResNet34(ResNet18):
    """ResNet-34 (He et al. 2016, table 1): sixteen blocks of two 3×3 convolutions."""

    paper_result: ClassVar[str] = "75.48 % ImageNet top-1, 10 crops"


@dataclass(frozen=True, kw_only=True)
class ResNet50(ResNet18):
    """ResNet-50 (He et al. 2016, table 1): 16 bottleneck blocks."""

    paper_result: ClassVar[str] = "77.15 % ImageNet top-1, 10 crops"
    model_arguments: ClassVar[tuple[str, ...]] = ("channels", "stem", "stride_in")

    stride_in: Literal["3x3", "1x1"] = "3x3"
    """Which convolution of a bottleneck halves the maps: 1x1 in the paper, 3x3 in torchvision and its weights."""


@dataclass(frozen=True, kw_only=True)
class ResNet101(ResNet50):
    """ResNet-101 (He et al. 2016, table 1): 33 bottleneck blocks."""

    paper_result: ClassVar[str] = "78.25 % ImageNet top-1, 10 crops"


@dataclass(frozen=True, kw_only=True)
class ResNet152(ResNet50):
    """ResNet-152 (He et al. 2016, table 1): 50 bottleneck blocks."""

    paper_result: ClassVar[str] = "78.57 % ImageNet top-1, 10 crops"


@dataclass(frozen=True, kw_only=True)
class ResNet20(ClassificationRecipe):
    """ResNet-20 (He et al. 2016, section 4.2): 0.27 million parameters for images of 32×32."""

    paper: ClassVar[str] = "He et al., Deep Residual Learning for Image Recognition"
    year: ClassVar[int] = 2016
    paper_result: ClassVar[str] = "91.25 % CIFAR-10"
    reproduced_result: ClassVar[str] = "88.32 % CIFAR-10 as JPEG, 64 epochs, one seed"
    model_arguments: ClassVar[tuple[str, ...]] = ("channels", "shortcut")

    size: int = 32
    """Side of the images that the network sees, in pixels."""
    epochs: int = 30
    """Passes over the training set."""
    batch_size: int = 128
    """Images in an update."""
    lr: float = 0.2
    """Peak learning rate."""
    augment: tuple[str, ...] = ("flip", "pad-crop=4")
    """Changes of the training images, such as flip crop=0.3 trivial mixup=0.2; none: give the flag alone."""
    shortcut: Literal["A", "B"] = "A"
    """Where the maps get smaller: A adds channels of zeros, as the paper does on CIFAR; B a 1×1 convolution."""


@dataclass(frozen=True, kw_only=True)
class ResNet32(ResNet20):
    """ResNet-32 (He et al. 2016, section 4.2): five blocks in each stage."""

    paper_result: ClassVar[str] = "92.49 % CIFAR-10"


@dataclass(frozen=True, kw_only=True)
class ResNet44(ResNet20):
    """ResNet-44 (He et al. 2016, section 4.2): seven blocks in each stage."""

    paper_result: ClassVar[str] = "92.83 % CIFAR-10"


@dataclass(frozen=True, kw_only=True)
class ResNet56(ResNet20):
    """ResNet-56 (He et al. 2016, section 4.2): nine blocks in each stage."""

    paper_result: ClassVar[str] = "93.03 % CIFAR-10"


@dataclass(frozen=True, kw_only=True)
class ResNet110(ResNet20):
    """ResNet-110 (He et al. 2016, section 4.2): eighteen blocks in each stage."""

    paper_result: ClassVar[str] = "93.57 % CIFAR-10"

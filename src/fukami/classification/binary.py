"""Recipes of networks with 1-bit weights and activations (Courbariaux et al. 2016; Rastegari et al. 2016)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from fukami.classification.deep_convnet import DeepConvNetFields
from fukami.classification.recipe import ClassificationRecipe
from fukami.engine.recipe import MAX_INPUT_SIZE, FieldGroup, check_range
from fukami.engine.supervised import OptimizerName


@dataclass(frozen=True, kw_only=True)
class BinarizationFields(FieldGroup):
    """Fields of classifiers with 1-bit weights and activations."""

    optimizer: OptimizerName = "adam"
    """Optimizer; momentum and nesterov are SGD."""
    lr: float = 3e-3
    """Peak learning rate."""
    weight_decay: float = 0.0
    """Weight decay; latent weights of binarized layers need none."""
    scaling_factors: bool = False
    """Scaling factors of the binarized weights, as in XNOR-Net (Rastegari et al. 2016)."""
    learned_thresholds: bool = False
    """Learned thresholds of the sign activations, as in ReActNet."""


@dataclass(frozen=True, kw_only=True)
class BinaryConvNet(BinarizationFields, ClassificationRecipe):
    """Binarized network for CIFAR-10 with 14 million 1-bit weights (Courbariaux et al. 2016, section 2.3).

    Result: 80.88 % test accuracy on CIFAR-10 in JPEG files, with half the channels, after 24 epochs in 32 minutes on 2
    cores of an AMD EPYC; the paper's network of full width has 88.6 %.

    Example:
        fukami train binary-convnet --data cifar10 --epochs 24 --widths 64 64 128 128 256 256 --hidden 512 512
    """

    model_arguments: ClassVar[tuple[str, ...]] = (
        "channels", "size", "widths", "hidden", "end_layers", "scaling_factors", "learned_thresholds"
    )  # fmt: skip

    size: int = 32
    """Input size: side of the square input image, in pixels."""
    epochs: int = 100
    """Number of epochs."""
    batch_size: int = 100
    """Global batch size, over all processes."""
    augment: tuple[str, ...] = ("flip", "pad-crop=4")
    """Data augmentation of the training images, such as flip crop=0.3 trivial mixup=0.2; the flag without a value
    disables it."""
    widths: tuple[int, ...] = (128, 128, 256, 256, 512, 512)
    """Number of channels of the convolutions; each pair is followed by pooling."""
    hidden: tuple[int, ...] = (1024, 1024)
    """Numbers of units of the hidden fully connected layers."""
    end_layers: Literal["float", "binary"] = "float"
    """Weights of the first and last layer: float (full precision) or binary (1 bit, as in the paper)."""

    def __post_init__(self) -> None:
        """Validate the fields."""
        super().__post_init__()
        check_range(self, 2 ** (len(self.widths) // 2), MAX_INPUT_SIZE, "size")


@dataclass(frozen=True, kw_only=True)
class BinaryDeepConvNet(BinarizationFields, DeepConvNetFields, ClassificationRecipe):
    """DeepConvNet with 1-bit weights and activations and twice the channels (Courbariaux et al. 2016).

    Result: 99.28 % test accuracy on MNIST in 23 minutes on 2 cores of an AMD EPYC; the paper's network of fully
    connected layers has 99.04 %.

    Example:
        fukami train binary-deep-convnet --data mnist
    """

    model_arguments: ClassVar[tuple[str, ...]] = (
        "channels", "size", "widths", "hidden", "dropout", "end_layers", "scaling_factors", "learned_thresholds"
    )  # fmt: skip

    epochs: int = 15
    """Number of epochs."""
    dropout: float = 0.0
    """Dropout probability."""
    widths: tuple[int, int, int, int, int, int] = (32, 32, 64, 64, 128, 128)
    """Number of channels of the six convolutions."""
    hidden: int = 128
    """Number of units of the hidden fully connected layer."""
    end_layers: Literal["float", "binary"] = "float"
    """Weights of the first and last layer: float (full precision) or binary (1 bit, as in the paper)."""


@dataclass(frozen=True, kw_only=True)
class BinaryResNet18(BinarizationFields, ClassificationRecipe):
    """Binarized ResNet-18 with a shortcut around every 1-bit convolution (Liu et al. 2018, Bi-Real Net).

    Accuracy not measured; training runs at 45 images per second of 224×224 on 2 cores of an AMD EPYC. The paper: 56.4 %
    top-1 accuracy on ImageNet.

    Example:
        fukami train binary-resnet18 --data flowers
    """

    model_arguments: ClassVar[tuple[str, ...]] = ("channels", "stem", "scaling_factors", "learned_thresholds")

    lr: float = 2e-3
    """Peak learning rate."""
    augment: tuple[str, ...] = ("crop=0.3", "flip")
    """Data augmentation of the training images, such as flip crop=0.3 trivial mixup=0.2; the flag without a value
    disables it."""
    stem: Literal["7x7", "3x3"] = "7x7"
    """Stem: 7x7, the paper's, divides the side by 4; 3x3, for images of 32 to 64 pixels, preserves it."""

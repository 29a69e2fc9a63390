"""GoogLeNet recipe (Szegedy et al. 2015)."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from fukami.classification.recipe import ClassificationRecipe
from fukami.engine.recipe import MAX_INPUT_SIZE, check_range

if TYPE_CHECKING:
    from fukami.image.transform import SquareTransform


MIN_SIZE = 15  # pixels; below it, the third pooling has no output


@dataclass(frozen=True, kw_only=True)
class GoogLeNet(ClassificationRecipe):
    """GoogLeNet: nine inception blocks and two auxiliary classifiers (Szegedy et al. 2015, table 1).

    Result: 65.67 % test accuracy on CIFAR-10 in JPEG files at 32 pixels after 5 epochs in 12 minutes on 2 cores of an
    AMD EPYC. The paper: 89.93 % top-5 accuracy on ImageNet with one crop.

    Example:
        fukami train googlenet --data flowers --init imagenet
    """

    encoder_overrides: ClassVar[dict[str, int]] = {"aux_loss": False}
    model_arguments: ClassVar[tuple[str, ...]] = ("channels", "aux_loss", "kernel_size", "dropout")

    augment: tuple[str, ...] = ("crop=0.3", "flip")
    """Data augmentation of the training images, such as flip crop=0.3 trivial mixup=0.2; the flag without a value
    disables it."""
    aux_loss: bool = True
    """Auxiliary classifiers: add the losses of two intermediate classifiers, with the weight 0.3 each."""
    kernel_size: Literal[3, 5] = 3
    """Kernel size of the largest convolutions: 5 in the paper, 3 in torchvision's weights."""
    dropout: float = 0.2
    """Dropout probability before the last layer: 0.4 in the paper, 0.2 in torchvision."""

    def __post_init__(self) -> None:
        """Validate the fields."""
        super().__post_init__()
        check_range(self, MIN_SIZE, MAX_INPUT_SIZE, "size")
        check_range(self, 0, 0.99, "dropout")

    def build_transform(self, labels: tuple[str, ...]) -> "SquareTransform":
        """Build the image preprocessing; values are in [-1, 1], as torchvision's weights expect."""
        return replace(super().build_transform(labels), mean=(0.5,), std=(0.5,))

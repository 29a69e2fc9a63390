"""AlexNet recipe (Krizhevsky et al. 2012)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fukami.classification.recipe import ClassificationRecipe
from fukami.engine.recipe import MAX_INPUT_SIZE, check_range


@dataclass(frozen=True, kw_only=True)
class AlexNet(ClassificationRecipe):
    """AlexNet: five convolutions and three fully connected layers (Krizhevsky et al. 2012), in its single-GPU version.

    Not measured. The paper: 59.3 % top-1 accuracy on ImageNet, one network (table 2).

    Example:
        fukami train alexnet --data flowers --init imagenet
    """

    model_arguments: ClassVar[tuple[str, ...]] = ("channels", "size", "hidden", "dropout")
    init_defaults: ClassVar[Mapping[str, object]] = {**ClassificationRecipe.init_defaults, "lr": 3e-3}
    freeze_defaults: ClassVar[Mapping[str, object]] = {"optimizer": "adamw", "lr": 3e-4}

    lr: float = 0.01
    """Peak learning rate."""
    augment: tuple[str, ...] = ("crop=0.3", "flip")
    """Data augmentation of the training images, such as flip crop=0.3 trivial mixup=0.2; the flag without a value
    disables it."""
    hidden: int = 4096
    """Number of units of the two hidden fully connected layers."""
    dropout: float = 0.5
    """Dropout probability."""

    def __post_init__(self) -> None:
        """Validate the fields."""
        super().__post_init__()
        check_range(self, 63, MAX_INPUT_SIZE, "size")
        check_range(self, 1, math.inf, "hidden")
        check_range(self, 0, 0.99, "dropout")

"""DeepConvNet on handwritten digits: the first landmark."""

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

from fukami.recipe import Data, Dataset, Recipe, within

if TYPE_CHECKING:
    from fukami.preparation import Preparation
    from fukami.tasks.classification import Classification


@dataclass(frozen=True, kw_only=True)
class DeepConvNet(Recipe):
    """DeepConvNet (Saitoh 2016, section 8.1): eight layers, better than 99.5 % on MNIST."""

    paper: ClassVar[str] = "Saitoh, Deep Learning from Scratch"
    year: ClassVar[int] = 2016
    family: ClassVar[str] = "classification"
    published: ClassVar[str] = "99.35 % MNIST"
    reached: ClassVar[str] = "99.576 % MNIST, mean of 5 seeds"

    dataset: Dataset = "digits"
    """What to learn from: mnist, digits (embedded), or a folder or archive of pictures by class."""
    holdout: float = 0.2
    """Share of each class kept for testing, where the data have no test part of their own."""
    epochs: int = 10
    """Passes over the training set."""
    batch: int = 100
    """Pictures in an update."""
    lr: float = 2e-3
    """Peak learning rate of AdamW."""
    weight_decay: float = 0.01
    """Decoupled weight decay (Loshchilov and Hutter 2019)."""
    warmup: float = 0.1
    """Share of the training in which the learning rate rises; it falls along a cosine afterwards."""
    dropout: float = 0.5
    """Share of the hidden units dropped in training."""
    shift: float = 2.0
    """Augmentation: pixels moved at most."""
    rotate: float = 10.0
    """Augmentation: degrees turned at most."""
    scale: float = 0.1
    """Augmentation: share grown or shrunk at most."""
    shear: float = 0.1
    """Augmentation: pixels slanted for each pixel of height at most."""
    size: int = 28
    """Side of the pictures that the network sees, in pixels."""
    channels: Literal[1, 3] = 1
    """1 grey, 3 colour."""
    convention: Literal["auto", "digit", "picture"] = "auto"
    """How pictures are prepared: digit (one character, brought to MNIST's form), picture (resized); auto takes digit
    where every class is a digit."""
    widths: tuple[int, int, int, int, int, int] = (16, 16, 32, 32, 64, 64)
    """Channels of the six convolutions."""
    hidden: int = 50
    """Units of the first affine layer."""

    def __post_init__(self) -> None:
        """Refuse what no run can have."""
        within(self, 1, math.inf, "epochs", "batch", "hidden")
        within(self, 4, math.inf, "size")
        within(self, 0, math.inf, "lr", "weight_decay", "shift", "rotate", "shear")
        within(self, 0, 1, "holdout")
        within(self, 0, 0.99, "warmup", "dropout", "scale")

    def data(self) -> Data:
        """The data set, in memory as bytes."""
        from fukami.data import classification
        from fukami.data.augment import Affine
        from fukami.data.loader import Resident

        train, test, labels = classification.read(self.dataset, self.prepare, self.holdout)
        affine = Affine(shift=self.shift, rotate=self.rotate, scale=self.scale, shear=self.shear)
        training = Resident(
            train.pictures, train.targets, labels, batch=self.batch, names=train.names, seed=self.seed, augment=affine
        )
        return Data(training, Resident(test.pictures, test.targets, labels, batch=500), labels)

    def task(self, labels: tuple[str, ...]) -> "Classification":
        """A classifier over ``labels``."""
        import torch

        from fukami.models import deep_convnet
        from fukami.schedules import one_cycle
        from fukami.tasks.classification import Classification

        model = deep_convnet(
            len(labels),
            channels=self.channels,
            size=self.size,
            widths=self.widths,
            hidden=self.hidden,
            dropout=self.dropout,
        )
        optimizer = partial(torch.optim.AdamW, lr=self.lr, weight_decay=self.weight_decay, fused=True)
        return Classification(
            model, labels, self.prepare(labels), optimizer=optimizer, decay=one_cycle(self.warmup), epochs=self.epochs
        )

    def prepare(self, labels: tuple[str, ...]) -> "Preparation":
        """How a picture is brought to the form that the network sees."""
        from fukami.preparation import Preparation

        digits = all(len(label) == 1 and label.isdigit() for label in labels)
        digit = self.convention == "digit" or (
            self.convention == "auto" and digits and (self.size, self.channels) == (28, 1)
        )
        return Preparation(channels=self.channels, size=self.size, digit=digit)

"""A recipe of one's own: a small network for classified pictures."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from fukami import Data, Recipe
from fukami.data import classification
from fukami.data.augment import Affine
from fukami.data.loader import Resident
from fukami.preparation import Preparation
from fukami.recipe import Dataset
from fukami.schedules import one_cycle
from fukami.tasks.classification import Classification


@dataclass(frozen=True, kw_only=True)
class Small(Recipe):
    """Two convolutions and one affine layer."""

    dataset: Dataset = "digits"
    """What to learn from: mnist, digits (embedded), or a folder or archive of pictures by class."""
    holdout: float = 0.2
    """Share of each class kept for testing, where the data have no test part of their own."""
    epochs: int = 5
    """Passes over the training set."""
    lr: float = 1e-3
    """Peak learning rate of AdamW."""
    width: int = 16
    """Channels of the first convolution; the second has twice as many."""

    def data(self) -> Data:
        """The data set, in memory as bytes."""
        train, test, labels = classification.read(self.dataset, self.prepare, self.holdout)
        training = Resident(
            train.pictures, train.targets, labels, batch=64, names=train.names, seed=self.seed, augment=Affine(shift=2)
        )
        return Data(training, Resident(test.pictures, test.targets, labels, batch=500), labels)

    def task(self, labels: tuple[str, ...]) -> Classification:
        """A classifier over ``labels``."""
        model = nn.Sequential(
            nn.Conv2d(1, self.width, 5, stride=2, padding=2), nn.ReLU(),
            nn.Conv2d(self.width, 2 * self.width, 5, stride=2, padding=2), nn.ReLU(),
            nn.Flatten(), nn.Linear(2 * self.width * 7 * 7, len(labels)),
        )  # fmt: skip
        return Classification(
            model,
            labels,
            self.prepare(labels),
            optimizer=partial(torch.optim.AdamW, lr=self.lr),
            decay=one_cycle(0.1),
            epochs=self.epochs,
        )

    def prepare(self, labels: tuple[str, ...]) -> Preparation:
        """How a picture is brought to the form that the network sees: 28×28, grey."""
        return Preparation(channels=1, size=28, digit=labels == tuple("0123456789"))

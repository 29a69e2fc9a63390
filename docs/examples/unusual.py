"""A task of one's own: how unusual is an image, for a network that has learned to copy the usual ones?"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fukami import Data, Error, Recipe, Task
from fukami.data import labelled_images
from fukami.data.loader import InMemoryLoader
from fukami.image import io as image_io
from fukami.image.transform import SquareTransform


class Copying(Task):
    """Copy the image through a narrow layer; what cannot be copied well is unusual."""

    def __init__(self, model: nn.Module, prepare: SquareTransform, *, lr: float, epochs: int) -> None:
        super().__init__(model, optimizer=partial(torch.optim.AdamW, lr=lr), epochs=epochs)
        self.prepare = prepare

    def compute_loss(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared difference of the copy."""
        images = batch[0].float() / 255
        return F.mse_loss(self.training_model(images), images), {}

    def distances(self, images: Tensor) -> Tensor:
        """The same for each image, ``(N,)``, in the precision of the weights."""
        parameter = next(self.model.parameters())
        images = images.to(parameter.device, parameter.dtype) / 255
        return (self.model(images) - images).float().square().mean((1, 2, 3))

    @torch.inference_mode()
    def evaluate(self, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
        """The mean distance, and how many images it is of."""
        sums = torch.zeros(2, device=next(self.model.parameters()).device)
        for images, _ in batches:
            sums += torch.stack([self.distances(images).sum(), sums.new_tensor(len(images))])
        distance, count = self.runtime.all_reduce_sum(sums).tolist()
        return {"distance": distance / count, "count": int(count)}

    @torch.inference_mode()
    def predict(self, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """The distance of each image, or why it could not be read."""
        answers: list[dict[str, Any]] = []
        for source in inputs:
            answer: dict[str, Any] = {"file": str(source)} if isinstance(source, str | Path) else {}
            try:
                image = torch.from_numpy(self.prepare(image_io.read_image(source)))
                answers.append({**answer, "distance": self.distances(image[None]).item()})
            except Error as error:
                answers.append({**answer, "error": str(error)})
        return answers


@dataclass(frozen=True, kw_only=True)
class Unusual(Recipe):
    """A two-layer autoencoder of images."""

    data: str = "digits"
    """What to learn from: mnist, digits (embedded), or a folder or archive of images by class."""
    holdout: float = 0.2
    """Share of each class kept for testing, where the data have no test part of their own."""
    epochs: int = 5
    """Passes over the training set."""
    lr: float = 3e-3
    """Learning rate of AdamW."""
    narrow: int = 24
    """Values that an image has to pass through."""

    def load_data(self) -> Data:
        """The data set; what the classes are does not matter here."""
        *parts, labels = labelled_images.load_labelled_images(self.data, self.holdout)
        train, test = (part.decode(self.prepare(labels)) for part in parts)
        training = InMemoryLoader(train.images, train.targets, labels, batch_size=64, names=train.names, seed=self.seed)
        return Data(training, InMemoryLoader(test.images, test.targets, labels, batch_size=500), labels)

    def build_task(self, labels: tuple[str, ...]) -> Copying:
        """An autoencoder; it has no use for the labels."""
        model = nn.Sequential(
            nn.Flatten(),
            nn.Linear(784, self.narrow),
            nn.ReLU(),
            nn.Linear(self.narrow, 784),
            nn.Unflatten(1, (1, 28, 28)),
        )
        return Copying(model, self.prepare(labels), lr=self.lr, epochs=self.epochs)

    def prepare(self, labels: tuple[str, ...]) -> SquareTransform:
        """How an image is brought to the form that the network sees: 28×28, grey."""
        return SquareTransform(channels=1, size=28, mnist_digit=labels == tuple("0123456789"))

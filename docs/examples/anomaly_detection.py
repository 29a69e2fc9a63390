"""A custom task: anomaly detection by the reconstruction error of an autoencoder."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fukami import Data, Recipe, Task
from fukami.data import labeled_images
from fukami.data.labeled_images import LabeledImages
from fukami.data.loader import InMemoryLoader
from fukami.image.transform import SquareTransform


class ReconstructionTask(Task):
    """Reconstruction of images through a bottleneck; anomalous images have a large error."""

    predict_batch_size = 100
    metric_mode = "min"  # of the first metric, the error, whose best value determines the weights that are kept

    def __init__(self, model: nn.Module, transform: SquareTransform, *, lr: float, epochs: int) -> None:
        super().__init__(model, optimizer=partial(torch.optim.AdamW, lr=lr), epochs=epochs)
        self.transform = transform

    def compute_loss(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the mean squared error of the reconstruction."""
        images = batch[0].float() / 255
        return F.mse_loss(self.training_model(images), images), {}

    def compute_errors(self, images: Tensor) -> Tensor:
        """Compute the mean squared error of each image, ``(N,)``, in the precision of the weights."""
        parameter = next(self.model.parameters())
        images = images.to(parameter.device, parameter.dtype) / 255
        return (self.model(images) - images).float().square().mean((1, 2, 3))

    @torch.inference_mode()
    def evaluate(self, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
        """Compute the mean error and the number of images."""
        sums = torch.zeros(2, device=next(self.model.parameters()).device)
        for images, _ in batches:
            sums += torch.stack([self.compute_errors(images).sum(), sums.new_tensor(len(images))])
        error, count = self.runtime.all_reduce_sum(sums).tolist()
        return {"mse": error / count, "count": int(count)}

    def predict_batch(self, images: Tensor) -> list[dict[str, Any]]:
        """Compute the error of each image ``(N, C, H, W)``."""
        return [{"mse": error} for error in self.compute_errors(images).tolist()]


@dataclass(frozen=True, kw_only=True)
class AnomalyDetection(Recipe):
    """Anomaly detection with a two-layer autoencoder."""

    data: str = "digits"
    """Dataset: mnist, digits (bundled), or a folder or archive of images by class."""
    val_fraction: float | None = None
    """Fraction of each class of the training images used for validation, if the dataset has no validation split."""
    epochs: int = 5
    """Number of epochs."""
    lr: float = 3e-3
    """Learning rate of AdamW."""
    bottleneck: int = 24
    """Number of units of the bottleneck."""

    def load_data(self) -> Data:
        """Load the dataset; the task ignores the classes."""
        splits = labeled_images.load_labeled_images(self.data, self.val_fraction)
        labels = splits.labels
        train = splits.train.decode(self.build_transform(labels))
        train_loader = InMemoryLoader(
            train.images, train.targets, labels, batch_size=64, names=train.names, seed=self.seed
        )

        def load(split: LabeledImages) -> InMemoryLoader | tuple[()]:
            if not len(split):
                return ()
            decoded = split.decode(self.build_transform(labels))
            return InMemoryLoader(decoded.images, decoded.targets, labels, batch_size=500)

        return Data(train_loader, load(splits.val), labels, load(splits.test))

    def build_task(self, labels: tuple[str, ...]) -> ReconstructionTask:
        """Build the autoencoder and its task."""
        model = nn.Sequential(
            nn.Flatten(),
            nn.Linear(784, self.bottleneck),
            nn.ReLU(),
            nn.Linear(self.bottleneck, 784),
            nn.Unflatten(1, (1, 28, 28)),
        )
        return ReconstructionTask(model, self.build_transform(labels), lr=self.lr, epochs=self.epochs)

    def build_transform(self, labels: tuple[str, ...]) -> SquareTransform:
        """Build the preprocessing to grayscale images of 28×28 pixels."""
        return SquareTransform(channels=1, size=28, mnist_digit=labels == tuple("0123456789"))

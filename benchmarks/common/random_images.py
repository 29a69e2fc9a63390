"""Recipe of ResNet-50 on random images, to time only the training step."""

from dataclasses import dataclass

import torch

from fukami import Data
from fukami.classification.resnet import ResNet50
from fukami.data.loader import InMemoryLoader


@dataclass(frozen=True, kw_only=True)
class RandomImages(ResNet50):
    """ResNet-50 on random images of a thousand classes."""

    data: str = "random"
    """Not used."""
    num_images: int = 4096
    """Number of images per epoch."""
    augment: tuple[str, ...] = ()
    """No augmentation."""

    @property
    def architecture(self) -> str:
        """Return the name of the model in :mod:`fukami.models`."""
        return "resnet50"

    def load_data(self) -> Data:
        """Create random images."""
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.num_images, self.channels, self.size, self.size)
        images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        targets = torch.arange(self.num_images) % 1000
        labels = tuple(map(str, range(1000)))
        return Data(InMemoryLoader(images, targets, labels, batch_size=self.batch_size, seed=self.seed), (), labels)

"""Network, optimizer, batches and clock of all training loops; see ``step_times.py``."""

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader, Dataset, TensorDataset

import fukami

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Work:
    """Workload from the command line: ``plain.py resnet20 --data FOLDER --batch-size 128 --steps 39 ...``."""

    def __init__(self):
        options = argparse.ArgumentParser()
        options.add_argument("load")
        options.add_argument("--data", type=Path, help="Folder with images.npy and targets.npy; not for resnet50.")
        options.add_argument("--batch-size", type=int, required=True)
        options.add_argument("--size", type=int, default=224, help="Size of the random images.")
        options.add_argument("--steps", type=int, required=True, help="Number of steps per window.")
        options.add_argument("--windows", type=int, required=True)
        options.add_argument("--workers", type=int, default=os.cpu_count())
        options.add_argument("--mixed", action="store_true")
        options.add_argument("--compile", action="store_true")
        self.options = options.parse_args()
        self.load, self.mixed, self.compile = self.options.load, self.options.mixed, self.options.compile
        torch.manual_seed(0)
        self.clock = Clock(self.options.steps, self.options.windows)

    @property
    def augmented(self):
        """Return whether the loader augments the images."""
        return self.load in ("deep-convnet-augmented", "resnet20", "resnet56")

    def network(self):
        """Build the recipe's network, or torchvision's ResNet-50, on the CPU."""
        if self.load == "resnet50":
            return torchvision.models.resnet50()
        return fukami.get_recipe(self.load.removesuffix("-augmented"))().build_model(10)

    def optimizer(self, parameters):
        """Create the recipe's optimizer: AdamW for DeepConvNet, SGD with Nesterov momentum for the ResNets."""
        if self.load.startswith("deep-convnet"):
            return torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.01)
        return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=5e-4, nesterov=True)

    def read(self):
        """Load images ``(N, H, W)`` or ``(N, H, W, 3)`` uint8, and class indices ``(N,)``."""
        return (np.load(self.options.data / f"{name}.npy") for name in ("images", "targets"))

    def loader(self):
        """Build the loader as is usual for a plain loop, Lightning or Accelerate.

        Without augmentation, a ``TensorDataset`` holds the images in memory. With augmentation, torchvision's
        transforms (version 2) run image by image in worker processes. The random images are batches on the device.
        """
        if self.load == "resnet50":
            return DataLoader(OnDevice(self.options.batch_size, self.options.size), batch_size=None, shuffle=True)
        settings = {"batch_size": self.options.batch_size, "shuffle": True, "pin_memory": CUDA}
        if not self.augmented:
            images, targets = map(torch.from_numpy, self.read())
            return DataLoader(TensorDataset(images[:, None].float() / 255, targets), **settings)
        workers = {"num_workers": self.options.workers, "persistent_workers": self.options.workers > 0}
        return DataLoader(Images(*self.read(), self.build_transform()), **settings, **workers)

    def build_transform(self):
        """Build the transform: augmentation of Pillow images, faster than of small tensors, then conversion."""
        from torchvision.transforms import v2

        augmentation = [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()]
        normalization = [v2.Normalize(MEAN, STD)]
        if self.load == "deep-convnet-augmented":
            augmentation, normalization = [v2.RandomAffine(**AFFINE)], []
        return v2.Compose([*augmentation, v2.ToImage(), v2.ToDtype(torch.float32, scale=True), *normalization])


# shift=2 rotate=10 scale=0.1 shear=0.1 for 28×28 images; torchvision's shear is an angle
AFFINE = {
    "degrees": 10,
    "translate": (2 / 28, 2 / 28),
    "scale": (0.9, 1.1),
    "shear": 5.7,
    "interpolation": torchvision.transforms.InterpolationMode.BILINEAR,
}


class Images(Dataset):
    """Dataset of Pillow images from an array with a transform, as torchvision's ``MNIST`` and ``CIFAR10``."""

    def __init__(self, images, targets, transform):
        self.images, self.targets, self.transform = images, targets.tolist(), transform

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.transform(Image.fromarray(self.images[index])), self.targets[index]


class OnDevice(Dataset):
    """Dataset of batches of random images on the device; four batches are repeated."""

    def __init__(self, batch_size, size):
        self.batches = [torch.randn(batch_size, 3, size, size, device=DEVICE) for _ in range(4)]
        self.targets = torch.arange(batch_size, device=DEVICE) % 1000

    def __len__(self):
        return 1000

    def __getitem__(self, index):
        return self.batches[index % len(self.batches)], self.targets


class Clock:
    """Clock for images per second in windows of ``steps`` steps, as in ``metrics.jsonl``."""

    def __init__(self, steps, windows):
        self.steps, self.windows = steps, windows
        self.speeds, self.count, self.images = [], 0, 0

    def start(self):
        """Start the clock; call it right before the first batch is requested."""
        self.window_start = time.monotonic()

    def step(self, loss, images):
        """Count a step; wait for the device at the end of a window. Return whether all windows are timed."""
        self.images, self.count = self.images + images, self.count + 1
        if self.count % self.steps == 0:
            assert np.isfinite(loss.item())
            now = time.monotonic()
            self.speeds.append(self.images / (now - self.window_start))
            self.images, self.window_start = 0, now
        return len(self.speeds) == self.windows

    def report(self, **settings):
        """Print speeds and settings as the last line on stdout, and end the process."""
        print(json.dumps({"speeds": self.speeds, **settings, "threads": torch.get_num_threads()}), flush=True)
        os._exit(0)  # without waiting for the loader's workers

"""What every peer is given: the network, the optimizer, the batches and the clock; see ``step_times.py``."""

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
    """A load from the command line: ``plain.py resnet20 --data FOLDER --batch 128 --steps 39 --windows 10 ...``."""

    def __init__(self):
        options = argparse.ArgumentParser()
        options.add_argument("load")
        options.add_argument("--data", type=Path, help="images.npy and targets.npy; none for resnet50")
        options.add_argument("--batch", type=int, required=True)
        options.add_argument("--size", type=int, default=224, help="of the random images")
        options.add_argument("--steps", type=int, required=True, help="in a window")
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
        """Whether the images are changed one by one, in the loader."""
        return self.load in ("deep-convnet-augmented", "resnet20", "resnet56")

    def network(self):
        """The recipe's own, but torchvision's ResNet-50; on the CPU still."""
        if self.load == "resnet50":
            return torchvision.models.resnet50()
        return fukami.get_recipe(self.load.removesuffix("-augmented"))().build_model(10)

    def optimizer(self, parameters):
        """The recipe's: AdamW for DeepConvNet, SGD with Nesterov momentum for the ResNets, as torch makes them."""
        if self.load.startswith("deep-convnet"):
            return torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.01)
        return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=5e-4, nesterov=True)

    def read(self):
        """Images ``(N, H, W)`` or ``(N, H, W, 3)`` uint8, and the numbers of their classes."""
        return (np.load(self.options.data / f"{name}.npy") for name in ("images", "targets"))

    def loader(self):
        """The batches as the users of a plain loop, of Lightning or of Accelerate would have them.

        What is not augmented lies in memory as tensors, in a ``TensorDataset``. What is, is augmented image by
        image in worker processes, by torchvision's transforms, version 2. The random images lie on the device as
        batches.
        """
        if self.load == "resnet50":
            return DataLoader(OnDevice(self.options.batch, self.options.size), batch_size=None, shuffle=True)
        settings = {"batch_size": self.options.batch, "shuffle": True, "pin_memory": CUDA}
        if not self.augmented:
            images, targets = map(torch.from_numpy, self.read())
            return DataLoader(TensorDataset(images[:, None].float() / 255, targets), **settings)
        workers = {"num_workers": self.options.workers, "persistent_workers": self.options.workers > 0}
        return DataLoader(Images(*self.read(), self.changes()), **settings, **workers)

    def changes(self):
        """Changes of Pillow's images, which take less time than those of tensors as small, then float tensors."""
        from torchvision.transforms import v2

        moves = [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()]
        normalise = [v2.Normalize(MEAN, STD)]
        if self.load == "deep-convnet-augmented":
            moves, normalise = [v2.RandomAffine(**AFFINE)], []
        return v2.Compose([*moves, v2.ToImage(), v2.ToDtype(torch.float32, scale=True), *normalise])


# shift=2 rotate=10 scale=0.1 shear=0.1 of an image of 28×28; a shear is an angle here
AFFINE = {
    "degrees": 10,
    "translate": (2 / 28, 2 / 28),
    "scale": (0.9, 1.1),
    "shear": 5.7,
    "interpolation": torchvision.transforms.InterpolationMode.BILINEAR,
}


class Images(Dataset):
    """Pillow's images from an array, and a transform, as torchvision's ``MNIST`` and ``CIFAR10`` are."""

    def __init__(self, images, targets, transform):
        self.images, self.targets, self.transform = images, targets.tolist(), transform

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.transform(Image.fromarray(self.images[index])), self.targets[index]


class OnDevice(Dataset):
    """Whole batches of random images that are on the device already; a few of them, again and again."""

    def __init__(self, batch, size):
        self.batches = [torch.randn(batch, 3, size, size, device=DEVICE) for _ in range(4)]
        self.targets = torch.arange(batch, device=DEVICE) % 1000

    def __len__(self):
        return 1000

    def __getitem__(self, index):
        return self.batches[index % len(self.batches)], self.targets


class Clock:
    """Images per second in windows of ``steps`` steps, as ``metrics.jsonl`` has them."""

    def __init__(self, steps, windows):
        self.steps, self.windows = steps, windows
        self.speeds, self.count, self.images = [], 0, 0

    def start(self):
        """Just before the first batch is asked for."""
        self.began = time.monotonic()

    def step(self, loss, images):
        """After each step; at the end of a window, wait for the device. Returns whether it was the last."""
        self.images, self.count = self.images + images, self.count + 1
        if self.count % self.steps == 0:
            assert np.isfinite(loss.item())
            now = time.monotonic()
            self.speeds.append(self.images / (now - self.began))
            self.images, self.began = 0, now
        return len(self.speeds) == self.windows

    def tell(self, **settings):
        """The speeds, and what they were measured with, as the last line on stdout; leaves the process."""
        print(json.dumps({"speeds": self.speeds, **settings, "threads": torch.get_num_threads()}), flush=True)
        os._exit(0)  # without waiting for the loader's workers

"""Images per second from a folder of 20,000 JPEGs: our stream beside torchvision's reference pipeline.

    python benchmarks/streaming.py [--workers 2] [--images 20000] [--rounds 3]

The reference is that of torchvision's references/classification: ImageFolder, RandomResizedCrop(224),
RandomHorizontalFlip, PILToTensor, ConvertImageDtype, Normalize, and a DataLoader. Both make the same batches of 64,
normalised and on the device, and no network is trained. They take turns on the same machine, over the same files; what
counts is the ratio. The folder is made of the photographs of $FUKAMI_DATA/flickr8k-1000.zip and voc-animals.zip, cut
and encoded anew until there are enough. Results go to results.csv.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from common.record import record
from fukami.classification.resnet import ResNet50
from fukami.data import image_folder
from fukami.data.locations import list_data_folders
from fukami.engine.runtime import Runtime

CLASSES = 20


def photographs():
    """The photographs that are at hand."""
    for name in ("flickr8k-1000.zip", "voc-animals.zip"):
        archive = next(place / name for place in list_data_folders() if (place / name).is_file())
        yield from sorted(image_folder.unpack_archive(archive).rglob("*.jpg"))


def fill(root, count):
    """``count`` different JPEGs in folders by class: large parts of photographs, at quality 90."""
    originals = [Image.open(path).convert("RGB") for path in photographs()]
    random = np.random.default_rng(0)
    for number in range(count):
        image = originals[number % len(originals)]
        share = random.uniform(0.85, 1)
        width, height = round(share * image.width), round(share * image.height)
        left, top = random.integers(image.width - width + 1), random.integers(image.height - height + 1)
        target = root / f"{number % CLASSES:02d}" / f"{number}.jpg"
        target.parent.mkdir(exist_ok=True)
        image.crop((left, top, left + width, top + height)).save(target, quality=90)


def reference():
    """The transforms of the reference."""
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(224, antialias=True),
            transforms.RandomHorizontalFlip(),
            transforms.PILToTensor(),
            transforms.ConvertImageDtype(torch.float),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )


def theirs(root, workers):
    """The reference pipeline, as a generator of batches on the device."""
    loader = DataLoader(
        ImageFolder(root, reference()),
        64,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        pin_memory=torch.cuda.is_available(),
    )
    for images, targets in loader:
        yield images.to(Runtime.start().device, non_blocking=True), targets


def ours(root, workers):
    """What `fukami train resnet50 --data DIR --memory-limit 0 --augment crop flip` feeds to the network."""
    recipe = ResNet50(data=str(root), holdout=0.0, memory_limit=0, batch_size=64, augment=("crop", "flip"))
    data, runtime = recipe.load_data(), Runtime.start()
    data.train.reader.num_workers = workers
    data.train.setup(runtime)
    task = recipe.build_task(data.labels)
    task.setup(runtime)
    for images, targets in data.train:
        yield task.normalize_images(images), targets


def speed(batches):
    """Images per second over one pass, the start of the worker processes included."""
    began, seen = time.monotonic(), 0
    for images, _ in batches:
        assert images.shape[1:] == (3, 224, 224)
        seen += len(images)
    return seen / (time.monotonic() - began)


def main():
    """Time both in turn."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--images", type=int, default=20_000)
    options.add_argument("--rounds", type=int, default=3)
    options = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        fill(root, options.images)
        found = {"theirs": [], "ours": []}
        for _ in range(options.rounds):
            for which, pipeline in (("theirs", theirs), ("ours", ours)):
                found[which].append(speed(pipeline(root, options.workers)))
                print(which, round(found[which][-1], 1), flush=True)
    ratio = statistics.median(mine / other for mine, other in zip(found["ours"], found["theirs"], strict=True))
    note = "; ".join(f"{which} {', '.join(f'{value:.0f}' for value in values)}/s" for which, values in found.items())
    command = f"python benchmarks/streaming.py --workers {options.workers} --images {options.images}"
    record("streaming jpeg", "images per second, ours / torchvision's", ratio, command=command, seed=0, note=note)


if __name__ == "__main__":
    main()

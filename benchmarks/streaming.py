"""Images per second from a folder of 20,000 JPEGs, compared with torchvision's reference pipeline.

    python benchmarks/streaming.py [--workers 2] [--images 20000] [--rounds 3]

The reference is that of torchvision's references/classification: ImageFolder, RandomResizedCrop(224),
RandomHorizontalFlip, PILToTensor, ConvertImageDtype, Normalize, and a DataLoader. Both produce batches of 64,
normalized and on the device; no network is trained. They run in turn on the same machine over the same files, and their
ratio is recorded. The folder contains crops of the photographs of $FUKAMI_DATA/flickr8k-1000.zip and voc-animals.zip,
encoded again. Results go to results.csv.
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

from common.datasets import find_data
from common.record import record
from fukami.classification.resnet import ResNet50
from fukami.engine.runtime import Runtime

NUM_CLASSES = 20


def find_photographs():
    """Yield the paths of the photographs."""
    for name in ("flickr8k-1000", "voc-animals"):
        yield from sorted(find_data(name).rglob("*.jpg"))


def write_images(root, count):
    """Write ``count`` different JPEGs in folders by class: large crops of photographs, at quality 90."""
    originals = [Image.open(path).convert("RGB") for path in find_photographs()]
    rng = np.random.default_rng(0)
    for index in range(count):
        image = originals[index % len(originals)]
        fraction = rng.uniform(0.85, 1)
        width, height = round(fraction * image.width), round(fraction * image.height)
        left, top = rng.integers(image.width - width + 1), rng.integers(image.height - height + 1)
        target = root / f"{index % NUM_CLASSES:02d}" / f"{index}.jpg"
        target.parent.mkdir(exist_ok=True)
        image.crop((left, top, left + width, top + height)).save(target, quality=90)


def build_reference_transform():
    """Build the transforms of the reference pipeline."""
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(224, antialias=True),
            transforms.RandomHorizontalFlip(),
            transforms.PILToTensor(),
            transforms.ConvertImageDtype(torch.float),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )


def read_reference(root, workers):
    """Yield batches on the device from the reference pipeline."""
    loader = DataLoader(
        ImageFolder(root, build_reference_transform()),
        64,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        pin_memory=torch.cuda.is_available(),
    )
    for images, targets in loader:
        yield images.to(Runtime.start().device, non_blocking=True), targets


def read_ours(root, workers):
    """Yield the batches of `fukami train resnet50 --data DIR --memory-limit 0 --augment crop flip`."""
    recipe = ResNet50(data=str(root), val_fraction=0.0, memory_limit=0, batch_size=64, augment=("crop", "flip"))
    data, runtime = recipe.load_data(), Runtime.start()
    data.train.reader.num_workers = workers
    data.train.setup(runtime)
    task = recipe.build_task(data.labels)
    task.setup(runtime)
    task.prepare_training()
    for images, targets in data.train:
        yield task.normalize_images(images), targets


def measure_rate(batches):
    """Measure the images per second of one epoch, including the start of the worker processes."""
    start, num_images = time.monotonic(), 0
    for images, _ in batches:
        assert images.shape[1:] == (3, 224, 224)
        num_images += len(images)
    return num_images / (time.monotonic() - start)


def main():
    """Measure both in turn."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--images", type=int, default=20_000)
    options.add_argument("--rounds", type=int, default=3)
    options = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_images(root, options.images)
        rates = {"theirs": [], "ours": []}
        for _ in range(options.rounds):
            for name, pipeline in (("theirs", read_reference), ("ours", read_ours)):
                rates[name].append(measure_rate(pipeline(root, options.workers)))
                print(name, round(rates[name][-1], 1), flush=True)
    ratio = statistics.median(a / b for a, b in zip(rates["ours"], rates["theirs"], strict=True))
    note = "; ".join(f"{name} {', '.join(f'{value:.0f}' for value in values)}/s" for name, values in rates.items())
    command = f"python benchmarks/streaming.py --workers {options.workers} --images {options.images}"
    command += f" --rounds {options.rounds}"
    record("streaming jpeg", "images per second, ours / torchvision's", ratio, command=command, seed=0, note=note)


if __name__ == "__main__":
    main()

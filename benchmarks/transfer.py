"""Transfer learning from VGG16's ImageNet features: linear probe and fine-tuning compared with training from scratch.

    python benchmarks/transfer.py OUT --weights vgg16_features_imagenet.safetensors [--seeds 0] [--size 96]

Dataset and runs are written to OUT. The dataset contains crops of the annotated animals and people in
$FUKAMI_DATA/voc-animals.zip, at most 60 per class. The training images are for training, the others for testing.
WEIGHTS contains the 13 convolutions with torchvision's names. Results go to results.csv.
"""

import argparse
import shlex
from pathlib import Path
from xml.etree import ElementTree

from PIL import Image

from common.record import record, run_command
from fukami.data import image_folder
from fukami.data.locations import list_data_folders

CLASSES = ("cat", "cow", "dog", "horse", "person", "sheep")
MAX_PER_CLASS, MIN_SIDE = 60, 80  # images per class and split, pixels
BASE = "fukami train vgg16 --hidden 0 --augment crop=0.4 flip --batch-size 32"
METHODS = {
    "scratch": "--epochs 20 --lr 0.01 --batch-norm",
    "linear probe": "--epochs 10 --lr 0.002 --freeze --init {weights}",
    "fine-tuned": "--epochs 15 --optimizer adamw --lr 2e-4 --layer-lr-decay 0.7 --init {weights}",
    "probe, then fine-tuned": "--epochs 10 --optimizer adamw --lr 2e-5 --layer-lr-decay 0.7 --init linear-probe-{seed}",
}


def write_crops(root):
    """Write the dataset: folders of crops by class for the two splits."""
    archive = next(
        folder / "voc-animals.zip" for folder in list_data_folders() if (folder / "voc-animals.zip").is_file()
    )
    voc = next(image_folder.unpack_archive(archive).rglob("Annotations")).parent
    for split, voc_split in (("train", "train"), ("test", "val")):
        counts = dict.fromkeys(CLASSES, 0)
        for name in (voc / "ImageSets" / "Main" / f"{voc_split}.txt").read_text().split():
            image = Image.open(voc / "JPEGImages" / f"{name}.jpg").convert("RGB")
            for item in ElementTree.parse(voc / "Annotations" / f"{name}.xml").iter("object"):
                label = item.findtext("name")
                box = [round(float(item.findtext(f"bndbox/{side}"))) for side in ("xmin", "ymin", "xmax", "ymax")]
                if (
                    label not in counts
                    or counts[label] >= MAX_PER_CLASS
                    or min(box[2] - box[0], box[3] - box[1]) < MIN_SIDE
                ):
                    continue
                target = root / split / label / f"{name}-{counts[label]}.jpg"
                target.parent.mkdir(parents=True, exist_ok=True)
                image.crop(box).save(target, quality=95)
                counts[label] += 1
        print(split, counts, flush=True)


def main():
    """Train by each method, and record its accuracy."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("out", type=Path)
    options.add_argument("--weights", type=Path, required=True)
    options.add_argument("--seeds", type=int, nargs="+", default=[0])
    options.add_argument("--size", type=int, default=96)
    options.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    options = options.parse_args()
    if not (options.out / "animals").exists():
        write_crops(options.out / "animals")
    for seed in options.seeds:
        for method in options.methods:
            command = f"{BASE} --data animals --size {options.size} {METHODS[method]} --seed {seed}"
            out = f"{method.replace(',', '').replace(' ', '-')}-{seed}"
            weights = shlex.quote(str(options.weights.resolve()))
            full_command = f"{command.format(weights=weights, seed=seed)} --out {out}"
            result, seconds = run_command(full_command, cwd=options.out)
            record(f"transfer {method}", "test accuracy", result["accuracy"], seed=seed,
                   command=command.format(weights=options.weights.name, seed=seed), seconds=seconds,
                   note=f"{result['count']} test images cut out of voc-animals")  # fmt: skip


if __name__ == "__main__":
    main()

"""VGG16's ImageNet features on a small set of photographs: a linear probe and fine-tuning against a start from scratch.

    python benchmarks/transfer.py OUT --weights vgg16_features_imagenet.safetensors [--seeds 0] [--size 96]

The set and the runs are left in OUT. The set: animals and people cut out of the photographs of
$FUKAMI_DATA/voc-animals.zip along their boxes, the training photographs for training and the others for testing, at
most 60 of a class. Needs the weights of the 13 convolutions in torchvision's names. Results go to results.csv.
"""

import argparse
import shlex
from pathlib import Path
from xml.etree import ElementTree

from PIL import Image

from common.record import answer, record
from fukami.data import image_folder
from fukami.data.locations import list_data_folders

CLASSES = ("cat", "cow", "dog", "horse", "person", "sheep")
MOST, LEAST = 60, 80  # images of a class in a part, pixels of a side
BASE = "fukami train vgg16 --hidden 0 --augment crop=0.4 flip --batch-size 32"
WAYS = {
    "scratch": "--epochs 20 --lr 0.01 --batch-norm",
    "linear probe": "--epochs 10 --lr 0.002 --freeze --init {weights}",
    "fine-tuned": "--epochs 15 --optimizer adamw --lr 2e-4 --layer-lr-decay 0.7 --init {weights}",
    "probe, then fine-tuned": "--epochs 10 --optimizer adamw --lr 2e-5 --layer-lr-decay 0.7 --init linear-probe-{seed}",
}


def cut(root):
    """The set, as a folder by class in two parts."""
    archive = next(place / "voc-animals.zip" for place in list_data_folders() if (place / "voc-animals.zip").is_file())
    voc = next(image_folder.unpack_archive(archive).rglob("Annotations")).parent
    for part, split in (("train", "train"), ("test", "val")):
        counts = dict.fromkeys(CLASSES, 0)
        for name in (voc / "ImageSets" / "Main" / f"{split}.txt").read_text().split():
            image = Image.open(voc / "JPEGImages" / f"{name}.jpg").convert("RGB")
            for thing in ElementTree.parse(voc / "Annotations" / f"{name}.xml").iter("object"):
                label = thing.findtext("name")
                box = [round(float(thing.findtext(f"bndbox/{side}"))) for side in ("xmin", "ymin", "xmax", "ymax")]
                if label not in counts or counts[label] >= MOST or min(box[2] - box[0], box[3] - box[1]) < LEAST:
                    continue
                target = root / part / label / f"{name}-{counts[label]}.jpg"
                target.parent.mkdir(parents=True, exist_ok=True)
                image.crop(box).save(target, quality=95)
                counts[label] += 1
        print(part, counts, flush=True)


def main():
    """Train each way, and record its accuracy."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("out", type=Path)
    options.add_argument("--weights", type=Path, required=True)
    options.add_argument("--seeds", type=int, nargs="+", default=[0])
    options.add_argument("--size", type=int, default=96)
    options.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    options = options.parse_args()
    if not (options.out / "animals").exists():
        cut(options.out / "animals")
    for seed in options.seeds:
        for way in options.ways:
            command = f"{BASE} --data animals --size {options.size} {WAYS[way]} --seed {seed}"
            out = f"{way.replace(',', '').replace(' ', '-')}-{seed}"
            weights = shlex.quote(str(options.weights.resolve()))
            whole = f"{command.format(weights=weights, seed=seed)} --out {out}"
            result, seconds = answer(whole, cwd=options.out)
            record(f"transfer {way}", "test accuracy", result["accuracy"], seed=seed,
                   command=command.format(weights=options.weights.name, seed=seed), seconds=seconds,
                   note=f"{result['count']} test images cut out of voc-animals")  # fmt: skip


if __name__ == "__main__":
    main()

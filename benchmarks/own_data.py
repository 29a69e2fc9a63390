"""Training on one's own data: from a folder to the result, beside a plain torchvision script of the same settings.

    python benchmarks/own_data.py OUT --weights vgg16_features_imagenet.safetensors [--family classify] [--seeds 0]

For each family, a folder is written to OUT from samples of the datasets in $FUKAMI_DATA, in the layout of the page in
``docs/guides``. Its command trains on the folder; then the script of the family in ``peers`` trains with the settings
of that run, on the same machine, images and splits. The time of both is that of the process, from the start of Python
to the result on the test images. WEIGHTS contains the 13 convolutions of VGG-16 with torchvision's names. Further
options, such as ``--epochs 1``, are passed to ``fukami train``. Results go to results.csv.
"""

import argparse
import csv
import os
import shlex
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch
from xml.etree import ElementTree

import transfer
from common.record import record, run_command, strip_folders
from fukami.data import image_folder
from fukami.data.locations import find_dataset

ANIMALS = {"cat", "cow", "dog", "horse", "person", "sheep"}
CAMVID_CLASSES = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist", "void",
)  # fmt: skip
VAL_INTERVAL = 5  # every fifth training image is for validation, as by default


def find_data(name: str) -> Path:
    """Find the folder of a dataset, or unpack its archive."""
    path = find_dataset(name, f"the archive {name}.zip")
    return path if path.is_dir() else image_folder.unpack_archive(path) / name


def select_evenly(names: list[str], count: int) -> list[str]:
    """Select names at equal distances."""
    count = min(count, len(names))
    return [names[index * len(names) // count] for index in range(count)]


def split_names(train: list[str], test: list[str]) -> dict[str, list[str]]:
    """Return the names of each split; every fifth training image is for validation."""
    val = train[::VAL_INTERVAL]
    return {"train": [name for name in train if name not in val], "val": val, "test": test}


def write_cifar(root: Path) -> None:
    """Write 300 training and 100 test images of each class of CIFAR-10."""
    source = find_data("cifar10")
    for folder in sorted((source / "train").iterdir()):
        names = [sorted(path.name for path in (source / split / folder.name).iterdir()) for split in ("train", "test")]
        for split, selected in split_names(names[0][:300], names[1][:100]).items():
            (root / split / folder.name).mkdir(parents=True)
            for name in selected:
                original = source / ("test" if split == "test" else "train") / folder.name / name
                shutil.copy(original, root / split / folder.name / name)


def write_animal_crops(root: Path) -> None:
    """Write the crops of voc-animals, at most 60 in each class and split."""
    transfer.write_crops(root)
    for folder in (root / "train").iterdir():
        (root / "val" / folder.name).mkdir(parents=True)
        for path in sorted(folder.iterdir())[::VAL_INTERVAL]:
            path.rename(root / "val" / folder.name / path.name)


def write_boxes(root: Path, name: str, test_list: str, classes: set[str] | None = None) -> None:
    """Write 100 training and at most 100 test images of a dataset in VOC's layout, with the boxes of some classes."""
    source = find_data(name)
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    train, test = (
        select_evenly((source / "ImageSets" / "Main" / f"{split}.txt").read_text().split(), 100)
        for split in ("train", test_list)
    )
    for split, names in split_names(train, test).items():
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names))
        for image in names:
            shutil.copy(source / "JPEGImages" / f"{image}.jpg", root / "JPEGImages")
            tree = ElementTree.parse(source / "Annotations" / f"{image}.xml")
            for item in tree.findall("object"):
                if classes and item.findtext("name") not in classes:
                    tree.getroot().remove(item)
            tree.write(root / "Annotations" / f"{image}.xml")


def write_masks(root: Path) -> None:
    """Write 100 training and 60 test images of CamVid."""
    source = find_data("camvid")
    train, test = (
        select_evenly(sorted(path.stem for path in (source / split).iterdir()), count)
        for split, count in (("train", 100), ("test", 60))
    )
    for split, names in split_names(train, test).items():
        original = "test" if split == "test" else "train"
        for kind, folder, suffix in (("images", original, "jpg"), ("masks", f"{original}annot", "png")):
            (root / split / kind).mkdir(parents=True)
            for name in names:
                shutil.copy(source / folder / f"{name}.{suffix}", root / split / kind)
    (root / "classes.txt").write_text("\n".join(CAMVID_CLASSES))


def write_captions(root: Path) -> None:
    """Write the 1,000 images of Flickr8k: by name, the last 100 for testing, the 100 before for validation."""
    source = find_data("flickr8k-1000")
    names = sorted(path.name for path in (source / "Images").iterdir())
    split_of = dict.fromkeys(names, "train") | dict.fromkeys(names[-200:-100], "val")
    split_of |= dict.fromkeys(names[-100:], "test")
    shutil.copytree(source / "Images", root / "images")
    with (source / "captions.txt").open(newline="") as file, (root / "captions.txt").open("w", newline="") as target:
        writer = csv.writer(target)
        writer.writerow(("image", "split", "caption"))
        next(file)
        for line in file:
            image, _, caption = line.strip().partition(",")
            writer.writerow((image, split_of[image], caption.strip('"')))


@dataclass(frozen=True)
class Case:
    """A family, a folder, and the command of the family's page for it."""

    family: str
    name: str
    data: str
    write_data: Callable[[Path], None]
    recipe: str
    metric: str


CASES = (
    Case("classify", "3,000 images, frozen", "cifar", write_cifar, "vgg16 --size 64 --freeze", "accuracy"),
    Case("classify", "3,000 images", "cifar", write_cifar, "vgg16 --size 64", "accuracy"),
    Case("classify", "315 crops, frozen", "crops", write_animal_crops, "vgg16 --size 128 --freeze", "accuracy"),
    Case("classify", "315 crops", "crops", write_animal_crops, "vgg16 --size 128", "accuracy"),
    Case("detect", "100 images of cells", "cells", lambda root: write_boxes(root, "bccd", "test"),
         "faster-rcnn-vgg16 --min-size 320", "map"),
    Case("detect", "100 images of animals", "animals", lambda root: write_boxes(root, "voc-animals", "val", ANIMALS),
         "faster-rcnn-vgg16 --min-size 320", "map"),
    Case("segment", "100 images of roads", "roads", write_masks, "fcn8s-vgg16 --min-size 180", "miou"),
    Case("caption", "900 photographs", "photographs", write_captions, "show-and-tell --encoder vgg16", "bleu4"),
)  # fmt: skip


def measure(case: Case, seed: int, options: argparse.Namespace) -> None:
    """Train ours, then the plain script with the settings of that run, and record both."""
    data, run = options.out / case.data, options.out / f"{case.name.replace(',', '').replace(' ', '-')}-seed-{seed}"
    if not data.exists():
        case.write_data(data)
    arguments = ["fukami", "train", *case.recipe.split(), "--data", str(data), "--init", str(options.weights.resolve())]
    arguments += ["--seed", str(seed), *options.more]
    # an empty cache folder, since an earlier run may have cached its features
    with tempfile.TemporaryDirectory() as cache, patch.dict(os.environ, XDG_CACHE_HOME=cache):
        ours, our_seconds = run_command(shlex.join([*arguments, "--out", str(run)]))
    script = shlex.join([f"peers.{case.family}", str(data), str(run)])
    theirs, their_seconds = run_command(script, cwd=Path(__file__).parent)
    benchmark, command = f"own data, {case.family}, {case.name}", strip_folders(arguments)
    note = f"{ours['count']} test images"
    record(benchmark, "seconds, torchvision / ours", their_seconds / our_seconds, seed=seed, command=command, note=note)
    for name, result, seconds in (("", ours, our_seconds), (", torchvision", theirs, their_seconds)):
        record(benchmark + name, case.metric, result[case.metric], seed=seed, seconds=seconds, command=command,
               note=note)  # fmt: skip


def main() -> None:
    """Measure the families."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--weights", type=Path, required=True, help="File of VGG-16's convolutions.")
    parser.add_argument("--family", choices=sorted({case.family for case in CASES}), help="Default: all.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options, options.more = parser.parse_known_args()
    options.out = options.out.resolve()
    for seed in options.seeds:
        for case in CASES:
            if options.family in (None, case.family):
                measure(case, seed, options)


if __name__ == "__main__":
    main()

"""Small datasets for the benchmarks, cut out of those in $FUKAMI_DATA."""

import csv
import shutil
from pathlib import Path
from xml.etree import ElementTree

from PIL import Image

from fukami.data import archives
from fukami.data.locations import find_dataset

ANIMALS = {"cat", "cow", "dog", "horse", "person", "sheep"}
CAMVID_CLASSES = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist", "void",
)  # fmt: skip
VAL_INTERVAL = 5  # every fifth training image is for validation, as by default


def find_data(name: str) -> Path:
    """Find the folder of a dataset, or unpack its archive."""
    path = find_dataset(name, f"the archive {name}.zip")
    return path if path.is_dir() else archives.unpack(path) / name


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


def write_crops(
    root: Path, name: str, splits: dict[str, str], classes: set[str], max_images: int, min_side: int
) -> None:
    """Write the objects of a dataset in VOC's layout as images in folders by class.

    Args:
        root: folder of the new dataset.
        name: name of the dataset.
        splits: its list of images for each split.
        classes: classes of the objects.
        max_images: maximum number of objects of each class in a split.
        min_side: minimum side of an object in pixels.
    """
    source = find_data(name)
    for split, voc_split in splits.items():
        counts = dict.fromkeys(classes, 0)
        for image_name in (source / "ImageSets" / "Main" / f"{voc_split}.txt").read_text().split():
            image = Image.open(source / "JPEGImages" / f"{image_name}.jpg").convert("RGB")
            for item in ElementTree.parse(source / "Annotations" / f"{image_name}.xml").iter("object"):
                label = item.findtext("name", "")
                box = [round(float(item.findtext(f"bndbox/{side}", ""))) for side in ("xmin", "ymin", "xmax", "ymax")]
                if counts.get(label, max_images) >= max_images or min(box[2] - box[0], box[3] - box[1]) < min_side:
                    continue
                target = root / split / label / f"{image_name}-{counts[label]}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                image.crop(box).save(target)
                counts[label] += 1


def write_animal_crops(root: Path) -> None:
    """Write objects of voc-animals of at least 80 pixels, at most 60 in each class and split."""
    write_crops(root, "voc-animals", {"train": "train", "test": "val"}, ANIMALS, 60, 80)
    for folder in (root / "train").iterdir():
        (root / "val" / folder.name).mkdir(parents=True)
        for path in sorted(folder.iterdir())[::VAL_INTERVAL]:
            path.rename(root / "val" / folder.name / path.name)


def write_cell_crops(root: Path) -> None:
    """Write the blood cells of BCCD, at most 1,000 in each class and split."""
    splits = {"train": "train", "val": "val", "test": "test"}
    write_crops(root, "bccd", splits, {"RBC", "WBC", "Platelets"}, 1000, 12)


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

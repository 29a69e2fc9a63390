"""What training would stumble on, by name: broken files, doubtful labels, leaks, imbalance.

The data are a folder of images by class, an archive of one, a CSV of path and label, shards, or a known name; of
images with boxes or masks, :mod:`fukami.detection.checks` and :mod:`fukami.segmentation.checks` examine these. A
doctor sees more than a reader: what training passes over in silence or refuses at once is a finding here, and what can
still be read is examined.
"""

import csv
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fukami.captioning import checks as captioning_checks
from fukami.captioning import data as captioning_data
from fukami.data import findings, image_folder, labelled_images, remote, shards, tar
from fukami.data.findings import Findings, ImageItem
from fukami.data.parsing import exists, is_file, read_text
from fukami.detection import checks as detection_checks
from fukami.detection import data as detection_data
from fukami.errors import Error, build_unknown_error
from fukami.image import io as image_io
from fukami.segmentation import checks as segmentation_checks
from fukami.segmentation import data as segmentation_data

HOLDOUT = 0.2  # share of a known set without a test part of its own that the recipes keep for testing


def validate_dataset(spec: str) -> Findings:
    """Everything that is wrong with the data at a path, or with the known data set of that name.

    Files are decoded once, in threads; what is kept of each is a digest of 16 bytes.

    Raises:
        UsageError: no such path and no such name.
    """
    found = Findings()
    path = Path(spec)
    if not shards.is_shard_spec(spec):
        boxed, masked = detection_data.is_detection_dataset(spec), segmentation_data.is_segmentation_dataset(spec)
        if boxed or masked:
            findings.check_duplicates(
                (detection_checks if boxed else segmentation_checks).check_samples(spec, found), found
            )
            findings.check_classes(found)
        if boxed and masked:
            masks = Findings()
            segmentation_checks.check_masks(spec, masks)
            told = set(found.problems)
            found.problems += [problem for problem in masks.problems if problem not in told]
        if boxed or masked:
            return found
        if captioning_data.is_caption_dataset(spec):
            findings.check_duplicates(captioning_checks.check_dataset(spec, found), found)
            return found
    if spec in labelled_images.DATASET_NAMES:
        seen = _check_known_dataset(spec, found)
    elif shards.is_shard_spec(spec):
        seen = findings.hash_images(_check_shards(spec, found), found)
    elif not exists(path):
        raise build_unknown_error(
            "data set (and no file or folder)",
            spec,
            (*labelled_images.DATASET_NAMES, *detection_data.DATASETS, *segmentation_data.DATASETS),
        )
    else:
        items = _check_csv(path, found) if path.suffix.lower() == ".csv" else _check_folder(path, found)
        seen = findings.hash_images(items, found)
    findings.check_duplicates(seen, found)
    findings.check_classes(found)
    return found


def _check_known_dataset(spec: str, found: Findings) -> Iterator[tuple[ImageItem, bytes]]:
    """The images of a known data set, in files or as arrays."""
    train, test, labels = labelled_images.load_labelled_images(spec, HOLDOUT)
    files: list[ImageItem] = []
    for part, source in (("train", train), ("test", test)):
        for number, target in enumerate(source.targets.tolist()):
            image = source.items[number]
            if isinstance(image, Path):
                files.append(ImageItem(image, str(image), labels[target], part))
            elif isinstance(image, np.ndarray):
                found.image_counts[part][labels[target]] += 1
                yield ImageItem(Path(), f"{spec} {part} {number}", labels[target], part), findings.hash_pixels(image)
    yield from findings.hash_images(files, found)


# folders and archives


def _check_folder(path: Path, found: Findings) -> list[ImageItem]:
    """The images of a folder or an archive by class; the layout is examined on the way."""
    root = path
    if path.is_file():
        try:
            root = image_folder.unpack_archive(path)
        except Error as error:
            found.add("broken", str(error).removeprefix(f"{path} "), file=str(path))
            return []
    layout = _ClassFolders(path, root, found)
    top = root
    while len(inside := image_folder.list_folders(top)) == 1 and len(image_folder.list_folders(inside[0])) > 1:
        top = inside[0]  # the one folder that an archive packs everything into, as for training
    parts = [each for each in inside if each.name.lower() in (*image_folder.TRAIN_NAMES, *image_folder.TEST_NAMES)]
    if not inside:
        found.add("empty", "there are no folders in it; expected one folder of images for each class", file=str(path))
    parts.sort(
        key=lambda part: part.name.lower() not in image_folder.TRAIN_NAMES
    )  # so that of a leak the test file is named
    layout.check_loose_files(top)
    if not parts:
        return layout.list_class_images(top, "")
    for other in inside:
        if other not in parts:
            detail = f"a folder beside {parts[0].name} is neither a class nor a part, and nothing in it is read"
            found.add("passed over", detail, file=layout.format_path(other))
    if not any(part.name.lower() in image_folder.TRAIN_NAMES for part in parts):
        found.add("empty", "there is no train folder, so there is nothing to learn from", file=layout.format_path(top))
    items = []
    for part in parts:
        layout.check_loose_files(part)
        items += layout.list_class_images(part, part.name)
    return items


@dataclass
class _ClassFolders:
    """A folder of images by class, with the names under which the user knows its files."""

    source: Path
    root: Path
    report: Findings

    def __post_init__(self) -> None:
        self.suffixes = image_io.get_image_suffixes()

    def format_path(self, path: Path) -> str:
        """The path below what was given, also for what was unpacked elsewhere."""
        return str(self.source / path.relative_to(self.root))

    def check_loose_files(self, place: Path) -> None:
        """Images that lie where the folders of the classes are, and so belong to none."""
        for file in sorted(place.iterdir()):
            if file.suffix.lower() in self.suffixes and not file.name.startswith(".") and not file.is_dir():
                detail = f"lies beside the folders of the classes and is not read; move it into one: {place.name}/CLASS"
                self.report.add("no class", detail, file=self.format_path(file))

    def list_class_images(self, place: Path, part: str) -> list[ImageItem]:
        """The images of a part, and what lies between them."""
        items: list[ImageItem] = []
        for each in image_folder.list_folders(place):
            self.report.image_counts[part][each.name] += 0
            before = len(items)
            for file in _walk_files(each):
                if file.suffix.lower() in self.suffixes:
                    items.append(ImageItem(file, self.format_path(file), each.name, part))
                else:
                    self._report_unread_file(file)
            if len(items) == before:
                self.report.add("empty", f"the folder {self.format_path(each)} has no images", label=each.name)
        return items

    def _report_unread_file(self, file: Path) -> None:
        """A file that training passes over because of its name."""
        suffix = f"ends in {file.suffix!r}" if file.suffix else "has no suffix"
        kind = findings.detect_format(file)
        if kind:
            ends = [end for end, name in Image.registered_extensions().items() if name == kind]
            right = ".jpg" if ".jpg" in ends else next(iter(ends), "")
            detail = f"is {kind} by content but {suffix}, so it is not read; rename it to {file.stem}{right}"
            self.report.add("wrong suffix", detail, file=self.format_path(file))
        else:
            detail = f"{suffix} and is not read; images end in .png, .jpg ..."
            self.report.add("not an image", detail, file=self.format_path(file))


def _walk_files(place: Path) -> Iterator[Path]:
    """Every file below a folder in order, links that lead nowhere among them; hidden ones are nobody's business."""
    for at, folders, files in os.walk(place):
        folders.sort()
        yield from (Path(at, name) for name in sorted(files) if not name.startswith("."))


# shards


def _check_shards(spec: str, found: Findings) -> Iterator[ImageItem]:
    """The images in shards; what is damaged in these is told on the way."""
    base, index = shards.load_index(spec)
    for part in ("train", "test") if index["test"] else ("train",):
        for shard in index[part]:
            for problem in shard.get("problems", ()):
                found.add("broken", problem, file=shard["name"])
            yield from _check_shard(base, shard, part if index["test"] else "", index["labels"], found)


def _check_shard(
    base: str, shard: dict[str, Any], part: str, labels: Sequence[str], found: Findings
) -> Iterator[ImageItem]:
    """The images in a shard that an index lists."""
    stream = None
    try:
        stream = remote.open_stream(shards.locate_shard(base, shard["name"]))
        places = zip(shard["classes"], shard["starts"], shard["lengths"], strict=True)
        for number, (target, start, length) in enumerate(places, 1):
            try:
                name, content = tar.extract_image(stream.read(start, length), shard["name"], number)
            except remote.NotFoundError:
                raise
            except Error as error:
                found.add("broken", str(error), file=f"{shard['name']}, sample {number}")
            else:
                yield ImageItem(Path(name), name, labels[target], part, content)
        if stream.size not in (None, shard["bytes"]):
            detail = f"has {stream.size:,} bytes, and {shards.INDEX_FILE} says {shard['bytes']:,}; get it again"
            found.add("broken", detail, file=shard["name"])
    except Error as error:
        found.add("missing", str(error), file=shard["name"])
    finally:
        if stream is not None:
            stream.close()


# lists


def _check_csv(path: Path, found: Findings) -> list[ImageItem]:
    """The images that a CSV with the columns ``path``, ``label`` and perhaps ``split`` lists."""
    try:
        with io.StringIO(read_text(path), newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            header = [name.strip().lower() for name in reader.fieldnames or ()]
            reader.fieldnames = header
            missing = [name for name in ("path", "label") if name not in header]
            if missing:
                given = ", ".join(map(repr, header)) or "nothing"
                detail = f"has no column {' and no column '.join(missing)}; its first line names {given}"
                found.add("no column", detail, file=str(path))
                return []
            rows = [(reader.line_num, row) for row in reader]
    except (Error, csv.Error) as error:
        detail = str(error).removeprefix(f"{path} ") if isinstance(error, Error) else f"is no CSV ({error})"
        found.add("broken", detail, file=str(path))
        return []
    if not rows:
        found.add("empty", "lists no images", file=str(path))
    items = [item for line, row in rows if (item := _check_row(path, line, row, found))]
    if len({bool(item.split) for item in items}) > 1:
        detail = "has rows with a split and rows without one, which are trained on; give all of them one, or none"
        found.add("no split", detail, file=str(path))
    return _remove_duplicates(sorted(items, key=lambda item: item.split not in ("", "train")), found)


def _check_row(path: Path, line: int, row: dict[str, str | None], found: Findings) -> ImageItem | None:
    """The image of a row, or None where there is none to look at."""
    place, label, split = ((row.get(name) or "").strip() for name in ("path", "label", "split"))
    where = f"line {line} of {path}"
    if not place:
        found.add("missing", f"{where} has no path", file=str(path))
        return None
    file = path.parent / place
    if not is_file(file):
        what = "is no file" if exists(file) else "does not exist"
        found.add("missing", f"{what}, but {where} lists it", file=str(file))
        return None
    if not label:
        found.add("no class", f"{where} has no label", file=str(file))
        return None
    part = "train" if split.lower() in image_folder.TRAIN_NAMES else split.lower()
    if part and part not in ("train", *image_folder.TEST_NAMES):
        allowed = ", ".join((*image_folder.TRAIN_NAMES, *image_folder.TEST_NAMES))
        found.add("no split", f"{where} has the split {split!r}; expected one of {allowed}", file=str(file))
    return ImageItem(file, str(file), label, part)


def _remove_duplicates(items: Iterable[ImageItem], found: Findings) -> list[ImageItem]:
    """Each file once; what is listed again is told here."""
    first: dict[Path, ImageItem] = {}
    for item in items:
        other = first.setdefault(item.path, item)
        if other is not item:
            kind, detail = findings.describe_conflict(item, other)
            found.add(kind, f"is listed twice{detail}", file=item.name)
    return list(first.values())

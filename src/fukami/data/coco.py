"""COCO annotations in JSON (Lin et al. 2014), as also written by Roboflow, CVAT, labelme's converters and others.

Supported layouts: ``annotations/instances_train2017.json`` and similar with the images in a sibling folder;
``_annotations.coco.json`` in each of the folders ``train``, ``valid`` and ``test``; a file of any name, or one for each
split, in the folder or in any subfolder. Boxes are left, top, width and height, counted from 0.
"""

import itertools
import json
import math
import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from fukami.data.annotation_files import find_split
from fukami.data.annotations import (
    AnnotationProblem,
    Box,
    DatasetAnnotations,
    ImageAnnotation,
    check_splits,
    find_split_word,
    keep_existing_images,
    parse_size,
    parse_split,
)
from fukami.data.files import list_files, list_folders, list_images, locate_file, walk_images
from fukami.data.locations import list_data_folders
from fukami.data.parsing import Json, contains_pattern, is_file, read_text, to_key, to_number, to_text
from fukami.data.samples import CROWD, REGULAR
from fukami.errors import Error

LISTS = ("images", "annotations", "categories")
WHITESPACE = re.compile(r"[ \t\r\n]*")
SNIFF_LENGTH = 100_000  # characters read to detect the format of a file
MAX_INSPECTED_FILES = 100  # JSON files that are read to detect the format
BOX_KEYS, CAPTION_KEYS = re.compile(r'"(bbox|segmentation)"\s*:'), re.compile(r'"(caption|sentences)"\s*:')
ROBOFLOW_FILE = "_annotations.coco.json"


class Record(NamedTuple):
    """Item of one of a file's lists, with its line number."""

    line: int
    fields: dict[str, Json]


Records = dict[str, list[Record]]


def find_coco() -> Path:
    """Find the folder of COCO 2017.

    Raises:
        Error: no data folder contains COCO.
    """
    for folder in list_data_folders():
        for root in (folder / "coco", folder / "COCO", folder / "coco2017", folder):
            if (root / "annotations" / "instances_train2017.json").is_file():
                return root
    paths = ", ".join(
        str(folder / "coco" / "annotations" / "instances_train2017.json") for folder in list_data_folders()
    )
    raise Error(
        f"COCO was not found: there is no {paths}; unpack train2017.zip, val2017.zip and "
        "annotations_trainval2017.zip from cocodataset.org into a folder coco, and set FUKAMI_DATA to its parent folder"
    )


def find_coco_files(root: Path) -> list[tuple[str, Path]]:
    """Find the COCO files in a folder, and the split of each (empty without splits)."""
    instances = [path for path in list_files(root / "annotations", ".json") if path.name.startswith("instances_")]
    files = [(find_split_word(path.stem), path) for path in instances if find_split_word(path.stem)]
    files = files or [
        (parse_split(folder.name), folder / ROBOFLOW_FILE)
        for folder in list_folders(root)
        if parse_split(folder.name) and (folder / ROBOFLOW_FILE).is_file()
    ]
    if files:
        return files
    children = list_folders(root)
    places = [(root, *children)]
    if len(children) > 1:  # otherwise the folder of an archive, whose own files are found below
        places.append(tuple(child / "annotations" for child in children))
    for folders in places:
        paths = itertools.chain.from_iterable(list_files(folder, ".json") for folder in folders)
        candidates = list(filter(_is_box_file, itertools.islice(paths, MAX_INSPECTED_FILES)))
        if candidates:
            break
    with_boxes = [path for path in candidates if contains_pattern(path, BOX_KEYS)] if len(candidates) > 1 else []
    candidates = with_boxes or candidates  # a list of test images has no annotations
    splits = {path: find_split_word(path.stem) or find_split(path, root) for path in candidates}
    instances = [path for path in candidates if path.name.startswith("instances_")]
    splits_with_instances = {splits[path] for path in instances}
    if "" in splits_with_instances:
        candidates = instances
    candidates = [path for path in candidates if path in instances or splits[path] not in splits_with_instances]
    if len(candidates) == 1:
        return [("", candidates[0])]
    return [(splits[path], path) for path in candidates]


def read_coco(
    root: Path,
    images: Path | None = None,
    on_records: "Callable[[Path, Records, ImageLocator, DatasetAnnotations], None] | None" = None,
) -> DatasetAnnotations:
    """Read the COCO file at a path, or all of a folder.

    Args:
        root: file or folder.
        images: folder of the images; None: the usual folders around each file.
        on_records: called for each file with its path, its records, the locator of its images, and the annotations read
            so far.

    Raises:
        Error: a file is not valid JSON, or not in COCO's format, or several files have the same split.
    """
    dataset = DatasetAnnotations()
    files = [("", root)] if root.is_file() else find_coco_files(root)
    check_splits(root, files)
    listed_names: dict[Path, set[str]] = {}
    for split, path in files:
        records = read_records(path)
        listed_names[path] = list_image_names(records) if len(files) > 1 else set()
        locate = ImageLocator(path, images, files, listed_names)
        annotations = _parse_annotations(path, records, locate, dataset)
        dataset.splits[split] = keep_existing_images(annotations, dataset, split, path)
        if on_records:
            on_records(path, records, ImageLocator(path, images, files, listed_names), dataset)
    if root.is_dir():  # a single file may cover only some of the images in its folder
        listed = {image.image_path for images in dataset.splits.values() for image in images}
        folders = sorted({path.parent for path in listed})
        dataset.unannotated_images = [path for folder in folders for path in list_images(folder) if path not in listed]
    return dataset


def read_records(path: Path) -> Records:
    """Read the items of a file's three lists.

    Raises:
        Error: the file is not valid JSON, or a list is missing.
    """
    text = read_text(path)
    try:
        records = dict(_parse_lists(text))
    except json.JSONDecodeError as error:
        raise Error(
            f"{path}, line {error.lineno}: is not valid JSON ({error.msg} at column {error.colno}); get the file again"
        ) from None
    except ValueError as error:  # a number of thousands of digits
        raise Error(f"{path} is not COCO's JSON ({error}); get the file again") from None
    except RecursionError:
        raise Error(f"{path} is not COCO's JSON (it is nested too deeply); get the file again") from None
    missing = [name for name in LISTS if name not in records]
    if missing:
        raise Error(f"{path} has no list {' and no list '.join(missing)}; expected the JSON of COCO's instances")
    return records


def _parse_lists(text: str) -> Iterator[tuple[str, list[Record]]]:
    """Parse the three lists of a COCO file in one scan that tracks line numbers."""
    decoder = json.JSONDecoder()
    line, counted = 1, 0

    def skip_whitespace(position: int) -> int:
        match = WHITESPACE.match(text, position)
        return match.end() if match else position

    def expect(position: int, characters: str) -> int:
        if text[position : position + 1] not in {*characters}:
            raise json.JSONDecodeError(f"expected {' or '.join(characters)}", text, min(position, len(text)))
        return skip_whitespace(position + 1)

    position = expect(skip_whitespace(0), "{")
    while text[position : position + 1] != "}":
        key, position = decoder.raw_decode(text, position)
        position = expect(skip_whitespace(position), ":")
        if key not in LISTS or text[position : position + 1] != "[":
            position = skip_whitespace(decoder.raw_decode(text, position)[1])
        else:
            records: list[Record] = []
            position = skip_whitespace(position + 1)
            while text[position : position + 1] != "]":
                line, counted = line + text.count("\n", counted, position), position
                fields, position = decoder.raw_decode(text, position)
                if isinstance(fields, dict):
                    records.append(Record(line, fields))
                position = skip_whitespace(position)
                if text[position : position + 1] != "]":
                    position = expect(position, ",")
            position = skip_whitespace(position + 1)
            yield key, records
        if text[position : position + 1] != "}":
            position = expect(position, ",")


def _parse_annotations(
    path: Path, records: Records, locate: "ImageLocator", dataset: DatasetAnnotations
) -> Iterator[ImageAnnotation]:
    categories = [category.fields for category in list_used_categories(records)]
    labels = {to_key(category.get("id")): to_text(category.get("name")) for category in categories}
    dataset.labels = tuple(dict.fromkeys([*dataset.labels, *labels.values()]))
    image_ids = {to_key(image.fields.get("id")) for image in records["images"]}
    boxes: dict[Hashable, list[Box]] = {}
    for line, fields in records["annotations"]:
        identifier = f"annotation {to_text(fields.get('id'))}"
        category, image = to_key(fields.get("category_id")), to_key(fields.get("image_id"))
        if image not in image_ids:
            detail = (
                f"{identifier} is of image {image}, which is not among the images; add it, or remove the annotation"
            )
            dataset.orphan_annotations.append(AnnotationProblem("no image", path, line, detail))
            continue
        if category not in labels:
            detail = f"{identifier} is of category {category}, which is not among the categories"
            dataset.orphan_annotations.append(AnnotationProblem("no class", path, line, detail))
        kind = CROWD if fields.get("iscrowd") in (1, "1") else REGULAR
        box = Box(labels.get(category, ""), _parse_corners(fields), kind, line, identifier)
        boxes.setdefault(image, []).append(box)
    tuples = {key: tuple(values) for key, values in boxes.items()}
    seen_ids: set[Hashable] = set()
    for line, fields in records["images"]:
        image_id = to_key(fields.get("id"))
        if image_id in seen_ids:
            detail = f"image id {image_id} occurs twice; remove one of the images, or change its id"
            dataset.orphan_annotations.append(AnnotationProblem("duplicate", path, line, detail))
            continue
        seen_ids.add(image_id)
        size = parse_size(fields.get("width"), fields.get("height"))
        image_path = locate(to_text(fields.get("file_name")))
        yield ImageAnnotation(image_path, path, tuples.get(image_id, ()), size, line)


def list_used_categories(records: Records) -> list[Record]:
    """List the categories without unused supercategories, which Roboflow puts first."""
    used = {to_key(annotation.fields.get("category_id")) for annotation in records["annotations"]}
    supercategories = {to_text(category.fields.get("supercategory")) for category in records["categories"]}
    return [
        category
        for category in records["categories"]
        if to_key(category.fields.get("id")) in used
        or to_text(category.fields.get("name")) not in supercategories
        or to_text(category.fields.get("supercategory")) not in ("none", "")
    ]


def _parse_corners(fields: dict[str, Json]) -> tuple[float, float, float, float]:
    box = fields.get("bbox")
    left, top, width, height = map(to_number, box) if isinstance(box, list) and len(box) == 4 else (math.nan,) * 4
    return left, top, left + width, top + height


class ImageLocator:
    """Search for the images of a file, starting with the folder of the previous image.

    An image in the folder of another split is not used if the file's own split has a folder, unless a file of the other
    split exists that does not list its name: the folders may contain different images of the same name.

    Args:
        path: the annotation file.
        images: folder of the images, which may have subfolders; None: the usual folders around the file, and, if there
            is no image below its own folder, any folder beside it.
        files: all annotation files of the dataset, with the split of each.
        listed_names: names of the images in those that have been read; others are added where they are needed.
    """

    def __init__(
        self,
        path: Path,
        images: Path | None = None,
        files: Sequence[tuple[str, Path]] = (),
        listed_names: dict[Path, set[str]] | None = None,
    ) -> None:
        self.split = next((split for split, file in files if file == path), "") or find_split_word(path.stem)
        self.other_files = [(split, file) for split, file in files if file != path]
        self.listed_names = {} if listed_names is None else listed_names
        name = re.sub(r"^(instances|person_keypoints|annotations)_", "", path.stem)
        if images:
            first, others = [images, images / name], list_folders(images)
        else:
            parent = path.parent.parent
            first = [path.parent, path.parent / "images", path.parent / name, path.parent / "images" / name]
            is_without_images = next(walk_images(path.parent), None) is None
            if is_without_images or path.parent.name.lower() in ("annotations", "labels"):
                first += [parent / name, parent / "images" / name, parent / "images", parent]
            others = list_folders(parent if is_without_images else path.parent)
        self.splits = {folder: find_split_word(folder.name) for folder in others}
        self.folders = [*first, *sorted(others, key=lambda folder: self.splits[folder] != self.split)]
        self.has_own_folder = bool(self.split) and self.split in self.splits.values()

    def __call__(self, name: str) -> Path:
        """Return the path of an image; a path in the first folder if no folder contains it."""
        for folder in self.folders:
            path = locate_file(folder, name)
            if not is_file(path):
                continue
            split = self.splits.get(folder, "")
            if split in ("", self.split) or {split, self.split} in ({"trainval", "train"}, {"trainval", "val"}):
                self.folders.remove(folder)
                self.folders.insert(0, folder)
            elif self.has_own_folder and self._is_listed(name, split):
                continue
            return path
        return self.folders[0] / name

    def _is_listed(self, name: str, split: str) -> bool:
        """Return whether another file of a split lists an image, or may, if the split has no file."""
        files = [file for file_split, file in self.other_files if file_split == split]
        for file in files:
            if file not in self.listed_names:
                self.listed_names[file] = list_image_names(read_records(file))
            if name in self.listed_names[file]:
                return True
        return not files


def list_image_names(records: Records) -> set[str]:
    """List the names of the images of a file."""
    return {to_text(image.fields.get("file_name")) for image in records["images"]}


def _is_box_file(path: Path) -> bool:
    """Return whether a file looks like COCO's instances; a short file with only categories is of a labeling tool."""
    if path.name.startswith("captions_") or not is_file(path):
        return False
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        start, next_character = file.read(SNIFF_LENGTH), file.read(1)
    lists = "images|annotations" + ("|categories|licenses" if next_character else "")
    is_coco = re.match(r"\s*\{", start) and re.search(rf'"({lists})"\s*:\s*\[', start)
    return bool(is_coco) and (contains_pattern(path, BOX_KEYS) or not contains_pattern(path, CAPTION_KEYS))

"""Annotations in the JSON of COCO (Lin et al. 2014), as Roboflow, CVAT, labelme's converters and others write it, too.

A file is ``annotations/instances_train2017.json`` and the like with the images in a folder beside it, a
``_annotations.coco.json`` in each of the folders ``train``, ``valid`` and ``test``, or a single file. Boxes are left,
top, width and height, counted from 0.
"""

import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fukami.data import image_folder
from fukami.data.annotations import (
    AnnotationProblem,
    Box,
    DatasetAnnotations,
    ImageAnnotation,
    keep_existing_images,
    list_images,
    parse_split,
)
from fukami.data.locations import list_data_folders
from fukami.data.parsing import is_file, read_text, to_key, to_number, to_text
from fukami.data.samples import CROWD, REGULAR
from fukami.errors import Error

LISTS = ("images", "annotations", "categories")
WHITESPACE = re.compile(r"[ \t\r\n]*")
SNIFF_LENGTH = 100_000  # characters that are looked at to recognise a file
ROBOFLOW_FILE = "_annotations.coco.json"


class Record(NamedTuple):
    """A member of one of the lists of a file, and the line that it begins in."""

    line: int
    fields: dict[str, Any]


Records = dict[str, list[Record]]


def find_coco() -> Path:
    """The folder of COCO 2017.

    Raises:
        Error: it is in none of the places where data sets are looked for.
    """
    for place in list_data_folders():
        for root in (place / "coco", place / "COCO", place / "coco2017", place):
            if (root / "annotations" / "instances_train2017.json").is_file():
                return root
    places = ", ".join(
        str(place / "coco" / "annotations" / "instances_train2017.json") for place in list_data_folders()
    )
    raise Error(
        f"COCO was not found: there is no {places}; unpack train2017.zip, val2017.zip and "
        "annotations_trainval2017.zip from cocodataset.org into a folder coco, and set FUKAMI_DATA to the folder above"
    )


def find_coco_files(root: Path) -> dict[str, Path]:
    """The files of a folder by part (empty: all is one part); none where the folder is in no such layout."""
    found = {
        _parse_split(path.stem): path
        for path in sorted((root / "annotations").glob("instances_*.json"))
        if _parse_split(path.stem)
    }
    inside = [
        each for each in image_folder.list_folders(root) if parse_split(each.name) and (each / ROBOFLOW_FILE).is_file()
    ]
    found = found or {parse_split(each.name): each / ROBOFLOW_FILE for each in inside}
    alone = [
        path for place in (root, root / "annotations") for path in sorted(place.glob("*.json")) if _is_coco_file(path)
    ]
    if not found and len(alone) > 1 and all(_parse_split(path.stem) for path in alone):
        found = {_parse_split(path.stem): path for path in alone}
    return found or ({"": alone[0]} if len(alone) == 1 else {})


def read_coco(
    root: Path, on_records: Callable[[Path, Records, DatasetAnnotations], None] | None = None
) -> DatasetAnnotations:
    """What the file at a path, or those of a folder, say.

    Args:
        root: the file or the folder.
        on_records: is told the records of each file, and what is known after it.

    Raises:
        Error: a file is no JSON, or not COCO's.
    """
    sheets = DatasetAnnotations()
    for part, path in ({"": root} if root.is_file() else find_coco_files(root)).items():
        found = read_records(path)
        sheets.splits[part] = keep_existing_images(_parse_annotations(path, found, sheets), sheets, part, path)
        if on_records:
            on_records(path, found, sheets)
    if root.is_dir():  # a single file may well be of some of the images that lie there
        listed = {entry.image_path for entries in sheets.splits.values() for entry in entries}
        places = sorted({path.parent for path in listed})
        sheets.unannotated_images = [path for place in places for path in list_images(place) if path not in listed]
    return sheets


def read_records(path: Path) -> Records:
    """The members of the three lists of a file.

    Raises:
        Error: it is no JSON, or a list is missing.
    """
    text = read_text(path)
    try:
        found = dict(_parse_lists(text))
    except json.JSONDecodeError as error:
        raise Error(
            f"{path}, line {error.lineno}: is no JSON ({error.msg} at column {error.colno}); get the file again"
        ) from None
    except ValueError as error:  # a number of thousands of digits
        raise Error(f"{path} is no JSON of COCO's ({error}); get the file again") from None
    except RecursionError:
        raise Error(f"{path} is no JSON of COCO's (it is nested too deeply); get the file again") from None
    missing = [name for name in LISTS if name not in found]
    if missing:
        raise Error(f"{path} has no list {' and no list '.join(missing)}; expected the JSON of COCO's instances")
    return found


def _parse_lists(text: str) -> Iterator[tuple[str, list[Record]]]:
    """The three lists of a text, in one pass that knows where it is."""
    decoder = json.JSONDecoder()
    line, counted = 1, 0

    def blank(at: int) -> int:
        match = WHITESPACE.match(text, at)
        return match.end() if match else at

    def expect(at: int, signs: str) -> int:
        if text[at : at + 1] not in {*signs}:
            raise json.JSONDecodeError(f"expected {' or '.join(signs)}", text, min(at, len(text)))
        return blank(at + 1)

    at = expect(blank(0), "{")
    while text[at : at + 1] != "}":
        key, at = decoder.raw_decode(text, at)
        at = expect(blank(at), ":")
        if key not in LISTS or text[at : at + 1] != "[":
            at = blank(decoder.raw_decode(text, at)[1])
        else:
            members: list[Record] = []
            at = blank(at + 1)
            while text[at : at + 1] != "]":
                line, counted = line + text.count("\n", counted, at), at
                fields, at = decoder.raw_decode(text, at)
                if isinstance(fields, dict):
                    members.append(Record(line, fields))
                at = blank(at)
                if text[at : at + 1] != "]":
                    at = expect(at, ",")
            at = blank(at + 1)
            yield key, members
        if text[at : at + 1] != "}":
            at = expect(at, ",")


def _parse_annotations(path: Path, found: Records, sheets: DatasetAnnotations) -> Iterator[ImageAnnotation]:
    labels = {to_key(each.fields.get("id")): to_text(each.fields.get("name")) for each in list_used_categories(found)}
    sheets.labels = tuple(dict.fromkeys([*sheets.labels, *labels.values()]))
    known = {to_key(each.fields.get("id")) for each in found["images"]}
    boxes: dict[Any, list[Box]] = {}
    for line, fields in found["annotations"]:
        note = f"annotation {to_text(fields.get('id'))}"
        category, image = to_key(fields.get("category_id")), to_key(fields.get("image_id"))
        if image not in known:
            detail = f"{note} is of image {image}, which is not among the images; add it, or remove the annotation"
            sheets.orphan_annotations.append(AnnotationProblem("no image", path, line, detail))
            continue
        if category not in labels:
            detail = f"{note} is of category {category}, which is not among the categories"
            sheets.orphan_annotations.append(AnnotationProblem("no class", path, line, detail))
        kind = CROWD if fields.get("iscrowd") in (1, "1") else REGULAR
        boxes.setdefault(image, []).append(Box(labels.get(category, ""), _parse_corners(fields), kind, line, note))
    locate = ImageLocator(path)
    for line, fields in found["images"]:
        width, height = to_number(fields.get("width")), to_number(fields.get("height"))
        stated = (int(width), int(height)) if math.isfinite(width) and math.isfinite(height) else None
        own = tuple(boxes.get(to_key(fields.get("id")), ()))
        yield ImageAnnotation(locate(to_text(fields.get("file_name"))), path, own, stated, line)


def list_used_categories(records: Records) -> list[Record]:
    """The categories without those that only head others, which Roboflow puts first and gives to no box."""
    used = {to_key(each.fields.get("category_id")) for each in records["annotations"]}
    heads = {to_text(each.fields.get("supercategory")) for each in records["categories"]}
    return [
        each
        for each in records["categories"]
        if to_key(each.fields.get("id")) in used
        or to_text(each.fields.get("name")) not in heads
        or to_text(each.fields.get("supercategory")) not in ("none", "")
    ]


def _parse_corners(fields: dict[str, Any]) -> tuple[float, float, float, float]:
    box = fields.get("bbox")
    left, top, width, height = map(to_number, box) if isinstance(box, list) and len(box) == 4 else (math.nan,) * 4
    return left, top, left + width, top + height


class ImageLocator:
    """Where the images of a file lie: the first of the usual folders that has one, and then that one first."""

    def __init__(self, path: Path) -> None:
        above = path.parent.parent
        part = re.sub(r"^(instances|person_keypoints|annotations)_", "", path.stem)
        own = [path.parent, path.parent / "images"]
        beside = [above / part, above / "images" / part, above / "images", above]
        self.folders = [*own, path.parent / part, path.parent / "images" / part]
        self.folders += beside if path.parent.name.lower() in ("annotations", "labels") else []

    def __call__(self, name: str) -> Path:
        """The path of an image, in the first folder where it is in none."""
        for place in self.folders:
            if is_file(place / name):
                self.folders.remove(place)
                self.folders.insert(0, place)
                return place / name
        return self.folders[0] / name


def _parse_split(stem: str) -> str:
    """The part that a file is of by its name, such as ``instances_val2017``."""
    words = re.findall(r"[a-z]+", stem.lower())
    return next((parse_split(word) for word in words if parse_split(word)), "")


def _is_coco_file(path: Path) -> bool:
    """Whether a file begins as one of COCO's does; one of categories alone is another's, of a tool for labels."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        start, more = file.read(SNIFF_LENGTH), file.read(1)
    lists = "images|annotations" + ("|categories|licenses" if more else "")
    return bool(re.match(r"\s*\{", start) and re.search(rf'"({lists})"\s*:\s*\[', start))

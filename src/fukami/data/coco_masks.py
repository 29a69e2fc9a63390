"""Masks painted from the polygons and the run lengths in COCO's JSON (Lin et al. 2014)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fukami.data import coco
from fukami.data.annotations import Sheets, header
from fukami.data.boxes import UNLABELLED, Bytes
from fukami.data.legends import Legend
from fukami.errors import Error

GROUND = "background"


class Shape(NamedTuple):
    """An object: its number in a map, its outline as the file has it, its area, and how the file tells it apart."""

    number: int
    outline: Any
    area: float
    note: str


@dataclass(frozen=True)
class Painted:
    """The objects of a picture, the smaller ones on top; what is in none is background.

    Args:
        size: width and height that the outlines are in.
        shapes: the objects.
        file: that has them.
    """

    size: tuple[int, int]
    shapes: tuple[Shape, ...]
    file: Path

    def read(self) -> Bytes:
        """The map.

        Raises:
            Error: an outline is none; its object is named.
        """
        from faster_coco_eval.core import mask

        width, height = self.size
        pixels = np.ones((height, width), np.uint8)
        for shape in sorted(self.shapes, key=lambda each: -each.area):
            try:
                found = mask.frPyObjects(shape.outline, height, width)
                whole = mask.merge(found) if isinstance(found, list) else found
                pixels[mask.decode(whole).astype(bool)] = shape.number
            except Exception as error:  # whatever the library says to numbers that are no outline
                raise Error(f"{self.file}: {shape.note} has no outline that can be painted ({error})") from error
        return pixels


def labels(sheets: Sheets) -> Legend:
    """The classes with the background before them; there are no values, since nothing is read from a mask's file."""
    return Legend((GROUND, *sheets.labels))


def read(root: Path) -> tuple[Sheets, dict[Path, Painted]]:
    """What the file at a path, or those of a folder, say, and the mask of each picture.

    Raises:
        Error: a file is no JSON, or not COCO's.
    """
    sheets = coco.read(root)
    found: dict[Path, Painted] = {}
    for path in ({"": root} if root.is_file() else coco.files(root)).values():
        records = coco.records(path)
        names = {each.fields.get("id"): str(each.fields.get("name", "")) for each in coco.used(records)}
        number = {key: sheets.labels.index(name) + 2 for key, name in names.items()}
        shapes: dict[Any, list[Shape]] = {}
        for _, fields in records["annotations"]:
            if fields.get("category_id") in number and fields.get("segmentation"):
                crowd = fields.get("iscrowd") in (1, "1")
                own = UNLABELLED if crowd else number[fields["category_id"]]
                area = float(fields.get("area") or _area(fields.get("bbox")))
                note = f"annotation {fields.get('id')}"
                shapes.setdefault(fields.get("image_id"), []).append(Shape(own, fields["segmentation"], area, note))
        locate = coco.Places(path)
        for _, fields in records["images"]:
            place = locate(str(fields.get("file_name", "")))
            if isinstance(fields.get("width"), int) and isinstance(fields.get("height"), int):
                size = fields["width"], fields["height"]
            else:
                head = header(place)
                size = (0, 0) if isinstance(head, Error) else head.upright
            found[place] = Painted(size, tuple(shapes.get(fields.get("id"), ())), path)
    return sheets, found


def outlined(path: Path) -> bool:
    """Whether a file or a folder of COCO's JSON has an outline of an object.

    Raises:
        Error: a file is no JSON, or not COCO's.
    """
    files = [path] if path.is_file() else coco.files(path).values()
    return any(each.fields.get("segmentation") for file in files for each in coco.records(file)["annotations"])


def _area(box: Any) -> float:
    return float(box[2]) * float(box[3]) if isinstance(box, Sequence) and len(box) == 4 else 0.0

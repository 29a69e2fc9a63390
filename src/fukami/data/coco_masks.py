"""Masks painted from the polygons and the run lengths in COCO's JSON (Lin et al. 2014)."""

import hashlib
import re
from collections.abc import Iterator, Sequence
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
OUTLINE = re.compile(r'"segmentation"\s*:\s*(\[\s*\[|\{)')
CHUNK, OVERLAP = 2**20, 64  # characters that are looked through at a time


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
            outline = shape.outline
            try:
                if isinstance(outline, list):
                    found = mask.merge(mask.frPyObjects([each.tolist() for each in outline], height, width))
                elif isinstance(outline["counts"], str):
                    found = {**outline, "counts": outline["counts"].encode()}
                else:
                    found = mask.frPyObjects(outline, height, width)
                pixels[mask.decode(found).astype(bool)] = shape.number
            except Exception as error:  # whatever the library says to numbers that are no outline
                raise Error(f"{self.file}: {shape.note} has no outline that can be painted ({error})") from error
        return pixels

    def identity(self) -> bytes:
        """The outlines."""
        found = hashlib.blake2b(repr(self.size).encode(), digest_size=16)
        for shape in self.shapes:
            found.update(f"{shape.number} {shape.area} ".encode())
            polygons = shape.outline if isinstance(shape.outline, list) else [shape.outline]
            for each in polygons:
                found.update(each.tobytes() if isinstance(each, np.ndarray) else repr(each).encode())
        return found.digest()


def labels(sheets: Sheets) -> Legend:
    """The classes with the background before them; there are no values, since nothing is read from a mask's file."""
    return Legend((GROUND, *sheets.labels))


def read(root: Path) -> tuple[Sheets, dict[Path, Painted]]:
    """What the file at a path, or those of a folder, say, and the mask of each picture.

    Raises:
        Error: a file is no JSON, or not COCO's.
    """
    painted: dict[Path, Painted] = {}

    def paint(path: Path, records: coco.Records, sheets: Sheets) -> None:
        painted.update(_painted(path, records, sheets.labels))

    return coco.read(root, paint), painted


def _painted(path: Path, records: coco.Records, labels: Sequence[str]) -> Iterator[tuple[Path, Painted]]:
    """The pictures of a file with their masks."""
    used = {each.fields.get("id"): str(each.fields.get("name", "")) for each in coco.used(records)}
    number = {key: labels.index(name) + 2 for key, name in used.items()}  # after the background, which is 1
    shapes: dict[Any, list[Shape]] = {}
    for _, fields in records["annotations"]:
        outline = fields.get("segmentation")
        if fields.get("category_id") in number and outline:
            own = UNLABELLED if fields.get("iscrowd") in (1, "1") else number[fields["category_id"]]
            area = float(fields.get("area") or _area(fields.get("bbox")))
            shape = Shape(own, _kept(outline), area, f"annotation {fields.get('id')}")
            shapes.setdefault(fields.get("image_id"), []).append(shape)
    locate = coco.Places(path)
    for _, fields in records["images"]:
        place = locate(str(fields.get("file_name", "")))
        size = fields.get("width"), fields.get("height")
        if not all(isinstance(side, int) for side in size):
            head = header(place)
            size = (0, 0) if isinstance(head, Error) else head.upright
        yield place, Painted(size, tuple(shapes.get(fields.get("id"), ())), path)  # type: ignore[arg-type]


def outlined(path: Path) -> bool:
    """Whether a file or a folder of COCO's JSON has an outline of an object; the files are read up to the first."""
    return any(map(_outlined, [path] if path.is_file() else coco.files(path).values()))


def _outlined(path: Path) -> bool:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        before = ""
        while more := file.read(CHUNK):
            if OUTLINE.search(before + more):
                return True
            before = more[-OVERLAP:]
    return False


def _kept(outline: Any) -> Any:
    """An outline in a tenth of the memory: the numbers of polygons as arrays."""
    try:
        return [np.array(polygon, np.float64) for polygon in outline] if isinstance(outline, list) else outline
    except (TypeError, ValueError):  # which whoever paints it tells
        return outline


def _area(box: Any) -> float:
    return float(box[2]) * float(box[3]) if isinstance(box, Sequence) and len(box) == 4 else 0.0

"""Masks painted from the polygons and the run lengths in COCO's JSON (Lin et al. 2014)."""

import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fukami.data import coco
from fukami.data.annotations import DatasetAnnotations, read_header
from fukami.data.class_tables import ClassTable
from fukami.data.parsing import to_key, to_number, to_text
from fukami.data.samples import UNLABELLED, UInt8Array
from fukami.errors import Error
from fukami.image import io as image_io

BACKGROUND = "background"
OUTLINE_PATTERN = re.compile(r'"segmentation"\s*:\s*(\[\s*\[|\{)')
CHUNK_SIZE, CHUNK_OVERLAP = 2**20, 64  # characters that are looked through at a time
MAX_CORNER_DISTANCE = 16  # times the longer side of the image that a corner of a polygon may lie outside of it
MAX_PERIMETER = 1e6  # pixels of a polygon's outline, which takes 50 bytes each while it is painted
MAX_RENDERED_PIXELS = (
    5e10  # pixels of all objects of an image, each of which is painted in the whole of it: about a minute
)


class ObjectOutline(NamedTuple):
    """An object: its number in a map, its outline as the file has it, its area, and how the file tells it apart."""

    mask_value: int
    outline: Any
    area: float
    identifier: str


@dataclass(frozen=True)
class COCOMask:
    """The objects of an image, the smaller ones on top; what is in none is background.

    Args:
        size: width and height that the outlines are in.
        objects: the objects.
        file: that has them.
    """

    size: tuple[int, int]
    objects: tuple[ObjectOutline, ...]
    file: Path

    def read(self) -> UInt8Array:
        """The map.

        Raises:
            Error: an outline is none; its object is named.
        """
        width, height = self.size
        if min(self.size) < 1 or width * height > image_io.MAX_PIXELS:
            raise Error(f"{self.file} states an image of {width}×{height} pixels; state the size that it has")
        if width * height * len(self.objects) > MAX_RENDERED_PIXELS:
            raise Error(
                f"{self.file} has {len(self.objects):,} objects in an image of {width}×{height} pixels, more than can "
                "be painted in a minute; cut the image into tiles"
            )
        pixels = np.ones((height, width), np.uint8)
        for shape in sorted(self.objects, key=lambda each: -each.area):
            try:
                pixels[_decode_outline(shape.outline, width, height)] = shape.mask_value
            except Exception as error:  # whatever the library says to numbers that are no outline
                raise Error(f"{self.file}: {shape.identifier} has no outline that can be painted ({error})") from error
        return pixels

    def fingerprint(self) -> bytes:
        """The outlines."""
        found = hashlib.blake2b(repr(self.size).encode(), digest_size=16)
        for shape in self.objects:
            found.update(f"{shape.mask_value} {shape.area} ".encode())
            polygons = shape.outline if isinstance(shape.outline, list) else [shape.outline]
            for each in polygons:
                found.update(each.tobytes() if isinstance(each, np.ndarray) else repr(each).encode())
        return found.digest()


def _decode_outline(outline: Any, width: int, height: int) -> npt.NDArray[np.bool_]:
    """Pixels inside an outline, ``(height, width)``.

    Raises:
        Exception: it is no outline of an image of this size, or painting it takes too much memory.
    """
    from faster_coco_eval.core import mask

    if isinstance(outline, list):
        for polygon in outline:
            corners = polygon[: len(polygon) // 2 * 2].reshape(-1, 2)
            if not np.isfinite(corners).all() or np.abs(corners).max(initial=0) > MAX_CORNER_DISTANCE * max(
                width, height
            ):
                raise ValueError("a corner lies far outside of the image")
            if np.abs(np.diff(corners, axis=0, append=corners[:1])).sum() > MAX_PERIMETER:
                raise ValueError(f"a polygon is longer than {MAX_PERIMETER:,.0f} pixels")
        found = mask.merge(mask.frPyObjects([each.tolist() for each in outline], height, width))
    else:
        if list(outline.get("size", ())) != [height, width]:
            raise ValueError(f"its size is not that of the image, [{height}, {width}]")
        counts = outline["counts"]
        if isinstance(counts, str):
            found = {**outline, "counts": counts.encode()}
        else:
            found = mask.frPyObjects(outline, height, width)
    pixels = mask.decode(found)
    if pixels.shape != (height, width):
        raise ValueError("it has no corners")
    return np.asarray(pixels, bool)


def build_coco_class_table(sheets: DatasetAnnotations) -> ClassTable:
    """The classes with the background before them; there are no values, since nothing is read from a mask's file."""
    return ClassTable((BACKGROUND, *sheets.labels))


def read_coco_masks(root: Path) -> tuple[DatasetAnnotations, dict[Path, COCOMask]]:
    """What the file at a path, or those of a folder, say, and the mask of each image.

    Raises:
        Error: a file is no JSON, or not COCO's.
    """
    painted: dict[Path, COCOMask] = {}

    def paint(path: Path, records: coco.Records, sheets: DatasetAnnotations) -> None:
        painted.update(_build_masks(path, records, sheets.labels))

    return coco.read_coco(root, paint), painted


def _build_masks(path: Path, records: coco.Records, labels: Sequence[str]) -> Iterator[tuple[Path, COCOMask]]:
    """The images of a file with their masks."""
    used = {
        to_key(each.fields.get("id")): to_text(each.fields.get("name")) for each in coco.list_used_categories(records)
    }
    place_of = {name: place for place, name in enumerate(labels, 2)}  # after the background, which is 1
    number = {key: place_of[name] for key, name in used.items()}
    shapes: dict[Any, list[ObjectOutline]] = {}
    for _, fields in records["annotations"]:
        outline, category = fields.get("segmentation"), to_key(fields.get("category_id"))
        if category in number and outline:
            own = UNLABELLED if fields.get("iscrowd") in (1, "1") else number[category]
            area = to_number(fields.get("area") or _compute_box_area(fields.get("bbox")))
            area = 0.0 if math.isnan(area) else area  # by which the objects are sorted
            shape = ObjectOutline(own, _compact_outline(outline), area, f"annotation {to_text(fields.get('id'))}")
            shapes.setdefault(to_key(fields.get("image_id")), []).append(shape)
    locate = coco.ImageLocator(path)
    for _, fields in records["images"]:
        place = locate(to_text(fields.get("file_name")))
        width, height = fields.get("width"), fields.get("height")
        if not (type(width) is int and type(height) is int):
            head = read_header(place)
            width, height = (0, 0) if isinstance(head, Error) else head.upright_size
        yield place, COCOMask((width, height), tuple(shapes.get(to_key(fields.get("id")), ())), path)


def has_outlines(path: Path) -> bool:
    """Whether a file or a folder of COCO's JSON has an outline of an object; the files are read up to the first."""
    return any(map(_contains_outline, [path] if path.is_file() else coco.find_coco_files(path).values()))


def _contains_outline(path: Path) -> bool:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        before = ""
        while more := file.read(CHUNK_SIZE):
            if OUTLINE_PATTERN.search(before + more):
                return True
            before = more[-CHUNK_OVERLAP:]
    return False


def _compact_outline(outline: Any) -> Any:
    """An outline in a tenth of the memory: the numbers of polygons as arrays."""
    try:
        return [np.array(polygon, np.float64) for polygon in outline] if isinstance(outline, list) else outline
    except (TypeError, ValueError, OverflowError):  # which whoever paints it tells
        return outline


def _compute_box_area(box: Any) -> float:
    return to_number(box[2]) * to_number(box[3]) if isinstance(box, Sequence) and len(box) == 4 else 0.0

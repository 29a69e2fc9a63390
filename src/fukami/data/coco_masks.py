"""Segmentation masks rasterized from the polygons and run-length encodings of COCO's JSON (Lin et al. 2014)."""

import hashlib
import math
import re
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fukami.data import coco
from fukami.data.annotations import DatasetAnnotations, get_upright_size, read_header
from fukami.data.class_tables import ClassTable
from fukami.data.parsing import Json, contains_pattern, to_key, to_number, to_text
from fukami.data.samples import UNLABELED
from fukami.errors import Error
from fukami.image import io as image_io
from fukami.image.channels import orient_pixels
from fukami.image.io import UInt8Array

BACKGROUND = "background"
OUTLINE_PATTERN = re.compile(r'"segmentation"\s*:\s*(\[\s*\[|\{)')
MIN_POLYGON_VALUES = 6  # x and y of three corners
MAX_CORNER_DISTANCE = 16  # maximum coordinate of a polygon's corner, in multiples of the image's longer side
MAX_PERIMETER = 1e6  # pixels of a polygon's outline; rasterizing takes 50 bytes each
MAX_RENDERED_PIXELS = 5e10  # image pixels times objects, each rasterized at the full image size: about a minute


class ObjectOutline(NamedTuple):
    """Outline of an object: its value in the mask, the polygons or run lengths, its area and its annotation."""

    mask_value: int
    outline: Any
    area: float
    identifier: str


@dataclass(frozen=True)
class COCOMask:
    """Mask of an image's objects, smaller objects on top; all other pixels are background.

    Args:
        size: width and height of the image.
        objects: the outlines.
        file: the annotation file.
        orientation: EXIF orientation of the image, if the outlines refer to the stored image and not the upright one.
    """

    size: tuple[int, int]
    objects: tuple[ObjectOutline, ...]
    file: Path
    orientation: int = 1

    def read(self) -> UInt8Array:
        """Rasterize the mask.

        Raises:
            Error: an outline is invalid; the message names its annotation.
        """
        width, height = self.size
        if min(self.size) < 1 or width * height > image_io.MAX_PIXELS:
            raise Error(f"{self.file} states an image of {width}×{height} pixels; correct its width and height")
        if width * height * len(self.objects) > MAX_RENDERED_PIXELS:
            raise Error(
                f"{self.file} has {len(self.objects):,} objects in an image of {width}×{height} pixels, more than can "
                "be rasterized in a minute; cut the image into tiles"
            )
        pixels = np.ones((height, width), np.uint8)  # background
        for shape in sorted(self.objects, key=lambda shape: -shape.area):
            try:
                pixels[_decode_outline(shape.outline, width, height)] = shape.mask_value
            except Exception as error:  # faster_coco_eval raises various errors for invalid outlines
                raise Error(f"{self.file}: {shape.identifier} has an invalid outline ({error})") from error
        return np.ascontiguousarray(orient_pixels(pixels[..., None], self.orientation)[..., 0])

    def fingerprint(self) -> bytes:
        """Return a digest of the outlines."""
        digest = hashlib.blake2b(repr((self.size, self.orientation)).encode(), digest_size=16)
        for shape in self.objects:
            digest.update(f"{shape.mask_value} {shape.area} ".encode())
            polygons = shape.outline if isinstance(shape.outline, list) else [shape.outline]
            for polygon in polygons:
                digest.update(polygon.tobytes() if isinstance(polygon, np.ndarray) else repr(polygon).encode())
        return digest.digest()


def _decode_outline(outline: Any, width: int, height: int) -> npt.NDArray[np.bool_]:
    """Rasterize an outline: ``(height, width)``, true inside it.

    Raises:
        Exception: the outline does not match the image size, or rasterizing it takes too much memory.
    """
    from faster_coco_eval.core import mask

    if isinstance(outline, list):
        if any(np.ndim(polygon) != 1 for polygon in outline):
            raise ValueError("a polygon is not a list of numbers")
        outline = [polygon for polygon in outline if len(polygon) >= MIN_POLYGON_VALUES]  # others have no area
        if not outline:
            return np.zeros((height, width), bool)
        for polygon in outline:
            corners = polygon[: len(polygon) // 2 * 2].reshape(-1, 2)
            if not np.isfinite(corners).all() or np.abs(corners).max(initial=0) > MAX_CORNER_DISTANCE * max(
                width, height
            ):
                raise ValueError("a corner lies far outside the image")
            if np.abs(np.diff(corners, axis=0, append=corners[:1])).sum() > MAX_PERIMETER:
                raise ValueError(f"a polygon is longer than {MAX_PERIMETER:,.0f} pixels")
        run_lengths = mask.merge(mask.frPyObjects([polygon.tolist() for polygon in outline], height, width))
    else:
        if list(outline.get("size", ())) != [height, width]:
            raise ValueError(f"its size is not that of the image, [{height}, {width}]")
        counts = outline["counts"]
        lengths = _parse_run_lengths(counts) if isinstance(counts, str) else counts
        # faster_coco_eval would not set the pixels after the last run, and needs other checks
        if min(lengths, default=0) < 0 or sum(lengths) != width * height:
            raise ValueError(f"its run lengths are those of {sum(lengths):,} pixels, not of {width * height:,}")
        return np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(width, height).T
    pixels = mask.decode(run_lengths)
    if pixels.shape != (height, width):
        raise ValueError("it has no corners")
    return np.asarray(pixels, bool)


def _parse_run_lengths(text: str) -> list[int]:
    """Parse the compressed run lengths of COCO's tools: six bits in each character, differences from the third on.

    Raises:
        ValueError: a run length has more than 60 bits.
    """
    lengths: list[int] = []
    value = shift = 0
    for code in text.encode():
        value |= (code - 48 & 31) << shift
        shift += 5
        if shift > 60:
            raise ValueError("a run length is too long")
        if not code - 48 & 32:
            value -= (1 << shift) if code - 48 & 16 else 0
            lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
            value = shift = 0
    return lengths


def build_coco_class_table(annotations: DatasetAnnotations) -> ClassTable:
    """Build the class table: background, then the classes; it maps no values, since no mask file is read."""
    return ClassTable((BACKGROUND, *(label for label in annotations.labels if label != BACKGROUND)))


def read_coco_masks(root: Path, images: Path | None = None) -> tuple[DatasetAnnotations, dict[Path, COCOMask]]:
    """Read a COCO file, or the COCO files of a folder: the annotations, and the mask of each image.

    The folder ``images`` is as for :func:`fukami.data.coco.read_coco`.

    Raises:
        Error: a file is not valid JSON, or not COCO's.
    """
    image_masks: dict[Path, COCOMask] = {}

    def add_masks(
        path: Path, records: coco.Records, locate: coco.ImageLocator, annotations: DatasetAnnotations
    ) -> None:
        for image, mask in _build_masks(path, records, locate, annotations.labels):
            known = image_masks.get(image)  # an image that is listed twice has the objects of both entries
            image_masks[image] = replace(known, objects=known.objects + mask.objects) if known else mask

    return coco.read_coco(root, images, add_masks), image_masks


def _build_masks(
    path: Path, records: coco.Records, locate: coco.ImageLocator, labels: Sequence[str]
) -> Iterator[tuple[Path, COCOMask]]:
    """Yield the images of a file with their masks."""
    used = {
        to_key(category.fields.get("id")): to_text(category.fields.get("name"))
        for category in coco.list_used_categories(records)
    }
    classes = [label for label in labels if label != BACKGROUND]
    name_to_value = {BACKGROUND: 1, **{name: value for value, name in enumerate(classes, 2)}}
    category_to_value = {key: name_to_value[name] for key, name in used.items()}
    shapes: dict[Hashable, list[ObjectOutline]] = {}
    for _, fields in records["annotations"]:
        outline, category = fields.get("segmentation") or _outline_box(fields), to_key(fields.get("category_id"))
        if category in category_to_value and outline:
            value = UNLABELED if fields.get("iscrowd") in (1, "1") else category_to_value[category]
            area = to_number(fields.get("area") or _compute_box_area(fields.get("bbox")))
            area = 0.0 if math.isnan(area) else area  # the objects are sorted by area
            shape = ObjectOutline(value, _compact_outline(outline), area, f"annotation {to_text(fields.get('id'))}")
            shapes.setdefault(to_key(fields.get("image_id")), []).append(shape)
    outlines = {key: tuple(values) for key, values in shapes.items()}
    for _, fields in records["images"]:
        image_path = locate(to_text(fields.get("file_name")))
        width, height = fields.get("width"), fields.get("height")
        if not (type(width) is int and type(height) is int):
            width, height = get_upright_size(read_header(image_path))
        yield image_path, COCOMask((width, height), outlines.get(to_key(fields.get("id")), ()), path)


def has_outlines(path: Path) -> bool:
    """Return whether a COCO file or folder has an object outline; files are read only up to the first one."""
    files = [path] if path.is_file() else [file for _, file in coco.find_coco_files(path)]
    return any(contains_pattern(file, OUTLINE_PATTERN) for file in files)


def _compact_outline(outline: Any) -> Any:
    """Convert polygons to arrays, which take a tenth of the memory."""
    try:
        return [np.array(polygon, np.float64) for polygon in outline] if isinstance(outline, list) else outline
    except (TypeError, ValueError, OverflowError):  # rasterizing the outline reports the error
        return outline


def _outline_box(fields: dict[str, Json]) -> list[list[float]]:
    """Return the outline of the box of an annotation without an outline, as for YOLO; empty without a valid box."""
    box = fields.get("bbox")
    if not (isinstance(box, Sequence) and len(box) == 4):
        return []
    left, top, width, height = map(to_number, box)
    if not (all(map(math.isfinite, (left, top))) and 0 < width < math.inf and 0 < height < math.inf):
        return []  # detection reports it
    return [[left, top, left + width, top, left + width, top + height, left, top + height]]


def _compute_box_area(box: Json) -> float:
    return to_number(box[2]) * to_number(box[3]) if isinstance(box, Sequence) and len(box) == 4 else 0.0

"""Annotations in labelme's JSON: a file of the same stem for each image, with a list of shapes.

The bounding box of a shape is read: of a rectangle, a polygon, a line or a circle.
"""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fukami.data.annotation_files import find_files_of_images, find_split, pair_with_images
from fukami.data.annotations import (
    AnnotationProblem,
    Box,
    Corners,
    DatasetAnnotations,
    ImageAnnotation,
    parse_size,
)
from fukami.data.files import walk_files, walk_images
from fukami.data.parsing import contains_pattern, parse_json, read_bytes, to_number, to_text
from fukami.errors import Error

MAX_FILE_BYTES = 64 << 20  # a file may contain its image
MAX_INSPECTED_FILES = 20  # files that are read to detect the format
SHAPES_KEY = re.compile(r'"shapes"\s*:\s*\[')


def is_labelme_file(path: Path) -> bool:
    """Return whether a JSON file has a list of shapes."""
    return contains_pattern(path, SHAPES_KEY)


def has_labelme_files(root: Path, images: Path | None = None) -> bool:
    """Return whether a folder has a file of an image; without ``images``, the images are below the same folder."""
    return any(map(is_labelme_file, find_files_of_images((root,), ".json", images)[:MAX_INSPECTED_FILES]))


def read_labelme(
    root: Path,
    images: Path | None = None,
    on_shapes: Callable[[ImageAnnotation, list[Any]], None] | None = None,
) -> DatasetAnnotations:
    """Read the files below a folder.

    Args:
        root: the folder.
        images: folder of the images; None: the same.
        on_shapes: called for each image with its annotation and the list of its shapes.
    """
    dataset = DatasetAnnotations()
    files = [file for file in sorted(walk_files(root, ".json")) if is_labelme_file(file)]
    paths = sorted(walk_images(images or root))
    pairs = pair_with_images(files, paths)
    for file in files:
        image = pairs.get(file)
        split = find_split(file, root) or (find_split(image, images or root) if image else "")
        if image is None:
            detail = f"there is no image {file.stem} for it; put it there, or remove the annotation"
            dataset.unreadable_images.append(AnnotationProblem("missing", file, 0, detail, split))
            continue
        try:
            annotation, shapes = _read_annotation(file, image)
        except Error as error:
            detail = str(error).removeprefix(f"{file} ")
            dataset.unreadable_images.append(AnnotationProblem("unreadable", file, 0, detail, split))
        else:
            dataset.splits.setdefault(split, []).append(annotation)
            dataset.orphan_annotations += [
                AnnotationProblem("no class", file, 0, f"{box.identifier} has no label, and is skipped", split)
                for box in annotation.boxes
                if not box.label
            ]
            if on_shapes:
                on_shapes(annotation, shapes)
    used = {*pairs.values()}
    dataset.unannotated_images = [path for path in paths if path not in used]
    entries = [entry for split_entries in dataset.splits.values() for entry in split_entries]
    dataset.labels = tuple(sorted({box.label for entry in entries for box in entry.boxes if box.label}))
    return dataset


def _read_annotation(file: Path, image: Path) -> tuple[ImageAnnotation, list[Any]]:
    """Read the boxes and the shapes of an image.

    Raises:
        Error: the file is not JSON, or has no list of shapes.
    """
    try:
        content = parse_json(read_bytes(file, max_bytes=MAX_FILE_BYTES))
        boxes = tuple(
            Box(to_text(shape["label"]), _compute_corners(shape), identifier=f"shape {number}")
            for number, shape in enumerate(content["shapes"], 1)
        )
        size = parse_size(content.get("imageWidth"), content.get("imageHeight"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Error(f"{file} is not labelme's JSON ({type(error).__name__}: {error}); save it again") from None
    return ImageAnnotation(image, file, boxes, size), list(content["shapes"])


def _compute_corners(shape: Any) -> Corners:
    """Compute the bounding box of a shape; nan where a number is missing."""
    points = [(to_number(x), to_number(y)) for x, y in shape["points"]]
    if not points or not all(map(math.isfinite, (value for point in points for value in point))):
        return (math.nan,) * 4
    if shape.get("shape_type") == "circle" and len(points) == 2:
        (x, y), edge = points
        radius = math.dist((x, y), edge)
        return x - radius, y - radius, x + radius, y + radius
    columns, rows = zip(*points, strict=True)
    return min(columns), min(rows), max(columns), max(rows)

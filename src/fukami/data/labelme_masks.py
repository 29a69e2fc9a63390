"""Segmentation masks rasterized from the shapes in labelme's JSON."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fukami.data import labelme
from fukami.data.annotation_files import find_files_of_images
from fukami.data.annotations import (
    AnnotationProblem,
    DatasetAnnotations,
    ImageAnnotation,
    get_upright_size,
    read_header,
)
from fukami.data.coco_masks import BACKGROUND, COCOMask, ObjectOutline
from fukami.data.parsing import contains_pattern, to_number, to_text
from fukami.data.samples import UNLABELED

OUTLINE_PATTERN = re.compile(r'"shape_type"\s*:\s*"(polygon|circle)"')
NUM_CIRCLE_CORNERS = 64
BACKGROUND_LABEL, IGNORED_LABEL = "_background_", "__ignore__"  # names in labelme's own converters


def has_labelme_outlines(root: Path, images: Path | None = None) -> bool:
    """Return whether a folder has a file of an image with a polygon or a circle, not only with rectangles."""
    files = find_files_of_images((root,), ".json", images)[: labelme.MAX_INSPECTED_FILES]
    return any(labelme.is_labelme_file(file) and contains_pattern(file, OUTLINE_PATTERN) for file in files)


def read_labelme_masks(root: Path, images: Path | None = None) -> tuple[DatasetAnnotations, dict[Path, COCOMask]]:
    """Read the files below a folder: the annotations, and the mask of each image; later shapes are on top.

    Polygons, rectangles and circles are drawn, other shapes have no area. The pixels of a shape called ``__ignore__``
    are ignored. The folder ``images`` is as for :func:`fukami.data.labelme.read_labelme`.
    """
    polygons: dict[Path, list[tuple[str, npt.NDArray[np.float64] | None]]] = {}
    entries: dict[Path, ImageAnnotation] = {}

    def add_shapes(annotation: ImageAnnotation, shapes: list[Any]) -> None:
        entries[annotation.image_path] = annotation
        polygons[annotation.image_path] = [(to_text(shape["label"]), compute_polygon(shape)) for shape in shapes]

    annotations = labelme.read_labelme(root, images, add_shapes)
    annotations.labels = tuple(
        label for label in annotations.labels if label not in (BACKGROUND, BACKGROUND_LABEL, IGNORED_LABEL)
    )
    values = {BACKGROUND: 1, BACKGROUND_LABEL: 1, IGNORED_LABEL: UNLABELED}
    values |= {label: value for value, label in enumerate(annotations.labels, 2)}
    image_masks = {}
    for image, annotation in entries.items():
        file, outlines = annotation.annotation_path, []
        for number, (label, polygon) in enumerate(polygons[image], 1):
            if polygon is None:
                detail = f"shape {number} has no area, and is not drawn; use a polygon, a rectangle or a circle"
                annotations.orphan_annotations.append(AnnotationProblem("no area", file, 0, detail))
            elif label in values:  # the areas put the shapes in the order of the file
                outlines.append(ObjectOutline(values[label], [polygon], -number, f"shape {number}"))
        size = annotation.size or get_upright_size(read_header(image))
        image_masks[image] = COCOMask(size, tuple(outlines), file)
    return annotations, image_masks


def compute_polygon(shape: Any) -> npt.NDArray[np.float64] | None:
    """Compute the corners of a shape, x and y in turn ``(2·corners,)``; None if it has no area."""
    kind = shape.get("shape_type") or "polygon"
    points = np.array([[to_number(x), to_number(y)] for x, y in shape["points"]], np.float64).reshape(-1, 2)
    if kind == "circle" and len(points) == 2:
        angles = np.linspace(0, 2 * math.pi, NUM_CIRCLE_CORNERS, endpoint=False)
        with np.errstate(invalid="ignore", over="ignore"):  # drawing the polygon reports numbers that are not finite
            radius = np.linalg.norm(points[1] - points[0])
            points = points[0] + radius * np.stack([np.cos(angles), np.sin(angles)], 1)
    elif kind == "rectangle" and len(points) == 2:
        (left, top), (right, bottom) = points
        points = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
    elif kind not in ("polygon", "rectangle"):
        return None
    return points.ravel() if len(points) >= 3 else None

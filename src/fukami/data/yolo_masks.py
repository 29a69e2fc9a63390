"""Segmentation masks rasterized from the polygons in YOLO text files."""

from pathlib import Path

import numpy as np

from fukami.data import yolo
from fukami.data.annotations import DatasetAnnotations, ImageAnnotation, get_upright_size, read_headers
from fukami.data.coco_masks import BACKGROUND, COCOMask, ObjectOutline
from fukami.data.yolo import Polygon


def read_yolo_masks(root: Path, images: Path | None = None) -> tuple[DatasetAnnotations, dict[Path, COCOMask]]:
    """Read the label files of a dataset: the annotations, and the mask of each image; smaller objects are on top.

    The paths are as for :func:`fukami.data.yolo.read_yolo`.
    """
    polygons: dict[Path, list[Polygon]] = {}

    def add_polygons(annotation: ImageAnnotation, image_polygons: list[Polygon]) -> None:
        polygons[annotation.image_path] = image_polygons

    annotations = yolo.read_yolo(root, images, add_polygons)
    labels = [label for label in annotations.labels if label != BACKGROUND]
    values = {BACKGROUND: 1, **{label: value for value, label in enumerate(labels, 2)}}
    entries = {entry.image_path: entry for entries in annotations.splits.values() for entry in entries}
    image_masks = {}
    for (image, entry), header in zip(entries.items(), read_headers([*entries]), strict=True):
        size = get_upright_size(header)
        outlines = []
        for label, line, corners in polygons.get(image, ()):  # an image without a file of labels has no object
            with np.errstate(invalid="ignore", over="ignore"):  # drawing the polygon reports them
                pixels = corners * size
                width, height = pixels.max(0) - pixels.min(0)
                area = float(np.nan_to_num(width * height))
            outlines.append(ObjectOutline(values[label], [pixels.ravel()], area, f"line {line}"))
        image_masks[image] = COCOMask(size, tuple(outlines), entry.annotation_path)
    return annotations, image_masks

"""Validation of detection datasets: problems of annotations by file and line, and of the image files."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fukami.data import annotations, formats
from fukami.data.annotations import Box, Corners, DatasetAnnotations, ImageAnnotation, ImageHeader
from fukami.data.findings import Findings, ImageItem, PathNames, add_read_error, hash_images, hash_pixels
from fukami.data.sources import DataSource
from fukami.detection import data as detection_data
from fukami.errors import Error

MIN_SIDE = 4.0  # pixels; a smaller object cannot be recognized
BORDER_TOLERANCE = 0.5  # pixels that a box may exceed its image by, since coordinates are often rounded
FAULT_MESSAGES = {
    "not a number": "is not four finite numbers, and is skipped",
    "inverted box": "has right < left or bottom < top, and is skipped",
    "empty box": "has no area, and is skipped",
    "outside": "is outside its image, and is skipped",
}


def check_samples(source: DataSource, findings: Findings) -> Iterator[tuple[ImageItem, bytes]]:
    """Validate a detection dataset; yields its readable images with the digest of their pixels.

    Args:
        source: the dataset.
        findings: the object that the problems are added to.
    """
    if source.spec == "scenes":
        yield from _check_scenes(findings)
        return
    names = PathNames(source)
    try:
        dataset = formats.read_boxes(source.require("boxes"), source.images)
    except Error as error:
        add_read_error(error, names, findings)
        return
    for problem in dict.fromkeys(
        problem._replace(split="") for problem in (*dataset.unreadable_images, *dataset.orphan_annotations)
    ):
        findings.add(problem.kind, problem.detail, file=names(problem.file), line=problem.line)
    for image in dataset.unannotated_images:
        findings.add("no annotation", "no annotation describes this image", file=names(image))
    yield from hash_images(_check_annotations(dataset, names, findings), findings)


def _check_annotations(dataset: DatasetAnnotations, names: PathNames, findings: Findings) -> list[ImageItem]:
    """Validate the annotation of each image; returns each image once."""
    splits = dict(dataset.splits)
    if {"train", "val"} & splits.keys():
        splits.pop("trainval", None)
    entries = [(split, entry) for split, split_entries in splits.items() for entry in split_entries]
    entries.sort(key=lambda pair: ("", "trainval", "train", "val", "test").index(pair[0]))
    for split in splits:
        findings.annotation_counts[split].update(dict.fromkeys(dataset.labels, 0))
    first_splits: dict[Path, str] = {}
    items = []
    headers = annotations.read_headers([entry.image_path for _, entry in entries])
    for (split, entry), header in zip(entries, headers, strict=True):
        if isinstance(header, ImageHeader):  # an unreadable image is reported when it is decoded
            _check_entry(entry, header, names(entry.annotation_path), split, findings)
        if entry.image_path in first_splits:
            kind = "duplicate" if first_splits[entry.image_path] == split else "duplicate across splits"
            where = f"in {first_splits[entry.image_path]!r} and in {split!r}" if split else "twice"
            findings.add(
                kind, f"{entry.image_path.name} is listed {where}", file=names(entry.annotation_path), line=entry.line
            )
            continue
        first_splits[entry.image_path] = split
        items.append(ImageItem(entry.image_path, names(entry.image_path), "", split))
    return items


def _check_entry(entry: ImageAnnotation, header: ImageHeader, file: str, split: str, findings: Findings) -> None:
    """Validate the boxes of an image and the image size that its annotation states."""
    width, height = header.upright_size
    is_stored_size = header.is_stored_size(entry.size)
    if entry.size and not is_stored_size and entry.size != header.upright_size:
        stated = "×".join(map(str, entry.size))
        detail = f"states {stated} pixels, and {entry.image_path.name} has {width}×{height}; the file's size is used"
        findings.add("wrong size", detail, file=file, line=entry.line)
    if header.orientation != 1 and entry.boxes:
        reference = "image as stored, whose size is stated, and rotated with it" if is_stored_size else "upright image"
        detail = f"{entry.image_path.name} is rotated by its EXIF data; boxes are taken as those of the {reference}"
        findings.add("EXIF rotation", detail, file=file, line=entry.line)
    first_boxes: dict[tuple[str, Corners], Box] = {}
    for box, corners in zip(entry.boxes, annotations.compute_pixel_corners(entry, header), strict=True):
        name = f"{box.identifier} ({box.label})" if box.identifier else f"the {box.label or 'unlabeled'} box"
        problem = annotations.find_box_problem(corners, header.upright_size)
        numbers = ", ".join(f"{value:g}" for value in corners)
        if problem:
            where = "" if problem == "not a number" else f"; its corners are {numbers} in {width}×{height} pixels"
            findings.add(problem, f"{name} {FAULT_MESSAGES[problem]}{where}", file=file, line=box.line)
            continue
        if box.label:
            findings.annotation_counts[split][box.label] += 1
            findings.first_locations.setdefault(box.label, (file, box.line))
        for kind, detail in _find_warnings(corners, header.upright_size, box.starts_at_zero):
            findings.add(kind, f"{name} {detail}", file=file, line=box.line)
        other = first_boxes.setdefault((box.label, corners), box)
        if other is not box:
            original = other.identifier or f"the box in line {other.line}"
            findings.add("duplicate box", f"{name} repeats {original}", file=file, line=box.line)


def _find_warnings(corners: Corners, size: tuple[int, int], starts_at_zero: bool) -> Iterator[tuple[str, str]]:
    """Yield the kind and the description of each possible problem of a usable box."""
    left, top, right, bottom = corners
    width, height = size
    if starts_at_zero:
        yield "counts from 0", "starts at 0, and VOC counts pixels from 1; the file may be off by one"
    excess = max(-left - starts_at_zero, -top - starts_at_zero, right - width, bottom - height)
    if excess > BORDER_TOLERANCE:
        yield "crosses the border", f"exceeds its {width}×{height} image by {excess:g} pixels, and is clipped"
    inner_width, inner_height = min(right, width) - max(left, 0), min(bottom, height) - max(top, 0)
    if min(inner_width, inner_height) < MIN_SIDE:
        yield "tiny box", f"is {inner_width:g}×{inner_height:g} pixels; a side below {MIN_SIDE:g} is too small"


def _check_scenes(findings: Findings) -> Iterator[tuple[ImageItem, bytes]]:
    """Validate the bundled dataset, which has no files."""
    train, val, _, labels = detection_data.load_dataset("scenes", None)
    for split, samples in (("train", train), ("val", val)):
        for sample in samples:
            findings.image_counts[split][""] += 1
            findings.annotation_counts[split].update(labels[class_index] for class_index in sample.classes.tolist())
            yield ImageItem(Path(), sample.name, "", split), hash_pixels(np.asarray(sample.source))

"""What training would stumble on in images with boxes: bad annotations by file and line, and what the files are."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fukami.data import annotations, findings
from fukami.data.annotations import Box, Corners, DatasetAnnotations, ImageAnnotation, ImageHeader
from fukami.data.findings import Findings, ImageItem, PathNames, add_read_error
from fukami.detection import data as detection_data
from fukami.errors import Error

MIN_SIDE = 4.0  # pixels; a side below shows nothing that could be told apart
BORDER_TOLERANCE = 0.5  # pixels that a box may leave its image by, as rounded coordinates do
FAULT_MESSAGES = {
    "not a number": "has no box of four finite numbers, and is left out",
    "inverted box": "ends before it begins, and is left out",
    "empty box": "has no area, and is left out",
    "outside": "lies outside of its image, and is left out",
}


def check_samples(spec: str, found: Findings) -> Iterator[tuple[ImageItem, bytes]]:
    """The readable images of a data set with the digest of their pixels; what is wrong is told on the way."""
    if spec == "scenes":
        yield from _check_scenes(found)
        return
    given = detection_data.find_dataset(spec)
    names = PathNames(given)
    try:
        sheets = detection_data.read_annotations(given)
    except Error as error:
        add_read_error(error, names, found)
        return
    for flaw in dict.fromkeys(
        flaw._replace(split="") for flaw in (*sheets.unusable_images, *sheets.orphan_annotations)
    ):
        found.add(flaw.kind, flaw.detail, file=names(flaw.file), line=flaw.line)
    for image in sheets.unannotated_images:
        found.add("no annotation", "no annotation says what is in it", file=names(image))
    yield from findings.hash_images(_check_annotations(sheets, names, found), found)


def _check_annotations(sheets: DatasetAnnotations, names: PathNames, found: Findings) -> list[ImageItem]:
    """Every image once; what its annotation says is examined on the way."""
    parts = dict(sheets.splits)
    if {"train", "val"} & parts.keys():
        parts.pop("trainval", None)
    entries = [(part, entry) for part, some in parts.items() for entry in some]
    entries.sort(key=lambda each: ("", "trainval", "train", "val", "test").index(each[0]))
    for part in parts:
        found.annotation_counts[part].update(dict.fromkeys(sheets.labels, 0))
    first: dict[Path, str] = {}
    items = []
    headers = annotations.read_headers([entry.image_path for _, entry in entries])
    for (part, entry), head in zip(entries, headers, strict=True):
        if isinstance(head, ImageHeader):  # what cannot be read is told when it is decoded
            _check_entry(entry, head, names(entry.annotation_path), part, found)
        if entry.image_path in first:
            kind = "duplicate" if first[entry.image_path] == part else "duplicate across parts"
            where = f"in {first[entry.image_path]!r} and in {part!r}" if part else "twice"
            found.add(
                kind, f"{entry.image_path.name} is listed {where}", file=names(entry.annotation_path), line=entry.line
            )
            continue
        first[entry.image_path] = part
        items.append(ImageItem(entry.image_path, names(entry.image_path), "", part))
    return items


def _check_entry(entry: ImageAnnotation, head: ImageHeader, file: str, part: str, found: Findings) -> None:
    """What is wrong with the boxes of an image and with what is said of its size."""
    width, height = head.upright_size
    stored = entry.size == (head.width, head.height)
    if entry.size and not stored and entry.size != head.upright_size:
        stated = "×".join(map(str, entry.size))
        detail = f"states {stated} pixels, and {entry.image_path.name} has {width}×{height}; the file is trusted"
        found.add("wrong size", detail, file=file, line=entry.line)
    if head.orientation != 1 and entry.boxes:
        turned = "before it is, as the stated size says, and turned with it" if stored else "once it is upright"
        detail = f"{entry.image_path.name} is turned by its EXIF data; boxes are taken to be of the image {turned}"
        found.add("EXIF rotation", detail, file=file, line=entry.line)
    before: dict[tuple[str, Corners], Box] = {}
    for box, corners in zip(entry.boxes, annotations.compute_pixel_corners(entry, head), strict=True):
        note = f"{box.identifier} ({box.label})" if box.identifier else f"the {box.label or 'nameless'} box"
        problem = annotations.find_box_problem(corners, head.upright_size)
        numbers = ", ".join(f"{value:g}" for value in corners)
        if problem:
            where = "" if problem == "not a number" else f"; its corners are {numbers} in {width}×{height} pixels"
            found.add(problem, f"{note} {FAULT_MESSAGES[problem]}{where}", file=file, line=box.line)
            continue
        if box.label:
            found.annotation_counts[part][box.label] += 1
            found.first_locations.setdefault(box.label, (file, box.line))
        for kind, detail in _find_warnings(corners, head.upright_size, box.starts_at_zero):
            found.add(kind, f"{note} {detail}", file=file, line=box.line)
        other = before.setdefault((box.label, corners), box)
        if other is not box:
            which = f"as {other.identifier}" if other.identifier else f"in line {other.line}"
            found.add("duplicate box", f"{note} is there already, {which}", file=file, line=box.line)


def _find_warnings(corners: Corners, size: tuple[int, int], zero: bool) -> Iterator[tuple[str, str]]:
    """What is doubtful about a box that can be learned from: the kind, and the words."""
    left, top, right, bottom = corners
    width, height = size
    if zero:
        yield "counts from 0", "begins at 0, and VOC counts pixels from 1: is the file off by one?"
    beyond = max(-left - zero, -top - zero, right - width, bottom - height)
    if beyond > BORDER_TOLERANCE:
        yield "crosses the border", f"leaves its {width}×{height} image by {beyond:g} pixels, and is cut there"
    wide, high = min(right, width) - max(left, 0), min(bottom, height) - max(top, 0)
    if min(wide, high) < MIN_SIDE:
        yield "tiny box", f"is {wide:g}×{high:g} pixels; a side below {MIN_SIDE:g} shows nothing"


def _check_scenes(found: Findings) -> Iterator[tuple[ImageItem, bytes]]:
    """The embedded set, which has no files."""
    train, test, labels = detection_data.load_dataset("scenes", 0)
    for part, samples in (("train", train), ("test", test)):
        for sample in samples:
            found.image_counts[part][""] += 1
            found.annotation_counts[part].update(labels[number] for number in sample.classes.tolist())
            yield ImageItem(Path(), sample.name, "", part), findings.hash_pixels(np.asarray(sample.source))

"""What training would stumble on in images with masks: masks that are missing, of another size or of no class."""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from fukami.data import findings
from fukami.data.annotations import ImageHeader, read_header
from fukami.data.findings import Findings, ImageItem, PathNames, add_read_error
from fukami.data.masks import MaskFile, MissingMask
from fukami.data.samples import Mask
from fukami.errors import Error
from fukami.segmentation import data as segmentation_data

MAX_VALUES_LISTED = 5  # values or colours of no class that are named in a mask
ImageMaskPair = tuple[Path, Mask]
MaskReport = tuple[
    Counter[str], list[tuple[str, str, str]]
]  # pixels of each class; problem, file and words of each finding


def check_samples(spec: str, found: Findings) -> Iterator[tuple[ImageItem, bytes]]:
    """The readable images of a data set with the digest of their pixels; what is wrong is told on the way."""
    found.unit = "pixel"
    if spec == "scenes":
        yield from _check_scenes(found)
        return
    pairs, names = _check_pairs(spec, found)
    every = [(part, pair) for part, some in pairs.items() for pair in some]
    items = [ImageItem(image, names(image), "", part) for part, (image, _) in every]
    yield from findings.hash_images(items, found)


def check_masks(spec: str, found: Findings) -> None:
    """What is wrong with the masks alone, of data whose images are looked at already."""
    if spec != "scenes":
        _check_pairs(spec, found)


def _check_pairs(spec: str, found: Findings) -> tuple[dict[str, list[ImageMaskPair]], PathNames]:
    """The pairs of each part; their masks are examined."""
    given = segmentation_data.find_dataset(spec)
    names = PathNames(given)
    try:
        described = segmentation_data.index_dataset(given)
    except Error as error:
        add_read_error(error, names, found)
        return {}, names
    for flaw in described.problems:
        found.add(flaw.kind, flaw.detail, file=names(flaw.file), line=flaw.line)
    order = sorted(described.splits, key=("", "train", "val", "test").index)
    labels = described.class_table.labels
    for part in order:
        found.annotation_counts[part].update(dict.fromkeys(labels, 0))
        with ThreadPoolExecutor() as threads:
            for counts, problems in threads.map(partial(_check_mask, labels), described.splits[part]):
                found.annotation_counts[part].update(counts)
                for problem, file, detail in problems:
                    found.add(problem, detail, file=names(Path(file)))
    return {part: described.splits[part] for part in order}, names


def _check_mask(labels: Sequence[str], pair: ImageMaskPair) -> MaskReport:
    """The pixels of each class in a mask, and what is wrong with it."""
    image, mask = pair
    if isinstance(mask, MissingMask):
        return Counter(), [("no mask", str(image), "has no mask of its name; draw one, or remove the image")]
    file = str(mask.path if isinstance(mask, MaskFile) else image)
    head, problems = read_header(image), []
    if isinstance(head, ImageHeader):
        wrong = segmentation_data.find_mismatch(image, head, mask)
        if wrong:
            problems.append(
                ("wrong size" if "pixels, and" in wrong else "broken", file, wrong.removeprefix(f"{file} "))
            )
    try:
        if isinstance(mask, MaskFile):
            problems += [(kind, file, detail) for kind, detail in _find_unknown_values(mask)]
            if problems:
                return Counter(), problems
        pixels = mask.read()
    except Error as error:
        told = [("broken", file, str(error).removeprefix(f"{file} "))]
        return Counter(), problems or told
    counts = np.bincount(pixels.ravel(), minlength=len(labels) + 1)
    if counts[1:].sum() == 0:
        problems.append(("unlabelled", file, "has no pixel of any class, so nothing is learned from it"))
    return Counter(dict(zip(labels, counts[1:].tolist(), strict=False))), problems


def _find_unknown_values(mask: MaskFile) -> Iterator[tuple[str, str]]:
    """The values or colours of a mask that its legend does not have: the kind of problem, and the words."""
    codes, known = mask.read_codes(), mask.list_known_codes()[0]
    values, first, counts = np.unique(codes, return_index=True, return_counts=True)
    strange = np.flatnonzero(~np.isin(values, known))
    for at in strange[np.argsort(-counts[strange])][:MAX_VALUES_LISTED].tolist():
        row, column = divmod(int(first[at]), codes.shape[1])
        where = f"in {findings.format_count(int(counts[at]), 'pixel')}, the first at column {column} of row {row}"
        detail = f"has {mask.describe_code(int(values[at]))} {where}, which the class table does not have"
        yield "unknown colour" if mask.class_table.color_to_class else "unknown value", detail
    if len(strange) > MAX_VALUES_LISTED:
        yield "unknown value", f"has {len(strange)} values of no class in all; was it saved as JPEG, or resized?"


def _check_scenes(found: Findings) -> Iterator[tuple[ImageItem, bytes]]:
    """The embedded set, which has no files."""
    train, test, labels = segmentation_data.load_dataset("scenes", 0)
    for part, samples in (("train", train), ("test", test)):
        for sample in samples:
            assert sample.mask is not None
            found.image_counts[part][""] += 1
            counts = np.bincount(sample.mask.read().ravel(), minlength=len(labels) + 1)[1:]
            found.annotation_counts[part].update(dict(zip(labels, counts.tolist(), strict=True)))
            yield ImageItem(Path(), sample.name, "", part), findings.hash_pixels(np.asarray(sample.source))

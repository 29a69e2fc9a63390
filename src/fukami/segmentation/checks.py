"""Validation of segmentation datasets: missing masks, masks of the wrong size, unknown values."""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from fukami.data.annotations import ImageHeader, read_header
from fukami.data.findings import Findings, ImageItem, PathNames, add_read_error, hash_images, hash_pixels
from fukami.data.masks import MaskFile, MissingMask
from fukami.data.samples import Mask
from fukami.data.sources import DataSource
from fukami.errors import Error
from fukami.progress import format_count, track
from fukami.segmentation import data as segmentation_data
from fukami.system import start_decoding_threads

MAX_VALUES_LISTED = 5  # unknown values or colors reported per mask
ImageMaskPair = tuple[Path, Mask]
MaskReport = tuple[Counter[str], list[tuple[str, str, str]]]  # pixels per class; kind, file and detail of each problem


def check_samples(source: DataSource, findings: Findings) -> Iterator[tuple[ImageItem, bytes]]:
    """Yield each readable image of a dataset with the digest of its pixels; problems are added to ``findings``."""
    findings.unit = "pixel"
    if source.spec == "scenes":
        yield from _check_scenes(findings)
        return
    pairs, names = _check_pairs(source, findings)
    all_pairs = [(split, pair) for split, split_pairs in pairs.items() for pair in split_pairs]
    items = [ImageItem(image, names(image), "", split) for split, (image, _) in all_pairs]
    yield from hash_images(items, findings)


def check_masks(source: DataSource, findings: Findings) -> None:
    """Check only the masks of a dataset whose images are already checked."""
    if source.spec != "scenes":
        _check_pairs(source, findings)


def _check_pairs(source: DataSource, findings: Findings) -> tuple[dict[str, list[ImageMaskPair]], PathNames]:
    """Check the masks of each split; return the image-mask pairs by split."""
    names = PathNames(source)
    try:
        index = segmentation_data.index_dataset(source)
    except Error as error:
        add_read_error(error, names, findings)
        return {}, names
    for problem in (*index.problems, *index.orphans):
        findings.add(problem.kind, problem.detail, file=names(problem.file), line=problem.line)
    order = sorted(index.splits, key=("", "trainval", "train", "val", "test").index)
    labels = index.class_table.labels
    for split in order:
        findings.annotation_counts[split].update(dict.fromkeys(labels, 0))
        with start_decoding_threads() as threads:
            pairs = index.splits[split]
            checked = threads.map(partial(_check_mask, labels), pairs)
            for counts, problems in track(checked, "checking masks", len(pairs)):
                findings.annotation_counts[split].update(counts)
                for kind, file, detail in problems:
                    findings.add(kind, detail, file=names(Path(file)))
    return {split: index.splits[split] for split in order}, names


def _check_mask(labels: Sequence[str], pair: ImageMaskPair) -> MaskReport:
    """Count the pixels of each class in a mask and list its problems."""
    image, mask = pair
    if isinstance(mask, MissingMask):
        return Counter(), [("no mask", str(image), "has no mask of the same name; add one, or remove the image")]
    file = str(mask.path if isinstance(mask, MaskFile) else image)
    header, problems = read_header(image), []
    if isinstance(header, ImageHeader):
        mismatch = segmentation_data.find_mismatch(image, header, mask)
        if mismatch:
            problems.append((mismatch.kind, file, mismatch.detail.removeprefix(f"{file} ")))
    try:
        if isinstance(mask, MaskFile):
            problems += [(kind, file, detail) for kind, detail in _find_unknown_values(mask)]
            if problems:
                return Counter(), problems
        pixels = mask.read()
    except Error as error:
        read_problem = [("unreadable", file, str(error).removeprefix(f"{file} "))]
        return Counter(), problems or read_problem
    counts = np.bincount(pixels.ravel(), minlength=len(labels) + 1)
    if counts[1:].sum() == 0:
        problems.append(("unlabeled", file, "has no labeled pixel, so training ignores it"))
    return Counter(dict(zip(labels, counts[1:].tolist(), strict=False))), problems


def _find_unknown_values(mask: MaskFile) -> Iterator[tuple[str, str]]:
    """Yield the kind and the detail of each value or color that is missing from the class table."""
    codes, known = mask.read_codes(), mask.list_known_codes()[0]
    values, first, counts = np.unique(codes, return_index=True, return_counts=True)
    unknown = np.flatnonzero(~np.isin(values, known))
    for index in unknown[np.argsort(-counts[unknown])][:MAX_VALUES_LISTED].tolist():
        row, column = divmod(int(first[index]), codes.shape[1])
        location = f"in {format_count(int(counts[index]), 'pixel')}, the first at column {column} of row {row}"
        detail = f"has {mask.describe_code(int(values[index]))} {location}, which the class table does not have"
        yield "unknown color" if mask.class_table.color_to_class else "unknown value", detail
    if len(unknown) > MAX_VALUES_LISTED:
        yield "unknown value", f"has {len(unknown)} unknown values in total; was it saved as JPEG, or resized?"


def _check_scenes(findings: Findings) -> Iterator[tuple[ImageItem, bytes]]:
    """Yield the images of the bundled dataset, which has no files."""
    train, val, _, labels = segmentation_data.load_dataset("scenes", None)
    for split, samples in (("train", train), ("val", val)):
        for sample in samples:
            assert sample.mask is not None
            findings.image_counts[split][""] += 1
            counts = np.bincount(sample.mask.read().ravel(), minlength=len(labels) + 1)[1:]
            findings.annotation_counts[split].update(dict(zip(labels, counts.tolist(), strict=True)))
            yield ImageItem(Path(), sample.name, "", split), hash_pixels(np.asarray(sample.source))

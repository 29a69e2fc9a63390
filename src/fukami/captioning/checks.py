"""Validation of captioning datasets: missing images and missing captions."""

from collections.abc import Iterator

from fukami.data import captions
from fukami.data.findings import Findings, ImageItem, PathNames, add_read_error, hash_images
from fukami.data.sources import DataSource
from fukami.errors import Error


def check_samples(source: DataSource, findings: Findings) -> Iterator[tuple[ImageItem, bytes]]:
    """Yield each readable image of a dataset with the digest of its pixels; problems are added to ``findings``."""
    findings.unit = "caption"
    names = PathNames(source)
    try:
        path = source.require("captions").root
        parsed = captions.parse_caption_files(path, source.images)
    except Error as error:
        add_read_error(error, names, findings)
        return
    for problem in parsed.problems:
        findings.add(problem.kind, problem.detail, file=names(problem.file), line=problem.line)
    items = []
    for split in sorted(parsed.splits, key=("", "train", "val", "test").index):
        for image, image_captions in parsed.splits[split].items():
            findings.annotation_counts[split][""] += len(image_captions)
            items.append(ImageItem(image, names(image), "", split))
    for image in captions.find_uncaptioned_images(path, parsed, source.images):
        findings.add("no caption", "has no caption; add one, or remove the image", file=names(image))
    yield from hash_images(items, findings)

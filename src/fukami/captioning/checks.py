"""Validation of captioning datasets: missing images and missing captions."""

from collections.abc import Iterator

from fukami.data import captions, findings
from fukami.data.findings import Findings, ImageItem, PathNames
from fukami.data.sources import DataSource
from fukami.errors import Error


def check_samples(source: DataSource, report: Findings) -> Iterator[tuple[ImageItem, bytes]]:
    """Yield each readable image of a dataset with the digest of its pixels; problems are added to ``report``."""
    report.unit = "caption"
    names = PathNames(source)
    try:
        path = source.require("captions").root
        parsed = captions.parse_caption_files(path, source.images)
    except Error as error:
        report.add("unreadable", str(error).removeprefix(f"{names.source} "), file=str(names.source))
        return
    for problem in parsed.problems:
        report.add(problem.kind, problem.detail, file=names(problem.file), line=problem.line)
    items = []
    for split in sorted(parsed.splits, key=("", "train", "val", "test").index):
        for image, image_captions in parsed.splits[split].items():
            report.annotation_counts[split][""] += len(image_captions)
            items.append(ImageItem(image, names(image), "", split))
    for image in captions.find_uncaptioned_images(path, parsed, source.images):
        report.add("no caption", "has no caption; add one, or remove the image", file=names(image))
    yield from findings.hash_images(items, report)

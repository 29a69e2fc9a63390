"""Validation of captioning datasets: missing images and missing captions."""

from collections.abc import Iterator

from fukami.captioning import data as captioning_data
from fukami.data import findings
from fukami.data.findings import Findings, ImageItem
from fukami.errors import Error


def check_samples(spec: str, report: Findings) -> Iterator[tuple[ImageItem, bytes]]:
    """Yield each readable image of a dataset with the digest of its pixels; problems are added to ``report``."""
    report.unit = "caption"
    path = captioning_data.locate_dataset(spec)
    try:
        parsed = captioning_data.parse_caption_files(path)
    except Error as error:
        report.add("broken", str(error).removeprefix(f"{path} "), file=str(path))
        return
    for problem in parsed.problems:
        report.add(problem.kind, problem.detail, file=str(problem.file), line=problem.line)
    items = []
    for split in sorted(parsed.splits, key=("", "train", "val", "test").index):
        for image, captions in parsed.splits[split].items():
            report.annotation_counts[split][""] += len(captions)
            items.append(ImageItem(image, str(image), "", split))
    for image in captioning_data.find_uncaptioned_images(path, parsed):
        report.add("no caption", "has no caption; add one, or remove the image", file=str(image))
    yield from findings.hash_images(items, report)

"""What training would stumble on in images with sentences: images that are missing, and nothing that was said."""

from collections.abc import Iterator

from fukami.captioning import data as captioning_data
from fukami.data import findings
from fukami.data.findings import Findings, ImageItem
from fukami.errors import Error


def check_dataset(spec: str, report: Findings) -> Iterator[tuple[ImageItem, bytes]]:
    """The readable images of a data set with the digest of their pixels; what is wrong is told on the way."""
    report.unit = "sentence"
    given = captioning_data.locate_dataset(spec)
    try:
        sheet = captioning_data.parse_caption_files(given)
    except Error as error:
        report.add("broken", str(error).removeprefix(f"{given} "), file=str(given))
        return
    for flaw in sheet.problems:
        report.add(flaw.kind, flaw.detail, file=str(flaw.file), line=flaw.line)
    items = []
    for part in sorted(sheet.splits, key=("", "train", "val", "test").index):
        for image, sentences in sheet.splits[part].items():
            report.annotation_counts[part][""] += len(sentences)
            items.append(ImageItem(image, str(image), "", part))
    for image in captioning_data.find_uncaptioned_images(given, sheet):
        report.add("no sentence", "has no sentence; say something of it, or remove it", file=str(image))
    yield from findings.hash_images(items, report)

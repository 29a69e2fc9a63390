"""Validation of datasets for image generation: unreadable files and duplicates among images without annotations."""

from collections.abc import Iterator

from fukami.data.files import walk_images
from fukami.data.findings import Findings, ImageItem, PathNames, hash_images
from fukami.data.sources import DataSource
from fukami.generation.data import MIN_IMAGES
from fukami.progress import format_count


def check_samples(source: DataSource, findings: Findings) -> Iterator[tuple[ImageItem, bytes]]:
    """Yield each readable image of a dataset with the digest of its pixels; problems are added to ``findings``."""
    findings.unit = "image"
    names = PathNames(source)
    files = sorted(walk_images(source.require("images").root))  # includes dangling links
    yield from hash_images([ImageItem(file, names(file), "", "") for file in files], findings)
    count = findings.image_counts[""][""]
    if count < MIN_IMAGES:
        detail = f"has {format_count(count, 'readable image')}; training needs at least {MIN_IMAGES}"
        findings.add("too few", detail, file=str(names.source))

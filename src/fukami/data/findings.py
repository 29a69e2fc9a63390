"""Dataset validation (``fukami doctor``): problems, counts and the checks that all kinds of datasets share."""

import hashlib
import io
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from fukami.data.sources import DataSource
from fukami.data.splits import SPLIT_NAMES
from fukami.errors import Error, MissingPackageError, convert_memory_errors
from fukami.image import io as image_io
from fukami.image.channels import PILLOW_CHANNELS, ArrayImage, Levels, read_channels, read_depth
from fukami.progress import ProgressBar, format_count, pluralize
from fukami.system import start_decoding_threads

MAX_IMBALANCE = 10  # maximum ratio of the largest class to another class
MAX_LISTED = 3  # locations in the summary of a kind of problem
MIN_SIDE = 8  # pixels; smaller images show nothing recognizable
CHUNK_SIZE = 1024  # number of files checked at a time
# file and line in an error message of an annotation reader
ERROR_LOCATION = re.compile(
    r"^(?P<file>.*?\.(json|ya?ml|data))(, line (?P<line>\d+))?:? (?P<detail>.*)$", re.DOTALL | re.I
)
# (format by suffix, format by content) that readers treat as the same
EQUIVALENT_FORMATS = {("JPEG", "MPO"), ("BMP", "DIB")}
Depth = tuple[int, bool]  # channels of an image, and whether they have more than 8 bits


@dataclass(frozen=True)
class Problem:
    """Problem of a dataset: its kind, a description, and the file and line or the class that it concerns."""

    kind: str
    detail: str
    file: str = ""
    label: str = ""
    line: int = 0

    @property
    def location(self) -> str:
        """File with the line, or class that the problem concerns."""
        return f"{self.file}, line {self.line}" if self.line else self.file or self.label

    def to_dict(self) -> dict[str, str | int]:
        """Convert to a JSON object, without empty fields."""
        location: dict[str, str | int] = {"file": self.file, "line": self.line, "class": self.label}
        nonempty = {name: value for name, value in location.items() if value}
        return {"problem": self.kind, **nonempty, "detail": self.detail}


@dataclass(frozen=True)
class ImageItem:
    """Image to validate: its path, its name in messages, its class and its split (empty: no splits)."""

    path: Path
    name: str
    label: str
    split: str
    content: bytes = b""
    """Encoded image, if it has no file of its own."""


@dataclass
class Findings:
    """Result of a validation: the problems, and the number of readable images of each class, by split.

    For images with boxes or masks, ``annotation_counts`` contains the number of boxes or pixels (the ``unit``) of each
    class by split, and ``first_locations`` the file and line of the first occurrence of a class. ``depth_counts``
    contains the number of image files of each depth.
    """

    problems: list[Problem] = field(default_factory=list)
    image_counts: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    annotation_counts: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    unit: str = "box"
    first_locations: dict[str, tuple[str, int]] = field(default_factory=dict)
    depth_counts: Counter[Depth] = field(default_factory=Counter)

    def add(self, kind: str, detail: str, *, file: str = "", label: str = "", line: int = 0) -> None:
        """Add a problem."""
        self.problems.append(Problem(kind, detail, file, label, line))

    def describe_depths(self) -> list[str]:
        """Describe the images that are not gray or in color with 8 bits, and how training keeps what they have."""
        return [
            f"{format_count(count, 'image')} of {format_count(channels, 'channel')} with "
            f"{'more than ' * is_deep}8 bits; --channels {channels} keeps them"
            for (channels, is_deep), count in sorted(self.depth_counts.items())
            if is_deep or channels not in PILLOW_CHANNELS
        ]

    def summarize(self) -> list[dict[str, object]]:
        """Summarize the problems of each kind: their number, the first locations and the detail of the first."""
        kinds: dict[str, list[Problem]] = defaultdict(list)
        for problem in self.problems:
            kinds[problem.kind].append(problem)
        return [
            {
                "problem": kind,
                "count": len(problems),
                "first": [problem.location for problem in problems[:MAX_LISTED]],
                "detail": problems[0].detail,
            }
            for kind, problems in kinds.items()
        ]

    def __str__(self) -> str:
        """Summarize the validation in one sentence."""
        num_images = sum(counter.total() for counter in self.image_counts.values())
        num_annotations = sum(counter.total() for counter in self.annotation_counts.values())
        num_classes = len(
            {label for counter in (self.annotation_counts or self.image_counts).values() for label in counter}
        )
        annotations = f" with {format_count(num_annotations, self.unit)}" if self.annotation_counts else ""
        classes = "" if self.unit in ("caption", "image") else f" of {format_count(num_classes, 'class')}"
        content = f"{format_count(num_images, 'readable image')}{annotations}{classes}"
        if self.unit == "game":
            content = format_count(num_images, "readable game")
        kinds = Counter(problem.kind for problem in self.problems)
        kind_counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        total = format_count(len(self.problems), "problem")
        return f"{total} among {content}: {kind_counts}" if kinds else f"no problem among {content}"


# single files


def hash_images(items: Iterable[ImageItem], findings: Findings) -> Iterator[tuple[ImageItem, bytes]]:
    """Check images in threads; yield the readable ones with a digest of their pixels, and add the problems of all."""
    total = len(items) if isinstance(items, list) else None
    with ProgressBar("checking", total, "images") as bar, start_decoding_threads() as threads:
        remaining = iter(items)
        while chunk := list(islice(remaining, CHUNK_SIZE)):
            for item, (digest, depth, problems) in zip(chunk, threads.map(check_image, chunk), strict=True):
                findings.problems += problems
                if digest:
                    findings.depth_counts[depth] += 1
                    findings.image_counts[item.split][item.label] += 1
                    yield item, digest
                else:
                    findings.image_counts[item.split][item.label] += 0
            bar.update(len(chunk))


def check_image(item: ImageItem) -> tuple[bytes | None, Depth, list[Problem]]:
    """Return the digest of an image's pixels, None if it cannot be read, its depth, and the problems of the file."""
    source = item.content or item.path
    try:
        with convert_memory_errors(str(item.path)):
            image, depth = read_channels(source, 0, name=str(item.path)), read_depth(source, str(item.path))
            array = image.levels if isinstance(image, ArrayImage) else np.asarray(image.convert("RGB"))
            pixels = hash_pixels(array)
    except MissingPackageError:
        raise
    except Error as error:
        return None, (0, False), [Problem("unreadable", str(error).removeprefix(f"{item.path} "), item.name)]
    problems = []
    expected = Image.registered_extensions().get(item.path.suffix.lower())
    actual = detect_format(source)
    if expected and actual and actual != expected and (expected, actual) not in EQUIVALENT_FORMATS:
        detail = f"is {actual} by content, not {expected} as its suffix states"
        problems.append(Problem("wrong suffix", detail, item.name))
    if min(image.size) < MIN_SIDE:
        detail = f"is {image.width}×{image.height} pixels; a side below {MIN_SIDE} is too small"
        problems.append(Problem("tiny", detail, item.name))
    return pixels, depth, problems


def detect_format(file: Path | bytes) -> str | None:
    """Detect the image format by content without decoding; None if the file is not an image."""
    with image_io.ignore_warnings():
        try:
            with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
                return image.format
        except Exception:  # readers raise errors of any type on unexpected content
            return None


def get_suffix(image_format: str) -> str:
    """Return the usual suffix of an image format, such as ``.png``; empty if it has none."""
    suffixes = [suffix for suffix, name in Image.registered_extensions().items() if name == image_format]
    return ".jpg" if ".jpg" in suffixes else next(iter(suffixes), "")


def hash_pixels(pixels: Levels) -> bytes:
    """Compute a 16-byte digest of the pixels and their shape."""
    return hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=16, key=repr(pixels.shape).encode()).digest()


# the whole dataset


def check_duplicates(hashed_images: Iterable[tuple[ImageItem, bytes]], findings: Findings) -> None:
    """Add a problem for each duplicate image: in another class, in another split, or in the same ones."""
    previous: dict[bytes, dict[tuple[str, str], ImageItem]] = {}  # the first item of each class and split
    for item, digest in hashed_images:
        others = previous.setdefault(digest, {})
        if others:
            worst = min(others.values(), key=lambda other: (other.label == item.label, other.split == item.split))
            kind, detail = describe_conflict(item, worst)
            findings.add(kind, f"is the same image as {worst.name}{detail}", file=item.name)
        others.setdefault((item.label, item.split), item)


def describe_conflict(item: ImageItem, other: ImageItem) -> tuple[str, str]:
    """Return the kind of problem of a duplicate image, and a description of how the two items differ."""
    labels = f", whose class is {other.label!r} and not {item.label!r}" if item.label != other.label else ""
    splits = f"; one is in {other.split!r}, the other in {item.split!r}" if item.split != other.split else ""
    kind = "two classes" if labels else "duplicate across splits" if splits else "duplicate"
    return kind, labels + splits


def check_classes(findings: Findings) -> None:
    """Check the names and the sizes of the classes, counted in images, boxes or pixels."""
    counts, unit = (
        (findings.annotation_counts, findings.unit) if findings.annotation_counts else (findings.image_counts, "image")
    )
    labels = sorted({label for counter in counts.values() for label in counter})
    totals = sum(counts.values(), Counter[str]())
    check_class_names(sorted(labels, key=lambda label: -totals[label]), findings)  # reports the rarer spelling
    if len(labels) == 1 and unit == "image":
        findings.add("single class", "is the only class; add images of another one", label=labels[0])
    train_splits = [split for split in counts if SPLIT_NAMES.get(split.lower(), "train") == "train"]
    sizes = sum((counts[split] for split in train_splits), Counter[str]())  # drops classes with a count of 0
    largest, largest_size = next(iter(sizes.most_common(1)), ("", 0))
    for label in labels:
        present = [split for split, counter in counts.items() if counter[label]]
        absent = [split for split in counts if not counts[split][label]]
        if present and absent:
            detail = f"has {pluralize(unit)} in {format_splits(present)} and none in {format_splits(absent)}"
            findings.add("missing in split", detail, label=label)
        size = sizes[label]
        if size == 1 and len(counts) == 1:
            detail = f"has 1 {unit}, which cannot be used for both training and evaluation"
            findings.add("too few", detail, label=label)
        if 0 < MAX_IMBALANCE * size < largest_size and unit != "pixel":  # pixel counts depend on the objects' sizes
            count = format_count(size, unit)
            detail = f"has {count}, and {largest!r} has {largest_size}: more than {MAX_IMBALANCE} times as many"
            findings.add("unbalanced", detail, label=label)
        if not present and not any(problem.kind == "empty" and problem.label == label for problem in findings.problems):
            detail = "none of its images can be read" if unit == "image" else f"has no valid {unit}"
            findings.add("empty", detail, label=label)


def check_class_names(labels: Iterable[str], findings: Findings) -> None:
    """Check for names that differ only in case or whitespace, and names with leading or trailing whitespace."""
    spellings = defaultdict(list)
    for label in labels:
        spellings[" ".join(unicodedata.normalize("NFKC", label).casefold().split())].append(label)
    for first, *others in spellings.values():
        for other in others:
            detail = f"differs from {first!r} only in case or whitespace, and is another class"
            file, line = findings.first_locations.get(other, ("", 0))
            findings.add("class name", detail, label=other, file=file, line=line)
        if not others and first != first.strip():
            file, line = findings.first_locations.get(first, ("", 0))
            findings.add("class name", "starts or ends with whitespace", label=first, file=file, line=line)


def format_splits(splits: Iterable[str]) -> str:
    """Format the names of splits, as in ``'train' and 'val'``."""
    return " and ".join(repr(split) for split in splits)


class PathNames:
    """Names of files relative to the dataset's path, also for files of an unpacked archive."""

    def __init__(self, source: DataSource) -> None:
        self.source, self.root = source.location, source.path

    def __call__(self, path: Path) -> str:
        """Return the name of a file in messages."""
        return str(self.source / path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)


def add_read_error(error: Error, names: PathNames, findings: Findings) -> None:
    """Add the problem of a dataset that cannot be read at all, with the file and line from the error message."""
    if isinstance(error, MissingPackageError):
        raise error
    match = ERROR_LOCATION.match(str(error))
    file, line = (names(Path(match["file"])), int(match["line"] or 0)) if match else (str(names.source), 0)
    detail = match["detail"] if match else str(error).removeprefix(f"{names.source} ")
    findings.add("unreadable", detail, file=file, line=line)

"""What is wrong with data, and what there is to look at: the doctor's findings, of whichever kind of data."""

import hashlib
import io
import re
import unicodedata
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fukami.data import image_folder
from fukami.errors import Error, convert_memory_errors
from fukami.image import io as image_io

MAX_IMBALANCE = 10  # times as many in the largest class as in another
MIN_SIDE = 8  # pixels; a side below shows nothing that could be told apart
CHUNK_SIZE = 1024  # files that are in flight at a time
# the file and the line that an error of a reader of annotations names
ERROR_LOCATION = re.compile(
    r"^(?P<file>.*?\.(json|ya?ml|data))(, line (?P<line>\d+))?:? (?P<detail>.*)$", re.DOTALL | re.I
)
EQUIVALENT_FORMATS = {
    ("JPEG", "MPO"),
    ("BMP", "DIB"),
}  # formats by name and by content that are one format for every reader


@dataclass(frozen=True)
class Problem:
    """One finding: its kind, the file and line or the class it is about, and what is wrong in words."""

    kind: str
    detail: str
    file: str = ""
    label: str = ""
    line: int = 0

    def to_dict(self) -> dict[str, str | int]:
        """As the line of JSON has it."""
        about: dict[str, str | int] = {"file": self.file, "line": self.line, "class": self.label}
        given = {name: value for name, value in about.items() if value}
        return {"problem": self.kind, **given, "detail": self.detail}


@dataclass(frozen=True)
class ImageItem:
    """An image to look at: where it is, what messages call it, its class and its part (empty: no parts)."""

    path: Path
    name: str
    label: str
    split: str
    content: bytes = b""
    """What the file holds, where it lies in no file of its own."""


@dataclass
class Findings:
    """What is wrong, and how much was looked at: readable images of each class, by part.

    Of images with boxes or masks, which are of no one class, ``annotation_counts`` has the boxes or pixels of each
    class by part, as ``unit`` says, and ``first_locations`` the file and line in which a class is first named.
    """

    problems: list[Problem] = field(default_factory=list)
    image_counts: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    annotation_counts: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    unit: str = "box"
    first_locations: dict[str, tuple[str, int]] = field(default_factory=dict)

    def add(self, kind: str, detail: str, *, file: str = "", label: str = "", line: int = 0) -> None:
        """One more problem."""
        self.problems.append(Problem(kind, detail, file, label, line))

    def __str__(self) -> str:
        """The summary, in one sentence."""
        images = sum(counter.total() for counter in self.image_counts.values())
        things = sum(counter.total() for counter in self.annotation_counts.values())
        classes = len(
            {label for counter in (self.annotation_counts or self.image_counts).values() for label in counter}
        )
        between = f" with {format_count(things, self.unit)}" if self.annotation_counts else ""
        of = "" if self.unit == "sentence" else f" of {format_count(classes, 'class')}"
        among = f"{format_count(images, 'readable image')}{between}{of}"
        kinds = Counter(found.kind for found in self.problems)
        listed = ", ".join(f"{number} {kind}" for kind, number in kinds.most_common())
        all_told = format_count(len(self.problems), "problem")
        return f"{all_told} among {among}: {listed}" if kinds else f"no problem among {among}"


# each file


def hash_images(items: Iterable[ImageItem], findings: Findings) -> Iterator[tuple[ImageItem, bytes]]:
    """The images that can be read, each with the digest of its pixels; the others are told."""
    console = Console(stderr=True)
    columns = (
        TextColumn("looking at"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
    )
    with (
        Progress(*columns, console=console, disable=not console.is_terminal) as progress,
        ThreadPoolExecutor() as threads,
    ):
        bar = progress.add_task("", total=len(items) if isinstance(items, list) else None)
        rest = iter(items)
        while chunk := list(islice(rest, CHUNK_SIZE)):
            for item, (digest, problems) in zip(chunk, threads.map(check_image, chunk), strict=True):
                findings.problems += problems
                if digest:
                    findings.image_counts[item.split][item.label] += 1
                    yield item, digest
                else:
                    findings.image_counts[item.split][item.label] += 0
            progress.advance(bar, len(chunk))


def check_image(item: ImageItem) -> tuple[bytes | None, list[Problem]]:
    """The digest of a file's pixels, None where it cannot be read, and what is wrong with the file itself."""
    source = item.content or item.path
    try:
        with convert_memory_errors(str(item.path)):
            image = image_io.read_image(source, name=str(item.path))
            pixels = hash_pixels(np.asarray(image.convert("RGB")))
    except Error as error:
        return None, [Problem("broken", str(error).removeprefix(f"{item.path} "), item.name)]
    problems = []
    expected = Image.registered_extensions().get(item.path.suffix.lower())
    kind = detect_format(source)
    if expected and kind and kind != expected and (expected, kind) not in EQUIVALENT_FORMATS:
        detail = f"is {kind} by content, not {expected} as its name says"
        problems.append(Problem("wrong suffix", detail, item.name))
    if min(image.size) < MIN_SIDE:
        detail = f"is {image.width}×{image.height} pixels; a side below {MIN_SIDE} shows nothing"
        problems.append(Problem("tiny", detail, item.name))
    return pixels, problems


def detect_format(file: Path | bytes) -> str | None:
    """The format by content, None for what is no image; nothing is decoded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
                return image.format
        except Exception:  # a reader may fail in any way on a strange file
            return None


def hash_pixels(pixels: image_io.UInt8Array) -> bytes:
    """16 bytes that are the same for the same pixels in the same shape."""
    content = np.ascontiguousarray(pixels).tobytes()
    return hashlib.blake2b(content, digest_size=16, key=repr(pixels.shape).encode()).digest()


# all together


def check_duplicates(hashed_images: Iterable[tuple[ImageItem, bytes]], findings: Findings) -> None:
    """The same pixels again: under another class, in another part, or merely twice."""
    before: dict[bytes, list[ImageItem]] = {}
    for item, digest in hashed_images:
        others = before.setdefault(digest, [])
        if others:
            worst = min(others, key=lambda other: (other.label == item.label, other.split == item.split))
            kind, detail = describe_conflict(item, worst)
            findings.add(kind, f"is the same image as {worst.name}{detail}", file=item.name)
        others.append(item)


def describe_conflict(item: ImageItem, other: ImageItem) -> tuple[str, str]:
    """The kind of problem of one image that is there twice, and how the two differ."""
    labels = f", whose class is {other.label!r} and not {item.label!r}" if item.label != other.label else ""
    parts = f"; one is in {other.split!r}, the other in {item.split!r}" if item.split != other.split else ""
    kind = "two classes" if labels else "duplicate across parts" if parts else "duplicate"
    return kind, labels + parts


def check_classes(findings: Findings) -> None:
    """The names and the sizes of the classes, in images, boxes or pixels."""
    counts, things = (
        (findings.annotation_counts, findings.unit) if findings.annotation_counts else (findings.image_counts, "image")
    )
    labels = sorted({label for counter in counts.values() for label in counter})
    every = sum(counts.values(), Counter[str]())
    check_class_names(sorted(labels, key=lambda label: -every[label]), findings)  # so that the rare spelling is told
    if len(labels) == 1 and things == "image":
        findings.add("lone class", "there is no other class to tell it from", label=labels[0])
    training = [part for part in counts if part.lower() in (*image_folder.TRAIN_NAMES, "trainval", "")]
    sizes = sum((counts[part] for part in training), Counter[str]())  # leaves out the empty ones
    largest, most = next(iter(sizes.most_common(1)), ("", 0))
    for label in labels:
        holders = [part for part, counter in counts.items() if counter[label]]
        absent = [part for part in counts if not counts[part][label]]
        if holders and absent:
            detail = f"has {pluralize(things)} in {format_splits(holders)} and none in {format_splits(absent)}"
            findings.add("part missing", detail, label=label)
        number = sizes[label]
        if number == 1 and len(counts) == 1:
            detail = f"has 1 {things}, which cannot be both learned from and judged on"
            findings.add("too few", detail, label=label)
        if 0 < MAX_IMBALANCE * number < most and things != "pixel":  # of which a sky has more than a pole
            has = f"has {format_count(number, things)}"
            detail = f"{has}, and {largest!r} has {most}: more than {MAX_IMBALANCE} times as many"
            findings.add("unbalanced", detail, label=label)
        if not holders and not any(each.kind == "empty" and each.label == label for each in findings.problems):
            none = "not one of its images can be read" if things == "image" else f"not one {things} of it is good"
            findings.add("empty", none, label=label)


def check_class_names(labels: Iterable[str], findings: Findings) -> None:
    """Names that a person reads as one name, and names with blanks around them."""
    alike = defaultdict(list)
    for label in labels:
        alike[" ".join(unicodedata.normalize("NFKC", label).casefold().split())].append(label)
    for first, *others in alike.values():
        for other in others:
            detail = f"differs from {first!r} only in case or blanks, and is another class"
            file, line = findings.first_locations.get(other, ("", 0))
            findings.add("class name", detail, label=other, file=file, line=line)
        if not others and first != first.strip():
            file, line = findings.first_locations.get(first, ("", 0))
            findings.add("class name", "begins or ends with a blank", label=first, file=file, line=line)


def format_splits(splits: Iterable[str]) -> str:
    """The parts in words."""
    return " and ".join(repr(part) for part in splits)


def format_count(number: int, noun: str) -> str:
    """A number of things in words."""
    return f"{number:,} {noun if number == 1 else pluralize(noun)}"


def pluralize(noun: str) -> str:
    """More than one of them."""
    return f"{noun}es" if noun.endswith(("s", "x")) else f"{noun}s"


class PathNames:
    """The names under which the user knows files, also of what was unpacked elsewhere."""

    def __init__(self, source: Path) -> None:
        archive = source.is_file() and source.suffix.lower() not in (".json", ".yaml", ".yml")
        self.source, self.root = source, image_folder.unpack_archive(source) if archive else source

    def __call__(self, path: Path) -> str:
        """The path below what was given."""
        return str(self.source / path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)


def add_read_error(error: Error, names: PathNames, findings: Findings) -> None:
    """Tell why the data cannot be read at all, with the file and the line that the error names."""
    match = ERROR_LOCATION.match(str(error))
    where = (names(Path(match["file"])), int(match["line"] or 0)) if match else (str(names.source), 0)
    detail = match["detail"] if match else str(error).removeprefix(f"{names.source} ")
    findings.add("broken", detail, file=where[0], line=where[1])

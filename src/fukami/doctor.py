"""What training would stumble on in classified pictures, by name: broken files, doubtful labels, leaks, imbalance.

The data are a folder of pictures by class, an archive of one, a CSV of path and label, shards, or a known name. A
doctor sees more than a reader: what training passes over in silence or refuses at once is a finding here, and the rest
is still examined.
"""

import csv
import hashlib
import io
import os
import unicodedata
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fukami import image
from fukami.data import bytestream, classification, folder, shards, tar
from fukami.errors import Error, unknown

UNBALANCED = 10  # times as many pictures in the largest class as in another
TINY = 8  # pixels; a side below shows nothing that could be told apart
CHUNK = 1024  # files that are in flight at a time
HOLDOUT = 0.2  # share of a known set without a test part of its own that the recipes keep for testing
ALIKE = {("JPEG", "MPO"), ("BMP", "DIB")}  # formats by name and by content that are one format for every reader


@dataclass(frozen=True)
class Problem:
    """One finding: its kind, the file or the class it is about, and what is wrong in words."""

    problem: str
    detail: str
    file: str = ""
    label: str = ""

    def record(self) -> dict[str, str]:
        """As the line of JSON has it."""
        about = {"file": self.file} if self.file else {}
        return (
            {"problem": self.problem} | about | ({"class": self.label} if self.label else {}) | {"detail": self.detail}
        )


@dataclass(frozen=True)
class Item:
    """A picture to look at: where it is, what messages call it, its class and its part (empty: no parts)."""

    path: Path
    name: str
    label: str
    part: str
    content: bytes = b""
    """What the file holds, where it lies in no file of its own."""


@dataclass
class Findings:
    """What is wrong, and how much was looked at: readable pictures of each class, by part."""

    problems: list[Problem] = field(default_factory=list)
    counts: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    def add(self, problem: str, detail: str, *, file: str = "", label: str = "") -> None:
        """One more problem."""
        self.problems.append(Problem(problem, detail, file, label))

    def __str__(self) -> str:
        """The summary, in one sentence."""
        pictures = sum(counter.total() for counter in self.counts.values())
        classes = len({label for counter in self.counts.values() for label in counter})
        among = f"{_count(pictures, 'readable picture')} of {_count(classes, 'class')}"
        kinds = Counter(found.problem for found in self.problems)
        listed = ", ".join(f"{number} {kind}" for kind, number in kinds.most_common())
        return (
            f"{_count(len(self.problems), 'problem')} among {among}: {listed}" if kinds else f"no problem among {among}"
        )


def examine(spec: str) -> Findings:
    """Everything that is wrong with the data at a path, or with the known data set of that name.

    Files are decoded once, in threads; what is kept of each is a digest of 16 bytes.

    Raises:
        UsageError: no such path and no such name.
    """
    found = Findings()
    path = Path(spec)
    if spec in classification.NAMES:
        seen = _known(spec, found)
    elif shards.known(spec):
        seen = _decoded(_packed(spec, found), found)
    elif not path.exists():
        raise unknown("data set (and no file or folder)", spec, classification.NAMES)
    else:
        items = _listed(path, found) if path.suffix.lower() == ".csv" else _lying(path, found)
        seen = _decoded(items, found)
    _doubles(seen, found)
    _classes(found)
    return found


def _known(spec: str, found: Findings) -> Iterator[tuple[Item, bytes]]:
    """The pictures of a known data set, in files or as arrays."""
    train, test, labels = classification.read(spec, HOLDOUT)
    files: list[Item] = []
    for part, source in (("train", train), ("test", test)):
        for number, target in enumerate(source.targets.tolist()):
            picture = source.items[number]
            if isinstance(picture, Path):
                files.append(Item(picture, str(picture), labels[target], part))
            elif isinstance(picture, np.ndarray):
                found.counts[part][labels[target]] += 1
                yield Item(Path(), f"{spec} {part} {number}", labels[target], part), _digest(picture)
    yield from _decoded(files, found)


# folders and archives


def _lying(path: Path, found: Findings) -> list[Item]:
    """The pictures of a folder or an archive by class; the layout is examined on the way."""
    root = path
    if path.is_file():
        try:
            root = folder.unpacked(path)
        except Exception as error:  # an unpacker may fail in any way on a damaged file
            found.add("broken", str(error) or type(error).__name__, file=str(path))
            return []
    layout = _Layout(path, root, found)
    top = root
    while len(inside := folder.folders(top)) == 1 and len(folder.folders(inside[0])) > 1:
        top = inside[0]  # the one folder that an archive packs everything into, as for training
    parts = [each for each in inside if each.name.lower() in (*folder.TRAIN, *folder.TEST)]
    if not inside:
        found.add("empty", "there are no folders in it; expected one folder of pictures for each class", file=str(path))
    parts.sort(key=lambda part: part.name.lower() not in folder.TRAIN)  # so that of a leak the test file is named
    layout.loose(top)
    if not parts:
        return layout.classes(top, "")
    for other in inside:
        if other not in parts:
            detail = f"a folder beside {parts[0].name} is neither a class nor a part, and nothing in it is read"
            found.add("passed over", detail, file=layout.name(other))
    if not any(part.name.lower() in folder.TRAIN for part in parts):
        found.add("empty", "there is no train folder, so there is nothing to learn from", file=layout.name(top))
    items = []
    for part in parts:
        layout.loose(part)
        items += layout.classes(part, part.name)
    return items


@dataclass
class _Layout:
    """A folder of pictures by class, with the names under which the user knows its files."""

    given: Path
    root: Path
    found: Findings

    def __post_init__(self) -> None:
        self.suffixes = folder.suffixes()

    def name(self, path: Path) -> str:
        """The path below what was given, also for what was unpacked elsewhere."""
        return str(self.given / path.relative_to(self.root))

    def loose(self, place: Path) -> None:
        """Pictures that lie where the folders of the classes are, and so belong to none."""
        for file in sorted(place.iterdir()):
            if file.suffix.lower() in self.suffixes and not file.name.startswith(".") and not file.is_dir():
                detail = f"lies beside the folders of the classes and is not read; move it into one: {place.name}/CLASS"
                self.found.add("no class", detail, file=self.name(file))

    def classes(self, place: Path, part: str) -> list[Item]:
        """The pictures of a part, and what lies between them."""
        items: list[Item] = []
        for each in folder.folders(place):
            self.found.counts[part][each.name] += 0
            before = len(items)
            for file in _below(each):
                if file.suffix.lower() in self.suffixes:
                    items.append(Item(file, self.name(file), each.name, part))
                else:
                    self._stranger(file)
            if len(items) == before:
                self.found.add("empty", f"the folder {self.name(each)} has no pictures", label=each.name)
        return items

    def _stranger(self, file: Path) -> None:
        """A file that training passes over because of its name."""
        suffix = f"ends in {file.suffix!r}" if file.suffix else "has no suffix"
        kind = _format(file)
        if kind:
            ends = [end for end, name in Image.registered_extensions().items() if name == kind]
            right = ".jpg" if ".jpg" in ends else next(iter(ends), "")
            detail = f"is {kind} by content but {suffix}, so it is not read; rename it to {file.stem}{right}"
            self.found.add("wrong suffix", detail, file=self.name(file))
        else:
            detail = f"{suffix} and is not read; pictures end in .png, .jpg ..."
            self.found.add("not a picture", detail, file=self.name(file))


def _below(place: Path) -> Iterator[Path]:
    """Every file below a folder in order, links that lead nowhere among them; hidden ones are nobody's business."""
    for at, folders, files in os.walk(place):
        folders.sort()
        yield from (Path(at, name) for name in sorted(files) if not name.startswith("."))


# shards


def _packed(spec: str, found: Findings) -> Iterator[Item]:
    """The pictures in shards; what is damaged in these is told on the way."""
    base, index = shards.described(spec)
    for part in ("train", "test") if index["test"] else ("train",):
        for shard in index[part]:
            for problem in shard.get("problems", ()):
                found.add("broken", problem, file=shard["name"])
            yield from _in_shard(base, shard, part if index["test"] else "", index["labels"], found)


def _in_shard(base: str, shard: dict[str, Any], part: str, labels: Sequence[str], found: Findings) -> Iterator[Item]:
    """The pictures in a shard that an index lists."""
    stream = None
    try:
        stream = bytestream.opened(shards.located(base, shard["name"]))
        places = zip(shard["classes"], shard["starts"], shard["lengths"], strict=True)
        for number, (target, start, length) in enumerate(places, 1):
            try:
                name, content = tar.picture(stream.read(start, length), shard["name"], number)
            except bytestream.Missing:
                raise
            except Error as error:
                found.add("broken", str(error), file=f"{shard['name']}, sample {number}")
            else:
                yield Item(Path(name), name, labels[target], part, content)
        if stream.size not in (None, shard["bytes"]):
            detail = f"has {stream.size:,} bytes, and {shards.INDEX} says {shard['bytes']:,}; get it again"
            found.add("broken", detail, file=shard["name"])
    except Error as error:
        found.add("missing", str(error), file=shard["name"])
    finally:
        if stream is not None:
            stream.close()


# lists


def _listed(path: Path, found: Findings) -> list[Item]:
    """The pictures that a CSV with the columns ``path``, ``label`` and perhaps ``split`` lists."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            header = [name.strip().lower() for name in reader.fieldnames or ()]
            reader.fieldnames = header
            missing = [name for name in ("path", "label") if name not in header]
            if missing:
                given = ", ".join(map(repr, header)) or "nothing"
                detail = f"has no column {' and no column '.join(missing)}; its first line names {given}"
                found.add("no column", detail, file=str(path))
                return []
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, ValueError, csv.Error) as error:
        found.add("broken", f"cannot be read as CSV in UTF-8 ({error})", file=str(path))
        return []
    if not rows:
        found.add("empty", "lists no pictures", file=str(path))
    items = [item for line, row in rows if (item := _row(path, line, row, found))]
    if len({bool(item.part) for item in items}) > 1:
        detail = "has rows with a split and rows without one, which are trained on; give all of them one, or none"
        found.add("no split", detail, file=str(path))
    return _once(sorted(items, key=lambda item: item.part not in ("", "train")), found)


def _row(path: Path, line: int, row: dict[str, str | None], found: Findings) -> Item | None:
    """The picture of a row, or None where there is none to look at."""
    place, label, split = ((row.get(name) or "").strip() for name in ("path", "label", "split"))
    where = f"line {line} of {path}"
    if not place:
        found.add("missing", f"{where} has no path", file=str(path))
        return None
    file = path.parent / place
    if not file.is_file():
        what = "is no file" if file.exists() else "does not exist"
        found.add("missing", f"{what}, but {where} lists it", file=str(file))
        return None
    if not label:
        found.add("no class", f"{where} has no label", file=str(file))
        return None
    part = "train" if split.lower() in folder.TRAIN else split.lower()
    if part and part not in ("train", *folder.TEST):
        allowed = ", ".join((*folder.TRAIN, *folder.TEST))
        found.add("no split", f"{where} has the split {split!r}; expected one of {allowed}", file=str(file))
    return Item(file, str(file), label, part)


def _once(items: Iterable[Item], found: Findings) -> list[Item]:
    """Each file once; what is listed again is told here."""
    first: dict[Path, Item] = {}
    for item in items:
        other = first.setdefault(item.path, item)
        if other is not item:
            kind, detail = _conflict(item, other)
            found.add(kind, f"is listed twice{detail}", file=item.name)
    return list(first.values())


# each file


def _decoded(items: Iterable[Item], found: Findings) -> Iterator[tuple[Item, bytes]]:
    """The pictures that can be read, each with the digest of its pixels; the others are told."""
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
        while chunk := list(islice(rest, CHUNK)):
            for item, (digest, problems) in zip(chunk, threads.map(_look, chunk), strict=True):
                found.problems += problems
                if digest:
                    found.counts[item.part][item.label] += 1
                    yield item, digest
                else:
                    found.counts[item.part][item.label] += 0
            progress.advance(bar, len(chunk))


def _look(item: Item) -> tuple[bytes | None, list[Problem]]:
    """The digest of a file's pixels, None where it cannot be read, and what is wrong with the file itself."""
    source = item.content or item.path
    try:
        picture = image.read(source, name=str(item.path))
    except Error as error:
        return None, [Problem("broken", str(error).removeprefix(f"{item.path} "), item.name)]
    problems = []
    expected = Image.registered_extensions().get(item.path.suffix.lower())
    kind = _format(source)
    if expected and kind and kind != expected and (expected, kind) not in ALIKE:
        detail = f"is {kind} by content, not {expected} as its name says"
        problems.append(Problem("wrong suffix", detail, item.name))
    if min(picture.size) < TINY:
        detail = f"is {picture.width}×{picture.height} pixels; a side below {TINY} shows nothing"
        problems.append(Problem("tiny", detail, item.name))
    return _digest(np.asarray(picture.convert("RGB"))), problems


def _format(file: Path | bytes) -> str | None:
    """The format by content, None for what is no picture; nothing is decoded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as picture:
                return picture.format
        except Exception:  # a reader may fail in any way on a strange file
            return None


def _digest(pixels: image.Bytes) -> bytes:
    """16 bytes that are the same for the same pixels in the same shape."""
    content = np.ascontiguousarray(pixels).tobytes()
    return hashlib.blake2b(content, digest_size=16, key=repr(pixels.shape).encode()).digest()


# all together


def _doubles(seen: Iterable[tuple[Item, bytes]], found: Findings) -> None:
    """The same pixels again: under another class, in another part, or merely twice."""
    before: dict[bytes, list[Item]] = {}
    for item, digest in seen:
        others = before.setdefault(digest, [])
        if others:
            worst = min(others, key=lambda other: (other.label == item.label, other.part == item.part))
            kind, detail = _conflict(item, worst)
            found.add(kind, f"is the same picture as {worst.name}{detail}", file=item.name)
        others.append(item)


def _conflict(item: Item, other: Item) -> tuple[str, str]:
    """The kind of problem of one picture that is there twice, and how the two differ."""
    labels = f", whose class is {other.label!r} and not {item.label!r}" if item.label != other.label else ""
    parts = f"; one is in {other.part!r}, the other in {item.part!r}" if item.part != other.part else ""
    kind = "two classes" if labels else "duplicate across parts" if parts else "duplicate"
    return kind, labels + parts


def _classes(found: Findings) -> None:
    """The names and the sizes of the classes."""
    labels = sorted({label for counter in found.counts.values() for label in counter})
    _names(labels, found)
    if len(labels) == 1:
        found.add("lone class", "there is no other class to tell it from", label=labels[0])
    training = [part for part in found.counts if part.lower() in (*folder.TRAIN, "")]
    sizes = sum((found.counts[part] for part in training), Counter[str]())  # leaves out the empty ones
    largest, most = next(iter(sizes.most_common(1)), ("", 0))
    for label in labels:
        holders = [part for part, counter in found.counts.items() if counter[label]]
        absent = [part for part in found.counts if not found.counts[part][label]]
        if holders and absent:
            detail = f"has pictures in {_named(holders)} and none in {_named(absent)}"
            found.add("part missing", detail, label=label)
        count = sizes[label]
        if count == 1 and len(found.counts) == 1:
            found.add("too few", "has 1 picture, which cannot be both learned from and judged on", label=label)
        if 0 < UNBALANCED * count < most:
            detail = f"has {_count(count, 'picture')}, and {largest!r} has {most}: more than {UNBALANCED} times as many"
            found.add("unbalanced", detail, label=label)
        if not holders and not any(each.problem == "empty" and each.label == label for each in found.problems):
            found.add("empty", "not one of its pictures can be read", label=label)


def _names(labels: Iterable[str], found: Findings) -> None:
    """Names that a person reads as one name, and names with blanks around them."""
    alike = defaultdict(list)
    for label in labels:
        alike[" ".join(unicodedata.normalize("NFKC", label).casefold().split())].append(label)
    for first, *others in alike.values():
        for other in others:
            detail = f"differs from {first!r} only in case or blanks, and is another class"
            found.add("class name", detail, label=other)
        if not others and first != first.strip():
            found.add("class name", "begins or ends with a blank", label=first)


def _named(parts: Iterable[str]) -> str:
    return " and ".join(repr(part) for part in parts)


def _count(number: int, thing: str) -> str:
    plural = thing if number == 1 else f"{thing}es" if thing.endswith("s") else f"{thing}s"
    return f"{number:,} {plural}"

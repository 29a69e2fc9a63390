"""What an annotation file says of its pictures, before it is checked, and what of it can be learned from.

The readers of the formats yield an :class:`Entry` for each picture; :func:`settle` makes what a loader takes of them.
"""

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from fukami import image
from fukami.data import folder
from fukami.data.boxes import COUNTED, Annotated
from fukami.errors import Error

logger = logging.getLogger(__name__)
SLIVER = 0.01  # pixels; a side below is none
PARTS = {"trainval": "trainval"} | dict.fromkeys(folder.TRAIN, "train") | dict.fromkeys(folder.TEST, "val")
PARTS |= {"test": "test", "testing": "test"}

Corners = tuple[float, float, float, float]


class Box(NamedTuple):
    """A box as its file has it.

    Attributes:
        label: the class; empty: none is given.
        corners: left, top, right, bottom as the edges of pixels, counted from 0, or shares of the picture where the
            entry is ``relative``; nan where no number is given.
        kind: as in :mod:`fukami.data.boxes`.
        line: where the file has it, from 1.
        note: how the file tells it apart, such as ``annotation 17``.
        zero: it begins at 0 in a format that counts from 1.
    """

    label: str
    corners: Corners
    kind: int = COUNTED
    line: int = 0
    note: str = ""
    zero: bool = False


@dataclass(frozen=True)
class Entry:
    """A picture as its annotation has it: ``size`` is the width and height that are stated, None where none are."""

    picture: Path
    file: Path
    boxes: tuple[Box, ...] = ()
    size: tuple[int, int] | None = None
    line: int = 0
    relative: bool = False


class Flaw(NamedTuple):
    """What a reader passed over: the kind of problem as the doctor calls it, the file, the line, and the words."""

    problem: str
    file: Path
    line: int
    detail: str


@dataclass
class Sheets:
    """What the annotations of a data set say.

    Attributes:
        labels: the classes in their order.
        parts: the entries of ``train``, ``val``, ``trainval`` and ``test``, or of an empty name where all are one part.
        lost: pictures that cannot be learned from, since their annotation is broken or they are not there.
        flaws: annotations that belong to no picture or class.
        unlisted: pictures without an annotation.
    """

    labels: tuple[str, ...] = ()
    parts: dict[str, list[Entry]] = field(default_factory=dict)
    lost: list[Flaw] = field(default_factory=list)
    flaws: list[Flaw] = field(default_factory=list)
    unlisted: list[Path] = field(default_factory=list)


class Header(NamedTuple):
    """What a picture file says of itself: width and height as stored, and how it is turned (EXIF, 1: not at all)."""

    width: int
    height: int
    orientation: int

    @property
    def upright(self) -> tuple[int, int]:
        """Width and height once it is upright."""
        return (self.height, self.width) if self.orientation > 4 else (self.width, self.height)


def header(path: Path) -> Header | Error:
    """The header of a picture, which is not decoded, or what is wrong with it."""
    try:
        with image.opened(path) as picture:
            return Header(*picture.size, orientation(picture))
    except Error as error:
        return error


def orientation(picture: Image.Image) -> int:
    """How a picture is turned, from 1 to 8 as EXIF has it."""
    if picture.format == "PNG" and not {"exif", "Raw profile type exif", "XML:com.adobe.xmp"} & {*picture.info}:
        return 1  # Pillow would decode the whole file in search of it
    found = picture.getexif().get(ExifTags.Base.Orientation, 1)
    return found if found in range(1, 9) else 1


def headers(entries: Sequence[Entry]) -> Iterator[Header | Error]:
    """The header of each picture, read in threads."""
    with ThreadPoolExecutor() as threads:
        yield from threads.map(header, [entry.picture for entry in entries])


def turned(corners: Corners, found: Header) -> Corners:
    """Corners in a picture as stored, in the upright one."""
    (left, top, right, bottom), (width, height, how) = corners, found
    if how in (2, 3, 7, 8):
        left, right = width - right, width - left
    if how in (3, 4, 6, 7):
        top, bottom = height - bottom, height - top
    return (top, left, bottom, right) if how > 4 else (left, top, right, bottom)


def placed(entry: Entry, found: Header) -> list[Corners]:
    """The corners of an entry's boxes in pixels of the upright picture, neither checked nor cut.

    Boxes belong to the picture as stored where the stated size is that of the stored one, and otherwise, as in programs
    that state no size, to the upright one.
    """
    width, height = found.upright
    if entry.relative:
        return [(b[0] * width, b[1] * height, b[2] * width, b[3] * height) for _, b, *_ in entry.boxes]
    stored = entry.size == (found.width, found.height)
    return [turned(box.corners, found) if stored else box.corners for box in entry.boxes]


def fault(corners: Corners, size: tuple[int, int]) -> str:
    """Why a box cannot be learned from, in the doctor's words; empty where it can."""
    left, top, right, bottom = corners
    if not all(map(math.isfinite, corners)):
        return "not a number"
    if right < left or bottom < top:
        return "inverted box"
    if min(right - left, bottom - top) < SLIVER:
        return "empty box"
    if min(right, bottom, size[0] - left, size[1] - top) < SLIVER:
        return "outside"
    return ""


def settle(entries: Sequence[Entry], labels: Sequence[str], lost: Sequence[Flaw], broken: int) -> list[Annotated]:
    """What can be learned from the entries of a part, in their order; the rest is left out and summed up.

    Raises:
        Error: more pictures than ``broken`` are missing or broken.
    """
    number = {label: i for i, label in enumerate(labels)}
    kept: list[Annotated] = []
    wrong = [f"{flaw.file}{f', line {flaw.line}' if flaw.line else ''}: {flaw.detail}" for flaw in lost]
    dropped = 0
    for entry, found in zip(entries, headers(entries), strict=True):
        if isinstance(found, Error):
            wrong.append(str(found))
            continue
        size = found.upright
        good = [
            (corners, number[box.label], box.kind)
            for box, corners in zip(entry.boxes, placed(entry, found), strict=True)
            if box.label in number and not fault(corners, size)
        ]
        dropped += len(entry.boxes) - len(good)
        kept.append(_annotated(entry.picture, size, good))
    if wrong:
        logger.warning(f"{len(wrong)} of {len(kept) + len(wrong)} pictures are left out:\n{folder.listed(wrong)}")
    if dropped:
        logger.warning(
            f"{dropped} of {dropped + sum(len(each.classes) for each in kept)} boxes are left out: empty, inverted, "
            "outside of their picture or of no known class; fukami doctor names each"
        )
    folder.check(wrong, broken)
    return kept


def _annotated(picture: Path, size: tuple[int, int], boxes: Sequence[tuple[Corners, int, int]]) -> Annotated:
    corners = np.array([each[0] for each in boxes], np.float64).reshape(-1, 4)
    inside = np.clip(corners, 0, np.array([*size, *size])).astype(np.float32)
    return Annotated(
        picture,
        size,
        inside,
        np.array([each[1] for each in boxes], np.int64),
        np.array([each[2] for each in boxes], np.uint8),
        str(picture),
    )


def parts(sheets: Sheets) -> tuple[list[Entry], list[Entry] | None]:
    """What to train on, and what to judge on (None where the data have no parts).

    Where there is a test part, it is judged on, and all else is trained on; otherwise the validation part is.
    """
    found = {name: entries for name, entries in sheets.parts.items() if entries}
    if not found.keys() - {""}:
        return found.get("", []), None
    train = found.get("train", [])
    if "test" in found:
        return found.get("trainval") or [*train, *found.get("val", [])], found["test"]
    if "val" in found:
        return train or found.get("trainval", []), found["val"]
    return found.get("trainval") or train, None


def part_of(name: str) -> str:
    """The part that a folder or a list is, by its name; empty where it is none."""
    return PARTS.get(name.lower(), "")


def pictures(place: Path, *, deep: bool = False) -> list[Path]:
    """The picture files in a folder, in order; with ``deep`` also those further down."""
    endings = folder.suffixes()
    found = place.rglob("*") if deep else place.iterdir()
    return sorted(path for path in found if path.suffix.lower() in endings and not path.name.startswith("."))


def only(entries: Iterable[Entry], sheets: Sheets) -> list[Entry]:
    """The entries whose picture is there; what the others lack is noted as lost."""
    here = []
    for entry in entries:
        if entry.picture.is_file():
            here.append(entry)
        else:
            detail = f"the picture {entry.picture} does not exist; put it there, or remove its annotation"
            sheets.lost.append(Flaw("missing", entry.file, entry.line, detail))
    return here


def stratum(samples: Sequence[Annotated]) -> npt.NDArray[np.int64]:
    """The rarest class of each picture ``(N,)``, -1 where there is none: what a part is held out by."""
    every = np.concatenate([each.classes for each in samples] or [np.zeros(0, np.int64)])
    counts = np.bincount(every, minlength=1)
    return np.array([min(each.classes, key=lambda c: counts[c], default=-1) for each in samples], np.int64)

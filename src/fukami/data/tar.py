"""Samples in tar files, in the WebDataset layout: members with one KEY are a sample, ``KEY.jpg`` and ``KEY.cls``."""

import contextlib
import functools
import io
import json
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fukami.data import folder
from fukami.data.bytestream import opened
from fukami.errors import Error

BLOCK = 512
LABELS = ("cls", "json")  # what says the class, by extension
LONG = (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE)  # headers that hold the name of the member after them

Sample = tuple[str, str, bytes, int]  # key, suffix, what the picture's file holds, number of its class


@dataclass(frozen=True)
class Member:
    """A member of a tar file: where its headers and its content begin, and where the next member does."""

    name: str
    start: int
    content: int
    size: int
    end: int
    regular: bool

    @property
    def key(self) -> str:
        """What the members of a sample have in common: the name up to the first dot of its last part."""
        place, slash, base = self.name.rpartition("/")
        return place + slash + base.partition(".")[0]

    @property
    def extension(self) -> str:
        """The rest of the name, in lower case: ``jpg``, ``cls``, ``seg.png``."""
        return self.name.rpartition("/")[2].partition(".")[2].lower()

    @property
    def picture(self) -> bool:
        """Whether it is one by name."""
        return f".{self.extension}" in _suffixes()


@dataclass
class Contents:
    """What a scan found in a shard: where each sample lies, its class's name, and what is wrong."""

    size: int
    starts: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def members(read: Callable[[int, int], bytes]) -> Iterator[Member]:
    """The members of a tar file, or of a part of one, in order; ``read(start, count)`` gives its bytes.

    Raises:
        tarfile.HeaderError: a header is cut short or damaged.
    """
    start = at = 0
    name = ""
    while (header := read(at, BLOCK)).strip(b"\0"):
        info = tarfile.TarInfo.frombuf(header, "utf-8", "replace")
        content, at = at + BLOCK, at + BLOCK + -(-info.size // BLOCK) * BLOCK
        if info.type in LONG:
            name = _long(read(content, info.size), info.type) or name
        elif info.type != tarfile.XGLTYPE:
            yield Member((name or info.name).removeprefix("./"), start, content, info.size, at, info.isreg())
            start, name = at, ""


def picture(block: bytes, shard: str, number: int) -> tuple[str, bytes]:
    """The first picture among the members of a sample: what it is called (``SHARD/MEMBER``) and what its file holds.

    Args:
        block: the sample as it lies in the shard.
        shard, number: its shard and its number there from 1, for messages.

    Raises:
        Error: the sample is cut short, or has no picture.
    """
    try:
        for member in members(lambda start, count: block[start : start + count]):
            if member.regular and member.picture:
                found = block[member.content : member.content + member.size]
                if len(found) < member.size:
                    raise Error(f"{shard}/{member.name} is cut short; get the shard again")
                return f"{shard}/{member.name}", found
    except tarfile.HeaderError as error:
        raise Error(f"{shard}, sample {number}, is damaged ({error}); get the shard again") from None
    wrong = "has no picture" if block else "is missing; the shard is cut short: get it again"
    raise Error(f"{shard}, sample {number}, {wrong}")


def scan(where: str) -> Contents:
    """The samples of a shard, header by header; on a disk the contents are passed over.

    The class is what ``KEY.cls`` says, or ``"label"`` in ``KEY.json``, or the folder in the key.

    Raises:
        Error: there is no such shard.
    """
    shard = where.rpartition("/")[2]
    stream = opened(where)
    found = Contents(0)
    sample: dict[Member, bytes] = {}  # with what it says of the class: read at once, as a server only reads forwards
    end = 0
    try:
        for member in members(stream.read):
            if not member.regular or member.name.rpartition("/")[2].startswith("."):
                continue
            if sample and member.key != next(iter(sample)).key:
                _add(found, sample, shard)
                sample = {}
            sample[member] = stream.read(member.content, member.size) if member.extension in LABELS else b""
            end = member.end
            if stream.size is not None and member.content + member.size > stream.size:
                raise tarfile.HeaderError("the file ends before")
        if sample:
            _add(found, sample, shard)
            sample = {}
        if not stream.read(end, BLOCK):
            found.problems.append(f"{shard} has no end mark; it may be cut short: get it again")
    except tarfile.HeaderError as error:
        after = f" at {next(iter(sample)).key}" if sample else ""
        found.problems.append(f"{shard} is cut short or damaged{after} ({error}); get it again")
    finally:
        found.size = stream.size or end
        stream.close()
    return found


def write(path: Path, samples: Iterable[Sample]) -> tuple[list[int], list[int], list[int]]:
    """A shard of the samples, the same bytes for the same samples.

    Returns:
        Of each sample: its class, where it starts, and its length.
    """
    classes, starts, lengths = [], [], []
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for key, suffix, content, number in samples:
            starts.append(tar.offset)
            classes.append(number)
            for name, data in ((key + suffix, content), (f"{key}.cls", str(number).encode())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
            lengths.append(tar.offset - starts[-1])
    return classes, starts, lengths


def _add(found: Contents, sample: dict[Member, bytes], shard: str) -> None:
    """Note a sample, or what is wrong with it."""
    first, *_, last = (next(iter(sample)), *sample)
    if not any(member.picture for member in sample):
        found.problems.append(f"{shard}/{first.key} has no picture; it is expected beside {first.name}")
    elif (label := _label(first.key, {member.extension: text for member, text in sample.items()})) is None:
        wanted = "a KEY.cls with its number, a KEY.json with a label, or a folder in the key"
        found.problems.append(f"{shard}/{first.key} has no class; expected {wanted}")
    else:
        found.starts.append(first.start)
        found.lengths.append(last.end - first.start)
        found.classes.append(label)


def _label(key: str, texts: dict[str, bytes]) -> str | None:
    """The name of a sample's class, from what its members of each extension say; None where nothing says it."""
    text = texts.get("cls", b"").decode("utf-8", "replace").strip()
    if text:
        return str(int(text)) if text.isdecimal() else text  # 007 is class 7
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return str(json.loads(texts["json"])["label"])
    return key.rpartition("/")[0].rpartition("/")[2] or None


def _long(payload: bytes, kind: bytes) -> str:
    """The name that a header of GNU or pax has for the next member; empty where it has none."""
    if kind == tarfile.GNUTYPE_LONGNAME:
        return payload.rstrip(b"\0").decode("utf-8", "replace")
    found = re.search(rb"\d+ path=([^\n]*)\n", payload)
    return found[1].decode("utf-8", "replace") if found else ""


@functools.cache
def _suffixes() -> set[str]:
    return folder.suffixes()

"""Samples in tar files, in the WebDataset layout: members with one KEY are a sample, ``KEY.jpg`` and ``KEY.cls``."""

import contextlib
import functools
import io
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fukami.data.parsing import parse_json, to_text
from fukami.data.remote import open_stream
from fukami.errors import Error
from fukami.image import io as image_io

BLOCK_BYTES = 512
LABEL_EXTENSIONS = ("cls", "json")  # what says the class, by extension
LONG_NAME_TYPES = (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE)  # headers that hold the name of the member after them
SKIPPED_TYPES = (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK)  # headers that hold nothing that is used
MAX_HEADER_BYTES = 1 << 20  # bytes of what follows such a header
MAX_LABEL_BYTES = 1 << 20  # bytes of what says the class of a sample
MAX_CLASS_NAME_LENGTH = 200  # letters of its name

TarSample = tuple[str, str, bytes, int]  # key, suffix, what the image's file holds, number of its class


@dataclass(frozen=True)
class TarMember:
    """A member of a tar file: where its headers and its content begin, and where the next member does."""

    name: str
    start: int
    content_start: int
    size: int
    end: int
    type: bytes

    @property
    def is_file(self) -> bool:
        """Whether it is a file."""
        return self.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)

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
    def is_image(self) -> bool:
        """Whether it is one by name."""
        return f".{self.extension}" in _get_image_suffixes()


@dataclass
class ShardContents:
    """What a scan found in a shard: where each sample lies, its class's name, and what is wrong."""

    size: int
    starts: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def iterate_members(read: Callable[[int, int], bytes], *, errors: str = "replace") -> Iterator[TarMember]:
    """The members of a tar file, or of a part of one, in order.

    Args:
        read: ``read(start, count)`` returns its bytes; ``start`` only grows.
        errors: how names that are not in UTF-8 are decoded, as :meth:`bytes.decode` takes it.

    Raises:
        tarfile.HeaderError: a header is cut short or damaged.
    """
    start = at = 0
    name, size = "", -1
    while (header := read(at, BLOCK_BYTES)).strip(b"\0"):
        info = tarfile.TarInfo.frombuf(header, "utf-8", errors)
        if info.size < 0:
            raise tarfile.HeaderError(f"a header has a size of {info.size}")
        if info.type in (*LONG_NAME_TYPES, *SKIPPED_TYPES):
            if info.size > MAX_HEADER_BYTES:
                raise tarfile.HeaderError(f"a header has a name of {info.size:,} bytes")
            content, at = at + BLOCK_BYTES, at + BLOCK_BYTES + -(-info.size // BLOCK_BYTES) * BLOCK_BYTES
            if info.type in LONG_NAME_TYPES:
                found, given = _parse_long_header(read(content, info.size), info.type, errors)
                name, size = found or name, given if given >= 0 else size
        else:
            size = info.size if size < 0 else size
            content, at = at + BLOCK_BYTES, at + BLOCK_BYTES + -(-size // BLOCK_BYTES) * BLOCK_BYTES
            yield TarMember((name or info.name).removeprefix("./"), start, content, size, at, info.type)
            start, name, size = at, "", -1


def extract_image(content: bytes, shard: str, number: int) -> tuple[str, bytes]:
    """The first image among the members of a sample: what it is called (``SHARD/MEMBER``) and what its file holds.

    Args:
        content: the sample as it lies in the shard.
        shard, number: its shard and its number there from 1, for messages.

    Raises:
        Error: the sample is cut short, or has no image.
    """
    try:
        for member in iterate_members(lambda start, count: content[start : start + count]):
            if member.is_file and member.is_image:
                found = content[member.content_start : member.content_start + member.size]
                if len(found) < member.size:
                    raise Error(f"{shard}/{member.name} is cut short; get the shard again")
                return f"{shard}/{member.name}", found
    except tarfile.HeaderError as error:
        raise Error(f"{shard}, sample {number}, is damaged ({error}); get the shard again") from None
    wrong = "has no image" if content else "is missing; the shard is cut short: get it again"
    raise Error(f"{shard}, sample {number}, {wrong}")


def scan_shard(location: str) -> ShardContents:
    """The samples of a shard, header by header; on a disk the contents are passed over.

    The class is what ``KEY.cls`` says, or ``"label"`` in ``KEY.json``, or the folder in the key.

    Raises:
        Error: there is no such shard.
    """
    shard = location.rpartition("/")[2]
    stream = open_stream(location)
    found = ShardContents(0)
    sample: dict[TarMember, bytes] = {}  # with what it says of the class: read at once, as a server only reads forwards
    end = 0
    try:
        for member in iterate_members(stream.read):
            if not member.is_file or member.name.rpartition("/")[2].startswith("."):
                continue
            if sample and member.key != next(iter(sample)).key:
                _add_sample(found, sample, shard)
                sample = {}
            said = min(member.size, MAX_LABEL_BYTES)
            sample[member] = stream.read(member.content_start, said) if member.extension in LABEL_EXTENSIONS else b""
            end = member.end
            if stream.size is not None and member.content_start + member.size > stream.size:
                raise tarfile.HeaderError("the file ends before")
        if sample:
            _add_sample(found, sample, shard)
            sample = {}
        if not stream.read(end, BLOCK_BYTES):
            found.problems.append(f"{shard} has no end mark; it may be cut short: get it again")
    except tarfile.HeaderError as error:
        after = f" at {next(iter(sample)).key}" if sample else ""
        found.problems.append(f"{shard} is cut short or damaged{after} ({error}); get it again")
    finally:
        found.size = stream.size or end
        stream.close()
    return found


def write_shard(path: Path, samples: Iterable[TarSample]) -> tuple[list[int], list[int], list[int]]:
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


def _add_sample(found: ShardContents, sample: dict[TarMember, bytes], shard: str) -> None:
    """Note a sample, or what is wrong with it."""
    first, *_, last = (next(iter(sample)), *sample)
    if not any(member.is_image for member in sample):
        found.problems.append(f"{shard}/{first.key} has no image; it is expected beside {first.name}")
    elif not (label := _find_label(first.key, {member.extension: text for member, text in sample.items()})):
        wanted = "a KEY.cls with its number, a KEY.json with a label, or a folder in the key"
        found.problems.append(f"{shard}/{first.key} has no class; expected {wanted}")
    else:
        found.starts.append(first.start)
        found.lengths.append(last.end - first.start)
        found.classes.append(label)


def _find_label(key: str, texts: dict[str, bytes]) -> str:
    """The name of a sample's class, from what its members of each extension say; empty where nothing says it."""
    text = texts.get("cls", b"").decode("utf-8", "replace").strip()
    if len(text) > MAX_CLASS_NAME_LENGTH:
        return ""
    if text:
        return text.lstrip("0") or "0" if text.isdecimal() and text.isascii() else text  # 007 is class 7
    with contextlib.suppress(ValueError, KeyError, TypeError):
        label = to_text(parse_json(texts["json"])["label"])
        if 0 < len(label) <= MAX_CLASS_NAME_LENGTH:
            return label
    return key.rpartition("/")[0].rpartition("/")[2][:MAX_CLASS_NAME_LENGTH]


def _parse_long_header(payload: bytes, kind: bytes, errors: str) -> tuple[str, int]:
    """Name and size that a header of GNU or pax has for the next member; empty and -1 where it has none."""
    if kind == tarfile.GNUTYPE_LONGNAME:
        return payload.rstrip(b"\0").decode("utf-8", errors), -1
    found = dict(re.findall(rb"^\d{1,7} (path|size)=([^\n]*)$", payload, re.MULTILINE))
    size = int(found[b"size"]) if re.fullmatch(rb"\d{1,18}", found.get(b"size", b"")) else -1
    return found.get(b"path", b"").decode("utf-8", errors), size


@functools.cache
def _get_image_suffixes() -> set[str]:
    return image_io.get_image_suffixes()

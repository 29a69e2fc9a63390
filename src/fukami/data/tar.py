"""Samples in tar files (WebDataset layout): members with the same key, ``KEY.jpg`` and ``KEY.cls``, are a sample."""

import contextlib
import functools
import io
import itertools
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
MAX_SAMPLE_BYTES = 1 << 28  # a sample with its headers; longer ones are not read
LABEL_EXTENSIONS = ("cls", "json")  # extensions of the members that contain the class
LONG_NAME_TYPES = (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE)  # headers with the name of the next member
SKIPPED_TYPES = (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK)  # headers that are skipped
MAX_HEADER_BYTES = 1 << 20  # maximum payload of such a header
MAX_LABEL_BYTES = 1 << 20  # bytes read of a member that contains the class
MAX_CLASS_NAME_LENGTH = 200  # characters
MAX_INSPECTED_MEMBERS, MAX_INSPECTED_BYTES = 100, 1 << 25  # start of a file that determines whether it has samples

TarSample = tuple[str, str, bytes, int]  # key, suffix, content of the image file, class index


@dataclass(frozen=True)
class TarMember:
    """Member of a tar file: offsets of its headers, its content and the next member."""

    name: str
    start: int
    content_start: int
    size: int
    end: int
    type: bytes

    @property
    def is_file(self) -> bool:
        """Return whether the member is a file."""
        return self.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)

    @property
    def key(self) -> str:
        """Key of the sample: the name up to the first dot after the last slash."""
        folder, slash, base = self.name.rpartition("/")
        return folder + slash + base.partition(".")[0]

    @property
    def extension(self) -> str:
        """Rest of the name in lower case: ``jpg``, ``cls``, ``seg.png``."""
        return self.name.rpartition("/")[2].partition(".")[2].lower()

    @property
    def is_image(self) -> bool:
        """Return whether the member is an image, by its extension."""
        return f".{self.extension}" in _get_image_suffixes()


@dataclass
class ShardContents:
    """Result of the scan of a shard: byte range and class name of each sample, and problems."""

    size: int
    starts: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def iterate_members(
    read: Callable[[int, int], bytes], *, errors: str = "replace", needs_end_marker: bool = False
) -> Iterator[TarMember]:
    """Iterate over the members of a tar file, or of a section of one.

    Args:
        read: ``read(start, count)`` returns bytes of the file; ``start`` never decreases.
        errors: error handling for names that are not in UTF-8, as in :meth:`bytes.decode`.
        needs_end_marker: whether the end marker, a block of zeros, is required.

    Raises:
        tarfile.HeaderError: a header is truncated or corrupted, or the end marker is missing.
    """
    start = position = 0
    name, size = "", -1
    while (header := read(position, BLOCK_BYTES)).strip(b"\0"):
        info = tarfile.TarInfo.frombuf(header, "utf-8", errors)
        if info.size < 0:
            raise tarfile.HeaderError(f"a header has a size of {info.size}")
        if info.type in (*LONG_NAME_TYPES, *SKIPPED_TYPES):
            if info.size > MAX_HEADER_BYTES:
                raise tarfile.HeaderError(f"a header has a name of {info.size:,} bytes")
            content = position + BLOCK_BYTES
            position = content + -(-info.size // BLOCK_BYTES) * BLOCK_BYTES
            if info.type in LONG_NAME_TYPES:
                long_name, long_size = _parse_long_header(read(content, info.size), info.type, errors)
                name, size = long_name or name, long_size if long_size >= 0 else size
        else:
            size = info.size if size < 0 else size
            content = position + BLOCK_BYTES
            position = content + -(-size // BLOCK_BYTES) * BLOCK_BYTES
            yield TarMember((name or info.name).removeprefix("./"), start, content, size, position, info.type)
            start, name, size = position, "", -1
    if needs_end_marker and not header:
        raise tarfile.HeaderError("it is truncated: there is no end marker")


def contains_sample(read: Callable[[int, int], bytes]) -> bool:
    """Return whether the first members of a tar file include a sample: an image and its class under the same key.

    Args:
        read: as for :func:`iterate_members`.

    Raises:
        tarfile.HeaderError: a header is corrupted.
    """

    def read_start(start: int, count: int) -> bytes:
        return read(start, count) if start + count <= MAX_INSPECTED_BYTES else b""

    images, labels = set(), set()
    for member in itertools.islice(iterate_members(read_start), MAX_INSPECTED_MEMBERS):
        if not member.is_file or member.name.rpartition("/")[2].startswith("."):
            continue
        if member.is_image:
            images.add(member.key)
        elif member.extension in LABEL_EXTENSIONS:
            text = read_start(member.content_start, min(member.size, MAX_LABEL_BYTES))
            if _parse_label({member.extension: text}):
                labels.add(member.key)
        if images & labels:
            return True
    return False


def extract_image(content: bytes, shard: str, number: int) -> tuple[str, bytes]:
    """Extract the first image of a sample: its name (``SHARD/MEMBER``) and the content of its file.

    Args:
        content: bytes of the sample in the shard.
        shard, number: name of the shard and number of the sample in it, from 1, for messages.

    Raises:
        Error: the sample is truncated, or has no image.
    """
    try:
        for member in iterate_members(lambda start, count: content[start : start + count]):
            if member.is_file and member.is_image:
                image = content[member.content_start : member.content_start + member.size]
                if len(image) < member.size:
                    raise Error(f"{shard}/{member.name} is truncated; get the shard again")
                return f"{shard}/{member.name}", image
    except tarfile.HeaderError as error:
        raise Error(f"{shard}, sample {number}, is corrupted ({error}); get the shard again") from None
    problem = "has no image" if content else "is missing; the shard is truncated: get it again"
    raise Error(f"{shard}, sample {number}, {problem}")


def scan_shard(location: str) -> ShardContents:
    """Scan the samples of a shard, header by header; on a disk the contents are skipped.

    The class is the content of ``KEY.cls``, or ``"label"`` in ``KEY.json``, or the folder in the key.

    Raises:
        Error: the shard does not exist.
    """
    shard = location.rpartition("/")[2]
    stream = open_stream(location)
    contents = ShardContents(0)
    sample: dict[TarMember, bytes] = {}  # members with their label content, read at once: a stream reads forwards
    end = 0
    try:
        for member in iterate_members(stream.read):
            is_part = member.is_file and not member.name.rpartition("/")[2].startswith(".")
            if is_part:
                if sample and member.key != next(iter(sample)).key:
                    _add_sample(contents, sample, shard)
                    sample = {}
                label_size = min(member.size, MAX_LABEL_BYTES)
                sample[member] = (
                    stream.read(member.content_start, label_size) if member.extension in LABEL_EXTENSIONS else b""
                )
                end = member.end
            if stream.size is not None and member.content_start + member.size > stream.size:
                if sample and not is_part:
                    _add_sample(contents, sample, shard)
                    sample = {}
                raise tarfile.HeaderError("the file ends inside a member")
        if sample:
            _add_sample(contents, sample, shard)
            sample = {}
        if not stream.read(end, BLOCK_BYTES):
            contents.problems.append(f"{shard} has no end marker; it may be truncated: get it again")
    except tarfile.HeaderError as error:
        where = f" at {next(iter(sample)).key}" if sample else ""
        contents.problems.append(f"{shard} is truncated or corrupted{where} ({error}); get it again")
    finally:
        contents.size = stream.size or end
        stream.close()
    return contents


def write_shard(path: Path, samples: Iterable[TarSample]) -> tuple[list[int], list[int], list[int]]:
    """Write a shard, with identical bytes for identical samples.

    Returns:
        Class index, first byte and length of each sample.
    """
    classes, starts, lengths = [], [], []
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for key, suffix, content, class_index in samples:
            starts.append(tar.offset)
            classes.append(class_index)
            for name, data in ((key + suffix, content), (f"{key}.cls", str(class_index).encode())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
            lengths.append(tar.offset - starts[-1])
    return classes, starts, lengths


def _add_sample(contents: ShardContents, sample: dict[TarMember, bytes], shard: str) -> None:
    """Record a sample, or its problem."""
    first, *_, last = (next(iter(sample)), *sample)
    if not any(member.is_image for member in sample):
        contents.problems.append(f"{shard}/{first.key} has no image; it is expected next to {first.name}")
    elif not (label := _find_label(first.key, {member.extension: text for member, text in sample.items()})):
        expected = "a KEY.cls with its number, a KEY.json with a label, or a folder in the key"
        contents.problems.append(f"{shard}/{first.key} has no class; expected {expected}")
    elif last.end - first.start > MAX_SAMPLE_BYTES:
        contents.problems.append(
            f"{shard}/{first.key} has {last.end - first.start:,} bytes, more than the limit of {MAX_SAMPLE_BYTES:,}"
        )
    else:
        contents.starts.append(first.start)
        contents.lengths.append(last.end - first.start)
        contents.classes.append(label)


def _find_label(key: str, texts: dict[str, bytes]) -> str:
    """Determine the class name of a sample from its members by extension, or its key; empty if there is none."""
    label = _parse_label(texts)
    return key.rpartition("/")[0].rpartition("/")[2][:MAX_CLASS_NAME_LENGTH] if label is None else label


def _parse_label(texts: dict[str, bytes]) -> str | None:
    """Parse the class name in the members of a sample by extension; None without one, empty if it is too long."""
    text = texts.get("cls", b"").decode("utf-8", "replace").strip()
    if len(text) > MAX_CLASS_NAME_LENGTH:
        return ""
    if text:
        return text.lstrip("0") or "0" if text.isdecimal() and text.isascii() else text  # 007 is class 7
    with contextlib.suppress(ValueError, KeyError, TypeError):
        label = to_text(parse_json(texts["json"])["label"])
        if 0 < len(label) <= MAX_CLASS_NAME_LENGTH:
            return label
    return None


def _parse_long_header(payload: bytes, kind: bytes, errors: str) -> tuple[str, int]:
    """Parse the name and size of the next member from a GNU or pax header; empty and -1 if absent."""
    if kind == tarfile.GNUTYPE_LONGNAME:
        return payload.rstrip(b"\0").decode("utf-8", errors), -1
    fields = dict(re.findall(rb"^\d{1,7} (path|size)=([^\n]*)$", payload, re.MULTILINE))
    size = int(fields[b"size"]) if re.fullmatch(rb"\d{1,18}", fields.get(b"size", b"")) else -1
    return fields.get(b"path", b"").decode("utf-8", errors), size


@functools.cache
def _get_image_suffixes() -> set[str]:
    return image_io.get_image_suffixes()

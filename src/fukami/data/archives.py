"""Archives of data sets, which somebody else packed: unpacked once into the cache folder, within bounds.

A member is a file or a folder below the archive's own; one with an absolute path or ``..`` in its name, a link or a
device is refused with the whole archive. How much an archive may unpack to is bounded by its own size, so that a small
file cannot fill a disk: images are hardly smaller packed than not, and annotations a hundred times at most.
"""

import bz2
import gzip
import hashlib
import lzma
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Protocol

from fukami.data import tar
from fukami.data.locations import get_cache_folder
from fukami.errors import Error

RULES_VERSION = 1  # of what is refused; others unpack an archive again
MAX_RATIO = 100  # times the archive's own size that it may unpack to
BASE_LIMIT_BYTES = 32 << 20  # bytes that any archive may unpack to
MAX_MEMBERS = 5_000_000
MAX_DEPTH = 32  # folders inside one another
MAX_NAME_BYTES = 1024  # bytes
MAX_DISK_FRACTION = 0.9  # fraction of the free space of the disk that may be taken
MEMBER_OVERHEAD_BYTES = 512  # bytes that each member counts as, besides its content
CHUNK_BYTES = 1 << 20
ZIP_HEADER_BYTES = 30  # bytes that a zip file has before each member, at least
XZ_MEMORY_LIMIT = 256 << 20  # bytes of memory for unpacking xz, which may ask for 4 GB
COMPRESSION_SIGNATURES = {b"\x1f\x8b": "gz", b"BZh": "bz2", b"\xfd7zXZ\x00": "xz"}
ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def unpack(archive: Path) -> Path:
    """Folder that an archive was unpacked into, now or earlier.

    It gets its name once all of it is there; what is refused leaves nothing.

    Raises:
        Error: it is no zip or tar archive, is damaged, or has members that are refused.
    """
    facts = archive.stat()
    key = hashlib.sha256(
        f"{RULES_VERSION} {archive.resolve()} {facts.st_size} {facts.st_mtime_ns}".encode()
    ).hexdigest()[:12]
    target = _get_unpack_folder() / f"{archive.stem}-{key}"
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=target.parent))
    except OSError as error:
        raise Error(
            f"{target.parent} cannot be written ({error.strerror}); make room there, or set XDG_CACHE_HOME to another "
            "folder"
        ) from error
    try:
        _extract(temporary, archive, facts.st_size)
        temporary.rename(target)
    except Exception as error:  # an unpacker may fail in any way on a damaged archive
        if not target.exists():  # else another process was as quick
            reason = str(error) or type(error).__name__
            raise Error(
                f"{archive} cannot be unpacked ({reason}); give a folder, or a zip or tar archive of one"
            ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def find_archive_root(path: Path) -> Path | None:
    """Folder that an archive was unpacked into, for a path in it; None for any other path."""
    place = Path(os.path.abspath(_get_unpack_folder()))  # noqa: PTH100
    whole = Path(os.path.abspath(path))  # noqa: PTH100
    return place / whole.relative_to(place).parts[0] if place in whole.parents else None


def is_inside(path: Path, root: Path) -> bool:
    """Whether a path is below a folder; of an unpacked archive, in which there are no links, the names tell."""
    return Path(os.path.abspath(path)).is_relative_to(os.path.abspath(root))  # noqa: PTH100


def _get_unpack_folder() -> Path:
    return get_cache_folder() / "unpacked"


class _Member(Protocol):
    """A file or a folder in an archive."""

    name: str
    size: int
    is_folder: bool

    def read_chunks(self) -> Iterator[bytes]:
        """Content, in pieces."""


def _extract(folder: Path, archive: Path, packed: int) -> None:
    """Write what an archive contains into an empty folder.

    Raises:
        ValueError: a member is refused, or there is too much.
    """
    most = min(BASE_LIMIT_BYTES + MAX_RATIO * packed, int(MAX_DISK_FRACTION * shutil.disk_usage(folder).free))
    taken = 0
    with ExitStack() as stack:
        for number, member in enumerate(_iterate_members(archive, stack)):
            taken += member.size + MEMBER_OVERHEAD_BYTES
            if taken > most:
                raise ValueError(
                    f"it unpacks to more than {most:,} bytes, which is the most for its size and the free space here"
                )
            if number >= MAX_MEMBERS:
                raise ValueError(f"it has more than {MAX_MEMBERS:,} members")
            place = folder / _check_member_path(member.name)
            if member.is_folder:
                place.mkdir(parents=True, exist_ok=True)
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            with place.open("wb") as file:
                for chunk in member.read_chunks():
                    file.write(chunk)


def _check_member_path(name: str) -> PurePosixPath:
    """Path of a member below the folder that it is written into.

    Raises:
        ValueError: it leads elsewhere, or no file may be called so.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or PureWindowsPath(name).drive or "\0" in name:
        raise ValueError(f"its member {name[:200]!r} leads out of it")
    if len(path.parts) > MAX_DEPTH or len(os.fsencode(name)) > MAX_NAME_BYTES:
        raise ValueError(f"its member {name[:200]!r} has more than {MAX_DEPTH} folders or {MAX_NAME_BYTES} bytes")
    return path


def _iterate_members(archive: Path, stack: ExitStack) -> Iterator[_Member]:
    """The members of an archive, by what the file begins with.

    Raises:
        ValueError: it is no archive, or has a member that is neither a file nor a folder.
    """
    with archive.open("rb") as file:
        start = file.read(tar.BLOCK_BYTES)
    kind = next((kind for mark, kind in COMPRESSION_SIGNATURES.items() if start.startswith(mark)), "")
    if kind:
        return _iterate_tar(_ForwardReader(stack.enter_context(_open_compressed(archive, kind))))
    if not start.startswith(b"PK") and _is_tar_header(start):
        return _iterate_tar(_ForwardReader(stack.enter_context(archive.open("rb"))))
    if zipfile.is_zipfile(archive):
        return _iterate_zip(stack.enter_context(zipfile.ZipFile(archive)), archive.stat().st_size)
    raise ValueError("it is no zip or tar archive")


# zip


class _ZipEntry:
    def __init__(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
        self.archive, self.info = archive, info
        self.name, self.size, self.is_folder = info.filename, info.file_size, info.is_dir()

    def read_chunks(self) -> Iterator[bytes]:
        """Content; the library ends at the size that is stated, and checks the sum."""
        with self.archive.open(self.info) as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk


def _iterate_zip(archive: zipfile.ZipFile, size: int) -> Iterator[_Member]:
    """The members of a zip archive; each has bytes of its own in the file, or there could be any number of each."""
    infos = archive.infolist()
    places = sorted((info.header_offset, info.compress_size, info.filename) for info in infos)
    for (start, packed, name), (following, *_) in pairwise([*places, (size, 0, "")]):
        if start < 0 or start + ZIP_HEADER_BYTES + packed > following:
            raise ValueError(f"its member {name[:200]!r} overlaps another one")
    for info in infos:
        if info.compress_type not in ZIP_METHODS:
            raise ValueError(f"its member {info.filename[:200]!r} is neither stored nor deflated")
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise ValueError(f"its member {info.filename[:200]!r} is a link or a device")
        yield _ZipEntry(archive, info)


# tar


class _ForwardReader:
    """Bytes of a file by their place, which only grows: what a compressed file can give."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.position = file, 0

    def __call__(self, start: int, count: int) -> bytes:
        """Up to ``count`` bytes from ``start``; fewer where the file ends before."""
        while self.position < start and self._read_next(start - self.position):
            pass
        return self._read_next(count) if self.position == start else b""

    def _read_next(self, count: int) -> bytes:
        found, count = bytearray(), min(count, CHUNK_BYTES)
        while len(found) < count and (part := self.file.read(count - len(found))):
            found += part
        self.position += len(found)
        return bytes(found)


class _TarEntry:
    def __init__(self, read: _ForwardReader, member: tar.TarMember) -> None:
        self.read, self.member = read, member
        self.name, self.size, self.is_folder = member.name, member.size, member.type == tarfile.DIRTYPE

    def read_chunks(self) -> Iterator[bytes]:
        """Content.

        Raises:
            ValueError: the file ends before.
        """
        at, end = self.member.content_start, self.member.content_start + self.size
        while at < end:
            chunk = self.read(at, end - at)
            if not chunk:
                raise ValueError(f"it is cut short in {self.name[:200]!r}")
            yield chunk
            at += len(chunk)


def _iterate_tar(read: _ForwardReader) -> Iterator[_Member]:
    for member in tar.iterate_members(read, errors="surrogateescape"):
        if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE, tarfile.DIRTYPE):
            raise ValueError(f"its member {member.name[:200]!r} is a link or a device")
        yield _TarEntry(read, member)


def _is_tar_header(start: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(start, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _open_compressed(archive: Path, kind: str) -> IO[bytes]:
    if kind == "xz":
        return _XzReader(archive)  # type: ignore[return-value]
    return gzip.open(archive) if kind == "gz" else bz2.open(archive)  # type: ignore[return-value]


class _XzReader:
    """Content of an xz file, unpacked in little memory: :mod:`lzma` itself takes as much as the file asks for."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("rb")
        self.decompressor = lzma.LZMADecompressor(memlimit=XZ_MEMORY_LIMIT)

    def __enter__(self) -> "_XzReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def read(self, count: int) -> bytes:
        """Up to ``count`` bytes; none at the end of the file."""
        while True:
            rest = b""
            if self.decompressor.eof:  # another stream may follow, or zeros that fill up
                rest = self.decompressor.unused_data or self.file.read(CHUNK_BYTES)
                rest = rest.lstrip(b"\0")
                if not rest:
                    return b""
                self.decompressor = lzma.LZMADecompressor(memlimit=XZ_MEMORY_LIMIT)
            elif self.decompressor.needs_input:
                rest = self.file.read(CHUNK_BYTES)
                if not rest:
                    raise EOFError("it is cut short")
            found = self.decompressor.decompress(rest, count)
            if found:
                return found

"""Safe extraction of dataset archives into the cache folder.

Archives are untrusted. An archive is rejected if a member has an absolute path or ``..`` in its name, or is a link or
a device. The unpacked size is limited by the size of the archive, so that a small file cannot fill the disk. Images
hardly compress, and annotations compress at most about a hundredfold.
"""

import bz2
import contextlib
import gzip
import hashlib
import lzma
import math
import os
import re
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from itertools import pairwise
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Protocol

from filelock import FileLock

from fukami.data import tar
from fukami.data.locations import get_cache_folder
from fukami.errors import Error

RULES_VERSION = 1  # version of these checks; a new version unpacks every archive again
ZIP_UTF8_FLAG = 0x800  # of the name of a member
JAPANESE_CHARACTER = re.compile("[\u3040-\u30ff\u4e00-\u9fff]")  # kana or kanji
MAX_RATIO = 100  # maximum ratio of the unpacked size to the archive's size
BASE_LIMIT_BYTES = 32 << 20  # unpacked size that any archive may have
MAX_MEMBERS = 5_000_000
MAX_DEPTH = 32  # levels of nested folders
MAX_NAME_BYTES = 1024
MAX_DISK_FRACTION = 0.9  # maximum fraction of the free disk space
MEMBER_OVERHEAD_BYTES = 512  # bytes counted for each member in addition to its content
FOLDER_BYTES = 4096  # bytes counted for each folder, which takes a block on a disk
CHUNK_BYTES = 1 << 20
ZIP_HEADER_BYTES = 30  # minimum size of the header before each member of a zip file
XZ_MEMORY_LIMIT = 256 << 20  # memory limit for unpacking xz, whose files may request 4 GB
COMPRESSION_SIGNATURES = {b"\x1f\x8b": "gz", b"BZh": "bz2", b"\xfd7zXZ\x00": "xz"}
ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def unpack(archive: Path) -> Path:
    """Unpack an archive, unless that was done before, and return the folder with its content.

    The folder gets its final name only after complete extraction; a rejected archive leaves no files.

    Raises:
        Error: the file is not a zip or tar archive, is corrupted, or has invalid members.
    """
    status = archive.stat()
    key = hashlib.sha256(
        f"{RULES_VERSION} {archive.resolve()} {status.st_size} {status.st_mtime_ns}".encode()
    ).hexdigest()[:12]
    target = _get_unpack_folder() / f"{archive.stem}-{key}"
    if target.exists():
        return target
    with _create_temporary_folder(target) as temporary:
        if not target.exists():  # otherwise another process has unpacked it in the meantime
            _unpack(archive, temporary, target, status.st_size)
    return target


@contextlib.contextmanager
def _create_temporary_folder(target: Path) -> Iterator[Path]:
    """Create a temporary folder beside the target, and let one process at a time enter the context.

    Raises:
        Error: the cache folder cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(target.with_name(f".{target.name}.lock"), thread_local=False, fallback_to_soft=False)
        with contextlib.suppress(NotImplementedError):  # without locks, several processes may unpack it
            lock.acquire()
        temporary = Path(tempfile.mkdtemp(dir=target.parent))
    except OSError as error:
        raise Error(
            f"{target.parent} cannot be written ({error.strerror}); make room there, or set XDG_CACHE_HOME to another "
            "folder"
        ) from error
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        with contextlib.suppress(OSError):
            Path(lock.lock_file).unlink()
        lock.release()


def _unpack(archive: Path, temporary: Path, target: Path, size: int) -> None:
    try:
        _extract(temporary, archive, size)
        temporary.rename(target)
    except Exception as error:  # readers raise errors of any type on a corrupted archive
        if not target.exists():  # otherwise a process without a lock unpacked it at the same time
            reason = str(error) or type(error).__name__
            raise Error(
                f"{archive} cannot be unpacked ({reason}); use a folder, or a zip or tar archive of one"
            ) from error


def find_archive_root(path: Path) -> Path | None:
    """Return the folder of the unpacked archive that contains a path; None if the path is in no unpacked archive."""
    unpack_folder = Path(os.path.abspath(_get_unpack_folder()))  # noqa: PTH100
    absolute = Path(os.path.abspath(path))  # noqa: PTH100
    return unpack_folder / absolute.relative_to(unpack_folder).parts[0] if unpack_folder in absolute.parents else None


def contains_samples(archive: Path) -> bool:
    """Return whether a file is a tar file of WebDataset samples, plain or compressed, by its first members."""
    with ExitStack() as stack:
        try:
            read = _open_tar(archive, stack)
            return read is not None and tar.contains_sample(read)
        except Exception:  # readers raise errors of any type on a corrupted archive, and unpacking it reports them
            return False


def is_inside(path: Path, root: Path) -> bool:
    """Return whether a path is below a folder, by name only: unpacked archives contain no links."""
    return Path(os.path.abspath(path)).is_relative_to(os.path.abspath(root))  # noqa: PTH100


def is_outside(path: Path, source: Path) -> bool:
    """Return whether a file in an archive refers to a path outside it; other files may refer to any path."""
    root = find_archive_root(source)
    return root is not None and not is_inside(path, root)


def _get_unpack_folder() -> Path:
    return get_cache_folder() / "unpacked"


class _Member(Protocol):
    """File or folder in an archive."""

    name: str
    size: int
    is_folder: bool

    def read_chunks(self) -> Iterator[bytes]:
        """Yield the content in chunks."""


def _extract(folder: Path, archive: Path, archive_bytes: int) -> None:
    """Extract an archive into an empty folder.

    Raises:
        ValueError: a member is invalid, or the content is too large.
    """
    max_bytes = min(
        BASE_LIMIT_BYTES + MAX_RATIO * archive_bytes, int(MAX_DISK_FRACTION * shutil.disk_usage(folder).free)
    )
    total_bytes = 0
    folders: set[PurePosixPath] = set()
    with ExitStack() as stack:
        for index, member in enumerate(_iterate_members(archive, stack, max_bytes)):
            member_path = _check_member_path(member.name)
            new_folders = {*member_path.parents, *([member_path] if member.is_folder else [])} - folders
            folders |= new_folders
            total_bytes += member.size + MEMBER_OVERHEAD_BYTES + FOLDER_BYTES * len(new_folders)
            if total_bytes > max_bytes:
                raise _build_size_error(max_bytes)
            if index >= MAX_MEMBERS:
                raise ValueError(f"it has more than {MAX_MEMBERS:,} members")
            path = folder / member_path
            if member.is_folder:
                path.mkdir(parents=True, exist_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                for chunk in member.read_chunks():
                    file.write(chunk)


def _build_size_error(max_bytes: float) -> ValueError:
    return ValueError(f"it unpacks to more than {max_bytes:,} bytes, the maximum for its size and the free space here")


def _check_member_path(name: str) -> PurePosixPath:
    """Return the path of a member relative to the target folder.

    Raises:
        ValueError: the path leads outside the folder, or is too deep or too long.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or PureWindowsPath(name).drive or "\0" in name:
        raise ValueError(f"its member {name[:200]!r} leads outside it")
    if len(path.parts) > MAX_DEPTH or len(os.fsencode(name)) > MAX_NAME_BYTES:
        raise ValueError(f"its member {name[:200]!r} has more than {MAX_DEPTH} folders or {MAX_NAME_BYTES} bytes")
    return path


def _iterate_members(archive: Path, stack: ExitStack, max_bytes: int) -> Iterator[_Member]:
    """Iterate over the members of an archive, whose format is detected from its first bytes.

    Raises:
        ValueError: the file is not an archive, has a member that is neither a file nor a folder, or is a tar file of
            more than ``max_bytes``.
    """
    read = _open_tar(archive, stack, max_bytes)
    if read:
        return _iterate_tar(read)
    if zipfile.is_zipfile(archive):
        return _iterate_zip(stack.enter_context(zipfile.ZipFile(archive)), archive.stat().st_size)
    raise ValueError("it is not a zip or tar archive")


# zip


class _ZipEntry:
    def __init__(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
        self.archive, self.info = archive, info
        self.name, self.size, self.is_folder = _decode_zip_name(info), info.file_size, info.is_dir()

    def read_chunks(self) -> Iterator[bytes]:
        """Yield the content; :mod:`zipfile` stops at the stated size and verifies the checksum."""
        with self.archive.open(self.info) as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk


def _decode_zip_name(info: zipfile.ZipInfo) -> str:
    """Decode the name of a member without the mark of UTF-8, which :mod:`zipfile` decodes as code page 437.

    macOS writes UTF-8 without the mark, and Japanese versions of Windows write code page 932. Since Python 3.13,
    :mod:`zipfile` reads names in Unicode from the extra fields of some writers.
    """
    if info.flag_bits & ZIP_UTF8_FLAG or info.filename.isascii() or info.filename != info.orig_filename:
        return info.filename
    content = info.filename.encode("cp437", "replace")
    with contextlib.suppress(UnicodeDecodeError):
        return content.decode()
    with contextlib.suppress(UnicodeDecodeError):
        name = content.decode("cp932")
        if JAPANESE_CHARACTER.search(name):
            return name
    return info.filename


def _iterate_zip(archive: zipfile.ZipFile, size: int) -> Iterator[_Member]:
    """Iterate over the members of a zip archive.

    Overlapping members are rejected: with shared bytes, a small file can unpack to any size (zip bomb).
    """
    infos = archive.infolist()
    extents = sorted((info.header_offset, info.compress_size, info.filename) for info in infos)
    for (start, compressed_size, name), (next_start, *_) in pairwise([*extents, (size, 0, "")]):
        if start < 0 or start + ZIP_HEADER_BYTES + compressed_size > next_start:
            raise ValueError(f"its member {name[:200]!r} overlaps another member")
    for info in infos:
        if info.compress_type not in ZIP_METHODS:
            raise ValueError(f"its member {info.filename[:200]!r} is neither stored nor deflated")
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise ValueError(f"its member {info.filename[:200]!r} is a link or a device")
        yield _ZipEntry(archive, info)


# tar


class BinaryReader(Protocol):
    """Binary file that is read in order."""

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes; none at the end of the file."""


class _ForwardReader:
    """Forward-only reader with offsets, for compressed files, which cannot seek.

    Args:
        file: the decompressed file.
        max_bytes: limit of its size, which counts what is skipped, too, such as headers.
    """

    def __init__(self, file: BinaryReader, max_bytes: float) -> None:
        self.file, self.max_bytes, self.position = file, max_bytes, 0

    def __call__(self, start: int, count: int) -> bytes:
        """Return up to ``count`` bytes from offset ``start``; fewer at the end of the file."""
        while self.position < start and self._read_next(start - self.position):
            pass
        return self._read_next(count) if self.position == start else b""

    def _read_next(self, count: int) -> bytes:
        content, count = bytearray(), min(count, CHUNK_BYTES)
        while len(content) < count and (chunk := self.file.read(count - len(content))):
            content += chunk
        self.position += len(content)
        if self.position > self.max_bytes:
            raise _build_size_error(self.max_bytes)
        return bytes(content)


class _TarEntry:
    def __init__(self, read: _ForwardReader, member: tar.TarMember) -> None:
        self.read, self.member = read, member
        self.name, self.size, self.is_folder = member.name, member.size, member.type == tarfile.DIRTYPE

    def read_chunks(self) -> Iterator[bytes]:
        """Yield the content.

        Raises:
            ValueError: the archive ends within the member.
        """
        position, end = self.member.content_start, self.member.content_start + self.size
        while position < end:
            chunk = self.read(position, end - position)
            if not chunk:
                raise ValueError(f"it is truncated in {self.name[:200]!r}")
            yield chunk
            position += len(chunk)


def _open_tar(archive: Path, stack: ExitStack, max_bytes: float = math.inf) -> _ForwardReader | None:
    """Open a tar file, plain or compressed, as its first bytes state; None for another file."""
    with archive.open("rb") as file:
        start = file.read(tar.BLOCK_BYTES)
    kind = next((kind for signature, kind in COMPRESSION_SIGNATURES.items() if start.startswith(signature)), "")
    if kind:
        return _ForwardReader(stack.enter_context(_open_compressed(archive, kind)), max_bytes)
    if not start.startswith(b"PK") and _is_tar_header(start):
        return _ForwardReader(stack.enter_context(archive.open("rb")), max_bytes)
    return None


def _iterate_tar(read: _ForwardReader) -> Iterator[_Member]:
    for member in tar.iterate_members(read, errors="surrogateescape", needs_end_marker=True):
        if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE, tarfile.DIRTYPE):
            raise ValueError(f"its member {member.name[:200]!r} is a link or a device")
        yield _TarEntry(read, member)
    while read(read.position, CHUNK_BYTES):  # a compressed file has its checksum at the end
        pass


def _is_tar_header(start: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(start, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _open_compressed(archive: Path, kind: str) -> AbstractContextManager[BinaryReader]:
    if kind == "xz":
        return _XzReader(archive)
    return gzip.open(archive) if kind == "gz" else bz2.open(archive)


class _XzReader:
    """Reader of an xz file with a memory limit; :func:`lzma.open` allocates as much as the file requests."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("rb")
        self.decompressor = lzma.LZMADecompressor(memlimit=XZ_MEMORY_LIMIT)

    def __enter__(self) -> "_XzReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def read(self, count: int) -> bytes:
        """Return up to ``count`` bytes; none at the end of the file."""
        while True:
            compressed = b""
            if self.decompressor.eof:  # another stream or zero padding may follow
                compressed = self.decompressor.unused_data or self.file.read(CHUNK_BYTES)
                compressed = compressed.lstrip(b"\0")
                if not compressed:
                    return b""
                self.decompressor = lzma.LZMADecompressor(memlimit=XZ_MEMORY_LIMIT)
            elif self.decompressor.needs_input:
                compressed = self.file.read(CHUNK_BYTES)
                if not compressed:
                    raise EOFError("it is truncated")
            content = self.decompressor.decompress(compressed, count)
            if content:
                return content

"""Bounded reading of untrusted text files; errors name the invalid or malicious file.

Nothing here opens a path that a file contains: :func:`fukami.data.annotations.keep_existing_images` decides which
images may be read.
"""

import csv
import json
import math
import os
import re
import stat
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fukami.errors import Error

Json = bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"] | None  # a value of a JSON file
MAX_FILE_BYTES = 2 << 30  # largest file; the largest one of COCO has 0.5 GB
MAX_SMALL_FILE_BYTES = 8 << 20  # largest annotation file of one image, or class table
MAX_HEADER_LENGTH = 1 << 16  # characters of a table's header line
CHUNK_LENGTH, CHUNK_OVERLAP = 1 << 20, 64  # characters searched at a time
MAX_SEARCHED_CHUNKS = 256


def read_text(path: Path, *, max_bytes: int = MAX_FILE_BYTES, errors: str = "strict") -> str:
    """Read a text file in UTF-8, with or without a byte order mark.

    Args:
        path: a regular file; pipes and devices are rejected because they might never end.
        max_bytes: maximum size of the file in bytes.
        errors: error handling as in :meth:`bytes.decode`.

    Raises:
        Error: the file cannot be read, is too large, or is not in UTF-8.
    """
    return decode_text(path, read_bytes(path, max_bytes=max_bytes), errors=errors)


def decode_text(path: Path, content: bytes, *, errors: str = "strict") -> str:
    """Decode the content of a file, with universal newlines; raises as :func:`read_text`."""
    try:
        text = content.decode("utf-8-sig", errors)
    except UnicodeDecodeError as error:
        raise Error(f"{path} is not in UTF-8 ({error}); save it in UTF-8") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_bytes(path: Path, *, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """Read the content of a regular file; raises as :func:`read_text`."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise Error(f"{path} is not a regular file; use a regular file")
        if status.st_size > max_bytes:
            raise Error(f"{path} has {status.st_size:,} bytes, more than the limit of {max_bytes:,} for such a file")
        return path.read_bytes()
    except (OSError, ValueError) as error:  # a name that is invalid for files raises ValueError
        raise Error(f"{path} cannot be read ({getattr(error, 'strerror', None) or error})") from None


def read_columns(path: Path) -> list[str]:
    """Read the column names of a CSV file, in lower case; none if it cannot be read or is not a regular file."""
    if not is_file(path):
        return []
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            header = file.readline(MAX_HEADER_LENGTH)
    except OSError:  # reading the file reports the error
        return []
    try:
        names = next(csv.reader([header.strip()], delimiter="|" if "|" in header else ",", skipinitialspace=True), [])
    except csv.Error:  # so does this one
        return []
    return [name.strip().lower() for name in names]


def contains_pattern(path: Path, pattern: re.Pattern[str]) -> bool:
    """Return whether the first 256 million characters of a text file contain a pattern of up to 64 characters.

    The file is read only up to the first match. A pipe or a device contains none.
    """
    if not is_file(path):
        return False
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            previous = ""
            for _ in range(MAX_SEARCHED_CHUNKS):
                chunk = file.read(CHUNK_LENGTH)
                if pattern.search(previous + chunk):
                    return True
                if not chunk:
                    break
                previous = chunk[-CHUNK_OVERLAP:]
    except OSError:  # reading the file reports the error
        pass
    return False


def parse_json(content: bytes | str) -> Any:
    """Parse JSON.

    Raises:
        ValueError: the content is not JSON, or is nested too deeply.
    """
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def to_text(value: Json) -> str:
    """Convert a scalar of untrusted JSON to a string; empty for a list, an object or null."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()  # a lone surrogate can neither be printed nor name a file
    return str(value) if isinstance(value, int | float) else ""


def to_key(value: Json) -> Hashable:
    """Return an identifier of JSON, or None for other values."""
    return value if isinstance(value, str | int | float) else None


def to_number(value: Any) -> float:
    """Convert a value of JSON or a string to a float; NaN if it is not a number or exceeds the range."""
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def is_file(path: Path) -> bool:
    """Return whether a regular file exists; false for an invalid name, for which pathlib raises an error."""
    return os.path.isfile(path)  # noqa: PTH113


def is_folder(path: Path) -> bool:
    """Return whether a folder exists; false for an invalid name."""
    return os.path.isdir(path)  # noqa: PTH112


def exists(path: Path) -> bool:
    """Return whether a regular file or a folder exists; false for an invalid name."""
    return is_file(path) or is_folder(path)

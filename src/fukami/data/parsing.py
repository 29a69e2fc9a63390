"""Text files that somebody else wrote: read within bounds, and refused by name where they are broken or hostile.

Nothing here follows what a file names: :func:`fukami.data.annotations.keep_existing_images` decides which images may be
read.
"""

import json
import math
import os
import stat
from collections.abc import Hashable
from pathlib import Path
from typing import Any

from fukami.errors import Error

MAX_SMALL_FILE_BYTES = 8 << 20  # bytes of a file about one image, or of a table of classes


def read_text(path: Path, *, max_bytes: int | None = None, errors: str = "strict") -> str:
    """Text of a file in UTF-8, with or without a byte order mark.

    Args:
        path: a regular file; a pipe or a device is refused, as it might never end.
        max_bytes: bytes that it may have.
        errors: as :meth:`bytes.decode` takes it.

    Raises:
        Error: it cannot be read, is too large, or is not in UTF-8.
    """
    return decode_text(path, read_bytes(path, max_bytes=max_bytes), errors=errors)


def decode_text(path: Path, content: bytes, *, errors: str = "strict") -> str:
    """Text of the content of a file, with the line ends of this system's; raises as :func:`read_text`."""
    try:
        text = content.decode("utf-8-sig", errors)
    except UnicodeDecodeError as error:
        raise Error(f"{path} is not in UTF-8 ({error}); save it in UTF-8") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_bytes(path: Path, *, max_bytes: int | None = None) -> bytes:
    """Content of a regular file; raises as :func:`read_text`."""
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):
            raise Error(f"{path} is no regular file; give a file")
        if max_bytes is not None and facts.st_size > max_bytes:
            raise Error(f"{path} has {facts.st_size:,} bytes, more than the {max_bytes:,} that such a file may have")
        return path.read_bytes()
    except (OSError, ValueError) as error:  # a name that no file can have is a ValueError
        raise Error(f"{path} cannot be read ({getattr(error, 'strerror', None) or error})") from None


def parse_json(content: bytes | str) -> Any:
    """Value of a JSON text.

    Raises:
        ValueError: it is no JSON, or nested too deeply.
    """
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def to_text(value: Any) -> str:
    """Text of a scalar from JSON, which any file may hold; empty for a list, an object or null."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()  # a lone surrogate can neither be printed nor name a file
    return str(value) if isinstance(value, int | float) else ""


def to_key(value: Any) -> Hashable:
    """An identifier from JSON; None for what is none."""
    return value if isinstance(value, str | int | float) else None


def to_number(value: Any) -> float:
    """A number from JSON or text; nan for what is none or has no float."""
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def is_file(path: Path) -> bool:
    """Whether there is a regular file; not for a name that no file can have, for which pathlib raises errors."""
    return os.path.isfile(path)  # noqa: PTH113


def is_folder(path: Path) -> bool:
    """Whether there is a folder; likewise."""
    return os.path.isdir(path)  # noqa: PTH112


def exists(path: Path) -> bool:
    """Whether there is a regular file or a folder; likewise."""
    return is_file(path) or is_folder(path)

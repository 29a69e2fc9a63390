"""Replace files atomically: after a crash a file has either its old content or its new content."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from fukami.errors import WriteError


@contextlib.contextmanager
def replace_file(path: Path, *, sync: bool = True) -> Iterator[BinaryIO]:
    """Open a new file that replaces ``path`` at the end of the context, unless an exception was raised.

    Args:
        path: file to replace; other processes and threads may replace it at the same time.
        sync: wait until the disk has the content, so that it survives a power failure; not needed for a cache.

    Raises:
        OSError: the file cannot be written; the old content is kept.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
        if sync and os.name == "posix":  # Windows cannot open a folder
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)  # the rename must survive, too
            finally:
                os.close(folder)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def write_file(path: Path, *parts: bytes | memoryview) -> None:
    """Replace a file atomically by one that consists of ``parts``.

    Raises:
        WriteError: the file cannot be written; the old content is kept.
    """
    try:
        with replace_file(path) as file:
            file.writelines(parts)
    except OSError as error:
        raise WriteError(path, error) from error

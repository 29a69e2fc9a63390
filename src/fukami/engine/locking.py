"""Exclusive lock of a run's folder: only one process at a time writes to it."""

import contextlib
import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from fukami.errors import Error, UsageError

logger = logging.getLogger(__name__)
LOCK_FILENAME = ".lock"
UNSUPPORTED_ERRNOS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold the lock of an existing folder within the context.

    The operating system releases the lock when the process ends, even by a crash. Forked processes, such as those that
    decode images, do not inherit it (filelock closes its file in them). On a file system without locks, a warning is
    logged and the context is entered without one.

    Raises:
        UsageError: another process holds the lock; the message names its ID.
        Error: the folder cannot be written.
    """
    path = folder / LOCK_FILENAME
    lock = FileLock(path, timeout=0, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise UsageError(
            f"another training run{_describe_holder(path)} is writing to {folder}; wait for its end, stop it, or use "
            "another --out"
        ) from None
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in UNSUPPORTED_ERRNOS:
            raise Error(
                f"{folder} cannot be written ({error.strerror}); specify a writable folder with --out"
            ) from None
        logger.warning(f"the file system of {folder} has no locks; make sure that no other training run writes there")
    try:
        if lock.is_locked:
            with contextlib.suppress(OSError):  # on Windows, a locked file cannot be written
                path.write_text(str(os.getpid()))
        yield
    finally:
        if lock.is_locked:
            with contextlib.suppress(OSError):
                path.unlink()  # before the release: a waiting process sees that the file is gone and creates a new one
            lock.release()


def _describe_holder(path: Path) -> str:
    """Describe the process that holds a lock; return an empty string if it is unknown."""
    try:
        with path.open("rb") as file:
            process_id = file.read(20)
    except OSError:
        return ""
    return f" (process {int(process_id)})" if process_id.isdigit() else ""

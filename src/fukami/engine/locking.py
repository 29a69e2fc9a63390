"""The exclusive lock of a run's folder: one process at a time writes there."""

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
    """Hold the lock of a folder, which exists, while the context lasts.

    The operating system releases it when the process ends, however it ends. Processes that are forked meanwhile, such
    as those that decode images, do not inherit it (filelock closes its file in them). Where the file system has no
    locks, a warning says so, and the context is entered all the same.

    Raises:
        UsageError: another process holds it; its number is named.
        Error: the folder cannot be written.
    """
    path = folder / LOCK_FILENAME
    lock = FileLock(path, timeout=0, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise UsageError(
            f"another training{_describe_holder(path)} writes to {folder}; wait until it has ended, stop it, or give "
            "another --out"
        ) from None
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in UNSUPPORTED_ERRNOS:
            raise Error(f"{folder} cannot be written ({error.strerror}); give a folder that can, with --out") from None
        logger.warning(f"the file system of {folder} has no locks; make sure that no other training writes there")
    try:
        if lock.is_locked:
            path.write_text(str(os.getpid()))
        yield
    finally:
        if lock.is_locked:
            with contextlib.suppress(OSError):
                path.unlink()  # before it is released: whoever waits for it sees that it is gone, and makes a new one
            lock.release()


def _describe_holder(path: Path) -> str:
    """The process that holds a lock, in words; empty where it is not known."""
    try:
        with path.open("rb") as file:
            number = file.read(20)
    except OSError:
        return ""
    return f" (process {int(number)})" if number.isdigit() else ""

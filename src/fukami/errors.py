"""What goes wrong in a way that the user can mend."""

import difflib
import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class Error(Exception):
    """A failure that the user can mend; the message says what was given, what was expected and what to do."""


class UsageError(Error):
    """A wrong name, flag or combination of flags; the command line leaves with status 2."""


class WriteError(Error):
    """A file that cannot be written: the disk is full, the folder is read-only or was removed.

    Args:
        path: the file.
        error: what the operating system said.
    """

    def __init__(self, path: object, error: OSError) -> None:
        self.reason = f"{path} cannot be written ({error.strerror or error})"
        hint = {
            errno.ENOSPC: "make room on the disk",
            errno.EDQUOT: "make room on the disk",
            errno.ENOENT: "its folder was removed or moved: put it back, or begin a new run",
            errno.EROFS: "make the folder writable, or give another",
            errno.EACCES: "make the folder writable, or give another",
        }.get(error.errno or 0, "fix the disk or the folder")
        super().__init__(f"{self.reason}; {hint}. A training goes on from its last checkpoint with --resume")


def build_unknown_error(kind: str, name: str, choices: Iterable[str]) -> UsageError:
    """The error for a name that does not exist, with the nearest that do."""
    names = sorted(choices)
    near = difflib.get_close_matches(name[:100], names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"the valid ones are {', '.join(names)}"
    return UsageError(f"unknown {kind} {name[:200]!r}; {hint}")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: Python's, NumPy's and Pillow's, or torch's on a CPU or a GPU."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"  # torch's, which is not imported for it
        or (isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error))
    )


@contextmanager
def convert_memory_errors(name: str) -> Iterator[None]:
    """Turn a lack of memory while a file is read or predicted into an error of that file.

    Every place that works on one file at a time does so within this, so that one file cannot end a batch.

    Raises:
        Error: memory ran out; the file is named.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise Error(f"{name} needs more memory than there is; make it smaller") from None

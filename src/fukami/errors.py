"""Exceptions for errors that the user can fix."""

import difflib
import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

PACKAGES = {
    "ale_py": "ale-py",
    "av": "PyAV",
    "prometheus_client": "prometheus-client",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}  # names of packages by the names that they are imported by, where they differ


class Error(Exception):
    """Base class of errors that the user can fix; the message names the value, what was expected and the fix."""


class UsageError(Error):
    """Error for a wrong name, flag or combination of flags; the command line exits with status 2."""


class MissingPackageError(UsageError):
    """Error for an optional dependency that is not installed, with the command that installs it."""


class WriteError(Error):
    """Error for a file that cannot be written: the disk is full, the folder is read-only or was removed.

    Args:
        path: the file.
        error: the error of the operating system.
    """

    def __init__(self, path: object, error: OSError) -> None:
        self.reason = f"{path} cannot be written ({error.strerror or error})"
        hint = {
            errno.ENOSPC: "make room on the disk",
            errno.EDQUOT: "make room on the disk",
            errno.ENOENT: "its folder was removed or moved: put it back, or start a new run",
            errno.EROFS: "make the folder writable, or use another one",
            errno.EACCES: "make the folder writable, or use another one",
        }.get(error.errno or 0, "fix the disk or the folder")
        super().__init__(f"{self.reason}; {hint}. --resume continues a run from its last checkpoint")


def build_unknown_error(kind: str, name: str, choices: Iterable[str]) -> UsageError:
    """Build the error for an unknown name, with the closest valid names."""
    names = sorted(set(choices))
    matches = difflib.get_close_matches(name[:100], names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, matches))}?" if matches else f"the valid ones are {', '.join(names)}"
    return UsageError(f"unknown {kind} {name[:200]!r}; {hint}")


def get_install_command(extra: str) -> str:
    """Return the command that installs an optional dependency."""
    return f"pip install 'fukami[{extra}]', or in a checkout pip install '.[{extra}]'"


@contextmanager
def require_extra(extra: str, purpose: str, alternative: str = "") -> Iterator[None]:
    """Convert the error of a package that is not installed into one with the command that installs it.

    All imports of optional dependencies are within this context.

    Args:
        extra: the optional dependencies that contain the package.
        purpose: what needs the package; the message begins with it.
        alternative: what to do without the package.

    Raises:
        MissingPackageError: the package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        name = (error.name or "fukami").partition(".")[0]
        if name == "fukami":
            raise
        package, hint = PACKAGES.get(name, name), f"; or {alternative}" if alternative else ""
        command = get_install_command(extra)
        message = f"{purpose} needs {package}, which is not installed: {command}{hint}"
        raise MissingPackageError(message) from None


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means out of memory, in Python, NumPy, Pillow or torch (CPU or GPU)."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"  # torch.OutOfMemoryError, without importing torch
        or (isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error))
    )


@contextmanager
def convert_memory_errors(name: str) -> Iterator[None]:
    """Convert an out-of-memory error while one file is processed into an error that names the file.

    All code that processes one file at a time uses this context, so that one file cannot abort a batch.

    Raises:
        Error: out of memory; the message names the file.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise Error(f"{name} needs more memory than is available; make it smaller") from None

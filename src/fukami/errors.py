"""Exceptions for errors that the user can fix."""

import difflib
import errno
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

# names of packages by the names that they are imported by, where they differ
PACKAGES = {
    "ale_py": "ale-py",
    "av": "PyAV",
    "prometheus_client": "prometheus-client",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}

RESUME_HINT = "--resume continues a run from its last checkpoint"
OUT_OF_MEMORY_PATTERN = re.compile(
    "DefaultCPUAllocator|out of memory|ALLOC_FAILED|bad_alloc|Cannot allocate memory|Storage size .* overflowed"
)
# Errors of torch's DataLoader and of its worker processes, which send their batches through /dev/shm.
SHARED_MEMORY_PATTERN = re.compile(
    r"out of shared memory|signal: Bus error|shared memory\(shm\)|unable to (resize|write to) file <"
)


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
        can_resume: whether the file is of a training with a checkpoint.
    """

    def __init__(self, path: object, error: OSError, *, can_resume: bool = False) -> None:
        self.reason = f"{path} cannot be written ({error.strerror or error})"
        hint = {
            errno.ENOSPC: "make room on the disk",
            errno.EDQUOT: "make room on the disk",
            errno.ENOENT: "its folder was removed or moved: put it back, or start a new run",
            errno.EROFS: "make the folder writable, or use another one",
            errno.EACCES: "make the folder writable, or use another one",
        }.get(error.errno or 0, "fix the disk or the folder")
        super().__init__(f"{self.reason}; {hint}{f'. {RESUME_HINT}' if can_resume else ''}")


def build_unknown_error(kind: str, name: str, choices: Iterable[str]) -> UsageError:
    """Build the error for an unknown name, with the closest valid names."""
    return UsageError(f"unknown {kind} {name[:100]!r}; {suggest_names(name, choices)}")


def suggest_names(name: str, choices: Iterable[str]) -> str:
    """Format the hint for an unknown name: the three closest valid names, or the first ones if none is close."""
    names = sorted(set(choices))
    matches = difflib.get_close_matches(name[:100], names, n=3, cutoff=0.5)
    if matches:
        return f"did you mean {' or '.join(map(repr, matches))}?"
    return f"the valid ones are {format_names(names, 12)}"


def find_name(name: str, choices: Iterable[str]) -> str | None:
    """Find the choice that a name means: case, hyphens and underscores are ignored."""
    plain = simplify_name(name)
    return next((choice for choice in choices if simplify_name(choice) == plain), None)


def simplify_name(name: str) -> str:
    """Return a name in lower case, without hyphens and underscores."""
    return name.lower().replace("-", "").replace("_", "")


def format_names(names: Sequence[str], max_names: int = 3) -> str:
    """Format the first names of a list and the number of the others."""
    more = f" and {len(names) - max_names:,} more" if len(names) > max_names else ""
    return ", ".join(names[:max_names]) + more


def get_install_command(extra: str) -> str:
    """Return the commands that install an optional dependency, in a checkout and for an installed wheel."""
    return f"pip install '.[{extra}]' in a checkout, or pip install 'fukami[{extra}]' with an installed wheel"


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
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or (isinstance(error, RuntimeError) and OUT_OF_MEMORY_PATTERN.search(str(error)) is not None)
    )


def is_out_of_shared_memory(error: BaseException) -> bool:
    """Return whether an error means that the worker processes of a loader have filled the shared memory."""
    text = f"{error}\n{error.__cause__}"  # the DataLoader raises another error from that of the signal
    return isinstance(error, RuntimeError) and SHARED_MEMORY_PATTERN.search(text) is not None


@contextmanager
def suggest_memory_fixes(*fixes: str) -> Iterator[None]:
    """Convert an out-of-memory error into one with ``fixes``, such as "lower --batch-size".

    Raises:
        Error: out of memory.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise build_memory_error(error, fixes) from error


def build_memory_error(error: BaseException, fixes: Sequence[str]) -> Error:
    """Build the error for an out-of-memory error of a command, with the amount that torch tried to allocate.

    Args:
        error: the error of Python, NumPy or torch.
        fixes: what to change, such as "lower --batch-size".
    """
    device = "GPU" if re.search("CUDA|GPU|MPS|CUBLAS", str(error)) else "machine"
    amount = re.search(r"tried to allocate ([\d.]+) ?([A-Za-z]+)", str(error), re.IGNORECASE)
    size = ""
    if amount is not None:
        number, unit = amount.groups()
        size = f" for another {int(number) / 1e9:,.2f} GB" if unit == "bytes" else f" for another {number} {unit}"
    *first, last = fixes
    return Error(f"the {device} has no memory{size}; {', '.join(first)}{' or ' if first else ''}{last}")


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


def escape_controls(text: str) -> str:
    """Escape control characters as Python does, except for newlines and tabs."""
    return "".join(
        ascii(letter)[1:-1] if unicodedata.category(letter).startswith("C") and letter not in "\n\t" else letter
        for letter in text
    )

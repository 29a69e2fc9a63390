"""Files that contain the arrays of a replay buffer, for resumed runs."""

import contextlib
import errno
import os
from collections.abc import Mapping
from pathlib import Path

from fukami.errors import Error


class BufferFiles:
    """Files of fixed sizes in a folder, opened or created.

    Args:
        folder: folder of the files.
        sizes: bytes of each file, by its name without ``.bin``.
        option: option of the command line that reduces the sizes, for the error.

    Attributes:
        paths: paths by name.
        were_created: whether a file was missing or had the wrong size.
        was_resumed: whether the run was resumed from a checkpoint that refers to the content; set by its owner.

    Raises:
        Error: a file cannot be created, or the disk is full.
    """

    def __init__(self, folder: Path, sizes: Mapping[str, int], option: str) -> None:
        self.folder = folder
        self.paths = {name: folder / f"{name}.bin" for name in sizes}
        new_paths = []
        is_new_folder = not folder.exists()
        for name, path in self.paths.items():
            try:
                folder.mkdir(parents=True, exist_ok=True)
                if not path.exists() or path.stat().st_size != sizes[name]:
                    new_paths.append(path)
                path.touch()
                with path.open("r+b") as file:
                    _reserve_space(file.fileno(), sizes[name])
                    file.truncate(sizes[name])
            except OSError as error:
                for new_path in new_paths:
                    new_path.unlink(missing_ok=True)
                if is_new_folder:
                    with contextlib.suppress(OSError):
                        folder.rmdir()
                raise Error(
                    f"{path} cannot be created ({error.strerror}); the replay buffer needs "
                    f"{sum(sizes.values()) / 1e9:.1f} GB of disk space: free some, or lower {option}"
                ) from None
        self.were_created, self.was_resumed = bool(new_paths), False

    def check_content(self) -> None:
        """Check that a resumed run finds the content of its files; a finished one does not need it.

        Raises:
            Error: a file was missing when the run was resumed.
        """
        if self.was_resumed and self.were_created:
            raise Error(
                f"{self.folder} is missing or incomplete, so the run cannot be resumed; start a new one in another "
                "--out"
            )

    def delete(self) -> None:
        """Delete the files and their folder."""
        for path in self.paths.values():
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()


def _reserve_space(descriptor: int, size: int) -> None:
    """Reserve the disk space of a file now rather than at the first write, where the system can."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL):  # unsupported by the file system
                raise

"""Tests of the files of replay buffers."""

import errno
import fcntl
import os

import pytest

from fukami import Error
from fukami.engine.buffer_files import BufferFiles

SIZES = {"frames": 4096, "actions": 10}


def test_files_of_a_full_disk_are_removed(tmp_path, monkeypatch):
    def allocate(descriptor, start, size):
        if size == SIZES["actions"]:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", allocate)
    with pytest.raises(Error, match=r"actions.bin cannot be created \(No space left on device\).*lower --buffer-size"):
        BufferFiles(tmp_path / "buffer", SIZES, "--buffer-size")
    assert not [*tmp_path.iterdir()]


def test_content_is_kept_and_checked(tmp_path):
    files = BufferFiles(tmp_path, SIZES, "--buffer-size")
    files.check_content()  # a new run needs none
    files.paths["actions"].write_bytes(b"0123456789")
    files = BufferFiles(tmp_path, SIZES, "--buffer-size")
    files.was_resumed = True
    files.check_content()
    assert files.paths["actions"].read_bytes() == b"0123456789"
    files.paths["actions"].write_bytes(b"0123")
    files = BufferFiles(tmp_path, SIZES, "--buffer-size")
    files.was_resumed = True
    with pytest.raises(Error, match="missing or incomplete"):
        files.check_content()


def test_files_on_a_file_system_that_cannot_reserve_space(tmp_path, monkeypatch):
    """The C library emulates it only for files that are open for reading, and not for appending."""

    def allocate(descriptor, start, size):
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        if flags & os.O_APPEND or flags & os.O_ACCMODE != os.O_RDWR:
            raise OSError(errno.EBADF, "Bad file descriptor")
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", allocate)
    files = BufferFiles(tmp_path / "buffer", SIZES, "--buffer-size")
    assert {name: path.stat().st_size for name, path in files.paths.items()} == SIZES

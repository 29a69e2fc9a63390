"""Tests of the atomic replacement of files."""

import os

import pytest

from fukami import atomic_file
from fukami.errors import WriteError


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with atomic_file.replace_file(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    with pytest.raises(TypeError), atomic_file.replace_file(path) as file:
        file.writelines([b"incomplete", "text"])
    assert path.read_bytes() == b"new"
    assert [child.name for child in tmp_path.iterdir()] == ["file"]


def test_processes_on_several_machines_may_replace_a_file_at_the_same_time(tmp_path, monkeypatch):
    """Each process in a container of its own may have the number 1."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    path = tmp_path / "file"
    with atomic_file.replace_file(path) as outer:
        outer.write(b"out")
        with atomic_file.replace_file(path) as inner:
            inner.write(b"inner")
        outer.write(b"er")
    assert path.read_bytes() == b"outer"


def test_a_file_that_cannot_be_written_is_an_error(tmp_path):
    with pytest.raises(WriteError, match="cannot be written"):
        atomic_file.write_file(tmp_path / "missing" / "file", b"content")

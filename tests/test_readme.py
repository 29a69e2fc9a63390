"""The README's commands run, in order, in an empty folder; those that take minutes only where they are asked for."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import check_task

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(bash[^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands(path):
    """The commands of each block, and whether they are slow."""
    for kind, text in BLOCK.findall(path.read_text(encoding="utf-8")):
        yield from ((line, "slow" in kind) for line in text.splitlines() if line.strip() and not line.startswith("#"))


@pytest.mark.parametrize("name", ["README.md", "README.ja.md"])
def test_both_readmes_have_the_same_commands(name):
    assert list(commands(ROOT / name)) == list(commands(ROOT / "README.md"))
    assert len(list(commands(ROOT / name))) > 8


def test_commands_run(tmp_path, mnist_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    ran = 0
    for command, slow in commands(ROOT / "README.md"):
        words = shlex.split(command)
        if slow or words[0] in ("git", "cd", "make", "pip", "uv", "export", "python3"):
            continue
        if words[0] == "fukami":
            status, _, err = check_task.Started(words, page=True).ended()
        else:
            done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=200)
            status, err = done.returncode, done.stderr
        assert status == 0, f"{command}\n{err}"
        ran += 1
    assert ran >= 4


def test_every_target_of_make_that_the_readme_names_exists():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for name in ("README.md", "CONTRIBUTING.md"):
        assert set(re.findall(r"`make (\w+)`", (ROOT / name).read_text())) <= targets

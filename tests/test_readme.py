"""The README's commands run, in order, in an empty folder; those that take minutes only where they are asked for."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

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


def test_commands_run(tmp_path, mnist_folder):
    bin = Path(sys.executable).parent
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    environment = {**os.environ, "PATH": f"{bin}:{os.environ['PATH']}", "FUKAMI_DATA": str(mnist_folder)}
    ran = 0
    for command, slow in commands(ROOT / "README.md"):
        if slow or command.split()[0] in ("git", "cd", "make", "pip", "uv", "export", "python3"):
            continue
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        ran += 1
    assert ran >= 4


def test_every_target_of_make_that_the_readme_names_exists():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for name in ("README.md", "CONTRIBUTING.md"):
        assert set(re.findall(r"`make (\w+)`", (ROOT / name).read_text())) <= targets

"""Tests of the READMEs: their commands run in order in an empty folder, except slow ones."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import results

import check_task

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(bash[^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def list_commands(path):
    """Yield the commands of each block, and whether they are slow."""
    for kind, text in BLOCK.findall(path.read_text(encoding="utf-8")):
        yield from ((line, "slow" in kind) for line in text.splitlines() if line.strip() and not line.startswith("#"))


@pytest.mark.parametrize("name", ["README.md", "README.ja.md"])
def test_both_readmes_have_the_same_commands(name):
    assert list(list_commands(ROOT / name)) == list(list_commands(ROOT / "README.md"))
    assert len(list(list_commands(ROOT / name))) > 8


@pytest.mark.slow
def test_commands_run(tmp_path, mnist_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    num_commands = 0
    for command, slow in list_commands(ROOT / "README.md"):
        words = shlex.split(command)
        if slow or words[0] in ("git", "cd", "make", "pip", "uv", "export", "python3"):
            continue
        if words[0] == "fukami":
            status, _, err = check_task.CommandProcess(words, report=True).wait()
        else:
            result = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=200)
            status, err = result.returncode, result.stderr
        assert status == 0, f"{command}\n{err}"
        num_commands += 1
    assert num_commands >= 4


def test_make_targets_in_the_readme_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for name in ("README.md", "CONTRIBUTING.md"):
        assert set(re.findall(r"`make ([\w-]+)`", (ROOT / name).read_text())) <= targets


def test_the_pong_result_is_attributed_to_double_dqn():
    """Each line with the Pong result names the algorithm."""
    paths = [ROOT / "README.md", ROOT / "README.ja.md", *sorted((ROOT / "docs").rglob("*.md"))]
    texts = [results.replace_directives(path.read_text(encoding="utf-8"), "") for path in paths]
    lines = [line for text in texts for line in text.splitlines() if "17.83" in line]
    assert len(lines) >= 3
    assert all("Double DQN" in line or "not the result of the paper's DQN" in line for line in lines)

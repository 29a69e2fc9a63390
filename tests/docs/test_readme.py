"""Tests of the READMEs: their commands run in order in an empty folder, except slow ones, and their results agree."""

import csv
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from statistics import mean

import pytest

import check_task
from fukami.catalogue import RECIPES
from fukami.engine.recipe import list_recipes

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


def load_results(benchmark, metric):
    """Load the recorded values of a benchmark, by seed."""
    with (ROOT / "benchmarks" / "results.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if (row["benchmark"], row["metric"]) == (benchmark, metric)]
    return {row["seed"]: float(row["value"]) for row in rows}


@pytest.mark.parametrize(
    ("recipe", "benchmark", "metric", "in_readme"),
    [
        ("deep-convnet", "deep-convnet mnist default", "test accuracy", "99.58 %, mean of five seeds"),
        ("show-and-tell", "show-and-tell flickr8k sample", "bleu4", "12.8 on 1,000 images of Flickr8k, mean of three"),
    ],
)
def test_means_equal_the_means_of_the_recorded_seeds(recipe, benchmark, metric, in_readme):
    values = load_results(benchmark, metric)
    result, readme = RECIPES[recipe].result, (ROOT / "README.md").read_text(encoding="utf-8")
    number = result.split()[0]
    assert f"{100 * mean(values.values()):.{len(number.partition('.')[2])}f}" == number
    assert f"mean of {len(values)} seeds" in result
    assert in_readme in readme
    number = in_readme.split()[0]
    assert f"{100 * mean(values.values()):.{len(number.partition('.')[2])}f}" == number


def test_our_results_state_the_number_of_seeds():
    """Results of ``fukami list`` and both READMEs state it; the time of style transfer has no seed."""
    for name in set(list_recipes()) - {"neural-style"}:
        result = RECIPES[name].result
        assert not result or "seed" in result, name
    for file, seed, columns in (("README.md", "seed", 6), ("README.ja.md", "シード", 6)):
        rows = [line.strip("| ").split(" | ") for line in (ROOT / file).read_text(encoding="utf-8").splitlines()
                if line.startswith("| [")]  # fmt: skip
        assert len(rows) == 16
        for row in rows:
            assert len(row) == columns
            has_result = row[4] not in ("not trained", "未学習") and "neural-style" not in row[0]
            assert not has_result or seed in row[4], row[0]


def test_the_pong_result_is_attributed_to_double_dqn():
    """Each line with the Pong result names the algorithm."""
    assert "Double DQN" in RECIPES["dqn"].result
    paths = [ROOT / "README.md", ROOT / "README.ja.md", *sorted((ROOT / "docs").rglob("*.md"))]
    lines = [line for path in paths for line in path.read_text(encoding="utf-8").splitlines() if "19.17" in line]
    assert len(lines) >= 4
    assert all("Double DQN" in line or "not the result of the paper's DQN" in line for line in lines)

"""Tests of the wheel in a bare environment: neither the checkout nor any optional dependency is importable."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image
from tifffile import imwrite

from fukami.errors import get_install_command

ROOT = Path(__file__).parents[1]
MAX_PACKAGES = 30  # installed packages, fukami included, with the CPU build of torch
# Runs several commands in one process, since each one would import torch.
RUN_COMMANDS = """
import contextlib, io, json, sys
from fukami.cli.main import main
for arguments in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(arguments)
        except SystemExit as system_exit:
            status = system_exit.code
    print(json.dumps([status, out.getvalue(), err.getvalue()]))
"""


def list_dependencies(distribution):
    """Return the installed distributions that a distribution needs, by name, without optional ones."""
    dependencies, pending = {}, [distribution]
    while pending:
        for text in pending.pop().requires or ():
            requirement = Requirement(text)
            name = canonicalize_name(requirement.name)
            is_needed = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if is_needed and name not in dependencies:
                dependencies[name] = importlib.metadata.distribution(name)
                pending.append(dependencies[name])
    return dependencies


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """Folder with the installed wheel and links to the packages that it needs, and to no other ones."""
    folder = tmp_path_factory.mktemp("bare")
    command = (sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation")
    subprocess.run([*command, "--target", folder, ROOT], check=True, timeout=120)
    (wheel,) = importlib.metadata.distributions(path=[str(folder)])
    for distribution in list_dependencies(wheel).values():
        for name in {file.parts[0] for file in distribution.files} - {"..", "__pycache__"}:
            if not (folder / name).exists():
                (folder / name).symlink_to(distribution.locate_file(name))
    return folder


def run_commands(bare, folder, *commands):
    """Run commands in a process whose only packages are those of the bare environment."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "FUKAMI"))}
    result = subprocess.run(
        [sys.executable, "-S", "-c", RUN_COMMANDS, json.dumps(commands)],
        env=environment | {"PYTHONPATH": str(bare)}, cwd=folder, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_installation_brings_at_most_30_packages(bare):
    (wheel,) = (entry for entry in importlib.metadata.distributions(path=[str(bare)]) if entry.name == "fukami")
    assert [(script.name, script.value) for script in wheel.entry_points] == [("fukami", "fukami.cli.main:main")]
    names = [name for name in list_dependencies(wheel) if not name.startswith(("nvidia-", "cuda-", "triton"))]
    assert len([*names, "fukami"]) <= MAX_PACKAGES, sorted(names)


@pytest.mark.slow
def test_wheel_trains_evaluates_and_predicts(bare, mask_files, digit_files, tmp_path):
    """The default data of classification and style need no file and no download."""
    shutil.copy(ROOT / "docs" / "digit.png", tmp_path)
    narrow = ("--widths", "4", "4", "4", "4", "4", "4", "--hidden", "8")
    results = run_commands(
        bare, tmp_path,
        ["list"],
        ["train", "deep-convnet", "--data", "digits", "--epochs", "1", *narrow, "--out", "digits"],
        ["eval", "digits"],
        ["predict", "deep-convnet", "digit.png", "--out", "drawn"],
        ["train", "segnet-basic", "--data", str(mask_files), "--epochs", "1", "--out", "masks"],
        ["predict", "masks", str(mask_files / "val" / "images" / "8.png")],
        ["board", "."],
        ["doctor", str(digit_files)],
    )  # fmt: skip
    assert [status for status, _, _ in results] == [0] * 8, results
    recipes, trained, evaluated, predicted, _, segmented, board, checked = (out for _, out, _ in results)
    assert "deep-convnet" in recipes
    assert json.loads(evaluated)["accuracy"] == json.loads(trained)["accuracy"]
    assert json.loads(predicted)["label"] == "5"
    assert (tmp_path / "drawn" / "digit.png").is_file()
    assert (tmp_path / "digits" / "report.html").is_file()
    assert "file" in json.loads(segmented)
    assert "digits: accuracy" in board
    assert (bare / "fukami" / "published_results.csv").is_file()
    assert checked == ""


@pytest.mark.slow
def test_a_command_without_its_extra_names_the_command_that_installs_it(bare, scene_files, caption_files, tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "image.png")
    for name in ("images", "labels"):
        (tmp_path / "yolo" / name).mkdir(parents=True)
    (tmp_path / "yolo" / "data.yaml").write_text("names: [cell]\n")
    for label in ("forest", "water"):
        (tmp_path / "bands" / label).mkdir(parents=True)
        bands = np.zeros((8, 8, 5), np.uint16)
        imwrite(tmp_path / "bands" / label / "0.tif", bands, photometric="minisblack", planarconfig="contig")
    commands = {
        ("serve", "deep-convnet"): "serve",
        ("export", "deep-convnet", "--to", "onnx"): "export",
        ("export", "deep-convnet", "--to", "int8"): "export",
        ("predict", "deep-convnet", "image.png", "--precision", "int8"): "export",
        ("propose", "image.png"): "detect",
        ("train", "rcnn-finetune", "--data", str(scene_files)): "detect",
        ("train", "faster-rcnn-vgg16", "--data", "yolo"): "detect",
        ("doctor", "yolo"): "detect",
        ("train", "show-and-tell", "--data", str(caption_files), "--tokenizer", "japanese"): "japanese",
        ("train", "dqn", "--env", "pong"): "atari",
        ("train", "resnet20", "--data", "bands", "--channels", "5", "--val-fraction", "0.5"): "tiff",
        ("doctor", "bands"): "tiff",
        ("predict", "deep-convnet", "bands/water/0.tif"): "tiff",
    }
    results = run_commands(bare, tmp_path, *commands)
    for (arguments, extra), (status, _, err) in zip(commands.items(), results, strict=True):
        assert status == 2, (arguments, err)
        assert f", which is not installed: {get_install_command(extra)}" in err, (arguments, err)


def test_lock_file_has_all_dependencies_in_their_ranges():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = [project["project"]["dependencies"], *project["project"]["optional-dependencies"].values()]
    requirements = [Requirement(text) for group in [*groups, project["dependency-groups"]["dev"]] for text in group]
    locked = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        name, version = line.partition(" ")[0].split("==")
        locked.setdefault(canonicalize_name(name), []).append(version)
    for requirement in requirements:
        if requirement.name != "fukami":
            assert any(map(requirement.specifier.contains, locked[canonicalize_name(requirement.name)])), requirement

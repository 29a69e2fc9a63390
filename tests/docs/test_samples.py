"""Tests of the Python samples of the READMEs and the pages: they compile, their names exist, they run.

The samples of a page run in one process, one after the other, with small trainings and images. What a sample needs that
the tests do not have, such as a server, is the reason for the fence ``python no-run``.
"""

import ast
import pkgutil
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from contract import test_tasks

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("README*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# fields of the trainings in samples, in addition to those of the sample
SMALL = {
    "deep-convnet": {"epochs": 1},
    "dcgan": {"epochs": 1, "base_channels": 4},
    "neural-style": {"weights": "", "size": 64, "iterations": 2},
    "dqn": {"steps": 1200, "learning_starts": 1000, "eval_episodes": 3},
}
SETUP = f"""
import fukami
train = fukami.train
fukami.train = lambda recipe, **fields: train(recipe, **fields | {SMALL!r}[recipe])
"""
# the recipes of the runs that samples load, and the runs that are exported to ONNX
RUNS = {
    "runs/vgg16": test_tasks.classification,
    "runs/resnet18": test_tasks.classification,
    "runs/faster-rcnn-vgg16": test_tasks.detection,
    "runs/fcn8s-vgg16": test_tasks.segmentation,
    "runs/show-and-tell": test_tasks.captioning,
    "runs/dcgan": test_tasks.generation,
}
EXPORTS = {
    "runs/deep-convnet-onnx": "deep-convnet",
    "runs/resnet18-onnx": "runs/resnet18",
    "runs/faster-rcnn-vgg16-onnx": "runs/faster-rcnn-vgg16",
}


def list_samples(path, *, runnable=False):
    """List the Python blocks of a page; with ``runnable`` those that run."""
    blocks = BLOCK.findall(path.read_text(encoding="utf-8"))
    return [code for options, code in blocks if not (runnable and "no-run" in options.split())]


def list_names(code):
    """List the dotted names of fukami that a sample imports, or uses as ``fukami.x``."""
    names = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names.append(ast.unparse(node))
    return [name for name in names if re.fullmatch(r"fukami(\.\w+)*", name)]


def write_files(digits):
    """Write the files that the samples read, in the working directory."""
    from fukami.style import data as style_data

    Path("docs").symlink_to(ROOT / "docs")
    for name in ("photograph.jpg", "other.jpg", "coffee.png"):
        style_data.load_content_image().resize((320, 214)).save(name)
    style_data.load_style_image().resize((250, 218)).save("artwork.jpg")
    for name in ("my-images", "other-images"):
        shutil.copytree(digits, name)
    Path("positions.txt").write_text("." * 42 + "\n")


def find_pages(**options):
    return [path for path in PAGES if list_samples(path, **options)]


@pytest.mark.parametrize("path", find_pages(), ids=lambda path: path.stem)
def test_samples_compile_and_their_names_exist(path):
    for code in list_samples(path):
        compile(code, f"sample of {path.name}", "exec")
        for name in list_names(code):
            pkgutil.resolve_name(name)


def test_names_of_a_sample():
    code = "import fukami.data\nfrom fukami.errors import Error\nfukami.load('run').task.x, fukami.train, numpy.zeros"
    assert sorted(list_names(code)) == ["fukami.data", "fukami.errors.Error", "fukami.load", "fukami.train"]
    assert len(find_pages()) > 10


@pytest.mark.slow
@pytest.mark.parametrize("path", find_pages(runnable=True), ids=lambda path: path.stem)
def test_samples_run(path, request, fukami, monkeypatch, tmp_path, digit_files, forked_python):
    import fukami as package

    monkeypatch.setenv("FUKAMI_DATA", str(tmp_path / "none"))
    write_files(digit_files)
    code = "\n".join(list_samples(path, runnable=True))
    for folder, make in RUNS.items():
        if f'"{folder}' in code:
            package.train(make(request)(epochs=1), folder, device="cpu", precision="float32")
    for folder, run in EXPORTS.items():
        if f'"{folder}/' in code:
            assert fukami("export", run, "--to", "onnx", "--out", folder).status == 0
    command = [forked_python.executable, "-c", SETUP + code]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr

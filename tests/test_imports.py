"""Who may import whom: section 5 of the design, and nothing heavy when the package is imported."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "fukami"
BASE = {"errors"}
THIRD = {
    "errors",
    "image",
    "digit",
    "figures",
    "figures_boxes",
    "metrics",
    "schedules",
    "figures_pixels",
    "preparation",
    "average_precision",
    "pixel_metrics",
    "caption_metrics",
    "generation_metrics",
    "figures_captions",
    "figures_play",
    "language",
}
ALLOWED = {
    "models": {"models", "ops"},
    "ops": {"ops"},
    "metrics": BASE,
    "average_precision": {"errors", "coco_metrics", "data.boxes"},
    "pixel_metrics": {"errors", "metrics"},
    "caption_metrics": BASE,
    "generation_metrics": BASE,
    "figures_generation": BASE,
    "figures_play": {"errors", "image"},
    "perception": {"errors", "checkpoint", "models", "supervised", "transfer"},
    "language": BASE,
    "figures_captions": {"errors", "image", "caption_metrics"},
    "coco_metrics": {"data.boxes"},
    "schedules": BASE,
    "image": BASE,
    "figures": BASE,
    "figures_boxes": {"errors", "image", "average_precision"},
    "figures_pixels": {"errors", "image", "pixel_metrics"},
    "digit": BASE,
    "preparation": {"errors", "image", "digit"},
    "video": {"errors", "image"},
    "analysis": {"errors", "image", "figures", "analysis"},
    "proposals": {"errors", "image", "proposals", "processors", "data.places"},
    "data": {"errors", "clock", "data", "image", "preparation", "processors"},
    "numerics": {"errors", "numerics", "ops"},
    "tasks": {*THIRD, "data.boxes", "data.experience", "features", "numerics", "ops", "proposals", "task", "tasks"},
    "features": {"errors", "data.places"},
    "tensor_files": set(),
    "transfer": {"errors", "data.places", "ops", "tensor_files"},
    "supervised": {"errors", "data", "recipe", "schedules", "task"},
    "classifier": {*THIRD, "data", "models", "numerics", "recipe", "supervised", "tasks", "task", "transfer"},
    "detector": {*THIRD, "data", "models", "recipe", "supervised", "tasks", "task", "transfer"},
    "segmenter": {*THIRD, "data", "models", "recipe", "supervised", "tasks", "task", "transfer"},
    "region_cnn": {
        "errors",
        "checkpoint",
        "data",
        "detector",
        "models",
        "proposals",
        "recipe",
        "tasks",
    },
    "recipes": {
        *THIRD,
        "classifier",
        "data",
        "detector",
        "models",
        "ops",
        "perception",
        "recipe",
        "recipes",
        "region_cnn",
        "segmenter",
        "supervised",
        "tasks",
        "task",
        "transfer",
    },
    "showing": {"errors", "image", "figures", "preparation", "supervised", "data"},
    "lr_range": {"errors", "recipe", "resuming", "runtime"},
    "scratch": {"errors", "scratch", "data.mnist"},
    "task": {"errors", "runtime", "schedules"},
    "clock": BASE,
    "capturing": BASE,
    "processors": BASE,
    "runtime": {"errors", "capturing", "clock", "ops", "processors"},
    "ceiling": {"runtime"},
    "watch": {"clock", "runtime"},
    "saving": {"errors", "checkpoint"},
    "launching": {"errors", "checkpoint", "processors", "watch"},
    "locking": BASE,
    "resuming": {"errors", "checkpoint", "data.manifest"},
    "recipe": {"errors", "task", "recipes"},
    "precision": {"errors", "numerics", "recipe", "runtime", "task"},
    "answers": BASE,
    "state_file": BASE,
    "checkpoint": {"errors", "answers", "locking", "numerics", "precision", "recipe", "runtime", "state_file", "task"},
    "exporting": {"errors", "checkpoint", "precision", "runtime"},
    "ladder": {"errors", "checkpoint", "exporting", "numerics", "precision", "recipe", "runtime", "tasks"},
    "log": {"errors", "analysis", "checkpoint", "clock", "recipe", "report", "runtime", "task"},
    "report": {"errors", "checkpoint"},
    "findings": {"errors", "image", "data"},
    "doctor_boxes": {"errors", "data", "findings"},
    "doctor_masks": {"errors", "data", "doctor_boxes", "findings"},
    "doctor_captions": {"errors", "data", "findings"},
    "doctor": {"errors", "image", "data", "doctor_boxes", "doctor_captions", "doctor_masks", "findings"},
    "board": {"errors", "checkpoint", "data", "recipe", "report"},
    "serving": {"errors", "image", "report", "serving", "task"},
    "loop": {
        "errors",
        "checkpoint",
        "data.manifest",
        "log",
        "recipe",
        "resuming",
        "runtime",
        "saving",
        "task",
        "watch",
    },
}
FREE = {"cli", "commands", "page", "importing", "making", "__init__", "__main__"}  # they may use everything
THIRD_PARTY = {
    "models": {"torch", "torchvision"},
    "ops": {"torch", "torchvision"},
    "scratch": {"numpy", "safetensors"},
    "recipe": {"tyro"},
}


def imports(path):
    """``(module, only for types)`` of each import in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in typing:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert all(alias.name != "*" for alias in node.names), f"{path}: import *"
            if node.module == "fukami" or node.module in {"fukami.data"}:
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            else:
                yield "." * node.level + (node.module or "")


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_only_allowed_imports(path):
    part = path.relative_to(ROOT).parts[0].removesuffix(".py")
    if part in FREE:
        return
    for module in imports(path):
        names = module.split(".")
        if names[0] == "fukami":
            inner = ".".join(names[1:])
            allowed = ALLOWED[part]
            assert names[1] in allowed or inner in allowed, f"{path.name} imports {module}"
        elif names[0] and part in THIRD_PARTY and names[0] not in sys.stdlib_module_names:
            assert names[0] in THIRD_PARTY[part], f"{path.name} imports {module}"


def test_light_commands_import_nothing_heavy():
    """``import fukami`` and ``fukami list`` wait for neither torch nor anything else that takes its time."""
    code = """
import sys, fukami
assert not {"torch", "numpy", "rich", "tyro"} & set(sys.modules), "import fukami"
from fukami.cli import main
try:
    main(["list"])
except SystemExit as left:
    assert left.code == 0
heavy = {"torch", "torchvision", "sklearn", "scipy", "matplotlib", "PIL", "skimage"} & set(sys.modules)
assert not heavy, heavy
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert "deep-convnet" in result.stdout


def test_no_module_makes_a_tensor_when_it_is_imported():
    """It may be imported first where networks are made without numbers, before their weights are read."""
    code = """
import importlib, pkgutil, torch, fukami
with torch.device("meta"):
    for module in pkgutil.walk_packages(fukami.__path__, "fukami."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


def test_public_names():
    import fukami

    assert {*fukami.__all__} <= {*dir(fukami)}
    for name in fukami.__all__:
        assert getattr(fukami, name) is not None
    with pytest.raises(AttributeError, match="it has Data"):
        fukami.no_such_name  # noqa: B018

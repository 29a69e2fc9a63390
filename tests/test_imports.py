"""Tests of the layering of imports, and of the import time of the package."""

import ast
import graphlib
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "fukami"
# A package imports only from the levels below it: task packages do not import each other, nor does the engine them.
LEVELS = (
    {"__init__", "__main__"},
    {"cli"},
    {"serving"},
    {
        "classification",
        "detection",
        "segmentation",
        "captioning",
        "generation",
        "style",
        "reinforcement",
        "self_play",
        "leaderboard",
    },
    {"engine"},
    {"selective_search", "scratch"},
    {"data", "models", "quantization"},
    {"explain"},
    {"image", "layers"},
    {"atomic_file", "progress", "system", "timing"},
    {"catalogue", "errors"},
)
THIRD_PARTY = {
    "models": {"torch", "torchvision"},
    "layers": {"torch", "torchvision"},
    "scratch": {"numpy", "safetensors"},
}


def list_imports(path, *, names=False):
    """List the modules that a file imports, without imports for types; with ``names``, the imported names too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_nodes = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in typing_nodes:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert all(alias.name != "*" for alias in node.names), f"{path}: import *"
            if node.module == "fukami" or names:
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            if node.module != "fukami":
                yield "." * node.level + (node.module or "")


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_import_only_from_lower_levels(path):
    level = {name: index for index, names in enumerate(LEVELS) for name in names}
    package = path.relative_to(ROOT).parts[0].removesuffix(".py")
    for module in list_imports(path):
        first, _, submodule = module.partition(".")
        if first == "fukami" and (other := submodule.partition(".")[0] or "__init__") != package:
            assert level[other] > level[package], f"{path.name} imports {module}"
            assert package != "models" or other == "layers", f"{path.name} imports {module}"
        elif first not in ("", "fukami", *sys.stdlib_module_names):
            assert first in THIRD_PARTY.get(package, {first}), f"{path.name} imports {module}"


def test_no_import_cycle():
    """Imports inside functions count as well."""
    modules = {".".join(("fukami", *path.relative_to(ROOT).with_suffix("").parts)): path for path in ROOT.rglob("*.py")}
    graph = {
        name: {other for other in list_imports(path, names=True) if other in modules} for name, path in modules.items()
    }
    graphlib.TopologicalSorter(graph).prepare()


def test_light_commands_import_no_heavy_packages():
    """``import fukami`` and ``fukami list`` import neither torch nor other slow packages."""
    code = """
import sys, fukami
assert not {"torch", "numpy", "tqdm", "tyro"} & set(sys.modules), "import fukami"
from fukami.cli.main import main
try:
    main(["list"])
except SystemExit as system_exit:
    assert system_exit.code == 0
heavy = {"torch", "torchvision", "sklearn", "scipy", "matplotlib", "PIL", "skimage"} & set(sys.modules)
assert not heavy, heavy
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert "deep-convnet" in result.stdout


def test_prediction_imports_what_its_model_needs():
    """Neither other models, nor plots, nor torch's compiler; a name that a model and its file share is the model's."""
    code = f"""
import sys
import fukami.models.deep_convnet
def list_models():
    return {{name.removeprefix("fukami.models.") for name in sys.modules if name.startswith("fukami.models.")}}
assert list_models() == {{"deep_convnet"}}, list_models()
assert fukami.models.deep_convnet.__name__ == "deep_convnet" and callable(fukami.models.deep_convnet)
from fukami.cli.main import main
try:
    main(["predict", "deep-convnet", {str(ROOT.parents[1] / "docs" / "digit.png")!r}, "--device", "cpu"])
except SystemExit as system_exit:
    assert system_exit.code == 0
heavy = {{"torch._dynamo", "torchvision", "matplotlib", "sklearn", "numba", "onnx"}} & set(sys.modules)
assert not heavy, heavy
assert list_models() == {{"deep_convnet"}}, list_models()
from fukami.models import resnet18
assert list_models() == {{"deep_convnet", "resnet"}}, list_models()
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert '"label": "5"' in result.stdout


@pytest.mark.slow
def test_no_module_creates_a_tensor_on_import():
    """A module may first be imported under ``torch.device("meta")``, where tensors have no values."""
    code = """
import importlib, pkgutil, torch, fukami
with torch.device("meta"):
    for module in pkgutil.walk_packages(fukami.__path__, "fukami."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


def test_no_chain_of_task_classes_is_deeper_than_three():
    for path in ROOT.rglob("*task.py"):
        importlib.import_module(f"fukami.{'.'.join(path.relative_to(ROOT).with_suffix('').parts)}")

    def measure_depth(cls):
        subclasses = [subclass for subclass in cls.__subclasses__() if subclass.__module__.startswith("fukami.")]
        return max((1 + measure_depth(subclass) for subclass in subclasses), default=0)

    from fukami import Task

    assert measure_depth(Task) == 3


def test_public_names():
    import fukami

    assert {*fukami.__all__} <= {*dir(fukami)}
    for name in fukami.__all__:
        assert getattr(fukami, name) is not None
    with pytest.raises(AttributeError, match="it has Data"):
        fukami.no_such_name  # noqa: B018

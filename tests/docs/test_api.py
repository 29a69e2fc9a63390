"""Tests of the pages of the Python API: all recipes, models, tasks and metrics are on them once, under valid names."""

import importlib
import inspect
import re
from collections import Counter
from pathlib import Path

import pytest

import fukami
from fukami import models
from fukami.catalogue import RECIPES
from fukami.engine.recipe import get_recipe

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "fukami"
PAGES = sorted((ROOT / "docs" / "reference" / "api").glob("*.md"))
DIRECTIVE = re.compile(r"^\.\. auto(module|class|exception|function):: ([\w.]+)(?:\(\))?((?:\n +\S.*)*)", re.MULTILINE)


def list_directives(path):
    """Yield the kind, the name and the options of each autodoc directive of a page; values are split at commas."""
    for kind, name, text in DIRECTIVE.findall(path.read_text(encoding="utf-8")):
        options = (part.partition(":") for part in re.split(r"\n +:", text)[1:])
        yield kind, name, {option: re.findall(r"\w+", value) for option, _, value in options}


def list_public_names(module):
    """List the names of the functions and classes that a module defines, which automodule documents with :members:."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
    ]


def list_documented_names(path):
    """List the names of the functions and classes on a page."""
    for kind, name, options in list_directives(path):
        if kind != "module":
            yield name
        elif "members" in options:
            members = options["members"] or list_public_names(importlib.import_module(name))
            yield from (f"{name}.{member}" for member in members if member not in options.get("exclude-members", ()))


def resolve_name(name):
    """Import an object by its name; a name that a model and its file share is the model's."""
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def import_file(path):
    return importlib.import_module(".".join(("fukami", *path.relative_to(PACKAGE).with_suffix("").parts)))


def list_subclasses(cls):
    for subclass in cls.__subclasses__():
        if subclass.__module__.startswith("fukami."):
            yield subclass
            yield from list_subclasses(subclass)


def list_recipes():
    return [get_recipe(name) for name in RECIPES]


def list_models():
    return [getattr(models, name) for name in models.__all__]


def list_tasks():
    for path in PACKAGE.rglob("*task.py"):
        import_file(path)
    return [*dict.fromkeys(list_subclasses(fukami.Task))]


def list_metrics():
    modules = map(import_file, sorted(PACKAGE.glob("*/metrics.py")))
    return [getattr(module, name) for module in modules for name in list_public_names(module)]


def list_top_level():
    return [getattr(fukami, name) for name in fukami.__all__]


@pytest.fixture(scope="module")
def documented():
    """Functions and classes on all pages, with the number of times that each is documented."""
    return Counter(resolve_name(name) for path in PAGES for name in list_documented_names(path))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_documented_names_exist(path):
    names = list(list_documented_names(path))
    assert names
    for name in names:
        assert callable(resolve_name(name)), name
    for kind, name, options in list_directives(path):
        if kind != "module":
            for member in options.get("members", ()):
                assert hasattr(resolve_name(name), member), f"{name}.{member}"


@pytest.mark.parametrize("list_objects", [list_recipes, list_models, list_tasks, list_metrics, list_top_level])
def test_public_objects_are_documented(documented, list_objects):
    objects = list_objects()
    assert len(objects) > 10
    assert [f"{value.__module__}.{value.__qualname__}" for value in objects if value not in documented] == []


def test_objects_are_documented_once(documented):
    repeated = [value for value, count in documented.items() if count > 1]
    assert repeated == []


def test_all_pages_are_in_the_table_of_contents():
    lines = (ROOT / "docs" / "reference" / "api" / "index.md").read_text(encoding="utf-8").splitlines()
    assert {path.stem for path in PAGES} - {"index"} <= set(lines)

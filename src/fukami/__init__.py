"""fukami: landmark models of deep vision behind one interface.

>>> import fukami
>>> recipe = fukami.get_recipe("deep-convnet")(data="mnist")
>>> fukami.train(recipe, "runs/first")
>>> fukami.load("runs/first").predict(["digit.png"])
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fukami.engine.checkpoint import load
    from fukami.engine.recipe import Data, Recipe, get_recipe, list_recipes
    from fukami.engine.task import Task
    from fukami.engine.train import train
    from fukami.errors import Error, UsageError

__all__ = ["Data", "Error", "Recipe", "Task", "UsageError", "get_recipe", "list_recipes", "load", "train"]

_MODULES = {
    "load": "engine.checkpoint",
    "Error": "errors",
    "UsageError": "errors",
    "train": "engine.train",
    "Data": "engine.recipe",
    "Recipe": "engine.recipe",
    "get_recipe": "engine.recipe",
    "list_recipes": "engine.recipe",
    "Task": "engine.task",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use: importing torch takes a second that ``fukami list`` should not wait for."""
    if name not in _MODULES:
        raise AttributeError(f"module 'fukami' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = globals()[name] = getattr(importlib.import_module(f"fukami.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

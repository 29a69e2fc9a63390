"""fukami: landmark models of deep vision behind one interface.

>>> import fukami
>>> run = fukami.train("deep-convnet", data="mnist", epochs=5)
>>> model = run.load()
>>> model.predict("digit.png")
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fukami.data.loader import Loader
    from fukami.engine.recipe import Data, Recipe, get_recipe, list_recipes
    from fukami.engine.run import Model, Run, load, train
    from fukami.engine.task import Task
    from fukami.errors import Error, UsageError

__all__ = [
    "Data",
    "Error",
    "Loader",
    "Model",
    "Recipe",
    "Run",
    "Task",
    "UsageError",
    "get_recipe",
    "list_recipes",
    "load",
    "train",
]

_MODULES = {
    "Data": "engine.recipe",
    "Error": "errors",
    "Loader": "data.loader",
    "Model": "engine.run",
    "Recipe": "engine.recipe",
    "Run": "engine.run",
    "Task": "engine.task",
    "UsageError": "errors",
    "get_recipe": "engine.recipe",
    "list_recipes": "engine.recipe",
    "load": "engine.run",
    "train": "engine.run",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use: importing torch takes a second that ``fukami list`` should not wait for."""
    if name not in _MODULES:
        raise AttributeError(f"module 'fukami' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = globals()[name] = getattr(importlib.import_module(f"fukami.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

"""fukami: every landmark of deep vision under one contract.

>>> import fukami
>>> recipe = fukami.find("deep-convnet")(dataset="mnist")
>>> fukami.train(recipe, "runs/first")
>>> fukami.load("runs/first").predict(["digit.png"])
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fukami.engine.checkpoint import load
    from fukami.engine.recipe import Data, Recipe, find, names
    from fukami.engine.task import Task
    from fukami.engine.train import train
    from fukami.errors import Error, UsageError

__all__ = ["Data", "Error", "Recipe", "Task", "UsageError", "find", "load", "names", "train"]

_HOME = {
    "load": "engine.checkpoint",
    "Error": "errors",
    "UsageError": "errors",
    "train": "engine.train",
    "Data": "engine.recipe",
    "Recipe": "engine.recipe",
    "find": "engine.recipe",
    "names": "engine.recipe",
    "Task": "engine.task",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: torch takes a second that ``fukami list`` should not wait for."""
    if name not in _HOME:
        raise AttributeError(f"module 'fukami' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = globals()[name] = getattr(importlib.import_module(f"fukami.{_HOME[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

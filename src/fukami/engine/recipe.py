"""Recipe and Data: an experiment, and what it learns from."""

import dataclasses
import hashlib
import importlib
import logging
import math
import os
import sys
import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self, cast

import tyro

from fukami.catalogue import RECIPES
from fukami.errors import Error, UsageError, build_unknown_error

if TYPE_CHECKING:
    from fukami.engine.task import Task

# What a word of the command line says of a field of this type.
FIELD_PARSERS: dict[type, Callable[[str], Any]] = {
    str: str,
    int: int,
    float: float,
    bool: {"true": True, "false": False}.__getitem__,
}

MAX_INPUT_SIZE, MAX_IMAGE_SIDE = (
    2048,
    4096,
)  # pixels of a square that a network sees, and of a side of an image that is not cut

logger = logging.getLogger(__name__)
_digests: dict[str, str] = {}  # SHA-256 of the content of recipe files that ran, by the name of their module

DataSpec = Annotated[str, tyro.conf.arg(metavar="SPEC")]  # a data set's name or path


@dataclass(frozen=True)
class Data:
    """What to learn from: batches to train on, batches to judge on, and what the answers are called."""

    train: Any
    val: Iterable[Any] = ()
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """An experiment: the fields are the knobs, the two methods are the structure."""

    paper: ClassVar[str] = ""
    year: ClassVar[int | None] = None
    family: ClassVar[str] = ""
    paper_result: ClassVar[str] = ""  # the paper's number
    reproduced_result: ClassVar[str] = ""  # ours; stands in benchmarks/results.csv

    seed: int = 0
    """Decides every random choice of the run."""

    def __init_subclass__(cls) -> None:
        """Numbers are those of one recipe: what is derived from it begins without."""
        super().__init_subclass__()
        cls.paper_result, cls.reproduced_result = (
            vars(cls).get(name, "") for name in ("paper_result", "reproduced_result")
        )

    def load_data(self) -> Data:
        """What to train on and to judge on; used by train and eval."""
        raise NotImplementedError(f"{type(self).__name__} does not define load_data()")

    def build_task(self, labels: tuple[str, ...]) -> "Task":
        """The task for answers of these names; used by train, eval, predict, serve and export."""
        raise NotImplementedError(f"{type(self).__name__} does not define build_task(labels)")

    def load_eval_data(self) -> Iterable[Any]:
        """What to judge on, the second half of :meth:`load_data`.

        A recipe that can spare itself the first half does so.
        """
        return self.load_data().val

    def initialize_task(self, task: "Task") -> None:
        """Bring the task of a new training, on its device already, to its first state; nothing by default."""

    def stages(self, folder: Path) -> "dict[str, Recipe]":
        """The recipes to train before this one, each in the folder of its name in ``folder``; none by default."""
        return {}

    def continue_from_stage(self, task: "Task", run: Path) -> None:
        """What :meth:`initialize_task` is after stages, the last of which left ``run``."""
        raise NotImplementedError(
            f"{type(self).__name__} has stages and does not define continue_from_stage(task, run)"
        )

    def with_data(self, data: str) -> Self:
        """This recipe judged on the data ``data``: its test part, or all of it where it has none and is new to the run.

        Raises:
            UsageError: the recipe makes its own data.
        """
        fields = {field.name for field in dataclasses.fields(self)}
        if "data" not in fields:
            raise UsageError(f"{get_recipe_name(type(self))} makes its own data and takes no --data")
        if is_same_dataset(data, getattr(self, "data")):  # noqa: B009  the base class has no such field
            return self
        changes: dict[str, Any] = {"data": data} | ({"holdout": 1.0} if "holdout" in fields else {})
        return dataclasses.replace(self, **changes)


def check_data(recipe: Recipe) -> None:
    """Name the local data that a run asks to read, and refuse data on the web.

    Raises:
        UsageError: the recipe's data set is a URL.
    """
    spec = str(getattr(recipe, "data", ""))
    if "://" in spec:
        raise UsageError(
            f"the run names data on the web, {spec[:200]}, which are fetched only when you name them yourself: give "
            "--data (--calibration of fukami export)"
        )
    if os.path.exists(spec):  # noqa: PTH110  Path.exists raises where a name is too long
        logger.warning(f"fukami: reading the data that the run names: {spec}")


def check_range(recipe: Recipe, min_value: float, max_value: float, *fields: str) -> None:
    """Refuse a recipe in which one of the fields is not between ``min_value`` and ``max_value``.

    Raises:
        UsageError: a field is not; it is named.
    """
    for name in fields:
        value = getattr(recipe, name)
        if not min_value <= value <= max_value:
            bounds = f"at least {min_value:g}" if max_value == math.inf else f"between {min_value:g} and {max_value:g}"
            raise UsageError(f"{name.replace('_', '-')} should be {bounds}, not {value:g}")


def parse_overrides(recipe: type[Recipe], overrides: Iterable[str]) -> dict[str, Any]:
    """Values of fields by name, from words such as ``beam_size=3``.

    Raises:
        UsageError: a word is not of this form, there is no such field, or the value is of another type.
    """
    hints = typing.get_type_hints(recipe)
    found: dict[str, Any] = {}
    for word in overrides:
        name, equals, value = word.partition("=")
        name = name.replace("-", "_")
        kind = hints.get(name)
        if name not in {field.name for field in dataclasses.fields(recipe)}:
            raise build_unknown_error(
                f"field of {get_recipe_name(recipe)}", name, {field.name for field in dataclasses.fields(recipe)}
            )
        literal = typing.get_origin(kind) is typing.Literal
        choices = {str(choice): choice for choice in typing.get_args(kind)} if literal else {}
        try:
            if not equals:
                raise ValueError
            found[name] = choices[value] if literal else FIELD_PARSERS[kind](value)  # type: ignore[index]
        except (ValueError, KeyError):
            expected = f"one of {', '.join(choices)}" if choices else getattr(kind, "__name__", str(kind))
            raise UsageError(f"{word}: expected {name}=VALUE, where the value is {expected}") from None
    return found


def is_same_dataset(one: str, other: str) -> bool:
    """Whether two specs are the same name or lead to the same file or folder."""
    return one == other or Path(one).resolve() == Path(other).resolve()


def list_recipes() -> list[str]:
    """Every recipe that ships with the package."""
    return list(RECIPES)


def get_recipe(name: str) -> type[Recipe]:
    """The recipe of that name, or the one that a file such as ``./my_recipe.py`` defines.

    Raises:
        UsageError: there is no such recipe.
        Error: the file cannot be run, or does not define exactly one recipe.
    """
    if name.endswith(".py"):
        return load_recipe_file(Path(name))
    if name not in RECIPES:
        raise build_unknown_error("recipe", name, RECIPES)
    module, _, class_name = RECIPES[name].partition(":")
    return cast(type[Recipe], getattr(importlib.import_module(f"fukami.{module}"), class_name))


def load_recipe_file(path: Path, sha256: str | None = None) -> type[Recipe]:
    """The recipe that a Python file defines; the file runs, unless a module of this process is it already.

    Args:
        path: of the file.
        sha256: hexadecimal digest that its content should have; checked before anything of it runs.

    Raises:
        UsageError: there is no such file, or its content has another digest.
        Error: the file cannot be run, or does not define exactly one recipe.
    """
    path = path.resolve()
    if not path.is_file():
        raise UsageError(f"there is no recipe file {path}; give the path of a Python file that defines a fukami.Recipe")
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if sha256 not in (None, digest):
        raise UsageError(
            f"{path} has the SHA-256 {digest}, but the run was trained with {sha256}: give the recipe file as it was"
        )
    for module in list(sys.modules.values()):
        if getattr(module, "__file__", None) == str(path) and _digests.get(module.__name__, digest) == digest:
            return _get_recipe_class(module, str(path))
    module = types.ModuleType(f"fukami_recipe:{path}:{digest}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses look their module up there
    try:
        exec(compile(content, path, "exec"), module.__dict__)
    except Exception as error:
        del sys.modules[module.__name__]
        raise Error(f"{path} failed while it was read: {type(error).__name__}: {error}") from error
    _digests[module.__name__] = digest
    return _get_recipe_class(module, str(path))


def _get_recipe_class(module: types.ModuleType, name: str) -> type[Recipe]:
    """The one recipe that a module defines."""
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Recipe) and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        defined = ", ".join(cls.__name__ for cls in found) or "none"
        raise Error(f"{name} should define one subclass of fukami.Recipe; it defines {defined}")
    return found[0]


def is_built_in(recipe: type[Recipe]) -> bool:
    """Whether the recipe comes with fukami."""
    return _get_import_path(recipe) in RECIPES.values()


def _get_import_path(recipe: type[Recipe]) -> str:
    """Where the class is defined, as the catalogue has it."""
    return f"{recipe.__module__.removeprefix('fukami.')}:{recipe.__qualname__}"


def get_recipe_name(recipe: type[Recipe]) -> str:
    """The name under which :func:`get_recipe` finds this recipe.

    ``deep-convnet``, or the path of a private recipe's file.
    """
    if is_built_in(recipe):
        return next(name for name, place in RECIPES.items() if place == _get_import_path(recipe))
    file = getattr(sys.modules[recipe.__module__], "__file__", None)  # a notebook has none
    return str(Path(file).resolve()) if file else recipe.__qualname__


def identify_recipe(recipe: type[Recipe]) -> dict[str, str | None]:
    """What ``recipe.json`` records of a recipe: its name; of a private one the name of its file and the SHA-256.

    The digest is None for a class that is defined in no file, as in a notebook.
    """
    name = get_recipe_name(recipe)
    if is_built_in(recipe):
        return {"recipe": name}
    digest = _digests.get(recipe.__module__)
    if digest is None and Path(name).is_file():
        digest = hashlib.sha256(Path(name).read_bytes()).hexdigest()
    return {"recipe": Path(name).name, "recipe_sha256": digest}


def build_train_command(recipe: Recipe) -> str:
    """The shell command that trains this recipe again: its name and the fields that differ from their defaults."""
    import shlex

    words = ["fukami", "train", get_recipe_name(type(recipe))]
    for field in dataclasses.fields(recipe):
        value = getattr(recipe, field.name)
        if value != field.default:
            flag = field.name.replace("_", "-")
            if isinstance(value, bool):
                words.append(f"--{flag}" if value else f"--no-{flag}")
            else:
                words += [f"--{flag}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    return shlex.join(words)


def build_recipe(recipe: type[Recipe], fields: dict[str, Any]) -> Recipe:
    """A recipe from the fields that JSON gave back: lists become tuples; names and types are checked.

    Raises:
        Error: a field is unknown, or its value is of another type or out of range.
    """
    hints = typing.get_type_hints(recipe)
    known = {field.name for field in dataclasses.fields(recipe)}
    values: dict[str, Any] = {}
    for name, value in fields.items():
        if name not in known:
            raise Error(
                f"{build_unknown_error(f'field of {get_recipe_name(recipe)}', name, known)}; another version of fukami "
                "wrote it?"
            )
        value = tuple(value) if isinstance(value, list) else value
        if not _matches_type(value, hints[name]):
            raise Error(
                f"the field {name!r} of {get_recipe_name(recipe)} should be of type {hints[name]}, not {value!r:.100}"
            )
        values[name] = value
    try:
        return recipe(**values)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise Error(f"{get_recipe_name(recipe)} cannot have these fields ({type(error).__name__}: {error})") from error


def _matches_type(value: Any, kind: Any) -> bool:
    """Whether a value from JSON is of the type of a field; of other types than those of JSON the recipe decides."""
    parts = typing.get_args(kind)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return any(_matches_type(value, part) for part in parts)
    if typing.get_origin(kind) is typing.Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if typing.get_origin(kind) is tuple:
        of = parts[:1] * len(value) if parts[1:] == (...,) and isinstance(value, tuple) else parts
        return isinstance(value, tuple) and len(value) == len(of) and all(map(_matches_type, value, of))
    if kind is float:
        return type(value) in (int, float)
    return type(value) is kind if kind in (int, str, bool, types.NoneType) else True

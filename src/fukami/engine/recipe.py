"""The base class of all recipes, and functions that find, build and check recipes."""

import dataclasses
import hashlib
import importlib
import logging
import math
import operator
import os
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar, cast

from fukami.catalogue import RECIPES
from fukami.data.parsing import exists
from fukami.errors import Error, UsageError, build_unknown_error, find_name

if TYPE_CHECKING:
    from fukami.engine.task import Task

# Parsers of --set values by the type of the field.
FIELD_PARSERS: dict[type, Callable[[str], object]] = {
    str: str,
    int: int,
    float: float,
    bool: {"true": True, "false": False}.__getitem__,
}

Base = TypeVar("Base")

MAX_RECIPE_BYTES = 64 << 20  # bytes of a recipe.json; one with a thousand classes has 30 kB
DATA_FIELDS = ("data", "images", "annotations", "content", "style")  # fields that name a dataset or images
MAX_INPUT_SIZE = 2048  # pixels, side of a square input
MAX_IMAGE_SIDE = 4096  # pixels, longer side of an input that is resized and not cropped

logger = logging.getLogger(__name__)
_digests: dict[str, str] = {}  # SHA-256 of the files that were executed, by the name of their module


@dataclass(frozen=True)
class Data:
    """Batches of each split, and the names of the classes.

    Attributes:
        train: training batches.
        val: validation batches, on which the training is evaluated and its best weights are chosen.
        labels: names of the classes.
        test: test batches, on which the best weights are evaluated once, at the end.
    """

    train: Any
    val: Iterable[Any] = ()
    labels: tuple[str, ...] = ()
    test: Iterable[Any] = ()

    @property
    def eval_split(self) -> str:
        """Name of the split of the final result: test, or val without test data."""
        return "test" if has_batches(self.test) else "val"

    @property
    def eval_batches(self) -> Iterable[Any]:
        """Batches of the final result."""
        return self.test if has_batches(self.test) else self.val


def has_batches(batches: Iterable[Any]) -> bool:
    """Return whether there are batches, or may be: an iterable without a length may have some."""
    try:
        return bool(batches)
    except TypeError:  # a DataLoader has a length only if its dataset has one
        return True


class FieldGroup:
    """Base of the frozen dataclasses of fields that several recipes share; they precede a recipe's other base class."""

    def __post_init__(self) -> None:
        """Check the fields; an override first calls ``super().__post_init__()``."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Recipe(FieldGroup):
    """An experiment: the fields are its options, ``load_data`` and ``build_task`` define its structure."""

    init_defaults: ClassVar[Mapping[str, object]] = {}  # other defaults of fields with initial weights (init)
    freeze_defaults: ClassVar[Mapping[str, object]] = {}  # the same if they are also frozen (freeze)

    seed: int = 0
    """Seed of all random number generators."""

    _file_digest: ClassVar[str | None] = None  # SHA-256 of the imported file that defines the class

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls._file_digest = _record_digest(cls)
        if "__repr__" not in vars(cls):  # the decorator would add one that lists all fields
            cls.__repr__ = Recipe.__repr__  # type: ignore[method-assign]

    def __new__(cls, **fields: object) -> Self:
        """Create the recipe.

        Raises:
            UsageError: as for :func:`parse_fields`.
        """
        parse_fields(cls, fields)
        recipe = super().__new__(cls)
        object.__setattr__(recipe, "_specified_names", frozenset(fields))
        return recipe

    def __post_init__(self) -> None:
        """Check the seed, and set the defaults that depend on other fields."""
        super().__post_init__()
        specified = vars(self).pop("_specified_names")
        hints = typing.get_type_hints(type(self))
        for name, value in parse_fields(type(self), {name: getattr(self, name) for name in specified}).items():
            if not isinstance(getattr(self, name), list) or typing.get_origin(hints[name]) is tuple:
                object.__setattr__(self, name, value)  # such as a tuple instead of a list
        check_range(self, 0, math.inf, "seed")
        for name, value in self.get_conditional_defaults().items():
            if name not in specified:
                object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        changed = ", ".join(f"{name}={value!r}" for name, value in get_changed_fields(self).items())
        return f"{type(self).__name__}({changed})"

    def get_conditional_defaults(self) -> Mapping[str, object]:
        """Return the defaults of fields that depend on other fields: those for training from initial weights."""
        fields = vars(self)
        if not fields.get("init"):
            return {}
        return self.freeze_defaults if fields.get("freeze") else self.init_defaults

    def load_data(self) -> Data:
        """Return the training and evaluation data; used by train and eval."""
        raise NotImplementedError(f"{type(self).__name__} does not define load_data()")

    def build_task(self, labels: tuple[str, ...]) -> "Task":
        """Build the task for these class names; used by train, eval, predict, serve and export."""
        raise NotImplementedError(f"{type(self).__name__} does not define build_task(labels)")

    def load_eval_data(self) -> Data:
        """Return the data without the training batches; a recipe that can load the others alone overrides it.

        Only the batches of the final result, ``eval_batches``, are needed.
        """
        return dataclasses.replace(self.load_data(), train=())

    def get_stored_fields(self) -> dict[str, Any]:
        """Return the fields as ``recipe.json`` contains them."""
        return dataclasses.asdict(self)

    def check_stored_fields(self) -> None:
        """Check the fields of a run, which may come from anybody; the default does nothing.

        Raises:
            Error: a field would read or execute what only a user may specify.
        """

    def check_overrides(self, overrides: Mapping[str, Any]) -> None:
        """Check the new values of fields that a user specifies for a run of this recipe; the default does nothing.

        Raises:
            UsageError: a value does not fit the run.
        """

    def get_code_fields(self) -> Mapping[str, Any]:
        """Return the fields that name files of code, which are specified again to load a run; none by default."""
        return {}

    def initialize_task(self, task: Any) -> None:  # an override declares the class of its task
        """Initialize the task of a new run, on its device; the default does nothing."""

    def stages(self, folder: Path) -> "dict[str, Recipe]":
        """Return the recipes to train first, each in the subfolder of ``folder`` that has its name; none by default."""
        return {}

    def continue_from_stage(self, task: Any, run: Path) -> None:
        """Initialize the task from the last stage's ``run``, instead of :meth:`initialize_task`."""
        raise NotImplementedError(
            f"{type(self).__name__} has stages and does not define continue_from_stage(task, run)"
        )

    def with_data(self, data: str, labels: tuple[str, ...] = ()) -> Self:
        """Return this recipe with another dataset to evaluate on.

        The evaluation uses the dataset's test split, or all of it if it has none and the run was not trained on it.

        Args:
            data: name or path of the dataset.
            labels: labels of the run, which a recipe may need to read other data.

        Raises:
            UsageError: the recipe generates its own data.
        """
        values = dataclasses.asdict(self)
        if "data" not in values:
            raise UsageError(f"{get_recipe_name(type(self))} generates its own data and does not take --data")
        if not values.get("annotations") and is_same_dataset(data, values["data"]):
            return self
        changes: dict[str, Any] = {"data": data, "images": "", "annotations": "", "val_fraction": 1.0}
        return dataclasses.replace(self, **{name: value for name, value in changes.items() if name in values})


def get_field_names(recipe: type[Recipe]) -> set[str]:
    """Return the names of the fields that a recipe is created from."""
    return {field.name for field in dataclasses.fields(recipe) if field.init}


def get_changed_fields(recipe: Recipe) -> dict[str, object]:
    """Return the values of the fields that differ from their defaults, by name."""
    fields = list(filter(operator.attrgetter("init"), dataclasses.fields(recipe)))
    defaults = {
        field.name: field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        for field in fields
    }
    defaults |= recipe.get_conditional_defaults()
    values = {field.name: getattr(recipe, field.name) for field in fields}
    return {name: value for name, value in values.items() if value != defaults[name]}


def build_field_error(recipe: type[Recipe], name: str) -> UsageError:
    """Build the error for an unknown field of a recipe."""
    return build_unknown_error(f"field of {get_recipe_name(recipe)}", name, get_field_names(recipe))


def check_data(recipe: Recipe) -> None:
    """Check that a run's dataset needs no download, and log its path if it is local.

    Raises:
        UsageError: the recipe's dataset is a URL, or a built-in dataset that is not on this machine.
    """
    from fukami.data import sources

    values = [getattr(recipe, name, "") for name in DATA_FIELDS]
    specs = [str(spec) for value in values for spec in (value if isinstance(value, tuple) else (value,))]
    for spec in specs:
        if "://" in spec:
            raise UsageError(
                f"the run names a dataset on the web, {spec[:200]}, which is downloaded only if you name it yourself: "
                "use --data (fukami export: --calibration)"
            )
        if sources.needs_download(spec):
            raise UsageError(
                f"the run names the dataset {spec}, which is not on this machine and is downloaded only if you name it "
                f"yourself: use --data {spec} (fukami export: --calibration {spec}), or download it first: fukami show "
                f"{spec}"
            )
    for spec in filter(os.path.exists, specs):  # Path.exists raises where a name is too long
        logger.warning(f"fukami: reading the dataset that the run names: {spec}")


def check_range(recipe: FieldGroup, min_value: float, max_value: float, *fields: str) -> None:
    """Check that fields of a recipe are between ``min_value`` and ``max_value``.

    Raises:
        UsageError: a field is out of range; the message names it.
    """
    for name in fields:
        value = getattr(recipe, name)
        if not min_value <= value <= max_value:
            bounds = f"at least {min_value:g}" if max_value == math.inf else f"between {min_value:g} and {max_value:g}"
            raise UsageError(f"{name.replace('_', '-')} should be {bounds}, not {value:g}")


def parse_overrides(recipe: type[Recipe], overrides: Iterable[str]) -> dict[str, Any]:
    """Parse overrides such as ``beam_size=3`` into values by field name.

    Raises:
        UsageError: an override has another form, the recipe has no such field, or the value has another type.
    """
    hints = typing.get_type_hints(recipe)
    values: dict[str, Any] = {}
    for override in overrides:
        name, equals, value = override.partition("=")
        name = name.replace("-", "_")
        if name not in get_field_names(recipe):
            raise build_field_error(recipe, name)
        kind = hints[name]
        if typing.get_origin(kind) in (types.UnionType, typing.Union):  # a type or None
            kind, _ = typing.get_args(kind)
        literal = typing.get_origin(kind) is typing.Literal
        choices = {str(choice): choice for choice in typing.get_args(kind)} if literal else {}
        try:
            if not equals:
                raise ValueError
            if typing.get_origin(kind) is tuple:
                values[name] = tuple(map(FIELD_PARSERS[typing.get_args(kind)[0]], value.split(",")))
            else:
                values[name] = choices[value] if literal else FIELD_PARSERS[kind](value)
        except (ValueError, KeyError):
            expected = f"one of {', '.join(choices)}" if choices else getattr(kind, "__name__", str(kind))
            raise UsageError(f"{override}: expected {name}=VALUE, where VALUE is {expected}") from None
    return values


def is_same_dataset(one: str, other: str) -> bool:
    """Return whether two dataset names are equal or refer to the same file or folder."""
    return one == other or (exists(Path(one)) and exists(Path(other)) and Path(one).resolve() == Path(other).resolve())


def list_recipes() -> list[str]:
    """Return the names of all built-in recipes."""
    return list(RECIPES)


def get_recipe(name: str) -> type[Recipe]:
    """Return the recipe of a name, or the one that a file such as ``./my_recipe.py`` defines.

    Case, hyphens and underscores of the name are ignored: ``ResNet-18`` is ``resnet18``.

    Raises:
        UsageError: there is no such recipe.
        Error: the file fails, or does not define exactly one recipe.
    """
    return load_recipe_file(Path(name)) if name.endswith(".py") else get_built_in_recipe(name)


def get_built_in_recipe(name: str) -> type[Recipe]:
    """Return a built-in recipe; unlike :func:`get_recipe` it executes no file, whatever ``name`` is.

    Raises:
        UsageError: there is no such recipe.
    """
    known_name = find_name(name, RECIPES)
    if known_name is None:
        raise build_unknown_error("recipe", name, RECIPES)
    module, _, class_name = RECIPES[known_name].location.partition(":")
    return cast(type[Recipe], getattr(importlib.import_module(f"fukami.{module}"), class_name))


def load_recipe_file(path: Path, sha256: str | None = None) -> type[Recipe]:
    """Return the recipe that a Python file defines; see :func:`load_class`."""
    return load_class(path, Recipe, "fukami.Recipe", sha256)


def load_class(path: Path, base: type[Base], base_name: str, sha256: str | None = None) -> type[Base]:
    """Return the subclass that a Python file defines; executes the file unless this process already did.

    Args:
        path: Python file.
        base: class whose only subclass in the file is returned.
        base_name: name that users import the class by, for errors.
        sha256: expected hexadecimal digest of the file; checked before anything is executed.

    Raises:
        UsageError: there is no such file, or it has another digest.
        Error: the file fails, or does not define exactly one subclass.
    """
    path, kind = path.resolve(), base.__name__.lower()
    if not path.is_file():
        raise UsageError(
            f"there is no {kind} file {path}; specify the path of a Python file that defines a {base_name}"
        )
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if sha256 not in (None, digest):
        raise UsageError(
            f"{path} has SHA-256 {digest}, but the run was trained with {sha256}; use the unchanged {kind} file"
        )
    for module in list(sys.modules.values()):
        if getattr(module, "__file__", None) == str(path) and _digests.get(module.__name__, digest) == digest:
            return _get_subclass(module, base, base_name)
    module = types.ModuleType(f"fukami_file:{path}:{digest}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses look up their module there
    try:
        exec(compile(content, path, "exec"), module.__dict__)
    except BaseException as error:
        del sys.modules[module.__name__]
        if isinstance(error, Exception):
            raise Error(f"{path} failed: {type(error).__name__}: {error}") from error
        raise
    _digests[module.__name__] = digest
    return _get_subclass(module, base, base_name)


def _record_digest(recipe: type[FieldGroup]) -> str | None:
    """Record and return the digest of the file that defines a custom recipe, which may be edited later."""
    if recipe.__module__.startswith("fukami"):
        return None
    file = getattr(sys.modules.get(recipe.__module__), "__file__", None)
    if not file or not Path(file).is_file():
        return None
    digest = _digests[recipe.__module__] = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    return digest


def _get_subclass(module: types.ModuleType, base: type[Base], base_name: str) -> type[Base]:
    """Return the only subclass of a class that a module defines."""
    classes = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, base) and value.__module__ == module.__name__
    ]
    if len(classes) != 1:
        defined = ", ".join(cls.__name__ for cls in classes) or "none"
        raise Error(f"{module.__file__} should define one subclass of {base_name}; it defines {defined}")
    return classes[0]


def is_built_in(recipe: type[FieldGroup]) -> bool:
    """Return whether the recipe is built in."""
    return any(entry.location == _get_location(recipe) for entry in RECIPES.values())


def _get_location(recipe: type[FieldGroup]) -> str:
    """Return where the class is defined, in the form of the catalogue."""
    return f"{recipe.__module__.removeprefix('fukami.')}:{recipe.__qualname__}"


def get_recipe_name(recipe: type[FieldGroup]) -> str:
    """Return the name for :func:`get_recipe`: ``deep-convnet``, or the path of a custom recipe's file."""
    if is_built_in(recipe):
        return next(name for name, entry in RECIPES.items() if entry.location == _get_location(recipe))
    file = getattr(sys.modules[recipe.__module__], "__file__", None)  # a notebook has none
    return str(Path(file).resolve()) if file else recipe.__qualname__


def get_network_name(recipe: type[FieldGroup]) -> str:
    """Return the name of the function in :mod:`fukami.models` that builds the network of a recipe.

    It is the name of the built-in recipe that the recipe is or extends, with underscores.
    """
    built_in = next((cls for cls in recipe.__mro__ if is_built_in(cls)), recipe)
    return get_recipe_name(built_in).replace("-", "_")


def identify_recipe(recipe: type[Recipe]) -> dict[str, str | None]:
    """Return the record of a recipe in ``recipe.json``: its name, and for a custom recipe the file name and SHA-256.

    The digest is None for a class that was not defined in a file, for example in a notebook.
    """
    name = get_recipe_name(recipe)
    if is_built_in(recipe):
        return {"recipe": name}
    digest = recipe._file_digest or _digests.get(recipe.__module__)
    if digest is None and Path(name).is_file():
        digest = hashlib.sha256(Path(name).read_bytes()).hexdigest()
    return {"recipe": Path(name).name, "recipe_sha256": digest}


def build_train_command(recipe: Recipe) -> str:
    """Return the shell command that trains this recipe: its name and the fields that differ from their defaults."""
    import shlex

    arguments = ["fukami", "train", get_recipe_name(type(recipe))]
    for name, value in get_changed_fields(recipe).items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            arguments += [f"--{flag}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    return shlex.join(arguments)


def build_resume_command(recipe: Recipe, folder: Path) -> str:
    """Return the shell command that resumes the run of this recipe in a folder.

    It has the number of processes, unless torchrun started those of several machines.
    """
    import shlex

    count = os.environ.get("WORLD_SIZE", "1")
    processes = f" --processes {count}" if count != "1" and os.environ.get("LOCAL_WORLD_SIZE") == count else ""
    return f"{build_train_command(recipe)} --out {shlex.quote(str(folder))} --resume{processes}"


def build_recipe(recipe: type[Recipe], fields: Mapping[str, object]) -> Recipe:
    """Build a recipe from the fields of a ``recipe.json``; names and types are checked.

    Raises:
        Error: a field is unknown, or its value has another type or is out of range.
    """
    try:
        values = parse_fields(recipe, fields)
    except UsageError as error:
        raise Error(str(error)) from error
    try:
        return recipe(**values)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise Error(f"{get_recipe_name(recipe)} cannot have these fields ({type(error).__name__}: {error})") from error


def parse_fields(recipe: type[Recipe], fields: Mapping[str, object]) -> dict[str, Any]:
    """Check names and types of a recipe's fields, and convert lists to tuples, paths to strings and NumPy's numbers.

    Raises:
        UsageError: a field is unknown, or its value has another type.
    """
    hints = typing.get_type_hints(recipe)
    values: dict[str, Any] = {}
    for name, value in fields.items():
        if name not in get_field_names(recipe):
            raise build_field_error(recipe, name)
        if isinstance(value, list | tuple):
            value = tuple(map(_convert_value, value))
        value = _convert_value(value)
        if not _matches_type(value, hints[name]):
            kind = hints[name].__name__ if isinstance(hints[name], type) else hints[name]
            raise UsageError(
                f"the field {name!r} of {get_recipe_name(recipe)} should be of type {kind}, not {value!r:.100}"
            )
        values[name] = value
    return values


def _convert_value(value: object) -> object:
    """Convert a path to a string, and a NumPy number to a Python number."""
    import numpy as np

    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.item() if isinstance(value, np.generic) else value


def _matches_type(value: object, kind: object) -> bool:
    """Return whether a JSON value has the type of a field; types that JSON does not have are left to the recipe."""
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

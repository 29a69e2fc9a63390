"""Sphinx extension for the reference of the command line: every option comes from the definitions of ``fukami.cli``.

In the pages,

    ```{command} NAME           the options of a command
    ```{recipes} TASK           the recipes of a task with their options

are replaced before they are parsed.
"""

import contextlib
import dataclasses
import inspect
import re
import typing
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple
from unittest import mock

import tyro

from fukami.catalogue import RECIPES
from fukami.cli.arguments import describe_argument, parse_helps
from fukami.cli.main import find_command
from fukami.engine.recipe import get_recipe

DIRECTIVE = re.compile(r"^```\{(command|recipes)\} (\S+)\n```$", re.MULTILINE)
CONDITIONAL_DEFAULT = re.compile(r" Default with --\w+: [^ ]*\.(?= |$)")
RECIPE_COMMANDS = ("train", "find-lr")
EXAMPLE_RECIPE = "deep-convnet"  # of these commands; its fields are omitted from their options
MISSING = (inspect.Parameter.empty, dataclasses.MISSING, None, "", ())
POSITIONAL = typing.get_args(tyro.conf.Positional[str])[1]


class Option(NamedTuple):
    """Option or positional argument of a command."""

    name: str
    value: str
    help: str
    default: str

    def format(self) -> str:
        """Format the option as an entry of a definition list."""
        default = f" Default: `{self.default}`." if self.default else ""
        return f"`{f'{self.name} {self.value}'.strip()}`\n: {self.help}{default}\n"

    def format_default(self) -> str:
        """Format the defaults alone."""
        conditional = (
            "".join(CONDITIONAL_DEFAULT.findall(self.help)).replace(" Default with", ", with").replace(".,", ",")
        )
        return f"`{self.name} {self.default}`{conditional.rstrip('.')}"


class HelpRequestedError(Exception):
    """Ends a command when its arguments would be parsed."""


def get_definition(command: str, *arguments: str) -> tuple[Any, str]:
    """Return the function or the dataclass that defines the arguments of a command, and its description."""
    with mock.patch("tyro.cli", side_effect=HelpRequestedError) as cli, contextlib.suppress(HelpRequestedError):
        find_command(command)([*arguments, "--help"])
    return cli.call_args.args[0], cli.call_args.kwargs["description"]


def list_arguments(definition: Any) -> Iterator[tuple[str, Any, object]]:
    """Yield the name, the annotated type and the default of each argument; those of a dataclass are its fields."""
    if dataclasses.is_dataclass(definition):
        hints, helps = typing.get_type_hints(definition, include_extras=True), parse_helps(definition)
        hints |= {name: describe_argument(name, hints[name], help) for name, help in helps.items() if help}
        found = [(field.name, hints[field.name], field.default) for field in dataclasses.fields(definition)]
    else:
        parameters = inspect.signature(definition).parameters
        found = [(name, definition.__annotations__[name], value.default) for name, value in parameters.items()]
    for name, kind, default in found:
        inner = typing.get_args(kind)[0]
        if dataclasses.is_dataclass(inner):
            yield from list_arguments(inner)
        else:
            yield name, kind, default


def build_option(name: str, kind: Any, default: object) -> Option:
    """Build an option from the annotated type of an argument."""
    kind, *markers = typing.get_args(kind)
    (text,) = (marker for marker in markers if marker is not POSITIONAL)
    choices = [str(choice) for part in (kind, *typing.get_args(kind)) if typing.get_origin(part) is typing.Literal
               for choice in typing.get_args(part)]  # fmt: skip
    (inner, *_) = typing.get_args(kind) or (kind,)
    value = "|".join(choices) or text.metavar or f"{inner.__name__.upper()}{' ...' * (inner is not kind)}"
    words = default if isinstance(default, tuple) else (default,)
    flag = f"--{'no-' if default is True else ''}{name.replace('_', '-')}"
    return Option(
        "" if POSITIONAL in markers else flag,
        "" if kind is bool else value,
        text.help or "",
        "" if default in MISSING or default is False else " ".join(map(str, words)).replace("True", "on"),
    )


def format_description(text: str) -> str:
    """Format the text above the options of a command; its example becomes a code block."""
    return re.sub(r"^example: (.*(?:\n  .*)*)$", lambda match: f"```bash\n{' '.join(match[1].split())}\n```", text,
                  flags=re.MULTILINE)  # fmt: skip


def build_command(name: str) -> str:
    """Build the options of a command."""
    definition, _ = get_definition(name, *[EXAMPLE_RECIPE] * (name in RECIPE_COMMANDS))
    options = {argument: build_option(argument, *rest) for argument, *rest in list_arguments(definition)}
    if name in RECIPE_COMMANDS:
        for field in dataclasses.fields(get_recipe(EXAMPLE_RECIPE)):
            options.pop(field.name, None)
    return "\n".join(option.format() for option in options.values())


@cache
def read_options(recipe: str) -> dict[str, Option]:
    """Read the fields of a recipe as options."""
    definition, _ = get_definition("train", recipe)
    names = {field.name for field in dataclasses.fields(get_recipe(recipe))}
    return {name: build_option(name, *rest) for name, *rest in list_arguments(definition) if name in names}


def build_recipes(task: str) -> str:
    """Build the common options of the recipes of a task, and the defaults and further options of each recipe."""
    recipes = {name: read_options(name) for name, entry in RECIPES.items() if entry.task == task}
    first, *others = recipes.values()
    common = [name for name in first if all(name in options for options in others)] if others else []
    differing = {name for name in common if len({options[name] for options in recipes.values()}) > 1}
    lines = ["### Common options\n"] * bool(common)
    for name in common:
        option = first[name]
        if name in differing:
            option = option._replace(help=CONDITIONAL_DEFAULT.sub("", option.help), default="")
        lines.append(option.format())
    for recipe, options in recipes.items():
        lines.append(f"### `{recipe}`\n\n{format_description(get_definition('train', recipe)[1])}\n")
        defaults = [options[name].format_default() for name in common if name in differing and options[name].default]
        lines += [f"Defaults: {'; '.join(defaults)}.\n"] * bool(defaults)
        lines += [option.format() for name, option in options.items() if name not in common]
    return "\n".join(lines)


def setup(app: Any) -> dict[str, bool]:
    """Connect the extension to Sphinx."""
    builders = {"command": build_command, "recipes": build_recipes}

    def replace(app: Any, name: str, source: list[str]) -> None:
        source[0] = DIRECTIVE.sub(lambda match: builders[match[1]](match[2]), source[0])

    app.connect("source-read", replace)
    return {"parallel_read_safe": True}

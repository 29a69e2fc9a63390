"""Parse the arguments of the commands, format their help, and group the flags of a recipe."""

import dataclasses
import inspect
import operator
import shutil
import textwrap
import types
import typing
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, TypeVar

from fukami.cli.argument_checks import Argument, build_argument, order_words
from fukami.errors import UsageError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from fukami.engine.recipe import Recipe

Result = TypeVar("Result")
Options = TypeVar("Options", bound="DataclassInstance")
Flag = tuple[str, object] | tuple[str, object, object]  # name, annotated type and default
# Fields of recipes by the group in which --help lists them; every other field is listed under "model".
GROUPS = {
    "data": """
        data images annotations val_fraction memory_limit max_unreadable cache_limit convention ignore_index
        tokenizer min_word_count content style env num_envs frame_stack clip_rewards
        game komi positions num_games random_opening_moves test_names
    """,
    "model": "",
    "optimization": """
        epochs steps iterations batch_size accumulate activation_checkpointing optimizer lr lr_scaling momentum
        weight_decay schedule drop_factor warmup clip_norm cycles label_smoothing ema_decay balance freeze
        frozen_stages layer_lr_decay backbone_lr_factor stage_lr_factor training finetune_epochs quantize stable
        regions_per_image svm_cost svm_iou box_ridge box_iou
        gamma double buffer_size learning_starts train_frequency target_update_interval exploration_fraction
        epsilon_start epsilon_end
        strength style_weights tv_weight levels
        samples_per_position window_fraction td_lambda gating_games value_weight value_positions
        self_play_simulations full_search_fraction fast_simulations temperature_moves dirichlet_alpha
    """,
    "augmentation": "augment crop_size",
    "run": """
        simulations seed eval_every eval_samples eval_features eval_episodes eval_epsilon eval_opponent eval_games
        gnugo_level
    """,
}


def run_cli(function: Callable[..., Result], arguments: Sequence[str], prog: str) -> Result:
    """Call a function with the parsed arguments; its signature defines them and its docstring describes them."""
    import tyro

    helps, kinds = parse_helps(function), typing.get_type_hints(function, include_extras=True)
    kinds.pop("return", None)
    words = order_words(arguments, _list_parameters(function, kinds), prog)
    function.__annotations__ |= {name: describe_argument(name, kind, helps.get(name)) for name, kind in kinds.items()}
    description = _wrap((inspect.getdoc(function) or "").partition("Args:\n")[0].split("\n\n"))
    return tyro.cli(function, args=words, prog=prog, description=description, config=(tyro.conf.OmitArgPrefixes,))


def parse_recipe_arguments(
    recipe: "type[Recipe]",
    options: type[Options],
    arguments: Sequence[str],
    prog: str,
    default: "Recipe | None" = None,
) -> "tuple[Recipe, Options]":
    """Parse the arguments of a command that takes a recipe: build the recipe and the command's own options.

    Args:
        recipe: class of the recipe; its fields are flags, in groups.
        options: dataclass of the other flags, which are listed last in the group "run".
        arguments: words of the command line.
        prog: name of the command in the help.
        default: recipe whose fields are the defaults; without it those of the class.
    """
    import tyro

    placement = {name: group for group, names in GROUPS.items() for name in names.split()}
    groups: dict[str, list[Flag]] = {group: [] for group in GROUPS}
    defaults: dict[str, object] = {}
    for cls, instance in ((recipe, default), (options, None)):
        hints = typing.get_type_hints(cls, include_extras=True)
        bases = [base for base in reversed(cls.__mro__) if dataclasses.is_dataclass(base)]
        helps = {name: text for base in bases for name, text in parse_helps(base).items()}
        for field in filter(operator.attrgetter("init"), dataclasses.fields(cls)):
            value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            defaults[field.name] = value = value if instance is None else getattr(instance, field.name)
            group = "run" if cls is options else placement.get(field.name, "model")
            help = helps.get(field.name, "") + _format_conditional_defaults(recipe, field.name)
            groups[group].append(_build_flag(field.name, hints[field.name], help or None, value))
    known = [build_argument(name, kind, not default) for flags in groups.values() for name, kind, *default in flags]
    kinds = {
        group: dataclasses.make_dataclass(group, flags, frozen=True, kw_only=True)
        for group, flags in groups.items()
        if flags
    }
    words = order_words(arguments, known, prog)
    parsed: object = tyro.cli(
        dataclasses.make_dataclass(
            "Options", [(group, describe_argument(group, kind, "")) for group, kind in kinds.items()]
        ),
        args=words,
        prog=prog,
        description=build_description(recipe),
        config=(tyro.conf.OmitArgPrefixes,),
    )
    values = {name: value for group in kinds for name, value in vars(getattr(parsed, group)).items()}
    option_values = {field.name: values.pop(field.name) for field in dataclasses.fields(options)}
    flags = {word.partition("=")[0].replace("_", "-") for word in words}
    if "--data" in flags and values.get("annotations"):
        raise UsageError("--images and --annotations replace --data; omit one of them")
    if default is None:  # the recipe sets the other defaults, some of which depend on fields
        values = {name: v for name, v in values.items() if v != defaults[name] or flags & _list_flags(name)}
    return recipe(**values), options(**option_values)


def _list_flags(name: str) -> set[str]:
    """List the flags of a field."""
    flag = name.replace("_", "-")
    return {f"--{flag}", f"--no-{flag}"}


def _format_conditional_defaults(recipe: "type[Recipe]", name: str) -> str:
    """Format the other defaults of a field for the help, such as ``Default with --init: 0.001.``"""
    cases = {"init": recipe.init_defaults, "freeze": recipe.freeze_defaults}
    return "".join(f" Default with --{case}: {defaults[name]}." for case, defaults in cases.items() if name in defaults)


def build_description(recipe: "type[Recipe]") -> str:
    """Build the text above a recipe's flags: the example of its docstring first, then what precedes it there.

    The signature that :mod:`dataclasses` writes in place of a missing docstring is not shown.
    """
    docstring = inspect.getdoc(recipe) or ""
    docstring = "" if docstring.startswith(f"{recipe.__name__}(") else docstring
    text, _, example = docstring.partition("Example:\n")
    return _wrap([f"example: {example}" if example else "", *text.split("\n\n")])


def _wrap(paragraphs: Sequence[str]) -> str:
    """Wrap paragraphs at the width of the terminal, which tyro does only within its boxes.

    Continuation lines are indented, since tyro would join them otherwise.
    """
    width = shutil.get_terminal_size().columns
    lines = [" ".join(paragraph.split()) for paragraph in paragraphs]
    return "\n\n".join(
        textwrap.fill(line, width, subsequent_indent="  ", break_on_hyphens=False) for line in lines if line
    )


def _list_parameters(function: Callable[..., object], kinds: dict[str, object]) -> list[Argument]:
    """List the arguments that a function's parameters define; those of a dataclass are its fields."""
    arguments = []
    for name, parameter in inspect.signature(function).parameters.items():
        kind = kinds[name]
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            hints = typing.get_type_hints(kind, include_extras=True)
            arguments += [build_argument(field.name, hints[field.name], False) for field in dataclasses.fields(kind)]
        else:
            arguments.append(build_argument(name, kind, parameter.default is parameter.empty))
    return arguments


def parse_helps(source: object) -> dict[str, str]:
    """Parse the descriptions of a function's arguments or of a dataclass's fields, each as one paragraph."""
    import docstring_parser

    parsed = (
        docstring_parser.parse(inspect.getdoc(source) or "")
        if inspect.isfunction(source)
        else docstring_parser.parse_from_object(source)
    )
    return {entry.arg_name: " ".join((entry.description or "").split()) for entry in parsed.params}


def describe_argument(name: str, kind: object, help: str | None) -> object:
    """Annotate the type of an argument with its help text and with the placeholder of its value."""
    import tyro

    return Annotated[
        kind, tyro.conf.arg(help=help, metavar=_build_metavar(name, kind), help_behavior_hint=_format_default)
    ]


def _build_flag(name: str, kind: object, help: str | None, default: object) -> Flag:
    """Build a field for :func:`dataclasses.make_dataclass` from an argument; it is required without a default."""
    described = describe_argument(name, kind, help)
    return (name, described) if default is dataclasses.MISSING else (name, described, default)


def _build_metavar(name: str, kind: object) -> str | None:
    """Build the placeholder of a value: FLOAT, PATH, VALUE ...; None leaves the choices of a Literal to tyro."""
    positional = typing.get_origin(kind) is Annotated
    kind = typing.get_args(kind)[0] if positional else kind
    options = [part for part in typing.get_args(kind) if part is not types.NoneType]
    if isinstance(kind, types.UnionType) and len(options) == 1 and not positional:
        return _build_metavar(name, options[0]) or options[0].__name__.upper()
    if typing.get_origin(kind) is tuple and typing.get_args(kind)[-1] is ...:
        return f"{name.upper() if positional else typing.get_args(kind)[0].__name__.upper()} ..."
    if positional:
        return name.upper()
    if name == "data":
        return "DATA"
    return None


def _format_default(default: str) -> str:
    """Format a default value for the help; empty ones are not shown."""
    return "" if default in ("", "''", "None") else f"(default: {default})"

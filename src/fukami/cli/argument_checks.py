"""Check the words of a command line before they are parsed, and move the options behind the files."""

import difflib
import types
import typing
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fukami.errors import UsageError

SIZE_SYNONYMS = "imgsz img-size image-size input-size imsize resolution"
# Names that other tools have for an option, by the option.
SYNONYMS = {
    "lr": "learning-rate lr0 base-lr initial-lr eta",
    "size": f"{SIZE_SYNONYMS} min-size",
    "min-size": f"{SIZE_SYNONYMS} size short-side",
    "batch-size": "batch bs b train-batch-size per-device-train-batch-size",
    "epochs": "n-epochs num-train-epochs max-epochs",
    "steps": "max-steps max-iter iters total-timesteps",
    "data": "dataset root train-dir input images",
    "out": "output save-dir log-dir work-dir project dest o",
    "init": "weights pretrained checkpoint ckpt load model",
    "device": "gpu gpus cuda accelerator",
    "precision": "dtype amp half fp16 bf16 mixed-precision",
    "seed": "random-state manual-seed",
    "resume": "continue",
    "weight-decay": "wd decay l2",
    "schedule": "scheduler lr-scheduler lr-decay cos-lr",
    "accumulate": "grad-accum gradient-accumulation-steps accum-iter",
    "activation-checkpointing": "gradient-checkpointing remat",
    "clip-norm": "max-grad-norm grad-clip gradient-clip-val",
    "augment": "transforms aug",
    "freeze": "linear-probe",
    "val-fraction": "val-split validation-split",
    "patience": "early-stopping",
    "eval-every": "val-interval val-freq validate-every",
    "processes": "nproc nproc-per-node num-gpus",
    "views": "tta",
    "to": "format",
    "frame-interval": "vid-stride",
    "num-samples": "n num-images count",
}
# Names of other tools for the number of worker processes of a loader, which no option sets here.
WORKER_OPTIONS = ("workers", "num-workers", "n-workers", "dataloader-num-workers")
DESCRIPTIONS: dict[object, str] = {int: "a whole number", float: "a number"}
SWITCH_VALUES = ("true", "false", "yes", "no", "on", "off")


@dataclass(frozen=True)
class Argument:
    """An argument of a command: an option, or a positional argument.

    Args:
        name: name of the field or parameter.
        kind: its type, without Annotated and None.
        is_positional: whether it is a positional argument.
        is_required: whether it has no default.
    """

    name: str
    kind: object
    is_positional: bool
    is_required: bool

    @property
    def flag(self) -> str:
        """The option, or the placeholder of a positional argument."""
        return self.name.upper() if self.is_positional else f"--{self.name.replace('_', '-')}"

    @property
    def is_list(self) -> bool:
        """True if the argument takes several values."""
        origin = typing.get_origin(self.kind)
        return isinstance(origin, type) and origin is not types.UnionType

    def check_values(self, values: Sequence[str]) -> None:
        """Check the number and the types of the values of an option.

        Raises:
            UsageError: there are too few or too many, or one has another type; the message names the option.
        """
        kinds = typing.get_args(self.kind) if self.is_list else (self.kind,)
        if typing.get_origin(self.kind) is not tuple or kinds[-1] is ...:
            kinds = kinds[:1] * len(values)
        if len(values) != len(kinds):
            raise UsageError(f"{self.flag} takes {len(kinds)} values, not {len(values)}")
        for kind, value in zip(kinds, values, strict=True):
            self._check_value(kind, value)

    def _check_value(self, kind: object, value: str) -> None:
        choices = _list_choices(kind)
        expected = f"one of {', '.join(choices)}" if choices else DESCRIPTIONS.get(kind)
        try:
            if choices and value not in choices:
                raise ValueError
            if kind is int or kind is float:
                kind(value)
        except ValueError:
            raise UsageError(f"{self.flag} takes {expected}, not {value[:100]!r}") from None
        if self.name == "seed" and not 0 <= int(value) < 2**64:
            raise UsageError(f"--seed should be from 0 to 2^64 - 1, not {value[:100]}")


def build_argument(name: str, kind: object, is_required: bool) -> Argument:
    """Build the argument of a field or parameter from its annotated type."""
    import tyro

    (_, positional_marker) = typing.get_args(tyro.conf.Positional[str])
    is_positional = False
    while typing.get_origin(kind) is typing.Annotated:
        kind, *markers = typing.get_args(kind)
        is_positional |= positional_marker in markers
    parts = [part for part in typing.get_args(kind) if part is not types.NoneType]
    if isinstance(kind, types.UnionType) and len(parts) == 1:
        (kind,) = parts
    return Argument(name, kind, is_positional, is_required)


def order_words(words: Sequence[str], arguments: Sequence[Argument], prog: str) -> list[str]:
    """Check the words of a command line, and return them with the options behind the positional arguments.

    Options may be before, between and after the positional arguments. If a required positional argument is missing, it
    is the last value of the last option with several values.

    Args:
        words: words of the command line.
        arguments: arguments of the command.
        prog: name of the command, for messages.

    Raises:
        UsageError: an option is unknown, repeated or missing, or has a value of another type; or there are too few or
            too many positional arguments.
    """
    if "--help" in words or "-h" in words:
        return ["--help"]
    options, positionals = _split_words(words, arguments, prog)
    expected = [argument for argument in arguments if argument.is_positional]
    required = [argument for argument in expected if argument.is_required]
    last_list = next((option for option in reversed(options) if len(option) > 2), None)
    if len(positionals) < len(required) and last_list:
        positionals.append(last_list.pop())
    given = {option[0].partition("=")[0].replace("_", "-") for option in options}
    missing = [argument.flag for argument in required[len(positionals) :] if not argument.is_list]
    missing += [
        argument.flag
        for argument in arguments
        if argument.is_required and not argument.is_positional and argument.flag not in given
    ]
    if missing:
        raise UsageError(f"{' and '.join(missing)} must be specified; {prog} --help describes the arguments")
    if len(positionals) > len(expected) and not any(argument.is_list for argument in expected):
        raise _build_surplus_error(positionals[len(expected)], arguments, prog)
    option_words = [word for option in options for word in option]
    if any(word.startswith("-") for word in positionals):
        return [*option_words, "--", *positionals]
    return [*positionals, *option_words]


def _split_words(words: Sequence[str], arguments: Sequence[Argument], prog: str) -> tuple[list[list[str]], list[str]]:
    """Split words into the options, each with its values, and the positional arguments; the options are checked."""
    by_flag = {argument.flag: argument for argument in arguments if not argument.is_positional}
    by_flag |= {f"--no-{flag[2:]}": argument for flag, argument in by_flag.items() if argument.kind is bool}
    queue = deque(words)
    options: list[list[str]] = []
    positionals: list[str] = []
    lists = set()
    while queue:
        word = queue.popleft()
        if word == "--":
            positionals += queue
            break
        if not _is_option(word):
            positionals.append(word)
            continue
        flag, equals, value = word.partition("=")
        flag = flag.replace("_", "-")
        argument = by_flag.get(flag)
        if argument is None:
            raise _build_option_error(flag, by_flag, prog)
        values = [value] if equals else []
        if argument.kind is bool:
            if equals or (queue and queue[0].lower() in SWITCH_VALUES):
                raise UsageError(f"{argument.flag} takes no value; use {argument.flag} or --no-{argument.flag[2:]}")
        elif argument.is_list:
            if flag in lists:
                raise UsageError(f"{flag} is specified twice; list all its values after one: {flag} VALUE VALUE")
            lists.add(flag)
            # the values of --set are NAME=VALUE, so that files may follow
            while queue and not _is_option(queue[0]) and (flag != "--set" or "=" in queue[0]):
                values.append(queue.popleft())
        elif not equals:
            if not queue or _is_option(queue[0]):
                raise UsageError(f"{flag} takes a value; {prog} --help describes it")
            values.append(queue.popleft())
        argument.check_values(values)
        options.append([word, *values[bool(equals) :]])
    return options, positionals


def _is_option(word: str) -> bool:
    """Return whether a word is an option, and not a value such as -1 or -inf, or the file of stdin."""
    if word.startswith("--") or not word.startswith("-") or word == "-":
        return word.startswith("--")
    try:
        float(word)
    except ValueError:
        return True
    return False


def _list_choices(kind: object) -> list[str]:
    """List the values of a Literal, or of a union of them."""
    parts = typing.get_args(kind)
    if typing.get_origin(kind) is typing.Literal:
        return list(map(str, parts))
    return [choice for part in parts for choice in _list_choices(part)]


def _build_option_error(flag: str, flags: Iterable[str], prog: str) -> UsageError:
    """Build the error for an unknown option, with the options that are nearest by meaning or spelling."""
    name = flag.lstrip("-").lower()
    known = [option.removeprefix("--") for option in flags]
    matches = [option for option in known if name in SYNONYMS.get(option, "").split()]
    matches = matches or [option for option in known if option == f"{name}s" or name == f"{option}s"]
    if name not in WORKER_OPTIONS:
        matches = matches or difflib.get_close_matches(name[:100], known)
    hint = f"{prog} --help lists the options"
    if matches:
        hint = f"did you mean {' or '.join(f'--{match}' for match in matches)}?"
    elif name in WORKER_OPTIONS and "memory-limit" in known:
        hint = "streamed images are decoded by one worker process per available CPU core, at most 16"
    elif "set" in known and name not in WORKER_OPTIONS:
        hint += f", and --set {name[:100].replace('-', '_')}=VALUE changes a field of the run's recipe"
    return UsageError(f"unknown option {flag[:100]}; {hint}")


def _build_surplus_error(word: str, arguments: Sequence[Argument], prog: str) -> UsageError:
    """Build the error for a positional argument too many, which may be an option without its hyphens."""
    name, equals, value = word.partition("=")
    flag = f"--{name.lstrip('-').replace('_', '-')}"
    if flag in [argument.flag for argument in arguments]:
        return UsageError(
            f"unexpected argument {word[:100]!r}; did you mean {flag}{' ' if equals else ''}{value[:100]}?"
        )
    names = [argument.flag for argument in arguments if argument.is_positional]
    takes = f"only {' and '.join(names)}" if names else "options only, which begin with --"
    return UsageError(f"unexpected argument {word[:100]!r}; {prog} takes {takes}")

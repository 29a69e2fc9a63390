"""The entry point of the command line; heavy modules are imported inside functions."""

import errno
import importlib
import io
import keyword
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Literal, NoReturn

from fukami.errors import (
    Error,
    UsageError,
    build_memory_error,
    build_unknown_error,
    escape_controls,
    is_out_of_memory,
    is_out_of_shared_memory,
)

Precision = Literal["auto", "float32", "tf32", "bfloat16", "float16"]
InferencePrecision = Literal["auto", "float32", "bfloat16", "float16", "int8", "binary", "onnx"]
GROUPS = {
    "data": ("doctor", "shard", "show", "propose"),
    "training": ("list", "train", "find-lr", "board"),
    "models": ("eval", "predict", "explain", "play", "gtp", "stylize", "export", "serve", "import"),
    "tools": ("bench",),
}
MAX_ERROR_LENGTH = 300  # characters of the message of a bug
COMMANDS = tuple(name for names in GROUPS.values() for name in names)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit with a status: 0 success, 1 failure, 2 wrong usage, 130 interrupted, 143 terminated."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.encoding.lower() != "utf-8":
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")  # on Windows a pipe has another encoding
    previous_handler = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        status = run_command(list(sys.argv[1:] if arguments is None else arguments) or ["--help"])
    finally:
        if previous_handler is not None:  # None: it was not set from Python
            signal.signal(signal.SIGTERM, previous_handler)
    if status and os.environ.get("WORLD_SIZE", "1") != "1":
        sys.stdout.flush()
        os._exit(status)  # torch's threads may still wait for the other processes, and would abort this one
    sys.exit(status)


def run_command(arguments: Sequence[str]) -> int:
    """Run a command, print its errors, and return the exit status of :func:`main`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PlainFormatter("%(message)s"))
    logging.basicConfig(handlers=[handler])
    if os.environ.get("RANK", "0") != "0":  # all processes read the same data; only the first one warns about it
        for name in ("annotations", "sample_decoder", "image_folder", "shards"):
            logging.getLogger(f"fukami.data.{name}").setLevel(logging.ERROR)
    name, *command_arguments = arguments
    try:
        if name in ("-h", "--help"):
            print(build_usage())
        elif name == "--version":
            from importlib.metadata import version

            print(f"fukami {version('fukami')}")
        elif name not in COMMANDS:
            raise build_unknown_error("command", name, COMMANDS)
        else:
            find_command(name)(command_arguments)
        if sys.stdout is not None:
            sys.stdout.flush()
        status = 0
    except Error as error:
        print(f"{_build_error_prefix()}: {escape_controls(str(error))}", file=sys.stderr)
        status = 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        status = 130
    except BrokenPipeError:  # the reader of our output has closed the pipe
        status = 1
    except Exception as error:
        if os.environ.get("FUKAMI_TRACEBACK"):
            raise
        prefix = _build_error_prefix()
        message = _describe_environment_error(error)
        if message:
            print(f"{prefix}: {escape_controls(message)}", file=sys.stderr)
        else:
            _print_bug(error, prefix)
        status = 1
    return status if _flush_output() else status or 1


def _flush_output() -> bool:
    """Flush the output; if that fails, discard the rest, which the interpreter would write again at its end."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


def _print_bug(error: Exception, prefix: str) -> None:
    """Print an unexpected error."""
    print(f"{prefix}: {type(error).__name__}: {escape_controls(str(error)[:MAX_ERROR_LENGTH])}", file=sys.stderr)
    if os.environ.get("WORLD_SIZE", "1") != "1" and isinstance(error, RuntimeError):
        print(f"{prefix}: check whether another process ended or cannot be reached", file=sys.stderr)
    print("fukami: this is a bug; FUKAMI_TRACEBACK=1 shows the traceback", file=sys.stderr)


def _describe_environment_error(error: Exception) -> str:
    """Describe an error of the machine, such as a full memory or a folder without permission; empty for a bug."""
    if is_out_of_memory(error):
        return str(build_memory_error(error, ("use fewer or smaller images", "close other programs")))
    if is_out_of_shared_memory(error):
        return (
            "the worker processes that decode images have filled the shared memory /dev/shm; enlarge it (in Docker: "
            "--shm-size 8g), or start fewer workers, of which there is one per CPU core: taskset -c 0,1 fukami ..."
        )
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):  # of write()
        return f"the output cannot be written: {error.strerror}"
    return ""


class PlainFormatter(logging.Formatter):
    """Formatter that escapes control characters, which file names may contain."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a message."""
        return escape_controls(super().format(record))


def _build_error_prefix() -> str:
    """Return the prefix of an error message.

    Other processes than the first wait before they print: if the first one failed as well, they end with it.
    """
    rank = int(os.environ.get("RANK", 0))
    time.sleep(10 * (rank > 0))
    return f"fukami: rank {rank}" if rank else "fukami"


def build_usage() -> str:
    """Build the text of ``fukami --help``."""
    lines = ["usage: fukami COMMAND ..."]
    for group, names in GROUPS.items():
        lines += ["", f"{group}:"]
        lines += [f"  {name:<8}  {(find_command(name).__doc__ or '').splitlines()[0]}" for name in names]
    return "\n".join([*lines, "", "fukami COMMAND --help shows the arguments of a command."])


def find_command(name: str) -> Callable[[list[str]], None]:
    """Return the function that runs a command."""
    module = name.replace("-", "_") + ("_" if keyword.iskeyword(name) else "")
    return importlib.import_module(f"fukami.cli.{module}").command  # type: ignore[no-any-return]


def has_recipe_name(arguments: Sequence[str], description: str | None) -> bool:
    """Return whether the first argument names a recipe; print the help and the recipes if it is ``--help`` instead.

    Raises:
        UsageError: it is neither.
    """
    if arguments and not arguments[0].startswith("-"):
        return True
    from fukami.engine.recipe import list_recipes

    if arguments and arguments[0] in ("-h", "--help"):
        print(f"{description}\nRecipes: {', '.join(list_recipes())}, or the path of a Python file that defines one.")
        return False
    usage = str(description).partition("usage: ")[2]
    raise UsageError(f"name the recipe first: {usage}; fukami list --all lists the recipes")

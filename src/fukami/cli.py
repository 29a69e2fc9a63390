"""The command line: one function per command; what is heavy is imported inside."""

import functools
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, cast

from fukami.errors import Error, UsageError, unknown

Precision = Literal["auto", "float32", "bfloat16", "float16"]


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and leave: 0 done, 1 failed, 2 wrong usage, 130 interrupted, 143 terminated."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        if name in ("-h", "--help"):
            print(usage())
        elif name == "--version":
            from importlib.metadata import version

            print(f"fukami {version('fukami')}")
        elif name not in COMMANDS:
            raise unknown("command", name, COMMANDS)
        else:
            action = COMMANDS[name](rest)
            if action:  # a training starts from here, so that few frames lie between the command and the loss
                action()
        sys.stdout.flush()
        status = 0
    except Error as error:
        print(f"fukami: {error}", file=sys.stderr)
        status = 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        status = 130
    except BrokenPipeError:  # whoever read our output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except Exception as error:
        if os.environ.get("FUKAMI_TRACEBACK"):
            raise
        print(f"fukami: {type(error).__name__}: {error}", file=sys.stderr)
        print("fukami: this should not happen; FUKAMI_TRACEBACK=1 shows where it did", file=sys.stderr)
        status = 1
    sys.exit(status)


def usage() -> str:
    """What ``fukami --help`` says."""
    lines = [f"  {name:<8} {(command.__doc__ or '').splitlines()[0]}" for name, command in COMMANDS.items()]
    return "\n".join(["usage: fukami COMMAND ...", "", *lines, "", "fukami COMMAND --help tells more."])


def parse(function: Callable[..., Any], arguments: Sequence[str], prog: str) -> Any:
    """Call the function with the arguments, as its signature and docstrings tell; wrong usage exits with 2."""
    import tyro

    return tyro.cli(function, args=arguments, prog=prog, config=(tyro.conf.OmitArgPrefixes,))


def list_(arguments: list[str]) -> None:
    """Every recipe: paper, year, task, the paper's number and ours."""
    from fukami.recipe import find, names

    def run() -> None:
        """Every recipe: paper, year, task, the paper's number and ours."""
        rows = [("recipe", "task", "year", "the paper", "ours", "paper")]
        for name in names():
            recipe = find(name)
            rows.append((name, recipe.family, str(recipe.year), recipe.published, recipe.reached, recipe.paper))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())

    parse(run, arguments, "fukami list")


def train(arguments: list[str]) -> Callable[[], None] | None:
    """Train a recipe: fukami train RECIPE [--field value ...] [--out DIR] [--device D] [--precision P] [--resume]."""
    from fukami.recipe import find, name_of, names

    if not arguments or arguments[0].startswith("-"):
        text = f"{train.__doc__}\nRecipes: {', '.join(names())}, or the path of a Python file with one of your own."
        if arguments and arguments[0] in ("-h", "--help"):
            print(text)
            return None
        raise UsageError(f"name the recipe first. {text}")
    name, *rest = arguments
    recipe_class = find(name)
    default = _begun(rest, name_of(recipe_class)) if "--resume" in rest else None

    def run(
        recipe: Any,
        out: Path | None = None,
        device: str = "auto",
        precision: Precision = "auto",
        resume: bool = False,
    ) -> Callable[[], None]:
        """Train.

        Args:
            recipe: The experiment.
            out: Folder of the run: new or empty. Default: runs/RECIPE, or runs/RECIPE-2 ... if that is taken.
            device: auto, cpu, cuda, cuda:1 or mps.
            precision: auto takes bfloat16 where it is faster.
            resume: Go on with the run in --out (by default the last one of this recipe) from its last checkpoint.
        """
        folder = out or _numbered(name, resume)
        return functools.partial(_train, recipe, folder, device, precision, resume)

    run.__annotations__ |= {"recipe": recipe_class}
    run.__doc__ = (run.__doc__ or "").replace(
        "Train.", f"Train {name}: {(recipe_class.__doc__ or recipe_class.__name__).splitlines()[0]}", 1
    )
    if default is not None:
        run.__defaults__ = (default, *(run.__defaults__ or ()))
    return cast(Callable[[], None], parse(run, rest, f"fukami train {name}"))


def _train(recipe: Any, folder: Path, device: str, precision: str, resume: bool) -> None:
    from fukami import loop

    result = loop.train(recipe, folder, device=device, precision=precision, resume=resume)
    if int(os.environ.get("RANK", 0)) == 0:
        report = folder / "report.html"
        if "accuracy" in result:
            counts = f"{result['errors']} errors of {result['count']}"
            print(f"test accuracy {result['accuracy']:.2%}, {counts}", file=sys.stderr)
        print(f"report: {report}", file=sys.stderr)
        print(json.dumps({**result, "run": str(folder), "report": str(report)}))


def _begun(arguments: list[str], name: str) -> Any:
    """The recipe of the run to be resumed, whose fields then need not be repeated; None where nothing was begun."""
    from fukami import checkpoint
    from fukami.recipe import name_of

    given = [value for flag, value in zip(arguments, [*arguments[1:], ""], strict=True) if flag == "--out"]
    given += [flag.removeprefix("--out=") for flag in arguments if flag.startswith("--out=")]
    folder = Path(given[-1]) if given else _numbered(name, resume=True)
    if not (folder / "recipe.json").is_file():
        return None
    recipe, _ = checkpoint.describe(folder)
    return recipe if name_of(type(recipe)) == name else None


def _numbered(name: str, resume: bool) -> Path:
    """A new folder ``runs/RECIPE``, ``runs/RECIPE-2`` ...; with ``resume`` the last of those that exist."""
    base = Path("runs") / Path(name).stem.replace("_", "-")
    candidates = (base if number == 1 else base.with_name(f"{base.name}-{number}") for number in range(1, 10**6))
    latest = base
    for folder in candidates:
        if not folder.exists():
            return latest if resume else folder
        latest = folder
    raise Error(f"there are a million runs beside {base}; give --out")


def eval_(arguments: list[str]) -> None:
    """Judge a run, or several as an ensemble: fukami eval RUN... [--data SPEC] [--precision P]."""
    import tyro

    def run(
        runs: tyro.conf.Positional[tuple[str, ...]],
        data: str | None = None,
        device: str = "auto",
        precision: Literal["float32", "bfloat16", "float16"] = "float32",
    ) -> None:
        """Judge a run on test data, or several runs as an ensemble; prints one JSON object.

        Args:
            runs: Folders of runs, or names of weights that ship with the package.
            data: Known name (mnist, digits), folder or archive. Default: what the run was trained on. Always the test
                part; data that have none and are new to the run are judged whole.
            device: auto, cpu, cuda, cuda:1 or mps.
            precision: Type of the weights and the activations.
        """
        from fukami import checkpoint

        task = checkpoint.load(*runs, device=device, precision=precision)
        recipe, _ = checkpoint.describe(checkpoint.locate(runs[0]))
        recipe = recipe if data is None else recipe.on(data)
        result = task.evaluate(recipe.data().val)
        print(
            json.dumps({**result, "data": getattr(recipe, "dataset", None), "precision": precision, "runs": list(runs)})
        )

    parse(run, arguments, "fukami eval")


def predict(arguments: list[str]) -> None:
    """Answer for each picture: fukami predict RUN... FILE... [--out DIR]."""
    import tyro

    def run(
        inputs: tyro.conf.Positional[tuple[str, ...]],
        out: Path | None = None,
        device: str = "auto",
        precision: Literal["float32", "bfloat16", "float16"] = "float32",
    ) -> None:
        """Answer for each picture; prints one JSON object for each.

        Args:
            inputs: First the runs (folders, or names of shipped weights; several are an ensemble), then the pictures.
            out: Folder for drawn answers and a page of them that shows what the network saw.
            device: auto, cpu, cuda, cuda:1 or mps.
            precision: Type of the weights and the activations.
        """
        from fukami import checkpoint
        from fukami.page import Page

        runs, files = checkpoint.split(inputs)
        task = checkpoint.load(*runs, device=device, precision=precision)
        failed = 0
        with Page(out, task) as page:
            for at in range(0, len(files), 256):
                for answer in task.predict(files[at : at + 256]):
                    if "error" in answer:
                        failed += 1
                        print(f"fukami: {answer['error']}", file=sys.stderr)
                    else:
                        print(json.dumps(answer, ensure_ascii=False), flush=True)
                        page.add(answer)
        if failed:
            raise Error(f"{failed} of {len(files)} files could not be answered")

    parse(run, arguments, "fukami predict")


def import_(arguments: list[str]) -> None:
    """Make a run of another program's parameters: fukami import FILE --out DIR."""
    import tyro

    def run(file: tyro.conf.Positional[Path], out: Path) -> None:
        """Make a run of the DeepConvNet parameters (W1..W8, b1..b8) that a NumPy program saved.

        Args:
            file: A pickle of NumPy arrays (nothing else in it is run) or safetensors.
            out: Folder of the run: new or empty.
        """
        from fukami import importing

        importing.deep_convnet(file, out)
        print(json.dumps({"run": str(out)}))

    parse(run, arguments, "fukami import")


COMMANDS: dict[str, Callable[[list[str]], Callable[[], None] | None]] = {
    "list": list_,
    "train": train,
    "eval": eval_,
    "predict": predict,
    "import": import_,
}

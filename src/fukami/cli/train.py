"""fukami train."""

import dataclasses
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fukami.cli.main import Precision, has_recipe_name, run_cli, train_recipes
from fukami.errors import Error, UsageError

if TYPE_CHECKING:
    from fukami.engine.recipe import Recipe


def command(arguments: list[str]) -> Callable[[], None] | None:
    """Train a recipe on a dataset."""
    from fukami.engine.recipe import get_recipe

    if not has_recipe_name(arguments, f"{command.__doc__}\nusage: fukami train RECIPE [--field value ...] [--out DIR]"):
        return None
    name, *rest = arguments
    recipe_class = get_recipe(name)
    default = _load_resumed_recipe(rest, recipe_class) if "--resume" in rest else None

    def run(
        recipe: Any,
        out: Path | None = None,
        device: str = "auto",
        precision: Precision = "auto",
        compile: bool = False,
        resume: bool = False,
        allow_changed_data: bool = False,
        num_seeds: int = 1,
        processes: int = 1,
        timeout: float = 600,
    ) -> Callable[[], None]:
        """Train.

        Args:
            recipe: The experiment.
            out: Folder of the run: new or empty. Default: runs/RECIPE, or runs/RECIPE-2 ... if that is taken.
            device: auto, cpu, cuda, cuda:1 or mps.
            precision: auto takes bfloat16 where it is faster.
            compile: Compile the network (torch.compile), which takes a minute or two, for faster steps. A resumed run
                is compiled if it was begun so.
            resume: Go on with the run in --out (by default the last one of this recipe) from its last checkpoint.
            allow_changed_data: Resume although the data have changed since the checkpoint; the run records it.
            num_seeds: So many runs, with --seed and the numbers after it, in folders seed-0, seed-1 ... of --out, and a
                page of what they do together.
            processes: So many processes of this machine share each batch, on a GPU each where there are GPUs.
            timeout: Seconds that one process may keep the others waiting before all are cut off.
        """
        folder = out or _choose_run_folder(name, resume)
        for what, value in (("num-seeds", num_seeds), ("processes", processes)):
            if value < 1:
                raise UsageError(f"{what} should be at least 1, not {value}")
        if not timeout > 0:
            raise UsageError(f"timeout should be some seconds, not {timeout:g}")
        if processes > 1 and "RANK" in os.environ:
            raise UsageError("torchrun has started the processes already; leave out --processes")
        numbers = range(recipe.seed, recipe.seed + num_seeds)
        each = {folder / f"seed-{number}": dataclasses.replace(recipe, seed=number) for number in numbers}
        recipes = each if num_seeds > 1 else {folder: recipe}
        if resume and "TORCHELASTIC_RUN_ID" not in os.environ:  # torchrun gives a command again as it is
            _check_resumable(list(recipes), folder)
        if processes > 1:
            words = [
                "train",
                name,
                *_remove_flag("--processes", rest),
                *(["--out", str(folder)] if out is None else []),
            ]
            return functools.partial(_launch_processes, words, processes, device, list(recipes))
        return functools.partial(
            train_recipes, recipes, device=device, precision=precision, compile=compile, resume=resume,
            allow_changed_data=allow_changed_data, timeout=timeout,
        )  # fmt: skip

    run.__annotations__ |= {"recipe": recipe_class}
    run.__doc__ = (run.__doc__ or "").replace(
        "Train.", f"Train {name}: {(recipe_class.__doc__ or recipe_class.__name__).splitlines()[0]}", 1
    )
    if default is not None:
        run.__defaults__ = (default, *(run.__defaults__ or ()))
    return cast(Callable[[], None], run_cli(run, rest, f"fukami train {name}"))


def _check_resumable(runs: list[Path], folder: Path) -> None:
    """Refuse to resume where none of the runs was begun."""
    from fukami.engine import checkpoint

    if not any((run / "recipe.json").is_file() for run in runs):
        checkpoint.check_run_exists(folder)


def _launch_processes(words: list[str], processes: int, device: str, runs: list[Path]) -> None:
    from fukami.engine.launch import launch_processes

    launch_processes(words, processes, device, runs)


def _remove_flag(flag: str, words: list[str]) -> list[str]:
    """The words without a flag and its value."""
    kept = [word for word, before in zip(words, ["", *words], strict=False) if flag not in (word, before)]
    return [word for word in kept if not word.startswith(f"{flag}=")]


def _load_resumed_recipe(arguments: list[str], recipe: "type[Recipe]") -> Any:
    """The recipe of the run to be resumed, whose fields then need not be repeated; None where nothing was begun."""
    from fukami.engine import checkpoint
    from fukami.engine.recipe import check_data, get_recipe_name, identify_recipe, is_built_in

    given = [value for flag, value in zip(arguments, [*arguments[1:], ""], strict=True) if flag == "--out"]
    given += [flag.removeprefix("--out=") for flag in arguments if flag.startswith("--out=")]
    folder = Path(given[-1]) if given else _choose_run_folder(get_recipe_name(recipe), resume=True)
    seeds = sorted(folder.glob("seed-*"), key=lambda run: (len(run.name), run.name))
    begun = [run for run in (folder, *seeds) if (run / "recipe.json").is_file()]
    if not begun:
        return None
    if checkpoint.read_recipe_name(begun[0]) != identify_recipe(recipe)["recipe"]:
        return None  # the training says so
    found, _ = checkpoint.read_recipe(begun[0], None if is_built_in(recipe) else recipe)
    if not any(word.partition("=")[0] == "--data" for word in arguments):
        check_data(found)
    return found


def _choose_run_folder(name: str, resume: bool) -> Path:
    """A new folder ``runs/RECIPE``, ``runs/RECIPE-2`` ...; with ``resume`` the last of those that exist."""
    base = Path("runs") / Path(name).stem.replace("_", "-")
    candidates = (base if number == 1 else base.with_name(f"{base.name}-{number}") for number in range(1, 10**6))
    latest = base
    for folder in candidates:
        if not folder.exists():
            return latest if resume else folder
        latest = folder
    raise Error(f"there are a million runs beside {base}; give --out")

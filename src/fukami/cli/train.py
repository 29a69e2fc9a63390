"""Command ``fukami train``."""

import dataclasses
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fukami.cli.arguments import run_recipe_cli
from fukami.cli.main import Precision, has_recipe_name, train_recipes
from fukami.errors import Error, UsageError

if TYPE_CHECKING:
    from fukami.engine.recipe import Recipe


def command(arguments: list[str]) -> Callable[[], None] | None:
    """Train a recipe on a dataset."""
    from fukami.engine.recipe import get_recipe

    if not has_recipe_name(arguments, f"{command.__doc__}\nusage: fukami train RECIPE [--field value ...] [--out DIR]"):
        return None
    name, *options = arguments
    recipe_class = get_recipe(name)
    default = _load_resumed_recipe(options, recipe_class) if "--resume" in options else None

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
            out: Folder of the run, new or empty; runs/RECIPE by default, or runs/RECIPE-2 ... if it exists.
            device: Device: auto, cpu, cuda, cuda:1 or mps.
            precision: Precision of the computation; auto selects bfloat16 where it is faster.
            compile: Compile the network (torch.compile): faster steps after one or two minutes. A resumed run keeps
                its setting.
            resume: Resume the run in --out (the last run of this recipe by default) from its last checkpoint.
            allow_changed_data: Resume although the dataset has changed since the checkpoint; the run records it.
            num_seeds: Number of runs, with --seed and the following seeds, in the folders seed-0, seed-1 ... of --out;
                they are evaluated as an ensemble at the end.
            processes: Number of processes on this machine that share each batch, one per GPU if there are GPUs.
            timeout: Maximum time in seconds that processes wait for one another before the run stops.
        """
        folder = out or _choose_run_folder(name, resume)
        for flag, value in (("--num-seeds", num_seeds), ("--processes", processes)):
            if value < 1:
                raise UsageError(f"{flag} should be at least 1, not {value}")
        if not timeout > 0:
            raise UsageError(f"--timeout should be more than 0 seconds, not {timeout:g}")
        if processes > 1 and "RANK" in os.environ:
            raise UsageError("torchrun has already started the processes; remove --processes")
        seeds = range(recipe.seed, recipe.seed + num_seeds)
        seed_recipes = {folder / f"seed-{seed}": dataclasses.replace(recipe, seed=seed) for seed in seeds}
        recipes = seed_recipes if num_seeds > 1 else {folder: recipe}
        if resume and "TORCHELASTIC_RUN_ID" not in os.environ:  # torchrun repeats the command unchanged after a failure
            _check_resumable(list(recipes), folder)
        if processes > 1:
            launch_arguments = [
                "train",
                name,
                *_remove_flag("--processes", options),
                *(["--out", str(folder)] if out is None else []),
            ]
            return functools.partial(_launch_processes, launch_arguments, processes, device, list(recipes))
        return functools.partial(
            train_recipes, recipes, device=device, precision=precision, compile=compile, resume=resume,
            allow_changed_data=allow_changed_data, timeout=timeout,
        )  # fmt: skip

    return run_recipe_cli(run, recipe_class, options, f"fukami train {name}", default)


def _check_resumable(runs: list[Path], folder: Path) -> None:
    """Check that at least one of the runs to resume exists."""
    from fukami.engine import checkpoint

    if not any((run / "recipe.json").is_file() for run in runs):
        checkpoint.check_run_exists(folder)


def _launch_processes(arguments: list[str], processes: int, device: str, runs: list[Path]) -> None:
    from fukami.engine.launch import launch_processes

    launch_processes(arguments, processes, device, runs)


def _remove_flag(flag: str, arguments: list[str]) -> list[str]:
    """Return the arguments without a flag and its value."""
    pairs = zip(arguments, ["", *arguments], strict=False)
    kept = [argument for argument, previous in pairs if flag not in (argument, previous)]
    return [argument for argument in kept if not argument.startswith(f"{flag}=")]


def _load_resumed_recipe(arguments: list[str], recipe: "type[Recipe]") -> Any:
    """Load the recipe of the run to resume, so that its flags need not be repeated; None if there is no run."""
    from fukami.engine import checkpoint
    from fukami.engine.recipe import check_data, get_recipe_name, identify_recipe, is_built_in

    folders = [value for flag, value in zip(arguments, [*arguments[1:], ""], strict=True) if flag == "--out"]
    folders += [flag.removeprefix("--out=") for flag in arguments if flag.startswith("--out=")]
    folder = Path(folders[-1]) if folders else _choose_run_folder(get_recipe_name(recipe), resume=True)
    seeds = sorted(folder.glob("seed-*"), key=lambda run: (len(run.name), run.name))
    existing = [run for run in (folder, *seeds) if (run / "recipe.json").is_file()]
    if not existing:
        return None
    if checkpoint.read_recipe_name(existing[0]) != identify_recipe(recipe)["recipe"]:
        return None  # run_training reports it
    loaded, _ = checkpoint.read_recipe(existing[0], None if is_built_in(recipe) else recipe)
    if not any(argument.partition("=")[0] == "--data" for argument in arguments):
        check_data(loaded)
    return loaded


def _choose_run_folder(name: str, resume: bool) -> Path:
    """Return a new folder ``runs/RECIPE``, ``runs/RECIPE-2`` ...; with ``resume`` the last one that exists."""
    base = Path("runs") / Path(name).stem.replace("_", "-")
    candidates = (base if n == 1 else base.with_name(f"{base.name}-{n}") for n in range(1, 10**6))
    latest = base
    for folder in candidates:
        if not folder.exists():
            return latest if resume else folder
        latest = folder
    raise Error(f"there are a million runs beside {base}; specify --out")

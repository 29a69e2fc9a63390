"""Command ``fukami train``."""

import dataclasses
import json
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fukami.cli.arguments import parse_recipe_arguments
from fukami.cli.main import Precision, has_recipe_name
from fukami.errors import UsageError, suggest_memory_fixes

if TYPE_CHECKING:
    from fukami.engine.recipe import Recipe
    from fukami.engine.task import Metrics

MAX_TIMEOUT = 1e6  # seconds that processes may wait for one another, eleven days
# Fields that the memory of a training run grows with.
MEMORY_FLAGS = {
    "batch_size": "--batch-size",
    "size": "--size",
    "min_size": "--min-size",
    "buffer_size": "--buffer-size",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Options of ``fukami train`` in addition to the fields of the recipe."""

    out: Path | None = None
    """Folder of the run, new or empty; runs/RECIPE by default, or runs/RECIPE-2 ... if it exists."""
    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:1 or mps."""
    precision: Precision = "auto"
    """Precision of the computation; auto selects bfloat16 where it is faster."""
    compile: bool = False
    """Compile the network (torch.compile): faster steps after one or two minutes. A resumed run keeps its setting."""
    resume: bool = False
    """Resume the run in --out (the last run of this recipe by default) from its last checkpoint."""
    allow_changed_data: bool = False
    """Resume although the dataset has changed since the checkpoint; the run records it."""
    num_seeds: int = 1
    """Number of runs, with --seed and the following seeds, in the folders seed-0, seed-1 ... of --out; they are
    evaluated as an ensemble at the end."""
    processes: int = 1
    """Number of processes on this machine that share each batch, one per GPU if there are GPUs."""
    timeout: float = 600
    """Maximum time in seconds that processes wait for one another before the run stops."""

    def check(self) -> None:
        """Check the ranges of the options.

        Raises:
            UsageError: an option is out of range.
        """
        for flag, value in (("--num-seeds", self.num_seeds), ("--processes", self.processes)):
            if value < 1:
                raise UsageError(f"{flag} should be at least 1, not {value}")
        if not 0 < self.timeout <= MAX_TIMEOUT:
            raise UsageError(f"--timeout should be more than 0 and at most {MAX_TIMEOUT:g} s, not {self.timeout:g}")
        if self.processes > 1 and "RANK" in os.environ:
            raise UsageError("torchrun has already started the processes; remove --processes")


def command(arguments: list[str]) -> None:
    """Train a recipe on a dataset."""
    from fukami.engine.recipe import get_recipe, get_recipe_name

    if not has_recipe_name(arguments, f"{command.__doc__}\nusage: fukami train RECIPE [--field value ...] [--out DIR]"):
        return
    recipe_class = get_recipe(arguments[0])
    name, flags = get_recipe_name(recipe_class), arguments[1:]
    default = _load_resumed_recipe(flags, recipe_class) if "--resume" in flags else None
    recipe, options = parse_recipe_arguments(recipe_class, TrainOptions, flags, f"fukami train {name}", default)
    options.check()
    from fukami.engine import run_folder

    folder = options.out or run_folder.choose_run_folder(name, options.resume)
    recipes = {folder: recipe}
    if options.num_seeds > 1:
        if (folder / "recipe.json").is_file():
            raise UsageError(f"{folder} is the folder of a single run; --num-seeds needs another --out")
        seeds = range(recipe.seed, recipe.seed + options.num_seeds)
        recipes = {folder / f"seed-{seed}": dataclasses.replace(recipe, seed=seed) for seed in seeds}
    if options.resume and "TORCHELASTIC_RUN_ID" not in os.environ:  # torchrun repeats the command after a failure
        _check_resumable(list(recipes), folder)
    if options.processes == 1:
        train_recipes(recipes, options, arguments[0])
        return
    from fukami.engine.launch import launch_processes

    flags = [*_remove_flag("--processes", flags), *(["--out", str(folder)] if options.out is None else [])]
    launch_processes(["train", name, *flags], options.processes, options.device, list(recipes))


def train_recipes(recipes: "dict[Path, Recipe]", options: TrainOptions, name: str) -> None:
    """Train recipes one after the other, each into its folder, and print the results; evaluate several together.

    ``name`` is that of the recipe on the command line, which may be a file.
    """
    import torch

    from fukami.engine.train import RunOptions, run_training

    is_main = int(os.environ.get("RANK", 0)) == 0
    is_restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0  # torchrun --max-restarts
    results = []
    for folder, recipe in recipes.items():
        resume = (options.resume or is_restarted) and (folder / "recipe.json").is_file()
        run_options = RunOptions(
            options.device, options.precision, options.compile, resume, options.allow_changed_data, options.timeout
        )
        with suggest_memory_fixes(*list_memory_fixes(recipe)):
            result = run_training(recipe, folder, run_options)
        results.append(result)
        if is_main:
            report = folder / "report.html"
            if "errors" in result:
                counts = f"{result['errors']} errors of {result['count']}"
                split = {"val": "validation", "test": "test"}[result["split"]]
                print(f"{split} accuracy {result['accuracy']:.2%}, {counts}", file=sys.stderr)
            print(f"report: {report}", file=sys.stderr)
            print(json.dumps({**result, "run": str(folder), "report": str(report)}), flush=True)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        torch.distributed.destroy_process_group()
        os.environ["WORLD_SIZE"] = "1"
    if is_main and len(recipes) > 1 and all(results):  # without data for evaluation there are no results
        evaluate_seeds(recipes, options, name, results)


def evaluate_seeds(
    recipes: "dict[Path, Recipe]", options: TrainOptions, name: str, results: "Sequence[Metrics]"
) -> None:
    """Evaluate the runs of several seeds as an ensemble, or print the means of their metrics without one."""
    from fukami.cli import eval as cli_eval
    from fukami.engine.load_run import load_task

    folders = list(map(str, recipes))
    recipe_file = name if name.endswith(".py") else None
    overrides = recipes[Path(folders[0])].get_code_fields()
    task = load_task(folders[0], device="cpu", overrides=overrides, recipe=recipe_file and Path(recipe_file))
    if not task.ensemble_methods:
        numbers = {
            key: [result[key] for result in results]
            for key, value in results[0].items()
            if isinstance(value, int | float) and key in set.intersection(*map(set, results))
        }
        means = {key: statistics.fmean(values) for key, values in numbers.items()}
        deviations = {key: statistics.stdev(values) for key, values in numbers.items()}
        print(json.dumps({"runs": folders, "mean": means, "standard_deviation": deviations}), flush=True)
        return
    data = str(vars(recipes[Path(folders[0])]).get("data", ""))
    arguments = [*folders, "--device", options.device, "--out", str(Path(folders[0]).parent)]
    arguments += ["--recipe", recipe_file] if recipe_file else []
    arguments += ["--data", data] if "://" in data else []  # the user has named it for the training
    cli_eval.command(arguments)


def list_memory_fixes(recipe: "Recipe") -> list[str]:
    """List the options that reduce the memory of a training run, without those that the recipe rejects."""
    from fukami.self_play.alphago_policy import AlphaGoPolicy

    fields = vars(recipe)
    flags = {name: flag for name, flag in MEMORY_FLAGS.items() if name in fields}
    if isinstance(recipe, AlphaGoPolicy):
        del flags["size"]  # that of the board
    if not _accepts(recipe, "batch_size", max(1, fields.get("batch_size", 1) // 2)):
        flags.pop("batch_size", None)
    fixes = [f"lower {' or '.join(flags.values())}"] if flags else []
    if _accepts(recipe, "accumulate", fields.get("accumulate", 1) + 1):
        fixes.append("raise --accumulate")
    if _accepts(recipe, "activation_checkpointing", True):
        fixes.append("add --activation-checkpointing")
    return fixes or ["close other programs"]


def _accepts(recipe: "Recipe", name: str, value: Any) -> bool:
    """Return whether a recipe has a field, with another value, and accepts this one."""
    if vars(recipe).get(name, value) == value:
        return False
    try:
        dataclasses.replace(recipe, **{name: value})
    except Exception:  # a custom recipe may raise anything
        return False
    return True


def _check_resumable(runs: list[Path], folder: Path) -> None:
    """Check that at least one of the runs to resume exists."""
    from fukami.engine import run_folder

    if not any((run / "recipe.json").is_file() for run in runs):
        run_folder.check_run_exists(folder)


def _remove_flag(flag: str, arguments: list[str]) -> list[str]:
    """Return the arguments without a flag and its value."""
    pairs = zip(arguments, ["", *arguments], strict=False)
    kept = [argument for argument, previous in pairs if flag not in (argument, previous)]
    return [argument for argument in kept if not argument.startswith(f"{flag}=")]


def _load_resumed_recipe(arguments: list[str], recipe: "type[Recipe]") -> "Recipe | None":
    """Load the recipe of the run to resume, so that its flags need not be repeated; None if there is no run."""
    from fukami.engine import run_folder, run_record
    from fukami.engine.recipe import get_recipe_name

    folders = [value for flag, value in zip(arguments, [*arguments[1:], ""], strict=True) if flag == "--out"]
    folders += [flag.removeprefix("--out=") for flag in arguments if flag.startswith("--out=")]
    folder = Path(folders[-1]) if folders else run_folder.choose_run_folder(get_recipe_name(recipe), resume=True)
    seeds = sorted(folder.glob("seed-*"), key=lambda run: (len(run.name), run.name))
    has_data = any(argument.partition("=")[0] == "--data" for argument in arguments)
    return run_record.read_resumed_recipe([folder, *seeds], recipe, check=not has_data)

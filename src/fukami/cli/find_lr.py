"""Command ``fukami find-lr``."""

import dataclasses
import json
from pathlib import Path

from fukami.cli.arguments import parse_recipe_arguments
from fukami.cli.inputs import check_writable
from fukami.cli.main import Precision, has_recipe_name
from fukami.cli.train import list_memory_fixes
from fukami.errors import UsageError, suggest_memory_fixes


@dataclasses.dataclass(frozen=True, kw_only=True)
class FindLROptions:
    """Options of ``fukami find-lr`` in addition to the fields of the recipe."""

    min_lr: float = 1e-6
    """Learning rate of the first step."""
    max_lr: float = 10.0
    """Learning rate of the last step; the test stops early if the loss diverges."""
    num_steps: int = 200
    """Number of training steps."""
    out: Path = Path("learning-rates.png")
    """Image file of the loss curve."""
    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:1 or mps."""
    precision: Precision = "auto"
    """Training precision. auto: bfloat16 if it is faster."""


def command(arguments: list[str]) -> None:
    """Find a learning rate for a recipe (range test)."""
    from fukami.engine.recipe import get_recipe

    if not has_recipe_name(arguments, f"{command.__doc__}\nusage: fukami find-lr RECIPE [--field value ...]"):
        return
    name, *flags = arguments
    recipe, options = parse_recipe_arguments(get_recipe(name), FindLROptions, flags, f"fukami find-lr {name}")
    if options.out.suffix.lower() not in (".png", ".jpg", ".pdf", ".svg"):
        raise UsageError(f"--out should name a .png, .jpg, .pdf or .svg file, not {options.out}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    check_writable(options.out.parent)
    from fukami.engine import lr_finder

    with suggest_memory_fixes(*list_memory_fixes(recipe)):
        curve = lr_finder.find_lr(
            recipe,
            options.min_lr,
            options.max_lr,
            options.num_steps,
            device=options.device,
            precision=options.precision,
        )
    lr_finder.plot_lr_curve(curve).savefig(options.out, dpi=110)
    result = {"lr": curve.steepest_lr, "min_loss_lr": curve.min_loss_lr, "steps": len(curve.lrs)}
    print(json.dumps({**result, "figure": str(options.out)}))

"""Command ``fukami find-lr``."""

import json
from pathlib import Path
from typing import Any

from fukami.cli.arguments import run_recipe_cli
from fukami.cli.main import Precision, has_recipe_name
from fukami.errors import UsageError


def command(arguments: list[str]) -> None:
    """Find a learning rate for a recipe (range test)."""
    from fukami.engine.recipe import get_recipe

    if not has_recipe_name(arguments, f"{command.__doc__}\nusage: fukami find-lr RECIPE [--field value ...]"):
        return
    name, *options = arguments

    def run(
        recipe: Any,
        min_lr: float = 1e-6,
        max_lr: float = 10.0,
        num_steps: int = 200,
        out: Path = Path("learning-rates.png"),
        device: str = "auto",
        precision: Precision = "auto",
    ) -> None:
        """Train with a learning rate that grows at each step, and plot the loss (Smith 2017). Prints one JSON object.

        Args:
            recipe: Recipe to train.
            min_lr: Learning rate of the first step.
            max_lr: Learning rate of the last step; the test stops early if the loss diverges.
            num_steps: Number of training steps.
            out: Image file of the loss curve.
            device: Device: auto, cpu, cuda, cuda:1 or mps.
            precision: Training precision. auto: bfloat16 if it is faster.
        """
        from fukami.engine import lr_finder

        if out.suffix.lower() not in (".png", ".jpg", ".pdf", ".svg"):
            raise UsageError(f"--out should name a .png, .jpg, .pdf or .svg file, not {out}")
        curve = lr_finder.find_lr(recipe, min_lr, max_lr, num_steps, device=device, precision=precision)
        out.parent.mkdir(parents=True, exist_ok=True)
        lr_finder.plot_lr_curve(curve).savefig(out, dpi=110)
        print(
            json.dumps(
                {"lr": curve.steepest_lr, "min_loss_lr": curve.min_loss_lr, "steps": len(curve.lrs), "figure": str(out)}
            )
        )

    run_recipe_cli(run, get_recipe(name), options, f"fukami find-lr {name}")

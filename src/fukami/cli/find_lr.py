"""fukami find-lr."""

import json
from pathlib import Path
from typing import Any

from fukami.cli.main import Precision, has_recipe_name, run_cli
from fukami.errors import UsageError


def command(arguments: list[str]) -> None:
    """Find the learning rates at which a recipe trains (range test)."""
    from fukami.engine.recipe import get_recipe

    if not has_recipe_name(arguments, f"{command.__doc__}\nusage: fukami find-lr RECIPE [--field value ...]"):
        return
    name, *rest = arguments

    def run(
        recipe: Any,
        min_lr: float = 1e-6,
        max_lr: float = 10.0,
        steps: int = 200,
        out: Path = Path("learning-rates.png"),
        device: str = "auto",
        precision: Precision = "auto",
    ) -> None:
        """Train for some steps with a rate that grows at each, draw the loss, and print which rates to try.

        Args:
            recipe: The experiment.
            min_lr: Learning rate of the first step.
            max_lr: Learning rate of the last step; the test ends before, once the loss is far above its least.
            steps: Updates from the one to the other.
            out: Image file of the curve.
            device: auto, cpu, cuda, cuda:1 or mps.
            precision: auto takes bfloat16 where it is faster.
        """
        from fukami.engine import lr_finder

        if out.suffix.lower() not in (".png", ".jpg", ".pdf", ".svg"):
            raise UsageError(f"--out should name a .png, .jpg, .pdf or .svg file, not {out}")
        found = lr_finder.find_lr(recipe, min_lr, max_lr, steps, device=device, precision=precision)
        out.parent.mkdir(parents=True, exist_ok=True)
        lr_finder.plot_lr_curve(found).savefig(out, dpi=110)
        print(
            json.dumps(
                {"lr": found.steepest_lr, "most": found.min_loss_lr, "steps": len(found.lrs), "figure": str(out)}
            )
        )

    run.__annotations__ |= {"recipe": get_recipe(name)}
    run_cli(run, rest, f"fukami find-lr {name}")

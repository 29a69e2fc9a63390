"""fukami eval."""

import json
from typing import Literal

from fukami.cli import parse


def command(arguments: list[str]) -> None:
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

"""fukami eval."""

import json
import shlex
from pathlib import Path
from typing import Any, Literal

from fukami.cli import parse


def command(arguments: list[str]) -> None:
    """Judge a run, or several as an ensemble: fukami eval RUN... [--data SPEC] [--vote] [--views N] [--out DIR]."""
    import tyro

    def run(
        runs: tyro.conf.Positional[tuple[str, ...]],
        data: str | None = None,
        device: str = "auto",
        precision: Literal["float32", "bfloat16", "float16"] = "float32",
        vote: bool = False,
        views: int = 1,
        out: Path | None = None,
    ) -> None:
        """Judge a run on test data, or several runs as an ensemble; prints one JSON object.

        Args:
            runs: Folders of runs, or names of weights that ship with the package.
            data: Known name (mnist, cifar10 ...), folder, archive or CSV file. Default: what the run was trained on.
                Always the test part; data that have none and are new to the run are judged whole.
            device: auto, cpu, cuda, cuda:1 or mps.
            precision: Type of the weights and the activations.
            vote: The majority of the runs decides, and not the average of their probabilities.
            views: Test-time augmentation: answers are averaged over each picture and so many less one changed as in
                the training.
            out: Folder for a page about the judgement.
        """
        from fukami import checkpoint

        task = checkpoint.load(*runs, device=device, precision=precision, vote=vote).views(views)
        recipe, _ = checkpoint.describe(checkpoint.locate(runs[0]))
        recipe = recipe if data is None else recipe.on(data)
        batches = recipe.judged()
        result = task.evaluate(batches)
        facts: dict[str, Any] = {"data": getattr(recipe, "dataset", None), "precision": precision, "runs": list(runs)}
        if out:
            from fukami import report

            again = f"fukami eval {shlex.join(arguments)}"
            page = report.judgement(out, result, facts, list(task.figures(batches)), again)
            facts["report"] = str(page)
        print(json.dumps({**result, **facts}))

    parse(run, arguments, "fukami eval")

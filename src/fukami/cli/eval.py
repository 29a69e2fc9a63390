"""fukami eval."""

import json
import shlex
import sys
from pathlib import Path
from typing import Any, Literal

from fukami.cli.main import InferencePrecision, run_cli
from fukami.errors import UsageError


def command(arguments: list[str]) -> None:
    """Evaluate a run, or several runs as an ensemble."""
    import tyro

    def run(
        runs: tyro.conf.Positional[tuple[str, ...]],
        data: str | None = None,
        device: str = "auto",
        precision: InferencePrecision | Literal["all"] = "auto",
        vote: bool = False,
        views: int = 1,
        out: Path | None = None,
        set: tuple[str, ...] = (),
        recipe: Path | None = None,
    ) -> None:
        """Judge a run on test data, or several runs as an ensemble; prints one JSON object.

        Args:
            runs: Folders of runs, or names of weights that ship with the package.
            data: Known name (mnist, cifar10 ...), folder, archive, CSV file or shards. Default: what the run was
                trained on. Always the test part; data that have none and are new to the run are judged whole.
            device: auto, cpu, cuda, cuda:1 or mps.
            precision: What is computed, and with how many bits. auto: float32, or what the run was exported to. all:
                every one of them that the run allows, side by side: accuracy, size, memory and time.
            vote: The majority of the runs decides, and not the average of their probabilities.
            views: Test-time augmentation: answers are averaged over each image and so many less one changed as in
                the training.
            out: Folder for a page about the judgement.
            set: Fields of the recipe that decide how it answers and on what it is judged, such as beam_size=3.
            recipe: File of the private recipe that the run was trained with; code is never taken from a run.
        """
        import dataclasses

        from fukami.engine import checkpoint
        from fukami.engine.recipe import check_data

        if precision == "all" and (len(runs) != 1 or views > 1):
            raise UsageError(f"every precision is measured for one run and one view, not for {len(runs)} and {views}")
        changed = checkpoint.parse_run_overrides(runs, set, recipe)
        task = None
        if precision != "all":
            task = checkpoint.load(
                *runs, device=device, precision=precision, vote=vote, overrides=changed, recipe=recipe
            )
        folder = checkpoint.locate_run(runs[0])
        experiment, _ = checkpoint.read_recipe(folder, recipe)
        experiment = dataclasses.replace(experiment, **changed)
        if data is None:
            check_data(experiment)
        else:
            experiment = experiment.with_data(data)
        own = checkpoint.read_precision(folder) if precision == "auto" else precision
        facts: dict[str, Any] = {"data": getattr(experiment, "data", None), "precision": own, "runs": list(runs)}
        again = f"fukami eval {shlex.join(arguments)}"
        if task is None:
            from fukami.classification import precision_comparison

            steps, left_out = precision_comparison.compare_precisions(runs[0], data, device, recipe)
            print(json.dumps(_report_precisions(steps, left_out, facts, out, again)))
            return
        task.with_views(views)
        batches = experiment.load_eval_data()
        result = task.evaluate(batches)
        if out:
            from fukami.engine import report

            page = report.write_evaluation_report(out, result, facts, list(task.plot_evaluation(batches)), again)
            facts["report"] = str(page)
        print(json.dumps({**result, **facts}))

    run_cli(run, arguments, "fukami eval")


def _report_precisions(
    steps: list[dict[str, Any]], left_out: dict[str, str], facts: dict[str, Any], out: Path | None, again: str
) -> dict[str, Any]:
    """The answer for every precision; a table of it on stderr, and a page of it in the folder ``out``."""
    from fukami.classification import plots as classification_plots
    from fukami.classification import precision_comparison
    from fukami.engine import report

    rows = precision_comparison.format_rows(steps)
    narrow = [row[: precision_comparison.NUM_TERMINAL_COLUMNS] for row in (precision_comparison.COLUMNS, *rows)]
    widths = [max(map(len, column)) for column in zip(*narrow, strict=True)]
    for row in narrow:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)), file=sys.stderr)
    for name, why in left_out.items():
        print(f"without {name}: {why}", file=sys.stderr)
    if out:
        page = report.write_precision_report(
            out, precision_comparison.COLUMNS, rows, classification_plots.plot_precisions(steps), left_out, facts, again
        )
        facts["report"] = str(page)
    metrics = {name: steps[0][name] for name in ("accuracy", "errors", "count", "loss")}
    return {**metrics, **facts, "ladder": steps, "left_out": left_out}

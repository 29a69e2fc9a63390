"""Command ``fukami eval``."""

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fukami.cli.arguments import run_cli
from fukami.cli.inputs import create_output_folder
from fukami.cli.main import InferencePrecision
from fukami.data.parsing import Json
from fukami.errors import UsageError, suggest_memory_fixes

if TYPE_CHECKING:
    from fukami.classification.precision_comparison import PrecisionResult
    from fukami.engine.recipe import Recipe


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
        """Evaluate a run on test data, or several runs as an ensemble. Prints one JSON object.

        Args:
            runs: Folders of runs, or names of bundled weights.
            data: Built-in dataset (mnist, cifar10 ...), folder, archive, CSV file or shards. Default: the dataset of
                the run. The test split is used, or else the validation split; a new dataset without them is used as
                a whole.
            device: Device: auto, cpu, cuda, cuda:1 or mps.
            precision: Precision of inference. auto: float32, or that of an exported run. all: compare accuracy, size,
                memory and time at every precision that the run supports.
            vote: Ensemble by majority vote instead of averaged probabilities.
            views: Test-time augmentation: number of augmented views averaged per image; 1 disables it.
            out: Folder for an HTML report.
            set: Recipe fields that affect prediction or evaluation, such as beam_size=3.
            recipe: File of the custom recipe that the run was trained with; a run never contains code.
        """
        import dataclasses

        from fukami.engine import run_folder, run_record
        from fukami.engine.load_run import load_task, parse_run_overrides
        from fukami.engine.recipe import check_data
        from fukami.engine.train import prepare_eval_data

        if precision == "all" and (len(runs) != 1 or views > 1):
            raise UsageError(f"--precision all compares one run with one view, not {len(runs)} runs with {views} views")
        if precision == "all" and (vote or set):
            raise UsageError(f"--precision all evaluates the run without changes; omit {'--vote' if vote else '--set'}")
        if out:
            create_output_folder(out)
        overrides = parse_run_overrides(runs, set, recipe)
        task = None
        if precision != "all":
            task = load_task(*runs, device=device, precision=precision, vote=vote, overrides=overrides, recipe=recipe)
        folder = run_folder.locate_run(runs[0])
        run_recipe, labels = run_record.read_recipe(folder, recipe)
        run_recipe = dataclasses.replace(run_recipe, **overrides)
        if data is None:
            check_data(run_recipe)
        else:
            run_recipe = run_recipe.with_data(data, labels)
        precision_name = run_record.read_precision(folder) if precision == "auto" else precision
        summary: dict[str, Json] = {
            "data": getattr(run_recipe, "annotations", "") or getattr(run_recipe, "data", None),
            "precision": precision_name,
            "runs": list(runs),
        }
        command_line = f"fukami eval {shlex.join(arguments)}"
        if task is None:
            from fukami.classification import precision_comparison

            results, skipped = precision_comparison.compare_precisions(runs[0], data, device, recipe)
            print(json.dumps(_report_precisions(results, skipped, summary, out, command_line)))
            return
        from fukami.classification.task import set_num_views

        set_num_views(task, views)
        with suggest_memory_fixes(*_list_memory_fixes(run_recipe, precision_name, views)):
            eval_data = prepare_eval_data(run_recipe, task.runtime)
            batches = eval_data.eval_batches
            result = {**task.evaluate(batches), "split": eval_data.eval_split}
        if out:
            from fukami.engine import report

            page = report.write_evaluation_report(
                out, result, summary, list(task.plot_evaluation(batches)), command_line
            )
            summary["report"] = str(page)
        print(json.dumps({**result, **summary}))

    run_cli(run, arguments, "fukami eval")


def _list_memory_fixes(recipe: "Recipe", precision: str, views: int) -> list[str]:
    """List the options that reduce the memory of an evaluation, whose batch size is fixed."""
    from fukami.engine.supervised import SplitLoading

    fixes = ["lower --views"] if views > 1 else []
    if isinstance(recipe, SplitLoading) and vars(recipe)["memory_limit"] > 0:
        fixes.append("stream the images with --set memory_limit=0")
    if precision == "float32":
        fixes.append("use --precision bfloat16")
    return [*fixes, "close other programs"]


def _report_precisions(
    results: "list[PrecisionResult]",
    skipped: dict[str, str],
    summary: dict[str, Json],
    out: Path | None,
    command_line: str,
) -> dict[str, Json]:
    """Print a table of every precision to stderr, write a page to ``out`` and return the metrics."""
    from fukami.classification import plots as classification_plots
    from fukami.classification import precision_comparison
    from fukami.engine import report

    rows = precision_comparison.format_rows(results)
    narrow = [row[: precision_comparison.NUM_TERMINAL_COLUMNS] for row in (precision_comparison.COLUMNS, *rows)]
    widths = [max(map(len, column)) for column in zip(*narrow, strict=True)]
    for row in narrow:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)), file=sys.stderr)
    for name, reason in skipped.items():
        print(f"skipped {name}: {reason}", file=sys.stderr)
    if out:
        page = report.write_precision_report(
            out,
            precision_comparison.COLUMNS,
            rows,
            classification_plots.plot_precisions(results),
            skipped,
            summary,
            command_line,
        )
        summary["report"] = str(page)
    metrics = {name: results[0].metrics[name] for name in ("accuracy", "errors", "count", "loss")}
    return {**metrics, **summary, "precisions": [result.to_json() for result in results], "skipped": skipped}

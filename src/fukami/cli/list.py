"""Command ``fukami list``."""

from fukami.catalogue import RECIPES
from fukami.cli.arguments import run_cli


def command(arguments: list[str]) -> None:
    """List the recipes: task, year, the paper's result and ours."""

    def run(all: bool = False) -> None:
        """List the recipes with a measured result: task, year, the paper's result, ours and the paper.

        Args:
            all: Also list the recipes without a measured result of ours.
        """
        rows = [("recipe", "task", "year", "the paper", "ours", "paper")]
        rows += [
            (name, entry.task, str(entry.year), entry.paper_result, entry.result, entry.paper)
            for name, entry in RECIPES.items()
            if entry.result or all
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())

    run_cli(run, arguments, "fukami list")

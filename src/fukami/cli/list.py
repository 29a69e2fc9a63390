"""Command ``fukami list``."""

from fukami.catalogue import RECIPES
from fukami.cli.arguments import run_cli
from fukami.errors import build_unknown_error, simplify_name


def command(arguments: list[str]) -> None:
    """List the recipes: task, year, the paper's result and ours."""
    import tyro

    def run(name: tyro.conf.Positional[str] = "", all: bool = False) -> None:
        """List the recipes with a measured result: task, year, the paper's result, ours and the paper.

        Args:
            name: List all recipes whose names contain this word, such as resnet; case, hyphens and underscores are
                ignored.
            all: Also list the recipes without a measured result of ours.
        """
        word = simplify_name(name)
        entries = {recipe: entry for recipe, entry in RECIPES.items() if word in simplify_name(recipe)}
        if not entries:
            raise build_unknown_error("recipe", name, RECIPES)
        rows = [("recipe", "task", "year", "the paper", "ours", "paper")]
        rows += [
            (recipe, entry.task, str(entry.year), entry.paper_result, entry.result or "not measured", entry.paper)
            for recipe, entry in entries.items()
            if entry.result or all or name
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())

    run_cli(run, arguments, "fukami list")

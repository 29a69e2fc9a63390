"""fukami list."""

from fukami.cli.main import run_cli


def command(arguments: list[str]) -> None:
    """List the recipes: task, year, the paper's result and ours."""
    from fukami.engine.recipe import get_recipe, list_recipes

    def run(all: bool = False) -> None:
        """List the recipes with a measured result: task, year, the paper's result, ours and the paper.

        Args:
            all: Also list the recipes without a measured result of ours.
        """
        rows = [("recipe", "task", "year", "the paper", "ours", "paper")]
        for name in list_recipes():
            recipe = get_recipe(name)
            about = (recipe.family, str(recipe.year), recipe.paper_result, recipe.reproduced_result, recipe.paper)
            if recipe.reproduced_result or all:
                rows.append((name, *about))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())

    run_cli(run, arguments, "fukami list")

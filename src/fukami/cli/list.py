"""fukami list."""

from fukami.cli.main import run_cli


def command(arguments: list[str]) -> None:
    """Every recipe: paper, year, task, the paper's number and ours."""
    from fukami.engine.recipe import get_recipe, list_recipes

    def run() -> None:
        """Every recipe: paper, year, task, the paper's number and ours."""
        rows = [("recipe", "task", "year", "the paper", "ours", "paper")]
        for name in list_recipes():
            recipe = get_recipe(name)
            rows.append(
                (name, recipe.family, str(recipe.year), recipe.paper_result, recipe.reproduced_result, recipe.paper)
            )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())

    run_cli(run, arguments, "fukami list")

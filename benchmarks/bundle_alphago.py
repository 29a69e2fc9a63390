"""Add a run of AlphaGo Zero to the package, with its model card.

    python benchmarks/bundle_alphago.py RUN NAME [--games 200]

RUN is a run of ``benchmarks/alphago.py``, NAME ``alphago-zero-connect4`` or ``alphago-zero-go7``. The card contains the
test result of the stored weights, and for Connect Four that of ``--games`` games against the exact solver, which take
a quarter of an hour (0: none). Results go to results.csv.
"""

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from pathlib import Path

from alphago import measure_solver, read_evaluations
from common.bundle import write_bundled_run, write_card
from common.record import describe_hardware, record, run_command
from fukami.engine import run_record
from fukami.engine.recipe import build_train_command

MATCH_SIMULATIONS = 800


def main():
    """Write the weights in float16, evaluate them, and write the card."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--games", type=int, default=200)
    options = parser.parse_args()
    recipe, _ = run_record.read_recipe(options.run)
    folder = write_bundled_run(options.run, options.name)
    command = f"fukami eval {options.name}"
    metrics, _ = run_command(command)
    results = {name: value for name, value in metrics.items() if name not in ("runs", "data", "precision", "split")}
    if recipe.game == ("connect4",):
        record(
            options.name, f"optimal, sensible, {recipe.simulations} simulations", metrics["optimal"], command=command
        )
        if options.games:
            match = measure_solver(Namespace(run=options.name, games=options.games, simulations=MATCH_SIMULATIONS))
            results[f"against the solver, {MATCH_SIMULATIONS} simulations"] = {"as_first": match["as_first"]}
    else:
        record(options.name, f"score, {recipe.simulations} simulations", metrics["score"], command=command,
               note=f"{metrics['count']} games against GNU Go level 1")  # fmt: skip
    seconds = read_evaluations(options.run)[-1]["seconds"]
    card = {
        "command": build_train_command(recipe),
        "data": f"{recipe.positions:,} positions of self-play, {seconds / 60:.0f} minutes on {describe_hardware()}",
        "test": results,
    }
    write_card(folder, card)


if __name__ == "__main__":
    main()

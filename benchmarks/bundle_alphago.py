"""Add a run of AlphaGo Zero to the package, with its model card.

    python benchmarks/bundle_alphago.py RUN NAME [--games 200]

RUN is a run of ``benchmarks/alphago.py``, NAME ``alphago-zero-connect4`` or ``alphago-zero-go7``. The card contains the
test result of the stored weights, and for Connect Four that of ``--games`` games against the exact solver. Results go
to results.csv.
"""

import argparse
import json
from pathlib import Path

import torch

from common.record import describe_hardware, record, run_command
from fukami.engine import checkpoint


def main():
    """Write the weights in float16, evaluate them, and write the card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--games", type=int, default=200)
    options = parser.parse_args()
    recipe, labels = checkpoint.read_recipe(options.run)
    folder = checkpoint.BUNDLED_WEIGHTS_DIR / options.name
    folder.mkdir(parents=True, exist_ok=True)
    modules = checkpoint.load_task(options.run).get_modules()
    checkpoint.write_weights(folder, checkpoint.copy_tensors_to_cpu(modules), torch.float16)
    checkpoint.write_recipe(folder, recipe, labels, {})
    metrics, _ = run_command(f"fukami eval {options.name}")
    results = {name: value for name, value in metrics.items() if name not in ("run", "split", "report")}
    if recipe.game == ("connect4",):
        command = f"fukami play {options.name} --against solver --games {options.games} --simulations 800"
        match, seconds = run_command(command)
        results["against the solver, 800 simulations"] = {
            "games": match["games"], "as_first": match["as_first"], "as_second": match["as_second"],
        }  # fmt: skip
        record(f"{options.name} against the solver", "wins as first player, 800 simulations",
               match["as_first"]["wins"] / sum(match["as_first"].values()), seconds=seconds, command=command,
               note=f"{sum(match['as_first'].values())} games as first player")  # fmt: skip
        record(options.name, "optimal, sensible, 64 simulations", metrics["optimal"],
               command=f"fukami eval {options.name}")  # fmt: skip
    else:
        record(options.name, "score, 64 simulations", metrics["score"], command=f"fukami eval {options.name}",
               note=f"{metrics['count']} games against GNU Go level 1")  # fmt: skip
    seconds = json.loads((options.run / "metrics.jsonl").read_text().splitlines()[-1])["seconds"]
    card = {
        "command": f"fukami train alphago-zero {format_options(recipe)}".strip(),
        "data": f"{recipe.positions:,} positions of self-play, {seconds / 60:.0f} minutes on {describe_hardware()}",
        "seed": recipe.seed,
        "test": results,
        "stored": "float16",
    }
    checkpoint.write_recipe(folder, recipe, labels, {"card": card})


def format_options(recipe):
    """Format the fields of a recipe that differ from the defaults as options of the command line."""
    defaults = type(recipe)().get_stored_fields()
    options = []
    for name, value in recipe.get_stored_fields().items():
        if value != defaults[name]:
            values = value if isinstance(value, list | tuple) else [value]
            options.append(" ".join([f"--{name.replace('_', '-')}", *map(str, values)]))
    return " ".join(options)


if __name__ == "__main__":
    main()

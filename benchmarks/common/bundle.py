"""Runs of the package: weights in float16 with a model card."""

from pathlib import Path

import torch

from fukami.engine import run_folder, run_record, run_weights
from fukami.engine.load_run import load_task


def write_bundled_run(run: Path, name: str) -> Path:
    """Write a run as the bundled run ``name``, without a card; return its folder."""
    recipe, labels = run_record.read_recipe(run)
    folder = run_folder.BUNDLED_WEIGHTS_DIR / name
    folder.mkdir(parents=True, exist_ok=True)
    modules = load_task(run).get_modules()
    run_weights.write_weights(folder, run_weights.copy_tensors_to_cpu(modules), torch.float16)
    run_record.write_recipe(folder, recipe, labels, {})
    return folder


def write_card(folder: Path, card: dict) -> None:
    """Write the card of a bundled run."""
    recipe, labels = run_record.read_recipe(folder)
    card = {"seed": recipe.seed, "stored": "float16", **card}
    run_record.write_recipe(folder, recipe, labels, {"card": card})

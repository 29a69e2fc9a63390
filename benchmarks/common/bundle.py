"""Runs of the package: weights in float16 with a model card."""

from pathlib import Path

import torch

from fukami.engine import checkpoint


def write_bundled_run(run: Path, name: str) -> Path:
    """Write a run as the bundled run ``name``, without a card; return its folder."""
    recipe, labels = checkpoint.read_recipe(run)
    folder = checkpoint.BUNDLED_WEIGHTS_DIR / name
    folder.mkdir(parents=True, exist_ok=True)
    modules = checkpoint.load_task(run).get_modules()
    checkpoint.write_weights(folder, checkpoint.copy_tensors_to_cpu(modules), torch.float16)
    checkpoint.write_recipe(folder, recipe, labels, {})
    return folder


def write_card(folder: Path, card: dict) -> None:
    """Write the card of a bundled run."""
    recipe, labels = checkpoint.read_recipe(folder)
    card = {"seed": recipe.seed, "stored": "float16", **card}
    checkpoint.write_recipe(folder, recipe, labels, {"card": card})

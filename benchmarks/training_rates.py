"""Training speed of each recipe at its default size: images per second, on bundled images.

    python benchmarks/training_rates.py [RECIPE ...] [--seconds 20]

Without names, the recipes without a measured result (``fukami.catalogue``). A step is forward, backward and optimizer,
at the precision that ``auto`` selects. Results go to results.csv.
"""

import argparse
import time
from typing import Any

import torch

from common.record import record
from fukami.catalogue import RECIPES
from fukami.data import digits, scenes
from fukami.engine.recipe import get_recipe
from fukami.engine.resumable_loader import wrap_batches
from fukami.engine.runtime import Runtime

UNTRAINED = [name for name, entry in RECIPES.items() if not (entry.result or name.startswith("rcnn"))]
NUM_IMAGES = 32  # of the dataset, from which the batches are taken


def measure_rate(name: str, seconds: float) -> tuple[float, str]:
    """Train the recipe's network for about ``seconds``; returns images per second, and what a batch is."""
    batch_size = 8 if RECIPES[name].task == "classification" else 2
    recipe: Any = get_recipe(name)(batch_size=batch_size)
    runtime = Runtime.start("auto", "auto")
    data = recipe.load_data()
    data.train.setup(runtime)
    task = recipe.build_task(data.labels)
    task.setup(runtime)
    task.prepare_training()
    task.schedule(0.5)
    batch = next(iter(task.iterate_batches(wrap_batches(data.train))))
    for _ in range(2):
        task.step(batch)
    start, count, elapsed = time.monotonic(), 0, 0.0
    while elapsed <= seconds:
        task.step(batch)
        if runtime.device.type == "cuda":
            torch.cuda.synchronize()
        count, elapsed = count + 1, time.monotonic() - start
    side = f"{batch.images.shape[-2]}×{batch.images.shape[-1]}" if hasattr(batch, "images") else str(recipe.size)
    return count * batch_size / elapsed, f"batches of {batch_size}, {side} pixels, {runtime.precision}"


def main() -> None:
    """Measure the recipes that are named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="*", default=UNTRAINED)
    parser.add_argument("--seconds", type=float, default=20)
    options = parser.parse_args()
    images, labels = digits.load_digits()
    digits.load_digits = lambda: (images[:NUM_IMAGES], labels[:NUM_IMAGES])
    scenes.NUM_TRAIN = scenes.NUM_TEST = NUM_IMAGES // 2
    for name in options.recipes:
        rate, note = measure_rate(name, options.seconds)
        command = f"python benchmarks/training_rates.py {name}"
        record(f"training {name}", "images per second", rate, command=command, note=note)


if __name__ == "__main__":
    main()

"""Draw the figures of augmentation.md, optimization.md and ensembles.md in docs/guides.

python docs/figures/scripts/methods.py schedules
python docs/figures/scripts/methods.py find-lr         learning-rate range test on the bundled digits, half a minute
python docs/figures/scripts/methods.py augmentation    needs CIFAR-10 in $FUKAMI_DATA
python docs/figures/scripts/methods.py ensemble        three short training runs on the bundled digits, one minute
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

import fukami
from fukami.cli import augmentation_grids
from fukami.engine import checkpoint, lr_finder, schedules

HERE = Path(__file__).parents[1]
OPERATIONS = ("flip", "pad-crop=4", "rotate=15", "brightness", "saturation", "hue=0.05", "cutmix")
SCHEDULES = [  # values of --schedule, in rows
    ["constant", "step=2", "multistep=0.5,0.75", "exponential=0.01"],
    ["polynomial=1", "cosine", "one-cycle", "cosine, --cycles 4"],
]


def save(figure: Figure, name: str) -> None:
    """Save a figure with a palette of 192 colors."""
    path = HERE / f"{name}.png"
    figure.savefig(path, dpi=100)
    Image.open(path).convert("RGB").quantize(192).save(path, optimize=True)
    sys.stdout.write(f"{path.name}: {path.stat().st_size:,} bytes\n")


def plot_schedules() -> None:
    """Plot every learning-rate schedule with a warm-up of 10 % of the steps."""
    figure = Figure(figsize=(10.5, 3.8), layout="constrained")
    positions = np.linspace(0, 1, 1001)[:-1]
    for row, specs in zip(figure.subplots(2, 4, sharex=True, sharey=True), SCHEDULES, strict=True):
        for axes, spec in zip(row, specs, strict=True):
            name, _, cycles = spec.partition(", --cycles ")
            schedule = schedules.parse_schedule(name, warmup=0.1)
            schedule = schedules.repeat_schedule(schedule, int(cycles)) if cycles else schedule
            axes.plot(positions, [schedule(float(position)) for position in positions], color="#3c6a9c", lw=1.6)
            axes.set_title(spec, fontsize=10)
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(labelsize=8)
    figure.supxlabel("fraction of the training", fontsize=9)
    figure.supylabel("fraction of --lr", fontsize=9)
    matplotlib.rcParams.update({"svg.hashsalt": "fukami", "svg.fonttype": "path", "font.family": "DejaVu Sans"})
    figure.savefig(HERE / "schedules.svg", metadata={"Date": None})


def plot_lr_range_test() -> None:
    """Plot the learning-rate range test of ``fukami find-lr deep-convnet``."""
    curve = lr_finder.find_lr(fukami.get_recipe("deep-convnet")(), 1e-6, 10.0, 200, device="cpu", precision="float32")
    save(lr_finder.plot_lr_curve(curve), "find-lr")
    sys.stdout.write(f"steepest at {curve.steepest_lr:.2g}, minimum at {curve.min_loss_lr:.2g}\n")


def draw_augmentation() -> None:
    """Draw the grid of augmented images of ``fukami show cifar10``."""
    path = HERE / "augmentation.png"
    augmentation_grids.save_grid(
        augmentation_grids.sample_images("cifar10", OPERATIONS, num_images=6, num_variants=6, seed=2), path
    )
    Image.open(path).convert("RGB").save(path, optimize=True)
    sys.stdout.write(f"{path.name}: {path.stat().st_size:,} bytes\n")


def plot_ensemble() -> None:
    """Plot the ensemble members as in the report of ``fukami train ... --num-seeds 3``."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [
            "train",
            "deep-convnet",
            "--epochs",
            "8",
            "--batch-size",
            "50",
            "--num-seeds",
            "3",
            "--device",
            "cpu",
        ]
        subprocess.run([sys.executable, "-m", "fukami", *arguments, "--out", folder], check=True)
        task = checkpoint.load_task(*(f"{folder}/seed-{seed}" for seed in range(3)), device="cpu")
        figures = dict(task.plot_evaluation(fukami.get_recipe("deep-convnet")().load_eval_data().eval_batches))
        save(figures["Ensemble members"][0][1], "ensemble")


if __name__ == "__main__":
    figures = {
        "schedules": plot_schedules,
        "find-lr": plot_lr_range_test,
        "augmentation": draw_augmentation,
        "ensemble": plot_ensemble,
    }
    if len(sys.argv) != 2 or sys.argv[1] not in figures:
        sys.exit(__doc__)
    figures[sys.argv[1]]()

"""Draw the figures of augmentation.md, optimization.md and ensembles.md in docs/guides.

    python docs/figures/scripts/methods.py schedules
    python docs/figures/scripts/methods.py find-lr         learning-rate range test on the bundled digits, half a minute
    python docs/figures/scripts/methods.py augmentation    needs CIFAR-10 in $FUKAMI_DATA
    python docs/figures/scripts/methods.py subset FILE     writes the CSV file of the next training
    python docs/figures/scripts/methods.py ensemble RUNS

RUNS is the folder of these five runs, 12 minutes on two cores. FILE lists 5,000 training images of CIFAR-10 and its
test images, which are image files (cifar10.zip) in $FUKAMI_DATA:

    fukami train resnet20 --data FILE --val-fraction 0 --epochs 20 --eval-every 20 --batch-size 50 --lr 0.1 \\
      --num-seeds 5 --out RUNS
"""

import csv
import sys
from pathlib import Path

import matplotlib
import numpy as np
from images import create_parser, render_figure
from matplotlib.figure import Figure
from PIL import Image

import fukami
from fukami.cli import augmentation_grids
from fukami.data import cifar, image_folder
from fukami.engine import lr_finder, run_record, schedules
from fukami.engine.load_run import load_task
from fukami.image import plots as image_plots

OPERATIONS = ("flip", "pad-crop=4", "rotate=15", "brightness", "saturation", "hue=0.05", "cutmix")
SCHEDULES = [  # values of --schedule, in rows
    ["constant", "step=2", "multistep=0.5,0.75", "exponential=0.01"],
    ["polynomial=1", "cosine", "one-cycle", "cosine, --cycles 4"],
]
SUBSET_INTERVAL, NUM_SEEDS = 10, 5  # every tenth training image of CIFAR-10; members of the ensemble


def save_palette(image: Image.Image, path: Path) -> None:
    """Write a PNG file with a palette of 192 colors."""
    image.quantize(192).save(path, optimize=True)


def plot_schedules(out: Path) -> None:
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
    figure.savefig(out / "schedules.svg", metadata={"Date": None})


def plot_lr_range_test(out: Path) -> None:
    """Plot the learning-rate range test of ``fukami find-lr deep-convnet``."""
    curve = lr_finder.find_lr(fukami.get_recipe("deep-convnet")(), 1e-6, 10.0, 200, device="cpu", precision="float32")
    save_palette(render_figure(lr_finder.plot_lr_curve(curve)), out / "find-lr.png")
    sys.stdout.write(f"steepest at {curve.steepest_lr:.2g}, minimum at {curve.min_loss_lr:.2g}\n")


def draw_augmentation(out: Path) -> None:
    """Draw the grid of augmented images of ``fukami show cifar10``."""
    path = out / "augmentation.png"
    options = augmentation_grids.GridOptions(OPERATIONS, num_variants=6, seed=2)
    rows = augmentation_grids.sample_images("cifar10", options)
    augmentation_grids.save_grid(image_plots.plot_variants(rows), path)
    Image.open(path).convert("RGB").save(path, optimize=True)


def write_subset(file: Path) -> None:
    """Write a CSV file with every tenth training image and all test images of CIFAR-10."""
    source = cifar.load_cifar("cifar10")
    if not isinstance(source, Path):
        raise SystemExit("the subset needs CIFAR-10 as image files; put cifar10.zip into $FUKAMI_DATA")
    splits = image_folder.scan_folder(source)
    with file.open("w", newline="") as target:
        writer = csv.writer(target)
        writer.writerow(("path", "label", "split"))
        for split, interval in (("train", SUBSET_INTERVAL), ("test", 1)):
            images = list(zip(splits[split].files, splits[split].class_names, strict=True))
            writer.writerows((path, label, split) for path, label in images[::interval])


def plot_ensemble(runs: Path, out: Path) -> None:
    """Plot the members of an ensemble as in the report of ``fukami train ... --num-seeds 5``, with bars from zero."""
    folders = [runs / f"seed-{seed}" for seed in range(NUM_SEEDS)]
    task = load_task(*folders, device="cpu")
    recipe, _ = run_record.read_recipe(folders[0])
    figures = dict(task.plot_evaluation(recipe.load_eval_data().eval_batches))
    panels = []
    for title, figure in figures["Ensemble members"]:
        (axes,) = figure.axes
        axes.set_title(title, fontsize=11)
        if axes.containers:
            axes.set_ylim(bottom=0)
            axes.set_xticks(range(NUM_SEEDS + 1), [*(f"seed {seed}" for seed in range(NUM_SEEDS)), "ensemble"])
            axes.get_xticklabels()[-1].set_fontweight("bold")
            figure.set_size_inches(5.8, 3.2)
        else:
            axes.set(xlabel="seed", ylabel="seed")
            axes.set_xticks(range(NUM_SEEDS), map(str, range(NUM_SEEDS)))
            axes.set_yticks(range(NUM_SEEDS), map(str, range(NUM_SEEDS)))
        panels.append(render_figure(figure))
    canvas = Image.new("RGB", (sum(panel.width for panel in panels), panels[0].height), "white")
    canvas.paste(panels[0], (0, 0))
    canvas.paste(panels[1], (panels[0].width, 0))
    save_palette(canvas, out / "ensemble.png")


if __name__ == "__main__":
    parser = create_parser(__doc__)
    parser.add_argument("figure", choices=("schedules", "find-lr", "augmentation", "subset", "ensemble"))
    parser.add_argument("path", type=Path, nargs="?", help="The CSV file to write, or the folder of the runs.")
    options = parser.parse_args()
    match options.figure, options.path:
        case "schedules", None:
            plot_schedules(options.out)
        case "find-lr", None:
            plot_lr_range_test(options.out)
        case "augmentation", None:
            draw_augmentation(options.out)
        case "subset", Path():
            write_subset(options.path)
        case "ensemble", Path():
            plot_ensemble(options.path, options.out)
        case _:
            parser.error("subset and ensemble need a path, and the other figures have none")

"""Make the figures of ../augmentation.md, ../optimization.md, ../ensembles.md and ../transfer.md.

python docs/figures/scripts/methods.py schedules
python docs/figures/scripts/methods.py rates           a range test of DeepConvNet on the embedded digits, half a minute
python docs/figures/scripts/methods.py augmentation    needs CIFAR-10 in $FUKAMI_DATA
python docs/figures/scripts/methods.py ensemble        three short trainings on the embedded digits, one minute
python docs/figures/scripts/methods.py transfer OUT    of the runs that benchmarks/transfer.py left in the folder OUT
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
from fukami import leaderboard
from fukami.cli import augmentation_grids
from fukami.engine import lr_finder, schedules

HERE = Path(__file__).parents[1]
WORDS = ("flip", "pad-crop=4", "rotate=15", "brightness", "saturation", "hue=0.05", "cutmix")
COURSES = [  # what --schedule takes, in rows
    ["constant", "step=2", "multistep=0.5,0.75", "exponential=0.01"],
    ["polynomial=1", "cosine", "one-cycle", "cosine, --cycles 4"],
]


def save(figure: Figure, name: str, colours: int = 192) -> None:
    """Write a figure beside this file, in few colours."""
    path = HERE / f"{name}.png"
    figure.savefig(path, dpi=100)
    Image.open(path).convert("RGB").quantize(colours).save(path, optimize=True)
    sys.stdout.write(f"{path.name}: {path.stat().st_size:,} bytes\n")


def courses() -> None:
    """Every schedule with a warm-up of a tenth."""
    figure = Figure(figsize=(10.5, 3.8), layout="constrained")
    places = np.linspace(0, 1, 1001)[:-1]
    for row, specs in zip(figure.subplots(2, 4, sharex=True, sharey=True), COURSES, strict=True):
        for axes, spec in zip(row, specs, strict=True):
            word, _, cycles = spec.partition(", --cycles ")
            course = schedules.parse_schedule(word, warmup=0.1)
            course = schedules.repeat_schedule(course, int(cycles)) if cycles else course
            axes.plot(places, [course(float(place)) for place in places], color="#3c6a9c", lw=1.6)
            axes.set_title(spec, fontsize=10)
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(labelsize=8)
    figure.supxlabel("share of the training", fontsize=9)
    figure.supylabel("share of --lr", fontsize=9)
    matplotlib.rcParams.update({"svg.hashsalt": "fukami", "svg.fonttype": "path", "font.family": "DejaVu Sans"})
    figure.savefig(HERE / "schedules.svg", metadata={"Date": None})


def rates() -> None:
    """The range test that ``fukami find-lr deep-convnet`` makes."""
    found = lr_finder.find_lr(fukami.get_recipe("deep-convnet")(), 1e-6, 10.0, 200, device="cpu", precision="float32")
    save(lr_finder.plot_lr_curve(found), "find-lr")
    sys.stdout.write(f"falls quickest at {found.steepest_lr:.2g}, least at {found.min_loss_lr:.2g}\n")


def augmentation() -> None:
    """The image that ``fukami show cifar10`` writes."""
    path = HERE / "augmentation.png"
    augmentation_grids.save_grid(
        augmentation_grids.sample_images("cifar10", WORDS, num_images=6, num_variants=6, seed=2), path
    )
    Image.open(path).convert("RGB").save(path, optimize=True)
    sys.stdout.write(f"{path.name}: {path.stat().st_size:,} bytes\n")


def ensemble() -> None:
    """The figure of the page that ``fukami train ... --num-seeds 3`` writes."""
    with tempfile.TemporaryDirectory() as place:
        words = ["train", "deep-convnet", "--epochs", "8", "--batch-size", "50", "--num-seeds", "3", "--device", "cpu"]
        subprocess.run([sys.executable, "-m", "fukami", *words, "--out", place], check=True)
        task = fukami.load(*(f"{place}/seed-{number}" for number in range(3)), device="cpu")
        figures = dict(task.plot_evaluation(fukami.get_recipe("deep-convnet")().load_eval_data()))
        save(figures["The members and what they do together"], "ensemble")


def transfer(runs: str) -> None:
    """The left curves of ``fukami board``: a network from scratch, and others that begin with published weights."""
    (found,), _ = leaderboard.load_leaderboards(Path(runs))
    figure = leaderboard.plot_curves(found)
    left, right = figure.axes
    right.remove()
    left.set_subplotspec(figure.add_gridspec(1, 1)[0])
    figure.set_size_inches(7, 3.4)
    save(figure, "transfer")


if __name__ == "__main__":
    makers = {
        "schedules": courses, "rates": rates, "augmentation": augmentation, "ensemble": ensemble, "transfer": transfer,
    }  # fmt: skip
    if len(sys.argv) - 2 != (sys.argv[1:2] == ["transfer"]) or sys.argv[1] not in makers:
        sys.exit(__doc__)
    makers[sys.argv[1]](*sys.argv[2:])

"""Draw the learning curves of a leaderboard: four short training runs on the bundled digits.

python docs/figures/scripts/board.py    writes docs/figures/board.svg
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from fukami.leaderboard import page as leaderboard_page
from fukami.leaderboard import runs as leaderboard_runs

RUNS = {"deep-convnet": [], "seed-1": ["--seed", "1"], "slow": ["--lr", "0.0005"], "plain": ["--augment"]}


def main() -> None:
    """Train the runs and draw their learning curves."""
    with tempfile.TemporaryDirectory() as folder:
        for name, flags in RUNS.items():
            arguments = [
                "train",
                "deep-convnet",
                "--epochs",
                "8",
                "--batch-size",
                "50",
                *flags,
                "--out",
                f"{folder}/{name}",
            ]
            subprocess.run([sys.executable, "-m", "fukami", *arguments], check=True)
        (board,), _ = leaderboard_runs.load_leaderboards(Path(folder))
    matplotlib.rcParams.update({"svg.hashsalt": "fukami", "svg.fonttype": "path", "font.family": "DejaVu Sans"})
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    leaderboard_page.draw_curves(left, board, "epoch")
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    leaderboard_page.draw_curves(right, board, "seconds")
    left.set_ylabel(board.metric)
    figure.savefig(Path(__file__).parents[1] / "board.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()

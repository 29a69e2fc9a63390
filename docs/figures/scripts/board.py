"""Draw the curves of a leaderboard: four short trainings on the embedded digits, half a minute on one core.

python docs/figures/scripts/board.py    writes board.svg beside this file
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib

from fukami import leaderboard

RUNS = {"deep-convnet": [], "seed-1": ["--seed", "1"], "slow": ["--lr", "0.0005"], "plain": ["--augment"]}


def main() -> None:
    """Train, rank, draw."""
    with tempfile.TemporaryDirectory() as place:
        for name, fields in RUNS.items():
            words = [
                "train",
                "deep-convnet",
                "--epochs",
                "8",
                "--batch-size",
                "50",
                *fields,
                "--out",
                f"{place}/{name}",
            ]
            subprocess.run([sys.executable, "-m", "fukami", *words], check=True)
        (found,), _ = leaderboard.load_leaderboards(Path(place))
    matplotlib.rcParams.update({"svg.hashsalt": "fukami", "svg.fonttype": "path", "font.family": "DejaVu Sans"})
    leaderboard.plot_curves(found).savefig(Path(__file__).parents[1] / "board.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()

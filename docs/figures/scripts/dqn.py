"""Draw dqn-pong.webp, dqn-catch.webp and dqn-curves.webp of docs/landmarks/dqn.md.

    python docs/figures/scripts/dqn.py PONG CATCH

PONG is a run of the first command, 71 minutes on two cores, which needs the extra atari, and CATCH of the second one,
two minutes:

    fukami train dqn --env pong --steps 1_200_000 --buffer-size 400_000 --learning-starts 10_000 \\
      --exploration-fraction 0.166667 --target-update-interval 1000 --num-envs 8 --schedule polynomial \\
      --eval-every 200_000 --double
    fukami train dqn
"""

import json
from pathlib import Path

from images import create_parser, render_figure, save_image
from matplotlib.figure import Figure

from fukami.cli.main import find_command
from fukami.engine import report

COLUMNS = 3  # panels in a row of the curves


def plot_curves(run: Path) -> Figure:
    """Plot the training curves of the run's report."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    train_lines, eval_lines = ([line for line in lines if line["phase"] == phase] for phase in ("train", "eval"))
    names = report.list_curves(train_lines, eval_lines)
    rows = -(-len(names) // COLUMNS)
    figure = Figure(figsize=(10, 2.7 * rows), layout="constrained")
    for position, name in enumerate(names, start=1):
        title = "learning rate" if name == "lr" else name.replace("_", " ")
        axes = figure.add_subplot(rows, COLUMNS, position, title=title)
        report.draw_curve(axes, name, train_lines, eval_lines)
    return figure


if __name__ == "__main__":
    parser = create_parser(__doc__)
    parser.add_argument("pong", type=Path, help="Run on pong.")
    parser.add_argument("catch", type=Path, help="Run on catch.")
    options = parser.parse_args()
    for run, name, flags in (
        (options.pong, "dqn-pong", ["--max-seconds", "12"]),
        (options.catch, "dqn-catch", ["--episodes", "3"]),
    ):
        find_command("play")([str(run), *flags, "--out", str(options.out / f"{name}.webp")])
    save_image(render_figure(plot_curves(options.pong)), options.out / "dqn-curves.webp")

"""Draw dqn-pong.webp, dqn-catch.webp and dqn-curves.webp of docs/landmarks/dqn.md.

python docs/figures/scripts/dqn.py PONG CATCH    PONG: run of dqn --env pong; CATCH: run of dqn
"""

import json
import sys
from pathlib import Path

from matplotlib.figure import Figure

from fukami.cli.main import find_command
from fukami.engine import report

HERE = Path(__file__).parents[1]

if __name__ == "__main__":
    pong, catch = sys.argv[1:]
    find_command("play")([pong, "--max-seconds", "12", "--out", str(HERE / "dqn-pong.webp")])
    find_command("play")([catch, "--episodes", "3", "--out", str(HERE / "dqn-catch.webp")])
    lines = [json.loads(line) for line in (Path(pong) / "metrics.jsonl").read_text().splitlines()]
    train_lines, eval_lines = ([line for line in lines if line["phase"] == phase] for phase in ("train", "eval"))
    names = report.list_curves(train_lines, eval_lines)
    figure = Figure(figsize=(12, 3 * -(-len(names) // 3)), layout="constrained")
    for position, name in enumerate(names, start=1):
        axes = figure.add_subplot(-(-len(names) // 3), 3, position, title=name)
        report.draw_curve(axes, name, train_lines, eval_lines)
    figure.savefig(HERE / "dqn-curves.webp", dpi=80, pil_kwargs={"quality": 85})

"""Draw dqn-pong.webp, dqn-catch.webp and dqn-curves.webp of docs/landmarks/dqn.md.

python docs/figures/scripts/dqn.py PONG CATCH    PONG: run of dqn --env pong; CATCH: run of dqn
"""

import json
import sys
from pathlib import Path

from fukami.cli.main import find_command
from fukami.engine import report

HERE = Path(__file__).parents[1]

if __name__ == "__main__":
    pong, catch = sys.argv[1:]
    find_command("play")([pong, "--max-seconds", "12", "--out", str(HERE / "dqn-pong.webp")])
    find_command("play")([catch, "--episodes", "3", "--out", str(HERE / "dqn-catch.webp")])
    lines = [json.loads(line) for line in (Path(pong) / "metrics.jsonl").read_text().splitlines()]
    train_lines, eval_lines = ([line for line in lines if line["phase"] == phase] for phase in ("train", "eval"))
    report.plot_curves(train_lines, eval_lines).savefig(HERE / "dqn-curves.webp", dpi=80, pil_kwargs={"quality": 85})

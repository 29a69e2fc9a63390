"""How many broken and hostile files are neither read nor refused by name, in bounded time and memory.

    python benchmarks/fuzz.py [--cases 50000] [--seed 1]

The cases are those of ``tests/fuzz_cases.py``, of which the suite runs 2,000; those of a run are made of a small one
that is trained first. Each failure is printed with what repeats it. Results go to results.csv.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import fukami
from common.record import record

CASES = Path(__file__).parents[1] / "tests" / "fuzz_cases.py"


def main() -> None:
    """Train a run, and run the cases in a process of their own."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--cases", type=int, default=50_000)
    options.add_argument("--seed", type=int, default=1)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run, note = Path(folder) / "run", Path(folder) / "case"
        recipe = fukami.get_recipe("deep-convnet")(epochs=1, batch_size=200, widths=(4, 4, 4, 4, 8, 8), hidden=8)
        fukami.train(recipe, run, device="cpu", precision="float32")
        command = [sys.executable, CASES, "--cases", given.cases, "--seed", given.seed, "--run", run, "--note", note]
        environment = {**os.environ, "MALLOC_ARENA_MAX": "2"}
        done = subprocess.run([*map(str, command)], stdout=subprocess.PIPE, text=True, env=environment)
        if not done.stdout:
            raise SystemExit(f"the process ended with status {done.returncode} in {note.read_text()}")
    found = json.loads(done.stdout)
    for failure in found["failures"]:
        print(json.dumps(failure))
    note_ = f"{found['worked']} read, {found['refused']} refused by name, in {found['seconds']} s"
    command_ = f"python benchmarks/fuzz.py --cases {given.cases} --seed {given.seed}"
    record("hostile files", "failures", len(found["failures"]), seed=given.seed, command=command_, note=note_)


if __name__ == "__main__":
    main()

"""Fuzz test: number of corrupted and hostile files that are neither read nor rejected with an error message.

    python benchmarks/fuzz.py [--cases 50000] [--seed 1]

The cases are those of ``tests/fuzz_cases.py``, of which the tests run 2,000; they have limited time and memory. Cases
of a run modify a small run that is trained first. Each failure is printed with its reproduction. Results go to
results.csv.
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
    """Train a run, and run the cases in a separate process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run, case_file = Path(folder) / "run", Path(folder) / "case"
        recipe = fukami.get_recipe("deep-convnet")(epochs=1, batch_size=200, widths=(4, 4, 4, 4, 8, 8), hidden=8)
        fukami.train(recipe, run, device="cpu", precision="float32")
        command = [
            sys.executable,
            CASES,
            "--cases",
            options.cases,
            "--seed",
            options.seed,
            "--run",
            run,
            "--note",
            case_file,
        ]
        environment = {**os.environ, "MALLOC_ARENA_MAX": "2"}
        process = subprocess.run([*map(str, command)], stdout=subprocess.PIPE, text=True, env=environment)
        if not process.stdout:
            raise SystemExit(f"the process ended with status {process.returncode} in {case_file.read_text()}")
    result = json.loads(process.stdout)
    for failure in result["failures"]:
        print(json.dumps(failure))
    note = f"{result['worked']} read, {result['rejected']} rejected with an error, in {result['seconds']} s"
    record_command = f"python benchmarks/fuzz.py --cases {options.cases} --seed {options.seed}"
    record("hostile files", "failures", len(result["failures"]), seed=options.seed, command=record_command, note=note,
           device="cpu")  # fmt: skip


if __name__ == "__main__":
    main()

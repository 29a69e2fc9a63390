"""Fuzz test of 2,000 corrupted and malicious files: each works or is rejected, in bounded time and memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES, SEED = 2000, 0


@pytest.fixture(scope="session")
def small_run(tmp_path_factory):
    """Run of a small DeepConvNet, trained for one epoch on the bundled digits."""
    import fukami

    out = tmp_path_factory.mktemp("fuzz") / "run"
    recipe = fukami.get_recipe("deep-convnet")(epochs=1, batch_size=200, widths=(4, 4, 4, 4, 8, 8), hidden=8)
    fukami.train(recipe, out, device="cpu", precision="float32")
    return out


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the memory of a process is read from /proc")
def test_corrupted_and_malicious_files_work_or_are_rejected(small_run, tmp_path):
    """Run the cases in a process with a limited address space; a failure has the seed and number to repeat it."""
    note = tmp_path / "case"
    script = Path(__file__).parents[1].joinpath("fuzz_cases.py")
    command = [sys.executable, script, "--cases", CASES, "--seed", SEED, "--run", small_run, "--note", note]
    environment = {**os.environ, "MALLOC_ARENA_MAX": "2", "OMP_NUM_THREADS": "1"}
    process = subprocess.run([*map(str, command)], capture_output=True, text=True, env=environment, timeout=900)
    assert process.stdout, f"{note.read_text() if note.exists() else 'before the first case'}: {process.stderr[-3000:]}"
    results = json.loads(process.stdout)
    assert results["failures"] == []
    assert results["worked"] + results["rejected"] == results["cases"] == CASES
    assert min(results["worked"], results["rejected"]) > CASES / 10  # both outcomes occur often

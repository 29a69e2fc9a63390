"""Two thousand broken and hostile files: each works or is refused by name, in bounded time and memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES, SEED = 2000, 0


@pytest.fixture(scope="session")
def small_run(tmp_path_factory):
    """A run of a small DeepConvNet, of one epoch of the embedded digits."""
    import fukami

    out = tmp_path_factory.mktemp("fuzz") / "run"
    recipe = fukami.get_recipe("deep-convnet")(epochs=1, batch_size=200, widths=(4, 4, 4, 4, 8, 8), hidden=8)
    fukami.train(recipe, out, device="cpu", precision="float32")
    return out


@pytest.mark.skipif(sys.platform != "linux", reason="the memory of a process is read from /proc")
def test_broken_and_hostile_files_work_or_are_refused_by_name(small_run, tmp_path):
    """In a process of its own with a limited address space; a failure has its seed and number, to be repeated."""
    note = tmp_path / "case"
    script = Path(__file__).parents[1].joinpath("fuzz_cases.py")
    command = [sys.executable, script, "--cases", CASES, "--seed", SEED, "--run", small_run, "--note", note]
    environment = {**os.environ, "MALLOC_ARENA_MAX": "2", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, env=environment, timeout=900)
    assert done.stdout, f"{note.read_text() if note.exists() else 'before the first case'}: {done.stderr[-3000:]}"
    found = json.loads(done.stdout)
    assert found["failures"] == []
    assert found["worked"] + found["refused"] == found["cases"] == CASES
    assert min(found["worked"], found["refused"]) > CASES / 10  # neither is everything refused nor nothing broken

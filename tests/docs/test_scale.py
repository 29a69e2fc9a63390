"""The scripts for schedulers: they parse, and the flags that they give are there."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from fukami.engine.recipe import get_recipe

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "docs" / "examples" / "scale").iterdir())
PAGES = [ROOT / "docs" / "guides" / "multi-gpu.md"]


def commands(path, program):
    """The words after the program, of each command; one may span lines that end in a backslash."""
    text = re.sub(r"\s*\\\n\s*", " ", path.read_text(encoding="utf-8"))
    for line in text.splitlines():
        place = line.find(program)
        if place >= 0 and ("-m fukami" in line or place == 0):
            yield shlex.split(line[place + len(program) :].partition("  ")[0])


def flags(words):
    return {word[2:].partition("=")[0] for word in words if word.startswith("--")}


def test_there_is_one_for_each_scheduler():
    assert [path.name for path in SCRIPTS] == ["kubernetes.yaml", "skypilot.yaml", "slurm.sh"]


@pytest.mark.parametrize("path", [*SCRIPTS, *PAGES], ids=lambda path: path.name)
def test_fukami_takes_the_flags(path, fukami):
    found = list(commands(path, "fukami train "))
    assert found
    for recipe, *words in found:
        known = set(re.findall(r"--([\w-]+)", fukami("train", recipe, "--help").out))
        assert {"out", "resume", "batch-size"} <= known
        assert flags(words) <= known, words


@pytest.mark.parametrize("path", [*SCRIPTS, *PAGES], ids=lambda path: path.name)
def test_torchrun_takes_the_flags(path):
    from torch.distributed.run import get_args_parser

    options = {option[2:] for action in get_args_parser()._actions for option in action.option_strings}
    found = list(commands(path, "torchrun "))
    assert found
    for words in found:
        own = words[: words.index("-m")]
        assert words[words.index("-m") + 1] == "fukami"
        assert flags(own) <= options, own
        assert {"rdzv-endpoint", "standalone"} & flags(own)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_started_job_goes_on(path):
    """A scheduler starts a job again with the same command."""
    (words,) = commands(path, "fukami train ")
    assert {"resume", "out", "timeout"} <= flags(words)
    batch, lr = (float(words[words.index(f"--{name}") + 1]) for name in ("batch-size", "lr"))
    assert batch / 32 * lr == pytest.approx(0.1 * 8192 / 256)  # Goyal et al. 2017; the recipe's own batch is 32
    assert get_recipe("resnet50")().batch_size == 32


def test_the_shell_script_parses():
    script = next(path for path in SCRIPTS if path.suffix == ".sh")
    subprocess.run(["bash", "-n", script], check=True)


def test_the_yaml_parses():
    yaml = pytest.importorskip("yaml")
    service, job = yaml.safe_load_all((SCRIPTS[0]).read_text(encoding="utf-8"))
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert service["kind"] == "Service"
    assert service["spec"]["clusterIP"] == "None"
    assert job["spec"]["completionMode"] == "Indexed"
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"]["job-name"] == job["metadata"]["name"]
    count, name = job["spec"]["completions"], job["metadata"]["name"]
    script = container["args"][0]
    assert job["spec"]["parallelism"] == count
    assert f"--nnodes {count} " in script
    assert f"{name}-0.{pod['subdomain']}:{service['spec']['ports'][0]['port']}" in script
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    subprocess.run(["bash", "-n", "-c", script], check=True)

    task = yaml.safe_load(SCRIPTS[1].read_text(encoding="utf-8"))
    assert {"resources", "num_nodes", "file_mounts", "setup", "run"} <= set(task)
    subprocess.run(["bash", "-n", "-c", task["run"]], check=True)

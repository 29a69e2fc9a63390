"""Tests of the scripts for schedulers: they parse, and their flags exist."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from fukami.engine.recipe import get_recipe

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "docs" / "examples" / "scale").iterdir())
PAGES = [ROOT / "docs" / "guides" / "multi-gpu.md"]


def list_commands(path, program):
    """Yield the arguments of each command of the program; a backslash continues a line."""
    text = re.sub(r"\s*\\\n\s*", " ", path.read_text(encoding="utf-8"))
    for line in text.splitlines():
        start = line.find(program)
        if start >= 0 and ("-m fukami" in line or start == 0):
            yield shlex.split(line[start + len(program) :].partition("  ")[0])


def list_flags(arguments):
    return {argument[2:].partition("=")[0] for argument in arguments if argument.startswith("--")}


def test_there_is_a_script_for_each_scheduler():
    assert [path.name for path in SCRIPTS] == ["kubernetes.yaml", "skypilot.yaml", "slurm.sh"]


@pytest.mark.parametrize("path", [*SCRIPTS, *PAGES], ids=lambda path: path.name)
def test_fukami_accepts_the_flags(path, fukami):
    train_commands = list(list_commands(path, "fukami train "))
    assert train_commands
    for recipe, *arguments in train_commands:
        valid = set(re.findall(r"--([\w-]+)", fukami("train", recipe, "--help").out))
        assert {"out", "resume", "batch-size"} <= valid
        assert list_flags(arguments) <= valid, arguments


@pytest.mark.parametrize("path", [*SCRIPTS, *PAGES], ids=lambda path: path.name)
def test_torchrun_accepts_the_flags(path):
    from torch.distributed.run import get_args_parser

    options = {option[2:] for action in get_args_parser()._actions for option in action.option_strings}
    torchrun_commands = list(list_commands(path, "torchrun "))
    assert torchrun_commands
    for command in torchrun_commands:
        arguments = command[: command.index("-m")]
        assert command[command.index("-m") + 1] == "fukami"
        assert list_flags(arguments) <= options, arguments
        assert {"rdzv-endpoint", "standalone"} & list_flags(arguments)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_restarted_job_resumes(path):
    """A scheduler restarts a job with the same command."""
    (arguments,) = list_commands(path, "fukami train ")
    assert {"resume", "out", "timeout"} <= list_flags(arguments)
    batch_size, lr = (float(arguments[arguments.index(f"--{name}") + 1]) for name in ("batch-size", "lr"))
    assert batch_size / 32 * lr == pytest.approx(0.1 * 8192 / 256)  # Goyal et al. 2017; the recipe's batch size is 32
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

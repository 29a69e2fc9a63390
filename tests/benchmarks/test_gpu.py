"""``benchmarks/gpu.py``: smoke runs without a GPU, time limits, and packing for another machine."""

import csv
import importlib.metadata
import io
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import check_task

ROOT = Path(__file__).parents[2]
GPU = ROOT / "benchmarks" / "gpu.py"
FIELDS = (ROOT / "benchmarks" / "results.csv").read_text().partition("\n")[0].split(",")
ENTRIES = [
    "device-tests", "deep-convnet", "resnet50", "faster-rcnn", "dcgan", "segmentation", "dqn", "pong", "style",
    "resnet20-56", "binary", "rcnn", "resume", "memory",
]  # fmt: skip


@pytest.fixture
def benchmarks(monkeypatch):
    """Make the modules of the benchmarks importable."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def run_gpu_script(python, *arguments, seconds=600, **environment):
    """Run the command; return exit status, lines of stdout, and stderr. Its processes are forked as well."""
    variables = {"OMP_NUM_THREADS": "1", "PYTHONEXECUTABLE": python.executable, **environment}
    arguments = [python.executable, GPU, *map(str, arguments)]
    process = subprocess.run(arguments, env=os.environ | variables, capture_output=True, text=True, timeout=seconds)
    return process.returncode, process.stdout.splitlines(), process.stderr


@pytest.mark.slow
def test_every_entry_runs_with_tiny_workload_and_only_once(tmp_path, forked_python):
    results = tmp_path / "results.csv"
    status, lines, err = run_gpu_script(forked_python, "--device", "cpu", "--smoke", "--results", results)
    assert status == 0, "\n".join([*lines, err])
    completed = [line.split()[0] for line in lines if " done in " in line]
    assert list(dict.fromkeys(completed)) == ENTRIES
    rows = list(csv.DictReader(io.StringIO(results.read_text())))
    assert len([line for line in lines if " = " in line]) == len(rows)
    assert list(rows[0]) == FIELDS
    assert all(row["command"] and row["hardware"] and float(row["value"]) is not None for row in rows)
    ratios = [row["metric"] for row in rows if re.search(r"relative|/|times faster", row["metric"])]
    for peer in ("torchvision", "plain loop", "float32"):
        assert any(peer in metric for metric in ratios), ratios
    status, repeated_lines, _ = run_gpu_script(forked_python, "--device", "cpu", "--smoke", "--results", results)
    assert (status, [line.split(maxsplit=1)[1] for line in repeated_lines]) == (0, ["already measured"] * len(ENTRIES))
    assert list(csv.DictReader(io.StringIO(results.read_text()))) == rows


@pytest.mark.slow
def test_machine_without_gpu_reports_every_entry(tmp_path, forked_python):
    status, lines, _ = run_gpu_script(forked_python, "--results", tmp_path / "results.csv", CUDA_VISIBLE_DEVICES="")
    assert status == 1
    assert [line.split()[0] for line in lines] == ENTRIES
    assert all("finds no CUDA device" in line or "needs the package" in line for line in lines)
    assert not (tmp_path / "results.csv").exists()


def build_machine(gpu, **properties):
    """Build a machine with a GPU."""
    machine = gpu.Machine.__new__(gpu.Machine)
    machine.device, machine.smoke, machine.python, machine.environment = "cuda", False, sys.executable, dict(os.environ)
    machine.properties = {
        "cuda": True, "memory": 8.5, "hardware": "a small GPU", "torch": "2", "packages": ["pytest", "triton"],
        **properties,
    }  # fmt: skip
    return machine


def test_entries_that_do_not_fit_are_reported_and_others_run(benchmarks, tmp_path, capsys, monkeypatch):
    """Entries with too little memory, a missing package or too few minutes are skipped."""
    import gpu

    commands = []
    monkeypatch.setattr(gpu, "run", lambda command, *arguments: commands.append(command) or 0)
    results = gpu.Results(tmp_path / "results.csv", {})
    assert not gpu.measure(list(gpu.ENTRIES), build_machine(gpu), results, 6.0)
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert "needs 40 GB of GPU memory; a small GPU has 8.5" in lines["resnet50"]
    assert "needs the package gymnasium and ale_py" in lines["pong"]
    assert commands[0] == "device_tests.py"
    assert "deep_convnet.py goal --seeds 3 4 5 --plain-epochs 10" in commands
    monkeypatch.undo()
    large = build_machine(gpu, memory=80.0, packages=["pytest", "triton", "gymnasium", "ale_py"])
    assert not gpu.measure(list(gpu.ENTRIES), large, gpu.Results(tmp_path / "other.csv", {}), 0.0)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(ENTRIES)
    assert all("skipped: may take" in line and "0.0 are left" in line for line in lines)


@pytest.mark.slow
def test_command_and_its_children_are_stopped_at_the_time_limit(benchmarks, tmp_path, monkeypatch, capsys):
    """A later call continues with the commands not yet measured, only at the same commit."""
    import gpu

    script = tmp_path / "script.py"
    child = tmp_path / "child"
    script.write_text(
        "import subprocess, sys, time\n"
        "process = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(child)!r}, 'w').write(str(process.pid))\n"
        "time.sleep(600 if sys.argv[1:] == ['slow'] else 0); process.kill()\n"
    )
    entry = gpu.Entry("entry", 0.05, 0, (f"{script} quick", f"{script} slow"), ())
    results = gpu.Results(tmp_path / "results.csv", {"commit": "a"})
    assert not gpu.measure([entry], build_machine(gpu), results, 1.0)
    quick, slow = capsys.readouterr().out.splitlines()
    assert "done in" in quick
    assert "stopped at its time limit" in slow
    check_task.wait_until(lambda: not _is_running(int(child.read_text())))
    assert gpu.Results(tmp_path / "results.csv", {"commit": "a"}).is_done(f"{script} quick")
    assert not gpu.Results(tmp_path / "results.csv", {"commit": "a"}).is_done(f"{script} slow")
    assert not gpu.Results(tmp_path / "results.csv", {"commit": "b"}).is_done(f"{script} quick")


def _is_running(pid):
    """Return whether a process is running; zombies are not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_merge_appends_the_last_row_of_each_measurement(benchmarks, tmp_path):
    import gpu

    target, source = tmp_path / "results.csv", tmp_path / "results_gpu.csv"
    old = dict.fromkeys(FIELDS, "old")
    rows = [old | {"benchmark": "a", "value": "1"}, old | {"benchmark": "b"}, old | {"benchmark": "a", "value": "2"}]
    for path, content in ((target, [old]), (source, rows)):
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(content)
    assert gpu.merge(source, target) == 2
    with target.open(newline="") as file:
        assert list(csv.DictReader(file)) == [old, rows[2], rows[1]]
    assert not source.exists()


@pytest.mark.slow
def test_packed_datasets_are_small_and_can_be_loaded(benchmarks, mnist_folder, tmp_path, monkeypatch):
    """MNIST is equal; the others have the expected number of images with annotations."""
    from common import packing
    from fukami.data import labeled_images, mnist
    from fukami.detection import data as detection_data
    from fukami.segmentation import data as segmentation_data

    for name in ("cifar10", "bccd", "camvid", "style"):
        if not any((mnist_folder / f"{name}{suffix}").exists() for suffix in ("", ".zip")):
            pytest.skip(f"needs {name}: no {mnist_folder}/{name}.zip; set FUKAMI_DATA to the folder above it")
    original = mnist.load_mnist()
    packing.pack_data(tmp_path / "packed")
    size = sum(path.stat().st_size for path in (tmp_path / "packed").rglob("*") if path.is_file())
    assert size <= packing.MAX_BYTES == 15_000_000
    packing.unpack_data(tmp_path / "packed", tmp_path / "data")
    monkeypatch.setenv("FUKAMI_DATA", str(tmp_path / "data"))
    for split, original_split in zip(mnist.load_mnist(), original, strict=True):
        assert all((a == b).all() for a, b in zip(split, original_split, strict=True))
    train, val, test, labels = labeled_images.load_labeled_images("cifar10", 0.2)
    assert (len(train), len(val), len(test), len(labels)) == (1280, 320, 400, 10)
    splits = detection_data.load_dataset("bccd", 0.2)[:2]
    assert sum(map(len, splits)) in (32, 40)
    assert sum(len(split) for split in segmentation_data.load_dataset("camvid", 0.2)[:2]) >= 30
    assert len(list((tmp_path / "data" / "style").rglob("*.jpg"))) == 2


def test_installed_wheels_are_omitted(benchmarks, tmp_path, monkeypatch):
    """Wheels are omitted by name and version if the requirements allow it; torch is always omitted."""
    from common import packing

    def download(command, **options):
        folder = Path(command[command.index("--dest") + 1])
        folder.mkdir(parents=True)
        for name, version in (
            ("torch", "2.11.0+placeholder"),
            ("numpy", "2.4.0"),
            ("filelock", "4.0"),
            ("tyro", "1.0.1"),
        ):
            packing.write_empty_wheel(folder, name, version)
        with zipfile.ZipFile(folder / "extra-1.0-py3-none-any.whl", "w") as wheel:
            text = "Name: extra\nRequires-Dist: numpy>=2.4\nRequires-Dist: tyro>=9; python_version < '3'\n"
            wheel.writestr("extra-1.0.dist-info/METADATA", text)

    monkeypatch.setattr(packing.subprocess, "run", download)
    freeze = tmp_path / "installed.txt"
    freeze.write_text("numpy==2.3.1\nFileLock==3.2\ntyro==1.0.0\ntorch==2.11.0+cu130\n-e /somewhere\n")
    assert packing.read_versions(freeze)["torch"] == "2.11.0+cu130"
    wheels = packing.download_wheels(tmp_path / "wheels", packing.read_versions(freeze))
    assert [path.name.partition("-")[0] for path in wheels] == ["extra", "filelock", "numpy"]


def test_missing_installation_and_pack_folder_raise_an_error(benchmarks, monkeypatch, tmp_path):
    import gpu

    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(gpu.importlib.metadata, "version", absent)
    monkeypatch.setattr(gpu, "PACK", tmp_path / "gpu_pack")
    with pytest.raises(SystemExit, match="pip install -e"):
        gpu.Machine("cpu", smoke=True)


def test_progress_is_json_next_to_the_rows(benchmarks, tmp_path):
    import gpu

    results = gpu.Results(tmp_path / "rows.csv", {"commit": "a"})
    results.finish("script.py", 1.26)
    state = json.loads((tmp_path / "rows.json").read_text())
    assert state == {"conditions": {"commit": "a"}, "done": {"script.py": 1.3}}

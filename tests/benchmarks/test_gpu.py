"""The command that measures everything on a GPU: where there is none, and on another machine."""

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
    """The modules of the benchmarks, importable."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def measure(*words, seconds=600, **environment):
    """The exit status, the lines of the command and what it wrote to stderr."""
    more = {"OMP_NUM_THREADS": "1", **environment}
    words = [sys.executable, GPU, *map(str, words)]
    done = subprocess.run(words, env=os.environ | more, capture_output=True, text=True, timeout=seconds)
    return done.returncode, done.stdout.splitlines(), done.stderr


def test_every_entry_runs_at_toy_size_and_is_measured_once(tmp_path):
    results = tmp_path / "results.csv"
    status, lines, err = measure("--device", "cpu", "--smoke", "--results", results)
    assert status == 0, "\n".join([*lines, err])
    ends = [line.split()[0] for line in lines if " done in " in line]
    assert list(dict.fromkeys(ends)) == ENTRIES
    rows = list(csv.DictReader(io.StringIO(results.read_text())))
    assert len([line for line in lines if " = " in line]) == len(rows)
    assert list(rows[0]) == FIELDS
    assert all(row["command"] and row["hardware"] and float(row["value"]) is not None for row in rows)
    ratios = [row["metric"] for row in rows if re.search(r" over |/|times faster", row["metric"])]
    for peer in ("torchvision", "plain loop", "float32"):
        assert any(peer in metric for metric in ratios), ratios
    status, again, _ = measure("--device", "cpu", "--smoke", "--results", results)
    assert (status, [line.split(maxsplit=1)[1] for line in again]) == (0, ["measured already"] * len(ENTRIES))
    assert list(csv.DictReader(io.StringIO(results.read_text()))) == rows


def test_wrong_machine_gets_a_line_for_each_entry(tmp_path):
    status, lines, _ = measure("--results", tmp_path / "results.csv", CUDA_VISIBLE_DEVICES="")
    assert status == 1
    assert [line.split()[0] for line in lines] == ENTRIES
    assert all("sees no CUDA device" in line or "needs the package" in line for line in lines)
    assert not (tmp_path / "results.csv").exists()


def machine(gpu, **found):
    """A machine with a GPU, as it would be found."""
    there = gpu.Machine.__new__(gpu.Machine)
    there.device, there.smoke, there.python, there.environment = "cuda", False, sys.executable, dict(os.environ)
    there.found = {
        "cuda": True, "memory": 8.5, "hardware": "a small GPU", "torch": "2", "packages": ["pytest", "triton"], **found
    }  # fmt: skip
    return there


def test_entries_that_do_not_fit_are_named_and_others_run(benchmarks, tmp_path, capsys, monkeypatch):
    """Too little memory, a missing package, too few minutes; what is left fits and is measured."""
    import gpu

    ran = []
    monkeypatch.setattr(gpu, "run", lambda command, *rest: ran.append(command) or 0)
    results = gpu.Results(tmp_path / "results.csv", {})
    assert not gpu.measure(list(gpu.ENTRIES), machine(gpu), results, 6.0)
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert "needs 40 GB of GPU memory; a small GPU has 8.5" in lines["resnet50"]
    assert "needs the package gymnasium and ale_py" in lines["pong"]
    assert ran[0] == "device_tests.py"
    assert "deep_convnet.py goal --seeds 3 4 5 --epochs 10" in ran
    monkeypatch.undo()
    large = machine(gpu, memory=80.0, packages=["pytest", "triton", "gymnasium", "ale_py"])
    assert not gpu.measure(list(gpu.ENTRIES), large, gpu.Results(tmp_path / "other.csv", {}), 0.0)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(ENTRIES)
    assert all("skipped: may take" in line and "0.0 are left" in line for line in lines)


def test_a_command_is_stopped_at_its_limit_with_all_that_it_started(benchmarks, tmp_path, monkeypatch, capsys):
    """And a later one continues with what was not measured, at the same commit alone."""
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
    assert not gpu.measure([entry], machine(gpu), results, 1.0)
    quick, slow = capsys.readouterr().out.splitlines()
    assert "done in" in quick
    assert "stopped at its time limit" in slow
    check_task.wait_until(lambda: not _runs(int(child.read_text())))
    assert gpu.Results(tmp_path / "results.csv", {"commit": "a"}).is_done(f"{script} quick")
    assert not gpu.Results(tmp_path / "results.csv", {"commit": "a"}).is_done(f"{script} slow")
    assert not gpu.Results(tmp_path / "results.csv", {"commit": "b"}).is_done(f"{script} quick")


def _runs(number):
    """Whether a process is alive; one that nobody has waited for is not."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
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


def test_packed_data_are_small_and_found(benchmarks, mnist_folder, tmp_path, monkeypatch):
    """MNIST byte for byte; of the others as many images as promised, with their annotations."""
    from common import packing
    from fukami.data import labelled_images, mnist
    from fukami.detection import data as detection_data
    from fukami.segmentation import data as segmentation_data

    for name in ("cifar10", "bccd", "camvid", "style"):
        if not any((mnist_folder / f"{name}{suffix}").exists() for suffix in ("", ".zip")):
            pytest.skip(f"needs {name}: no {mnist_folder}/{name}.zip; set FUKAMI_DATA to the folder above it")
    whole = mnist.load_mnist()
    packing.pack_data(tmp_path / "packed")
    size = sum(path.stat().st_size for path in (tmp_path / "packed").rglob("*") if path.is_file())
    assert size <= packing.MAX_BYTES == 15_000_000
    packing.unpack_data(tmp_path / "packed", tmp_path / "data")
    monkeypatch.setenv("FUKAMI_DATA", str(tmp_path / "data"))
    for part, same in zip(mnist.load_mnist(), whole, strict=True):
        assert all((one == other).all() for one, other in zip(part, same, strict=True))
    train, test, labels = labelled_images.load_labelled_images("cifar10", 0.2)
    assert (len(train), len(test), len(labels)) == (1600, 400, 10)
    parts = detection_data.load_dataset("bccd", 0.2)[:2]
    assert sum(map(len, parts)) in (32, 40)
    assert sum(len(part) for part in segmentation_data.load_dataset("camvid", 0.2)[:2]) >= 30
    assert len(list((tmp_path / "data" / "style").rglob("*.jpg"))) == 2


def test_wheels_that_the_other_machine_has_are_left_out(benchmarks, tmp_path, monkeypatch):
    """By name and version as other wheels require them; torch stays out in any case."""
    from common import packing

    def download(words, **options):
        folder = Path(words[words.index("--dest") + 1])
        folder.mkdir(parents=True)
        for name, version in (("torch", "2.11.0+standin"), ("numpy", "2.4.0"), ("filelock", "4.0"), ("tyro", "1.0.1")):
            packing.write_empty_wheel(folder, name, version)
        with zipfile.ZipFile(folder / "extra-1.0-py3-none-any.whl", "w") as wheel:
            text = "Name: extra\nRequires-Dist: numpy>=2.4\nRequires-Dist: tyro>=9; python_version < '3'\n"
            wheel.writestr("extra-1.0.dist-info/METADATA", text)

    monkeypatch.setattr(packing.subprocess, "run", download)
    freeze = tmp_path / "installed.txt"
    freeze.write_text("numpy==2.3.1\nFileLock==3.2\ntyro==1.0.0\ntorch==2.11.0+cu130\n-e /somewhere\n")
    assert packing.read_versions(freeze)["torch"] == "2.11.0+cu130"
    found = packing.download_wheels(tmp_path / "wheels", packing.read_versions(freeze))
    assert [path.name.partition("-")[0] for path in found] == ["extra", "filelock", "numpy"]


def test_machine_without_fukami_and_without_the_folder_is_told(benchmarks, monkeypatch, tmp_path):
    import gpu

    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(gpu.importlib.metadata, "version", absent)
    monkeypatch.setattr(gpu, "PACK", tmp_path / "gpu_pack")
    with pytest.raises(SystemExit, match="pip install -e"):
        gpu.Machine("cpu", smoke=True)


def test_progress_is_json_beside_the_rows(benchmarks, tmp_path):
    import gpu

    results = gpu.Results(tmp_path / "rows.csv", {"commit": "a"})
    results.finish("script.py", 1.26)
    state = json.loads((tmp_path / "rows.json").read_text())
    assert state == {"conditions": {"commit": "a"}, "done": {"script.py": 1.3}}

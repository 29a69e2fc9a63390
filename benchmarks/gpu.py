"""Run all benchmarks that need a GPU with one command, the most important ones first.

    python benchmarks/gpu.py [--minutes 25] [--only NAME...]
    python benchmarks/gpu.py --device cpu --smoke         every entry with a tiny workload, on a machine without a GPU
    python benchmarks/gpu.py pack [FOLDER] [--installed FILE]
    python benchmarks/gpu.py merge

Each command of an entry runs in its own process with a time limit. An entry that needs more than the remaining minutes
is skipped; one that the machine cannot run is reported with the reason. Rows in the format of results.csv are
printed and written immediately to results_gpu.csv next to it (``--results``), the output of the commands to
results_gpu.log, and the progress to results_gpu.json. Repeated at the same commit on the same GPU, the command
continues with the entries that are not measured yet; its exit status is 0 when all are. ``merge`` moves the rows into
results.csv. With ``--smoke`` nothing is kept unless ``--results`` is specified.

A machine with only Python 3.12, torch and torchvision needs the folder gpu_pack next to this file, which ``pack``
creates on a machine with a network. It contains wheels of the missing packages, which are installed into a separate
environment, and reduced datasets. ``--installed`` is the output of ``pip freeze`` on the GPU machine; these packages
are omitted. Without git, the environment variable FUKAMI_COMMIT is the commit.
"""

import argparse
import csv
import importlib.metadata
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from common import packing

HERE = Path(__file__).parent
PACK = HERE / "gpu_pack"
NUM_OUTPUT_LINES = 15  # printed lines of the output of a failed command
REFERENCE = "--only 'torchvision reference'"
SHORT = "--rounds 1 --windows 2 --theirs mixed"


@dataclass(frozen=True)
class Entry:
    """Benchmark entry: commands, which are scripts of this folder, and smoke commands for a machine without a GPU."""

    name: str
    minutes: float  # duration of all commands on an H100; the limit is twice as long
    memory: float  # required GPU memory in GB
    commands: tuple[str, ...]
    smoke: tuple[str, ...]
    packages: tuple[str, ...] = ()  # required imports in addition to fukami's dependencies


ENTRIES = (
    Entry(
        "device-tests", 3, 8,
        ("device_tests.py",),
        ("device_tests.py --select 'optimizers and cpu'",),
        ("pytest",),
    ),
    Entry(
        "deep-convnet", 2.5, 4,
        (
            "deep_convnet.py goal --seeds 3 4 5 --plain-epochs 10",
            "deep_convnet.py goal --seeds 3 4 5 --plain-epochs 0 --epochs 5 --batch-size 500 --lr 0.01",
        ),
        ("deep_convnet.py goal --data digits --goal 0.2 --plain-epochs 1 --epochs 1 --batch-size 100",),
    ),
    Entry(
        "resnet50", 5, 40,
        tuple(f"step_times.py resnet50 {REFERENCE} {more}" for more in ("--rounds 2", "--rounds 1 --compile ours")),
        (f"step_times.py resnet50 {REFERENCE} {SHORT} --batch-size 2 --size 32",),
    ),
    Entry(
        "faster-rcnn", 4, 40,
        ("detection.py rates", "detection.py loop"),
        ("detection.py rates --height 64 --width 64 --batch-size 1 --rounds 1 --precisions bfloat16",),
    ),
    Entry(
        "dcgan", 1, 8,
        ("dcgan.py rate --precisions float32 tf32 auto",),
        ("dcgan.py rate --size 32 --rounds 1 --steps 1 --precisions auto",),
    ),
    Entry(
        "segmentation", 5, 24,
        (
            "segmentation.py rates --precisions tf32 bfloat16",
            "segmentation.py frames segnet-vgg16",
            "segmentation.py frames fcn8s-vgg16",
        ),
        (
            "segmentation.py rates segnet-vgg16 --height 64 --width 64 --batch-size 1 --rounds 1 --precisions bfloat16",
            "segmentation.py frames segnet-basic --frames 2 --min-size 32",
        ),
    ),
    Entry(
        "dqn", 2, 8,
        ("dqn.py rate --precision tf32", "dqn.py rate --precision auto"),
        ("dqn.py rate --steps 32 --rounds 1",),
        ("gymnasium", "ale_py"),
    ),
    Entry(
        "pong", 16, 8,
        ("dqn.py pong --minutes 15 --out {runs}",),
        (
            "dqn.py pong --minutes 1 --steps 600 --learning-starts 400 --buffer-size 2000 --num-envs 2 "
            "--eval-episodes 1 --hidden 16",
        ),
        ("gymnasium", "ale_py"),
    ),
    Entry(
        "style", 2.5, 16,
        (
            "neural_style.py seconds {images} --weights random --precision auto",
            "neural_style.py race {images} --weights random",
            "neural_style.py race {images} --weights random --precision auto",
        ),
        (
            "neural_style.py seconds --weights random --size 64 --stylize-iterations 1",
            "neural_style.py race --weights random --size 64 --iterations 1 --rounds 1",
        ),
    ),
    Entry(
        "resnet20-56", 3, 8,
        tuple(f"step_times.py {name} {REFERENCE} --repeat 25 --rounds 2" for name in ("resnet20", "resnet56")),
        (f"step_times.py resnet20 {REFERENCE} {SHORT} --batch-size 4 --data digits --workers 0",),
    ),
    Entry(
        "binary", 1, 8,
        ("quantization.py gpu",),
        ("quantization.py gpu --device cpu --batch-size 1 --channels 32 --sides 4",),
        ("triton",),
    ),
    Entry(
        "rcnn", 1, 16,
        ("rcnn.py speed --device cuda",),
        ("rcnn.py speed --device cpu --backbones alexnet --precisions float32 --regions 2 --repeat 1",),
    ),
    Entry(
        "resume", 3, 8,
        ("kills.py deep-convnet dcgan --kills 3 --device cuda --record",),
        ("kills.py dcgan --kills 1 --record",),
    ),
    Entry(
        "memory", 4, 40,
        ("memory.py peaks", "neural_style.py memory {images} --weights random --sizes 512 1024"),
        ("memory.py peaks deep-convnet",),
    ),
)  # fmt: skip


class Results:
    """Rows that the commands write, and the completed commands; both are resumed from files.

    Args:
        path: the CSV file; progress and output are next to it.
        conditions: commit and hardware; progress under other conditions is discarded.
    """

    def __init__(self, path: Path, conditions: dict[str, str]) -> None:
        self.path, self.progress, self.log = path, path.with_suffix(".json"), path.with_suffix(".log")
        self.state = {"conditions": conditions, "done": {}}
        if self.progress.exists():
            state = json.loads(self.progress.read_text())
            if state["conditions"] == conditions:
                self.state = state
        self.num_printed = len(self.read_rows())

    def read_rows(self) -> list[dict[str, str]]:
        """Read the rows that are written completely."""
        text = self.path.read_text() if self.path.exists() else ""
        return list(csv.DictReader(text[: text.rfind("\n") + 1].splitlines(keepends=True)))

    def is_done(self, command: str) -> bool:
        """Return whether the command has completed."""
        return command in self.state["done"]

    def finish(self, command: str, seconds: float) -> None:
        """Save the command as completed."""
        self.state["done"][command] = round(seconds, 1)
        self.progress.write_text(json.dumps(self.state, indent=1) + "\n")

    def print_new(self, name: str) -> None:
        """Print a line for each row written since the last call."""
        rows = self.read_rows()
        for row in rows[self.num_printed :]:
            note = f"  ({row['note']})" if row["note"] else ""
            print(f"{name:<12}  {row['benchmark']}: {row['metric']} = {row['value']}{note}", flush=True)
        self.num_printed = len(rows)


class Machine:
    """Interpreter and environment that run the commands, and properties of the device."""

    def __init__(self, device: str, smoke: bool) -> None:
        self.device, self.smoke = device, smoke
        self.python, self.environment = sys.executable, dict(os.environ)
        if not _has_fukami():
            if not PACK.is_dir():
                sys.exit(
                    f"fukami is not installed for {sys.executable}: pip install -e ., or, without a network, copy the "
                    f"folder that `gpu.py pack` creates on another machine to {PACK}"
                )
            self.python, data = packing.install(PACK)
            self.environment.setdefault("FUKAMI_DATA", str(data))
        if device == "cpu":
            self.environment["CUDA_VISIBLE_DEVICES"] = ""
        self.properties = json.loads(
            subprocess.check_output([self.python, "-c", PROPERTIES_SCRIPT], env=self.environment, cwd=HERE)
        )

    def find_problem(self, entry: Entry) -> str:
        """Return why the entry cannot run on this machine; empty if it can."""
        missing = [name for name in entry.packages if name not in self.properties["packages"]]
        if missing:
            return f"needs the package {' and '.join(missing)}, which is not installed"
        if self.device == "cpu":
            return "" if self.smoke else "needs a GPU: --smoke runs a tiny workload on a CPU"
        if not self.properties["cuda"]:
            return (
                f"needs a GPU: torch {self.properties['torch']} finds no CUDA device (--device cpu --smoke needs none)"
            )
        if self.properties["memory"] < entry.memory:
            hardware, memory = self.properties["hardware"], self.properties["memory"]
            return f"needs {entry.memory:g} GB of GPU memory; {hardware} has {memory:.1f}"
        return ""


PROPERTIES_SCRIPT = """
import importlib.util, json, torch
from common import record
cuda = torch.cuda.is_available()
names = ("pytest", "gymnasium", "ale_py", "triton")
print(json.dumps({
    "cuda": cuda, "torch": torch.__version__, "commit": record.get_commit(), "hardware": record.describe_hardware(),
    "memory": torch.cuda.get_device_properties(0).total_memory / 1e9 if cuda else 0,
    "packages": [name for name in names if importlib.util.find_spec(name)],
}))
"""


def _has_fukami() -> bool:
    """Return whether fukami is installed for this interpreter."""
    try:
        importlib.metadata.version("fukami")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def measure(entries: list[Entry], machine: Machine, results: Results, minutes: float) -> bool:
    """Run the entries; return whether all have completed."""
    end, all_done = time.monotonic() + 60 * minutes, True
    for entry in entries:
        commands = [
            fill_placeholders(command, machine, results)
            for command in (entry.smoke if machine.smoke else entry.commands)
        ]
        open_commands = [command for command in commands if not results.is_done(command)]
        remaining = (end - time.monotonic()) / 60
        reason = machine.find_problem(entry)
        if not open_commands:
            reason = "already measured"
        elif not reason and entry.minutes > remaining:
            reason = f"skipped: may take {entry.minutes:g} minutes, and {max(0.0, remaining):.1f} are left"
        if reason:
            print(f"{entry.name:<12}  {reason}", flush=True)
            all_done &= not open_commands
            continue
        limit = min(end, time.monotonic() + 2 * 60 * entry.minutes)
        for command in open_commands:
            start = time.monotonic()
            status = run(command, entry.name, machine, results, limit - start)
            seconds = time.monotonic() - start
            if status == 0:
                results.finish(command, seconds)
                print(f"{entry.name:<12}  done in {seconds:.0f} s: {command}", flush=True)
            else:
                outcome = "stopped at its time limit" if status is None else f"failed with status {status}"
                print(f"{entry.name:<12}  {outcome} after {seconds:.0f} s: {command}", flush=True)
                print(*results.log.read_text().splitlines()[-NUM_OUTPUT_LINES:], sep="\n", file=sys.stderr, flush=True)
                all_done = False
    return all_done


def fill_placeholders(command: str, machine: Machine, results: Results) -> str:
    """Replace the placeholders of a command by paths."""
    folder = Path(machine.environment.get("FUKAMI_DATA", "")) / "style"
    images = [next(iter(sorted((folder / name).glob("*.jpg"))), None) for name in ("content", "style")]
    paths = shlex.join(map(str, images)) if all(images) else ""
    return command.format(images=paths, runs=results.path.parent / f"{results.path.stem}_runs")


def run(command: str, name: str, machine: Machine, results: Results, seconds: float) -> int | None:
    """Run a command and print the rows that it writes; return its exit status, or None at the time limit."""
    script, *arguments = shlex.split(command)
    environment = machine.environment | {"FUKAMI_RESULTS": str(results.path), "PYTHONUNBUFFERED": "1"}
    with results.log.open("a") as log:
        log.write(f"\n== {command}\n")
        log.flush()
        files = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": subprocess.STDOUT}
        arguments = [machine.python, str(HERE / script), *arguments]
        process = subprocess.Popen(arguments, env=environment, start_new_session=True, **files)
    end = time.monotonic() + seconds
    try:
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.1)
            results.print_new(name)
        status = process.poll()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # including its child processes
            process.wait()
    results.print_new(name)
    return status


def merge(results: Path, target: Path) -> int:
    """Append the last row of each measurement of a file to another file; return the number of rows."""
    with results.open(newline="") as file:
        reader = csv.DictReader(file)
        key_fields = ("commit", "benchmark", "metric", "seed", "hardware", "command")
        rows = {tuple(row[name] for name in key_fields): row for row in reader}
        fields = reader.fieldnames or []
    with target.open("a", newline="") as file:
        csv.DictWriter(file, fields, lineterminator="\n").writerows(rows.values())
    for path in (results, results.with_suffix(".json")):
        path.unlink(missing_ok=True)
    return len(rows)


def main() -> None:
    """Measure, pack or merge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [entry.name for entry in ENTRIES]
    parser.add_argument("action", nargs="?", choices=["measure", "pack", "merge"], default="measure")
    parser.add_argument("folder", nargs="?", type=Path, default=PACK, help="Folder that pack creates.")
    parser.add_argument("--minutes", type=float, default=25.0, help="Time limit of all entries.")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--smoke", action="store_true", help="Run every entry with a tiny workload.")
    parser.add_argument(
        "--results", type=Path, help="CSV file of the rows; by default results_gpu.csv next to results.csv."
    )
    parser.add_argument("--installed", type=Path, help="For pack: output of pip freeze on the GPU machine.")
    options = parser.parse_args()
    results = options.results or HERE / "results_gpu.csv"
    if options.action == "pack":
        packing.pack(options.folder, options.installed)
    elif options.action == "merge":
        if not results.is_file():
            parser.error(f"{results} does not exist; measure first, or specify the file with --results")
        print(f"{merge(results, HERE / 'results.csv')} rows of {results} were moved to results.csv")
    else:
        machine = Machine(options.device, options.smoke)
        with tempfile.TemporaryDirectory() as folder:
            if options.smoke and not options.results:
                results = Path(folder) / "results.csv"
            conditions = {name: str(machine.properties[name]) for name in ("commit", "hardware", "torch")}
            entries = [entry for entry in ENTRIES if entry.name in options.only]
            sys.exit(not measure(entries, machine, Results(results.absolute(), conditions), options.minutes))


if __name__ == "__main__":
    main()

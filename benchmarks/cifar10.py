"""ResNets on CIFAR-10, trained from the command line.

    python benchmarks/cifar10.py cpu               ResNet-20 in 64 epochs, on two cores in 45 minutes
    python benchmarks/cifar10.py photographs       the ImageNet networks GoogLeNet and ResNet-18, 5 epochs on a CPU
    python benchmarks/cifar10.py precision         training steps of ResNet-20 on a CPU, bfloat16 and float32
    python benchmarks/cifar10.py gpu --seeds 0     ResNet-20 and ResNet-56 in 200 epochs
    python benchmarks/cifar10.py sprint            our shortest time to 94 %, from the start of the process

Needs CIFAR-10 in $FUKAMI_DATA. The note in results.csv states whether that is the copy as JPEG files.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from common.record import record, run_command
from fukami.data import cifar

CPU = (
    "fukami train resnet20 --data cifar10 --epochs 64 --eval-every 16 --lr 0.15 --label-smoothing 0.1 "
    "--augment flip pad-crop=4 erase=0.5 --device cpu"
)
PHOTOGRAPHS = (
    "fukami train {} --data cifar10 --size 32 --epochs 5 --eval-every 5 --batch-size 64 --lr 0.04 "
    "--augment flip pad-crop=4 --device cpu"
)
PRECISION = "fukami train resnet20 --data cifar10 --epochs 1 --device cpu --precision {}"
GPU = {
    "resnet20": "fukami train resnet20 --data cifar10 --epochs 200 --lr 0.1 --warmup 0.05",
    "resnet56": "fukami train resnet56 --data cifar10 --epochs 200 --lr 0.1 --warmup 0.05",
}
SPRINT = (
    "fukami train resnet18 --data cifar10 --size 32 --stem 3x3 --epochs 16 --batch-size 512 --lr 0.4 "
    "--augment flip pad-crop=4 --label-smoothing 0.1"
)


def train_and_record(benchmark, command, seed, views=()):
    """Train, and record the accuracy and the seconds, including the start of the process.

    Then evaluate the run with test-time augmentation, once for each number of views.
    """
    command = f"{command} --seed {seed}"
    device = "cpu" if "--device cpu" in command else "auto"
    note = "CIFAR-10 as JPEG files" if isinstance(cifar.load_cifar("cifar10"), Path) else ""
    with tempfile.TemporaryDirectory() as out:
        result, seconds = run_command(f"{command} --out {out}/run")
        record(benchmark, "test accuracy", result["accuracy"], command=command, seed=seed, seconds=seconds, note=note)
        for num_views in views:
            result, _ = run_command(f"fukami eval {out}/run --views {num_views}")
            record(benchmark, f"test accuracy, {num_views} views", result["accuracy"], seed=seed,
                   command=f"fukami eval RUN --views {num_views}", note=note, device=device)  # fmt: skip


def compare_precisions(rounds=2):
    """Record the training throughput in bfloat16 relative to float32, measured in turn."""
    speeds = {"float32": [], "bfloat16": []}
    for name in [*speeds] * rounds:
        with tempfile.TemporaryDirectory() as out:
            run_command(f"{PRECISION.format(name)} --out {out}/run")
            lines = map(json.loads, Path(out, "run", "metrics.jsonl").read_text().splitlines())
            speeds[name] += [line["images_per_second"] for line in lines if line["phase"] == "train"]
    float32_rate, bfloat16_rate = map(statistics.median, speeds.values())
    note = f"{rounds} rounds in turn; medians {bfloat16_rate:.0f} and {float32_rate:.0f}/s"
    record("resnet20 precision cpu", "images per second, bfloat16 / float32", bfloat16_rate / float32_rate, seed=0,
           command="python benchmarks/cifar10.py precision", note=note, device="cpu")  # fmt: skip


def main():
    """Run one of the benchmarks."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("action", choices=["cpu", "photographs", "precision", "gpu", "sprint"])
    options.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = options.parse_args()
    for seed in options.seeds:
        if options.action == "cpu":
            train_and_record("resnet20 cifar10 cpu", CPU, seed, views=(2, 8))
        elif options.action == "photographs":
            for name in ("googlenet", "resnet18"):
                train_and_record(f"{name} cifar10 cpu", PHOTOGRAPHS.format(name), seed)
        elif options.action == "precision":
            compare_precisions()
        elif options.action == "sprint":
            train_and_record("resnet18 cifar10 sprint", SPRINT, seed)
        else:
            for name, command in GPU.items():
                train_and_record(f"{name} cifar10 gpu", command, seed)


if __name__ == "__main__":
    main()

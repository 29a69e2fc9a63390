"""Pictures per second that ResNet-50 trains on: our loop beside plain loops over torchvision's network.

    python benchmarks/throughput.py [--batch 256] [--size 224] [--pictures 4096]

Random pictures live on the device in all of them, so that nothing but the training step is timed. The plain loops are
float32, mixed precision (bfloat16) and mixed precision in channels-last. What counts are the ratios. For the GPU; on a
CPU give small numbers. Results go to results.csv.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torchvision

from record import record

RECIPE = Path(__file__).with_name("random_pictures.py")
WAYS = {"float32": (False, False), "mixed": (True, False), "mixed, channels-last": (True, True)}


def ours(options, *more):
    """The median speed that metrics.jsonl tells, once the first tenth is over."""
    with tempfile.TemporaryDirectory() as name:
        knobs = {"batch": options.batch, "size": options.size, "pictures": options.pictures, "epochs": options.epochs}
        flags = [word for knob, value in knobs.items() for word in (f"--{knob}", str(value))]
        words = [
            sys.executable,
            "-m",
            "fukami",
            "train",
            str(RECIPE),
            *flags,
            "--lr",
            "0.01",
            "--out",
            f"{name}/run",
            *more,
        ]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        lines = [json.loads(line) for line in Path(name, "run", "metrics.jsonl").read_text().splitlines()]
    speeds = [line["pictures_per_second"] for line in lines if line["phase"] == "train"]
    return statistics.median(speeds[len(speeds) // 10 :])


def plain(options, mixed, channels_last):
    """The same of a loop that most people would write."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = torchvision.models.resnet50().to(device, memory_format=layout)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    pictures = torch.rand(options.batch, 3, options.size, options.size, device=device).to(memory_format=layout)
    targets = torch.arange(options.batch, device=device) % 1000
    speeds = []
    for _ in range(4):
        began = time.monotonic()
        for _ in range(options.steps):
            with torch.autocast(device, torch.bfloat16) if mixed else contextlib.nullcontext():
                loss = torch.nn.functional.cross_entropy(model(pictures), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        loss.item()
        speeds.append(options.steps * options.batch / (time.monotonic() - began))
    return statistics.median(speeds[1:])


def main():
    """Time ours and the plain loops in turn."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--batch", type=int, default=256)
    options.add_argument("--size", type=int, default=224)
    options.add_argument("--pictures", type=int, default=4096)
    options.add_argument("--epochs", type=int, default=40)
    options.add_argument("--steps", type=int, default=30)
    options = options.parse_args()
    command = f"python benchmarks/throughput.py --batch {options.batch} --size {options.size}"
    record("resnet50 throughput", "pictures per second", ours(options), command=command, seed=0)
    mine = ours(options, "--compile")
    record("resnet50 throughput", "pictures per second, compiled", mine, command=command, seed=0)
    for way, settings in WAYS.items():
        speed = plain(options, *settings)
        record("resnet50 throughput", f"ours compiled / plain {way}", mine / speed, command=command, seed=0,
               note=f"plain {speed:.0f} pictures per second")  # fmt: skip


if __name__ == "__main__":
    main()

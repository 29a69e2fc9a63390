"""What of fukami.explain.data_parallel_cost one machine can check: ResNet-50 on two processes over gloo.

    python benchmarks/scaling.py [--size 64] [--batch 8] [--rounds 12]

Counted: the bytes that DistributedDataParallel sums in each step, and in how many buckets, by a communication hook.
Timed, each process with one thread: the step of one process alone; of two, with and without the all-reduce; the
all-reduces by themselves; and all-reduces of several sizes, whose straight line gives latency and bandwidth. With these
and the computation of two processes side by side, the model predicts the step of two.

There the all-reduce takes its time from the same processors as the computation. So the buckets of one process are also
handed to a thread that only waits, as long as a network would take that needs 0.5, 1 and 2 times the computation.

Each time is the shortest of the rounds, since what else runs on a machine only adds. Results go to results.csv.
"""

import argparse
import json
import os
import queue
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import torch
from torch import distributed
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from common.record import record
from fukami import models
from fukami.explain.data_parallel_cost import (
    BACKWARD_FRACTION,
    FLOAT_BYTES,
    Cluster,
    TrainingJob,
    compute_bucket_sizes,
    predict_weak_scaling,
)
from fukami.explain.summary import count_parameters, summarize_layers

SLOWNESS = (0.5, 1.0, 2.0)  # of the network that only waits: its time for all gradients, by that of the computation
SIZES = [2**power for power in (12, 16, 20, 22, 24, 25)]  # bytes of the all-reduces that are timed


def seconds(function, repeat=1):
    """The time of one call."""
    began = time.monotonic()
    for _ in range(repeat):
        function()
    return (time.monotonic() - began) / repeat


def wire(line):
    """A network that sends one bucket after another and costs no computation."""
    while (sent := line.get()) is not None:
        pause, buffer, future = sent
        time.sleep(pause)
        future.set_result(buffer)


def work(options):
    """What each of the two processes does; the first prints what it found."""
    distributed.init_process_group("gloo")
    first = distributed.get_rank() == 0
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = models.resnet50().to(memory_format=torch.channels_last)
    replica = DistributedDataParallel(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    images = torch.rand(options.batch, 3, options.size, options.size).to(memory_format=torch.channels_last)
    targets = torch.arange(options.batch)
    sizes = []

    def counting(state, bucket):
        sizes.append(bucket.buffer().numel() * bucket.buffer().element_size())
        summed = distributed.all_reduce(bucket.buffer(), async_op=True).get_future()
        return summed.then(lambda future: future.value()[0] / 2)

    def half(model):
        began = time.monotonic()
        loss = cross_entropy(model(images), targets)
        middle = time.monotonic()
        loss.backward()
        return time.monotonic() - began, time.monotonic() - middle

    def alone():
        with replica.no_sync():
            return half(replica)

    counted = DistributedDataParallel(models.resnet50())
    counted.register_comm_hook(None, counting)
    for _ in range(2):  # after the first step the buckets are filled in the order of the backward pass
        sizes.clear()
        cross_entropy(counted(images), targets).backward()
    del counted
    found = {name: [] for name in ("solo", "side", "backward", "synced", "update", "reduce")}
    lines = {size: [] for size in SIZES}
    flat = [torch.zeros(size // FLOAT_BYTES) for size in sizes]
    for _ in range(3):
        half(replica)
        optimizer.step()
    for _ in range(options.rounds):
        distributed.barrier()
        if first:
            found["solo"].append(half(network)[0])
        distributed.barrier()
        whole, back = alone()
        found["side"].append(whole)
        found["backward"].append(back)
        distributed.barrier()
        found["synced"].append(half(replica)[0])
        found["update"].append(seconds(optimizer.step))
        distributed.barrier()
        found["reduce"].append(seconds(lambda: [distributed.all_reduce(buffer) for buffer in flat]))
        for size in SIZES:
            buffer = torch.zeros(size // FLOAT_BYTES)
            distributed.barrier()
            lines[size].append(seconds(partial(distributed.all_reduce, buffer), 4))
    alone_group = distributed.new_group([0])
    if first:
        found |= waiting(options, alone_group, half, sum(sizes))
    distributed.barrier()
    if first:
        best = {name: min(values) for name, values in found.items()}
        line = {size: min(values) for size, values in lines.items()}
        Path(options.work).write_text(json.dumps(best | {"sizes": sizes, "line": line}))
    distributed.destroy_process_group()


def waiting(options, group, half, size):
    """The steps of one process whose buckets go through a network that only waits."""
    replica = DistributedDataParallel(models.resnet50().to(memory_format=torch.channels_last), process_group=group)
    line, pace = queue.Queue(), [0.0]
    thread = threading.Thread(target=wire, args=(line,))
    thread.start()

    def hook(state, bucket):
        future = torch.futures.Future()
        line.put((bucket.buffer().nbytes * pace[0], bucket.buffer(), future))
        return future

    replica.register_comm_hook(None, hook)
    half(replica)
    once = min(half(replica)[0] for _ in range(5))
    found = {"free": [], **{f"wire {slowness}": [] for slowness in SLOWNESS}}
    for _ in range(options.rounds):
        pace[0] = 0.0
        found["free"].append(half(replica)[0])
        for slowness in SLOWNESS:
            pace[0] = slowness * once / size  # seconds for a byte
            found[f"wire {slowness}"].append(half(replica)[0])
    line.put(None)
    thread.join()
    return found | {"once": [once]}


def fit(line):
    """Latency of a hop and bandwidth from the seconds of all-reduces among two: 2 latency + bytes / bandwidth.

    Least squares of the relative error, since the times differ by orders of magnitude.
    """
    sizes = torch.tensor([float(size) for size in line], dtype=torch.float64)
    times = torch.tensor(list(line.values()), dtype=torch.float64)
    rows = torch.stack([2 / times, sizes / times], 1)
    latency, slope = (
        torch.linalg.lstsq(rows, torch.ones(len(sizes), 1, dtype=torch.float64)).solution.flatten().tolist()
    )
    return max(latency, 0.0), 1 / slope


def main():
    """Start the two processes, read what they measured, predict and record."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--size", type=int, default=64)
    options.add_argument("--batch", type=int, default=8)
    options.add_argument("--rounds", type=int, default=12)
    options.add_argument("--work", default="", help=argparse.SUPPRESS)
    options = options.parse_args()
    if options.work:
        return work(options)
    began = time.monotonic()
    flags = ["--size", str(options.size), "--batch", str(options.batch), "--rounds", str(options.rounds)]
    file = Path(os.environ.get("TMPDIR", "/tmp"), f"fukami-scaling-{os.getpid()}.json")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = [*launch, __file__, *flags, "--work", str(file)]
    subprocess.run(words, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    found = json.loads(file.read_text())
    file.unlink()

    latency, bandwidth = fit({int(size): value for size, value in found["line"].items()})
    found_layers = summarize_layers(models.resnet50(), (3, options.size, options.size))
    job = TrainingJob(layers=found_layers, batch_size=options.batch)
    cluster = Cluster(
        images_per_second=options.batch / found["side"],
        devices_per_machine=2,
        intra_bandwidth=bandwidth,
        intra_latency=latency,
        optimizer_time=found["update"],
    )
    predicted = predict_weak_scaling(job, cluster, 2).step_time
    measured = found["synced"] + found["update"]
    exposed = found["synced"] - found["side"]
    hidden = 1 - exposed / found["reduce"]
    command = f"python benchmarks/scaling.py {' '.join(flags)}"
    took = time.monotonic() - began

    def row(metric, value, note):
        record("scaling resnet50, 2 processes", metric, value, command=command, seed=0, seconds=took, note=note)

    mebi = ", ".join(f"{size / 2**20:.1f}" for size in found["sizes"])
    summed = sum(found["sizes"])
    gradients = FLOAT_BYTES * count_parameters(models.resnet50())
    row("bytes all-reduced in a step, counted / parameters x 4", summed / gradients, f"{summed} bytes")
    same = sum(one == other for one, other in zip(found["sizes"], compute_bucket_sizes(job), strict=False))
    row(
        "buckets, counted",
        len(found["sizes"]),
        f"{mebi} MiB; {same} have the size of the model's {len(compute_bucket_sizes(job))}",
    )
    row("all-reduce bandwidth, MB/s", bandwidth / 1e6,
        f"gloo on the loopback; 2 latency + bytes / bandwidth, latency {1e6 * latency:.0f} us")  # fmt: skip
    row(
        "backward share of the computation", found["backward"] / found["side"], f"the model has {BACKWARD_FRACTION:.3f}"
    )
    row("share of the all-reduce hidden behind the backward pass", hidden,
        f"forward and backward {found['synced']:.3f} s, without all-reduce {found['side']:.3f} s, "
        f"all-reduces alone {found['reduce']:.3f} s")  # fmt: skip
    row("step of two processes side by side without all-reduce / of one alone", found["side"] / found["solo"],
        f"{found['side']:.3f} s, {found['solo']:.3f} s: what sharing the machine costs")  # fmt: skip
    row("step of two processes, predicted / measured", predicted / measured,
        f"{predicted:.3f} s, {measured:.3f} s; from the computation side by side, the optimizer "
        f"({found['update']:.3f} s) and the all-reduce line")  # fmt: skip
    row("efficiency of two processes, measured", (found["solo"] + found["update"]) / measured,
        f"predicted {(found['solo'] + found['update']) / predicted:.3f}")  # fmt: skip
    for slowness in SLOWNESS:
        cluster = Cluster(
            images_per_second=options.batch / found["free"],
            devices_per_machine=2,
            intra_bandwidth=summed / slowness / found["once"],
        )
        step, took_step = predict_weak_scaling(job, cluster, 2).step_time, found[f"wire {slowness}"]
        row(f"step with a network that only waits, {slowness:g} times the computation, predicted / measured",
            step / took_step, f"{step:.3f} s, {took_step:.3f} s; {found['free']:.3f} s without it")  # fmt: skip
    return None


if __name__ == "__main__":
    main()

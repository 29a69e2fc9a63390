"""Validate fukami.explain.data_parallel_cost on one machine: ResNet-50 on two processes over gloo.

    python benchmarks/scaling.py [--size 64] [--batch-size 8] [--rounds 12]

A communication hook counts the bytes and buckets that DistributedDataParallel reduces in each step. These times are
measured, with one thread per process: the step of one process; the step of two, with and without all-reduce; the
all-reduces only; and all-reduces of several sizes, to which latency and bandwidth are fitted. From these and the
computation time of two concurrent processes, the model predicts the step of two processes.

On one machine, all-reduce and computation use the same processors. Therefore the buckets of one process are also sent
to a thread that only waits, as a network would that needs 0.5, 1 and 2 times the computation time.

Each time is the minimum of the rounds, since other load only adds to it. Results go to results.csv.
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

SLOWDOWNS = (0.5, 1.0, 2.0)  # simulated communication time of all gradients, relative to the computation time
SIZES = [2**power for power in (12, 16, 20, 22, 24, 25)]  # bytes of the timed all-reduces


def time_call(function, repeat=1):
    """Measure the mean seconds of a call."""
    start = time.monotonic()
    for _ in range(repeat):
        function()
    return (time.monotonic() - start) / repeat


def simulate_network(transfers):
    """Simulate a network that sends one bucket after another without computation."""
    while (transfer := transfers.get()) is not None:
        delay, buffer, future = transfer
        time.sleep(delay)
        future.set_result(buffer)


def run_process(options):
    """Run the measurements of one of the two processes; the first writes the results."""
    distributed.init_process_group("gloo")
    first = distributed.get_rank() == 0
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = models.resnet50().to(memory_format=torch.channels_last)
    replica = DistributedDataParallel(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    images = torch.rand(options.batch_size, 3, options.size, options.size).to(memory_format=torch.channels_last)
    targets = torch.arange(options.batch_size)
    sizes = []

    def count_bytes(state, bucket):
        sizes.append(bucket.buffer().numel() * bucket.buffer().element_size())
        reduced = distributed.all_reduce(bucket.buffer(), async_op=True).get_future()
        return reduced.then(lambda future: future.value()[0] / 2)

    def time_forward_backward(model):
        start = time.monotonic()
        loss = cross_entropy(model(images), targets)
        backward_start = time.monotonic()
        loss.backward()
        return time.monotonic() - start, time.monotonic() - backward_start

    def time_without_sync():
        with replica.no_sync():
            return time_forward_backward(replica)

    counted = DistributedDataParallel(models.resnet50())
    counted.register_comm_hook(None, count_bytes)
    for _ in range(2):  # after the first step the buckets are filled in the order of the backward pass
        sizes.clear()
        cross_entropy(counted(images), targets).backward()
    del counted
    times = {name: [] for name in ("single", "unsynced", "backward", "synced", "optimizer", "reduce")}
    reduce_times = {size: [] for size in SIZES}
    buffers = [torch.zeros(size // FLOAT_BYTES) for size in sizes]
    for _ in range(3):
        time_forward_backward(replica)
        optimizer.step()
    for _ in range(options.rounds):
        distributed.barrier()
        if first:
            times["single"].append(time_forward_backward(network)[0])
        distributed.barrier()
        total, backward = time_without_sync()
        times["unsynced"].append(total)
        times["backward"].append(backward)
        distributed.barrier()
        times["synced"].append(time_forward_backward(replica)[0])
        times["optimizer"].append(time_call(optimizer.step))
        distributed.barrier()
        times["reduce"].append(time_call(lambda: [distributed.all_reduce(buffer) for buffer in buffers]))
        for size in SIZES:
            buffer = torch.zeros(size // FLOAT_BYTES)
            distributed.barrier()
            reduce_times[size].append(time_call(partial(distributed.all_reduce, buffer), 4))
    single_group = distributed.new_group([0])
    if first:
        times |= time_simulated_network(options, single_group, time_forward_backward, sum(sizes))
    distributed.barrier()
    if first:
        best = {name: min(values) for name, values in times.items()}
        line = {size: min(values) for size, values in reduce_times.items()}
        Path(options.work).write_text(json.dumps(best | {"sizes": sizes, "line": line}))
    distributed.destroy_process_group()


def time_simulated_network(options, group, time_forward_backward, size):
    """Measure the steps of one process whose buckets are sent over a simulated network."""
    replica = DistributedDataParallel(models.resnet50().to(memory_format=torch.channels_last), process_group=group)
    transfers, seconds_per_byte = queue.Queue(), [0.0]
    thread = threading.Thread(target=simulate_network, args=(transfers,))
    thread.start()

    def hook(state, bucket):
        future = torch.futures.Future()
        transfers.put((bucket.buffer().nbytes * seconds_per_byte[0], bucket.buffer(), future))
        return future

    replica.register_comm_hook(None, hook)
    time_forward_backward(replica)
    reference = min(time_forward_backward(replica)[0] for _ in range(5))
    times = {"free": [], **{f"slowdown {slowdown}": [] for slowdown in SLOWDOWNS}}
    for _ in range(options.rounds):
        seconds_per_byte[0] = 0.0
        times["free"].append(time_forward_backward(replica)[0])
        for slowdown in SLOWDOWNS:
            seconds_per_byte[0] = slowdown * reference / size
            times[f"slowdown {slowdown}"].append(time_forward_backward(replica)[0])
    transfers.put(None)
    thread.join()
    return times | {"reference": [reference]}


def fit_all_reduce_times(line):
    """Fit latency per hop and bandwidth to the seconds of all-reduces of two processes.

    The time is 2 latency + bytes / bandwidth. The fit minimizes the squared relative error, since the times differ by
    orders of magnitude.
    """
    sizes = torch.tensor([float(size) for size in line], dtype=torch.float64)
    times = torch.tensor(list(line.values()), dtype=torch.float64)
    rows = torch.stack([2 / times, sizes / times], 1)
    latency, slope = (
        torch.linalg.lstsq(rows, torch.ones(len(sizes), 1, dtype=torch.float64)).solution.flatten().tolist()
    )
    return max(latency, 0.0), 1 / slope


def main():
    """Start the two processes, read their measurements, predict and record."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--size", type=int, default=64)
    options.add_argument("--batch-size", type=int, default=8)
    options.add_argument("--rounds", type=int, default=12)
    options.add_argument("--work", default="", help=argparse.SUPPRESS)
    options = options.parse_args()
    if options.work:
        return run_process(options)
    start = time.monotonic()
    flags = ["--size", str(options.size), "--batch-size", str(options.batch_size), "--rounds", str(options.rounds)]
    file = Path(os.environ.get("TMPDIR", "/tmp"), f"fukami-scaling-{os.getpid()}.json")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command_line = [*launcher, __file__, *flags, "--work", str(file)]
    subprocess.run(command_line, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    times = json.loads(file.read_text())
    file.unlink()

    latency, bandwidth = fit_all_reduce_times({int(size): value for size, value in times["line"].items()})
    layers = summarize_layers(models.resnet50(), (3, options.size, options.size))
    job = TrainingJob(layers=layers, batch_size=options.batch_size)
    cluster = Cluster(
        images_per_second=options.batch_size / times["unsynced"],
        devices_per_machine=2,
        intra_bandwidth=bandwidth,
        intra_latency=latency,
        optimizer_time=times["optimizer"],
    )
    predicted = predict_weak_scaling(job, cluster, 2).step_time
    measured = times["synced"] + times["optimizer"]
    exposed = times["synced"] - times["unsynced"]
    hidden = 1 - exposed / times["reduce"]
    command = f"python benchmarks/scaling.py {' '.join(flags)}"
    total_seconds = time.monotonic() - start

    def record_row(metric, value, note):
        record(
            "scaling resnet50, 2 processes",
            metric,
            value,
            command=command,
            seed=0,
            seconds=total_seconds,
            note=note,
            device="cpu",
        )

    bucket_sizes = ", ".join(f"{size / 2**20:.1f}" for size in times["sizes"])
    num_bytes = sum(times["sizes"])
    gradient_bytes = FLOAT_BYTES * count_parameters(models.resnet50())
    record_row(
        "bytes all-reduced in a step, counted / parameters x 4", num_bytes / gradient_bytes, f"{num_bytes} bytes"
    )
    num_equal = sum(one == other for one, other in zip(times["sizes"], compute_bucket_sizes(job), strict=False))
    record_row(
        "buckets, counted",
        len(times["sizes"]),
        f"{bucket_sizes} MiB; {num_equal} have the size of the model's {len(compute_bucket_sizes(job))}",
    )
    record_row("all-reduce bandwidth, MB/s", bandwidth / 1e6,
        f"gloo on the loopback; 2 latency + bytes / bandwidth, latency {1e6 * latency:.0f} us")  # fmt: skip
    record_row(
        "backward fraction of the computation",
        times["backward"] / times["unsynced"],
        f"the model has {BACKWARD_FRACTION:.3f}",
    )
    record_row("fraction of the all-reduce hidden behind the backward pass", hidden,
        f"forward and backward {times['synced']:.3f} s, without all-reduce {times['unsynced']:.3f} s, "
        f"only all-reduces {times['reduce']:.3f} s")  # fmt: skip
    record_row("step of two concurrent processes without all-reduce / of one process",
        times["unsynced"] / times["single"],
        f"{times['unsynced']:.3f} s, {times['single']:.3f} s: the cost of a shared machine")  # fmt: skip
    record_row("step of two processes, predicted / measured", predicted / measured,
        f"{predicted:.3f} s, {measured:.3f} s; from the concurrent computation, the optimizer "
        f"({times['optimizer']:.3f} s) and the all-reduce line")  # fmt: skip
    record_row("efficiency of two processes, measured", (times["single"] + times["optimizer"]) / measured,
        f"predicted {(times['single'] + times['optimizer']) / predicted:.3f}")  # fmt: skip
    for slowdown in SLOWDOWNS:
        cluster = Cluster(
            images_per_second=options.batch_size / times["free"],
            devices_per_machine=2,
            intra_bandwidth=num_bytes / slowdown / times["reference"],
        )
        predicted_step, measured_step = predict_weak_scaling(job, cluster, 2).step_time, times[f"slowdown {slowdown}"]
        record_row(f"step with a simulated network, {slowdown:g} times the computation, predicted / measured",
            predicted_step / measured_step,
            f"{predicted_step:.3f} s, {measured_step:.3f} s; {times['free']:.3f} s without it")  # fmt: skip
    return None


if __name__ == "__main__":
    main()

"""What data-parallel training costs on many devices, on paper: computation, all-reduce, network and input.

The gradients of a step are summed over the devices in buckets, each as soon as the backward pass has filled it (Li et
al., "PyTorch Distributed", VLDB 2020), so that most of the all-reduce hides behind the computation.
:func:`predict_weak_scaling` walks through one such step. An all-reduce of b bytes takes, among n at bandwidth w and
latency a per hop,

- in a ring ``2 (n-1)/n b/w + 2 (n-1) a``, the least traffic there can be (Patarasuk and Yuan 2009);
- in a double binary tree ``2 b/w + 2 log2(n) a`` (Sanders, Speck and Träff 2009), for which NCCL has fewer hops.

The quicker of the two is taken. Between machines every device handles its part of a bucket, which is summed within the
machine before and handed round there after.

Not in the model: all-reduces slow the computation that they hide behind, networks are shared with others, and a switch
may be oversubscribed. ``spread`` stands for devices that are not equally fast at each step. What is measured is
therefore rather below the prediction than above it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fukami.explain.summary import LayerInfo

FLOAT_BYTES = 4  # bytes; gradients are float32 at every precision of the computation
MIB = 2**20
BACKWARD_FRACTION = 2 / 3  # of the computation: one convolution forward, two backward (to the input and to the weights)


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Machines of equal devices; every bandwidth in bytes per second, every time in seconds.

    Args:
        images_per_second: images per second on which one device trains alone.
        step_overhead: of a step on one device, whatever its batch.
        optimizer_time: of the optimizer, after the gradients are there.
        step_time_std: standard deviation of a device's time for a step, as a share of it; the slowest decides.
        all_reduce_overhead: of any all-reduce, whatever its size.
        devices_per_machine: in a machine.
        intra_bandwidth: bandwidth of a device to the others in its machine.
        intra_latency: of a hop within the machine.
        inter_bandwidth: bandwidth of a machine to the others.
        inter_latency: of a hop between machines.
        disk_bandwidth: from which each machine reads its share of the images.
        storage_bandwidth: from which all machines read together.
    """

    images_per_second: float
    step_overhead: float = 0.0
    optimizer_time: float = 0.0
    step_time_std: float = 0.0
    all_reduce_overhead: float = 0.0
    devices_per_machine: int = 8
    intra_bandwidth: float = math.inf
    intra_latency: float = 0.0
    inter_bandwidth: float = math.inf
    inter_latency: float = 0.0
    disk_bandwidth: float = math.inf
    storage_bandwidth: float = math.inf


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """What each step of the training does.

    Args:
        layers: of the network, from :func:`fukami.explain.summary.summarize_layers`.
        batch_size: images of a device in a step (all devices' for :func:`predict_strong_scaling`).
        image_bytes: bytes to read for one.
        sync_batch_norm: batch normalisation over all devices: an exchange per layer forward, another backward.
        first_bucket_bytes: bytes after which the first bucket is full; the first one is small, so that the network
            begins early.
        bucket_bytes: bytes after which another is.
    """

    layers: "Sequence[LayerInfo]"
    batch_size: float
    image_bytes: float = 0.0
    sync_batch_norm: bool = False
    first_bucket_bytes: int = MIB
    bucket_bytes: int = 25 * MIB


@dataclass(frozen=True)
class StepEstimate:
    """One step of the training on so many devices.

    Args:
        num_devices: in all.
        batch_size: images of one device.
        step_time: from one step to the next.
        compute_time: seconds that a device computes, or waits for a slower one.
        network_time: seconds that all-reduces take, hidden or not.
        input_time: seconds that reading takes, which goes on beside all else.
        efficiency: images per second and device, as a share of those of one device alone.
    """

    num_devices: int
    batch_size: float
    step_time: float
    compute_time: float
    network_time: float
    input_time: float
    efficiency: float

    @property
    def images_per_second(self) -> float:
        """Images per second of all devices together."""
        return self.num_devices * self.batch_size / self.step_time

    @property
    def bottleneck(self) -> str:
        """What sets the pace, because it is busy longest: ``compute``, ``network`` or ``input``."""
        return max(("compute", "network", "input"), key=lambda part: float(getattr(self, f"{part}_time")))


def compute_ring_time(num_bytes: float, num_devices: int, bandwidth: float, latency: float) -> float:
    """Seconds of an all-reduce of ``num_bytes`` bytes around a ring."""
    return 2 * (num_devices - 1) / num_devices * num_bytes / bandwidth + 2 * (num_devices - 1) * latency


def compute_tree_time(num_bytes: float, num_devices: int, bandwidth: float, latency: float) -> float:
    """Seconds of an all-reduce of ``num_bytes`` bytes up and down a double binary tree."""
    return 2 * num_bytes / bandwidth + 2 * math.ceil(math.log2(num_devices)) * latency if num_devices > 1 else 0.0


def compute_all_reduce_time(num_bytes: float, cluster: Cluster, num_devices: int) -> float:
    """Seconds to sum ``num_bytes`` bytes over the devices: within each machine, between machines, within each again."""
    if num_devices == 1:
        return 0.0
    levels = (
        (min(num_devices, cluster.devices_per_machine), cluster.intra_bandwidth, cluster.intra_latency),
        (math.ceil(num_devices / cluster.devices_per_machine), cluster.inter_bandwidth, cluster.inter_latency),
    )
    return cluster.all_reduce_overhead + sum(
        min(compute_ring_time(num_bytes, *level), compute_tree_time(num_bytes, *level)) for level in levels
    )


def compute_bucket_sizes(job: TrainingJob) -> list[int]:
    """Bytes of gradients in each bucket, in the order in which the backward pass fills them."""
    return [size for size, _ in _assign_buckets(job)]


def predict_weak_scaling(job: TrainingJob, cluster: Cluster, num_devices: int) -> StepEstimate:
    """A step with ``job.batch`` images on each device, however many there are (weak scaling)."""
    return _simulate_step(job, cluster, num_devices, _compute_single_device_speed(job, cluster))


def predict_strong_scaling(job: TrainingJob, cluster: Cluster, num_devices: int) -> StepEstimate:
    """A step with ``job.batch`` images on all devices together (strong scaling)."""
    return _simulate_step(
        replace(job, batch_size=job.batch_size / num_devices),
        cluster,
        num_devices,
        _compute_single_device_speed(job, cluster),
    )


def _compute_single_device_speed(job: TrainingJob, cluster: Cluster) -> float:
    """Images per second of one device that waits for nothing."""
    return job.batch_size / (
        job.batch_size / cluster.images_per_second + cluster.step_overhead + cluster.optimizer_time
    )


def _simulate_step(job: TrainingJob, cluster: Cluster, devices: int, alone: float) -> StepEstimate:
    """Walk through a step: forward, then backward with the all-reduces beside it, one after another."""
    slowest = NormalDist().inv_cdf((devices - 0.375) / (devices + 0.25))  # of so many, in deviations (Blom 1958)
    compute = (job.batch_size / cluster.images_per_second + cluster.step_overhead) * (
        1 + cluster.step_time_std * slowest
    )
    total = sum(layer.multiply_adds for layer in job.layers)
    ends = {position: size for size, position in _assign_buckets(job)}
    exchanges = 0.0
    now = (1 - BACKWARD_FRACTION) * compute
    if job.sync_batch_norm:
        exchanges = sum(_compute_sync_time(layer, cluster, devices) for layer in job.layers)
        now += exchanges
    free = now  # when the network is done with what it was given
    busy = exchanges
    for position in reversed(range(len(job.layers))):
        layer = job.layers[position]
        now += BACKWARD_FRACTION * compute * layer.multiply_adds / total
        exchange = _compute_sync_time(layer, cluster, devices) if job.sync_batch_norm else 0.0
        if exchange:  # the backward pass waits for it, and it waits for the buckets before it
            now = free = max(now, free) + exchange
            busy += exchange
        if position in ends:
            taken = compute_all_reduce_time(ends[position], cluster, devices)
            free = max(now, free) + taken
            busy += taken
    machines = math.ceil(devices / cluster.devices_per_machine)
    images = job.batch_size * devices
    reading = max(images / machines / cluster.disk_bandwidth, images / cluster.storage_bandwidth) * job.image_bytes
    seconds = max(max(now, free) + cluster.optimizer_time, reading)
    speed = job.batch_size / seconds
    return StepEstimate(
        devices, job.batch_size, seconds, compute + cluster.optimizer_time, busy, reading, speed / alone
    )


def _compute_sync_time(layer: "LayerInfo", cluster: Cluster, devices: int) -> float:
    """Seconds to exchange the mean and the variance of every channel of a batch normalisation; 0 for other layers."""
    if not layer.op_type.startswith("BatchNorm"):
        return 0.0
    return compute_all_reduce_time(2 * FLOAT_BYTES * layer.output_shape[0], cluster, devices)


def _assign_buckets(job: TrainingJob) -> list[tuple[int, int]]:
    """Of each bucket its bytes, and the position of the layer that fills it."""
    found: list[tuple[int, int]] = []
    size, limit = 0, job.first_bucket_bytes
    weighted = [position for position, layer in enumerate(job.layers) if layer.num_parameters]
    for position in reversed(weighted):
        size += FLOAT_BYTES * job.layers[position].num_parameters
        if size >= limit or position == weighted[0]:
            found.append((size, position))
            size, limit = 0, job.bucket_bytes
    return found

"""Cost model of data-parallel training on many devices: computation, all-reduce, network and input.

The gradients of a step are summed over the devices in buckets, each as soon as the backward pass has filled it (Li et
al., "PyTorch Distributed", VLDB 2020), so most of the all-reduce overlaps with the computation.
:func:`predict_weak_scaling` simulates one such step. An all-reduce of b bytes among n devices with bandwidth w and
latency a per hop takes

- in a ring ``2 (n-1)/n b/w + 2 (n-1) a``, with the minimum traffic (Patarasuk and Yuan 2009);
- in a double binary tree ``2 b/w + 2 log2(n) a`` (Sanders, Speck and Träff 2009), which NCCL uses for fewer hops.

The model takes the faster of the two. The all-reduce is hierarchical: each bucket is summed within each machine, then
between the machines, where each device handles its part, and the result is distributed within each machine.

The model ignores that all-reduces slow down the overlapping computation, that other jobs use the network, and that
switches may be oversubscribed. ``step_time_std`` models devices of varying speed. Measured speeds are therefore below
the prediction rather than above it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fukami.explain.summary import LayerInfo

FLOAT_BYTES = 4  # gradients are float32 at every precision of the computation
MIB = 2**20
BACKWARD_FRACTION = 2 / 3  # of the computation: one convolution forward, two backward (input and weight gradients)


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Cluster of machines with equal devices; bandwidths in bytes per second, times in seconds.

    Args:
        images_per_second: training speed of a single device.
        step_overhead: fixed time of a step on one device, independent of the batch size.
        optimizer_time: time of the optimizer, after the gradients are complete.
        step_time_std: standard deviation of a device's step time, as a fraction of it; the slowest device decides.
        all_reduce_overhead: fixed time of an all-reduce, independent of its size.
        devices_per_machine: number of devices in a machine.
        intra_bandwidth: bandwidth between a device and the others in its machine.
        intra_latency: latency of a hop within a machine.
        inter_bandwidth: bandwidth between a machine and the others.
        inter_latency: latency of a hop between machines.
        disk_bandwidth: bandwidth at which each machine reads its part of the images.
        storage_bandwidth: bandwidth of the storage that all machines read from.
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
    """Training job: the work of each step.

    Args:
        layers: layers of the network, from :func:`fukami.explain.summary.summarize_layers`.
        batch_size: images per device and step (of all devices together for :func:`predict_strong_scaling`).
        image_bytes: bytes to read for one image.
        sync_batch_norm: synchronized batch normalization: one all-reduce per layer forward, one backward.
        first_bucket_bytes: size of the first bucket; it is small, so that the all-reduces start early.
        bucket_bytes: size of the other buckets.
    """

    layers: "Sequence[LayerInfo]"
    batch_size: float
    image_bytes: float = 0.0
    sync_batch_norm: bool = False
    first_bucket_bytes: int = MIB
    bucket_bytes: int = 25 * MIB


@dataclass(frozen=True)
class StepEstimate:
    """Estimated cost of one training step; times in seconds.

    Args:
        num_devices: total number of devices.
        batch_size: images per device.
        step_time: time from one step to the next.
        compute_time: time of the computation, including waiting for slower devices.
        network_time: time of the all-reduces, overlapped or not.
        input_time: time of reading the images, in parallel with the other work.
        efficiency: scaling efficiency: images per second and device, as a fraction of the speed of a single device.
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
        """Bottleneck of the step, with the longest time: ``compute``, ``network`` or ``input``."""
        return max(("compute", "network", "input"), key=lambda part: float(getattr(self, f"{part}_time")))


def compute_ring_time(num_bytes: float, num_devices: int, bandwidth: float, latency: float) -> float:
    """Compute the seconds of a ring all-reduce of ``num_bytes`` bytes."""
    return 2 * (num_devices - 1) / num_devices * num_bytes / bandwidth + 2 * (num_devices - 1) * latency


def compute_tree_time(num_bytes: float, num_devices: int, bandwidth: float, latency: float) -> float:
    """Compute the seconds of a double-binary-tree all-reduce of ``num_bytes`` bytes."""
    return 2 * num_bytes / bandwidth + 2 * math.ceil(math.log2(num_devices)) * latency if num_devices > 1 else 0.0


def compute_all_reduce_time(num_bytes: float, cluster: Cluster, num_devices: int) -> float:
    """Compute the seconds of a hierarchical all-reduce of ``num_bytes`` bytes, within and between the machines."""
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
    """Compute the bytes of gradients in each bucket, in the order in which the backward pass fills them."""
    return [size for size, _ in _assign_buckets(job)]


def predict_weak_scaling(job: TrainingJob, cluster: Cluster, num_devices: int) -> StepEstimate:
    """Estimate a step with ``job.batch_size`` images on each device (weak scaling)."""
    return _simulate_step(job, cluster, num_devices, _compute_single_device_speed(job, cluster))


def predict_strong_scaling(job: TrainingJob, cluster: Cluster, num_devices: int) -> StepEstimate:
    """Estimate a step with ``job.batch_size`` images on all devices together (strong scaling)."""
    return _simulate_step(
        replace(job, batch_size=job.batch_size / num_devices),
        cluster,
        num_devices,
        _compute_single_device_speed(job, cluster),
    )


def _compute_single_device_speed(job: TrainingJob, cluster: Cluster) -> float:
    """Compute the images per second of a single device, without communication and input."""
    return job.batch_size / (
        job.batch_size / cluster.images_per_second + cluster.step_overhead + cluster.optimizer_time
    )


def _simulate_step(job: TrainingJob, cluster: Cluster, devices: int, single_device_speed: float) -> StepEstimate:
    """Simulate a step: forward, then backward, overlapped with the all-reduces, which run one after another."""
    # expected maximum of the devices' step times, in standard deviations (Blom 1958)
    slowest = NormalDist().inv_cdf((devices - 0.375) / (devices + 0.25))
    compute = (job.batch_size / cluster.images_per_second + cluster.step_overhead) * (
        1 + cluster.step_time_std * slowest
    )
    total = sum(layer.multiply_adds for layer in job.layers)
    bucket_sizes = {position: size for size, position in _assign_buckets(job)}
    sync_time = 0.0
    now = (1 - BACKWARD_FRACTION) * compute
    if job.sync_batch_norm:
        sync_time = sum(_compute_sync_time(layer, cluster, devices) for layer in job.layers)
        now += sync_time
    network_free = now  # time at which the network has finished its queue
    network_time = sync_time
    for position in reversed(range(len(job.layers))):
        layer = job.layers[position]
        now += BACKWARD_FRACTION * compute * layer.multiply_adds / total
        layer_sync_time = _compute_sync_time(layer, cluster, devices) if job.sync_batch_norm else 0.0
        if layer_sync_time:  # the backward pass waits for it, and it waits for the queued buckets
            now = network_free = max(now, network_free) + layer_sync_time
            network_time += layer_sync_time
        if position in bucket_sizes:
            bucket_time = compute_all_reduce_time(bucket_sizes[position], cluster, devices)
            network_free = max(now, network_free) + bucket_time
            network_time += bucket_time
    machines = math.ceil(devices / cluster.devices_per_machine)
    images = job.batch_size * devices
    input_time = max(images / machines / cluster.disk_bandwidth, images / cluster.storage_bandwidth) * job.image_bytes
    step_time = max(max(now, network_free) + cluster.optimizer_time, input_time)
    speed = job.batch_size / step_time
    return StepEstimate(
        devices,
        job.batch_size,
        step_time,
        compute + cluster.optimizer_time,
        network_time,
        input_time,
        speed / single_device_speed,
    )


def _compute_sync_time(layer: "LayerInfo", cluster: Cluster, devices: int) -> float:
    """Compute the seconds to all-reduce the statistics of a batch normalization layer; 0 for other layers."""
    if not layer.op_type.startswith("BatchNorm"):
        return 0.0
    return compute_all_reduce_time(2 * FLOAT_BYTES * layer.output_shape[0], cluster, devices)


def _assign_buckets(job: TrainingJob) -> list[tuple[int, int]]:
    """Return the bytes of each bucket and the position of the layer that fills it."""
    buckets: list[tuple[int, int]] = []
    size, limit = 0, job.first_bucket_bytes
    weighted = [position for position, layer in enumerate(job.layers) if layer.num_parameters]
    for position in reversed(weighted):
        size += FLOAT_BYTES * job.layers[position].num_parameters
        if size >= limit or position == weighted[0]:
            buckets.append((size, position))
            size, limit = 0, job.bucket_bytes
    return buckets

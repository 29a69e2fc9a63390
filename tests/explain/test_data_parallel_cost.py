"""Tests of the data-parallel cost model against values by hand, torch's buckets and published measurements."""

import importlib.util
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fukami import models
from fukami.explain.data_parallel_cost import (
    MIB,
    Cluster,
    TrainingJob,
    compute_all_reduce_time,
    compute_bucket_sizes,
    compute_ring_time,
    compute_tree_time,
    predict_strong_scaling,
    predict_weak_scaling,
)
from fukami.explain.summary import count_parameters, summarize_layers

SIZE = (3, 224, 224)


def create_layer(multiply_adds, parameters, kind="Conv2d", channels=8):
    return SimpleNamespace(
        multiply_adds=multiply_adds, num_parameters=parameters, op_type=kind, output_shape=(channels, 4, 4)
    )


@pytest.fixture(scope="module")
def resnet50():
    return summarize_layers(models.resnet50(), SIZE)


# two layers: the backward pass takes one second each, the forward pass one in total; 400 bytes of gradients each
JOB = TrainingJob(
    layers=[create_layer(100, 100), create_layer(100, 100)], batch_size=30, first_bucket_bytes=1, bucket_bytes=1
)
CLUSTER = Cluster(images_per_second=10, devices_per_machine=1)  # 30 images in three seconds


def test_all_reduce_by_hand():
    assert compute_ring_time(100, 2, 10, 0) == 10  # each device sends half of the bytes twice
    assert compute_ring_time(100, 4, 10, 0) == 15
    assert compute_ring_time(0, 4, 10, 2) == 12  # 2 (4 - 1) hops
    assert compute_ring_time(100, 1, 10, 2) == compute_tree_time(100, 1, 10, 2) == 0
    assert compute_tree_time(0, 4, 10, 2) == 8  # two levels up and down
    assert compute_tree_time(100, 8, 10, 0) == 20
    assert compute_tree_time(0, 5, 10, 2) == 12  # an incomplete third level


def test_all_reduce_within_and_between_machines():
    cluster = Cluster(
        images_per_second=1, devices_per_machine=4, intra_bandwidth=100, inter_bandwidth=10, all_reduce_overhead=3
    )
    assert compute_all_reduce_time(100, cluster, 1) == 0
    assert compute_all_reduce_time(100, cluster, 4) == 3 + 1.5  # ring of four devices
    assert compute_all_reduce_time(100, cluster, 8) == 3 + 1.5 + 10  # and ring of two machines
    assert compute_all_reduce_time(100, cluster, 5) == compute_all_reduce_time(100, cluster, 8)  # a partly used machine
    slow = Cluster(images_per_second=1, devices_per_machine=1, inter_latency=1)
    assert compute_all_reduce_time(100, slow, 1024) == 20  # tree: a ring would take 2,046 hops


def test_a_step_by_hand():
    # the first bucket is full after two seconds and takes 2 (n - 1)/n 400 / 200 = 2, until 4; the second from 4 to 6
    step = predict_weak_scaling(JOB, replace(CLUSTER, inter_bandwidth=200), 2)
    assert (step.step_time, step.compute_time, step.network_time) == (6, 3, 4)
    assert step.efficiency == 3 / 6
    assert step.bottleneck == "network"
    assert step.images_per_second == 2 * 30 / 6
    # at four times the bandwidth, the first bucket overlaps with the second layer and half a second remains
    step = predict_weak_scaling(JOB, replace(CLUSTER, inter_bandwidth=800), 2)
    assert (step.step_time, step.network_time, step.bottleneck) == (3.5, 1, "compute")
    # a single bucket does not overlap
    assert (
        predict_weak_scaling(replace(JOB, first_bucket_bytes=800), replace(CLUSTER, inter_bandwidth=800), 2).step_time
        == 4
    )
    # the optimizer runs after the all-reduce
    assert predict_weak_scaling(JOB, replace(CLUSTER, inter_bandwidth=800, optimizer_time=1), 2).step_time == 4.5


def test_synchronized_batch_normalization_by_hand():
    # 8 channels are 64 bytes: 0.64 s at 100 bytes/s; once forward, and once backward after the queued bucket
    layers = [create_layer(100, 100), create_layer(0, 0, "BatchNorm2d"), create_layer(100, 100)]
    job, cluster = (
        TrainingJob(layers=layers, batch_size=30, first_bucket_bytes=1, bucket_bytes=1),
        replace(CLUSTER, inter_bandwidth=100),
    )
    unsynchronized = predict_weak_scaling(job, cluster, 2)
    assert unsynchronized.step_time == 2 + 4 + 4
    synchronized = predict_weak_scaling(replace(job, sync_batch_norm=True), cluster, 2)
    # forward until 1.64, last layer 2.64, its bucket 6.64, the statistics 7.28; then the first layer and its bucket
    assert synchronized.step_time == pytest.approx(1.64 + 1 + 4 + 0.64 + 1 + 4)
    assert synchronized.network_time == pytest.approx(8 + 1.28)
    assert predict_weak_scaling(replace(job, sync_batch_norm=True), cluster, 1).step_time == 3


def test_input_bound():
    job = replace(JOB, image_bytes=100)
    step = predict_weak_scaling(job, replace(CLUSTER, disk_bandwidth=500), 1)  # 3,000 bytes
    assert (step.step_time, step.input_time, step.bottleneck) == (6, 6, "input")
    assert (
        predict_weak_scaling(job, replace(CLUSTER, disk_bandwidth=500), 64).step_time == 6
    )  # each machine has its own disk
    assert (
        predict_weak_scaling(job, replace(CLUSTER, storage_bandwidth=6000), 64).step_time == 32
    )  # but all machines use the same storage
    assert predict_weak_scaling(job, replace(CLUSTER, disk_bandwidth=500, devices_per_machine=8), 8).step_time == 48


@pytest.mark.parametrize("sync_batch_norm", [False, True])
def test_efficiency_bounds(resnet50, sync_batch_norm):
    job = TrainingJob(layers=resnet50, batch_size=256, sync_batch_norm=sync_batch_norm)
    cluster = Cluster(
        images_per_second=2500,
        intra_bandwidth=2e11,
        intra_latency=1e-6,
        inter_bandwidth=1e10,
        inter_latency=1e-5,
        all_reduce_overhead=1e-5,
        optimizer_time=0.001,
    )
    assert predict_weak_scaling(job, cluster, 1).efficiency == pytest.approx(1)
    assert predict_strong_scaling(job, cluster, 1).efficiency == pytest.approx(1)
    for count in (2, 8, 1024):  # unlimited bandwidth costs nothing
        assert predict_weak_scaling(job, Cluster(images_per_second=2500), count).efficiency == pytest.approx(1)
    for predict in (predict_weak_scaling, predict_strong_scaling):
        efficiencies = [predict(job, cluster, 2**power).efficiency for power in range(11)]
        assert efficiencies == sorted(efficiencies, reverse=True)
        assert 0 < efficiencies[-1] < efficiencies[0]
    efficiencies = [
        predict_weak_scaling(job, replace(cluster, inter_bandwidth=bandwidth * 1e9), 256).efficiency
        for bandwidth in (1, 3, 10, 30, 100)
    ]
    assert efficiencies == sorted(efficiencies)


def test_strong_scaling_by_hand():
    cluster = Cluster(images_per_second=100, step_overhead=1)
    job = TrainingJob(layers=JOB.layers, batch_size=800)
    assert predict_strong_scaling(job, cluster, 1).step_time == 9
    step = predict_strong_scaling(job, cluster, 8)
    assert (step.batch_size, step.step_time) == (100, pytest.approx(2))
    assert step.efficiency == pytest.approx(9 / 8 / 2)


def test_the_slowest_device_determines_the_step_time():
    generator = torch.Generator().manual_seed(0)
    expected = 3 * (1 + 0.1 * torch.randn(20_000, 64, generator=generator)).amax(1).mean()
    step = predict_weak_scaling(JOB, replace(CLUSTER, step_time_std=0.1), 64)
    assert step.step_time == pytest.approx(float(expected), rel=0.005)
    assert predict_weak_scaling(JOB, replace(CLUSTER, step_time_std=0.1), 1).step_time == 3


def test_buckets_equal_torchs(resnet50):
    job = TrainingJob(layers=resnet50, batch_size=1)
    parameters = list(models.resnet50().parameters())[::-1]
    limits = [torch.distributed._DEFAULT_FIRST_BUCKET_BYTES, 25 * MIB]
    buckets, _ = torch.distributed._compute_bucket_assignment_by_size(parameters, limits, [False] * len(parameters))
    assert compute_bucket_sizes(job) == [sum(4 * parameters[index].numel() for index in bucket) for bucket in buckets]
    assert sum(compute_bucket_sizes(job)) == 4 * count_parameters(models.resnet50()) == 102_228_128


def test_predictions_agree_with_published_measurements():
    """Compare with Goyal et al. (2017) and Horovod's benchmark on their hardware: within 9 points of efficiency."""
    path = Path(__file__).parents[2] / "docs" / "figures" / "scripts" / "scaling.py"
    spec = importlib.util.spec_from_file_location("scaling_figure", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    results = script.predict_published_results()
    assert len(results) == 4
    for name, measured, predicted in results:
        assert math.isclose(measured, predicted, abs_tol=0.09), name
    assert results[2][2] > results[3][2]  # VGG-16 is less efficient on 512 devices than on 128

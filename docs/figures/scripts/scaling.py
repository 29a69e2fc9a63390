"""Plot the scaling of ResNet-50 to 1,024 GPUs as modelled by fukami.explain.data_parallel_cost.

python docs/figures/scripts/scaling.py    writes docs/figures/scaling.png and prints its numbers
"""

import sys
from dataclasses import replace
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fukami import models
from fukami.explain.data_parallel_cost import (
    MIB,
    Cluster,
    StepEstimate,
    TrainingJob,
    compute_bucket_sizes,
    predict_strong_scaling,
    predict_weak_scaling,
)
from fukami.explain.summary import count_multiply_adds, count_parameters, summarize_layers

HERE = Path(__file__).parents[1]
INPUT_SHAPE = (3, 224, 224)
NUM_DEVICES = [2**power for power in range(11)]
BATCH_SIZE = 256  # per device
GIGABIT = 1e9 / 8  # bytes per second
OVERHEAD = 0.005  # seconds per step
# An A100 with 80 GB: 2,470 images/s in mixed precision, from NVIDIA's DeepLearningExamples. The latencies are those of
# NCCL 2.19's tuning model (tuning.cc, protocol LL). The overhead of a step and the intra-machine bandwidth are assumed.
A100 = Cluster(
    images_per_second=BATCH_SIZE / (BATCH_SIZE / 2470 - OVERHEAD),
    step_overhead=OVERHEAD,
    all_reduce_overhead=6.8e-6,
    intra_bandwidth=230e9,
    intra_latency=0.6e-6,
    inter_latency=5e-6,
)
BANDWIDTHS = {"100 Gb/s": 100 * GIGABIT, "400 Gb/s": 400 * GIGABIT, "3.2 Tb/s": 3200 * GIGABIT}
IMAGE_BYTES = 147_897_477_120 / 1_281_167  # archive of ImageNet's training split over its number of images
COLORS = ["#d08a3e", "#3c6a9c", "#5b9a45"]
INK, GRAY = "#23303d", "#66727e"
LAYERS = {name: summarize_layers(getattr(models, name)(), INPUT_SHAPE) for name in ("resnet50", "resnet101", "vgg16")}


def build_job(batch_size: float, sync_batch_norm: bool = False) -> TrainingJob:
    """Build the training job of ResNet-50 with a batch size."""
    return TrainingJob(
        layers=LAYERS["resnet50"], batch_size=batch_size, image_bytes=IMAGE_BYTES, sync_batch_norm=sync_batch_norm
    )


def predict_published_results() -> list[tuple[str, float, float]]:
    """Return the description, the published efficiency and the modelled efficiency of published results."""
    # Goyal et al. 2017: machines with 8 P100 and 50 Gb/s, 32 images per GPU, backward 120 ms; relative to one machine.
    goyal = TrainingJob(layers=LAYERS["resnet50"], batch_size=32)
    p100 = Cluster(
        images_per_second=32 / 0.180,
        intra_bandwidth=20e9,
        intra_latency=10e-6,
        inter_bandwidth=50 * GIGABIT,
        inter_latency=30e-6,
    )
    # Horovod's benchmark: machines with 4 Pascal GPUs and 25 Gb/s, 64 images per GPU, gradients fused to 64 MiB.
    # Images/s: VGG-16 from TensorFlow's benchmark on a P100; ResNet-101 from Horovod's with 16 GPUs.
    pascal = Cluster(
        images_per_second=154,
        devices_per_machine=4,
        intra_bandwidth=10e9,
        intra_latency=10e-6,
        inter_bandwidth=25 * GIGABIT,
        inter_latency=30e-6,
    )
    fused = {"batch_size": 64, "first_bucket_bytes": 64 * MIB, "bucket_bytes": 64 * MIB}
    vgg = TrainingJob(layers=LAYERS["vgg16"], **fused)
    resnet = TrainingJob(layers=LAYERS["resnet101"], **fused)
    other = replace(pascal, images_per_second=1656.82 / 16)
    ratio = predict_weak_scaling(goyal, p100, 256).efficiency / predict_weak_scaling(goyal, p100, 8).efficiency
    return [
        ("ResNet-50, 256 P100, 50 Gb/s (Goyal et al. 2017)", 0.90, ratio),
        ("ResNet-101, 512 Pascal, 25 Gb/s (Horovod)", 0.90, predict_weak_scaling(resnet, other, 512).efficiency),
        ("VGG-16, 128 Pascal, 25 Gb/s (Horovod)", 0.79, predict_weak_scaling(vgg, pascal, 128).efficiency),
        ("VGG-16, 512 Pascal, 25 Gb/s (Horovod)", 0.68, predict_weak_scaling(vgg, pascal, 512).efficiency),
    ]


def plot_efficiency(axes: Axes, title: str, min_value: float, estimates: dict[str, list[StepEstimate]]) -> None:
    """Plot the efficiency over the number of devices; dashed lines are synchronized batch normalization."""
    for name, steps in estimates.items():
        bandwidth, _, suffix = name.partition(", ")
        color = COLORS[list(BANDWIDTHS).index(bandwidth)]
        values = [100 * step.efficiency for step in steps]
        axes.plot(
            NUM_DEVICES, values, color=color, ls="--" if suffix else "-", lw=1.6, label=None if suffix else bandwidth
        )
    axes.plot([], [], color=INK, ls="-", lw=1.2, label="batch norm per GPU")
    axes.plot([], [], color=INK, ls="--", lw=1.2, label="synchronized")
    axes.set_title(title, fontsize=10, color=INK)
    axes.set_ylabel("efficiency, %", fontsize=9, color=GRAY)
    axes.set_ylim(min_value, 100 + (100 - min_value) / 40)
    axes.legend(fontsize=8, loc="lower left", facecolor="white", edgecolor="none", framealpha=1)
    style_axes(axes)


def style_axes(axes: Axes) -> None:
    """Set a logarithmic x axis of the number of GPUs, and hide the upper and right spines."""
    axes.set_xscale("log", base=2)
    axes.set_xticks([1, 8, 64, 256, 1024], ["1", "8", "64", "256", "1,024"])
    axes.set_xlabel("GPUs, 8 per machine", fontsize=9, color=GRAY)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.grid(axis="y", color="#e6e9ec", lw=0.7)
    axes.set_axisbelow(True)


def plot_scaling(weak: dict[str, list[StepEstimate]], strong: dict[str, list[StepEstimate]]) -> Figure:
    """Plot weak scaling, strong scaling and the bytes to read."""
    figure = Figure(figsize=(10.5, 3.7), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    plot_efficiency(left, f"batch size {BATCH_SIZE} per GPU", 60, weak)
    plot_efficiency(middle, f"global batch size {BATCH_SIZE * 32:,}", 0, strong)
    read_rates = [step.images_per_second * IMAGE_BYTES / 1e9 for step in weak["400 Gb/s"]]
    right.plot(NUM_DEVICES, read_rates, color=INK, lw=1.6)
    for value, label in ((3, "NVMe disk, 3 GB/s"), (12.5, "server, 100 Gb/s")):
        right.axhline(value, color=GRAY, lw=0.9, ls=":")
        right.text(1024, value / 1.1, label, fontsize=8, color=GRAY, ha="right", va="top")
    right.set_yscale("log")
    right.set_yticks([0.3, 1, 3, 10, 30, 100, 300], ["0.3", "1", "3", "10", "30", "100", "300"])
    right.minorticks_off()
    right.set_title("JPEG files to read, GB/s", fontsize=10, color=INK)
    style_axes(right)
    return figure


def main() -> None:
    """Compute the estimates, print them and draw the figure."""
    weak, strong = {}, {}
    for sync_batch_norm in (False, True):
        for bandwidth, bytes_per_second in BANDWIDTHS.items():
            cluster = replace(A100, inter_bandwidth=bytes_per_second)
            name = bandwidth + ", synchronized" * sync_batch_norm
            weak_job = build_job(BATCH_SIZE, sync_batch_norm)
            weak[name] = [predict_weak_scaling(weak_job, cluster, count) for count in NUM_DEVICES]
            strong_job = build_job(BATCH_SIZE * 32, sync_batch_norm)
            strong[name] = [predict_strong_scaling(strong_job, cluster, count) for count in NUM_DEVICES]
    write = sys.stdout.write
    model, sizes = models.resnet50(), (f"{size / MIB:.1f}" for size in compute_bucket_sizes(build_job(BATCH_SIZE)))
    write(f"ResNet-50: {count_multiply_adds(model, INPUT_SHAPE) / 1e9:.2f} G multiply-adds forward, ")
    write(f"{4 * count_parameters(model):,} bytes of gradients in buckets of {', '.join(sizes)} MiB\n")
    for title, estimates in (
        (f"batch size {BATCH_SIZE} per GPU", weak),
        (f"global batch size {BATCH_SIZE * 32:,}", strong),
    ):
        write(f"\n{title}: efficiency in %, step time in ms, bottleneck\n")
        for name, steps in estimates.items():
            cells = [
                f"{step.num_devices}: {100 * step.efficiency:.1f} {1e3 * step.step_time:.1f} {step.bottleneck}"
                for step in steps
                if step.num_devices in (8, 64, 256, 1024)
            ]
            write(f"  {name:<24} {', '.join(cells)}\n")
    write("\nGB/s of JPEG files at 400 Gb/s: ")
    write(
        ", ".join(f"{step.num_devices}: {step.images_per_second * IMAGE_BYTES / 1e9:.2f}" for step in weak["400 Gb/s"])
        + "\n"
    )
    write("\npublished efficiency, modelled efficiency\n")
    for description, published, modelled in predict_published_results():
        write(f"  {description:<50} {100 * published:.0f} % {100 * modelled:.0f} %\n")
    plot_scaling(weak, strong).savefig(HERE / "scaling.png", dpi=110)


if __name__ == "__main__":
    main()

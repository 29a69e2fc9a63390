"""Draw what limits the training of ResNet-50 on up to 1,024 GPUs, by the model of fukami.explain.data_parallel_cost.

python docs/figures/scripts/scaling.py    writes scaling.png beside this file, and prints the tables of ../scale.md
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
SIZE = (3, 224, 224)
COUNTS = [2**power for power in range(11)]
BATCH = 256
GIGABIT = 1e9 / 8  # bytes per second
OVERHEAD = 0.005
# An A100 of 80 GB: NVIDIA's DeepLearningExamples tell 2,470 images/s, in mixed precision. The latencies are those by
# which NCCL 2.19 chooses (tuning.cc: protocol LL). The overhead of a step and the bandwidth in a machine are assumed.
A100 = Cluster(
    images_per_second=BATCH / (BATCH / 2470 - OVERHEAD),
    step_overhead=OVERHEAD,
    all_reduce_overhead=6.8e-6,
    intra_bandwidth=230e9,
    intra_latency=0.6e-6,
    inter_latency=5e-6,
)
NETWORKS = {"100 Gb/s": 100 * GIGABIT, "400 Gb/s": 400 * GIGABIT, "3.2 Tb/s": 3200 * GIGABIT}
IMAGE = 147_897_477_120 / 1_281_167  # bytes: the archive of ImageNet's training part and the images in it
COLOURS = ["#d08a3e", "#3c6a9c", "#5b9a45"]
INK, GREY = "#23303d", "#66727e"


LAYERS = {name: summarize_layers(getattr(models, name)(), SIZE) for name in ("resnet50", "resnet101", "vgg16")}


def resnet50(batch: float, synchronised: bool = False) -> TrainingJob:
    """ResNet-50 with so many images."""
    return TrainingJob(layers=LAYERS["resnet50"], batch_size=batch, image_bytes=IMAGE, sync_batch_norm=synchronised)


def published() -> list[tuple[str, float, float]]:
    """What, the efficiency that was measured, and the model's with the hardware that is told."""
    # Goyal et al. 2017: 8 P100 and 50 Gb/s in a machine, 32 images each, backward 120 ms; relative to one machine.
    goyal = TrainingJob(layers=LAYERS["resnet50"], batch_size=32)
    p100 = Cluster(
        images_per_second=32 / 0.180,
        intra_bandwidth=20e9,
        intra_latency=10e-6,
        inter_bandwidth=50 * GIGABIT,
        inter_latency=30e-6,
    )
    # Horovod's benchmark: 4 Pascal GPUs and 25 Gb/s in a machine, 64 images each, gradients joined to 64 MiB.
    # Images/s: of VGG-16, TensorFlow's benchmark of a P100; of ResNet-101, Horovod's own with 16 GPUs.
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


def curves(axes: Axes, title: str, lowest: float, steps: dict[str, list[StepEstimate]]) -> None:
    """Efficiency by the number of devices; dashed where batch normalisation is synchronised."""
    for name, found in steps.items():
        network, _, kind = name.partition(", ")
        number = list(NETWORKS).index(network)
        values = [100 * step.efficiency for step in found]
        axes.plot(
            COUNTS, values, color=COLOURS[number], ls="--" if kind else "-", lw=1.6, label=None if kind else network
        )
    axes.plot([], [], color=INK, ls="-", lw=1.2, label="batch norm per GPU")
    axes.plot([], [], color=INK, ls="--", lw=1.2, label="synchronised")
    axes.set_title(title, fontsize=10, color=INK)
    axes.set_ylabel("efficiency, %", fontsize=9, color=GREY)
    axes.set_ylim(lowest, 100 + (100 - lowest) / 40)
    axes.legend(fontsize=8, loc="lower left", facecolor="white", edgecolor="none", framealpha=1)
    plain(axes)


def plain(axes: Axes) -> None:
    """A logarithmic axis of GPUs, and no frame but where the values are."""
    axes.set_xscale("log", base=2)
    axes.set_xticks([1, 8, 64, 256, 1024], ["1", "8", "64", "256", "1,024"])
    axes.set_xlabel("GPUs, 8 in a machine", fontsize=9, color=GREY)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.grid(axis="y", color="#e6e9ec", lw=0.7)
    axes.set_axisbelow(True)


def draw(weak: dict[str, list[StepEstimate]], hard: dict[str, list[StepEstimate]]) -> Figure:
    """The figure."""
    figure = Figure(figsize=(10.5, 3.7), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    curves(left, f"{BATCH} images on each GPU", 60, weak)
    curves(middle, f"{BATCH * 32:,} images on all together", 0, hard)
    need = [step.images_per_second * IMAGE / 1e9 for step in weak["400 Gb/s"]]
    right.plot(COUNTS, need, color=INK, lw=1.6)
    for value, words in ((3, "NVMe disk, 3 GB/s"), (12.5, "server, 100 Gb/s")):
        right.axhline(value, color=GREY, lw=0.9, ls=":")
        right.text(1024, value / 1.1, words, fontsize=8, color=GREY, ha="right", va="top")
    right.set_yscale("log")
    right.set_yticks([0.3, 1, 3, 10, 30, 100, 300], ["0.3", "1", "3", "10", "30", "100", "300"])
    right.minorticks_off()
    right.set_title("JPEG files to read, GB/s", fontsize=10, color=INK)
    plain(right)
    return figure


def main() -> None:
    """Predict, print, draw."""
    both = [(name, width, kind) for kind in (False, True) for name, width in NETWORKS.items()]
    weak, hard = {}, {}
    for name, width, synchronised in both:
        cluster = replace(A100, inter_bandwidth=width)
        words = name + ", synchronised" * synchronised
        weak[words] = [predict_weak_scaling(resnet50(BATCH, synchronised), cluster, count) for count in COUNTS]
        hard[words] = [predict_strong_scaling(resnet50(BATCH * 32, synchronised), cluster, count) for count in COUNTS]
    write = sys.stdout.write
    model, sizes = models.resnet50(), (f"{size / MIB:.1f}" for size in compute_bucket_sizes(resnet50(BATCH)))
    write(f"ResNet-50: {count_multiply_adds(model, SIZE) / 1e9:.2f} G multiply-adds forward, ")
    write(f"{4 * count_parameters(model):,} bytes of gradients in buckets of {', '.join(sizes)} MiB\n")
    for title, found in ((f"{BATCH} on each GPU", weak), (f"{BATCH * 32:,} on all together", hard)):
        write(f"\n{title}: efficiency in percent, the time of a step in ms, what is busy longest\n")
        for words, steps in found.items():
            shown = [step for step in steps if step.num_devices in (8, 64, 256, 1024)]
            cells = [f"{s.num_devices}: {100 * s.efficiency:.1f} {1e3 * s.step_time:.1f} {s.bottleneck}" for s in shown]
            write(f"  {words:<24} {', '.join(cells)}\n")
    write("\nGB/s of JPEG files at 400 Gb/s: ")
    write(
        ", ".join(f"{step.num_devices}: {step.images_per_second * IMAGE / 1e9:.2f}" for step in weak["400 Gb/s"]) + "\n"
    )
    write("\nmeasured by others, and what the model says\n")
    for words, measured, model_says in published():
        write(f"  {words:<50} {100 * measured:.0f} % {100 * model_says:.0f} %\n")
    draw(weak, hard).savefig(HERE / "scaling.png", dpi=110)


if __name__ == "__main__":
    main()

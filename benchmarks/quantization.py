"""Quantization: speed of binary layers and networks, and all precisions of trained runs.

    python benchmarks/quantization.py layers      a 3×3 convolution: binary, float32, bfloat16 and oneDNN's int8
    python benchmarks/quantization.py network     the CIFAR-10 network of the BNN paper, binary and in other precisions
    python benchmarks/quantization.py gpu         both on a GPU, 256 images at once, compared with cuDNN
    python benchmarks/quantization.py train OUT [RUN...]       full-precision, quantization-aware and binary runs
    python benchmarks/quantization.py precisions OUT [RUN...]  the runs in OUT, evaluated at every precision
    python benchmarks/quantization.py figure      the figure and tables of docs/guides/quantization.md

Needs MNIST and CIFAR-10 in $FUKAMI_DATA. Results go to results.csv. All times are ratios to float32, measured in turn
on the same machine; layers and network on one thread.
"""

import argparse
import copy
import csv
import shlex
import statistics
import sys
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils import mkldnn
from torch.utils.benchmark import Timer

from common.record import FILE, record, run_command
from fukami.engine.load_run import load_task
from fukami.layers.binary import BinaryConv2d, BinaryLinear, Sign
from fukami.models import binary_convnet
from fukami.quantization import binary_reference
from fukami.quantization.binary_layers import PackedLayer, pack_model
from fukami.quantization.int8 import quantize
from fukami.quantization.onnx_export import OnnxNetwork, export_onnx

ROUNDS = 15
RUNS = {
    "deep-convnet-mnist": "fukami train deep-convnet --data mnist --eval-every 5",
    "deep-convnet-mnist-int8": "fukami train deep-convnet --data mnist --init deep-convnet-mnist --quantize int8 "
    "--epochs 2 --lr 0.0002",
    "binary-deep-convnet-mnist": "fukami train binary-deep-convnet --data mnist --eval-every 5",
    "resnet20-cifar10": "fukami train resnet20 --data cifar10 --eval-every 5",
    "resnet20-cifar10-int8": "fukami train resnet20 --data cifar10 --init resnet20-cifar10 --quantize int8 --epochs 2 "
    "--lr 0.002",
    "binary-convnet-half-cifar10": "fukami train binary-convnet --data cifar10 --eval-every 2 --epochs 24 "
    "--widths 64 64 128 128 256 256 --hidden 512 512",
    "binary-convnet-cifar10": "fukami train binary-convnet --data cifar10 --eval-every 5",
}
COUNTERPARTS = {"binary-deep-convnet-mnist": "deep-convnet-mnist"}  # full-precision runs
PLOTTED = {
    "DeepConvNet on MNIST": ("deep-convnet-mnist", "deep-convnet-mnist-int8", "binary-deep-convnet-mnist"),
    "ResNet-20 on CIFAR-10": ("resnet20-cifar10", "resnet20-cifar10-int8"),
}
MARKERS = "osDv^x*"  # of the precisions


def time_in_turn(**functions):
    """Return the median seconds of each function; every round times all of them in turn."""
    times = {name: [] for name in functions}
    for _ in range(ROUNDS):
        for name, function in functions.items():
            timer = Timer("f()", globals={"f": function}, num_threads=torch.get_num_threads())
            times[name].append(timer.blocked_autorange(min_run_time=0.05).median)
    return {name: statistics.median(values) for name, values in times.items()}


def find_fastest(times, dtype):
    """Return the seconds of the fastest implementation for a data type."""
    return min(seconds for name, seconds in times.items() if name.startswith(dtype))


@torch.inference_mode()
def measure_layers(options):
    """Measure 3×3 convolutions with equal numbers of input and output channels, one image, one thread."""
    torch.set_num_threads(1)
    for channels in (128, 256):
        for side in (16, 32):
            times = time_in_turn(**build_convolutions(channels, side))
            for dtype in ("float32", "bfloat16", "int8"):
                variants = "" if dtype == "int8" else ", the faster of channels last and packed"
                record("1-bit layer", f"3×3, {channels} channels, {side}×{side}: times faster than {dtype}",
                       find_fastest(times, dtype) / times["binary"], command="python benchmarks/quantization.py layers",
                       note=f"one thread, one image; {dtype} is oneDNN's{variants}; 1 bit from words to words, with "
                       "thresholds", device="cpu")  # fmt: skip


def build_convolutions(channels, side):
    """Build a convolution in every implementation: with packed bits, and by oneDNN."""
    x = torch.randn(1, channels, side, side).contiguous(memory_format=torch.channels_last)
    float32 = nn.Conv2d(channels, channels, 3, padding=1, bias=False).eval().to(memory_format=torch.channels_last)
    bfloat16 = copy.deepcopy(float32).bfloat16()
    packed_float32, packed_bfloat16 = mkldnn.to_mkldnn(float32), mkldnn.to_mkldnn(float32, torch.bfloat16)
    next_layers = [nn.BatchNorm2d(channels).eval(), Sign()]
    binary = PackedLayer(BinaryConv2d(channels, channels, 3, padding=1), next_layers, channels)
    words = binary_reference.pack_words(x.permute(0, 2, 3, 1) > 0)
    return {
        "binary": partial(binary, words),
        "float32": partial(float32, x),
        "float32, packed": partial(packed_float32, x.to_mkldnn()),
        "bfloat16": partial(bfloat16, x.bfloat16()),
        "bfloat16, packed": partial(packed_bfloat16, x.to_mkldnn(torch.bfloat16)),
        "int8": build_int8_convolution(float32, x),
    }


def build_int8_convolution(layer, x):
    """Build oneDNN's int8 convolution, with packed per-channel weights, uint8 input and output."""
    scales = layer.weight.abs().amax((1, 2, 3)) / 127
    weight = (layer.weight / scales.view(-1, 1, 1, 1)).round().to(torch.int8)
    zeros = torch.zeros(len(scales), dtype=torch.int)
    geometry = ([1, 1], [1, 1], [1, 1], 1)
    packed = torch.ops.onednn.qconv_prepack(weight, scales, 0.02, 128, *geometry, list(x.shape))
    quantized = (x / 0.02 + 128).round().clamp(0, 255).to(torch.uint8)
    output_options = (0.02, 128, torch.uint8, "none", [], "")
    return lambda: torch.ops.onednn.qconv2d_pointwise(
        quantized, 0.02, 128, packed, scales, zeros, None, *geometry, *output_options
    )


@torch.inference_mode()
def measure_network(options):
    """Measure the network on one image and one thread, and its full-precision counterpart with ReLU instead of sign."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    binary = binary_convnet().eval().to(memory_format=torch.channels_last)  # as in runs
    float32 = build_float_network(binary).to(memory_format=torch.channels_last)
    bfloat16 = copy.deepcopy(float32).bfloat16()
    runtime = OnnxNetwork(export_onnx(float32, (3, 32, 32), {}))
    int8 = OnnxNetwork(quantize(float32, (3, 32, 32), [torch.randn(64, 3, 32, 32)], {}))
    x = torch.randn(1, 3, 32, 32)
    packed = pack_model(binary)
    assert torch.equal(packed(x), binary(x))
    times = time_in_turn(
        binary=partial(packed, x), float32=partial(float32, x), onnx=partial(runtime, x),
        int8=partial(int8, x),
        bfloat16=partial(bfloat16, x.bfloat16()),
    )  # fmt: skip
    names = {
        "float32": "float32 of oneDNN",
        "onnx": "float32 of ONNX Runtime",
        "int8": "int8 of ONNX Runtime",
        "bfloat16": "bfloat16 of oneDNN",
    }
    for precision, name in names.items():
        record("binary-convnet, whole", f"times faster than {name}", times[precision] / times["binary"],
               command="python benchmarks/quantization.py network",
               note="one thread, one image; batch normalization of the full-precision network is folded",
               device="cpu")  # fmt: skip


@torch.inference_mode()
def measure_on_gpu(options):
    """Measure layers and network on a GPU, 256 images at once, compared with cuDNN."""
    torch.backends.cudnn.allow_tf32 = False
    for channels in options.channels:
        for side in options.sides:
            x = torch.randn(options.batch_size, channels, side, side, device=options.device).to(
                memory_format=torch.channels_last
            )
            binary = BinaryConv2d(channels, channels, 3, padding=1)
            next_layers = [nn.BatchNorm2d(channels).eval(), Sign()]
            compare_with_dense(
                "1-bit layer", f"3×3, {channels} channels, {side}×{side}: ",
                PackedLayer(binary, next_layers, channels).to(options.device),
                binary_reference.pack_words(x.permute(0, 2, 3, 1) > 0),
                nn.Conv2d(channels, channels, 3, padding=1, bias=False), x,
            )  # fmt: skip
    network = binary_convnet().eval()
    x = torch.randn(options.batch_size, 3, 32, 32, device=options.device)
    dense = build_float_network(network)  # before the network moves to the device
    compare_with_dense("binary-convnet, whole", "", pack_model(network.to(options.device)), x, dense, x)


def compare_with_dense(benchmark, metric_prefix, packed, packed_input, dense, x):
    """Record the speedup of packed bits over float32 and bfloat16."""
    float32 = dense.eval().to(x.device, memory_format=torch.channels_last)
    bfloat16 = copy.deepcopy(float32).bfloat16()
    times = time_in_turn(
        binary=partial(packed, packed_input), float32=partial(float32, x), bfloat16=partial(bfloat16, x.bfloat16())
    )
    for dtype in ("float32", "bfloat16"):
        record(benchmark, f"{metric_prefix}times faster than {dtype}, {len(x)} images", times[dtype] / times["binary"],
               command=f"python benchmarks/quantization.py {shlex.join(sys.argv[1:])}",
               note="cuDNN without TF32" if x.is_cuda else "", device=x.device.type)  # fmt: skip


def build_float_network(binary):
    """Build the full-precision counterpart with ReLU, with batch normalization folded where possible."""
    layers = []
    for layer in copy.deepcopy(binary):
        if isinstance(layer, BinaryConv2d):
            layer = nn.Conv2d(layer.in_channels, layer.out_channels, 3, layer.stride, layer.padding, bias=False).eval()
        elif isinstance(layer, BinaryLinear):
            layer = nn.Linear(layer.in_features, layer.out_features, bias=False).eval()
        if isinstance(layer, nn.BatchNorm2d) and isinstance(layers[-1], nn.MaxPool2d):
            layers[-2] = fuse_conv_bn_eval(layers[-2], layer)  # valid before the pooling, because scales are positive
        elif isinstance(layer, nn.BatchNorm2d):
            layers[-1] = fuse_conv_bn_eval(layers[-1], layer)
        elif isinstance(layer, Sign):
            layers.append(nn.ReLU(inplace=True))
        elif not isinstance(layer, nn.BatchNorm1d):
            layers.append(layer)
    return nn.Sequential(*layers).eval()


def train_runs(options):
    """Train the runs that are missing in OUT."""
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.runs or RUNS:
        command = RUNS[name]
        if not (options.out / name / "report.html").is_file():
            result, seconds = run_command(f"{command} --out {name} --resume", cwd=options.out)
            note = f"{result['errors']} errors of {result['count']}"
            record(name, "test accuracy", result["accuracy"], command=command, seed=0, seconds=seconds, note=note)


def compare_precisions(options):
    """Evaluate the runs in OUT at every precision; compare binary runs with their full-precision counterparts."""
    for name in options.runs or [name for name in RUNS if (options.out / name / "report.html").is_file()]:
        command = f"fukami eval {name} --precision all"
        result, seconds = run_command(f"{command} --out {name}-precisions", cwd=options.out)
        float32 = result["precisions"][0]
        for entry in result["precisions"]:
            values = {
                "test accuracy": entry["accuracy"],
                "agreement with float32": entry["agreement"],
                "bytes of the file": entry["bytes"],
                "memory for one image, MB": entry["memory_1"] / 1e6,
                "memory for 256 images, MB": entry["memory_256"] / 1e6,
                "one image, times faster than float32": float32["latency"] / entry["latency"],
                "256 images, times faster than float32": entry["throughput"] / float32["throughput"],
            }
            if name in COUNTERPARTS and entry["precision"] == "binary":
                values |= compare_with_counterpart(options.out / name, options.out / COUNTERPARTS[name])
            note = "; ".join(f"{component} {dtype}" for component, dtype in entry["dtypes"].items())
            for metric, value in values.items():
                record(f"{name} at {entry['precision']}", metric, value, command=command, seed=0, seconds=seconds,
                       note=note)  # fmt: skip


def compare_with_counterpart(binary, counterpart):
    """Measure the speedup of a packed binary run over its counterpart in float32."""
    packed, full = (
        load_task(binary, device="cpu", precision="binary"),
        load_task(counterpart, device="cpu"),
    )
    (channels, side, _), _ = full.get_signature()
    values = {}
    for count, prefix in ((1, "one image"), (256, "256 images")):
        images = torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8)
        with torch.inference_mode():
            times = time_in_turn(
                packed=partial(packed.predict_log_probabilities, images),
                full=partial(full.predict_log_probabilities, images),
            )
        values[f"{prefix}, times faster than {counterpart.name} at float32"] = times["full"] / times["packed"]
    return values


def write_figure(options):
    """Write the tables and the figure of docs/guides/quantization.md, from the last rows of results.csv."""
    with FILE.open(newline="") as file:
        rows = {(row["benchmark"], row["metric"]): row for row in csv.DictReader(file)}
    folder = FILE.parents[1] / "docs" / "figures"
    plot = Figure(figsize=(10, 6.4), layout="constrained")
    panels = plot.subplots(2, 2)
    for (title, names), column in zip(PLOTTED.items(), range(2), strict=True):
        points = [point for name in names for point in collect_points(rows, name)]
        (folder / f"precision-{names[0]}.md").write_text(format_table(points), encoding="utf-8")
        draw_panels(panels[0][column], panels[1][column], title, points)
    plot.savefig(folder / "precision.png", dpi=130)


def collect_points(rows, name):
    """Yield label and metrics of a run at each plotted precision."""
    trained_for = "binary" if name.startswith("binary") else "int8" if name.endswith("-int8") else None
    for precision in (trained_for,) if trained_for else ("float32", "bfloat16", "float16", "int8", "onnx"):
        # quantization-aware training does not change the speed of int8
        timed_name = name.removesuffix("-int8")
        metrics = {
            metric: float(row["value"]) for (run, metric), row in rows.items() if run == f"{name} at {precision}"
        }
        timings = {
            metric: float(row["value"]) for (run, metric), row in rows.items() if run == f"{timed_name} at {precision}"
        }
        for count in ("one image", "256 images"):
            over_float32 = timings[f"{count}, times faster than float32"]
            metrics[count] = timings.get(
                f"{count}, times faster than {COUNTERPARTS.get(name)} at float32", over_float32
            )
        yield {"binary": "1 bit", "int8": "int8, quantization-aware"}.get(trained_for, precision), metrics


def format_table(points):
    """Format a table in Markdown."""
    header = ("", "accuracy", "as float32", "file, kB", "memory for 1, MB", "for 256, MB", "speed, 1", "speed, 256")
    lines = [header, ("---",) * len(header)]
    for label, metrics in points:
        agreement = "" if label == "1 bit" else f"{metrics['agreement with float32']:.2%}"
        lines.append((
            label, f"{metrics['test accuracy']:.2%}", agreement, f"{metrics['bytes of the file'] / 1e3:,.1f}",
            f"{metrics['memory for one image, MB']:.1f}", f"{metrics['memory for 256 images, MB']:.1f}",
            f"{metrics['one image']:.2f}×", f"{metrics['256 images']:.2f}×",
        ))  # fmt: skip
    return "".join(f"| {' | '.join(line)} |\n" for line in lines).replace("%", " %")


def draw_panels(top, bottom, title, points):
    """Plot the error over the file size, and below it the speedup of each precision over float32."""
    sizes = [metrics["bytes of the file"] / 1e3 for _, metrics in points]
    errors = [100 * (1 - metrics["test accuracy"]) for _, metrics in points]
    for (label, _), size, error, marker in zip(points, sizes, errors, MARKERS, strict=False):
        top.plot(size, error, marker, ms=8, mew=1.6, mfc="none", label=label)
    top.set_xscale("log")
    top.set_xlim(min(sizes) / 1.7, max(sizes) * 1.5)
    ticks = sorted({round(size, -1) for size in sizes})
    top.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    top.set_xticks([], minor=True)
    top.set(title=title, xlabel="file, kB", ylabel="test error, %")
    top.set_ylim(0, 1.35 * max(errors))
    top.legend(frameon=False, fontsize=8, loc="lower center", ncols=2)
    for offset, count, color in ((-0.2, "one image", "#1f5c99"), (0.2, "256 images", "#9cc3e6")):
        positions = [position + offset for position in range(len(points))]
        bars = bottom.bar(positions, [metrics[count] for _, metrics in points], 0.38, label=count, color=color)
        bottom.bar_label(bars, fmt="%.1f", fontsize=7)
    bottom.axhline(1, color="#888", lw=0.8)
    bottom.set_xticks(range(len(points)), [label.replace(", ", ",\n") for label, _ in points], fontsize=8)
    bottom.set(ylabel="times faster than float32")
    bottom.legend(frameon=False, fontsize=8)
    for axes in (top, bottom):
        axes.spines[["top", "right"]].set_visible(False)


def main():
    """Run the selected benchmark."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("action", choices=["layers", "network", "gpu", "train", "precisions", "figure"])
    options.add_argument("out", type=Path, nargs="?", default=Path("runs"))
    options.add_argument("runs", nargs="*")
    options.add_argument("--device", default="cuda", help="Device of gpu.")
    options.add_argument("--batch-size", type=int, default=256, help="Batch size of gpu.")
    options.add_argument("--channels", type=int, nargs="+", default=[128, 256], help="Channels of the layers in gpu.")
    options.add_argument("--sides", type=int, nargs="+", default=[16, 32], help="Sides of their maps.")
    options = options.parse_args()
    actions = {
        "layers": measure_layers, "network": measure_network, "gpu": measure_on_gpu, "train": train_runs,
        "precisions": compare_precisions, "figure": write_figure,
    }  # fmt: skip
    actions[options.action](options)


if __name__ == "__main__":
    main()

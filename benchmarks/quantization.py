"""How many bits does a network need? The speed of 1-bit layers and networks, and every precision of trained runs.

    python benchmarks/quantization.py layers         a 3×3 convolution: 1 bit against float32, bfloat16, oneDNN's int8
    python benchmarks/quantization.py network        the CIFAR-10 network of the BNN paper, 1 bit against others
    python benchmarks/quantization.py gpu            both on a GPU, 256 images at once, beside cuDNN
    python benchmarks/quantization.py train OUT [RUN...]  the trainings: with 32 bits, aware of 8, and with 1
    python benchmarks/quantization.py ladder OUT [RUN...] those runs that are in OUT, at every precision
    python benchmarks/quantization.py figure         the figure and tables of docs/guides/quantization.md

Needs MNIST and CIFAR-10 in $FUKAMI_DATA. Results go to results.csv. All times are ratios to float32, taken in turns on
the same machine; layers and network on one thread.
"""

import argparse
import copy
import csv
import statistics
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils import mkldnn
from torch.utils.benchmark import Timer

import fukami
from common.record import FILE, answer, record
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
COUNTERPARTS = {"binary-deep-convnet-mnist": "deep-convnet-mnist"}  # of full precision
PLOTTED = {
    "DeepConvNet on MNIST": ("deep-convnet-mnist", "deep-convnet-mnist-int8", "binary-deep-convnet-mnist"),
    "ResNet-20 on CIFAR-10": ("resnet20-cifar10", "resnet20-cifar10-int8"),
}


def in_turns(**functions):
    """The median seconds of each, over rounds in which all are timed one after another."""
    times = {name: [] for name in functions}
    for _ in range(ROUNDS):
        for name, function in functions.items():
            timer = Timer("f()", globals={"f": function}, num_threads=torch.get_num_threads())
            times[name].append(timer.blocked_autorange(min_run_time=0.05).median)
    return {name: statistics.median(values) for name, values in times.items()}


def fastest(found, kind):
    """The best of the ways to compute a kind of number."""
    return min(seconds for name, seconds in found.items() if name.startswith(kind))


@torch.inference_mode()
def layers(options):
    """3×3 convolutions of as many channels in as out, one image, one thread."""
    torch.set_num_threads(1)
    for channels in (128, 256):
        for side in (16, 32):
            found = in_turns(**ways(channels, side))
            for kind in ("float32", "bfloat16", "int8"):
                record("1-bit layer", f"3×3, {channels} channels, {side}×{side}: times faster than {kind}",
                       fastest(found, kind) / found["binary"], command="python benchmarks/quantization.py layers",
                       note=f"one thread, one image; {kind} is oneDNN's, the faster of channels last and packed; "
                       f"1 bit from words to words, with thresholds")  # fmt: skip


def ways(channels, side):
    """A convolution computed in every way: with packed bits, and by oneDNN."""
    x = torch.randn(1, channels, side, side).contiguous(memory_format=torch.channels_last)
    float32 = nn.Conv2d(channels, channels, 3, padding=1, bias=False).eval().to(memory_format=torch.channels_last)
    bfloat16 = copy.deepcopy(float32).bfloat16()
    own, own_bfloat16 = mkldnn.to_mkldnn(float32), mkldnn.to_mkldnn(float32, torch.bfloat16)
    step = [nn.BatchNorm2d(channels).eval(), Sign()]
    packed = PackedLayer(BinaryConv2d(channels, channels, 3, padding=1), step, channels)
    bits = binary_reference.pack_words(x.permute(0, 2, 3, 1) > 0)
    return {
        "binary": partial(packed, bits),
        "float32": partial(float32, x),
        "float32, packed": partial(own, x.to_mkldnn()),
        "bfloat16": partial(bfloat16, x.bfloat16()),
        "bfloat16, packed": partial(own_bfloat16, x.to_mkldnn(torch.bfloat16)),
        "int8": int8(float32, x),
    }


def int8(layer, x):
    """oneDNN's int8 convolution, its weights packed and per channel, uint8 in and out."""
    scales = layer.weight.abs().amax((1, 2, 3)) / 127
    weight = (layer.weight / scales.view(-1, 1, 1, 1)).round().to(torch.int8)
    zeros = torch.zeros(len(scales), dtype=torch.int)
    where = ([1, 1], [1, 1], [1, 1], 1)
    packed = torch.ops.onednn.qconv_prepack(weight, scales, 0.02, 128, *where, list(x.shape))
    given = (x / 0.02 + 128).round().clamp(0, 255).to(torch.uint8)
    rest = (0.02, 128, torch.uint8, "none", [], "")
    return lambda: torch.ops.onednn.qconv2d_pointwise(given, 0.02, 128, packed, scales, zeros, None, *where, *rest)


@torch.inference_mode()
def network(options):
    """The whole network, one image, one thread, beside one of full precision with rectifiers for signs."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    binary = binary_convnet().eval().to(memory_format=torch.channels_last)  # as runs have it
    float32 = twin(binary).to(memory_format=torch.channels_last)
    bfloat16 = copy.deepcopy(float32).bfloat16()
    runtime = OnnxNetwork(export_onnx(float32, (3, 32, 32), {}))
    eight = OnnxNetwork(quantize(float32, (3, 32, 32), [torch.randn(64, 3, 32, 32)], {}))
    x = torch.randn(1, 3, 32, 32)
    packed = pack_model(binary)
    assert torch.equal(packed(x), binary(x))
    found = in_turns(
        binary=partial(packed, x), float32=partial(float32, x), onnx=partial(runtime, x),
        int8=partial(eight, x),
        bfloat16=partial(bfloat16, x.bfloat16()),
    )  # fmt: skip
    names = {
        "float32": "float32 of oneDNN",
        "onnx": "float32 of ONNX Runtime",
        "int8": "int8 of ONNX Runtime",
        "bfloat16": "bfloat16 of oneDNN",
    }
    for kind, name in names.items():
        record("binary-convnet, whole", f"times faster than {name}", found[kind] / found["binary"],
               command="python benchmarks/quantization.py network",
               note="one thread, one image; the normalisations of its twin are folded")  # fmt: skip


@torch.inference_mode()
def gpu(options):
    """Layers and the whole network on a GPU, 256 images at once, beside cuDNN."""
    torch.backends.cudnn.allow_tf32 = False
    for channels in options.channels:
        for side in options.sides:
            x = torch.randn(options.batch, channels, side, side, device=options.device).to(
                memory_format=torch.channels_last
            )
            binary = BinaryConv2d(channels, channels, 3, padding=1)
            step = [nn.BatchNorm2d(channels).eval(), Sign()]
            beside_dense(
                "1-bit layer", f"3×3, {channels} channels, {side}×{side}: ",
                PackedLayer(binary, step, channels).to(options.device),
                binary_reference.pack_words(x.permute(0, 2, 3, 1) > 0),
                nn.Conv2d(channels, channels, 3, padding=1, bias=False), x,
            )  # fmt: skip
    network = binary_convnet().eval()
    x = torch.randn(options.batch, 3, 32, 32, device=options.device)
    dense = twin(network)  # before the network moves to the device
    beside_dense("binary-convnet, whole", "", pack_model(network.to(options.device)), x, dense, x)


def beside_dense(benchmark, what, packed, bits, dense, x):
    """Record how many times faster the packed bits are than dense numbers of 32 and of 16 bits."""
    float32 = dense.eval().to(x.device, memory_format=torch.channels_last)
    bfloat16 = copy.deepcopy(float32).bfloat16()
    found = in_turns(
        binary=partial(packed, bits), float32=partial(float32, x), bfloat16=partial(bfloat16, x.bfloat16())
    )
    for kind in ("float32", "bfloat16"):
        record(benchmark, f"{what}times faster than {kind}, {len(x)} images", found[kind] / found["binary"],
               command="python benchmarks/quantization.py gpu", note="cuDNN without TF32")  # fmt: skip


def twin(binary):
    """The network with numbers of full precision and rectifiers, normalisations folded where they can be."""
    made = []
    for layer in copy.deepcopy(binary):
        if isinstance(layer, BinaryConv2d):
            layer = nn.Conv2d(layer.in_channels, layer.out_channels, 3, layer.stride, layer.padding, bias=False).eval()
        elif isinstance(layer, BinaryLinear):
            layer = nn.Linear(layer.in_features, layer.out_features, bias=False).eval()
        if isinstance(layer, nn.BatchNorm2d) and isinstance(made[-1], nn.MaxPool2d):
            made[-2] = fuse_conv_bn_eval(made[-2], layer)  # scales are positive here, so it may come before the pooling
        elif isinstance(layer, nn.BatchNorm2d):
            made[-1] = fuse_conv_bn_eval(made[-1], layer)
        elif isinstance(layer, Sign):
            made.append(nn.ReLU(inplace=True))
        elif not isinstance(layer, nn.BatchNorm1d):
            made.append(layer)
    return nn.Sequential(*made).eval()


def train(options):
    """The runs that are not there yet, in OUT."""
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.runs or RUNS:
        command = RUNS[name]
        if not (options.out / name / "report.html").is_file():
            found, seconds = answer(f"{command} --out {name} --resume", cwd=options.out)
            note = f"{found['errors']} errors of {found['count']}"
            record(name, "test accuracy", found["accuracy"], command=command, seed=0, seconds=seconds, note=note)


def ladder(options):
    """The runs that are there, at every precision; those of 1 bit also beside their counterparts of full precision."""
    for name in options.runs or [name for name in RUNS if (options.out / name / "report.html").is_file()]:
        command = f"fukami eval {name} --precision all"
        found, seconds = answer(f"{command} --out {name}-ladder", cwd=options.out)
        first = found["precisions"][0]
        for step in found["precisions"]:
            values = {
                "test accuracy": step["accuracy"],
                "agreement with float32": step["agreement"],
                "bytes of the file": step["bytes"],
                "memory for one image, MB": step["memory_1"] / 1e6,
                "memory for 256 images, MB": step["memory_256"] / 1e6,
                "one image, times faster than float32": first["latency"] / step["latency"],
                "256 images, times faster than float32": step["throughput"] / first["throughput"],
            }
            if name in COUNTERPARTS and step["precision"] == "binary":
                values |= beside(options.out / name, options.out / COUNTERPARTS[name])
            note = "; ".join(f"{part} {what}" for part, what in step["computed"].items())
            for metric, value in values.items():
                record(f"{name} at {step['precision']}", metric, value, command=command, seed=0, seconds=seconds,
                       note=note)  # fmt: skip


def beside(binary, full):
    """How many times faster a packed run answers than its counterpart in float32."""
    packed, whole = fukami.load(binary, device="cpu", precision="binary"), fukami.load(full, device="cpu")
    (channels, side, _), _ = whole.get_signature()
    values = {}
    for count, words_of in ((1, "one image"), (256, "256 images")):
        images = torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8)
        with torch.inference_mode():
            found = in_turns(packed=partial(packed.predict_scores, images), whole=partial(whole.predict_scores, images))
        values[f"{words_of}, times faster than {full.name} at float32"] = found["whole"] / found["packed"]
    return values


def figure(options):
    """The tables and the plot of docs/guides/quantization.md, from the last rows of results.csv."""
    with FILE.open(newline="") as file:
        rows = {(row["benchmark"], row["metric"]): row for row in csv.DictReader(file)}
    folder = FILE.parents[1] / "docs" / "figures"
    drawing = Figure(figsize=(10, 6.4), layout="constrained")
    panels = drawing.subplots(2, 2)
    for (title, names), column in zip(PLOTTED.items(), range(2), strict=True):
        points = [point for name in names for point in measured(rows, name)]
        (folder / f"precision-{names[0]}.md").write_text(table(points), encoding="utf-8")
        draw(panels[0][column], panels[1][column], title, points)
    drawing.savefig(folder / "precision.png", dpi=130)


def measured(rows, name):
    """What is known of a run at each precision that it is shown at: the label and the numbers."""
    trained_for = "binary" if name.startswith("binary") else "int8" if name.endswith("-int8") else None
    for precision in (trained_for,) if trained_for else ("float32", "bfloat16", "float16", "int8", "onnx"):
        # how a file of int8 came about makes it neither faster nor slower
        timed = name.removesuffix("-int8")
        found = {metric: float(row["value"]) for (run, metric), row in rows.items() if run == f"{name} at {precision}"}
        times = {metric: float(row["value"]) for (run, metric), row in rows.items() if run == f"{timed} at {precision}"}
        for count in ("one image", "256 images"):
            usual = times[f"{count}, times faster than float32"]
            found[count] = times.get(f"{count}, times faster than {COUNTERPARTS.get(name)} at float32", usual)
        yield {"binary": "1 bit", "int8": "int8, trained for it"}.get(trained_for, precision), found


def table(points):
    """A table in Markdown."""
    head = ("", "accuracy", "as float32", "file, kB", "memory for 1, MB", "for 256, MB", "speed, 1", "speed, 256")
    lines = [head, ("---",) * len(head)]
    for label, found in points:
        agreement = "" if label == "1 bit" else f"{found['agreement with float32']:.2%}"
        lines.append((
            label, f"{found['test accuracy']:.2%}", agreement, f"{found['bytes of the file'] / 1e3:,.1f}",
            f"{found['memory for one image, MB']:.1f}", f"{found['memory for 256 images, MB']:.1f}",
            f"{found['one image']:.2f}×", f"{found['256 images']:.2f}×",
        ))  # fmt: skip
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def draw(above, below, title, points):
    """Errors over the size of the file, and under them how many times faster than float32 each precision is."""
    sizes = [found["bytes of the file"] / 1e3 for _, found in points]
    errors = [100 * (1 - found["test accuracy"]) for _, found in points]
    above.scatter(sizes, errors, color="#1f5c99", zorder=3)
    above.set_xscale("log")
    above.set_xlim(min(sizes) / 1.7, max(sizes) * 1.5)
    ticks = sorted({round(size, -1) for size in sizes})
    above.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    above.set_xticks([], minor=True)
    above.set(title=title, xlabel="file, kB", ylabel="test errors, %")
    above.set_ylim(0, 1.35 * max(errors))
    for number, (label, size, error) in enumerate(zip([label for label, _ in points], sizes, errors, strict=True)):
        above.annotate(label, (size, error), (0, 8 + 11 * (number % 3)), textcoords="offset points", ha="center",
                       fontsize=8)  # fmt: skip
    for shift, count, colour in ((-0.2, "one image", "#1f5c99"), (0.2, "256 images", "#9cc3e6")):
        places = [place + shift for place in range(len(points))]
        bars = below.bar(places, [found[count] for _, found in points], 0.38, label=count, color=colour)
        below.bar_label(bars, fmt="%.1f", fontsize=7)
    below.axhline(1, color="#888", lw=0.8)
    below.set_xticks(range(len(points)), [label.replace(", ", ",\n") for label, _ in points], fontsize=8)
    below.set(ylabel="times faster than float32")
    below.legend(frameon=False, fontsize=8)
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)


def main():
    """Measure what is asked for."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("action", choices=["layers", "network", "gpu", "train", "ladder", "figure"])
    options.add_argument("out", type=Path, nargs="?", default=Path("runs"))
    options.add_argument("runs", nargs="*")
    options.add_argument("--device", default="cuda", help="of gpu")
    options.add_argument("--batch", type=int, default=256, help="of gpu")
    options.add_argument("--channels", type=int, nargs="+", default=[128, 256], help="of the layers of gpu")
    options.add_argument("--sides", type=int, nargs="+", default=[16, 32], help="of their maps")
    options = options.parse_args()
    globals()[options.action](options)


if __name__ == "__main__":
    main()

"""Neural style transfer: time to the loss of PyTorch's tutorial after 500 iterations, and memory.

    python benchmarks/neural_style.py race [CONTENT STYLE] [--weights FILE] [--size 512] [--iterations 500]
    python benchmarks/neural_style.py seconds [CONTENT STYLE] [--weights FILE] [--size 512]
    python benchmarks/neural_style.py memory [CONTENT STYLE] [--weights FILE] [--sizes 512 1024 2048]

``race`` renders CONTENT in the style of STYLE with two programs in turn, each in its own process. Ours runs as ``fukami
stylize`` by default, but optimizes at the full size until the other has ended. The other is the loop of PyTorch's
tutorial: float32, torch's L-BFGS with its defaults, loss layers in a ``Sequential``, the image clamped in the closure.
Ours is in float32 too; with ``--precision auto`` it has the default precision of ``fukami stylize``. Both minimize the
same loss with the same weights; ours evaluates it for both in float32. ``seconds`` times ``fukami stylize`` with its
defaults. ``memory`` measures the peak memory of a step per megapixel. Without CONTENT and STYLE the bundled images are
used. ``--weights random`` is VGG-19 with random weights, to measure only time. Results go to results.csv.
"""

import argparse
import itertools
import shlex
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import vgg19

from common.processes import Worker, read_memory
from common.record import record, run_command, strip_folders
from fukami.engine.recipe import get_recipe
from fukami.style import data as style_data

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"


def build_task(options: argparse.Namespace, precision: str):
    """Build our task before its first step, and its batch."""
    from fukami.engine.runtime import Runtime

    recipe = get_recipe("neural-style")(
        content=options.images[0], style=tuple(options.images[1:]), weights=options.weights, size=options.size
    )
    torch.manual_seed(0)
    data = recipe.load_data()
    task = recipe.build_task(data.labels)
    task.setup(Runtime.start(DEVICE, precision))
    task.prepare_training()
    recipe.initialize_task(task)
    return task, data.train[0]


def run_ours(options: argparse.Namespace, pipe) -> None:
    """Run the requested number of steps; send the total seconds and the loss, and finally the peak memory."""
    before = read_memory("VmRSS")
    task, batch = build_task(options, options.precision)
    total_seconds, steps = 0.0, itertools.count()
    while count := pipe.recv():
        for _, step in zip(range(count), steps, strict=False):
            start = time.monotonic()
            task.schedule(min(step / task.epochs, 1 - 1e-9))
            task.step(batch)
            synchronize()
            total_seconds += time.monotonic() - start
        pipe.send((total_seconds, task.evaluate([batch])["loss"]))
    pipe.send(measure_peak_memory(before))


class LossLayer(nn.Module):
    """Identity layer that stores the loss of its input, as in the tutorial."""

    def __init__(self, target: Tensor, weight: float, style: bool) -> None:
        super().__init__()
        self.weight, self.style = weight, style
        self.target = self.compute_features(target).detach()

    def compute_features(self, maps: Tensor) -> Tensor:
        """Return the maps, or their Gram matrix for a style loss."""
        if not self.style:
            return maps
        flat = maps.view(maps.shape[1], -1)
        return flat @ flat.t() / flat.shape[1]

    def forward(self, maps: Tensor) -> Tensor:
        """Store the loss, and return the maps."""
        self.loss = self.weight * ((self.compute_features(maps) - self.target) ** 2).sum()
        return maps


def run_plain(options: argparse.Namespace, pipe) -> None:
    """Run the requested closure evaluations; send the total seconds and our loss, and finally the peak memory."""
    from fukami.style.task import STYLE_WEIGHT

    before = read_memory("VmRSS")
    task, batch = build_task(options, "float32")
    torch.backends.cudnn.deterministic = False  # ours enables it
    content, style = (
        task.normalize_image(image[0].to(DEVICE) / 255).contiguous() for image in (batch.content, *batch.styles)
    )
    image = (batch.content.to(DEVICE) / 255).contiguous().requires_grad_()
    layers, loss_layers = nn.Sequential(), []
    with torch.no_grad():
        for index, layer in enumerate(task.model.features):
            layer = nn.ReLU() if isinstance(layer, nn.ReLU) else layer
            layers.append(layer)
            content, style = layer(content.contiguous()), layer(style.contiguous())
            if index == task.model.content_layer:
                content_size = content.numel()
                loss_layers.append(LossLayer(content, 0.5, style=False))
                layers.append(loss_layers[-1])
            if index in task.model.style_layers:
                loss_layers.append(LossLayer(style, 1 / (5 * 4 * style.shape[1] ** 2), style=True))
                layers.append(loss_layers[-1])
    for loss in loss_layers:
        loss.weight *= STYLE_WEIGHT * content_size if loss.style else 1
    optimizer = torch.optim.LBFGS([image])
    total_seconds, count = 0.0, [0]

    def closure() -> Tensor:
        with torch.no_grad():
            image.clamp_(0, 1)
        optimizer.zero_grad()
        layers((image - task.mean) / task.std)
        total_loss = sum(loss.loss for loss in loss_layers)
        total_loss.backward()
        count[0] += 1
        return total_loss

    while num_evaluations := pipe.recv():
        target_count = count[0] + num_evaluations
        start = time.monotonic()
        while count[0] < target_count:
            optimizer.step(closure)
        synchronize()
        total_seconds += time.monotonic() - start
        with torch.no_grad():
            loss_value, _ = task.compute_losses(image[0].clamp(0, 1), batch.content, len(task.level_sizes) - 1)
        pipe.send((total_seconds, float(loss_value)))
    pipe.send(measure_peak_memory(before))


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if CUDA:
        torch.cuda.synchronize()


def measure_peak_memory(before: int) -> int:
    """Return the peak memory in bytes; on a CPU, relative to ``before``."""
    return torch.cuda.max_memory_allocated() if CUDA else read_memory("VmHWM") - before


def race_plain_loop(options: argparse.Namespace) -> None:
    """Measure the time of ours to the final loss of the tutorial's loop."""
    ours, plain = Worker(run_ours, options), Worker(run_plain, options)
    history = []
    for _ in range(options.rounds):
        plain_seconds, target_loss = plain.request(max(1, options.iterations // options.rounds))
        history += [ours.request(5) for _ in range(max(1, options.iterations // options.rounds // 5))]
        our_seconds, our_loss = history[-1]
        print(f"plain {plain_seconds:.0f} s {target_loss:.0f}, ours {our_seconds:.0f} s {our_loss:.0f}", flush=True)
    while history[-1][1] > target_loss and history[-1][0] < plain_seconds:
        history.append(ours.request(5))
    memory = [worker.request(0) for worker in (ours, plain)]
    time_to_target = next((spent for spent, loss in history if loss <= target_loss), float("inf"))
    description, command = describe_images(options), f"python benchmarks/neural_style.py {strip_folders(sys.argv[1:])}"
    benchmark, loop = f"neural-style race {options.precision}", "a plain loop in float32"
    record(benchmark, f"relative time to the loss of {options.iterations} iterations of {loop}",
           time_to_target / plain_seconds, command=command,
           note=f"{description}; {time_to_target:.1f} and {plain_seconds:.1f} seconds")  # fmt: skip
    loss_at_third = next((loss for spent, loss in history if spent >= plain_seconds / 3), float("inf"))
    record(benchmark, f"relative loss after a third of the time of {loop}", loss_at_third / target_loss,
           command=command, note=description)  # fmt: skip
    record(benchmark, f"relative memory vs. {loop}", memory[0] / memory[1], command=command,
           note=f"{description}; {memory[0] / 1e9:.2f} and {memory[1] / 1e9:.2f} GB at most")  # fmt: skip


def describe_images(options: argparse.Namespace) -> str:
    """Describe the images and the size in words."""
    names = [Path(image).stem for image in options.images if image] or ["bundled image", "a bundled one"]
    return f"{' like '.join(names)}, {options.size} pixels"


def write_bundled_images(folder: Path) -> list[str]:
    """Write the bundled images to files, and return their paths."""
    files = [str(folder / "content.png"), str(folder / "style.png")]
    for file, image in zip(files, (style_data.load_content_image(), style_data.load_style_image()), strict=True):
        image.save(file)
    return files


def time_stylize(options: argparse.Namespace) -> None:
    """Measure the seconds of ``fukami stylize`` from the start to the end of its process."""
    recipe = get_recipe("neural-style")()
    with tempfile.TemporaryDirectory() as folder:
        content, *styles = options.images if options.images[0] else write_bundled_images(Path(folder))
        arguments = ["fukami", "stylize", content, "--style", *styles, "--size", str(options.size)]
        arguments += ["--weights", options.weights, "--precision", options.precision]
        arguments += ["--iterations", str(options.stylize_iterations)] if options.stylize_iterations else []
        result, total_seconds = run_command(shlex.join([*arguments, "--out", f"{folder}/image.png"]))
    description = (
        f"{describe_images(options)}, {options.stylize_iterations or recipe.iterations} iterations at the full size"
    )
    command = f"python benchmarks/neural_style.py {strip_folders(sys.argv[1:])}"
    record(f"neural-style seconds {options.precision}", "seconds from the shell to the image", total_seconds,
           command=command, note=f"{description}; final loss {result['loss']:.4g}")  # fmt: skip


def measure_memory(options: argparse.Namespace) -> None:
    """Measure the peak memory per megapixel for each size."""
    for size in options.sizes:
        worker = Worker(run_last_steps, argparse.Namespace(**{**vars(options), "size": size}))
        num_pixels = worker.request(1)
        num_bytes = worker.request(0)
        record("neural-style memory", f"GB per megapixel at {size} pixels", num_bytes / 1e9 / (num_pixels / 1e6),
               command=f"python benchmarks/neural_style.py {strip_folders(sys.argv[1:])}",
               note=f"{num_bytes / 1e9:.2f} GB for {num_pixels / 1e6:.2f} megapixels")  # fmt: skip


def run_last_steps(options: argparse.Namespace, pipe) -> None:
    """Run two steps at the full size; send its number of pixels, and then the peak memory."""
    before = read_memory("VmRSS")
    task, batch = build_task(options, "auto")
    pipe.recv()
    for progress in (0.99, 0.995):
        task.schedule(progress)
        task.step(batch)
    pipe.send(task.size[0] * task.size[1])
    pipe.recv()
    pipe.send(measure_peak_memory(before))


def main() -> None:
    """Run the selected benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", choices=["race", "seconds", "memory"])
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="Content image and style image.")
    parser.add_argument("--weights", default="", help="Weights file of VGG-19 or VGG-16, or random.")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--iterations", type=int, default=500)
    parser.add_argument(
        "--rounds", type=int, default=25, help="Number of turns of each program in race; L-BFGS takes 20 iterations."
    )
    parser.add_argument(
        "--stylize-iterations", type=int, help="Iterations at the full size in seconds; by default the recipe's."
    )
    parser.add_argument(
        "--precision", default="float32", help="Precision of ours in race; auto: the fastest of the device."
    )
    options = parser.parse_args()
    if len(options.images) not in (0, 2):
        parser.error("specify both the content and the style image, or neither")
    options.images = options.images or [""]
    with tempfile.TemporaryDirectory() as folder:
        if options.weights == "random":
            options.weights = f"{folder}/vgg19_random.safetensors"
            torch.manual_seed(0)
            save_file(vgg19(weights=None).features.state_dict(prefix="features."), options.weights)
        {"race": race_plain_loop, "seconds": time_stylize, "memory": measure_memory}[options.benchmark](options)


if __name__ == "__main__":
    main()

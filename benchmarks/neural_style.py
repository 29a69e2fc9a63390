"""Neural style: how soon it is where the loop that tutorials have is after 500 iterations, and what memory it takes.

    python benchmarks/neural_style.py race [CONTENT STYLE] [--weights FILE] [--size 512] [--iterations 500]
    python benchmarks/neural_style.py seconds [CONTENT STYLE] [--weights FILE] [--size 512]
    python benchmarks/neural_style.py memory [CONTENT STYLE] [--weights FILE] [--sizes 512 1024 2048]

``race`` paints CONTENT like STYLE twice, in turn, each in a process of its own: as ``fukami stylize`` does by default,
but that the finest size goes on until the other is done; and by the loop of PyTorch's tutorial, float32, torch's L-BFGS
with its defaults, losses in the middle of a ``Sequential``, the image clamped in the closure. Ours is in float32, as
well, unless ``--precision`` is another, such as ``auto``, the default of ``fukami stylize``. Both have the same loss on
the same weights, which ours evaluates for both in float32. ``seconds`` times ``fukami stylize`` with its defaults.
``memory`` tells what a step takes at most for each megapixel. Without CONTENT and STYLE the embedded images are used;
``--weights random`` is VGG-19 with random weights, for the time alone. Results go to results.csv.
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

from common.processes import Apart, resident
from common.record import answer, anywhere, record
from fukami.engine.recipe import get_recipe
from fukami.style import data as style_data

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"


def begun(options: argparse.Namespace, precision: str):
    """Our task at its first step, and its batch."""
    from fukami.engine.runtime import Runtime

    recipe = get_recipe("neural-style")(
        content=options.images[0], style=tuple(options.images[1:]), weights=options.weights, size=options.size
    )
    torch.manual_seed(0)
    data = recipe.load_data()
    task = recipe.build_task(data.labels)
    task.setup(Runtime.start(DEVICE, precision))
    recipe.initialize_task(task)
    return task, data.train[0]


def ours(options: argparse.Namespace, pipe) -> None:
    """So many steps as are asked for; tells the seconds so far, and the loss."""
    task, batch = begun(options, options.precision)
    room, spent, steps = resident("VmRSS"), 0.0, itertools.count()
    while count := pipe.recv():
        for _, step in zip(range(count), steps, strict=False):
            began = time.monotonic()
            task.schedule(min(step / task.count_steps(None)[0], 1 - 1e-9))
            task.step(batch)
            synchronize()
            spent += time.monotonic() - began
        pipe.send((spent, task.evaluate([batch])["loss"]))
    pipe.send(taken(room))


class Loss(nn.Module):
    """A layer that lets maps through and remembers how far they are from a target, as in the tutorial."""

    def __init__(self, target: Tensor, weight: float, style: bool) -> None:
        super().__init__()
        self.weight, self.style = weight, style
        self.target = self.of(target).detach()

    def of(self, maps: Tensor) -> Tensor:
        """The maps, or their Gram matrix."""
        if not self.style:
            return maps
        flat = maps.view(maps.shape[1], -1)
        return flat @ flat.t() / flat.shape[1]

    def forward(self, maps: Tensor) -> Tensor:
        """The maps."""
        self.loss = self.weight * ((self.of(maps) - self.target) ** 2).sum()
        return maps


def plain(options: argparse.Namespace, pipe) -> None:
    """So many evaluations of the closure as are asked for; tells the seconds so far, and the loss by our measure."""
    from fukami.style.task import STYLE_WEIGHT

    task, batch = begun(options, "float32")
    torch.backends.cudnn.deterministic = False  # which ours asks for
    content, style = (
        task.normalize_image(each[0].to(DEVICE) / 255).contiguous() for each in (batch.content, *batch.styles)
    )
    image = (batch.content.to(DEVICE) / 255).contiguous().requires_grad_()
    layers, losses = nn.Sequential(), []
    with torch.no_grad():
        for number, layer in enumerate(task.model.features):
            layer = nn.ReLU() if isinstance(layer, nn.ReLU) else layer
            layers.append(layer)
            content, style = layer(content.contiguous()), layer(style.contiguous())
            if number == task.model.content_layer:
                size = content.numel()
                losses.append(Loss(content, 0.5, style=False))
                layers.append(losses[-1])
            if number in task.model.style_layers:
                losses.append(Loss(style, 1 / (5 * 4 * style.shape[1] ** 2), style=True))
                layers.append(losses[-1])
    for loss in losses:
        loss.weight *= STYLE_WEIGHT * size if loss.style else 1
    optimizer = torch.optim.LBFGS([image])
    room, spent, count = resident("VmRSS"), 0.0, [0]

    def closure() -> Tensor:
        with torch.no_grad():
            image.clamp_(0, 1)
        optimizer.zero_grad()
        layers((image - task.mean) / task.std)
        whole = sum(loss.loss for loss in losses)
        whole.backward()
        count[0] += 1
        return whole

    while asked := pipe.recv():
        goal = count[0] + asked
        began = time.monotonic()
        while count[0] < goal:
            optimizer.step(closure)
        synchronize()
        spent += time.monotonic() - began
        with torch.no_grad():
            found, _ = task.compute_losses(image[0].clamp(0, 1), batch.content, len(task.level_sizes) - 1)
        pipe.send((spent, float(found)))
    pipe.send(taken(room))


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if CUDA:
        torch.cuda.synchronize()


def taken(before: int) -> int:
    """Bytes taken at most."""
    return torch.cuda.max_memory_allocated() if CUDA else resident("VmHWM") - before


def race(options: argparse.Namespace) -> None:
    """The time that ours takes to where the other is at its end."""
    mine, other = Apart(ours, options), Apart(plain, options)
    course = []
    for _ in range(options.rounds):
        seconds, goal = other.ask(max(1, options.iterations // options.rounds))
        course += [mine.ask(5) for _ in range(max(1, options.iterations // options.rounds // 5))]
        print(f"plain {seconds:.0f} s {goal:.0f}, ours {course[-1][0]:.0f} s {course[-1][1]:.0f}", flush=True)
    while course[-1][1] > goal and course[-1][0] < seconds:
        course.append(mine.ask(5))
    memory = [each.ask(0) for each in (mine, other)]
    own = next((spent for spent, loss in course if loss <= goal), float("inf"))
    what, command = described(options), f"python benchmarks/neural_style.py {anywhere(sys.argv[1:])}"
    benchmark, loop = f"neural-style race {options.precision}", "a plain loop in float32"
    record(benchmark, f"time to the loss of {options.iterations} iterations of {loop} over its time",
           own / seconds, command=command, note=f"{what}; {own:.1f} and {seconds:.1f} seconds")  # fmt: skip
    at = next((loss for spent, loss in course if spent >= seconds / 3), float("inf"))
    record(benchmark, f"loss after a third of the time of {loop} over its loss", at / goal, command=command, note=what)
    room = f"{what}; {memory[0] / 1e9:.2f} and {memory[1] / 1e9:.2f} GB at most"
    record(benchmark, f"memory over that of {loop}", memory[0] / memory[1], command=command, note=room)


def described(options: argparse.Namespace) -> str:
    """What is painted, in words."""
    names = [Path(each).stem for each in options.images if each] or ["embedded image", "an embedded one"]
    return f"{' like '.join(names)}, {options.size} pixels"


def write_embedded(folder: Path) -> list[str]:
    """The embedded images as files."""
    files = [str(folder / "content.png"), str(folder / "style.png")]
    for file, image in zip(files, (style_data.load_content_image(), style_data.load_style_image()), strict=True):
        image.save(file)
    return files


def seconds(options: argparse.Namespace) -> None:
    """Seconds of ``fukami stylize``, from the start of its process to its end, and in its loop."""
    recipe = get_recipe("neural-style")()
    with tempfile.TemporaryDirectory() as folder:
        content, *styles = options.images if options.images[0] else write_embedded(Path(folder))
        words = ["fukami", "stylize", content, "--style", *styles, "--size", str(options.size)]
        words += ["--weights", options.weights, "--precision", options.precision]
        words += ["--iterations", str(options.changes)] if options.changes else []
        result, whole = answer(shlex.join([*words, "--out", f"{folder}/image.png"]))
    what = f"{described(options)}, {options.changes or recipe.iterations} iterations at the full size"
    command = f"python benchmarks/neural_style.py {anywhere(sys.argv[1:])}"
    record(f"neural-style seconds {options.precision}", "seconds from the shell to the image", whole, command=command,
           note=f"{what}; final loss {result['loss']:.4g}")  # fmt: skip


def memory(options: argparse.Namespace) -> None:
    """Gigabytes for each megapixel, of an image of each size."""
    for size in options.sizes:
        own = argparse.Namespace(**{**vars(options), "size": size})
        contestant = Apart(last, own)
        pixels = contestant.ask(1)
        room = contestant.ask(0)
        record("neural-style memory", f"gigabytes a megapixel at {size} pixels", room / 1e9 / (pixels / 1e6),
               command=f"python benchmarks/neural_style.py {anywhere(sys.argv[1:])}",
               note=f"{room / 1e9:.2f} GB for {pixels / 1e6:.2f} megapixels")  # fmt: skip


def last(options: argparse.Namespace, pipe) -> None:
    """Two steps at the finest size; tells its pixels."""
    room = resident("VmRSS")
    task, batch = begun(options, "auto")
    pipe.recv()
    for progress in (0.99, 0.995):
        task.schedule(progress)
        task.step(batch)
    pipe.send(task.size[0] * task.size[1])
    pipe.recv()
    pipe.send(taken(room))


def main() -> None:
    """Run the part that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["race", "seconds", "memory"])
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="the content, and the style")
    parser.add_argument("--weights", default="", help="a file of VGG-19 or VGG-16, or random")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--iterations", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=10, help="in which the two of race have their turns")
    parser.add_argument(
        "--changes", type=int, help="of the image at its full size, in seconds; by default the recipe's"
    )
    parser.add_argument("--precision", default="float32", help="ours in race; auto: the fastest of the device")
    options = parser.parse_args()
    if len(options.images) not in (0, 2):
        parser.error("give the content and the style, or neither")
    options.images = options.images or [""]
    with tempfile.TemporaryDirectory() as folder:
        if options.weights == "random":
            options.weights = f"{folder}/vgg19_random.safetensors"
            torch.manual_seed(0)
            save_file(vgg19(weights=None).features.state_dict(prefix="features."), options.weights)
        {"race": race, "seconds": seconds, "memory": memory}[options.part](options)


if __name__ == "__main__":
    main()

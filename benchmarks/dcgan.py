"""DCGAN: how near its images come to real ones beside a plain loop, and how fast; digits; and what its features know.

    python benchmarks/dcgan.py faces ARCHIVE | cifar10 [--seeds 0 1 2] [--epochs 25] [--judge vgg] [--out FOLDER] ...
    python benchmarks/dcgan.py mnist [--seeds 0]
    python benchmarks/dcgan.py rate [--size 64]
    python benchmarks/dcgan.py svm RUN

``faces`` and ``cifar10`` train ours, and the networks and the loop of PyTorch's examples (64 maps, 4×4 filters, normal
noise, batches of 64, float32), on as many images, and judge both in the same features. ``mnist`` counts the digits
that the shipped classifier reads. ``rate`` times updates of both in turn, on the same batches, each in a process of its
own. ``svm`` trains a linear machine on what the discriminator of a run on CIFAR-10 sees, as in the paper's section 5.1;
its row names the command of the run, too. Results go to results.csv.
"""

import argparse
import json
import shlex
import sys
import time
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.processes import Apart, ask_in_turn, resident
from common.record import anywhere, each_seed, record

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
WARMING = 2  # turns before those that are timed
BATCH = 64  # of the plain loop, and of both where they are timed
PLAIN = "; the plain loop's convolutions in TF32, torch's default" if CUDA else ""
NOISE = 100
GRID = 4  # maps are pooled to 4×4 (section 5.1)
COSTS = (1e-3, 1e-4, 3e-5, 1e-5, 3e-6)  # of the machine's weights, of which a tenth of the training part chooses
STEPS = 60  # of L-BFGS, for each of them


def generator(size: int, channels: int, width: int = 64) -> nn.Sequential:
    """The generator of PyTorch's examples, with a layer less for 32×32."""
    widths = [width * 2**number for number in range(3 if size == 64 else 2, -1, -1)]
    layers = [nn.ConvTranspose2d(NOISE, widths[0], 4, 1, 0, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU(True)]
    for inputs, outputs in pairwise(widths):
        layers += [nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(True)]
    return nn.Sequential(*layers, nn.ConvTranspose2d(widths[-1], channels, 4, 2, 1, bias=False), nn.Tanh()).apply(begin)


def discriminator(size: int, channels: int, width: int = 64) -> nn.Sequential:
    """The discriminator of PyTorch's examples."""
    widths = [width * 2**number for number in range(4 if size == 64 else 3)]
    layers = [nn.Conv2d(channels, widths[0], 4, 2, 1, bias=False), nn.LeakyReLU(0.2, True)]
    for inputs, outputs in pairwise(widths):
        layers += [nn.Conv2d(inputs, outputs, 4, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2, True)]
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, 1, 0, bias=False)).apply(begin)


def begin(layer: nn.Module) -> None:
    """The weights at the beginning."""
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(layer.weight, 0.0, 0.02)
    elif isinstance(layer, nn.BatchNorm2d):
        nn.init.normal_(layer.weight, 1.0, 0.02)


class Plain:
    """The loop of PyTorch's examples."""

    def __init__(self, size: int, channels: int) -> None:
        self.networks = generator(size, channels).to(DEVICE), discriminator(size, channels).to(DEVICE)
        self.steps = [torch.optim.Adam(network.parameters(), lr=2e-4, betas=(0.5, 0.999)) for network in self.networks]

    def update(self, images: Tensor) -> None:
        """An update of both on images ``(N, C, H, W)`` uint8."""
        netg, netd = self.networks
        real = images.float() / 127.5 - 1
        ones, zeros = real.new_ones(len(real)), real.new_zeros(len(real))
        netd.zero_grad()
        F.binary_cross_entropy_with_logits(netd(real).view(-1), ones).backward()
        fake = netg(torch.randn(len(real), NOISE, 1, 1, device=real.device))
        F.binary_cross_entropy_with_logits(netd(fake.detach()).view(-1), zeros).backward()
        self.steps[1].step()
        netg.zero_grad()
        F.binary_cross_entropy_with_logits(netd(fake).view(-1), ones).backward()
        self.steps[0].step()

    @torch.inference_mode()
    def make(self, count: int) -> Tensor:
        """So many images ``(N, C, H, W)`` uint8."""
        network = self.networks[0].eval()
        noise = torch.randn(count, NOISE, 1, 1, generator=torch.Generator().manual_seed(0)).split(100)
        parts = [((network(part.to(DEVICE)) + 1) * 127.5).round().to(torch.uint8).cpu() for part in noise]
        return torch.cat(parts)


def compared(options: argparse.Namespace) -> None:
    """Ours and the plain loop, on the same images, judged alike."""
    from fukami.generation import features as generation_features
    from fukami.generation.dcgan import DCGAN
    from fukami.generation.task import GenerationResults, draw_image_grid

    data = options.archive if options.benchmark == "faces" else "cifar10"
    name = Path(data).stem
    command = f"python benchmarks/dcgan.py {anywhere(sys.argv[1:])}"
    line = f"fukami train dcgan --data {data} --epochs {options.epochs} --eval-every {options.epochs}"
    line += f" --eval-features {options.judge}"
    for seed, result, seconds, own in each_seed(line, options):
        for metric in (each for each in result if each.startswith(("fid", "kid", "frechet", "kernel", "repeated"))):
            record(f"dcgan {name}", metric, result[metric], seed=seed, seconds=seconds, command=own,
                   note=f"{result['count']} images made, {options.epochs} passes")  # fmt: skip
    recipe = DCGAN(data=data, batch_size=BATCH)
    parts = recipe.load_data()
    size, channels = map(int, parts.labels)
    seen = generation_features.load_feature_extractor(options.judge, size, channels)
    looks = seen.build_extractors(torch.device(DEVICE))
    real = [look(parts.val.images) for look in looks]
    for seed in options.seeds:
        torch.manual_seed(seed)
        plain, began = Plain(size, channels), time.monotonic()
        for _ in range(options.epochs):
            for images, _ in parts.train:
                plain.update(images.to(DEVICE))
        seconds = time.monotonic() - began
        made = plain.make(len(real[0]))
        if options.out:
            draw_image_grid(made[:64]).save(Path(options.out) / f"plain-{name}-seed-{seed}.png")
        found = GenerationResults(seen, [look(made) for look in looks], real, made[:64]).compute_metrics()
        for metric in (each for each in found if each != "count"):
            record(f"plain dcgan {name}", metric, found[metric], seed=seed, seconds=seconds, command=command,
                   note=f"PyTorch's example; {found['count']} images made, {options.epochs} passes")  # fmt: skip


def mnist(options: argparse.Namespace) -> None:
    """Digits that the shipped classifier reads."""
    line = f"fukami train dcgan --data mnist --epochs {options.epochs} --eval-every {options.epochs}"
    for seed, result, seconds, own in each_seed(line, options):
        for metric in ("legible", "classes", "frechet_digits", "repeated"):
            record("dcgan mnist", metric, result[metric], seed=seed, seconds=seconds, command=own,
                   note=f"{result['count']} digits made")  # fmt: skip


def rate(options: argparse.Namespace) -> None:
    """Images a second of both, in turn."""
    for precision in options.precisions:
        processes = Apart(ours, options, precision), Apart(theirs, options)
        speeds = ask_in_turn(processes, options.updates, options.rounds, WARMING)
        memory = [each.ask(0) for each in processes]
        note = f"{options.size} pixels, batch {BATCH}; {speeds[0]:.4g} and {speeds[1]:.4g} images a second{PLAIN}"
        command = f"python benchmarks/dcgan.py {shlex.join(sys.argv[1:])}"
        record(f"dcgan rate {precision}", "training rate over that of a plain loop in float32", speeds[0] / speeds[1],
               command=command, note=note)  # fmt: skip
        record(f"dcgan rate {precision}", "memory over that of a plain loop in float32", memory[0] / memory[1],
               command=command, note=note)  # fmt: skip


def ours(options: argparse.Namespace, precision: str, pipe) -> None:
    """Make updates of our task as often as asked; tells the images a second, and at last the memory."""
    from fukami.engine.runtime import Runtime
    from fukami.generation.dcgan import DCGAN

    runtime = Runtime.start(DEVICE, precision)
    torch.manual_seed(0)
    task = DCGAN(batch_size=BATCH).build_task((str(options.size), "3"))
    task.setup(runtime)
    update = runtime.capture(task.step, task.supports_cuda_graph)
    timed(lambda images: update((images, images[:, 0, 0, 0])), options, pipe)


def theirs(options: argparse.Namespace, pipe) -> None:
    """The same of the plain loop."""
    torch.manual_seed(0)
    timed(Plain(options.size, 3).update, options, pipe)


def timed(update, options: argparse.Namespace, pipe) -> None:
    """As many updates as asked for on batches of noise."""
    before = resident("VmRSS")
    images = torch.randint(0, 256, (BATCH, 3, options.size, options.size), dtype=torch.uint8, device=DEVICE)
    while count := pipe.recv():
        began = time.monotonic()
        for _ in range(count):
            update(images)
        if CUDA:
            torch.cuda.synchronize()
        pipe.send(count * len(images) / (time.monotonic() - began))
    pipe.send(torch.cuda.max_memory_allocated() if CUDA else resident("VmHWM") - before)


def svm(options: argparse.Namespace) -> None:
    """A linear machine on the discriminator's maps, each pooled to 4×4 by its maximum (section 5.1)."""
    import fukami
    from fukami.data import labelled_images

    task = fukami.load(options.archive)
    train, test, labels = labelled_images.load_labelled_images("cifar10", 0.2)
    sets = [part.decode(task.transform) for part in (train, test)]
    seen = [features(task, part.images) for part in sets]
    deviation, mean = torch.std_mean(seen[0], 0)
    for part in seen:
        part.sub_(mean).div_(deviation.clamp(min=1e-6) * part.shape[1] ** 0.5)
    targets = sets[0].targets
    held = torch.arange(len(targets)) % 10 == 0
    learned, chooses = (seen[0][~held], targets[~held]), (seen[0][held], targets[held])
    torch.manual_seed(0)
    machine, rated = nn.Linear(seen[0].shape[1], len(labels)).to(DEVICE), {}
    for cost in COSTS:
        fit(machine, *learned, cost)
        rated[cost] = right(machine, *chooses)
        print(f"cost {cost:g}: {rated[cost]:.4f} of the tenth that chooses")
    best = max(rated, key=rated.__getitem__)
    fit(machine, seen[0], targets, best)
    found = right(machine, seen[1], sets[1].targets)
    made = json.loads((Path(options.archive) / "recipe.json").read_text())
    record("dcgan features", "accuracy of a linear SVM on CIFAR-10", found, seed=made["fields"]["seed"],
           command=f"{anywhere(shlex.split(made['command']))} --out RUN && python benchmarks/dcgan.py svm RUN",
           note=f"{seen[0].shape[1]} features, weights' cost {best:g}; learned from CIFAR-10 itself")  # fmt: skip


@torch.no_grad()
def features(task, images: Tensor) -> Tensor:
    """What the discriminator sees in images ``(N, C, H, W)`` uint8, ``(N, F)``."""
    found = []
    with task.inference_mode():
        for part in images.split(500):
            maps = task.discriminator.extract_features(task.normalize_images(part.to(DEVICE)))
            found.append(torch.cat([F.adaptive_max_pool2d(each, GRID).flatten(1) for each in maps], 1).cpu())
    return torch.cat(found)


def fit(machine: nn.Linear, seen: Tensor, targets: Tensor, cost: float) -> None:
    """Go on until each class stands against the rest with the least squared hinge loss (Tang 2013)."""
    seen, signs = seen.to(DEVICE), (2.0 * F.one_hot(targets, machine.out_features) - 1).to(DEVICE)
    solver = torch.optim.LBFGS(machine.parameters(), max_iter=STEPS, history_size=20, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        loss = (1 - signs * machine(seen)).relu().square().mean(0).sum() + cost * machine.weight.square().sum()
        loss.backward()
        return loss

    solver.step(closure)


@torch.no_grad()
def right(machine: nn.Linear, seen: Tensor, targets: Tensor) -> float:
    """The share that the machine names rightly."""
    return float((machine(seen.to(DEVICE)).argmax(1).cpu() == targets).double().mean())


def main() -> None:
    """Run the part that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", choices=["faces", "cifar10", "mnist", "rate", "svm"])
    parser.add_argument("archive", nargs="?", help="the images of faces, or the run of svm")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--judge", default="vgg")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--precisions", nargs="+", default=["float32", "auto"], help="ours in rate")
    parser.add_argument("--rounds", type=int, default=7, help="turns of rate that are timed")
    parser.add_argument("--updates", type=int, default=100 if CUDA else 4, help="in a turn")
    parser.add_argument("--out", help="a folder where the runs stay")
    options, options.more = parser.parse_known_args()
    options.weights = ""
    if options.benchmark in ("faces", "svm") and not options.archive:
        parser.error("name the archive of faces, or the run of svm")
    parts = {"faces": compared, "cifar10": compared, "mnist": mnist, "rate": rate, "svm": svm}
    parts[options.benchmark](options)


if __name__ == "__main__":
    main()

"""DCGAN: Fréchet distance and training throughput compared with a plain loop; legible digits; discriminator features.

    python benchmarks/dcgan.py faces ARCHIVE | cifar10 [--seeds 0 1 2] [--epochs 25] [--features vgg] [--out FOLDER] ...
    python benchmarks/dcgan.py mnist [--seeds 0]
    python benchmarks/dcgan.py rate [--size 64]
    python benchmarks/dcgan.py svm RUN

``faces`` and ``cifar10`` train our DCGAN, and PyTorch's example for the same number of epochs, and evaluate both with
the same features. The example has 64 channels, 4×4 filters, normal noise, batch size 64 and float32. ``mnist`` counts
the digits that the bundled classifier recognizes. ``rate`` times steps of both in turn on the same batches, each in its
own process. ``svm`` trains a linear SVM on the discriminator features of a run on CIFAR-10 (section 5.1 of the paper);
its row also contains the command of the run. Results go to results.csv.
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

from common.processes import Worker, measure_in_turn, read_memory
from common.record import record, strip_folders, train_seeds

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
WARMUP_ROUNDS = 2
BATCH_SIZE = 64  # batch size of the plain loop, and of both when timed
TF32_NOTE = "; the plain loop's convolutions in TF32, torch's default" if CUDA else ""
LATENT_DIM = 100
POOLED_SIZE = 4  # maps are pooled to 4×4 (section 5.1)
WEIGHT_DECAYS = (1e-3, 1e-4, 3e-5, 1e-5, 3e-6)  # of the SVM; selected on 10 % of the training split
MAX_ITERATIONS = 60  # of L-BFGS


def build_generator(size: int, channels: int, width: int = 64) -> nn.Sequential:
    """Build the generator of PyTorch's example, with one layer less for 32×32."""
    widths = [width * 2**level for level in range(3 if size == 64 else 2, -1, -1)]
    layers = [nn.ConvTranspose2d(LATENT_DIM, widths[0], 4, 1, 0, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU(True)]
    for inputs, outputs in pairwise(widths):
        layers += [nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(True)]
    return nn.Sequential(*layers, nn.ConvTranspose2d(widths[-1], channels, 4, 2, 1, bias=False), nn.Tanh()).apply(
        init_weights
    )


def build_discriminator(size: int, channels: int, width: int = 64) -> nn.Sequential:
    """Build the discriminator of PyTorch's example."""
    widths = [width * 2**level for level in range(4 if size == 64 else 3)]
    layers = [nn.Conv2d(channels, widths[0], 4, 2, 1, bias=False), nn.LeakyReLU(0.2, True)]
    for inputs, outputs in pairwise(widths):
        layers += [nn.Conv2d(inputs, outputs, 4, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2, True)]
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, 1, 0, bias=False)).apply(init_weights)


def init_weights(layer: nn.Module) -> None:
    """Initialize the weights of a layer."""
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(layer.weight, 0.0, 0.02)
    elif isinstance(layer, nn.BatchNorm2d):
        nn.init.normal_(layer.weight, 1.0, 0.02)


class PlainTrainer:
    """Training loop of PyTorch's example."""

    def __init__(self, size: int, channels: int) -> None:
        self.networks = build_generator(size, channels).to(DEVICE), build_discriminator(size, channels).to(DEVICE)
        self.optimizers = [
            torch.optim.Adam(network.parameters(), lr=2e-4, betas=(0.5, 0.999)) for network in self.networks
        ]

    def step(self, images: Tensor) -> None:
        """Train both networks for a step on images ``(N, C, H, W)`` uint8."""
        netg, netd = self.networks
        real = images.float() / 127.5 - 1
        ones, zeros = real.new_ones(len(real)), real.new_zeros(len(real))
        netd.zero_grad()
        F.binary_cross_entropy_with_logits(netd(real).view(-1), ones).backward()
        fake = netg(torch.randn(len(real), LATENT_DIM, 1, 1, device=real.device))
        F.binary_cross_entropy_with_logits(netd(fake.detach()).view(-1), zeros).backward()
        self.optimizers[1].step()
        netg.zero_grad()
        F.binary_cross_entropy_with_logits(netd(fake).view(-1), ones).backward()
        self.optimizers[0].step()

    @torch.inference_mode()
    def generate(self, count: int) -> Tensor:
        """Generate ``count`` images ``(N, C, H, W)`` uint8."""
        network = self.networks[0].eval()
        latents = torch.randn(count, LATENT_DIM, 1, 1, generator=torch.Generator().manual_seed(0)).split(100)
        batches = [((network(batch.to(DEVICE)) + 1) * 127.5).round().to(torch.uint8).cpu() for batch in latents]
        return torch.cat(batches)


def compare_with_plain_loop(options: argparse.Namespace) -> None:
    """Train ours and the plain loop on the same images, and evaluate both with the same features."""
    from fukami.generation import features as generation_features
    from fukami.generation.dcgan import DCGAN
    from fukami.generation.task import GenerationResults, draw_image_grid

    dataset = options.archive if options.benchmark == "faces" else "cifar10"
    name = Path(dataset).stem
    command = f"python benchmarks/dcgan.py {strip_folders(sys.argv[1:])}"
    line = f"fukami train dcgan --data {dataset} --epochs {options.epochs} --eval-every {options.epochs}"
    line += f" --eval-features {options.features}"
    for seed, result, seconds, recipe_command in train_seeds(line, options):
        for metric in (
            key for key in result if key.startswith(("fid", "kid", "frechet", "kernel", "duplicate_fraction"))
        ):
            record(f"dcgan {name}", metric, result[metric], seed=seed, seconds=seconds, command=recipe_command,
                   note=f"{result['count']} images generated, {options.epochs} epochs")  # fmt: skip
    recipe = DCGAN(data=dataset, batch_size=BATCH_SIZE)
    data = recipe.load_data()
    size, channels = map(int, data.labels)
    features = generation_features.load_feature_extractor(options.features, size, channels)
    extractors = features.build_extractors(torch.device(DEVICE))
    real = [extract(data.val.images) for extract in extractors]
    for seed in options.seeds:
        torch.manual_seed(seed)
        plain, start = PlainTrainer(size, channels), time.monotonic()
        for _ in range(options.epochs):
            for images, _ in data.train:
                plain.step(images.to(DEVICE))
        seconds = time.monotonic() - start
        generated = plain.generate(len(real[0]))
        if options.out:
            draw_image_grid(generated[:64]).save(Path(options.out) / f"plain-{name}-seed-{seed}.png")
        extracted = [extract(generated) for extract in extractors]
        metrics = GenerationResults(features, extracted, real, generated[:64]).compute_metrics()
        for metric in (key for key in metrics if key != "count"):
            record(f"plain dcgan {name}", metric, metrics[metric], seed=seed, seconds=seconds, command=command,
                   note=f"PyTorch's example; {metrics['count']} images generated, {options.epochs} epochs")  # fmt: skip


def count_legible_digits(options: argparse.Namespace) -> None:
    """Train on MNIST, and count the digits that the bundled classifier recognizes."""
    line = f"fukami train dcgan --data mnist --epochs {options.epochs} --eval-every {options.epochs}"
    for seed, result, seconds, command in train_seeds(line, options):
        for metric in ("legible_fraction", "num_predicted_classes", "frechet_digits", "duplicate_fraction"):
            record("dcgan mnist", metric, result[metric], seed=seed, seconds=seconds, command=command,
                   note=f"{result['count']} digits generated")  # fmt: skip


def measure_throughput(options: argparse.Namespace) -> None:
    """Measure the images per second of both in turn."""
    for precision in options.precisions:
        workers = Worker(run_ours, options, precision), Worker(run_plain, options)
        speeds = measure_in_turn(workers, options.steps, options.rounds, WARMUP_ROUNDS)
        memory = [worker.request(0) for worker in workers]
        note = f"{options.size} pixels, batch {BATCH_SIZE}; "
        note += f"{speeds[0]:.4g} and {speeds[1]:.4g} images per second{TF32_NOTE}"
        command = f"python benchmarks/dcgan.py {shlex.join(sys.argv[1:])}"
        record(f"dcgan rate {precision}", "relative throughput vs. a plain loop in float32", speeds[0] / speeds[1],
               command=command, note=note)  # fmt: skip
        record(f"dcgan rate {precision}", "relative memory vs. a plain loop in float32", memory[0] / memory[1],
               command=command, note=note)  # fmt: skip


def run_ours(options: argparse.Namespace, precision: str, pipe) -> None:
    """Train our task in a worker."""
    from fukami.engine.runtime import Runtime
    from fukami.generation.dcgan import DCGAN

    runtime = Runtime.start(DEVICE, precision)
    torch.manual_seed(0)
    task = DCGAN(batch_size=BATCH_SIZE).build_task((str(options.size), "3"))
    task.setup(runtime)
    task.prepare_training()
    step = runtime.capture(task.step, task.supports_cuda_graph)
    time_steps(lambda images: step((images, images[:, 0, 0, 0])), options, pipe)


def run_plain(options: argparse.Namespace, pipe) -> None:
    """Train the plain loop in a worker."""
    torch.manual_seed(0)
    time_steps(PlainTrainer(options.size, 3).step, options, pipe)


def time_steps(step, options: argparse.Namespace, pipe) -> None:
    """Run the requested number of steps on random images; send the images per second, and finally the peak memory."""
    before = read_memory("VmRSS")
    images = torch.randint(0, 256, (BATCH_SIZE, 3, options.size, options.size), dtype=torch.uint8, device=DEVICE)
    while count := pipe.recv():
        start = time.monotonic()
        for _ in range(count):
            step(images)
        if CUDA:
            torch.cuda.synchronize()
        pipe.send(count * len(images) / (time.monotonic() - start))
    pipe.send(torch.cuda.max_memory_allocated() if CUDA else read_memory("VmHWM") - before)


def evaluate_features(options: argparse.Namespace) -> None:
    """Train a linear SVM on the discriminator's maps, each max-pooled to 4×4 (section 5.1)."""
    from fukami.data import labeled_images
    from fukami.engine.load_run import load_task

    task = load_task(options.archive)
    train, _, test, labels = labeled_images.load_labeled_images("cifar10", 0.0)
    splits = [split.decode(task.transform) for split in (train, test)]
    features = [extract_features(task, split.images) for split in splits]
    deviation, mean = torch.std_mean(features[0], 0)
    for split in features:
        split.sub_(mean).div_(deviation.clamp(min=1e-6) * split.shape[1] ** 0.5)
    targets = splits[0].targets
    held_out = torch.arange(len(targets)) % 10 == 0
    training, validation = (features[0][~held_out], targets[~held_out]), (features[0][held_out], targets[held_out])
    torch.manual_seed(0)
    model, accuracies = nn.Linear(features[0].shape[1], len(labels)).to(DEVICE), {}
    for weight_decay in WEIGHT_DECAYS:
        fit_svm(model, *training, weight_decay)
        accuracies[weight_decay] = compute_accuracy(model, *validation)
        print(f"weight decay {weight_decay:g}: validation accuracy {accuracies[weight_decay]:.4f}")
    best = max(accuracies, key=accuracies.__getitem__)
    fit_svm(model, features[0], targets, best)
    accuracy = compute_accuracy(model, features[1], splits[1].targets)
    recipe = json.loads((Path(options.archive) / "recipe.json").read_text())
    record("dcgan features", "accuracy of a linear SVM on CIFAR-10", accuracy, seed=recipe["fields"]["seed"],
           command=f"{strip_folders(shlex.split(recipe['command']))} --out RUN && python benchmarks/dcgan.py svm RUN",
           note=f"{features[0].shape[1]} features, weight decay {best:g}; trained on CIFAR-10 itself")  # fmt: skip


@torch.no_grad()
def extract_features(task, images: Tensor) -> Tensor:
    """Extract the discriminator's features ``(N, F)`` of images ``(N, C, H, W)`` uint8."""
    features = []
    with task.evaluation_mode():
        for batch in images.split(500):
            maps = task.discriminator.extract_features(task.normalize_images(batch.to(DEVICE)))
            features.append(torch.cat([F.adaptive_max_pool2d(x, POOLED_SIZE).flatten(1) for x in maps], 1).cpu())
    return torch.cat(features)


def fit_svm(model: nn.Linear, features: Tensor, targets: Tensor, weight_decay: float) -> None:
    """Fit a one-vs-rest linear SVM with squared hinge loss (Tang 2013), starting from the current weights."""
    features, signs = features.to(DEVICE), (2.0 * F.one_hot(targets, model.out_features) - 1).to(DEVICE)
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=MAX_ITERATIONS, history_size=20, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (1 - signs * model(features)).relu().square().mean(0).sum() + weight_decay * model.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)


@torch.no_grad()
def compute_accuracy(model: nn.Linear, features: Tensor, targets: Tensor) -> float:
    """Compute the accuracy of the SVM."""
    return float((model(features.to(DEVICE)).argmax(1).cpu() == targets).double().mean())


def main() -> None:
    """Run the selected benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", choices=["faces", "cifar10", "mnist", "rate", "svm"])
    parser.add_argument("archive", nargs="?", help="Image archive of faces, or run of svm.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--features", default="vgg", help="Feature extractor, as --eval-features.")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--precisions", nargs="+", default=["float32", "auto"], help="Precisions of ours in rate.")
    parser.add_argument("--rounds", type=int, default=7, help="Number of timed rounds in rate.")
    parser.add_argument("--steps", type=int, default=100 if CUDA else 4, help="Steps per round in rate.")
    parser.add_argument("--out", help="Folder for the runs; temporary by default.")
    options, options.more = parser.parse_known_args()
    options.weights = ""
    if options.benchmark in ("faces", "svm") and not options.archive:
        parser.error("specify the image archive of faces, or the run of svm")
    benchmarks = {
        "faces": compare_with_plain_loop, "cifar10": compare_with_plain_loop, "mnist": count_legible_digits,
        "rate": measure_throughput, "svm": evaluate_features,
    }  # fmt: skip
    benchmarks[options.benchmark](options)


if __name__ == "__main__":
    main()

"""Files of generated images: samples, latent interpolation, latent arithmetic and nearest training images."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fukami.errors import UsageError
from fukami.generation import plots as generation_plots
from fukami.generation.features import FeatureExtractor
from fukami.generation.task import GANTask, draw_image_grid
from fukami.image import io as image_io

if TYPE_CHECKING:
    from fukami.data.loader import Batch, BatchLoader

NUM_NEAREST = 4  # nearest training images per sample
NEIGHBOR_NOISE = 0.25  # scale of the noise around the result of latent arithmetic (Radford et al. 2016, section 6.3.2)
FRAME_MILLISECONDS = 60  # duration of a frame of the interpolation


@dataclass(frozen=True)
class Term:
    """A term of latent arithmetic: a sign and the 1-based numbers of the samples whose mean it is."""

    sign: int
    numbers: tuple[int, ...]


def write_samples(
    task: GANTask, latents: Tensor, seed: int, folder: Path
) -> tuple[Tensor, list[dict[str, str | float]]]:
    """Generate an image from each latent vector and write the images and a grid of them.

    Returns the images and for each its ``file``, ``number``, ``seed`` and ``real_probability``, by the discriminator.
    """
    images = task.generate_images(latents)
    digits = max(4, len(str(len(images))))
    results: list[dict[str, str | float]] = []
    for number, (image, probability) in enumerate(zip(images, task.predict_real_probability(images), strict=True), 1):
        file = folder / f"{number:0{digits}d}.png"
        image_io.convert_array_to_image(image.permute(1, 2, 0).numpy()).save(file)
        results.append({"file": str(file), "number": number, "seed": seed, "real_probability": probability})
    draw_image_grid(images).save(folder / "grid.png")
    return images, results


def write_interpolation(task: GANTask, latents: Tensor, num_steps: int, folder: Path) -> None:
    """Write the linear interpolation between consecutive latent vectors as a grid with a row per pair and an animation.

    (Radford et al. 2016, section 6.1 and figure 4)
    """
    weights = torch.linspace(0, 1, num_steps).view(-1, 1)
    rows = [task.generate_images(torch.lerp(one, other, weights)) for one, other in pairwise(latents)]
    draw_image_grid(torch.cat(rows), num_columns=num_steps).save(folder / "interpolation.png")
    frames = [draw_image_grid(image[None]) for row in rows for image in row]
    frames[0].save(
        folder / "interpolation.webp",
        save_all=True,
        append_images=frames[1:],
        duration=FRAME_MILLISECONDS,
        loop=0,
        quality=90,
    )


def write_arithmetic(task: GANTask, latents: Tensor, terms: Sequence[Term], folder: Path) -> None:
    """Write a figure of latent arithmetic: the image of a signed sum of mean latent vectors, and eight images near it.

    Means of three samples are more stable than single samples (Radford et al. 2016, section 6.3.2 and figure 7).
    """
    means = torch.stack([latents[[number - 1 for number in term.numbers]].mean(0) for term in terms])
    total = sum(term.sign * mean for term, mean in zip(terms, means, strict=True))
    neighbors = total + NEIGHBOR_NOISE * task.sample_latents(9, seed=0)
    neighbors[4] = total
    columns = [
        (
            term.sign,
            task.generate_images(latents[[number - 1 for number in term.numbers]]),
            task.generate_images(mean[None])[0],
        )
        for term, mean in zip(terms, means, strict=True)
    ]
    generation_plots.plot_latent_arithmetic(columns, task.generate_images(neighbors)).savefig(
        folder / "arithmetic.png", dpi=110
    )


def parse_arithmetic(text: str, num_samples: int) -> list[Term]:
    """Parse an expression such as ``1 2 3 - 4 5 6 + 7 8 9`` into terms.

    Raises:
        UsageError: the syntax is wrong, or a number is greater than ``num_samples``.
    """
    expected = f"expected sample numbers from 1 to {num_samples} separated by + and -, as in '1 2 3 - 4 5 6 + 7 8 9'"
    terms = []
    for sign, numbers in re.findall(r"([+-]|^)([^+-]*)", text.strip()):
        words = re.split(r"[\s,]+", numbers.strip())
        if not all(word.isdecimal() and 1 <= int(word) <= num_samples for word in words):
            raise UsageError(f"--arithmetic {text!r}: {expected}")
        terms.append(Term(-1 if sign == "-" else 1, tuple(map(int, words))))
    return terms


def write_nearest_images(
    images: Tensor,
    loader: "BatchLoader[Batch]",
    feature_extractor: FeatureExtractor,
    device: torch.device,
    folder: Path,
) -> list[dict[str, str | float]]:
    """Write a figure of each image and its nearest training images; return the name and distance of the nearest."""
    features = feature_extractor.extract(images, device)
    nearest_distances = torch.full((len(images), NUM_NEAREST), torch.inf)
    nearest_indices = torch.zeros(len(images), NUM_NEAREST, dtype=torch.long)
    nearest_images: dict[int, Tensor] = {}
    for batch_indices, (batch, _) in loader.iterate_with_indices():
        distances = torch.cdist(features, feature_extractor.extract(batch.cpu(), device))
        nearest_distances, order = torch.cat([nearest_distances, distances], 1).topk(NUM_NEAREST, largest=False)
        candidates = batch_indices.expand(len(images), -1)
        nearest_indices = torch.cat([nearest_indices, candidates], 1).gather(1, order)
        kept = set(nearest_indices.flatten().tolist())
        new_images = {index: batch[i].cpu() for i, index in enumerate(batch_indices.tolist()) if index in kept}
        nearest_images = {index: image for index, image in (nearest_images | new_images).items() if index in kept}
    rows = [
        torch.stack([image, *(nearest_images[index] for index in indices)])
        for image, indices in zip(images, nearest_indices.tolist(), strict=True)
    ]
    generation_plots.plot_nearest_images(rows).savefig(folder / "nearest.png", dpi=110)
    names = loader.names or [f"#{index}" for index in range(len(loader.targets))]
    return [
        {"nearest": names[index], "distance": distance, "features": feature_extractor.name}
        for index, distance in zip(nearest_indices[:, 0].tolist(), nearest_distances[:, 0].tolist(), strict=True)
    ]

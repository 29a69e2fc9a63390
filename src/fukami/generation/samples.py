"""What a generator makes, as files: samples, ways from one to the next, sums of them, and what they are near to."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fukami.errors import UsageError
from fukami.generation import plots as generation_plots
from fukami.generation.features import FeatureExtractor
from fukami.generation.task import GANTask, draw_image_grid
from fukami.image import io as image_io

NUM_NEAREST = 4  # training images beside a sample
NEIGHBOR_NOISE = 0.25  # of the noise that is added to a sum, in the eight images around it (section 6.3.2)
FRAME_MILLISECONDS = 60  # milliseconds of an image on the way


@dataclass(frozen=True)
class Term:
    """A sign, and the numbers of the samples, from 1, whose mean is added or taken away."""

    sign: int
    numbers: tuple[int, ...]


def write_samples(task: GANTask, latents: Tensor, seed: int, folder: Path) -> tuple[Tensor, list[dict[str, Any]]]:
    """Make an image of each of ``latents``, write them and a grid of them; the images, and an answer for each.

    An answer tells its ``file``, its ``number`` and ``seed``, and how sure the discriminator is that it is ``real``.
    """
    images = task.generate_images(latents)
    digits = max(4, len(str(len(images))))
    answers = []
    for number, (image, real) in enumerate(zip(images, task.predict_real_probability(images), strict=True), 1):
        file = folder / f"{number:0{digits}d}.png"
        image_io.convert_array_to_image(image.permute(1, 2, 0).numpy()).save(file)
        answers.append({"file": str(file), "number": number, "seed": seed, "real": real})
    draw_image_grid(images).save(folder / "grid.png")
    return images, answers


def write_interpolation(task: GANTask, latents: Tensor, num_steps: int, folder: Path) -> None:
    """Write the images on the straight ways from each code to the next: a row for each, and an animation.

    Radford et al. 2016, section 6.1 and figure 4.
    """
    way = torch.linspace(0, 1, num_steps).view(-1, 1)
    rows = [task.generate_images(torch.lerp(one, other, way)) for one, other in pairwise(latents)]
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
    """Write what the sum of means of samples looks like, and eight images around it.

    Radford et al. 2016, section 6.3.2 and figure 7: a mean of three is steadier than a single sample.
    """
    means = torch.stack([latents[[number - 1 for number in term.numbers]].mean(0) for term in terms])
    total = sum(term.sign * mean for term, mean in zip(terms, means, strict=True))
    around = total + NEIGHBOR_NOISE * task.sample_latents(9, seed=0)
    around[4] = total
    columns = [
        (
            term.sign,
            task.generate_images(latents[[number - 1 for number in term.numbers]]),
            task.generate_images(mean[None])[0],
        )
        for term, mean in zip(terms, means, strict=True)
    ]
    generation_plots.plot_latent_arithmetic(columns, task.generate_images(around)).savefig(
        folder / "arithmetic.png", dpi=110
    )


def parse_arithmetic(text: str, num_samples: int) -> list[Term]:
    """The terms of a sum such as ``1 2 3 - 4 5 6 + 7 8 9``.

    Raises:
        UsageError: it is of another form, or names a sample that is not made.
    """
    form = f"expected numbers of samples from 1 to {num_samples} with + and - between, as in '1 2 3 - 4 5 6 + 7 8 9'"
    terms = []
    for sign, numbers in re.findall(r"([+-]|^)([^+-]*)", text.strip()):
        words = re.split(r"[\s,]+", numbers.strip())
        if not all(word.isdecimal() and 1 <= int(word) <= num_samples for word in words):
            raise UsageError(f"--arithmetic {text!r}: {form}")
        terms.append(Term(-1 if sign == "-" else 1, tuple(map(int, words))))
    return terms


def write_nearest_images(
    images: Tensor, loader: Any, feature_extractor: FeatureExtractor, device: torch.device, folder: Path
) -> list[dict[str, Any]]:
    """Write each of the images beside the nearest that were learned from; the nearest one's name and distance."""
    seen = feature_extractor.extract(images, device)
    best = torch.full((len(images), NUM_NEAREST), torch.inf)
    numbers = torch.zeros(len(images), NUM_NEAREST, dtype=torch.long)
    kept: dict[int, Tensor] = {}
    for first, part in _enumerate_offsets(learned for learned, _ in loader.iterate_in_order()):
        distances = torch.cdist(seen, feature_extractor.extract(part.cpu(), device))
        best, order = torch.cat([best, distances], 1).topk(NUM_NEAREST, largest=False)
        offered = torch.arange(first, first + len(part)).expand(len(images), -1)
        numbers = torch.cat([numbers, offered], 1).gather(1, order)
        wanted = set(numbers.flatten().tolist())
        here = {number: part[number - first].cpu() for number in wanted if number >= first}
        kept = {number: image for number, image in (kept | here).items() if number in wanted}
    rows = [torch.stack([own, *(kept[n] for n in near)]) for own, near in zip(images, numbers.tolist(), strict=True)]
    generation_plots.plot_nearest_images(rows).savefig(folder / "nearest.png", dpi=110)
    names = loader.names or [f"#{number}" for number in range(len(loader.targets))]
    return [
        {"nearest": names[number], "distance": distance, "features": feature_extractor.name}
        for number, distance in zip(numbers[:, 0].tolist(), best[:, 0].tolist(), strict=True)
    ]


def _enumerate_offsets(parts: Iterable[Tensor]) -> Iterator[tuple[int, Tensor]]:
    """Each part, and how many images came before it."""
    first = 0
    for part in parts:
        yield first, part
        first += len(part)

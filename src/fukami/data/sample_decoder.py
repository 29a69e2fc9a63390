"""Decoding and resizing of images with boxes or masks: all at once, or one by one with padding."""

import itertools
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fukami.data.image_folder import MAX_UNREADABLE, check_unreadable, format_errors
from fukami.data.masks import resize_mask
from fukami.data.samples import Sample
from fukami.data.streaming import Decoded, count_workers
from fukami.errors import Error, MissingPackageError, convert_memory_errors
from fukami.image.transform import ResizeTransform
from fukami.progress import track

logger = logging.getLogger(__name__)
DECODE_BATCH_SIZE = 16  # images decoded at a time
MIN_PARALLEL_SAMPLES = 200  # number of files from which worker processes pay off

PaddedSize = tuple[int, int]  # height and width
PaddedRequest = tuple[int, PaddedSize]  # the index of an image, and its padded size


class SampleDecoder(Dataset[Decoded]):
    """Dataset of resized images, ``(C or C + 1, H, W)`` in 0..255, or the error of an unreadable one.

    Items are arrays, because each tensor sent by another process keeps a file open.
    """

    def __init__(self, samples: Sequence[Sample], transform: ResizeTransform) -> None:
        self.samples, self.transform = samples, transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, request: Any) -> Decoded:
        sample = self.samples[request]
        try:
            with convert_memory_errors(sample.name):
                image = decode_sample(sample, self.transform)
        except Error as error:
            return error
        return image if isinstance(image, Error) else image.numpy()


class PaddedDecoder(SampleDecoder):
    """Dataset of padded images, ``(H, W, C or C + 1)``; a request has a padded size."""

    def __getitem__(self, request: PaddedRequest) -> Decoded:
        index, (height, width) = request
        image = super().__getitem__(index)
        if isinstance(image, Error):
            return image
        padded = np.zeros((height, width, len(image)), image.dtype)
        padded[: image.shape[1], : image.shape[2]] = image.transpose(1, 2, 0)
        return padded


def decode_sample(sample: Sample, transform: ResizeTransform) -> Tensor | Error:
    """Decode and resize an image, ``(C, H, W)`` in 0..255, with its mask as a last channel; or return the error."""
    try:
        image = transform.read_image(sample.source, sample.name if isinstance(sample.source, Path) else "")
    except MissingPackageError:
        raise
    except Error as error:
        return error
    if (image.shape[2], image.shape[1]) != sample.size:
        old_size, new_size = "×".join(map(str, sample.size)), f"{image.shape[2]}×{image.shape[1]}"
        return Error(
            f"{sample.name} has {new_size} pixels, but its header stated {old_size}; restore the original file"
        )
    pixels = transform(image)
    if image.dtype == torch.uint8:
        pixels = pixels.round().to(torch.uint8)
    if sample.mask is None:
        return pixels
    try:
        mask = sample.mask.read()
    except Error as error:
        return error
    if (mask.shape[1], mask.shape[0]) != sample.size:
        sides = "×".join(map(str, sample.size))
        return Error(f"{sample.name} has {sides} pixels, and its mask {mask.shape[1]}×{mask.shape[0]}; they must agree")
    resized = resize_mask(mask, pixels.shape[2], pixels.shape[1])
    return torch.cat([pixels, torch.from_numpy(np.array(resized))[None]])


def decode_samples(
    samples: Sequence[Sample], transform: ResizeTransform, max_unreadable: int = MAX_UNREADABLE
) -> tuple[list[Sample], list[Tensor]]:
    """Decode images; return the readable samples and their images. The others are skipped and logged.

    Raises:
        Error: more than ``max_unreadable`` images are unreadable, or all.
    """
    kept: list[Sample] = []
    images: list[Tensor] = []
    errors: list[str] = []
    files = sum(isinstance(sample.source, Path) for sample in samples)
    batches = [
        list(range(start, min(start + DECODE_BATCH_SIZE, len(samples))))
        for start in range(0, len(samples), DECODE_BATCH_SIZE)
    ]
    reader = DataLoader(
        SampleDecoder(samples, transform),
        batch_sampler=batches,
        num_workers=count_workers() if files >= MIN_PARALLEL_SAMPLES else 0,
        collate_fn=list,
        generator=torch.Generator(),
    )
    with use_single_thread():
        results = track(itertools.chain.from_iterable(reader), "reading images", len(samples))
        for sample, result in zip(samples, results, strict=True):
            if isinstance(result, Error):
                errors.append(str(result))
            else:
                kept.append(sample)
                images.append(torch.from_numpy(result))
    if errors and not kept:
        raise Error(f"none of the {len(samples)} images can be read; the first: {errors[0]}")
    if errors:
        logger.warning(f"{len(errors)} of {len(samples)} images are skipped:\n{format_errors(errors)}")
    check_unreadable(errors, max_unreadable)
    return kept, images


@contextmanager
def use_single_thread() -> Iterator[None]:
    """Limit torch to one thread, as in worker processes: the division among threads affects rounding."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)

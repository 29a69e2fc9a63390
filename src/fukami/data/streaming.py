"""Decoding of image files by worker processes: all at once, or batch by batch during training."""

import logging
import math
import os
import sys
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fukami.data.augment import MAX_ASPECT_RATIO, Augmentation
from fukami.data.image_folder import MAX_UNREADABLE, check_unreadable
from fukami.data.loader import SEQUENTIAL_BATCH_SIZE, Batch, BatchLoader, BatchT, StateDict
from fukami.errors import Error, MissingPackageError, convert_memory_errors
from fukami.image import io as image_io
from fukami.image.channels import ArrayImage, Levels, read_channels, read_depth
from fukami.image.transform import SquareTransform
from fukami.progress import Waiting, format_count
from fukami.system import count_cpus
from fukami.timing import PhaseTimer

if TYPE_CHECKING:
    from fukami.engine.runtime import Runtime

logger = logging.getLogger(__name__)
PREFETCH_FACTOR = 4  # batches that each worker prepares ahead
MIN_PARALLEL_FILES = 1000  # number of files from which worker processes pay off

Decoded = Levels | Error  # (H, W, C), or the error of an unreadable image
DecodeRequest = tuple[int, list[float]]  # the index of an image, and the random numbers of its crop


class DecodedBatch(NamedTuple):
    """Readable images of a batch ``(N, H, W, C)``, their positions in the request, and the errors of the others."""

    images: Tensor
    kept: list[int]
    errors: list[str]

    def fill(self) -> "DecodedBatch":
        """Replace unreadable images by readable ones of the batch, so that a training batch has its full size."""
        if not (self.kept and self.errors):
            return self
        rows = [row % len(self.kept) for row in range(len(self.kept) + len(self.errors))]
        return DecodedBatch(self.images[rows], [self.kept[row] for row in rows], self.errors)


class ImageDecoder(Dataset[Decoded]):
    """Dataset of preprocessed image files, ``(H, W, C)`` in 0..255, or the error of an unreadable one.

    Args:
        files: image files.
        transform: preprocessing, which resizes an image to the input size.
        min_area: minimum area fraction of the random resized crop of a request with random numbers.
    """

    def __init__(self, files: Sequence[Path], transform: SquareTransform, min_area: float = 1.0) -> None:
        self.files, self.transform, self.min_area = files, transform, min_area

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, request: DecodeRequest) -> Decoded:
        index, random_values = request
        try:
            return self.decode(self.files[index], random_values)
        except MissingPackageError:
            raise
        except Error as error:
            return error

    def decode(self, file: Path | bytes, random_values: list[float], name: str = "") -> Levels:
        """Decode and preprocess an image; it is randomly cropped unless ``random_values`` is empty."""
        if random_values:
            with convert_memory_errors(name or str(file)):
                return self._decode_crop(file, random_values, name)
        return self.transform.read_and_transform(file, name).transpose(1, 2, 0)

    def _decode_crop(self, file: Path | bytes, random_values: list[float], name: str) -> Levels:
        """Decode a random resized crop; a JPEG is decoded no larger than the crop needs."""
        size, channels = self.transform.size, self.transform.channels

        def reduce(image: Image.Image) -> None:
            width, height, _, _ = compute_crop(random_values, self.min_area, image.width / image.height)
            image.draft(None, (int(size / width), int(size / height)))

        full = read_channels(file, channels, name=name, prepare=reduce)
        width, height, left, top = compute_crop(random_values, self.min_area, full.width / full.height)
        box = (left * full.width, top * full.height, (left + width) * full.width, (top + height) * full.height)

        def crop(image: Image.Image) -> Image.Image:
            return image.resize((size, size), Image.Resampling.BILINEAR, box=box)

        if isinstance(full, ArrayImage):
            return full.map_channels(crop).levels
        return np.array(crop(image_io.convert_mode(full, "L" if channels == 1 else "RGB"))).reshape(size, size, -1)


def compute_crop(random_values: Sequence[float], min_area: float, aspect: float) -> tuple[float, float, float, float]:
    """Compute the crop of one image, like :func:`fukami.data.augment.compute_crops` for a batch, but faster."""
    area, ratio = min_area + (1 - min_area) * random_values[0], MAX_ASPECT_RATIO ** (2 * random_values[1] - 1)
    width, height = min(1.0, math.sqrt(area * ratio / aspect)), min(1.0, math.sqrt(area / ratio * aspect))
    return width, height, (1 - width) * random_values[2], (1 - height) * random_values[3]


def decode_files(files: Sequence[Path], transform: SquareTransform) -> Iterator[Decoded]:
    """Decode each file in order, ``(H, W, C)`` in 0..255, or yield its error; worker processes decode many files."""
    decoder = ImageDecoder(files, transform)
    workers = count_workers() if len(files) >= MIN_PARALLEL_FILES else 0
    reader = DataLoader(
        decoder,
        batch_sampler=_plan_requests(len(files)),
        num_workers=workers,
        collate_fn=list,
        generator=torch.Generator(),  # seeding the workers must not advance the run's generator
    )
    for batch in reader:
        yield from batch


def _plan_requests(count: int) -> list[list[DecodeRequest]]:
    """Plan requests for all images once, in order, uncropped."""
    return [
        [(index, []) for index in range(start, min(start + SEQUENTIAL_BATCH_SIZE, count))]
        for start in range(0, count, SEQUENTIAL_BATCH_SIZE)
    ]


def count_value_bytes(source: Path | bytes | npt.NDArray[np.generic]) -> int:
    """Count the bytes of a decoded value, by the header of the first image of a dataset: 4 above 8 bits, else 1."""
    if isinstance(source, np.ndarray):
        return 1
    try:
        return 4 if read_depth(source)[1] else 1
    except MissingPackageError:
        raise
    except Error:  # the image is reported when it is decoded
        return 1


def count_workers() -> int:
    """Count the CPUs available to this process, at most 16; torchrun's local processes divide them."""
    return max(1, min(count_cpus() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)), 16))


class StreamingLoader(BatchLoader[BatchT]):
    """Base class of loaders whose images are decoded by worker processes during training.

    The decoder defines the format of requests and results. A subclass implements :meth:`iterate_requests`. An
    unreadable image is reported; the evaluation skips it, and in a training batch another one takes its place.
    """

    def setup_decoder(self, decoder: Dataset[Decoded], max_unreadable: int) -> None:
        """Set up reading with this decoder; more than ``max_unreadable`` unreadable images are an error."""
        self.decoder = decoder
        self.reader = self._build_reader(_RequestSampler(self), persistent=True)
        # A reference from outside keeps the reader out of reference cycles with the loader. Collected as part of a
        # cycle, it could not signal its workers to end, and would wait five seconds for each.
        weakref.finalize(self, id, self.reader).atexit = False
        self.device = torch.device("cpu")
        self.clock = PhaseTimer(self.device)
        self.wait_seconds, self.wait_start = 0.0, time.monotonic()
        self.max_unreadable = max_unreadable
        self.unreadable_images: dict[str, None] = {}  # error of each unreadable image, in order of occurrence

    def setup(self, runtime: "Runtime") -> None:
        """Set the device of the batches, and select this process's slice of each."""
        super().setup(runtime)
        self.device, self.clock = runtime.device, runtime.clock

    def iterate_requests(self) -> Iterator[list[Any]]:
        """Iterate over the decoding requests of the remaining batches, independently of the loader."""
        raise NotImplementedError

    def describe_reading(self) -> str:
        """Describe what the first batch is read from."""
        return f"{format_count(count_workers(), 'worker process')} decode images"

    def state_dict(self) -> StateDict:
        """Return the training position, and the unreadable images up to it."""
        return {**super().state_dict(), "unreadable": list(self.unreadable_images)}

    def load_state_dict(self, state: StateDict) -> None:
        """Restore the training position and the unreadable images."""
        super().load_state_dict(state)
        self.unreadable_images = dict.fromkeys(state.get("unreadable", ()))

    def compute_wait_fraction(self) -> float:
        """Compute the fraction of the time since the last call spent waiting for images."""
        now = time.monotonic()
        fraction, self.wait_seconds, self.wait_start = self.wait_seconds / max(now - self.wait_start, 1e-9), 0.0, now
        return min(fraction, 1.0)

    @property
    def prefetch_factor(self) -> int:
        """Number of batches that each worker prepares ahead."""
        return PREFETCH_FACTOR

    def _build_reader(self, requests: Iterable[list[Any]], persistent: bool = False) -> DataLoader[Decoded]:
        return DataLoader(
            self.decoder,
            batch_sampler=requests,
            num_workers=count_workers(),
            collate_fn=_collate,
            prefetch_factor=self.prefetch_factor,
            persistent_workers=persistent,
            pin_memory=torch.cuda.is_initialized(),  # type: ignore[no-untyped-call]
            worker_init_fn=_leave_process_group,
            generator=torch.Generator(),  # seeding the workers must not advance the run's generator
        )

    def _iterate_timed(self, reader: Iterable[DecodedBatch]) -> Iterator[DecodedBatch]:
        """Iterate over decoded batches, measure the waiting time, and show what the first batch waits for."""
        with Waiting(f"starting {format_count(count_workers(), 'worker process')}") as self.waiting:
            batches = iter(reader)
            batch = self._wait_for_batch(batches)
        while batch is not None:
            yield batch
            batch = self._wait_for_batch(batches)

    def _wait_for_batch(self, batches: Iterator[DecodedBatch]) -> DecodedBatch | None:
        """Return the next batch, None at the end, and measure the waiting time."""
        start = time.monotonic()
        with self.clock("waiting"):
            batch = next(batches, None)
        self.wait_seconds += time.monotonic() - start
        return batch

    def _move_to_device(self, decoded: DecodedBatch, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Move the images and their targets to the device."""
        images, kept, errors = decoded
        self._record_unreadable(errors)
        if not kept:
            raise Error(f"no image of a batch can be read; the first: {errors[0]}")
        targets = self.targets[indices[kept].to(self.targets.device)]
        with self.clock("host to device"):
            images = images.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
            return images, targets.to(self.device, non_blocking=True)

    def _record_unreadable(self, errors: Sequence[str]) -> None:
        """Log each unreadable image once.

        Raises:
            Error: there are more than ``max_unreadable``.
        """
        for error in errors:
            if error not in self.unreadable_images:
                self.unreadable_images[error] = None
                logger.warning(f"{error}; it is skipped")
        check_unreadable(tuple(self.unreadable_images), self.max_unreadable)


class FileStreamingLoader(StreamingLoader[Batch]):
    """Loader of a labeled dataset in files: decoded and cropped by workers, augmented on the device in batches.

    Order, crops and augmentation depend only on the seed and the epoch, as in
    :class:`fukami.data.loader.InMemoryLoader`.

    Args:
        files: image files, one for each of ``targets``.
        transform: preprocessing, which resizes an image to the input size if it is not cropped.
        min_area: minimum area fraction of the random resized crops of the training images; None: no cropping.
        max_unreadable: maximum number of unreadable images per split and process; they are skipped, and one more stops
            the run.
        targets, labels, batch_size, seed, balanced, augmentation: as for :class:`fukami.data.loader.BatchLoader`.
    """

    decoder_class = ImageDecoder

    def __init__(
        self,
        files: Sequence[Path],
        targets: Tensor,
        labels: tuple[str, ...],
        transform: SquareTransform,
        *,
        batch_size: int,
        seed: int | None = None,
        balanced: bool = False,
        augmentation: Augmentation | None = None,
        min_area: float | None = None,
        max_unreadable: int = MAX_UNREADABLE,
    ) -> None:
        super().__init__(
            targets,
            labels,
            batch_size=batch_size,
            names=list(map(str, files)),
            seed=seed,
            balanced=balanced,
            augmentation=augmentation,
        )
        self.num_crop_values = 0 if min_area is None else 4
        self.setup_decoder(self.decoder_class(files, transform, min_area or 1.0), max_unreadable)

    @property
    def num_random_values(self) -> int:
        """Number of random numbers per image: first for its crop, then for its augmentation."""
        return self.num_crop_values + super().num_random_values

    def __iter__(self) -> Iterator[Batch]:
        """Iterate over the remaining batches of an epoch, ``(images (N, C, H, W) in 0..255, targets)``."""
        local_batches = self.iterate_local_batches()
        any_readable = False
        for decoded in self._iterate_timed(self.reader):
            indices, random_values = next(local_batches)
            self.advance()
            if self.seed is None and not decoded.kept:  # a missing range of images; the others are evaluated
                self._record_unreadable(decoded.errors)
                continue
            if self.seed is not None:
                decoded = decoded.fill()
            images, targets = self._move_to_device(decoded, indices)
            any_readable = True
            if self.augmentation is not None and self.seed is not None:
                images, targets = self.augmentation(
                    images, targets, random_values[decoded.kept, self.num_crop_values :].to(self.device)
                )
            yield images, targets
        if self.seed is None and self.unreadable_images and not any_readable:
            raise Error(f"no image can be read; the first: {next(iter(self.unreadable_images))}")
        self.finish_epoch()

    def iterate_with_indices(self) -> Iterator[tuple[Tensor, Batch]]:
        """Iterate over the readable images in order, with their indices."""
        for requests, decoded in zip(plan := _plan_requests(len(self.targets)), self._build_reader(plan), strict=True):
            indices = torch.tensor([index for index, _ in requests])
            if decoded.kept:
                yield indices[decoded.kept], self._move_to_device(decoded, indices)
            else:
                self._record_unreadable(decoded.errors)

    def iterate_requests(self) -> Iterator[list[Any]]:
        """Iterate over the decoding requests of the remaining batches, independently of the loader."""
        return (
            list(zip(indices.tolist(), random_values[:, : self.num_crop_values].tolist(), strict=True))
            for indices, random_values in self.iterate_local_batches()
        )


def _leave_process_group(worker_index: int) -> None:
    """Leave the process group, so that Ctrl-C and torchrun's signals reach only the process that saves."""
    if sys.platform != "win32":
        os.setpgrp()


class _RequestSampler:
    """Batch sampler of the decoding requests of an epoch, from the current position."""

    def __init__(self, loader: StreamingLoader[object]) -> None:
        self.loader: StreamingLoader[object] = weakref.proxy(loader)

    def __len__(self) -> int:
        return len(self.loader) - self.loader.position

    def __iter__(self) -> Iterator[list[Any]]:
        requests = self.loader.iterate_requests()
        self.loader.waiting.describe(f"waiting for the first batch: {self.loader.describe_reading()}")
        yield from requests


def _collate(results: list[Decoded]) -> DecodedBatch:
    """Stack the readable images, as float32 if one of them is."""
    kept = [position for position, image in enumerate(results) if not isinstance(image, Error)]
    arrays = [np.asarray(results[position]) for position in kept]
    dtype = np.result_type(*arrays) if arrays else np.uint8
    images = [torch.from_numpy(np.ascontiguousarray(array, dtype)) for array in arrays]
    errors = [str(image) for image in results if isinstance(image, Error)]
    return DecodedBatch(torch.stack(images) if images else torch.zeros(0), kept, errors)

"""Images read from their files by other processes: all at once, or batch by batch while a network is trained."""

import logging
import math
import os
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fukami.data.augment import MAX_ASPECT_RATIO, Augmentation
from fukami.data.image_folder import MAX_BROKEN, check_broken
from fukami.data.loader import SEQUENTIAL_BATCH_SIZE, Batch, BatchLoader
from fukami.errors import Error, convert_memory_errors
from fukami.image import io as image_io
from fukami.image.transform import SquareTransform
from fukami.system import count_cpus
from fukami.timing import PhaseTimer

if TYPE_CHECKING:
    from fukami.engine.runtime import Runtime

logger = logging.getLogger(__name__)
PREFETCH_FACTOR = 4  # batches that each process prepares ahead
MIN_PARALLEL_FILES = 1000  # files from which other processes are worth their start

UInt8Array = npt.NDArray[np.uint8]
DecodeRequest = tuple[int, list[float]]  # the number of an image, and the draws of its crop


class ImageDecoder(Dataset[Any]):
    """Files as the network sees them, ``(H, W, C)`` uint8, or the error of one that cannot be read.

    Args:
        files: the images.
        prepare: brings an image to the network's size.
        min_area: least share of the area where an image is asked for with the draws of a random resized crop.
    """

    def __init__(self, files: Sequence[Path], prepare: SquareTransform, min_area: float = 1.0) -> None:
        self.files, self.prepare, self.min_area = files, prepare, min_area

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, request: DecodeRequest) -> UInt8Array | Error:
        number, draws = request
        try:
            return self.decode(self.files[number], draws)
        except Error as error:
            return error

    def decode(self, file: Path | bytes, draws: list[float], name: str = "") -> UInt8Array:
        """The image in a file as the network sees it, cropped where there are draws; errors call it ``name``."""
        if draws:
            with convert_memory_errors(name or str(file)):
                return self._decode_crop(file, draws, name)
        return self.prepare.read_and_transform(file, name).transpose(1, 2, 0)

    def _decode_crop(self, file: Path | bytes, draws: list[float], name: str) -> UInt8Array:
        """A random resized crop; a JPEG is decoded no larger than the crop needs."""
        size = self.prepare.size
        with image_io.open_image(file, name=name) as image:
            wide, high, _, _ = compute_crop(draws, self.min_area, image.width / image.height)
            image.draft(None, (int(size / wide), int(size / high)))
            full = image_io.convert_mode(image_io.decode_image(image), "L" if self.prepare.channels == 1 else "RGB")
        wide, high, left, top = compute_crop(draws, self.min_area, full.width / full.height)
        box = (left * full.width, top * full.height, (left + wide) * full.width, (top + high) * full.height)
        part = full.resize((size, size), Image.Resampling.BILINEAR, box=box)
        return np.array(part).reshape(size, size, -1)


def compute_crop(draws: Sequence[float], min_area: float, aspect: float) -> tuple[float, float, float, float]:
    """What :func:`fukami.data.augment.compute_crops` gives for a batch, for one image: a hundred times as quick."""
    area, ratio = min_area + (1 - min_area) * draws[0], MAX_ASPECT_RATIO ** (2 * draws[1] - 1)
    wide, high = min(1.0, math.sqrt(area * ratio / aspect)), min(1.0, math.sqrt(area / ratio * aspect))
    return wide, high, (1 - wide) * draws[2], (1 - high) * draws[3]


def decode_files(files: Sequence[Path], prepare: SquareTransform) -> Iterator[UInt8Array | Error]:
    """Each file in turn as the network sees it, ``(H, W, C)`` uint8, or the error; many are read by many processes."""
    decoder = ImageDecoder(files, prepare)
    workers = count_workers() if len(files) >= MIN_PARALLEL_FILES else 0
    for batch in DataLoader(decoder, batch_sampler=_plan_requests(len(files)), num_workers=workers, collate_fn=list):
        yield from batch


def _plan_requests(count: int) -> list[list[DecodeRequest]]:
    """Every image once, in order, whole."""
    return [
        [(number, []) for number in range(at, min(at + SEQUENTIAL_BATCH_SIZE, count))]
        for at in range(0, count, SEQUENTIAL_BATCH_SIZE)
    ]


def count_workers() -> int:
    """Processors that this process may use, 16 at most; those that torchrun started on a machine share them."""
    return max(1, min(count_cpus() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)), 16))


class StreamingLoader(BatchLoader):
    """What loaders share whose images are decoded by other processes while a network is trained.

    What an image is asked for with and what comes of it is the decoder's; a subclass says in :meth:`wishes` what the
    rest of a pass asks for. An image that cannot be read is left out of its batch and named.
    """

    def setup_decoder(self, decoder: Dataset[Any], max_broken: int) -> None:
        """Get ready to read with this decoder; more images than ``max_broken`` that cannot be read are an error."""
        self.decoder = decoder
        self.reader = self._build_reader(_RequestSampler(self), persistent=True)
        # Held from outside, the reader is in no cycle of references that the loader comes to be in: taken down as part
        # of one, it could not tell its processes to end, and would wait five seconds for each.
        weakref.finalize(self, id, self.reader).atexit = False
        self.device = torch.device("cpu")
        self.clock = PhaseTimer(self.device)
        self.wait_seconds, self.wait_start = 0.0, time.monotonic()
        self.max_broken = max_broken
        self.broken_images: dict[
            str, None
        ] = {}  # what is wrong with each broken image, in the order in which they came

    def setup(self, runtime: "Runtime") -> None:
        """Send the batches to the device, and take this process's share of each."""
        super().setup(runtime)
        self.device, self.clock = runtime.device, runtime.clock

    def iterate_requests(self) -> Iterator[list[Any]]:
        """What the rest of the pass asks the other processes for; it refers to the loader no longer."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Where the training is, and what was broken up to there."""
        return {**super().state_dict(), "broken": list(self.broken_images)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        super().load_state_dict(state)
        self.broken_images = dict.fromkeys(state.get("broken", ()))

    def compute_wait_fraction(self) -> float:
        """The share of the time since the last call that was spent waiting for images."""
        now = time.monotonic()
        share, self.wait_seconds, self.wait_start = self.wait_seconds / max(now - self.wait_start, 1e-9), 0.0, now
        return min(share, 1.0)

    def _build_reader(self, requests: Iterable[list[Any]], persistent: bool = False) -> DataLoader[Any]:
        return DataLoader(
            self.decoder,
            batch_sampler=requests,
            num_workers=count_workers(),
            collate_fn=_collate,
            prefetch_factor=PREFETCH_FACTOR,
            persistent_workers=persistent,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_leave_process_group,
            generator=torch.Generator(),  # a reader seeds its processes, which must not move the training's generator
        )

    def _iterate_timed(self, reader: Iterable[Any]) -> Iterator[Any]:
        """What the other processes decoded, while the time is noted that it was waited for."""
        batches = iter(reader)
        while True:
            began = time.monotonic()
            with self.clock("waiting"):
                batch = next(batches, None)
            self.wait_seconds += time.monotonic() - began
            if batch is None:
                return
            yield batch

    def _move_to_device(
        self, found: tuple[Tensor, list[int], list[str]], indices: Tensor
    ) -> tuple[Tensor, Tensor, list[int]]:
        """Images and targets on the device, and which of the wished ones they are."""
        images, kept, errors = found
        self._record_broken(errors)
        if not kept:
            raise Error(f"not one image of a batch can be read; the first: {errors[0]}")
        targets = self.targets[indices[kept].to(self.targets.device)]
        with self.clock("host to device"):
            images = images.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
            return images, targets.to(self.device, non_blocking=True), kept

    def _record_broken(self, errors: Sequence[str]) -> None:
        """Name what is broken, once each.

        Raises:
            Error: there is more of it than is allowed.
        """
        for error in errors:
            if error not in self.broken_images:
                self.broken_images[error] = None
                logger.warning(f"{error}; it is left out")
        check_broken(tuple(self.broken_images), self.max_broken)


class FileStreamingLoader(StreamingLoader):
    """A labelled data set in files: decoded and cropped by other processes, augmented on the device in batches.

    Order, crops and augmentation are functions of the seed and the pass alone, as those of
    :class:`fukami.data.loader.InMemoryLoader` are. An image that cannot be read is left out of its batch and named.

    Args:
        files: the images, one for each of ``targets``.
        prepare: brings an image to the network's size where it is not cropped.
        min_area: least share of the area in a random resized crop of the training images; None: they are not cropped.
        max_broken: images that may be broken; one more is an error.
        targets, labels, batch_size, seed, balanced, augment: as for :class:`fukami.data.loader.BatchLoader`.
    """

    decoder_class = ImageDecoder

    def __init__(
        self,
        files: Sequence[Path],
        targets: Tensor,
        labels: tuple[str, ...],
        prepare: SquareTransform,
        *,
        batch_size: int,
        seed: int | None = None,
        balanced: bool = False,
        augment: Augmentation | None = None,
        min_area: float | None = None,
        max_broken: int = MAX_BROKEN,
    ) -> None:
        super().__init__(
            targets,
            labels,
            batch_size=batch_size,
            names=list(map(str, files)),
            seed=seed,
            balanced=balanced,
            augment=augment,
        )
        self.num_crop_draws = 0 if min_area is None else 4
        self.setup_decoder(self.decoder_class(files, prepare, min_area or 1.0), max_broken)

    @property
    def num_draws(self) -> int:
        """Random numbers for each image: those of its crop, then those of the augmentation."""
        return self.num_crop_draws + super().num_draws

    def __iter__(self) -> Iterator[Batch]:
        """The batches of one pass, ``(images (N, C, H, W) in 0..255, targets)``; a pass cut off is finished."""
        shares = self.iterate_local_batches()
        seen = False
        for found in self._iterate_timed(self.reader):
            members, draws = next(shares)
            self.advance()
            if self.seed is None and not found[1]:  # a stretch that is missing; the rest can be judged
                self._record_broken(found[2])
                continue
            images, targets, kept = self._move_to_device(found, members)
            seen = True
            if self.augment is not None and self.seed is not None:
                images, targets = self.augment(images, targets, draws[kept, self.num_crop_draws :].to(self.device))
            yield images, targets
        if self.seed is None and self.broken_images and not seen:
            raise Error(f"not one image can be read; the first: {next(iter(self.broken_images))}")
        self.finish_epoch()

    def iterate_in_order(self) -> Iterator[Batch]:
        """Every image once, in order, neither cropped nor augmented; the training goes on as if nothing had been."""
        for wishes, found in zip(every := _plan_requests(len(self.targets)), self._build_reader(every), strict=True):
            yield self._move_to_device(found, torch.tensor([number for number, _ in wishes]))[:2]

    def iterate_requests(self) -> Iterator[list[Any]]:
        """What the rest of the pass asks the other processes for; it refers to the loader no longer."""
        crops = self.num_crop_draws
        return (
            list(zip(members.tolist(), draws[:, :crops].tolist(), strict=True))
            for members, draws in self.iterate_local_batches()
        )


def _leave_process_group(number: int) -> None:
    """Leave Ctrl-C and torchrun's signals, which go to a group of processes, to the one that has a step to save."""
    os.setpgrp()


class _RequestSampler:
    """What a pass asks the other processes for: the rest of it, from where the training is."""

    def __init__(self, loader: StreamingLoader) -> None:
        self.loader: StreamingLoader = weakref.proxy(loader)

    def __len__(self) -> int:
        return len(self.loader) - self.loader.position

    def __iter__(self) -> Iterator[list[Any]]:
        return self.loader.iterate_requests()


def _collate(found: list[UInt8Array | Error]) -> tuple[Tensor, list[int], list[str]]:
    """The images that could be read ``(N, H, W, C)``, which ones they are, and what is wrong with the others."""
    kept = [place for place, image in enumerate(found) if not isinstance(image, Error)]
    images = [torch.from_numpy(np.ascontiguousarray(found[place])) for place in kept]
    errors = [str(image) for image in found if isinstance(image, Error)]
    return torch.stack(images) if images else torch.zeros(0), kept, errors

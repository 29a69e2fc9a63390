"""Batches of images with boxes or masks: each keeps its shape, and images of similar shapes share a batch."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fukami.data import augment_boxes
from fukami.data.augment import AugmentationPipeline
from fukami.data.augment_boxes import SIZE_DIVISOR
from fukami.data.class_frequency import ClassCounts, count_class_pixels
from fukami.data.image_folder import MAX_BROKEN
from fukami.data.loader import BatchLoader
from fukami.data.manifest import file_size
from fukami.data.sample_decoder import FrameDecoder, FrameSize, decode_samples
from fukami.data.samples import PaddedBatch, Sample
from fukami.data.streaming import StreamingLoader
from fukami.errors import Error
from fukami.image.transform import ResizeTransform

if TYPE_CHECKING:
    from fukami.engine.runtime import Runtime

SLOT_MULTIPLE = 8  # of which the number of boxes of a batch is a multiple, so that there are few shapes
ASPECT_RATIO_BOUNDS = tuple(
    2 ** (third / 3) for third in range(-3, 4)
)  # widths by height that part the groups, as torchvision's


class BatchPlan(NamedTuple):
    """What a process sees of a batch: its members ``(n,)``, their random numbers, and the shape of the whole batch."""

    indices: Tensor
    draws: Tensor
    frame_size: FrameSize
    num_slots: int


def build_padded_loader(
    samples: Sequence[Sample],
    labels: tuple[str, ...],
    prepare: ResizeTransform,
    *,
    batch_size: int,
    seed: int | None = None,
    augment: AugmentationPipeline | None = None,
    window_size: int = 0,
    memory_limit: float = 4.0,
    max_broken: int = MAX_BROKEN,
) -> "PaddedLoader":
    """Batches of a part of the data: from memory where images take at most ``memory_limit`` gigabytes, else streamed.

    Args:
        samples: the part.
        labels: what the classes are called.
        prepare: brings an image to its size.
        batch_size: images in a batch, over all processes.
        seed: shuffle, drop what is over and augment, repeatably; None: every image once, all of them.
        augment: changes of the training images, as :func:`fukami.data.augment_boxes.parse_box_augmentation` makes
            them.
        window_size: side in pixels of what is cut at random out of larger training images; 0: they stay whole.
        memory_limit: gigabytes that the decoded images may take.
        max_broken: images that may be broken; they are left out and named.

    Raises:
        Error: more images than ``max_broken`` are, or not one can be read.
    """
    sides = [prepare.compute_size(*sample.size) for sample in samples]
    arrays = all(isinstance(sample.source, np.ndarray) for sample in samples)
    if arrays or count_channels(samples) * sum(width * height for width, height in sides) <= memory_limit * 1e9:
        kept, images = decode_samples(samples, prepare, max_broken)
        return PaddedLoader(
            kept,
            labels,
            prepare,
            batch_size=batch_size,
            seed=seed,
            augment=augment,
            window_size=window_size,
            images=images,
        )
    return PaddedStreamingLoader(
        samples,
        labels,
        prepare,
        batch_size=batch_size,
        seed=seed,
        augment=augment,
        window_size=window_size,
        max_broken=max_broken,
    )


def count_channels(samples: Sequence[Sample]) -> int:
    """Channels of the decoded images: masks, where there are any, are the fourth."""
    return 3 + any(sample.mask is not None for sample in samples)


class PaddedLoader(BatchLoader):
    """Images with boxes or masks, held in memory, in batches of similar shapes.

    Order, augmentation and draws are functions of the seed and the pass alone. A pass leaves out what does not fill a
    batch, other images each time; those of a part to be judged on (``seed`` None) all come.

    Args:
        images: of each sample, ``(3, H, W)`` uint8 at its size, or ``(4, H, W)`` with its mask; they move to the
            device.
        samples, labels, prepare, batch_size, seed, augment, window_size: as for :func:`loader`.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        labels: tuple[str, ...],
        prepare: ResizeTransform,
        *,
        batch_size: int,
        seed: int | None = None,
        augment: AugmentationPipeline | None = None,
        window_size: int = 0,
        images: Sequence[Tensor] = (),
    ) -> None:
        names = [sample.name for sample in samples]
        super().__init__(torch.arange(len(samples)), labels, batch_size=batch_size, names=names, seed=seed)
        self.samples, self.prepare, self.images, self.augmentation = tuple(samples), prepare, list(images), augment
        self.window_size = window_size
        self.channels = count_channels(samples)
        self.device = torch.device("cpu")
        sizes = np.array([sample.size for sample in samples], np.int64).reshape(-1, 2)
        self.original_sizes = torch.from_numpy(sizes).flip(1)
        self.resized_sizes = torch.tensor([prepare.compute_size(*size) for size in sizes.tolist()]).view(-1, 2).flip(1)
        self.num_boxes = torch.tensor([len(sample.boxes) for sample in samples], dtype=torch.int64)
        shape = self.resized_sizes[:, 1] / self.resized_sizes[:, 0].clamp(min=1)
        self.shape_groups = torch.bucketize(shape, torch.tensor(ASPECT_RATIO_BOUNDS))

    def setup(self, runtime: "Runtime") -> None:
        """Move the images to the device, and take this process's share of each batch."""
        super().setup(runtime)
        self.device = runtime.device
        with runtime.clock("host to device"):
            self.images = [image.to(runtime.device) for image in self.images]

    @property
    def num_draws(self) -> int:
        """Random numbers for each image: the detector's own, those of the augmentation, then those of the window."""
        return 1 + (self.augmentation.num_draws if self.augmentation else 0) + (2 if self.window_size else 0)

    def __iter__(self) -> Iterator[PaddedBatch]:  # type: ignore[override]
        """The batches of one pass; a pass cut off is finished."""
        for share in self.iterate_plans():
            self.advance()
            if len(share.indices):
                yield self.assemble(self._build_frames(share), share)
        self.finish_epoch()

    def iterate_in_order(self) -> Iterator[PaddedBatch]:  # type: ignore[override]
        """Every image once, in order and not augmented; the training goes on as if nothing had been."""
        for share in self._plan_all():
            yield self.assemble(self._build_frames(share), share, unaugmented=True)

    def list_sizes(self) -> Iterable[int]:
        """Bytes of each image's file, or of its pixels."""
        sources = (sample.source for sample in self.samples)
        return (source.nbytes if isinstance(source, np.ndarray) else file_size(source) for source in sources)

    def list_annotations(self) -> Iterable[bytes]:
        """The boxes of each image, and what tells its mask from another; also its pixels where it has no file."""
        for sample in self.samples:
            own = sample.boxes.tobytes() + sample.classes.tobytes() + sample.kinds.tobytes()
            pixels = sample.source.tobytes() if isinstance(sample.source, np.ndarray) else b""
            yield own + (sample.mask.fingerprint() if sample.mask else b"") + pixels

    def count_class_pixels(self) -> ClassCounts:
        """Pixels of each class, and of the images that have any of it, ``(2, classes)``; counted once and kept."""
        return count_class_pixels(self.samples, len(self.labels))

    def iterate_plans(self) -> Iterator[BatchPlan]:
        """This process's share of each batch in the rest of the pass."""
        order, draws = self._plan_epoch(self.epoch) if self.seed is not None else self._plan_in_order()
        for at in range(self.position, len(self)):
            whole = slice(at * self.batch_size, (at + 1) * self.batch_size)
            yield self._build_plan(order[whole], draws[whole], slice(self.rank, None, self.world_size))

    def assemble(self, images: Tensor, plan: BatchPlan, *, unaugmented: bool = False) -> PaddedBatch:
        """Images ``(n, 3, H, W)`` on the device, or 4 with their masks, with all that belongs to them.

        They are augmented where they are trained on and not ``unaugmented``.
        """
        boxes = torch.zeros(len(plan.indices), plan.num_slots, 4)
        classes = torch.full(boxes.shape[:2], -1)
        kinds = torch.zeros(boxes.shape[:2], dtype=torch.uint8)
        sides, originals = self.resized_sizes[plan.indices].float(), self.original_sizes[plan.indices].float()
        for row, number in enumerate(plan.indices.tolist()):
            sample = self.samples[number]
            own = slice(0, len(sample.boxes))
            boxes[row, own], kinds[row, own] = torch.from_numpy(sample.boxes), torch.from_numpy(sample.kinds)
            classes[row, own] = torch.from_numpy(sample.classes)
        boxes *= (sides / originals).flip(1).repeat(1, 2).unsqueeze(1)
        training = self.seed is not None and not unaugmented
        seeds = (plan.draws[:, 0] * 2**31).long() * training
        masks = images[:, 3] if self.channels == 4 else torch.zeros(len(images), 0, 0, dtype=torch.uint8)
        rest = (sides, originals, boxes, classes, kinds, plan.indices, seeds, masks)
        batch = PaddedBatch(images[:, :3], *(each.to(self.device, non_blocking=True) for each in rest))
        if not training:
            return batch
        changes = self.augmentation.num_draws if self.augmentation else 0
        _, draws, places = plan.draws.to(self.device).tensor_split((1, 1 + changes), 1)
        batch = augment_boxes.augment_batch(self.augmentation, batch, draws) if self.augmentation else batch
        return augment_boxes.crop_batch(batch, self.window_size, places) if self.window_size else batch

    def _plan_all(self) -> Iterator[BatchPlan]:
        """All images in order, in batches."""
        for at in range(0, len(self.samples), self.batch_size):
            members = torch.arange(at, min(at + self.batch_size, len(self.samples)))
            yield self._build_plan(members, torch.zeros(len(members), 1), slice(None))

    def _build_plan(self, members: Tensor, draws: Tensor, mine: slice) -> BatchPlan:
        """The share of a process; the shape is that of the whole batch, so that all processes have the same."""
        height, width = (-(-int(side) // SIZE_DIVISOR) * SIZE_DIVISOR for side in self.resized_sizes[members].amax(0))
        slots = max(1, -(-int(self.num_boxes[members].amax()) // SLOT_MULTIPLE)) * SLOT_MULTIPLE
        return BatchPlan(members[mine], draws[mine], (height, width), slots)

    def _build_frames(self, share: BatchPlan) -> Tensor:
        """The images of a share in their frames, from memory."""
        shape = (len(share.indices), *share.frame_size, self.channels)  # channels last, as other processes send them
        frames = torch.zeros(shape, dtype=torch.uint8, device=self.device).permute(0, 3, 1, 2)
        for frame, number in zip(frames, share.indices.tolist(), strict=True):
            image = self.images[number]
            frame[:, : image.shape[1], : image.shape[2]] = image
        return frames

    def _plan_epoch(self, epoch: int) -> tuple[Tensor, Tensor]:
        """For a pass: as many images as fill batches, those of a shape one after the other, and random numbers."""
        generator = self._make_generator(epoch)
        order = torch.randperm(len(self.samples), generator=generator)[: len(self) * self.batch_size]
        batches = self._sort_by_shape(order).view(-1, self.batch_size)
        order = batches[torch.randperm(len(batches), generator=generator)].flatten()
        return order, torch.rand(len(order), self.num_draws, generator=generator)

    def _plan_in_order(self) -> tuple[Tensor, Tensor]:
        every = self._sort_by_shape(torch.arange(len(self.samples)))
        return every, torch.zeros(len(every), 1)

    def _sort_by_shape(self, order: Tensor) -> Tensor:
        return order[self.shape_groups[order].argsort(stable=True)]


class PaddedStreamingLoader(PaddedLoader, StreamingLoader):
    """The same batches of images that do not fit into memory: other processes decode them.

    Args:
        max_broken: images that may be broken; one more is an error.
        samples, labels, prepare, batch_size, seed, augment, window_size: as for :func:`loader`.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        labels: tuple[str, ...],
        prepare: ResizeTransform,
        *,
        batch_size: int,
        seed: int | None = None,
        augment: AugmentationPipeline | None = None,
        window_size: int = 0,
        max_broken: int = MAX_BROKEN,
    ) -> None:
        super().__init__(
            samples, labels, prepare, batch_size=batch_size, seed=seed, augment=augment, window_size=window_size
        )
        self.setup_decoder(FrameDecoder(self.samples, prepare), max_broken)

    def __iter__(self) -> Iterator[PaddedBatch]:  # type: ignore[override]
        """The batches of one pass; a pass cut off is finished."""
        shares, seen = self.iterate_plans(), False
        for found in self._iterate_timed(self.reader):
            share = next(shares)
            self.advance()
            if self.seed is None and not found[1]:  # nothing of the batch can be read; the rest can be judged
                self._record_broken(found[2])
                continue
            seen = True
            yield self._assemble_decoded(found, share)
        if self.seed is None and self.broken_images and not seen:
            raise Error(f"not one image can be read; the first: {next(iter(self.broken_images))}")
        self.finish_epoch()

    def iterate_in_order(self) -> Iterator[PaddedBatch]:  # type: ignore[override]
        """Every image once, in order and not augmented; the training goes on as if nothing had been."""
        every = list(self._plan_all())
        for share, found in zip(every, self._build_reader([_build_requests(share) for share in every]), strict=True):
            yield self._assemble_decoded(found, share, unaugmented=True)

    def iterate_requests(self) -> Iterator[list[Any]]:
        """What the rest of the pass asks the other processes for; it refers to the loader no longer."""
        return map(_build_requests, self.iterate_plans())

    def _assemble_decoded(self, found: Any, plan: BatchPlan, *, unaugmented: bool = False) -> PaddedBatch:
        if not found[1]:  # a step for it all the same, as other processes may make one, from which nothing is learned
            self._record_broken(found[2])
            shape = (len(plan.indices), self.channels, *plan.frame_size)
            black = torch.zeros(shape, dtype=torch.uint8, device=self.device)
            empty = self.assemble(black, plan, unaugmented=True)
            return empty._replace(boxes=empty.boxes * 0, classes=torch.full_like(empty.classes, -1))
        images, _, kept = self._move_to_device(found, plan.indices)
        own = plan._replace(indices=plan.indices[kept], draws=plan.draws[kept])
        return self.assemble(images, own, unaugmented=unaugmented)


def _build_requests(share: BatchPlan) -> list[tuple[int, FrameSize]]:
    return [(number, share.frame_size) for number in share.indices.tolist()]

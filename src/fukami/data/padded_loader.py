"""Padded batches of images with boxes or masks, grouped by aspect ratio."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fukami.data import augment_boxes
from fukami.data.augment import AugmentationPipeline
from fukami.data.augment_boxes import SIZE_DIVISOR
from fukami.data.class_frequency import ClassCounts, count_class_pixels
from fukami.data.image_folder import MAX_UNREADABLE
from fukami.data.loader import BatchLoader
from fukami.data.manifest import file_size
from fukami.data.sample_decoder import PaddedDecoder, PaddedRequest, PaddedSize, decode_samples
from fukami.data.samples import PaddedBatch, Sample
from fukami.data.streaming import DecodedBatch, StreamingLoader, count_value_bytes
from fukami.errors import Error
from fukami.image.transform import ResizeTransform

if TYPE_CHECKING:
    from fukami.engine.runtime import Runtime

BOX_COUNT_MULTIPLE = 8  # the boxes of a batch are padded to a multiple of it, for few distinct shapes
# bounds between the groups of width divided by height, as in torchvision
ASPECT_RATIO_BOUNDS = tuple(2 ** (third / 3) for third in range(-3, 4))


class BatchPlan(NamedTuple):
    """Plan of a process's slice of a batch.

    Attributes:
        indices: ``(n,)`` image indices.
        random_values: ``(n, num_random_values)`` random numbers.
        padded_size, max_boxes: padded size and number of boxes per image, the same for all processes.
    """

    indices: Tensor
    random_values: Tensor
    padded_size: PaddedSize
    max_boxes: int


def build_padded_loader(
    samples: Sequence[Sample],
    labels: tuple[str, ...],
    transform: ResizeTransform,
    *,
    batch_size: int,
    seed: int | None = None,
    augmentation: AugmentationPipeline | None = None,
    crop_size: int = 0,
    memory_limit: float = 4.0,
    max_unreadable: int = MAX_UNREADABLE,
) -> "PaddedLoader":
    """Build the loader of a split: in memory up to ``memory_limit`` gigabytes, else streamed.

    Args:
        samples: samples of the split.
        labels: class names.
        transform: preprocessing, which resizes an image.
        batch_size: global batch size, over all processes.
        seed: seed of shuffling and augmentation, dropping the incomplete last batch; None: evaluate all images once.
        augmentation: data augmentation of the training images from
            :func:`fukami.data.augment_boxes.parse_box_augmentation`.
        crop_size: side in pixels of the random crops from larger training images; 0 disables them.
        memory_limit: memory limit of the decoded images in gigabytes.
        max_unreadable: maximum number of unreadable images per split and process; they are skipped, and one more stops
            the run.

    Raises:
        Error: more than ``max_unreadable`` images are unreadable, or all are.
    """
    sides = [transform.compute_size(*sample.size) for sample in samples]
    arrays = all(isinstance(sample.source, np.ndarray) for sample in samples)
    num_values = count_channels(samples, transform) * sum(width * height for width, height in sides)
    if arrays or num_values * count_value_bytes(samples[0].source) <= memory_limit * 1e9:
        kept, images = decode_samples(samples, transform, max_unreadable)
        return PaddedLoader(
            kept,
            labels,
            transform,
            batch_size=batch_size,
            seed=seed,
            augmentation=augmentation,
            crop_size=crop_size,
            images=images,
        )
    return PaddedStreamingLoader(
        samples,
        labels,
        transform,
        batch_size=batch_size,
        seed=seed,
        augmentation=augmentation,
        crop_size=crop_size,
        max_unreadable=max_unreadable,
    )


def count_channels(samples: Sequence[Sample], transform: ResizeTransform) -> int:
    """Count the channels of the decoded images; a mask is the last one."""
    return transform.channels + any(sample.mask is not None for sample in samples)


class PaddedLoader(BatchLoader[PaddedBatch]):
    """Loader of images with boxes or masks in memory, in batches of similar aspect ratio.

    Order and augmentation depend only on the seed and the epoch. A training epoch drops the images that do not fill a
    batch, different ones each time. Evaluation (``seed`` None) uses all images.

    Args:
        images: resized image of each sample, ``(C, H, W)`` in 0..255, or ``(C + 1, H, W)`` with its mask; moved to
            the device.
        samples, labels, transform, batch_size, seed, augmentation, crop_size: as for :func:`build_padded_loader`.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        labels: tuple[str, ...],
        transform: ResizeTransform,
        *,
        batch_size: int,
        seed: int | None = None,
        augmentation: AugmentationPipeline | None = None,
        crop_size: int = 0,
        images: Sequence[Tensor] = (),
    ) -> None:
        names = [sample.name for sample in samples]
        super().__init__(torch.arange(len(samples)), labels, batch_size=batch_size, names=names, seed=seed)
        self.samples, self.transform, self.images = tuple(samples), transform, list(images)
        self.augmentation: AugmentationPipeline | None = augmentation
        self.crop_size = crop_size
        self.channels = count_channels(samples, transform)
        self.device = torch.device("cpu")
        sizes = np.array([sample.size for sample in samples], np.int64).reshape(-1, 2)
        self.original_sizes = torch.from_numpy(sizes).flip(1)
        self.resized_sizes = (
            torch.tensor([transform.compute_size(*size) for size in sizes.tolist()]).view(-1, 2).flip(1)
        )
        self.num_boxes = torch.tensor([len(sample.boxes) for sample in samples], dtype=torch.int64)
        aspect_ratio = self.resized_sizes[:, 1] / self.resized_sizes[:, 0].clamp(min=1)
        self.aspect_ratio_groups = torch.bucketize(aspect_ratio, torch.tensor(ASPECT_RATIO_BOUNDS))

    def setup(self, runtime: "Runtime") -> None:
        """Move the images to the device, and select this process's slice of each batch."""
        super().setup(runtime)
        self.device = runtime.device
        with runtime.clock("host to device"):
            self.images = [image.to(runtime.device) for image in self.images]

    @property
    def num_random_values(self) -> int:
        """Number of random numbers per image: one for the detector, then for augmentation, then for the crop."""
        return 1 + (self.augmentation.num_random_values if self.augmentation else 0) + (2 if self.crop_size else 0)

    def __iter__(self) -> Iterator[PaddedBatch]:
        """Iterate over the batches of one epoch, from the current position."""
        for plan in self.iterate_plans():
            self.advance()
            if len(plan.indices):
                yield self.assemble(self._pad_images(plan), plan)
        self.finish_epoch()

    def iterate_in_order(self) -> Iterator[PaddedBatch]:
        """Iterate over all images once, in order and without augmentation; the training state does not change."""
        for plan in self._plan_all():
            yield self.assemble(self._pad_images(plan), plan, unaugmented=True)

    def iterate_sizes(self) -> Iterable[int]:
        """Iterate over the size of each image's file, or of its pixels, in bytes."""
        sources = (sample.source for sample in self.samples)
        return (source.nbytes if isinstance(source, np.ndarray) else file_size(source) for source in sources)

    def iterate_annotations(self) -> Iterable[bytes]:
        """Iterate over the boxes and mask fingerprint of each image as bytes; images in memory add their pixels."""
        for sample in self.samples:
            annotations = sample.boxes.tobytes() + sample.classes.tobytes() + sample.kinds.tobytes()
            pixels = sample.source.tobytes() if isinstance(sample.source, np.ndarray) else b""
            yield annotations + (sample.mask.fingerprint() if sample.mask else b"") + pixels

    def count_class_pixels(self) -> ClassCounts:
        """Count the pixels of each class, and of the images that contain it, ``(2, classes)``; the result is cached."""
        return count_class_pixels(self.samples, len(self.labels))

    def iterate_plans(self) -> Iterator[BatchPlan]:
        """Iterate over this process's slices of the remaining batches of the epoch."""
        order, random_values = self._plan_epoch(self.epoch) if self.seed is not None else self._plan_in_order()
        for batch_index in range(self.position, len(self)):
            batch = slice(batch_index * self.batch_size, (batch_index + 1) * self.batch_size)
            yield self._build_plan(order[batch], random_values[batch], slice(self.rank, None, self.world_size))

    def assemble(self, images: Tensor, plan: BatchPlan, *, unaugmented: bool = False) -> PaddedBatch:
        """Assemble a batch from images ``(n, C, H, W)`` on the device, or ``(n, C + 1, H, W)`` with masks.

        Training images are augmented, unless ``unaugmented`` is set.
        """
        boxes = torch.zeros(len(plan.indices), plan.max_boxes, 4)
        classes = torch.full(boxes.shape[:2], -1)
        kinds = torch.zeros(boxes.shape[:2], dtype=torch.uint8)
        sides, originals = self.resized_sizes[plan.indices].float(), self.original_sizes[plan.indices].float()
        for row, index in enumerate(plan.indices.tolist()):
            sample = self.samples[index]
            count = len(sample.boxes)
            boxes[row, :count], kinds[row, :count] = torch.from_numpy(sample.boxes), torch.from_numpy(sample.kinds)
            classes[row, :count] = torch.from_numpy(sample.classes)
        boxes *= (sides / originals).flip(1).repeat(1, 2).unsqueeze(1)
        training = self.seed is not None and not unaugmented
        seeds = (plan.random_values[:, 0] * 2**31).long() * training
        num_channels = self.transform.channels
        masks = images[:, num_channels] if self.channels > num_channels else torch.zeros(len(images), 0, 0)
        annotations = (sides, originals, boxes, classes, kinds, plan.indices, seeds, masks.to(torch.uint8))
        batch = PaddedBatch(
            images[:, :num_channels], *(tensor.to(self.device, non_blocking=True) for tensor in annotations)
        )
        if not training:
            return batch
        num_augmentation_values = self.augmentation.num_random_values if self.augmentation else 0
        _, random_values, positions = plan.random_values.to(self.device).tensor_split(
            (1, 1 + num_augmentation_values), 1
        )
        batch = augment_boxes.augment_batch(self.augmentation, batch, random_values) if self.augmentation else batch
        return augment_boxes.crop_batch(batch, self.crop_size, positions) if self.crop_size else batch

    def _plan_all(self) -> Iterator[BatchPlan]:
        """Plan batches of all images in order."""
        for start in range(0, len(self.samples), self.batch_size):
            indices = torch.arange(start, min(start + self.batch_size, len(self.samples)))
            yield self._build_plan(indices, torch.zeros(len(indices), 1), slice(None))

    def _build_plan(self, indices: Tensor, random_values: Tensor, local: slice) -> BatchPlan:
        """Plan a process's slice of a batch; all processes use the shape of the global batch."""
        height, width = (-(-int(side) // SIZE_DIVISOR) * SIZE_DIVISOR for side in self.resized_sizes[indices].amax(0))
        max_boxes = max(1, -(-int(self.num_boxes[indices].amax()) // BOX_COUNT_MULTIPLE)) * BOX_COUNT_MULTIPLE
        return BatchPlan(indices[local], random_values[local], (height, width), max_boxes)

    def _pad_images(self, plan: BatchPlan) -> Tensor:
        """Pad the images of a plan to its padded size."""
        shape = (len(plan.indices), *plan.padded_size, self.channels)  # channels last, as worker processes send them
        images = [self.images[index] for index in plan.indices.tolist()]
        dtype = torch.float32 if any(image.is_floating_point() for image in images) else torch.uint8
        padded_images = torch.zeros(shape, dtype=dtype, device=self.device).permute(0, 3, 1, 2)
        for padded_image, image in zip(padded_images, images, strict=True):
            padded_image[:, : image.shape[1], : image.shape[2]] = image
        return padded_images

    def _plan_epoch(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Plan an epoch: the order of the images in batches of similar aspect ratio, and their random numbers."""
        generator = self._make_generator(epoch)
        order = torch.randperm(len(self.samples), generator=generator)[: len(self) * self.batch_size]
        batches = self._sort_by_aspect_ratio(order).view(-1, self.batch_size)
        order = batches[torch.randperm(len(batches), generator=generator)].flatten()
        return order, torch.rand(len(order), self.num_random_values, generator=generator)

    def _plan_in_order(self) -> tuple[Tensor, Tensor]:
        order = self._sort_by_aspect_ratio(torch.arange(len(self.samples)))
        return order, torch.zeros(len(order), 1)

    def _sort_by_aspect_ratio(self, order: Tensor) -> Tensor:
        return order[self.aspect_ratio_groups[order].argsort(stable=True)]


class PaddedStreamingLoader(PaddedLoader, StreamingLoader[PaddedBatch]):
    """Loader of the same batches for images that do not fit into memory; worker processes decode them.

    Args:
        max_unreadable: maximum number of unreadable images per split and process; they are skipped, and one more stops
            the run.
        samples, labels, transform, batch_size, seed, augmentation, crop_size: as for :func:`build_padded_loader`.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        labels: tuple[str, ...],
        transform: ResizeTransform,
        *,
        batch_size: int,
        seed: int | None = None,
        augmentation: AugmentationPipeline | None = None,
        crop_size: int = 0,
        max_unreadable: int = MAX_UNREADABLE,
    ) -> None:
        super().__init__(
            samples, labels, transform, batch_size=batch_size, seed=seed, augmentation=augmentation, crop_size=crop_size
        )
        self.setup_decoder(PaddedDecoder(self.samples, transform), max_unreadable)

    def __iter__(self) -> Iterator[PaddedBatch]:
        """Iterate over the batches of one epoch, from the current position."""
        plans, any_readable = self.iterate_plans(), False
        for decoded in self._iterate_timed(self.reader):
            plan = next(plans)
            self.advance()
            if self.seed is None and not decoded.kept:  # no image of the batch can be read; the others are evaluated
                self._record_unreadable(decoded.errors)
                continue
            any_readable = True
            yield self._assemble_decoded(decoded if self.seed is None else decoded.fill(), plan)
        if self.seed is None and self.unreadable_images and not any_readable:
            raise Error(f"no image can be read; the first: {next(iter(self.unreadable_images))}")
        self.finish_epoch()

    def iterate_in_order(self) -> Iterator[PaddedBatch]:
        """Iterate over all images once, in order and without augmentation; the training state does not change."""
        plans = list(self._plan_all())
        for plan, decoded in zip(plans, self._build_reader([_build_requests(plan) for plan in plans]), strict=True):
            yield self._assemble_decoded(decoded, plan, unaugmented=True)

    def iterate_requests(self) -> Iterator[list[PaddedRequest]]:
        """Iterate over the decoding requests of the remaining batches, independently of the loader."""
        return map(_build_requests, self.iterate_plans())

    def _assemble_decoded(self, decoded: DecodedBatch, plan: BatchPlan, *, unaugmented: bool = False) -> PaddedBatch:
        if not decoded.kept:  # a batch without targets, as other processes may still take this step
            self._record_unreadable(decoded.errors)
            shape = (len(plan.indices), self.channels, *plan.padded_size)
            black = torch.zeros(shape, dtype=torch.uint8, device=self.device)
            empty = self.assemble(black, plan, unaugmented=True)
            return empty._replace(boxes=empty.boxes * 0, classes=torch.full_like(empty.classes, -1))
        images, _ = self._move_to_device(decoded, plan.indices)
        readable = plan._replace(indices=plan.indices[decoded.kept], random_values=plan.random_values[decoded.kept])
        return self.assemble(images, readable, unaugmented=unaugmented)


def _build_requests(plan: BatchPlan) -> list[PaddedRequest]:
    return [(index, plan.padded_size) for index in plan.indices.tolist()]

"""Batches of pictures with boxes or masks: each keeps its shape, and pictures of similar shapes share a batch."""

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

    members: Tensor
    draws: Tensor
    frame: FrameSize
    slots: int


def build_padded_loader(
    samples: Sequence[Sample],
    labels: tuple[str, ...],
    prepare: ResizeTransform,
    *,
    batch: int,
    seed: int | None = None,
    augment: AugmentationPipeline | None = None,
    window: int = 0,
    memory: float = 4.0,
    broken: int = MAX_BROKEN,
) -> "PaddedLoader":
    """Batches of a part of the data: from memory where its pictures take at most ``memory`` gigabytes, else streamed.

    Args:
        samples: the part.
        labels: what the classes are called.
        prepare: brings a picture to its size.
        batch: pictures in a batch, over all processes.
        seed: shuffle, drop what is over and augment, repeatably; None: every picture once, all of them.
        augment: changes of the training pictures, as :func:`fukami.data.augment_boxes.parse_box_augmentation` makes them.
        window: side in pixels of what is cut at random out of larger training pictures; 0: they stay whole.
        memory: gigabytes that the decoded pictures may take.
        broken: pictures that may be broken; they are left out and named.

    Raises:
        Error: more pictures than ``broken`` are, or not one can be read.
    """
    sides = [prepare.size(*sample.size) for sample in samples]
    arrays = all(isinstance(sample.source, np.ndarray) for sample in samples)
    if arrays or count_channels(samples) * sum(width * height for width, height in sides) <= memory * 1e9:
        kept, pictures = decode_samples(samples, prepare, broken)
        return PaddedLoader(
            kept, labels, prepare, batch=batch, seed=seed, augment=augment, window=window, pictures=pictures
        )
    return PaddedStreamingLoader(
        samples, labels, prepare, batch=batch, seed=seed, augment=augment, window=window, broken=broken
    )


def count_channels(samples: Sequence[Sample]) -> int:
    """Channels of the decoded pictures: masks, where there are any, are the fourth."""
    return 3 + any(sample.mask is not None for sample in samples)


class PaddedLoader(BatchLoader):
    """Pictures with boxes or masks, held in memory, in batches of similar shapes.

    Order, augmentation and draws are functions of the seed and the pass alone. A pass leaves out what does not fill a
    batch, other pictures each time; those of a part to be judged on (``seed`` None) all come.

    Args:
        pictures: of each sample, ``(3, H, W)`` uint8 at its size, or ``(4, H, W)`` with its mask; they move to the
            device.
        samples, labels, prepare, batch, seed, augment, window: as for :func:`loader`.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        labels: tuple[str, ...],
        prepare: ResizeTransform,
        *,
        batch: int,
        seed: int | None = None,
        augment: AugmentationPipeline | None = None,
        window: int = 0,
        pictures: Sequence[Tensor] = (),
    ) -> None:
        names = [sample.name for sample in samples]
        super().__init__(torch.arange(len(samples)), labels, batch=batch, names=names, seed=seed)
        self.samples, self.prepare, self.pictures, self.change = tuple(samples), prepare, list(pictures), augment
        self.window = window
        self.channels = count_channels(samples)
        self.device = torch.device("cpu")
        sizes = np.array([sample.size for sample in samples], np.int64).reshape(-1, 2)
        self.originals = torch.from_numpy(sizes).flip(1)
        self.sides = torch.tensor([prepare.size(*size) for size in sizes.tolist()]).view(-1, 2).flip(1)
        self.boxes = torch.tensor([len(sample.boxes) for sample in samples], dtype=torch.int64)
        shape = self.sides[:, 1] / self.sides[:, 0].clamp(min=1)
        self.group = torch.bucketize(shape, torch.tensor(ASPECT_RATIO_BOUNDS))

    def place(self, runtime: "Runtime") -> None:
        """Move the pictures to the device, and take this process's share of each batch."""
        super().place(runtime)
        self.device = runtime.device
        with runtime.clock("host to device"):
            self.pictures = [picture.to(runtime.device) for picture in self.pictures]

    @property
    def draws(self) -> int:
        """Random numbers for each picture: the detector's own, those of the augmentation, then those of the window."""
        return 1 + (self.change.draws if self.change else 0) + (2 if self.window else 0)

    def __iter__(self) -> Iterator[PaddedBatch]:  # type: ignore[override]
        """The batches of one pass; a pass cut off is finished."""
        for share in self.framed():
            self.count()
            if len(share.members):
                yield self.assemble(self._frames(share), share)
        self.ended()

    def ordered(self) -> Iterator[PaddedBatch]:  # type: ignore[override]
        """Every picture once, in order and not augmented; the training goes on as if nothing had been."""
        for share in self._every():
            yield self.assemble(self._frames(share), share, still=True)

    def sizes(self) -> Iterable[int]:
        """Bytes of each picture's file, or of its pixels."""
        sources = (sample.source for sample in self.samples)
        return (source.nbytes if isinstance(source, np.ndarray) else file_size(source) for source in sources)

    def annotations(self) -> Iterable[bytes]:
        """The boxes of each picture, and what tells its mask from another; also its pixels where it has no file."""
        for sample in self.samples:
            own = sample.boxes.tobytes() + sample.classes.tobytes() + sample.kinds.tobytes()
            pixels = sample.source.tobytes() if isinstance(sample.source, np.ndarray) else b""
            yield own + (sample.mask.identity() if sample.mask else b"") + pixels

    def frequencies(self) -> ClassCounts:
        """Pixels of each class, and of the pictures that have any of it, ``(2, classes)``; counted once and kept."""
        return count_class_pixels(self.samples, len(self.labels))

    def framed(self) -> Iterator[BatchPlan]:
        """This process's share of each batch in the rest of the pass."""
        order, draws = self._plan(self.turn) if self.seed is not None else self._in_order()
        for at in range(self.position, len(self)):
            whole = slice(at * self.size, (at + 1) * self.size)
            yield self._share(order[whole], draws[whole], slice(self.rank, None, self.world))

    def assemble(self, pictures: Tensor, share: BatchPlan, *, still: bool = False) -> PaddedBatch:
        """Pictures ``(n, 3, H, W)`` on the device, or 4 with their masks, with all that belongs to them.

        They are augmented where they are trained on and not ``still``.
        """
        boxes = torch.zeros(len(share.members), share.slots, 4)
        classes = torch.full(boxes.shape[:2], -1)
        kinds = torch.zeros(boxes.shape[:2], dtype=torch.uint8)
        sides, originals = self.sides[share.members].float(), self.originals[share.members].float()
        for row, number in enumerate(share.members.tolist()):
            sample = self.samples[number]
            own = slice(0, len(sample.boxes))
            boxes[row, own], kinds[row, own] = torch.from_numpy(sample.boxes), torch.from_numpy(sample.kinds)
            classes[row, own] = torch.from_numpy(sample.classes)
        boxes *= (sides / originals).flip(1).repeat(1, 2).unsqueeze(1)
        training = self.seed is not None and not still
        seeds = (share.draws[:, 0] * 2**31).long() * training
        masks = pictures[:, 3] if self.channels == 4 else torch.zeros(len(pictures), 0, 0, dtype=torch.uint8)
        rest = (sides, originals, boxes, classes, kinds, share.members, seeds, masks)
        batch = PaddedBatch(pictures[:, :3], *(each.to(self.device, non_blocking=True) for each in rest))
        if not training:
            return batch
        changes = self.change.draws if self.change else 0
        _, draws, places = share.draws.to(self.device).tensor_split((1, 1 + changes), 1)
        batch = augment_boxes.augment_batch(self.change, batch, draws) if self.change else batch
        return augment_boxes.crop_batch(batch, self.window, places) if self.window else batch

    def _every(self) -> Iterator[BatchPlan]:
        """All pictures in order, in batches."""
        for at in range(0, len(self.samples), self.size):
            members = torch.arange(at, min(at + self.size, len(self.samples)))
            yield self._share(members, torch.zeros(len(members), 1), slice(None))

    def _share(self, members: Tensor, draws: Tensor, mine: slice) -> BatchPlan:
        """The share of a process; the shape is that of the whole batch, so that all processes have the same."""
        height, width = (-(-int(side) // SIZE_DIVISOR) * SIZE_DIVISOR for side in self.sides[members].amax(0))
        slots = max(1, -(-int(self.boxes[members].amax()) // SLOT_MULTIPLE)) * SLOT_MULTIPLE
        return BatchPlan(members[mine], draws[mine], (height, width), slots)

    def _frames(self, share: BatchPlan) -> Tensor:
        """The pictures of a share in their frames, from memory."""
        shape = (len(share.members), *share.frame, self.channels)  # channels last, as other processes send them
        frames = torch.zeros(shape, dtype=torch.uint8, device=self.device).permute(0, 3, 1, 2)
        for frame, number in zip(frames, share.members.tolist(), strict=True):
            picture = self.pictures[number]
            frame[:, : picture.shape[1], : picture.shape[2]] = picture
        return frames

    def _plan(self, turn: int) -> tuple[Tensor, Tensor]:
        """For a pass: as many pictures as fill batches, those of a shape one after the other, and random numbers."""
        generator = self._generator(turn)
        order = torch.randperm(len(self.samples), generator=generator)[: len(self) * self.size]
        batches = self._by_shape(order).view(-1, self.size)
        order = batches[torch.randperm(len(batches), generator=generator)].flatten()
        return order, torch.rand(len(order), self.draws, generator=generator)

    def _in_order(self) -> tuple[Tensor, Tensor]:
        every = self._by_shape(torch.arange(len(self.samples)))
        return every, torch.zeros(len(every), 1)

    def _by_shape(self, order: Tensor) -> Tensor:
        return order[self.group[order].argsort(stable=True)]


class PaddedStreamingLoader(PaddedLoader, StreamingLoader):
    """The same batches of pictures that do not fit into memory: other processes decode them.

    Args:
        broken: pictures that may be broken; one more is an error.
        samples, labels, prepare, batch, seed, augment, window: as for :func:`loader`.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        labels: tuple[str, ...],
        prepare: ResizeTransform,
        *,
        batch: int,
        seed: int | None = None,
        augment: AugmentationPipeline | None = None,
        window: int = 0,
        broken: int = MAX_BROKEN,
    ) -> None:
        super().__init__(samples, labels, prepare, batch=batch, seed=seed, augment=augment, window=window)
        self.begin(FrameDecoder(self.samples, prepare), broken)

    def __iter__(self) -> Iterator[PaddedBatch]:  # type: ignore[override]
        """The batches of one pass; a pass cut off is finished."""
        shares, seen = self.framed(), False
        for found in self._timed(self.reader):
            share = next(shares)
            self.count()
            if self.seed is None and not found[1]:  # nothing of the batch can be read; the rest can be judged
                self._name(found[2])
                continue
            seen = True
            yield self._seen(found, share)
        if self.seed is None and self.broken and not seen:
            raise Error(f"not one picture can be read; the first: {next(iter(self.broken))}")
        self.ended()

    def ordered(self) -> Iterator[PaddedBatch]:  # type: ignore[override]
        """Every picture once, in order and not augmented; the training goes on as if nothing had been."""
        every = list(self._every())
        for share, found in zip(every, self._reader([_build_requests(share) for share in every]), strict=True):
            yield self._seen(found, share, still=True)

    def wishes(self) -> Iterator[list[Any]]:
        """What the rest of the pass asks the other processes for; it refers to the loader no longer."""
        return map(_build_requests, self.framed())

    def _seen(self, found: Any, share: BatchPlan, *, still: bool = False) -> PaddedBatch:
        if not found[1]:  # a step for it all the same, as other processes may make one, from which nothing is learned
            self._name(found[2])
            shape = (len(share.members), self.channels, *share.frame)
            black = torch.zeros(shape, dtype=torch.uint8, device=self.device)
            empty = self.assemble(black, share, still=True)
            return empty._replace(boxes=empty.boxes * 0, classes=torch.full_like(empty.classes, -1))
        pictures, _, kept = self._placed(found, share.members)
        own = share._replace(members=share.members[kept], draws=share.draws[kept])
        return self.assemble(pictures, own, still=still)


def _build_requests(share: BatchPlan) -> list[tuple[int, FrameSize]]:
    return [(number, share.frame) for number in share.members.tolist()]

"""Streaming of images from shards: several lanes are read sequentially and shuffled in buffers."""

import os
import queue
import threading
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fukami.data import tar
from fukami.data.augment import Augmentation
from fukami.data.image_folder import MAX_UNREADABLE, check_unreadable
from fukami.data.loader import SEQUENTIAL_BATCH_SIZE, Batch
from fukami.data.shards import IntArray, ShardSamples
from fukami.data.streaming import (
    MIN_PARALLEL_FILES,
    PREFETCH_FACTOR,
    Decoded,
    FileStreamingLoader,
    ImageDecoder,
    count_workers,
)
from fukami.errors import Error, MissingPackageError, UsageError
from fukami.image.transform import SquareTransform
from fukami.progress import format_count

if TYPE_CHECKING:
    from fukami.engine.runtime import Runtime

MAX_READERS = 256  # maximum number of lanes
SHUFFLE_BUFFER_BYTES = 256e6  # size of the shuffle buffers of all lanes and processes, in bytes of encoded images
MAX_SEQUENTIAL_BATCH_BYTES = 8e6  # bytes of encoded images in a batch of an iteration in order
MAX_PREFETCHED_BYTES = 2e9  # bytes of encoded images in the batches that all workers prepare ahead, if more than one
MAX_QUEUED_BATCHES = 4  # batches that are read ahead of the requests
OPEN_THREADS = 16  # lanes opened at a time

ShardRequest = tuple[str, int, bytes, list[float]]  # shard, number of the sample, its bytes, random numbers of its crop
Item = TypeVar("Item")
BatchIndices = tuple[Tensor, Tensor]  # (n,) image indices of a batch, and their random numbers


class ShardDecoder(ImageDecoder):
    """Dataset of preprocessed images of samples, ``(H, W, C)`` in 0..255, or the error of an unreadable one."""

    def __getitem__(self, request: Any) -> Decoded:
        shard, number, block, random_values = request
        try:
            name, content = tar.extract_image(block, shard, number)
            return self.decode(content, random_values, name)
        except MissingPackageError:
            raise
        except Error as error:
            return error


class ShardStreamingLoader(FileStreamingLoader):
    """Loader of a labeled dataset in shards: read as streams, decoded by workers, augmented on the device in batches.

    In each epoch, the shards are put in a random order and their concatenation is cut into lanes of equal length. Row
    ``i`` of a batch comes from lane ``i % num_readers``. A lane is read sequentially through a shuffle buffer. The
    order depends only on the seed and the epoch, so training can resume with another number of processes.

    Args:
        samples: samples in shards, one for each of ``targets``.
        transform, min_area, max_unreadable: as for :class:`fukami.data.streaming.FileStreamingLoader`.
        targets, labels, batch_size, seed, augmentation: as for :class:`fukami.data.loader.BatchLoader`.

    Raises:
        Error: the index lists more than ``max_unreadable`` unreadable samples.
    """

    decoder_class = ShardDecoder

    def __init__(
        self,
        samples: ShardSamples,
        targets: Tensor,
        labels: tuple[str, ...],
        transform: SquareTransform,
        *,
        batch_size: int,
        seed: int | None = None,
        augmentation: Augmentation | None = None,
        min_area: float | None = None,
        max_unreadable: int = MAX_UNREADABLE,
    ) -> None:
        self.samples = samples
        super().__init__((), targets, labels, transform, batch_size=batch_size, seed=seed, augmentation=augmentation,
                         min_area=min_area, max_unreadable=max_unreadable)  # fmt: skip
        self.names = samples.names
        check_unreadable(samples.problems, max_unreadable)
        self.unreadable_images = dict.fromkeys(samples.problems)
        self.failures: list[BaseException] = []
        max_readers = min(len(np.unique(samples.shard_indices)), MAX_READERS)
        self.num_readers = max(
            (count for count in range(1, max_readers + 1) if self.batch_size % count == 0), default=1
        )

    def setup(self, runtime: "Runtime") -> None:
        """Set the device of the batches, and select this process's lanes.

        Raises:
            UsageError: the processes cannot divide the lanes evenly.
        """
        super().setup(runtime)
        if self.seed is not None and self.num_readers % runtime.world_size:
            raise UsageError(
                f"{runtime.world_size} processes cannot divide {self.num_readers} lanes of shards evenly; the number "
                f"of lanes divides the batch size {self.batch_size} and is at most the number of shards: write more "
                "shards, or change --batch-size"
            )

    def iterate_local_batches(self) -> Iterator[BatchIndices]:
        """Iterate over this process's image indices ``(n,)`` of the remaining batches, and their random numbers."""
        if self.seed is not None:
            return super().iterate_local_batches()
        count, size = len(self.targets), -(-self.batch_size // self.world_size)
        local = torch.arange(self.rank * count // self.world_size, (self.rank + 1) * count // self.world_size)
        return iter(split_into_batches(local, size))

    def describe_reading(self) -> str:
        """Describe what the first batch is read from."""
        shards = self.samples.shards
        num_lanes = 1 if self.seed is None else self.num_readers // self.world_size
        return f"reading {num_lanes} of {format_count(len(shards), 'shard')} from {shards[0].rpartition('/')[0]}"

    def iterate_requests(self) -> Iterator[list[Any]]:
        """Iterate over the decoding requests of the remaining batches, independently of the loader."""
        plan = list(self.iterate_local_batches())
        local = torch.cat([indices for indices, _ in plan]) if plan else torch.zeros(0, dtype=torch.int64)
        if self.seed is None:
            return read_requests(self.samples, [local.numpy()], plan, self.num_crop_values, self.failures)
        rank_in_order = torch.empty(len(self.targets), dtype=torch.int64)
        rank_in_order[self._order_by_shard(self._make_generator(self.epoch))] = torch.arange(len(rank_in_order))
        num_lanes = self.num_readers // self.world_size
        lanes = [local[lane::num_lanes] for lane in range(num_lanes)]
        orders = [lane[rank_in_order[lane].argsort()].numpy() for lane in lanes]
        return read_requests(self.samples, orders, plan, self.num_crop_values, self.failures)

    @property
    def prefetch_factor(self) -> int:
        """Number of batches that each worker prepares ahead: fewer of large images, whose bytes are in the requests."""
        mean_length = max(float(self.samples.lengths.mean()), 1.0) if len(self.samples) else 1.0
        num_bytes = self.batch_size / int(os.environ.get("WORLD_SIZE", "1")) * mean_length * count_workers()
        return max(1, min(PREFETCH_FACTOR, int(MAX_PREFETCHED_BYTES / num_bytes)))

    def finish_epoch(self) -> None:
        """Record the end of the epoch.

        Raises:
            Error: reading failed before the end of the epoch.
        """
        if self.failures:
            raise self.failures.pop()
        super().finish_epoch()

    def iterate_with_indices(self) -> Iterator[tuple[Tensor, Batch]]:
        """Iterate over the readable images in order, with their indices."""
        indices = torch.arange(len(self.targets))
        plan = split_into_batches(indices, compute_sequential_batch_size(self.samples))
        reader = self._build_reader(read_requests(self.samples, [indices.numpy()], plan, 0))
        for (batch_indices, _), decoded in zip(plan, reader, strict=True):
            if decoded.kept:
                yield batch_indices[decoded.kept], self._move_to_device(decoded, batch_indices)
            else:  # a missing range of images
                self._record_unreadable(decoded.errors)

    def _order_by_shard(self, generator: torch.Generator) -> Tensor:
        """Order the samples by the random order of their shards, ``(N,)``."""
        order = torch.randperm(len(self.samples.shards), generator=generator)
        return order[torch.from_numpy(self.samples.shard_indices)].argsort(stable=True)

    def _plan_epoch(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Plan an epoch: the order of the images, and the random numbers of their augmentation in that order."""
        generator = self._make_generator(epoch)
        sequence = self._order_by_shard(generator)
        count, lanes = len(sequence), self.num_readers
        buffer = max(1, int(SHUFFLE_BUFFER_BYTES / max(float(self.samples.lengths.mean()), 1.0) / lanes))
        bounds = [count * lane // lanes for lane in range(lanes + 1)]
        lane_orders = [
            sequence[low:high][compute_buffer_order(high - low, buffer, generator)][: count // lanes]
            for low, high in pairwise(bounds)
        ]
        order = torch.stack(lane_orders, 1).flatten()
        return order, torch.rand(len(order), self.num_random_values, generator=generator)


def compute_buffer_order(count: int, buffer_size: int, generator: torch.Generator) -> Tensor:
    """Compute the order in which ``count`` samples leave a shuffle buffer, ``(count,)``.

    The buffer is filled with the first samples. Then a random sample leaves, and the next takes its slot. At the end
    the remaining samples leave in random order.
    """
    buffer_length = min(buffer_size, count)
    slots = torch.cat(
        [
            torch.arange(buffer_length),
            torch.randint(max(buffer_length, 1), (count - buffer_length,), generator=generator),
        ]
    )
    by_slot = slots.argsort(stable=True)  # samples grouped by slot, in order
    has_successor = slots[by_slot[1:]] == slots[by_slot[:-1]]
    order = torch.empty(count, dtype=torch.int64)
    # a sample leaves when the next one of its slot enters
    order[by_slot[1:][has_successor] - buffer_length] = by_slot[:-1][has_successor]
    remaining = torch.cat([by_slot[:-1][~has_successor], by_slot[-1:]])
    order[count - buffer_length :] = remaining[torch.randperm(buffer_length, generator=generator)]
    return order


def split_into_batches(indices: Tensor, batch_size: int) -> list[BatchIndices]:
    """Split indices into batches, without random numbers."""
    return [
        (indices[start : start + batch_size], torch.zeros(batch_size, 0)[: len(indices) - start])
        for start in range(0, len(indices), batch_size)
    ]


class SequentialReader:
    """Reader of samples in one order that are taken in another; samples not yet taken are buffered, encoded."""

    def __init__(self, samples: ShardSamples, order: IntArray) -> None:
        self.samples, self.buffer = samples, dict[int, bytes]()
        self.pending = zip(order.tolist(), samples.read_blocks(order), strict=False)
        self.error: Error | None = None

    def open(self) -> None:
        """Read the first sample; an error is stored and raised by :meth:`take`."""
        try:
            self.buffer.update([next(self.pending)])
        except Error as error:
            self.error = error

    def take(self, index: int, random_values: list[float]) -> ShardRequest:
        """Take a sample, with the random numbers of its crop."""
        if self.error is not None:
            raise self.error
        while index not in self.buffer:
            self.buffer.update([next(self.pending)])
        return *self.samples.locate(index), self.buffer.pop(index), random_values


def read_requests(
    samples: ShardSamples,
    orders: Sequence[IntArray],
    plan: Sequence[BatchIndices],
    num_crop_values: int,
    failures: list[BaseException] | None = None,
) -> Iterator[list[ShardRequest]]:
    """Read the samples of each batch of a plan with their bytes, ahead of the requests.

    Args:
        samples: samples in shards.
        orders: order in which each lane reads its samples.
        plan: the batches; row ``i`` comes from lane ``i % len(orders)``.
        num_crop_values: number of random numbers per crop; they come first.
        failures: list to which an error that ends the batches early is appended; None: it is raised. A DataLoader whose
            batch sampler raises cannot shut down cleanly.
    """

    def batches() -> Iterator[list[ShardRequest]]:
        lanes = [SequentialReader(samples, order) for order in orders if len(order)]
        for start in range(0, len(lanes), OPEN_THREADS):  # in parallel, because of the latency of the first byte
            threads = [threading.Thread(target=lane.open, daemon=True) for lane in lanes[start : start + OPEN_THREADS]]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        for indices, random_values in plan:
            rows = enumerate(zip(indices.tolist(), random_values[:, :num_crop_values].tolist(), strict=True))
            yield [lanes[row % len(lanes)].take(index, crop_values) for row, (index, crop_values) in rows]

    return prefetch(batches(), failures)


def prefetch(source: Iterator[Item], failures: list[BaseException] | None) -> Iterator[Item]:
    """Iterate over a source in a thread, a few items ahead; its error is raised or appended to ``failures``."""
    items: queue.Queue[Item | BaseException] = queue.Queue(MAX_QUEUED_BATCHES)
    closed = False

    def put(item: Item | BaseException) -> None:
        while not closed:
            try:
                return items.put(item, timeout=0.1)
            except queue.Full:
                pass

    def fill() -> None:
        try:
            for item in source:
                put(item)
                if closed:
                    return
            put(StopIteration())
        except BaseException as error:
            put(error)

    # a daemon, so that the program does not wait for a server at exit
    threading.Thread(target=fill, name="shards", daemon=True).start()
    try:
        while True:
            item = items.get()
            if isinstance(item, StopIteration):
                return
            if isinstance(item, BaseException):
                if failures is None:
                    raise item
                failures.append(item)
                return
            yield item
    finally:
        closed = True


def compute_sequential_batch_size(samples: ShardSamples) -> int:
    """Return the number of samples per batch of an iteration in order: many batches are in memory at a time."""
    mean_length = max(float(samples.lengths.mean()), 1.0) if len(samples) else 1.0
    return max(1, min(SEQUENTIAL_BATCH_SIZE, int(MAX_SEQUENTIAL_BATCH_BYTES / mean_length)))


def decode_shards(samples: ShardSamples, transform: SquareTransform) -> Iterator[Decoded]:
    """Decode each sample in order, ``(H, W, C)`` uint8 or float32, or yield its error; many with worker processes."""
    indices = torch.arange(len(samples))
    workers = count_workers() if len(samples) >= MIN_PARALLEL_FILES else 0
    plan = split_into_batches(indices, compute_sequential_batch_size(samples))
    requests = read_requests(samples, [indices.numpy()], plan, 0)
    reader = DataLoader(
        ShardDecoder((), transform),
        batch_sampler=requests,
        num_workers=workers,
        collate_fn=list,
        generator=torch.Generator(),  # seeding the workers must not advance the run's generator
    )
    for batch in reader:
        yield from batch

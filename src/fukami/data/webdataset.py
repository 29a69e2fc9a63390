"""Images streamed from shards: each lies in one of several lanes, which are read from end to end and shuffled."""

import queue
import threading
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fukami.data import tar
from fukami.data.augment import Augmentation
from fukami.data.image_folder import MAX_BROKEN, check_broken
from fukami.data.loader import SEQUENTIAL_BATCH_SIZE, Batch
from fukami.data.shards import IntArray, ShardSamples
from fukami.data.streaming import MIN_PARALLEL_FILES, FileStreamingLoader, ImageDecoder, UInt8Array, count_workers
from fukami.errors import Error, UsageError
from fukami.image.transform import SquareTransform

if TYPE_CHECKING:
    from fukami.engine.runtime import Runtime

MAX_READERS = 256  # at most
SHUFFLE_BUFFER_BYTES = 256e6  # bytes of encoded images among which the next one is drawn, over all lanes and processes
MAX_QUEUED_BATCHES = 4  # batches that are read ahead of what is asked for
OPEN_THREADS = 16  # lanes that are opened at a time

ShardRequest = tuple[
    str, int, bytes, list[float]
]  # a shard, the number of a sample there, its bytes, the draws of its crop
BatchIndices = tuple[Tensor, Tensor]  # (n,) members of a batch, and their random numbers


class ShardDecoder(ImageDecoder):
    """Samples as the network sees their images, ``(H, W, C)`` uint8, or the error of one that cannot be read."""

    def __getitem__(self, request: Any) -> UInt8Array | Error:
        shard, number, block, draws = request
        try:
            name, content = tar.extract_image(block, shard, number)
            return self.decode(content, draws, name)
        except Error as error:
            return error


class ShardStreamingLoader(FileStreamingLoader):
    """A labelled data set in shards: read as streams, decoded by other processes, augmented on the device in batches.

    The shards of a pass are put in a random order, and what is in them is cut into lanes of one length; row ``i`` of a
    batch is from lane ``i % lanes``. A lane is read from end to end through a buffer, from which the next image is
    drawn. All that follows from the seed and the pass alone: several processes have the batches of one, and a training
    goes on where it was, with more or fewer processes, too.

    Args:
        samples: where the images are, one for each of ``targets``.
        prepare, min_area, max_broken: as for :class:`fukami.data.streaming.FileStreamingLoader`.
        targets, labels, batch_size, seed, augment: as for :class:`fukami.data.loader.BatchLoader`.

    Raises:
        Error: more samples than ``max_broken`` are known to be broken.
    """

    decoder_class = ShardDecoder

    def __init__(
        self,
        samples: ShardSamples,
        targets: Tensor,
        labels: tuple[str, ...],
        prepare: SquareTransform,
        *,
        batch_size: int,
        seed: int | None = None,
        augment: Augmentation | None = None,
        min_area: float | None = None,
        max_broken: int = MAX_BROKEN,
    ) -> None:
        super().__init__((), targets, labels, prepare, batch_size=batch_size, seed=seed, augment=augment,
                         min_area=min_area, max_broken=max_broken)  # fmt: skip
        self.samples, self.names = samples, samples.names
        check_broken(samples.problems, max_broken)
        self.broken_images = dict.fromkeys(samples.problems)
        self.failures: list[BaseException] = []
        most = min(len(np.unique(samples.shard_indices)), MAX_READERS)
        self.num_readers = max((each for each in range(1, most + 1) if self.batch_size % each == 0), default=1)

    def setup(self, runtime: "Runtime") -> None:
        """Send the batches to the device, and take this process's lanes.

        Raises:
            UsageError: the processes cannot share the lanes evenly.
        """
        super().setup(runtime)
        if self.seed is not None and self.num_readers % runtime.world_size:
            raise UsageError(
                f"{runtime.world_size} processes cannot share {self.num_readers} lanes of shards evenly; a batch of "
                f"{self.batch_size} has as many lanes as divide it, one for a shard at most: write more shards, or "
                "change --batch-size"
            )

    def iterate_local_batches(self) -> Iterator[BatchIndices]:
        """This process's members of each batch in the rest of the pass, ``(n,)``, and their random numbers."""
        if self.seed is not None:
            return super().iterate_local_batches()
        count, size = len(self.targets), -(-self.batch_size // self.world_size)
        mine = torch.arange(self.rank * count // self.world_size, (self.rank + 1) * count // self.world_size)
        return iter(split_into_batches(mine, size))

    def iterate_requests(self) -> Iterator[list[Any]]:
        """What the rest of the pass asks the other processes for; it refers to the loader no longer."""
        plan = list(self.iterate_local_batches())
        mine = torch.cat([members for members, _ in plan]) if plan else torch.zeros(0, dtype=torch.int64)
        if self.seed is None:
            return read_requests(self.samples, [mine.numpy()], plan, self.num_crop_draws, self.failures)
        when = torch.empty(len(self.targets), dtype=torch.int64)
        when[self._order_by_shard(self._make_generator(self.epoch))] = torch.arange(len(when))
        each = self.num_readers // self.world_size
        lanes = [mine[lane::each] for lane in range(each)]
        reading = [lane[when[lane].argsort()].numpy() for lane in lanes]
        return read_requests(self.samples, reading, plan, self.num_crop_draws, self.failures)

    def finish_epoch(self) -> None:
        """Note that the pass is over.

        Raises:
            Error: it is not; what ended it is told.
        """
        if self.failures:
            raise self.failures.pop()
        super().finish_epoch()

    def iterate_in_order(self) -> Iterator[Batch]:
        """Every image once, in order, neither cropped nor augmented; the training goes on as if nothing had been."""
        every = torch.arange(len(self.targets))
        plan = split_into_batches(every, SEQUENTIAL_BATCH_SIZE)
        reader = self._build_reader(read_requests(self.samples, [every.numpy()], plan, 0))
        for (members, _), found in zip(plan, reader, strict=True):
            if found[1]:
                yield self._move_to_device(found, members)[:2]
            else:  # a stretch that is missing
                self._record_broken(found[2])

    def _order_by_shard(self, generator: torch.Generator) -> Tensor:
        """The samples in the order in which the shards are read, ``(N,)``."""
        order = torch.randperm(len(self.samples.shards), generator=generator)
        return order[torch.from_numpy(self.samples.shard_indices)].argsort(stable=True)

    def _plan_epoch(self, epoch: int) -> tuple[Tensor, Tensor]:
        """For a pass: the order of the images, and the random numbers of their augmentation in that order."""
        generator = self._make_generator(epoch)
        sequence = self._order_by_shard(generator)
        count, lanes = len(sequence), self.num_readers
        buffer = max(1, int(SHUFFLE_BUFFER_BYTES / max(float(self.samples.lengths.mean()), 1.0) / lanes))
        bounds = [count * lane // lanes for lane in range(lanes + 1)]
        each = [
            sequence[low:high][compute_buffer_order(high - low, buffer, generator)][: count // lanes]
            for low, high in pairwise(bounds)
        ]
        order = torch.stack(each, 1).flatten()
        return order, torch.rand(len(order), self.num_draws, generator=generator)


def compute_buffer_order(count: int, buffer_size: int, generator: torch.Generator) -> Tensor:
    """The order in which ``count`` samples leave a buffer, ``(count,)``.

    It is filled with the first ones; then one is drawn and leaves, and the next takes its slot; at the end the rest
    leaves.
    """
    held = min(buffer_size, count)
    slots = torch.cat([torch.arange(held), torch.randint(max(held, 1), (count - held,), generator=generator)])
    by_slot = slots.argsort(stable=True)  # those that were in a slot one after the other
    followed = slots[by_slot[1:]] == slots[by_slot[:-1]]
    order = torch.empty(count, dtype=torch.int64)
    order[by_slot[1:][followed] - held] = by_slot[:-1][followed]  # a sample leaves as the next of its slot comes
    rest = torch.cat([by_slot[:-1][~followed], by_slot[-1:]])
    order[count - held :] = rest[torch.randperm(held, generator=generator)]
    return order


def split_into_batches(indices: Tensor, batch_size: int) -> list[BatchIndices]:
    """The members in batches of a size, without random numbers."""
    return [
        (indices[at : at + batch_size], torch.zeros(batch_size, 0)[: len(indices) - at])
        for at in range(0, len(indices), batch_size)
    ]


class SequentialReader:
    """Samples that are read in one order and taken in another; what was read and not yet taken is held, encoded."""

    def __init__(self, samples: ShardSamples, order: IntArray) -> None:
        self.samples, self.buffer = samples, dict[int, bytes]()
        self.pending = zip(order.tolist(), samples.read_blocks(order), strict=False)
        self.error: Error | None = None

    def open(self) -> None:
        """Read the first sample; an error is kept for whoever asks for one."""
        try:
            self.buffer.update([next(self.pending)])
        except Error as error:
            self.error = error

    def take(self, number: int, draws: list[float]) -> ShardRequest:
        """A sample, with the draws of its crop."""
        if self.error is not None:
            raise self.error
        while number not in self.buffer:
            self.buffer.update([next(self.pending)])
        return *self.samples.locate(number), self.buffer.pop(number), draws


def read_requests(
    samples: ShardSamples,
    orders: Sequence[IntArray],
    plan: Sequence[BatchIndices],
    num_crop_draws: int,
    failures: list[BaseException] | None = None,
) -> Iterator[list[ShardRequest]]:
    """The samples of each batch of a plan with their bytes, read ahead of what is asked for.

    Args:
        samples: where they are.
        orders: for each lane, the samples in the order in which they are read.
        plan: the batches; row ``i`` is from lane ``i % len(reading)``.
        num_crop_draws: how many of the random numbers are those of the crop.
        failures: gets the error that ends the batches early, which is raised where there is no such list: a reader of
            torch that meets an error in what it is asked for cannot be taken down cleanly.
    """

    def batches() -> Iterator[list[ShardRequest]]:
        lanes = [SequentialReader(samples, each) for each in orders if len(each)]
        for some in range(0, len(lanes), OPEN_THREADS):  # since a server far away takes its time for the first byte
            threads = [threading.Thread(target=lane.open, daemon=True) for lane in lanes[some : some + OPEN_THREADS]]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        for members, draws in plan:
            rows = enumerate(zip(members.tolist(), draws[:, :num_crop_draws].tolist(), strict=True))
            yield [lanes[row % len(lanes)].take(number, crop) for row, (number, crop) in rows]

    return prefetch(batches(), failures)


def prefetch(source: Iterator[Any], failures: list[BaseException] | None) -> Iterator[Any]:
    """What the source yields, from a thread a few items ahead; its error is raised, or goes into ``failures``."""
    line: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(MAX_QUEUED_BATCHES)
    left = False

    def put(item: Any, error: BaseException | None) -> None:
        while not left:
            try:
                return line.put((item, error), timeout=0.1)
            except queue.Full:
                pass

    def fill() -> None:
        try:
            for item in source:
                put(item, None)
                if left:
                    return
            put(None, StopIteration())
        except BaseException as error:
            put(None, error)

    # a daemon: a program that ends does not wait for a server
    threading.Thread(target=fill, name="shards", daemon=True).start()
    try:
        while True:
            item, error = line.get()
            if isinstance(error, StopIteration):
                return
            if error is not None and failures is not None:
                failures.append(error)
                return
            if error is not None:
                raise error
            yield item
    finally:
        left = True


def decode_shards(samples: ShardSamples, prepare: SquareTransform) -> Iterator[UInt8Array | Error]:
    """Each sample in turn as the network sees it, ``(H, W, C)`` uint8, or the error; many processes decode."""
    every = torch.arange(len(samples))
    workers = count_workers() if len(samples) >= MIN_PARALLEL_FILES else 0
    wishes = read_requests(samples, [every.numpy()], split_into_batches(every, SEQUENTIAL_BATCH_SIZE), 0)
    for batch in DataLoader(ShardDecoder((), prepare), batch_sampler=wishes, num_workers=workers, collate_fn=list):
        yield from batch

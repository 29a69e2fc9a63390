"""Data loaders with a resumable order of batches."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from fukami.data.augment import Augmentation
from fukami.data.manifest import ManifestItem, file_size, hash_tensors
from fukami.data.random_states import RandomStates, get_random_states, set_random_states
from fukami.errors import Error, UsageError

if TYPE_CHECKING:
    from fukami.engine.runtime import Runtime

Batch = tuple[Tensor, Tensor]
StateDict: TypeAlias = dict[str, Any]  # of a checkpoint: tensors, numbers, strings, and lists and dicts of these
BatchT = TypeVar("BatchT", covariant=True)
SEQUENTIAL_BATCH_SIZE = 256  # batch size of an iteration in order, without training
MAX_COUNT = 10**15  # of epochs, steps, moves and so on in a checkpoint


class Loader:
    """Base class of loaders: everything that the training loop uses of its data.

    A subclass defines ``__len__`` and ``__iter__``; the rest has defaults. By default an interrupted epoch is restarted
    with its initial random states, and the batches already used are skipped.
    """

    labels: tuple[str, ...] = ()  # names of the classes in the data; empty: those of the task
    names: Sequence[str] = ()  # names of the items, for a run's manifest
    position = 0  # number of batches used in the current epoch
    start_states: RandomStates | None = None  # random states at the start of the epoch
    num_skip = 0  # number of batches to skip in a resumed epoch

    def __len__(self) -> int:
        """Number of batches per epoch."""
        raise NotImplementedError(f"{type(self).__name__} does not define __len__")

    def __iter__(self) -> Iterator[object]:
        """Iterate over the batches of one epoch."""
        raise NotImplementedError(f"{type(self).__name__} does not define __iter__")

    def iterate_epoch(self) -> Iterator[object]:
        """Iterate over the batches of one epoch of the training, from its position in a resumed run."""
        num_skip, self.num_skip = self.num_skip, 0
        current_states = get_random_states()
        if num_skip and self.start_states is not None:
            set_random_states(self.start_states)
        self.start_states = get_random_states()
        batches = iter(self)
        for _ in range(num_skip):
            next(batches, None)  # there may be fewer batches than before
        if num_skip:
            set_random_states(current_states)
        self.position = num_skip
        for batch in batches:
            self.position += 1
            yield batch
        self.position = 0

    def setup(self, runtime: "Runtime") -> None:
        """Prepare for the device and the processes of a runtime."""

    def open_files(self, folder: Path) -> None:
        """Open the files in a run's folder whose content is too large for a checkpoint."""

    def delete_files(self) -> None:
        """Delete these files after the training."""

    @property
    def needs_checkpoint(self) -> bool:
        """True if a checkpoint is due."""
        return False

    @property
    def checkpoint_files(self) -> Sequence[Path]:
        """Files to sync to disk before a checkpoint that refers to them."""
        return ()

    def state_dict(self) -> StateDict:
        """Return the position in the epoch and the random states at its start, for a checkpoint."""
        return {"position": self.position, "start_states": self.start_states}

    def load_state_dict(self, state: StateDict) -> None:
        """Restore the position; the next epoch skips the batches before it.

        Raises:
            ValueError: the position is invalid.
        """
        check_counts(state, "position")
        self.num_skip, self.start_states = min(state["position"], len(self)), state["start_states"]

    def iterate_items(self) -> Iterator[ManifestItem] | None:
        """Iterate over all items in order, for a run's manifest; None if they cannot be listed."""
        return None

    def count_samples(self, batch: Any) -> tuple[int, str]:
        """Return the number of samples in this process's part of a batch, and their unit."""
        return next((len(leaf) for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor)), 1), "images"

    def describe_size(self) -> str:
        """Describe the number of samples for the start of a run; empty if there is nothing to count."""
        return f"{len(self):,} batches" if len(self) > 1 else ""

    def compute_wait_fraction(self) -> float | None:
        """Compute the fraction of the time since the last call that the loop waited for data; None: not measured."""
        return None

    def describe_batch(self, step: int) -> str:
        """Describe the batch of training step ``step`` (from 0) for messages."""
        return f"batch {step % len(self) + 1}"


class BatchLoader(Loader, Generic[BatchT]):
    """Base class of the loaders of a labeled dataset: its order in each epoch, and its random numbers.

    Both are functions of the seed and the epoch only. A run can therefore resume within an epoch from its position, and
    several processes share a batch without communication.

    Args:
        targets: ``(N,)`` class indices.
        labels: class names.
        names: image names, for messages.
        batch_size: global batch size, over all processes.
        seed: seed of shuffling and augmentation; the last incomplete batch is dropped. None: each image once, in order.
        balanced: class-balanced sampling: the images of an epoch are sampled with replacement, with equal class
            probabilities.
        augmentation: data augmentation of each training batch, applied on the device.
    """

    def __init__(
        self,
        targets: Tensor,
        labels: tuple[str, ...],
        *,
        batch_size: int,
        names: Sequence[str] = (),
        seed: int | None = None,
        balanced: bool = False,
        augmentation: Augmentation | None = None,
    ) -> None:
        if batch_size < 1:
            raise UsageError(f"the batch size must be at least 1, not {batch_size}")
        self.targets, self.labels, self.names = targets, labels, names
        self.seed, self.balanced, self.augmentation = seed, balanced, augmentation
        self.batch_size = min(batch_size, max(len(targets), 1)) if seed is not None else batch_size
        self.rank, self.world_size = 0, 1
        self.epoch = self.position = 0

    def setup(self, runtime: "Runtime") -> None:
        """Select this process's part of each batch.

        Raises:
            Error: there is no training image.
            UsageError: the batch size is not divisible by the number of processes.
        """
        if self.seed is not None and len(self.targets) == 0:
            raise Error("there is no training image; use a folder with images, or a smaller --val-fraction")
        if self.seed is not None and self.batch_size % runtime.world_size:
            reason = ", all the training images" if self.batch_size == len(self.targets) else ""
            raise UsageError(
                f"{runtime.world_size} processes cannot share a batch of {self.batch_size} evenly{reason}; change "
                "--batch-size"
            )
        self.rank, self.world_size = runtime.rank, runtime.world_size

    def __len__(self) -> int:
        """Number of batches per epoch."""
        return (
            len(self.targets) // self.batch_size if self.seed is not None else -(-len(self.targets) // self.batch_size)
        )

    @property
    def num_random_values(self) -> int:
        """Number of random numbers per image."""
        return self.augmentation.num_random_values if self.augmentation else 0

    def __iter__(self) -> Iterator[BatchT]:
        """Iterate over the batches of one epoch; an interrupted epoch is continued at its position."""
        raise NotImplementedError

    def iterate_epoch(self) -> Iterator[BatchT]:
        """Iterate over the batches of one epoch of the training, from its position in a resumed run."""
        return iter(self)

    def iterate_in_order(self) -> Iterator[BatchT]:
        """Iterate over all readable images, in order and not augmented; the training state does not change."""
        return (batch for _, batch in self.iterate_with_indices())

    def iterate_with_indices(self) -> Iterator[tuple[Tensor, BatchT]]:
        """Iterate as :meth:`iterate_in_order`, with the index of each image ``(N,)``."""
        raise NotImplementedError

    def iterate_local_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over this process's indices ``(n,)`` and random numbers of each remaining batch."""
        order, random_values = self._plan_epoch(self.epoch) if self.seed is not None else self._plan_in_order()
        size, rank, world = self.batch_size, self.rank, self.world_size
        slices = (slice(index * size + rank, (index + 1) * size, world) for index in range(self.position, len(self)))
        return ((order[local], random_values[local]) for local in slices)

    def advance(self) -> None:
        """Count a batch, before it is yielded, so that a checkpoint includes it."""
        self.position += self.seed is not None

    def finish_epoch(self) -> None:
        """Move to the start of the next epoch."""
        self.epoch, self.position = self.epoch + (self.seed is not None), 0

    def state_dict(self) -> StateDict:
        """Return the epoch and the position in it."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: StateDict) -> None:
        """Restore the epoch and the position in it.

        Raises:
            ValueError: a value is not a valid epoch or position.
        """
        check_counts(state, "epoch", "position")
        self.epoch, self.position = state["epoch"], min(state["position"], len(self))  # the dataset may have shrunk

    def iterate_items(self) -> Iterator[ManifestItem]:
        """Iterate over all items in order, for a run's manifest."""
        return map(ManifestItem, self.names, self.iterate_sizes(), self.iterate_annotations())

    def iterate_sizes(self) -> Iterable[int]:
        """Iterate over the file size of each item in bytes, -1 for an item without a file."""
        sizes: Iterable[int] | None = getattr(self.names, "sizes", None)
        return map(file_size, self.names) if sizes is None else sizes

    def iterate_annotations(self) -> Iterable[bytes]:
        """Iterate over the target of each item as bytes."""
        return (row.tobytes() for row in self.targets.cpu().numpy())

    def describe_batch(self, step: int) -> str:
        """Describe the batch of training step ``step`` (from 0) for messages."""
        epoch, batch_index = divmod(step, len(self))
        start = batch_index * self.batch_size
        indices = self._plan_epoch(epoch)[0][start : start + self.batch_size].tolist()
        first = ", ".join(self.names[i] if self.names else f"#{i}" for i in indices[:4])
        ellipsis = " ..." if len(indices) > 4 else ""
        return f"batch {batch_index + 1} of {len(self)} in epoch {epoch + 1} (images {first}{ellipsis})"

    def describe_size(self) -> str:
        """Return the number of samples, as in ``2,934``."""
        return f"{len(self.targets):,}"

    def _make_generator(self, epoch: int) -> torch.Generator:
        """Return the random generator of an epoch, at its start."""
        return torch.Generator().manual_seed(((self.seed or 0) * 1_000_003 + epoch) % 2**63)

    def _plan_epoch(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Plan an epoch: the order ``(N,)`` of the images and their random numbers ``(N, num_random_values)``."""
        generator = self._make_generator(epoch)
        count = len(self.targets)
        if self.balanced:
            targets = self.targets.cpu()
            weights = (1 / targets.bincount().clamp(min=1))[targets]
            cumulative = weights.double().cumsum(0)
            order = torch.searchsorted(cumulative, torch.rand(count, generator=generator).double() * cumulative[-1])
            order = order.clamp(max=count - 1)
        else:
            order = torch.randperm(count, generator=generator)
        return order, torch.rand(count, self.num_random_values, generator=generator)

    def _plan_in_order(self) -> tuple[Tensor, Tensor]:
        return torch.arange(len(self.targets)), torch.zeros(len(self.targets), 0)


class InMemoryLoader(BatchLoader[Batch]):
    """Loader of a labeled dataset in device memory, which shuffles and augments whole batches on the device.

    Args:
        images: ``(N, C, H, W)`` images, uint8 or float32 in 0..255.
        targets, labels, batch_size, names, seed, balanced, augmentation: as for :class:`BatchLoader`.
        image_size: side of the network's input, if the stored images are larger to allow random crops.
    """

    def __init__(
        self,
        images: Tensor,
        targets: Tensor,
        labels: tuple[str, ...],
        *,
        batch_size: int,
        names: Sequence[str] = (),
        seed: int | None = None,
        balanced: bool = False,
        augmentation: Augmentation | None = None,
        image_size: int | None = None,
    ) -> None:
        super().__init__(
            targets, labels, batch_size=batch_size, names=names, seed=seed, balanced=balanced, augmentation=augmentation
        )
        self.images = images
        self.image_size = image_size or images.shape[-1]
        self.features: Tensor | None = None
        self.assemble = self._assemble

    def setup(self, runtime: "Runtime") -> None:
        """Move the dataset to the device, and select this process's part of each batch."""
        super().setup(runtime)
        with runtime.clock("host to device"):
            self.images, self.targets = self.images.to(runtime.device), self.targets.to(runtime.device)
        self.assemble = runtime.capture(self._assemble, enabled=True)

    def set_features(self, features: Tensor) -> None:
        """Replace the images of the batches by features ``(views, N, ...)`` of :meth:`iterate_view`.

        Epoch ``e`` has the view ``e % views``.
        """
        self.features, self.assemble = features, self._assemble

    def iterate_view(self, view: int) -> Iterator[Batch]:
        """Iterate over every image once, in order, augmented as in epoch ``view``."""
        order, random_values = self._plan_epoch(view)
        random_values = random_values[order.argsort()].to(self.images.device)
        for start in range(0, len(self.targets), SEQUENTIAL_BATCH_SIZE):
            stop = min(start + SEQUENTIAL_BATCH_SIZE, len(self.targets))
            indices = torch.arange(start, stop, device=self.images.device)
            yield self._augment(indices, random_values[indices])

    def iterate_items(self) -> Iterator[ManifestItem]:
        """Iterate over all items in order; a single item if the images have no names."""
        if len(self.names):
            return super().iterate_items()
        tensors = [(self.images, self.targets)]
        return (ManifestItem("images in memory", *hash_tensors(*part)) for part in tensors)  # hashed on demand

    def __iter__(self) -> Iterator[Batch]:
        """Iterate over the batches of one epoch, ``(images (N, C, H, W) in 0..255 or features, targets)``.

        An interrupted epoch is continued at its position.
        """
        if self.seed is None:
            for index in range(len(self)):
                local = slice(index * self.batch_size + self.rank, (index + 1) * self.batch_size, self.world_size)
                yield self.images[local], self.targets[local]
            return
        order, random_values = (plan.to(self.images.device) for plan in self._plan_epoch(self.epoch))
        while self.position < len(self):
            local = slice(
                self.position * self.batch_size + self.rank, (self.position + 1) * self.batch_size, self.world_size
            )
            self.advance()
            images, targets = self.assemble((order[local], random_values[local]))
            yield images.clone(), targets.clone()  # a captured CUDA graph writes its outputs to the same memory
        self.finish_epoch()

    def iterate_with_indices(self) -> Iterator[tuple[Tensor, Batch]]:
        """Iterate over all images in order, with their indices."""
        for indices in torch.split(torch.arange(len(self.targets)), SEQUENTIAL_BATCH_SIZE):
            batch = slice(int(indices[0]), int(indices[-1]) + 1)
            yield indices, (self.resize_images(self.images[batch]), self.targets[batch])

    def resize_images(self, images: Tensor) -> Tensor:
        """Resize images ``(N, C, H, W)`` to the network's input size."""
        if self.image_size == images.shape[-1]:
            return images
        resized = F.interpolate(images.float(), (self.image_size, self.image_size), mode="bilinear", antialias=True)
        return resized if images.is_floating_point() else resized.round().to(torch.uint8)

    def _assemble(self, plan: tuple[Tensor, Tensor]) -> Batch:
        indices, random_values = plan
        if self.features is not None:
            return self.features[self.epoch % len(self.features), indices], self.targets[indices]
        return self._augment(indices, random_values)

    def _augment(self, indices: Tensor, random_values: Tensor) -> Batch:
        images, targets = self.images[indices], self.targets[indices]
        return self.augmentation(images, targets, random_values) if self.augmentation else (images, targets)


def check_counts(state: StateDict, *names: str) -> None:
    """Check numbers of epochs, steps, moves and so on in a checkpoint.

    Raises:
        ValueError: one is not an integer from 0 to ``MAX_COUNT``.
    """
    for name in names:
        if type(state[name]) is not int or not 0 <= state[name] <= MAX_COUNT:
            raise ValueError(f"{name} should be an integer from 0 to {MAX_COUNT}, not {state[name]!r:.100}")

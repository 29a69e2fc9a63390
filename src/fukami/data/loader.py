"""Loaders: batches in an order that can be taken up again at any point."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fukami.data.augment import Augmentation
from fukami.data.manifest import ManifestItem, file_size, hash_tensors
from fukami.errors import Error, UsageError

if TYPE_CHECKING:
    from fukami.engine.runtime import Runtime

Batch = tuple[Tensor, Tensor]
SEQUENTIAL_BATCH_SIZE = 256  # images in a batch that is only looked at


class BatchLoader:
    """The order of a labelled data set, pass after pass, and the random numbers of its augmentation.

    Both are functions of the seed and the pass alone, so a run resumes in mid-pass by knowing where it was, and several
    processes share a batch without exchanging anything.

    Args:
        targets: ``(N,)`` class numbers.
        labels: what the classes are called.
        names: what the images are called, for messages.
        batch_size: images in a batch, over all processes.
        seed: shuffle, drop the last incomplete batch and augment, repeatably; None: every image once, in order.
        balanced: each image of a pass is drawn with replacement, all classes equally often.
        augment: applied on the device to each training batch.
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
        augment: Augmentation | None = None,
    ) -> None:
        if batch_size < 1:
            raise UsageError(f"a batch holds at least one image, not {batch_size}")
        self.targets, self.labels, self.names = targets, labels, names
        self.seed, self.balanced, self.augment = seed, balanced, augment
        self.batch_size = min(batch_size, max(len(targets), 1)) if seed is not None else batch_size
        self.rank, self.world_size = 0, 1
        self.epoch = self.position = 0

    def setup(self, runtime: "Runtime") -> None:
        """Take this process's share of each batch.

        Raises:
            Error: there is nothing to train on.
            UsageError: the processes cannot share a batch evenly.
        """
        if self.seed is not None and len(self.targets) == 0:
            raise Error("there is no image to train on; give a folder with images, or a smaller --holdout")
        if self.seed is not None and self.batch_size % runtime.world_size:
            raise UsageError(
                f"{runtime.world_size} processes cannot share a batch of {self.batch_size} evenly; change --batch-size"
            )
        self.rank, self.world_size = runtime.rank, runtime.world_size

    def __len__(self) -> int:
        """Batches in one pass."""
        return (
            len(self.targets) // self.batch_size if self.seed is not None else -(-len(self.targets) // self.batch_size)
        )

    @property
    def num_draws(self) -> int:
        """Random numbers for each image."""
        return self.augment.num_draws if self.augment else 0

    def __iter__(self) -> Iterator[Batch]:
        """The batches of one pass, ``(images (N, C, H, W) in 0..255, targets)``; a pass cut off is finished."""
        raise NotImplementedError

    def iterate_in_order(self) -> Iterator[Batch]:
        """Every image once, in order and not augmented; the training goes on as if nothing had been."""
        raise NotImplementedError

    def iterate_local_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's members of each batch in the rest of the pass, ``(n,)``, and their random numbers."""
        order, draws = self._plan_epoch(self.epoch) if self.seed is not None else self._plan_in_order()
        size, rank, world = self.batch_size, self.rank, self.world_size
        each = (slice(at * size + rank, (at + 1) * size, world) for at in range(self.position, len(self)))
        return ((order[share], draws[share]) for share in each)

    def advance(self) -> None:
        """Note that a batch leaves, before it does, so that a checkpoint counts it as seen."""
        self.position += self.seed is not None

    def finish_epoch(self) -> None:
        """Note that the pass is over."""
        self.epoch, self.position = self.epoch + (self.seed is not None), 0

    def state_dict(self) -> dict[str, Any]:
        """Where the training is."""
        return {"turn": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there.

        Raises:
            ValueError: it is no place in the data.
        """
        for name in ("turn", "position"):
            if type(state[name]) is not int or not 0 <= state[name] < 1 << 62:
                raise ValueError(f"the {name} of the data is {state[name]!r:.100}")
        self.epoch, self.position = state["turn"], min(state["position"], len(self))  # of fewer items than there were

    def list_items(self) -> Iterator[ManifestItem]:
        """Everything it gives, in order, for the manifest of a run; made of :meth:`sizes` and :meth:`annotations`."""
        return map(ManifestItem, self.names, self.list_sizes(), self.list_annotations())

    def list_sizes(self) -> Iterable[int]:
        """Bytes of each item's file, -1 where it has none."""
        known: Iterable[int] | None = getattr(self.names, "sizes", None)
        return map(file_size, self.names) if known is None else known

    def list_annotations(self) -> Iterable[bytes]:
        """The label of each item."""
        return (row.tobytes() for row in self.targets.cpu().numpy())

    def describe_batch(self, step: int) -> str:
        """The batch that training step ``step`` (from 0) saw, in words."""
        turn, at = divmod(step, len(self))
        members = self._plan_epoch(turn)[0][at * self.batch_size : (at + 1) * self.batch_size].tolist()
        first = ", ".join(self.names[i] if self.names else f"#{i}" for i in members[:4])
        return f"batch {at + 1} of {len(self)} in epoch {turn + 1} (images {first}{' ...' if len(members) > 4 else ''})"

    def _make_generator(self, epoch: int) -> torch.Generator:
        """That of a pass, at its beginning."""
        return torch.Generator().manual_seed(((self.seed or 0) * 1_000_003 + epoch) % 2**63)

    def _plan_epoch(self, epoch: int) -> tuple[Tensor, Tensor]:
        """For a pass: the order of the images, and the random numbers of their augmentation in that order."""
        generator = self._make_generator(epoch)
        count = len(self.targets)
        if self.balanced:
            targets = self.targets.cpu()
            chances = (1 / targets.bincount().clamp(min=1))[targets]
            order = chances.double().cumsum(0)
            order = torch.searchsorted(order, torch.rand(count, generator=generator).double() * order[-1])
            order = order.clamp(max=count - 1)
        else:
            order = torch.randperm(count, generator=generator)
        return order, torch.rand(count, self.num_draws, generator=generator)

    def _plan_in_order(self) -> tuple[Tensor, Tensor]:
        return torch.arange(len(self.targets)), torch.zeros(len(self.targets), 0)


class InMemoryLoader(BatchLoader):
    """A labelled data set that lives on the device as bytes and is shuffled and augmented there, in batches.

    Args:
        images: ``(N, C, H, W)`` uint8.
        targets, labels, batch_size, names, seed, balanced, augment: as for :class:`Shuffled`.
        image_size: side of the images that a network sees, where larger ones are kept for the crops that are taken
            of them.
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
        augment: Augmentation | None = None,
        image_size: int | None = None,
    ) -> None:
        super().__init__(
            targets, labels, batch_size=batch_size, names=names, seed=seed, balanced=balanced, augment=augment
        )
        self.images = images
        self.image_size = image_size or images.shape[-1]
        self.assemble = self._assemble

    def setup(self, runtime: "Runtime") -> None:
        """Move the set to the device, and take this process's share of each batch."""
        super().setup(runtime)
        with runtime.clock("host to device"):
            self.images, self.targets = self.images.to(runtime.device), self.targets.to(runtime.device)
        self.assemble = runtime.capture(self._assemble, enabled=True)

    def list_items(self) -> Iterator[ManifestItem]:
        """Everything it gives, in order; one item where nothing has a name."""
        if len(self.names):
            return super().list_items()
        return iter([ManifestItem("images in memory", *hash_tensors(self.images, self.targets))])

    def __iter__(self) -> Iterator[Batch]:
        """The batches of one pass, ``(images (N, C, H, W) in 0..255, targets)``; a pass cut off is finished."""
        if self.seed is None:
            for at in range(len(self)):
                share = slice(at * self.batch_size + self.rank, (at + 1) * self.batch_size, self.world_size)
                yield self.images[share], self.targets[share]
            return
        order, draws = (plan.to(self.images.device) for plan in self._plan_epoch(self.epoch))
        while self.position < len(self):
            share = slice(
                self.position * self.batch_size + self.rank, (self.position + 1) * self.batch_size, self.world_size
            )
            self.advance()
            images, targets = self.assemble((order[share], draws[share]))
            yield images.clone(), targets.clone()  # a captured assembly writes into the same memory each time
        self.finish_epoch()

    def iterate_in_order(self) -> Iterator[Batch]:
        """Every image once, in order and not augmented, in batches; the training goes on as if nothing had been."""
        for at in range(0, len(self.targets), SEQUENTIAL_BATCH_SIZE):
            yield (
                self.resize_images(self.images[at : at + SEQUENTIAL_BATCH_SIZE]),
                self.targets[at : at + SEQUENTIAL_BATCH_SIZE],
            )

    def resize_images(self, images: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` at the size that a network sees."""
        if self.image_size == images.shape[-1]:
            return images
        found = F.interpolate(images.float(), (self.image_size, self.image_size), mode="bilinear", antialias=True)
        return found.round().to(torch.uint8)

    def _assemble(self, plan: tuple[Tensor, Tensor]) -> Batch:
        members, draws = plan
        images, targets = self.images[members], self.targets[members]
        return self.augment(images, targets, draws) if self.augment else (images, targets)

"""Loaders: batches in an order that can be taken up again at any point."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fukami.data.augment import Augmentation
from fukami.errors import Error, UsageError

Batch = tuple[Tensor, Tensor]


class Resident:
    """A labelled data set that lives on the device as bytes and is shuffled and augmented there, in batches.

    Order and augmentation are functions of the seed, the pass and the batch alone, so a run resumes in mid-pass by
    knowing where it was, and several processes share a batch without exchanging anything.

    Args:
        pictures: ``(N, C, H, W)`` uint8.
        targets: ``(N,)`` class numbers.
        labels: what the classes are called.
        names: what the pictures are called, for messages.
        batch: pictures in a batch, over all processes.
        seed: shuffle, drop the last incomplete batch and augment, repeatably; None: every picture once, in order.
        augment: applied on the device to each training batch.
    """

    def __init__(
        self,
        pictures: Tensor,
        targets: Tensor,
        labels: tuple[str, ...],
        *,
        batch: int,
        names: Sequence[str] = (),
        seed: int | None = None,
        augment: Augmentation | None = None,
    ) -> None:
        if batch < 1:
            raise UsageError(f"a batch holds at least one picture, not {batch}")
        if seed is not None and len(pictures) == 0:
            raise Error("there is no picture to train on; give a folder with pictures, or a smaller --holdout")
        self.pictures, self.targets, self.labels, self.names = pictures, targets, labels, names
        self.seed, self.augment = seed, augment
        self.size = min(batch, max(len(pictures), 1)) if seed is not None else batch
        self.rank, self.world = 0, 1
        self.turn = self.position = 0

    def place(self, device: torch.device, rank: int, world: int) -> None:
        """Move the set to the device, and take the share of process ``rank`` of ``world`` in each batch."""
        if self.seed is not None and self.size % world:
            raise UsageError(f"{world} processes cannot share a batch of {self.size} evenly; change --batch")
        self.pictures, self.targets = self.pictures.to(device), self.targets.to(device)
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        """Batches in one pass."""
        return len(self.pictures) // self.size if self.seed is not None else -(-len(self.pictures) // self.size)

    def __iter__(self) -> Iterator[Batch]:
        """The batches of one pass, ``(pictures (N, C, H, W) in 0..255, targets (N,))``; a pass cut off is finished."""
        if self.seed is None:
            for at in range(len(self)):
                share = slice(at * self.size + self.rank, (at + 1) * self.size, self.world)
                yield self.pictures[share], self.targets[share]
            return
        order = self._order(self.turn).to(self.pictures.device)
        while self.position < len(self):
            at = self.position
            self.position += 1  # before the batch leaves, so that a checkpoint counts it as seen
            yield self._batch(order, self.turn, at)
        self.turn, self.position = self.turn + 1, 0

    def state_dict(self) -> dict[str, int]:
        """Where the training is."""
        return {"turn": self.turn, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from there."""
        self.turn, self.position = state["turn"], state["position"]

    def name(self, number: int) -> str:
        """The batch that training step ``number`` (from 0) saw, in words."""
        turn, at = divmod(number, len(self))
        members = self._order(turn)[at * self.size : (at + 1) * self.size].tolist()
        first = ", ".join(self.names[i] if self.names else f"#{i}" for i in members[:4])
        return f"batch {at + 1} of {len(self)} in epoch {turn + 1} (pictures {first}{' ...' if len(members) > 4 else ''})"

    def _order(self, turn: int) -> Tensor:
        return torch.randperm(len(self.pictures), generator=_generator(self.seed or 0, turn))

    def _batch(self, order: Tensor, turn: int, at: int) -> Batch:
        members = order[at * self.size : (at + 1) * self.size][self.rank :: self.world]
        pictures = self.pictures[members]
        if self.augment is not None:
            device = self.pictures.device
            generator = _generator(self.seed or 0, turn, at + 1, device)
            draws = torch.rand(self.size, self.augment.draws, generator=generator, device=device)
            pictures = self.augment(pictures, draws[self.rank :: self.world])
        return pictures, self.targets[members]


def _generator(seed: int, turn: int, batch: int = 0, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of its own for each pass and each batch."""
    return torch.Generator(device).manual_seed(((seed * 1_000_003 + turn) * 1_000_003 + batch) % 2**63)

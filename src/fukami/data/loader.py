"""Loaders: batches in an order that can be taken up again at any point."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fukami.data.augment import Augmentation
from fukami.errors import Error, UsageError

if TYPE_CHECKING:
    from fukami.runtime import Runtime

Batch = tuple[Tensor, Tensor]
EACH = 256  # pictures in a batch that is only looked at


class Resident:
    """A labelled data set that lives on the device as bytes and is shuffled and augmented there, in batches.

    Order and augmentation are functions of the seed and the pass alone, so a run resumes in mid-pass by knowing where
    it was, and several processes share a batch without exchanging anything.

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
        self.pictures, self.targets, self.labels, self.names = pictures, targets, labels, names
        self.seed, self.augment = seed, augment
        self.size = min(batch, max(len(pictures), 1)) if seed is not None else batch
        self.rank, self.world = 0, 1
        self.turn = self.position = 0
        self.assemble = self._assemble

    def place(self, runtime: "Runtime") -> None:
        """Move the set to the device, and take this process's share of each batch."""
        if self.seed is not None and len(self.pictures) == 0:
            raise Error("there is no picture to train on; give a folder with pictures, or a smaller --holdout")
        if self.seed is not None and self.size % runtime.world:
            raise UsageError(f"{runtime.world} processes cannot share a batch of {self.size} evenly; change --batch")
        self.pictures, self.targets = self.pictures.to(runtime.device), self.targets.to(runtime.device)
        self.rank, self.world = runtime.rank, runtime.world
        self.assemble = runtime.fast(self._assemble, static=True)

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
        order, draws = (plan.to(self.pictures.device) for plan in self._plan(self.turn))
        while self.position < len(self):
            share = slice(self.position * self.size + self.rank, (self.position + 1) * self.size, self.world)
            self.position += 1  # before the batch leaves, so that a checkpoint counts it as seen
            pictures, targets = self.assemble((order[share], draws[share]))
            yield pictures.clone(), targets.clone()  # a captured assembly writes into the same memory each time
        self.turn, self.position = self.turn + 1, 0

    def ordered(self) -> Iterator[Batch]:
        """Every picture once, in order and not augmented, in batches; the training goes on as if nothing had been."""
        yield from zip(self.pictures.split(EACH), self.targets.split(EACH), strict=True)

    def state_dict(self) -> dict[str, int]:
        """Where the training is."""
        return {"turn": self.turn, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from there."""
        self.turn, self.position = state["turn"], state["position"]

    def name(self, number: int) -> str:
        """The batch that training step ``number`` (from 0) saw, in words."""
        turn, at = divmod(number, len(self))
        members = self._plan(turn)[0][at * self.size : (at + 1) * self.size].tolist()
        first = ", ".join(self.names[i] if self.names else f"#{i}" for i in members[:4])
        return (
            f"batch {at + 1} of {len(self)} in epoch {turn + 1} (pictures {first}{' ...' if len(members) > 4 else ''})"
        )

    def _plan(self, turn: int) -> tuple[Tensor, Tensor]:
        """For a pass: the order of the pictures, and the random numbers of their augmentation in that order."""
        generator = torch.Generator().manual_seed(((self.seed or 0) * 1_000_003 + turn) % 2**63)
        order = torch.randperm(len(self.pictures), generator=generator)
        return order, torch.rand(len(order), self.augment.draws if self.augment else 0, generator=generator)

    def _assemble(self, plan: tuple[Tensor, Tensor]) -> Batch:
        members, draws = plan
        pictures = self.pictures[members]
        return self.augment(pictures, draws) if self.augment else pictures, self.targets[members]

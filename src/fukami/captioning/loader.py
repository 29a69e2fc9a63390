"""Batches of pictures and the words of a sentence that was said of each; and pictures to say something of."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fukami.data import streaming
from fukami.data.augment import Augmentation
from fukami.data.image_folder import MAX_BROKEN
from fukami.data.labelled_images import DecodedImages
from fukami.data.loader import SEQUENTIAL_BATCH_SIZE, Batch, BatchLoader, InMemoryLoader
from fukami.data.streaming import FileStreamingLoader
from fukami.errors import Error
from fukami.image.transform import SquareTransform

if TYPE_CHECKING:
    from fukami.engine.runtime import Runtime


class FeatureLoader(BatchLoader):
    """What is given in place of the pictures once an encoder that stays as it is has seen each of them."""

    of: Tensor  # the number of the picture of each target
    features: Tensor | None = None  # (P, V, F): of each picture and view of it

    def once(self) -> Iterator[Tensor]:
        """The pictures ``(N, C, H, W)`` in 0..255, each once, in order."""
        raise NotImplementedError

    def replace(self, features: Tensor) -> None:
        """Give features ``(P, V, F)`` from now on, of a view by chance, and no pictures."""
        self.features = features
        self.of = self.of.to(features.device)
        self.targets = self.targets.to(features.device)

    @property
    def draws(self) -> int:
        """Random numbers for each target."""
        return 1 if self.features is not None else super().draws

    def __iter__(self) -> Iterator[Batch]:
        """The batches of one pass, ``(pictures in 0..255 or features, targets)``; a pass cut off is finished."""
        if self.features is None:
            yield from super().__iter__()
            return
        for members, draws in self.shares():
            self.count()
            members = members.to(self.of.device)
            view = (draws.sum(1) * self.features.shape[1]).long().to(self.of.device)  # the first where none is drawn
            yield self.features[self.of[members], view], self.targets[members]
        self.ended()


class CaptionLoader(FeatureLoader, InMemoryLoader):
    """Pictures that live on the device, and a pass over their sentences, each with its picture.

    Args:
        pictures: each once.
        words: the numbers of the words of each sentence ``(S, T)``, -1 behind its end.
        of: the number of the picture of each sentence, ``(S,)``.
        labels: what the words are called.
        batch, seed, augment, size: as for :class:`fukami.data.loader.InMemoryLoader`.
    """

    def __init__(
        self,
        pictures: DecodedImages,
        words: Tensor,
        of: Tensor,
        labels: tuple[str, ...],
        *,
        batch: int,
        seed: int,
        augment: Augmentation | None,
        size: int,
    ) -> None:
        names = [pictures.names[i] for i in of.tolist()]
        super().__init__(
            pictures.pictures, words, labels, batch=batch, names=names, seed=seed, augment=augment, size=size
        )
        self.of = of

    def place(self, runtime: "Runtime") -> None:
        """Move all of it to the device, and take this process's share of each batch."""
        self.of = self.of.to(runtime.device)
        super().place(runtime)

    def once(self) -> Iterator[Tensor]:
        """The pictures, as they are judged on."""
        for at in range(0, len(self.pictures), SEQUENTIAL_BATCH_SIZE):
            yield self.smaller(self.pictures[at : at + SEQUENTIAL_BATCH_SIZE])

    def _assemble(self, plan: tuple[Tensor, Tensor]) -> Batch:
        members, draws = plan
        pictures, words = self.pictures[self.of[members]], self.targets[members]
        return self.augment(pictures, words, draws) if self.augment else (pictures, words)


class StreamingCaptionLoader(FeatureLoader, FileStreamingLoader):
    """The same from files, of which no more are in memory than a batch needs.

    Args:
        files: the pictures, each once.
        words, of, labels: as for :class:`Captioned`.
        prepare, batch, seed, augment, smallest, broken: as for :class:`fukami.data.streaming.FileStreamingLoader`.
    """

    def __init__(
        self,
        files: Sequence[Path],
        words: Tensor,
        of: Tensor,
        labels: tuple[str, ...],
        prepare: SquareTransform,
        *,
        batch: int,
        seed: int,
        augment: Augmentation | None,
        smallest: float | None = None,
        broken: int = MAX_BROKEN,
    ) -> None:
        each = [files[i] for i in of.tolist()]
        super().__init__(
            each, words, labels, prepare, batch=batch, seed=seed, augment=augment, smallest=smallest, broken=broken
        )
        self.files, self.of, self.prepare = files, of, prepare

    def once(self) -> Iterator[Tensor]:
        """The pictures; one that cannot be read is black, and named."""
        size, channels = self.prepare.size, self.prepare.channels
        some: list[Tensor] = []
        for number, found in enumerate(streaming.decode_files(self.files, self.prepare), 1):
            if isinstance(found, Error):
                self._name([str(found)])
                found = np.zeros((size, size, channels), np.uint8)
            some.append(torch.from_numpy(np.ascontiguousarray(found)))
            if len(some) == SEQUENTIAL_BATCH_SIZE or number == len(self.files):
                yield torch.stack(some).permute(0, 3, 1, 2)
                some = []


class CaptionEvalLoader(FeatureLoader, InMemoryLoader):
    """Pictures to be judged on, each with its number ``(N,)`` among all that something was said of.

    Args:
        pictures: each once.
        said: the sentences of each, as lists of words.
        learned: the sentences of the training, their words joined by spaces.
        batch: pictures in a batch.
    """

    def __init__(
        self, pictures: DecodedImages, said: Sequence[Sequence[Sequence[str]]], learned: set[str], *, batch: int
    ) -> None:
        super().__init__(pictures.pictures, pictures.targets, (), batch=batch, names=pictures.names)
        self.said, self.learned, self.of = said, learned, pictures.targets

    def annotations(self) -> Iterable[bytes]:
        """The sentences of each picture."""
        return (json.dumps(own, ensure_ascii=False).encode() for own in self.said)

    def once(self) -> Iterator[Tensor]:
        """The pictures."""
        yield from (pictures for pictures, _ in self.ordered())


def pad_sequences(sentences: Sequence[Sequence[int]], longest: int) -> Tensor:
    """Numbers of words ``(S, T)``, -1 behind the end; of longer ones than ``longest`` the beginning and the end."""
    cut = [each if len(each) <= longest else [*each[: longest - 1], each[-1]] for each in sentences]
    found = torch.full((len(cut), max(map(len, cut))), -1, dtype=torch.long)
    for row, each in zip(found, cut, strict=True):
        row[: len(each)] = torch.tensor(each)
    return found

"""Batches of images and the words of a sentence that was said of each; and images to say something of."""

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
    """What is given in place of the images once an encoder that stays as it is has seen each of them."""

    image_indices: Tensor  # the number of the image of each target
    features: Tensor | None = None  # (P, V, F): of each image and view of it

    def iterate_images(self) -> Iterator[Tensor]:
        """The images ``(N, C, H, W)`` in 0..255, each once, in order."""
        raise NotImplementedError

    def set_features(self, features: Tensor) -> None:
        """Give features ``(P, V, F)`` from now on, of a view by chance, and no images."""
        self.features = features
        self.image_indices = self.image_indices.to(features.device)
        self.targets = self.targets.to(features.device)

    @property
    def num_draws(self) -> int:
        """Random numbers for each target."""
        return 1 if self.features is not None else super().num_draws

    def __iter__(self) -> Iterator[Batch]:
        """The batches of one pass, ``(images in 0..255 or features, targets)``; a pass cut off is finished."""
        if self.features is None:
            yield from super().__iter__()
            return
        for members, draws in self.iterate_local_batches():
            self.advance()
            members = members.to(self.image_indices.device)
            view = (
                (draws.sum(1) * self.features.shape[1]).long().to(self.image_indices.device)
            )  # the first where none is drawn
            yield self.features[self.image_indices[members], view], self.targets[members]
        self.finish_epoch()


class CaptionLoader(FeatureLoader, InMemoryLoader):
    """Images that live on the device, and a pass over their sentences, each with its image.

    Args:
        images: each once.
        word_indices: the numbers of the words of each sentence ``(S, T)``, -1 behind its end.
        image_indices: the number of the image of each sentence, ``(S,)``.
        labels: what the words are called.
        batch_size, seed, augment, size: as for :class:`fukami.data.loader.InMemoryLoader`.
    """

    def __init__(
        self,
        images: DecodedImages,
        word_indices: Tensor,
        image_indices: Tensor,
        labels: tuple[str, ...],
        *,
        batch_size: int,
        seed: int,
        augment: Augmentation | None,
        size: int,
    ) -> None:
        names = [images.names[i] for i in image_indices.tolist()]
        super().__init__(
            images.images,
            word_indices,
            labels,
            batch_size=batch_size,
            names=names,
            seed=seed,
            augment=augment,
            image_size=size,
        )
        self.image_indices = image_indices

    def setup(self, runtime: "Runtime") -> None:
        """Move all of it to the device, and take this process's share of each batch."""
        self.image_indices = self.image_indices.to(runtime.device)
        super().setup(runtime)

    def iterate_images(self) -> Iterator[Tensor]:
        """The images, as they are judged on."""
        for at in range(0, len(self.images), SEQUENTIAL_BATCH_SIZE):
            yield self.resize_images(self.images[at : at + SEQUENTIAL_BATCH_SIZE])

    def _assemble(self, plan: tuple[Tensor, Tensor]) -> Batch:
        members, draws = plan
        images, words = self.images[self.image_indices[members]], self.targets[members]
        return self.augment(images, words, draws) if self.augment else (images, words)


class StreamingCaptionLoader(FeatureLoader, FileStreamingLoader):
    """The same from files, of which no more are in memory than a batch needs.

    Args:
        image_files: the images, each once.
        word_indices, image_indices, labels: as for :class:`Captioned`.
        transform, batch_size, seed, augment, min_area, max_broken: as for
            :class:`fukami.data.streaming.FileStreamingLoader`.
    """

    def __init__(
        self,
        image_files: Sequence[Path],
        word_indices: Tensor,
        image_indices: Tensor,
        labels: tuple[str, ...],
        transform: SquareTransform,
        *,
        batch_size: int,
        seed: int,
        augment: Augmentation | None,
        min_area: float | None = None,
        max_broken: int = MAX_BROKEN,
    ) -> None:
        each = [image_files[i] for i in image_indices.tolist()]
        super().__init__(
            each,
            word_indices,
            labels,
            transform,
            batch_size=batch_size,
            seed=seed,
            augment=augment,
            min_area=min_area,
            max_broken=max_broken,
        )
        self.image_files, self.image_indices, self.transform = image_files, image_indices, transform

    def iterate_images(self) -> Iterator[Tensor]:
        """The images; one that cannot be read is black, and named."""
        size, channels = self.transform.size, self.transform.channels
        some: list[Tensor] = []
        for number, found in enumerate(streaming.decode_files(self.image_files, self.transform), 1):
            if isinstance(found, Error):
                self._record_broken([str(found)])
                found = np.zeros((size, size, channels), np.uint8)
            some.append(torch.from_numpy(np.ascontiguousarray(found)))
            if len(some) == SEQUENTIAL_BATCH_SIZE or number == len(self.image_files):
                yield torch.stack(some).permute(0, 3, 1, 2)
                some = []


class CaptionEvalLoader(FeatureLoader, InMemoryLoader):
    """Images to be judged on, each with its number ``(N,)`` among all that something was said of.

    Args:
        images: each once.
        references: the sentences of each, as lists of words.
        training_captions: the sentences of the training, their words joined by spaces.
        batch_size: images in a batch.
    """

    def __init__(
        self,
        images: DecodedImages,
        references: Sequence[Sequence[Sequence[str]]],
        training_captions: set[str],
        *,
        batch_size: int,
    ) -> None:
        super().__init__(images.images, images.targets, (), batch_size=batch_size, names=images.names)
        self.references, self.training_captions, self.image_indices = references, training_captions, images.targets

    def list_annotations(self) -> Iterable[bytes]:
        """The sentences of each image."""
        return (json.dumps(own, ensure_ascii=False).encode() for own in self.references)

    def iterate_images(self) -> Iterator[Tensor]:
        """The images."""
        yield from (images for images, _ in self.iterate_in_order())


def pad_sequences(sentences: Sequence[Sequence[int]], max_length: int) -> Tensor:
    """Numbers of words ``(S, T)``, -1 behind the end; of longer ones than ``max_length`` the beginning and the end."""
    cut = [each if len(each) <= max_length else [*each[: max_length - 1], each[-1]] for each in sentences]
    found = torch.full((len(cut), max(map(len, cut))), -1, dtype=torch.long)
    for row, each in zip(found, cut, strict=True):
        row[: len(each)] = torch.tensor(each)
    return found

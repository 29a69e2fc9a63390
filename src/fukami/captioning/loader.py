"""Loaders of images and tokenized captions, for training and for evaluation."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fukami.data import streaming
from fukami.data.augment import Augmentation
from fukami.data.image_folder import MAX_UNREADABLE
from fukami.data.loader import SEQUENTIAL_BATCH_SIZE, Batch, BatchLoader, InMemoryLoader
from fukami.data.streaming import FileStreamingLoader
from fukami.errors import Error
from fukami.image.transform import SquareTransform

if TYPE_CHECKING:
    from fukami.data.labeled_images import DecodedImages
    from fukami.engine.runtime import Runtime


class FeatureLoader(BatchLoader[Batch]):
    """Loader that can yield the features of a frozen encoder instead of images."""

    image_indices: Tensor  # image index of each target
    features: Tensor | None = None  # (P, V, F): images, views, features

    def iterate_images(self) -> Iterator[Tensor]:
        """Yield all images in order, in batches ``(N, C, H, W)`` in 0..255."""
        raise NotImplementedError

    def set_features(self, features: Tensor) -> None:
        """Yield features ``(P, V, F)`` from now on instead of images, each of a random view."""
        self.features = features
        self.image_indices = self.image_indices.to(features.device)
        self.targets = self.targets.to(features.device)

    @property
    def num_random_values(self) -> int:
        """Number of random numbers per target."""
        return 1 if self.features is not None else super().num_random_values

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of one epoch, ``(images in 0..255 or features, targets)``; continue an interrupted one."""
        if self.features is None:
            yield from super().__iter__()
            return
        for indices, random_values in self.iterate_local_batches():
            self.advance()
            indices = indices.to(self.image_indices.device)
            # view 0 if there are no random numbers
            views = (random_values.sum(1) * self.features.shape[1]).long().to(self.image_indices.device)
            yield self.features[self.image_indices[indices], views], self.targets[indices]
        self.finish_epoch()


class CaptionLoader(FeatureLoader, InMemoryLoader):
    """Training loader of captions and their images, with the images in device memory.

    Args:
        images: the images, without duplicates.
        token_indices: token indices of each caption ``(S, T)``, padded with -1.
        image_indices: image index of each caption, ``(S,)``.
        labels: the vocabulary.
        batch_size, seed, augmentation, size: as for :class:`fukami.data.loader.InMemoryLoader`.
    """

    def __init__(
        self,
        images: "DecodedImages",
        token_indices: Tensor,
        image_indices: Tensor,
        labels: tuple[str, ...],
        *,
        batch_size: int,
        seed: int,
        augmentation: Augmentation | None,
        size: int,
    ) -> None:
        names = [images.names[i] for i in image_indices.tolist()]
        super().__init__(
            images.images,
            token_indices,
            labels,
            batch_size=batch_size,
            names=names,
            seed=seed,
            augmentation=augmentation,
            image_size=size,
        )
        self.image_indices = image_indices

    def setup(self, runtime: "Runtime") -> None:
        """Move all data to the device, and select this process's part of each batch."""
        self.image_indices = self.image_indices.to(runtime.device)
        super().setup(runtime)

    def iterate_images(self) -> Iterator[Tensor]:
        """Yield all images at the evaluation size."""
        for start in range(0, len(self.images), SEQUENTIAL_BATCH_SIZE):
            yield self.resize_images(self.images[start : start + SEQUENTIAL_BATCH_SIZE])

    def _assemble(self, plan: tuple[Tensor, Tensor]) -> Batch:
        indices, random_values = plan
        images, tokens = self.images[self.image_indices[indices]], self.targets[indices]
        return self.augmentation(images, tokens, random_values) if self.augmentation else (images, tokens)


class StreamingCaptionLoader(FeatureLoader, FileStreamingLoader):
    """Training loader of captions and their images, with the images streamed from files.

    Args:
        image_files: the image files, without duplicates.
        token_indices, image_indices, labels: as for :class:`CaptionLoader`.
        transform, batch_size, seed, augmentation, min_area, max_unreadable: as for
            :class:`fukami.data.streaming.FileStreamingLoader`.
    """

    def __init__(
        self,
        image_files: Sequence[Path],
        token_indices: Tensor,
        image_indices: Tensor,
        labels: tuple[str, ...],
        transform: SquareTransform,
        *,
        batch_size: int,
        seed: int,
        augmentation: Augmentation | None,
        min_area: float | None = None,
        max_unreadable: int = MAX_UNREADABLE,
    ) -> None:
        caption_files = [image_files[i] for i in image_indices.tolist()]
        super().__init__(
            caption_files,
            token_indices,
            labels,
            transform,
            batch_size=batch_size,
            seed=seed,
            augmentation=augmentation,
            min_area=min_area,
            max_unreadable=max_unreadable,
        )
        self.image_files, self.image_indices, self.transform = image_files, image_indices, transform

    def iterate_images(self) -> Iterator[Tensor]:
        """Yield all images; an unreadable one is logged and replaced by a black one, whose captions are not learned."""
        size, channels = self.transform.size, self.transform.channels
        batch: list[Tensor] = []
        for count, image in enumerate(streaming.decode_files(self.image_files, self.transform), 1):
            if isinstance(image, Error):
                self._record_unreadable([str(image)])
                self.targets[self.image_indices == count - 1] = -1
                image = np.zeros((size, size, channels), np.uint8)
            batch.append(torch.from_numpy(np.ascontiguousarray(image)))
            if len(batch) == SEQUENTIAL_BATCH_SIZE or count == len(self.image_files):
                yield torch.stack(batch).permute(0, 3, 1, 2)
                batch = []


class CaptionEvalLoader(FeatureLoader, InMemoryLoader):
    """Evaluation loader of images, each with its index ``(N,)`` into the references.

    Args:
        images: the images.
        references: the reference captions of each image, as lists of tokens.
        training_captions: the training captions, their tokens joined by spaces.
        batch_size: number of images per batch.
    """

    def __init__(
        self,
        images: "DecodedImages",
        references: Sequence[Sequence[Sequence[str]]],
        training_captions: set[str],
        *,
        batch_size: int,
    ) -> None:
        super().__init__(images.images, images.targets, (), batch_size=batch_size, names=images.names)
        self.references, self.training_captions, self.image_indices = references, training_captions, images.targets

    def iterate_annotations(self) -> Iterable[bytes]:
        """Yield the reference captions of each image, encoded as JSON."""
        return (json.dumps(captions, ensure_ascii=False).encode() for captions in self.references)

    def iterate_images(self) -> Iterator[Tensor]:
        """Yield all images."""
        yield from (images for images, _ in self.iterate_in_order())


def pad_sequences(sequences: Sequence[Sequence[int]], max_length: int) -> Tensor:
    """Pad token indices with -1 to ``(S, T)``; longer ones are cut to ``max_length``, keeping the end token."""
    truncated = [
        tokens if len(tokens) <= max_length else [*tokens[: max_length - 1], tokens[-1]] for tokens in sequences
    ]
    padded = torch.full((len(truncated), max(map(len, truncated))), -1, dtype=torch.long)
    for row, tokens in zip(padded, truncated, strict=True):
        row[: len(tokens)] = torch.tensor(tokens)
    return padded

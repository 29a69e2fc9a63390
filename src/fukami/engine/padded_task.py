"""Base class of detection and segmentation tasks: images of any size, padded on the right and below."""

import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fukami.engine.cached_evaluation import CachedEvaluationTask
from fukami.engine.task import ModelSignature, TrainingOptions
from fukami.errors import Error, UsageError, is_out_of_memory
from fukami.image.transform import ResizeTransform

if TYPE_CHECKING:
    from fukami.data.samples import PaddedBatch
    from fukami.engine.runtime import Runtime

SIZE_DIVISOR = 32  # the sides of a padded image are multiples of this, in pixels
PREDICT_BATCH_SIZE = 8  # maximum number of images per prediction batch


class PaddedTask(CachedEvaluationTask):
    """Task whose network takes padded images, whose sides are multiples of 32.

    Args:
        model: network of normalized, padded images.
        labels: names of the classes.
        prepare: resizes and normalizes the images.
        options: optimizer, lr_schedule, epochs, eval_every, accumulate and clip_norm, as for :class:`fukami.Task`.
    """

    def __init__(
        self, model: nn.Module, labels: tuple[str, ...], prepare: ResizeTransform, **options: Unpack[TrainingOptions]
    ) -> None:
        super().__init__(model, **options)
        self.labels, self.prepare = labels, prepare

    def setup(self, runtime: "Runtime") -> None:
        """Move the task to the device and prepare it for training."""
        super().setup(runtime)
        mean, std = (255 * torch.tensor(value).view(-1, 1, 1) for value in (self.prepare.mean, self.prepare.std))
        self.mean, self.std = mean.to(runtime.device), std.to(runtime.device)

    def build_padded_signature(self, kind: Literal["detector", "segmenter"], output: str) -> ModelSignature:
        """Build the signature of a network of this ``kind``; ``output`` describes the outputs in words."""
        padding = "the sides are multiples of 32, the values 0 to the right of the image and below it"
        metadata = {
            "preprocessing": json.dumps({**self.prepare.describe(), "padding": padding}),
            "labels": json.dumps(self.labels, ensure_ascii=False),
            "output": output,
        }
        return ModelSignature(kind, (3, 4 * SIZE_DIVISOR, 6 * SIZE_DIVISOR), metadata)

    def move_to_device(self, batch: "PaddedBatch") -> "PaddedBatch":
        """Return the batch on the device."""
        return type(batch)(*(value.to(self.runtime.device, non_blocking=True) for value in batch))

    def normalize_images(self, images: Tensor, sizes: Tensor) -> Tensor:
        """Normalize images ``(N, 3, H, W)`` in 0..255, and set the padding beyond their sizes ``(N, 2)`` to 0."""
        across = torch.arange(images.shape[3], device=images.device)
        down = torch.arange(images.shape[2], device=images.device).unsqueeze(1)
        height, width = sizes.view(-1, 2, 1, 1, 1).unbind(1)
        normalized = ((images - self.mean) / self.std) * ((down < height) & (across < width))
        return normalized.contiguous(memory_format=torch.channels_last)

    def get_class_indices(self, labels: tuple[str, ...]) -> "np.typing.NDArray[np.int64]":
        """Return the task's index of each class in ``labels``.

        Raises:
            UsageError: the task does not have one of the classes.
        """
        unknown = [label for label in labels if label not in self.labels]
        if unknown:
            known = ", ".join(self.labels[:20])
            raise UsageError(f"the data have classes that the run does not have: {', '.join(unknown)}; it has {known}")
        return np.array([self.labels.index(label) for label in labels], np.int64)

    @torch.inference_mode()
    def predict(self, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """Predict each image: ``file``, ``width`` and ``height``, and the result of :meth:`predict_batch`.

        ``inputs`` are paths, PIL images or arrays as :func:`fukami.image.io.read_image` takes them. An image that
        cannot be read yields ``{"file", "error"}``.
        """
        self.model.eval()
        predictions: list[dict[str, Any]] = []
        for start in range(0, len(inputs), PREDICT_BATCH_SIZE):
            loaded = [self.load_image(source) for source in inputs[start : start + PREDICT_BATCH_SIZE]]
            for _, group in groupby(
                zip(inputs[start : start + PREDICT_BATCH_SIZE], loaded, strict=True), key=_get_batch_key
            ):
                sources, images = zip(*group, strict=True)
                if isinstance(images[0], Error):
                    results = [{"error": str(error)} for error in images]
                else:
                    sides = {"width": images[0].shape[2], "height": images[0].shape[1]}
                    results = [sides | result for result in self.predict_within_memory(sources, images)]
                for source, result in zip(sources, results, strict=True):
                    predictions.append(({"file": str(source)} if isinstance(source, str | Path) else {}) | result)
        return predictions

    def load_image(self, source: Any) -> Tensor | Error:
        """Read an image as ``(3, h, w)`` uint8, or return the error."""
        try:
            return self.prepare.read_image(source)
        except Error as error:
            return error

    def predict_within_memory(self, sources: Sequence[Any], images: Sequence[Tensor]) -> list[dict[str, Any]]:
        """Predict images of one size, in one batch, or one by one if the batch runs out of memory."""
        try:
            return self.predict_batch(torch.stack(list(images)))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        if len(images) > 1:
            pairs = zip(sources, images, strict=True)
            return [result for source, image in pairs for result in self.predict_within_memory([source], [image])]
        name = str(sources[0]) if isinstance(sources[0], str | Path) else "the input image"
        return [{"error": f"{name} needs more memory than is available; make it smaller"}]

    def predict_batch(self, images: Tensor) -> list[dict[str, Any]]:
        """Predict a batch of images ``(N, 3, h, w)`` uint8: one dict per image."""
        raise NotImplementedError(f"{type(self).__name__} does not define predict_batch(images)")

    def resize_and_pad(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Resize images of one size ``(N, 3, h, w)`` uint8 and pad them; also return sizes ``(N, 2)``."""
        resized = torch.stack([self.prepare(image) for image in images.to(self.runtime.device)])
        sizes = torch.tensor([resized.shape[-2:]] * len(resized), device=resized.device, dtype=torch.float32)
        return F.pad(resized, (0, -resized.shape[-1] % SIZE_DIVISOR, 0, -resized.shape[-2] % SIZE_DIVISOR)), sizes


def _get_batch_key(pair: tuple[Any, Tensor | Error]) -> tuple[int, ...]:
    """Return the key that images of one batch have in common: their shape."""
    return () if isinstance(pair[1], Error) else tuple(pair[1].shape)

"""What detection and segmentation share: images of any shape, each in the upper left corner of a frame."""

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

SIZE_DIVISOR = 32  # pixels of which the sides of a frame are multiples
PREDICT_BATCH_SIZE = 8  # images that are answered at once


class PaddedTask(CachedEvaluationTask):
    """A network that is given images in frames, whose sides are multiples of 32.

    Args:
        model: of normalised frames.
        labels: what the classes are called.
        prepare: to what size an image is brought, and how it is normalised; it travels with the task.
        options: optimizer, lr_schedule, epochs, eval_every, accumulate and clip_norm, as for :class:`fukami.Task`.
    """

    def __init__(
        self, model: nn.Module, labels: tuple[str, ...], prepare: ResizeTransform, **options: Unpack[TrainingOptions]
    ) -> None:
        super().__init__(model, **options)
        self.labels, self.prepare = labels, prepare

    def setup(self, runtime: "Runtime") -> None:
        """Move to the device and make ready to train."""
        super().setup(runtime)
        mean, std = (255 * torch.tensor(value).view(-1, 1, 1) for value in (self.prepare.mean, self.prepare.std))
        self.mean, self.std = mean.to(runtime.device), std.to(runtime.device)

    def build_frame_signature(self, kind: Literal["detector", "segmenter"], answer: str) -> ModelSignature:
        """The signature of a network of this ``kind``, with what its ``answer`` is in words."""
        frame = "the frame's sides are multiples of 32, its values 0 to the right of the image and below it"
        about = {
            "preprocessing": json.dumps({**self.prepare.describe(), "frame": frame}),
            "labels": json.dumps(self.labels, ensure_ascii=False),
            "answer": answer,
        }
        return ModelSignature(kind, (3, 4 * SIZE_DIVISOR, 6 * SIZE_DIVISOR), about)

    def move_to_device(self, batch: "PaddedBatch") -> "PaddedBatch":
        """The batch on the device."""
        return type(batch)(*(value.to(self.runtime.device, non_blocking=True) for value in batch))

    def normalize_images(self, images: Tensor, sizes: Tensor) -> Tensor:
        """Images ``(N, 3, H, W)`` in 0..255 as the network takes them, 0 beyond their sizes ``(N, 2)``."""
        across = torch.arange(images.shape[3], device=images.device)
        down = torch.arange(images.shape[2], device=images.device).unsqueeze(1)
        height, width = sizes.view(-1, 2, 1, 1, 1).unbind(1)
        found = ((images - self.mean) / self.std) * ((down < height) & (across < width))
        return found.contiguous(memory_format=torch.channels_last)

    def get_class_indices(self, labels: tuple[str, ...]) -> "np.typing.NDArray[np.int64]":
        """Our number of each of the classes ``labels``.

        Raises:
            UsageError: one of them is none of ours.
        """
        unknown = [label for label in labels if label not in self.labels]
        if unknown:
            ours = ", ".join(self.labels[:20])
            raise UsageError(f"the data have classes that the run does not know: {', '.join(unknown)}; it knows {ours}")
        return np.array([self.labels.index(label) for label in labels], np.int64)

    @torch.inference_mode()
    def predict(self, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """An answer for each image, with ``file``, ``width`` and ``height``; :meth:`predict_batch` says what else.

        ``inputs`` are paths, PIL images or arrays as :func:`fukami.image.io.read_image` takes them. An image that
        cannot be read yields ``{"file", "error"}``.
        """
        self.model.eval()
        answers: list[dict[str, Any]] = []
        for at in range(0, len(inputs), PREDICT_BATCH_SIZE):
            chunk = [self.load_image(source) for source in inputs[at : at + PREDICT_BATCH_SIZE]]
            for _, alike in groupby(zip(inputs[at : at + PREDICT_BATCH_SIZE], chunk, strict=True), key=_get_batch_key):
                sources, images = zip(*alike, strict=True)
                if isinstance(images[0], Error):
                    found = [{"error": str(error)} for error in images]
                else:
                    sides = {"width": images[0].shape[2], "height": images[0].shape[1]}
                    found = [sides | answer for answer in self.predict_within_memory(sources, images)]
                for source, answer in zip(sources, found, strict=True):
                    answers.append(({"file": str(source)} if isinstance(source, str | Path) else {}) | answer)
        return answers

    def load_image(self, source: Any) -> Tensor | Error:
        """The image, ``(3, h, w)`` uint8, or why there is none."""
        try:
            return self.prepare.read_image(source)
        except Error as error:
            return error

    def predict_within_memory(self, sources: Sequence[Any], images: Sequence[Tensor]) -> list[dict[str, Any]]:
        """The answers for images of one size; where they take too much memory at once, for each alone."""
        try:
            return self.predict_batch(torch.stack(list(images)))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        if len(images) > 1:
            pairs = zip(sources, images, strict=True)
            return [answer for source, image in pairs for answer in self.predict_within_memory([source], [image])]
        name = str(sources[0]) if isinstance(sources[0], str | Path) else "the image given"
        return [{"error": f"{name} needs more memory than there is; make it smaller"}]

    def predict_batch(self, images: Tensor) -> list[dict[str, Any]]:
        """What there is to say of each of the images ``(N, 3, h, w)`` uint8."""
        raise NotImplementedError(f"{type(self).__name__} does not define predict_batch(images)")

    def resize_and_pad(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images of one size ``(N, 3, h, w)`` uint8 at their size in frames, and these sizes ``(N, 2)``."""
        resized = torch.stack([self.prepare(image) for image in images.to(self.runtime.device)])
        inside = torch.tensor([resized.shape[-2:]] * len(resized), device=resized.device, dtype=torch.float32)
        return F.pad(resized, (0, -resized.shape[-1] % SIZE_DIVISOR, 0, -resized.shape[-2] % SIZE_DIVISOR)), inside


def _get_batch_key(pair: tuple[Any, Tensor | Error]) -> tuple[int, ...]:
    """What images have to share to be answered at once."""
    return () if isinstance(pair[1], Error) else tuple(pair[1].shape)

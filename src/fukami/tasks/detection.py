"""Detection: where is what in the picture?"""

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from fukami import average_precision, image
from fukami.average_precision import Detections
from fukami.errors import Error, UsageError
from fukami.numerics import half
from fukami.ops.regions import Found, Samples, Truth
from fukami.ops.rematerialise import rematerialise
from fukami.preparation import Scaled
from fukami.task import Interface, Regime, Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fukami.data.boxes import Batch
    from fukami.runtime import Runtime

STEP = 32  # pixels of which the sides of a frame are multiples
CHUNK = 8  # pictures that are answered at once
BETA = 1 / 9  # where the smooth absolute error of a box becomes straight
SHOWN = 0.5  # score from which on an answer is drawn


class Detection(Task):
    """Boxes of the classes ``labels``, by a network of two stages.

    Args:
        model: as :class:`fukami.models.faster_rcnn.FasterRCNN` is called: normalised pictures, their sizes and what is
            in them to the samples of both stages; without the latter to what it found.
        labels: what the classes are called.
        prepare: to what size a picture is brought, and how it is normalised; it travels with the task.
        rematerialise: keep the activations between the blocks of the backbone alone, and compute the others again.
        regime: optimizer, decay, epochs, judge_every, accumulate and clip, as for :class:`fukami.Task`.
    """

    def __init__(
        self,
        model: nn.Module,
        labels: tuple[str, ...],
        prepare: Scaled,
        *,
        rematerialise: bool = False,
        **regime: Unpack[Regime],
    ) -> None:
        super().__init__(model, **regime)
        self.labels, self.prepare, self.rematerialise = labels, prepare, rematerialise
        self.latest: tuple[Any, Detections] | None = None  # what was evaluated last, and what was found

    def setup(self, runtime: "Runtime") -> None:
        """Move to the device and make ready to train."""
        if self.rematerialise:
            rematerialise(self.model.backbone)  # type: ignore[arg-type]
        super().setup(runtime)
        mean, std = (255 * torch.tensor(value).view(-1, 1, 1) for value in (self.prepare.mean, self.prepare.std))
        self.mean, self.std = mean.to(runtime.device), std.to(runtime.device)

    def interface(self) -> Interface:
        """A picture in a frame; how it is prepared, the labels, and what the answer is, as JSON and words."""
        frame = "the frame's sides are multiples of 32, its values 0 to the right of the picture and below it"
        about = {
            "preprocessing": json.dumps({**self.prepare.describe(), "frame": frame}),
            "labels": json.dumps(self.labels, ensure_ascii=False),
            "answer": "boxes: left, top, right, bottom in pixels of the frame; classes: numbers of labels; best first",
        }
        return Interface("detector", (3, 4 * STEP, 6 * STEP), about)

    def compile(self, on: bool) -> None:
        """Compile the parts whose shapes are fixed, the backbone and the layers that see a region, or none."""
        for network in self.networks():
            for name in ("backbone", "roi_heads.box_head"):
                part = network.get_submodule(name)
                if on:
                    part.compile()
                else:
                    part._compiled_call_impl = None

    def networks(self) -> list[nn.Module]:
        """Those that take part in training and in judging."""
        return [self.model]

    def normalised(self, pictures: Tensor, sizes: Tensor) -> Tensor:
        """Pictures ``(N, 3, H, W)`` in 0..255 as the network takes them, 0 beyond their sizes ``(N, 2)``."""
        across = torch.arange(pictures.shape[3], device=pictures.device)
        down = torch.arange(pictures.shape[2], device=pictures.device).unsqueeze(1)
        height, width = sizes.view(-1, 2, 1, 1, 1).unbind(1)
        found = ((pictures - self.mean) / self.std) * ((down < height) & (across < width))
        return found.contiguous(memory_format=torch.channels_last)

    def loss(self, batch: "Batch") -> tuple[Tensor, dict[str, Tensor]]:
        """The losses of both stages: is there an object, which one, and where are its borders (equation 1)."""
        first, second = self.replica(*self.asked(batch))
        losses = {
            **self.losses(first, "objectness", "anchor_boxes"),
            **self.losses(second, "classification", "region_boxes"),
        }
        return torch.stack(list(losses.values())).sum(), {name: loss.detach() for name, loss in losses.items()}

    def asked(self, batch: "Batch") -> tuple[Tensor, Tensor, Truth]:
        """What the network is called with in training, on the device."""
        batch = type(batch)(*(value.to(self.runtime.device, non_blocking=True) for value in batch))
        truth = Truth(batch.boxes, batch.classes, batch.kinds > 0, batch.draws)
        return self.normalised(batch.pictures, batch.sizes), batch.sizes, truth

    def losses(self, samples: Samples, what: str, where: str) -> dict[str, Tensor]:
        """Cross entropy, and smooth absolute error of the boxes of objects, both over the samples of all processes."""
        count = self.runtime.sum(samples.there.sum()).clamp(min=1) / self.runtime.world
        if samples.scores.ndim == 2:
            wrong = F.binary_cross_entropy_with_logits(samples.scores, samples.targets.float(), reduction="none")
        else:
            wrong = F.cross_entropy(samples.scores.transpose(1, 2), samples.targets, reduction="none")
        off = F.smooth_l1_loss(samples.deltas, samples.goals, reduction="none", beta=BETA).sum(2)
        objects = samples.there & (samples.targets > 0)
        return {
            what: torch.where(samples.there, wrong, 0).sum() / count,
            where: torch.where(objects, off, 0).sum() / count,
        }

    def detect(self, pictures: Tensor, sizes: Tensor) -> list[Found]:
        """What is in pictures ``(N, 3, H, W)`` in 0..255, in pixels of the frame."""
        with half.arithmetic(self.model):
            kind = next(self.model.parameters()).dtype
            found: list[Found] = self.model(self.normalised(pictures, sizes).to(kind), sizes)
        return found

    def answer(self, batch: "Batch") -> list[Found]:
        """What is found in the pictures of a batch, in pixels of the frame."""
        return self.detect(batch.pictures.to(self.runtime.device), batch.sizes.to(self.runtime.device))

    @torch.inference_mode()
    def evaluate(self, batches: Iterable["Batch"]) -> dict[str, Any]:
        """``map`` of PASCAL VOC at an IoU of 0.5, the APs of COCO, ``count`` and the AP of each class.

        Classes are matched by name where ``batches`` has ``labels``.

        Raises:
            Error: there is no object to judge, or the data have a class that the task does not know.
        """
        found = self.judge(batches)
        self.latest = batches, found
        return found.metrics()

    def updated(self) -> None:
        """Know that what was found is found no more."""
        self.latest = None

    def judge(self, batches: Iterable["Batch"]) -> Detections:
        """Everything that was found in ``batches``, and what is there, over all processes."""
        number = self._numbers(getattr(batches, "labels", self.labels))
        found = Detections(self.labels)
        modes = [(module, module.training) for network in self.networks() for module in network.modules()]
        for network in self.networks():
            network.eval()
        for batch in batches:
            if len(batch.pictures) == 0:  # this process's share of the last batch
                continue
            answers = self.answer(batch)
            ratios = (batch.originals.cpu() / batch.sizes.cpu()).flip(1).repeat(1, 2)
            there = batch.classes.cpu() >= 0
            for i, answer in enumerate(answers):
                truth = (
                    (batch.boxes[i].cpu() * ratios[i])[there[i]].numpy(),
                    number[batch.classes[i].cpu()[there[i]].numpy()],
                    batch.kinds[i].cpu()[there[i]].numpy(),
                )
                boxes, classes, scores = (value.float().cpu() for value in answer)
                seen = average_precision.Found((boxes * ratios[i]).numpy(), classes.numpy(), scores.numpy())
                found.add(int(batch.numbers[i]), seen, average_precision.Truth(*truth))
        for module, mode in modes:
            module.training = mode
        found.merge(self.runtime.gather(found))
        return found

    def _numbers(self, labels: tuple[str, ...]) -> "np.typing.NDArray[np.int64]":
        """Our number of each of the classes ``labels``."""
        unknown = [label for label in labels if label not in self.labels]
        if unknown:
            ours = ", ".join(self.labels[:20])
            raise UsageError(f"the data have classes that the run does not know: {', '.join(unknown)}; it knows {ours}")
        return np.array([self.labels.index(label) for label in labels], np.int64)

    @torch.inference_mode()
    def predict(self, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """What is in each picture, and where: ``file``, ``width``, ``height`` and ``boxes``, best first.

        Each of the ``boxes`` is ``{"label", "score", "box": [left, top, right, bottom]}`` in pixels of the upright
        picture. ``inputs`` are paths, PIL pictures or arrays as :func:`fukami.image.read` takes them. A picture that
        cannot be read yields ``{"file", "error"}``.
        """
        self.model.eval()
        answers: list[dict[str, Any]] = []
        for at in range(0, len(inputs), CHUNK):
            chunk = [self.see(source) for source in inputs[at : at + CHUNK]]
            for _, alike in groupby(zip(inputs[at : at + CHUNK], chunk, strict=True), key=_shape):
                sources, pictures = zip(*alike, strict=True)
                if isinstance(pictures[0], Error):
                    answers += [
                        {"file": str(source), "error": str(e)} for source, e in zip(sources, pictures, strict=True)
                    ]
                else:
                    answers += self._answers(sources, torch.stack(pictures))
        return answers

    def see(self, source: Any) -> Tensor | Error:
        """The picture, ``(3, h, w)`` uint8, or why there is none."""
        try:
            return self.prepare.open(source)
        except Error as error:
            return error

    def _answers(self, sources: Sequence[Any], pictures: Tensor) -> list[dict[str, Any]]:
        """Of pictures ``(N, 3, h, w)`` of one size."""
        height, width = pictures.shape[-2:]
        resized = torch.stack([self.prepare(picture) for picture in pictures.to(self.runtime.device)])
        inside = torch.tensor([resized.shape[-2:]] * len(resized), device=resized.device, dtype=torch.float32)
        frame = F.pad(resized, (0, -resized.shape[-1] % STEP, 0, -resized.shape[-2] % STEP))
        ratio = torch.tensor([width, height] * 2) / inside[0].cpu().flip(0).repeat(2)
        answers = []
        for source, found in zip(sources, self.detect(frame, inside), strict=True):
            file = {"file": str(source)} if isinstance(source, str | Path) else {}
            boxes = (found.boxes.float().cpu() * ratio).tolist()
            rows = zip(boxes, found.classes.tolist(), found.scores.tolist(), strict=True)
            seen = [
                {"label": self.labels[number], "score": round(score, 4), "box": [round(side, 2) for side in box]}
                for box, number, score in rows
            ]
            answers.append({**file, "width": width, "height": height, "boxes": seen})
        return answers

    def draw(self, source: Any, answer: dict[str, Any]) -> Image.Image:
        """The picture with the boxes whose score is at least a half."""
        shown = [box for box in answer["boxes"] if box["score"] >= SHOWN]
        return image.draw_boxes(image.read(source), shown, self.labels)

    @torch.inference_mode()
    def figures(self, batches: Iterable["Batch"]) -> "Iterator[tuple[str, Figure]]":
        """Precision and recall, what goes wrong, and the worst of it as pictures."""
        from fukami import figures_boxes

        found = self.latest[1] if self.latest and self.latest[0] is batches else self.judge(batches)
        if self.runtime.main:
            samples = getattr(batches, "samples", ())
            yield from figures_boxes.judgement(found, lambda number: image.read(samples[number].source))


def _shape(pair: tuple[Any, Tensor | Error]) -> tuple[int, ...]:
    """What pictures have to share to be answered at once."""
    return () if isinstance(pair[1], Error) else tuple(pair[1].shape)

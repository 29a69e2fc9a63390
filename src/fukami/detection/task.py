"""Detection: where is what in the picture?"""

import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Unpack

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from fukami.detection import metrics as detection_metrics
from fukami.detection.metrics import DetectionResults
from fukami.engine.padded_task import SIZE_DIVISOR, PaddedTask
from fukami.engine.task import ModelSignature, TrainingOptions
from fukami.image import io as image_io
from fukami.image.transform import ResizeTransform
from fukami.layers.activation_checkpointing import enable_activation_checkpointing
from fukami.layers.detection_types import Detections, GroundTruth, SampledBoxes
from fukami.quantization import half_precision

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fukami.data.samples import PaddedBatch
    from fukami.engine.runtime import Runtime

SMOOTH_L1_BETA = 1 / 9  # where the smooth absolute error of a box becomes straight
MIN_DRAWN_SCORE = 0.5  # score from which on an answer is drawn


class DetectionTask(PaddedTask):
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
        prepare: ResizeTransform,
        *,
        rematerialise: bool = False,
        **regime: Unpack[TrainingOptions],
    ) -> None:
        super().__init__(model, labels, prepare, **regime)
        self.rematerialise = rematerialise

    def setup(self, runtime: "Runtime") -> None:
        """Move to the device and make ready to train."""
        if self.rematerialise:
            enable_activation_checkpointing(self.model.backbone)  # type: ignore[arg-type]
        super().setup(runtime)

    def interface(self) -> ModelSignature:
        """A picture in a frame; how it is prepared, the labels, and what the answer is, as JSON and words."""
        frame = "the frame's sides are multiples of 32, its values 0 to the right of the picture and below it"
        about = {
            "preprocessing": json.dumps({**self.prepare.describe(), "frame": frame}),
            "labels": json.dumps(self.labels, ensure_ascii=False),
            "answer": "boxes: left, top, right, bottom in pixels of the frame; classes: numbers of labels; best first",
        }
        return ModelSignature("detector", (3, 4 * SIZE_DIVISOR, 6 * SIZE_DIVISOR), about)

    def compile(self) -> None:
        """Compile the parts whose shapes are fixed, the backbone and the layers that see a region."""
        for network in self.networks():
            for name in ("backbone", "roi_heads.box_head"):
                part = network.get_submodule(name)
                part._compiled_call_impl = self.runtime.compile(part._call_impl)

    def loss(self, batch: "PaddedBatch") -> tuple[Tensor, dict[str, Tensor]]:
        """The losses of both stages: is there an object, which one, and where are its borders (equation 1)."""
        first, second = self.replica(*self.asked(batch))
        losses = {
            **self.losses(first, "objectness", "anchor_boxes"),
            **self.losses(second, "classification", "region_boxes"),
        }
        return torch.stack(list(losses.values())).sum(), {name: loss.detach() for name, loss in losses.items()}

    def asked(self, batch: "PaddedBatch") -> tuple[Tensor, Tensor, GroundTruth]:
        """What the network is called with in training, on the device."""
        batch = self.moved(batch)
        truth = GroundTruth(batch.boxes, batch.classes, batch.kinds > 0, batch.draws)
        return self.normalised(batch.pictures, batch.sizes), batch.sizes, truth

    def losses(self, samples: SampledBoxes, what: str, where: str) -> dict[str, Tensor]:
        """Cross entropy, and smooth absolute error of the boxes of objects, both over the samples of all processes."""
        count = self.runtime.sum(samples.there.sum()).clamp(min=1) / self.runtime.world
        if samples.scores.ndim == 2:
            wrong = F.binary_cross_entropy_with_logits(samples.scores, samples.targets.float(), reduction="none")
        else:
            wrong = F.cross_entropy(samples.scores.transpose(1, 2), samples.targets, reduction="none")
        off = F.smooth_l1_loss(samples.deltas, samples.goals, reduction="none", beta=SMOOTH_L1_BETA).sum(2)
        objects = samples.there & (samples.targets > 0)
        return {
            what: torch.where(samples.there, wrong, 0).sum() / count,
            where: torch.where(objects, off, 0).sum() / count,
        }

    def detect(self, pictures: Tensor, sizes: Tensor) -> list[Detections]:
        """What is in pictures ``(N, 3, H, W)`` in 0..255, in pixels of the frame."""
        with half_precision.enable_float32_fallback(self.model):
            kind = next(self.model.parameters()).dtype
            found: list[Detections] = self.model(self.normalised(pictures, sizes).to(kind), sizes)
        return found

    def answer(self, batch: "PaddedBatch") -> list[Detections]:
        """What is found in the pictures of a batch, in pixels of the frame."""
        return self.detect(batch.pictures.to(self.runtime.device), batch.sizes.to(self.runtime.device))

    def judge(self, batches: Iterable["PaddedBatch"]) -> DetectionResults:
        """Everything that was found in ``batches``, and what is there, over all processes."""
        number = self.numbers(getattr(batches, "labels", self.labels))
        found = DetectionResults(self.labels)
        with self.answering():
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
                    seen = detection_metrics.Prediction((boxes * ratios[i]).numpy(), classes.numpy(), scores.numpy())
                    found.add(int(batch.numbers[i]), seen, detection_metrics.GroundTruth(*truth))
        found.merge(self.runtime.gather(found))
        return found

    def answers(self, pictures: Tensor) -> list[dict[str, Any]]:
        """What is in each picture, and where: ``boxes``, best first.

        Each of them is ``{"label", "score", "box": [left, top, right, bottom]}`` in pixels of the upright picture.
        """
        height, width = pictures.shape[-2:]
        frame, inside = self.framed(pictures)
        ratio = torch.tensor([width, height] * 2) / inside[0].cpu().flip(0).repeat(2)
        answers = []
        for found in self.detect(frame, inside):
            boxes = (found.boxes.float().cpu() * ratio).tolist()
            rows = zip(boxes, found.classes.tolist(), found.scores.tolist(), strict=True)
            seen = [
                {"label": self.labels[number], "score": round(score, 4), "box": [round(side, 2) for side in box]}
                for box, number, score in rows
            ]
            answers.append({"boxes": seen})
        return answers

    def draw(self, source: Any, answer: dict[str, Any]) -> Image.Image:
        """The picture with the boxes whose score is at least a half."""
        shown = [box for box in answer["boxes"] if box["score"] >= MIN_DRAWN_SCORE]
        return image_io.draw_boxes(image_io.read_image(source), shown, self.labels)

    @torch.inference_mode()
    def figures(self, batches: Iterable["PaddedBatch"]) -> "Iterator[tuple[str, Figure]]":
        """Precision and recall, what goes wrong, and the worst of it as pictures."""
        from fukami.detection import plots as detection_plots

        found: DetectionResults = self.judged_last(batches)
        if self.runtime.main:
            samples = getattr(batches, "samples", ())
            yield from detection_plots.plot_evaluation(
                found, lambda number: image_io.read_image(samples[number].source)
            )

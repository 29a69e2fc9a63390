"""Detection: where is what in the image?"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Unpack

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from fukami.detection import metrics as detection_metrics
from fukami.detection.metrics import DetectionResults
from fukami.engine.padded_task import PaddedTask
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
        model: as :class:`fukami.models.faster_rcnn.FasterRCNN` is called: normalised images, their sizes and what is
            in them to the samples of both stages; without the latter to what it found.
        labels: what the classes are called.
        prepare: to what size an image is brought, and how it is normalised; it travels with the task.
        activation_checkpointing: keep the activations between the blocks of the backbone alone, and compute the others
            again.
        regime: optimizer, decay, epochs, judge_every, accumulate and clip, as for :class:`fukami.Task`.
    """

    def __init__(
        self,
        model: nn.Module,
        labels: tuple[str, ...],
        prepare: ResizeTransform,
        *,
        activation_checkpointing: bool = False,
        **regime: Unpack[TrainingOptions],
    ) -> None:
        super().__init__(model, labels, prepare, **regime)
        self.activation_checkpointing = activation_checkpointing

    def setup(self, runtime: "Runtime") -> None:
        """Move to the device and make ready to train."""
        if self.activation_checkpointing:
            enable_activation_checkpointing(self.model.backbone)  # type: ignore[arg-type]
        super().setup(runtime)

    def get_signature(self) -> ModelSignature:
        """An image in a frame; how it is prepared, the labels, and what the answer is, as JSON and words."""
        answer = "boxes: left, top, right, bottom in pixels of the frame; classes: numbers of labels; best first"
        return self.build_frame_signature("detector", answer)

    def compile(self) -> None:
        """Compile the parts whose shapes are fixed, the backbone and the layers that see a region."""
        for network in self.get_networks():
            for name in ("backbone", "roi_heads.box_head"):
                part = network.get_submodule(name)
                part._compiled_call_impl = self.runtime.compile(part._call_impl)

    def compute_loss(self, batch: "PaddedBatch") -> tuple[Tensor, dict[str, Tensor]]:
        """The losses of both stages: is there an object, which one, and where are its borders (equation 1)."""
        first, second = self.training_model(*self.prepare_training_inputs(batch))
        losses = {
            **self.compute_stage_losses(first, "objectness", "anchor_boxes"),
            **self.compute_stage_losses(second, "classification", "region_boxes"),
        }
        return torch.stack(list(losses.values())).sum(), {name: loss.detach() for name, loss in losses.items()}

    def prepare_training_inputs(self, batch: "PaddedBatch") -> tuple[Tensor, Tensor, GroundTruth]:
        """What the network is called with in training, on the device."""
        batch = self.move_to_device(batch)
        truth = GroundTruth(batch.boxes, batch.classes, batch.kinds > 0, batch.seeds)
        return self.normalize_images(batch.images, batch.sizes), batch.sizes, truth

    def compute_stage_losses(self, samples: SampledBoxes, class_loss: str, box_loss: str) -> dict[str, Tensor]:
        """Cross entropy, and smooth absolute error of the boxes of objects, both over the samples of all processes."""
        count = self.runtime.all_reduce_sum(samples.valid.sum()).clamp(min=1) / self.runtime.world_size
        if samples.scores.ndim == 2:
            wrong = F.binary_cross_entropy_with_logits(samples.scores, samples.targets.float(), reduction="none")
        else:
            wrong = F.cross_entropy(samples.scores.transpose(1, 2), samples.targets, reduction="none")
        off = F.smooth_l1_loss(samples.deltas, samples.target_deltas, reduction="none", beta=SMOOTH_L1_BETA).sum(2)
        objects = samples.valid & (samples.targets > 0)
        return {
            class_loss: torch.where(samples.valid, wrong, 0).sum() / count,
            box_loss: torch.where(objects, off, 0).sum() / count,
        }

    def detect(self, images: Tensor, sizes: Tensor) -> list[Detections]:
        """What is in images ``(N, 3, H, W)`` in 0..255, in pixels of the frame."""
        with half_precision.enable_float32_fallback(self.model):
            kind = next(self.model.parameters()).dtype
            found: list[Detections] = self.model(self.normalize_images(images, sizes).to(kind), sizes)
        return found

    def detect_batch(self, batch: "PaddedBatch") -> list[Detections]:
        """What is found in the images of a batch, in pixels of the frame."""
        return self.detect(batch.images.to(self.runtime.device), batch.sizes.to(self.runtime.device))

    def collect_results(self, batches: Iterable["PaddedBatch"]) -> DetectionResults:
        """Everything that was found in ``batches``, and what is there, over all processes."""
        number = self.get_class_indices(getattr(batches, "labels", self.labels))
        found = DetectionResults(self.labels)
        with self.inference_mode():
            for batch in batches:
                if len(batch.images) == 0:  # this process's share of the last batch
                    continue
                answers = self.detect_batch(batch)
                ratios = (batch.original_sizes.cpu() / batch.sizes.cpu()).flip(1).repeat(1, 2)
                there = batch.classes.cpu() >= 0
                for i, answer in enumerate(answers):
                    truth = (
                        (batch.boxes[i].cpu() * ratios[i])[there[i]].numpy(),
                        number[batch.classes[i].cpu()[there[i]].numpy()],
                        batch.kinds[i].cpu()[there[i]].numpy(),
                    )
                    boxes, classes, scores = (value.float().cpu() for value in answer)
                    seen = detection_metrics.Prediction((boxes * ratios[i]).numpy(), classes.numpy(), scores.numpy())
                    found.update(int(batch.indices[i]), seen, detection_metrics.GroundTruth(*truth))
        found.merge(self.runtime.all_gather(found))
        return found

    def predict_batch(self, images: Tensor) -> list[dict[str, Any]]:
        """What is in each image, and where: ``boxes``, best first.

        Each of them is ``{"label", "score", "box": [left, top, right, bottom]}`` in pixels of the upright image.
        """
        height, width = images.shape[-2:]
        frame, inside = self.resize_and_pad(images)
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

    def draw_prediction(self, source: Any, prediction: dict[str, Any]) -> Image.Image:
        """The image with the boxes whose score is at least a half."""
        shown = [box for box in prediction["boxes"] if box["score"] >= MIN_DRAWN_SCORE]
        return image_io.draw_boxes(image_io.read_image(source), shown, self.labels)

    @torch.inference_mode()
    def plot_evaluation(self, batches: Iterable["PaddedBatch"]) -> "Iterator[tuple[str, Figure]]":
        """Precision and recall, what goes wrong, and the worst of it as images."""
        from fukami.detection import plots as detection_plots

        found: DetectionResults = self.get_results(batches)
        if self.runtime.is_main:
            samples = getattr(batches, "samples", ())
            yield from detection_plots.plot_evaluation(
                found, lambda number: image_io.read_image(samples[number].source)
            )

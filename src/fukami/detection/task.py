"""Task of object detection with a two-stage network."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Unpack

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from fukami.data.parsing import to_number
from fukami.detection import metrics as detection_metrics
from fukami.detection import tiles
from fukami.detection.metrics import DetectionResults
from fukami.engine import padded_images
from fukami.engine.prediction import Prediction
from fukami.engine.task import Metrics, ModelSignature, Task, TrainingOptions, match_labels
from fukami.errors import Error
from fukami.image import draw as image_draw
from fukami.image.channels import build_preview, read_channels
from fukami.image.transform import ResizeTransform
from fukami.layers.activation_checkpointing import enable_activation_checkpointing
from fukami.layers.detection_types import BatchGroundTruth, Detections, SampledBoxes
from fukami.progress import track
from fukami.quantization import half_precision

if TYPE_CHECKING:
    from fukami.data.samples import PaddedBatch
    from fukami.engine.task import FigureContent

SMOOTH_L1_BETA = 1 / 9  # threshold between the quadratic and the linear part of the smooth L1 loss
SCORE_DIGITS = 4  # decimal places of a score
SCORE_SCALE = 10_000  # units of the last digit in a score of 1
UNTRAINED_CONFIDENCE = 0.5  # minimum score of a predicted box before the first evaluation


class DetectionTask(Task):
    """Object detection with a two-stage network.

    Args:
        model: called as :class:`fukami.models.faster_rcnn.FasterRCNN`: with normalized images, their sizes and the
            ground truth it returns the samples of both stages; without ground truth it returns the detections.
        labels: class names.
        transform: resizing and normalization of an image.
        activation_checkpointing: keep only the activations between the blocks of the backbone, and recompute the
            others in the backward pass.
        confidence: minimum score of a predicted box. None: the one with the highest F1 in the last evaluation of the
            training, which the buffer ``confidence`` of the model contains, in units of the last digit of a score. As
            an integer it is the same at every precision.
        options: training options, as for :class:`fukami.Task`.
    """

    predict_batch_size = 8
    transform: ResizeTransform

    def __init__(
        self,
        model: nn.Module,
        labels: tuple[str, ...],
        transform: ResizeTransform,
        *,
        activation_checkpointing: bool = False,
        confidence: float | None = None,
        **options: Unpack[TrainingOptions],
    ) -> None:
        super().__init__(model, **options)
        self.labels, self.transform = labels, transform
        self.activation_checkpointing = activation_checkpointing
        self.confidence = confidence
        self.tile_size = 0  # pixels of the image; 0: no tiles
        register_confidence(model, UNTRAINED_CONFIDENCE)

    def prepare_training(self) -> None:
        """Create the optimizer, and enable activation checkpointing."""
        if self.activation_checkpointing:
            enable_activation_checkpointing(self.model.get_submodule("backbone"))
        super().prepare_training()

    def get_signature(self) -> ModelSignature:
        """Return the input shape of the network, and its preprocessing, labels and output as metadata."""
        output = (
            "boxes: left, top, right, bottom in pixels of the image; classes: indices of labels; highest score first"
        )
        signature = padded_images.build_padded_signature("detector", output, self.transform, self.labels)
        signature.metadata["confidence"] = str(self.get_confidence())
        return signature

    def replace_modules(self, modules: dict[str, nn.Module]) -> None:
        """Replace the network; that of an ONNX file has its minimum score in its metadata.

        Raises:
            Error: the metadata have no valid score.
        """
        super().replace_modules(modules)
        if isinstance(metadata := getattr(self.model, "metadata", None), dict):
            confidence = to_number(metadata.get("confidence"))
            if not 0 <= confidence <= 1:
                raise Error("the ONNX file has no valid confidence in its metadata; export the run again")
            register_confidence(self.model, confidence)

    def get_confidence(self) -> float:
        """Return the minimum score of a predicted box."""
        if self.confidence is not None:
            return self.confidence
        return int(self.model.get_buffer("confidence")) / SCORE_SCALE

    def on_evaluation(self, metrics: Metrics) -> Image.Image | None:
        """Set the minimum score of a predicted box to the one with the highest F1 over all classes."""
        assert self.last_evaluation is not None
        _, results = self.last_evaluation
        assert isinstance(results, DetectionResults)
        self.model.get_buffer("confidence").fill_(encode_confidence(results.find_best_threshold()))
        return None

    def compile(self) -> None:
        """Compile the network for the following steps."""
        self.compile_network(self.model)

    def compile_network(self, network: nn.Module) -> None:
        """Compile the modules with fixed shapes, the backbone and the fully connected layers of the head."""
        for name in ("backbone", "roi_heads.box_head"):
            module = network.get_submodule(name)
            module._compiled_call_impl = self.runtime.compile(module._call_impl)

    def normalize_images(self, images: Tensor, sizes: Tensor) -> Tensor:
        """Normalize images ``(N, 3, H, W)`` in 0..255, and set the padding beyond their sizes ``(N, 2)`` to 0."""
        return padded_images.normalize_padded_images(images, sizes, self.mean, self.std)

    def compute_loss(self, batch: "PaddedBatch") -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the losses of objectness, classification and box regression (Ren et al. 2015, equation 1)."""
        rpn_samples, region_samples = self.training_model(*self.prepare_training_inputs(batch))
        losses = {
            **self.compute_stage_losses(rpn_samples, "objectness", "anchor_boxes"),
            **self.compute_stage_losses(region_samples, "classification", "region_boxes"),
        }
        return torch.stack(list(losses.values())).sum(), {name: loss.detach() for name, loss in losses.items()}

    def prepare_training_inputs(self, batch: "PaddedBatch") -> tuple[Tensor, Tensor, BatchGroundTruth]:
        """Return the normalized images, their sizes and the ground truth, on the device."""
        batch = padded_images.move_batch(batch, self.runtime.device)
        truth = BatchGroundTruth(batch.boxes, batch.classes, batch.kinds > 0, batch.seeds)
        return self.normalize_images(batch.images, batch.sizes), batch.sizes, truth

    def compute_stage_losses(self, samples: SampledBoxes, class_loss: str, box_loss: str) -> dict[str, Tensor]:
        """Compute the cross entropy and the smooth L1 loss of the boxes, averaged over the samples of all processes."""
        count = self.runtime.all_reduce_sum(samples.valid.sum()).clamp(min=1) / self.runtime.world_size
        if samples.logits.ndim == 2:
            entropies = F.binary_cross_entropy_with_logits(samples.logits, samples.targets.float(), reduction="none")
        else:
            entropies = F.cross_entropy(samples.logits.transpose(1, 2), samples.targets, reduction="none")
        errors = F.smooth_l1_loss(samples.deltas, samples.target_deltas, reduction="none", beta=SMOOTH_L1_BETA).sum(2)
        is_object = samples.valid & (samples.targets > 0)
        return {
            class_loss: torch.where(samples.valid, entropies, 0).sum() / count,
            box_loss: torch.where(is_object, errors, 0).sum() / count,
        }

    def detect(self, images: Tensor, sizes: Tensor) -> list[Detections]:
        """Detect objects in images ``(N, 3, H, W)`` in 0..255; boxes are in pixels of the padded image."""
        with half_precision.enable_float32_fallback(self.model):
            dtype = next(self.model.parameters()).dtype
            detections: list[Detections] = self.model(self.normalize_images(images, sizes).to(dtype), sizes)
        return detections

    def detect_batch(self, batch: "PaddedBatch") -> list[Detections]:
        """Detect objects in the images of a batch; boxes are in pixels of the padded image."""
        return self.detect(batch.images.to(self.runtime.device), batch.sizes.to(self.runtime.device))

    def collect_results(self, batches: Iterable["PaddedBatch"]) -> DetectionResults:
        """Collect the detections and the ground truth of all batches, over all processes."""
        class_indices = np.array(match_labels(self.labels, batches), np.int64)
        results = DetectionResults(self.labels)
        for batch in track(batches, "evaluation", unit="batches"):
            if len(batch.images) == 0:  # this process has no image of the last batch
                continue
            detections = self.detect_batch(batch)
            ratios = (batch.original_sizes.cpu() / batch.sizes.cpu()).flip(1).repeat(1, 2)
            is_object = batch.classes.cpu() >= 0
            for i, image_detections in enumerate(detections):
                truth = (
                    (batch.boxes[i].cpu() * ratios[i])[is_object[i]].numpy(),
                    class_indices[batch.classes[i].cpu()[is_object[i]].numpy()],
                    batch.kinds[i].cpu()[is_object[i]].numpy(),
                )
                boxes, classes, scores = (value.float().cpu() for value in image_detections)
                prediction = ((boxes * ratios[i]).numpy(), classes.numpy(), scores.numpy())
                results.update(
                    int(batch.indices[i]),
                    detection_metrics.Prediction(*prediction),
                    detection_metrics.GroundTruth(*truth),
                )
        results.merge(self.runtime.all_gather(results))
        return results

    def predict_batch(self, images: Tensor) -> list[Prediction]:
        """Predict the ``boxes`` of each image, highest score first, and its ``width`` and ``height``.

        A box is ``{"label", "score", "box": [left, top, right, bottom]}`` in pixels of the upright image.
        """
        height, width = images.shape[-2:]
        min_score = self.get_confidence()
        predictions: list[Prediction] = []
        for boxes, classes, scores in self._detect_at_original_size(images):
            rows = zip(boxes.tolist(), classes.tolist(), scores.tolist(), strict=True)
            labeled_boxes = [
                {"label": self.labels[class_index], "score": rounded, "box": [round(side, 2) for side in box]}
                for box, class_index, score in rows
                if (rounded := round(score, SCORE_DIGITS)) >= min_score
            ]
            predictions.append({"width": width, "height": height, "boxes": labeled_boxes})
        return predictions

    def _detect_at_original_size(self, images: Tensor) -> Iterator[Detections]:
        """Detect objects in images of one size ``(N, 3, h, w)`` uint8; boxes are in their pixels, on the CPU."""
        if self.tile_size and max(images.shape[-2:]) > self.tile_size:
            for image in images:
                yield tiles.detect_in_tiles(image, self.tile_size, self.predict_batch_size, self._resize_and_detect)
        else:
            yield from self._resize_and_detect(images)

    def _resize_and_detect(self, images: Tensor) -> Iterator[Detections]:
        """Resize images of one size and detect objects in them, as :meth:`_detect_at_original_size` does."""
        height, width = images.shape[-2:]
        padded, sizes = padded_images.resize_and_pad(images.to(self.runtime.device), self.transform)
        ratio = torch.tensor([width, height] * 2) / sizes[0].cpu().flip(0).repeat(2)
        for boxes, classes, scores in self.detect(padded, sizes):
            yield Detections(boxes.float().cpu() * ratio, classes.cpu(), scores.float().cpu())

    def draw(self, image: Image.Image, prediction: Prediction) -> Image.Image:
        """Draw the boxes on the image."""
        return image_draw.draw_boxes(image, prediction["boxes"], self.labels)

    @torch.inference_mode()
    def plot_evaluation(self, batches: Iterable["PaddedBatch"]) -> "Iterator[tuple[str, FigureContent]]":
        """Plot average precision, precision-recall curves, error types and the worst errors."""
        from fukami.detection import plots as detection_plots

        results = self._get_results(batches)
        assert isinstance(results, DetectionResults)
        if self.runtime.is_main:
            samples = getattr(batches, "samples", ())
            yield from detection_plots.plot_evaluation(
                results, lambda image_index: build_preview(read_channels(samples[image_index].source, 3))
            )


def encode_confidence(confidence: float) -> int:
    """Encode a minimum score, rounded as scores are, in units of their last digit."""
    return round(round(confidence, SCORE_DIGITS) * SCORE_SCALE)


def register_confidence(model: nn.Module, confidence: float) -> None:
    """Register the buffer ``confidence`` of a detector with a minimum score."""
    device = next(model.parameters()).device
    model.register_buffer("confidence", torch.tensor(encode_confidence(confidence), device=device))

"""Segmentation: what is each pixel of the image?"""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self, Unpack

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from fukami.engine.padded_task import PaddedTask
from fukami.engine.task import ModelSignature, TrainingOptions
from fukami.errors import UsageError
from fukami.image import io as image_io
from fukami.image.transform import ResizeTransform
from fukami.layers.activation_checkpointing import enable_activation_checkpointing
from fukami.layers.activation_scaling import rescale_activations
from fukami.layers.ensemble import Ensemble
from fukami.quantization import half_precision
from fukami.segmentation.metrics import SegmentationResults

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fukami.data.samples import PaddedBatch
    from fukami.engine.runtime import Runtime

TILE_SIZE, TILE_OVERLAP = (
    1024,
    256,
)  # pixels of the squares that a larger image is answered in, and of what two of them share
AUX_LOSS_WEIGHT = 0.5  # weight of the loss of a second answer, as torchvision's reference training has it
MAX_LEGEND_CLASSES = 21  # classes that are named below an image at most, the largest
MAX_STRIP_SCORES = 2**25  # scores that are enlarged at a time


class SegmentationTask(PaddedTask):
    """The class of each pixel: softmax and cross entropy over those that are labelled.

    Args:
        model: scores ``(N, classes, H, W)`` of normalised images ``(N, 3, H, W)``; in training a tuple where it has a
            second answer, whose loss counts a half.
        labels, prepare: as for :class:`fukami.engine.padded_task.PaddedTask`.
        balance_power: the loss of a class counts the more the rarer it is: the power of its weight in median-frequency
            balancing, from 0, all classes alike, to 1, the paper's.
        activation_checkpointing: keep the activations between the stages of the network alone, and compute the others
            again.
        regime: optimizer, decay, epochs, judge_every, accumulate and clip, as for :class:`fukami.Task`.
    """

    def __init__(
        self,
        model: nn.Module,
        labels: tuple[str, ...],
        prepare: ResizeTransform,
        *,
        balance_power: float = 0.0,
        activation_checkpointing: bool = False,
        **regime: Unpack[TrainingOptions],
    ) -> None:
        super().__init__(model, labels, prepare, **regime)
        self.balance_power, self.activation_checkpointing = balance_power, activation_checkpointing
        self.needs_calibration = False  # whether it begins with layers whose maps may have any size
        self.class_weights: Tensor | None = None

    def setup(self, runtime: "Runtime") -> None:
        """Move to the device and make ready to train."""
        if self.activation_checkpointing:
            stages: Any = getattr(self.model, "stages", [self.model])
            for stage in stages:
                enable_activation_checkpointing(stage)
        super().setup(runtime)

    def get_signature(self) -> ModelSignature:
        """An image in a frame; how it is prepared, the labels, and what the answer is, as JSON and words."""
        answer = "scores of each pixel of the frame; the greatest is that of its class"
        return self.build_frame_signature("segmenter", answer)

    def iterate_batches(self, train: Any) -> Iterable["PaddedBatch"]:
        """Pass after pass over the loader; the weights of the classes come from its ``count_class_pixels()``."""
        if self.balance_power:
            weight = compute_class_weights(train.count_class_pixels()) ** self.balance_power
            self.class_weights = torch.from_numpy(weight).to(self.runtime.device)
        if self.needs_calibration:
            first = self.move_to_device(next(train.iterate_in_order()))
            rescale_activations(self.model.list_backbone_layers(), self.normalize_images(first.images, first.sizes))  # type: ignore[operator]
        return super().iterate_batches(train)

    def compute_loss(self, batch: "PaddedBatch") -> tuple[Tensor, dict[str, Tensor]]:
        """Cross entropy over the labelled pixels of all processes, and the share of them that is right."""
        batch = self.move_to_device(batch)
        targets = batch.masks.long() - 1
        scores = self.training_model(self.normalize_images(batch.images, batch.sizes))
        scores, *others = scores if isinstance(scores, tuple) else (scores,)
        there = targets >= 0
        mass = there.float() if self.class_weights is None else self.class_weights[targets.clamp(min=0)] * there
        right = (scores.detach().argmax(1) == targets) & there
        counts = (
            self.runtime.all_reduce_sum(torch.stack([mass.sum(), there.sum().float()])).clamp(min=1e-6)
            / self.runtime.world_size
        )
        loss = self.compute_cross_entropy(scores, targets) + AUX_LOSS_WEIGHT * sum(
            self.compute_cross_entropy(other, targets) for other in others
        )
        return loss / counts[0], {"accuracy": right.sum() / counts[1]}

    def compute_cross_entropy(self, scores: Tensor, targets: Tensor) -> Tensor:
        """The weighted cross entropy, summed; by torch itself it would be summed in any order on a GPU."""
        return F.cross_entropy(scores.float(), targets, self.class_weights, ignore_index=-1, reduction="none").sum()

    def predict_scores(self, images: Tensor, sizes: Tensor) -> Tensor:
        """Scores ``(N, classes, H, W)``, float32, of frames ``(N, 3, H, W)`` in 0..255; of large ones probabilities.

        What is larger than a tile is answered in tiles, which are blended where they overlap, so that no seam is seen.
        """
        kind = next(self.model.parameters()).dtype
        frames = self.normalize_images(images, sizes).to(kind)
        with half_precision.enable_float32_fallback(self.model):
            if max(frames.shape[-2:]) <= TILE_SIZE:
                found: Tensor = self.model(frames)
                return found.float()
            height, width = frames.shape[-2:]
            whole = torch.zeros(len(frames), len(self.labels), height, width, device=frames.device)
            for top in compute_tile_starts(height):
                for left in compute_tile_starts(width):
                    place = np.s_[..., top : top + TILE_SIZE, left : left + TILE_SIZE]
                    tile = frames[place]
                    weight = compute_blend_weights(tile.shape[-2], whole).unsqueeze(1) * compute_blend_weights(
                        tile.shape[-1], whole
                    )
                    whole[place] += weight * self.model(tile).float().softmax(1)
        return whole

    def predict_maps(self, batch: "PaddedBatch") -> Iterator["np.typing.NDArray[np.uint8]"]:
        """The class and 1 of each pixel of each image of a batch, ``(h, w)``, at its own size."""
        batch = self.move_to_device(batch)
        scores = self.predict_scores(batch.images, batch.sizes)
        sides = zip(scores, batch.sizes.int().tolist(), batch.original_sizes.int().tolist(), strict=True)
        for own, (height, width), original in sides:
            yield resize_and_argmax(own[:, :height, :width], *original).cpu().numpy()

    def build_value_table(self, batches: Any) -> "np.typing.NDArray[np.uint8]":
        """What each value of the masks of ``batches`` is in our maps: 0 unlabelled, else our class and 1."""
        return np.concatenate([[0], self.get_class_indices(getattr(batches, "labels", self.labels)) + 1]).astype(
            np.uint8
        )

    def collect_results(self, batches: Any) -> SegmentationResults:
        """What every pixel of ``batches`` was taken for, over all processes."""
        found, ours = SegmentationResults(self.labels), self.build_value_table(batches)
        with self.inference_mode():
            for batch in batches:
                if len(batch.images):  # else this process's share of the last batch
                    for at, pixels in zip(batch.indices.tolist(), self.predict_maps(batch), strict=True):
                        found.update(at, pixels, ours[batches.samples[at].mask.read()])
        found.merge(self.runtime.all_gather(found))
        return found

    def predict_batch(self, images: Tensor) -> list[dict[str, Any]]:
        """The ``shares`` of the classes in each image, the largest first, and the ``masks`` of their pixels.

        A mask is ``{"size": [height, width], "counts"}``, the compressed run lengths of COCO's tools.
        """
        from faster_coco_eval.core import mask

        height, width = images.shape[-2:]
        frame, inside = self.resize_and_pad(images)
        answers = []
        for own, size in zip(self.predict_scores(frame, inside), inside.int().tolist(), strict=True):
            pixels = resize_and_argmax(own[:, : size[0], : size[1]], height, width).cpu().numpy()
            counts = np.bincount(pixels.ravel(), minlength=len(self.labels) + 1)[1:]
            shares, masks = {}, {}
            for number in np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)].tolist():
                label = self.labels[number]
                shares[label] = round(float(counts[number] / pixels.size), 6)
                found = mask.encode(np.asfortranarray(pixels == number + 1, np.uint8))
                masks[label] = {"size": [height, width], "counts": found["counts"].decode()}
            answers.append({"shares": shares, "masks": masks})
        return answers

    def decode_masks(self, prediction: dict[str, Any]) -> "np.typing.NDArray[np.uint8]":
        """The number of the class of each pixel ``(height, width)`` that an answer tells."""
        from faster_coco_eval.core import mask

        pixels = np.zeros((prediction["height"], prediction["width"]), np.uint8)
        for label, found in prediction["masks"].items():
            pixels[mask.decode(found).astype(bool)] = self.labels.index(label)
        return pixels

    def draw_prediction(self, source: Any, prediction: dict[str, Any]) -> Image.Image:
        """The image under the colours of the classes, which are named below."""
        shades = dict(zip(self.labels, image_io.get_class_colors(self.labels), strict=True))
        named = [(f"{label} {share:.0%}", shades[label]) for label, share in prediction["shares"].items()]
        drawn = image_io.overlay_mask(image_io.read_image(source), self.decode_masks(prediction), list(shades.values()))
        return image_io.draw_legend(
            drawn, named, [f"{label} 100%" for label in self.labels], min(MAX_LEGEND_CLASSES, len(shades))
        )

    def render_maps(self, prediction: dict[str, Any]) -> dict[str, Image.Image]:
        """The map of the classes as an image with a palette, whose values are the numbers of the labels."""
        return {
            "classes": image_io.apply_palette(self.decode_masks(prediction), image_io.get_class_colors(self.labels))
        }

    def ensemble_with(self, others: Sequence[Self], *, vote: bool = False) -> Self:
        """This task and ``others`` together: the class of a pixel by their averaged probabilities.

        Raises:
            UsageError: they have other classes, or see images otherwise; or a vote is asked for.
        """
        if vote:
            raise UsageError("the runs decide on pixels by their averaged probabilities; leave out --vote")
        for other in others:
            if other.labels != self.labels or other.prepare != self.prepare:
                raise UsageError("runs that answer together must have the same classes and see images the same way")
        self.model = Ensemble([self.model, *(other.model for other in others)])
        return self

    @torch.inference_mode()
    def plot_evaluation(self, batches: Any) -> "Iterator[tuple[str, Figure]]":
        """IoU by class, what was taken for what, and images from the best to the worst."""
        from fukami.segmentation import plots as segmentation_plots

        found: SegmentationResults = self.get_results(batches)
        if not self.runtime.is_main:
            return
        ours = self.build_value_table(batches)

        def load_example(at: int) -> segmentation_plots.SegmentationExample:
            sample = batches.samples[at]
            image = image_io.read_image(sample.source)
            (answer,) = self.predict([image])
            return image, ours[sample.mask.read()], self.decode_masks(answer) + 1

        with self.inference_mode():
            yield from segmentation_plots.plot_evaluation(found, load_example)


def compute_class_weights(counts: "np.typing.NDArray[np.int64]") -> "np.typing.NDArray[np.float32]":
    """The weight of each class ``(classes,)``: the median of the frequencies by its own; 0 where it has no pixel.

    The frequency of a class is its share of the pixels of the images that it is in (Eigen and Fergus 2015, section
    6.3.2; Badrinarayanan et al. 2017, section 3.2). ``counts`` ``(2, classes)`` are both numbers of pixels.
    """
    own, whole = counts.astype(np.float64)
    there = own > 0
    weights = np.zeros(len(own), np.float32)
    if there.any():
        frequency = own[there] / whole[there]
        weights[there] = np.median(frequency) / frequency
    return weights


def compute_tile_starts(side: int) -> Sequence[int]:
    """Where the tiles of a side begin; the last one ends with it."""
    if side <= TILE_SIZE:
        return (0,)
    return *range(0, side - TILE_SIZE, TILE_SIZE - TILE_OVERLAP), side - TILE_SIZE


def compute_blend_weights(side: int, like: Tensor) -> Tensor:
    """The weight of each place across a tile ``(side,)``: it rises to 1 over what two tiles share."""
    place = torch.arange(side, device=like.device, dtype=like.dtype) + 0.5
    return (torch.minimum(place, side - place) / TILE_OVERLAP).clamp(max=1)


def resize_and_argmax(scores: Tensor, height: int, width: int) -> Tensor:
    """The class and 1 of the greatest of scores ``(classes, h, w)``, at another size: ``(height, width)`` uint8.

    Scores are interpolated (bilinear) before they are compared; in strips, since enlarged they may not fit.
    """
    if scores.shape[1:] == (height, width):
        return (scores.argmax(0) + 1).to(torch.uint8)
    wide = F.interpolate(scores[None], (scores.shape[1], width), mode="bilinear", align_corners=False)[0]
    place = ((torch.arange(height, device=scores.device) + 0.5) * (scores.shape[1] / height) - 0.5).clamp(min=0)
    above = place.floor().long()
    below = (above + 1).clamp(max=scores.shape[1] - 1)
    rows = max(1, MAX_STRIP_SCORES // (len(scores) * width))
    strips = [
        wide[:, above[cut]].lerp(wide[:, below[cut]], (place - above)[cut].unsqueeze(1)).argmax(0)
        for cut in (slice(at, at + rows) for at in range(0, height, rows))
    ]
    return (torch.cat(strips) + 1).to(torch.uint8)

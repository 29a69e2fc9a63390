"""Semantic segmentation task: predict the class of each pixel."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Unpack

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from fukami.data.loader import Loader
from fukami.engine import padded_images
from fukami.engine.prediction import Prediction
from fukami.engine.task import ModelSignature, Task, TrainingOptions, match_labels
from fukami.errors import Error
from fukami.image import draw as image_draw
from fukami.image.channels import build_preview, read_channels
from fukami.image.tiles import compute_tile_starts
from fukami.image.transform import ResizeTransform
from fukami.layers.activation_checkpointing import enable_activation_checkpointing
from fukami.layers.activation_scaling import rescale_activations
from fukami.layers.segmentation_model import SegmentationModel
from fukami.progress import track
from fukami.quantization import half_precision
from fukami.segmentation.metrics import SegmentationResults

if TYPE_CHECKING:
    from fukami.data.padded_loader import PaddedLoader
    from fukami.data.samples import PaddedBatch, Sample
    from fukami.engine.task import FigureContent

TILE_SIZE, TILE_OVERLAP = 1024, 256  # pixels; larger images are predicted in overlapping square tiles
AUX_LOSS_WEIGHT = 0.5  # weight of the auxiliary loss, as in torchvision's reference training
MAX_LEGEND_CLASSES = 21  # maximum number of classes named below an image, the largest first
MAX_STRIP_SCORES = 2**25  # scores that are resized at a time
MAX_SCORES = 2**29  # scores of an image, float32


class SegmentationTask(Task):
    """Semantic segmentation: softmax cross entropy over the labeled pixels.

    Args:
        model: returns scores ``(N, classes, H, W)`` of normalized images ``(N, C, H, W)``; in training, a tuple of
            main and auxiliary scores if it has an auxiliary loss, whose weight is 0.5.
        labels: class names.
        transform: resizing and normalization of an image.
        balance_power: exponent of the class weights of median-frequency balancing: 0 for equal weights, 1 as in the
            paper.
        activation_checkpointing: keep only the activations between the network's stages, and recompute the others.
        options: training options, as for :class:`fukami.Task`.
    """

    ensemble_methods = ("average",)
    predict_batch_size = 8
    model: SegmentationModel
    transform: ResizeTransform

    def __init__(
        self,
        model: SegmentationModel,
        labels: tuple[str, ...],
        transform: ResizeTransform,
        *,
        balance_power: float = 0.0,
        activation_checkpointing: bool = False,
        **options: Unpack[TrainingOptions],
    ) -> None:
        super().__init__(model, **options)
        self.labels, self.transform = labels, transform
        self.balance_power, self.activation_checkpointing = balance_power, activation_checkpointing
        self.needs_calibration = False  # whether the activations of the loaded backbone are rescaled before training
        self.class_weights: Tensor | None = None

    def prepare_training(self) -> None:
        """Create the optimizer, and enable activation checkpointing."""
        if self.activation_checkpointing:
            stages: Iterable[nn.Module] = getattr(self.model, "stages", [self.model])
            for stage in stages:
                enable_activation_checkpointing(stage)
        super().prepare_training()

    def get_signature(self) -> ModelSignature:
        """Return the signature of the network: a padded image to the scores of its pixels."""
        output = "scores of each pixel of the padded image; the class with the highest score is predicted"
        return padded_images.build_padded_signature("segmenter", output, self.transform, self.labels)

    def normalize_images(self, images: Tensor, sizes: Tensor) -> Tensor:
        """Normalize images ``(N, C, H, W)`` in 0..255, and set the padding beyond their sizes ``(N, 2)`` to 0."""
        return padded_images.normalize_padded_images(images, sizes, self.mean, self.std)

    def iterate_batches(self, loader: Loader) -> Iterable["PaddedBatch"]:
        """Yield training batches, epoch after epoch; compute the class weights first, if there are any."""
        if self.balance_power:
            weight = compute_class_weights(get_padded_loader(loader).count_class_pixels()) ** self.balance_power
            self.class_weights = torch.from_numpy(weight).to(self.runtime.device)
        if self.needs_calibration:
            first = padded_images.move_batch(next(get_padded_loader(loader).iterate_in_order()), self.runtime.device)
            images, sizes = first.images[..., :TILE_SIZE, :TILE_SIZE], first.sizes.clamp(max=TILE_SIZE)
            rescale_activations(self.model.list_backbone_layers(), self.normalize_images(images, sizes))
        return super().iterate_batches(loader)

    def compute_loss(self, batch: "PaddedBatch") -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the cross entropy and the accuracy over the labeled pixels of all processes."""
        batch = padded_images.move_batch(batch, self.runtime.device)
        targets = batch.masks.long() - 1
        scores = self.training_model(self.normalize_images(batch.images, batch.sizes))
        scores, *auxiliary = scores if isinstance(scores, tuple) else (scores,)
        labeled, weights = targets >= 0, self.compute_pixel_weights(targets)
        correct = (scores.detach().argmax(1) == targets) & labeled
        counts = (
            self.runtime.all_reduce_sum(torch.stack([weights.sum(), labeled.sum().float()])).clamp(min=1e-6)
            / self.runtime.world_size
        )
        loss = self.compute_cross_entropy(scores, targets) + AUX_LOSS_WEIGHT * sum(
            self.compute_cross_entropy(aux_scores, targets) for aux_scores in auxiliary
        )
        return loss / counts[0], {"accuracy": correct.sum() / counts[1]}

    def count_targets(self, batch: "PaddedBatch") -> Tensor:
        """Sum the weights of the labeled pixels, over which the loss is averaged."""
        return self.compute_pixel_weights(batch.masks.to(self.runtime.device).long() - 1).sum()

    def compute_pixel_weights(self, targets: Tensor) -> Tensor:
        """Compute the weight of each pixel in the loss, 0 without a label."""
        labeled = targets >= 0
        return labeled.float() if self.class_weights is None else self.class_weights[targets.clamp(min=0)] * labeled

    def compute_cross_entropy(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Compute the weighted cross entropy, summed; torch's own sum is not deterministic on a GPU."""
        return F.cross_entropy(scores.float(), targets, self.class_weights, ignore_index=-1, reduction="none").sum()

    def predict_scores(self, images: Tensor, sizes: Tensor) -> Tensor:
        """Predict scores ``(N, classes, H, W)``, float32, of padded images ``(N, C, H, W)`` in 0..255.

        Images larger than a tile are predicted in overlapping tiles, whose probabilities are blended to avoid seams;
        for these, probabilities are returned.

        Raises:
            Error: the scores of an image would exceed ``MAX_SCORES``.
        """
        height, width = images.shape[-2:]
        check_num_scores(len(self.labels), height, width)
        dtype = next(self.model.parameters()).dtype
        inputs = self.normalize_images(images, sizes).to(dtype)
        with half_precision.enable_float32_fallback(self.model):
            if max(inputs.shape[-2:]) <= TILE_SIZE:
                scores: Tensor = self.model(inputs)
                return scores.float()
            blended = torch.zeros(len(inputs), len(self.labels), height, width, device=inputs.device)
            weights = torch.zeros(height, width, device=inputs.device)
            for top in compute_tile_starts(height, TILE_SIZE, TILE_OVERLAP):
                for left in compute_tile_starts(width, TILE_SIZE, TILE_OVERLAP):
                    window = np.s_[..., top : top + TILE_SIZE, left : left + TILE_SIZE]
                    tile = inputs[window]
                    weight = compute_blend_weights(tile.shape[-2], blended).unsqueeze(1) * compute_blend_weights(
                        tile.shape[-1], blended
                    )
                    blended[window] += weight * self.model(tile).float().softmax(1)
                    weights[window[1:]] += weight
        return blended.div_(weights)

    def predict_maps(
        self, images: Tensor, sizes: Tensor, original_sizes: Tensor
    ) -> Iterator["np.typing.NDArray[np.uint8]"]:
        """Yield the predicted map ``(h, w)`` of class index + 1 of each image, at its original size.

        Args:
            images: padded images ``(N, C, H, W)`` in 0..255.
            sizes, original_sizes: sizes ``(N, 2)`` of the images without padding, and of the maps.

        Raises:
            Error: the scores of an image would exceed ``MAX_SCORES``. Several images in one batch stay within it.
        """
        num_scores = len(self.labels) * images.shape[-2] * images.shape[-1]
        batch_size = max(1, MAX_SCORES // num_scores)
        for start in range(0, len(images), batch_size):
            batch = slice(start, start + batch_size)
            batch_scores = self.predict_scores(images[batch], sizes[batch])
            shapes = zip(sizes[batch].int().tolist(), original_sizes[batch].int().tolist(), strict=True)
            for index, ((height, width), original_size) in enumerate(shapes):
                yield resize_and_argmax(batch_scores[index, :, :height, :width], *original_size).cpu().numpy()
            del batch_scores  # not beside those of the next images

    def build_value_table(self, batches: Iterable["PaddedBatch"]) -> "np.typing.NDArray[np.uint8]":
        """Build the table from mask values of ``batches`` to this task's: 0 unlabeled, else class index + 1."""
        return np.array([0, *(index + 1 for index in match_labels(self.labels, batches))], np.uint8)

    def collect_results(self, batches: Iterable["PaddedBatch"]) -> SegmentationResults:
        """Collect the results of all images of ``batches``, over all processes."""
        samples = get_padded_loader(batches).samples
        results, value_table = SegmentationResults(self.labels), self.build_value_table(batches)
        for batch in track(batches, "evaluation", unit="batches"):
            if len(batch.images):  # a process's part of the last batch may be empty
                batch = padded_images.move_batch(batch, self.runtime.device)
                maps = self.predict_maps(batch.images, batch.sizes, batch.original_sizes)
                for index, pixels in zip(batch.indices.tolist(), maps, strict=True):
                    results.update(index, pixels, value_table[read_mask(samples[index])])
        results.merge(self.runtime.all_gather(results))
        return results

    def predict_batch(self, images: Tensor) -> list[Prediction]:
        """Predict ``width``, ``height``, the ``fractions`` of the pixels by class, the largest first, and ``masks``.

        A mask is ``{"size": [height, width], "counts"}``, the compressed run lengths of COCO's tools.
        """
        from faster_coco_eval.core import mask

        height, width = images.shape[-2:]
        padded, sizes = padded_images.resize_and_pad(images.to(self.runtime.device), self.transform)
        predictions: list[Prediction] = []
        for pixels in self.predict_maps(padded, sizes, torch.tensor([[height, width]]).expand(len(images), 2)):
            counts = np.bincount(pixels.ravel(), minlength=len(self.labels) + 1)[1:]
            fractions, masks = {}, {}
            for class_index in np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)].tolist():
                label = self.labels[class_index]
                fractions[label] = round(float(counts[class_index] / pixels.size), 6)
                run_lengths = mask.encode(np.asfortranarray(pixels == class_index + 1, np.uint8))
                masks[label] = {"size": [height, width], "counts": run_lengths["counts"].decode()}
            predictions.append({"width": width, "height": height, "fractions": fractions, "masks": masks})
        return predictions

    def decode_masks(self, prediction: Prediction) -> "np.typing.NDArray[np.uint8]":
        """Decode the masks of a prediction to the class index of each pixel ``(height, width)``."""
        from faster_coco_eval.core import mask

        pixels = np.zeros((prediction["height"], prediction["width"]), np.uint8)
        for label, run_lengths in prediction["masks"].items():
            pixels[mask.decode(run_lengths).astype(bool)] = self.labels.index(label)
        return pixels

    def draw(self, image: Image.Image, prediction: Prediction) -> Image.Image:
        """Draw the predicted classes over the image, with a legend below."""
        colors = dict(zip(self.labels, image_draw.get_class_colors(self.labels), strict=True))
        entries = [(f"{label} {fraction:.0%}", colors[label]) for label, fraction in prediction["fractions"].items()]
        overlay = image_draw.overlay_mask(image, self.decode_masks(prediction), list(colors.values()))
        return image_draw.draw_legend(
            overlay, entries, [f"{label} 100%" for label in self.labels], min(MAX_LEGEND_CLASSES, len(colors))
        )

    def render_class_map(self, prediction: Prediction) -> Image.Image:
        """Render the class map as a palette image, whose values are class indices."""
        return image_draw.apply_palette(self.decode_masks(prediction), image_draw.get_class_colors(self.labels))

    @torch.inference_mode()
    def plot_evaluation(self, batches: Iterable["PaddedBatch"]) -> "Iterator[tuple[str, FigureContent]]":
        """Yield figures of the IoU by class, the confusion matrix, and the best, median and worst images."""
        from fukami.segmentation import plots as segmentation_plots

        results = self._get_results(batches)
        assert isinstance(results, SegmentationResults)
        if not self.runtime.is_main:
            return
        samples = get_padded_loader(batches).samples
        value_table = self.build_value_table(batches)

        def load_example(index: int) -> segmentation_plots.SegmentationExample:
            image = read_channels(samples[index].source, self.transform.channels)
            (prediction,) = self.predict([image])
            return build_preview(image), value_table[read_mask(samples[index])], self.decode_masks(prediction) + 1

        yield from segmentation_plots.plot_evaluation(results, load_example)


def check_num_scores(num_classes: int, height: int, width: int) -> None:
    """Check that the scores of an image are within the memory limit.

    Raises:
        Error: they are not.
    """
    num_scores = num_classes * height * width
    if num_scores > MAX_SCORES:
        raise Error(
            f"the scores of {num_classes} classes for {width}×{height} pixels would take {num_scores * 4 / 1e9:.1f} "
            f"GB, and at most {MAX_SCORES * 4 / 1e9:.1f} GB are used: use smaller images, or limit the input of the "
            "network: train with --max-size 2000, or use the trained network with --set max_size=2000"
        )


def get_padded_loader(batches: Iterable[object]) -> "PaddedLoader":
    """Return the loader of batches, which has the samples with their masks."""
    from fukami.data.padded_loader import PaddedLoader

    assert isinstance(batches, PaddedLoader)
    return batches


def read_mask(sample: "Sample") -> "np.typing.NDArray[np.uint8]":
    """Read the mask of a sample of segmentation."""
    assert sample.mask is not None
    return sample.mask.read()


def compute_class_weights(counts: "np.typing.NDArray[np.int64]") -> "np.typing.NDArray[np.float32]":
    """Compute the class weights ``(classes,)`` of median-frequency balancing; 0 for a class without pixels.

    A class's weight is the median frequency divided by its own; its frequency is its fraction of the pixels of the
    images that contain it (Eigen and Fergus 2015, section 6.3.2; Badrinarayanan et al. 2017, section 3.2). ``counts``
    ``(2, classes)``: the pixels of each class, and of the images that contain it.
    """
    class_pixels, image_pixels = counts.astype(np.float64)
    occurs = class_pixels > 0
    weights = np.zeros(len(class_pixels), np.float32)
    if occurs.any():
        frequency = class_pixels[occurs] / image_pixels[occurs]
        weights[occurs] = np.median(frequency) / frequency
    return weights


def compute_blend_weights(side: int, like: Tensor) -> Tensor:
    """Compute the blend weights along a tile ``(side,)``, which rise to 1 over the overlap of two tiles."""
    position = torch.arange(side, device=like.device, dtype=like.dtype) + 0.5
    return (torch.minimum(position, side - position) / TILE_OVERLAP).clamp(max=1)


def resize_and_argmax(scores: Tensor, height: int, width: int) -> Tensor:
    """Resize scores ``(classes, h, w)`` and return the class index + 1 of the highest, ``(height, width)`` uint8.

    The scores are resized (bilinear) before the argmax, in strips of rows to limit memory.
    """
    if scores.shape[1:] == (height, width):
        return (scores.argmax(0) + 1).to(torch.uint8)
    wide = F.interpolate(scores[None], (scores.shape[1], width), mode="bilinear", align_corners=False)[0]
    position = ((torch.arange(height, device=scores.device) + 0.5) * (scores.shape[1] / height) - 0.5).clamp(min=0)
    upper = position.floor().long()
    lower = (upper + 1).clamp(max=scores.shape[1] - 1)
    rows = max(1, MAX_STRIP_SCORES // (len(scores) * width))
    strips = [
        wide[:, upper[strip]].lerp(wide[:, lower[strip]], (position - upper)[strip].unsqueeze(1)).argmax(0)
        for strip in (slice(start, start + rows) for start in range(0, height, rows))
    ]
    return (torch.cat(strips) + 1).to(torch.uint8)

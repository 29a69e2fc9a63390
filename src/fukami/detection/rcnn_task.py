"""R-CNN (Girshick et al. 2014): classification of region proposals by a network, in three stages.

The stages use the same proposals, warping and non-maximum suppression. They differ in the scores and boxes: the softmax
of the network, a linear SVM per class, and the SVMs with a box regressor per class.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Unpack

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fukami.data.feature_cache import FeatureCache
from fukami.data.samples import PROPOSAL, REGULAR
from fukami.detection.metrics import DetectionResults
from fukami.detection.task import DetectionTask
from fukami.engine import padded_images
from fukami.engine.task import ModelSignature, TrainingOptions
from fukami.errors import UsageError
from fukami.image.transform import ResizeTransform
from fukami.layers import box_sampling, boxes
from fukami.layers.detection_types import Detections
from fukami.layers.roi_warp import warp_regions
from fukami.models.rcnn import RCNN
from fukami.quantization import half_precision
from fukami.selective_search import search

if TYPE_CHECKING:
    from fukami.data.samples import PaddedBatch

FEATURE_VERSION = 1  # of the warping and the features; cached features of another version are not used
MIN_PROPOSAL_SIZE = 20  # minimum width and height of a proposal in pixels of the padded image, as in the authors' code
MAX_PROPOSALS = 2000  # per image, about as many as in the paper
REGION_BATCH_SIZE = 256  # regions per forward pass
NMS_IOU = 0.3  # IoU threshold of the non-maximum suppression, per class
PRE_NMS_TOP_N, POST_NMS_TOP_N = 2000, 100  # maximum boxes per image before and after the suppression


@dataclass(frozen=True)
class RegionSettings:
    """Settings of the region proposals, the warping and the feature cache.

    Args:
        size: side of a warped region, in pixels.
        context_padding: context around the region on each side of the warped region, in pixels.
        mode: mode of Selective Search, for images without proposals.
        cache_limit: disk space of the feature cache, in gigabytes; 0 disables the cache.
        regions_per_image: number of training regions per image and step.
    """

    size: int
    context_padding: int
    mode: search.Mode = "fast"
    cache_limit: float = 0.0
    regions_per_image: int = 16


class RCNNTask(DetectionTask):
    """Base class of the R-CNN stages; each defines its scores.

    Args:
        model: a network with the methods of :class:`fukami.models.rcnn.RCNN`, which compute the features ``fc7`` and
            ``pool5`` of warped regions.
        region_settings: settings of the regions.
        labels, transform, confidence, options: as for :class:`DetectionTask`.
    """

    model: RCNN
    min_score = 0.01  # minimum score of a detection

    def __init__(
        self,
        model: RCNN,
        labels: tuple[str, ...],
        transform: ResizeTransform,
        region_settings: RegionSettings,
        *,
        confidence: float | None = None,
        **options: Unpack[TrainingOptions],
    ) -> None:
        super().__init__(model, labels, transform, confidence=confidence, **options)
        self.region_settings = region_settings
        self.feature_cache: FeatureCache | None = None

    def get_signature(self) -> ModelSignature:
        """Raise an error: the region proposals are not part of the network."""
        raise UsageError("R-CNN cannot be exported: its regions are proposed by Selective Search, not by the network")

    def compile(self) -> None:
        """Compile the network for training; all warped regions have one shape."""
        self.training_model = self.runtime.compile(self.ddp_model)

    def score_regions(self, fc7: Tensor) -> Tensor:
        """Compute the class scores ``(K, classes)`` in [0, 1] from features ``(K, hidden)``."""
        raise NotImplementedError(f"{type(self).__name__} does not define score_regions(fc7)")

    def refine_boxes(self, image: Tensor, regions: Tensor, classes: Tensor) -> Tensor:
        """Predict the boxes of the objects detected in regions ``(k, 4)`` of an image; by default the regions."""
        return regions

    def extract_features(self, image: Tensor, regions: Tensor, layer: str = "fc7") -> Tensor:
        """Compute the features ``(K, inputs)`` of regions ``(K, 4)`` of a normalized image ``(3, H, W)``.

        They are rounded to float16 even if they are not cached, so that the cache makes no difference.
        """
        compute = getattr(self.model, layer)
        dtype = next(self.model.parameters()).dtype
        features = []
        with half_precision.enable_float32_fallback(self.model):
            for chunk in torch.split(regions, REGION_BATCH_SIZE):
                warped = warp_regions(image, chunk, self.region_settings.size, self.region_settings.context_padding)
                features.append(compute(warped.to(dtype)).half())
        return torch.cat(features)

    def get_features(self, image: Tensor, proposals: Tensor) -> Tensor:
        """Return the features of all proposals of an image, from the cache if they are in it."""
        if not self.region_settings.cache_limit:
            return self.extract_features(image, proposals)
        if self.feature_cache is None:
            tf32 = torch.backends.cuda.matmul.allow_tf32
            settings = f"{FEATURE_VERSION} {self.region_settings.size} {self.region_settings.context_padding} {tf32}"
            self.feature_cache = FeatureCache(self.model.network, settings, self.region_settings.cache_limit)
        path = self.feature_cache.get_path(image, proposals)
        features = self.feature_cache.read(path)
        if features is None or len(features) != len(proposals):
            features = self.extract_features(image, proposals)
            self.feature_cache.write(path, features)
        return features.to(image.device)

    def detect_in_proposals(self, image: Tensor, size: Tensor, proposals: Tensor, fc7: Tensor) -> Detections:
        """Detect objects in a normalized image ``(3, H, W)`` from its proposals ``(P, 4)`` and their features.

        Args:
            image: normalized and padded.
            size: height and width of the image without padding, ``(2,)``.
            proposals: in pixels of the padded image.
            fc7: features of the proposals, ``(P, hidden)``.
        """
        dtype = next(self.model.parameters()).dtype
        with half_precision.enable_float32_fallback(self.model):
            scores = self.score_regions(fc7.to(dtype)).float()
        rows, classes = (scores > self.min_score).nonzero(as_tuple=True)
        best, order = scores[rows, classes].sort(descending=True, stable=True)
        order, best = order[:PRE_NMS_TOP_N], best[:PRE_NMS_TOP_N]
        rows, classes = rows[order], classes[order]
        keep = boxes.apply_nms(proposals[rows], best, classes, NMS_IOU)[:POST_NMS_TOP_N]
        rows, classes, best = rows[keep], classes[keep], best[keep]
        refined = self.refine_boxes(image, proposals[rows], classes).unsqueeze(0)
        return Detections(boxes.clip_boxes(refined, size.unsqueeze(0))[0], classes, best)

    def detect_batch(self, batch: "PaddedBatch") -> list[Detections]:
        """Detect objects in the images of a batch, from the proposals in the batch."""
        batch = padded_images.move_batch(batch, self.runtime.device)
        images = self.normalize_images(batch.images, batch.sizes)
        inputs = zip(images, batch.sizes, self.iterate_proposals(batch), strict=True)
        return [
            self.detect_in_proposals(image, size, proposals, self.get_features(image, proposals))
            for image, size, proposals in inputs
        ]

    def iterate_proposals(self, batch: "PaddedBatch") -> Iterator[Tensor]:
        """Iterate over the proposals ``(P, 4)`` of each image."""
        is_proposal = (batch.kinds == PROPOSAL) & (boxes.compute_area(batch.boxes) > 0)
        return (image_boxes[mask] for image_boxes, mask in zip(batch.boxes, is_proposal, strict=True))

    def detect(self, images: Tensor, sizes: Tensor) -> list[Detections]:
        """Detect objects in images ``(N, 3, H, W)`` in 0..255, from proposals that Selective Search computes now.

        The pixels are rounded, as those of a dataset are, so that the proposals are the same.
        """
        detections, images = [], images.round()
        for normalized, image, size in zip(self.normalize_images(images, sizes), images, sizes, strict=True):
            height, width = size.int().tolist()
            pixels = image[:, :height, :width].byte().permute(1, 2, 0).contiguous().cpu().numpy()
            proposals = torch.from_numpy(filter_proposals(search.propose_regions(pixels, self.region_settings.mode)))
            proposals = proposals.to(normalized.device)
            features = self.extract_features(normalized, proposals)
            detections.append(self.detect_in_proposals(normalized, size, proposals, features))
        return detections


def filter_proposals(proposals: search.Boxes) -> search.Boxes:
    """Remove small proposals of ``(n, 4)``, and limit their number to ``MAX_PROPOSALS``."""
    is_large = ((proposals[:, 2:] - proposals[:, :2]) >= MIN_PROPOSAL_SIZE).all(1)
    return np.ascontiguousarray(proposals[is_large][:MAX_PROPOSALS])


class RCNNFinetuneTask(RCNNTask):
    """Stage 1: fine-tuning of the classifier on warped regions of background (Girshick et al. 2014, section 2.3).

    Each image of a batch contributes ``regions_per_image`` regions. At most a quarter are positive: objects, and
    regions that overlap one by an IoU of 0.5 or more. The other regions are background. (The paper samples 32 and 96
    regions from all images together.)
    """

    def score_regions(self, fc7: Tensor) -> Tensor:
        """Compute the softmax, without the background."""
        return self.model.compute_scores(fc7).float().softmax(1)[:, 1:]

    def collect_results(self, batches: Iterable["PaddedBatch"]) -> DetectionResults:
        """Collect the detections and the objects of all batches."""
        self.feature_cache = None  # it belongs to the weights of the last evaluation
        return super().collect_results(batches)

    def compute_loss(self, batch: "PaddedBatch") -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the cross entropy of the sampled regions, and their accuracy."""
        batch = padded_images.move_batch(batch, self.runtime.device)
        regions, targets, is_valid = self.sample_regions(batch)
        images = self.normalize_images(batch.images, batch.sizes)
        size, context = self.region_settings.size, self.region_settings.context_padding
        warped = torch.cat([warp_regions(*pair, size, context) for pair in zip(images, regions, strict=True)])
        scores = self.training_model(warped.contiguous(memory_format=torch.channels_last)).float()
        targets, is_valid = targets.flatten(), is_valid.flatten()
        count = self.runtime.all_reduce_sum(is_valid.sum()).clamp(min=1) / self.runtime.world_size
        loss = torch.where(is_valid, F.cross_entropy(scores, targets, reduction="none"), 0).sum() / count
        accuracy = (is_valid & (scores.argmax(1) == targets)).sum() / count
        return loss, {"accuracy": accuracy.detach()}

    def sample_regions(self, batch: "PaddedBatch") -> tuple[Tensor, Tensor, Tensor]:
        """Sample the training regions of each image.

        Returns:
            Regions ``(N, regions_per_image, 4)``, their targets with 0 for background, and whether each is valid.
        """
        object_slots = (batch.classes >= 0).any(0).nonzero()
        num_objects = int(object_slots[-1]) + 1 if len(object_slots) else 1  # objects precede the proposals
        truth = batch.boxes[:, :num_objects], batch.classes[:, :num_objects], batch.kinds[:, :num_objects]
        _, targets = box_sampling.match_boxes(batch.boxes, truth[0], truth[1], truth[2] > REGULAR, 0.5, 0.5)
        is_candidate = (batch.kinds == PROPOSAL) | ((batch.kinds == REGULAR) & (batch.classes >= 0))
        is_candidate &= boxes.compute_area(batch.boxes) > 0
        targets = torch.where(is_candidate, targets, box_sampling.IGNORE_LABEL)
        indices, is_valid = box_sampling.sample_balanced(
            targets,
            box_sampling.compute_priorities(batch.seeds, targets.shape[1]),
            self.region_settings.regions_per_image,
            0.25,
        )
        return box_sampling.gather_by_index(batch.boxes, indices), targets.gather(1, indices).clamp(min=0), is_valid

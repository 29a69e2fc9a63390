"""R-CNN: a network says of each proposed region what is in it (Girshick et al. 2014); its three stages.

The stages share how regions are found, warped and suppressed; they differ in what scores a region: the network's own
softmax, a linear machine of each class, and that with a box of each class.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Unpack

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fukami.data.feature_cache import FeatureCache
from fukami.data.samples import PROPOSAL, REGULAR
from fukami.detection.metrics import DetectionResults
from fukami.detection.task import DetectionTask
from fukami.engine.task import ModelSignature, TrainingOptions
from fukami.errors import UsageError
from fukami.image.transform import ResizeTransform
from fukami.layers import box_sampling, boxes
from fukami.layers.detection_types import Detections
from fukami.layers.roi_warp import warp_regions
from fukami.quantization import half_precision
from fukami.selective_search import search

if TYPE_CHECKING:
    from fukami.data.samples import PaddedBatch

FEATURE_VERSION = 1  # of how regions are warped and looked at: features that were kept with another are not read
MIN_PROPOSAL_SIZE = 20  # pixels of the frame that a proposal is at least wide and high, as in the paper's code
MAX_PROPOSALS = 2000  # proposals of an image, about as many as the paper has
REGION_BATCH_SIZE = 256  # regions that pass through the network at once
NMS_IOU = 0.3  # IoU with a better one of its class from which on a region is suppressed
PRE_NMS_TOP_N, POST_NMS_TOP_N = 2000, 100  # boxes of an image before and after the suppression


@dataclass(frozen=True)
class RegionSettings:
    """How the regions of an image are found, warped and remembered.

    Args:
        size: side of a warped region in pixels.
        context_padding: pixels of it on each side that show what is around the region.
        mode: of Selective Search, where an image has no proposals yet.
        cache_limit: gigabytes of disk that features may take; 0: none are kept.
        regions_per_image: regions of an image that an update learns from.
    """

    size: int
    context_padding: int
    mode: search.Mode = "fast"
    cache_limit: float = 0.0
    regions_per_image: int = 16


class RCNNTask(DetectionTask):
    """What the stages share; each defines how it scores.

    Args:
        model: as :class:`fukami.models.rcnn.RCNN`: it gives the features ``fc7`` and ``pool5`` of warped regions.
        region_settings: how these come about; it travels with the task, as ``prepare`` does.
        labels, prepare, regime: as for :class:`Detection`.
    """

    min_score = 0.01  # score from which on a region is an answer

    def __init__(
        self,
        model: nn.Module,
        labels: tuple[str, ...],
        prepare: ResizeTransform,
        region_settings: RegionSettings,
        **regime: Unpack[TrainingOptions],
    ) -> None:
        super().__init__(model, labels, prepare, **regime)
        self.region_settings = region_settings
        self.feature_cache: FeatureCache | None = None

    def get_signature(self) -> ModelSignature:
        """Refuse: no network proposes the regions."""
        raise UsageError("R-CNN cannot be exported to another program: regions are proposed by no network, but by ours")

    def compile(self) -> None:
        """From now on train a compiled network; its regions all have one shape."""
        self.training_model = self.runtime.compile(self.ddp_model)

    def score_regions(self, fc7: Tensor) -> Tensor:
        """The score in [0, 1] of each class for features ``(K, hidden)``, ``(K, classes)``."""
        raise NotImplementedError(f"{type(self).__name__} does not define score_regions(fc7)")

    def refine_boxes(self, image: Tensor, regions: Tensor, classes: Tensor) -> Tensor:
        """Where the objects are that were found in regions ``(k, 4)`` of an image; by default in these."""
        return regions

    def extract_features(self, image: Tensor, regions: Tensor, layer: str = "fc7") -> Tensor:
        """The features of regions ``(K, 4)`` of a normalised image ``(3, H, W)``, ``(K, inputs)`` float16.

        They are rounded to it whether they are kept or not, so that this makes no difference.
        """
        compute = getattr(self.model, layer)
        kind = next(self.model.parameters()).dtype
        found = []
        with half_precision.enable_float32_fallback(self.model):
            for part in torch.split(regions, REGION_BATCH_SIZE):
                warped = warp_regions(image, part, self.region_settings.size, self.region_settings.context_padding)
                found.append(compute(warped.to(kind)).half())
        return torch.cat(found)

    def get_features(self, image: Tensor, proposals: Tensor) -> Tensor:
        """The features of all proposals of an image, computed or as they were kept."""
        if not self.region_settings.cache_limit:
            return self.extract_features(image, proposals)
        if self.feature_cache is None:
            tf32 = torch.backends.cuda.matmul.allow_tf32
            settings = f"{FEATURE_VERSION} {self.region_settings.size} {self.region_settings.context_padding} {tf32}"
            self.feature_cache = FeatureCache(self.model.network, settings, self.region_settings.cache_limit)  # type: ignore[arg-type]
        path = self.feature_cache.get_path(image, proposals)
        found = self.feature_cache.read(path)
        if found is None or len(found) != len(proposals):
            found = self.extract_features(image, proposals)
            self.feature_cache.write(path, found)
        return found.to(image.device)

    def detect_in_proposals(self, image: Tensor, size: Tensor, proposals: Tensor, fc7: Tensor) -> Detections:
        """What is in a normalised image ``(3, H, W)`` of so many pixels, by proposals ``(P, 4)`` and features."""
        kind = next(self.model.parameters()).dtype
        with half_precision.enable_float32_fallback(self.model):
            scores = self.score_regions(fc7.to(kind)).float()
        row, classes = (scores > self.min_score).nonzero(as_tuple=True)
        best, which = scores[row, classes].sort(descending=True, stable=True)
        which, best = which[:PRE_NMS_TOP_N], best[:PRE_NMS_TOP_N]
        row, classes = row[which], classes[which]
        keep = boxes.apply_nms(proposals[row], best, classes, NMS_IOU)[:POST_NMS_TOP_N]
        row, classes, best = row[keep], classes[keep], best[keep]
        own = boxes.clip_boxes(self.refine_boxes(image, proposals[row], classes).unsqueeze(0), size.unsqueeze(0))[0]
        return Detections(own, classes, best)

    def detect_batch(self, batch: "PaddedBatch") -> list[Detections]:
        """What is found in the images of a batch, by the proposals that it has."""
        batch = self.move_to_device(batch)
        images = self.normalize_images(batch.images, batch.sizes)
        every = zip(images, batch.sizes, self.iterate_proposals(batch), strict=True)
        return [self.detect_in_proposals(image, size, own, self.get_features(image, own)) for image, size, own in every]

    def iterate_proposals(self, batch: "PaddedBatch") -> Iterator[Tensor]:
        """Those of each image, ``(P, 4)``."""
        there = (batch.kinds == PROPOSAL) & (boxes.compute_area(batch.boxes) > 0)
        return (own[which] for own, which in zip(batch.boxes, there, strict=True))

    def detect(self, images: Tensor, sizes: Tensor) -> list[Detections]:
        """What is in images ``(N, 3, H, W)`` in 0..255, by regions that are looked for now.

        They are rounded, as those of the data are, so that the same regions are found.
        """
        found, images = [], images.round()
        for image, each, size in zip(self.normalize_images(images, sizes), images, sizes, strict=True):
            height, width = size.int().tolist()
            pixels = each[:, :height, :width].byte().permute(1, 2, 0).contiguous().cpu().numpy()
            proposals = torch.from_numpy(filter_proposals(search.propose_regions(pixels, self.region_settings.mode)))
            proposals = proposals.to(image.device)
            found.append(self.detect_in_proposals(image, size, proposals, self.extract_features(image, proposals)))
        return found


def filter_proposals(proposals: search.Boxes) -> search.Boxes:
    """Those of the proposals ``(n, 4)`` of a frame that are looked into: not too small, and not too many."""
    large = ((proposals[:, 2:] - proposals[:, :2]) >= MIN_PROPOSAL_SIZE).all(1)
    return np.ascontiguousarray(proposals[large][:MAX_PROPOSALS])


class RCNNFinetuneTask(RCNNTask):
    """Stage 1: the classifier learns the classes and the background on warped regions (section 2.3).

    Each image of a batch gives ``each`` regions: a quarter of them, at most, such as overlap an object by half, or
    the object itself; the rest background. (The paper draws 32 and 96 regions from all images at once.)
    """

    def score_regions(self, fc7: Tensor) -> Tensor:
        """The softmax, without the background."""
        return self.model.compute_scores(fc7).float().softmax(1)[:, 1:]  # type: ignore[operator, no-any-return]

    def collect_results(self, batches: Iterable["PaddedBatch"]) -> DetectionResults:
        """As all detectors; the features that were kept before are those of another network, which learned since."""
        self.feature_cache = None
        return super().collect_results(batches)

    def compute_loss(self, batch: "PaddedBatch") -> tuple[Tensor, dict[str, Tensor]]:
        """Cross entropy of the regions drawn, and the share of them that is named rightly."""
        batch = self.move_to_device(batch)
        regions, targets, there = self.sample_regions(batch)
        images = self.normalize_images(batch.images, batch.sizes)
        size, context = self.region_settings.size, self.region_settings.context_padding
        warped = torch.cat([warp_regions(*each, size, context) for each in zip(images, regions, strict=True)])
        scores = self.training_model(warped.contiguous(memory_format=torch.channels_last)).float()
        targets, there = targets.flatten(), there.flatten()
        count = self.runtime.all_reduce_sum(there.sum()).clamp(min=1) / self.runtime.world_size
        loss = torch.where(there, F.cross_entropy(scores, targets, reduction="none"), 0).sum() / count
        right = (there & (scores.argmax(1) == targets)).sum() / count
        return loss, {"right": right.detach()}

    def sample_regions(self, batch: "PaddedBatch") -> tuple[Tensor, Tensor, Tensor]:
        """Regions ``(N, each, 4)``, their targets ``(N, each)`` with 0 for background, and which of them there are."""
        known = (batch.classes >= 0).any(0).nonzero()
        objects = int(known[-1]) + 1 if len(known) else 1  # they come before the proposals
        truth = batch.boxes[:, :objects], batch.classes[:, :objects], batch.kinds[:, :objects]
        _, targets = box_sampling.match_boxes(batch.boxes, truth[0], truth[1], truth[2] > REGULAR, 0.5, 0.5)
        either = (batch.kinds == PROPOSAL) | ((batch.kinds == REGULAR) & (batch.classes >= 0))
        either &= boxes.compute_area(batch.boxes) > 0
        targets = torch.where(either, targets, box_sampling.IGNORE_LABEL)
        chosen, there = box_sampling.sample_balanced(
            targets,
            box_sampling.compute_priorities(batch.seeds, targets.shape[1]),
            self.region_settings.regions_per_image,
            0.25,
        )
        return box_sampling.gather_by_index(batch.boxes, chosen), targets.gather(1, chosen).clamp(min=0), there

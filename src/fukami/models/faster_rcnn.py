"""Faster R-CNN: two-stage detection by a region proposal network and RoI heads on shared feature maps.

Ren et al., "Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks", NIPS 2015 (sections are
those of the long version, PAMI 2017); with a feature pyramid: Lin et al., "Feature Pyramid Networks for Object
Detection", CVPR 2017.

    image → backbone → maps ─┬→ 3×3, 512 → 1×1: objectness, 1×1: box, for each anchor → proposals ─┐
                               └──────────────── RoIAlign 7×7 of each proposal ←──────────────────────┘
                                                 → fc, fc → fc: class, fc: box for each class

All shapes are fixed and padding is masked, except in non-maximum suppression and, with a pyramid, the number of regions
per level. The parameter names are torchvision's, so its published COCO weights load directly.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_pool

from fukami.layers import anchors, box_sampling, boxes
from fukami.layers.detection_types import BatchGroundTruth, Detections, SampledBoxes
from fukami.layers.frozen_batch_norm import freeze_batch_norm
from fukami.layers.initialization import zero_bias
from fukami.layers.roi_align import roi_align
from fukami.models.resnet import resnet50
from fukami.models.vgg import build_vgg_features

RoIPooling = Literal["align", "pool"]
TrainingStage = Literal["both", "rpn", "regions"]
POOLED_SIZE = 7  # side of a pooled region


class RPNOutput(NamedTuple):
    """Outputs of the region proposal network for the anchors of all levels.

    Attributes:
        logits: objectness ``(N, A)``.
        deltas: box deltas ``(N, A, 4)``.
        anchors: anchor boxes ``(A, 4)``.
        anchors_per_level: number of anchors of each level.
    """

    logits: Tensor
    deltas: Tensor
    anchors: Tensor
    anchors_per_level: list[int]


@dataclass(frozen=True)
class DetectionLimits:
    """Maximum number of boxes in each step of the detector.

    Attributes:
        pre_nms_top_n, post_nms_top_n: proposals before and after non-maximum suppression, in training and evaluation.
        anchors_per_image, regions_per_image: boxes sampled for the loss of each stage.
        detections_per_image: detections in an image.
    """

    pre_nms_top_n: tuple[int, int]
    post_nms_top_n: tuple[int, int]
    anchors_per_image: int = 256
    regions_per_image: int = 512
    detections_per_image: int = 100


def faster_rcnn_vgg16(
    num_classes: int = 20,
    *,
    anchor_sizes: Sequence[float] = (128, 256, 512),
    hidden: int = 4096,
    dropout: float = 0.5,
    roi_pooling: RoIPooling = "align",
    batch_norm: bool = False,
    width_multiplier: float = 1.0,
    stride: Literal[8, 16] = 16,
) -> "FasterRCNN":
    """Build Faster R-CNN on VGG-16 without its last pooling, stride 16 (Ren et al. 2015, sections 3.1.1 and 3.3).

    Args:
        num_classes: number of classes without the background.
        anchor_sizes: sides of the square anchors in pixels; each has the aspect ratios 2:1, 1:1 and 1:2.
        hidden: number of units of the two hidden fully connected layers.
        dropout: dropout probability of these units.
        roi_pooling: ``"align"``, RoIAlign (He et al. 2017), or ``"pool"``, the paper's RoIPool.
        batch_norm: batch normalization after every convolution of the backbone.
        width_multiplier: number of channels of the backbone, as a fraction of the paper's.
        stride: stride of the feature map in pixels; with 8 the fourth pooling has stride 1.
    """
    backbone = VGGBackbone(batch_norm, width_multiplier, stride)
    rpn = RegionProposalNetwork(backbone.channels, [anchors.compute_cell_anchors(anchor_sizes)], inside_only=True)
    heads = RoIHeads(backbone.channels, num_classes, (stride,), hidden, dropout, roi_pooling)
    return FasterRCNN(backbone, rpn, heads, DetectionLimits((12000, 6000), (2000, 300), regions_per_image=128))


def faster_rcnn_resnet50_fpn(
    num_classes: int = 90,
    *,
    roi_pooling: RoIPooling = "align",
    frozen_batch_norm: bool = True,
    anchor_sizes: Sequence[float] = (32, 64, 128, 256, 512),
) -> "FasterRCNN":
    """Build Faster R-CNN on ResNet-50 with a feature pyramid, as torchvision's ``fasterrcnn_resnet50_fpn``.

    Args:
        num_classes: number of classes without the background.
        roi_pooling: as for :func:`faster_rcnn_vgg16`.
        frozen_batch_norm: freeze batch normalization, as published weights require; needs pretrained weights.
        anchor_sizes: side in pixels of the square anchor of each level of the pyramid.
    """
    backbone = ResNetFPNBackbone(frozen_batch_norm)
    rpn = RegionProposalNetwork(256, [anchors.compute_cell_anchors([size]) for size in anchor_sizes], inside_only=False)
    heads = RoIHeads(256, num_classes, (4, 8, 16, 32), 1024, 0.0, roi_pooling)
    return FasterRCNN(backbone, rpn, heads, DetectionLimits((2000, 1000), (2000, 1000)))


class FasterRCNN(nn.Module):
    """Two-stage detector: backbone, region proposal network and RoI heads."""

    def __init__(
        self, backbone: nn.Module, rpn: "RegionProposalNetwork", roi_heads: "RoIHeads", limits: DetectionLimits
    ) -> None:
        super().__init__()
        self.backbone, self.rpn, self.roi_heads, self.limits = backbone, rpn, roi_heads, limits

    def forward(
        self,
        images: Tensor,
        sizes: Tensor,
        ground_truth: BatchGroundTruth | None = None,
        proposals: tuple[Tensor, Tensor] | None = None,
        stage: TrainingStage = "both",
    ) -> list[Detections] | tuple[SampledBoxes | None, SampledBoxes | None]:
        """Detect objects or, with ground truth, sample boxes for the losses.

        Args:
            images: normalized ``(N, 3, H, W)``, padded to multiples of 32.
            sizes: heights and widths without the padding, ``(N, 2)``.
            ground_truth: None: detect.
            proposals: external proposals ``(N, P, 4)`` and their validity mask ``(N, P)``, instead of the RPN's.
            stage: stage to sample boxes for, or both; the result of the other stage is None.

        Returns:
            Without ``ground_truth`` a list of :class:`Detections`; with it the :class:`SampledBoxes` of the two stages.
        """
        maps = self.backbone(images)
        anchor_samples = None
        if proposals is None or (ground_truth is not None and stage != "regions"):
            output = self.rpn(maps, (images.shape[-2], images.shape[-1]))
            if ground_truth is not None and stage != "regions":
                anchor_samples = self.rpn.sample_anchors(output, sizes, ground_truth, self.limits)
            if proposals is None and stage != "rpn":
                proposals = self.rpn.select_proposals(output, sizes, self.limits)
        if proposals is None:
            return anchor_samples, None
        if ground_truth is None:
            return self.roi_heads.detect(maps, *proposals, sizes, self.limits)
        return anchor_samples, self.roi_heads.sample_regions(maps, *proposals, ground_truth, self.limits)

    def get_traceable_module(self) -> nn.Module:
        """Return the layers with fixed shapes, which can be traced, with the entire image as the only region."""
        return TraceableFasterRCNN(self)

    def propose(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Return the proposals by descending objectness, ``(N, P, 4)``, and their validity mask ``(N, P)``."""
        output = self.rpn(self.backbone(images), (images.shape[-2], images.shape[-1]))
        return self.rpn.select_proposals(output, sizes, self.limits)


class TraceableFasterRCNN(nn.Module):
    """Traceable layers of a detector, without data-dependent control flow; the RoI heads process one region."""

    def __init__(self, detector: FasterRCNN) -> None:
        super().__init__()
        self.backbone, self.rpn_head = detector.backbone, detector.rpn.head
        self.box_head, self.box_predictor = detector.roi_heads.box_head, detector.roi_heads.box_predictor
        self.pool = nn.AdaptiveAvgPool2d(POOLED_SIZE)

    def forward(self, images: Tensor) -> tuple[list[tuple[Tensor, Tensor]], tuple[Tensor, Tensor]]:
        """Return the outputs of the RPN head for each map and of the RoI heads for images ``(N, 3, H, W)``."""
        maps = self.backbone(images)
        return [self.rpn_head(features) for features in maps], self.box_predictor(self.box_head(self.pool(maps[-1])))


class RegionProposalNetwork(nn.Module):
    """Region proposal network: objectness and box deltas of each anchor (Ren et al. 2015, section 3.1)."""

    def __init__(self, channels: int, cell_anchors: Sequence[anchors.CellAnchors], *, inside_only: bool) -> None:
        super().__init__()
        self.cell_anchors, self.inside_only = cell_anchors, inside_only
        self.head = RPNHead(channels, len(cell_anchors[0]))

    def forward(self, maps: Sequence[Tensor], image_size: tuple[int, int]) -> RPNOutput:
        """Compute objectness and deltas of all anchors; ``image_size`` is the height and width of the images."""
        outputs = [self.head(features) for features in maps]
        logits, deltas = (torch.cat(levels, 1).float() for levels in zip(*outputs, strict=True))
        return RPNOutput(
            logits,
            deltas,
            anchors.compute_anchors(self.cell_anchors, maps, image_size),
            [level_logits.shape[1] for level_logits, _ in outputs],
        )

    def sample_anchors(
        self, output: RPNOutput, sizes: Tensor, ground_truth: BatchGroundTruth, limits: DetectionLimits
    ) -> SampledBoxes:
        """Sample the anchors of the RPN loss, at most half of them positive (Ren et al. 2015, section 3.1.3)."""
        anchor_boxes, inside = output.anchors, None
        with torch.no_grad():
            if self.inside_only:  # cross-boundary anchors cause large errors that are hard to correct
                inside = (anchor_boxes[:, :2] >= 0).all(1) & (anchor_boxes[:, 2:] <= sizes.flip(1).unsqueeze(1)).all(2)
            objects = ground_truth.boxes, ground_truth.classes, ground_truth.ignored
            matches, targets = box_sampling.match_boxes(
                anchor_boxes, *objects, 0.3, 0.7, allow_low_quality_matches=True, usable=inside
            )
            priorities = box_sampling.compute_priorities(ground_truth.seeds, len(anchor_boxes))
            indices, valid = box_sampling.sample_balanced(targets, priorities, limits.anchors_per_image, 0.5)
            targets = (targets.gather(1, indices) > 0).long()
            target_deltas = boxes.encode_boxes(
                box_sampling.gather_by_index(ground_truth.boxes, matches.gather(1, indices)), anchor_boxes[indices]
            )
            target_deltas = target_deltas.where((targets > 0).unsqueeze(2), 0.0)  # background may have no match
        return SampledBoxes(
            output.logits.gather(1, indices),
            targets,
            box_sampling.gather_by_index(output.deltas, indices),
            target_deltas,
            valid,
        )

    @torch.no_grad()
    def select_proposals(self, output: RPNOutput, sizes: Tensor, limits: DetectionLimits) -> tuple[Tensor, Tensor]:
        """Select the best boxes of each image by NMS (IoU 0.7) as proposals, and return their validity mask."""
        pre_nms_top_n, post_nms_top_n = (
            limits.pre_nms_top_n[not self.training],
            limits.post_nms_top_n[not self.training],
        )
        level_logits = output.logits.split_with_sizes(output.anchors_per_level, 1)
        starts = [sum(output.anchors_per_level[:level]) for level in range(len(level_logits))]
        top_indices = [
            logits.topk(min(pre_nms_top_n, logits.shape[1])).indices + start
            for logits, start in zip(level_logits, starts, strict=True)
        ]
        indices = torch.cat(top_indices, 1)
        levels = torch.cat(
            [torch.full_like(level_indices[0], level) for level, level_indices in enumerate(top_indices)]
        )
        proposals = boxes.clip_boxes(
            boxes.decode_boxes(box_sampling.gather_by_index(output.deltas, indices), output.anchors[indices]), sizes
        )
        nonempty = (proposals[..., 2:] - proposals[..., :2] >= 1e-3).all(2)
        proposals = proposals.where(nonempty.unsqueeze(2), 0.0)  # boxes of a diverged network may not be finite
        logits = output.logits.gather(1, indices).masked_fill(~nonempty, -torch.inf)
        selected, masks = [], []
        for candidates, candidate_logits, valid in zip(proposals, logits, nonempty, strict=True):
            keep = boxes.apply_nms(candidates, candidate_logits, levels, 0.7)
            in_range = torch.arange(post_nms_top_n, device=keep.device) < keep.shape[0]
            keep = F.pad(keep, (0, post_nms_top_n))[:post_nms_top_n]
            selected.append(candidates[keep])
            masks.append(valid[keep] & in_range)
        return torch.stack(selected), torch.stack(masks)


class RPNHead(nn.Module):
    """RPN head: a 3×3 convolution, and 1×1 convolutions for objectness and box deltas of each anchor."""

    def __init__(self, channels: int, num_anchors: int) -> None:
        super().__init__()
        convolution = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv = nn.Sequential(nn.Sequential(convolution, nn.ReLU(inplace=True)))
        self.cls_logits = nn.Conv2d(channels, num_anchors, 1)
        self.bbox_pred = nn.Conv2d(channels, 4 * num_anchors, 1)
        for layer in (convolution, self.cls_logits, self.bbox_pred):
            nn.init.normal_(layer.weight, std=0.01)
            zero_bias(layer)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Compute objectness ``(N, A)`` and deltas ``(N, A, 4)`` of maps ``(N, channels, H, W)``."""
        features = self.conv(features)
        logits, deltas = (layer(features).permute(0, 2, 3, 1) for layer in (self.cls_logits, self.bbox_pred))
        return logits.flatten(1), deltas.reshape(deltas.shape[0], -1, 4)


class RoIHeads(nn.Module):
    """RoI heads: class logits and a box per class of each proposal (Girshick 2015, "Fast R-CNN")."""

    def __init__(
        self,
        channels: int,
        num_classes: int,
        strides: Sequence[int],
        hidden: int,
        dropout: float,
        roi_pooling: RoIPooling,
    ) -> None:
        super().__init__()
        self.strides, self.roi_pooling = strides, roi_pooling
        self.box_head = TwoMLPHead(channels * POOLED_SIZE * POOLED_SIZE, hidden, dropout)
        self.box_predictor = FastRCNNPredictor(hidden, num_classes)

    def sample_regions(
        self,
        maps: Sequence[Tensor],
        proposals: Tensor,
        valid: Tensor,
        ground_truth: BatchGroundTruth,
        limits: DetectionLimits,
    ) -> SampledBoxes:
        """Sample the regions of the loss from proposals and ground-truth boxes, at most a quarter of them positive."""
        with torch.no_grad():
            objects = (ground_truth.classes >= 0) & ~ground_truth.ignored
            proposals, valid = torch.cat([proposals, ground_truth.boxes], 1), torch.cat([valid, objects], 1)
            matches, targets = box_sampling.match_boxes(
                proposals, ground_truth.boxes, ground_truth.classes, ground_truth.ignored, 0.5, 0.5
            )
            targets = torch.where(valid, targets, box_sampling.IGNORE_LABEL)
            priorities = box_sampling.compute_priorities(ground_truth.seeds + 1, proposals.shape[1])
            indices, sampled_valid = box_sampling.sample_balanced(targets, priorities, limits.regions_per_image, 0.25)
            proposals, targets = (
                box_sampling.gather_by_index(proposals, indices),
                targets.gather(1, indices).clamp(min=0),
            )
            target_deltas = boxes.encode_boxes(
                box_sampling.gather_by_index(ground_truth.boxes, matches.gather(1, indices)),
                proposals,
                boxes.ROI_WEIGHTS,
            )
            target_deltas = target_deltas.where((targets > 0).unsqueeze(2), 0.0)
        class_logits, deltas = self(maps, proposals)
        target_class_deltas = box_sampling.gather_by_index(deltas.flatten(0, 1), targets.view(-1, 1)).view_as(
            target_deltas
        )
        return SampledBoxes(class_logits, targets, target_class_deltas, target_deltas, sampled_valid)

    def detect(
        self, maps: Sequence[Tensor], proposals: Tensor, valid: Tensor, sizes: Tensor, limits: DetectionLimits
    ) -> list[Detections]:
        """Return the detections: boxes with a score above 5 % after NMS per class (IoU 0.5)."""
        class_logits, deltas = self(maps, proposals)
        class_scores = class_logits.softmax(2)[..., 1:] * valid.unsqueeze(2)
        class_boxes = boxes.decode_boxes(deltas[:, :, 1:], proposals.unsqueeze(2), boxes.ROI_WEIGHTS)
        class_boxes = boxes.clip_boxes(class_boxes, sizes)
        candidates = (class_scores > 0.05) & ((class_boxes[..., 2:] - class_boxes[..., :2]) >= 1e-2).all(3)
        detections = []
        for image_boxes, image_scores, mask in zip(class_boxes, class_scores, candidates, strict=True):
            _, classes = mask.nonzero(as_tuple=True)
            image_boxes, image_scores = image_boxes[mask], image_scores[mask]
            keep = boxes.apply_nms(image_boxes, image_scores, classes, 0.5)[: limits.detections_per_image]
            detections.append(Detections(image_boxes[keep], classes[keep], image_scores[keep]))
        return detections

    def forward(self, maps: Sequence[Tensor], regions: Tensor) -> tuple[Tensor, Tensor]:
        """Compute logits ``(N, P, classes + 1)`` and deltas ``(N, P, classes + 1, 4)`` of ``(N, P, 4)``, float32."""
        pooled = self.pool_regions(maps, regions)
        class_logits, deltas = self.box_predictor(self.box_head(pooled.to(maps[0].dtype)))
        shape = regions.shape[:2]
        return class_logits.float().view(*shape, -1), deltas.float().view(*shape, -1, 4)

    def pool_regions(self, maps: Sequence[Tensor], regions: Tensor) -> Tensor:
        """Pool regions ``(N, P, 4)`` to ``(N P, C, 7, 7)``, each from the pyramid level that matches its size."""
        image_indices = torch.arange(len(regions), device=regions.device, dtype=regions.dtype)
        flat = torch.cat([image_indices.repeat_interleave(regions.shape[1]).unsqueeze(1), regions.flatten(0, 1)], 1)
        if len(self.strides) == 1:
            return self._pool_level(maps[0], flat, self.strides[0])
        side = boxes.compute_area(flat[:, 1:]).clamp(min=0).sqrt()
        level = (4 + (side / 224).log2() + 1e-6).floor().clamp(2, 5).long() - 2  # Lin et al. 2017, equation 1
        rows = [(level == index).nonzero().squeeze(1) for index in range(len(self.strides))]
        regions_by_level = [flat[row] for row in rows]
        pooled = torch.cat(
            [self._pool_level(*arguments) for arguments in zip(maps, regions_by_level, self.strides, strict=False)]
        )
        return pooled[torch.cat(rows).argsort()]

    def _pool_level(self, features: Tensor, regions: Tensor, stride: int) -> Tensor:
        """Pool regions of one level, in float32."""
        features = features.float()
        if self.roi_pooling == "pool":
            pooled: Tensor = roi_pool(features, regions, POOLED_SIZE, 1 / stride)
            return pooled
        return roi_align(features, regions, POOLED_SIZE, 1 / stride)


class TwoMLPHead(nn.Module):
    """Two fully connected layers with ReLU on a pooled region."""

    def __init__(self, inputs: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.fc6, self.fc7 = nn.Linear(inputs, hidden), nn.Linear(hidden, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, regions: Tensor) -> Tensor:
        """Compute features ``(K, hidden)`` of pooled regions ``(K, C, 7, 7)``."""
        fc6 = self.dropout(F.relu(self.fc6(regions.flatten(1))))
        fc7: Tensor = self.dropout(F.relu(self.fc7(fc6)))
        return fc7


class FastRCNNPredictor(nn.Module):
    """Predictor of class logits, background first, and of box deltas per class."""

    def __init__(self, inputs: int, num_classes: int) -> None:
        super().__init__()
        self.cls_score, self.bbox_pred = nn.Linear(inputs, num_classes + 1), nn.Linear(inputs, 4 * (num_classes + 1))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Compute logits ``(K, classes + 1)`` and deltas ``(K, 4 (classes + 1))`` of features ``(K, inputs)``."""
        return self.cls_score(features), self.bbox_pred(features)


class VGGBackbone(nn.Module):
    """Convolutions of VGG-16 with one map of stride 16, or 8 if the fourth pooling has stride 1."""

    def __init__(self, batch_norm: bool, width_multiplier: float, stride: Literal[8, 16]) -> None:
        super().__init__()
        layers = list(build_vgg_features("D", batch_norm=batch_norm, width_multiplier=width_multiplier))[:-1]
        if stride == 8:
            (*_, fourth) = (index for index, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d))
            layers[fourth] = nn.MaxPool2d(3, stride=1, padding=1)
        self.features = nn.Sequential(*layers)
        self.channels = round(512 * width_multiplier)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Compute one map ``(N, C, H / stride, W / stride)`` of images ``(N, 3, H, W)``."""
        return [self.features(images)]


class ResNetFPNBackbone(nn.Module):
    """ResNet-50 with a feature pyramid: five maps of 256 channels, with strides 4, 8, 16, 32 and 64."""

    def __init__(self, frozen_batch_norm: bool) -> None:
        super().__init__()
        network = resnet50(1)
        stages = list(network.named_children())[:8]
        body = nn.Sequential(OrderedDict(stages))
        self.body = freeze_batch_norm(body) if frozen_batch_norm else body
        self.fpn = FeaturePyramidNetwork((256, 512, 1024, 2048), 256)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Compute the maps of images ``(N, 3, H, W)``, finest first."""
        x, maps = images, []
        for name, stage in self.body.named_children():
            x = stage(x)
            if name.startswith("layer"):
                maps.append(x)
        pyramid: list[Tensor] = self.fpn(maps)
        return pyramid


class FeaturePyramidNetwork(nn.Module):
    """Feature pyramid: each level adds a 1×1 convolution of its stage and the upsampled coarser level.

    See Lin et al. 2017, figure 3.
    """

    def __init__(self, inputs: Sequence[int], channels: int) -> None:
        super().__init__()
        self.inner_blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(width, channels, 1)) for width in inputs)
        self.layer_blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1)) for _ in inputs)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_uniform_(layer.weight, a=1)
                zero_bias(layer)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Compute the levels from the stages' maps, finest first, and one more level of half the resolution."""
        top, levels = None, list[Tensor]()
        for features, inner, outer in reversed(list(zip(maps, self.inner_blocks, self.layer_blocks, strict=True))):
            lateral = inner(features)
            top = lateral if top is None else lateral + F.interpolate(top, lateral.shape[-2:], mode="nearest")
            levels.insert(0, outer(top))
        return [*levels, F.max_pool2d(levels[-1], 1, 2)]

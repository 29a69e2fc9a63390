"""Faster R-CNN: a network that proposes regions and then says what is in them, from the same feature maps.

Ren et al., "Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks", NIPS 2015; with a feature
pyramid: Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017.

    image → backbone → maps ─┬→ 3×3, 512 → 1×1: objectness, 1×1: box, for each anchor → proposals ─┐
                               └──────────────── RoIAlign 7×7 of each proposal ←──────────────────────┘
                                                 → affine, affine → affine: class, affine: box for each class

All shapes are fixed but those of the non-maximum suppression and, with the pyramid, of each level's share of the
regions: places that no box fills are marked. The names of the parameters are torchvision's, so that its published
weights for COCO load.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_pool

from fukami.layers import anchors, box_sampling, boxes
from fukami.layers.detection_types import Detections, GroundTruth, SampledBoxes
from fukami.layers.frozen_batch_norm import freeze_batch_norm
from fukami.layers.roi_align import roi_align
from fukami.models.resnet import resnet50
from fukami.models.vgg import build_vgg_features

RoIPooling = Literal["align", "pool"]
TrainingPart = Literal["both", "rpn", "regions"]
POOLED_SIZE = 7  # places across and down that a region is pooled to


class RPNOutput(NamedTuple):
    """Of all anchors, map after map: objectness ``(N, A)``, deltas ``(N, A, 4)``, where they are ``(A, 4)``, and how
    many each map has.
    """

    logits: Tensor
    deltas: Tensor
    anchors: Tensor
    anchors_per_level: list[int]


@dataclass(frozen=True)
class DetectionLimits:
    """How many boxes pass each point.

    Attributes:
        pre_nms_top_n, post_nms_top_n: the suppression of proposals, in training and otherwise.
        anchors_per_image, regions_per_image: that an image is learned from in each stage.
        detections_per_image: in an image, at most.
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
    """Faster R-CNN on VGG-16 without its last pooling, stride 16 (section 3.3 and 3.1.1).

    Args:
        num_classes: without the background.
        anchor_sizes: sides of the square anchors in pixels; each comes in the shapes 2:1, 1:1 and 1:2.
        hidden: units of the two affine layers.
        dropout: share of them dropped in training.
        roi_pooling: ``"align"``, RoIAlign (He et al. 2017), or ``"pool"``, the paper's RoIPool.
        batch_norm: after every convolution of the backbone.
        width_multiplier: share of the paper's channels in the backbone.
        stride: pixels from one place of the map to the next.
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
    """Faster R-CNN on a feature pyramid of ResNet-50, as torchvision's ``fasterrcnn_resnet50_fpn``.

    Args:
        num_classes: without the background.
        roi_pooling: as for :func:`faster_rcnn_vgg16`.
        frozen_batch_norm: whether batch normalisation stays as it is, as published weights need it; they have to be
            loaded then.
        anchor_sizes: side in pixels of the square anchor of each level of the pyramid.
    """
    backbone = ResNetFPNBackbone(frozen_batch_norm)
    rpn = RegionProposalNetwork(
        256, [anchors.compute_cell_anchors([scale]) for scale in anchor_sizes], inside_only=False
    )
    heads = RoIHeads(256, num_classes, (4, 8, 16, 32), 1024, 0.0, roi_pooling)
    return FasterRCNN(backbone, rpn, heads, DetectionLimits((2000, 1000), (2000, 1000)))


class FasterRCNN(nn.Module):
    """Proposals from the maps of a backbone, and what is in them."""

    def __init__(
        self, backbone: nn.Module, rpn: "RegionProposalNetwork", roi_heads: "RoIHeads", limits: DetectionLimits
    ) -> None:
        super().__init__()
        self.backbone, self.rpn, self.roi_heads, self.limits = backbone, rpn, roi_heads, limits

    def forward(
        self,
        images: Tensor,
        sizes: Tensor,
        ground_truth: GroundTruth | None = None,
        proposals: tuple[Tensor, Tensor] | None = None,
        part: TrainingPart = "both",
    ) -> Any:
        """What is in normalised images ``(N, 3, H, W)``, whose heights and widths in the frame are ``(N, 2)``.

        Args:
            images, sizes: H and W are multiples of 32.
            ground_truth: what there is; then the samples of the stages are returned, ``(SampledBoxes, SampledBoxes)``,
                and without it what was found, a list of :class:`Detections`.
            proposals: boxes ``(N, P, 4)`` to look into and which of them are there ``(N, P)``, instead of our own.
            part: the stages whose samples are wanted; None stands for those of the other.
        """
        maps = self.backbone(images)
        first = None
        if proposals is None or (ground_truth is not None and part != "regions"):
            said = self.rpn(maps, (images.shape[-2], images.shape[-1]))
            if ground_truth is not None and part != "regions":
                first = self.rpn.sample_anchors(said, sizes, ground_truth, self.limits)
            if proposals is None and part != "rpn":
                proposals = self.rpn.select_proposals(said, sizes, self.limits)
        if proposals is None:
            return first, None
        if ground_truth is None:
            return self.roi_heads.detect(maps, *proposals, sizes, self.limits)
        return first, self.roi_heads.sample_regions(maps, *proposals, ground_truth, self.limits)

    def get_traceable_module(self) -> nn.Module:
        """The layers alone, of one region that is the whole image: what is of fixed shape and can be traced."""
        return TraceableFasterRCNN(self)

    def propose(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """The proposals alone: boxes ``(N, P, 4)`` best first, and which of them are there ``(N, P)``."""
        said = self.rpn(self.backbone(images), (images.shape[-2], images.shape[-1]))
        return self.rpn.select_proposals(said, sizes, self.limits)


class TraceableFasterRCNN(nn.Module):
    """The layers of a detector as a chain that depends on no value; every region costs the affine layers once."""

    def __init__(self, detector: FasterRCNN) -> None:
        super().__init__()
        self.backbone, self.rpn_head = detector.backbone, detector.rpn.head
        self.box_head, self.box_predictor = detector.roi_heads.box_head, detector.roi_heads.box_predictor
        self.pool = nn.AdaptiveAvgPool2d(POOLED_SIZE)

    def forward(self, images: Tensor) -> tuple[list[tuple[Tensor, Tensor]], tuple[Tensor, Tensor]]:
        """``(N, 3, H, W)`` to what the heads say of each map and of the region."""
        maps = self.backbone(images)
        return [self.rpn_head(each) for each in maps], self.box_predictor(self.box_head(self.pool(maps[-1])))


class RegionProposalNetwork(nn.Module):
    """For each anchor, whether an object is there, and how far its box is from the anchor (section 3.1)."""

    def __init__(self, channels: int, cell_anchors: Sequence[anchors.CellAnchors], *, inside_only: bool) -> None:
        super().__init__()
        self.cell_anchors, self.inside_only = cell_anchors, inside_only
        self.head = RPNHead(channels, len(cell_anchors[0]))

    def forward(self, maps: Sequence[Tensor], image_size: tuple[int, int]) -> RPNOutput:
        """What all anchors of the maps are, and what the head says of them; ``image_size`` is the images' size."""
        each = [self.head(features) for features in maps]
        logits, deltas = (torch.cat(parts, 1).float() for parts in zip(*each, strict=True))
        return RPNOutput(
            logits,
            deltas,
            anchors.compute_anchors(self.cell_anchors, maps, image_size),
            [part.shape[1] for part, _ in each],
        )

    def sample_anchors(
        self, output: RPNOutput, sizes: Tensor, ground_truth: GroundTruth, limits: DetectionLimits
    ) -> SampledBoxes:
        """The anchors that are learned from: half of them objects at most (section 3.1.3)."""
        places, inside = output.anchors, None
        with torch.no_grad():
            if self.inside_only:  # anchors across the border give errors that nothing can mend
                inside = (places[:, :2] >= 0).all(1) & (places[:, 2:] <= sizes.flip(1).unsqueeze(1)).all(2)
            objects = ground_truth.boxes, ground_truth.classes, ground_truth.ignored
            which, targets = box_sampling.match_boxes(
                places, *objects, 0.3, 0.7, allow_low_quality_matches=True, usable=inside
            )
            order = box_sampling.compute_priorities(ground_truth.seeds, len(places))
            chosen, there = box_sampling.sample_balanced(targets, order, limits.anchors_per_image, 0.5)
            targets = (targets.gather(1, chosen) > 0).long()
            goals = boxes.encode_boxes(
                box_sampling.gather_by_index(ground_truth.boxes, which.gather(1, chosen)), places[chosen]
            )
            goals = goals.where((targets > 0).unsqueeze(2), 0.0)  # background may be beside no object at all
        return SampledBoxes(
            output.logits.gather(1, chosen), targets, box_sampling.gather_by_index(output.deltas, chosen), goals, there
        )

    @torch.no_grad()
    def select_proposals(self, output: RPNOutput, sizes: Tensor, limits: DetectionLimits) -> tuple[Tensor, Tensor]:
        """The best boxes of each image that do not overlap by more than 0.7, and which of the places are filled."""
        before, after = limits.pre_nms_top_n[not self.training], limits.post_nms_top_n[not self.training]
        parts = output.logits.split_with_sizes(output.anchors_per_level, 1)
        starts = [sum(output.anchors_per_level[:level]) for level in range(len(parts))]
        tops = [
            part.topk(min(before, part.shape[1])).indices + start for part, start in zip(parts, starts, strict=True)
        ]
        chosen = torch.cat(tops, 1)
        levels = torch.cat([torch.full_like(top[0], number) for number, top in enumerate(tops)])
        found = boxes.clip_boxes(
            boxes.decode_boxes(box_sampling.gather_by_index(output.deltas, chosen), output.anchors[chosen]), sizes
        )
        there = (found[..., 2:] - found[..., :2] >= 1e-3).all(2)
        found = found.where(there.unsqueeze(2), 0.0)  # those of a network that is not finite any more are no places
        scores = output.logits.gather(1, chosen).masked_fill(~there, -torch.inf)
        kept, filled = [], []
        for own, score, valid in zip(found, scores, there, strict=True):
            keep = boxes.apply_nms(own, score, levels, 0.7)
            places = torch.arange(after, device=keep.device) < keep.shape[0]
            keep = F.pad(keep, (0, after))[:after]
            kept.append(own[keep])
            filled.append(valid[keep] & places)
        return torch.stack(kept), torch.stack(filled)


class RPNHead(nn.Module):
    """A 3×3 convolution, and from it objectness and box of each anchor at a place."""

    def __init__(self, channels: int, num_anchors: int) -> None:
        super().__init__()
        convolution = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv = nn.Sequential(nn.Sequential(convolution, nn.ReLU(inplace=True)))
        self.cls_logits = nn.Conv2d(channels, num_anchors, 1)
        self.bbox_pred = nn.Conv2d(channels, 4 * num_anchors, 1)
        for layer in (convolution, self.cls_logits, self.bbox_pred):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """``(N, channels, H, W)`` to ``(N, A)`` and ``(N, A, 4)``."""
        features = self.conv(features)
        logits, deltas = (layer(features).permute(0, 2, 3, 1) for layer in (self.cls_logits, self.bbox_pred))
        return logits.flatten(1), deltas.reshape(deltas.shape[0], -1, 4)


class RoIHeads(nn.Module):
    """What is in each proposal (Girshick 2015, "Fast R-CNN"): its class, and a box for each class."""

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
        ground_truth: GroundTruth,
        limits: DetectionLimits,
    ) -> SampledBoxes:
        """The proposals that are learned from, and the objects themselves: a quarter of them objects at most."""
        with torch.no_grad():
            objects = (ground_truth.classes >= 0) & ~ground_truth.ignored
            proposals, valid = torch.cat([proposals, ground_truth.boxes], 1), torch.cat([valid, objects], 1)
            which, targets = box_sampling.match_boxes(
                proposals, ground_truth.boxes, ground_truth.classes, ground_truth.ignored, 0.5, 0.5
            )
            targets = torch.where(valid, targets, box_sampling.IGNORE_LABEL)
            order = box_sampling.compute_priorities(ground_truth.seeds + 1, proposals.shape[1])
            chosen, filled = box_sampling.sample_balanced(targets, order, limits.regions_per_image, 0.25)
            proposals, targets = box_sampling.gather_by_index(proposals, chosen), targets.gather(1, chosen).clamp(min=0)
            goals = boxes.encode_boxes(
                box_sampling.gather_by_index(ground_truth.boxes, which.gather(1, chosen)), proposals, boxes.ROI_WEIGHTS
            )
            goals = goals.where((targets > 0).unsqueeze(2), 0.0)
        scores, deltas = self(maps, proposals)
        own = box_sampling.gather_by_index(deltas.flatten(0, 1), targets.view(-1, 1)).view_as(goals)
        return SampledBoxes(scores, targets, own, goals, filled)

    def detect(
        self, maps: Sequence[Tensor], proposals: Tensor, valid: Tensor, sizes: Tensor, limits: DetectionLimits
    ) -> list[Detections]:
        """What the proposals hold: the best of each class that do not overlap by more than 0.5, from a score of 5 %."""
        scores, deltas = self(maps, proposals)
        scores = scores.softmax(2)[..., 1:] * valid.unsqueeze(2)
        every = boxes.decode_boxes(deltas[:, :, 1:], proposals.unsqueeze(2), boxes.ROI_WEIGHTS)
        every = boxes.clip_boxes(every, sizes)
        likely = (scores > 0.05) & ((every[..., 2:] - every[..., :2]) >= 1e-2).all(3)
        answers = []
        for own, score, which in zip(every, scores, likely, strict=True):
            _, classes = which.nonzero(as_tuple=True)
            own, score = own[which], score[which]
            keep = boxes.apply_nms(own, score, classes, 0.5)[: limits.detections_per_image]
            answers.append(Detections(own[keep], classes[keep], score[keep]))
        return answers

    def forward(self, maps: Sequence[Tensor], regions: Tensor) -> tuple[Tensor, Tensor]:
        """Scores ``(N, P, classes + 1)`` and deltas ``(N, P, classes + 1, 4)`` of regions ``(N, P, 4)``, float32."""
        pooled = self.pool_regions(maps, regions)
        scores, deltas = self.box_predictor(self.box_head(pooled.to(maps[0].dtype)))
        shape = regions.shape[:2]
        return scores.float().view(*shape, -1), deltas.float().view(*shape, -1, 4)

    def pool_regions(self, maps: Sequence[Tensor], regions: Tensor) -> Tensor:
        """The regions ``(N, P, 4)`` of the maps as ``(N P, C, 7, 7)``, each from the level of its size."""
        number = torch.arange(len(regions), device=regions.device, dtype=regions.dtype)
        flat = torch.cat([number.repeat_interleave(regions.shape[1]).unsqueeze(1), regions.flatten(0, 1)], 1)
        if len(self.strides) == 1:
            return self._pool_level(maps[0], flat, self.strides[0])
        side = boxes.compute_area(flat[:, 1:]).clamp(min=0).sqrt()
        level = (4 + (side / 224).log2() + 1e-6).floor().clamp(2, 5).long() - 2  # Lin et al. 2017, equation 1
        rows = [(level == number).nonzero().squeeze(1) for number in range(len(self.strides))]
        parts = [flat[row] for row in rows]
        pooled = torch.cat([self._pool_level(*each) for each in zip(maps, parts, self.strides, strict=False)])
        return pooled[torch.cat(rows).argsort()]

    def _pool_level(self, features: Tensor, regions: Tensor, stride: int) -> Tensor:
        """In float32, whatever the maps are in."""
        features = features.float()
        if self.roi_pooling == "pool":
            return roi_pool(features, regions, POOLED_SIZE, 1 / stride)  # type: ignore[no-any-return]
        return roi_align(features, regions, POOLED_SIZE, 1 / stride)


class TwoMLPHead(nn.Module):
    """Two affine layers on a pooled region."""

    def __init__(self, inputs: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.fc6, self.fc7 = nn.Linear(inputs, hidden), nn.Linear(hidden, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, regions: Tensor) -> Tensor:
        """``(K, C, 7, 7)`` to ``(K, hidden)``."""
        hidden = self.dropout(F.relu(self.fc6(regions.flatten(1))))
        return self.dropout(F.relu(self.fc7(hidden)))  # type: ignore[no-any-return]


class FastRCNNPredictor(nn.Module):
    """Class scores, background first, and the deltas of a box for each."""

    def __init__(self, inputs: int, num_classes: int) -> None:
        super().__init__()
        self.cls_score, self.bbox_pred = nn.Linear(inputs, num_classes + 1), nn.Linear(inputs, 4 * (num_classes + 1))

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """``(K, inputs)`` to ``(K, classes + 1)`` and ``(K, 4 (classes + 1))``."""
        return self.cls_score(hidden), self.bbox_pred(hidden)


class VGGBackbone(nn.Module):
    """The convolutions of VGG-16: one map of stride 16; of 8, if the fourth pooling takes every place."""

    def __init__(self, batch_norm: bool, width_multiplier: float, stride: Literal[8, 16]) -> None:
        super().__init__()
        layers = list(build_vgg_features("D", batch_norm=batch_norm, width_multiplier=width_multiplier))[:-1]
        if stride == 8:
            (*_, fourth) = (number for number, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d))
            layers[fourth] = nn.MaxPool2d(3, stride=1, padding=1)
        self.features = nn.Sequential(*layers)
        self.channels = round(512 * width_multiplier)

    def forward(self, images: Tensor) -> list[Tensor]:
        """``(N, 3, H, W)`` to ``(N, C, H / stride, W / stride)``."""
        return [self.features(images)]


class ResNetFPNBackbone(nn.Module):
    """ResNet-50 and a feature pyramid on its stages: five maps of 256 channels, of strides 4, 8, 16, 32 and 64."""

    def __init__(self, frozen_batch_norm: bool) -> None:
        super().__init__()
        network = resnet50(1)
        stages = list(network.named_children())[:8]
        body = nn.Sequential(OrderedDict(stages))
        self.body = freeze_batch_norm(body) if frozen_batch_norm else body
        self.fpn = FeaturePyramidNetwork((256, 512, 1024, 2048), 256)

    def forward(self, images: Tensor) -> list[Tensor]:
        """``(N, 3, H, W)`` to the maps, finest first."""
        x, maps = images, []
        for name, stage in self.body.named_children():
            x = stage(x)
            if name.startswith("layer"):
                maps.append(x)
        return self.fpn(maps)  # type: ignore[no-any-return]


class FeaturePyramidNetwork(nn.Module):
    """Each level: its own stage, brought to the same channels, and the coarser levels above it (figure 3)."""

    def __init__(self, inputs: Sequence[int], channels: int) -> None:
        super().__init__()
        self.inner_blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(each, channels, 1)) for each in inputs)
        self.layer_blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1)) for _ in inputs)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_uniform_(layer.weight, a=1)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The maps of the stages, finest first, to those of the levels and one more of half the side."""
        top, levels = None, list[Tensor]()
        for features, inner, outer in reversed(list(zip(maps, self.inner_blocks, self.layer_blocks, strict=True))):
            own = inner(features)
            top = own if top is None else own + F.interpolate(top, own.shape[-2:], mode="nearest")
            levels.insert(0, outer(top))
        return [*levels, F.max_pool2d(levels[-1], 1, 2)]

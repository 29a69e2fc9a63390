"""Inputs and outputs of detectors, as tensors of fixed shapes."""

from typing import NamedTuple

from torch import Tensor


class BatchGroundTruth(NamedTuple):
    """Ground truth of a batch of images, padded to M objects per image.

    Attributes:
        boxes: ``(N, M, 4)``.
        classes: ``(N, M)``, -1 for padding.
        ignored: ``(N, M)``, objects to exclude from the loss.
        seeds: ``(N,)``, seeds of the sampling of anchors and regions.
    """

    boxes: Tensor
    classes: Tensor
    ignored: Tensor
    seeds: Tensor


class SampledBoxes(NamedTuple):
    """Predictions and targets of the boxes that one stage samples for its loss.

    Attributes:
        logits: objectness ``(N, K)``, or class logits ``(N, K, classes + 1)``, background first.
        targets: labels ``(N, K)``, 0 for background.
        deltas, target_deltas: box deltas ``(N, K, 4)``, meaningless for background.
        valid: ``(N, K)``, False for padding.
    """

    logits: Tensor
    targets: Tensor
    deltas: Tensor
    target_deltas: Tensor
    valid: Tensor


class Detections(NamedTuple):
    """Detections in one image by descending score: boxes ``(k, 4)``, classes ``(k,)`` from 0, scores ``(k,)``."""

    boxes: Tensor
    classes: Tensor
    scores: Tensor

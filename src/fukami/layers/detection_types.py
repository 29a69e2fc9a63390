"""What a detector is told and what it tells, in tensors of fixed shapes."""

from typing import NamedTuple

from torch import Tensor


class GroundTruth(NamedTuple):
    """What is in the images: boxes ``(N, M, 4)``, classes ``(N, M)`` (-1: none), which of them are ignored
    ``(N, M)``, and numbers ``(N,)`` that decide which boxes are learned from.
    """

    boxes: Tensor
    classes: Tensor
    ignored: Tensor
    seeds: Tensor


class SampledBoxes(NamedTuple):
    """What a stage said of the boxes that it learns from, and what it should have said.

    Attributes:
        scores: ``(N, K)``, or ``(N, K, classes + 1)`` of the second stage, whose background is 0.
        targets: ``(N, K)``, 0 for background.
        deltas, target_deltas: ``(N, K, 4)``; those of background mean nothing.
        valid: ``(N, K)``, whether the place is filled.
    """

    scores: Tensor
    targets: Tensor
    deltas: Tensor
    target_deltas: Tensor
    valid: Tensor


class Detections(NamedTuple):
    """What was found in one image, best first: boxes ``(k, 4)``, classes ``(k,)`` from 0 and scores ``(k,)``."""

    boxes: Tensor
    classes: Tensor
    scores: Tensor

"""Label assignment and sampling of anchors and proposals, with fixed shapes and without host synchronization."""

import torch
from torch import Tensor

from fukami.layers.boxes import compute_area, compute_intersection, compute_iou

IGNORE_LABEL = -1  # label of references that are excluded from the loss
UINT32_MASK = 0xFFFFFFFF


def match_boxes(
    references: Tensor,
    boxes: Tensor,
    classes: Tensor,
    ignored: Tensor,
    low_threshold: float,
    high_threshold: float,
    *,
    allow_low_quality_matches: bool = False,
    usable: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Match each reference box (anchor or proposal) to the object with the highest IoU and assign its label.

    The label is 1 + the object's class, 0 (background) or :data:`IGNORE_LABEL`. Background references with at least
    half of their area inside an ignored object are ignored.

    Args:
        references: ``(A, 4)``, or ``(N, A, 4)`` if each image has its own.
        boxes: boxes of the objects, ``(N, M, 4)``.
        classes: ``(N, M)``, -1 for padding.
        ignored: ``(N, M)``, objects to exclude from the loss.
        low_threshold, high_threshold: references with an IoU below ``low_threshold`` are background, from
            ``high_threshold`` on objects; those between are ignored.
        allow_low_quality_matches: label the references with the highest IoU of each object as that object, whatever
            the IoU is.
        usable: ``(N, A)``, references that may enter the loss; None: all.

    Returns:
        Indices of the matched objects and labels, ``(N, A)`` each.
    """
    is_object = (classes >= 0) & ~ignored
    iou = compute_iou(boxes, references).masked_fill_(~is_object.unsqueeze(-1), -1)
    if usable is not None:
        iou.masked_fill_(~usable.unsqueeze(1), -1)
    best_iou, matches = iou.max(1)
    labels = torch.where(best_iou >= high_threshold, classes.gather(1, matches) + 1, 0)
    labels = torch.where((best_iou < high_threshold) & (best_iou >= low_threshold), IGNORE_LABEL, labels)
    if allow_low_quality_matches:
        highest_iou = iou.amax(2, keepdim=True)
        is_best = ((iou == highest_iou) & (highest_iou > 0)).any(1)
        labels = torch.where(is_best, classes.gather(1, matches) + 1, labels)
    covered = compute_intersection(boxes, references) / compute_area(references).clamp(min=1e-6).unsqueeze(-2)
    covered = ((covered >= 0.5) & (ignored & (classes >= 0)).unsqueeze(-1)).any(1)
    is_ignored = covered & (labels == 0) if usable is None else covered & (labels == 0) | ~usable
    return matches, torch.where(is_ignored, IGNORE_LABEL, labels)


def compute_priorities(seeds: Tensor, count: int) -> Tensor:
    """Compute random numbers in [0, 1) from the seeds ``(N,)``, ``(N, count)``.

    The numbers are a hash of seed and index. Unlike a generator, they do not depend on the process that holds an
    image, and need no host synchronization.
    """
    indices = torch.arange(count, device=seeds.device)
    return (_hash_uint32(_hash_uint32(indices) ^ _hash_uint32(seeds).unsqueeze(1)) >> 8).float() / 2**24


def _hash_uint32(value: Tensor) -> Tensor:
    """Compute Thomas Wang's 32-bit integer hash, in int64."""
    value = ((value ^ 61) ^ (value >> 16)) & UINT32_MASK
    value = (value * 9) & UINT32_MASK
    value = value ^ (value >> 4)
    value = (value * 0x27D4EB2D) & UINT32_MASK
    return value ^ (value >> 15)


def sample_balanced(targets: Tensor, priorities: Tensor, count: int, positive_fraction: float) -> tuple[Tensor, Tensor]:
    """Sample ``count`` references of each image: positives up to ``positive_fraction``, and background.

    Args:
        targets: labels ``(N, A)`` from :func:`match_boxes`.
        priorities: random numbers ``(N, A)`` in [0, 1); the references with the highest are sampled.
        count: number of references per image.
        positive_fraction: maximum fraction of positives.

    Returns:
        Indices ``(N, count)``, and a mask ``(N, count)`` that is False where too few references exist.
    """
    count = min(count, targets.shape[1])
    objects = torch.where(targets > 0, priorities, -1.0).topk(min(int(count * positive_fraction), targets.shape[1]))
    background = torch.where(targets == 0, priorities, -1.0).topk(count)
    num_objects = (objects.values >= 0).sum(1, keepdim=True)
    positions = torch.arange(count, device=targets.device)
    valid = torch.cat([objects.values >= 0, (background.values >= 0) & (positions < count - num_objects)], 1)
    kept = valid.float().topk(count)  # an unstable order is fine: the order of equal values makes no difference
    return torch.cat([objects.indices, background.indices], 1).gather(1, kept.indices), kept.values > 0


def gather_by_index(values: Tensor, indices: Tensor) -> Tensor:
    """Gather the values ``(N, A, ...)`` at the indices ``(N, k)``, ``(N, k, ...)``."""
    index = indices.view(*indices.shape, *[1] * (values.ndim - 2)).expand(-1, -1, *values.shape[2:])
    return values.gather(1, index)

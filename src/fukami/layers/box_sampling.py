"""What each reference box should learn, and which of them are learned from; all shapes are fixed, nothing waits."""

import torch
from torch import Tensor

from fukami.layers.boxes import compute_area, compute_intersection, compute_iou

IGNORE_LABEL = -1  # a reference that is learned from neither as an object nor as background
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
    """For each reference box, the object that it covers best, and its label.

    The label is 1 + its class, 0 (background) or :data:`IGNORE_LABEL`.

    Args:
        references: ``(A, 4)``, or ``(N, A, 4)`` where each image has its own.
        boxes: of the objects, ``(N, M, 4)``.
        classes: ``(N, M)``, -1 where there is no object.
        ignored: ``(N, M)``, objects that nothing should be learned from.
        low_threshold, high_threshold: background overlaps less than ``low_threshold``, an object at least
            ``high_threshold``; between them it is unclear.
        allow_low_quality_matches: the references that cover an object best stand for it even so.
        usable: ``(N, A)``, references that may be learned from at all; None: all of them.

    Returns:
        Numbers of objects and targets, ``(N, A)`` each.
    """
    counted = (classes >= 0) & ~ignored
    overlap = compute_iou(boxes, references).masked_fill_(~counted.unsqueeze(-1), -1)
    if usable is not None:
        overlap.masked_fill_(~usable.unsqueeze(1), -1)
    most, which = overlap.max(1)
    target = torch.where(most >= high_threshold, classes.gather(1, which) + 1, 0)
    target = torch.where((most < high_threshold) & (most >= low_threshold), IGNORE_LABEL, target)
    if allow_low_quality_matches:
        top = overlap.amax(2, keepdim=True)
        chosen = ((overlap == top) & (top > 0)).any(1)
        target = torch.where(chosen, classes.gather(1, which) + 1, target)
    hidden = compute_intersection(boxes, references) / compute_area(references).clamp(min=1e-6).unsqueeze(-2)
    hidden = ((hidden >= 0.5) & (ignored & (classes >= 0)).unsqueeze(-1)).any(1)
    unclear = hidden & (target == 0) if usable is None else hidden & (target == 0) | ~usable
    return which, torch.where(unclear, IGNORE_LABEL, target)


def compute_priorities(seeds: Tensor, count: int) -> Tensor:
    """Random numbers in [0, 1) that depend on the draws ``(N,)`` alone, ``(N, count)``.

    A hash of place and draw: unlike a generator it gives each image of a batch the same numbers in whatever process
    it is, and asks nothing of the host.
    """
    places = torch.arange(count, device=seeds.device)
    return (_hash_uint32(_hash_uint32(places) ^ _hash_uint32(seeds).unsqueeze(1)) >> 8).float() / 2**24


def _hash_uint32(value: Tensor) -> Tensor:
    """Thomas Wang's mixing of 32 bits, in int64."""
    value = ((value ^ 61) ^ (value >> 16)) & UINT32_MASK
    value = (value * 9) & UINT32_MASK
    value = value ^ (value >> 4)
    value = (value * 0x27D4EB2D) & UINT32_MASK
    return value ^ (value >> 15)


def sample_balanced(targets: Tensor, priorities: Tensor, count: int, positive_fraction: float) -> tuple[Tensor, Tensor]:
    """``count`` references of each image, at most ``positive_fraction`` of them objects, the rest background.

    Args:
        targets: ``(N, A)`` as :func:`match_boxes` gives them.
        priorities: ``(N, A)`` random numbers in [0, 1); those with the greatest are taken.

    Returns:
        Their numbers ``(N, count)``, and whether there are so many, ``(N, count)``.
    """
    count = min(count, targets.shape[1])
    objects = torch.where(targets > 0, priorities, -1.0).topk(min(int(count * positive_fraction), targets.shape[1]))
    ground = torch.where(targets == 0, priorities, -1.0).topk(count)
    found = (objects.values >= 0).sum(1, keepdim=True)
    places = torch.arange(count, device=targets.device)
    there = torch.cat([objects.values >= 0, (ground.values >= 0) & (places < count - found)], 1)
    chosen = there.float().topk(count)  # stable enough: which of equal ones come first makes no difference
    return torch.cat([objects.indices, ground.indices], 1).gather(1, chosen.indices), chosen.values > 0


def gather_by_index(values: Tensor, indices: Tensor) -> Tensor:
    """Of values ``(N, A, ...)`` those with the numbers ``(N, k)``, ``(N, k, ...)``."""
    index = indices.view(*indices.shape, *[1] * (values.ndim - 2)).expand(-1, -1, *values.shape[2:])
    return values.gather(1, index)

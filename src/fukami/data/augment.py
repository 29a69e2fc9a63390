"""Augmentation in whole batches on the device: pure functions of the images and of uniform random numbers.

Every geometric change of an image is a 3×3 matrix and every change of its colours a 3×4 matrix. They are multiplied
first and applied once, so that an image is resampled and rounded once however many of them are asked for. What cannot
be a matrix (posterising, erasing, mixing two images) follows.

The transforms of torchvision draw one change for a whole batch, and those of kornia draw from the global generator; a
run that resumes in mid-pass needs one change for each image, from numbers that the loader hands in.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fukami.errors import UsageError, build_unknown_error

Batch = tuple[Tensor, Tensor]
Side = int | Tensor  # pixels of a side, of all images or of each, (N,)
LUMA = (0.299, 0.587, 0.114)  # how bright red, green and blue are (ITU-R BT.601), as torchvision weighs them
RGB_TO_YIQ = (LUMA, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))  # brightness and two differences of colour
YIQ_TO_RGB = tuple(map(tuple, np.linalg.inv(np.array(RGB_TO_YIQ, np.float32)).tolist()))  # and back
MAX_ASPECT_RATIO = 4 / 3  # ratio of the sides of a random resized crop, either way (Szegedy et al. 2015, section 6)


class Operation:
    """One kind of change; a subclass says which of the four stages it takes part in.

    ``num_draws`` uniform numbers in [0, 1) are given to every stage for each image, ``(N, draws)``.
    """

    num_draws: ClassVar[int] = 1

    def compute_matrix(self, draws: Tensor, height: Side, width: Side) -> Tensor | None:
        """From where each output point comes: ``(N, 3, 3)``, both in [-1, 1] across the image; None: no move."""
        return None

    def compute_color_matrix(self, matrix: Tensor, mean: Tensor, draws: Tensor) -> Tensor:
        """``matrix`` ``(N, 3, 4)`` followed by this change of red, green, blue and 1; ``mean`` ``(N, 3)`` is what the
        image's mean colour has become so far.
        """
        return matrix

    def change_pixels(self, images: Tensor, draws: Tensor, valid_fraction: Tensor | None = None) -> Tensor:
        """The images ``(N, C, H, W)`` in 0..255 changed pixel by pixel.

        ``valid_fraction``: see :meth:`AugmentationPipeline.recolor`.
        """
        return images

    def mix(self, images: Tensor, targets: Tensor, draws: Tensor) -> Batch:
        """The images mixed with one another, and the shares of the classes ``(N, classes)`` with them."""
        return images, targets


class Augmentation(Protocol):
    """Changes images ``(N, C, H, W)`` and their targets by uniform draws ``(N, draws)`` in [0, 1)."""

    @property
    def num_draws(self) -> int:
        """Random numbers needed for each image."""

    def __call__(self, images: Tensor, targets: Tensor, draws: Tensor) -> Batch:
        """The changed images, in the range of the given ones, and targets ``(N,)`` or ``(N, classes)``."""


@dataclass(frozen=True)
class AugmentationPipeline:
    """The operations, each for every image of a batch; made by :func:`parse`.

    Args:
        operations: in the order in which they are applied.
        size: side of the images that come out, in pixels; 0: the sides that they have.
        num_classes: number of classes, for targets that are mixed.
    """

    operations: tuple[Operation, ...]
    size: int
    num_classes: int = 0

    @property
    def num_draws(self) -> int:
        """Random numbers needed for each image."""
        return sum(operation.num_draws for operation in self.operations)

    def __call__(self, images: Tensor, targets: Tensor, draws: Tensor) -> Batch:
        """Images ``(N, C, H, W)`` in 0..255 as ``(N, C, size, size)``, and the targets, one-hot if mixed.

        What is only mirrored stays uint8, all else becomes float.
        """
        each = self.split_draws(draws)
        if self.only_flips and images.shape[-2:] == self.get_output_size(images):
            images = self.flip(images, each)
        else:
            images = self.warp(images.float(), self.compute_matrix(draws, *images.shape[-2:]))
        images = self.recolor(images, draws)
        for operation, own in zip(self.operations, each, strict=True):
            images = operation.change_pixels(images, own)
        if self.has_stage("mix"):
            targets = F.one_hot(targets, self.num_classes).float()
            for operation, own in zip(self.operations, each, strict=True):
                images, targets = operation.mix(images, targets, own)
        return images, targets

    def get_output_size(self, images: Tensor) -> tuple[int, int]:
        """Height and width of what comes out of images ``(N, C, H, W)``."""
        return (self.size, self.size) if self.size else (images.shape[-2], images.shape[-1])

    def split_draws(self, draws: Tensor) -> tuple[Tensor, ...]:
        """Each operation's own draws."""
        return torch.split(draws, [operation.num_draws for operation in self.operations], 1)

    def has_stage(self, stage: str) -> bool:
        """Whether an operation takes part in a stage."""
        return any(getattr(type(operation), stage) is not getattr(Operation, stage) for operation in self.operations)

    @property
    def only_flips(self) -> bool:
        """Whether nothing moves images but mirrors, which need no resampling."""
        moving = (
            operation for operation in self.operations if type(operation).compute_matrix is not Operation.compute_matrix
        )
        return all(isinstance(operation, RandomHorizontalFlip) for operation in moving)

    def flip(self, images: Tensor, each: Sequence[Tensor]) -> Tensor:
        """The images with the mirrors alone, exactly, in their own type; a fraction of the time of a resampling."""
        for operation, own in zip(self.operations, each, strict=True):
            if isinstance(operation, RandomHorizontalFlip):
                which = (own[:, 0] < operation.probability).view(-1, 1, 1, 1)
                images = torch.where(which, images.flip(operation.dimension), images)
        return images

    def compute_matrix(self, draws: Tensor, height: Side, width: Side) -> Tensor | None:
        """All moves as one matrix ``(N, 3, 3)`` for each image; None where there are none."""
        if not self.has_stage("compute_matrix"):
            return None
        each = self.split_draws(draws)
        whole = torch.eye(3, device=draws.device).expand(len(draws), 3, 3)
        for operation, own in zip(self.operations, each, strict=True):
            matrix = operation.compute_matrix(own, height, width)
            whole = whole if matrix is None else whole @ matrix
        return whole

    def warp(self, images: Tensor, matrix: Tensor | None, mode: str = "bilinear") -> Tensor:
        """The images at the size that comes out, moved as :meth:`geometry` says; masks want ``mode="nearest"``.

        What comes in from outside is 0.
        """
        size = self.get_output_size(images)
        if matrix is None:
            return images if images.shape[-2:] == size else F.interpolate(images, size, mode=mode)
        grid = F.affine_grid(matrix[:, :2], [*images.shape[:2], *size], align_corners=False)
        return F.grid_sample(images, grid, mode=mode, padding_mode="zeros", align_corners=False)

    def warp_boxes(self, boxes: Tensor, matrix: Tensor, height: Side, width: Side) -> Tensor:
        """Boxes ``(N, M, 4)`` as x1, y1, x2, y2 in pixels: what bounds them in the moved image, cut at its border.

        A box that has left the image has no area.
        """
        right, bottom = (self.size, self.size) if self.size else (width, height)
        sides = _stack_pair(right, bottom, boxes).repeat(1, 1, 2)
        return self.compute_box_bounds(boxes, matrix, height, width).clamp(min=0).minimum(sides)

    def compute_box_bounds(self, boxes: Tensor, matrix: Tensor, height: Side, width: Side) -> Tensor:
        """What bounds boxes ``(N, M, 4)`` in the moved image and, where they have left it, beyond."""
        before = _stack_pair(width, height, boxes).unsqueeze(2)
        after = _stack_pair(self.size, self.size, boxes).unsqueeze(2) if self.size else before
        corners = boxes[..., [0, 1, 2, 1, 0, 3, 2, 3]].view(*boxes.shape[:-1], 4, 2) / before * 2 - 1
        corners = torch.cat([corners, torch.ones_like(corners[..., :1])], -1).flatten(1, 2)
        found = (corners @ matrix.inverse().mT)[..., :2].view(*boxes.shape[:-1], 4, 2)
        found = (found + 1) / 2 * after
        return torch.cat([found.amin(2), found.amax(2)], -1)

    def recolor(self, images: Tensor, draws: Tensor, valid_fraction: Tensor | None = None) -> Tensor:
        """The images ``(N, C, H, W)`` in 0..255 with other colours, cut off at 0 and 255.

        Args:
            images: what is to be recoloured.
            draws: random numbers.
            valid_fraction: ``(N, 2)`` shares of H and W that each image takes where the rest is 0; None: all.
        """
        if not self.has_stage("compute_color_matrix"):
            return images
        images = images.float()
        each = self.split_draws(draws)
        mean = images.mean((2, 3)).expand(-1, 3)
        mean = mean if valid_fraction is None else mean / valid_fraction.prod(1, keepdim=True)
        matrix = torch.eye(3, 4, device=images.device).expand(len(images), 3, 4)
        for operation, own in zip(self.operations, each, strict=True):
            matrix = operation.compute_color_matrix(matrix, _transform_colors(matrix, mean), own)
        if images.shape[1] == 1:  # a grey image is one whose three colours are the same
            gain, offset = matrix[:, 0, :3].sum(1), matrix[:, 0, 3]
            return (images * gain.view(-1, 1, 1, 1) + offset.view(-1, 1, 1, 1)).clamp(0, 255)
        flat = torch.baddbmm(matrix[:, :, 3:], matrix[:, :, :3], images.flatten(2))
        return flat.clamp(0, 255).view_as(images)


@dataclass(frozen=True)
class RandomAffine(Operation):
    """Rotation, translation, scaling and shearing at random.

    Args:
        shift: at most this many pixels in each direction.
        rotate: at most this many degrees either way.
        scale: between ``1 - scale`` and ``1 + scale`` times the size, for width and height apart.
        shear: at most this many pixels along x for each pixel along y.
    """

    num_draws: ClassVar[int] = 6
    shift: float = 0.0
    rotate: float = 0.0
    scale: float = 0.0
    shear: float = 0.0

    def compute_matrix(self, draws: Tensor, height: Side, width: Side) -> Tensor:
        """Stretched, slanted and turned about the middle, then shifted."""
        turn, stretch_x, stretch_y, slant, right, down = (2 * draws - 1).unbind(1)
        return build_affine_matrix(
            angle=turn * math.radians(self.rotate),
            scale=(1 / (1 + self.scale * stretch_x), 1 / (1 + self.scale * stretch_y)),
            shear=self.shear * slant,
            translation=(right * 2 * self.shift / width, down * 2 * self.shift / height),
            aspect=width / height,
        )


@dataclass(frozen=True)
class RandomHorizontalFlip(Operation):
    """Left and right exchanged, for this share of the images."""

    dimension: ClassVar[int] = 3
    probability: float = 0.5

    def compute_matrix(self, draws: Tensor, height: Side, width: Side) -> Tensor:
        """A mirror in the middle."""
        sign = torch.where(draws[:, 0] < self.probability, -1.0, 1.0)
        one = torch.ones_like(sign)
        return _build_diagonal(sign, one) if self.dimension == 3 else _build_diagonal(one, sign)


@dataclass(frozen=True)
class RandomVerticalFlip(RandomHorizontalFlip):
    """Top and bottom exchanged, for this share of the images."""

    dimension: ClassVar[int] = 2


@dataclass(frozen=True)
class PaddedRandomCrop(Operation):
    """A crop of the size of the image after so many pixels of padding on every side (He et al. 2016, section 4.2)."""

    num_draws: ClassVar[int] = 2
    padding: float = 4.0

    def compute_matrix(self, draws: Tensor, height: Side, width: Side) -> Tensor:
        """Whole pixels to any side."""
        offset = (draws * (2 * self.padding + 1)).floor() - self.padding
        matrix = torch.eye(3, device=draws.device).repeat(len(draws), 1, 1)
        matrix[:, 0, 2], matrix[:, 1, 2] = offset[:, 0] * 2 / width, offset[:, 1] * 2 / height
        return matrix


@dataclass(frozen=True)
class RandomResizedCrop(Operation):
    """A crop of at least this share of the area, of sides 3:4 to 4:3, resized (Szegedy et al. 2015, section 6)."""

    num_draws: ClassVar[int] = 4
    min_area: float = 0.08

    def compute_matrix(self, draws: Tensor, height: Side, width: Side) -> Tensor:
        """The crop fills the image."""
        wide, high, left, top = compute_crops(draws, self.min_area, width / height)
        matrix = _build_diagonal(wide, high)
        matrix[:, 0, 2], matrix[:, 1, 2] = 2 * left + wide - 1, 2 * top + high - 1
        return matrix


def compute_crops(draws: Tensor, min_area: float, aspect: float | Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Width, height, left and top of random crops ``(N,)`` each, as shares of an image ``aspect`` times as wide as
    high, from ``(N, 4)`` draws. A side that would not fit is cut.
    """
    area = min_area + (1 - min_area) * draws[:, 0]
    ratio = (math.log(MAX_ASPECT_RATIO) * (2 * draws[:, 1] - 1)).exp()
    wide = (area * ratio / aspect).sqrt().clamp(max=1)
    high = (area / ratio * aspect).sqrt().clamp(max=1)
    return wide, high, (1 - wide) * draws[:, 2], (1 - high) * draws[:, 3]


@dataclass(frozen=True)
class RandomBrightness(Operation):
    """All colours times ``1 - most`` to ``1 + most``."""

    max_change: float = 0.4

    def compute_color_matrix(self, matrix: Tensor, mean: Tensor, draws: Tensor) -> Tensor:
        """Blended with black."""
        return _compute_factors(draws, self.max_change) * matrix


@dataclass(frozen=True)
class RandomContrast(Operation):
    """The distance to the image's mean brightness times ``1 - most`` to ``1 + most``."""

    max_change: float = 0.4

    def compute_color_matrix(self, matrix: Tensor, mean: Tensor, draws: Tensor) -> Tensor:
        """Blended with the mean grey."""
        return _adjust_contrast(matrix, mean, _compute_factors(draws, self.max_change))


@dataclass(frozen=True)
class RandomSaturation(Operation):
    """The distance of each pixel to its own grey times ``1 - most`` to ``1 + most``."""

    max_change: float = 0.4

    def compute_color_matrix(self, matrix: Tensor, mean: Tensor, draws: Tensor) -> Tensor:
        """Blended with the grey image."""
        return _adjust_saturation(matrix, _compute_factors(draws, self.max_change))


@dataclass(frozen=True)
class RandomHue(Operation):
    """The colours turned about the grey axis by up to ``max_change`` of a turn either way, brightness kept (in YIQ)."""

    max_change: float = 0.1

    def compute_color_matrix(self, matrix: Tensor, mean: Tensor, draws: Tensor) -> Tensor:
        """Turned in the plane of the two colour differences."""
        yiq, rgb = (_get_constant(rows, draws.device) for rows in (RGB_TO_YIQ, YIQ_TO_RGB))
        angle = (2 * draws[:, 0] - 1) * (2 * math.pi * self.max_change)
        turn = torch.eye(3, device=draws.device).repeat(len(draws), 1, 1)
        turn[:, 1, 1], turn[:, 2, 2] = angle.cos(), angle.cos()
        turn[:, 1, 2], turn[:, 2, 1] = -angle.sin(), angle.sin()
        return rgb @ turn @ yiq @ matrix


@dataclass(frozen=True)
class RandomGrayscale(Operation):
    """This share of the images without colour."""

    probability: float = 0.2

    def compute_color_matrix(self, matrix: Tensor, mean: Tensor, draws: Tensor) -> Tensor:
        """No saturation."""
        return _adjust_saturation(matrix, (draws >= self.probability).float().unsqueeze(2))


@dataclass(frozen=True)
class RandomErasing(Operation):
    """A rectangle of 2 to 33 % of the area painted with the mean colour, in this share (Zhong et al. 2020)."""

    num_draws: ClassVar[int] = 5
    probability: float = 0.25

    def change_pixels(self, images: Tensor, draws: Tensor, valid_fraction: Tensor | None = None) -> Tensor:
        """Sides from 0.3 to 3.3 times one another."""
        whether, size, shape, across, down = draws.unbind(1)
        area, ratio = 0.02 + 0.31 * size, (math.log(3.3) * (2 * shape - 1)).exp()
        wide, high = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
        x, y = (1 - wide) * across + wide / 2, (1 - high) * down + high / 2
        mean = images.float().mean((2, 3), keepdim=True)
        if valid_fraction is not None:
            down_share, right_share = valid_fraction.unbind(1)
            x, y, wide, high = x * right_share, y * down_share, wide * right_share, high * down_share
            mean = mean / valid_fraction.prod(1).view(-1, 1, 1, 1)
        box = _build_box_masks(images, x, y, wide, high) & (whether < self.probability).view(-1, 1, 1, 1)
        return torch.where(box, mean, images)


@dataclass(frozen=True)
class MixUpCutMix(Operation):
    """Two images in one: all over (mixup, Zhang et al. 2018) or in a rectangle (CutMix, Yun et al. 2019).

    The other one is half a batch away, so that it is the same one where several processes share the batch. With both,
    each image takes one of them at random.

    Args:
        mixup, cutmix: the parameter of the Beta distribution of the image's own share; 0: never.
    """

    num_draws: ClassVar[int] = 4
    mixup: float = 0.0
    cutmix: float = 0.0

    def mix(self, images: Tensor, targets: Tensor, draws: Tensor) -> Batch:
        """Images and targets with their partners'."""
        coin, chance, across, down = draws.unbind(1)
        cut = coin < (0.5 if self.mixup and self.cutmix else float(self.cutmix > 0))
        side = (1 - _sample_beta(self.cutmix, chance)).sqrt()
        box = _build_box_masks(images, across, down, side, side)
        own = torch.where(cut, 1 - box.float().mean((1, 2, 3)), _sample_beta(self.mixup, chance)).view(-1, 1, 1, 1)
        keep = torch.where(cut.view(-1, 1, 1, 1), (~box).float(), own)
        own = own.view(-1, 1)
        images = keep * images + (1 - keep) * images.roll(len(images) // 2, 0)
        return images, own * targets + (1 - own) * targets.roll(len(targets) // 2, 0)


# what an image may meet in RandAugment and TrivialAugment: the strongest in each (Cubuk et al. 2020; Müller and Hutter
# 2021, the wide space), as torchvision has them; a translation is a share of the width there and pixels here
MAX_STRENGTHS = {
    "identity": (0.0, 0.0), "shear x": (0.3, 0.99), "shear y": (0.3, 0.99), "translate x": (150 / 331, 32.0),
    "translate y": (150 / 331, 32.0), "rotate": (30.0, 135.0), "brightness": (0.9, 0.99), "saturation": (0.9, 0.99),
    "contrast": (0.9, 0.99), "sharpness": (0.9, 0.99), "posterize": (4.0, 6.0), "solarize": (255.0, 255.0),
    "autocontrast": (0.0, 0.0), "equalize": (0.0, 0.0),
}  # fmt: skip


@dataclass(frozen=True)
class RandomOperation(Operation):
    """One of fourteen changes for each image, of a given strength (RandAugment) or of any (TrivialAugment).

    Args:
        strength: share of the strongest, in [0, 1]; None: drawn for each image, from the wide space.
    """

    num_draws: ClassVar[int] = 3
    strength: float | None = None

    def compute_strengths(self, draws: Tensor, name: str, signed: bool = True) -> Tensor:
        """How strongly each image ``(N,)`` is changed in this way: 0 for those that picked another."""
        choice, strength, sign = draws.unbind(1)
        chosen = (choice * len(MAX_STRENGTHS)).floor() == list(MAX_STRENGTHS).index(name)
        share = strength if self.strength is None else torch.full_like(strength, self.strength)
        direction = torch.where(sign < 0.5, -1.0, 1.0) if signed else 1.0
        return chosen * share * direction * MAX_STRENGTHS[name][int(self.strength is None)]

    def select_images(self, draws: Tensor, name: str) -> Tensor:
        """Which images picked it, ``(N, 1, 1, 1)``."""
        return ((draws[:, 0] * len(MAX_STRENGTHS)).floor() == list(MAX_STRENGTHS).index(name)).view(-1, 1, 1, 1)

    def compute_matrix(self, draws: Tensor, height: Side, width: Side) -> Tensor:
        """Shears, translations and rotations."""
        right, down = self.compute_strengths(draws, "translate x"), self.compute_strengths(draws, "translate y")
        if self.strength is None:  # pixels of the wide space
            right, down = right / width, down / height
        one = torch.ones_like(right)
        upright = build_affine_matrix(
            angle=torch.deg2rad(self.compute_strengths(draws, "rotate")),
            scale=(one, one),
            shear=self.compute_strengths(draws, "shear x"),
            translation=(2 * right, 2 * down),
            aspect=width / height,
        )
        upright[:, 1, 0] += self.compute_strengths(draws, "shear y") * width / height
        return upright

    def compute_color_matrix(self, matrix: Tensor, mean: Tensor, draws: Tensor) -> Tensor:
        """Brightness, saturation and contrast."""
        brightness, saturation, contrast = (
            1 + self.compute_strengths(draws, name).view(-1, 1, 1) for name in ("brightness", "saturation", "contrast")
        )
        return _adjust_contrast(_adjust_saturation(brightness * matrix, saturation), mean, contrast)

    def change_pixels(self, images: Tensor, draws: Tensor, valid_fraction: Tensor | None = None) -> Tensor:
        """Sharpness, posterize, solarize, autocontrast and equalize."""
        from torchvision.transforms.v2.functional import equalize  # which takes a second

        shape = (-1, 1, 1, 1)
        images = images.round()  # these count levels of brightness
        sharp = self.compute_strengths(draws, "sharpness").view(shape)
        images = (images + sharp * (images - _smooth(images))).clamp(0, 255)
        step = 2 ** self.compute_strengths(draws, "posterize", signed=False).round().view(shape)
        images = torch.where(self.select_images(draws, "posterize"), (images / step).floor() * step, images)
        threshold = 255 - self.compute_strengths(draws, "solarize", signed=False).view(shape)
        inverted = self.select_images(draws, "solarize") & (images >= threshold)
        images = torch.where(inverted, 255 - images, images)
        low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
        stretched = torch.where(high > low, (images - low) * 255 / (high - low).clamp(min=1), images)
        images = torch.where(self.select_images(draws, "autocontrast"), stretched, images)
        return torch.where(self.select_images(draws, "equalize"), equalize(images.to(torch.uint8)).float(), images)


def build_affine_matrix(
    *,
    angle: Tensor,
    scale: tuple[Tensor, Tensor],
    shear: Tensor,
    translation: tuple[Tensor, Tensor],
    aspect: float | Tensor,
) -> Tensor:
    """From where the points of images come, ``(N, 3, 3)``: turned (radians), slanted, stretched and shifted.

    In coordinates from -1 to 1 across the image, which is ``aspect`` times as wide as high.
    """
    cos, sin = angle.cos(), angle.sin()
    matrix = torch.zeros(len(angle), 3, 3, device=angle.device)
    matrix[:, 0, 0] = scale[0] * (cos + shear * sin)
    matrix[:, 0, 1] = scale[0] * (shear * cos - sin) / aspect
    matrix[:, 0, 2] = translation[0]
    matrix[:, 1, 0] = scale[1] * sin * aspect
    matrix[:, 1, 1] = scale[1] * cos
    matrix[:, 1, 2] = translation[1]
    matrix[:, 2, 2] = 1
    return matrix


def _stack_pair(x: Side, y: Side, like: Tensor) -> Tensor:
    """``(N or 1, 1, 2)`` of two numbers, or of two for each image."""
    return torch.stack([torch.as_tensor(side, dtype=like.dtype, device=like.device) for side in (x, y)], -1).view(
        -1, 1, 2
    )


def _build_diagonal(x: Tensor, y: Tensor) -> Tensor:
    return torch.stack([x, y, torch.ones_like(x)], 1).diag_embed()


def _transform_colors(matrix: Tensor, colours: Tensor) -> Tensor:
    """``(N, 3)`` colours after the change ``(N, 3, 4)``."""
    return (matrix[:, :, :3] @ colours.unsqueeze(2) + matrix[:, :, 3:]).squeeze(2)


def _compute_factors(draws: Tensor, most: float) -> Tensor:
    """Factors ``(N, 1, 1)`` around 1, none below 0."""
    return (1 + (2 * draws - 1) * most).clamp(min=0).unsqueeze(2)


def _adjust_saturation(matrix: Tensor, factor: Tensor) -> Tensor:
    grey = _get_constant(LUMA, matrix.device).expand(3, 3)
    return factor * matrix + (1 - factor) * (grey @ matrix)


def _adjust_contrast(matrix: Tensor, mean: Tensor, factor: Tensor) -> Tensor:
    brightness = (mean * _get_constant(LUMA, matrix.device)).sum(1)
    offset = F.pad(((1 - factor) * brightness.view(-1, 1, 1)).expand(-1, 3, 1), (3, 0))
    return factor * matrix + offset


def _smooth(images: Tensor) -> Tensor:
    """Each pixel averaged with its neighbours, itself five times; the border stays (as Pillow smooths)."""
    kernel = torch.ones(images.shape[1], 1, 3, 3, device=images.device)
    kernel[:, :, 1, 1] = 5
    inner = F.conv2d(images, kernel / 13, groups=images.shape[1])
    smooth = images.clone()
    smooth[:, :, 1:-1, 1:-1] = inner
    return smooth


def _build_box_masks(images: Tensor, across: Tensor, down: Tensor, wide: Tensor, high: Tensor) -> Tensor:
    """Masks ``(N, 1, H, W)`` of rectangles about a middle, all in shares of the image."""
    height, width = images.shape[-2:]
    y = ((torch.arange(height, device=images.device) + 0.5) / height).view(1, 1, -1, 1)
    x = ((torch.arange(width, device=images.device) + 0.5) / width).view(1, 1, 1, -1)
    across, down, wide, high = (value.view(-1, 1, 1, 1) for value in (across, down, wide, high))
    return ((x - across).abs() < wide / 2) & ((y - down).abs() < high / 2)


def _sample_beta(alpha: float, chance: Tensor) -> Tensor:
    """Numbers distributed as Beta(alpha, alpha) from uniform ones, by a table of its quantiles."""
    if not alpha:
        return torch.ones_like(chance)
    quantiles = _get_constant(_compute_beta_quantiles(alpha), chance.device)
    place = chance * 1024
    low = place.floor().long().clamp(max=1023)
    return quantiles[low].lerp(quantiles[low + 1], place - low)


@functools.cache
def _compute_beta_quantiles(alpha: float) -> tuple[float, ...]:
    """Beta(alpha, alpha) at 0, 1/1024, ... 1 of its distribution."""
    from scipy.special import betaincinv

    return tuple(float(betaincinv(alpha, alpha, number / 1024)) for number in range(1025))


@functools.cache
def _get_constant(values: tuple[Any, ...], device: torch.device) -> Tensor:
    """Numbers on the device, sent there once: a captured assembly may send nothing."""
    return torch.tensor(values, device=device)


# name: the default strength, its bounds, and what it is
OPERATIONS: dict[str, tuple[float, float, float, str]] = {
    "rotate": (10.0, 0, 180, "degrees turned at most"),
    "shift": (2.0, 0, math.inf, "pixels moved at most"),
    "scale": (0.1, 0, 0.99, "share grown or shrunk at most"),
    "shear": (0.1, 0, math.inf, "pixels slanted for each pixel of height at most"),
    "flip": (0.5, 0, 1, "share mirrored left to right"),
    "flip-vertical": (0.5, 0, 1, "share mirrored top to bottom"),
    "pad-crop": (4.0, 0, math.inf, "pixels of padding before a crop of the old size"),
    "crop": (0.08, 0.01, 1, "least share of the area in a random resized crop"),
    "brightness": (0.4, 0, 1, "share brightened or darkened at most"),
    "contrast": (0.4, 0, 1, "share of contrast gained or lost at most"),
    "saturation": (0.4, 0, 1, "share of saturation gained or lost at most"),
    "hue": (0.1, 0, 0.5, "share of a full turn of the colours at most"),
    "grey": (0.2, 0, 1, "share made grey"),
    "erase": (0.25, 0, 1, "share with a rectangle erased"),
    "mixup": (0.2, 0, math.inf, "mixup's alpha"),
    "cutmix": (1.0, 0, math.inf, "CutMix's alpha"),
    "trivial": (1.0, 1, 1, "TrivialAugment, wide"),
    "rand": (9.0, 0, 30, "RandAugment: two changes of this strength"),
}
OPERATION_CLASSES = {
    "flip": RandomHorizontalFlip, "flip-vertical": RandomVerticalFlip, "pad-crop": PaddedRandomCrop,
    "crop": RandomResizedCrop, "brightness": RandomBrightness, "contrast": RandomContrast,
    "saturation": RandomSaturation, "hue": RandomHue, "grey": RandomGrayscale, "erase": RandomErasing,
}  # fmt: skip


def parse_augmentation(specs: Sequence[str], *, size: int, num_classes: int = 0) -> AugmentationPipeline:
    """The augmentation that words such as ``flip``, ``rotate=15`` and ``mixup=0.2`` ask for.

    Rotate, shift, scale and shear are one move, the first; the other moves and the changes of colour follow in the
    order of the words; mixing comes last.

    Raises:
        UsageError: a word is unknown or given twice, or its strength is out of bounds.
    """
    given = parse_strengths(specs)
    operations: list[Operation] = []
    for name, strength in given.items():
        if name in OPERATION_CLASSES:
            operations.append(OPERATION_CLASSES[name](strength))
        elif name == "trivial":
            operations.append(RandomOperation())
        elif name == "rand":
            operations += [RandomOperation(strength / 30)] * 2
    for kind, place in ((RandomAffine, 0), (MixUpCutMix, len(operations))):
        own = {field.name: given[field.name] for field in fields(kind) if field.name in given}
        if own:
            operations.insert(place, kind(**own))
    return AugmentationPipeline(tuple(operations), size, num_classes)


def parse_strengths(specs: Sequence[str]) -> dict[str, float]:
    """The strength of each word, ``{"flip": 0.5, "rotate": 15.0}``; raises as :func:`parse` does."""
    given: dict[str, float] = {}
    for spec in specs:
        name, _, value = spec.partition("=")
        if name not in OPERATIONS:
            raise build_unknown_error("augmentation", name, OPERATIONS)
        default, low, high, what = OPERATIONS[name]
        if name in given:
            raise UsageError(f"the augmentation {name} is given twice; give it once")
        try:
            given[name] = float(value) if value else default
        except ValueError:
            raise UsageError(f"{spec}: the strength should be a number, as in {name}={default:g} ({what})") from None
        if not low <= given[name] <= high:
            bounds = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
            raise UsageError(f"{spec}: the strength should be {bounds} ({what})")
    return given

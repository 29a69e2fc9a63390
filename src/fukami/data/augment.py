"""Data augmentation of whole batches on the device, as pure functions of the images and of uniform random numbers.

Every geometric transform of an image is a 3×3 matrix and every color transform a 3×4 matrix. The matrices are
multiplied first and applied once, so that an image is resampled and rounded once. Transforms that are not linear
(posterizing, erasing, mixing two images) follow.

torchvision samples one transform for a whole batch, and kornia uses the global random generator. A run that resumes
within an epoch needs a transform per image, from random numbers of the loader.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fukami.errors import UsageError, build_unknown_error
from fukami.image.channels import LUMA

Batch = tuple[Tensor, Tensor]
Side = int | Tensor  # side length in pixels: one for all images, or one for each, (N,)
RGB_TO_YIQ = (LUMA, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))  # luma and two color differences
YIQ_TO_RGB = tuple(map(tuple, np.linalg.inv(np.array(RGB_TO_YIQ, np.float32)).tolist()))
MAX_ASPECT_RATIO = 4 / 3  # of a random resized crop, either way (Szegedy et al. 2015, section 6)


class Transform:
    """Base class of the transforms; a subclass overrides the stages that it takes part in.

    Every stage receives the same uniform random numbers in [0, 1), ``(N, num_random_values)``.
    """

    num_random_values: ClassVar[int] = 1

    def compute_matrix(self, random_values: Tensor, height: Side, width: Side) -> Tensor | None:
        """Compute matrices ``(N, 3, 3)`` from output to input points, in [-1, 1] across the image; None: identity."""
        return None

    def compute_color_matrix(self, matrix: Tensor, mean: Tensor, random_values: Tensor) -> Tensor:
        """Compose this transform of (red, green, blue, 1) with the previous ones.

        Args:
            matrix: ``(N, 3, 4)`` product of the previous transforms.
            mean: ``(N, 3)`` mean color of each image after them.
            random_values: ``(N, num_random_values)`` random numbers.
        """
        return matrix

    def change_pixels(self, images: Tensor, random_values: Tensor, valid_fraction: Tensor | None = None) -> Tensor:
        """Transform the pixels of the images ``(N, C, H, W)`` in 0..255.

        ``valid_fraction``: see :meth:`AugmentationPipeline.recolor`.
        """
        return images

    def mix(self, images: Tensor, targets: Tensor, random_values: Tensor) -> Batch:
        """Mix pairs of images and their class probabilities ``(N, num_classes)``."""
        return images, targets


class Augmentation(Protocol):
    """Transform of images ``(N, C, H, W)`` and targets by random numbers ``(N, num_random_values)`` in [0, 1)."""

    @property
    def num_random_values(self) -> int:
        """Number of random numbers per image."""

    def __call__(self, images: Tensor, targets: Tensor, random_values: Tensor) -> Batch:
        """Return the transformed images, in the range of the input, and targets ``(N,)`` or ``(N, num_classes)``."""


@dataclass(frozen=True)
class AugmentationPipeline:
    """Sequence of transforms for every image of a batch; built by :func:`parse_augmentation`.

    Args:
        transforms: transforms in the order in which they are applied.
        size: side of the output images in pixels; 0 keeps the input size.
        num_classes: number of classes, for mixed targets.
    """

    transforms: tuple[Transform, ...]
    size: int
    num_classes: int = 0

    @property
    def num_random_values(self) -> int:
        """Number of random numbers per image."""
        return sum(transform.num_random_values for transform in self.transforms)

    def __call__(self, images: Tensor, targets: Tensor, random_values: Tensor) -> Batch:
        """Transform images ``(N, C, H, W)`` in 0..255 to ``(N, C, size, size)``.

        Images that are only flipped stay uint8; all others become float. Mixing returns soft labels
        ``(N, num_classes)``.
        """
        split_values = self.split_random_values(random_values)
        if self.only_flips and images.shape[-2:] == self.get_output_size(images):
            images = self.flip(images, split_values)
        else:
            images = self.warp(images.float(), self.compute_matrix(random_values, *images.shape[-2:]))
        images = self.recolor(images, random_values)
        for transform, values in zip(self.transforms, split_values, strict=True):
            images = transform.change_pixels(images, values)
        if self.has_stage("mix"):
            targets = F.one_hot(targets, self.num_classes).float()
            for transform, values in zip(self.transforms, split_values, strict=True):
                images, targets = transform.mix(images, targets, values)
        return images, targets

    def get_output_size(self, images: Tensor) -> tuple[int, int]:
        """Return the output height and width for images ``(N, C, H, W)``."""
        return (self.size, self.size) if self.size else (images.shape[-2], images.shape[-1])

    def split_random_values(self, random_values: Tensor) -> tuple[Tensor, ...]:
        """Split the random numbers ``(N, num_random_values)`` by transform."""
        return torch.split(random_values, [transform.num_random_values for transform in self.transforms], 1)

    def has_stage(self, stage: str) -> bool:
        """Return whether any transform takes part in a stage, such as ``mix``."""
        return any(getattr(type(transform), stage) is not getattr(Transform, stage) for transform in self.transforms)

    @property
    def only_flips(self) -> bool:
        """Return whether flips, which need no resampling, are the only geometric transforms."""
        geometric = (
            transform for transform in self.transforms if type(transform).compute_matrix is not Transform.compute_matrix
        )
        return all(isinstance(transform, RandomHorizontalFlip) for transform in geometric)

    def flip(self, images: Tensor, split_values: Sequence[Tensor]) -> Tensor:
        """Apply the flips only: exact, in the images' own type, and much faster than resampling."""
        for transform, values in zip(self.transforms, split_values, strict=True):
            if isinstance(transform, RandomHorizontalFlip):
                is_flipped = (values[:, 0] < transform.probability).view(-1, 1, 1, 1)
                images = torch.where(is_flipped, images.flip(transform.dimension), images)
        return images

    def compute_matrix(self, random_values: Tensor, height: Side, width: Side) -> Tensor | None:
        """Compute the product ``(N, 3, 3)`` of all geometric transforms for each image; None if there are none."""
        if not self.has_stage("compute_matrix"):
            return None
        product = torch.eye(3, device=random_values.device).expand(len(random_values), 3, 3)
        for transform, values in zip(self.transforms, self.split_random_values(random_values), strict=True):
            matrix = transform.compute_matrix(values, height, width)
            product = product if matrix is None else product @ matrix
        return product

    def warp(self, images: Tensor, matrix: Tensor | None, mode: str = "bilinear") -> Tensor:
        """Resample images at the output size with the matrices of :meth:`compute_matrix`.

        Pixels from outside the image are 0. Masks need ``mode="nearest"``.
        """
        size = self.get_output_size(images)
        if matrix is None:
            return images if images.shape[-2:] == size else F.interpolate(images, size, mode=mode)
        grid = F.affine_grid(matrix[:, :2], [*images.shape[:2], *size], align_corners=False)
        return F.grid_sample(images, grid, mode=mode, padding_mode="zeros", align_corners=False)

    def warp_boxes(self, boxes: Tensor, matrix: Tensor, height: Side, width: Side) -> Tensor:
        """Transform boxes ``(N, M, 4)`` (x1, y1, x2, y2 in pixels) and clip them to the output image.

        A box outside the image has zero area.
        """
        right, bottom = (self.size, self.size) if self.size else (width, height)
        sides = _stack_pair(right, bottom, boxes).repeat(1, 1, 2)
        return self.compute_box_bounds(boxes, matrix, height, width).clamp(min=0).minimum(sides)

    def compute_box_bounds(self, boxes: Tensor, matrix: Tensor, height: Side, width: Side) -> Tensor:
        """Compute the bounding boxes of transformed boxes ``(N, M, 4)``, not clipped."""
        input_size = _stack_pair(width, height, boxes).unsqueeze(2)
        output_size = _stack_pair(self.size, self.size, boxes).unsqueeze(2) if self.size else input_size
        corners = boxes[..., [0, 1, 2, 1, 0, 3, 2, 3]].view(*boxes.shape[:-1], 4, 2) / input_size * 2 - 1
        corners = torch.cat([corners, torch.ones_like(corners[..., :1])], -1).flatten(1, 2)
        warped = (corners @ matrix.inverse().mT)[..., :2].view(*boxes.shape[:-1], 4, 2)
        warped = (warped + 1) / 2 * output_size
        return torch.cat([warped.amin(2), warped.amax(2)], -1)

    def recolor(self, images: Tensor, random_values: Tensor, valid_fraction: Tensor | None = None) -> Tensor:
        """Apply the color transforms to images in 0..255, clamped to 0 and 255.

        Args:
            images: ``(N, C, H, W)`` images.
            random_values: ``(N, num_random_values)`` random numbers.
            valid_fraction: ``(N, 2)`` fractions of H and W that each image occupies, if the rest is zero padding; None:
                no padding.
        """
        if not self.has_stage("compute_color_matrix"):
            return images
        images = images.float()
        mean = images.mean((2, 3))
        mean = mean if images.shape[1] == 3 else mean.mean(1, keepdim=True).expand(-1, 3)
        mean = mean if valid_fraction is None else mean / valid_fraction.prod(1, keepdim=True)
        matrix = torch.eye(3, 4, device=images.device).expand(len(images), 3, 4)
        for transform, values in zip(self.transforms, self.split_random_values(random_values), strict=True):
            matrix = transform.compute_color_matrix(matrix, _transform_colors(matrix, mean), values)
        if images.shape[1] != 3:  # a grayscale image is an RGB image with three equal channels; so are others
            gain, offset = matrix[:, 0, :3].sum(1), matrix[:, 0, 3]
            return (images * gain.view(-1, 1, 1, 1) + offset.view(-1, 1, 1, 1)).clamp(0, 255)
        flat = torch.baddbmm(matrix[:, :, 3:], matrix[:, :, :3], images.flatten(2))
        return flat.clamp(0, 255).view_as(images)


@dataclass(frozen=True)
class RandomAffine(Transform):
    """Random affine transform: rotation, translation, scaling and shearing.

    Args:
        shift: maximum translation in pixels, in each direction.
        rotate: maximum angle in degrees, either way.
        scale: width and height are scaled separately, by ``1 - scale`` to ``1 + scale``.
        shear: maximum shear, in pixels along x per pixel along y.
    """

    num_random_values: ClassVar[int] = 6
    shift: float = 0.0
    rotate: float = 0.0
    scale: float = 0.0
    shear: float = 0.0

    def compute_matrix(self, random_values: Tensor, height: Side, width: Side) -> Tensor:
        """Compute the matrices: scaling, shear and rotation about the center, then translation."""
        angle, scale_x, scale_y, shear, translate_x, translate_y = (2 * random_values - 1).unbind(1)
        return build_affine_matrix(
            angle=angle * math.radians(self.rotate),
            scale=(1 / (1 + self.scale * scale_x), 1 / (1 + self.scale * scale_y)),
            shear=self.shear * shear,
            translation=(translate_x * 2 * self.shift / width, translate_y * 2 * self.shift / height),
            aspect=width / height,
        )


@dataclass(frozen=True)
class RandomHorizontalFlip(Transform):
    """Random horizontal flip with a given probability."""

    dimension: ClassVar[int] = 3
    probability: float = 0.5

    def compute_matrix(self, random_values: Tensor, height: Side, width: Side) -> Tensor:
        """Compute the matrices: a reflection about the center, or the identity."""
        sign = torch.where(random_values[:, 0] < self.probability, -1.0, 1.0)
        one = torch.ones_like(sign)
        return _build_diagonal(sign, one) if self.dimension == 3 else _build_diagonal(one, sign)


@dataclass(frozen=True)
class RandomVerticalFlip(RandomHorizontalFlip):
    """Random vertical flip with a given probability."""

    dimension: ClassVar[int] = 2


@dataclass(frozen=True)
class PaddedRandomCrop(Transform):
    """Random crop of the image's own size after zero padding, in pixels per side (He et al. 2016, section 4.2)."""

    num_random_values: ClassVar[int] = 2
    padding: float = 4.0

    def compute_matrix(self, random_values: Tensor, height: Side, width: Side) -> Tensor:
        """Compute the matrices: a translation by whole pixels."""
        offset = (random_values * (2 * self.padding + 1)).floor() - self.padding
        matrix = torch.eye(3, device=random_values.device).repeat(len(random_values), 1, 1)
        matrix[:, 0, 2], matrix[:, 1, 2] = offset[:, 0] * 2 / width, offset[:, 1] * 2 / height
        return matrix


@dataclass(frozen=True)
class RandomResizedCrop(Transform):
    """Random resized crop (Szegedy et al. 2015, section 6) with an aspect ratio of 3:4 to 4:3.

    Args:
        min_area: minimum fraction of the image's area.
    """

    num_random_values: ClassVar[int] = 4
    min_area: float = 0.08

    def compute_matrix(self, random_values: Tensor, height: Side, width: Side) -> Tensor:
        """Compute the matrices that resize the crop to the full image."""
        crop_width, crop_height, left, top = compute_crops(random_values, self.min_area, width / height)
        matrix = _build_diagonal(crop_width, crop_height)
        matrix[:, 0, 2], matrix[:, 1, 2] = 2 * left + crop_width - 1, 2 * top + crop_height - 1
        return matrix


def compute_crops(
    random_values: Tensor, min_area: float, aspect: float | Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute width, height, left and top ``(N,)`` of random crops, as fractions of the image.

    ``random_values`` is ``(N, 4)``, ``aspect`` the image's ratio of width to height. Longer sides are clipped.
    """
    area = min_area + (1 - min_area) * random_values[:, 0]
    ratio = (math.log(MAX_ASPECT_RATIO) * (2 * random_values[:, 1] - 1)).exp()
    width = (area * ratio / aspect).sqrt().clamp(max=1)
    height = (area / ratio * aspect).sqrt().clamp(max=1)
    return width, height, (1 - width) * random_values[:, 2], (1 - height) * random_values[:, 3]


@dataclass(frozen=True)
class RandomBrightness(Transform):
    """Random brightness: multiplies all colors by ``1 - max_change`` to ``1 + max_change``."""

    max_change: float = 0.4

    def compute_color_matrix(self, matrix: Tensor, mean: Tensor, random_values: Tensor) -> Tensor:
        """Blend with black."""
        return _compute_factors(random_values, self.max_change) * matrix


@dataclass(frozen=True)
class RandomContrast(Transform):
    """Random contrast: scales the distance to the image's mean luma by ``1 - max_change`` to ``1 + max_change``."""

    max_change: float = 0.4

    def compute_color_matrix(self, matrix: Tensor, mean: Tensor, random_values: Tensor) -> Tensor:
        """Blend with the mean gray."""
        return _adjust_contrast(matrix, mean, _compute_factors(random_values, self.max_change))


@dataclass(frozen=True)
class RandomSaturation(Transform):
    """Random saturation: scales the distance of each pixel to its luma by ``1 - max_change`` to ``1 + max_change``."""

    max_change: float = 0.4

    def compute_color_matrix(self, matrix: Tensor, mean: Tensor, random_values: Tensor) -> Tensor:
        """Blend with the grayscale image."""
        return _adjust_saturation(matrix, _compute_factors(random_values, self.max_change))


@dataclass(frozen=True)
class RandomHue(Transform):
    """Random hue: rotates the colors by up to ``max_change`` of a full turn, either way, at constant luma (in YIQ)."""

    max_change: float = 0.1

    def compute_color_matrix(self, matrix: Tensor, mean: Tensor, random_values: Tensor) -> Tensor:
        """Rotate in the plane of the two color differences."""
        yiq, rgb = (_get_constant(rows, random_values.device) for rows in (RGB_TO_YIQ, YIQ_TO_RGB))
        angle = (2 * random_values[:, 0] - 1) * (2 * math.pi * self.max_change)
        rotation = torch.eye(3, device=random_values.device).repeat(len(random_values), 1, 1)
        rotation[:, 1, 1], rotation[:, 2, 2] = angle.cos(), angle.cos()
        rotation[:, 1, 2], rotation[:, 2, 1] = -angle.sin(), angle.sin()
        return rgb @ rotation @ yiq @ matrix


@dataclass(frozen=True)
class RandomGrayscale(Transform):
    """Random conversion to grayscale with a given probability."""

    probability: float = 0.2

    def compute_color_matrix(self, matrix: Tensor, mean: Tensor, random_values: Tensor) -> Tensor:
        """Remove the saturation."""
        return _adjust_saturation(matrix, (random_values >= self.probability).float().unsqueeze(2))


@dataclass(frozen=True)
class RandomErasing(Transform):
    """Random erasing: fills a rectangle of 2 to 33 % of the area with the mean color (Zhong et al. 2020)."""

    num_random_values: ClassVar[int] = 5
    probability: float = 0.25

    def change_pixels(self, images: Tensor, random_values: Tensor, valid_fraction: Tensor | None = None) -> Tensor:
        """Erase a rectangle with an aspect ratio of 0.3 to 3.3 in pixels."""
        is_erased = (random_values[:, 0] < self.probability).view(-1, 1, 1, 1)
        size, aspect, left, top = random_values[:, 1:].unbind(1)
        area, ratio = 0.02 + 0.31 * size, (math.log(3.3) * (2 * aspect - 1)).exp()
        ratio = ratio * images.shape[2] / images.shape[3]  # of fractions of the width and the height
        if valid_fraction is not None:
            ratio = ratio * valid_fraction[:, 0] / valid_fraction[:, 1]
        width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
        x, y = (1 - width) * left + width / 2, (1 - height) * top + height / 2
        mean = images.float().mean((2, 3), keepdim=True)
        if valid_fraction is not None:
            valid_height, valid_width = valid_fraction.unbind(1)
            x, y, width, height = x * valid_width, y * valid_height, width * valid_width, height * valid_height
            mean = mean / valid_fraction.prod(1).view(-1, 1, 1, 1)
        return torch.where(_build_box_masks(images, x, y, width, height) & is_erased, mean, images)


@dataclass(frozen=True)
class MixUpCutMix(Transform):
    """Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019).

    The partner of an image is half a batch away, so that it does not depend on the number of processes if this divides
    half of the batch size. If both are enabled, one of them is sampled for each image.

    Args:
        mixup, cutmix: alpha of the Beta distribution of the image's own weight; 0 disables the transform.
    """

    num_random_values: ClassVar[int] = 4
    mixup: float = 0.0
    cutmix: float = 0.0

    def mix(self, images: Tensor, targets: Tensor, random_values: Tensor) -> Batch:
        """Mix images and targets with those of their partners."""
        quantile, center_x, center_y = random_values[:, 1:].unbind(1)
        use_cutmix = random_values[:, 0] < (0.5 if self.mixup and self.cutmix else float(self.cutmix > 0))
        side = (1 - _sample_beta(self.cutmix, quantile)).sqrt()
        box = _build_box_masks(images, center_x, center_y, side, side)
        weight = torch.where(use_cutmix, 1 - box.float().mean((1, 2, 3)), _sample_beta(self.mixup, quantile))
        weight = weight.view(-1, 1, 1, 1)
        pixel_weight = torch.where(use_cutmix.view(-1, 1, 1, 1), (~box).float(), weight)
        weight = weight.view(-1, 1)
        images = pixel_weight * images + (1 - pixel_weight) * images.roll(len(images) // 2, 0)
        return images, weight * targets + (1 - weight) * targets.roll(len(targets) // 2, 0)


# maximum magnitudes in RandAugment (Cubuk et al. 2020) and TrivialAugment (Müller and Hutter 2021, wide space), as in
# torchvision; a translation is a fraction of the width in the former and pixels in the latter
MAX_MAGNITUDES = {
    "identity": (0.0, 0.0), "shear x": (0.3, 0.99), "shear y": (0.3, 0.99), "translate x": (150 / 331, 32.0),
    "translate y": (150 / 331, 32.0), "rotate": (30.0, 135.0), "brightness": (0.9, 0.99), "saturation": (0.9, 0.99),
    "contrast": (0.9, 0.99), "sharpness": (0.9, 0.99), "posterize": (4.0, 6.0), "solarize": (255.0, 255.0),
    "autocontrast": (0.0, 0.0), "equalize": (0.0, 0.0),
}  # fmt: skip


@dataclass(frozen=True)
class RandomTransform(Transform):
    """Random transform out of fourteen per image, with a fixed (RandAugment) or random (TrivialAugment) magnitude.

    Args:
        magnitude: fraction of the maximum magnitude, 0 to 1; None: sampled per image from
            TrivialAugment's wide search space.
    """

    num_random_values: ClassVar[int] = 3
    magnitude: float | None = None

    def compute_magnitudes(self, random_values: Tensor, name: str, signed: bool = True) -> Tensor:
        """Compute the magnitude of a transform for each image ``(N,)``; 0 for images with another transform."""
        choice, magnitude, sign = random_values.unbind(1)
        is_chosen = (choice * len(MAX_MAGNITUDES)).floor() == list(MAX_MAGNITUDES).index(name)
        fraction = magnitude if self.magnitude is None else torch.full_like(magnitude, self.magnitude)
        direction = torch.where(sign < 0.5, -1.0, 1.0) if signed else 1.0
        return is_chosen * fraction * direction * MAX_MAGNITUDES[name][int(self.magnitude is None)]

    def select_images(self, random_values: Tensor, name: str) -> Tensor:
        """Return a mask ``(N, 1, 1, 1)`` of the images with a transform."""
        choice = (random_values[:, 0] * len(MAX_MAGNITUDES)).floor()
        return (choice == list(MAX_MAGNITUDES).index(name)).view(-1, 1, 1, 1)

    def compute_matrix(self, random_values: Tensor, height: Side, width: Side) -> Tensor:
        """Compute the matrices of the shears, translations and rotations."""
        translate_x = self.compute_magnitudes(random_values, "translate x")
        translate_y = self.compute_magnitudes(random_values, "translate y")
        if self.magnitude is None:  # the wide search space is in pixels
            translate_x, translate_y = translate_x / width, translate_y / height
        one = torch.ones_like(translate_x)
        matrix = build_affine_matrix(
            angle=torch.deg2rad(self.compute_magnitudes(random_values, "rotate")),
            scale=(one, one),
            shear=self.compute_magnitudes(random_values, "shear x"),
            translation=(2 * translate_x, 2 * translate_y),
            aspect=width / height,
        )
        matrix[:, 1, 0] += self.compute_magnitudes(random_values, "shear y") * width / height
        return matrix

    def compute_color_matrix(self, matrix: Tensor, mean: Tensor, random_values: Tensor) -> Tensor:
        """Apply brightness, saturation and contrast."""
        brightness, saturation, contrast = (
            1 + self.compute_magnitudes(random_values, name).view(-1, 1, 1)
            for name in ("brightness", "saturation", "contrast")
        )
        return _adjust_contrast(_adjust_saturation(brightness * matrix, saturation), mean, contrast)

    def change_pixels(self, images: Tensor, random_values: Tensor, valid_fraction: Tensor | None = None) -> Tensor:
        """Apply sharpness, posterize, solarize, autocontrast and equalize."""
        from torchvision.transforms.v2.functional import equalize  # the import takes a second

        shape = (-1, 1, 1, 1)
        images = images.round()  # these transforms count intensity levels
        sharp = self.compute_magnitudes(random_values, "sharpness").view(shape)
        images = (images + sharp * (images - _smooth(images))).clamp(0, 255)
        step = 2 ** self.compute_magnitudes(random_values, "posterize", signed=False).round().view(shape)
        images = torch.where(self.select_images(random_values, "posterize"), (images / step).floor() * step, images)
        threshold = 255 - self.compute_magnitudes(random_values, "solarize", signed=False).view(shape)
        inverted = self.select_images(random_values, "solarize") & (images >= threshold)
        images = torch.where(inverted, 255 - images, images)
        low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
        stretched = torch.where(high > low, (images - low) * 255 / (high - low).clamp(min=1), images)
        images = torch.where(self.select_images(random_values, "autocontrast"), stretched, images)
        return torch.where(
            self.select_images(random_values, "equalize"), equalize(images.to(torch.uint8)).float(), images
        )


def build_affine_matrix(
    *,
    angle: Tensor,
    scale: tuple[Tensor, Tensor],
    shear: Tensor,
    translation: tuple[Tensor, Tensor],
    aspect: float | Tensor,
) -> Tensor:
    """Build the affine matrices ``(N, 3, 3)`` from output to input points.

    Coordinates are in [-1, 1] across the image; ``angle`` is in radians, ``aspect`` the ratio of width to height.
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
    """Stack two side lengths, of all images or of each, as ``(1 or N, 1, 2)``."""
    return torch.stack([torch.as_tensor(side, dtype=like.dtype, device=like.device) for side in (x, y)], -1).view(
        -1, 1, 2
    )


def _build_diagonal(x: Tensor, y: Tensor) -> Tensor:
    return torch.stack([x, y, torch.ones_like(x)], 1).diag_embed()


def _transform_colors(matrix: Tensor, colors: Tensor) -> Tensor:
    """Transform colors ``(N, 3)`` by matrices ``(N, 3, 4)``."""
    return (matrix[:, :, :3] @ colors.unsqueeze(2) + matrix[:, :, 3:]).squeeze(2)


def _compute_factors(random_values: Tensor, max_change: float) -> Tensor:
    """Compute factors ``(N, 1, 1)`` in ``1 - max_change`` to ``1 + max_change``, at least 0."""
    return (1 + (2 * random_values - 1) * max_change).clamp(min=0).unsqueeze(2)


def _adjust_saturation(matrix: Tensor, factor: Tensor) -> Tensor:
    to_grayscale = _get_constant(LUMA, matrix.device).expand(3, 3)
    return factor * matrix + (1 - factor) * (to_grayscale @ matrix)


def _adjust_contrast(matrix: Tensor, mean: Tensor, factor: Tensor) -> Tensor:
    luma = (mean * _get_constant(LUMA, matrix.device)).sum(1)
    offset = F.pad(((1 - factor) * luma.view(-1, 1, 1)).expand(-1, 3, 1), (3, 0))
    return factor * matrix + offset


def _smooth(images: Tensor) -> Tensor:
    """Average each pixel, with weight 5, and its eight neighbors; the border is kept (Pillow's ``SMOOTH``)."""
    kernel = torch.ones(images.shape[1], 1, 3, 3, device=images.device)
    kernel[:, :, 1, 1] = 5
    inner = F.conv2d(images, kernel / 13, groups=images.shape[1])
    smooth = images.clone()
    smooth[:, :, 1:-1, 1:-1] = inner
    return smooth


def _build_box_masks(images: Tensor, center_x: Tensor, center_y: Tensor, width: Tensor, height: Tensor) -> Tensor:
    """Build masks ``(N, 1, H, W)`` of rectangles, whose centers and sides are fractions of the image."""
    num_rows, num_columns = images.shape[-2:]
    y = ((torch.arange(num_rows, device=images.device) + 0.5) / num_rows).view(1, 1, -1, 1)
    x = ((torch.arange(num_columns, device=images.device) + 0.5) / num_columns).view(1, 1, 1, -1)
    center_x, center_y, width, height = (value.view(-1, 1, 1, 1) for value in (center_x, center_y, width, height))
    return ((x - center_x).abs() < width / 2) & ((y - center_y).abs() < height / 2)


def _sample_beta(alpha: float, uniform: Tensor) -> Tensor:
    """Map uniform random numbers to Beta(alpha, alpha) by an interpolated table of its quantiles."""
    if not alpha:
        return torch.ones_like(uniform)
    quantiles = _get_constant(_compute_beta_quantiles(alpha), uniform.device)
    position = uniform * 1024
    low = position.floor().long().clamp(max=1023)
    return quantiles[low].lerp(quantiles[low + 1], position - low)


@functools.cache
def _compute_beta_quantiles(alpha: float) -> tuple[float, ...]:
    """Compute the quantiles of Beta(alpha, alpha) at 0, 1/1024, ... 1."""
    from scipy.special import betaincinv

    return tuple(float(betaincinv(alpha, alpha, index / 1024)) for index in range(1025))


@functools.cache
def _get_constant(values: tuple[float, ...] | tuple[tuple[float, ...], ...], device: torch.device) -> Tensor:
    """Return a constant tensor on the device, copied once: CUDA graph capture allows no copies from the host."""
    return torch.tensor(values, device=device)


# name: default value, minimum, maximum, description of the value
TRANSFORMS: dict[str, tuple[float, float, float, str]] = {
    "rotate": (10.0, 0, 180, "maximum angle in degrees"),
    "shift": (2.0, 0, math.inf, "maximum shift in pixels"),
    "scale": (0.1, 0, 0.99, "maximum relative change of size"),
    "shear": (0.1, 0, math.inf, "maximum shear, in pixels per pixel of height"),
    "flip": (0.5, 0, 1, "probability of a horizontal flip"),
    "flip-vertical": (0.5, 0, 1, "probability of a vertical flip"),
    "pad-crop": (4.0, 0, math.inf, "pixels of padding before a crop of the original size"),
    "crop": (0.08, 0.01, 1, "minimum fraction of the area in a random resized crop"),
    "brightness": (0.4, 0, 1, "maximum relative change of brightness"),
    "contrast": (0.4, 0, 1, "maximum relative change of contrast"),
    "saturation": (0.4, 0, 1, "maximum relative change of saturation"),
    "hue": (0.1, 0, 0.5, "maximum rotation of hue, as a fraction of a full turn"),
    "grayscale": (0.2, 0, 1, "probability of a conversion to grayscale"),
    "erase": (0.25, 0, 1, "probability of erasing a rectangle"),
    "mixup": (0.2, 0, math.inf, "alpha of mixup"),
    "cutmix": (1.0, 0, math.inf, "alpha of CutMix"),
    "trivial": (1.0, 1, 1, "TrivialAugment, wide search space"),
    "rand": (9.0, 0, 30, "RandAugment: two transforms of this magnitude"),
}
TRANSFORM_CLASSES = {
    "flip": RandomHorizontalFlip, "flip-vertical": RandomVerticalFlip, "pad-crop": PaddedRandomCrop,
    "crop": RandomResizedCrop, "brightness": RandomBrightness, "contrast": RandomContrast,
    "saturation": RandomSaturation, "hue": RandomHue, "grayscale": RandomGrayscale, "erase": RandomErasing,
}  # fmt: skip


def parse_augmentation(specs: Sequence[str], *, size: int, num_classes: int = 0) -> AugmentationPipeline:
    """Build the augmentation of specs such as ``flip``, ``rotate=15`` and ``mixup=0.2``.

    Rotate, shift, scale and shear form one affine transform, which comes first. The other geometric and color
    transforms follow in the order of the specs. Mixing comes last.

    Raises:
        UsageError: a name is unknown or repeated, or a value is out of range.
    """
    values = parse_transform_values(specs)
    transforms: list[Transform] = []
    for name, value in values.items():
        if name in TRANSFORM_CLASSES:
            transforms.append(TRANSFORM_CLASSES[name](value))
        elif name == "trivial":
            transforms.append(RandomTransform())
        elif name == "rand":
            transforms += [RandomTransform(value / 30)] * 2
    for kind, position in ((RandomAffine, 0), (MixUpCutMix, len(transforms))):
        options = {field.name: values[field.name] for field in fields(kind) if field.name in values}
        if options:
            transforms.insert(position, kind(**options))
    return AugmentationPipeline(tuple(transforms), size, num_classes)


def parse_transform_values(specs: Sequence[str]) -> dict[str, float]:
    """Parse the value of each transform, ``{"flip": 0.5, "rotate": 15.0}``.

    Raises:
        UsageError: as in :func:`parse_augmentation`.
    """
    values: dict[str, float] = {}
    for spec in specs:
        name, _, value = spec.partition("=")
        if name not in TRANSFORMS:
            raise build_unknown_error("augmentation", name, TRANSFORMS)
        default, low, high, description = TRANSFORMS[name]
        if name in values:
            raise UsageError(f"the augmentation {name} is specified twice; specify it once")
        try:
            values[name] = float(value) if value else default
        except ValueError:
            raise UsageError(
                f"{spec}: the value should be a number, as in {name}={default:g} ({description})"
            ) from None
        if not low <= values[name] <= high:
            bounds = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
            raise UsageError(f"{spec}: the value should be {bounds} ({description})")
    return values

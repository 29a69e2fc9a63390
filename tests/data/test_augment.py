"""Tests of the data augmentation, compared with transforms computed by hand and by torchvision."""

import math

import pytest
import torch
from torchvision import transforms
from torchvision.transforms import functional as reference
from torchvision.transforms.functional import InterpolationMode
from torchvision.transforms.v2 import functional as v2

from fukami import UsageError
from fukami.data import augment
from fukami.data.augment import (
    MAX_MAGNITUDES,
    AugmentationPipeline,
    RandomAffine,
    RandomErasing,
    RandomHue,
    RandomTransform,
)

ZERO, FULL = 0.5, 1 - 1e-7  # random numbers in [0, 1): the middle is the identity, the end the maximum value


def affine_values(**random_values):
    """Return the random numbers of an affine transform of one image, by the names below."""
    names = ["angle", "scale_x", "scale_y", "shear", "translate_x", "translate_y"]
    return torch.tensor([[random_values.get(name, ZERO) for name in names]])


def apply(transform, images, random_values):
    """Apply one transform, or the augmentation of a string of specs."""
    size = images.shape[-1]
    if isinstance(transform, str):
        pipeline = augment.parse_augmentation(transform.split(), size=size, num_classes=3)
    else:
        pipeline = AugmentationPipeline((transform,), size, 3)
    random_values = torch.as_tensor(random_values, dtype=torch.float32)
    return pipeline(images, torch.zeros(len(images), dtype=torch.long), random_values.expand(len(images), -1))[0]


@pytest.fixture
def image():
    torch.manual_seed(0)
    blurred = reference.gaussian_blur(torch.rand(1, 2, 29, 29), [5, 5])
    return torch.nn.functional.pad(blurred[..., 8:-8, 8:-8], (8, 8, 8, 8)) * 255


@pytest.fixture
def colors():
    torch.manual_seed(0)
    return torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)


# ---- geometric transforms -------------------------------------------------------------------------------------------


def test_the_middle_of_every_draw_is_the_identity(image):
    torch.testing.assert_close(apply(RandomAffine(3, 20, 0.2, 0.2), image, affine_values()), image, atol=0.01, rtol=0)


@pytest.mark.parametrize(("right", "down"), [(1, 0), (0, 2), (-2, 1)])
def test_shift_by_whole_pixels(image, right, down):
    shifted = apply(
        RandomAffine(shift=2), image, affine_values(translate_x=(1 - right / 2) / 2, translate_y=(1 - down / 2) / 2)
    )
    torch.testing.assert_close(shifted, torch.roll(image, (down, right), (2, 3)), atol=0.01, rtol=0)


@pytest.mark.parametrize("degrees", [90.0, 30.0, -12.0])
def test_rotation_equals_torchvisions(image, degrees):
    rotated = apply(RandomAffine(rotate=abs(degrees)), image, affine_values(angle=FULL if degrees > 0 else 0.0))
    expected = reference.rotate(image, degrees, InterpolationMode.BILINEAR)
    torch.testing.assert_close(rotated, expected, atol=0.6, rtol=0)


@pytest.mark.parametrize("degrees", [90.0, 30.0, -12.0])
@pytest.mark.parametrize("crop", [(29, 19), (17, 29)])
def test_rotation_of_an_image_that_is_not_square(image, degrees, crop):
    image = image[..., : crop[0], : crop[1]]
    pipeline = AugmentationPipeline((RandomAffine(rotate=abs(degrees)),), 0)
    rotated, _ = pipeline(image, torch.zeros(1), affine_values(angle=FULL if degrees > 0 else 0.0))
    expected = reference.rotate(image, degrees, InterpolationMode.BILINEAR)
    torch.testing.assert_close(rotated, expected, atol=0.8, rtol=0)


@pytest.mark.parametrize(("axis", "name"), [(3, "scale_x"), (2, "scale_y")])
def test_scale_of_one_axis(name, axis):
    """A square of 8 pixels becomes 10 pixels long along the axis, and its other side is the same."""
    square = torch.zeros(1, 1, 24, 32)
    square[..., 8:16, 12:20] = 1
    pipeline = AugmentationPipeline((RandomAffine(scale=0.25),), 0)
    scaled, _ = pipeline(square, torch.zeros(1), affine_values(**{name: FULL}))
    assert scaled.amax(5 - axis).sum().item() == pytest.approx(10, abs=0.3)
    assert scaled.amax(axis).sum().item() == pytest.approx(8, abs=0.3)


def test_scale_changes_the_area_quadratically(image):
    """The sum of the pixels is proportional to the area, and the area to the square of the scale."""
    for draw, factor in ((FULL, 1.2), (0.0, 0.8)):
        scaled = apply(RandomAffine(scale=0.2), image, affine_values(scale_x=draw, scale_y=draw))
        assert (scaled.sum() / image.sum()).item() == pytest.approx(factor**2, rel=0.02)


def test_shear_slants_and_keeps_the_sum_of_the_pixels():
    column = torch.zeros(1, 1, 21, 21)
    column[..., 5:16, 10] = 1
    sheared = apply(RandomAffine(shear=0.4), column, affine_values(shear=FULL))[0, 0]
    center = (sheared * torch.arange(21)).sum(1)[5:16] / sheared.sum(1)[5:16]
    slope = (center[-1] - center[0]) / 10
    assert abs(slope.item()) == pytest.approx(0.4, abs=0.02)
    assert sheared.sum().item() == pytest.approx(11, rel=0.02)


def test_each_image_has_its_own_draws(image):
    images = image.repeat(2, 1, 1, 1)
    images = AugmentationPipeline((RandomAffine(rotate=45),), 29)(
        images, torch.zeros(2), torch.cat([affine_values(), affine_values(angle=FULL)])
    )[0]
    torch.testing.assert_close(images[:1], image, atol=0.01, rtol=0)
    assert (images[1] - image[0]).abs().mean() > 1


def test_uint8_images_become_floats_in_the_same_range():
    torch.manual_seed(0)
    images = torch.randint(0, 256, (5, 1, 28, 28), dtype=torch.uint8)
    warped = AugmentationPipeline((RandomAffine(2, 10, 0.1, 0.1),), 28)(images, torch.zeros(5), torch.rand(5, 6))[0]
    assert warped.dtype == torch.float32
    assert 0 <= warped.min() <= warped.max() <= 255
    assert math.isclose(warped.mean(), images.float().mean(), rel_tol=0.2)


def test_flips_are_exact(colors):
    for name, dimension in (("flip", 3), ("flip-vertical", 2)):
        flipped = apply(f"{name}=0.5", colors, [0.4])
        assert torch.equal(flipped, colors.flip(dimension))
        assert torch.equal(apply(name, colors, [0.6]), colors)
        resampled = apply(f"{name}=0.5 shift=0", colors, [*[0.5] * 6, 0.4])  # a flip among other transforms
        torch.testing.assert_close(resampled, flipped.float(), atol=0.01, rtol=0)


def test_padded_crop_equals_a_slice_of_the_padded_image(colors):
    padded = torch.nn.functional.pad(colors.float(), (3, 3, 3, 3))
    for right in range(7):
        for down in (0, 5):
            cropped = apply("pad-crop=3", colors, [(right + 0.5) / 7, (down + 0.5) / 7])
            expected = padded[..., down : down + 16, right : right + 16]
            torch.testing.assert_close(cropped, expected, atol=0.01, rtol=0)


def test_random_resized_crop_equals_the_resized_slice(image):
    """The top left quarter: a quarter of the area, aspect ratio 1, no offset."""
    cropped = apply("crop=0.25", image, [0.0, 0.5, 0.0, 0.0])
    expected = torch.nn.functional.interpolate(image, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(cropped[..., :27, :27], expected[..., :27, :27], atol=0.1, rtol=0)


def test_distribution_of_the_area_and_aspect_ratio_of_random_crops():
    torch.manual_seed(0)
    width, height, left, top = augment.compute_crops(torch.rand(4000, 4), 0.08, 1.0)
    is_unclipped = (width < 1) & (height < 1)
    ratio = (width / height)[is_unclipped]
    assert ratio.min() > 3 / 4 - 0.01
    assert ratio.max() < 4 / 3 + 0.01
    area = width * height
    assert 0.08 <= area.min() < 0.12
    assert area.mean().item() == pytest.approx((0.08 + 1) / 2, abs=0.03)
    assert (left >= 0).all()
    assert (left + width <= 1.001).all()
    assert (top + height <= 1.001).all()


def test_geometric_transforms_are_composed_in_order(image):
    """A shift followed by a flip."""
    transformed = apply("shift=2 flip", image, torch.cat([affine_values(translate_x=0.0), torch.zeros(1, 1)], 1))
    expected = torch.roll(image, 2, 3).flip(3)
    torch.testing.assert_close(transformed, expected, atol=0.01, rtol=0)


def test_masks_and_boxes_are_transformed_with_the_image():
    """A bright rectangle, its mask and its box stay aligned."""
    torch.manual_seed(0)
    images = torch.zeros(20, 1, 40, 40)
    images[..., 10:22, 14:30] = 255
    boxes = torch.tensor([[[14.0, 10.0, 30.0, 22.0], [0.0, 0.0, 2.0, 2.0]]]).expand(20, 2, 4)
    pipeline = augment.parse_augmentation(["shift=6", "flip", "crop=0.5", "flip-vertical"], size=40)
    matrix = pipeline.compute_matrix(torch.rand(20, pipeline.num_random_values), 40, 40)
    is_bright = pipeline.warp(images, matrix)[:, 0] > 127
    mask = pipeline.warp((images > 0).float(), matrix, mode="nearest")[:, 0] > 0
    assert (is_bright == mask).float().mean() > 0.99
    warped = pipeline.warp_boxes(boxes, matrix, 40, 40)
    for index in range(20):
        rows, columns = mask[index].any(1).nonzero(), mask[index].any(0).nonzero()
        expected = [columns.min().item(), rows.min().item(), columns.max().item() + 1, rows.max().item() + 1]
        assert warped[index, 0].tolist() == pytest.approx(expected, abs=1.01)
    assert ((warped >= 0) & (warped <= 40)).all()


# ---- color transforms ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "adjust"),
    [("brightness", v2.adjust_brightness), ("contrast", v2.adjust_contrast), ("saturation", v2.adjust_saturation)],
)
@pytest.mark.parametrize("factor", [0.3, 0.8, 1.0, 1.6])
def test_color_transforms_equal_torchvisions(colors, name, adjust, factor):
    adjusted = apply(f"{name}=1", colors, [factor / 2])
    expected = adjust(colors.float() / 255, factor) * 255
    torch.testing.assert_close(adjusted, expected, atol=1.0, rtol=0)


def test_composed_color_transforms_equal_torchvisions():
    """Medium colors, so that nothing is clamped between the two."""
    torch.manual_seed(0)
    colors = torch.rand(2, 3, 8, 8) * 0.4 + 0.3
    adjusted = apply("brightness=1 contrast=1", colors * 255, [0.55, 0.4]) / 255
    expected = v2.adjust_contrast(v2.adjust_brightness(colors, 1.1), 0.8)
    torch.testing.assert_close(adjusted, expected, atol=2e-3, rtol=0)


def test_grayscale_equals_torchvisions(colors):
    grayscale = apply("grayscale=0.5", colors, [0.4])
    torch.testing.assert_close(grayscale, v2.rgb_to_grayscale(colors.float(), 3), atol=1.0, rtol=0)
    torch.testing.assert_close(apply("grayscale=0.5", colors, [0.6]), colors.float())


def test_hue_rotates_red_to_green_and_keeps_gray():
    red = torch.tensor([150.0, 100.0, 100.0]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    forward = apply(RandomHue(1 / 3), red, [FULL])[0, :, 0, 0]
    backward = apply(RandomHue(1 / 3), red, [0.0])[0, :, 0, 0]
    assert {forward.argmax().item(), backward.argmax().item()} == {1, 2}
    luma = torch.tensor(augment.LUMA)
    assert (forward @ luma).item() == pytest.approx((red[0, :, 0, 0] @ luma).item(), rel=0.01)
    gray = torch.full((1, 3, 4, 4), 90.0)
    torch.testing.assert_close(apply(RandomHue(0.5), gray, [0.1]), gray, atol=0.05, rtol=0)


def test_grayscale_images_only_change_in_brightness():
    images = torch.full((2, 1, 4, 4), 100.0)
    assert apply("brightness=0.5 saturation hue grayscale=1", images, [[FULL, 0.1, 0.9, 0.0]]).mean() == pytest.approx(
        150
    )


# ---- pixel transforms -----------------------------------------------------------------------------------------------


def test_random_erasing_fills_a_rectangle_of_the_expected_area():
    torch.manual_seed(0)
    images = torch.rand(400, 3, 32, 32) * 255
    erased = AugmentationPipeline(augment.parse_augmentation(["erase=1"], size=32).transforms, 32)(
        images, torch.zeros(400), torch.rand(400, 5)
    )[0]
    fraction = (erased != images).any(1).float().mean((1, 2))
    assert 0.01 < fraction.min() < fraction.max() < 0.36
    assert fraction.mean().item() == pytest.approx((0.02 + 0.33) / 2, abs=0.02)
    torch.testing.assert_close(apply("erase=0.3", images[:2], [0.4, 0, 0, 0, 0]), images[:2])


def test_the_aspect_ratio_of_an_erased_rectangle_is_in_pixels():
    """17.5 % of 40×20 pixels with a ratio of 1 : 3.3 are 6.5×21.5 pixels, also in a padded image."""
    erasing, values = RandomErasing(probability=1.0), torch.tensor([[0.0, 0.5, 0.0, 0.0, 0.0]])
    image = torch.arange(800.0).view(1, 1, 40, 20) + 1
    expected = image.clone()
    expected[..., :21, :7] = image.mean()
    torch.testing.assert_close(erasing.change_pixels(image, values), expected)
    padded = torch.nn.functional.pad(image, (0, 12, 0, 8))
    erased = erasing.change_pixels(padded, values, torch.tensor([[40 / 48, 20 / 32]]))
    torch.testing.assert_close(erased[..., :40, :20], expected)
    assert (erased[..., 40:, :] == 0).all()
    assert (erased[..., 20:] == 0).all()


TRIVIAL_NAMES = list(MAX_MAGNITUDES)


def apply_trivial(name, images, magnitude, sign=0.9):
    """Apply one of TrivialAugment's transforms."""
    choice = (TRIVIAL_NAMES.index(name) + 0.5) / len(TRIVIAL_NAMES)
    return apply(RandomTransform(), images, [choice, magnitude, sign])


@pytest.mark.parametrize("magnitude", [0.0, 0.34, 0.7])
@pytest.mark.parametrize(
    ("name", "transform"),
    [
        ("identity", lambda x, s: x),
        ("brightness", lambda x, s: v2.adjust_brightness(x, 1 + 0.99 * s)),
        ("saturation", lambda x, s: v2.adjust_saturation(x, 1 + 0.99 * s)),
        ("contrast", lambda x, s: v2.adjust_contrast(x, 1 + 0.99 * s)),
        ("sharpness", lambda x, s: v2.adjust_sharpness(x, 1 + 0.99 * s)),
        ("posterize", lambda x, s: v2.posterize(x, 8 - round(6 * s))),
        ("solarize", lambda x, s: v2.solarize(x, 255 * (1 - s))),
        ("autocontrast", lambda x, s: v2.autocontrast(x)),
        ("equalize", lambda x, s: v2.equalize(x)),
        ("rotate", lambda x, s: v2.affine(x, -135 * s, [0, 0], 1, [0, 0], InterpolationMode.BILINEAR)),
        ("translate x", lambda x, s: v2.affine(x, 0, [-32 * s, 0], 1, [0, 0], InterpolationMode.BILINEAR)),
    ],
)
def test_trivial_augment_equals_torchvisions(colors, name, transform, magnitude):
    transformed, expected = apply_trivial(name, colors, magnitude), transform(colors, magnitude).float()
    if name == "translate x":  # torchvision translates by whole pixels only
        magnitude = round(32 * magnitude) / 32
        transformed, expected = apply_trivial(name, colors, magnitude), transform(colors, magnitude).float()
    close = ((transformed - expected).abs() <= 1.5).float().mean()
    assert close > 0.97, close


def test_largest_magnitudes_are_torchvisions():
    names = {"shear x": "ShearX", "shear y": "ShearY", "rotate": "Rotate", "brightness": "Brightness",
             "saturation": "Color", "contrast": "Contrast", "sharpness": "Sharpness"}  # fmt: skip
    rand = transforms.RandAugment()._augmentation_space(31, (331, 331))
    trivial = transforms.TrivialAugmentWide()._augmentation_space(31)
    for ours, theirs in names.items():
        expected = (float(rand[theirs][0][-1]), float(trivial[theirs][0][-1]))
        assert augment.MAX_MAGNITUDES[ours] == pytest.approx(expected), ours
    for axis in "xy":
        expected = (float(rand[f"Translate{axis.upper()}"][0][-1]) / 331, float(trivial["TranslateX"][0][-1]))
        assert augment.MAX_MAGNITUDES[f"translate {axis}"] == pytest.approx(expected)


@pytest.mark.parametrize("sign", [0.1, 0.9])
def test_shears_and_vertical_translations_of_trivial_augment(sign):
    """Input points of the output's corner (1, 1), in [-1, 1]: half of the largest magnitude, in both directions."""
    direction = -1 if sign < 0.5 else 1
    expected = {"shear x": (1 + 0.495 * direction, 1), "shear y": (1, 1 + 0.495 * direction),
                "translate y": (1, 1 + 2 * 16 / 40 * direction)}  # fmt: skip
    for name, point in expected.items():
        choice = (list(augment.MAX_MAGNITUDES).index(name) + 0.5) / len(augment.MAX_MAGNITUDES)
        matrix = RandomTransform().compute_matrix(torch.tensor([[choice, 0.5, sign]]), 40, 40)[0]
        assert (matrix @ torch.ones(3))[:2].tolist() == pytest.approx(point), name


def test_rand_augment_has_two_transforms_and_trivial_augment_one():
    assert augment.parse_augmentation(["rand=9"], size=8).transforms == (RandomTransform(0.3),) * 2
    assert augment.parse_augmentation(["trivial"], size=8).transforms == (RandomTransform(),)
    torch.manual_seed(0)
    images = torch.randint(0, 256, (64, 3, 16, 16), dtype=torch.uint8)
    for spec in ("trivial", "rand", "rand=20"):
        pipeline = augment.parse_augmentation([spec], size=16)
        augmented = pipeline(images, torch.zeros(64), torch.rand(64, pipeline.num_random_values))[0]
        assert 0 <= augmented.min() <= augmented.max() <= 255.01
        assert 0.5 < ((augmented - images).abs().amax((1, 2, 3)) > 1).float().mean() <= 1


# ---- mixup and CutMix -----------------------------------------------------------------------------------------------


def test_mixup_uses_the_same_weights_for_images_and_targets():
    torch.manual_seed(0)
    images, targets = torch.rand(6, 3, 8, 8) * 255, torch.tensor([0, 1, 2, 1, 2, 0])
    mixed, weights = augment.parse_augmentation(["mixup=1"], size=8, num_classes=3)(
        images, targets, torch.full((6, 4), 0.3)
    )
    torch.testing.assert_close(mixed, 0.3 * images + 0.7 * images[[3, 4, 5, 0, 1, 2]])
    assert weights[0].tolist() == pytest.approx([0.3, 0.7, 0])
    torch.testing.assert_close(weights.sum(1), torch.ones(6))


def test_cutmix_targets_are_the_fractions_of_the_area():
    torch.manual_seed(0)
    images = torch.cat([torch.zeros(50, 1, 32, 32), torch.ones(50, 1, 32, 32)])
    targets = torch.cat([torch.zeros(50), torch.ones(50)]).long()
    mixed, weights = augment.parse_augmentation(["cutmix"], size=32, num_classes=2)(images, targets, torch.rand(100, 4))
    torch.testing.assert_close(mixed.mean((1, 2, 3)), weights[:, 1], atol=1e-5, rtol=0)
    assert (weights.amax(1) < 0.98).float().mean() > 0.2


def test_each_image_uses_either_mixup_or_cutmix():
    torch.manual_seed(0)
    images, targets = torch.rand(400, 1, 16, 16) * 255, torch.zeros(400).long()
    pipeline = augment.parse_augmentation(["mixup=1", "cutmix=1"], size=16, num_classes=2)
    mixed = pipeline(images, targets, torch.rand(400, 4))[0]
    is_unblended = (mixed == images) | (mixed == images.roll(200, 0))
    assert 0.35 < is_unblended.flatten(1).all(1).float().mean() < 0.65


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_sample_beta_has_the_mean_and_variance_of_beta(alpha):
    uniform = (torch.arange(20_000) + 0.5) / 20_000
    weights = augment._sample_beta(alpha, uniform)
    beta = torch.distributions.Beta(alpha, alpha)
    assert weights.mean().item() == pytest.approx(0.5, abs=0.005)
    assert weights.var().item() == pytest.approx(beta.variance.item(), rel=0.02)


# ---- specs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("specs", "hint"),
    [
        (["flipp"], "'flip'"),
        (["flip", "flip=1"], "twice"),
        (["rotate=far"], "rotate=10"),
        (["flip=2"], "between 0 and 1"),
        (["pad-crop=-1"], "at least 0"),
        (["hue=nan"], "between 0 and 0.5"),
    ],
)
def test_invalid_specs_are_rejected(specs, hint):
    with pytest.raises(UsageError, match=hint):
        augment.parse_augmentation(specs, size=8)


def test_every_transform_changes_images_and_is_deterministic(colors):
    colors = torch.cat([colors, colors.flip(2)])
    targets = torch.arange(6) % 3
    for name in augment.TRANSFORMS:
        pipeline = augment.parse_augmentation([name], size=16, num_classes=3)
        generator = torch.Generator().manual_seed(1)
        random_values = torch.rand(6, pipeline.num_random_values, generator=generator)
        random_values[0, 0] = 0.1  # transforms with a probability apply to at least one image
        first, second = pipeline(colors, targets, random_values), pipeline(colors, targets, random_values)
        assert torch.equal(first[0], second[0]), name
        assert first[0].shape == (6, 3, 16, 16)
        assert (first[0] - colors).abs().max() > 1, name
        assert 0 <= first[0].min() <= first[0].max() <= 255.01

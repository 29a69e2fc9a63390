"""Augmentation: where pixels go, against transformations worked out by hand and by torchvision."""

import math

import pytest
import torch
from torchvision.transforms import functional as reference
from torchvision.transforms.functional import InterpolationMode
from torchvision.transforms.v2 import functional as v2

from fukami import UsageError
from fukami.data import augment
from fukami.data.augment import MAX_STRENGTHS, AugmentationPipeline, RandomAffine, RandomHue, RandomOperation

ZERO, FULL = 0.5, 1 - 1e-7  # draws in [0, 1): the middle changes nothing, the end is the most


def draws(**given):
    """One image's draws for an affine move; the names are those below."""
    names = ["turn", "stretch_x", "stretch_y", "slant", "right", "down"]
    return torch.tensor([[given.get(name, ZERO) for name in names]])


def changed(operation, images, numbers):
    """The images after one operation, or after the words that ask for some."""
    size = images.shape[-1]
    if isinstance(operation, str):
        whole = augment.parse_augmentation(operation.split(), size=size, num_classes=3)
    else:
        whole = AugmentationPipeline((operation,), size, 3)
    numbers = torch.as_tensor(numbers, dtype=torch.float32)
    return whole(images, torch.zeros(len(images), dtype=torch.long), numbers.expand(len(images), -1))[0]


@pytest.fixture
def image():
    torch.manual_seed(0)
    blurred = reference.gaussian_blur(torch.rand(1, 2, 29, 29), [5, 5])
    return torch.nn.functional.pad(blurred[..., 8:-8, 8:-8], (8, 8, 8, 8)) * 255


@pytest.fixture
def colours():
    torch.manual_seed(0)
    return torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)


# ---- moves ----------------------------------------------------------------------------------------------------------


def test_the_middle_of_every_draw_changes_nothing(image):
    torch.testing.assert_close(changed(RandomAffine(3, 20, 0.2, 0.2), image, draws()), image, atol=0.01, rtol=0)


@pytest.mark.parametrize(("right", "down"), [(1, 0), (0, 2), (-2, 1)])
def test_shift_moves_whole_pixels(image, right, down):
    moved = changed(RandomAffine(shift=2), image, draws(right=(1 - right / 2) / 2, down=(1 - down / 2) / 2))
    torch.testing.assert_close(moved, torch.roll(image, (down, right), (2, 3)), atol=0.01, rtol=0)


@pytest.mark.parametrize("degrees", [90.0, 30.0, -12.0])
def test_rotation_is_torchvisions(image, degrees):
    turned = changed(RandomAffine(rotate=abs(degrees)), image, draws(turn=FULL if degrees > 0 else 0.0))
    expected = reference.rotate(image, degrees, InterpolationMode.BILINEAR)
    torch.testing.assert_close(turned, expected, atol=0.6, rtol=0)


def test_scale_makes_ink_as_much_more_as_it_says(image):
    """The area grows with the square of the scale, the mass with the area."""
    for draw, factor in ((FULL, 1.2), (0.0, 0.8)):
        scaled = changed(RandomAffine(scale=0.2), image, draws(stretch_x=draw, stretch_y=draw))
        assert (scaled.sum() / image.sum()).item() == pytest.approx(factor**2, rel=0.02)


def test_shear_slants_and_keeps_the_mass():
    column = torch.zeros(1, 1, 21, 21)
    column[..., 5:16, 10] = 1
    slanted = changed(RandomAffine(shear=0.4), column, draws(slant=FULL))[0, 0]
    centre = (slanted * torch.arange(21)).sum(1)[5:16] / slanted.sum(1)[5:16]
    slope = (centre[-1] - centre[0]) / 10
    assert abs(slope.item()) == pytest.approx(0.4, abs=0.02)
    assert slanted.sum().item() == pytest.approx(11, rel=0.02)


def test_each_image_has_its_own_draws(image):
    both = image.repeat(2, 1, 1, 1)
    both = AugmentationPipeline((RandomAffine(rotate=45),), 29)(
        both, torch.zeros(2), torch.cat([draws(), draws(turn=FULL)])
    )[0]
    torch.testing.assert_close(both[:1], image, atol=0.01, rtol=0)
    assert (both[1] - image[0]).abs().mean() > 1


def test_bytes_come_out_as_floats_in_their_range():
    torch.manual_seed(0)
    images = torch.randint(0, 256, (5, 1, 28, 28), dtype=torch.uint8)
    moved = AugmentationPipeline((RandomAffine(2, 10, 0.1, 0.1),), 28)(images, torch.zeros(5), torch.rand(5, 6))[0]
    assert moved.dtype == torch.float32
    assert 0 <= moved.min() <= moved.max() <= 255
    assert math.isclose(moved.mean(), images.float().mean(), rel_tol=0.2)


def test_flips_are_exact(colours):
    for word, dimension in (("flip", 3), ("flip-vertical", 2)):
        flipped = changed(f"{word}=0.5", colours, [0.4])
        assert torch.equal(flipped, colours.flip(dimension))
        assert torch.equal(changed(word, colours, [0.6]), colours)
        resampled = changed(f"{word}=0.5 shift=0", colours, [*[0.5] * 6, 0.4])  # a mirror among other moves
        torch.testing.assert_close(resampled, flipped.float(), atol=0.01, rtol=0)


def test_a_padded_crop_is_the_one_cut_by_hand(colours):
    padded = torch.nn.functional.pad(colours.float(), (3, 3, 3, 3))
    for right in range(7):
        for down in (0, 5):
            found = changed("pad-crop=3", colours, [(right + 0.5) / 7, (down + 0.5) / 7])
            expected = padded[..., down : down + 16, right : right + 16]
            torch.testing.assert_close(found, expected, atol=0.01, rtol=0)


def test_a_random_resized_crop_is_the_part_resized(image):
    """The left upper quarter: a quarter of the area, no change of the sides' ratio, no offset."""
    found = changed("crop=0.25", image, [0.0, 0.5, 0.0, 0.0])
    sampled = torch.nn.functional.interpolate(image, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(found[..., :27, :27], sampled[..., :27, :27], atol=0.1, rtol=0)


def test_random_crops_have_the_areas_and_ratios_they_should():
    torch.manual_seed(0)
    wide, high, left, top = augment.compute_crops(torch.rand(4000, 4), 0.08, 1.0)
    inside = (wide < 1) & (high < 1)
    ratio = (wide / high)[inside]
    assert ratio.min() > 3 / 4 - 0.01
    assert ratio.max() < 4 / 3 + 0.01
    area = wide * high
    assert 0.08 <= area.min() < 0.12
    assert area.mean().item() == pytest.approx((0.08 + 1) / 2, abs=0.03)
    assert (left >= 0).all()
    assert (left + wide <= 1.001).all()
    assert (top + high <= 1.001).all()


def test_moves_are_one_resampling_of_their_product(image):
    """Mirrored after a shift of two to the right is a shift to the left of the mirror image."""
    both = changed("shift=2 flip", image, torch.cat([draws(right=0.0), torch.zeros(1, 1)], 1))
    by_hand = torch.roll(image, 2, 3).flip(3)
    torch.testing.assert_close(both, by_hand, atol=0.01, rtol=0)


def test_masks_and_boxes_go_where_the_image_goes():
    """A bright rectangle, its mask and its box, moved alike."""
    torch.manual_seed(0)
    images = torch.zeros(20, 1, 40, 40)
    images[..., 10:22, 14:30] = 255
    boxes = torch.tensor([[[14.0, 10.0, 30.0, 22.0], [0.0, 0.0, 2.0, 2.0]]]).expand(20, 2, 4)
    change = augment.parse_augmentation(["shift=6", "flip", "crop=0.5", "flip-vertical"], size=40)
    geometry = change.compute_matrix(torch.rand(20, change.num_draws), 40, 40)
    moved = change.warp(images, geometry)[:, 0] > 127
    mask = change.warp((images > 0).float(), geometry, mode="nearest")[:, 0] > 0
    assert (moved == mask).float().mean() > 0.99
    found = change.warp_boxes(boxes, geometry, 40, 40)
    for number in range(20):
        rows, columns = mask[number].any(1).nonzero(), mask[number].any(0).nonzero()
        expected = [columns.min().item(), rows.min().item(), columns.max().item() + 1, rows.max().item() + 1]
        assert found[number, 0].tolist() == pytest.approx(expected, abs=1.01)
    assert ((found >= 0) & (found <= 40)).all()


# ---- colours --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "theirs"),
    [("brightness", v2.adjust_brightness), ("contrast", v2.adjust_contrast), ("saturation", v2.adjust_saturation)],
)
@pytest.mark.parametrize("factor", [0.3, 0.8, 1.0, 1.6])
def test_colours_change_as_torchvisions(colours, word, theirs, factor):
    found = changed(f"{word}=1", colours, [factor / 2])
    expected = theirs(colours.float() / 255, factor) * 255
    torch.testing.assert_close(found, expected, atol=1.0, rtol=0)


def test_changes_of_colour_follow_one_another_as_torchvisions():
    """Middling colours, so that nothing is cut off between the two."""
    torch.manual_seed(0)
    colours = torch.rand(2, 3, 8, 8) * 0.4 + 0.3
    found = changed("brightness=1 contrast=1", colours * 255, [0.55, 0.4]) / 255
    expected = v2.adjust_contrast(v2.adjust_brightness(colours, 1.1), 0.8)
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)


def test_grey_has_no_colour_and_keeps_the_brightness(colours):
    found = changed("grey=0.5", colours, [0.4])
    torch.testing.assert_close(found, v2.rgb_to_grayscale(colours.float(), 3), atol=1.0, rtol=0)
    torch.testing.assert_close(changed("grey=0.5", colours, [0.6]), colours.float())


def test_hue_turns_red_into_green_and_leaves_grey_alone():
    red = torch.tensor([150.0, 100.0, 100.0]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    turned = changed(RandomHue(1 / 3), red, [FULL])[0, :, 0, 0]
    other = changed(RandomHue(1 / 3), red, [0.0])[0, :, 0, 0]
    assert {turned.argmax().item(), other.argmax().item()} == {1, 2}
    luma = torch.tensor(augment.LUMA)
    assert (turned @ luma).item() == pytest.approx((red[0, :, 0, 0] @ luma).item(), rel=0.01)
    grey = torch.full((1, 3, 4, 4), 90.0)
    torch.testing.assert_close(changed(RandomHue(0.5), grey, [0.1]), grey, atol=0.05, rtol=0)


def test_grey_images_take_the_changes_that_they_can():
    images = torch.full((2, 1, 4, 4), 100.0)
    assert changed("brightness=0.5 saturation hue grey=1", images, [[FULL, 0.1, 0.9, 0.0]]).mean() == pytest.approx(150)


# ---- single pixels --------------------------------------------------------------------------------------------------


def test_erasing_paints_a_rectangle_of_the_right_area():
    torch.manual_seed(0)
    images = torch.rand(400, 3, 32, 32) * 255
    found = AugmentationPipeline(augment.parse_augmentation(["erase=1"], size=32).operations, 32)(
        images, torch.zeros(400), torch.rand(400, 5)
    )[0]
    erased = (found != images).any(1).float().mean((1, 2))
    assert 0.01 < erased.min() < erased.max() < 0.36
    assert erased.mean().item() == pytest.approx((0.02 + 0.33) / 2, abs=0.02)
    torch.testing.assert_close(changed("erase=0.3", images[:2], [0.4, 0, 0, 0, 0]), images[:2])


PICKED = list(MAX_STRENGTHS)


def picked(name, images, strength, sign=0.9):
    """The images after this one of TrivialAugment's changes."""
    return changed(RandomOperation(), images, [(PICKED.index(name) + 0.5) / len(PICKED), strength, sign])


@pytest.mark.parametrize("strength", [0.0, 0.34, 0.7])
@pytest.mark.parametrize(
    ("name", "theirs"),
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
def test_trivial_augment_does_what_torchvisions_does(colours, name, theirs, strength):
    found, expected = picked(name, colours, strength), theirs(colours, strength).float()
    if name == "translate x":  # torchvision moves by whole pixels only
        strength = round(32 * strength) / 32
        found, expected = picked(name, colours, strength), theirs(colours, strength).float()
    close = ((found - expected).abs() <= 1.5).float().mean()
    assert close > 0.97, close


def test_rand_augment_changes_twice_and_trivial_once():
    assert len(augment.parse_augmentation(["rand=9"], size=8).operations) == 2
    assert augment.parse_augmentation(["trivial"], size=8).operations == (RandomOperation(),)
    torch.manual_seed(0)
    images = torch.randint(0, 256, (64, 3, 16, 16), dtype=torch.uint8)
    for word in ("trivial", "rand", "rand=20"):
        change = augment.parse_augmentation([word], size=16)
        found = change(images, torch.zeros(64), torch.rand(64, change.num_draws))[0]
        assert 0 <= found.min() <= found.max() <= 255.01
        assert 0.5 < ((found - images).abs().amax((1, 2, 3)) > 1).float().mean() <= 1


# ---- two images in one --------------------------------------------------------------------------------------------


def test_mixup_mixes_images_and_targets_in_the_same_shares():
    torch.manual_seed(0)
    images, targets = torch.rand(6, 3, 8, 8) * 255, torch.tensor([0, 1, 2, 1, 2, 0])
    found, shares = augment.parse_augmentation(["mixup=1"], size=8, num_classes=3)(
        images, targets, torch.full((6, 4), 0.3)
    )
    torch.testing.assert_close(found, 0.3 * images + 0.7 * images[[3, 4, 5, 0, 1, 2]])
    assert shares[0].tolist() == pytest.approx([0.3, 0.7, 0])
    torch.testing.assert_close(shares.sum(1), torch.ones(6))


def test_cutmix_targets_are_the_shares_of_the_area():
    torch.manual_seed(0)
    images = torch.cat([torch.zeros(50, 1, 32, 32), torch.ones(50, 1, 32, 32)])
    targets = torch.cat([torch.zeros(50), torch.ones(50)]).long()
    found, shares = augment.parse_augmentation(["cutmix"], size=32, num_classes=2)(images, targets, torch.rand(100, 4))
    torch.testing.assert_close(found.mean((1, 2, 3)), shares[:, 1], atol=1e-5, rtol=0)
    assert (shares.amax(1) < 0.98).float().mean() > 0.2


def test_with_both_each_image_takes_one():
    torch.manual_seed(0)
    images, targets = torch.rand(400, 1, 16, 16) * 255, torch.zeros(400).long()
    change = augment.parse_augmentation(["mixup=1", "cutmix=1"], size=16, num_classes=2)
    found = change(images, targets, torch.rand(400, 4))[0]
    one_of_the_two = (found == images) | (found == images.roll(200, 0))
    assert 0.35 < one_of_the_two.flatten(1).all(1).float().mean() < 0.65


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_are_distributed_as_beta(alpha):
    chances = (torch.arange(20_000) + 0.5) / 20_000
    found = augment._sample_beta(alpha, chances)
    beta = torch.distributions.Beta(alpha, alpha)
    assert found.mean().item() == pytest.approx(0.5, abs=0.005)
    assert found.var().item() == pytest.approx(beta.variance.item(), rel=0.02)


# ---- words ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["flipp"], "'flip'"),
        (["flip", "flip=1"], "twice"),
        (["rotate=far"], "rotate=10"),
        (["flip=2"], "between 0 and 1"),
        (["pad-crop=-1"], "at least 0"),
        (["hue=nan"], "between 0 and 0.5"),
    ],
)
def test_wrong_words_are_refused(words, hint):
    with pytest.raises(UsageError, match=hint):
        augment.parse_augmentation(words, size=8)


def test_every_word_changes_images_and_repeats_itself(colours):
    colours = torch.cat([colours, colours.flip(2)])
    targets = torch.arange(6) % 3
    for word in augment.OPERATIONS:
        change = augment.parse_augmentation([word], size=16, num_classes=3)
        generator = torch.Generator().manual_seed(1)
        numbers = torch.rand(6, change.num_draws, generator=generator)
        numbers[0, 0] = 0.1  # one image at least takes what only a share takes
        once, twice = change(colours, targets, numbers), change(colours, targets, numbers)
        assert torch.equal(once[0], twice[0]), word
        assert once[0].shape == (6, 3, 16, 16)
        assert (once[0] - colours).abs().max() > 1, word
        assert 0 <= once[0].min() <= once[0].max() <= 255.01

"""Augmentation: where pixels go, against transformations worked out by hand and by torchvision."""

import math

import pytest
import torch
from torchvision.transforms import functional as reference
from torchvision.transforms.functional import InterpolationMode

from fukami.data.augment import Affine

ZERO, FULL = 0.5, 1.0  # draws in [0, 1): the middle changes nothing, the end is the most


def draws(**given):
    """One picture's draws: ``turn``, ``stretch_x``, ``stretch_y``, ``slant``, ``right``, ``down``."""
    names = ["turn", "stretch_x", "stretch_y", "slant", "right", "down"]
    return torch.tensor([[given.get(name, ZERO) for name in names]])


@pytest.fixture
def picture():
    torch.manual_seed(0)
    blurred = reference.gaussian_blur(torch.rand(1, 2, 29, 29), [5, 5])
    return torch.nn.functional.pad(blurred[..., 8:-8, 8:-8], (8, 8, 8, 8)) * 255


def test_the_middle_of_every_draw_changes_nothing(picture):
    torch.testing.assert_close(Affine(3, 20, 0.2, 0.2)(picture, draws()), picture, atol=0.01, rtol=0)


@pytest.mark.parametrize(("right", "down"), [(1, 0), (0, 2), (-2, 1)])
def test_shift_moves_whole_pixels(picture, right, down):
    moved = Affine(shift=2)(picture, draws(right=(1 - right / 2) / 2, down=(1 - down / 2) / 2))
    torch.testing.assert_close(moved, torch.roll(picture, (down, right), (2, 3)), atol=0.01, rtol=0)


@pytest.mark.parametrize("degrees", [90.0, 30.0, -12.0])
def test_rotation_is_torchvisions(picture, degrees):
    turned = Affine(rotate=abs(degrees))(picture, draws(turn=FULL if degrees > 0 else 0.0))
    expected = reference.rotate(picture, degrees, InterpolationMode.BILINEAR)
    torch.testing.assert_close(turned, expected, atol=0.6, rtol=0)


def test_scale_makes_ink_as_much_more_as_it_says(picture):
    """The area grows with the square of the scale, the mass with the area."""
    for draw, factor in ((FULL, 1.2), (0.0, 0.8)):
        scaled = Affine(scale=0.2)(picture, draws(stretch_x=draw, stretch_y=draw))
        assert (scaled.sum() / picture.sum()).item() == pytest.approx(factor**2, rel=0.02)


def test_shear_slants_and_keeps_the_mass():
    column = torch.zeros(1, 1, 21, 21)
    column[..., 5:16, 10] = 1
    slanted = Affine(shear=0.4)(column, draws(slant=FULL))[0, 0]
    centre = (slanted * torch.arange(21)).sum(1)[5:16] / slanted.sum(1)[5:16]
    slope = (centre[-1] - centre[0]) / 10
    assert abs(slope.item()) == pytest.approx(0.4, abs=0.02)
    assert slanted.sum().item() == pytest.approx(11, rel=0.02)


def test_each_picture_has_its_own_draws(picture):
    both = Affine(rotate=45)(picture.repeat(2, 1, 1, 1), torch.cat([draws(), draws(turn=FULL)]))
    torch.testing.assert_close(both[:1], picture, atol=0.01, rtol=0)
    assert (both[1] - picture[0]).abs().mean() > 1


def test_bytes_come_out_as_floats_in_their_range():
    torch.manual_seed(0)
    pictures = torch.randint(0, 256, (5, 1, 28, 28), dtype=torch.uint8)
    changed = Affine(2, 10, 0.1, 0.1)(pictures, torch.rand(5, 6))
    assert changed.dtype == torch.float32
    assert 0 <= changed.min() <= changed.max() <= 255
    assert math.isclose(changed.mean(), pictures.float().mean(), rel_tol=0.2)

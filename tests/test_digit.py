"""A picture of one digit, however it was taken, comes out as MNIST would show it."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter
from scipy import ndimage

import fukami
from fukami import Error
from fukami.data import digits, mnist
from fukami.digit import as_mnist


def scrawl(size=(400, 500), box=(120, 140, 240, 330), ink=30, paper=225, width=14):
    """A seven drawn with a pen of one width: a bar, and a slanted stroke from its right end."""
    picture = Image.new("L", size, paper)
    left, top, right, bottom = box
    corners = [(left, top), (right, top), (left + (right - left) // 3, bottom)]
    ImageDraw.Draw(picture).line(corners, ink, width, "curve")
    return picture


def similar(one, other):
    """The correlation of two pictures, of which one may lie a pixel off: the centre of mass is rounded to pixels."""
    shifts = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    moved = (np.roll(one[0], shift, (0, 1)).ravel().astype(float) for shift in shifts)
    return max(np.corrcoef(each, other.ravel().astype(float))[0, 1] for each in moved)


def test_form():
    """20 pixels long, centred by mass, light ink on 0, as LeCun et al. say; strokes 2 to 4 pixels thick."""
    seen = as_mnist(scrawl())
    assert seen.shape == (1, 28, 28)
    assert seen.dtype == np.uint8
    assert seen.max() == 255
    assert np.median(seen) == 0
    rows, columns = (np.flatnonzero(seen[0].max(axis) > 64) for axis in (1, 0))
    assert 19 <= max(np.ptp(rows), np.ptp(columns)) + 1 <= 21
    assert np.allclose(ndimage.center_of_mass(seen[0].astype(float)), 14, atol=0.55)  # MNIST's own mean is 14.0
    assert 1.5 < (seen > 127).sum() / (20 + 12) < 4.5


@pytest.mark.parametrize("offset", [(0, 0), (-100, -120), (130, 140)])
@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_place_and_size_do_not_matter(offset, scale):
    reference = as_mnist(scrawl())
    box = np.array((120, 140, 240, 330)) + np.tile(offset, 2)
    moved = scrawl(box=tuple(int(v) for v in box))
    moved = moved.resize((int(400 * scale), int(500 * scale)), Image.Resampling.BICUBIC)
    assert similar(as_mnist(moved), reference) > 0.93


@pytest.mark.parametrize("width", [4, 8, 14, 24])
def test_thin_and_thick_pens_read_alike(width):
    assert similar(as_mnist(scrawl(width=width)), as_mnist(scrawl())) > 0.75


@pytest.mark.parametrize(("ink", "paper"), [(30, 225), (225, 30), (120, 180), (255, 0)])
def test_dark_on_light_and_light_on_dark(ink, paper):
    assert similar(as_mnist(scrawl(ink=ink, paper=paper)), as_mnist(scrawl())) > 0.9


def test_coloured_ink_and_paper():
    mask = np.asarray(scrawl(ink=255, paper=0))[..., None] > 127
    for ink, paper in (
        ((30, 60, 200), (235, 235, 220)),
        ((190, 30, 30), (240, 240, 240)),
        ((20, 90, 40), (250, 230, 140)),
    ):
        picture = Image.fromarray(np.where(mask, ink, paper).astype(np.uint8))
        assert similar(as_mnist(picture), as_mnist(scrawl())) > 0.9


def test_a_photograph(random):
    """Uneven light, noise, blur and specks change little."""
    pixels = np.asarray(scrawl().filter(ImageFilter.GaussianBlur(2))).astype(float)
    y, x = np.mgrid[:500, :400]
    pixels *= 0.45 + 0.5 * x / 400 - 0.1 * y / 500
    pixels += random.normal(0, 5, pixels.shape)
    for row, column in random.integers(20, 380, (12, 2)):
        pixels[row : row + 2, column : column + 2] -= 40
    seen = as_mnist(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))
    assert similar(seen, as_mnist(scrawl())) > 0.85


def test_ruled_paper():
    picture = scrawl()
    draw = ImageDraw.Draw(picture)
    for y in range(60, 500, 70):
        draw.line([(0, y), (400, y)], 170, 2)
    assert similar(as_mnist(picture), as_mnist(scrawl())) > 0.8


def test_mnists_own_form_comes_back_unchanged():
    pictures, _ = digits.read()
    for picture in pictures[:20]:
        assert np.array_equal(as_mnist(Image.fromarray(picture))[0], picture)
        assert np.array_equal(as_mnist(Image.fromarray(255 - picture))[0], picture)


@pytest.mark.parametrize("value", [0, 128, 255])
def test_no_ink_is_an_error(value):
    with pytest.raises(Error, match="no ink"):
        as_mnist(Image.new("L", (200, 300), value))


@pytest.mark.parametrize("size", [(1, 1), (2, 300), (5, 5)])
def test_pictures_without_room_for_a_digit_do_no_harm(size, random):
    picture = Image.fromarray(random.integers(0, 256, (size[1], size[0]), dtype=np.uint8))
    (answer,) = fukami.load("deep-convnet", device="cpu").predict([picture])
    assert "no ink" in answer.get("error", "no ink")


def test_scans_of_mnist_are_read_almost_as_well(mnist_folder, random):
    """200 test pictures as large dark ink, off centre on light paper, through the shipped weights."""
    _, (pictures, labels) = mnist.read()
    chosen = random.permutation(len(pictures))[:200]
    scans = []
    for picture in pictures[chosen]:
        side = int(random.integers(90, 220))
        ink = np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC)).astype(float)
        page = np.full((400, 320), 228.0) - np.linspace(0, 40, 320)
        top, left = random.integers(0, 400 - side), random.integers(0, 320 - side)
        page[top : top + side, left : left + side] -= ink * 0.7
        scans.append(Image.fromarray((page + random.normal(0, 3, page.shape)).clip(0, 255).astype(np.uint8)))
    answers = fukami.load("deep-convnet", device="cpu").predict(scans)
    right = sum(answer.get("label") == str(label) for answer, label in zip(answers, labels[chosen], strict=True))
    assert right >= 0.95 * 200

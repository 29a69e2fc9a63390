"""Conversion of handwritten digits in photographs, scans and drawings to MNIST's format."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from fukami import Error
from fukami.image.digit_extraction import compute_otsu_threshold, convert_to_mnist

FIVE = [
    [(0.2, 0.12), (0.15, 0.48), (0.55, 0.4), (0.9, 0.65), (0.6, 0.98), (0.08, 0.9)],
    [(0.28, 0.0), (0.95, 0.02)],  # the bar is a separate stroke
]
SEVEN = [[(0, 0), (0.9, 0), (0.35, 1)]]


def draw_digit(strokes=FIVE, *, size=(400, 360), at=(140, 90), height=180, width=14, paper=245, ink=25):
    """Draw antialiased pen strokes on paper, grayscale ``(H, W)`` as float."""
    page = Image.new("L", (size[0] * 2, size[1] * 2), paper)
    pen = ImageDraw.Draw(page)
    for stroke in strokes:
        points = [(2 * (at[0] + x * height * 0.65), 2 * (at[1] + y * height)) for x, y in stroke]
        pen.line(points, fill=ink, width=2 * width, joint="curve")
        for x, y in points:
            pen.ellipse([x - width, y - width, x + width, y + width], fill=ink)
    return np.asarray(page.reduce(2), np.float64)


def convert(pixels):
    return convert_to_mnist(Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)))[0].astype(np.float64)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_threshold_equals_that_of_scikit_image(dtype, random):
    from skimage.filters import threshold_otsu

    assert compute_otsu_threshold(np.full((3, 4), 0.25, dtype)) == 0.25
    for _ in range(50):
        values = random.random(random.integers(2, 80, 2))
        values = np.where(values < random.random(), values, values * random.random()).round(random.integers(1, 8))
        assert compute_otsu_threshold(values.astype(dtype)) == threshold_otsu(values.astype(dtype))


def cosine_similarity(one, other):
    """Compute the cosine similarity of two images."""
    return (one * other).sum() / np.sqrt((one**2).sum() * (other**2).sum())


def rows_and_columns(image):
    return np.flatnonzero(image.max(axis=1)), np.flatnonzero(image.max(axis=0))


@pytest.fixture(scope="module")
def plain():
    return convert(draw_digit())


def test_output_has_the_format_of_mnist(plain):
    rows, columns = rows_and_columns(plain)
    assert plain.shape == (28, 28)
    assert plain.max() == 255
    assert max(np.ptp(rows), np.ptp(columns)) + 1 == 20
    for axis in (0, 1):
        center = np.average(np.arange(28), weights=plain.sum(axis=1 - axis))
        assert abs(center - 14) <= 0.5  # MNIST: 13.5 to 14.5
    aspect = np.ptp(columns) / np.ptp(rows)
    assert abs(aspect - (0.87 * 0.65 * 180 + 14) / (180 + 14)) < 0.08


def test_mnist_image_is_unchanged_and_its_negative_is_inverted(random):
    digit = np.zeros((28, 28), np.uint8)
    digit[4:24, 9:20] = random.integers(0, 256, (20, 11))
    for mode in ("L", "RGB"):
        image = Image.fromarray(digit).convert(mode)
        assert convert_to_mnist(image).tobytes() == digit.tobytes()
        assert convert_to_mnist(Image.eval(image, lambda value: 255 - value)).tobytes() == digit.tobytes()
    assert convert_to_mnist(Image.fromarray(digit)).shape == (1, 28, 28)


def test_conversion_is_idempotent(plain):
    assert np.array_equal(convert(plain), plain)


def test_conversion_is_deterministic():
    assert np.array_equal(convert(draw_digit()), convert(draw_digit()))


@pytest.mark.parametrize(("at", "height"), [((15, 20), 120), ((250, 200), 120), ((120, 30), 290), ((300, 250), 60)])
def test_position_and_size_do_not_matter(plain, at, height):
    assert cosine_similarity(convert(draw_digit(at=at, height=height, width=height * 14 // 180)), plain) > 0.93


@pytest.mark.parametrize("times", [0.4, 3, 8])
def test_resolution_does_not_matter(plain, times):
    image = Image.fromarray(draw_digit().astype(np.uint8))
    image = image.resize((round(400 * times), round(360 * times)), Image.Resampling.BICUBIC)
    assert cosine_similarity(convert_to_mnist(image)[0].astype(float), plain) > 0.93


def test_light_ink_on_dark_background(plain):
    assert cosine_similarity(convert(255 - draw_digit()), plain) > 0.97


@pytest.mark.parametrize("color", [(20, 40, 170), (190, 30, 40), (240, 220, 30), (110, 110, 115)])
def test_ink_of_any_color(plain, color):
    ink = (245 - draw_digit()[..., np.newaxis]) / 220
    page = np.array((245, 245, 245)) * (1 - ink) + np.array(color) * ink
    assert cosine_similarity(convert(page), plain) > 0.95


@pytest.mark.parametrize("width", [2, 5, 14, 26])
def test_stroke_width_is_normalized(width):
    image = convert(draw_digit(width=width))
    length_in_pixels = 20 * (1 + 0.6) * 1.7  # of the two strokes, roughly
    assert 1.2 < image.sum() / 255 / length_in_pixels < 4.5
    assert len(np.unique(rows_and_columns(image)[0])) >= 18


def test_separate_bar_of_a_five_is_kept():
    apart = [FIVE[0], [(x, y - 0.12) for x, y in FIVE[1]]]
    assert convert(draw_digit(apart))[4:8].sum() > 0.08 * convert(draw_digit(apart)).sum()


def test_uneven_light_and_shadow_matter_little(plain, random):
    y, x = np.mgrid[:360, :400]
    light = (0.45 + 0.55 * x / 400) * (1 - 0.3 * ((y - 180) / 360) ** 2)
    for illumination in (light, np.where(x + y < 330, 0.55, 1.0)):
        assert (
            cosine_similarity(convert(draw_digit() * illumination + random.normal(0, 4, illumination.shape)), plain)
            > 0.9
        )


def test_specks_ruled_lines_and_table_edge_are_removed(plain, random):
    specks, ruled, table = draw_digit(), draw_digit(), draw_digit()
    for y, x in random.integers(10, 350, (25, 2)):
        if abs(y - 180) > 110 or abs(x - 200) > 100:
            specks[y : y + 3, x : x + 3] = 40
    for y in range(40, 360, 45):
        ruled[y : y + 2] = np.minimum(ruled[y : y + 2], 120)
    table[:, 340:] = 60 + 8 * random.normal(size=(360, 60))
    for page in (specks, ruled, table):
        assert cosine_similarity(convert(page), plain) > 0.93


def test_digit_that_fills_the_image():
    full = draw_digit(SEVEN, size=(140, 200), at=(12, 12), height=176, width=16)
    assert cosine_similarity(convert(full), convert(draw_digit(SEVEN, width=16))) > 0.93


@pytest.mark.parametrize("level", [0, 128, 255])
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (40, 40), (300, 200)])
def test_no_ink(size, level):
    with pytest.raises(Error, match=r"no digit was found"):
        convert_to_mnist(Image.new("L", size, level))


def test_empty_sheet_has_no_ink(random):
    y, x = np.mgrid[:300, :400]
    for sheet in (150 + x / 4, 230 - y / 6 + random.normal(0, 3, x.shape), random.uniform(0, 255, x.shape)):
        with pytest.raises(Error, match=r"no digit was found"):
            convert(sheet)
    speck = np.full((300, 400), 230.0)
    speck[100:104, 200:203] = 30
    with pytest.raises(Error, match=r"no digit was found"):
        convert(speck)

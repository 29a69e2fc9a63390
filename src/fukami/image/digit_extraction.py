"""Conversion of a photograph or scan of one handwritten digit to the format of MNIST."""

from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter, ImageOps

from fukami.errors import Error
from fukami.image.io import UInt8Array

FloatArray = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Scalar = TypeVar("Scalar", bound=np.generic)
BoxArray = npt.NDArray[np.float64]  # left, top, right, bottom in pixels

LOCATE_SIZE, CROP_SIZE = 256, 160  # longer side in pixels, for locating and for segmenting the digit
MAX_LONG_SIDE = 4000  # pixels; larger images are reduced to less than twice this longer side
MIN_DARKNESS = 0.08  # minimum darkness of ink relative to the paper
# Most empty sheets score less in `score_digit_mask`, but so does one photograph of a digit in a hundred.
MIN_DIGIT_SCORE = 8
MIN_STROKE_WIDTH, MAX_STROKE_WIDTH = 2.3, 4.2  # pixels at a height of 20: the middle 90 % of MNIST
SIDE_DIRECTIONS = np.array([-1, -1, 1, 1])  # outward direction of each side of a box


def convert_to_mnist(image: Image.Image) -> UInt8Array:
    """Convert the digit in an image to MNIST's format: light on 0, 20 pixels long, centered by mass.

    The image is a photograph, scan or drawing. Ink may be dark on light or light on dark, of any color, size, position
    and thickness. Uneven light, shadows, ruled lines, specks and the edge of a table are removed. An image of 28×28
    pixels on black is in MNIST's format already and returned unchanged; on white, it is inverted.

    Args:
        image: mode "L" or "RGB", as `fukami.image.io.read_image` returns it.

    Returns:
        uint8 ``(1, 28, 28)`` in 0..255.

    Raises:
        Error: the image contains no ink.

    Source: (LeCun et al. 1998, section III.A).
    """
    if image.size == (28, 28):
        levels = np.asarray(image.convert("L"))
        background = np.median(get_border_pixels(levels))
        if background <= 16 or background >= 239:
            return (levels.copy() if background <= 16 else 255 - levels)[np.newaxis]
    # Reduced by the shorter side, or by the longer side of a strip, whose margin is as wide as the strip is long.
    image = add_margin(image.reduce(max(1, min(image.size) // 500, max(image.size) // MAX_LONG_SIDE)))
    mask, light = locate_digit(image)
    box: BoxArray = np.array((0, 0, *image.size), np.float64)
    for _ in range(2):  # the first pass may find more ink, whose crop the second pass uses
        mask, box = refine_mask(image, light, mask, box)
    return render_mnist_digit(mask)


def add_margin(image: Image.Image) -> Image.Image:
    """Add a margin in the border color if the border is uniform, as in a tight crop; return RGB."""
    image = image.convert("RGB")
    edge = get_border_pixels(np.asarray(image))
    color = np.median(edge, axis=0)
    if (np.abs(edge - color).max(axis=1) < 6).mean() < 0.8:
        return image
    return ImageOps.expand(image, max(image.size) // 6, tuple(int(value) for value in color))


def locate_digit(image: Image.Image) -> tuple[Mask, bool]:
    """Locate the digit at low resolution (`LOCATE_SIZE`); return a mask and whether the ink is light on dark."""
    page = np.asarray(crop_and_resize(image, (0, 0, *image.size), LOCATE_SIZE))
    candidates = []
    for light in (False, True):
        levels = (255 - page if light else page).min(axis=2)  # colored ink is darkest in one channel
        ink = compute_darkness(levels)
        mask = select_digit_strokes(ink)
        candidates.append((score_digit_mask(mask, levels, ink), light, mask))
    score, light, mask = max(candidates, key=lambda candidate: candidate[0])
    if score < MIN_DIGIT_SCORE:
        raise Error("no digit was found in the image; use an image of one digit on an even background")
    return mask, light


def crop_and_resize(image: Image.Image, box: tuple[float, float, float, float], long_side: int) -> Image.Image:
    """Crop ``box`` from the image, resize its longer side to ``long_side`` pixels and smooth the noise."""
    width, height = box[2] - box[0], box[3] - box[1]
    scale = long_side / max(width, height)
    size = (max(2, round(width * scale)), max(2, round(height * scale)))
    return image.resize(size, Image.Resampling.BICUBIC, box, 2.0).filter(ImageFilter.GaussianBlur(1))


def compute_darkness(levels: UInt8Array) -> FloatArray:
    """Compute the darkness of each pixel relative to the paper, the median of a wide neighborhood, in 0..1."""
    from scipy import ndimage

    coarse = np.asarray(Image.fromarray(levels).reduce(max(1, max(levels.shape) // 36)), np.float32)
    paper = ndimage.median_filter(coarse, int(0.4 * max(coarse.shape)) | 1, mode="nearest")
    step = ndimage.maximum_filter(paper, 3) - ndimage.minimum_filter(paper, 3)  # large at the edge of a shadow or table
    paper, step = upsample_map(paper, levels), upsample_map(step, levels)
    return np.clip((paper - levels - step) / np.maximum(paper, 32), 0, 1)


def select_digit_strokes(ink: FloatArray) -> Mask:
    """Select the component with the strongest edges that is a stroke away from the border, and nearby components."""
    from scipy import ndimage

    mask = remove_ruled_lines(ink > compute_threshold(ink), 0.5)
    components, count = ndimage.label(mask, np.ones((3, 3)))
    if count == 0:
        return mask
    down, right = np.gradient(ink)
    boundary = mask & ~ndimage.minimum_filter(mask, 3)
    edge, area, outline = (
        np.bincount(components.ravel(), weights.ravel(), count + 1)[1:]
        for weights in (down**2 + right**2, mask, boundary)
    )
    _, length, contact = measure_components(components)
    is_stroke = (2 * area < 0.35 * length * outline) & (contact < 0.35 * length) & (length > LOCATE_SIZE / 32)
    is_main = np.arange(count) == np.where(is_stroke, edge, 0).argmax()
    return add_nearby_components(components, is_main & is_stroke.any(), edge)


def measure_components(
    components: npt.NDArray[np.int_],
) -> tuple[npt.NDArray[np.int_], npt.NDArray[np.int_], npt.NDArray[np.int_]]:
    """Return the box (top, left, bottom, right), longer side and number of border pixels of each component."""
    from scipy import ndimage

    boxes = np.array(
        [[s.start for s in component] + [s.stop for s in component] for component in ndimage.find_objects(components)]
    )
    contact = np.bincount(get_border_pixels(components), minlength=len(boxes) + 1)[1:]
    return boxes, (boxes[:, 2:] - boxes[:, :2]).max(axis=1), contact


def add_nearby_components(components: npt.NDArray[np.int_], selected: Mask, weights: npt.NDArray[np.number]) -> Mask:
    """Add nearby components of enough weight and limited length, such as the bar of a 5, to the selected ones."""
    extended: Mask = selected
    if selected.any():
        boxes, length, contact = measure_components(components)
        first, last = boxes[selected, :2].min(axis=0), boxes[selected, 2:].max(axis=0)
        side = (last - first).max()
        is_near = ((boxes[:, :2] < last + 0.15 * side) & (boxes[:, 2:] > first - 0.15 * side)).all(axis=1)
        is_heavy = weights > 0.05 * weights[selected].sum()
        extended = selected | (is_near & is_heavy & (contact == 0) & (length < 1.5 * side))
    mask: Mask = np.append(False, extended)[components]
    return mask


def score_digit_mask(mask: Mask, levels: UInt8Array, ink: FloatArray) -> float:
    """Score how much a mask resembles a digit: large and dark on an even background."""
    from scipy import ndimage

    inner = ndimage.maximum_filter(mask, 7)
    background = levels[ndimage.maximum_filter(inner, 11) & ~inner & (ink < MIN_DARKNESS)]
    if not (mask.any() and background.size):
        return 0.0
    level = np.median(background)
    contrast, unevenness = level - np.median(levels[mask]), np.abs(background - level).mean()
    return float(contrast / (unevenness + 4) * mask.sum() ** 0.25)


def refine_mask(image: Image.Image, light: bool, mask: Mask, box: BoxArray) -> tuple[Mask, BoxArray]:
    """Segment the ink in a crop around the rough ``mask`` of ``box``; return the new mask and the box of the crop."""
    scale, origin = np.tile((box[2:] - box[:2]) / mask.shape[::-1], 2), np.tile(box[:2], 2)
    digit_box = enlarge_box(compute_bounding_box(mask), 0.5) * scale + origin
    crop_box = np.clip(digit_box.round() + 2 * SIDE_DIRECTIONS, 0, np.tile(image.size, 2))
    left, top, right, bottom = (float(side) for side in crop_box)
    crop = crop_and_resize(image, (left, top, right, bottom), CROP_SIZE)
    hint = Image.fromarray(mask).transform(crop.size, Image.Transform.EXTENT, tuple((crop_box - origin) / scale))
    return segment_ink(255 - np.asarray(crop) if light else np.asarray(crop), np.asarray(hint)), crop_box


def segment_ink(levels: UInt8Array, hint: Mask) -> Mask:
    """Segment the connected dark ink of a crop ``(H, W, 3)`` that overlaps a rough mask."""
    from scipy import ndimage

    coarse = np.asarray(Image.fromarray(levels).reduce(4), np.float32)
    window = int(0.35 * max(coarse.shape)) | 1
    paper = ndimage.grey_closing(coarse, (window, window, 1), mode="nearest")
    paper = np.dstack([upsample_map(channel, levels) for channel in paper.transpose(2, 0, 1)])
    dark = np.clip(1 - levels / np.maximum(paper, 32), 0, 1)
    left, top, right, bottom = np.maximum(enlarge_box(compute_bounding_box(hint), 0.1), 0).astype(int)
    weights = (dark[top:bottom, left:right] ** 2).mean(axis=(0, 1))
    ink = dark @ (weights / max(weights.sum(), 1e-9))  # channels with high contrast dominate
    mask = remove_ruled_lines(ink > compute_threshold(ink[top:bottom, left:right]), 0.9)
    components, count = ndimage.label(mask, np.ones((3, 3)))
    overlaps = np.bincount(components[ndimage.maximum_filter(hint, 5)], minlength=count + 1)[1:] > 0
    return add_nearby_components(components, overlaps, np.bincount(components.ravel())[1:]) if overlaps.any() else hint


def compute_threshold(ink: FloatArray) -> float:
    """Compute Otsu's threshold between paper and ink, at least `MIN_DARKNESS`."""
    return max(compute_otsu_threshold(ink), MIN_DARKNESS)


def compute_otsu_threshold(values: npt.NDArray[np.float64] | npt.NDArray[np.float32]) -> float:
    """Compute the threshold with the largest variance between the values on its two sides, in 256 bins (Otsu 1979)."""
    if values.min() == values.max():
        return float(values.flat[0])
    counts, edges = np.histogram(values, 256)
    counts, centers = counts.astype(np.float32), (edges[:-1] + edges[1:]) / 2
    sums = counts * centers
    weight_below, weight_above = counts.cumsum(), counts[::-1].cumsum()[::-1]
    mean_below, mean_above = sums.cumsum() / weight_below, sums[::-1].cumsum()[::-1] / weight_above
    variance = weight_below[:-1] * weight_above[1:] * (mean_below[:-1] - mean_above[1:]) ** 2
    return float(centers[variance.argmax()])


def remove_ruled_lines(mask: Mask, span: float) -> Mask:
    """Remove thin straight lines that start at the border and cover ``span`` of the width or height."""
    from scipy import ndimage

    cleaned_mask = mask.copy()
    thin = (max(mask.shape) // 50 + 2) | 1
    for source, cleaned in ((mask, cleaned_mask), (mask.T, cleaned_mask.T)):
        width = source.shape[1]
        flat, high = (
            ndimage.maximum_filter(ndimage.minimum_filter(source, size), size)
            for size in ((1, max(9, width // 16) | 1), (thin, 1))
        )
        lines = flat & ~high
        components, _ = ndimage.label(ndimage.maximum_filter(lines, (3, 7)), np.ones((3, 3)))
        for index, (_, columns) in enumerate(ndimage.find_objects(components), 1):
            from_border = columns.start == 0 or columns.stop == width
            if from_border and columns.stop - columns.start >= span * width:
                cleaned &= ~((components == index) & ndimage.maximum_filter(lines, (3, 1)))
    return cleaned_mask


def render_mnist_digit(mask: Mask) -> UInt8Array:
    """Render the ink of a digit in MNIST's format, with MNIST's stroke width."""
    from scipy import ndimage

    mask = np.pad(mask, 24)
    inside, outside = ndimage.distance_transform_edt(mask), ndimage.distance_transform_edt(~mask)
    left, top, right, bottom = compute_bounding_box(mask)
    pixel = max(right - left, bottom - top) / 20
    thickness = (4 * inside[mask].mean() - 1) / pixel  # the mean distance to the edge is a quarter of the width
    grow = (np.clip(thickness, MIN_STROKE_WIDTH, MAX_STROKE_WIDTH) - thickness) * pixel / 2
    ink = np.clip(np.where(mask, inside, 1 - outside) + grow, 0, 1)
    left, top, right, bottom = compute_bounding_box(ink > 0.5)
    scale = 20 / max(right - left, bottom - top)
    size = (max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale)))
    rendered = Image.fromarray((255 * ink[top:bottom, left:right]).astype(np.uint8))
    digit = np.asarray(rendered.resize(size, Image.Resampling.BOX), np.float32)
    digit *= 255 / digit.max()
    row, column = (
        int(np.clip(round(14 - np.average(np.arange(n), weights=digit.sum(axis=1 - axis))), 0, 28 - n))
        for axis, n in enumerate(digit.shape)
    )
    canvas = np.zeros((1, 28, 28), np.uint8)
    canvas[0, row : row + digit.shape[0], column : column + digit.shape[1]] = digit.round()
    return canvas


def compute_bounding_box(mask: Mask) -> npt.NDArray[np.int_]:
    """Compute the bounding box (left, top, right, bottom) of a mask."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def enlarge_box(box: npt.NDArray[np.int_], margin: float) -> BoxArray:
    """Enlarge a box on every side by ``margin`` times its longer side."""
    enlarged: BoxArray = box + margin * (box[2:] - box[:2]).max() * SIDE_DIRECTIONS
    return enlarged


def upsample_map(values: FloatArray, like: UInt8Array) -> FloatArray:
    """Upsample a coarse map bilinearly to the height and width of ``like``."""
    return np.asarray(Image.fromarray(values).resize((like.shape[1], like.shape[0]), Image.Resampling.BILINEAR))


def get_border_pixels(values: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
    """Return the border pixels of ``(H, W, ...)`` as one sequence."""
    return np.concatenate([values[0], values[-1], values[1:-1, 0], values[1:-1, -1]])

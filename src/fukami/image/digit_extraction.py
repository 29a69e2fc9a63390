"""From a photograph or scan of one handwritten digit to the form in which MNIST shows it."""

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter, ImageOps

from fukami.errors import Error

UInt8Array = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
BoxArray = npt.NDArray[np.float64]  # left, top, right, bottom in pixels

LOCATE_SIZE, CROP_SIZE = 256, 160  # longest side in pixels on which the digit is looked for, and on which it is cut out
MAX_LONG_SIDE = 4000  # pixels; the longer side of what is looked at is less than twice as many
MIN_DARKNESS = 0.08  # ink takes at least this part of the paper's light
MIN_DIGIT_SCORE = (
    8  # the least `likeness` of a digit; most empty sheets lie below, and one photograph of a digit in a hundred
)
MIN_STROKE_WIDTH, MAX_STROKE_WIDTH = (
    2.3,
    4.2,
)  # strokes in a digit that is 20 pixels high: the middle nine tenths of MNIST's
SIDE_DIRECTIONS = np.array([-1, -1, 1, 1])  # what makes a box larger on all sides


def convert_to_mnist(image: Image.Image) -> UInt8Array:
    """The digit in a photograph, scan or drawing, as MNIST shows digits: light on 0, 20 pixels long, centred by mass.

    Ink may be dark on light or light on dark, of any colour, size and place, thin or thick; uneven light, shadows,
    ruled lines, specks and the edge of a table are left out. An image of 28 x 28 pixels on black is MNIST's form
    already and comes back unchanged; on white, inverted.

    Args:
        image: mode "L" or "RGB", as `fukami.image.io.read_image` gives it.

    Returns:
        uint8 ``(1, 28, 28)`` in 0..255.

    Raises:
        Error: no ink was found.

    Source: LeCun, Bottou, Bengio and Haffner 1998, "Gradient-based learning applied to document recognition", III.A.
    """
    if image.size == (28, 28):
        grey = np.asarray(image.convert("L"))
        ground = np.median(get_border_pixels(grey))
        if ground <= 16 or ground >= 239:
            return (grey.copy() if ground <= 16 else 255 - grey)[np.newaxis]
    # By the shorter side, and a strip by its longer one: the room around it is as wide as it is long.
    image = add_margin(image.reduce(max(1, min(image.size) // 500, max(image.size) // MAX_LONG_SIDE)))
    mask, light = locate_digit(image)
    box: BoxArray = np.array((0, 0, *image.size), np.float64)
    for _ in range(2):  # the second look sees whole what the first one found more of
        mask, box = refine_mask(image, light, mask, box)
    return render_mnist_digit(mask)


def add_margin(image: Image.Image) -> Image.Image:
    """The image in colour, with more of its paper around it where the border is one even colour: a tight crop."""
    image = image.convert("RGB")
    edge = get_border_pixels(np.asarray(image))
    colour = np.median(edge, axis=0)
    if (np.abs(edge - colour).max(axis=1) < 6).mean() < 0.8:
        return image
    return ImageOps.expand(image, max(image.size) // 6, tuple(int(value) for value in colour))


def locate_digit(image: Image.Image) -> tuple[Mask, bool]:
    """Roughly the digit's ink on the whole image, `PAGE` pixels long, and whether it is light on dark."""
    page = np.asarray(crop_and_resize(image, (0, 0, *image.size), LOCATE_SIZE))
    found = []
    for light in (False, True):
        levels = (255 - page if light else page).min(axis=2)  # coloured ink is darkest in one of the channels
        ink = compute_darkness(levels)
        mask = select_digit_strokes(ink)
        found.append((score_digit_mask(mask, levels, ink), light, mask))
    score, light, mask = max(found, key=lambda candidate: candidate[0])
    if score < MIN_DIGIT_SCORE:
        raise Error("no ink was found in the image; give one with a digit that stands out from an even ground")
    return mask, light


def crop_and_resize(image: Image.Image, box: tuple[float, float, float, float], long_side: int) -> Image.Image:
    """What ``box`` cuts out of the image, ``long_side`` pixels long and a little smoothed against noise."""
    width, height = box[2] - box[0], box[3] - box[1]
    scale = long_side / max(width, height)
    size = (max(2, round(width * scale)), max(2, round(height * scale)))
    return image.resize(size, Image.Resampling.BICUBIC, box, 2.0).filter(ImageFilter.GaussianBlur(1))


def compute_darkness(levels: UInt8Array) -> FloatArray:
    """How much darker than the paper around it each pixel is, in 0..1; paper is the median of a wide neighbourhood."""
    from scipy import ndimage

    coarse = np.asarray(Image.fromarray(levels).reduce(max(1, max(levels.shape) // 36)), np.float32)
    paper = ndimage.median_filter(coarse, int(0.4 * max(coarse.shape)) | 1, mode="nearest")
    step = ndimage.maximum_filter(paper, 3) - ndimage.minimum_filter(paper, 3)  # beside a shadow's or a table's edge
    paper, step = upsample_map(paper, levels), upsample_map(step, levels)
    return np.clip((paper - levels - step) / np.maximum(paper, 32), 0, 1)


def select_digit_strokes(ink: FloatArray) -> Mask:
    """The strokes with the most edge that neither fill their box nor lie along the border, and what is beside them."""
    from scipy import ndimage

    mask = remove_ruled_lines(ink > compute_threshold(ink), 0.5)
    parts, count = ndimage.label(mask, np.ones((3, 3)))
    if count == 0:
        return mask
    down, right = np.gradient(ink)
    rim = mask & ~ndimage.minimum_filter(mask, 3)
    edge, area, outline = (
        np.bincount(parts.ravel(), weights.ravel(), count + 1)[1:] for weights in (down**2 + right**2, mask, rim)
    )
    _, length, contact = measure_components(parts)
    stroke = (2 * area < 0.35 * length * outline) & (contact < 0.35 * length) & (length > LOCATE_SIZE / 32)
    main = np.arange(count) == np.where(stroke, edge, 0).argmax()
    return add_nearby_components(parts, main & stroke.any(), edge)


def measure_components(
    components: npt.NDArray[np.int_],
) -> tuple[npt.NDArray[np.int_], npt.NDArray[np.int_], npt.NDArray[np.int_]]:
    """Of every part its box (top, left, bottom, right), longest side, and pixels on the border."""
    from scipy import ndimage

    boxes = np.array([[s.start for s in part] + [s.stop for s in part] for part in ndimage.find_objects(components)])
    contact = np.bincount(get_border_pixels(components), minlength=len(boxes) + 1)[1:]
    return boxes, (boxes[:, 2:] - boxes[:, :2]).max(axis=1), contact


def add_nearby_components(components: npt.NDArray[np.int_], selected: Mask, weights: npt.NDArray[Any]) -> Mask:
    """The chosen parts and those of some weight and no great length that lie beside them: the bar of a 5."""
    picked: Mask = selected
    if selected.any():
        boxes, length, contact = measure_components(components)
        first, last = boxes[selected, :2].min(axis=0), boxes[selected, 2:].max(axis=0)
        side = (last - first).max()
        beside = ((boxes[:, :2] < last + 0.15 * side) & (boxes[:, 2:] > first - 0.15 * side)).all(axis=1)
        heavy = weights > 0.05 * weights[selected].sum()
        picked = selected | (beside & heavy & (contact == 0) & (length < 1.5 * side))
    inked: Mask = np.append(False, picked)[components]
    return inked


def score_digit_mask(mask: Mask, levels: UInt8Array, ink: FloatArray) -> float:
    """How much a mask looks like a digit: large and dark on even ground, not itself the ground between strokes."""
    from scipy import ndimage

    inner = ndimage.maximum_filter(mask, 7)
    ground = levels[ndimage.maximum_filter(inner, 11) & ~inner & (ink < MIN_DARKNESS)]
    if not (mask.any() and ground.size):
        return 0.0
    level = np.median(ground)
    contrast, unevenness = level - np.median(levels[mask]), np.abs(ground - level).mean()
    return float(contrast / (unevenness + 4) * mask.sum() ** 0.25)


def refine_mask(image: Image.Image, light: bool, mask: Mask, box: BoxArray) -> tuple[Mask, BoxArray]:
    """The digit's ink on a crop around the rough ``mask`` of what ``box`` cut out, and the crop's own box."""
    scale, origin = np.tile((box[2:] - box[:2]) / mask.shape[::-1], 2), np.tile(box[:2], 2)
    around = enlarge_box(compute_bounding_box(mask), 0.5) * scale + origin
    place = np.clip(around.round() + 2 * SIDE_DIRECTIONS, 0, np.tile(image.size, 2))
    left, top, right, bottom = (float(side) for side in place)
    crop = crop_and_resize(image, (left, top, right, bottom), CROP_SIZE)
    hint = Image.fromarray(mask).transform(crop.size, Image.Transform.EXTENT, tuple((place - origin) / scale))
    return segment_ink(255 - np.asarray(crop) if light else np.asarray(crop), np.asarray(hint)), place


def segment_ink(levels: UInt8Array, hint: Mask) -> Mask:
    """The connected dark ink of a crop ``(H, W, 3)`` that a rough mask of it touches."""
    from scipy import ndimage

    coarse = np.asarray(Image.fromarray(levels).reduce(4), np.float32)
    window = int(0.35 * max(coarse.shape)) | 1
    paper = ndimage.grey_closing(coarse, (window, window, 1), mode="nearest")
    paper = np.dstack([upsample_map(channel, levels) for channel in paper.transpose(2, 0, 1)])
    dark = np.clip(1 - levels / np.maximum(paper, 32), 0, 1)
    left, top, right, bottom = np.maximum(enlarge_box(compute_bounding_box(hint), 0.1), 0).astype(int)
    weights = (dark[top:bottom, left:right] ** 2).mean(axis=(0, 1))
    ink = dark @ (weights / max(weights.sum(), 1e-9))  # mostly the channels in which the ink stands out
    mask = remove_ruled_lines(ink > compute_threshold(ink[top:bottom, left:right]), 0.9)
    parts, count = ndimage.label(mask, np.ones((3, 3)))
    touched = np.bincount(parts[ndimage.maximum_filter(hint, 5)], minlength=count + 1)[1:] > 0
    return add_nearby_components(parts, touched, np.bincount(parts.ravel())[1:]) if touched.any() else hint


def compute_threshold(ink: FloatArray) -> float:
    """Otsu's threshold between paper and ink, at least `FAINTEST`."""
    from skimage.filters import threshold_otsu

    return max(float(threshold_otsu(ink)), MIN_DARKNESS)  # type: ignore[no-untyped-call]


def remove_ruled_lines(mask: Mask, span: float) -> Mask:
    """The mask without thin straight lines that come from the border along ``span`` of the width or height."""
    from scipy import ndimage

    kept = mask.copy()
    thin = (max(mask.shape) // 50 + 2) | 1
    for given, cleaned in ((mask, kept), (mask.T, kept.T)):
        width = given.shape[1]
        flat, high = (
            ndimage.maximum_filter(ndimage.minimum_filter(given, size), size)
            for size in ((1, max(9, width // 16) | 1), (thin, 1))
        )
        lines = flat & ~high
        parts, _ = ndimage.label(ndimage.maximum_filter(lines, (3, 7)), np.ones((3, 3)))
        for number, (_, columns) in enumerate(ndimage.find_objects(parts), 1):
            from_border = columns.start == 0 or columns.stop == width
            if from_border and columns.stop - columns.start >= span * width:
                cleaned &= ~((parts == number) & ndimage.maximum_filter(lines, (3, 1)))
    return kept


def render_mnist_digit(mask: Mask) -> UInt8Array:
    """A digit's ink in MNIST's form, its strokes made as thick as they are there."""
    from scipy import ndimage

    mask = np.pad(mask, 24)
    inside, outside = ndimage.distance_transform_edt(mask), ndimage.distance_transform_edt(~mask)
    left, top, right, bottom = compute_bounding_box(mask)
    pixel = max(right - left, bottom - top) / 20
    thickness = (4 * inside[mask].mean() - 1) / pixel  # the mean distance to the edge is a quarter of it
    grow = (np.clip(thickness, MIN_STROKE_WIDTH, MAX_STROKE_WIDTH) - thickness) * pixel / 2
    ink = np.clip(np.where(mask, inside, 1 - outside) + grow, 0, 1)
    left, top, right, bottom = compute_bounding_box(ink > 0.5)
    scale = 20 / max(right - left, bottom - top)
    size = (max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale)))
    drawn = Image.fromarray((255 * ink[top:bottom, left:right]).astype(np.uint8))
    digit = np.asarray(drawn.resize(size, Image.Resampling.BOX), np.float32)
    digit *= 255 / digit.max()
    row, column = (
        int(np.clip(round(14 - np.average(np.arange(n), weights=digit.sum(axis=1 - axis))), 0, 28 - n))
        for axis, n in enumerate(digit.shape)
    )
    canvas = np.zeros((1, 28, 28), np.uint8)
    canvas[0, row : row + digit.shape[0], column : column + digit.shape[1]] = digit.round()
    return canvas


def compute_bounding_box(mask: Mask) -> npt.NDArray[np.int_]:
    """The box of what is set in a mask."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def enlarge_box(box: npt.NDArray[np.int_], margin: float) -> BoxArray:
    """The box with ``margin`` of its longest side more on every side."""
    wide: BoxArray = box + margin * (box[2:] - box[:2]).max() * SIDE_DIRECTIONS
    return wide


def upsample_map(values: FloatArray, like: UInt8Array) -> FloatArray:
    """A coarse map, blended up to the height and width of ``like``."""
    return np.asarray(Image.fromarray(values).resize((like.shape[1], like.shape[0]), Image.Resampling.BILINEAR))


def get_border_pixels(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The outermost pixels of ``(H, W, ...)`` in a row."""
    return np.concatenate([values[0], values[-1], values[1:-1, 0], values[1:-1, -1]])

"""Shapes and textures of the images of :mod:`fukami.data.scenes`.

They use only sums, products, quotients and square roots, so the bytes are identical on every machine.
"""

import functools

import numpy as np
import numpy.typing as npt

from fukami.data.digits import load_original_digits

DIGIT_CLASSES = {"seven": 7, "eight": 8}
TEXTURES = ("striped", "dotted", "checked", "shaded")

FloatArray = npt.NDArray[np.floating]
# unit normals of the sides of a triangle and of a pentagram
TRIANGLE = ((0.0, 1.0), (0.8660254037844386, -0.5), (-0.8660254037844386, -0.5))
PENTAGRAM = (
    (0.0, 1.0),
    (0.9510565162951535, 0.30901699437494745),
    (0.5877852522924731, -0.8090169943749475),
    (-0.5877852522924731, -0.8090169943749475),
    (-0.9510565162951535, 0.30901699437494745),
)


def sample_uniform(random: np.random.Generator, low: float, high: float) -> float:
    """Sample a uniform random number; NumPy's ``uniform`` may use fused multiply-add, which rounds differently."""
    return low + (high - low) * random.random()


def sample_uniform_array(
    random: np.random.Generator, low: float, high: float, shape: tuple[int, ...]
) -> npt.NDArray[np.float64]:
    """Sample an array of uniform random numbers, rounded as :func:`sample_uniform` rounds them."""
    return low + (high - low) * random.random(shape)


def compute_shape(
    random: np.random.Generator, label: str, x: FloatArray, y: FloatArray, radius: float
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Compute the approximate signed distance of each pixel to a shape, and rotated coordinates, in pixels."""
    turn = 1.0 if label in ("circle", "ring", "bar") else 0.2
    tangent = sample_uniform(random, -turn, turn)  # tangent of half the angle: at most 90 or 23 degrees
    cos, sin = (1 - tangent * tangent) / (1 + tangent * tangent), 2 * tangent / (1 + tangent * tangent)
    flip = -1.0 if turn == 1.0 and random.random() < 0.5 else 1.0
    u, v = flip * (cos * x + sin * y), flip * (cos * y - sin * x)
    a, b = u / (radius * sample_uniform(random, 0.88, 1)), v / (radius * sample_uniform(random, 0.88, 1))
    if label in DIGIT_CLASSES:
        level = compute_digit_intensity(random, DIGIT_CLASSES[label], a, b)
        return (0.45 - level) * (radius / 4), u, v
    if label == "circle":
        distance = np.sqrt(a * a + b * b) - 1
    elif label == "ring":
        distance = np.abs(np.sqrt(a * a + b * b) - 0.76) - 0.24
    elif label == "square":
        distance = np.maximum(np.abs(a), np.abs(b)) - 0.86
    elif label == "cross":
        along, across = np.abs(a), np.abs(b)
        distance = np.minimum(np.maximum(along - 1, across - 0.32), np.maximum(along - 0.32, across - 1))
    elif label == "triangle":
        distance = np.maximum.reduce([p * a + q * b for p, q in TRIANGLE]) - 0.5
    elif label == "star":  # inside at least four of the five sides
        distance = np.sort(np.stack([p * a + q * b for p, q in PENTAGRAM]), axis=0)[-2] - 0.30901699437494745
    else:
        distance = np.maximum(np.abs(a), 6 * np.abs(b)) - 1
    return distance * radius, u, v


def compute_digit_intensity(random: np.random.Generator, digit: int, a: FloatArray, b: FloatArray) -> FloatArray:
    """Interpolate the intensity of a handwritten digit, 0 to 1, bilinearly at points of the square from -1 to 1."""
    templates = load_digit_templates()[digit]
    template = templates[random.integers(len(templates))]
    column, row = np.clip(a * 4.4 + 5, 0, 9.999), np.clip(b * 4.4 + 5, 0, 9.999)
    i, j = np.floor(row).astype(int), np.floor(column).astype(int)
    down, right = row - i, column - j
    above = template[i, j] * (1 - right) + template[i, j + 1] * right
    below = template[i + 1, j] * (1 - right) + template[i + 1, j + 1] * right
    return np.asarray(above * (1 - down) + below * down)


@functools.cache
def load_digit_templates() -> dict[int, FloatArray]:
    """Load scikit-learn's digits of the used classes, each with an empty margin, from 0 to 1."""
    images, labels = load_original_digits()
    padded = np.pad(images / 16, ((0, 0), (1, 2), (1, 2))).astype(np.float32)
    return {digit: padded[labels == digit] for digit in DIGIT_CLASSES.values()}


def fill_texture(
    random: np.random.Generator, texture: str, u: FloatArray, v: FloatArray, background: FloatArray
) -> FloatArray:
    """Render a texture of two colors ``(h, w, 3)``; the first contrasts with the background."""
    candidates = sample_uniform_array(random, 0, 255, (4, 3)).astype(np.float32)
    center = background[background.shape[0] // 2, background.shape[1] // 2]
    first = candidates[np.argmax(np.abs(candidates - center).max(1))]
    second = sample_uniform_array(random, 0, 255, (3,)).astype(np.float32)
    return np.asarray(first + compute_pattern(random, texture, u, v)[..., None] * (second - first))


def compute_pattern(random: np.random.Generator, texture: str, u: FloatArray, v: FloatArray) -> FloatArray:
    """Compute the weight of the second color of a texture, 0 to 1."""
    cell = sample_uniform(random, 6, 13)
    a, b = u / cell + random.random(), v / cell + random.random()
    if texture == "striped":
        return np.asarray(np.broadcast_to(a - np.floor(a) < 0.45, np.broadcast_shapes(a.shape, b.shape)), np.float32)
    if texture == "dotted":
        p, q = a - np.floor(a) - 0.5, b - np.floor(b) - 0.5
        return np.asarray(p * p + q * q < 0.1, np.float32)
    if texture == "checked":
        return np.asarray((np.floor(a) + np.floor(b)) % 2)
    return np.asarray(np.clip(u / (7 * cell) + 0.5, 0, 1))

"""Scenes: synthetic images of textured, overlapping shapes and handwritten digits, generated from a seed.

A scene is annotated with the classes, boxes and instance masks of its objects, and a caption. Color and texture do
not depend on the class, bars without a class are distractors, and objects occlude one another by up to 20 %.

All numbers are computed with sums, products, quotients and square roots, which IEEE 754 rounds identically: a seed
gives the same bytes on every machine. Sines, library resampling and normal distributions would not.
"""

import functools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fukami.data import shapes
from fukami.data.masks import ArrayMask
from fukami.data.samples import REGULAR, Sample
from fukami.data.shapes import DIGIT_CLASSES, TEXTURES, FloatArray, sample_uniform, sample_uniform_array
from fukami.progress import pluralize

LABELS = ("circle", "cross", "eight", "ring", "seven", "square", "star", "triangle")
MASK_LABELS: tuple[str, ...] = ("background", *LABELS)  # class of each pixel
COUNT_WORDS = ("no", "a", "two", "three", "four", "five", "six")
NUM_TRAIN, NUM_TEST = 2000, 200  # number of images of the splits, consecutive scenes
NUM_CAPTIONED = 8000  # images with few objects for captioning
MAX_SMALL_SIZE, MIN_LARGE_SIZE = 48.0, 68.0  # bounds of the size that a caption calls small or large
MIN_RELATION_DISTANCE = 12.0  # minimum distance of two centers in pixels for a spatial relation
COLORS = {
    "red": (215, 45, 40),
    "green": (45, 165, 60),
    "blue": (45, 75, 220),
    "yellow": (240, 220, 60),
    "purple": (150, 60, 185),
    "white": (245, 245, 240),
}
MIN_COLOR_CONTRAST = 90  # minimum difference from the background in one of red, green and blue, of 255
MAX_SHADE_OFFSET = 20  # largest deviation from a named color, of 255
MAX_PLACEMENTS = 12  # positions that are tried for an object


@dataclass(frozen=True)
class SceneConfig:
    """Configuration of scenes.

    Attributes:
        max_objects: maximum number of objects.
        max_bars: maximum number of bars, which have no class.
        side_range: minimum and maximum side of an image in pixels.
        size_range: minimum and maximum size of an object in pixels.
        min_digit_size: minimum size of a digit in pixels.
        min_visible_fraction: minimum visible fraction of an object.
        min_distance: minimum horizontal distance between object centers in pixels.
        untextured: each object has one color of ``COLORS`` and no texture, and the caption names all objects.
    """

    max_objects: int = 6
    max_bars: int = 2
    side_range: tuple[int, int] = (128, 192)
    size_range: tuple[float, float] = (40.0, 92.0)
    min_digit_size: float = 48.0
    min_visible_fraction: float = 0.8
    min_distance: float = 0.0
    untextured: bool = False


CROWDED = SceneConfig()
SPARSE = SceneConfig(
    max_objects=2,
    max_bars=1,
    side_range=(96, 96),
    size_range=(42.0, 60.0),
    min_digit_size=52.0,
    min_visible_fraction=0.95,
    min_distance=12.0,
    untextured=True,
)


@dataclass(frozen=True, eq=False)
class Scene:
    """Synthetic image with its annotations.

    Attributes:
        image: ``(H, W, 3)`` uint8.
        boxes: ``(n, 4)`` float32, bounding boxes of the visible pixels: left, top, right, bottom.
        classes: ``(n,)`` int64, indices of ``LABELS``.
        instances: ``(H, W)`` uint8: 0 for the background, ``i + 1`` for the visible pixels of object ``i``.
        caption: description of the image.
    """

    image: npt.NDArray[np.uint8]
    boxes: npt.NDArray[np.float32]
    classes: npt.NDArray[np.int64]
    instances: npt.NDArray[np.uint8]
    caption: str

    @property
    def masks(self) -> npt.NDArray[np.bool_]:
        """Masks of the visible pixels of each object, ``(n, H, W)``."""
        return np.equal(self.instances, np.arange(1, len(self.classes) + 1).reshape(-1, 1, 1))


@dataclass(frozen=True)
class SceneObject:
    """Object of a scene: class, name of texture or color, size and center in pixels."""

    label: str
    appearance: str
    size: float
    x: float
    y: float

    @property
    def phrase(self) -> str:
        """Noun phrase that describes the object."""
        size = "large " if self.size >= MIN_LARGE_SIZE else "small " if self.size <= MAX_SMALL_SIZE else ""
        return f"a {size}{self.appearance} {self.label}"


@dataclass(frozen=True)
class SceneLayout:
    """Objects placed in a scene so far.

    Attributes:
        instances: instance map as in :class:`Scene`.
        objects: the objects.
        full_areas: number of pixels of each object before occlusion.
    """

    instances: npt.NDArray[np.uint8]
    objects: list[SceneObject] = field(default_factory=list)
    full_areas: list[int] = field(default_factory=list)


def generate_scene(seed: int, index: int, config: SceneConfig = CROWDED) -> Scene:
    """Generate scene ``index`` of a seed, deterministically."""
    random = np.random.Generator(np.random.PCG64([seed, index]))
    height, width = (int(side) for side in random.integers(*config.side_range, 2, endpoint=True))
    canvas = _render_background(random, height, width)
    for _ in range(int(random.integers(0, config.max_bars + 1))):
        _draw_object(random, canvas, "bar", sample_uniform(random, *config.size_range))
    layout = SceneLayout(np.zeros((height, width), np.uint8))
    small, large = config.size_range
    for _ in range(int(random.integers(1, config.max_objects + 1))):
        label = LABELS[random.integers(len(LABELS))]
        fraction = random.random()
        size = small + (large - small) * fraction * math.sqrt(fraction)  # more small objects than large ones
        _draw_object(
            random, canvas, label, max(size, config.min_digit_size) if label in DIGIT_CLASSES else size, config, layout
        )
    image = _simulate_camera(random, canvas)
    objects = layout.objects
    boxes = np.array([_compute_bounds(layout.instances == i + 1) for i in range(len(objects))], np.float32).reshape(
        -1, 4
    )
    classes = np.array([LABELS.index(item.label) for item in objects], np.int64)
    return Scene(
        image,
        boxes,
        classes,
        layout.instances,
        _describe_objects(objects) if config.untextured else _describe_scene(random, objects),
    )


@functools.lru_cache(maxsize=4)
def generate_box_samples(first: int, count: int, seed: int = 0) -> tuple[Sample, ...]:
    """Generate scenes ``first`` to ``first + count`` of a seed as samples with boxes."""
    generated = (generate_scene(seed, index) for index in range(first, first + count))
    return tuple(
        Sample(
            scene.image,
            (scene.image.shape[1], scene.image.shape[0]),
            scene.boxes,
            scene.classes,
            np.full(len(scene.classes), REGULAR, np.uint8),
            f"scene {index}",
        )
        for index, scene in enumerate(generated, first)
    )


@functools.lru_cache(maxsize=4)
def generate_mask_samples(first: int, count: int, seed: int = 0) -> tuple[Sample, ...]:
    """Generate scenes ``first`` to ``first + count`` of a seed as samples with masks; bars are background."""
    generated = ((index, generate_scene(seed, index)) for index in range(first, first + count))
    return tuple(
        Sample.from_mask(
            scene.image,
            (scene.image.shape[1], scene.image.shape[0]),
            f"scene {index}",
            ArrayMask(np.concatenate([[1], scene.classes + 2]).astype(np.uint8)[scene.instances]),
        )
        for index, scene in generated
    )


@functools.lru_cache(maxsize=4)
def generate_captioned_images(
    first: int, count: int, seed: int = 0
) -> tuple[tuple[npt.NDArray[np.uint8], ...], tuple[tuple[str], ...]]:
    """Generate scenes ``first`` to ``first + count`` of one or two objects: images, and the caption of each."""
    generated = [generate_scene(seed, index, SPARSE) for index in range(first, first + count)]
    return tuple(scene.image for scene in generated), tuple((scene.caption,) for scene in generated)


def _draw_object(
    random: np.random.Generator,
    canvas: FloatArray,
    label: str,
    size: float,
    config: SceneConfig = CROWDED,
    layout: SceneLayout | None = None,
) -> None:
    """Draw an object at a position that satisfies occlusion and distance limits, if one is found; record it.

    Without a ``layout``, it is a distractor, drawn anywhere and not recorded.
    """
    height, width = canvas.shape[:2]
    size = min(size, 0.75 * min(height, width))
    for _ in range(MAX_PLACEMENTS if layout else 1):
        margin = 0.36 * size
        x, y = sample_uniform(random, margin, width - margin), sample_uniform(random, margin, height - margin)
        reach = int(0.62 * size) + 3
        left, top = max(0, int(x) - reach), max(0, int(y) - reach)
        region = np.s_[top : min(height, int(y) + reach), left : min(width, int(x) + reach)]
        rows, columns = (axis.astype(np.float32) for axis in np.ogrid[region])
        distance, u, v = shapes.compute_shape(random, label, columns + (0.5 - x), rows + (0.5 - y), size / 2)
        inner = distance <= 0
        if layout:
            count = len(layout.full_areas) + 1
            visible = np.bincount(np.where(inner, 0, layout.instances[region]).ravel(), minlength=count)
            before = np.bincount(layout.instances[region].ravel(), minlength=count)
            remaining = (np.bincount(layout.instances.ravel(), minlength=count) - before + visible)[1:]
            hidden = (remaining < config.min_visible_fraction * np.array(layout.full_areas)).any()
            if hidden or any(abs(x - other.x) < config.min_distance for other in layout.objects):
                continue
            layout.instances[region][inner] = count
            layout.full_areas.append(int(inner.sum()))
        appearance, fill = (
            _sample_color(random, canvas[region])
            if config.untextured
            else _sample_texture(random, u, v, canvas[region])
        )
        alpha = np.clip(0.5 - distance, 0, 1)[..., None]
        canvas[region] += alpha * (fill - canvas[region])
        if layout:
            layout.objects.append(SceneObject(label, appearance, size, x, y))
        return


def _sample_texture(
    random: np.random.Generator, u: FloatArray, v: FloatArray, background: FloatArray
) -> tuple[str, FloatArray]:
    """Sample a texture; return its name and its colors ``(h, w, 3)``."""
    texture = TEXTURES[random.integers(len(TEXTURES))]
    return texture, shapes.fill_texture(random, texture, u, v, background)


def _sample_color(random: np.random.Generator, background: FloatArray) -> tuple[str, FloatArray]:
    """Sample a color in contrast to the background; return its name and one of its shades ``(3,)``."""
    center = background[background.shape[0] // 2, background.shape[1] // 2]
    candidates = [name for name, color in COLORS.items() if np.abs(color - center).max() > MIN_COLOR_CONTRAST]
    name = candidates[random.integers(len(candidates))]
    shade = np.array(COLORS[name]) + sample_uniform_array(random, -MAX_SHADE_OFFSET, MAX_SHADE_OFFSET, (3,))
    return name, shade.astype(np.float32)


def _render_background(random: np.random.Generator, height: int, width: int) -> FloatArray:
    """Render the background, ``(H, W, 3)``: a faint texture mixed with smooth noise."""
    rows, columns = (axis.astype(np.float32) for axis in np.ogrid[:height, :width])
    tangent = sample_uniform(random, -1, 1)
    cos, sin = (1 - tangent * tangent) / (1 + tangent * tangent), 2 * tangent / (1 + tangent * tangent)
    u, v = cos * columns + sin * rows, cos * rows - sin * columns
    first, second = sample_uniform_array(random, 50, 205, (2, 3)).astype(np.float32)
    texture = shapes.compute_pattern(random, TEXTURES[random.integers(len(TEXTURES))], u, v)
    mixed = sample_uniform(random, 0.05, 0.3) * texture + sample_uniform(random, 0.2, 0.7) * _render_smooth_noise(
        random, height, width
    )
    return np.asarray(first + mixed[..., None] * (second - first))


def _render_smooth_noise(random: np.random.Generator, height: int, width: int) -> FloatArray:
    """Render smooth noise from 0 to 1: a coarse grid of random numbers with bilinear interpolation."""
    count = int(random.integers(3, 10))
    grid = random.random((count + 1, count + 1)).astype(np.float32)
    y, x = (np.arange(side, dtype=np.float32) * ((count - 0.001) / side) for side in (height, width))
    i, j = np.floor(y).astype(int), np.floor(x).astype(int)
    down, right = (y - i)[:, None], x - j
    above = grid[i][:, j] * (1 - right) + grid[i][:, j + 1] * right
    below = grid[i + 1][:, j] * (1 - right) + grid[i + 1][:, j + 1] * right
    return np.asarray(above * (1 - down) + below * down)


def _simulate_camera(random: np.random.Generator, canvas: FloatArray) -> npt.NDArray[np.uint8]:
    """Simulate a photograph: uneven lighting, slight blur and sensor noise."""
    height, width = canvas.shape[:2]
    brightness, tilt, lean = (
        sample_uniform(random, 0.55, 1.05),
        sample_uniform(random, -0.35, 0.35),
        sample_uniform(random, -0.35, 0.35),
    )
    rows, columns = (axis.astype(np.float32) for axis in np.ogrid[:height, :width])
    lit = canvas * (brightness + tilt * (columns / width - 0.5) + lean * (rows / height - 0.5))[..., None]
    blur = sample_uniform(random, 0, 0.25)
    padded = np.pad(lit, ((1, 1), (0, 0), (0, 0)), "edge")
    lit = lit * (1 - 2 * blur) + (padded[:-2] + padded[2:]) * blur
    padded = np.pad(lit, ((0, 0), (1, 1), (0, 0)), "edge")
    lit = lit * (1 - 2 * blur) + (padded[:, :-2] + padded[:, 2:]) * blur
    amplitude = int(random.integers(3, 18))
    noise = random.integers(-amplitude, amplitude, canvas.shape, endpoint=True, dtype=np.int8)
    return np.asarray(np.clip(lit + noise + np.float32(0.5), 0, 255), np.uint8)


def _compute_bounds(mask: npt.NDArray[np.bool_]) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _describe_scene(random: np.random.Generator, objects: Sequence[SceneObject]) -> str:
    """Describe a scene by object counts, or by one object and its spatial relations to others."""
    if len(objects) == 1:
        return objects[0].phrase
    if random.random() < 0.4:
        counts = Counter(item.label for item in objects)
        phrases = [f"{COUNT_WORDS[n]} {pluralize(label) if n > 1 else label}" for label, n in counts.most_common()]
        phrases = [f"an{phrase[1:]}" if phrase == "a eight" else phrase for phrase in phrases]
        return " and ".join([", ".join(phrases[:-1]), phrases[-1]] if len(phrases) > 1 else phrases)
    anchor_index = int(random.integers(len(objects)))
    anchor, others = objects[anchor_index], [*objects[:anchor_index], *objects[anchor_index + 1 :]]
    chosen = random.permutation(len(others))[: 1 + (random.random() < 0.5)]
    relations = [f"{_describe_relation(anchor, others[i], i < anchor_index)} {others[i].phrase}" for i in chosen]
    return f"{anchor.phrase} {' and '.join(relations)}"


def _describe_objects(objects: Sequence[SceneObject]) -> str:
    """Describe all objects from left to right, each with its color."""
    return " and ".join(f"a {item.appearance} {item.label}" for item in sorted(objects, key=lambda item: item.x))


def _describe_relation(one: SceneObject, other: SceneObject, later: bool) -> str:
    """Describe the position of an object relative to another, along the axis of greater distance."""
    right, down = one.x - other.x, one.y - other.y
    if max(abs(right), abs(down)) < MIN_RELATION_DISTANCE:
        return "in front of" if later else "behind"
    if abs(right) >= abs(down):
        return "right of" if right > 0 else "left of"
    return "below" if down > 0 else "above"

"""Scenes: images of textured, overlapping shapes and handwritten digits, made from a seed; they need no download.

A scene has the answers to several questions: classes, boxes and pixels of its objects, and a sentence that is true of
it. Colour and texture say nothing about the class, bars without a class lie between the objects, and objects hide one
another by up to 20 %.

Every number comes from sums, products, quotients and square roots, which IEEE 754 rounds alike everywhere: the same
seed gives the same bytes on every machine. No sine, no library's resampling and no normal distribution does.
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
from fukami.data.shapes import DIGIT_CLASSES, TEXTURES, FloatArray, sample_uniform

LABELS = ("circle", "cross", "eight", "ring", "seven", "square", "star", "triangle")
MASK_LABELS: tuple[str, ...] = ("background", *LABELS)  # what a pixel can be
COUNT_WORDS = ("no", "a", "two", "three", "four", "five", "six")
NUM_TRAIN, NUM_TEST = 2000, 200  # images of the data set, numbered one after the other
NUM_CAPTIONED = 8000  # images with few objects to learn sentences from
MAX_SMALL_SIZE, MIN_LARGE_SIZE = 48.0, 68.0  # what is called so
MIN_RELATION_DISTANCE = 12.0  # pixels between two middles below which neither is beside the other
COLOURS = {
    "red": (215, 45, 40),
    "green": (45, 165, 60),
    "blue": (45, 75, 220),
    "yellow": (240, 220, 60),
    "purple": (150, 60, 185),
    "white": (245, 245, 240),
}
MIN_COLOR_CONTRAST = 90  # of 255 between a colour and the ground, in one of red, green and blue
MAX_SHADE_OFFSET = 20  # of 255 either way
MAX_PLACEMENTS = 12  # places that are tried for an object


@dataclass(frozen=True)
class SceneConfig:
    """What scenes are like.

    Attributes:
        max_objects: objects at most.
        max_bars: without a class, at most.
        side_range: of an image in pixels, least and most.
        size_range: pixels across an object, least and most.
        min_digit_size: pixels that a digit needs at least.
        min_visible_fraction: least share of an object that the others leave to be seen.
        min_distance: pixels at least from the middle of an object to that of one on its right.
        untextured: each object is of one colour of ``COLOURS``, without a texture, and the sentence names all of them.
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
    """An image and the answers to what is in it.

    Attributes:
        image: ``(H, W, 3)`` uint8.
        boxes: ``(n, 4)`` float32: left, top, right and bottom of the visible pixels of each object.
        classes: ``(n,)`` int64, numbers of ``LABELS``.
        instances: ``(H, W)`` uint8: 0 the ground, ``i + 1`` the visible pixels of object ``i``.
        caption: a description in words that is true of the image.
    """

    image: npt.NDArray[np.uint8]
    boxes: npt.NDArray[np.float32]
    classes: npt.NDArray[np.int64]
    instances: npt.NDArray[np.uint8]
    caption: str

    @property
    def masks(self) -> npt.NDArray[np.bool_]:
        """The visible pixels of each object, ``(n, H, W)``."""
        return np.equal(self.instances, np.arange(1, len(self.classes) + 1).reshape(-1, 1, 1))


@dataclass(frozen=True)
class SceneObject:
    """An object: its class, the name of its texture or colour, how large it is, and the middle of it."""

    label: str
    appearance: str
    size: float
    x: float
    y: float

    @property
    def phrase(self) -> str:
        """The object in words."""
        size = "large " if self.size >= MIN_LARGE_SIZE else "small " if self.size <= MAX_SMALL_SIZE else ""
        return f"a {size}{self.appearance} {self.label}"


@dataclass(frozen=True)
class SceneLayout:
    """The objects that a page has already.

    Attributes:
        instances: as those of a scene.
        objects: the objects.
        full_areas: their pixels when nothing hid them.
    """

    instances: npt.NDArray[np.uint8]
    objects: list[SceneObject] = field(default_factory=list)
    full_areas: list[int] = field(default_factory=list)


def generate_scene(seed: int, number: int, config: SceneConfig = CROWDED) -> Scene:
    """Scene ``number`` of a seed; the same one each time."""
    random = np.random.Generator(np.random.PCG64([seed, number]))
    height, width = (int(side) for side in random.integers(*config.side_range, 2, endpoint=True))
    page = _render_background(random, height, width)
    for _ in range(int(random.integers(0, config.max_bars + 1))):
        _draw_object(random, page, "bar", sample_uniform(random, *config.size_range))
    laid = SceneLayout(np.zeros((height, width), np.uint8))
    small, large = config.size_range
    for _ in range(int(random.integers(1, config.max_objects + 1))):
        label = LABELS[random.integers(len(LABELS))]
        share = random.random()
        size = small + (large - small) * share * math.sqrt(share)  # more small ones than large ones
        _draw_object(
            random, page, label, max(size, config.min_digit_size) if label in DIGIT_CLASSES else size, config, laid
        )
    image = _simulate_camera(random, page)
    things = laid.objects
    boxes = np.array([_compute_bounds(laid.instances == i + 1) for i in range(len(things))], np.float32).reshape(-1, 4)
    classes = np.array([LABELS.index(thing.label) for thing in things], np.int64)
    return Scene(
        image,
        boxes,
        classes,
        laid.instances,
        _describe_objects(things) if config.untextured else _describe_scene(random, things),
    )


@functools.lru_cache(maxsize=4)
def generate_box_samples(first: int, count: int, seed: int = 0) -> tuple[Sample, ...]:
    """Scenes ``first`` to ``first + count`` of a seed, as images with boxes."""
    found = (generate_scene(seed, number) for number in range(first, first + count))
    return tuple(
        Sample(
            each.image,
            (each.image.shape[1], each.image.shape[0]),
            each.boxes,
            each.classes,
            np.full(len(each.classes), REGULAR, np.uint8),
            f"scene {number}",
        )
        for number, each in enumerate(found, first)
    )


@functools.lru_cache(maxsize=4)
def generate_mask_samples(first: int, count: int, seed: int = 0) -> tuple[Sample, ...]:
    """Scenes ``first`` to ``first + count`` of a seed, as images with masks; bars and the ground are background."""
    found = ((number, generate_scene(seed, number)) for number in range(first, first + count))
    return tuple(
        Sample.from_mask(
            each.image,
            (each.image.shape[1], each.image.shape[0]),
            f"scene {number}",
            ArrayMask(np.concatenate([[1], each.classes + 2]).astype(np.uint8)[each.instances]),
        )
        for number, each in found
    )


@functools.lru_cache(maxsize=4)
def generate_captioned_images(
    first: int, count: int, seed: int = 0
) -> tuple[tuple[npt.NDArray[np.uint8], ...], tuple[tuple[str], ...]]:
    """Scenes of one or two objects, ``first`` to ``first + count`` of a seed: images, and the sentence of each."""
    found = [generate_scene(seed, number, SPARSE) for number in range(first, first + count)]
    return tuple(each.image for each in found), tuple((each.caption,) for each in found)


def _draw_object(
    random: np.random.Generator,
    page: FloatArray,
    label: str,
    size: float,
    kind: SceneConfig = CROWDED,
    laid: SceneLayout | None = None,
) -> None:
    """Draw an object where it hides no other one too much and is apart from all, if there is such a place, and note it.

    What is not ``laid`` with others is no object of the scene, and goes anywhere.
    """
    height, width = page.shape[:2]
    size = min(size, 0.75 * min(height, width))
    for _ in range(MAX_PLACEMENTS if laid else 1):
        inside = 0.36 * size
        x, y = sample_uniform(random, inside, width - inside), sample_uniform(random, inside, height - inside)
        reach = int(0.62 * size) + 3
        left, top = max(0, int(x) - reach), max(0, int(y) - reach)
        cut = np.s_[top : min(height, int(y) + reach), left : min(width, int(x) + reach)]
        rows, columns = (axis.astype(np.float32) for axis in np.ogrid[cut])
        distance, u, v = shapes.compute_shape(random, label, columns + (0.5 - x), rows + (0.5 - y), size / 2)
        inner = distance <= 0
        if laid:
            count = len(laid.full_areas) + 1
            seen = np.bincount(np.where(inner, 0, laid.instances[cut]).ravel(), minlength=count)
            before = np.bincount(laid.instances[cut].ravel(), minlength=count)
            left_over = (np.bincount(laid.instances.ravel(), minlength=count) - before + seen)[1:]
            hidden = (left_over < kind.min_visible_fraction * np.array(laid.full_areas)).any()
            if hidden or any(abs(x - other.x) < kind.min_distance for other in laid.objects):
                continue
            laid.instances[cut][inner] = count
            laid.full_areas.append(int(inner.sum()))
        look, fill = _sample_color(random, page[cut]) if kind.untextured else _sample_texture(random, u, v, page[cut])
        alpha = np.clip(0.5 - distance, 0, 1)[..., None]
        page[cut] += alpha * (fill - page[cut])
        if laid:
            laid.objects.append(SceneObject(label, look, size, x, y))
        return


def _sample_texture(
    random: np.random.Generator, u: FloatArray, v: FloatArray, under: FloatArray
) -> tuple[str, FloatArray]:
    """A texture, and its colours ``(h, w, 3)``."""
    texture = TEXTURES[random.integers(len(TEXTURES))]
    return texture, shapes.fill_texture(random, texture, u, v, under)


def _sample_color(random: np.random.Generator, under: FloatArray) -> tuple[str, FloatArray]:
    """The name of a colour that is unlike what is under it, and one of its shades ``(3,)``."""
    middle = under[under.shape[0] // 2, under.shape[1] // 2]
    unlike = [name for name, colour in COLOURS.items() if np.abs(colour - middle).max() > MIN_COLOR_CONTRAST]
    name = unlike[random.integers(len(unlike))]
    shade = np.array(COLOURS[name]) + sample_uniform(random, -MAX_SHADE_OFFSET, MAX_SHADE_OFFSET, 3)
    return name, shade.astype(np.float32)


def _render_background(random: np.random.Generator, height: int, width: int) -> FloatArray:
    """What the objects lie on: a faint texture, blotches and a gradient, ``(H, W, 3)``."""
    rows, columns = (axis.astype(np.float32) for axis in np.ogrid[:height, :width])
    tangent = sample_uniform(random, -1, 1)
    cos, sin = (1 - tangent * tangent) / (1 + tangent * tangent), 2 * tangent / (1 + tangent * tangent)
    u, v = cos * columns + sin * rows, cos * rows - sin * columns
    first, second = sample_uniform(random, 50, 205, (2, 3)).astype(np.float32)
    texture = shapes.compute_pattern(random, TEXTURES[random.integers(len(TEXTURES))], u, v)
    mixed = sample_uniform(random, 0.05, 0.3) * texture + sample_uniform(random, 0.2, 0.7) * _render_smooth_noise(
        random, height, width
    )
    return np.asarray(first + mixed[..., None] * (second - first))


def _render_smooth_noise(random: np.random.Generator, height: int, width: int) -> FloatArray:
    """Smooth noise from 0 to 1: a coarse grid of random numbers, between them bilinear."""
    count = int(random.integers(3, 10))
    grid = random.random((count + 1, count + 1)).astype(np.float32)
    y, x = (np.arange(side, dtype=np.float32) * ((count - 0.001) / side) for side in (height, width))
    i, j = np.floor(y).astype(int), np.floor(x).astype(int)
    down, right = (y - i)[:, None], x - j
    above = grid[i][:, j] * (1 - right) + grid[i][:, j + 1] * right
    below = grid[i + 1][:, j] * (1 - right) + grid[i + 1][:, j + 1] * right
    return np.asarray(above * (1 - down) + below * down)


def _simulate_camera(random: np.random.Generator, page: FloatArray) -> npt.NDArray[np.uint8]:
    """The page under uneven light, a little out of focus, with the noise of a camera."""
    height, width = page.shape[:2]
    dark, tilt, lean = (
        sample_uniform(random, 0.55, 1.05),
        sample_uniform(random, -0.35, 0.35),
        sample_uniform(random, -0.35, 0.35),
    )
    rows, columns = (axis.astype(np.float32) for axis in np.ogrid[:height, :width])
    lit = page * (dark + tilt * (columns / width - 0.5) + lean * (rows / height - 0.5))[..., None]
    blur = sample_uniform(random, 0, 0.25)
    round_about = np.pad(lit, ((1, 1), (0, 0), (0, 0)), "edge")
    lit = lit * (1 - 2 * blur) + (round_about[:-2] + round_about[2:]) * blur
    round_about = np.pad(lit, ((0, 0), (1, 1), (0, 0)), "edge")
    lit = lit * (1 - 2 * blur) + (round_about[:, :-2] + round_about[:, 2:]) * blur
    most = int(random.integers(3, 18))
    noise = random.integers(-most, most, page.shape, endpoint=True, dtype=np.int8)
    return np.asarray(np.clip(lit + noise + np.float32(0.5), 0, 255), np.uint8)


def _compute_bounds(mask: npt.NDArray[np.bool_]) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _describe_scene(random: np.random.Generator, things: Sequence[SceneObject]) -> str:
    """What is there, counted; or one of the objects and where others are from there."""
    if len(things) == 1:
        return things[0].phrase
    if random.random() < 0.4:
        counts = Counter(thing.label for thing in things)
        named = [f"{COUNT_WORDS[n]} {_pluralize(label) if n > 1 else label}" for label, n in counts.most_common()]
        named = [f"an{each[1:]}" if each == "a eight" else each for each in named]
        return " and ".join([", ".join(named[:-1]), named[-1]] if len(named) > 1 else named)
    at = int(random.integers(len(things)))
    one, others = things[at], [*things[:at], *things[at + 1 :]]
    chosen = random.permutation(len(others))[: 1 + (random.random() < 0.5)]
    relations = [f"{_describe_relation(one, others[i], i < at)} {others[i].phrase}" for i in chosen]
    return f"{one.phrase} {' and '.join(relations)}"


def _describe_objects(things: Sequence[SceneObject]) -> str:
    """All of them, from left to right, each with its colour."""
    return " and ".join(f"a {thing.appearance} {thing.label}" for thing in sorted(things, key=lambda thing: thing.x))


def _describe_relation(one: SceneObject, other: SceneObject, later: bool) -> str:
    """Where one object is from another one, by the direction in which their middles are further apart."""
    right, down = one.x - other.x, one.y - other.y
    if max(abs(right), abs(down)) < MIN_RELATION_DISTANCE:
        return "in front of" if later else "behind"
    if abs(right) >= abs(down):
        return "right of" if right > 0 else "left of"
    return "below" if down > 0 else "above"


def _pluralize(label: str) -> str:
    return label + ("es" if label.endswith("s") else "s")

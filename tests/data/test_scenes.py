"""Tests of the generated dataset ``scenes``: reproducible, with boxes, masks and captions that match the images."""

import hashlib
import re
from itertools import pairwise

import numpy as np
import pytest

from fukami.data import scenes
from fukami.data.scenes import LABELS, Scene
from fukami.detection import data as detection_data

NUMBERS = {"a": 1, "an": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
SIDE = re.compile(r"(right of|left of|above|below|in front of|behind)")


@pytest.fixture(scope="module")
def examples():
    return [scenes.generate_scene(0, index) for index in range(40)]


def test_scenes_are_reproducible(examples):
    """Bit-identical on every machine: only IEEE 754 operations are used. A changed generator needs a new digest."""
    repeated = scenes.generate_scene(0, 7)
    assert np.array_equal(repeated.image, examples[7].image)
    assert repeated.caption == examples[7].caption
    digest = hashlib.sha256(b"".join(scene.image.tobytes() + scene.boxes.tobytes() for scene in examples)).hexdigest()
    assert digest == "a7c04a74c45499a0c2dcac1084cf4f4bbb5ebcf7391efa78aed471d50ace3b56"
    assert not np.array_equal(scenes.generate_scene(1, 7).image.shape, examples[7].image.shape) or not np.array_equal(
        scenes.generate_scene(1, 7).image, examples[7].image
    )


def test_boxes_masks_and_classes_match(examples):
    for scene in examples:
        height, width = scene.instances.shape
        assert scene.image.shape == (height, width, 3)
        assert all(128 <= side <= 192 for side in (height, width))
        assert 1 <= len(scene.classes) == len(scene.boxes) == len(scene.masks) == scene.instances.max() <= 6
        for (left, top, right, bottom), mask in zip(scene.boxes.astype(int), scene.masks, strict=True):
            in_box = np.zeros_like(mask)
            in_box[top:bottom, left:right] = True
            assert mask.any()
            assert not mask[~in_box].any()  # the box contains the mask, and the mask touches each side
            assert all(edge.any() for edge in (mask[top], mask[bottom - 1], mask[:, left], mask[:, right - 1]))


def test_every_class_and_number_of_objects_occurs(examples):
    assert {int(index) for scene in examples for index in scene.classes} == set(range(len(LABELS)))
    assert {len(scene.classes) for scene in examples} == {1, 2, 3, 4, 5, 6}
    num_overlapping = 0
    for scene in examples:
        for i, (left, top, right, bottom) in enumerate(scene.boxes.astype(int)):
            num_overlapping += bool({*scene.instances[top:bottom, left:right].ravel().tolist()} - {0, i + 1})
    assert num_overlapping > 20


def test_shapes_cover_the_expected_fraction_of_their_box(examples):
    """Only complete, single objects: a disc covers π/4 of its box, a square half (rotated by 45°) to all of it."""
    fractions = {label: [] for label in LABELS}
    for scene in examples:
        for index, (left, top, right, bottom), mask in zip(scene.classes, scene.boxes, scene.masks, strict=True):
            height, width = scene.instances.shape
            if left > 0 and top > 0 and right < width and bottom < height and len(scene.classes) == 1:
                fractions[LABELS[index]].append(mask.sum() / ((right - left) * (bottom - top)))
    assert np.allclose(fractions["circle"], np.pi / 4, atol=0.05)
    assert all(0.45 < fraction < 1 for fraction in fractions["square"])
    assert all(0.4 < fraction < 0.65 for fraction in fractions["triangle"])


def parse_counts(scene: Scene):
    """Parse the object counts in a caption; None if it states a relation."""
    phrases = re.split(r", | and ", scene.caption)
    if SIDE.search(scene.caption) or len(scene.classes) == 1:
        return None
    counts = {}
    for word, name in (phrase.split(" ", 1) for phrase in phrases):
        singular = name if NUMBERS[word] == 1 else name.removesuffix("es" if name.startswith("cross") else "s")
        counts[singular] = NUMBERS[word]
    return counts


def test_captions_are_true_and_differ(examples):
    """Counts, named classes and spatial relations in the captions match the objects."""
    num_counts = num_relations = 0
    for scene in examples:
        expected = {label: int((scene.classes == i).sum()) for i, label in enumerate(LABELS) if i in scene.classes}
        counts = parse_counts(scene)
        if counts is not None:
            assert counts == expected, scene.caption
            num_counts += 1
            continue
        named = [word for word in scene.caption.split() if word in LABELS]
        assert named, scene.caption
        assert set(named) <= set(expected), scene.caption
        if len(scene.classes) == 2 and len(set(named)) == 2 and (relation := SIDE.search(scene.caption)):
            first, second = (scene.boxes[list(scene.classes).index(LABELS.index(name))] for name in named)
            right, down = (first[:2] + first[2:] - second[:2] - second[2:]) / 2
            tolerance = 15  # the visible part of an object has another center than the whole object
            is_true = {
                "right of": right > -tolerance,
                "left of": right < tolerance,
                "below": down > -tolerance,
                "above": down < tolerance,
            }
            assert is_true.get(relation[0], True), scene.caption
            num_relations += 1
    assert num_counts >= 5
    assert num_relations >= 2
    assert len({scene.caption for scene in examples}) > 35


def test_scenes_as_a_detection_dataset(monkeypatch):
    monkeypatch.setattr(scenes, "NUM_TRAIN", 6)
    monkeypatch.setattr(scenes, "NUM_TEST", 3)
    train, val, _, labels = detection_data.load_dataset("scenes", 0.2)
    assert (len(train), len(val), labels) == (6, 3, LABELS)
    assert len({sample.name for sample in (*train, *val)}) == 9
    for sample in (*train, *val):
        assert sample.size == (sample.source.shape[1], sample.source.shape[0])
        assert (sample.boxes >= 0).all()
        assert (sample.boxes[:, 2:] <= sample.size).all()
    assert not any(np.array_equal(first.source, second.source) for first, second in pairwise((*train, *val)))

"""The embedded scenes: the same everywhere, and each of their answers true of the image."""

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
def some():
    return [scenes.generate_scene(0, number) for number in range(40)]


def test_the_same_bytes_each_time(some):
    """On every machine: no more than IEEE 754 prescribes is counted on. A changed generator needs a new digest."""
    again = scenes.generate_scene(0, 7)
    assert np.array_equal(again.image, some[7].image)
    assert again.caption == some[7].caption
    digest = hashlib.sha256(b"".join(each.image.tobytes() + each.boxes.tobytes() for each in some)).hexdigest()
    assert digest == "a7c04a74c45499a0c2dcac1084cf4f4bbb5ebcf7391efa78aed471d50ace3b56"
    assert not np.array_equal(scenes.generate_scene(1, 7).image.shape, some[7].image.shape) or not np.array_equal(
        scenes.generate_scene(1, 7).image, some[7].image
    )


def test_boxes_masks_and_classes_are_of_the_same_pixels(some):
    for scene in some:
        height, width = scene.instances.shape
        assert scene.image.shape == (height, width, 3)
        assert all(128 <= side <= 192 for side in (height, width))
        assert 1 <= len(scene.classes) == len(scene.boxes) == len(scene.masks) == scene.instances.max() <= 6
        for (left, top, right, bottom), mask in zip(scene.boxes.astype(int), scene.masks, strict=True):
            inside = np.zeros_like(mask)
            inside[top:bottom, left:right] = True
            assert mask.any()
            assert not mask[~inside].any()  # bounds it, and each side touches it
            assert all(edge.any() for edge in (mask[top], mask[bottom - 1], mask[:, left], mask[:, right - 1]))


def test_every_class_and_number_of_objects_occurs(some):
    assert {int(number) for scene in some for number in scene.classes} == set(range(len(LABELS)))
    assert {len(scene.classes) for scene in some} == {1, 2, 3, 4, 5, 6}
    overlapping = 0
    for scene in some:
        for i, (left, top, right, bottom) in enumerate(scene.boxes.astype(int)):
            overlapping += bool({*scene.instances[top:bottom, left:right].ravel().tolist()} - {0, i + 1})
    assert overlapping > 20


def test_the_middle_of_a_shape_is_where_its_box_says(some):
    """A disc, alone in the image and whole, fills π/4 of its box; a square on its corner half of it, upright all."""
    fills = {label: [] for label in LABELS}
    for scene in some:
        for number, (left, top, right, bottom), mask in zip(scene.classes, scene.boxes, scene.masks, strict=True):
            height, width = scene.instances.shape
            if left > 0 and top > 0 and right < width and bottom < height and len(scene.classes) == 1:
                fills[LABELS[number]].append(mask.sum() / ((right - left) * (bottom - top)))
    assert np.allclose(fills["circle"], np.pi / 4, atol=0.05)
    assert all(0.45 < fill < 1 for fill in fills["square"])
    assert all(0.4 < fill < 0.65 for fill in fills["triangle"])


def said(scene: Scene):
    """The counts that a sentence tells of, or None where it tells of relations."""
    words = re.split(r", | and ", scene.caption)
    if SIDE.search(scene.caption) or len(scene.classes) == 1:
        return None
    counts = {}
    for number, name in (phrase.split(" ", 1) for phrase in words):
        single = name if NUMBERS[number] == 1 else name.removesuffix("es" if name.startswith("cross") else "s")
        counts[single] = NUMBERS[number]
    return counts


def test_sentences_are_true_and_differ(some):
    """What is counted is there so often; what is named is there; where it is said to be on one side, it is."""
    counting = relating = 0
    for scene in some:
        there = {label: int((scene.classes == i).sum()) for i, label in enumerate(LABELS) if i in scene.classes}
        counts = said(scene)
        if counts is not None:
            assert counts == there, scene.caption
            counting += 1
            continue
        named = [word for word in scene.caption.split() if word in LABELS]
        assert named, scene.caption
        assert set(named) <= set(there), scene.caption
        if len(scene.classes) == 2 and len(set(named)) == 2 and (relation := SIDE.search(scene.caption)):
            one, other = (scene.boxes[list(scene.classes).index(LABELS.index(name))] for name in named)
            right, down = (one[:2] + one[2:] - other[:2] - other[2:]) / 2
            slack = 15  # the visible part of an object has another middle than all of it
            holds = {
                "right of": right > -slack,
                "left of": right < slack,
                "below": down > -slack,
                "above": down < slack,
            }
            assert holds.get(relation[0], True), scene.caption
            relating += 1
    assert counting >= 5
    assert relating >= 2
    assert len({scene.caption for scene in some}) > 35


def test_the_data_set(monkeypatch):
    monkeypatch.setattr(scenes, "NUM_TRAIN", 6)
    monkeypatch.setattr(scenes, "NUM_TEST", 3)
    train, test, labels = detection_data.load_dataset("scenes", 0.2)
    assert (len(train), len(test), labels) == (6, 3, LABELS)
    assert len({sample.name for sample in (*train, *test)}) == 9
    for sample in (*train, *test):
        assert sample.size == (sample.source.shape[1], sample.source.shape[0])
        assert (sample.boxes >= 0).all()
        assert (sample.boxes[:, 2:] <= sample.size).all()
    assert not any(np.array_equal(one.source, other.source) for one, other in pairwise((*train, *test)))

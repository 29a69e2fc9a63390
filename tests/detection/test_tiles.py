"""Detection in tiles of images of filled rectangles, which a detector without weights finds exactly."""

import pytest
import torch

from fukami.detection import tiles
from fukami.detection.task import DetectionTask
from fukami.engine.runtime import Runtime
from fukami.image.transform import ResizeTransform
from fukami.layers.detection_types import Detections
from fukami.models import faster_rcnn_vgg16


def detect_rectangles(images):
    """Detect each gray level as the bounding box of its pixels; its class is the level modulo 2, its score level/100.

    Objects of less than a tenth of the image's width are overlooked, as by a detector of resized images.
    """
    for image in images:
        boxes, classes, scores = [], [], []
        for level in image[0].unique().tolist():
            rows, columns = (image[0] == level).nonzero(as_tuple=True)
            box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            if level and box[2] - box[0] >= image.shape[2] / 10:
                boxes.append([float(side) for side in box])
                classes.append(level % 2)
                scores.append(level / 100)
        yield Detections(torch.tensor(boxes).view(-1, 4), torch.tensor(classes).long(), torch.tensor(scores))


def detect(rectangles, size=(300, 400), tile_size=100):
    """Draw rectangles ``level: (left, top, right, bottom)`` and return the detections by level."""
    image = torch.zeros(3, *size, dtype=torch.uint8)
    for level, (left, top, right, bottom) in rectangles.items():
        image[:, top:bottom, left:right] = level
    found = tiles.detect_in_tiles(image, tile_size, 4, detect_rectangles)
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    levels = (100 * found.scores).round().int().tolist()
    assert [level % 2 for level in levels] == found.classes.tolist()
    return list(zip(levels, [tuple(box) for box in found.boxes.tolist()], strict=True))


def test_small_objects_are_found_once_at_their_position():
    """Also in an overlap, across the edge of a tile, and in the corners of the image, whose edges cut nothing."""
    rectangles = {
        90: (20, 30, 35, 45), 80: (80, 80, 95, 95), 70: (89, 10, 112, 25), 60: (385, 285, 400, 300),
        50: (0, 285, 15, 300),
    }  # fmt: skip
    assert detect(rectangles) == list(rectangles.items())


def test_merged_detections_do_not_depend_on_the_chunks(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    corners = 100 * torch.rand(300, 2, generator=generator)
    boxes = torch.cat([corners, corners + 5 + 20 * torch.rand(300, 2, generator=generator)], 1)
    found = Detections(boxes, torch.arange(300) % 2, torch.rand(300, generator=generator))
    is_cut = torch.arange(300) % 3 == 0
    expected = tiles.merge_detections(found, is_cut)
    monkeypatch.setattr(tiles, "CHUNK_SIZE", 7)
    for value, other in zip(tiles.merge_detections(found, is_cut), expected, strict=True):
        assert torch.equal(value, other)
    assert len(expected.boxes) < 300


def test_an_object_larger_than_a_tile_is_found_once():
    assert detect({90: (40, 50, 260, 250)}) == [(90, (40, 50, 260, 250))]


def test_objects_of_two_classes_do_not_suppress_each_other():
    """The frame around a rectangle of another class has nearly the same box."""
    rectangles = {41: (20, 20, 50, 50), 40: (21, 21, 49, 49)}
    assert detect(rectangles) == list(rectangles.items())
    rectangles = {42: (20, 20, 50, 50), 40: (21, 21, 49, 49)}
    assert detect(rectangles) == [(42, (20, 20, 50, 50))]


@pytest.mark.parametrize("size", [(60, 400), (300, 60)])
def test_an_image_may_be_narrower_than_a_tile(size):
    box = (25, 20, 50, 45)
    assert detect({30: box}, size) == [(30, box)]


def test_a_detector_predicts_large_images_in_tiles(monkeypatch):
    """Only with a tile size, and only images that are larger."""
    task = DetectionTask(faster_rcnn_vgg16(2, width_multiplier=1 / 16, hidden=8), ("a", "b"), ResizeTransform(64, 96))
    task.setup(Runtime.start("cpu", "float32"))
    shapes = []

    def detect_and_record(images):
        shapes.append(tuple(images.shape))
        return detect_rectangles(images)

    monkeypatch.setattr(task, "_resize_and_detect", detect_and_record)
    image = torch.zeros(1, 3, 120, 160, dtype=torch.uint8)
    image[:, :, 30:42, 20:32] = 88
    assert task.predict_batch(image) == [{"width": 160, "height": 120, "boxes": []}]
    assert shapes == [(1, 3, 120, 160)]
    task.tile_size = 160
    task.predict_batch(image)
    assert shapes == [(1, 3, 120, 160)] * 2
    task.tile_size = 80
    assert task.predict_batch(image)[0]["boxes"] == [{"label": "a", "score": 0.88, "box": [20, 30, 32, 42]}]
    assert shapes[3:] == [(6, 3, 80, 80)]

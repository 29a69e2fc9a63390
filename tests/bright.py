"""Detector without a network for tests: it detects the bright pixels of an image as a lamp."""

from dataclasses import dataclass

import numpy as np
import torch

from fukami import Data, Recipe, Task
from fukami.detection.metrics import DetectionResults, GroundTruth, Prediction
from fukami.image import draw as image_draw

LABELS = ("lamp", "night")


class Bright(Task):
    """Task that predicts the bounding box of all pixels above 128."""

    labels = LABELS

    def compute_loss(self, batch):
        return self.training_model(torch.ones(2, 1)).square().mean(), {}

    def evaluate(self, batches):
        results = DetectionResults(LABELS)
        for index in range(3):
            box = [[0, 0, 40 - 10 * index, 40]]
            results.update(index, Prediction(box, [0], [0.9 - 0.1 * index]), GroundTruth([[0, 0, 40, 40]], [0], [0]))
        return results.compute_metrics()

    def prepare_image(self, image):
        return torch.from_numpy(np.array(image.convert("L")))[None]

    def predict_batch(self, images):
        return [self._format_prediction(image) for (image,) in images.numpy()]

    def _format_prediction(self, image):
        rows, columns = np.nonzero(image > 128)
        boxes = []
        if len(rows):
            box = [float(edge) for edge in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)]
            boxes.append({"label": "lamp", "score": 0.9, "box": box})
        height, width = image.shape
        return {"width": width, "height": height, "boxes": boxes}

    def draw(self, image, prediction):
        return image_draw.draw_boxes(image, prediction["boxes"], LABELS)


@dataclass(frozen=True, kw_only=True)
class Lamps(Recipe):
    """Recipe of the lamp detector."""

    def load_data(self):
        batch = torch.zeros(2, 1)
        return Data([batch, batch], [batch], LABELS)

    def build_task(self, labels):
        return Bright(torch.nn.Linear(1, 1), epochs=2)

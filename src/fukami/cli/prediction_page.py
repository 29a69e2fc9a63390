"""The output folder of ``fukami predict --out``: an annotated image or video for each input, and an HTML page."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self
from urllib.parse import quote

from PIL.Image import Image

from fukami import atomic_file
from fukami.cli.inputs import OutputFolder
from fukami.engine.html import render_page
from fukami.engine.prediction import Prediction
from fukami.engine.task import Task
from fukami.errors import Error
from fukami.image.channels import build_preview
from fukami.image.video import Frame, VideoWriter

MAX_CLASSES_IN_CAPTION = 3


class DrawnPrediction(NamedTuple):
    """Entry of the page: the input file, the drawn image or video, and the highest score of each predicted class."""

    file: str
    path: Path
    scores: dict[str, float]
    caption: str


class PredictionPage:
    """Folder of drawn predictions and the page ``index.html``; without a folder, nothing is drawn."""

    def __init__(self, folder: Path | None, task: Task, files: Sequence[str]) -> None:
        self.task = task
        self.output = OutputFolder(folder, files) if folder else None
        self.drawn: list[DrawnPrediction] = []

    def __enter__(self) -> Self:
        return self

    def add(self, image: Image, prediction: Prediction) -> None:
        """Draw the prediction for an image, which was read from ``prediction["file"]``."""
        if self.output:
            from fukami.segmentation.task import SegmentationTask

            path = self.output.reserve_path(prediction["file"], "png")
            drawn = self.task.draw(image, prediction)
            try:
                drawn.save(path)
            except OSError as error:
                raise Error(f"{path} cannot be written ({error.strerror or error}); use another --out") from error
            scores = get_scores(prediction)
            caption = str(prediction.get("caption", format_scores(scores)))
            self.drawn.append(DrawnPrediction(prediction["file"], path, scores, caption))
            if isinstance(self.task, SegmentationTask):
                class_map = self.task.render_class_map(prediction)
                class_map.save(self.output.reserve_path(path.name, "png", ending="-classes"))

    @contextlib.contextmanager
    def record_video(self, file: str) -> Iterator[Callable[[Frame, Prediction], None]]:
        """Yield a function that draws the prediction of a frame; the drawn frames become a video."""
        if self.output is None:
            yield lambda frame, prediction: None
            return
        path = self.output.reserve_path(file, "mp4")
        scores: dict[str, float] = {}
        with VideoWriter(path) as writer:

            def add_frame(frame: Frame, prediction: Prediction) -> None:
                writer.add(self.task.draw(build_preview(frame.image), prediction), frame.timestamp, frame.frame_rate)
                for label, score in get_scores(prediction).items():
                    scores[label] = max(score, scores.get(label, 0.0))

            yield add_frame
        if path.exists():  # a video without frames is not written
            self.drawn.append(DrawnPrediction(file, path, scores, format_scores(scores)))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.output:
            page = render_page("predictions.html", **build_values(self.drawn))
            atomic_file.write_file(self.output.folder / "index.html", page)


def build_values(drawn: Sequence[DrawnPrediction]) -> dict[str, object]:
    """Build the values of the page's template: the entries and the classes of the filter."""
    entries = [
        {
            "name": entry.file,
            "url": quote(os.fsencode(entry.path.name)),
            "scores": json.dumps(entry.scores),
            "caption": entry.caption,
        }
        for entry in drawn
    ]
    return {"files": entries, "labels": sorted({label for entry in drawn for label in entry.scores})}


def get_scores(prediction: Prediction) -> dict[str, float]:
    """Return the highest score of each predicted class: a probability, a box's score, or a fraction of the image."""
    if "label" in prediction:
        return {prediction["label"]: prediction.get("probability", 1.0)}
    scores: dict[str, float] = dict(prediction.get("fractions", {}))
    for box in prediction.get("boxes", ()):
        scores[box["label"]] = max(box["score"], scores.get(box["label"], 0.0))
    return scores


def format_scores(scores: dict[str, float]) -> str:
    """Format the classes of the highest scores."""
    ranked = sorted(scores.items(), key=lambda item: -item[1])
    return ", ".join(f"{label} {score:.1%}" for label, score in ranked[:MAX_CLASSES_IN_CAPTION])

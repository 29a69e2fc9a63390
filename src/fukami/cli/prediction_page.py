"""The output folder of ``fukami predict --out``: an annotated image or video for each input, and an HTML page."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from PIL.Image import Image

from fukami.cli.inputs import OutputFolder
from fukami.engine import checkpoint
from fukami.engine.html import render_page
from fukami.engine.prediction import Prediction
from fukami.engine.task import Task
from fukami.image.video import Frame, VideoWriter


class PredictionPage:
    """Folder of drawn predictions and the page ``index.html``; without a folder, nothing is drawn."""

    def __init__(self, folder: Path | None, task: Task, files: Sequence[str]) -> None:
        self.task = task
        self.output = OutputFolder(folder, files) if folder else None
        self.file_names: list[str] = []

    def __enter__(self) -> Self:
        return self

    def add(self, image: Image, prediction: Prediction) -> None:
        """Draw the prediction for an image, which was read from ``prediction["file"]``."""
        if self.output:
            from fukami.segmentation.task import SegmentationTask

            path = self.output.reserve_path(prediction["file"], "png")
            self.task.draw(image, prediction).save(path)
            self.file_names.append(path.name)
            if isinstance(self.task, SegmentationTask):
                class_map = self.task.render_class_map(prediction)
                class_map.save(self.output.reserve_path(f"{path.stem}-classes", "png"))

    @contextlib.contextmanager
    def record_video(self, file: str) -> Iterator[Callable[[Frame, Prediction], None]]:
        """Yield a function that draws the prediction of a frame; the drawn frames become a video."""
        if self.output is None:
            yield lambda frame, prediction: None
            return
        path = self.output.reserve_path(file, "mp4")
        with VideoWriter(path) as writer:
            yield lambda frame, prediction: writer.add(
                self.task.draw(frame.image, prediction), frame.timestamp, frame.frame_rate
            )
        if path.exists():  # a video without frames is not written
            self.file_names.append(path.name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.output:
            files = [(name, quote(os.fsencode(name))) for name in self.file_names]
            page = render_page("predictions.html", files=files)
            checkpoint.write_file(self.output.folder / "index.html", page)

"""The drawn answers of ``fukami predict --out``: an image or a video for each input, and one page of them all."""

import contextlib
import html
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from fukami.cli.inputs import OutputFolder
from fukami.engine import checkpoint
from fukami.engine.report import PAGE_TEMPLATE
from fukami.engine.task import Task
from fukami.image.video import Frame, VideoWriter


class PredictionPage:
    """A folder of drawn answers for files, which ``index.html`` shows; without a folder, nothing is drawn."""

    def __init__(self, folder: Path | None, task: Task, files: Sequence[str]) -> None:
        self.task = task
        self.output = OutputFolder(folder, files) if folder else None
        self.file_names: list[str] = []

    def __enter__(self) -> Self:
        return self

    def add(self, answer: dict[str, Any]) -> None:
        """Draw the answer for the image ``answer["file"]``."""
        if self.output:
            place = self.output.reserve_path(answer["file"], "png")
            self.task.draw_prediction(Path(answer["file"]), answer).save(place)
            self.file_names.append(place.name)
            for name, image in self.task.render_maps(answer).items():
                image.save(self.output.reserve_path(f"{place.stem}-{name}", "png"))

    @contextlib.contextmanager
    def record_video(self, file: str) -> Iterator[Callable[[Frame, dict[str, Any]], None]]:
        """What draws the answer for a frame of the video ``file``; the frames drawn become a video."""
        if self.output is None:
            yield lambda frame, answer: None
            return
        place = self.output.reserve_path(file, "mp4")
        with VideoWriter(place) as film:
            yield lambda frame, answer: film.add(
                self.task.draw_prediction(frame.image, answer), frame.timestamp, frame.frame_rate
            )
        if place.exists():  # there is none of a video without a frame
            self.file_names.append(place.name)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.output:
            sections = (f"<h2>{html.escape(name)}</h2>{_render_media(name)}" for name in self.file_names)
            body = f"<h1>{len(self.file_names)} answers, and what the network saw</h1>\n" + "\n".join(sections)
            page = PAGE_TEMPLATE.format(title="fukami predict", body=body).encode(errors="backslashreplace")
            checkpoint.write_file(self.output.folder / "index.html", page)


def _render_media(name: str) -> str:
    """An image, or a video with its controls."""
    if name.endswith(".mp4"):
        return f'<video src="{quote(name)}" controls loop muted style="max-width: 100%"></video>'
    return f'<img src="{quote(name)}" alt="">'

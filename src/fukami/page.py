"""The drawn answers of ``fukami predict --out``: a picture or a video for each input, and one page of them all."""

import contextlib
import html
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from fukami import checkpoint
from fukami.report import PAGE
from fukami.task import Task
from fukami.video import Frame, Writer


class Page:
    """A folder of drawn answers that ``index.html`` shows; without a folder, nothing is drawn."""

    def __init__(self, folder: Path | None, task: Task) -> None:
        self.folder, self.task = folder, task
        self.shown: list[str] = []

    def __enter__(self) -> Self:
        if self.folder:
            self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def add(self, answer: dict[str, Any]) -> None:
        """Draw the answer for the picture ``answer["file"]``."""
        if self.folder:
            name = self._name(self.folder, answer["file"], "png")
            self.task.draw(Path(answer["file"]), answer).save(self.folder / name)
            self.shown.append(name)

    @contextlib.contextmanager
    def film(self, file: str) -> Iterator[Callable[[Frame, dict[str, Any]], None]]:
        """What draws the answer for a frame of the video ``file``; the frames drawn become a video."""
        if self.folder is None:
            yield lambda frame, answer: None
            return
        name = self._name(self.folder, file, "mp4")
        with Writer(self.folder / name) as film:
            yield lambda frame, answer: film.add(self.task.draw(frame.picture, answer), frame.seconds, frame.rate)
        if (self.folder / name).exists():  # there is none of a video without a frame
            self.shown.append(name)

    def _name(self, folder: Path, file: str, suffix: str) -> str:
        """A name in the folder that no other answer has, and not the file itself."""
        stem = Path(file).stem
        names = itertools.chain([f"{stem}.{suffix}"], (f"{stem}-{n}.{suffix}" for n in itertools.count(2)))
        own = Path(file).resolve()
        return next(name for name in names if name not in self.shown and (folder / name).resolve() != own)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.folder:
            sections = (f"<h2>{html.escape(name)}</h2>{_element(name)}" for name in self.shown)
            body = f"<h1>{len(self.shown)} answers, and what the network saw</h1>\n" + "\n".join(sections)
            checkpoint.write(self.folder / "index.html", PAGE.format(title="fukami predict", body=body).encode())


def _element(name: str) -> str:
    """A picture, or a video with its controls."""
    if name.endswith(".mp4"):
        return f'<video src="{quote(name)}" controls loop muted style="max-width: 100%"></video>'
    return f'<img src="{quote(name)}" alt="">'

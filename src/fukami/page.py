"""The drawn answers of ``fukami predict --out``: a picture for each input, and one page of them all."""

import html
import itertools
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from fukami import checkpoint
from fukami.report import PAGE
from fukami.task import Task


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
            source = Path(answer["file"])
            names = itertools.chain([f"{source.stem}.png"], (f"{source.stem}-{n}.png" for n in itertools.count(2)))
            name = next(name for name in names if name not in self.shown)
            self.task.draw(source, answer).save(self.folder / name)
            self.shown.append(name)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.folder:
            images = (f'<h2>{html.escape(name)}</h2><img src="{quote(name)}" alt="">' for name in self.shown)
            body = f"<h1>{len(self.shown)} answers, and what the network saw</h1>\n" + "\n".join(images)
            checkpoint.write(self.folder / "index.html", PAGE.format(title="fukami predict", body=body).encode())

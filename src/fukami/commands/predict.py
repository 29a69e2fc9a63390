"""fukami predict."""

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fukami.answers import line
from fukami.cli import Answered, parse
from fukami.errors import Error, UsageError

if TYPE_CHECKING:
    from fukami.page import Page
    from fukami.task import Task

PICTURES, FRAMES = 256, 8  # that are answered for at a time; frames are in memory


def command(arguments: list[str]) -> None:
    """Answer for each picture or frame of a video: fukami predict RUN... FILE... [--every N] [--out DIR]."""
    import tyro

    def run(
        inputs: tyro.conf.Positional[tuple[str, ...]],
        out: Path | None = None,
        every: int = 1,
        device: str = "auto",
        precision: Answered = "auto",
        vote: bool = False,
        views: int = 1,
    ) -> None:
        """Answer for each picture, and for each frame of a video; prints one JSON object for each.

        Args:
            inputs: First the runs (folders, or names of shipped weights; several are an ensemble), then the pictures,
                videos, and folders of them.
            out: Folder for drawn answers and a page of them.
            every: Of a video, answer for every so many frames.
            device: auto, cpu, cuda, cuda:1 or mps.
            precision: What is computed, and with how many bits. auto: float32, or what the run was exported to.
            vote: The majority of the runs decides, and not the average of their probabilities.
            views: Test-time augmentation: answers are averaged over so many views of each picture.
        """
        from fukami import checkpoint, video
        from fukami.page import Page

        if every < 1:
            raise UsageError(f"--every should be a whole number from 1 on, not {every}")
        runs, files = checkpoint.split(inputs)
        task = checkpoint.load(*runs, device=device, precision=precision, vote=vote).views(views)
        failed = 0
        with Page(out, task, files) as page:
            for films, group in itertools.groupby(files, video.is_video):
                if films:
                    failed += sum(_film(task, file, every, page) for file in group)
                else:
                    failed += _pictures(task, list(group), page)
        if failed:
            raise Error(f"{failed} of {len(files)} files could not be answered")

    parse(run, arguments, "fukami predict")


def _pictures(task: "Task", files: Sequence[str], page: "Page") -> int:
    """Answer for pictures; returns how many could not be read."""
    failed = 0
    for at in range(0, len(files), PICTURES):
        for answer in task.predict(files[at : at + PICTURES]):
            if "error" in answer:
                failed += 1
                print(f"fukami: {answer['error']}", file=sys.stderr)
            else:
                print(line(answer), flush=True)
                page.add(answer)
    return failed


def _film(task: "Task", file: str, every: int, page: "Page") -> bool:
    """Answer for every so many frames of a video; returns whether it, or one of them, could not be answered."""
    from fukami import video

    failed = False
    chunks = video.chunks(video.frames(file, every), FRAMES)
    with page.film(file) as show:
        while True:
            try:
                frames = next(chunks, [])
            except Error as error:
                print(f"fukami: {error}", file=sys.stderr)
                return True
            if not frames:
                return failed
            for frame, answer in zip(frames, task.predict([frame.picture for frame in frames]), strict=True):
                if "error" in answer:
                    failed = True
                    print(f"fukami: {file}, frame {frame.number}: {answer['error']}", file=sys.stderr)
                else:
                    about = {"file": file, "frame": frame.number, "seconds": round(frame.seconds, 6)}
                    print(line({**about, **answer}), flush=True)
                    show(frame, answer)

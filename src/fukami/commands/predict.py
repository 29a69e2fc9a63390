"""fukami predict."""

import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fukami.answers import line
from fukami.cli import Answered, parse
from fukami.errors import Error, UsageError

if TYPE_CHECKING:
    from fukami.page import Page
    from fukami.task import Task
    from fukami.video import Frame

PICTURES, FRAMES = 256, 8  # that are answered for at a time; frames are in memory


def command(arguments: list[str]) -> None:
    """Answer for each picture or frame of a video: fukami predict RUN... FILE... [--every N] [--out DIR]."""
    import tyro

    def run(
        inputs: tyro.conf.Positional[tuple[str, ...]],
        out: Path | None = None,
        every: int = 1,
        film: float = 0.0,
        device: str = "auto",
        precision: Answered = "auto",
        vote: bool = False,
        views: int = 1,
        set: tuple[str, ...] = (),
    ) -> None:
        """Answer for each picture, and for each frame of a video; prints one JSON object for each.

        Args:
            inputs: First the runs (folders, or names of shipped weights; several are an ensemble), then the pictures,
                videos, and folders of them.
            out: Folder for drawn answers and a page of them.
            every: Of a video, answer for every so many frames.
            film: The pictures are the frames of one film, so many a second; they are drawn as a video.
            device: auto, cpu, cuda, cuda:1 or mps.
            precision: What is computed, and with how many bits. auto: float32, or what the run was exported to.
            vote: The majority of the runs decides, and not the average of their probabilities.
            views: Test-time augmentation: answers are averaged over so many views of each picture.
            set: Fields of the recipe that decide how it answers, such as beams=3.
        """
        from fukami import checkpoint, video
        from fukami.page import Page

        if every < 1:
            raise UsageError(f"--every should be a whole number from 1 on, not {every}")
        if not 0 <= film <= 1000:
            raise UsageError(f"--film should be frames a second, up to 1000, not {film:g}")
        runs, files = checkpoint.split(inputs)
        changed = checkpoint.changes(runs, set)
        task = checkpoint.load(*runs, device=device, precision=precision, vote=vote, changes=changed).views(views)
        failed = 0
        with Page(out, task, files) as page:
            for films, group in itertools.groupby(files, video.is_video):
                if films:
                    for file in group:
                        failed += _film(task, file, video.frames(file, every), page)
                elif film:
                    pictures = list(group)
                    name = Path(pictures[0]).resolve().parent.name or "film"
                    broken: list[Error] = []
                    failed += _film(task, name, video.still(pictures, film, broken), page)
                    failed += len(broken)
                    for error in broken:
                        print(f"fukami: {error}", file=sys.stderr)
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


def _film(task: "Task", file: str, frames: "Iterator[Frame]", page: "Page") -> int:
    """Answer for the frames of a film, and tell how many a second; returns 1 if one could not be answered."""
    from fukami import video

    failed, count, spent, began = 0, 0, 0.0, time.perf_counter()
    chunks = video.chunks(frames, FRAMES)
    with page.film(file) as show:
        while True:
            try:
                some = next(chunks, [])
            except Error as error:
                print(f"fukami: {error}", file=sys.stderr)
                return 1
            if not some:
                break
            asked = time.perf_counter()
            answers = task.predict([frame.picture for frame in some])
            spent += time.perf_counter() - asked
            count += len(some)
            for frame, answer in zip(some, answers, strict=True):
                if "error" in answer:
                    failed = 1
                    print(f"fukami: {file}, frame {frame.number}: {answer['error']}", file=sys.stderr)
                else:
                    about = {"file": frame.file or file, "frame": frame.number, "seconds": round(frame.seconds, 6)}
                    print(line({**about, **answer}), flush=True)
                    show(frame, answer)
    if count:
        whole = time.perf_counter() - began
        rates = f"{count / spent:.1f} frames a second, {count / whole:.1f} with reading and drawing"
        print(f"{file}: {count} frames answered at {rates}", file=sys.stderr)
    return failed

"""fukami predict."""

import json
import sys
from pathlib import Path

from fukami.cli import Answered, parse
from fukami.errors import Error


def command(arguments: list[str]) -> None:
    """Answer for each picture: fukami predict RUN... FILE... [--out DIR]."""
    import tyro

    def run(
        inputs: tyro.conf.Positional[tuple[str, ...]],
        out: Path | None = None,
        device: str = "auto",
        precision: Answered = "auto",
        vote: bool = False,
        views: int = 1,
    ) -> None:
        """Answer for each picture; prints one JSON object for each.

        Args:
            inputs: First the runs (folders, or names of shipped weights; several are an ensemble), then the pictures.
            out: Folder for drawn answers and a page of them that shows what the network saw.
            device: auto, cpu, cuda, cuda:1 or mps.
            precision: What is computed, and with how many bits. auto: float32, or what the run was exported to.
            vote: The majority of the runs decides, and not the average of their probabilities.
            views: Test-time augmentation: answers are averaged over so many views of each picture.
        """
        from fukami import checkpoint
        from fukami.page import Page

        runs, files = checkpoint.split(inputs)
        task = checkpoint.load(*runs, device=device, precision=precision, vote=vote).views(views)
        failed = 0
        with Page(out, task) as page:
            for at in range(0, len(files), 256):
                for answer in task.predict(files[at : at + 256]):
                    if "error" in answer:
                        failed += 1
                        print(f"fukami: {answer['error']}", file=sys.stderr)
                    else:
                        print(json.dumps(answer, ensure_ascii=False), flush=True)
                        page.add(answer)
        if failed:
            raise Error(f"{failed} of {len(files)} files could not be answered")

    parse(run, arguments, "fukami predict")

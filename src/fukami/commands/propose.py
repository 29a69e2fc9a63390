"""fukami propose."""

import itertools
import json
import sys
from pathlib import Path
from typing import Literal

from fukami.cli import parse
from fukami.errors import Error, UsageError


def command(arguments: list[str]) -> None:
    """Boxes that may hold an object: fukami propose PICTURE... [--mode M] [--stages] [--out DIR]."""
    import tyro

    def run(
        pictures: tyro.conf.Positional[tuple[Path, ...]],
        mode: Literal["fast", "quality"] = "fast",
        count: int = 100,
        stages: tyro.conf.FlagCreatePairsOff[bool] = False,
        out: Path = Path("proposals"),
    ) -> None:
        """Find boxes that may hold an object, and draw them; prints one JSON object for each picture.

        The method is Selective Search; its first call on a machine compiles it, which takes some seconds.

        Args:
            pictures: Files; a folder stands for all files in it.
            mode: quality finds more boxes, and takes three times as long.
            count: Boxes to print and to draw, the likeliest first.
            stages: Draw what they are made from, too: the segmentation, and what grouping leaves of it.
            out: Folder for what is drawn, or for one picture a .png file.
        """
        files = [str(file) for path in pictures for file in _files(path)]
        if not files:
            raise UsageError("give at least one picture: a file, or a folder that has some")
        if count < 1:
            raise UsageError(f"--count should be at least 1, not {count}")
        single = out.suffix.lower() == ".png"
        if single and len(files) > 1:
            raise UsageError(f"--out should name a folder for {len(files)} pictures, not the file {out}")

        import numpy as np

        from fukami import image
        from fukami.proposals import drawing, selective_search

        folder = out.parent if single else out
        folder.mkdir(parents=True, exist_ok=True)
        drawn: set[str] = set()
        failed = 0
        for file in files:
            try:
                picture = image.read(file).convert("RGB")
            except Error as error:
                failed += 1
                print(f"fukami: {error}", file=sys.stderr)
                continue
            boxes = selective_search.propose(np.asarray(picture), mode)
            stem = Path(file).stem
            names = itertools.chain([f"{stem}.png"], (f"{stem}-{n}.png" for n in itertools.count(2)))
            place = out if single else folder / next(name for name in names if name not in drawn)
            drawn.add(place.name)
            page = drawing.stages(picture, boxes, mode, count) if stages else drawing.answer(picture, boxes, count)
            page.save(place)
            first = boxes[:count].astype(int).tolist()
            answer = {"file": file, "count": len(boxes), "boxes": first, "drawn": str(place)}
            print(json.dumps(answer, ensure_ascii=False), flush=True)
        if failed:
            raise Error(f"{failed} of {len(files)} files could not be answered")

    parse(run, arguments, "fukami propose")


def _files(path: Path) -> list[Path]:
    """The file itself, or all files in a folder."""
    if not path.is_dir():
        return [path]
    return sorted(each for each in path.rglob("*") if each.is_file() and not each.name.startswith("."))

"""fukami propose."""

import sys
from pathlib import Path
from typing import Literal

from fukami.cli import inputs as cli_inputs
from fukami.cli.main import run_cli
from fukami.errors import Error, UsageError, convert_memory_errors


def command(arguments: list[str]) -> None:
    """Compute region proposals by Selective Search."""
    import tyro

    def run(
        images: tyro.conf.Positional[tuple[Path, ...]],
        mode: Literal["fast", "quality"] = "fast",
        max_boxes: int = 100,
        stages: tyro.conf.FlagCreatePairsOff[bool] = False,
        out: Path = Path("proposals"),
    ) -> None:
        """Find boxes that may hold an object, and draw them; prints one JSON object for each image.

        The method is Selective Search; its first call on a machine compiles it, which takes some seconds.

        Args:
            images: Files; a folder stands for all files in it.
            mode: quality finds more boxes, and takes three times as long.
            max_boxes: Boxes to print and to draw, the likeliest first.
            stages: Draw what they are made from, too: the segmentation, and what grouping leaves of it.
            out: Folder for what is drawn, or for one image a .png file.
        """
        files = [file for path in images for file in cli_inputs.list_files(path)]
        if not files:
            raise UsageError("give at least one image: a file, or a folder that has some")
        if max_boxes < 1:
            raise UsageError(f"--max-boxes should be at least 1, not {max_boxes}")
        single = out.suffix.lower() == ".png"
        if single and len(files) > 1:
            raise UsageError(f"--out should name a folder for {len(files)} images, not the file {out}")

        import numpy as np

        from fukami.image import io as image_io
        from fukami.selective_search import plots as selective_search_plots
        from fukami.selective_search import search

        if single and out.resolve() == Path(files[0]).resolve():
            raise UsageError(f"--out {out} would overwrite the image; give another file, or a folder")
        drawn = cli_inputs.OutputFolder(out.parent if single else out, files)
        failed = 0
        for file in files:
            try:
                with convert_memory_errors(file):
                    image = image_io.read_image(file).convert("RGB")
                    boxes = search.propose_regions(np.asarray(image), mode)
            except Error as error:
                failed += 1
                print(f"fukami: {error}", file=sys.stderr)
                continue
            place = out if single else drawn.reserve_path(file, "png")
            page = (
                selective_search_plots.draw_stages(image, boxes, mode, max_boxes)
                if stages
                else selective_search_plots.draw_proposals(image, boxes, max_boxes)
            )
            page.save(place)
            first = boxes[:max_boxes].astype(int).tolist()
            answer = {"file": file, "count": len(boxes), "boxes": first, "drawn": str(place)}
            print(cli_inputs.format_json_line(answer), flush=True)
        if failed:
            raise Error(f"{failed} of {len(files)} files could not be answered")

    run_cli(run, arguments, "fukami propose")

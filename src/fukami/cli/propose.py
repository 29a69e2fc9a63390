"""Command ``fukami propose``."""

from pathlib import Path
from typing import Literal

from fukami.cli import inputs as cli_inputs
from fukami.cli.arguments import run_cli
from fukami.data.files import list_inputs
from fukami.errors import Error, UsageError, convert_memory_errors
from fukami.image import io as image_io
from fukami.progress import print_line, track

MAX_PIXELS = 16_000_000  # the segmentation and the grouping need 200 bytes per pixel


def command(arguments: list[str]) -> None:
    """Compute region proposals by Selective Search."""
    import tyro

    def run(
        images: tyro.conf.Positional[tuple[Path, ...]],
        mode: Literal["fast", "quality"] = "fast",
        max_boxes: int = 100,
        stages: bool = False,
        out: Path = Path("proposals"),
    ) -> None:
        """Compute and draw region proposals by Selective Search. Prints one JSON object for each image.

        The first call on a machine compiles the code, which takes some seconds.

        Args:
            images: Image files, and folders of them.
            mode: quality finds more boxes but takes three times as long.
            max_boxes: Maximum number of boxes to print and draw, best first.
            stages: Also draw the initial segmentation and the stages of the grouping.
            out: Folder for the drawings, or a .png file for one image.
        """
        files = [file for path in images for file in list_inputs(path)]
        if not files:
            raise UsageError("specify at least one image: a file, or a folder with images")
        if max_boxes < 1:
            raise UsageError(f"--max-boxes should be at least 1, not {max_boxes}")
        single = out.suffix.lower() == ".png"
        if single and len(files) > 1:
            raise UsageError(f"--out should name a folder for {len(files)} images, not the file {out}")

        import numpy as np

        from fukami.selective_search import plots as selective_search_plots
        from fukami.selective_search import search

        if single and out.resolve() == Path(files[0]).resolve():
            raise UsageError(f"--out {out} would overwrite the image; use another file, or a folder")
        output = cli_inputs.OutputFolder(out.parent if single else out, files)
        failed = 0
        for file in track(files, "propose", unit="images"):
            try:
                with convert_memory_errors(file):
                    image = image_io.read_image(file, max_pixels=MAX_PIXELS).convert("RGB")
                    boxes = search.propose_regions(np.asarray(image), mode)
            except Error as error:
                failed += 1
                print_line(f"fukami: {error}")
                continue
            figure_path = out if single else output.reserve_path(file, "png")
            figure = (
                selective_search_plots.draw_stages(image, boxes, mode, max_boxes)
                if stages
                else selective_search_plots.draw_proposals(image, boxes, max_boxes)
            )
            figure.save(figure_path)
            top_boxes = boxes[:max_boxes].astype(int).tolist()
            prediction = {"file": file, "count": len(boxes), "boxes": top_boxes, "figure": str(figure_path)}
            print(cli_inputs.format_json_line(prediction), flush=True)
        if failed:
            raise Error(f"{failed} of {len(files)} files could not be processed")

    run_cli(run, arguments, "fukami propose")

"""Draw the figures of docs/landmarks/selective-search.md, on an image of scikit-image.

python docs/figures/scripts/selective_search.py
"""

import sys
from pathlib import Path

from PIL import Image
from skimage.data import coffee

from fukami.selective_search import grouping, search
from fukami.selective_search import plots as selective_search_plots

HERE = Path(__file__).parents[1]
SIDE = 380  # longer side of a panel, in pixels


def save(panels: list[tuple[Image.Image, str]], name: str) -> None:
    """Save panels in one row, with a palette of 128 colors."""
    path = HERE / f"selective-search-{name}.png"
    sheet = selective_search_plots.arrange_panels(panels, len(panels))
    sheet.quantize(128, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(path, optimize=True)
    sys.stdout.write(f"{path.name}: {path.stat().st_size:,} bytes\n")


def main() -> None:
    """Draw the stages, one file each."""
    pixels = coffee()
    image = Image.fromarray(pixels)
    panels = []
    for scale in (50, 300):
        labels = search.segment_image(pixels, scale)
        panels.append(
            (selective_search_plots.draw_regions(image, labels, SIDE), f"k = {scale}: {labels.max() + 1} regions")
        )
    save(panels, "segmentation")

    labels = search.segment_image(pixels, 50)
    regions = grouping.build_regions(labels, grouping.compute_features(search.convert_color_space(pixels, "hsv")))
    _, merges = grouping.group_regions(regions, "CTSF")
    hierarchy = [(selective_search_plots.merge_regions(labels, merges, count), count) for count in (100, 12)]
    save(
        [
            (selective_search_plots.draw_regions(image, regions, SIDE), f"{count} regions remain")
            for regions, count in hierarchy
        ],
        "grouping",
    )

    boxes = search.propose_regions(pixels)
    panels = [
        (selective_search_plots.draw_ranked_boxes(image, boxes, count, SIDE), f"the first {count} of {len(boxes):,}")
        for count in (20, 100)
    ]
    save(panels, "boxes")


if __name__ == "__main__":
    main()

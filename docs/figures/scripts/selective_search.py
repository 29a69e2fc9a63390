"""Draw selective-search-segmentation, -grouping and -boxes.webp of docs/landmarks/selective-search.md.

    python docs/figures/scripts/selective_search.py [--index N]

It needs voc-animals in $FUKAMI_DATA, and takes ten seconds.
"""

import numpy as np
import torch
from images import create_parser, draw_outlines, save_image
from PIL import Image, ImageDraw, ImageFont

from fukami.detection import data as detection_data
from fukami.image import draw as image_draw
from fukami.image import io as image_io
from fukami.layers import boxes
from fukami.selective_search import grouping, search
from fukami.selective_search.plots import arrange_panels, draw_regions, merge_regions

PANEL_WIDTH = 482  # pixels; two panels fit into 1,000
NUM_BOXES = 12
OBJECT_COLOR, PROPOSAL_COLOR = "#2b8a3e", "#d9480f"


def draw_best_proposals(image: Image.Image, objects: np.ndarray, proposals: np.ndarray) -> Image.Image:
    """Draw the objects, and for each the proposal with the largest overlap and its IoU."""
    overlaps, indices = boxes.compute_iou(torch.from_numpy(proposals), torch.from_numpy(objects)).max(0)
    best = proposals[indices.numpy()]
    colors = [PROPOSAL_COLOR] * len(best) + [OBJECT_COLOR] * len(objects)
    drawing = draw_outlines(image, np.concatenate([best, objects]), colors, PANEL_WIDTH)
    draw, font = ImageDraw.Draw(drawing), ImageFont.load_default(16)
    for (left, top, _, _), overlap in zip(
        (best * (PANEL_WIDTH / image.width)).tolist(), overlaps.tolist(), strict=True
    ):
        text = f"IoU {overlap:.2f}"
        draw.rectangle((left, top, left + draw.textlength(text, font) + 8, top + 22), PROPOSAL_COLOR)
        draw.text((left + 4, top + 1), text, "white", font)
    return drawing


def main() -> None:
    """Draw the stages, one file each."""
    parser = create_parser(__doc__)
    parser.add_argument("--index", type=int, default=13, help="Index of the photograph in the validation split.")
    options = parser.parse_args()
    sample = detection_data.load_dataset("voc-animals", None, include_train=False).val[options.index]
    image = image_io.read_image(sample.source).convert("RGB")
    pixels = np.asarray(image)

    def save(panels: list[tuple[Image.Image, str]], name: str) -> None:
        save_image(arrange_panels(panels, len(panels)), options.out / f"selective-search-{name}.webp")

    panels = []
    for scale in (50, 300):
        labels = search.segment_image(pixels, scale)
        panels.append((draw_regions(image, labels, PANEL_WIDTH), f"k = {scale}: {labels.max() + 1} regions"))
    save(panels, "segmentation")

    labels = search.segment_image(pixels, 50)
    regions = grouping.build_regions(labels, grouping.compute_features(search.convert_color_space(pixels, "hsv")))
    _, merges = grouping.group_regions(regions, "CTSF")
    save(
        [
            (draw_regions(image, merge_regions(labels, merges, count), PANEL_WIDTH), f"{count} regions remain")
            for count in (100, 12)
        ],
        "grouping",
    )

    proposals = search.propose_regions(pixels)
    colors = [image_draw.get_class_color(index) for index in range(NUM_BOXES)]
    first = draw_outlines(image, proposals[:NUM_BOXES], colors, PANEL_WIDTH)
    panels = [
        (first, f"the first {NUM_BOXES} of {len(proposals):,} boxes"),
        (draw_best_proposals(image, sample.boxes, proposals), "objects (green), their best boxes (orange)"),
    ]
    save(panels, "boxes")


if __name__ == "__main__":
    main()

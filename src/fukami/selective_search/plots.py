"""Drawings of region proposals: the boxes on the image, and the stages of Selective Search."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from fukami.selective_search import grouping, search, superpixels
from fukami.selective_search.search import Boxes

PANEL_SIZE, SMALL_PANEL_SIZE = 900, 560  # longer side of a single panel, and of one of several, in pixels
SUPERSAMPLING = 2  # factor by which lines are drawn larger, for antialiasing
BRIGHTNESS = 0.6  # factor by which the image under the boxes is darkened
NUM_REGIONS_SHOWN = 12  # remaining regions in the drawing of the grouping
# gradient from the first box to the last
BOX_COLORS = ((255, 236, 110), (255, 150, 60), (226, 70, 110), (140, 60, 170), (70, 60, 170))
TEXT_COLOR, BACKGROUND_COLOR = (34, 34, 34), (255, 255, 255)
MARGIN, CAPTION_HEIGHT, FONT_SIZE = 12, 30, 18
MIN_PANEL_WIDTH = 240  # pixels, for the caption


def draw_proposals(image: Image.Image, proposals: Boxes, max_boxes: int = 100) -> Image.Image:
    """Draw the first ``max_boxes`` boxes on the image, with their number as the caption."""
    return arrange_panels(
        [(draw_ranked_boxes(image, proposals, max_boxes, PANEL_SIZE), _format_caption(proposals, max_boxes))], 1
    )


def draw_stages(image: Image.Image, proposals: Boxes, mode: search.Mode, max_boxes: int = 100) -> Image.Image:
    """Draw the image, its first segmentation, that segmentation after grouping, and the first ``max_boxes`` boxes."""
    pixels = np.asarray(image.convert("RGB"))
    setting = search.SETTINGS[mode]
    space, scale, similarity = setting.color_spaces[0], setting.scales[0], setting.similarities[0]
    labels = search.segment_image(pixels, scale, space)
    regions = grouping.build_regions(labels, grouping.compute_features(search.convert_color_space(pixels, space)))
    merged_labels = merge_regions(labels, grouping.group_regions(regions, similarity)[1], NUM_REGIONS_SHOWN)
    size = _compute_panel_size(image, SMALL_PANEL_SIZE)
    panels = [
        (_resize_image(image.convert("RGB"), size), f"image, {image.width}×{image.height} pixels"),
        (draw_regions(image, labels), f"segmentation ({space}, k = {scale}): {len(regions.sizes):,} regions"),
        (draw_regions(image, merged_labels), f"grouped by {similarity} to {len(np.unique(merged_labels))} regions"),
        (draw_ranked_boxes(image, proposals, max_boxes), _format_caption(proposals, max_boxes)),
    ]
    return arrange_panels(panels, 2)


def draw_ranked_boxes(
    image: Image.Image, proposals: Boxes, max_boxes: int = 100, max_size: int = SMALL_PANEL_SIZE
) -> Image.Image:
    """Draw the first ``max_boxes`` boxes on the darkened image: the first is yellow, bold and on top, the last blue."""
    width, height = _compute_panel_size(image, max_size)
    scale = np.array([width / image.width, height / image.height] * 2) * SUPERSAMPLING
    grayscale = np.asarray(image.convert("L").convert("RGB"), np.float32)
    pixels = (BRIGHTNESS * (0.4 * grayscale + 0.6 * np.asarray(image.convert("RGB")))).astype(np.uint8)
    panel = _resize_image(Image.fromarray(pixels), (width * SUPERSAMPLING, height * SUPERSAMPLING))
    draw = ImageDraw.Draw(panel, "RGBA")
    for rank, corners in reversed(list(enumerate(proposals[:max_boxes] * scale))):
        fraction = math.sqrt(rank / max_boxes)
        top_left = np.floor(corners[:2])
        outline = (*_interpolate_color(fraction), round(255 * (1 - 0.6 * fraction)))
        draw.rectangle(
            [*top_left, *np.maximum(np.ceil(corners[2:]) - 1, top_left)],
            None,
            outline,
            round(SUPERSAMPLING * (3 - 2 * fraction)),
        )
    return panel.resize((width, height), Image.Resampling.BOX)


def draw_regions(image: Image.Image, labels: superpixels.Labels, max_size: int = SMALL_PANEL_SIZE) -> Image.Image:
    """Draw each region in its mean color, with an outline."""
    size = _compute_panel_size(image, max_size)
    pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    counts = np.bincount(labels.ravel())
    means = np.stack([np.bincount(labels.ravel(), channel) / np.maximum(counts, 1) for channel in pixels.T], axis=1)
    large_labels = np.asarray(
        Image.fromarray(labels).resize((size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING), Image.Resampling.NEAREST)
    )
    drawing = means[large_labels].astype(np.uint8)
    edge = np.zeros(large_labels.shape, bool)
    edge[1:] |= large_labels[1:] != large_labels[:-1]
    edge[:, 1:] |= large_labels[:, 1:] != large_labels[:, :-1]
    drawing[edge] = BACKGROUND_COLOR
    return Image.fromarray(drawing).resize(size, Image.Resampling.BOX)


def merge_regions(labels: superpixels.Labels, merges: npt.NDArray[np.int32], num_regions: int) -> superpixels.Labels:
    """Apply the first merges of the hierarchy to a segmentation, until at most ``num_regions`` regions are left."""
    count = len(merges) + 1
    parents = np.arange(2 * count - 1)
    # in reverse order, so that the final region of a merged region is set before those of its two parts
    for index in reversed(range(max(0, count - num_regions))):
        parents[merges[index]] = parents[count + index]
    return parents[labels].astype(np.int32)


def arrange_panels(panels: Sequence[tuple[Image.Image, str]], columns: int) -> Image.Image:
    """Arrange panels of one size in rows, each with a caption below."""
    width, height = max(MIN_PANEL_WIDTH, panels[0][0].width), panels[0][0].height
    rows = -(-len(panels) // columns)
    size = (MARGIN + columns * (width + MARGIN), MARGIN + rows * (height + CAPTION_HEIGHT + MARGIN // 2))
    sheet = Image.new("RGB", size, BACKGROUND_COLOR)
    draw = ImageDraw.Draw(sheet)
    for index, (panel, caption) in enumerate(panels):
        row, column = divmod(index, columns)
        position = (MARGIN + column * (width + MARGIN), MARGIN + row * (height + CAPTION_HEIGHT + MARGIN // 2))
        sheet.paste(panel, position)
        font = ImageFont.load_default(FONT_SIZE)
        font_size = FONT_SIZE * min(1.0, width / max(1.0, draw.textlength(caption, font)))
        draw.text((position[0], position[1] + height + 5), caption, TEXT_COLOR, ImageFont.load_default(font_size))
    return sheet


def _format_caption(proposals: Boxes, max_boxes: int) -> str:
    return (
        f"the first {max_boxes:,} of {len(proposals):,} boxes, from yellow to blue"
        if max_boxes < len(proposals)
        else f"all {len(proposals):,} boxes"
    )


def _compute_panel_size(image: Image.Image, max_size: int) -> tuple[int, int]:
    """Compute the width and height of the image scaled so that its longer side is ``max_size``."""
    scale = max_size / max(image.size)
    return max(1, round(image.width * scale)), max(1, round(image.height * scale))


def _resize_image(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize the image; a strongly enlarged one shows its pixels."""
    enlarged = size[0] > 4 * image.width or size[1] > 4 * image.height
    return image.resize(size, Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS)


def _interpolate_color(fraction: float) -> tuple[int, ...]:
    """Interpolate ``BOX_COLORS`` at a fraction, 0 to 1."""
    position = fraction * (len(BOX_COLORS) - 1)
    low = min(int(position), len(BOX_COLORS) - 2)
    return tuple(
        round(a + (position - low) * (b - a)) for a, b in zip(BOX_COLORS[low], BOX_COLORS[low + 1], strict=True)
    )

"""Proposals drawn: the boxes on the image, and beside them what they were made from."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from fukami.selective_search import grouping, search, superpixels
from fukami.selective_search.search import Boxes

PANEL_SIZE, SMALL_PANEL_SIZE = 900, 560  # pixels of a panel's longest side: alone, and beside others
SUPERSAMPLING = 2  # lines are drawn so much larger, and made smaller, so that they are smooth
BRIGHTNESS = 0.6  # of the image's light is left under the boxes
NUM_REGIONS_SHOWN = 12  # regions that are left where the grouping is shown
BOX_COLORS = ((255, 236, 110), (255, 150, 60), (226, 70, 110), (140, 60, 170), (70, 60, 170))  # from the first box on
TEXT_COLOR, BACKGROUND_COLOR = (34, 34, 34), (255, 255, 255)
MARGIN, CAPTION_HEIGHT, FONT_SIZE = 12, 30, 18
MIN_PANEL_WIDTH = 240  # a panel has at least this width, for its line of text


def draw_proposals(image: Image.Image, proposals: Boxes, max_boxes: int = 100) -> Image.Image:
    """The first ``max_boxes`` boxes on the image, and below it how many there are."""
    return arrange_panels(
        [(draw_ranked_boxes(image, proposals, max_boxes, PANEL_SIZE), _format_caption(proposals, max_boxes))], 1
    )


def draw_stages(image: Image.Image, proposals: Boxes, mode: search.Mode, max_boxes: int = 100) -> Image.Image:
    """The image, its first segmentation, what grouping leaves of that, and the first ``max_boxes`` boxes."""
    pixels = np.asarray(image.convert("RGB"))
    setting = search.SETTINGS[mode]
    space, scale, similarity = setting.color_spaces[0], setting.scales[0], setting.similarities[0]
    labels = search.segment_image(pixels, scale, space)
    described = grouping.describe_regions(labels, grouping.compute_features(search.convert_color_space(pixels, space)))
    few = merge_regions(labels, grouping.group_regions(described, similarity)[1], NUM_REGIONS_SHOWN)
    size = _compute_panel_size(image, SMALL_PANEL_SIZE)
    panels = [
        (_resize_image(image.convert("RGB"), size), f"the image, {image.width} by {image.height} pixels"),
        (draw_regions(image, labels), f"segmentation ({space}, k = {scale}): {len(described.sizes):,} regions"),
        (draw_regions(image, few), f"grouped by {similarity} until {len(np.unique(few))} are left"),
        (draw_ranked_boxes(image, proposals, max_boxes), _format_caption(proposals, max_boxes)),
    ]
    return arrange_panels(panels, 2)


def draw_ranked_boxes(
    image: Image.Image, proposals: Boxes, max_boxes: int = 100, max_size: int = SMALL_PANEL_SIZE
) -> Image.Image:
    """The first ``max_boxes`` boxes on the darkened image: the first yellow, bold and on top, the last blue."""
    width, height = _compute_panel_size(image, max_size)
    scale = np.array([width / image.width, height / image.height] * 2) * SUPERSAMPLING
    grey = np.asarray(image.convert("L").convert("RGB"), np.float32)
    pixels = (BRIGHTNESS * (0.4 * grey + 0.6 * np.asarray(image.convert("RGB")))).astype(np.uint8)
    panel = _resize_image(Image.fromarray(pixels), (width * SUPERSAMPLING, height * SUPERSAMPLING))
    draw = ImageDraw.Draw(panel, "RGBA")
    for rank, corners in reversed(list(enumerate(proposals[:max_boxes] * scale))):
        share = math.sqrt(rank / max_boxes)
        least = np.floor(corners[:2])
        outline = (*_interpolate_color(share), round(255 * (1 - 0.6 * share)))
        draw.rectangle(
            [*least, *np.maximum(np.ceil(corners[2:]) - 1, least)],
            None,
            outline,
            round(SUPERSAMPLING * (3 - 2 * share)),
        )
    return panel.resize((width, height), Image.Resampling.BOX)


def draw_regions(image: Image.Image, labels: superpixels.Labels, max_size: int = SMALL_PANEL_SIZE) -> Image.Image:
    """Each region in its mean colour, with a line around it."""
    size = _compute_panel_size(image, max_size)
    pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    counts = np.bincount(labels.ravel())
    means = np.stack([np.bincount(labels.ravel(), channel) / np.maximum(counts, 1) for channel in pixels.T], axis=1)
    large = np.asarray(
        Image.fromarray(labels).resize((size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING), Image.Resampling.NEAREST)
    )
    page = means[large].astype(np.uint8)
    edge = np.zeros(large.shape, bool)
    edge[1:] |= large[1:] != large[:-1]
    edge[:, 1:] |= large[:, 1:] != large[:, :-1]
    page[edge] = BACKGROUND_COLOR
    return Image.fromarray(page).resize(size, Image.Resampling.BOX)


def merge_regions(labels: superpixels.Labels, merges: npt.NDArray[np.int32], num_regions: int) -> superpixels.Labels:
    """The segmentation after so many of the groupings that at most ``num_regions`` regions are left."""
    count = len(merges) + 1
    into = np.arange(2 * count - 1)
    for number in reversed(
        range(max(0, count - num_regions))
    ):  # the last first, so that each region's own group is known
        into[merges[number]] = into[count + number]
    return into[labels].astype(np.int32)


def arrange_panels(panels: Sequence[tuple[Image.Image, str]], columns: int) -> Image.Image:
    """Panels of one size in rows, each with a line of text below."""
    width, height = max(MIN_PANEL_WIDTH, panels[0][0].width), panels[0][0].height
    rows = -(-len(panels) // columns)
    size = (MARGIN + columns * (width + MARGIN), MARGIN + rows * (height + CAPTION_HEIGHT + MARGIN // 2))
    sheet = Image.new("RGB", size, BACKGROUND_COLOR)
    draw = ImageDraw.Draw(sheet)
    for number, (panel, caption) in enumerate(panels):
        row, column = divmod(number, columns)
        at = (MARGIN + column * (width + MARGIN), MARGIN + row * (height + CAPTION_HEIGHT + MARGIN // 2))
        sheet.paste(panel, at)
        font = ImageFont.load_default(FONT_SIZE)
        fits = FONT_SIZE * min(1.0, width / max(1.0, draw.textlength(caption, font)))
        draw.text((at[0], at[1] + height + 5), caption, TEXT_COLOR, ImageFont.load_default(fits))
    return sheet


def _format_caption(proposals: Boxes, max_boxes: int) -> str:
    return (
        f"the first {max_boxes:,} of {len(proposals):,} boxes, from yellow to blue"
        if max_boxes < len(proposals)
        else f"all {len(proposals):,} boxes"
    )


def _compute_panel_size(image: Image.Image, max_size: int) -> tuple[int, int]:
    """Width and height of the image in its proportions, the longest side this long."""
    scale = max_size / max(image.size)
    return max(1, round(image.width * scale)), max(1, round(image.height * scale))


def _resize_image(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The image at this size; a small one shows its pixels."""
    enlarged = size[0] > 4 * image.width or size[1] > 4 * image.height
    return image.resize(size, Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS)


def _interpolate_color(fraction: float) -> tuple[int, ...]:
    """The colour at this share, 0 to 1, of the way through ``COLOURS``."""
    at = fraction * (len(BOX_COLORS) - 1)
    low = min(int(at), len(BOX_COLORS) - 2)
    return tuple(round(a + (at - low) * (b - a)) for a, b in zip(BOX_COLORS[low], BOX_COLORS[low + 1], strict=True))

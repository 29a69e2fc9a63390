"""Figures of episodes and action values."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from fukami.image.charts import BLUE
from fukami.image.io import UInt8Array

GAME_HEIGHT = 420  # height of the game frame in pixels
PANEL_WIDTH = 300  # width of the action-value panel in pixels
BAR_LENGTH = 110  # pixels from the lowest to the highest of the action values and zero
BAR_COLOR, ACTION_COLOR, LABEL_COLOR, TEXT_COLOR = (72, 120, 168), (209, 73, 91), (102, 102, 102), (34, 34, 34)


def plot_returns(values: Sequence[float], lengths: Sequence[int]) -> list[tuple[str, Figure]]:
    """Plot the returns and lengths of the episodes, sorted by return."""
    order = np.argsort(values)
    charts = []
    for heights, title in ((values, "return"), (lengths, "steps")):
        figure = Figure(figsize=(4, 2.6), layout="constrained")
        axes = figure.add_subplot()
        axes.bar(range(len(heights)), np.asarray(heights)[order], color=BLUE)
        axes.set_xlabel("episodes, sorted by return", fontsize=8)
        axes.axhline(0, color="#222", lw=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        charts.append((title, figure))
    return charts


def draw_step(
    frame: UInt8Array, labels: Sequence[str], values: Sequence[float], action: int, episode_return: float
) -> Image.Image:
    """Draw a game frame ``(H, W, 3)`` with the return so far and the action values, the selected action in red.

    The bars start at zero, which is a black line.
    """
    image = Image.fromarray(frame)
    scale = GAME_HEIGHT / image.height
    image = image.resize((round(image.width * scale) // 2 * 2, GAME_HEIGHT), Image.Resampling.NEAREST)
    page = Image.new("RGB", (image.width + PANEL_WIDTH, GAME_HEIGHT), "white")
    page.paste(image, (0, 0))
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(15)
    left, top = image.width + 16, 16
    draw.text((left, top), f"return {episode_return:g}", TEXT_COLOR, ImageFont.load_default(20))
    draw.text((left, top + 30), "action values", LABEL_COLOR, font)
    min_value, max_value = min(0.0, *values), max(0.0, *values)
    pixels_per_value = BAR_LENGTH / max(max_value - min_value, 1e-9)
    zero = left - min_value * pixels_per_value
    line_height = min(30.0, (GAME_HEIGHT - top - 70) / len(labels))
    bar_height = max(line_height - 8, 1.0)
    for index, (label, value) in enumerate(zip(labels, values, strict=True)):
        y = top + 60 + index * line_height
        end = zero + value * pixels_per_value
        bar = (min(zero, end), y, max(zero, end), y + bar_height)
        draw.rectangle(bar, fill=ACTION_COLOR if index == action else BAR_COLOR)
        draw.text((left + BAR_LENGTH + 14, y - 2), f"{value:.3f}  {label}", TEXT_COLOR, font)
    bottom = top + 60 + (len(labels) - 1) * line_height + bar_height
    draw.line((zero, top + 60, zero, bottom), fill=TEXT_COLOR, width=2)
    return page

"""Figures of episodes and action values."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from fukami.image.io import UInt8Array

GAME_HEIGHT = 420  # height of the game frame in pixels
PANEL_WIDTH = 300  # width of the action-value panel in pixels
BAR_COLOR, ACTION_COLOR, TEXT_COLOR = (72, 120, 168), (209, 73, 91), (102, 102, 102)


def plot_returns(values: Sequence[float], lengths: Sequence[int]) -> list[tuple[str, Figure]]:
    """Plot the returns and lengths of the episodes, sorted by return."""
    order = np.argsort(values)
    charts = []
    for heights, title in ((values, "return"), (lengths, "steps")):
        figure = Figure(figsize=(4, 2.6), layout="constrained")
        axes = figure.add_subplot()
        axes.bar(range(len(heights)), np.asarray(heights)[order], color="#4878a8")
        axes.set_xlabel("episodes, sorted by return", fontsize=8)
        axes.axhline(0, color="#222", lw=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        charts.append((title, figure))
    return charts


def draw_step(
    frame: UInt8Array, labels: Sequence[str], values: Sequence[float], action: int, episode_return: float
) -> Image.Image:
    """Draw a game frame ``(H, W, 3)`` with the return so far and the action values, the selected action in red."""
    image = Image.fromarray(frame)
    scale = GAME_HEIGHT / image.height
    image = image.resize((round(image.width * scale) // 2 * 2, GAME_HEIGHT), Image.Resampling.NEAREST)
    page = Image.new("RGB", (image.width + PANEL_WIDTH, GAME_HEIGHT), "white")
    page.paste(image, (0, 0))
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(15)
    left, top = image.width + 16, 16
    draw.text((left, top), f"return {episode_return:g}", (34, 34, 34), ImageFont.load_default(20))
    draw.text((left, top + 30), "action values", TEXT_COLOR, font)
    min_value, max_value = min(values), max(values)
    line_height = min(30.0, (GAME_HEIGHT - top - 70) / len(labels))
    for index, (label, value) in enumerate(zip(labels, values, strict=True)):
        y = top + 60 + index * line_height
        fraction = (value - min_value) / max(max_value - min_value, 1e-9)
        draw.rectangle(
            (left, y, left + 6 + 110 * fraction, y + line_height - 8),
            fill=ACTION_COLOR if index == action else BAR_COLOR,
        )
        draw.text((left + 124, y - 2), f"{value:.3f}  {label}", (34, 34, 34), font)
    return page

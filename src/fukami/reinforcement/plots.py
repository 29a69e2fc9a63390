"""Figures of games and of what an agent thinks of them."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from fukami.image.io import UInt8Array

GAME_HEIGHT = 420  # pixels of a game's height
PANEL_WIDTH = 300  # of the width of what is beside it
BAR_COLOR, ACTION_COLOR, TEXT_COLOR = (72, 120, 168), (209, 73, 91), (102, 102, 102)


def plot_returns(values: Sequence[float], lengths: Sequence[int]) -> Figure:
    """The return of each episode, sorted, and how long it was."""
    order = np.argsort(values)
    figure = Figure(figsize=(8, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, each, title in ((left, values, "return"), (right, lengths, "steps")):
        axes.bar(range(len(each)), np.asarray(each)[order], color="#4878a8")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("episodes, by their return", fontsize=8)
        axes.axhline(0, color="#222", lw=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def draw_step(
    frame: UInt8Array, labels: Sequence[str], values: Sequence[float], action: int, episode_return: float
) -> Image.Image:
    """A moment of a game ``(H, W, 3)``, beside it what each action is worth, the one taken in red, and the return."""
    image = Image.fromarray(frame)
    scale = GAME_HEIGHT / image.height
    image = image.resize((round(image.width * scale) // 2 * 2, GAME_HEIGHT), Image.Resampling.NEAREST)
    page = Image.new("RGB", (image.width + PANEL_WIDTH, GAME_HEIGHT), "white")
    page.paste(image, (0, 0))
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(15)
    left, top = image.width + 16, 16
    draw.text((left, top), f"return {episode_return:g}", (34, 34, 34), ImageFont.load_default(20))
    draw.text((left, top + 30), "what each action is worth", TEXT_COLOR, font)
    least, most = min(values), max(values)
    line = min(30.0, (GAME_HEIGHT - top - 70) / len(labels))
    for number, (label, value) in enumerate(zip(labels, values, strict=True)):
        y = top + 60 + number * line
        share = (value - least) / max(most - least, 1e-9)
        draw.rectangle(
            (left, y, left + 6 + 110 * share, y + line - 8), fill=ACTION_COLOR if number == action else BAR_COLOR
        )
        draw.text((left + 124, y - 2), f"{value:.3f}  {label}", (34, 34, 34), font)
    return page

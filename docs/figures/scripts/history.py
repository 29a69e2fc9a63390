"""Draw ilsvrc.svg of docs/history.md: the winners of ImageNet's challenge by year, from docs/history/ilsvrc.csv.

python docs/figures/scripts/history.py
"""

import csv

from drawing import BLUE, FIGURES, GRAY, INK, LINE_BLUE, LINE_ORANGE, PAPER, save
from matplotlib.figure import Figure

SOURCE = FIGURES.parent / "history" / "ilsvrc.csv"
FIRST_DEEP_YEAR = 2012
LABELS = {"2010": "SIFT, LBP", "2011": "Fisher vectors", "2013": "Clarifai", "2016": "(ensemble)"}  # no network name


def draw_winners() -> Figure:
    """Draw the top-5 error of each winner, and that of a human annotator."""
    with SOURCE.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    (human,) = (float(row["top5_error_percent"]) for row in rows if row["network"].startswith("human"))
    winners = {}
    for row in rows:
        if not row["network"].startswith("human"):
            winners.setdefault(row["year"], row)
    figure = Figure(figsize=(9, 4.2), facecolor="white", layout="constrained")
    axes = figure.subplots()
    ticks = []
    for index, (year, row) in enumerate(winners.items()):
        error = float(row["top5_error_percent"])
        axes.bar(index, error, 0.7, color=BLUE if int(year) >= FIRST_DEEP_YEAR else PAPER, edgecolor=INK, lw=0.8)
        axes.annotate(f"{error:.1f}", (index, error), (0, 4), textcoords="offset points", ha="center", fontsize=10,
                      color=INK, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})  # fmt: skip
        layers = f"{row['layers']} layers" if row["layers"].isdigit() else ""
        ticks.append(f"{year}\n{LABELS.get(year, row['network'])}\n{layers}")
    axes.axhline(human, color=LINE_ORANGE, lw=1.2, ls="--", zorder=0)
    axes.annotate(f"one trained\nannotator: {human}", (len(winners) - 0.5, human), (4, 4), textcoords="offset points",
                  va="bottom", fontsize=9, color=LINE_ORANGE)  # fmt: skip
    boundary = list(winners).index(str(FIRST_DEEP_YEAR)) - 0.5
    axes.axvline(boundary, color=GRAY, lw=0.8, ls=":")
    for x, text, align, color in ((boundary - 0.1, "fixed features", "right", GRAY),
                                  (boundary + 0.1, "convolutional networks", "left", LINE_BLUE)):  # fmt: skip
        axes.annotate(text, (x, 32), ha=align, va="center", fontsize=9.5, color=color)
    axes.set_xticks(range(len(winners)), ticks)
    axes.set_xlim(-0.6, len(winners) + 0.4)
    axes.set_ylim(0, 34)
    axes.set_ylabel("top-5 error of the winner, %")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    save(draw_winners(), "ilsvrc")

"""Tests of the figures of agents."""

import numpy as np
import pytest

from fukami.reinforcement import plots


@pytest.mark.parametrize("values", [(0.8, 0.4, 0.2), (-0.2, -0.4, -0.8), (0.5, -0.25, 0.125), (0.0, 0.0, 0.0)])
def test_the_bars_of_action_values_start_at_zero(values):
    """The lengths of the bars are proportional to the values, and the sign is the direction."""
    frame = np.zeros((42, 42, 3), np.uint8)
    pixels = np.asarray(plots.draw_step(frame, ("a", "b", "c"), values, 0, 1.5))[:, plots.GAME_HEIGHT :]
    bars = [np.all(pixels == plots.ACTION_COLOR, axis=-1), np.all(pixels == plots.BAR_COLOR, axis=-1)]
    rows = np.flatnonzero((bars[0] | bars[1]).any(1))
    groups = np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)
    lengths = [0, 0, 0]
    for index, group in enumerate(groups if len(rows) else []):
        columns = np.flatnonzero((bars[0] | bars[1])[group[1]])
        lengths[index] = (columns[-1] - columns[0]) * (1 if values[index] > 0 else -1)
    span = max(0, *values) - min(0, *values) or 1
    assert lengths == pytest.approx([plots.BAR_LENGTH * value / span for value in values], abs=3)
    assert all(bars[index > 0][group].any() for index, group in enumerate(groups) if len(rows))


def test_many_actions_have_a_line_each():
    """The 256 actions that an environment may have are drawn, with bars of a pixel."""
    frame = np.zeros((42, 42, 3), np.uint8)
    labels = tuple(map(str, range(256)))
    pixels = np.asarray(plots.draw_step(frame, labels, [1.0] * 256, 255, 0.0))[:, plots.GAME_HEIGHT :]
    assert np.all(pixels == plots.ACTION_COLOR, axis=-1).any()

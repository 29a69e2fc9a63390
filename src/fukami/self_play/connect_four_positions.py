"""Positions of Connect Four with their optimal moves, for evaluation.

``benchmarks/connect_four_tables.py positions`` generates them. They have 10 to 36 stones, and moves that differ in
outcome. The ``random`` ones are of games of random moves. The ``sensible`` ones are of games in which each player wins
at once if possible, else blocks a win of the opponent, else plays a random move. All are distinct, also under
reflection.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from fukami.self_play.game import States

FILE = Path(__file__).with_name("connect_four_positions.npz")


def load_positions(split: str, kind: str) -> tuple[States, npt.NDArray[np.bool_]]:
    """Load positions ``(N, 16)`` and their optimal moves ``(N, 7)``.

    Args:
        split: ``val`` (500 positions of each kind) or ``test`` (1,000).
        kind: ``random`` or ``sensible``.
    """
    with np.load(FILE) as arrays:
        return arrays[f"{split}_{kind}_states"], arrays[f"{split}_{kind}_optimal"]

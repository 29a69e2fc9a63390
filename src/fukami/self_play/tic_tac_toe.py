"""Tic-tac-toe, an example of a game in plain NumPy."""

import numpy as np
import numpy.typing as npt

from fukami.self_play.game import Game, Moves, States, Symmetries

LINES = np.array([[0, 1, 2], [3, 4, 5], [6, 7, 8], [0, 3, 6], [1, 4, 7], [2, 5, 8], [0, 4, 8], [2, 4, 6]])


class TicTacToe(Game):
    """Tic-tac-toe: the first player with three stones in a row, column or diagonal wins.

    A state contains nine cells, row by row: 0 empty, 1 a stone of the side to move, 2 a stone of the opponent.
    """

    name = "tic-tac-toe"
    shape = (3, 3)
    num_moves = 9
    num_planes = 2
    max_moves = 9

    def build_initial_state(self) -> States:
        """Build the empty board."""
        return np.zeros(9, np.uint8)

    def legal_moves(self, states: States) -> npt.NDArray[np.bool_]:
        """Return the empty cells, none after the end of the game."""
        return np.asarray((states == 0) & ~_has_line(states)[:, None])

    def play(self, states: States, moves: Moves) -> States:
        """Place a stone, then exchange the sides."""
        states = states.copy()
        states[np.arange(len(states)), moves] = 1
        return np.array([0, 2, 1], np.uint8)[states]

    def outcome(self, states: States) -> npt.NDArray[np.float32]:
        """Return -1 after a line of the opponent, who moved last, and 0 on a full board without a line."""
        full = (states != 0).all(axis=1)
        return np.where(_has_line(states), -1, np.where(full, 0, np.nan)).astype(np.float32)

    def planes(self, states: States) -> npt.NDArray[np.float32]:
        """Return the stones of the side to move, and those of the opponent."""
        return np.stack([states == 1, states == 2], axis=1).reshape(-1, 2, 3, 3).astype(np.float32)

    def symmetries(self) -> Symmetries:
        """Return the eight symmetries of the square; the moves are the cells."""
        board = np.arange(9).reshape(3, 3)
        cells = np.stack([np.rot90(side, turns).ravel() for side in (board, board.T) for turns in range(4)])
        return Symmetries(cells, cells)


def _has_line(states: States) -> npt.NDArray[np.bool_]:
    """Return whether the opponent has three stones in a line, ``(N,)``."""
    return np.asarray((states[:, LINES] == 2).all(axis=2).any(axis=1))

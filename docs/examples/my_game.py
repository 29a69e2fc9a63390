"""Five in a row on a board of 7×7.

fukami train alphago-zero --game docs/examples/my_game.py
"""

import numpy as np

from fukami.self_play.game import Game, Symmetries

SIZE, LENGTH = 7, 5
LINES = np.array(
    [
        [(row + step * down) * SIZE + column + step * right for step in range(LENGTH)]
        for down, right in ((0, 1), (1, 0), (1, 1), (1, -1))
        for row in range(SIZE)
        for column in range(SIZE)
        if row + (LENGTH - 1) * down < SIZE and 0 <= column + (LENGTH - 1) * right < SIZE
    ]
)


class FiveInARow(Game):
    """The first player with five stones in a row, column or diagonal wins.

    A state contains the cells, row by row: 0 empty, 1 a stone of the side to move, 2 a stone of the opponent.
    """

    name = "five-in-a-row"
    shape = (SIZE, SIZE)
    num_moves = SIZE * SIZE
    num_planes = 2
    max_moves = SIZE * SIZE

    def build_initial_state(self):
        """Build the empty board."""
        return np.zeros(SIZE * SIZE, np.uint8)

    def legal_moves(self, states):
        """Return the empty cells, none after the end of the game."""
        return (states == 0) & ~has_line(states)[:, None]

    def play(self, states, moves):
        """Place a stone, then exchange the sides."""
        states = states.copy()
        states[np.arange(len(states)), moves] = 1
        return np.array([0, 2, 1], np.uint8)[states]

    def outcome(self, states):
        """Return -1 after a line of the opponent, who moved last, and 0 on a full board without a line."""
        is_full = (states != 0).all(axis=1)
        return np.where(has_line(states), -1, np.where(is_full, 0, np.nan)).astype(np.float32)

    def planes(self, states):
        """Return the stones of the side to move, and those of the opponent."""
        return np.stack([states == 1, states == 2], axis=1).reshape(-1, 2, SIZE, SIZE).astype(np.float32)

    def symmetries(self):
        """Return the eight symmetries of the square; the moves are the cells."""
        board = np.arange(SIZE * SIZE).reshape(SIZE, SIZE)
        cells = np.stack([np.rot90(side, turns).ravel() for side in (board, board.T) for turns in range(4)])
        return Symmetries(cells, cells)

    def parse_position(self, text):
        """Parse a position for ``fukami predict``: 49 cells, x the side to move, o the opponent, . an empty cell."""
        if len(text) != SIZE * SIZE or set(text) - set(".xo"):
            raise ValueError(f"a position has {SIZE * SIZE} cells, x, o or a dot")
        return np.array([".xo".index(cell) for cell in text], np.uint8)

    def format_move(self, move):
        """Format a move as a column and a row, such as d4."""
        return f"{'abcdefg'[move % SIZE]}{move // SIZE + 1}"


def has_line(states):
    """Return whether the opponent has five stones in a line, ``(N,)``."""
    return (states[:, LINES] == 2).all(axis=2).any(axis=1)

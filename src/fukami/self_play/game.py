"""Interface of games."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

States = npt.NDArray[np.uint8]  # (N, S), or (S,) for one state
Moves = npt.NDArray[np.int64]  # (N,)


class Symmetries(NamedTuple):
    """Symmetries of the board, the identity first.

    Attributes:
        cells: ``(K, H·W)``; ``values[cells[k]]`` transforms values of the cells, row by row, by symmetry ``k``.
        moves: ``(K, A)``; ``values[moves[k]]`` transforms values of the moves.
    """

    cells: npt.NDArray[np.int64]
    moves: npt.NDArray[np.int64]


class Game(ABC):
    """Rules of a game of two players with alternating moves, complete information and no chance.

    A state is a vector of bytes that contains everything that the rules depend on, including the side to move. All
    methods take a batch of states. Whatever they return is from the point of view of the side to move.

    Attributes:
        name: name of the game, such as ``go9``.
        shape: rows and columns of the board.
        num_moves: number of moves A, legal or not; a move is an index below it.
        num_planes: number of input planes C.
        max_moves: maximum length of a game.
        player_names: names of the first and the second player.
        has_pass: whether the last move is to pass, and the others are the cells of the board.
        has_score: whether a finished game has a score and owners of the cells (:meth:`scores`, :meth:`owners`).
    """

    name: str
    shape: tuple[int, int]
    num_moves: int
    num_planes: int
    max_moves: int
    player_names: tuple[str, str] = ("x", "o")
    has_pass = False
    has_score = False

    @abstractmethod
    def build_initial_state(self) -> States:
        """Build the state ``(S,)`` at the start of a game."""

    def check_states(self, states: States) -> None:  # noqa: B027  # optional
        """Check states ``(N, S)`` of a file, which may be corrupted; by default all are valid.

        Raises:
            Error: a state cannot occur, and the other methods could read beyond it.
        """

    @abstractmethod
    def legal_moves(self, states: States) -> npt.NDArray[np.bool_]:
        """Return which moves are legal, ``(N, A)``; in a state without an outcome at least one."""

    @abstractmethod
    def play(self, states: States, moves: Moves) -> States:
        """Return the states after a legal move ``(N,)`` in each; the arguments are not changed."""

    @abstractmethod
    def outcome(self, states: States) -> npt.NDArray[np.float32]:
        """Return the outcomes ``(N,)`` for the side to move: 1 win, 0 draw, -1 loss, NaN if the game is not over."""

    @abstractmethod
    def planes(self, states: States) -> npt.NDArray[np.float32]:
        """Return the input planes ``(N, C, H, W)``: the stones of the side to move, those of the opponent, others."""

    @abstractmethod
    def symmetries(self) -> Symmetries:
        """Return the symmetries of the board under which the rules do not change."""

    def scores(self, states: States) -> npt.NDArray[np.float32]:
        """Return the scores ``(N,)`` for the side to move, in points, if the games ended now."""
        raise NotImplementedError(f"{type(self).__name__} has no scores")

    def owners(self, states: States) -> npt.NDArray[np.float32]:
        """Return the owners of the cells ``(N, H·W)``: 1 the side to move, -1 the opponent, 0 neither."""
        raise NotImplementedError(f"{type(self).__name__} has no owners of cells")

    def parse_position(self, text: str) -> States:
        """Parse a position ``(S,)`` of a line of text; by default there is no such format.

        Raises:
            ValueError: the text is no position of the game.
        """
        raise ValueError(f"{self.name} has no text format of positions")

    def format_move(self, move: int) -> str:
        """Format a move; by default its number, from 1."""
        return str(move + 1)

    def parse_move(self, text: str) -> int:
        """Parse a move as :meth:`format_move` formats it.

        Raises:
            ValueError: there is no such move.
        """
        names = {self.format_move(move).lower(): move for move in range(self.num_moves)}
        move = names.get(text.strip().lower())
        if move is None:
            raise ValueError(f"{text[:20]!r} is not a move of {self.name}")
        return move

"""Rules of Connect Four: 7 columns of 6 cells, four stones in a row win.

A state is two bitboards of eight bytes: the stones of the side to move, then those of the opponent. Bit ``7·column +
row`` is a cell, row 0 the bottom; the seventh bit of each column stays 0, so that no row continues in the next column.
"""

import re

import numpy as np
import numpy.typing as npt

from fukami.errors import require_extra
from fukami.self_play.game import Game, Moves, States, Symmetries

with require_extra("self-play", "Connect Four"):
    from numba import njit

ROWS, COLUMNS = 6, 7
STRIDE = ROWS + 1  # bits of a column
BOTTOM = sum(1 << STRIDE * column for column in range(COLUMNS))  # lowest cell of each column
BOARD = BOTTOM * ((1 << ROWS) - 1)  # all cells
Bitboards = npt.NDArray[np.int64]  # (N, 2): stones of the side to move and of the opponent


class ConnectFour(Game):
    """Connect Four; a move is the index of a column, from the left."""

    name = "connect4"
    player_names = ("yellow", "red")
    shape = (ROWS, COLUMNS)
    num_moves = COLUMNS
    num_planes = 2
    max_moves = ROWS * COLUMNS

    def build_initial_state(self) -> States:
        """Build the empty board."""
        return np.zeros(16, np.uint8)

    def legal_moves(self, states: States) -> npt.NDArray[np.bool_]:
        """Return which columns are not full, ``(N, 7)``."""
        legal: npt.NDArray[np.bool_] = _find_legal_moves(view_bitboards(states))
        return legal

    def play(self, states: States, moves: Moves) -> States:
        """Return the states after a stone is dropped into a column that is not full."""
        bitboards: Bitboards = _play(view_bitboards(states), moves)
        return bitboards.view(np.uint8)

    def outcome(self, states: States) -> npt.NDArray[np.float32]:
        """Return -1 if the opponent has four in a row, 0 if the board is full, and NaN if the game is not over."""
        outcomes: npt.NDArray[np.float32] = _compute_outcomes(view_bitboards(states))
        return outcomes

    def planes(self, states: States) -> npt.NDArray[np.float32]:
        """Return the stones of the side to move and those of the opponent, ``(N, 2, 6, 7)``; row 0 is the bottom."""
        planes: npt.NDArray[np.float32] = _build_planes(view_bitboards(states))
        return planes

    def parse_position(self, text: str) -> States:
        """Parse a position; see :func:`parse_position`."""
        return parse_position(text)

    def symmetries(self) -> Symmetries:
        """Return the identity and the reflection that exchanges left and right."""
        cells = np.arange(ROWS * COLUMNS).reshape(ROWS, COLUMNS)
        moves = np.arange(COLUMNS)
        return Symmetries(np.stack([cells.ravel(), cells[:, ::-1].ravel()]), np.stack([moves, moves[::-1]]))


def view_bitboards(states: States) -> Bitboards:
    """View states ``(N, 16)`` as pairs of bitboards ``(N, 2)``."""
    return np.require(states, requirements=["C", "A"]).view(np.int64)


def parse_position(text: str) -> States:
    """Parse a position.

    Args:
        text: 42 cells, row by row from the bottom, each row from left to right: ``x`` is a stone of the side to move,
            ``o`` one of the opponent, ``.`` an empty cell.

    Returns:
        The state ``(16,)``.

    Raises:
        ValueError: the text is not a position of a game that is not over.
    """
    if len(text) != ROWS * COLUMNS:
        raise ValueError(
            f"a position of Connect Four has {ROWS * COLUMNS} cells, 6 rows of 7 from the bottom; {text[:60]!r} has "
            f"{len(text)}"
        )
    if wrong := re.search("[^xo.]", text):
        raise ValueError(
            f"cell {wrong.start() + 1} of the position {text!r} is {wrong.group()!r}; write x for a stone of the side "
            "to move, o for one of the opponent and . for an empty cell"
        )
    for cell in range(COLUMNS, ROWS * COLUMNS):
        if text[cell] != "." and text[cell - COLUMNS] == ".":
            raise ValueError(
                f"the position {text!r} has a stone above an empty cell, in column {cell % COLUMNS + 1}, row "
                f"{cell // COLUMNS + 1}; write the rows from the bottom to the top"
            )
    own, opponent = text.count("x"), text.count("o")
    if opponent - own not in (0, 1):
        raise ValueError(
            f"the position {text!r} has {own} stones x and {opponent} stones o; the side to move, x, has as many "
            "stones as o or one less"
        )
    bits = [1 << STRIDE * (cell % COLUMNS) + cell // COLUMNS for cell in range(ROWS * COLUMNS)]
    boards = [sum(bit for bit, value in zip(bits, text, strict=True) if value == stone) for stone in "xo"]
    winners = " and ".join(stone for stone, board in zip("xo", boards, strict=True) if has_line(board))
    if winners or own + opponent == ROWS * COLUMNS:
        reason = f"four in a row of {winners}" if winners else "the board is full"
        raise ValueError(f"the game is over in the position {text!r}: {reason}; give one in which x can move")
    return np.array(boards, np.int64).view(np.uint8)


def format_position(state: States) -> str:
    """Format a state ``(16,)`` as :func:`parse_position` parses it."""
    own, opponent = _build_planes(view_bitboards(state[None]))[0].reshape(2, -1)
    return "".join("x" if x else "o" if o else "." for x, o in zip(own, opponent, strict=True))


@njit(cache=True, nogil=True)
def has_line(stones):  # pragma: no cover
    """Return whether a bitboard contains four in a row: vertical, diagonal, horizontal or antidiagonal."""
    for step in (1, STRIDE - 1, STRIDE, STRIDE + 1):
        pairs = stones & (stones >> step)
        if pairs & (pairs >> 2 * step):
            return True
    return False


@njit(cache=True, nogil=True)
def find_winning_cells(stones, occupied):  # pragma: no cover
    """Find the empty cells, reachable or not, that complete four in a row."""
    cells = (stones << 1) & (stones << 2) & (stones << 3)
    for step in (STRIDE - 1, STRIDE, STRIDE + 1):
        pairs = (stones << step) & (stones << 2 * step)
        cells |= pairs & ((stones << 3 * step) | (stones >> step))
        pairs = (stones >> step) & (stones >> 2 * step)
        cells |= pairs & ((stones >> 3 * step) | (stones << step))
    return cells & (BOARD ^ occupied)


@njit(cache=True, nogil=True)
def find_cell(occupied, column):  # pragma: no cover
    """Find the lowest empty cell of a column, 0 if it is full."""
    return (occupied + (1 << STRIDE * column)) & ~occupied & BOARD


@njit(cache=True, nogil=True)
def count_bits(bits):  # pragma: no cover
    """Count the 1 bits of a bitboard, by a formula that compiles to one instruction."""
    bits -= bits >> 1 & 0x5555555555555555
    bits = (bits & 0x3333333333333333) + (bits >> 2 & 0x3333333333333333)
    bits = (bits + (bits >> 4)) & 0x0F0F0F0F0F0F0F0F
    return np.int64(np.uint64(bits * 0x0101010101010101) >> np.uint64(56))


@njit(cache=True, nogil=True)
def compute_key(own, opponent):  # pragma: no cover
    """Compute a number that identifies a position up to reflection: the smaller of the keys of both.

    The part of the key of a column with ``h`` stones is between ``2**h - 1`` and ``2**(h + 1) - 2``, thus unique.
    """
    key = own + (own | opponent)
    mirrored = 0
    for column in range(COLUMNS):
        mirrored = mirrored << STRIDE | (key >> STRIDE * column & ((1 << STRIDE) - 1))
    return min(key, mirrored)


@njit(cache=True, nogil=True)
def compute_keys(bitboards):  # pragma: no cover
    """Compute the keys ``(N,)`` of positions, equal for mirror images."""
    keys = np.empty(len(bitboards), np.int64)
    for n in range(len(bitboards)):
        keys[n] = compute_key(bitboards[n, 0], bitboards[n, 1])
    return keys


@njit(cache=True, nogil=True)
def _find_legal_moves(bitboards):  # pragma: no cover
    legal = np.empty((len(bitboards), COLUMNS), np.bool_)
    for n in range(len(bitboards)):
        occupied = bitboards[n, 0] | bitboards[n, 1]
        for column in range(COLUMNS):
            legal[n, column] = (occupied >> (STRIDE * column + ROWS - 1)) & 1 == 0
    return legal


@njit(cache=True, nogil=True)
def _play(bitboards, moves):  # pragma: no cover
    played = np.empty_like(bitboards)
    for n in range(len(bitboards)):
        occupied = bitboards[n, 0] | bitboards[n, 1]
        played[n, 0] = bitboards[n, 1]
        played[n, 1] = bitboards[n, 0] | find_cell(occupied, moves[n])
    return played


@njit(cache=True, nogil=True)
def _compute_outcomes(bitboards):  # pragma: no cover
    outcomes = np.empty(len(bitboards), np.float32)
    for n in range(len(bitboards)):
        if has_line(bitboards[n, 1]):
            outcomes[n] = -1
        else:
            outcomes[n] = 0 if bitboards[n, 0] | bitboards[n, 1] == BOARD else np.nan
    return outcomes


@njit(cache=True, nogil=True)
def _build_planes(bitboards):  # pragma: no cover
    planes = np.empty((len(bitboards), 2, ROWS, COLUMNS), np.float32)
    for n in range(len(bitboards)):
        for side in range(2):
            for row in range(ROWS):
                for column in range(COLUMNS):
                    planes[n, side, row, column] = (bitboards[n, side] >> (STRIDE * column + row)) & 1
    return planes

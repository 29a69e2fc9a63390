"""Exact solver of Connect Four: win, draw or loss under perfect play.

Alpha-beta search on bitboards with a transposition table. Its windows are empty: a search only decides whether the
outcome is greater than ``alpha``. Moves that lose at once are never searched. Strategies that follow the opponent's
moves (Allis 1988, "A Knowledge-based Approach of Connect-Four", claimeven) bound the outcome before the search.

``connect_four_outcomes.bin`` contains the outcomes of all positions of six stones, so that the opening needs no search.
"""

import functools
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fukami.errors import require_extra
from fukami.self_play.connect_four import BOARD, BOTTOM, COLUMNS, ROWS, STRIDE, Bitboards, has_line, view_bitboards
from fukami.self_play.game import States

with require_extra("self-play", "the solver of Connect Four"):
    from numba import njit

Outcomes = npt.NDArray[np.int8]
ILLEGAL = -2  # outcome of an illegal move
TABLE_STONES = 6
TABLE_FILE = Path(__file__).with_name("connect_four_outcomes.bin")
TRANSPOSITION_BITS = 23
COLUMN = (1 << ROWS) - 1  # cells of the first column
ODD_ROWS = BOTTOM * 0b010101  # rows 1, 3 and 5
EVEN_ROWS = BOTTOM * 0b101010
MULTIPLIER = 0x1E3779B97F4A7C15  # of the hash function
MOVE_BITS = 49  # of an entry in the list of moves; the higher bits are its priority


def _count_lines() -> npt.NDArray[np.int64]:
    """Count the possible lines of four through each bit of a bitboard."""
    counts = np.zeros(COLUMNS * STRIDE, np.int64)
    for cell in range(COLUMNS * STRIDE):
        for step in (1, STRIDE - 1, STRIDE, STRIDE + 1):
            line = [cell + i * step for i in range(4)]
            if all(bit < len(counts) and BOARD >> bit & 1 for bit in line):
                counts[line] += 1
    return counts


LINE_COUNTS = _count_lines()


def solve(states: States) -> Outcomes:
    """Compute the outcomes ``(N,)`` of positions for the side to move: 1 win, 0 draw, -1 loss."""
    outcomes: Outcomes = solve_positions(view_bitboards(states), _get_transpositions(), *_select_table(states))
    return outcomes


def solve_moves(states: States) -> Outcomes:
    """Compute the outcomes ``(N, 7)`` of the moves for the side that moves, ``ILLEGAL`` (-2) for a full column."""
    outcomes: Outcomes = _solve_moves(view_bitboards(states), _get_transpositions(), *_select_table(states))
    return outcomes


def find_optimal_moves(states: States) -> npt.NDArray[np.bool_]:
    """Find the moves ``(N, 7)`` whose outcome is the best that the side to move can reach."""
    optimal: npt.NDArray[np.bool_] = _find_optimal_moves(
        view_bitboards(states), _get_transpositions(), *_select_table(states)
    )
    return optimal


def build_transpositions(bits: int) -> npt.NDArray[np.int64]:
    """Build an empty transposition table of ``2**bits`` entries of 8 bytes; several threads can share it."""
    return np.zeros(1 << bits, np.int64)


def enumerate_positions(stones: int) -> Bitboards:
    """Enumerate the positions ``(N, 2)`` of a number of stones in which the game is not over.

    Of a position and its mirror image, the one with the smaller key is included; they are sorted by it.
    """
    positions: Bitboards = np.zeros((1, 2), np.int64)
    for _ in range(stones):
        children = _list_children(positions)
        _, first = np.unique(_compute_keys(children), return_index=True)
        positions = children[first]
    return positions


def write_table(path: Path, outcomes: Outcomes) -> None:
    """Write the outcomes of the positions of :func:`enumerate_positions`, four in a byte, the first in the low bits."""
    values = np.pad(outcomes + 1, (0, -len(outcomes) % 4)).astype(np.uint8).reshape(-1, 4)
    path.write_bytes((values << np.arange(0, 8, 2, dtype=np.uint8)).sum(axis=1, dtype=np.uint8).tobytes())


@functools.cache
def _load_table() -> tuple[npt.NDArray[np.int64], Outcomes]:
    """Load the keys of the positions with ``TABLE_STONES`` stones and their outcomes; without the file, none."""
    if not TABLE_FILE.is_file():
        return np.empty(0, np.int64), np.empty(0, np.int8)
    keys = _compute_keys(enumerate_positions(TABLE_STONES))
    values = np.fromfile(TABLE_FILE, np.uint8)[:, None] >> np.arange(0, 8, 2, dtype=np.uint8) & 3
    return keys, values.ravel()[: len(keys)].astype(np.int8) - 1


def _select_table(states: States) -> tuple[npt.NDArray[np.int64], Outcomes]:
    """Return the table if a state has few enough stones for it, else an empty one."""
    few = np.bitwise_count(states).sum(axis=1) <= TABLE_STONES + 1
    return _load_table() if few.any() else (np.empty(0, np.int64), np.empty(0, np.int8))


@functools.cache
def _get_transpositions() -> npt.NDArray[np.int64]:
    return build_transpositions(TRANSPOSITION_BITS)


@njit(cache=True, nogil=True)
def solve_positions(bitboards, transpositions, keys, outcomes):  # pragma: no cover
    """Compute the outcomes of positions; ``keys`` and ``outcomes`` are the loaded table, or empty."""
    solved = np.empty(len(bitboards), np.int8)
    moves = np.empty((ROWS * COLUMNS, COLUMNS), np.int64)
    for n in range(len(bitboards)):
        solved[n] = _solve(bitboards[n, 0], bitboards[n, 1], transpositions, moves, keys, outcomes)
    return solved


@njit(cache=True, nogil=True)
def _solve_moves(bitboards, transpositions, keys, outcomes):  # pragma: no cover
    solved = np.full((len(bitboards), COLUMNS), ILLEGAL, np.int8)
    moves = np.empty((ROWS * COLUMNS, COLUMNS), np.int64)
    for n in range(len(bitboards)):
        own, opponent = bitboards[n]
        for column in range(COLUMNS):
            move = _find_cell(own | opponent, column)
            if move:
                solved[n, column] = -_solve(opponent, own | move, transpositions, moves, keys, outcomes)
    return solved


@njit(cache=True, nogil=True)
def _find_optimal_moves(bitboards, transpositions, keys, outcomes):  # pragma: no cover
    optimal = np.zeros((len(bitboards), COLUMNS), np.bool_)
    moves = np.empty((ROWS * COLUMNS, COLUMNS), np.int64)
    for n in range(len(bitboards)):
        own, opponent = bitboards[n]
        best = _solve(own, opponent, transpositions, moves, keys, outcomes)
        for column in range(COLUMNS):
            move = _find_cell(own | opponent, column)
            if move:
                optimal[n, column] = not _is_greater(
                    opponent, own | move, -best, transpositions, moves, keys, outcomes
                )
    return optimal


@njit(cache=True, nogil=True)
def _solve(own, opponent, transpositions, moves, keys, outcomes):  # pragma: no cover
    for alpha in (0, -1):
        if _is_greater(own, opponent, alpha, transpositions, moves, keys, outcomes):
            return alpha + 1
    return -1


@njit(cache=True, nogil=True)
def _is_greater(own, opponent, alpha, transpositions, moves, keys, outcomes):  # pragma: no cover
    """Return whether the outcome of a position is greater than ``alpha``, -1 or 0; after a win, 1, it is not."""
    occupied = own | opponent
    if has_line(opponent):
        return False
    if occupied == BOARD:
        return alpha < 0
    if len(keys) and _count_bits(occupied) <= TABLE_STONES:
        return _look_up(own, opponent, keys, outcomes) > alpha
    if _find_winning_cells(own, occupied) & (occupied + BOTTOM):
        return alpha < 1
    return _search(own, occupied, alpha, transpositions, moves) > alpha


@njit(cache=True, nogil=True)
def _look_up(own, opponent, keys, outcomes):  # pragma: no cover
    """Return the outcome of a position with at most ``TABLE_STONES`` stones: search down to the table."""
    if has_line(opponent):
        return -1
    if _count_bits(own | opponent) == TABLE_STONES:
        return np.int64(outcomes[np.searchsorted(keys, _compute_key(own, opponent))])
    best = -1
    for column in range(COLUMNS):
        move = _find_cell(own | opponent, column)
        if move and best < 1:
            best = max(best, -_look_up(opponent, own | move, keys, outcomes))
    return best


@njit(cache=True, nogil=True)
def _search(own, occupied, alpha, transpositions, moves):  # pragma: no cover
    """Return a bound of the outcome: a lower one if it is greater than ``alpha``, else an upper one.

    The side to move must have no move that wins at once. ``moves`` is memory for the moves of each number of stones.
    An entry of the transposition table is a key, the number of bits of its searched nodes, upper and lower bound + 1.
    """
    moves[-1, 0] += 1  # counts the nodes
    opponent = own ^ occupied
    threats = _find_winning_cells(opponent, occupied)
    possible = (occupied + BOTTOM) & BOARD
    forced = possible & threats
    if forced:
        if forced & (forced - 1):
            return -1
        possible = forced
    possible &= ~(threats >> 1)  # a stone below a threat loses
    if possible == 0:
        return -1
    stones = _count_bits(occupied)
    if stones >= ROWS * COLUMNS - 2:
        return 0
    lower, upper = _bound_first(own, opponent) if stones % 2 == 0 else _bound_second(own, opponent, threats)
    if lower > alpha:
        return lower
    if upper <= alpha:
        return upper
    key = own + occupied
    index = _hash(key, transpositions)
    entry = _probe(key, transpositions)
    if entry:
        lower, upper = max(lower, (entry & 3) - 1), min(upper, (entry >> 2 & 3) - 1)
        if lower > alpha:
            return lower
        if upper <= alpha:
            return upper
    count = 0
    for column in range(COLUMNS):
        move = possible & (COLUMN << STRIDE * column)
        if move:
            entry = _probe(opponent + (occupied | move), transpositions)
            if entry and 1 - (entry >> 2 & 3) > alpha:
                return 1 - (entry >> 2 & 3)
            cells = _find_winning_cells(own | move, occupied)
            priority = 8 * _count_bits(cells) + LINE_COUNTS[_count_bits(move - 1)]
            _insert(moves[stones], count, priority << MOVE_BITS | move)
            count += 1
    nodes = moves[-1, 0]
    best = -1
    for i in range(count):
        move = moves[stones, i] & ((1 << MOVE_BITS) - 1)
        best = max(best, -_search(opponent, occupied | move, -alpha - 1, transpositions, moves))
        if best > alpha:
            break
    if best > alpha:
        lower = best
    else:
        upper = best
    work = _count_bit_length(moves[-1, 0] - nodes)
    entry = key << 10 | work << 4 | (upper + 1) << 2 | (lower + 1)
    return best

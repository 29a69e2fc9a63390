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
from fukami.self_play.connect_four import (
    BOARD,
    BOTTOM,
    COLUMNS,
    ROWS,
    STRIDE,
    Bitboards,
    ConnectFour,
    compute_key,
    compute_keys,
    count_bits,
    find_cell,
    find_winning_cells,
    has_line,
    view_bitboards,
)
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
HASH_SHIFT = 34
KEY_SHIFT = 10  # of the key in an entry of the transposition table
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
    """Build an empty transposition table of ``2**bits`` entries.

    Several threads can share it: an entry is one number of 8 bytes that contains its key.
    """
    return np.zeros(1 << bits, np.int64)


def enumerate_positions(stones: int) -> Bitboards:
    """Enumerate the positions ``(N, 2)`` of a number of stones in which the game is not over.

    Of a position and its mirror image, the one with the smaller key is included; they are sorted by it.
    """
    game = ConnectFour()
    positions = view_bitboards(game.build_initial_state()[None])
    for _ in range(stones):
        states = positions.view(np.uint8)
        parents, moves = np.nonzero(game.legal_moves(states))
        states = game.play(states[parents], moves)
        children = view_bitboards(states[np.isnan(game.outcome(states))])
        _, first = np.unique(compute_keys(children), return_index=True)
        positions = np.ascontiguousarray(children[first])
    return positions


@functools.cache
def _load_table() -> tuple[npt.NDArray[np.int64], Outcomes]:
    """Load the keys of the positions of :func:`enumerate_positions` and their outcomes; without the file, none.

    A byte of the file contains four outcomes + 1, the first in its low bits.
    """
    if not TABLE_FILE.is_file():
        return np.empty(0, np.int64), np.empty(0, np.int8)
    keys = compute_keys(enumerate_positions(TABLE_STONES))
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
            move = find_cell(own | opponent, column)
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
            move = find_cell(own | opponent, column)
            if move:
                optimal[n, column] = not _is_greater(opponent, own | move, -best, transpositions, moves, keys, outcomes)
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
    if len(keys) and count_bits(occupied) <= TABLE_STONES:
        return _look_up(own, opponent, keys, outcomes) > alpha
    if find_winning_cells(own, occupied) & (occupied + BOTTOM):
        return alpha < 1
    return _search(own, occupied, alpha, transpositions, moves) > alpha


@njit(cache=True, nogil=True)
def _look_up(own, opponent, keys, outcomes):  # pragma: no cover
    """Return the outcome of a position with at most ``TABLE_STONES`` stones: search down to the table."""
    if has_line(opponent):
        return -1
    if count_bits(own | opponent) == TABLE_STONES:
        return np.int64(outcomes[np.searchsorted(keys, compute_key(own, opponent))])
    best = -1
    for column in range(COLUMNS):
        move = find_cell(own | opponent, column)
        if move and best < 1:
            best = max(best, -_look_up(opponent, own | move, keys, outcomes))
    return best


@njit(cache=True, nogil=True)
def _search(own, occupied, alpha, transpositions, moves):  # pragma: no cover
    """Return a bound of the outcome: a lower one if it is greater than ``alpha``, else an upper one.

    The side to move must have no move that wins at once. ``moves`` is memory for the moves of each number of stones.
    An entry of the transposition table is a key, the number of stones, upper and lower bound + 1.
    """
    opponent = own ^ occupied
    threats = find_winning_cells(opponent, occupied)
    possible = (occupied + BOTTOM) & BOARD
    forced = possible & threats
    if forced:
        if forced & (forced - 1):
            return -1
        possible = forced
    possible &= ~(threats >> 1)  # a stone below a threat loses
    if possible == 0:
        return -1
    stones = count_bits(occupied)
    if stones >= ROWS * COLUMNS - 2:
        return 0
    lower, upper = _bound_first(own, opponent) if stones % 2 == 0 else _bound_second(own, opponent, threats)
    if lower > alpha:
        return lower
    if upper <= alpha:
        return upper
    key = own + occupied
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
            cells = find_winning_cells(own | move, occupied)
            priority = 8 * count_bits(cells) + LINE_COUNTS[count_bits(move - 1)]
            _insert(moves, stones, count, priority << MOVE_BITS | move)
            count += 1
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
    entry = key << KEY_SHIFT | stones << 4 | (upper + 1) << 2 | (lower + 1)
    _store(entry, transpositions)
    return best


@njit(cache=True, nogil=True)
def _bound_first(own, opponent):  # pragma: no cover
    """Bound the outcome of a position with an even number of stones: the first player, ``own``, moves.

    The opponent can follow: if we play a cell of an odd row, it plays the cell above. In a column with an odd number
    of empty cells, the lowest is of an even row; if we play one of these, it plays another one. Thus we have at most
    cells of odd rows and some of these lowest cells.
    """
    occupied = own | opponent
    odd, even = ~occupied & ODD_ROWS, ~occupied & EVEN_ROWS
    lowest = (occupied + BOTTOM) & even
    threats = find_winning_cells(own, occupied) & odd
    while threats:  # we can follow instead, with a threat at the end of its column: see _bound_second
        column = _find_column(threats & -threats)
        threats &= ~column
        cells = opponent | (odd & ~column) | (even & column)
        if lowest & column == 0:
            if not has_line(cells | lowest):
                return 1, 1
        else:
            others = lowest & ~column
            rest = others
            while rest:
                move = rest & -rest
                rest ^= move
                if not has_line(cells | (others ^ move)):
                    return 1, 1
    second = lowest & (lowest - 1)
    first = lowest ^ second
    is_pair = lowest != 0 and second & (second - 1) == 0  # each side has one of two
    cells = own | odd
    if has_line(cells | lowest) and not (is_pair and not has_line(cells | first) and not has_line(cells | second)):
        return -1, 1
    cells = opponent | (even & ~lowest)
    if has_line(cells) or (is_pair and has_line(cells | first) and has_line(cells | second)):
        return -1, -1
    return -1, 0


@njit(cache=True, nogil=True)
def _bound_second(own, opponent, threats):  # pragma: no cover
    """Bound the outcome of a position with an odd number of stones: the second player, ``own``, moves.

    We can play the lowest empty cell of a column with an odd number of them and then follow the first player, as in
    :func:`_bound_first`. The first player can follow too, if it has a threat in an odd row of such a column: we have
    the even rows of this column, where we finally play below the threat, and at most the odd rows of the others.
    """
    occupied = own | opponent
    odd, even = ~occupied & ODD_ROWS, ~occupied & EVEN_ROWS
    lowest = (occupied + BOTTOM) & even
    threats &= odd
    lower = -1
    rest = lowest
    while rest:
        move = rest & -rest
        rest ^= move
        others = lowest ^ move
        column = _find_column(move)
        if threats & column and not has_line(own | (odd & ~column) | others | (even & column)):
            return -1, -1
        if not has_line(opponent | odd | others):
            if has_line(own | move | (even & ~lowest)):
                return 1, 1
            lower = 0
    return lower, 1


@njit(cache=True, nogil=True)
def _find_column(cell):  # pragma: no cover
    return COLUMN << count_bits(cell - 1) // STRIDE * STRIDE


@njit(cache=True, nogil=True)
def _insert(moves, row, count, move):  # pragma: no cover
    """Insert a move into the first ``count`` of a row, sorted by descending priority; among equals it is the last."""
    i = count
    while i > 0 and moves[row, i - 1] >> MOVE_BITS < move >> MOVE_BITS:
        moves[row, i] = moves[row, i - 1]
        i -= 1
    moves[row, i] = move


@njit(cache=True, nogil=True)
def _find_slots(key, transpositions):  # pragma: no cover
    """Return the index of the first of the two entries where a key can be."""
    return key * MULTIPLIER >> HASH_SHIFT & (len(transpositions) - 2)


@njit(cache=True, nogil=True)
def _probe(key, transpositions):  # pragma: no cover
    """Return the entry of a key, 0 if there is none."""
    slot = _find_slots(key, transpositions)
    for i in range(2):
        entry = transpositions[slot + i]
        if entry >> KEY_SHIFT == key:
            return entry
    return 0


@njit(cache=True, nogil=True)
def _store(entry, transpositions):  # pragma: no cover
    """Store an entry: the first slot keeps the position with fewer stones, the second the last of the others."""
    slot = _find_slots(entry >> KEY_SHIFT, transpositions)
    first = transpositions[slot]
    if first >> KEY_SHIFT == entry >> KEY_SHIFT or first == 0:
        transpositions[slot] = entry
    elif first >> 4 & 63 >= entry >> 4 & 63:
        transpositions[slot], transpositions[slot + 1] = entry, first
    else:
        transpositions[slot + 1] = entry

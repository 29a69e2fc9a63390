"""Compiled rules of Go: captures, legal moves, area scoring and input planes of batches of states.

A state is a row of bytes, which the kernels read through views of three integer types: ``states`` (uint8), ``counters``
(uint16) and ``hashes`` (uint64). Its parts, in order:

====================  =========================================================================
bytes                 content
====================  =========================================================================
0                     side to move: 1 Black, 2 White
1                     number of passes in a row
2-3                   number of moves played
4-13                  last five moves, the most recent first; ``NO_MOVE`` before the first moves
16 ...                Zobrist hashes of all positions (Zobrist 1970), 8 bytes each; 0 at the start
``board_start`` ...   points: 0 empty, 1 Black, 2 White
next ...              whether each point was occupied in any position so far
====================  =========================================================================

A move can recreate an earlier position (positional superko) only on a point that was occupied before, so that few
moves are compared with the earlier positions.
"""

import numpy as np

from fukami.errors import require_extra

with require_extra("self-play", "Go"):
    from numba import njit

NUM_LAST_MOVES = 5
NUM_PLANES = 17
HEADER_BYTES = 16
NO_MOVE = 0xFFFF
MOVE_COUNT, LAST_MOVES = 1, 2  # indices of the counters
HASHES_START = HEADER_BYTES // 8  # index of the first hash

LEGAL, GAME_OVER, OCCUPIED, SUICIDE, SUPERKO = range(5)  # status of a move


@njit(cache=True, nogil=True)
def is_over(state, counters, max_moves):
    """Return whether a game is over: two passes in a row, or the maximum number of moves."""
    return state[1] >= 2 or counters[MOVE_COUNT] >= max_moves


@njit(cache=True, nogil=True)
def find_groups(board, neighbors, keys, labels, liberties, group_hashes, marks, stack):
    """Label the stones of each group with the index of its first point, and count its liberties.

    ``liberties`` and ``group_hashes`` (the XOR of the stones' Zobrist keys) are set at the first point of each group.
    """
    labels[:] = -1
    marks[:] = -1  # group whose liberty a point was counted as
    for first in range(board.size):
        color = board[first]
        if color == 0 or labels[first] >= 0:
            continue
        labels[first], stack[0], size = first, first, 1
        num_liberties, group_hash = 0, np.uint64(0)
        while size:
            size -= 1
            point = stack[size]
            group_hash ^= keys[color - 1, point]
            for neighbor in neighbors[point]:
                if neighbor < 0:
                    break
                if board[neighbor] == 0:
                    if marks[neighbor] != first:
                        marks[neighbor] = first
                        num_liberties += 1
                elif board[neighbor] == color and labels[neighbor] < 0:
                    labels[neighbor] = first
                    stack[size] = neighbor
                    size += 1
        liberties[first], group_hashes[first] = num_liberties, group_hash


@njit(cache=True, nogil=True)
def is_repeated(position_hash, hashes, num_moves):
    """Return whether a position occurred in the game after at most ``num_moves`` moves."""
    repeated = False
    for index in range(HASHES_START, HASHES_START + num_moves + 1):
        repeated |= hashes[index] == position_hash
    return repeated


@njit(cache=True, nogil=True)
def find_legal_points(state, counters, hashes, board_start, neighbors, keys, groups, legal, superko):
    """Find the legal points of the side to move, and those that only the superko rule forbids.

    ``groups`` is the output of :func:`find_groups`: labels, liberties and hashes.
    """
    labels, liberties, group_hashes = groups
    num_points = neighbors.shape[0]
    player, num_moves = state[0], counters[MOVE_COUNT]
    last_hash = hashes[HASHES_START + num_moves]
    captured = np.empty(4, np.int64)
    for point in range(num_points):
        legal[point] = superko[point] = False
        if state[board_start + point]:
            continue
        position_hash = last_hash ^ keys[player - 1, point]
        num_captured, has_liberty = 0, False
        for neighbor in neighbors[point]:
            if neighbor < 0:
                break
            color, label = state[board_start + neighbor], labels[neighbor]
            if color == 0:
                has_liberty = True
            elif color == player:
                has_liberty |= liberties[label] > 1
            elif liberties[label] == 1:
                has_liberty = True
                is_new = True
                for index in range(num_captured):
                    is_new &= captured[index] != label
                if is_new:
                    captured[num_captured] = label
                    num_captured += 1
                    position_hash ^= group_hashes[label]
        if has_liberty:
            was_occupied = state[board_start + num_points + point]
            superko[point] = was_occupied and is_repeated(position_hash, hashes, num_moves)
            legal[point] = not superko[point]


@njit(cache=True, nogil=True)
def find_legal_moves(states, counters, hashes, board_start, max_moves, neighbors, keys, legal):
    """Find the legal moves of each state, none after the end; the last move is to pass."""
    num_points = neighbors.shape[0]
    labels, liberties, marks, stack = np.empty((4, num_points), np.int16)
    group_hashes, superko = np.empty(num_points, np.uint64), np.empty(num_points, np.bool_)
    groups = labels, liberties, group_hashes
    for row in range(states.shape[0]):
        if is_over(states[row], counters[row], max_moves):
            legal[row] = False
            continue
        board = states[row, board_start : board_start + num_points]
        find_groups(board, neighbors, keys, labels, liberties, group_hashes, marks, stack)
        find_legal_points(
            states[row], counters[row], hashes[row], board_start, neighbors, keys, groups, legal[row], superko
        )
        legal[row, num_points] = True


@njit(cache=True, nogil=True)
def collect_group(board, first, neighbors, is_marked, stack):
    """Collect the points of a group in ``stack``; return their number, or 0 if the group has a liberty."""
    color = board[first]
    is_marked[first], stack[0], size = True, first, 1
    index, has_liberty = 0, False
    while index < size and not has_liberty:
        for neighbor in neighbors[stack[index]]:
            if neighbor < 0:
                break
            if board[neighbor] == 0:
                has_liberty = True
            elif board[neighbor] == color and not is_marked[neighbor]:
                is_marked[neighbor] = True
                stack[size] = neighbor
                size += 1
        index += 1
    for index in range(size):
        is_marked[stack[index]] = False
    return 0 if has_liberty else size


@njit(cache=True, nogil=True)
def place_stone(board, point, player, position_hash, neighbors, keys, is_marked, stack):
    """Place a stone, remove the captured ones, and return the hash of the position and whether the move is legal.

    The move is illegal if the new stone's group has no liberties after the captures (suicide).
    """
    board[point] = player
    position_hash ^= keys[player - 1, point]
    opponent = 3 - player
    for neighbor in neighbors[point]:
        if neighbor < 0:
            break
        if board[neighbor] == opponent:
            for index in range(collect_group(board, neighbor, neighbors, is_marked, stack)):
                board[stack[index]] = 0
                position_hash ^= keys[opponent - 1, stack[index]]
    return position_hash, collect_group(board, point, neighbors, is_marked, stack) == 0


@njit(cache=True, nogil=True)
def play_move(state, counters, hashes, move, board_start, max_moves, neighbors, keys, is_marked, stack):
    """Play a move in a state, in place, and return its status; the state is undefined after an illegal move."""
    num_points = neighbors.shape[0]
    if is_over(state, counters, max_moves):
        return GAME_OVER
    player, num_moves = state[0], counters[MOVE_COUNT]
    position_hash = hashes[HASHES_START + num_moves]
    if move == num_points:
        state[1] += 1
    else:
        board = state[board_start : board_start + num_points]
        if board[move]:
            return OCCUPIED
        position_hash, has_liberty = place_stone(board, move, player, position_hash, neighbors, keys, is_marked, stack)
        if not has_liberty:
            return SUICIDE
        was_occupied = board_start + num_points + move
        if state[was_occupied] and is_repeated(position_hash, hashes, num_moves):
            return SUPERKO
        state[was_occupied] = 1
        state[1] = 0
    state[0] = 3 - player
    hashes[HASHES_START + num_moves + 1] = position_hash
    for index in range(LAST_MOVES + NUM_LAST_MOVES - 1, LAST_MOVES, -1):
        counters[index] = counters[index - 1]
    counters[LAST_MOVES] = move
    counters[MOVE_COUNT] += 1
    return LEGAL


@njit(cache=True, nogil=True)
def play_moves(states, counters, hashes, moves, board_start, max_moves, neighbors, keys):
    """Play a move in each state, in place; return the index and the status of the first illegal move, or 0, LEGAL."""
    num_points = neighbors.shape[0]
    is_marked, stack = np.zeros(num_points, np.bool_), np.empty(num_points, np.int16)
    rules = board_start, max_moves, neighbors, keys, is_marked, stack
    for row in range(states.shape[0]):
        status = play_move(states[row], counters[row], hashes[row], moves[row], *rules)
        if status != LEGAL:
            return row, status
    return 0, LEGAL


@njit(cache=True, nogil=True)
def replay_moves(
    states, counters, hashes, moves, is_recorded, starts, lengths, board_start, max_moves, neighbors, keys, num_played
):
    """Play ``lengths[row]`` moves in each state, in place, from ``moves[starts[row]]``, until one is illegal.

    ``num_played`` is set to the number of the legal ones. Passes that are not recorded do not count toward the end.
    """
    num_points = neighbors.shape[0]
    is_marked, stack = np.zeros(num_points, np.bool_), np.empty(num_points, np.int16)
    rules = board_start, max_moves, neighbors, keys, is_marked, stack
    for row in range(states.shape[0]):
        num_played[row] = 0
        while num_played[row] < lengths[row]:
            index = starts[row] + num_played[row]
            if play_move(states[row], counters[row], hashes[row], moves[index], *rules) != LEGAL:
                break
            if not is_recorded[index]:
                states[row, 1] = 0
            num_played[row] += 1


@njit(cache=True, nogil=True)
def find_owners(states, board_start, neighbors, owners):
    """Find the owner of each point: 1 Black, 2 White, 0 neither.

    A point belongs to the color of its stone, or to the only color that its empty region touches.
    """
    num_points = neighbors.shape[0]
    stack = np.empty(num_points, np.int16)
    is_visited = np.empty(num_points, np.bool_)
    for row in range(states.shape[0]):
        board = states[row, board_start : board_start + num_points]
        owners[row] = board
        is_visited[:] = False
        for first in range(num_points):
            if board[first] or is_visited[first]:
                continue
            is_visited[first], stack[0], size = True, first, 1
            index, colors = 0, 0  # a bit for each color that the region touches
            while index < size:
                for neighbor in neighbors[stack[index]]:
                    if neighbor < 0:
                        break
                    colors |= board[neighbor]
                    if board[neighbor] == 0 and not is_visited[neighbor]:
                        is_visited[neighbor] = True
                        stack[size] = neighbor
                        size += 1
                index += 1
            for index in range(size):
                owners[row, stack[index]] = colors % 3


@njit(cache=True, nogil=True)
def fill_planes(states, counters, hashes, board_start, neighbors, keys, komi, planes):
    """Fill the input planes ``(N, NUM_PLANES, points)``, which are zeros; see :class:`fukami.self_play.go.Go`."""
    num_points = neighbors.shape[0]
    labels, liberties, marks, stack = np.empty((4, num_points), np.int16)
    group_hashes = np.empty(num_points, np.uint64)
    legal, superko = np.empty((2, num_points), np.bool_)
    groups = labels, liberties, group_hashes
    for row in range(states.shape[0]):
        player, output = states[row, 0], planes[row]
        board = states[row, board_start : board_start + num_points]
        find_groups(board, neighbors, keys, labels, liberties, group_hashes, marks, stack)
        find_legal_points(states[row], counters[row], hashes[row], board_start, neighbors, keys, groups, legal, superko)
        for point in range(num_points):
            if board[point]:
                side = 0 if board[point] == player else 1
                output[side, point] = 1
                num_liberties = liberties[labels[point]]
                if num_liberties <= 3:
                    output[1 + 3 * side + num_liberties, point] = 1
            output[14, point] = superko[point]
        for index in range(NUM_LAST_MOVES):
            move = counters[row, LAST_MOVES + index]
            if move < num_points:
                output[8 + index, move] = 1
        output[13] = counters[row, LAST_MOVES] == num_points
        output[15] = komi / 20 if player == 2 else -komi / 20
        output[16] = 1

"""Reference for tests of Go: sgfmill's board with a set of all positions, and random games."""

import numpy as np
from sgfmill.boards import Board

COLORS = "bw"


class ReferenceGame:
    """A game of Go on sgfmill's board, which does not know superko; the positions are in a set."""

    def __init__(self, size):
        self.board = Board(size)
        self.size = size
        self.player = 0
        self.passes = 0
        self.moves = []
        self.positions = {self.get_position()}

    def get_position(self):
        """Return the colors of the points, row by row from the lowest."""
        return tuple(self.board.get(row, column) for row in range(self.size) for column in range(self.size))

    def try_move(self, move):
        """Return the position after a move, or None if the point is occupied or the move is suicide."""
        row, column = divmod(move, self.size)
        if self.board.get(row, column) is not None:
            return None
        board, self.board = self.board, self.board.copy()
        self.board.play(row, column, COLORS[self.player])
        is_suicide = self.board.get(row, column) is None
        position = self.get_position()
        self.board = board
        return None if is_suicide else position

    def find_moves(self):
        """Return the sets of legal moves, without to pass, and of moves that only superko forbids."""
        positions = {move: self.try_move(move) for move in range(self.size**2)}
        possible = {move for move, position in positions.items() if position is not None}
        repeating = {move for move in possible if positions[move] in self.positions}
        return possible - repeating, repeating

    def count_liberties(self, point):
        """Count the liberties of the group at a point."""
        group = self.board._make_group(*divmod(point, self.size), self.board.get(*divmod(point, self.size)))
        around = {
            (row + dy, column + dx) for row, column in group.points for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0))
        }
        inside = [(y, x) for y, x in around if 0 <= y < self.size and 0 <= x < self.size]
        return sum(self.board.get(y, x) is None for y, x in inside)

    def play(self, move):
        if move == self.size**2:
            self.passes += 1
        else:
            self.passes = 0
            self.board.play(*divmod(move, self.size), COLORS[self.player])
        self.positions.add(self.get_position())
        self.player = 1 - self.player
        self.moves.append(move)


def find_eyes(own, opponent):
    """Find the points with four own neighbors and, at the edge, no opponent's diagonal neighbor, elsewhere one."""
    own, opponent = np.pad(own, 1, constant_values=1), np.pad(opponent, 1)
    edge = np.pad(np.zeros((own.shape[0] - 4, own.shape[1] - 4)), 1, constant_values=1)
    neighbors = own[:-2, 1:-1] + own[2:, 1:-1] + own[1:-1, :-2] + own[1:-1, 2:]
    diagonals = opponent[:-2, :-2] + opponent[2:, :-2] + opponent[:-2, 2:] + opponent[2:, 2:]
    return (neighbors == 4) & (diagonals + edge < 2)


def choose_random_move(go, states, rng):
    """Choose a random legal move that does not fill an own eye; pass if there is none."""
    legal = go.legal_moves(states)[0, :-1]
    moves = np.flatnonzero(legal & ~find_eyes(*go.planes(states)[0, :2]).ravel())
    return int(rng.choice(moves)) if len(moves) else go.num_moves - 1

"""Go with area scoring and positional superko."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fukami.errors import Error, UsageError
from fukami.self_play import go_rules
from fukami.self_play.game import Game, Moves, States, Symmetries

MIN_SIZE, MAX_SIZE = 2, 19
DEFAULT_KOMI = {5: 24.5, 7: 8.5}  # half a point less than Black's score with perfect play, as far as it is known
OTHER_KOMI = 7.5
COLUMNS = "ABCDEFGHJKLMNOPQRST"  # of GTP, which omits I
STATUS_REASONS = {
    go_rules.GAME_OVER: "the game is over",
    go_rules.OCCUPIED: "the point is occupied",
    go_rules.SUICIDE: "suicide is forbidden",
    go_rules.SUPERKO: "it recreates an earlier position (superko)",
}


class Go(Game):
    """Go under the Tromp-Taylor rules without suicide.

    Area scoring counts the stones of a color and the empty regions that touch only this color; no stone is removed as
    dead. A move must not recreate any earlier position of the whole board (positional superko); to pass is always
    legal. The game ends after two passes in a row, or after ``max_moves`` moves, scored as it stands. AlphaGo Zero
    stops a game of self-play after ``2·19·19`` moves (Silver et al. 2017, Methods).

    The first row of the board is the lowest, row 1 of GTP. Planes, after KataGo (Wu 2019, table 3), whose planes of
    ladders and areas are omitted; AlphaGo Zero has the stones of the last eight positions instead of planes 2 to 14:

    ======  ======================================================================
    plane   content
    ======  ======================================================================
    0-1     stones of the side to move, and of the opponent
    2-4     stones of the side to move with 1, 2 and 3 liberties
    5-7     stones of the opponent with 1, 2 and 3 liberties
    8-12    last five moves, the most recent first; a pass is an empty plane
    13      1 if the last move is a pass, else 0
    14      points that only ko or superko forbids
    15      komi for the side to move (minus the komi for Black), divided by 20
    16      1
    ======  ======================================================================

    Args:
        size: number of rows and columns, 2 to 19.
        komi: points for White; by default 24.5 on 5×5, 8.5 on 7×7 and 7.5 on other boards.

    Raises:
        UsageError: the size is not supported, or the komi is not a number of at most 1,000 points.
    """

    player_names = ("black", "white")
    num_planes = go_rules.NUM_PLANES
    has_pass = True
    has_score = True

    def __init__(self, size: int, komi: float | None = None) -> None:
        if not MIN_SIZE <= size <= MAX_SIZE:
            raise UsageError(f"the size of a Go board should be between {MIN_SIZE} and {MAX_SIZE}, not {size}")
        self.komi = DEFAULT_KOMI.get(size, OTHER_KOMI) if komi is None else float(komi)
        if not abs(self.komi) <= 1000:  # nor NaN
            raise UsageError(f"komi should be between -1000 and 1000 points, not {komi}")
        self.name = f"go{size}"
        self.shape = (size, size)
        self.num_moves = size * size + 1
        self.max_moves = 2 * size * size + 20  # more than AlphaGo Zero's on small boards, where captures are frequent
        self._size = size
        self._pass = size * size
        self._board_start = go_rules.HEADER_BYTES + 8 * (self.max_moves + 1)
        self._state_bytes = math.ceil((self._board_start + 2 * size * size) / 8) * 8
        self._neighbors = _list_neighbors(size)
        self._keys = _build_zobrist_keys(2 * size * size).reshape(2, size * size)

    def build_initial_state(self) -> States:
        """Build the state ``(S,)`` with an empty board."""
        state = np.zeros(self._state_bytes, np.uint8)
        state[0] = 1
        last_moves = slice(go_rules.LAST_MOVES, go_rules.LAST_MOVES + go_rules.NUM_LAST_MOVES)
        state.view(np.uint16)[last_moves] = go_rules.NO_MOVE
        return state

    def place_stones(self, black: Sequence[int], white: Sequence[int] = (), player: int = 0) -> States:
        """Build the state ``(S,)`` of a game that starts with stones on the board, such as a handicap.

        Args:
            black: points of the black stones.
            white: points of the white stones.
            player: side to move: 0 Black, 1 White.

        Raises:
            ValueError: a point is not on the board or specified twice, or a group has no liberties.
        """
        points = [*black, *white]
        if len(set(points)) < len(points) or not set(points) <= set(range(self._pass)):
            raise ValueError(f"the stones should be on different points below {self._pass}")
        state = self.build_initial_state()
        board = state[self._board_start : self._board_start + self._pass]
        board[list(black)], board[list(white)] = 1, 2
        state[self._board_start + self._pass :][: self._pass] = board > 0
        state[0] = 1 + player
        is_marked, stack = np.zeros(self._pass, np.bool_), np.empty(self._pass, np.int16)
        for point in points:
            if go_rules.collect_group(board, point, self._neighbors, is_marked, stack):
                raise ValueError(f"the group of {self.format_move(point)} has no liberties")
        return state

    def check_states(self, states: States) -> None:
        """Check states ``(N, S)`` of a file, which may be corrupted.

        Raises:
            Error: the side to move, the number of moves, or a point is invalid.
        """
        board = states[:, self._board_start : self._board_start + self._pass]
        counts = np.ascontiguousarray(states[:, :4]).view(np.uint16)[:, go_rules.MOVE_COUNT]
        if not (np.isin(states[:, 0], (1, 2)).all() and (counts <= self.max_moves).all() and (board <= 2).all()):
            raise Error(
                f"a file of the run contains invalid positions of {self.name}; start a new run in another --out"
            )

    def legal_moves(self, states: States) -> npt.NDArray[np.bool_]:
        """Return which moves are legal, ``(N, A)``; none after the end of the game."""
        views = self._view_states(states)
        legal = np.empty((len(states), self.num_moves), np.bool_)
        go_rules.find_legal_moves(*views, self._board_start, self.max_moves, self._neighbors, self._keys, legal)
        return legal

    def play(self, states: States, moves: Moves) -> States:
        """Return the states after a move ``(N,)`` in each.

        Raises:
            ValueError: a move is illegal.
        """
        moves = np.ascontiguousarray(moves, np.int64)
        if moves.shape != (len(states),) or ((moves < 0) | (moves > self._pass)).any():
            raise ValueError(f"expected {len(states)} moves from 0 to {self._pass}, not {moves!r:.200}")
        states = np.array(states, order="C")
        row, status = go_rules.play_moves(
            *self._view_states(states), moves, self._board_start, self.max_moves, self._neighbors, self._keys
        )
        if status != go_rules.LEGAL:
            reason = STATUS_REASONS[status]
            if status == go_rules.GAME_OVER and states[row, 1] < 2:
                reason = f"a game on {self._size}×{self._size} ends after {self.max_moves} moves"
            raise ValueError(f"{self.format_move(int(moves[row]))} is illegal: {reason}")
        return states

    def insert_pass(self, state: States) -> States:
        """Return a state ``(S,)`` with the other player to move, after a pass that does not count toward the end.

        Raises:
            ValueError: the game is over.
        """
        state = self.play(state[None], np.array([self._pass]))[0]
        state[1] = 0
        return state

    def replay(
        self,
        states: States,
        moves: npt.NDArray[np.int16],
        is_recorded: npt.NDArray[np.bool_],
        starts: Moves,
        lengths: Moves,
    ) -> tuple[States, Moves]:
        """Play several moves in each state, and return the states and the numbers of moves until an illegal one.

        Args:
            states: ``(N, S)``; the argument is not changed. The state after an illegal move is undefined.
            moves: moves of all games, 0 to H·W, one game after the other.
            is_recorded: which of them are not passes as of :meth:`insert_pass`.
            starts, lengths: index of the first move and number of moves for each state, ``(N,)``.
        """
        states, num_played = np.array(states, order="C"), np.zeros(len(states), np.int64)
        rules = self._board_start, self.max_moves, self._neighbors, self._keys
        go_rules.replay_moves(*self._view_states(states), moves, is_recorded, starts, lengths, *rules, num_played)
        return states, num_played

    def outcome(self, states: States) -> npt.NDArray[np.float32]:
        """Return the outcomes ``(N,)`` for the side to move: 1 win, 0 draw, -1 loss, NaN if the game is not over."""
        outcomes = np.full(len(states), np.nan, np.float32)
        counts = np.ascontiguousarray(states[:, :4]).view(np.uint16)[:, go_rules.MOVE_COUNT]
        over = (states[:, 1] >= 2) | (counts >= self.max_moves)
        if over.any():
            outcomes[over] = np.sign(self.scores(states[over]))
        return outcomes

    def scores(self, states: States) -> npt.NDArray[np.float32]:
        """Return the area scores ``(N,)`` for the side to move, with the komi, if the games ended now."""
        areas = self.owners(states).sum(axis=1)
        scores: npt.NDArray[np.float32] = areas + np.where(states[:, 0] == 2, self.komi, -self.komi)
        return scores.astype(np.float32)

    def owners(self, states: States) -> npt.NDArray[np.float32]:
        """Return the owners of the points ``(N, H·W)``: 1 the side to move, -1 the opponent, 0 neither."""
        owners = np.empty((len(states), self._pass), np.uint8)
        go_rules.find_owners(self._view_states(states)[0], self._board_start, self._neighbors, owners)
        values = np.array([[0, 1, -1], [0, -1, 1]], np.float32)  # of the owners neither, Black and White
        return np.asarray(values[states[:, :1] - 1, owners])

    def planes(self, states: States) -> npt.NDArray[np.float32]:
        """Return the input planes ``(N, C, H, W)``."""
        views = self._view_states(states)
        planes = np.zeros((len(states), self.num_planes, self._pass), np.float32)
        go_rules.fill_planes(*views, self._board_start, self._neighbors, self._keys, self.komi, planes)
        return planes.reshape(len(states), self.num_planes, *self.shape)

    def symmetries(self) -> Symmetries:
        """Return the eight symmetries of the square."""
        board = np.arange(self._pass, dtype=np.int64).reshape(self.shape)
        boards = [np.rot90(side, turns) for side in (board, board.T) for turns in range(4)]
        cells = np.stack(boards).reshape(8, self._pass)
        return Symmetries(cells, np.pad(cells, ((0, 0), (0, 1)), constant_values=self._pass))

    def get_player(self, state: States) -> int:
        """Return the side to move in a state ``(S,)``: 0 Black, 1 White."""
        return int(state[0]) - 1

    def format_move(self, move: int) -> str:
        """Format a move in the coordinates of GTP, such as ``D4``, or ``pass``."""
        if move == self._pass:
            return "pass"
        row, column = divmod(move, self._size)
        return f"{COLUMNS[column]}{row + 1}"

    def _view_states(self, states: States) -> tuple[States, npt.NDArray[np.uint16], npt.NDArray[np.uint64]]:
        """Return views of the states in the three types that the kernels read.

        Unaligned states are copied, since the kernels would be compiled again for them.

        Raises:
            ValueError: the states have another shape or type, such as those of another size of board.
        """
        if states.shape[1:] != (self._state_bytes,) or states.dtype != np.uint8:
            raise ValueError(
                f"states of {self.name} should be uint8 of the shape (N, {self._state_bytes}), not {states.dtype} "
                f"{states.shape}"
            )
        states = np.ascontiguousarray(states)
        hashes = states.view(np.uint64)
        if not hashes.flags.aligned:
            states = states.copy()
            hashes = states.view(np.uint64)
        return states, states.view(np.uint16), hashes


def _list_neighbors(size: int) -> npt.NDArray[np.int16]:
    """List the neighbors of each point ``(points, 4)``; -1 after the last one."""
    padded = np.pad(np.arange(size * size, dtype=np.int16).reshape(size, size), 1, constant_values=-1)
    neighbors = np.stack([padded[1:-1, :-2], padded[1:-1, 2:], padded[:-2, 1:-1], padded[2:, 1:-1]], axis=-1)
    return np.ascontiguousarray(-np.sort(-neighbors.reshape(size * size, 4), axis=1))


def _build_zobrist_keys(count: int) -> npt.NDArray[np.uint64]:
    """Build pseudorandom numbers that never change, since states contain them (SplitMix64; Steele et al. 2014)."""
    numbers = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))

"""Catch: a ball falls, and a paddle at the bottom has to be under it; a game that needs nothing and is soon learned.

After Mnih, Heess, Graves and Kavukcuoglu, "Recurrent Models of Visual Attention", 2014, section 4.2. Here the ball
drifts aside and bounces off the walls, so that where it will land can be told from several frames alone.
"""

import numpy as np
import numpy.typing as npt

from fukami.reinforcement.vector_env import StepResult

ACTIONS = ("stay", "left", "right")
GRID_SIZE = 14  # across and down
CELL_SIZE = 6  # of a cell
FRAME_SIZE = GRID_SIZE * CELL_SIZE  # 84
PADDLE_WIDTH = 3  # cells of its width
COLORS = ((24, 24, 32), (240, 200, 60), (110, 190, 250))  # of the ground, the ball and the paddle


class Catch:
    """Several games side by side. An episode is one ball: its return is 1 where it is caught, and -1 where not.

    Args:
        num_envs: of the games.
    """

    action_names: tuple[str, ...] = ACTIONS
    frame_shape: tuple[int, ...] = (FRAME_SIZE, FRAME_SIZE)

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs
        self.ball = np.zeros((num_envs, 2), np.int64)  # column and row
        self.drift = np.zeros(num_envs, np.int64)
        self.paddle = np.zeros(num_envs, np.int64)  # its leftmost cell
        self.pending_actions = np.zeros(num_envs, np.int64)

    def reset(self, mask: npt.NDArray[np.bool_], seeds: npt.NDArray[np.int64]) -> StepResult:
        """Begin anew where ``mask`` ``(count,)`` says so, each game with its seed."""
        for game in np.flatnonzero(mask):
            random = np.random.default_rng(int(seeds[game]))
            self.ball[game] = random.integers(GRID_SIZE), 0
            self.drift[game] = random.integers(-1, 2)
            self.paddle[game] = random.integers(GRID_SIZE - PADDLE_WIDTH + 1)
        return self._build_step_result(np.zeros(self.num_envs, np.float32), np.zeros(self.num_envs, bool))

    def send(self, actions: npt.NDArray[np.int64]) -> None:
        """Take an action in each game."""
        self.pending_actions = actions

    def receive(self) -> StepResult:
        """What has become of them."""
        self.paddle = np.clip(self.paddle + np.array([0, -1, 1])[self.pending_actions], 0, GRID_SIZE - PADDLE_WIDTH)
        column = self.ball[:, 0] + self.drift
        self.drift = np.where((column < 0) | (column >= GRID_SIZE), -self.drift, self.drift)
        self.ball[:, 0] = np.where(
            column < 0, -column, np.where(column >= GRID_SIZE, 2 * (GRID_SIZE - 1) - column, column)
        )
        self.ball[:, 1] += 1
        landed = self.ball[:, 1] == GRID_SIZE - 1
        under = (self.ball[:, 0] >= self.paddle) & (self.ball[:, 0] < self.paddle + PADDLE_WIDTH)
        return self._build_step_result(np.where(landed, np.where(under, 1.0, -1.0), 0.0).astype(np.float32), landed)

    def render(self, index: int) -> npt.NDArray[np.uint8]:
        """A game in colour, ``(H, W, 3)``."""
        cells = self._compute_cells()[index].repeat(4 * CELL_SIZE, 0).repeat(4 * CELL_SIZE, 1)
        return np.asarray(np.array(COLORS, np.uint8)[cells])

    def _compute_cells(self) -> npt.NDArray[np.int64]:
        """What is in each cell: 0 nothing, 1 the ball, 2 the paddle."""
        cells = np.zeros((self.num_envs, GRID_SIZE, GRID_SIZE), np.int64)
        games = np.arange(self.num_envs)
        for cell in range(PADDLE_WIDTH):
            cells[games, GRID_SIZE - 1, self.paddle + cell] = 2
        cells[games, np.minimum(self.ball[:, 1], GRID_SIZE - 1), self.ball[:, 0]] = 1
        return cells

    def _build_step_result(self, rewards: npt.NDArray[np.float32], ended: npt.NDArray[np.bool_]) -> StepResult:
        frames = np.array([0, 255, 160], np.uint8)[self._compute_cells()].repeat(CELL_SIZE, 1).repeat(CELL_SIZE, 2)
        never = np.zeros(self.num_envs, bool)
        return StepResult(frames, rewards, ended, never, never)

    def close(self) -> None:
        """Nothing is open."""

"""Catch: a bundled game in which a paddle has to catch a falling ball; agents learn it within minutes.

The game follows Mnih, Heess, Graves and Kavukcuoglu, "Recurrent Models of Visual Attention", 2014, section 4.2. Here
the ball also moves sideways and bounces off the walls, so predicting where it lands requires several frames.
"""

import numpy as np
import numpy.typing as npt

from fukami.reinforcement.vector_env import StepResult

ACTIONS = ("stay", "left", "right")
GRID_SIZE = 14  # cells per row and column
CELL_SIZE = 6  # side of a cell in pixels
FRAME_SIZE = GRID_SIZE * CELL_SIZE  # 84
PADDLE_WIDTH = 3  # width in cells
COLORS = ((24, 24, 32), (240, 200, 60), (110, 190, 250))  # background, ball and paddle


class Catch:
    """Parallel Catch environments. An episode is one ball; its return is 1 if the ball is caught, else -1.

    Args:
        num_envs: number of environments.
    """

    action_names: tuple[str, ...] = ACTIONS
    frame_shape: tuple[int, ...] = (FRAME_SIZE, FRAME_SIZE)

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs
        self.ball = np.zeros((num_envs, 2), np.int64)  # column and row
        self.drift = np.zeros(num_envs, np.int64)
        self.paddle = np.zeros(num_envs, np.int64)  # leftmost column of the paddle
        self.pending_actions = np.zeros(num_envs, np.int64)

    def reset(self, mask: npt.NDArray[np.bool_], seeds: npt.NDArray[np.int64]) -> StepResult:
        """Reset the environments selected by ``mask`` ``(E,)``, each with its seed; return the frames of all."""
        for index in np.flatnonzero(mask):
            rng = np.random.default_rng(int(seeds[index]))
            self.ball[index] = rng.integers(GRID_SIZE), 0
            self.drift[index] = rng.integers(-1, 2)
            self.paddle[index] = rng.integers(GRID_SIZE - PADDLE_WIDTH + 1)
        return self._build_step_result(np.zeros(self.num_envs, np.float32), np.zeros(self.num_envs, bool))

    def send(self, actions: npt.NDArray[np.int64]) -> None:
        """Store the actions ``(E,)`` of the next step."""
        self.pending_actions = actions

    def receive(self) -> StepResult:
        """Do the step and return its result."""
        self.paddle = np.clip(self.paddle + np.array([0, -1, 1])[self.pending_actions], 0, GRID_SIZE - PADDLE_WIDTH)
        column = self.ball[:, 0] + self.drift
        self.drift = np.where((column < 0) | (column >= GRID_SIZE), -self.drift, self.drift)
        self.ball[:, 0] = np.where(
            column < 0, -column, np.where(column >= GRID_SIZE, 2 * (GRID_SIZE - 1) - column, column)
        )
        self.ball[:, 1] += 1
        landed = self.ball[:, 1] == GRID_SIZE - 1
        caught = (self.ball[:, 0] >= self.paddle) & (self.ball[:, 0] < self.paddle + PADDLE_WIDTH)
        return self._build_step_result(np.where(landed, np.where(caught, 1.0, -1.0), 0.0).astype(np.float32), landed)

    def render(self, index: int) -> npt.NDArray[np.uint8]:
        """Render an environment in color, ``(H, W, 3)``."""
        cells = self._compute_cells()[index].repeat(4 * CELL_SIZE, 0).repeat(4 * CELL_SIZE, 1)
        return np.asarray(np.array(COLORS, np.uint8)[cells])

    def _compute_cells(self) -> npt.NDArray[np.int64]:
        """Compute the content ``(E, H, W)`` of the cells: 0 empty, 1 ball, 2 paddle."""
        cells = np.zeros((self.num_envs, GRID_SIZE, GRID_SIZE), np.int64)
        indices = np.arange(self.num_envs)
        for cell in range(PADDLE_WIDTH):
            cells[indices, GRID_SIZE - 1, self.paddle + cell] = 2
        cells[indices, np.minimum(self.ball[:, 1], GRID_SIZE - 1), self.ball[:, 0]] = 1
        return cells

    def _build_step_result(self, rewards: npt.NDArray[np.float32], terminated: npt.NDArray[np.bool_]) -> StepResult:
        frames = np.array([0, 255, 160], np.uint8)[self._compute_cells()].repeat(CELL_SIZE, 1).repeat(CELL_SIZE, 2)
        all_false = np.zeros(self.num_envs, bool)
        return StepResult(frames, rewards, terminated, all_false, all_false)

    def close(self) -> None:
        """Do nothing."""

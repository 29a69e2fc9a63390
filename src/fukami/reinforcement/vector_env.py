"""Interface of parallel environments."""

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

FRAME_SIZE = 84  # side of the network's input frames in pixels (Mnih et al. 2015, methods)
FRAME_SKIP = 4  # frames for which an action is repeated
MAX_NOOPS = 30  # maximum number of initial no-op frames, a random number of which diversifies the episodes
MAX_EPISODE_FRAMES = 108_000  # maximum episode length in frames: half an hour


FrameArray = npt.NDArray[np.uint8] | npt.NDArray[np.float32]  # images or vectors


class StepResult(NamedTuple):
    """Result of a step in each environment.

    Attributes:
        frames: images ``(E, H, W)`` uint8, or vectors ``(E, n)`` float32.
        rewards: ``(E,)``, not clipped.
        terminated: ``(E,)``, whether the episode ended.
        truncated: ``(E,)``, whether the episode was cut off by the time limit.
        life_lost: ``(E,)``, whether a life was lost while the episode continues.
    """

    frames: FrameArray
    rewards: npt.NDArray[np.float32]
    terminated: npt.NDArray[np.bool_]
    truncated: npt.NDArray[np.bool_]
    life_lost: npt.NDArray[np.bool_]


class VectorEnv(Protocol):
    """Parallel environments; after the end of its episode, an environment does nothing until it is reset.

    Attributes:
        num_envs: number of environments.
        action_names: names of the actions.
        frame_shape: shape of a frame.
    """

    num_envs: int
    action_names: tuple[str, ...]
    frame_shape: tuple[int, ...]

    def reset(self, mask: npt.NDArray[np.bool_], seeds: npt.NDArray[np.int64]) -> StepResult:
        """Reset the environments selected by ``mask`` ``(E,)``, each with its seed; return the frames of all."""
        ...

    def send(self, actions: npt.NDArray[np.int64]) -> None:
        """Start a step with an action for each environment, possibly in the background."""
        ...

    def receive(self) -> StepResult:
        """Wait for the step and return its result."""
        ...

    def render(self, index: int) -> npt.NDArray[np.uint8]:
        """Render an environment in color, ``(H, W, 3)``."""
        ...

    def close(self) -> None:
        """Close all environments."""
        ...

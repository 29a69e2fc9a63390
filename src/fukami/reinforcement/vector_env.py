"""Games that an agent plays, many side by side: our own, those of gymnasium, and those of the Atari 2600."""

from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

FRAME_SIZE = 84  # pixels of the frames that the network sees (Mnih et al. 2015, methods)
FRAME_SKIP = 4  # frames that an action is repeated for
MAX_NOOPS = 30  # frames at most in which nothing is done at the beginning, so that no two games are alike
MAX_EPISODE_FRAMES = 108_000  # frames of an episode at most: half an hour


class StepResult(NamedTuple):
    """What there is to see of each game after an action.

    Attributes:
        frames: ``(G, H, W)`` uint8, or vectors ``(G, n)`` float32.
        rewards: ``(G,)``, as the game gives them.
        terminated: ``(G,)``: the game is over.
        truncated: ``(G,)``: it is not, but took too long.
        life_lost: ``(G,)``: a life was lost, after which it goes on.
    """

    frames: npt.NDArray[Any]
    rewards: npt.NDArray[np.float32]
    terminated: npt.NDArray[np.bool_]
    truncated: npt.NDArray[np.bool_]
    life_lost: npt.NDArray[np.bool_]


class VectorEnv(Protocol):
    """Games side by side; a game that has ended does nothing until it is reset.

    Attributes:
        num_envs: of the games.
        action_names: what they are called.
        frame_shape: of a frame.
    """

    num_envs: int
    action_names: tuple[str, ...]
    frame_shape: tuple[int, ...]

    def reset(self, mask: npt.NDArray[np.bool_], seeds: npt.NDArray[np.int64]) -> StepResult:
        """Begin anew where ``mask`` ``(G,)`` says so, each game with its seed; what there is to see of all."""
        ...

    def send(self, actions: npt.NDArray[np.int64]) -> None:
        """Take an action in each game, perhaps while something else is computed."""
        ...

    def receive(self) -> StepResult:
        """What has become of them."""
        ...

    def render(self, index: int) -> npt.NDArray[np.uint8]:
        """A game in colour, ``(H, W, 3)``."""
        ...

    def close(self) -> None:
        """End them all."""
        ...

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
        ended: ``(G,)``: the game is over.
        cut: ``(G,)``: it is not, but took too long.
        lost: ``(G,)``: a life was lost, after which it goes on.
    """

    frames: npt.NDArray[Any]
    rewards: npt.NDArray[np.float32]
    ended: npt.NDArray[np.bool_]
    cut: npt.NDArray[np.bool_]
    lost: npt.NDArray[np.bool_]


class VectorEnv(Protocol):
    """Games side by side; a game that has ended does nothing until it is reset.

    Attributes:
        count: of the games.
        actions: what they are called.
        shape: of a frame.
    """

    count: int
    actions: tuple[str, ...]
    shape: tuple[int, ...]

    def reset(self, which: npt.NDArray[np.bool_], seeds: npt.NDArray[np.int64]) -> StepResult:
        """Begin anew where ``which`` ``(G,)`` says so, each game with its seed; what there is to see of all."""
        ...

    def send(self, actions: npt.NDArray[np.int64]) -> None:
        """Take an action in each game, perhaps while something else is computed."""
        ...

    def receive(self) -> StepResult:
        """What has become of them."""
        ...

    def picture(self, game: int) -> npt.NDArray[np.uint8]:
        """A game in colour, ``(H, W, 3)``."""
        ...

    def close(self) -> None:
        """End them all."""
        ...

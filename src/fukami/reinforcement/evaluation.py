"""Trials: episodes that an agent is judged by."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fukami.reinforcement.replay import ReplayBuffer
from fukami.reinforcement.vector_env import VectorEnv

StepCallback = Callable[[VectorEnv, npt.NDArray[np.float32], npt.NDArray[np.int64], npt.NDArray[np.float64]], None]


@dataclass(frozen=True)
class EvaluationEpisodes:
    """Episodes side by side, one in each game, each from its own random beginning (Mnih et al. 2015, "Evaluation").

    Attributes:
        make_envs: so many games.
        seeds: of the episodes.
        frame_stack: frames of a state.
        epsilon: the share of actions that are taken by chance.
    """

    make_envs: Callable[[int], VectorEnv]
    seeds: tuple[int, ...]
    frame_stack: int
    epsilon: float

    def __len__(self) -> int:
        return len(self.seeds)

    def __iter__(self) -> Iterator[int]:
        """The seed of each episode."""
        return iter(self.seeds)

    def run(
        self, predict_values: Callable[[Tensor], Tensor], callback: StepCallback | None = None
    ) -> tuple[list[float], list[int], float]:
        """The return and the length of each episode, and what the best action was worth on average.

        ``predict_values`` tells what each action is worth in states ``(G, H, ...)``, ``(G, A)``. ``callback`` is called
        before each step with the games, what each action is worth, the actions ``(G,)``, and the returns so far
        ``(G,)``.
        """
        games = self.make_envs(len(self))
        count = games.num_envs
        memory = ReplayBuffer(count, games.frame_shape, self.frame_stack)
        memory.allocate(torch.device("cpu"))
        chance = np.random.default_rng([4, *self.seeds])
        returns, lengths, going = np.zeros(count), np.zeros(count, np.int64), np.ones(count, bool)
        seen, first = games.reset(going, np.array(self.seeds)), np.ones(count, bool)
        worth = looked = 0.0
        while going.any():
            memory.add(torch.from_numpy(np.ascontiguousarray(seen.frames)), torch.from_numpy(first))
            state = memory.stack_frames(
                torch.full((count,), memory.current_step), torch.arange(count), self.frame_stack
            )
            found = predict_values(state).cpu().numpy()
            worth, looked = worth + float(found.max(1)[going].sum()), looked + float(going.sum())
            by_chance = chance.random(count) < self.epsilon
            other = chance.integers(found.shape[1], size=count)
            actions = np.where(by_chance, other, found.argmax(1))
            if callback:
                callback(games, found, actions, returns)
            games.send(actions)
            seen, first = games.receive(), np.zeros(count, bool)
            returns += np.where(going, seen.rewards, 0)
            lengths += going
            going = going & ~(seen.terminated | seen.truncated)
        games.close()
        return returns.tolist(), lengths.tolist(), worth / looked

"""Evaluation of an agent over whole episodes."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fukami.progress import ProgressBar
from fukami.reinforcement.replay import ReplayBuffer
from fukami.reinforcement.vector_env import VectorEnv

MAX_BATCH_SIZE = 256  # states whose values are predicted at a time

StepCallback = Callable[[VectorEnv, npt.NDArray[np.float32], npt.NDArray[np.int64], npt.NDArray[np.float64]], None]


@dataclass(frozen=True)
class EvaluationEpisodes:
    """Parallel evaluation episodes, each in its own environment and with its own seed.

    Source: Mnih et al. 2015, methods, "Evaluation procedure".

    Attributes:
        make_envs: function that creates a number of parallel environments.
        seeds: seed of each episode.
        frame_stack: number of frames per state.
        epsilon: exploration rate epsilon, the probability of a random action.
    """

    make_envs: Callable[[int], VectorEnv]
    seeds: tuple[int, ...]
    frame_stack: int
    epsilon: float

    noun: ClassVar[str] = "episode"

    def __len__(self) -> int:
        return len(self.seeds)

    def __iter__(self) -> Iterator[int]:
        """Iterate over the seeds."""
        return iter(self.seeds)

    def run(
        self, predict_values: Callable[[Tensor], Tensor], callback: StepCallback | None = None
    ) -> tuple[list[float], list[int], float]:
        """Run the episodes; return their returns and lengths, and the mean of the maximum action values.

        ``predict_values`` maps states ``(E, H, ...)`` to action values ``(E, A)``. ``callback`` is called before each
        step with the environments, the action values, the actions ``(E,)`` and the returns so far ``(E,)``.
        """
        with contextlib.closing(self.make_envs(len(self))) as envs:
            return self._run(envs, predict_values, callback)

    def _run(
        self, envs: VectorEnv, predict_values: Callable[[Tensor], Tensor], callback: StepCallback | None
    ) -> tuple[list[float], list[int], float]:
        """Run the episodes in environments."""
        count = envs.num_envs
        buffer = ReplayBuffer(count, envs.frame_shape, self.frame_stack, is_saved=False)
        buffer.allocate(torch.device("cpu"))
        rng = np.random.default_rng([4, *self.seeds])
        returns, lengths, running = np.zeros(count), np.zeros(count, np.int64), np.ones(count, bool)
        result, episode_starts = envs.reset(running, np.array(self.seeds)), np.ones(count, bool)
        value_sum = num_states = 0.0
        with ProgressBar("evaluation", count, "episodes") as bar:
            while running.any():
                buffer.add(torch.from_numpy(np.ascontiguousarray(result.frames)), torch.from_numpy(episode_starts))
                states = buffer.stack_frames(
                    torch.full((count,), buffer.current_step), torch.arange(count), self.frame_stack
                )
                values = torch.cat([predict_values(part).cpu() for part in torch.split(states, MAX_BATCH_SIZE)]).numpy()
                value_sum, num_states = (
                    value_sum + float(values.max(1)[running].sum()),
                    num_states + float(running.sum()),
                )
                explore = rng.random(count) < self.epsilon
                random_actions = rng.integers(values.shape[1], size=count)
                actions = np.where(explore, random_actions, values.argmax(1))
                if callback:
                    callback(envs, values, actions, returns)
                envs.send(actions)
                result, episode_starts = envs.receive(), np.zeros(count, bool)
                returns += np.where(running, result.rewards, 0)
                lengths += running
                running = running & ~(result.terminated | result.truncated)
                bar.update(count - int(running.sum()) - bar.n)
        return returns.tolist(), lengths.tolist(), value_sum / num_states

"""Deep Q-Network: an agent that learns to play from what it sees (Mnih et al. 2015)."""

import contextlib
import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from fukami.engine import schedules
from fukami.engine.recipe import Data, Recipe, check_range

if TYPE_CHECKING:
    from fukami.engine.task import OptimizerFactory
    from fukami.reinforcement.evaluation import EvaluationEpisodes
    from fukami.reinforcement.task import QLearningTask


@dataclass(frozen=True, kw_only=True)
class DQN(Recipe):
    """Deep Q-Network (Mnih et al. 2015).

    Result: mean return 1.0 on catch (embedded), the maximum, in about 65 seconds; 19.17 on Pong after 1.2 million steps
    with Double DQN and Adam, in 71 minutes; both on 2 cores of an AMD EPYC. The paper: 18.9 on Pong.

    Example:
        fukami train dqn --env catch
    """

    env: str = "catch"
    """catch (embedded), an Atari game such as pong, or what gymnasium calls so, such as CartPole-v1."""
    steps: int = 24_000
    """Actions in the whole training, over all games; of an Atari game each is four frames."""
    num_envs: int = 4
    """That are played side by side."""
    buffer_size: int = 1_000_000
    """Steps that are remembered."""
    frame_stack: int = 4
    """Frames of a state."""
    learning_starts: int = 1_000
    """Steps that are played by chance before anything is learned; the paper has 50,000."""
    train_frequency: int = 4
    """Steps between two updates."""
    exploration_steps: int = 10_000
    """Steps in which the share of actions by chance falls from 1 to the least; the paper has a million."""
    epsilon_end: float = 0.05
    """That share at least; the paper has 0.1."""
    gamma: float = 0.99
    """Of what comes a step later."""
    target_update_interval: int = 250
    """Updates between two copies of the network into the one that the targets come from; the paper has 10,000."""
    double: bool = False
    """Double Q-learning: the network chooses the action whose value the other one tells (van Hasselt et al. 2016)."""
    clip_rewards: bool = True
    """To -1..1, so that one learning rate suits all games."""
    batch_size: int = 32
    """Moments in an update."""
    hidden: int = 512
    """Width of the affine layer."""
    optimizer: Literal["adam", "rmsprop"] = "adam"
    """How gradients become updates: adam, of the mean error of a batch, or rmsprop, the paper's, of its sum."""
    lr: float = 2.5e-4
    """Learning rate."""
    schedule: str = "constant"
    """Course of the learning rate: constant, as in the paper, step=DROPS, multistep=SHARE,SHARE, exponential=END,
    polynomial=POWER, cosine, one-cycle, plateau=PATIENCE."""
    clip_norm: float = 0.0
    """Greatest norm of the gradient, to which a greater one is scaled down; 0, as in the paper: any."""
    eval_every: int = 8_000
    """Steps between two evaluations; there is one at the end in any case."""
    eval_episodes: int = 30
    """Of an evaluation, side by side, each from a random beginning."""
    eval_epsilon: float = 0.05
    """Share of actions by chance while it is judged."""

    def __post_init__(self) -> None:
        """Refuse what no run can have."""
        check_range(
            self,
            1,
            math.inf,
            "num_envs",
            "frame_stack",
            "train_frequency",
            "target_update_interval",
            "batch_size",
            "hidden",
            "eval_every",
            "eval_episodes",
        )
        check_range(self, 0, math.inf, "lr", "clip_norm", "exploration_steps")
        check_range(self, 0, 1, "epsilon_end", "gamma", "eval_epsilon")
        check_range(
            self, max(self.frame_stack + 1, self.batch_size) * self.num_envs, math.inf, "learning_starts", "buffer_size"
        )
        check_range(self, self.learning_starts + self.train_frequency, math.inf, "steps")
        schedules.parse_schedule(self.schedule)

    def load_data(self) -> Data:
        """The games; the labels are what the actions are called."""
        from fukami.reinforcement import env_registry
        from fukami.reinforcement.replay import ExperienceCollector

        played = env_registry.make_envs(self.env, self.num_envs)
        experience = ExperienceCollector(
            played,
            batch_size=self.batch_size,
            frame_stack=self.frame_stack,
            buffer_size=min(self.buffer_size, self.steps),
            learning_starts=self.learning_starts,
            train_frequency=self.train_frequency,
            exploration_steps=self.exploration_steps,
            epsilon_end=self.epsilon_end,
            seed=self.seed,
        )
        return Data(experience, self.load_eval_data(), played.action_names)

    def load_eval_data(self, *, render: bool = False) -> "EvaluationEpisodes":
        """The episodes that it is judged by, with ``render`` to be shown, too."""
        from fukami.reinforcement import env_registry
        from fukami.reinforcement.evaluation import EvaluationEpisodes

        seeds = tuple(range(self.seed, self.seed + self.eval_episodes))
        return EvaluationEpisodes(
            partial(env_registry.make_envs, self.env, render=render), seeds, self.frame_stack, self.eval_epsilon
        )

    def build_task(self, labels: tuple[str, ...]) -> "QLearningTask":
        """An agent that can take these actions."""
        from fukami import models
        from fukami.reinforcement import env_registry
        from fukami.reinforcement.task import QLearningTask

        with contextlib.closing(env_registry.make_envs(self.env, 1)) as game:
            shape = game.frame_shape
        shape = (self.frame_stack, *shape) if len(shape) == 2 else (self.frame_stack * shape[0],)
        updates = (self.steps - self.learning_starts) // self.train_frequency
        return QLearningTask(
            models.dqn(len(labels), state_shape=shape, hidden=self.hidden),
            labels,
            shape,
            gamma=self.gamma,
            target_update_interval=self.target_update_interval,
            double=self.double,
            clip_rewards=self.clip_rewards,
            reduction="sum" if self.optimizer == "rmsprop" else "mean",
            step_counts=(updates, max(1, self.eval_every // self.train_frequency)),
            optimizer=self.get_optimizer_factory(),
            lr_schedule=schedules.parse_schedule(self.schedule),
            clip_norm=self.clip_norm,
        )

    def get_optimizer_factory(self) -> "OptimizerFactory":
        """Adam with the epsilon of Hessel et al. 2018 (table 1), or the paper's RMSprop."""
        import torch

        from fukami.reinforcement.rmsprop import CenteredRMSprop

        if self.optimizer == "adam":
            return partial(torch.optim.Adam, lr=self.lr, eps=1.5e-4, fused=True)
        return partial(CenteredRMSprop, lr=self.lr)

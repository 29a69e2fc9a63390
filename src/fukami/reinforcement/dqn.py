"""Deep Q-Network (Mnih et al. 2015)."""

import contextlib
import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from fukami.engine import schedules
from fukami.engine.recipe import Data, Recipe, check_range
from fukami.errors import UsageError

if TYPE_CHECKING:
    from fukami.engine.task import OptimizerFactory
    from fukami.reinforcement.evaluation import EvaluationEpisodes
    from fukami.reinforcement.task import QLearningTask

MAX_EVAL_EPISODES = 10_000  # each has an environment of its own
MAX_FRAME_STACK = 32  # frames of a state
MAX_EVAL_FRAMES = 2**15  # of the states of all evaluation episodes; a gigabyte with 84×84 pixels as float32


@dataclass(frozen=True, kw_only=True)
class DQN(Recipe):
    """Deep Q-Network (Mnih et al. 2015).

    Result: mean return 0.98 on catch (bundled), mean of 3 seeds, in about 65 seconds (the maximum is 1); 17.83 on Pong
    after 1.2 million steps with Double DQN and Adam (an earlier run took 71 minutes); both on 2 cores of an AMD EPYC.
    The paper: 18.9 on Pong.

    Example:
        fukami train dqn --env catch
    """

    env: str = "catch"
    """Environment: catch (bundled), an Atari game such as pong, or a gymnasium environment such as CartPole-v1."""
    steps: int = 24_000
    """Total number of environment steps, over all environments; an Atari step is four frames."""
    num_envs: int = 4
    """Number of parallel environments."""
    buffer_size: int = 1_000_000
    """Capacity of the replay buffer in environment steps."""
    frame_stack: int = 4
    """Number of stacked frames per state."""
    learning_starts: int = 1_000
    """Environment steps with random actions before training starts; 50,000 in the paper."""
    train_frequency: int = 4
    """Environment steps per optimizer step."""
    exploration_fraction: float = 0.41667
    """Fraction of the steps in which the exploration rate epsilon decreases linearly, after learning-starts; 0.02 in
    the paper (1,000,000 of 50,000,000)."""
    epsilon_start: float = 1.0
    """Initial exploration rate epsilon, 0 to 1."""
    epsilon_end: float = 0.05
    """Final exploration rate epsilon, 0 to 1; 0.1 in the paper."""
    gamma: float = 0.99
    """Discount factor gamma, 0 to 1."""
    target_update_interval: int = 250
    """Update interval of the target network in optimizer steps; 10,000 in the paper."""
    double: bool = False
    """Double DQN: the online network selects the action that the target network evaluates (van Hasselt et al.
    2016)."""
    clip_rewards: bool = True
    """Clip rewards to -1..1, so that one learning rate suits all games."""
    batch_size: int = 32
    """Number of transitions per optimizer step."""
    hidden: int = 512
    """Number of units of the hidden fully connected layer."""
    optimizer: Literal["adam", "rmsprop"] = "adam"
    """Optimizer: adam, with the mean loss of a batch, or rmsprop, the paper's, with the sum."""
    lr: float = 2.5e-4
    """Peak learning rate."""
    schedule: str = "constant"
    """Learning-rate schedule: constant (as in the paper), step=NUM_DROPS, multistep=FRACTION,FRACTION,
    exponential=FINAL_FACTOR, polynomial=POWER, cosine, one-cycle or plateau=PATIENCE."""
    clip_norm: float = 0.0
    """Maximum gradient norm (gradient clipping); 0, as in the paper, disables it."""
    eval_every: int = 8_000
    """Evaluation interval in environment steps; the last step is always evaluated."""
    eval_episodes: int = 30
    """Number of parallel evaluation episodes, each with its own seed."""
    eval_epsilon: float = 0.05
    """Exploration rate epsilon during evaluation, 0 to 1."""

    def __post_init__(self) -> None:
        """Validate the fields."""
        super().__post_init__()
        check_range(self, 1, MAX_EVAL_EPISODES, "eval_episodes")
        check_range(self, 1, MAX_FRAME_STACK, "frame_stack")
        if self.eval_episodes * self.frame_stack > MAX_EVAL_FRAMES:
            raise UsageError(
                f"--eval-episodes times --frame-stack is {self.eval_episodes * self.frame_stack:,}, and may be at most "
                f"{MAX_EVAL_FRAMES:,}: the episodes run in parallel"
            )
        check_range(
            self,
            1,
            math.inf,
            "num_envs",
            "train_frequency",
            "target_update_interval",
            "batch_size",
            "hidden",
            "eval_every",
        )
        check_range(self, 0, math.inf, "lr", "clip_norm")
        check_range(self, 0, 1, "exploration_fraction", "epsilon_start", "epsilon_end", "gamma", "eval_epsilon")
        check_range(
            self, max(self.frame_stack + 1, self.batch_size) * self.num_envs, math.inf, "learning_starts", "buffer_size"
        )
        check_range(self, self.learning_starts + self.train_frequency, math.inf, "steps")
        schedules.parse_schedule(self.schedule)

    def load_data(self) -> Data:
        """Create the environments; the labels are the names of the actions."""
        from fukami.reinforcement import env_registry
        from fukami.reinforcement.replay import ExperienceCollector

        envs = env_registry.make_envs(self.env, self.num_envs)
        collector = ExperienceCollector(
            envs,
            batch_size=self.batch_size,
            frame_stack=self.frame_stack,
            buffer_size=min(self.buffer_size, self.steps),
            learning_starts=self.learning_starts,
            train_frequency=self.train_frequency,
            exploration_steps=round(self.exploration_fraction * self.steps),
            epsilon_start=self.epsilon_start,
            epsilon_end=self.epsilon_end,
            seed=self.seed,
        )
        return Data(collector, self.build_episodes(), envs.action_names)

    def load_eval_data(self) -> Data:
        """Build the evaluation episodes."""
        return Data((), self.build_episodes())

    def build_episodes(self, *, render: bool = False) -> "EvaluationEpisodes":
        """Build the evaluation episodes; ``render`` enables color frames."""
        from fukami.reinforcement import env_registry
        from fukami.reinforcement.evaluation import EvaluationEpisodes

        seeds = tuple(range(self.seed, self.seed + self.eval_episodes))
        return EvaluationEpisodes(
            partial(env_registry.make_envs, self.env, render=render), seeds, self.frame_stack, self.eval_epsilon
        )

    def build_task(self, labels: tuple[str, ...]) -> "QLearningTask":
        """Build the task of an agent with these actions."""
        from fukami import models
        from fukami.reinforcement import env_registry
        from fukami.reinforcement.task import QLearningTask

        with contextlib.closing(env_registry.make_envs(self.env, 1)) as env:
            shape = env.frame_shape
        shape = (self.frame_stack, *shape) if len(shape) == 2 else (self.frame_stack * shape[0],)
        num_optimizer_steps = (self.steps - self.learning_starts) // self.train_frequency
        return QLearningTask(
            models.dqn(len(labels), state_shape=shape, hidden=self.hidden),
            labels,
            shape,
            gamma=self.gamma,
            target_update_interval=self.target_update_interval,
            double=self.double,
            clip_rewards=self.clip_rewards,
            reduction="sum" if self.optimizer == "rmsprop" else "mean",
            epochs=num_optimizer_steps,
            eval_every=max(1, self.eval_every // self.train_frequency),
            optimizer=self.get_optimizer_factory(),
            lr_schedule=schedules.parse_schedule(self.schedule),
            clip_norm=self.clip_norm,
        )

    def get_optimizer_factory(self) -> "OptimizerFactory":
        """Return the factory of Adam with the epsilon of Hessel et al. 2018 (table 1), or of the paper's RMSprop."""
        import torch

        from fukami.reinforcement.rmsprop import CenteredRMSprop

        if self.optimizer == "adam":
            return partial(torch.optim.Adam, lr=self.lr, eps=1.5e-4, fused=True)
        return partial(CenteredRMSprop, lr=self.lr)

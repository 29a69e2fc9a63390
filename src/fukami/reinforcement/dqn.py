"""Deep Q-Network: an agent that learns to play from what it sees (Mnih et al. 2015)."""

import contextlib
import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

from fukami.engine import schedules
from fukami.engine.recipe import Data, Recipe, check_range

if TYPE_CHECKING:
    from fukami.engine.task import OptimizerFactory
    from fukami.reinforcement.evaluation import EvaluationEpisodes
    from fukami.reinforcement.task import QLearningTask


@dataclass(frozen=True, kw_only=True)
class DQN(Recipe):
    """What each action is worth, learned by trial and error."""

    paper: ClassVar[str] = "Mnih et al., Human-level control through deep reinforcement learning"
    year: ClassVar[int] = 2015
    family: ClassVar[str] = "play"
    published: ClassVar[str] = "18.9 Pong, mean return"
    reached: ClassVar[str] = "19.17 Pong, Double DQN with Adam, one seed"

    game: str = "catch"
    """catch (embedded), an Atari game such as pong, or what gymnasium calls so, such as CartPole-v1."""
    steps: int = 24_000
    """Actions in the whole training, over all games; of an Atari game each is four frames."""
    games: int = 4
    """That are played side by side."""
    memory: int = 1_000_000
    """Steps that are remembered."""
    history: int = 4
    """Frames of a state."""
    learning_starts: int = 1_000
    """Steps that are played by chance before anything is learned; the paper has 50,000."""
    every: int = 4
    """Steps between two updates."""
    explore: int = 10_000
    """Steps in which the share of actions by chance falls from 1 to the least; the paper has a million."""
    least: float = 0.05
    """That share at least; the paper has 0.1."""
    discount: float = 0.99
    """Of what comes a step later."""
    target: int = 250
    """Updates between two copies of the network into the one that the targets come from; the paper has 10,000."""
    double: bool = False
    """Double Q-learning: the network chooses the action whose value the other one tells (van Hasselt et al. 2016)."""
    clip_rewards: bool = True
    """To -1..1, so that one learning rate suits all games."""
    batch: int = 32
    """Moments in an update."""
    hidden: int = 512
    """Width of the affine layer."""
    optimizer: Literal["adam", "rmsprop"] = "adam"
    """How gradients become updates: adam, of the mean error of a batch, or rmsprop, the paper's, of its sum."""
    lr: float = 2.5e-4
    """Learning rate."""
    decay: str = "constant"
    """Course of the learning rate: constant, as in the paper, step=DROPS, multistep=SHARE,SHARE, exponential=END,
    polynomial=POWER, cosine, one-cycle, plateau=PATIENCE."""
    clip: float = 0.0
    """Greatest norm of the gradient, to which a greater one is scaled down; 0, as in the paper: any."""
    judge_every: int = 8_000
    """Steps between two evaluations; there is one at the end in any case."""
    episodes: int = 30
    """Of an evaluation, side by side, each from a random beginning."""
    epsilon: float = 0.05
    """Share of actions by chance while it is judged."""

    def __post_init__(self) -> None:
        """Refuse what no run can have."""
        check_range(
            self, 1, math.inf, "games", "history", "every", "target", "batch", "hidden", "judge_every", "episodes"
        )
        check_range(self, 0, math.inf, "lr", "clip", "explore")
        check_range(self, 0, 1, "least", "discount", "epsilon")
        check_range(self, max(self.history + 1, self.batch) * self.games, math.inf, "learning_starts", "memory")
        check_range(self, self.learning_starts + self.every, math.inf, "steps")
        schedules.parse_schedule(self.decay)

    def data(self) -> Data:
        """The games; the labels are what the actions are called."""
        from fukami.reinforcement import env_registry
        from fukami.reinforcement.replay import ExperienceCollector

        played = env_registry.make_envs(self.game, self.games)
        experience = ExperienceCollector(
            played,
            batch=self.batch,
            history=self.history,
            steps=min(self.memory, self.steps),
            begin=self.learning_starts,
            every=self.every,
            explore=self.explore,
            least=self.least,
            seed=self.seed,
        )
        return Data(experience, self.judged(), played.actions)

    def judged(self, *, colour: bool = False) -> "EvaluationEpisodes":
        """The episodes that it is judged by, with ``colour`` to be shown, too."""
        from fukami.reinforcement import env_registry
        from fukami.reinforcement.evaluation import EvaluationEpisodes

        seeds = tuple(range(self.seed, self.seed + self.episodes))
        return EvaluationEpisodes(
            partial(env_registry.make_envs, self.game, colour=colour), seeds, self.history, self.epsilon
        )

    def task(self, labels: tuple[str, ...]) -> "QLearningTask":
        """An agent that can take these actions."""
        from fukami import models
        from fukami.reinforcement import env_registry
        from fukami.reinforcement.task import QLearningTask

        with contextlib.closing(env_registry.make_envs(self.game, 1)) as game:
            shape = game.shape
        shape = (self.history, *shape) if len(shape) == 2 else (self.history * shape[0],)
        updates = (self.steps - self.learning_starts) // self.every
        return QLearningTask(
            models.dqn(len(labels), shape=shape, hidden=self.hidden),
            labels,
            shape,
            discount=self.discount,
            target=self.target,
            double=self.double,
            clip_rewards=self.clip_rewards,
            reduction="sum" if self.optimizer == "rmsprop" else "mean",
            steps=(updates, max(1, self.judge_every // self.every)),
            optimizer=self.make_optimizer(),
            decay=schedules.parse_schedule(self.decay),
            clip=self.clip,
        )

    def make_optimizer(self) -> "OptimizerFactory":
        """Adam with the epsilon of Hessel et al. 2018 (table 1), or the paper's RMSprop."""
        import torch

        from fukami.reinforcement.rmsprop import CenteredRMSprop

        if self.optimizer == "adam":
            return partial(torch.optim.Adam, lr=self.lr, eps=1.5e-4, fused=True)
        return partial(CenteredRMSprop, lr=self.lr)

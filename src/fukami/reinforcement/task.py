"""Deep Q-learning: training, evaluation and prediction."""

import copy
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple, Unpack

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from fukami.data.loader import Loader
from fukami.engine.prediction import Prediction
from fukami.engine.task import Metrics, Task, TrainingOptions
from fukami.errors import UsageError
from fukami.image import io as image_io
from fukami.models.dqn import DQN
from fukami.progress import track
from fukami.quantization import half_precision
from fukami.reinforcement import plots as reinforcement_plots
from fukami.reinforcement.evaluation import EvaluationEpisodes, StepCallback
from fukami.reinforcement.replay import ExperienceCollector, TransitionBatch

if TYPE_CHECKING:
    from fukami.engine.runtime import Runtime
    from fukami.engine.task import FigureContent

NUM_STANDARDIZATION_FRAMES = 1_000  # frames of the random policy used to compute input statistics


class QLearningTask(Task):
    """Deep Q-learning with a replay buffer and a target network (Mnih et al. 2015, algorithm 1).

    Args:
        model: maps states ``(N, H, ...)`` to action values ``(N, A)``; has ``fit_input_statistics`` for images.
        labels: names of the actions.
        state_shape: shape of a state.
        gamma: discount factor.
        target_update_interval: update interval of the target network in optimizer steps.
        double: select actions with the online network and evaluate them with the target network (van Hasselt et al.
            2016).
        clip_rewards: clip rewards to -1..1, so that one learning rate suits all games.
        reduction: reduction of the loss of a batch, ``"mean"``, or ``"sum"`` as in DeepMind's code.
        options: training options, as for :class:`fukami.Task`; an epoch is one optimizer step.
    """

    label_noun = "action"
    metric_mode = None
    supports_cuda_graph = True
    model: DQN

    def __init__(
        self,
        model: DQN,
        labels: tuple[str, ...],
        state_shape: tuple[int, ...],
        *,
        gamma: float,
        target_update_interval: int,
        double: bool,
        clip_rewards: bool,
        reduction: Literal["mean", "sum"] = "mean",
        **options: Unpack[TrainingOptions],
    ) -> None:
        super().__init__(model, **options)
        self.labels = labels
        self.state_shape = state_shape
        self.gamma = gamma
        self.target_update_interval = target_update_interval
        self.double, self.clip_rewards, self.reduction = double, clip_rewards, reduction
        self.target_network = copy.deepcopy(model)

    def setup(self, runtime: "Runtime") -> None:
        """Move the networks to the device."""
        super().setup(runtime)
        self.target_network = runtime.move_to_device(self.target_network).requires_grad_(False)

    def prepare_training(self) -> None:
        """Create the optimizer."""
        super().prepare_training()
        self.state["target network"] = self.target_network

    def replace_modules(self, modules: dict[str, nn.Module]) -> None:
        """Replace the network for inference."""
        super().replace_modules(modules)
        self.target_network = self.model

    def iterate_batches(self, loader: Loader) -> Iterator[TransitionBatch]:
        """Yield a batch of transitions for each optimizer step, after collecting experience.

        The environments step in the background during the optimizer step.
        """
        assert isinstance(loader, ExperienceCollector)
        while True:
            collections: Iterable[int] = range(loader.collections_until_step)
            if loader.num_optimizer_steps == 0:
                collections = track(collections, "filling the replay buffer", unit="steps")
            for _ in collections:
                loader.collect(self.select_actions)
            if loader.num_optimizer_steps == 0 and len(self.state_shape) == 3:
                self.model.fit_input_statistics(loader.buffer.sample_frames(NUM_STANDARDIZATION_FRAMES))
            if loader.num_optimizer_steps % self.target_update_interval == 0:
                self.target_network.load_state_dict(self.model.state_dict())
            loader.num_optimizer_steps += 1
            yield loader.sample_batch()

    @torch.inference_mode()
    def select_actions(self, states: Tensor) -> Tensor:
        """Select the greedy action ``(N,)`` for states ``(N, H, ...)``."""
        return self.predict_values(states).argmax(1)

    def predict_values(self, states: Tensor) -> Tensor:
        """Predict the action values ``(N, A)`` of states ``(N, H, ...)``."""
        with half_precision.enable_float32_fallback(self.model), self.runtime.autocast():
            values: Tensor = self.model(states.to(self.runtime.device))
            return values.float()

    def compute_loss(self, batch: TransitionBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the temporal-difference loss, Huber's loss with threshold 1.

        The error term is clipped to -1..1 (Mnih et al. 2015, methods, "Training algorithm for deep Q-networks").
        """
        action_values = self.training_model(batch.frames[:, :-1])
        values = action_values.gather(1, batch.actions.unsqueeze(1)).squeeze(1)
        with torch.no_grad():
            next_states = batch.frames[:, 1:]
            next_action_values = self.target_network(next_states)
            if self.double:
                next_actions = self.training_model(next_states).argmax(1, keepdim=True)
                next_values = next_action_values.gather(1, next_actions).squeeze(1)
            else:
                next_values = next_action_values.amax(1)
            rewards = batch.rewards.clamp(-1, 1) if self.clip_rewards else batch.rewards
            targets = rewards + self.gamma * batch.not_terminated * next_values
        errors = F.smooth_l1_loss(values, targets, reduction="none") * batch.not_truncated
        loss = errors.sum() if self.reduction == "sum" else errors.mean()
        return loss, {"q_value": values.detach().mean(), "epsilon": batch.epsilon, "return": batch.mean_return}

    @torch.inference_mode()
    def collect_results(self, batches: Iterable[int], callback: StepCallback | None = None) -> "EpisodeResults":
        """Run evaluation episodes with an epsilon-greedy policy; ``callback`` is called before each step."""
        assert isinstance(batches, EvaluationEpisodes)
        with self.evaluation_mode():
            return EpisodeResults(*batches.run(self.predict_values, callback))

    def prepare_image(self, image: Image.Image) -> Tensor:
        """Convert an image to a game frame ``(1, H, W)`` uint8.

        Raises:
            UsageError: the states are vectors.
        """
        if len(self.state_shape) != 3:
            raise UsageError("the states of this agent are vectors, not images; run it with fukami play")
        frame = image_io.convert_mode(image, "L").resize(self.state_shape[:0:-1], Image.Resampling.BOX)
        return torch.from_numpy(np.array(frame))[None]

    def predict_batch(self, images: Tensor) -> list[Prediction]:
        """Predict the best ``action`` and the action ``values`` for states that repeat one game frame."""
        predictions: list[Prediction] = []
        for values in self.predict_values(images.expand(len(images), *self.state_shape)).tolist():
            action_values = dict(zip(self.labels, values, strict=True))
            predictions.append({"action": max(action_values, key=action_values.__getitem__), "values": action_values})
        return predictions

    def draw(self, image: Image.Image, prediction: Prediction) -> Image.Image:
        """Draw the image and the action values."""
        values = list(prediction["values"].values())
        frame = np.array(image_io.convert_mode(image, "RGB"))
        return reinforcement_plots.draw_step(frame, self.labels, values, int(np.argmax(values)), 0.0)

    def plot_evaluation(self, batches: Iterable[int]) -> "Iterator[tuple[str, FigureContent]]":
        """Yield a figure of the episode returns and lengths."""
        results = self._get_results(batches)
        assert isinstance(results, EpisodeResults)
        yield "Episode returns", reinforcement_plots.plot_returns(results.returns, results.lengths)


class EpisodeResults(NamedTuple):
    """Results of evaluation episodes.

    Attributes:
        returns: return of each episode, not clipped.
        lengths: length of each episode in steps.
        mean_value: mean of the maximum action values over all states.
    """

    returns: list[float]
    lengths: list[int]
    mean_value: float

    def compute_metrics(self) -> Metrics:
        """Compute the mean and standard deviation of the return, the mean length and the mean value."""
        count = len(self.returns)
        mean = sum(self.returns) / count
        deviation = (sum((episode_return - mean) ** 2 for episode_return in self.returns) / count) ** 0.5
        return {
            "return": mean, "return_deviation": deviation, "length": sum(self.lengths) / count,
            "q_value": self.mean_value, "count": count,
        }  # fmt: skip

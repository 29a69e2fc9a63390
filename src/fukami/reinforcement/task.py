"""Q-learning: an agent plays, remembers, and learns what each action is worth."""

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Unpack

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from fukami.engine.cached_evaluation import CachedEvaluationTask
from fukami.engine.task import TrainingOptions
from fukami.errors import Error, UsageError, convert_memory_errors
from fukami.image import io as image_io
from fukami.quantization import half_precision
from fukami.reinforcement import plots as reinforcement_plots
from fukami.reinforcement.replay import ExperienceCollector, TransitionBatch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fukami.engine.runtime import Runtime
    from fukami.reinforcement.evaluation import EvaluationEpisodes, StepCallback

NUM_STANDARDIZATION_FRAMES = 1_000  # frames that were played by chance, by which images are standardised


class QLearningTask(CachedEvaluationTask):
    """Deep Q-learning with a memory and a target network (Mnih et al. 2015, algorithm 1).

    Args:
        model: states ``(N, H, ...)`` to the value of each action ``(N, A)``; it can ``standardise`` images.
        labels: what the actions are called.
        state_shape: of a state.
        gamma: of what comes a step later.
        target_update_interval: updates between two copies of the network into the one that the targets come from.
        double: the network itself chooses the action whose value the other one tells (van Hasselt et al. 2016).
        clip_rewards: to -1..1, so that one learning rate suits all games.
        reduction: ``"mean"`` or ``"sum"`` of the errors of a batch, as DeepMind's code has it.
        step_counts: updates in the whole training, and between two evaluations.
        regime: optimizer, decay and clip, as for :class:`fukami.Task`.
    """

    supports_cuda_graph = True

    def __init__(
        self,
        model: nn.Module,
        labels: tuple[str, ...],
        state_shape: tuple[int, ...],
        *,
        gamma: float,
        target_update_interval: int,
        double: bool,
        clip_rewards: bool,
        reduction: Literal["mean", "sum"] = "mean",
        step_counts: tuple[int, int],
        **regime: Unpack[TrainingOptions],
    ) -> None:
        super().__init__(model, **regime)
        self.labels, self.state_shape, self.gamma, self.target_update_interval = (
            labels,
            state_shape,
            gamma,
            target_update_interval,
        )
        self.double, self.clip_rewards, self.reduction, self.step_counts = double, clip_rewards, reduction, step_counts
        self.target_network = copy.deepcopy(model)

    def setup(self, runtime: "Runtime") -> None:
        """Move to the device and make ready to train."""
        super().setup(runtime)
        self.target_network = runtime.move_to_device(self.target_network).requires_grad_(False)

    def get_stateful_objects(self) -> dict[str, Any]:
        """Also the network that the targets come from."""
        return super().get_stateful_objects() | {"target": self.target_network}

    def replace_modules(self, modules: dict[str, nn.Module]) -> None:
        """Answer with another network."""
        self.model = self.target_network = modules["model"]

    def count_steps(self, train: Any) -> tuple[int, int]:
        """Updates in the whole training, and between two evaluations."""
        return self.step_counts

    def iterate_batches(self, train: ExperienceCollector) -> Iterator[TransitionBatch]:
        """Rounds of play and moments to learn from; while these are learned from, the games go on."""
        while True:
            for _ in range(train.steps_until_update):
                train.collect(self.select_actions)
            if train.num_updates == 0 and len(self.state_shape) == 3:
                self.model.fit_input_statistics(train.buffer.sample_frames(NUM_STANDARDIZATION_FRAMES))  # type: ignore[operator]
            if train.num_updates % self.target_update_interval == 0:
                self.target_network.load_state_dict(self.model.state_dict())
            train.num_updates += 1
            yield train.sample_batch()

    @torch.inference_mode()
    def select_actions(self, states: Tensor) -> Tensor:
        """The action that is worth most in each of ``(N, H, ...)``."""
        return self.predict_values(states).argmax(1)

    def predict_values(self, states: Tensor) -> Tensor:
        """What each action is worth in each of ``(N, H, ...)``, ``(N, A)``."""
        with half_precision.enable_float32_fallback(self.model), self.runtime.autocast():
            return self.model(states.to(self.runtime.device)).float()  # type: ignore[no-any-return]

    def compute_loss(self, batch: TransitionBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The error of what the actions taken were said to be worth, squared near 0 and absolute beyond 1.

        Mnih et al. 2015, equation 3 of the methods, and "Training details": the error term is clipped to -1..1.
        """
        own = self.training_model(batch.frames[:, :-1])
        said = own.gather(1, batch.actions.unsqueeze(1)).squeeze(1)
        with torch.no_grad():
            following = batch.frames[:, 1:]
            later = self.target_network(following)
            if self.double:
                best = self.training_model(following).argmax(1, keepdim=True)
                worth = later.gather(1, best).squeeze(1)
            else:
                worth = later.amax(1)
            rewards = batch.rewards.clamp(-1, 1) if self.clip_rewards else batch.rewards
            goal = rewards + self.gamma * batch.not_terminated * worth
        errors = F.smooth_l1_loss(said, goal, reduction="none") * batch.not_truncated
        loss = errors.sum() if self.reduction == "sum" else errors.mean()
        return loss, {"value": said.detach().mean(), "epsilon": batch.epsilon, "return": batch.mean_return}

    @torch.inference_mode()
    def collect_results(
        self, batches: "EvaluationEpisodes", callback: "StepCallback | None" = None
    ) -> "EpisodeResults":
        """Episodes from random beginnings, with a few actions by chance; ``callback`` sees them before each step."""
        with self.inference_mode():
            return EpisodeResults(*batches.run(self.predict_values, callback))

    def predict(self, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """The best ``action`` where a frame of the game has been seen all along, and what each is worth in ``values``.

        ``inputs`` are paths, PIL images or arrays as :func:`fukami.image.io.read_image` takes them. An image that
        cannot be read yields ``{"file", "error"}``.
        """
        if len(self.state_shape) != 3:
            raise UsageError("this agent does not see images: let it play, with fukami play")
        answers: list[dict[str, Any]] = []
        for source in inputs:
            named = {"file": str(source)} if isinstance(source, str | Path) else {}
            try:
                with convert_memory_errors(named.get("file", "the image given")):
                    image = image_io.convert_mode(image_io.read_image(source), "L").resize(
                        self.state_shape[:0:-1], Image.Resampling.BOX
                    )
            except Error as error:
                answers.append({**named, "error": str(error)})
                continue
            frame = torch.from_numpy(np.array(image))
            with torch.inference_mode(), self.inference_mode():
                (values,) = self.predict_values(frame.expand(1, *self.state_shape)).tolist()
            each = dict(zip(self.labels, values, strict=True))
            answers.append({**named, "action": max(each, key=each.__getitem__), "values": each})
        return answers

    def draw_prediction(self, source: Any, prediction: dict[str, Any]) -> Image.Image:
        """The image, and what each action is worth."""
        image = np.array(image_io.convert_mode(image_io.read_image(source), "RGB"))
        values = list(prediction["values"].values())
        return reinforcement_plots.draw_step(image, self.labels, values, int(np.argmax(values)), 0.0)

    def plot_evaluation(self, batches: Any) -> "Iterator[tuple[str, Figure]]":
        """The returns of the episodes, and the values of the states on the way."""
        found: EpisodeResults = self.get_results(batches)
        yield "Returns of the episodes", reinforcement_plots.plot_returns(found.returns, found.lengths)


class EpisodeResults(NamedTuple):
    """Episodes.

    Attributes:
        returns: of each, not clipped.
        lengths: their steps.
        mean_value: what the best action was worth on the way, on average.
    """

    returns: list[float]
    lengths: list[int]
    mean_value: float

    def compute_metrics(self) -> dict[str, Any]:
        """The mean return first."""
        count = len(self.returns)
        mean = sum(self.returns) / count
        deviation = (sum((each - mean) ** 2 for each in self.returns) / count) ** 0.5
        return {
            "return": mean, "return_deviation": deviation, "length": sum(self.lengths) / count,
            "value": self.mean_value, "count": count,
        }  # fmt: skip

"""Self-play: training, evaluation and prediction of a network that guides a tree search."""

import copy
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Unpack

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fukami.data.loader import Loader
from fukami.engine.prediction import Prediction
from fukami.engine.task import Metrics, ModelSignature, Results, Task, TrainingOptions
from fukami.errors import Error, UsageError
from fukami.image.channels import ChannelSource
from fukami.models.alphago import SCORE_SCALE, AlphaGoZero, BoardPrediction, GoPrediction
from fukami.progress import track
from fukami.quantization import half_precision
from fukami.quantization.winograd import is_faster_than_direct, replace_convolutions
from fukami.self_play.collector import BoardBatch, SelfPlayCollector
from fukami.self_play.evaluation import BoardEvaluation, MatchResults, MoveResults
from fukami.self_play.game import Game, States
from fukami.self_play.match import choose_opening_length, play_match
from fukami.self_play.players import SearchPlayer
from fukami.self_play.search import (
    Evaluate,
    SearchOptions,
    SearchResult,
    TreeSearch,
    build_symmetric_evaluate,
    get_group_size,
    limit_group_size,
    map_groups,
)

if TYPE_CHECKING:
    from PIL.Image import Image

    from fukami.engine.runtime import Runtime
    from fukami.engine.task import FigureContent
    from fukami.self_play.positions import Position

SCORE_WEIGHT, OWNER_WEIGHT = 0.1, 0.5  # of the losses of the score and the owners (after Wu 2019, appendix B)
PREDICT_BATCH_SIZE = 1024  # positions that are searched in parallel
MIN_PROBABILITY = 0.001  # of a move that a prediction lists
GATING_SCORE = 0.55  # score of the gating match that the newest network has to exceed


class SelfPlayTask(Task):
    """Self-play with a tree search and a network that learns its results (Silver et al. 2017).

    Args:
        model: maps planes ``(N, C, H, W)`` to a :class:`fukami.models.alphago.BoardPrediction`.
        games: the rules; the network plays the first one unless another is chosen by :meth:`select_game`.
        search_options: options of the search for evaluation, prediction and play.
        value_weight: weight of the loss of the value.
        ema_decay: decay of the exponential moving average of the weights, which play and predict.
        gating_games: games of the match in which a new network has to score more than 55 % before it generates games,
            as in the paper; 0: the newest network generates them.
        average_symmetries: whether evaluation, prediction and play average the network over the symmetries.
        options: optimizer, lr_schedule, epochs, eval_every and clip_norm, as for :class:`fukami.Task`; an epoch is one
            optimizer step.
    """

    label_noun = "move"
    metric_mode: Literal["max", "min"] | None = None
    reads_positions = True
    search_type: ClassVar[type[TreeSearch]] = TreeSearch
    model: AlphaGoZero

    def __init__(
        self,
        model: AlphaGoZero,
        games: Sequence[Game],
        search_options: SearchOptions,
        *,
        value_weight: float = 1.0,
        ema_decay: float = 0.0,
        gating_games: int = 0,
        average_symmetries: bool = False,
        **options: Unpack[TrainingOptions],
    ) -> None:
        super().__init__(model, **options)
        self.games, self.game, self.search_options = tuple(games), games[0], search_options
        self.value_weight = value_weight
        self.ema_decay, self.gating_games = ema_decay, gating_games
        self.average_symmetries = average_symmetries
        self.ema_model = copy.deepcopy(model)
        self.self_play_model = self.ema_model

    @property
    def simulations(self) -> int:
        """Simulations per move of evaluation, prediction and play."""
        return self.search_options.simulations

    def select_game(self, name: str) -> None:
        """Select the game that is played next, such as a board size.

        Raises:
            UsageError: the network was not trained for this game.
        """
        games = {game.name: game for game in self.games}
        if name not in games:
            raise UsageError(f"the network was trained for {', '.join(games)}, not for {name}; use one of these")
        self.game = games[name]

    def setup(self, runtime: "Runtime") -> None:
        """Move the networks to the device."""
        super().setup(runtime)
        self.ema_model = runtime.move_to_device(self.ema_model)
        self.self_play_model = self.ema_model

    def prepare_training(self) -> None:
        """Create the optimizer, and the network that generates the games."""
        super().prepare_training()
        self.state["ema_model"] = self.ema_model
        if self.gating_games:
            self.self_play_model = copy.deepcopy(self.ema_model)
            self.state["self_play_model"] = self.self_play_model

    def get_modules(self) -> dict[str, nn.Module]:
        """Return the network used for inference."""
        return {"model": self.ema_model}

    def replace_modules(self, modules: dict[str, nn.Module]) -> None:
        """Replace the network for inference."""
        self.model = self.ema_model = self.self_play_model = modules["model"]  # type: ignore[assignment]

    def iterate_batches(self, loader: Loader) -> Iterator[BoardBatch]:
        """Yield a batch of positions for each optimizer step, after the games that are due."""
        assert isinstance(loader, SelfPlayCollector)
        while True:
            if not loader.is_step_due:
                evaluate = self.build_network_evaluate(self.self_play_model)
                while not loader.is_step_due:
                    loader.collect(evaluate)
            batch = loader.sample_batch()
            loader.num_optimizer_steps += 1
            yield batch

    def step(self, batch: BoardBatch) -> dict[str, Tensor]:
        """Run one training step, and update the moving average of the weights."""
        metrics = super().step(batch)
        with self.runtime.clock("optimizer"), torch.no_grad():
            torch._foreach_lerp_(list(self.ema_model.parameters()), list(self.model.parameters()), 1 - self.ema_decay)
            torch._foreach_copy_(list(self.ema_model.buffers()), list(self.model.buffers()))
        return metrics

    def compute_loss(self, batch: BoardBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the cross entropy of the policy and the squared error of the value (Silver et al. 2017, equation 1).

        For Go, Huber's loss of the score and the squared error of the owners are added.
        """
        planes = batch.planes.contiguous(memory_format=torch.channels_last)
        prediction: BoardPrediction | GoPrediction = self.training_model(planes)
        policy_loss = F.cross_entropy(prediction.policy, batch.policies)
        value_loss = F.mse_loss(prediction.value, batch.values)
        loss = policy_loss + self.value_weight * value_loss
        entropy = -torch.xlogy(batch.policies, batch.policies).sum(1).mean()
        metrics = {"policy_loss": (policy_loss - entropy).detach(), "value_loss": value_loss.detach()}
        if isinstance(prediction, GoPrediction):
            assert batch.scores is not None
            assert batch.owners is not None
            score_loss = F.smooth_l1_loss(prediction.score / SCORE_SCALE, batch.scores / SCORE_SCALE)
            ownership_loss = F.mse_loss(prediction.owners, batch.owners)
            loss = loss + SCORE_WEIGHT * score_loss + OWNER_WEIGHT * ownership_loss
            metrics |= {"score_loss": score_loss.detach(), "ownership_loss": ownership_loss.detach()}
        return loss, metrics

    def build_evaluate(self, model: nn.Module | None = None) -> Evaluate:
        """Build the function of the search in evaluation, prediction and play, with the current weights."""
        evaluate = self.build_network_evaluate(model)
        return build_symmetric_evaluate(evaluate, self.game.symmetries()) if self.average_symmetries else evaluate

    def build_network_evaluate(self, model: nn.Module | None = None) -> Evaluate:
        """Build the function from planes to the logits and values of the network, with the current weights."""
        network, device = self.ema_model if model is None else model, self.runtime.device
        if isinstance(network, AlphaGoZero):
            network = self.prepare_network(network)

        def evaluate(planes: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
            with torch.inference_mode(), half_precision.enable_float32_fallback(network), self.runtime.autocast():
                inputs = torch.from_numpy(planes).to(device).contiguous(memory_format=torch.channels_last)
                prediction = network(inputs)
                return prediction[0].float().cpu().numpy(), prediction[1].float().cpu().numpy()

        return evaluate

    def prepare_network(self, model: AlphaGoZero) -> AlphaGoZero:
        """Return a copy of a network that computes the same, faster."""
        network = model.fuse_batch_norm()
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.runtime.precision == "float32" and is_faster_than_direct():
            replace_convolutions(network)
        return network

    def search(self, states: States, simulations: int | None = None, *, model: nn.Module | None = None) -> SearchResult:
        """Search from positions ``(N, S)`` that are not over, without exploration noise.

        Args:
            states: the positions.
            simulations: simulations per position; 0: the network alone; None: those of the run.
            model: the network; None: the one for inference.
        """
        evaluate = self.build_evaluate(model)
        device = self.runtime.device
        num_threads = torch.get_num_threads() if device.type == "cpu" else 1
        count = self.simulations if simulations is None else simulations
        size = limit_group_size(min(get_group_size(device), -(-len(states) // num_threads)), self.game, count)
        parts = [states[start : start + size] for start in range(0, len(states), size)]

        def run(part: States) -> SearchResult:
            return self.create_search(count, evaluate, len(part)).search(part)

        results = track(map_groups(run, parts, device), "search", len(parts), "groups")
        columns: list[Any] = [np.concatenate(values) for values in zip(*results, strict=True)]
        return SearchResult(*columns)

    def on_evaluation(self, metrics: Metrics) -> None:
        """Let the newest network generate the games from now on if it scores more than 55 % in the gating match.

        Silver et al. 2017, methods, "Evaluator".
        """
        if not self.gating_games:
            return
        newest, best = (
            SearchPlayer(self, self.simulations, name, model=model)
            for name, model in (("newest", self.ema_model), ("best", self.self_play_model))
        )
        opening = choose_opening_length(self.game, self.gating_games)
        with self.evaluation_mode():
            result = play_match(self.game, (newest, best), self.gating_games, opening_moves=opening)
        metrics["gating_score"] = result.score
        if self.runtime.all_reduce_any(result.score > GATING_SCORE):  # one decision of all processes
            self.self_play_model.load_state_dict(self.ema_model.state_dict())

    @torch.inference_mode()
    def collect_results(self, batches: Iterable[object]) -> Results:
        """Evaluate on positions whose best moves are known, or by a match."""
        assert isinstance(batches, BoardEvaluation)
        with self.evaluation_mode():
            return batches.run(self)

    def create_search(self, simulations: int, evaluate: Evaluate, num_games: int = 1) -> TreeSearch:
        """Create a tree search."""
        return self.search_type(self.game, evaluate, replace(self.search_options, simulations=simulations), num_games)

    def iterate_predictions(
        self, inputs: Iterable[ChannelSource], *, keep_images: bool = False
    ) -> "Iterator[tuple[Image | None, Prediction]]":
        """Iterate over the positions of files, their drawings and predictions; see :func:`read_positions`.

        A prediction has the ``file`` and the ``line`` of the position, the best ``move``, its ``value`` for the side to
        move, the improved ``policy`` and the ``visits`` of the moves; for a game also the move that was ``played``, and
        the ``rank`` of that move.
        """
        from fukami.self_play.positions import read_positions

        for source in inputs:
            if not isinstance(source, str | os.PathLike):
                raise UsageError(f"specify files of positions of {self.game.name}, not {type(source).__name__}")
            name = os.fspath(source)
            try:
                positions = read_positions(source, self.game)
                while chunk := list(itertools.islice(positions, PREDICT_BATCH_SIZE)):
                    yield from self.predict_positions(name, chunk, keep_images=keep_images)
            except Error as error:
                yield None, {"file": name, "error": str(error)}

    def predict_positions(
        self,
        name: str,
        positions: "Sequence[Position]",
        *,
        keep_images: bool = False,
        simulations: int | None = None,
        model: nn.Module | None = None,
    ) -> "Iterator[tuple[Image | None, Prediction]]":
        """Yield the drawing, None unless ``keep_images``, and the prediction of each position of the file ``name``.

        ``simulations`` and ``model`` are as for :meth:`search`.
        """
        from fukami.self_play.plots import draw_board

        states = [position.state for position in positions if position.state is not None]
        is_open = np.isnan(self.game.outcome(np.stack(states))) if states else np.zeros(0, bool)
        with self.evaluation_mode():
            result = self.search(np.stack(states)[is_open], simulations, model=model) if is_open.any() else None
        rows, indices = iter(is_open.tolist()), itertools.count()
        for position in positions:
            location: Prediction = {"file": name, "line": position.line}
            if position.state is None:
                yield None, {**location, "error": position.error}
            elif not next(rows):
                if position.played is not None:
                    yield None, {**location, "error": f"{name}, line {position.line}: the game is over"}
            else:
                assert result is not None
                single = result.select(next(indices))
                drawing = None
                if keep_images:
                    title = f"{name}, {position.line}"
                    drawing = draw_board(
                        self.game, position.state, position.player, title, None, single, int(single.moves[0])
                    )
                yield drawing, {**location, **self.describe_result(single, position.played)}

    def describe_result(self, result: SearchResult, played: int | None = None) -> Prediction:
        """Describe the search in one position, ready for JSON; ``played`` is the move of a game, to be ranked."""
        policy, visits = result.policies[0], result.visits[0]
        order = np.lexsort((-policy, -visits))
        listed = [move for move in range(len(policy)) if visits[move] or policy[move] >= MIN_PROBABILITY]
        names = {move: self.game.format_move(move) for move in (*listed, int(result.moves[0]))}
        prediction: Prediction = {
            "move": names[int(result.moves[0])],
            "value": round(float(result.values[0]), 4),
            "policy": {names[move]: round(float(policy[move]), 4) for move in listed},
            "visits": {names[move]: int(visits[move]) for move in listed},
            "simulations": int(visits.sum()),
        }
        if played is not None:
            prediction["played"] = self.game.format_move(played)
            prediction["rank"] = 1 + order.tolist().index(played)
        return prediction

    def draw(self, image: "Image", prediction: Prediction) -> "Image":
        """Return the drawing of the position."""
        return image

    def plot_evaluation(self, batches: Iterable[object]) -> "Iterator[tuple[str, FigureContent]]":
        """Yield the fractions of optimal moves, and a game of the network against itself or the opponent."""
        from fukami.self_play import plots

        results = self._get_results(batches)
        if isinstance(results, MoveResults):
            yield "Optimal moves", plots.plot_optimal_moves(results.kinds)
            player = SearchPlayer(self, self.simulations)
            record = play_match(self.game, (player, player), 1, opening_moves=2).records[0]
        else:
            assert isinstance(results, MatchResults)
            record = results.result.records[0]
        with self.evaluation_mode():
            search = self.search(np.stack(record.states[:-1]))
        yield "A game", plots.draw_game(record, search)

    def get_signature(self) -> ModelSignature:
        """Return the signature of the network for other programs."""
        shape = (self.game.num_planes, *self.game.shape)
        metadata = {"game": self.game.name, "policy": "logits of the moves", "value": "-1 to 1, for the side to move"}
        return ModelSignature("go" if self.game.has_score else "board", shape, metadata)

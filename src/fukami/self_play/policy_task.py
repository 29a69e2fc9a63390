"""Policy network trained on the moves of games, and value network on their results (Silver et al. 2016)."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple, Unpack

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fukami.data.loader import Loader
from fukami.engine.task import Metrics, ModelSignature, Task, TrainingOptions
from fukami.errors import Error
from fukami.models.alphago import AlphaGoZero, BoardPrediction
from fukami.progress import track
from fukami.self_play.go import Go
from fukami.self_play.policy_data import PolicyBatch, PositionLoader
from fukami.self_play.search import Evaluate, SearchOptions, SearchResult, TreeSearch
from fukami.self_play.task import SelfPlayTask
from fukami.self_play.tree import Float32Array

if TYPE_CHECKING:
    from fukami.engine.task import FigureContent

EYE_PENALTY = 1000.0  # what is subtracted from the logit of a move that fills an own eye


class PassingSearch(TreeSearch):
    """Tree search in Go that passes where this ends the game with a win."""

    def summarize(self, games: npt.NDArray[np.int64]) -> SearchResult:
        """Summarize the roots of games."""
        result, states = super().summarize(games), self.states[games, 0]
        pass_move = self.game.num_moves - 1
        is_win = self.game.outcome(self.game.play(states, np.full(len(states), pass_move))) == -1
        result.moves[is_win], result.values[is_win], result.is_proven[is_win] = pass_move, 1, True
        result.policies[is_win] = np.arange(self.game.num_moves) == pass_move
        return result


class PolicyTask(SelfPlayTask):
    """Training of a policy network on the moves of games, and of its value head on their results.

    Search, prediction and play are those of self-play, with two additions, since games in files rarely contain passes:
    a network never fills its own eyes (sensibleness in extended data table 2 of Silver et al. 2016), and it passes if
    this ends the game with a win.

    Args:
        model: maps planes ``(N, C, H, W)`` to a :class:`fukami.models.alphago.BoardPrediction`.
        game: the rules.
        search_options: options of the search for prediction and play.
        value_weight: weight of the loss of the value.
        average_symmetries: whether evaluation, prediction and play average the network over the symmetries.
        options: optimizer, lr_schedule, epochs and eval_every, as for :class:`fukami.Task`.
    """

    metric_mode = "max"
    search_type = PassingSearch

    def __init__(
        self,
        model: AlphaGoZero,
        game: Go,
        search_options: SearchOptions,
        *,
        value_weight: float,
        average_symmetries: bool = False,
        **options: Unpack[TrainingOptions],
    ) -> None:
        super().__init__(
            model,
            (game,),
            search_options,
            value_weight=value_weight,
            average_symmetries=average_symmetries,
            **options,
        )

    def iterate_batches(self, loader: Loader) -> Iterator[PolicyBatch]:  # type: ignore[override]
        """Iterate over the batches without end, epoch after epoch."""
        yield from Task.iterate_batches(self, loader)

    def compute_loss(self, batch: PolicyBatch) -> tuple[Tensor, dict[str, Tensor]]:  # type: ignore[override]
        """Compute the cross entropy of the moves, and the squared error of the values that are known."""
        prediction: BoardPrediction = self.training_model(batch.planes.contiguous(memory_format=torch.channels_last))
        policy_loss = F.cross_entropy(prediction.policy, batch.moves)
        is_known = ~batch.values.isnan()
        errors = (prediction.value - batch.values.nan_to_num()) ** 2 * is_known
        count = self.runtime.all_reduce_sum(is_known.sum().float()) / self.runtime.world_size
        value_loss = errors.sum() / count.clamp(min=1e-6)
        top1 = (prediction.policy.argmax(1) == batch.moves).float().mean()
        metrics = {"policy_loss": policy_loss.detach(), "value_loss": value_loss.detach(), "top1": top1}
        return policy_loss + self.value_weight * value_loss, metrics

    def build_evaluate(self, model: nn.Module | None = None) -> Evaluate:
        """Build the function of the search, in which no move fills an own eye."""
        evaluate = super().build_evaluate(model)

        def evaluate_sensible_moves(planes: Float32Array) -> tuple[Float32Array, Float32Array]:
            logits, values = evaluate(planes)
            logits[:, :-1] -= EYE_PENALTY * find_eyes(planes)
            return logits, values

        return evaluate_sensible_moves

    def collect_results(self, batches: Iterable[object]) -> "PolicyResults":
        """Compare the predictions with the moves and the results of games.

        Raises:
            Error: there are no positions.
        """
        assert isinstance(batches, PositionLoader)
        evaluate = super().build_evaluate()
        columns: list[tuple[Float32Array, ...]] = []
        with self.evaluation_mode():
            for batch in track(batches, "evaluation", unit="batches"):
                if len(batch.moves):  # the last batch may have no positions for this process
                    columns.append(compare_predictions(*evaluate(batch.planes.cpu().numpy()), batch))
        columns = [column for part in self.runtime.all_gather(columns) for column in part]
        if not columns:
            raise Error("there is no position to evaluate; use more games, or a larger --val-fraction")
        return PolicyResults(*map(np.concatenate, zip(*columns, strict=True)))

    def plot_evaluation(self, batches: Iterable[object]) -> "Iterator[tuple[str, FigureContent]]":
        """Yield the metrics by the number of the move."""
        from fukami.self_play.policy_plots import plot_metrics

        results = self._get_results(batches)
        assert isinstance(results, PolicyResults)
        yield "Accuracy and value by move number", plot_metrics(results)

    def get_signature(self) -> ModelSignature:
        """Return the signature of the network for other programs, which has no outputs for the score."""
        return super().get_signature()._replace(model_type="board")


def compare_predictions(logits: Float32Array, values: Float32Array, batch: PolicyBatch) -> tuple[Float32Array, ...]:
    """Compare predictions with the moves and the results of games; return the columns of :class:`PolicyResults`."""
    moves = batch.moves.cpu()
    log_policy = torch.from_numpy(logits).log_softmax(1)
    played = log_policy.gather(1, moves[:, None])
    ranks = (~(log_policy < played)).sum(1)  # 1 is best; equal or NaN counts as better
    tensors = ranks, -played[:, 0], torch.from_numpy(values), batch.values, batch.numbers, batch.is_test_player
    return tuple(tensor.float().cpu().numpy() for tensor in tensors)


class PolicyResults(NamedTuple):
    """Predictions and moves of ``N`` positions.

    Attributes:
        ranks: rank of the move that was played among all moves, 1 is the best.
        losses: cross entropy.
        values: predicted values.
        results: results of the games for the side to move; NaN if unknown.
        numbers: numbers of the moves in the games.
        is_test_player: 1 if the game is of a player whose games are only for evaluation, else 0.
    """

    ranks: Float32Array
    losses: Float32Array
    values: Float32Array
    results: Float32Array
    numbers: Float32Array
    is_test_player: Float32Array

    def select(self, is_selected: npt.NDArray[np.bool_]) -> "PolicyResults":
        """Return the results of some positions, a mask ``(N,)``."""
        return PolicyResults(*(column[is_selected] for column in self))

    def separate(self) -> "dict[str, PolicyResults]":
        """Return the results for ordinary games, then those for the ``test_players``, where there are any."""
        is_test_player = self.is_test_player > 0
        parts = {"games": self.select(~is_test_player), "test_players": self.select(is_test_player)}
        return {name: part for name, part in parts.items() if len(part.ranks)}

    def compute_metrics(self) -> Metrics:
        """Return the metrics of ordinary games, with those of the test players as ``test_players``.

        Without ordinary games, those of the test players are the only ones.
        """
        (_, first), *others = ((name, part.compute_part()) for name, part in self.separate().items())
        return {**first, **dict(others)}

    def compute_part(self) -> Metrics:
        """Return the metrics of all positions together.

        ``constant_mse`` is the mean squared error of the best constant instead of ``values``.
        """
        is_known = ~np.isnan(self.results)
        values, results = self.values[is_known].astype(np.float64), self.results[is_known].astype(np.float64)
        metrics: Metrics = {
            "top1": float((self.ranks <= 1).mean()),
            "top5": float((self.ranks <= 5).mean()),
            "cross_entropy": float(self.losses.mean(dtype=np.float64)),
            "count": len(self.ranks),
        }
        if len(results):
            metrics |= {"value_mse": float(((values - results) ** 2).mean()), "constant_mse": float(results.var())}
        if results.any():
            is_decided = results != 0
            metrics["winner_accuracy"] = float((np.sign(values) == results)[is_decided].mean())
        return metrics


def find_eyes(planes: Float32Array) -> npt.NDArray[np.bool_]:
    """Find the eyes of the side to move in planes ``(N, C, H, W)``, ``(N, H·W)``.

    An eye is an empty point whose neighbors are own stones, with at most one stone of the opponent diagonally adjacent,
    or none on the edge of the board.
    """
    own, opponent = planes[:, 0] > 0, planes[:, 1] > 0
    border = ((0, 0), (1, 1), (1, 1))
    sides, corners = np.pad(own, border, constant_values=True), np.pad(opponent, border).astype(np.int8)
    is_surrounded = sides[:, :-2, 1:-1] & sides[:, 2:, 1:-1] & sides[:, 1:-1, :-2] & sides[:, 1:-1, 2:]
    count = corners[:, :-2, :-2] + corners[:, :-2, 2:] + corners[:, 2:, :-2] + corners[:, 2:, 2:]
    is_edge = np.ones(own.shape[1:], bool)
    is_edge[1:-1, 1:-1] = False
    return (is_surrounded & ~own & ~opponent & (count + is_edge < 2)).reshape(len(planes), -1)

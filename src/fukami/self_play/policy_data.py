"""Batches of positions from games of Go, for a policy network."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fukami.data.loader import BatchLoader
from fukami.data.manifest import ManifestItem
from fukami.self_play.game import Moves
from fukami.self_play.policy_games import GoGames

if TYPE_CHECKING:
    from fukami.engine.runtime import Runtime

EVAL_BATCH_SIZE = 256
MAX_NAMED = 3  # positions of a batch in a message


class PolicyBatch(NamedTuple):
    """Batch of positions from games.

    Attributes:
        planes: ``(N, C, H, W)``.
        moves: move that was played in each, ``(N,)``.
        values: result of the game for the side to move, ``(N,)``: 1, 0 or -1; NaN if it is unknown or not learned.
        numbers: number of the move in the game, from 1, ``(N,)``.
        is_test_player: whether the game is of a player whose games are only for evaluation, ``(N,)``.
    """

    planes: Tensor
    moves: Tensor
    values: Tensor
    numbers: Tensor
    is_test_player: Tensor


class PositionLoader(BatchLoader[PolicyBatch]):
    """Loader of the positions before the recorded moves of games, which replays the games of each batch.

    Replaying takes less than one percent of the time of a training step, and the states of all positions would have
    6.7 kB each.

    Args:
        games: the games.
        indices: which of them.
        batch_size: global batch size, over all processes.
        seed: seed of the order, and of the symmetry that transforms each position; None: in order, as they are.
        value_positions: number of positions per game whose result is learned, since all positions of a game have the
            same result; 0: all.
    """

    def __init__(
        self, games: GoGames, indices: Moves, *, batch_size: int, seed: int | None = None, value_positions: int = 0
    ) -> None:
        self.games, self.indices = games, indices
        lengths = np.diff(games.starts)[indices]
        owners = np.repeat(indices, lengths)
        numbers = np.arange(len(owners)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        is_recorded = games.is_recorded[games.starts[owners] + numbers]
        self.owners, self.numbers = owners[is_recorded], numbers[is_recorded]  # game of each position, moves before it
        targets = games.moves[games.starts[self.owners] + self.numbers].astype(np.int64)
        super().__init__(torch.from_numpy(targets), (), batch_size=batch_size, seed=seed)
        self.names = tuple(games.names[index] for index in indices)
        self.is_value_position = self._select_value_positions(value_positions)
        self.cells, moves = games.game.symmetries()
        self.transformed_moves = np.argsort(moves, axis=1)  # the move in each symmetry
        self.device = torch.device("cpu")

    def setup(self, runtime: "Runtime") -> None:
        """Select this process's part of each batch."""
        super().setup(runtime)
        self.device = runtime.device

    @property
    def num_random_values(self) -> int:
        """Number of random numbers per position of the training: its symmetry."""
        return 1

    def __iter__(self) -> Iterator[PolicyBatch]:
        """Iterate over the batches of one epoch; an interrupted epoch is continued at its position."""
        for rows, random_values in self.iterate_local_batches():
            symmetries = (len(self.cells) * random_values.sum(1)).long()  # 0, the identity, without random values
            self.advance()
            yield self.load(rows.numpy(), symmetries.numpy())
        self.finish_epoch()

    def load(self, rows: Moves, symmetries: Moves) -> PolicyBatch:
        """Load positions ``(N,)``, transformed by a symmetry each."""
        games, owners, lengths = self.games, self.owners[rows], self.numbers[rows]
        initial = games.initial_states[games.initial_indices[owners]]
        states, _ = games.game.replay(initial, games.moves, games.is_recorded, games.starts[owners], lengths)
        planes = games.game.planes(states)
        flat = planes.reshape(*planes.shape[:2], self.cells.shape[1])  # of no positions, a side cannot be inferred
        planes = np.take_along_axis(flat, self.cells[symmetries][:, None], 2).reshape(planes.shape)
        moves = self.transformed_moves[symmetries, self.targets[rows].numpy()]
        values = games.results[owners] * np.where(states[:, 0] == 1, 1, -1).astype(np.float32)
        values[~self.is_value_position[rows]] = np.nan
        arrays = planes, moves, values, lengths + 1, games.is_test_player[owners]
        return PolicyBatch(*(torch.from_numpy(array).to(self.device) for array in arrays))

    def iterate_items(self) -> Iterator[ManifestItem]:
        """Iterate over the games in order, for a run's manifest."""
        games = self.games
        for index in self.indices:
            moves = games.moves[games.starts[index] : games.starts[index + 1]]
            yield ManifestItem(games.names[index], -1, moves.tobytes() + games.results[index].tobytes())

    def count_samples(self, batch: PolicyBatch) -> tuple[int, str]:
        """Return the number of positions in this process's part of a batch, and their unit."""
        return len(batch.moves), "positions"

    def describe_size(self) -> str:
        """Describe the number of positions and games."""
        return f"{len(self.targets):,} positions of {len(self.indices):,} games"

    def describe_batch(self, step: int) -> str:
        """Describe the batch of training step ``step`` (from 0) for messages."""
        epoch, batch_index = divmod(step, len(self))
        rows = self._plan_epoch(epoch)[0][batch_index * self.batch_size :][:MAX_NAMED].numpy()
        first = ", ".join(
            f"{self.games.names[owner]} move {number + 1}"
            for owner, number in zip(self.owners[rows], self.numbers[rows], strict=True)
        )
        return f"batch {batch_index + 1} of {len(self)} in epoch {epoch + 1} (positions {first}, ...)"

    def _select_value_positions(self, count: int) -> npt.NDArray[np.bool_]:
        """Select ``count`` random positions of each game, the same in all epochs; 0: all."""
        if not count:
            return np.ones(len(self.owners), bool)
        order = np.lexsort((np.random.default_rng(self.seed).random(len(self.owners)), self.owners))
        owners = self.owners[order]
        ranks = np.arange(len(order)) - np.searchsorted(owners, owners)
        is_selected = np.zeros(len(order), bool)
        is_selected[order] = ranks < count
        return is_selected

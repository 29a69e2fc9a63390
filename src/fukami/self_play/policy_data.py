"""Games of Go in SGF files as training data: their moves, split by game, and batches of the positions in them."""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fukami.data.loader import BatchLoader
from fukami.data.manifest import ManifestItem
from fukami.errors import Error
from fukami.progress import track
from fukami.self_play.game import Moves, States
from fukami.self_play.go import Go
from fukami.self_play.sgf import SgfGame, iterate_games

if TYPE_CHECKING:
    from fukami.engine.runtime import Runtime

logger = logging.getLogger(__name__)
EVAL_BATCH_SIZE = 256
MAX_LISTED = 3  # files listed in a message
NUM_COMPARED_MOVES = 60  # games with the same first moves are the same game, whose end one of the files may lack
REPLAY_CHUNK = 1024  # games that are replayed side by side to check them


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


@dataclass(frozen=True)
class GoGames:
    """Games on boards of one size.

    Attributes:
        game: the rules.
        names: names of the files, ``G``.
        initial_states: different states before the first move, ``(U, S)``.
        initial_indices: which of them each game has, ``(G,)``.
        moves: moves of all games, one game after the other, ``(M,)``. Where a player moves twice in a row, the opponent
            passes in between.
        is_recorded: which of them the files contain, ``(M,)``.
        starts: index of the first move of each game, and the number of all, ``(G + 1,)``.
        results: 1 if Black won, -1 if White won, 0 for a draw, NaN if unknown, ``(G,)``.
        is_test_player: whether a player is one of those whose games are only for evaluation, ``(G,)``.
        split_values: hash of the moves in [0, 1), by which games are split, ``(G,)``.
    """

    game: Go
    names: tuple[str, ...]
    initial_states: States
    initial_indices: Moves
    moves: npt.NDArray[np.int16]
    is_recorded: npt.NDArray[np.bool_]
    starts: Moves
    results: npt.NDArray[np.float32]
    is_test_player: npt.NDArray[np.bool_]
    split_values: npt.NDArray[np.float64]

    def select(self, split: str, val_fraction: float) -> Moves:
        """Select the indices of the games of a split: ``val_fraction`` of the games for ``val``, as many for ``test``.

        The games of the test players belong to ``test`` as well.
        """
        values = self.split_values
        is_test, is_val = values < val_fraction, (val_fraction <= values) & (values < 2 * val_fraction)
        if split == "test":
            return np.flatnonzero(is_test | self.is_test_player)
        return np.flatnonzero((is_val if split == "val" else ~(is_test | is_val)) & ~self.is_test_player)


@dataclass
class GameReader:
    """Reader of the games in SGF files.

    Args:
        game: the rules; games of other board sizes are skipped.
        test_names: players whose games are only for evaluation, in any case; an empty name is an unknown player.
    """

    game: Go
    test_names: Sequence[str]
    names: list[str] = field(default_factory=list)
    moves: list[npt.NDArray[np.int16]] = field(default_factory=list)
    is_recorded: list[npt.NDArray[np.bool_]] = field(default_factory=list)
    initial_indices: list[int] = field(default_factory=list)
    results: list[float] = field(default_factory=list)
    is_test_player: list[bool] = field(default_factory=list)
    digests: dict[bytes, int] = field(default_factory=dict)  # index of the game with this content
    initial_states: dict[bytes, int] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)  # of files that cannot be read
    num_files = num_other_sizes = num_duplicates = 0

    def add(self, name: str, record: SgfGame | Error) -> None:
        """Add the game of a file, unless it is unreadable, of another size, without moves, or a duplicate."""
        self.num_files += 1
        if isinstance(record, Error):
            self.errors.append(str(record))
        elif record.size != self.game.shape[0]:
            self.num_other_sizes += 1
        elif record.moves:
            try:
                initial = self.game.place_stones(record.black, record.white, record.moves[0][0]).tobytes()
            except ValueError as error:
                self.errors.append(f"{name}: {error}; fix or remove the file")
            else:
                self._add_game(name, record, initial)

    def _add_game(self, name: str, record: SgfGame, initial: bytes) -> None:
        moves, is_recorded = insert_passes(record, self.game.num_moves - 1)
        digest = hashlib.blake2b(initial + moves[:NUM_COMPARED_MOVES].tobytes(), digest_size=8).digest()
        test_names = {test_name.strip().casefold() for test_name in self.test_names}
        is_test_player = not test_names.isdisjoint(player.casefold() for player in record.players)
        index = self.digests.setdefault(digest, len(self.names))
        if index < len(self.names):
            self.num_duplicates += 1
            self.is_test_player[index] |= is_test_player
            return
        self.names.append(name)
        self.moves.append(moves)
        self.is_recorded.append(is_recorded)
        self.initial_indices.append(self.initial_states.setdefault(initial, len(self.initial_states)))
        self.results.append(np.nan if record.result is None else record.result)
        self.is_test_player.append(is_test_player)

    def build(self) -> GoGames:
        """Return the games, each up to its first illegal move."""
        states = np.stack([np.frombuffer(state, np.uint8) for state in self.initial_states])
        indices = np.array(self.initial_indices)
        self._remove_illegal_moves(states, indices)
        hashes = np.frombuffer(b"".join(self.digests), "<u8")
        return GoGames(
            self.game,
            tuple(self.names),
            states,
            indices,
            np.concatenate(self.moves),
            np.concatenate(self.is_recorded),
            np.cumsum([0, *map(len, self.moves)]),
            np.array(self.results, np.float32),
            np.array(self.is_test_player),
            hashes / 2.0**64,
        )

    def _remove_illegal_moves(self, states: States, indices: Moves) -> None:
        """Remove the moves of each game from its first illegal one on, and report the files."""
        files: list[str] = []
        for start in range(0, len(self.moves), REPLAY_CHUNK):
            part = self.moves[start : start + REPLAY_CHUNK]
            lengths = np.array(list(map(len, part)))
            chunk = states[indices[start : start + REPLAY_CHUNK]]
            _, num_played = self.game.replay(chunk, np.concatenate(part), np.cumsum(lengths) - lengths, lengths)
            for row in np.flatnonzero(num_played < lengths).tolist():
                index, count = start + row, int(num_played[row])
                number = int(self.is_recorded[index][: count + 1].sum())
                files.append(f"{self.names[index]}, move {number}")
                self.moves[index], self.is_recorded[index] = self.moves[index][:count], self.is_recorded[index][:count]
        if files:
            logger.warning(
                f"{len(files):,} of {self.num_files:,} games have an illegal move, and only the moves before it are "
                f"used:\n{format_list(files)}"
            )

    def report(self, max_broken: int) -> None:
        """Report the files that are not used.

        Raises:
            Error: more than ``max_broken`` files cannot be read.
        """
        if self.errors:
            logger.warning(f"{len(self.errors):,} of {self.num_files:,} games are skipped:\n{format_list(self.errors)}")
        side = self.game.shape[0]
        if self.num_other_sizes:
            logger.warning(f"{self.num_other_sizes:,} of {self.num_files:,} games are skipped: not on {side}×{side}")
        if self.num_duplicates:
            logger.warning(f"{self.num_duplicates:,} of {self.num_files:,} games are skipped: duplicates of another")
        if len(self.errors) > max_broken:
            raise Error(
                f"{len(self.errors):,} games cannot be read, and --max-broken allows {max_broken}; fix them or allow "
                f"more. The first:\n{format_list(self.errors)}"
            )


def read_games(path: Path, game: Go, test_names: Sequence[str], max_broken: int) -> GoGames:
    """Read the games of the board size from a folder, or a zip or tar archive, of SGF files.

    Args:
        path: folder or archive.
        game: the rules.
        test_names: as for :class:`GameReader`.
        max_broken: maximum number of unreadable files; they are skipped and reported.

    Raises:
        UsageError: there is no such folder or archive.
        Error: there is no game of this size, or more files are unreadable.
    """
    reader = GameReader(game, test_names)
    for name, record in track(iterate_games(path), "reading games", unit="games"):
        reader.add(name, record)
    reader.report(max_broken)
    if not reader.num_files:
        raise Error(f"{path} contains no SGF file; specify a folder, or a zip or tar archive, of files *.sgf")
    if not reader.names:
        side = game.shape[0]
        fix = f"the first error: {reader.errors[0]}" if reader.errors else "set --size to the board size of the games"
        raise Error(f"none of the {reader.num_files:,} SGF files in {path} is a game on {side}×{side}; {fix}")
    return reader.build()


def insert_passes(record: SgfGame, pass_move: int) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.bool_]]:
    """Return the moves of a game ``(M,)``, alternating with passes, and which of them the file contains ``(M,)``."""
    moves: list[int] = []
    is_recorded: list[bool] = []
    player = record.moves[0][0]
    for mover, move in record.moves:
        if mover != player:
            moves.append(pass_move)
            is_recorded.append(False)
        moves.append(move)
        is_recorded.append(True)
        player = 1 - mover
    return np.array(moves, np.int16), np.array(is_recorded)


def format_list(lines: Sequence[str]) -> str:
    """Format the first ``MAX_LISTED`` lines, and the number of the others."""
    more = f"\n  ... and {len(lines) - MAX_LISTED:,} more" if len(lines) > MAX_LISTED else ""
    return "  " + "\n  ".join(lines[:MAX_LISTED]) + more


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
        states, _ = games.game.replay(initial, games.moves, games.starts[owners], lengths)
        planes = games.game.planes(states)
        flat = planes.reshape(*planes.shape[:2], -1)
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
        rows = self._plan_epoch(epoch)[0][batch_index * self.batch_size :][:MAX_LISTED].numpy()
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

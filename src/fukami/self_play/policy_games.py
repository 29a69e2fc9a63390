"""Games of Go in SGF files as training data: their moves, results and split."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fukami.data.image_folder import format_errors
from fukami.errors import Error
from fukami.progress import track
from fukami.self_play.game import Moves, States
from fukami.self_play.go import Go
from fukami.self_play.sgf import SgfGame, iterate_games

logger = logging.getLogger(__name__)
NUM_COMPARED_MOVES = 60  # games with the same first moves are the same game, whose end one of the files may lack
REPLAY_CHUNK = 1024  # games that are replayed at a time to check them


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
    num_files = num_other_sizes = num_without_moves = num_duplicates = 0

    def add(self, name: str, record: SgfGame | Error) -> None:
        """Add the game of a file, unless it is unreadable, of another size, without moves, or a duplicate."""
        self.num_files += 1
        if isinstance(record, Error):
            self.errors.append(str(record))
        elif record.size != self.game.shape[0]:
            self.num_other_sizes += 1
        elif not record.moves:
            self.num_without_moves += 1
        else:
            try:
                initial = self.game.place_stones(record.black, record.white, record.player).tobytes()
            except ValueError as error:
                self.errors.append(f"{name}: {error}; fix or remove the file")
            else:
                self._add_game(name, record, initial)

    def _add_game(self, name: str, record: SgfGame, initial: bytes) -> None:
        moves, is_recorded = insert_passes(record, self.game.num_moves - 1)
        digest = compute_digest(initial, moves)
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
            part = slice(start, start + REPLAY_CHUNK)
            lengths = np.array(list(map(len, self.moves[part])))
            moves, is_recorded = np.concatenate(self.moves[part]), np.concatenate(self.is_recorded[part])
            starts = np.cumsum(lengths) - lengths
            _, num_played = self.game.replay(states[indices[part]], moves, is_recorded, starts, lengths)
            for row in np.flatnonzero(num_played < lengths).tolist():
                index, count = start + row, int(num_played[row])
                number = int(self.is_recorded[index][: count + 1].sum())
                files.append(f"{self.names[index]}, move {number}")
                self.moves[index], self.is_recorded[index] = self.moves[index][:count], self.is_recorded[index][:count]
        if files:
            logger.warning(
                f"{len(files):,} of {self.num_files:,} games have an illegal move, and only the moves before it are "
                f"used:\n{format_errors(files)}"
            )

    def report(self, max_unreadable: int) -> None:
        """Report the files that are not used.

        Raises:
            Error: more than ``max_unreadable`` files cannot be read.
        """
        if self.errors:
            logger.warning(
                f"{len(self.errors):,} of {self.num_files:,} games are skipped:\n{format_errors(self.errors)}"
            )
        side = self.game.shape[0]
        if self.num_other_sizes:
            logger.warning(f"{self.num_other_sizes:,} of {self.num_files:,} games are skipped: not on {side}×{side}")
        if self.num_without_moves:
            logger.warning(f"{self.num_without_moves:,} of {self.num_files:,} games are skipped: they have no moves")
        if self.num_duplicates:
            logger.warning(f"{self.num_duplicates:,} of {self.num_files:,} games are skipped: duplicates of another")
        if len(self.errors) > max_unreadable:
            raise Error(
                f"{len(self.errors):,} games cannot be read, and --max-unreadable allows {max_unreadable}; fix them or "
                f"allow more. The first:\n{format_errors(self.errors)}"
            )


def read_games(path: Path, game: Go, test_names: Sequence[str], max_unreadable: int) -> GoGames:
    """Read the games of the board size from a folder, or a zip or tar archive, of SGF files.

    Args:
        path: folder or archive.
        game: the rules.
        test_names: as for :class:`GameReader`.
        max_unreadable: maximum number of unreadable files; they are skipped and reported.

    Raises:
        UsageError: there is no such folder or archive.
        Error: there is no game of this size, or more files are unreadable.
    """
    reader = GameReader(game, test_names)
    for name, record in track(iterate_games(path), "reading games", unit="games"):
        reader.add(name, record)
    reader.report(max_unreadable)
    if not reader.num_files:
        raise Error(f"{path} contains no SGF file; specify a folder, or a zip or tar archive, of files *.sgf")
    if not reader.names:
        side = game.shape[0]
        if reader.errors:
            fix = f"the first error: {reader.errors[0]}"
        elif reader.num_other_sizes:
            fix = "set --size to the board size of the games"
        else:
            fix = "they have no moves; use records of games"
        raise Error(f"none of the {reader.num_files:,} SGF files in {path} is a game on {side}×{side}; {fix}")
    return reader.build()


def insert_passes(record: SgfGame, pass_move: int) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.bool_]]:
    """Return the moves of a game ``(M,)``, alternating with passes, and which of them the file contains ``(M,)``."""
    moves: list[int] = []
    is_recorded: list[bool] = []
    player = record.player
    for mover, move in record.moves:
        if mover != player:
            moves.append(pass_move)
            is_recorded.append(False)
        moves.append(move)
        is_recorded.append(True)
        player = 1 - mover
    return np.array(moves, np.int16), np.array(is_recorded)


def compute_digest(initial: bytes, moves: npt.NDArray[np.int16]) -> bytes:
    """Compute the digest of a game, by its initial state and its first moves, by which duplicates are found."""
    return hashlib.blake2b(initial + moves[:NUM_COMPARED_MOVES].tobytes(), digest_size=8).digest()

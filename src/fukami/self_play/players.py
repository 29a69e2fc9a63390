"""Players of matches: random moves, the Connect Four solver, GNU Go, and tree search."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

import numpy as np
from torch import nn

from fukami.errors import Error
from fukami.self_play.game import Game, States
from fukami.self_play.gnugo import GnuGo, GnuGoEndedError
from fukami.self_play.match import RESIGN, GameRecord
from fukami.self_play.search import Evaluate, SearchOptions, SearchResult, TreeSearch, limit_group_size
from fukami.self_play.tree import Float32Array

if TYPE_CHECKING:
    from fukami.self_play.go import Go

COLORS = ("black", "white")
logger = logging.getLogger(__name__)


class RandomPlayer:
    """Player of random legal moves; it does not pass while there is another move.

    Args:
        seed: random seed.
    """

    def __init__(self, seed: int = 0) -> None:
        self.name = "random"
        self.random = np.random.default_rng(seed)

    def choose_moves(self, records: Sequence[GameRecord]) -> list[int]:
        """Choose a random move in each game."""
        return [self._choose_move(record) for record in records]

    def _choose_move(self, record: GameRecord) -> int:
        moves = record.legal_moves
        if record.game.has_pass and len(moves) > 1:
            moves = moves[moves != record.game.num_moves - 1]
        return int(self.random.choice(moves))

    def close(self) -> None:
        """Do nothing: there is no process to end."""


class SolverPlayer:
    """Perfect player of Connect Four: a random one of the optimal moves.

    Args:
        seed: random seed.
    """

    def __init__(self, seed: int = 0) -> None:
        self.name = "solver"
        self.random = np.random.default_rng(seed)

    def choose_moves(self, records: Sequence[GameRecord]) -> list[int]:
        """Choose an optimal move in each game."""
        from fukami.self_play.connect_four_solver import find_optimal_moves

        optimal = find_optimal_moves(np.stack([record.state for record in records]))
        return [int(self.random.choice(np.flatnonzero(row))) for row in optimal]

    def close(self) -> None:
        """Do nothing: there is no process to end."""


class GnuGoPlayer:
    """GNU Go, one process for each game in progress; it loses a game in which it crashes.

    Args:
        game: size of the board and komi.
        level: level of GNU Go, as for :class:`GnuGo`.
        seed: random seed of the first process; each further one has the next seed.
    """

    def __init__(self, game: "Go", level: int = 1, seed: int = 0) -> None:
        self.name = f"gnugo level {level}"
        self.game, self.level, self.seed = game, level, seed
        self.engines: dict[GameRecord, tuple[GnuGo, list[int]]] = {}  # with the moves that they have played

    def choose_moves(self, records: Sequence[GameRecord]) -> list[int]:
        """Let GNU Go choose a move in each game."""
        for record in [record for record in self.engines if record.is_over]:
            self.engines.pop(record)[0].close()
        for record in records:
            if record not in self.engines:
                engine = GnuGo(self.game.shape[0], self.game.komi, level=self.level, seed=self.seed)
                self.engines[record] = (engine, [])
                self.seed += 1
        with ThreadPoolExecutor() as pool:
            return list(pool.map(self._choose_move, records))

    def _choose_move(self, record: GameRecord) -> int:
        engine, moves = self.engines[record]
        color = COLORS[record.player]
        try:
            for index in range(len(moves), len(record.moves)):
                engine.play(COLORS[index % 2], self.game.format_move(record.moves[index]))
            vertex = engine.generate_move(color)
            if vertex == "pass":  # GNU Go would score dead stones as captured, but the rules score them as alive
                engine.undo()
                vertex = engine.send(f"kgs-genmove_cleanup {color}")
        except GnuGoEndedError as error:
            logger.warning(f"{error} at move {len(record.moves) + 1}; it loses this game")
            vertex = "resign"
        try:
            move = RESIGN if vertex.lower() == "resign" else self.game.parse_move(vertex)
        except ValueError:
            raise Error(f"GNU Go's move is {vertex[:50]!r}; expected a point such as C3, pass or resign") from None
        moves[:] = [*record.moves, move]
        return move

    def close(self) -> None:
        """End the processes."""
        for engine, _ in self.engines.values():
            engine.close()
        self.engines.clear()


class Searcher(Protocol):
    """Network with tree search: a task of self-play."""

    game: Game

    def select_game(self, name: str) -> None:
        """Select the game of the following searches."""

    def search(self, states: States, simulations: int | None = None, *, model: nn.Module | None = None) -> SearchResult:
        """Search the best moves of states ``(N, S)``."""

    def build_evaluate(self, model: nn.Module | None = None) -> Evaluate:
        """Build the function from planes to logits and values."""

    def create_search(self, simulations: int, evaluate: Evaluate, num_games: int = 1) -> TreeSearch:
        """Create a tree search."""


class GameSearch:
    """Tree search of one game in progress, which reuses the subtree after the moves that were played.

    Args:
        task: the task of a run of self-play.
        simulations: number of simulations for each search.
        model: network; None: the one that the task uses for inference.
    """

    def __init__(self, task: Searcher, simulations: int, model: nn.Module | None = None) -> None:
        self.task, self.simulations, self.model = task, simulations, model
        self.record: GameRecord | None = None
        self.moves: list[int] = []  # of the game, at the last search

    def search(self, record: GameRecord) -> SearchResult:
        """Search from the current position of a game."""
        known = len(self.moves)
        if self.record is not record or record.moves[:known] != self.moves:  # another game, or moves were taken back
            self.tree_search = self.task.create_search(self.simulations, self.task.build_evaluate(self.model))
            self.record, known = record, 0
        result = self.tree_search.continue_search(record.state[None], [record.moves[known:]])
        self.moves = list(record.moves)
        return result


class SearchPlayer:
    """Network with tree search, which reuses the subtree of a game that is the only one in progress.

    Args:
        task: the task of a run of self-play.
        simulations: number of simulations for each move; 0: the network without search.
        name: name in results.
        model: network; None: the one that the task uses for inference.
    """

    def __init__(self, task: Searcher, simulations: int, name: str = "fukami", model: nn.Module | None = None) -> None:
        self.task, self.simulations, self.name, self.model = task, simulations, name, model
        self.game_search = GameSearch(task, simulations, model)

    def choose_moves(self, records: Sequence[GameRecord]) -> list[int]:
        """Search the best move of each game, all in one batch."""
        if records[0].game.name != self.task.game.name:
            self.task.select_game(records[0].game.name)
        if len(records) == 1:
            return [int(self.game_search.search(records[0]).moves[0])]
        result = self.task.search(np.stack([record.state for record in records]), self.simulations, model=self.model)
        return [int(move) for move in result.moves]

    def close(self) -> None:
        """Do nothing: there is no process to end."""


class PlainSearchPlayer:
    """Tree search without a network: every move has the same policy, and the values are those of finished games.

    Args:
        game: rules of the game.
        options: options of the search.
        seed: seed of the exploration noise, which selects among equal moves.
    """

    def __init__(self, game: Game, options: SearchOptions, seed: int = 0) -> None:
        self.name = "search"
        self.game, self.options, self.random = game, options, np.random.default_rng(seed)

    def choose_moves(self, records: Sequence[GameRecord]) -> list[int]:
        """Search the best move of each game."""
        size = limit_group_size(len(records), self.game, self.options.simulations)
        search = TreeSearch(self.game, self._evaluate, self.options, size)
        states = np.stack([record.state for record in records])
        parts = [states[start : start + size] for start in range(0, len(states), size)]
        return [int(move) for part in parts for move in search.search(part, rng=self.random).moves]

    def _evaluate(self, planes: Float32Array) -> tuple[Float32Array, Float32Array]:
        return np.zeros((len(planes), self.game.num_moves), np.float32), np.zeros(len(planes), np.float32)

    def close(self) -> None:
        """Do nothing: there is no process to end."""

"""Evaluation of a network with tree search: positions whose optimal moves are known, and matches."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from fukami.engine.task import Metrics, Results
from fukami.errors import UsageError
from fukami.self_play import match
from fukami.self_play.game import Game, States

if TYPE_CHECKING:
    from fukami.self_play.go import Go
    from fukami.self_play.task import SelfPlayTask

MIN_STONES, MAX_STONES = 10, 36  # of the positions that occur in play


class BoardEvaluation(ABC):
    """Evaluation of a task of self-play; an iterable of its parts, for the training loop."""

    noun: ClassVar[str] = "position"

    @abstractmethod
    def __len__(self) -> int:
        """Number of positions or games."""

    def __iter__(self) -> Iterator[int]:
        """Iterate over the indices of the positions or games."""
        return iter(range(len(self)))

    @abstractmethod
    def run(self, task: "SelfPlayTask") -> Results:
        """Run the evaluation."""


class MoveResults(NamedTuple):
    """Fractions of optimal moves.

    Attributes:
        kinds: fraction by the number of simulations, for each kind of positions.
        main: kind and number of simulations of the main metric.
        num_positions: number of positions.
    """

    kinds: dict[str, dict[str, float]]
    main: tuple[str, str]
    num_positions: int

    def compute_metrics(self) -> Metrics:
        """Return the main fraction, those of the other kinds and simulations, and the number of positions."""
        kind, simulations = self.main
        return {"optimal": self.kinds[kind][simulations], "count": self.num_positions, **self.kinds}


@dataclass(frozen=True)
class OptimalMoves(BoardEvaluation):
    """Fraction of optimal moves in positions of Connect Four, by an exact solver.

    Attributes:
        split: ``val`` or ``test``.
        kinds: ``sensible`` and ``random`` positions of :func:`load_positions`, and ``play``: of games of the network
            against itself, in which moves differ in outcome.
        simulations: numbers of simulations; the first is that of the main metric, on the first of the kinds.
        num_play_games: games from which the positions of ``play`` are.
        seed: seed of the openings of these games.
    """

    split: str
    kinds: tuple[str, ...]
    simulations: tuple[int, ...]
    num_play_games: int = 100
    seed: int = 0

    def __len__(self) -> int:
        """Number of positions, without those of ``play``."""
        from fukami.self_play.connect_four_positions import load_positions

        return sum(len(load_positions(self.split, kind)[0]) for kind in self.kinds if kind != "play")

    def run(self, task: "SelfPlayTask") -> MoveResults:
        """Search from each position, and compare the moves."""
        from fukami.self_play.connect_four_positions import load_positions

        fractions: dict[str, dict[str, float]] = {}
        count = 0
        for kind in self.kinds:
            if kind == "play":
                states, optimal = collect_play_positions(task, self.num_play_games, self.seed)
            else:
                states, optimal = load_positions(self.split, kind)
            if not len(states):  # all games of the network were short
                continue
            count += len(states)
            fractions[kind] = {
                str(number): compute_optimal_fraction(task, states, optimal, number) for number in self.simulations
            }
        return MoveResults(fractions, (self.kinds[0], str(self.simulations[0])), count)


def compute_optimal_fraction(
    task: "SelfPlayTask", states: States, optimal: npt.NDArray[np.bool_], simulations: int
) -> float:
    """Compute the fraction of positions ``(N, S)`` in which the search chooses one of the ``optimal`` moves."""
    moves = task.search(states, simulations).moves
    return float(optimal[np.arange(len(moves)), moves].mean())


def collect_play_positions(task: "SelfPlayTask", num_games: int, seed: int) -> tuple[States, npt.NDArray[np.bool_]]:
    """Collect positions of games of a network against itself in which moves differ in outcome; also their best moves.

    The games begin with random moves, at most ``MIN_STONES``.
    """
    from fukami.self_play.connect_four_solver import find_optimal_moves
    from fukami.self_play.players import SearchPlayer

    player = SearchPlayer(task, task.simulations)
    states: dict[bytes, States] = {}
    for opening in (2, 4, 6, 8):
        result = match.play_match(
            task.game, (player, player), num_games // 4, opening_moves=opening, seed=seed + opening
        )
        for record in result.records:
            for state in record.states[MIN_STONES : min(MAX_STONES + 1, len(record.moves))]:
                states.setdefault(state.tobytes(), state)
    candidates = np.array(list(states.values()), np.uint8).reshape(len(states), len(task.game.build_initial_state()))
    optimal = find_optimal_moves(candidates)
    differs = (optimal != task.game.legal_moves(candidates)).any(1)
    return candidates[differs], optimal[differs]


class MatchResults(NamedTuple):
    """Results of a match.

    Attributes:
        result: the match.
        simulations: simulations per move.
    """

    result: match.MatchResult
    simulations: int

    def compute_metrics(self) -> Metrics:
        """Return the score, its confidence interval, the results by color, and the number of games."""
        values = self.result.to_dict()
        lower, upper = values["score_interval"]
        return {
            "score": values["score"],
            "score_lower": lower,
            "score_upper": upper,
            "count": values["games"],
            **{name: values[name] for name in ("wins", "draws", "losses", "mean_length")},
            "simulations": self.simulations,
            "as_first": values["as_first"],
            "as_second": values["as_second"],
        }


@dataclass(frozen=True)
class MatchEvaluation(BoardEvaluation):
    """Match against an opponent, with both colors.

    Attributes:
        opponent: ``gnugo`` (Go), ``search`` (the tree search without a network) or ``random``.
        num_games: number of games.
        level: level of GNU Go.
        seed: seed of the openings and the opponent.
    """

    opponent: str
    num_games: int
    level: int = 1
    seed: int = 0

    noun: ClassVar[str] = "game"

    def __len__(self) -> int:
        """Number of games."""
        return self.num_games

    def run(self, task: "SelfPlayTask") -> MatchResults:
        """Play the match."""
        from fukami.self_play.players import SearchPlayer

        player = SearchPlayer(task, task.simulations)
        opponent = make_opponent(self.opponent, task, level=self.level, seed=self.seed)
        opening = match.choose_opening_length(task.game, self.num_games)
        try:
            result = match.play_match(
                task.game, (player, opponent), self.num_games, opening_moves=opening, seed=self.seed
            )
        finally:
            opponent.close()
        return MatchResults(result, task.simulations)


def make_opponent(name: str, task: "SelfPlayTask", *, level: int = 1, seed: int = 0) -> match.Player:
    """Make the opponent of a name: ``gnugo``, ``solver``, ``search`` or ``random``.

    Raises:
        UsageError: the opponent does not play the game, is not installed, or has no simulations to search.
    """
    from fukami.self_play import players

    game = task.game
    check_opponent(name, [game], task.simulations)
    if name == "gnugo":
        return players.GnuGoPlayer(cast("Go", game), level, seed)
    if name == "solver":
        return players.SolverPlayer(seed)
    if name == "search":
        return players.PlainSearchPlayer(game, task.search_options, seed)
    return players.RandomPlayer(seed)


def check_opponent(name: str, games: Sequence[Game], simulations: int) -> None:
    """Check that an opponent plays the games, is installed, and has simulations to search.

    Raises:
        UsageError: it does not, is not, or has none.
    """
    from fukami.self_play import gnugo
    from fukami.self_play.go import Go

    if name == "search" and not simulations:
        raise UsageError(
            "the opponent search, which has no network, needs at least 1 simulation per move; use more simulations, or "
            "the opponent random (--eval-opponent random in training, --against random in play)"
        )
    others = [game.name for game in games if not isinstance(game, Go)]
    if name == "gnugo" and others:
        raise UsageError(f"GNU Go does not play {', '.join(others)}; use search or random as the opponent")
    if name == "gnugo":
        gnugo.find_program()
    if name == "solver" and games[0].name != "connect4":
        raise UsageError(f"the solver is for connect4, not for {games[0].name}; use search or random as the opponent")

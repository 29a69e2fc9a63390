"""Matches between two players, and their results."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fukami.errors import Error, UsageError
from fukami.progress import ProgressBar
from fukami.self_play.game import Game, States

RESIGN = -1  # move of a player who resigns
OPENINGS_PER_PAIR = 10  # openings to choose from, for each pair of games of a match
MAX_OPENING_TRIALS = 100  # random openings to find one that is new and does not end the game
Z_95 = 1.959964  # quantile of the normal distribution for a 95 % confidence interval


class GameRecord:
    """Game in progress: its moves and the states between them.

    Attributes:
        game: rules of the game.
        moves: moves so far.
        states: states from the initial one to the current one, one more than moves.
        resigned: player who has resigned, 0 or 1; None if neither has.
    """

    def __init__(self, game: Game) -> None:
        self.game = game
        self.moves: list[int] = []
        self.states: list[States] = [game.build_initial_state()]
        self.resigned: int | None = None

    @property
    def state(self) -> States:
        """Current state ``(S,)``."""
        return self.states[-1]

    @property
    def player(self) -> int:
        """Player on the move: 0 the first, 1 the second."""
        return len(self.moves) % 2

    @property
    def outcome(self) -> float | None:
        """Outcome for the first player: 1 win, 0 draw, -1 loss; None if the game is not over."""
        if self.resigned is not None:
            return 1.0 if self.resigned else -1.0
        outcome = float(self.game.outcome(self.state[None])[0])
        return None if math.isnan(outcome) else -outcome if self.player else outcome

    @property
    def is_over(self) -> bool:
        """True if the game is over."""
        return self.outcome is not None

    @property
    def legal_moves(self) -> npt.NDArray[np.int64]:
        """Legal moves; none if the game is over."""
        return np.flatnonzero(self.game.legal_moves(self.state[None])[0] & (not self.is_over))

    def play(self, move: int) -> None:
        """Play a move, or resign.

        Raises:
            ValueError: the move is illegal.
        """
        if move == RESIGN:
            self.resigned = self.player
            return
        if move not in self.legal_moves:
            raise ValueError(f"illegal move {move}")
        self.states.append(self.game.play(self.state[None], np.array([move]))[0])
        self.moves.append(move)

    def undo(self) -> None:
        """Take back the last move."""
        self.states.pop()
        self.moves.pop()


def read_stones(game: Game, state: States, player: int) -> npt.NDArray[np.int64]:
    """Read the stones on the board ``(H, W)``: 1 the first player's, 2 the second player's, 0 none.

    Args:
        game: rules of the game.
        state: state ``(S,)``.
        player: player on the move, 0 or 1.
    """
    own, other = game.planes(state[None])[0, :2] > 0
    return np.where(own, 1 + player, np.where(other, 2 - player, 0))


class Player(Protocol):
    """Player of a match.

    Attributes:
        name: name in results.
    """

    name: str

    def choose_moves(self, records: Sequence[GameRecord]) -> list[int]:
        """Choose a move, or RESIGN, in each of several games in which this player is on the move."""

    def close(self) -> None:
        """End the processes of the player."""


@dataclass(frozen=True)
class MatchResult:
    """Result of a match.

    Args:
        names: names of the players.
        records: the finished games; the first player of the match plays first in those with an even index.
    """

    names: tuple[str, str]
    records: tuple[GameRecord, ...]

    @property
    def outcomes(self) -> list[float]:
        """Outcomes of the games for the first player of the match: 1 win, 0 draw, -1 loss."""
        return [(record.outcome or 0.0) * (-1 if index % 2 else 1) for index, record in enumerate(self.records)]

    @property
    def score(self) -> float:
        """Score of the first player of the match, wins and half of the draws, as a fraction of the games."""
        return sum(1 + outcome for outcome in self.outcomes) / (2 * len(self.records))

    def to_dict(self) -> dict[str, Any]:
        """Return the result for JSON.

        It contains the wins, draws and losses of the first player of the match, in total and by color, the score
        (wins and half of the draws) as a fraction of the games, and its 95 % Wilson score interval. If there are draws,
        the interval is wider than necessary.
        """
        outcomes = self.outcomes
        interval = compute_wilson_interval(self.score * len(outcomes), len(outcomes))
        return {
            "players": list(self.names),
            "games": len(outcomes),
            **_count_outcomes(outcomes),
            "score": round(self.score, 4),
            "score_interval": [round(bound, 4) for bound in interval],
            "as_first": _count_outcomes(outcomes[::2]),
            "as_second": _count_outcomes(outcomes[1::2]),
            "mean_length": round(sum(len(record.moves) for record in self.records) / len(outcomes), 2),
        }


def _count_outcomes(outcomes: Sequence[float]) -> dict[str, int]:
    """Count the wins, draws and losses."""
    return {name: outcomes.count(outcome) for name, outcome in (("wins", 1), ("draws", 0), ("losses", -1))}


def compute_wilson_interval(successes: float, trials: int) -> tuple[float, float]:
    """Compute the 95 % score interval of a proportion (Wilson 1927)."""
    proportion, correction = successes / trials, Z_95**2 / trials
    center = proportion + correction / 2
    margin = math.sqrt(correction * (proportion * (1 - proportion) + correction / 4))
    return max((center - margin) / (1 + correction), 0.0), min((center + margin) / (1 + correction), 1.0)


def choose_opening_length(game: Game, num_games: int) -> int:
    """Choose the number of random moves at the start of the games of a match.

    Players may be deterministic, so their games differ only by the openings: the length is the smallest with
    :data:`OPENINGS_PER_PAIR` sequences of moves for each pair of games. A single pair needs no random moves.
    """
    length, needed = 0, OPENINGS_PER_PAIR * math.ceil(num_games / 2) if num_games > 2 else 1
    while game.num_moves**length < needed:
        length += 1
    return length


def play_match(
    game: Game,
    players: tuple[Player, Player],
    num_games: int,
    *,
    opening_moves: int = 0,
    seed: int = 0,
    num_parallel: int = 64,
) -> MatchResult:
    """Play a match; the games of a pair have the same random opening, and the players swap colors.

    Args:
        game: rules of the game.
        players: the players.
        num_games: number of games.
        opening_moves: number of random moves at the start of each game.
        seed: random seed of the openings.
        num_parallel: maximum number of games in progress, which is the batch size of a network for both colors.

    Raises:
        Error: a player chose an illegal move.
        UsageError: openings of this length end the game.
    """
    openings = _sample_openings(game, math.ceil(num_games / 2), opening_moves, seed)
    records = [_start_game(game, openings[index // 2]) for index in range(num_games)]
    waiting, active = list(range(num_games))[::-1], list[int]()
    with ProgressBar("playing games", num_games) as bar:
        while waiting or active:
            while waiting and len(active) < num_parallel:
                active.append(waiting.pop())
            _play_moves(players, records, active)
            num_active = len(active)
            active = [index for index in active if not records[index].is_over]
            bar.update(num_active - len(active))
    return MatchResult((players[0].name, players[1].name), tuple(records))


def _play_moves(players: tuple[Player, Player], records: Sequence[GameRecord], active: Sequence[int]) -> None:
    """Play a move of each player in the active games."""
    for side, player in enumerate(players):
        indices = [index for index in active if (records[index].player + index) % 2 == side]
        indices = [index for index in indices if not records[index].is_over]
        moves = player.choose_moves([records[index] for index in indices]) if indices else []
        for index, move in zip(indices, moves, strict=True):
            try:
                records[index].play(move)
            except ValueError as error:
                raise Error(f"{player.name} chose an {error} after the moves {records[index].moves}") from None


def _sample_openings(game: Game, count: int, length: int, seed: int) -> list[list[int]]:
    """Sample sequences of random moves, all different if there are enough."""
    random = np.random.default_rng(seed)
    openings: list[list[int]] = []
    known: set[tuple[int, ...]] = set()
    for _ in range(count):
        for _ in range(MAX_OPENING_TRIALS):
            record = _play_randomly(game, length, random)
            if not record.is_over and (opening := tuple(record.moves)) not in known:
                known.add(opening)
                break
        if record.is_over:
            raise UsageError(f"{length} random moves usually end a game of {game.name}; use fewer opening moves")
        openings.append(record.moves)
    return openings


def _play_randomly(game: Game, length: int, random: np.random.Generator) -> GameRecord:
    """Play random moves, without passes, until the game is over."""
    record = GameRecord(game)
    for _ in range(length):
        moves = record.legal_moves
        if game.has_pass:
            moves = moves[moves != game.num_moves - 1]
        if len(moves) == 0:
            break
        record.play(int(random.choice(moves)))
    return record


def _start_game(game: Game, opening: Sequence[int]) -> GameRecord:
    record = GameRecord(game)
    for move in opening:
        record.play(move)
    return record

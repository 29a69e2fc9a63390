"""AlphaGo Zero (Silver et al. 2017)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fukami.engine import schedules
from fukami.engine.recipe import Data, Recipe, check_range
from fukami.errors import Error, UsageError, find_name
from fukami.self_play import gnugo

if TYPE_CHECKING:
    from fukami.self_play.evaluation import BoardEvaluation
    from fukami.self_play.game import Game
    from fukami.self_play.search import SearchOptions
    from fukami.self_play.task import SelfPlayTask


MAX_SIMULATIONS = 100_000  # per move; a tree on 19×19 has 2.5 GB
MAX_SEARCH_WEIGHT = 1e4  # of values and of exploration
MAX_EVAL_GAMES = 100_000
MAX_NUM_GAMES = 512  # default number of parallel games
GENERATIONS = 4  # minimum number of games in each of the default parallel games, if a game has a move for each cell


@dataclass(frozen=True, kw_only=True)
class AlphaGoZero(Recipe):
    """AlphaGo Zero (Silver et al. 2017), with the search of Danihelka et al. 2022 at the root.

    Result: 96.8 % optimal moves in Connect Four with 64 simulations, after 113 minutes on 2 cores of an AMD EPYC with
    AVX-512 BF16 (--positions 1200000 --self-play-simulations 32 --num-blocks 5 --num-channels 64). The paper: Elo
    rating of 5,185 in Go on 19×19, 40 days.

    Example:
        fukami train alphago-zero
    """

    game: tuple[str, ...] = ("connect4",)
    """Game: connect4, go5, go7, go9, go13, go19, tic-tac-toe, or a Python file that defines one; several board sizes of
    Go share a network."""
    komi: float | None = None
    """Komi, points for White in Go. Default: 24.5 on 5×5, 8.5 on 7×7, else 7.5."""
    positions: int = 160_000
    """Number of training positions from self-play."""
    num_games: int | None = None
    """Number of parallel games, over all processes and board sizes. Default: 512, or fewer if positions / (4 · cells of
    the board) is less."""
    self_play_simulations: int = 16
    """Simulations of the tree search per move of self-play; 1,600 in the paper."""
    simulations: int = 64
    """Simulations of the tree search per move in evaluation, prediction and play; 0: the network alone."""
    average_symmetries: bool = False
    """Average the network over the symmetries of the board in evaluation, prediction and play, but not in self-play; in
    Go, a position then costs 8 evaluations of the network."""
    max_considered_moves: int = 16
    """Number of moves that the search considers at the root (sequential halving)."""
    value_scale: float = 1.0
    """Weight of the values relative to the policy in the search, c_scale of Danihelka et al. 2022."""
    c_puct: float = 0.0
    """Exploration constant of PUCT with Dirichlet noise, as in the paper; 0: the Gumbel root."""
    dirichlet_alpha: float = 1.0
    """Parameter alpha of the Dirichlet noise with PUCT; 0.03 in the paper for 19×19. A common choice is 10 divided by
    the number of legal moves."""
    temperature_moves: int = 10
    """Moves of a game that PUCT samples in proportion to the visits; 30 in the paper."""
    full_search_fraction: float = 1.0
    """Fraction of the moves of self-play with all simulations (playout cap randomization, Wu 2019); the others are
    excluded from the training."""
    fast_simulations: int = 4
    """Simulations per move without a full search (playout cap randomization)."""
    random_opening_moves: int | None = None
    """Maximum number of random moves at the start of a game of self-play. Default: 30 in connect4, 0 in other games."""
    td_lambda: float | None = None
    """Lambda of the value targets: 1 is the outcome of the game as in the paper, 0 the value of the search. Default:
    0.7 in connect4, 1 in other games."""
    gating_games: int = 0
    """Games of the match in which a new network has to score more than 55 % before it generates games; 400 in the
    paper; 0: no match."""
    learning_starts: int = 10_000
    """Positions before training starts, and the minimum size of the replay window."""
    window_fraction: float = 0.5
    """Size of the replay window as a fraction of the positions so far."""
    samples_per_position: float = 4.0
    """Average number of times that a position is in a batch."""
    num_blocks: int = 3
    """Number of residual blocks; 19 or 39 in the paper."""
    num_channels: int = 48
    """Number of channels; 256 in the paper."""
    batch_size: int = 128
    """Global batch size; 2,048 in the paper."""
    lr: float = 2e-3
    """Peak learning rate."""
    schedule: str = "cosine"
    """Learning-rate schedule: constant, step=NUM_DROPS, multistep=FRACTION,FRACTION (as in the paper),
    exponential=FINAL_FACTOR, polynomial=POWER, cosine or one-cycle."""
    weight_decay: float = 1e-4
    """Weight decay."""
    ema_decay: float = 0.98
    """Decay of the exponential moving average of the weights; the average is used for self-play, evaluation and
    prediction."""
    eval_every: int = 50_000
    """Evaluation interval in positions; the last step is always evaluated."""
    eval_opponent: Literal["auto", "gnugo", "search", "random"] = "auto"
    """Opponent of the evaluation of all games but connect4: gnugo, search (without a network) or random; auto: gnugo in
    Go, else search."""
    eval_games: int = 200
    """Number of games of the evaluation."""
    gnugo_level: int = 1
    """Level of GNU Go, from 0; its own default is 10."""

    def __post_init__(self) -> None:
        """Validate the fields."""
        super().__post_init__()
        check_range(self, 1, math.inf, "self_play_simulations", "max_considered_moves", "num_blocks")
        check_range(self, 1, math.inf, "num_channels", "eval_every")
        check_range(self, 1, MAX_EVAL_GAMES, "eval_games")
        if self.num_games is not None:
            check_range(self, 1, math.inf, "num_games")
        if self.random_opening_moves is not None:
            check_range(self, 0, math.inf, "random_opening_moves")
        check_range(self, 2, math.inf, "batch_size")  # for the batch normalization of the value head
        check_range(self, 0, MAX_SIMULATIONS, "simulations", "self_play_simulations", "fast_simulations")
        check_range(self, 0, MAX_SEARCH_WEIGHT, "value_scale", "c_puct")
        check_range(self, 0, math.inf, "temperature_moves", "gating_games", "lr", "weight_decay")
        check_range(self, 1e-9, math.inf, "dirichlet_alpha", "samples_per_position")
        check_range(self, 0, 1, "full_search_fraction", "window_fraction")
        if self.td_lambda is not None:
            check_range(self, 0, 1, "td_lambda")
        check_range(self, 0, 0.9999999, "ema_decay")
        gnugo.check_level(self.gnugo_level, "gnugo-level")
        check_range(self, self.batch_size, math.inf, "learning_starts")
        step_positions = math.ceil(self.batch_size / self.samples_per_position)
        check_range(self, self.learning_starts + step_positions, math.inf, "positions")
        if self.full_search_fraction == 0:
            raise UsageError("full-search-fraction should be more than 0, or there is nothing to learn from")
        if not self.game:
            raise UsageError("game should name at least one game, such as connect4")
        from fukami.self_play.games import GAMES

        games = {find_name(name, GAMES) or str(Path(name)) for name in self.game}
        if len(games) < len(self.game):
            raise UsageError(f"game names a game twice: {' '.join(self.game)[:200]}; name each once")
        schedules.parse_schedule(self.schedule)

    def get_stored_fields(self) -> dict[str, Any]:
        """Return the fields as a run contains them: of a game's file its name and SHA-256, and never its code."""
        from fukami.self_play.games import identify_game

        return {**super().get_stored_fields(), "game": tuple(map(identify_game, self.game))}

    def check_stored_fields(self) -> None:
        """Check that a run does not name a file that would be executed.

        Raises:
            Error: it does.
        """
        for name in self.game:
            if name.endswith(".py"):
                raise Error(f"the run names the game file {name[:200]!r} without its SHA-256, so it is not used")

    def check_overrides(self, overrides: Mapping[str, Any]) -> None:
        """Check that the run was trained with the games that a user specifies, and with the same file of a game.

        Raises:
            UsageError: it was not.
        """
        from fukami.self_play.games import identify_game

        game = tuple(map(identify_game, overrides.get("game", ())))
        if not set(game) <= set(self.game):
            raise UsageError(
                f"the network was trained for {', '.join(self.game)}, not for {', '.join(game)}; use one of these"
            )

    def get_code_fields(self) -> Mapping[str, Any]:
        """Return the files of the games, which a run never contains."""
        return {"game": self.game} if any(name.endswith(".py") for name in self.game) else {}

    def make_games(self) -> "tuple[Game, ...]":
        """Create the rules of the games.

        Raises:
            UsageError: a game is unknown, or games other than board sizes of Go are combined.
        """
        from fukami.self_play.games import make_game
        from fukami.self_play.go import Go

        games = tuple(make_game(name, komi=self.komi) for name in self.game)
        if len(games) > 1 and not all(isinstance(game, Go) for game in games):
            raise UsageError(f"only board sizes of Go can share a network, not {', '.join(self.game)}; use one game")
        return games

    def get_search_options(self, simulations: int) -> "SearchOptions":
        """Return the options of the search."""
        from fukami.self_play.search import SearchOptions

        return SearchOptions(
            simulations, self.max_considered_moves, self.value_scale, self.c_puct, self.dirichlet_alpha
        )

    def load_data(self) -> Data:
        """Create the self-play and the evaluation."""
        from fukami.self_play.collector import SelfPlayCollector, SelfPlayOptions

        games = self.make_games()
        num_cells = max(game.shape[0] * game.shape[1] for game in games)
        num_games = self.num_games or max(1, min(MAX_NUM_GAMES, self.positions // (GENERATIONS * num_cells)))
        opening, td_lambda = (30, 0.7) if games[0].name == "connect4" else (0, 1.0)
        options = SelfPlayOptions(
            self.get_search_options(self.self_play_simulations),
            num_games,
            opening if self.random_opening_moves is None else self.random_opening_moves,
            self.temperature_moves,
            self.full_search_fraction,
            min(self.fast_simulations, self.self_play_simulations),
            td_lambda if self.td_lambda is None else self.td_lambda,
        )
        collector = SelfPlayCollector(
            games,
            options,
            batch_size=self.batch_size,
            positions=self.positions,
            learning_starts=self.learning_starts,
            samples_per_position=self.samples_per_position,
            window_fraction=self.window_fraction,
            seed=self.seed,
        )
        return Data(collector, self.build_evaluation(games, "val"), (), self.build_evaluation(games, "test"))

    def load_eval_data(self) -> Data:
        """Build the evaluation."""
        return Data((), test=self.build_evaluation(self.make_games(), "test"))

    def build_evaluation(self, games: "tuple[Game, ...]", split: str) -> "BoardEvaluation":
        """Build the evaluation of a split: optimal moves in Connect Four, in other games a match.

        The validation, during the training, has fewer positions or games than the test.
        """
        from fukami.self_play import evaluation
        from fukami.self_play.go import Go

        if games[0].name == "connect4":
            if split == "val":
                return evaluation.OptimalMoves("val", ("sensible",), (self.simulations, 0))
            counts = tuple(dict.fromkeys((self.simulations, 0, 64, 800)))
            return evaluation.OptimalMoves("test", ("sensible", "random", "play"), counts, seed=self.seed)
        default = "gnugo" if isinstance(games[0], Go) else "search"
        opponent = default if self.eval_opponent == "auto" else self.eval_opponent
        evaluation.check_opponent(opponent, games, self.simulations)
        num_games = self.eval_games if split == "test" else max(2, self.eval_games // 5)
        return evaluation.MatchEvaluation(opponent, num_games, self.gnugo_level, self.seed)

    def build_task(self, labels: tuple[str, ...]) -> "SelfPlayTask":
        """Build the network."""
        import torch

        from fukami.models.alphago import alphago_zero
        from fukami.self_play.collector import count_optimizer_steps
        from fukami.self_play.task import SelfPlayTask

        games = self.make_games()
        model = alphago_zero(
            games[0].num_moves,
            num_planes=games[0].num_planes,
            shape=games[0].shape,
            num_blocks=self.num_blocks,
            num_channels=self.num_channels,
            predicts_score=games[0].has_score,
        )
        steps_per_position = self.samples_per_position / self.batch_size
        return SelfPlayTask(
            model,
            games,
            self.get_search_options(self.simulations),
            ema_decay=self.ema_decay,
            gating_games=self.gating_games,
            average_symmetries=self.average_symmetries,
            epochs=count_optimizer_steps(
                self.positions, self.learning_starts, self.samples_per_position, self.batch_size
            ),
            eval_every=max(1, round(self.eval_every * steps_per_position)),
            optimizer=partial(torch.optim.AdamW, lr=self.lr, weight_decay=self.weight_decay, fused=True),
            lr_schedule=schedules.parse_schedule(self.schedule),
        )


def check_simulations(simulations: int | None) -> None:
    """Check the simulations per move of a command, None for those of the run.

    Raises:
        UsageError: they are out of range.
    """
    if not 0 <= (simulations or 0) <= MAX_SIMULATIONS:
        raise UsageError(f"--simulations should be between 0 and {MAX_SIMULATIONS:,}, not {simulations}")

"""First stage of AlphaGo: networks trained on games (Silver et al. 2016)."""

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fukami.engine import schedules
from fukami.engine.recipe import Data, Recipe, check_range
from fukami.errors import Error, UsageError
from fukami.self_play.alphago_zero import MAX_SEARCH_WEIGHT, MAX_SIMULATIONS

if TYPE_CHECKING:
    from fukami.self_play.policy_data import PositionLoader
    from fukami.self_play.policy_games import GoGames
    from fukami.self_play.policy_task import PolicyTask


@dataclass(frozen=True, kw_only=True)
class AlphaGoPolicy(Recipe):
    """First stage of AlphaGo (Silver et al. 2016): a policy network trained on the moves of games, and a value
    network trained on their results.

    Result: 41.4 % of the moves and 70.7 % of the winners in held-out games of strong programs and professionals, after
    one epoch of 6,538 games in 41 minutes on 2 cores of an AMD EPYC. The paper: 57.0 % of the moves on KGS with 256
    channels, 48 input planes and the mean over the 8 symmetries of the board; 55.9 % without the mean.

    Example:
        fukami train alphago-policy --data games.zip
    """

    data: str = ""
    """Games: a folder, or a zip or tar archive, of SGF files."""
    size: int = 19
    """Board size; games of other sizes are skipped."""
    test_names: tuple[str, ...] = (
        "AlphaGo", "AlphaGo Lee", "AlphaGo Master", "AlphaGo Zero", "Magist", "Magister", "Master", "",
    )  # fmt: skip
    """Names of players, ignoring case, whose games are only used for testing, with separate metrics; '' is a missing
    name."""
    val_fraction: float = 0.03
    """Fraction of the other games used for validation; the same fraction is used for testing."""
    max_unreadable: int = 100
    """Maximum number of unreadable files, which are skipped; more are an error."""
    epochs: int = 1
    """Number of epochs."""
    eval_every: int = 1
    """Evaluation interval in epochs; the last epoch is always evaluated."""
    batch_size: int = 128
    """Global batch size, over all processes; 16 in the paper."""
    lr: float = 3e-3
    """Peak learning rate."""
    schedule: str = "cosine"
    """Learning-rate schedule: constant, step=NUM_DROPS, multistep=FRACTION,FRACTION, exponential=FINAL_FACTOR,
    polynomial=POWER, cosine or one-cycle."""
    warmup: float = 0.05
    """Fraction of the training steps with a linear warm-up."""
    weight_decay: float = 1e-4
    """Weight decay."""
    value_weight: float = 0.2
    """Weight of the loss of the value; 0: no such loss."""
    value_positions: int = 0
    """Positions per game in the loss of the value; fewer overfit less in several epochs, since all positions of a game
    have the same result; 0: all."""
    num_blocks: int = 6
    """Number of residual blocks; the paper has 13 convolutional layers without skip connections."""
    num_channels: int = 48
    """Number of channels; 192 in the paper, 256 for its best accuracy."""
    simulations: int = 0
    """Simulations of the tree search per move in prediction and play; 0: the policy network alone."""
    average_symmetries: bool = False
    """Average the networks over the 8 symmetries of the board in evaluation, prediction and play; a position then costs
    8 evaluations."""
    c_puct: float = 5.0
    """Exploration constant of the search (PUCT); 5 in the paper."""

    def __post_init__(self) -> None:
        """Validate the fields."""
        super().__post_init__()
        check_range(self, 2, 19, "size")
        check_range(self, 0, 1, "val_fraction")
        check_range(self, 0, 0.9999999, "warmup")
        check_range(self, 1, math.inf, "epochs", "eval_every", "num_blocks", "num_channels")
        check_range(self, 2, math.inf, "batch_size")  # for the batch normalization of the value head
        check_range(self, 0, math.inf, "max_unreadable", "lr", "weight_decay", "value_weight", "value_positions")
        check_range(self, 0, MAX_SIMULATIONS, "simulations")
        check_range(self, 1e-9, MAX_SEARCH_WEIGHT, "c_puct")
        schedules.parse_schedule(self.schedule)

    def load_data(self) -> Data:
        """Read the games, and split them.

        Raises:
            Error: fewer than two positions remain for training.
        """
        from fukami.self_play.policy_data import PositionLoader

        games = self.read_games()
        train = PositionLoader(
            games,
            games.select("train", self.val_fraction),
            batch_size=self.batch_size,
            seed=self.seed,
            value_positions=self.value_positions,
        )
        if len(train.targets) < 2:
            raise Error(
                f"no two positions of the {len(games.names):,} games in {self.data} are left for training: the others "
                "are of --test-names ('' is an unknown player), or for validation and testing; shorten --test-names, "
                "lower --val-fraction or use more games"
            )
        return Data(train, self.build_eval_loader(games, "val"), (), self.build_eval_loader(games, "test"))

    def load_eval_data(self) -> Data:
        """Read the games of the test data, or else of the validation data."""
        games = self.read_games()
        test = self.build_eval_loader(games, "test")
        return Data((), () if test else self.build_eval_loader(games, "val"), (), test)

    def read_games(self) -> "GoGames":
        """Read the games.

        Raises:
            UsageError: none are specified.
        """
        from fukami.self_play import policy_games
        from fukami.self_play.go import Go

        if not self.data:
            raise UsageError(
                "alphago-policy learns from games; specify a folder, or a zip or tar archive, of SGF files with --data"
            )
        return policy_games.read_games(Path(self.data), Go(self.size), self.test_names, self.max_unreadable)

    def build_eval_loader(self, games: "GoGames", split: str) -> "PositionLoader | tuple[()]":
        """Build the loader of the validation or test data, if there are any."""
        from fukami.self_play.policy_data import EVAL_BATCH_SIZE, PositionLoader

        indices = games.select(split, self.val_fraction)
        return PositionLoader(games, indices, batch_size=EVAL_BATCH_SIZE) if len(indices) else ()

    def build_task(self, labels: tuple[str, ...]) -> "PolicyTask":
        """Build the network."""
        import torch

        from fukami.models.alphago import alphago_zero
        from fukami.self_play.go import Go
        from fukami.self_play.policy_task import PolicyTask
        from fukami.self_play.search import SearchOptions

        game = Go(self.size)
        model = alphago_zero(
            num_planes=game.num_planes, num_blocks=self.num_blocks, num_channels=self.num_channels, any_size=True
        )
        return PolicyTask(
            model,
            game,
            SearchOptions(self.simulations, c_puct=self.c_puct),
            value_weight=self.value_weight,
            average_symmetries=self.average_symmetries,
            epochs=self.epochs,
            eval_every=self.eval_every,
            optimizer=partial(torch.optim.AdamW, lr=self.lr, weight_decay=self.weight_decay, fused=True),
            lr_schedule=schedules.parse_schedule(self.schedule, warmup=self.warmup),
        )

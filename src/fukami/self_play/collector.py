"""Self-play of many games in parallel, and the training positions from them."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fukami.data.loader import Loader, StateDict, check_counts
from fukami.errors import Error, UsageError
from fukami.self_play.game import Game, States
from fukami.self_play.replay import Positions, ReplayWindow
from fukami.self_play.search import Evaluate, SearchOptions, TreeSearch, get_group_size, map_groups

if TYPE_CHECKING:
    from fukami.engine.runtime import Runtime

HISTORY = ("states", "policies", "values", "is_proven", "is_sample")  # what a game records of each move


@dataclass(frozen=True)
class SelfPlayOptions:
    """Options of self-play.

    Attributes:
        search: options of the search.
        num_games: number of parallel games, over all processes and board sizes.
        random_opening_moves: largest number of random moves at the start of a game, after which the search plays.
        temperature_moves: moves that PUCT samples in proportion to the visits; then it plays the best one.
        full_search_fraction: fraction of the moves with all simulations, and the only ones that are learned (playout
            cap randomization, Wu 2019, section 3.1).
        fast_simulations: simulations of the other moves.
        td_lambda: weight of the later positions of a game in the target of the value; 1: its outcome.
    """

    search: SearchOptions
    num_games: int
    random_opening_moves: int
    temperature_moves: int
    full_search_fraction: float
    fast_simulations: int
    td_lambda: float


class BoardBatch(NamedTuple):
    """Batch of positions with the targets of the network.

    Attributes:
        planes: ``(N, C, H, W)``.
        policies: ``(N, A)``.
        values: -1..1 for the side to move, ``(N,)``.
        scores: points for the side to move, ``(N,)``; None for a game without scores.
        owners: owners of the cells, ``(N, H·W)``; None for a game without scores.
    """

    planes: Tensor
    policies: Tensor
    values: Tensor
    scores: Tensor | None
    owners: Tensor | None


class GameGroup:
    """Parallel games of one kind, a move in each at a time.

    Args:
        game: the rules.
        evaluate: the network.
        options: options of self-play.
        num_games: number of games.
        seed: seed of the random numbers, which depend on it and the number of moves only.
    """

    def __init__(self, game: Game, evaluate: Evaluate, options: SelfPlayOptions, num_games: int, seed: list[int]):
        self.game, self.options, self.num_games, self.seed = game, options, num_games, seed
        self.search = TreeSearch(game, evaluate, options.search, num_games)
        self.num_moves = 0  # moves that were played in each game slot, over all its games
        initial = game.build_initial_state()
        self.states: States = np.tile(initial, (num_games, 1))
        self.opening_lengths = np.zeros(num_games, np.int64)
        self.lengths = np.zeros(num_games, np.int64)  # moves of each game that are recorded
        shape = (num_games, game.max_moves)
        self.history: dict[str, npt.NDArray[Any]] = {
            "states": np.zeros((*shape, len(initial)), np.uint8),
            "policies": np.zeros((*shape, game.num_moves), np.float32),
            "values": np.zeros(shape, np.float32),
            "is_proven": np.zeros(shape, bool),
            "is_sample": np.zeros(shape, bool),
        }

    def play_moves(self) -> list[Positions]:
        """Play a move in each game, and return the positions of the games that are over."""
        rng = np.random.default_rng([*self.seed, self.num_moves])
        if self.num_moves == 0:
            self._start_games(np.arange(self.num_games), rng)
        options, games = self.options, np.arange(self.num_games)
        is_full = rng.random(self.num_games) < options.full_search_fraction
        simulations = np.where(is_full, options.search.simulations, options.fast_simulations)
        result = self.search.search(self.states, simulations, rng, is_full)
        moves = result.moves
        if options.search.c_puct:
            is_sampled = self.opening_lengths + self.lengths < options.temperature_moves
            cumulative = result.policies.cumsum(1, dtype=np.float64)
            sampled = (cumulative > rng.random((self.num_games, 1)) * cumulative[:, -1:]).argmax(1)
            moves = np.where(is_sampled & ~result.is_proven, sampled, moves)
        record = (self.states, result.policies, result.values, result.is_proven, is_full)
        for name, values in zip(HISTORY, record, strict=True):
            self.history[name][games, self.lengths] = values
        self.lengths += 1
        self.states = self.game.play(self.states, moves)
        self.num_moves += 1
        outcomes = self.game.outcome(self.states)
        finished = np.flatnonzero(~np.isnan(outcomes))
        positions = [self._build_positions(index, float(outcomes[index])) for index in finished.tolist()]
        self._start_games(finished, rng)
        return positions

    def _start_games(self, games: npt.NDArray[np.int64], rng: np.random.Generator) -> None:
        """Start games with a random number of random moves."""
        for index in games.tolist():
            while True:
                length = int(rng.integers(min(self.options.random_opening_moves, self.game.max_moves) + 1))
                state = self.game.build_initial_state()[None]
                for _ in range(length):
                    if not np.isnan(self.game.outcome(state)[0]):
                        break
                    state = self.game.play(state, rng.choice(np.flatnonzero(self.game.legal_moves(state)[0]), 1))
                if np.isnan(self.game.outcome(state)[0]):
                    break
            self.states[index], self.opening_lengths[index], self.lengths[index] = state[0], length, 0

    def _build_positions(self, index: int, outcome: float) -> Positions:
        """Build the training positions of a game that is over, with its outcome for the side to move at the end."""
        length, game = int(self.lengths[index]), self.game
        states, policies, values, is_proven, is_sample = (self.history[name][index, :length] for name in HISTORY)
        targets = np.empty(length, np.float32)
        target, weight = outcome, self.options.td_lambda
        for step in reversed(range(length)):
            target = values[step] if is_proven[step] else (1 - weight) * values[step] - weight * target
            targets[step] = target
        scores, owners = np.zeros(0, np.float32), np.zeros((0, 0), np.float32)
        if game.has_score:
            signs = np.where((length - np.arange(length)) % 2, -1, 1).astype(np.float32)[is_sample]
            scores = signs * game.scores(self.states[index : index + 1])
            owners = signs[:, None] * game.owners(self.states[index : index + 1])
        return Positions(states[is_sample], policies[is_sample], targets[is_sample], scores, owners)

    def state_dict(self) -> StateDict:
        """Return the games in progress."""
        rows = [slice(0, length) for length in self.lengths.tolist()]
        history = {
            name: torch.from_numpy(np.concatenate([values[index, row] for index, row in enumerate(rows)]))
            for name, values in self.history.items()
        }
        return {
            "num_moves": self.num_moves,
            "states": torch.from_numpy(self.states.copy()),
            "opening_lengths": torch.from_numpy(self.opening_lengths.copy()),
            "lengths": torch.from_numpy(self.lengths.copy()),
            "history": history,
        }

    def load_state_dict(self, state: StateDict) -> None:
        """Restore the games in progress.

        Raises:
            Error: a number or a state is invalid.
        """
        check_counts(state, "num_moves")
        self.num_moves = state["num_moves"]
        self.states[:] = state["states"].cpu().numpy()
        self.opening_lengths[:] = state["opening_lengths"].cpu().numpy()
        self.lengths[:] = state["lengths"].cpu().numpy()
        if self.lengths.min() < 0 or self.lengths.max() >= self.game.max_moves:
            raise Error("the checkpoint contains games of an invalid length; start a new run in another --out")
        self.game.check_states(self.states)
        games = np.repeat(np.arange(self.num_games), self.lengths)
        steps = np.concatenate([np.arange(length) for length in self.lengths.tolist()])
        for name, values in self.history.items():
            values[games, steps] = state["history"][name].cpu().numpy()
        self.game.check_states(self.history["states"][games, steps])


class SelfPlayCollector(Loader):
    """Self-play of one or several games, and batches of the positions in its replay windows.

    Random numbers depend only on the seed, the process and the number of moves, so a resumed run continues exactly.
    Each process plays its part of the positions, and has its part of every batch.

    Args:
        games: the rules of each game; batches are of each in turn.
        options: options of self-play.
        batch_size: global batch size, over all processes.
        positions: training positions of the run, over all processes.
        learning_starts: positions before training starts.
        samples_per_position: how often a position is in a batch on average.
        window_fraction: size of the replay window as a fraction of the positions so far, at least ``learning_starts``.
        seed: seed of the games and the batches.
    """

    def __init__(
        self,
        games: Sequence[Game],
        options: SelfPlayOptions,
        *,
        batch_size: int,
        positions: int,
        learning_starts: int,
        samples_per_position: float,
        window_fraction: float,
        seed: int,
    ) -> None:
        self.games, self.options, self.seed = tuple(games), options, seed
        self.batch_size, self.positions, self.learning_starts = batch_size, positions, learning_starts
        self.samples_per_position, self.window_fraction = samples_per_position, window_fraction
        self.num_optimizer_steps = self.checkpoint_total = 0
        self._needs_checkpoint = False
        self.rank, self.world_size, self.device = 0, 1, torch.device("cpu")
        self.evaluate: Evaluate | None = None
        self.windows: list[ReplayWindow] = []
        self.folder: Path | None = None

    def __len__(self) -> int:
        """Number of batches per epoch: an epoch is one optimizer step."""
        return 1

    def open_files(self, folder: Path) -> None:
        """Store the replay windows in files of the run's folder."""
        self.folder = folder

    def setup(self, runtime: "Runtime") -> None:
        """Create the games and the replay windows of this process; batches are on the device.

        Raises:
            UsageError: the batch size is not divisible by the number of processes.
        """
        if self.batch_size % runtime.world_size:
            raise UsageError(
                f"{runtime.world_size} processes cannot share a batch of {self.batch_size} evenly; change --batch-size"
            )
        self.rank, self.world_size, self.device = runtime.rank, runtime.world_size, runtime.device
        self.runtime = runtime
        max_size = max(self._divide(self.learning_starts), int(self.window_fraction * self._divide(self.positions))) + 1
        count, group_size = self._divide(self.options.num_games), get_group_size(self.device)
        self.windows = [ReplayWindow(game, max_size, count) for game in self.games]
        for game, window in zip(self.games, self.windows, strict=True):
            if self.folder is not None:
                window.open_files(self.folder / "replay_window" / f"{game.name}-{self.rank}-of-{self.world_size}")
            window.allocate()
        self.groups: list[list[GameGroup]] = [[] for _ in self.games]
        for index, game in enumerate(self.games):
            sizes = [min(group_size, count - start) for start in range(0, count, group_size)]
            for number, size in enumerate(sizes):
                seed = [self.seed, 1, self.rank, index, number]
                self.groups[index].append(GameGroup(game, self._evaluate, self.options, size, seed))

    def _evaluate(self, planes: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        assert self.evaluate is not None
        return self.evaluate(planes)

    def _divide(self, count: int) -> int:
        """Divide a number of positions or games by the number of windows, over all processes and board sizes."""
        return -(-count // (self.world_size * len(self.games)))

    def delete_files(self) -> None:
        """Delete the files after training."""
        for window in self.windows:
            window.delete_files()
        if self.folder is not None:
            with contextlib.suppress(OSError):  # another process has files there
                (self.folder / "replay_window").rmdir()

    @property
    def total(self) -> int:
        """Number of positions of this process so far."""
        return sum(window.total for window in self.windows)

    @property
    def is_step_due(self) -> bool:
        """True if an optimizer step follows before the next moves."""
        return not any(map(self._needs_positions, self.windows))

    def _needs_positions(self, window: ReplayWindow) -> bool:
        """Return whether a replay window needs more positions before the next optimizer step."""
        num_needed = self.learning_starts + (self.num_optimizer_steps + 1) * self.batch_size / self.samples_per_position
        return window.total < num_needed / (self.world_size * len(self.games))

    def collect(self, evaluate: Evaluate) -> None:
        """Play a move in each game that needs positions, and add those of the games that are over."""
        self.evaluate = evaluate
        groups = [
            (window, group)
            for window, part_groups in zip(self.windows, self.groups, strict=True)
            if self._needs_positions(window)
            for group in part_groups
        ]
        parts = list(map_groups(GameGroup.play_moves, [group for _, group in groups], self.device))
        for (window, _), part in zip(groups, parts, strict=True):
            for positions in part:
                size = max(self._divide(self.learning_starts), int(self.window_fraction * window.total))
                window.add(positions, size)

    def sample_batch(self) -> BoardBatch:
        """Sample a batch of positions of one game with replacement, each in a random orientation."""
        # the number of new positions differs between the processes, and the decision must not
        reserve = min(window.num_reserve for window in self.windows)
        self._needs_checkpoint = self.runtime.all_reduce_any(self.total - self.checkpoint_total > reserve // 3)
        rng = np.random.default_rng([self.seed, 2, self.rank, self.num_optimizer_steps])
        window = self.windows[self.num_optimizer_steps % len(self.windows)]
        slots = window.sample(self.batch_size // self.world_size, rng)
        planes, targets = window.load(slots, rng.integers(len(window.symmetries.cells), size=len(slots)))
        scores, owners = (
            (torch.from_numpy(values).to(self.device) for values in (targets.scores, targets.owners))
            if window.game.has_score
            else (None, None)
        )
        return BoardBatch(
            torch.from_numpy(planes).to(self.device),
            torch.from_numpy(targets.policies).to(self.device),
            torch.from_numpy(targets.values).to(self.device),
            scores,
            owners,
        )

    def count_samples(self, batch: BoardBatch) -> tuple[int, str]:
        """Return the number of new positions per optimizer step, and their unit."""
        return round(len(batch.values) / self.samples_per_position), "positions"

    def describe_batch(self, step: int) -> str:
        """Describe the batch of optimizer step ``step`` for messages."""
        return f"positions after {self.total * self.world_size:,} (optimizer step {step + 1})"

    @property
    def needs_checkpoint(self) -> bool:
        """True in all processes if a checkpoint is due before new positions overwrite those that the last one needs."""
        return self._needs_checkpoint

    @property
    def checkpoint_files(self) -> list[Path]:
        """Files to sync to disk before a checkpoint that refers to them."""
        return [path for window in self.windows if window.files for path in window.files.paths.values()]

    def state_dict(self) -> StateDict:
        """Return the progress of all processes; files contain the replay windows."""
        self.checkpoint_total, self._needs_checkpoint = self.total, False
        state = {
            "windows": [[window.total, window.start] for window in self.windows],
            "groups": [[group.state_dict() for group in groups] for groups in self.groups],
        }
        return {"num_optimizer_steps": self.num_optimizer_steps, "processes": self.runtime.all_gather(state)}

    def load_state_dict(self, state: StateDict) -> None:
        """Restore the progress.

        Raises:
            UsageError: the state is of another number of processes.
        """
        if len(state["processes"]) != self.world_size:
            self.delete_files()  # those of the right number of processes have other names
            raise UsageError(
                f"the number of processes was {len(state['processes'])} and is {self.world_size}: a resumed run of "
                "self-play has to keep it, since each process has games of its own; set --processes "
                f"{len(state['processes'])}"
            )
        check_counts(state, "num_optimizer_steps")
        self.num_optimizer_steps = state["num_optimizer_steps"]
        own = state["processes"][self.rank]
        for window, (total, start) in zip(self.windows, own["windows"], strict=True):
            window.restore(int(total), int(start))
        for groups, states in zip(self.groups, own["groups"], strict=True):
            for group, group_state in zip(groups, states, strict=True):
                group.load_state_dict(group_state)
        self.checkpoint_total = self.total


def count_optimizer_steps(positions: int, learning_starts: int, samples_per_position: float, batch_size: int) -> int:
    """Count the optimizer steps of a run."""
    return int((positions - learning_starts) * samples_per_position / batch_size)

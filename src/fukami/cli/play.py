"""Command ``fukami play``."""

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from fukami.cli.arguments import run_cli
from fukami.cli.inputs import check_writable
from fukami.cli.main import InferencePrecision
from fukami.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image

    from fukami.engine.task import Task
    from fukami.reinforcement.dqn import DQN
    from fukami.reinforcement.task import QLearningTask
    from fukami.self_play.match import GameRecord, MatchResult, Player
    from fukami.self_play.task import SelfPlayTask

    Array = npt.NDArray[np.generic]

AGENT_FPS = 15  # steps per second: 60 frames per second, 4 frames per step
BOARD_FPS = 1  # moves per second
END_FRAMES = 2  # more seconds for the end of a board game
OPPONENTS = ("random", "search", "solver", "gnugo")


@dataclasses.dataclass(frozen=True)
class PlayOptions:
    """Options that apply only to some runs or opponents."""

    against: str = ""
    games: int = 2
    opening_moves: int | None = None
    level: int = 1
    color: Literal["first", "second"] = "first"
    game: str = ""
    simulations: int | None = None
    episodes: int = 1
    epsilon: float = 0.0
    max_seconds: float = 120.0

    def check_ranges(self) -> None:
        """Check the values.

        Raises:
            UsageError: one is out of range.
        """
        from fukami.self_play import gnugo
        from fukami.self_play.alphago_zero import check_simulations

        if self.episodes < 1 or not self.max_seconds > 0 or not 0 <= self.epsilon <= 1:
            raise UsageError(
                "--episodes should be at least 1, --max-seconds more than 0, and --epsilon between 0 and 1"
            )
        if self.games < 1 or (self.opening_moves or 0) < 0:
            raise UsageError("--games should be at least 1, and --opening-moves at least 0")
        check_simulations(self.simulations)
        gnugo.check_level(self.level, "--level")

    def check_unused(self, names: Sequence[str], purpose: str) -> None:
        """Check that options that do not apply have their default values.

        Raises:
            UsageError: one has another value.
        """
        for name in names:
            if getattr(self, name) != getattr(DEFAULTS, name):
                raise UsageError(f"--{name.replace('_', '-')} is for {purpose}")


DEFAULTS = PlayOptions()
AGENT_OPTIONS = ("episodes", "epsilon", "max_seconds")
MATCH_OPTIONS = ("games", "opening_moves", "level")
BOARD_OPTIONS = ("against", *MATCH_OPTIONS, "color", "game", "simulations")


def command(arguments: list[str]) -> None:
    """Play a board game against a network, or record a video of an agent."""
    import tyro

    def run(
        folder: tyro.conf.Positional[str],
        out: Path | None = None,
        against: str = DEFAULTS.against,
        games: int = DEFAULTS.games,
        opening_moves: int | None = DEFAULTS.opening_moves,
        level: int = DEFAULTS.level,
        color: Literal["first", "second"] = DEFAULTS.color,
        game: str = DEFAULTS.game,
        simulations: int | None = DEFAULTS.simulations,
        episodes: int = DEFAULTS.episodes,
        epsilon: float = DEFAULTS.epsilon,
        max_seconds: float = DEFAULTS.max_seconds,
        seed: int = 0,
        device: str = "auto",
        precision: InferencePrecision = "auto",
        set: tuple[str, ...] = (),
        recipe: Path | None = None,
    ) -> None:
        """Play a board game in the terminal against a network that was trained by self-play.

        With --against, the network plays a match against another opponent. A run of fukami train dqn is an agent, of
        which --out records a video with the Q value of each action. A match or a video of an agent prints one JSON
        object.

        Args:
            folder: Folder of the run.
            out: Video file: .mp4 (needs the extra video), .gif or .webp. Of a board game, or the first game of a match,
                it shows the policy, the visits and the value of the network's search at each move.
            against: Opponent of a match: random, search (without a network), solver (perfect play of Connect Four),
                gnugo, or the folder of another run. Default: you, in the terminal.
            games: Number of games of the match; the players swap colors after each game.
            opening_moves: Number of random moves at the start of each game of the match; both games of a pair with
                swapped colors have the same ones. Default: 0 for one or two games and against the solver, which
                chooses among its optimal moves at random; else the smallest number with ten openings for each pair.
            level: Level of GNU Go, from 0; its own default is 10.
            color: Whether you play first or second.
            game: Game of a run that plays several, such as go7. Default: the first one.
            simulations: Simulations of the tree search per move; 0: the network alone. Default: those of the run.
            episodes: Number of episodes of an agent.
            epsilon: Exploration rate of an agent: fraction of random actions, 0 to 1.
            max_seconds: Maximum length of the video of an agent; the episodes continue without it.
            seed: Random seed: of the openings and the opponent of a match, or of the first episode of an agent.
            device: Device: auto, cpu, cuda, cuda:1 or mps.
            precision: Precision of inference. auto: float32, or that of an exported run.
            set: Recipe fields of the run that affect the search, such as c_puct=1.5, or the file of your own game, as
                in game=./my_game.py, also for the other run.
            recipe: File of the custom recipe that the run was trained with; a run never contains code.
        """
        from fukami.engine import run_folder, run_record
        from fukami.engine.load_run import load_task, parse_run_overrides
        from fukami.reinforcement.task import QLearningTask

        options = PlayOptions(
            against, games, opening_moves, level, color, game, simulations, episodes, epsilon, max_seconds
        )
        _check_out(out)
        options.check_ranges()
        if seed < 0:
            raise UsageError(f"--seed should be at least 0, not {seed}")
        load = functools.partial(load_task, device=device, precision=precision)
        overrides = parse_run_overrides((folder,), set, recipe)
        task = load(folder, recipe=recipe, overrides=overrides)
        if isinstance(task, QLearningTask):
            options.check_unused(BOARD_OPTIONS, "a run of self-play, and this run is that of an agent")
            if fields := [name for name in ("eval_epsilon", "eval_episodes", "seed") if name in overrides]:
                raise UsageError(f"--set {fields[0]} is for fukami eval; use --epsilon, --episodes and --seed")
            if out is None:
                raise UsageError("--out must be specified for an agent: an .mp4, .gif or .webp file")
            run_recipe, _ = run_record.read_recipe(run_folder.locate_run(folder), recipe)
            record_agent(task, dataclasses.replace(cast("DQN", run_recipe), **overrides), out, seed, options)
            return
        from fukami.self_play.task import SelfPlayTask

        if not isinstance(task, SelfPlayTask):
            raise UsageError(f"{folder} is not the run of an agent or of self-play; use a run of dqn or alphago-zero")
        options.check_unused(AGENT_OPTIONS, "an agent, and this run plays a board game")
        if game:
            task.select_game(game)
        _set_simulations(task, simulations)
        if not against:
            options.check_unused(MATCH_OPTIONS, "a match; add --against")
            if seed:
                raise UsageError("--seed is for a match or an agent; add --against")
            play_in_terminal(task, color, out)
            return
        options.check_unused(("color",), "a game in the terminal; omit it, or --against")

        def load_run(run: str) -> "Task":
            names = {run_record.read_recipe_name(run_folder.locate_run(other)) for other in (folder, run)}
            games = [value for value in set if value.startswith("game=")]
            overrides = parse_run_overrides((run,), games, recipe)
            return load(run, recipe=recipe if len(names) == 1 else None, overrides=overrides)

        opponent = load_opponent(task, options, seed, load_run)
        result = play_against(task, opponent, Path(folder).resolve().name, seed, options)
        values = {"run": folder, "game": task.game.name, "simulations": task.simulations, **result.to_dict()}
        if out is not None:
            write_game(out, task, result.records[0])
            values["file"] = str(out)
        print(json.dumps(values))

    run_cli(run, arguments, "fukami play")


def _check_out(out: Path | None) -> None:
    """Check the name of the video.

    Raises:
        UsageError: it has another format, or its folder does not exist.
    """
    if out is None:
        return
    if out.suffix.lower() not in (".mp4", ".gif", ".webp"):
        raise UsageError(f"--out should be an .mp4, .gif or .webp file, not {out}")
    if not out.resolve().parent.is_dir():
        raise UsageError(f"the folder {out.parent} of the video does not exist; create it, or use another --out")
    check_writable(out.resolve().parent)
    if out.suffix.lower() == ".mp4":
        from fukami.image.video import import_av

        import_av()  # a missing package is reported before the games and not after them


def _set_simulations(task: "SelfPlayTask", simulations: int | None) -> None:
    """Set the simulations of the search per move, if they are specified."""
    if simulations is not None:
        task.search_options = dataclasses.replace(task.search_options, simulations=simulations)


def play_in_terminal(task: "SelfPlayTask", color: Literal["first", "second"], out: Path | None) -> None:
    """Play a game against a person, and write its video."""
    from fukami.cli.play_terminal import TerminalGame

    game = TerminalGame(task, person=int(color == "second"))
    record = game.play()
    if out is not None and record.moves:
        write_game(out, task, record)
        game.console.print(f"video: {out}")


def load_opponent(task: "SelfPlayTask", options: PlayOptions, seed: int, load_run: "Callable[[str], Task]") -> "Player":
    """Load the opponent of a match.

    Args:
        task: the task of the player.
        options: options of the match.
        seed: random seed of the opponent.
        load_run: loads the task of another run.

    Raises:
        UsageError: there is no such opponent, or it does not play the game.
    """
    from fukami.self_play.evaluation import make_opponent
    from fukami.self_play.players import SearchPlayer
    from fukami.self_play.task import SelfPlayTask

    name = options.against
    if name != "gnugo":
        options.check_unused(("level",), "GNU Go; add --against gnugo")
    if name in OPPONENTS:
        return make_opponent(name, task, level=options.level, seed=seed)
    try:
        other = load_run(name)
        if not isinstance(other, SelfPlayTask):
            raise UsageError(f"{name} is not a run of self-play")
        other.select_game(task.game.name)
        other.game = task.game  # with its komi
    except UsageError as error:
        raise UsageError(f"--against: {error}; other opponents are {', '.join(OPPONENTS)}") from None
    _set_simulations(other, options.simulations)
    return SearchPlayer(other, other.simulations, Path(name).resolve().name)


def play_against(task: "SelfPlayTask", opponent: "Player", name: str, seed: int, options: PlayOptions) -> "MatchResult":
    """Play a match, and return its result.

    Args:
        task: the task of the first player.
        opponent: the second player.
        name: name of the first player.
        seed: random seed of the openings.
        options: options of the match.
    """
    from fukami.self_play.match import choose_opening_length, play_match
    from fukami.self_play.players import SearchPlayer

    player = SearchPlayer(task, task.simulations, name)
    length = options.opening_moves
    if length is None:  # games against the solver differ, and most random openings are lost for one side
        length = 0 if options.against == "solver" else choose_opening_length(task.game, options.games)
    try:
        return play_match(task.game, (player, opponent), options.games, opening_moves=length, seed=seed)
    finally:
        opponent.close()


def write_game(out: Path, task: "SelfPlayTask", record: "GameRecord") -> None:
    """Write a video of a board game with the search of the network at each move."""
    import numpy as np

    from fukami.self_play.plots import draw_game

    frames = draw_game(record, task.search(np.stack(record.states[:-1])))
    _write_video(out, [*frames, *frames[-1:] * END_FRAMES], BOARD_FPS, quality=95)


def record_agent(task: "QLearningTask", recipe: "DQN", out: Path, seed: int, options: PlayOptions) -> None:
    """Record a video of an agent, and print its returns."""
    from fukami.reinforcement import plots as reinforcement_plots
    from fukami.reinforcement import vector_env

    frames: list[Image] = []
    returns: list[float] = []
    lengths: list[int] = []

    def record_step(env: vector_env.VectorEnv, values: "Array", actions: "Array", total: "Array") -> None:
        if len(frames) < options.max_seconds * AGENT_FPS:
            action_values = values[0].tolist()
            frames.append(
                reinforcement_plots.draw_step(env.render(0), task.labels, action_values, int(actions[0]), total[0])
            )

    for episode in range(options.episodes):
        eval_data = dataclasses.replace(
            recipe, seed=seed + episode, eval_episodes=1, eval_epsilon=options.epsilon
        ).build_episodes(render=True)
        results = task.collect_results(eval_data, record_step)
        returns += results.returns
        lengths += results.lengths
    _write_video(out, frames, AGENT_FPS)
    print(json.dumps({"file": str(out), "returns": returns, "lengths": lengths, "frames": len(frames)}))


def _write_video(out: Path, frames: "Sequence[Image]", fps: int, *, quality: int = 80) -> None:
    """Write frames as a video; the quality is that of a .webp file."""
    from fukami.image.video import VideoWriter

    if out.suffix.lower() == ".mp4":
        with VideoWriter(out) as video:
            for step, frame in enumerate(frames):
                video.add(frame, step / fps, Fraction(fps))
        return
    frames[0].save(out, save_all=True, append_images=frames[1:], duration=round(1000 / fps), loop=0, quality=quality)

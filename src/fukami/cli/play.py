"""fukami play."""

import dataclasses
import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fukami.cli.main import InferencePrecision, run_cli
from fukami.errors import UsageError

if TYPE_CHECKING:
    import numpy.typing as npt
    from PIL.Image import Image

    Array = npt.NDArray[Any]

FPS = 15  # of a game: four frames of sixty a second are one step


def command(arguments: list[str]) -> None:
    """Let an agent play, and record a video."""
    import tyro

    def run(
        folder: tyro.conf.Positional[str],
        out: Path,
        seed: int = 0,
        episodes: int = 1,
        epsilon: float = 0.0,
        max_seconds: float = 120.0,
        device: str = "auto",
        precision: InferencePrecision = "auto",
        recipe: Path | None = None,
    ) -> None:
        """Let an agent play, and show the game with what each action is worth; prints a JSON object.

        Args:
            folder: The run.
            out: File for the film: .mp4 (which needs the extra fukami[video]), .gif or .webp.
            seed: Decides the beginnings.
            episodes: To be played, one after another.
            epsilon: Share of actions by chance.
            max_seconds: Of the film, at most; the game goes on.
            device: auto, cpu, cuda, cuda:1 or mps.
            precision: What is computed, and with how many bits. auto: float32, or what the run was exported to.
            recipe: File of the private recipe that the run was trained with; code is never taken from a run.
        """
        from fukami.engine import checkpoint
        from fukami.reinforcement import plots as reinforcement_plots
        from fukami.reinforcement import vector_env
        from fukami.reinforcement.dqn import DQN
        from fukami.reinforcement.task import QLearningTask

        if out.suffix.lower() not in (".mp4", ".gif", ".webp"):
            raise UsageError(f"--out should be an .mp4, .gif or .webp file, not {out}")
        if not out.resolve().parent.is_dir():
            raise UsageError(f"there is no folder {out.parent} for the film; make it, or give another --out")
        if episodes < 1 or max_seconds <= 0 or not 0 <= epsilon <= 1:
            raise UsageError(
                "--episodes should be at least 1, --max-seconds more than 0, and --epsilon between 0 and 1"
            )
        task = checkpoint.load(folder, device=device, precision=precision, recipe=recipe)
        if not isinstance(task, QLearningTask):
            raise UsageError(f"{folder} plays no game; give the run of an agent, as fukami train dqn leaves it")
        experiment = cast(DQN, checkpoint.read_recipe(checkpoint.locate_run(folder), recipe)[0])
        frames: list[Image] = []
        returns: list[float] = []
        lengths: list[int] = []

        def look(played: vector_env.VectorEnv, values: "Array", actions: "Array", total: "Array") -> None:
            if len(frames) < max_seconds * FPS:
                worth = values[0].tolist()
                frames.append(
                    reinforcement_plots.draw_step(played.render(0), task.labels, worth, int(actions[0]), total[0])
                )

        for episode in range(episodes):
            trial = dataclasses.replace(
                experiment, seed=seed + episode, eval_episodes=1, eval_epsilon=epsilon
            ).load_eval_data(render=True)
            found = task.collect_results(trial, look)
            returns += found.returns
            lengths += found.lengths
        _write_video(out, frames)
        print(json.dumps({"file": str(out), "returns": returns, "lengths": lengths, "frames": len(frames)}))

    run_cli(run, arguments, "fukami play")


def _write_video(out: Path, frames: "Sequence[Image]") -> None:
    """The frames as a film."""
    from fukami.image.video import VideoWriter

    if out.suffix.lower() == ".mp4":
        with VideoWriter(out) as film:
            for number, frame in enumerate(frames):
                film.add(frame, number / FPS, Fraction(FPS))
        return
    frames[0].save(out, save_all=True, append_images=frames[1:], duration=round(1000 / FPS), loop=0)

"""Command ``fukami play``."""

import dataclasses
import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, cast

from fukami.cli.arguments import run_cli
from fukami.cli.main import InferencePrecision
from fukami.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image

    Array = npt.NDArray[np.generic]

FPS = 15  # steps per second of a game: 60 frames per second, 4 frames per step


def command(arguments: list[str]) -> None:
    """Record a video of a trained agent."""
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
        """Record a video of an agent with the Q value of each action. Prints one JSON object.

        Args:
            folder: Folder of the run.
            out: Video file: .mp4 (needs the extra video), .gif or .webp.
            seed: Random seed of the first episode.
            episodes: Number of episodes.
            epsilon: Exploration rate: fraction of random actions, 0 to 1.
            max_seconds: Maximum length of the video; the episodes continue without it.
            device: Device: auto, cpu, cuda, cuda:1 or mps.
            precision: Precision of inference. auto: float32, or that of an exported run.
            recipe: File of the custom recipe that the run was trained with; a run never contains code.
        """
        from fukami.engine import checkpoint
        from fukami.reinforcement import plots as reinforcement_plots
        from fukami.reinforcement import vector_env
        from fukami.reinforcement.dqn import DQN
        from fukami.reinforcement.task import QLearningTask

        if out.suffix.lower() not in (".mp4", ".gif", ".webp"):
            raise UsageError(f"--out should be an .mp4, .gif or .webp file, not {out}")
        if not out.resolve().parent.is_dir():
            raise UsageError(f"the folder {out.parent} of the video does not exist; create it, or use another --out")
        if episodes < 1 or max_seconds <= 0 or not 0 <= epsilon <= 1:
            raise UsageError(
                "--episodes should be at least 1, --max-seconds more than 0, and --epsilon between 0 and 1"
            )
        task = checkpoint.load_task(folder, device=device, precision=precision, recipe=recipe)
        if not isinstance(task, QLearningTask):
            raise UsageError(f"{folder} is not the run of an agent; use a run of fukami train dqn")
        run_recipe = cast(DQN, checkpoint.read_recipe(checkpoint.locate_run(folder), recipe)[0])
        frames: list[Image] = []
        returns: list[float] = []
        lengths: list[int] = []

        def record_step(env: vector_env.VectorEnv, values: "Array", actions: "Array", total: "Array") -> None:
            if len(frames) < max_seconds * FPS:
                action_values = values[0].tolist()
                frames.append(
                    reinforcement_plots.draw_step(env.render(0), task.labels, action_values, int(actions[0]), total[0])
                )

        for episode in range(episodes):
            eval_data = dataclasses.replace(
                run_recipe, seed=seed + episode, eval_episodes=1, eval_epsilon=epsilon
            ).build_episodes(render=True)
            results = task.collect_results(eval_data, record_step)
            returns += results.returns
            lengths += results.lengths
        _write_video(out, frames)
        print(json.dumps({"file": str(out), "returns": returns, "lengths": lengths, "frames": len(frames)}))

    run_cli(run, arguments, "fukami play")


def _write_video(out: Path, frames: "Sequence[Image]") -> None:
    """Write frames as a video."""
    from fukami.image.video import VideoWriter

    if out.suffix.lower() == ".mp4":
        with VideoWriter(out) as video:
            for step, frame in enumerate(frames):
                video.add(frame, step / FPS, Fraction(FPS))
        return
    frames[0].save(out, save_all=True, append_images=frames[1:], duration=round(1000 / FPS), loop=0)

"""Command ``fukami gtp``."""

import io
import sys
from importlib.metadata import version
from pathlib import Path

from fukami.cli.arguments import run_cli
from fukami.cli.main import InferencePrecision
from fukami.errors import UsageError


def command(arguments: list[str]) -> None:
    """Play Go with other programs, through the Go Text Protocol."""
    import tyro

    def run(
        folder: tyro.conf.Positional[str],
        simulations: int | None = None,
        device: str = "auto",
        precision: InferencePrecision = "auto",
        set: tuple[str, ...] = (),
        recipe: Path | None = None,
    ) -> None:
        """Read commands of the Go Text Protocol (GTP, version 2) from stdin, and write the responses to stdout.

        Programs such as Sabaki, GoGui and gogui-twogtp start this command as an engine. The engine accepts the board
        sizes of the training. Its rules are those of the training: area scoring of the stones on the board, positional
        superko, no suicide.

        Args:
            folder: Folder of a run of self-play that plays Go.
            simulations: Simulations of the tree search per move; 0: the network alone. Default: those of the run.
            device: Device: auto, cpu, cuda, cuda:1 or mps.
            precision: Precision of inference. auto: float32, or that of an exported run.
            set: Recipe fields that affect the search, such as c_puct=1.5.
            recipe: File of the custom recipe that the run was trained with; a run never contains code.
        """
        from fukami.engine import run_folder
        from fukami.engine.load_run import load_task, parse_run_overrides
        from fukami.self_play.alphago_zero import check_simulations
        from fukami.self_play.go import Go
        from fukami.self_play.gtp import GtpEngine
        from fukami.self_play.players import SearchPlayer
        from fukami.self_play.task import SelfPlayTask

        check_simulations(simulations)
        overrides = parse_run_overrides((folder,), set, recipe)
        task = load_task(folder, device=device, precision=precision, overrides=overrides, recipe=recipe)
        games = [game for game in task.games if isinstance(game, Go)] if isinstance(task, SelfPlayTask) else []
        if not games or not isinstance(task, SelfPlayTask):
            raise UsageError(f"{folder} does not play Go, and GTP is for Go; use a run of alphago-zero --game go9")
        player = SearchPlayer(task, task.simulations if simulations is None else simulations)
        name = f"fukami {run_folder.locate_run(folder).resolve().name}".encode("ascii", "replace").decode()
        engine = GtpEngine(games, player, name, version("fukami"))
        engine.run(io.TextIOWrapper(sys.stdin.buffer, "latin-1", newline="\n"), sys.stdout)

    run_cli(run, arguments, "fukami gtp")

"""fukami serve."""

import socket
import sys
from pathlib import Path
from typing import Any

from fukami.cli import Answered, parse
from fukami.errors import Error, UsageError

WAITING = 5  # seconds that unfinished requests have when the server is stopped
AT_ONCE = 100  # connections and requests; further ones are answered 503


def command(arguments: list[str]) -> None:
    """A page and an HTTP API that answer with a run: fukami serve RUN... [--host H] [--port N]."""
    import tyro

    def run(
        runs: tyro.conf.Positional[tuple[str, ...]],
        host: str = "127.0.0.1",
        port: int = 8000,
        device: str = "auto",
        precision: Answered = "auto",
        vote: bool = False,
        views: int = 1,
        set: tuple[str, ...] = (),
        recipe: Path | None = None,
    ) -> None:
        """Serve a page to ask a run with pictures, and an HTTP API; until Ctrl-C.

        Args:
            runs: Folders of runs, or names of weights that ship with the package; several are an ensemble.
            host: Address to listen on. Default: this machine alone; 0.0.0.0: every network that it is in.
            port: Port to listen on; 0: one that is free.
            device: auto, cpu, cuda, cuda:1 or mps.
            precision: What is computed, and with how many bits. auto: float32, or what the run was exported to.
            vote: The majority of the runs decides, and not the average of their probabilities.
            views: Test-time augmentation: answers are averaged over so many views of each picture.
            set: Fields of the recipe that decide how it answers, such as beams=3.
            recipe: File of the private recipe that the run was trained with; code is never taken from a run.
        """
        import uvicorn

        from fukami import checkpoint
        from fukami.serving.app import app

        changed = checkpoint.changes(runs, set, recipe)
        task = checkpoint.load(
            *runs, device=device, precision=precision, vote=vote, changes=changed, recipe=recipe
        ).views(views)
        application = app(task, describe(runs, precision, recipe))
        with listen(host, port) as listener:
            name = f"[{host}]" if ":" in host else host
            at = f"http://{name}:{listener.getsockname()[1]}"
            print(f"serving {', '.join(runs)} at {at}; Ctrl-C stops it", file=sys.stderr, flush=True)
            config = uvicorn.Config(
                application,
                log_config=None,
                log_level="warning",
                limit_concurrency=AT_ONCE,
                timeout_graceful_shutdown=WAITING,
            )
            uvicorn.Server(config).run(sockets=[listener])
            raise KeyboardInterrupt  # a shell that ignores Ctrl-C for us, in the background, makes uvicorn just return

    parse(run, arguments, "fukami serve")


def describe(runs: tuple[str, ...], precision: str, recipe: Path | None) -> dict[str, Any]:
    """What is served, for whoever asks the server."""
    from fukami import checkpoint
    from fukami.recipe import name_of

    folders = [checkpoint.locate(run) for run in runs]
    described = [checkpoint.describe(folder, recipe) for folder in folders]
    recipes = dict.fromkeys(Path(name_of(type(each))).name for each, _ in described)
    return {
        "runs": list(runs),
        "recipe": ", ".join(recipes),
        "labels": list(described[0][1]),
        "precision": checkpoint.precision_of(folders[0]) if precision == "auto" else precision,
        "versions": checkpoint.versions(),
    }


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        UsageError: there are no such ports.
        Error: the port is in use or not allowed, or the host is not this machine.
    """
    if not 0 <= port <= 65535:
        raise UsageError(f"--port should be between 0 and 65535, not {port}")
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise Error(
            f"cannot serve: {error.strerror}; choose another --port, 0 for one that is free, or another --host"
        ) from None

"""Command ``fukami serve``."""

import os
import re
import socket
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fukami.cli.arguments import run_cli
from fukami.cli.inputs import load_predictor
from fukami.cli.main import InferencePrecision
from fukami.data.parsing import Json
from fukami.errors import Error, UsageError, require_extra

if TYPE_CHECKING:
    from fastapi import FastAPI

    from fukami.engine.task import Task

SHUTDOWN_SECONDS = 5  # grace period of unfinished requests when the server stops
MAX_CONNECTIONS = 4096  # open connections; another one replaces the one that has been idle longest
BACKLOG = 2048  # connections waiting to be accepted
TOKEN_PATTERN = re.compile(r"[!-~]{8,}")  # valid in an Authorization header, and hard to guess


def command(arguments: list[str]) -> None:
    """Serve a run as a web page and an HTTP API."""
    import tyro

    def run(
        runs: tyro.conf.Positional[tuple[str, ...]],
        host: str = "127.0.0.1",
        port: int = 8000,
        token: str = "",
        allowed_hosts: tuple[str, ...] = (),
        request_timeout: float = 60.0,
        device: str = "auto",
        precision: InferencePrecision = "auto",
        vote: bool = False,
        views: int = 1,
        confidence: float | None = None,
        tiles: int = 0,
        set: tuple[str, ...] = (),
        recipe: Path | None = None,
    ) -> None:
        """Serve a web page and an HTTP API that run inference on uploaded images, or play a board game.

        Ctrl-C stops the server.

        Args:
            runs: Folders of runs, or names of bundled weights; several are an ensemble.
            host: Address to listen on. The default accepts local connections only; 0.0.0.0: all networks.
            port: Port to listen on; 0: any free port.
            token: Secret of at least 8 characters that clients send as a bearer token or as the password of basic
                authentication. Default: the environment variable FUKAMI_TOKEN, which process lists do not show; without
                either, no token is needed.
            allowed_hosts: Host names of this server that requests may use, in addition to localhost and --host, such as
                the demo.example.com of a proxy.
            request_timeout: Maximum time per prediction in seconds, including time in the queue.
            device: Device: auto, cpu, cuda, cuda:1 or mps.
            precision: Precision of inference. auto: float32, or that of an exported run.
            vote: Ensemble by majority vote instead of averaged probabilities.
            views: Test-time augmentation: number of augmented views averaged per image; 1 disables it.
            confidence: Minimum score of a predicted box, 0 to 1, unless a request has its own. Default: that of the
                run, which has the highest F1 on the validation data.
            tiles: Side of the overlapping tiles in which a detector predicts larger images, in pixels of the image, to
                find small objects; 0: no tiles.
            set: Recipe fields that affect prediction, such as beam_size=3.
            recipe: File of the custom recipe that the run was trained with; a run never contains code.
        """
        with require_extra("serve", "fukami serve"):
            import uvicorn  # noqa: F401

            from fukami.serving.access import LOCAL_HOSTS, parse_host
            from fukami.serving.app import create_app

        secret = os.environ.pop("FUKAMI_TOKEN", "")  # child processes do not inherit it
        secret = check_token(token or secret)
        if not request_timeout > 0:
            raise UsageError(f"--request-timeout should be more than 0 seconds, not {request_timeout:g}")
        hosts = {*LOCAL_HOSTS, host, *map(parse_host, allowed_hosts)}
        task = load_predictor(
            runs, device, precision, vote=vote, views=views, confidence=confidence, tiles=tiles, overrides=set,
            recipe=recipe,
        )  # fmt: skip
        run_info = build_run_info(task, runs, precision, recipe)
        application = create_app(task, run_info, hosts=hosts, token=secret, request_timeout=request_timeout)
        _run_server(application, host, port, ", ".join(runs))

    run_cli(run, arguments, "fukami serve")


def _run_server(application: "FastAPI", host: str, port: int, title: str) -> None:
    """Serve an application until Ctrl-C; ``title`` names the runs in the message at the start."""
    import uvicorn

    from fukami.serving.connections import Connection

    file_limit = raise_file_limit()
    with listen(host, port) as listener:
        name = f"[{host}]" if ":" in host else host
        address = f"http://{name}:{listener.getsockname()[1]}"
        print(f"serving {title} at {address}; Ctrl-C stops it", file=sys.stderr, flush=True)
        config = uvicorn.Config(
            application,
            http=partial(Connection, max_connections=min(MAX_CONNECTIONS, file_limit // 2)),  # type: ignore[arg-type]
            ws="none",
            log_config=None,
            log_level="error",  # clients can trigger any number of warnings
            server_header=False,
            backlog=min(BACKLOG, file_limit // 4),  # all of them may be accepted at once
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        )
        try:
            uvicorn.Server(config).run(sockets=[listener])
            raise KeyboardInterrupt  # uvicorn just returns if the shell ignores Ctrl-C for background jobs
        except (KeyboardInterrupt, SystemExit) as error:
            if application.state.worker.used_slots:  # Python would wait for the end of a running prediction
                os._exit(getattr(error, "code", 130))
            raise


def check_token(token: str) -> str:
    """Return the token if it is valid or empty.

    Raises:
        UsageError: the token has fewer than 8 characters, or characters that a header cannot contain.
    """
    if token and not TOKEN_PATTERN.fullmatch(token):
        raise UsageError(
            "--token (or FUKAMI_TOKEN) should be 8 or more ASCII letters, digits or punctuation marks, without spaces"
        )
    return token


def build_run_info(task: "Task", runs: tuple[str, ...], precision: str, recipe: Path | None) -> dict[str, Json]:
    """Describe the served runs and their task for clients, without paths of this machine."""
    from fukami.engine import run_folder, run_record
    from fukami.engine.recipe import get_recipe_name

    folders = [run_folder.locate_run(run) for run in runs]
    run_recipes = [run_record.read_recipe(folder, recipe)[0] for folder in folders]
    recipe_names = dict.fromkeys(Path(get_recipe_name(type(run_recipe))).name for run_recipe in run_recipes)
    run_info: dict[str, Json] = {
        "recipe": ", ".join(recipe_names),
        "members": len(runs),
        "precision": run_record.read_precision(folders[0]) if precision == "auto" else precision,
        "versions": run_record.get_versions(),
    }
    if task.labels:
        run_info["labels"] = list(task.labels)
    if get_confidence := getattr(task, "get_confidence", None):  # of a detector
        run_info["confidence"] = get_confidence()
    if games := getattr(task, "games", ()):  # of self-play
        run_info |= {"games": [game.name for game in games], "simulations": getattr(task, "simulations", 0)}
    return run_info


def raise_file_limit() -> int:
    """Raise the limit of open files, sockets included, as far as allowed; return the limit."""
    if sys.platform == "win32":
        return 4 * BACKLOG  # sockets are not files on Windows
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = 4 * BACKLOG if hard == resource.RLIM_INFINITY else min(4 * BACKLOG, hard)
    if soft != resource.RLIM_INFINITY and soft < limit:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        except (OSError, ValueError):  # macOS may have a lower limit of its own
            return soft
    return limit


def listen(host: str, port: int) -> socket.socket:
    """Create a listening socket.

    Raises:
        UsageError: the port is out of range, or the host is empty, which would be all addresses.
        Error: the port is in use or not allowed, or the host is not an address of this machine.
    """
    if not 0 <= port <= 65535:
        raise UsageError(f"--port should be between 0 and 65535, not {port}")
    if not host:
        raise UsageError("--host should be an address of this machine, such as 127.0.0.1, and is empty")
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise Error(
            f"cannot listen on {host}, port {port}: {error.strerror}; change --port (0: any free port) or --host"
        ) from None

"""fukami serve."""

import os
import re
import socket
import sys
from functools import partial
from pathlib import Path
from typing import Any

from fukami.cli.main import InferencePrecision, run_cli
from fukami.errors import Error, UsageError

SHUTDOWN_SECONDS = 5  # seconds that unfinished requests have when the server is stopped
MAX_CONNECTIONS = 4096  # at a time; a further one takes the place of the one that has idled longest
BACKLOG = 2048  # connections that wait to be accepted
TOKEN_PATTERN = re.compile(r"[!-~]{8,}")  # what an Authorization header can hold, and is not soon guessed


def command(arguments: list[str]) -> None:
    """Serve a run: a web page and an HTTP API."""
    import tyro

    def run(
        runs: tyro.conf.Positional[tuple[str, ...]],
        host: str = "127.0.0.1",
        port: int = 8000,
        token: str = "",
        allowed_hosts: tuple[str, ...] = (),
        deadline: float = 60.0,
        device: str = "auto",
        precision: InferencePrecision = "auto",
        vote: bool = False,
        views: int = 1,
        set: tuple[str, ...] = (),
        recipe: Path | None = None,
    ) -> None:
        """Serve a page to ask a run with images, and an HTTP API; until Ctrl-C.

        Args:
            runs: Folders of runs, or names of weights that ship with the package; several are an ensemble.
            host: Address to listen on. Default: this machine alone; 0.0.0.0: every network that it is in.
            port: Port to listen on; 0: one that is free.
            token: Secret that clients have to send, of 8 characters or more: as a bearer token, or as the password that
                a browser asks for. Default: FUKAMI_TOKEN of the environment, which no list of processes shows; without
                either, none is needed.
            allowed_hosts: Names of this server, other than localhost and --host, under which it may be asked, such as
                demo.example.com of a proxy.
            deadline: Seconds that an image has until it is answered, the time that it waits included.
            device: auto, cpu, cuda, cuda:1 or mps.
            precision: What is computed, and with how many bits. auto: float32, or what the run was exported to.
            vote: The majority of the runs decides, and not the average of their probabilities.
            views: Test-time augmentation: answers are averaged over so many views of each image.
            set: Fields of the recipe that decide how it answers, such as beam_size=3.
            recipe: File of the private recipe that the run was trained with; code is never taken from a run.
        """
        import uvicorn

        from fukami.engine import checkpoint
        from fukami.serving.access import LOCAL_HOSTS
        from fukami.serving.app import create_app
        from fukami.serving.connections import Connection

        secret = os.environ.pop("FUKAMI_TOKEN", "")  # nor do the processes that we start know it
        secret = check_token(token or secret)
        if not deadline > 0:
            raise UsageError(f"--deadline should be seconds, more than 0, not {deadline:g}")
        changed = checkpoint.parse_run_overrides(runs, set, recipe)
        task = checkpoint.load(
            *runs, device=device, precision=precision, vote=vote, overrides=changed, recipe=recipe
        ).with_views(views)
        hosts = {*LOCAL_HOSTS, host, *allowed_hosts}
        application = create_app(
            task, build_run_info(runs, precision, recipe), hosts=hosts, token=secret, deadline=deadline
        )
        files = raise_file_limit()
        with listen(host, port) as listener:
            name = f"[{host}]" if ":" in host else host
            at = f"http://{name}:{listener.getsockname()[1]}"
            print(f"serving {', '.join(runs)} at {at}; Ctrl-C stops it", file=sys.stderr, flush=True)
            config = uvicorn.Config(
                application,
                http=partial(Connection, max_connections=min(MAX_CONNECTIONS, files // 2)),  # type: ignore[arg-type]
                ws="none",
                log_config=None,
                log_level="error",  # a client can cause any number of warnings
                server_header=False,
                backlog=min(BACKLOG, files // 4),  # all of which are accepted at once
                timeout_graceful_shutdown=SHUTDOWN_SECONDS,
            )
            uvicorn.Server(config).run(sockets=[listener])
            raise KeyboardInterrupt  # a shell that ignores Ctrl-C for us, in the background, makes uvicorn just return

    run_cli(run, arguments, "fukami serve")


def check_token(token: str) -> str:
    """The token, where it can be one; "" stays as it is.

    Raises:
        UsageError: it has fewer than 8 characters, or some that a header cannot hold.
    """
    if token and not TOKEN_PATTERN.fullmatch(token):
        raise UsageError(
            "--token (or FUKAMI_TOKEN) should be 8 or more letters, digits or signs of ASCII, without spaces"
        )
    return token


def build_run_info(runs: tuple[str, ...], precision: str, recipe: Path | None) -> dict[str, Any]:
    """What is served, for whoever asks the server; no path of this machine."""
    from fukami.engine import checkpoint
    from fukami.engine.recipe import get_recipe_name

    folders = [checkpoint.locate_run(run) for run in runs]
    described = [checkpoint.read_recipe(folder, recipe) for folder in folders]
    recipes = dict.fromkeys(Path(get_recipe_name(type(each))).name for each, _ in described)
    return {
        "recipe": ", ".join(recipes),
        "members": len(runs),
        "labels": list(described[0][1]),
        "precision": checkpoint.read_precision(folders[0]) if precision == "auto" else precision,
        "versions": checkpoint.get_versions(),
    }


def raise_file_limit() -> int:
    """Let this process open as many files as it may, a connection being one; returns how many these are."""
    if sys.platform == "win32":
        return 4 * BACKLOG  # sockets are no files there
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * BACKLOG if hard == resource.RLIM_INFINITY else min(4 * BACKLOG, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):  # macOS may have a lower one of its own
            return soft
    return wanted


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

"""Python interpreter that starts at once: its processes are forked from a server that has imported torch.

``ForkedPython().executable`` takes the place of ``sys.executable`` in a command for ``subprocess``. This program passes
its arguments (``-m MODULE``, ``-c CODE`` or ``SCRIPT``), working directory, environment, network namespace and open
files to the forked process, and SIGINT and SIGTERM, too. It ends with the status or the signal of that process. The
forked process has its own session, and is killed if the program is killed. With ``PYTHONEXECUTABLE`` in the
environment, the Python processes that it starts are forked as well.

Not for tests of imports, of interpreter options, of the memory of a process, or of signals to a process group.
"""

import atexit
import contextlib
import ctypes
import fcntl
import gc
import importlib
import json
import os
import random
import runpy
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import types
from pathlib import Path

PRELOADED = [
    "fukami.cli.main", "fukami.cli.train", "fukami.data.labeled_images", "fukami.engine.train", "matplotlib.figure",
    "pytest", "safetensors.torch", "sklearn.datasets", "torch.distributed.run", "torch.nn.parallel", "torchvision",
    "tyro", "tyro._backends._tyro_backend",
]  # fmt: skip
FIRST_MOVED = 700  # first number for received descriptors until they get their own
PROGRAM = """#!{python} -IS
import json, os, signal, socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect({address!r})
def is_open(number):
    try: return bool(os.fstat(number))
    except OSError: return False
numbers = [n for n in map(int, os.listdir("/proc/self/fd")) if n != connection.fileno() and is_open(n)]
for name in (signal.SIGINT, signal.SIGTERM):
    signal.signal(name, lambda number, frame: connection.send(bytes([number])))
request = dict(arguments=sys.argv[1:], environment=dict(os.environ), folder=os.getcwd(), numbers=numbers,
               process=os.getpid())
socket.send_fds(connection, [b"{{"], numbers)
connection.sendall(json.dumps(request)[1:].encode() + b"\\n")
status = os.waitstatus_to_exitcode(int(connection.recv(100) or signal.SIGKILL))
if status < 0:
    signal.signal(-status, signal.SIG_DFL) if status != -signal.SIGKILL else None
    os.kill(os.getpid(), -status)
os._exit(status)
"""


class ForkedPython:
    """Server of forked Python processes, which is started at the first use of ``executable``."""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="python"))
        self.server = None

    @property
    def executable(self):
        """Path of the program that takes the place of ``sys.executable``."""
        program = self.folder / "python"
        if self.server is None:
            program.write_text(PROGRAM.format(python=sys.executable, address=str(self.folder / "socket")))
            program.chmod(0o700)
            self.server = subprocess.Popen(
                [sys.executable, __file__, self.folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True,
            )  # fmt: skip
            assert self.server.stdout.read(1), "the server did not start"
        return str(program)

    def get_forked_pid(self, pid):
        """Return the id of the forked process of a program with a process id."""
        return int((self.folder / str(pid)).read_text())

    def close(self):
        """End the server and its processes."""
        if self.server:
            self.server.communicate(b"end")  # other processes may have inherited its stdin
        shutil.rmtree(self.folder)


def serve(folder):
    """Fork a process per connection until stdin has an input or ends."""
    for module in PRELOADED:
        importlib.import_module(module)
    assert len([*Path("/proc/self/task").iterdir()]) == 1, "threads do not survive a fork"
    gc.collect()
    gc.freeze()  # otherwise each process copies the memory of all objects when it collects garbage
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "socket"))
    listener.listen(100)
    selector, running = selectors.DefaultSelector(), {}
    for source in (listener, sys.stdin):
        selector.register(source, selectors.EVENT_READ)
    os.write(1, b"1")
    os.close(1)
    while True:
        for source in [key.fileobj for key, _ in selector.select()]:
            if source is sys.stdin:
                for pid, _ in running.values():
                    os.killpg(pid, signal.SIGKILL)
                os._exit(0)
            elif source is listener:
                connection, pid = fork(listener, folder)
                pidfd = os.pidfd_open(pid)
                running[pidfd] = running[connection] = pid, connection
                selector.register(pidfd, selectors.EVENT_READ)
                selector.register(connection, selectors.EVENT_READ)
            elif source in running:
                handle(source, selector, running)


def handle(source, selector, running):
    """Handle the end of a forked process, or a signal or the end of its program."""
    pid, connection = running[source]
    if isinstance(source, int):  # the forked process has ended
        status = os.waitpid(pid, 0)[1]
        if connection in running:
            selector.unregister(connection)
            del running[connection]
        with contextlib.suppress(OSError):  # the program was killed
            connection.send(b"%d" % status)
        connection.close()
        os.close(source)
    else:
        number = connection.recv(1)
        if number:
            os.kill(pid, number[0])
            return
        os.killpg(pid, signal.SIGKILL)
    selector.unregister(source)
    del running[source]


def fork(listener, folder):
    """Accept a connection and fork its process; return the connection and the process id."""
    connection, _ = listener.accept()
    content, descriptors, _, _ = socket.recv_fds(connection, 1, 250)
    with connection.makefile("rb", buffering=0) as file:
        request = json.loads(content + file.readline())
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setsid()
        (folder / str(request["process"])).write_text(str(os.getpid()))
        os.close(reader)
        os.close(writer)
        moved = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, FIRST_MOVED) for descriptor in descriptors]
        os.closerange(0, FIRST_MOVED)
        for descriptor, number in zip(moved, request["numbers"], strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)
        run(**request)
    os.close(writer)
    os.read(reader, 1)  # until the process has its session and has written its id
    os.close(reader)
    for descriptor in descriptors:
        os.close(descriptor)
    return connection, pid


def run(arguments, environment, folder, process, **_):
    """Run a program as Python does, and end the process."""
    status, interrupted = 1, False
    try:
        prepare(environment, folder, Path("/proc", str(process), "ns", "net"))
        execute(arguments)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")
    except BaseException as error:
        sys.excepthook(*sys.exc_info())
        interrupted = isinstance(error, KeyboardInterrupt)
    try:
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        if interrupted:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.raise_signal(signal.SIGINT)
        os._exit(status & 0xFF)


def prepare(environment, folder, network):
    """Set the environment, the working directory, the network namespace, and what depends on them."""
    import numpy as np
    import torch

    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    if not network.samefile("/proc/self/ns/net"):
        with network.open() as file:
            assert ctypes.CDLL(None).setns(file.fileno(), 0) == 0
    random.seed()
    np.random.seed()
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", os.cpu_count())))
    if "PYTHONEXECUTABLE" in environment:
        import multiprocessing.spawn

        sys.executable = environment["PYTHONEXECUTABLE"]
        multiprocessing.spawn.set_executable(sys.executable)


def execute(arguments):
    """Execute a module, code or script as ``__main__``."""
    while arguments[0] in ("-u", "-B"):
        arguments = arguments[1:]
    kind, *arguments = arguments
    if kind in ("-m", "-c"):
        name, *arguments = arguments
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    sys.argv = [kind, *arguments]
    if kind == "-m":
        sys.path[0] = str(Path.cwd())
        runpy._run_module_as_main(name)
    elif kind == "-c":
        sys.path[0] = ""
        exec(compile(name, "<string>", "exec"), main.__dict__)
    else:
        script = Path(kind).absolute()
        sys.path[0] = str(script.resolve().parent)
        main.__file__, main.__builtins__ = str(script), __builtins__
        exec(compile(script.read_bytes(), script, "exec"), main.__dict__)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))

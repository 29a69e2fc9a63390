"""Images decoded in another process, which can be killed.

A codec is C: it cannot be interrupted, and a fault in it ends its process. So the server reads images in a process of
its own, of bounded memory, and kills it when an image takes too long; the next image gets a new one. What comes back is
the pixels, or why there are none: never an object of that process.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import warnings
import weakref
from typing import IO, Any

from PIL import Image

from fukami.errors import Error, convert_memory_errors
from fukami.image import io as image_io

MAX_MEMORY = 3 * 2**30  # bytes that the process may take, of Linux; 50 megapixels of AVIF, the worst, take 1 GB
THREAD_VARIABLES = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class Decoder:
    """Reads images, one at a time, in another process.

    Args:
        max_pixels: larger images are refused before they are decoded.
        timeout: that an image may take.
    """

    def __init__(self, max_pixels: int, timeout: float) -> None:
        self.max_pixels, self.timeout = max_pixels, timeout
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> subprocess.Popen[bytes]:
        """Start the process, where there is none that runs."""
        if self.process is not None and self.process.poll() is not None:
            self.close()
        if self.process is None:
            # -P: never a module from the current folder, which may be one that somebody sent.
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-W", "ignore", "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=os.environ | THREAD_VARIABLES | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
            weakref.finalize(self, _kill_process, self.process)
        return self.process

    def decode(self, content: bytes, name: str) -> Image.Image:
        """Decode the content of a file that errors call ``name``, as :func:`fukami.image.io.read_image` does.

        Raises:
            Error: it cannot be read, took too long, or broke the decoder.
        """
        process = self.start()
        late = threading.Event()

        def kill() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(self.timeout, kill)
        timer.start()
        try:
            assert process.stdin
            assert process.stdout
            _send(process.stdin, {"name": name, "max_pixels": self.max_pixels}, content)
            found, pixels = _receive(process.stdout)
        except (OSError, ValueError):  # the other end is closed, or what it sent is cut off
            self.close()
            why = f"took more than {self.timeout:g} seconds to decode" if late.is_set() else "broke the decoder"
            raise Error(f"{name} {why}; save it anew, as a PNG or JPEG") from None
        finally:
            timer.cancel()
            timer.join()
            if late.is_set():
                self.close()
        if "error" in found:
            raise Error(found["error"])
        return Image.frombytes(found["mode"], tuple(found["size"]), pixels)

    def close(self) -> None:
        """End the process; the next image starts another one."""
        if self.process is not None:
            _kill_process(self.process)
            self.process = None


def _kill_process(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):  # what could not be sent any more
            pipe.close()  # type: ignore[union-attr]


def _send(pipe: IO[bytes], head: dict[str, Any], content: bytes) -> None:
    """Write a message: a line of JSON, and as many bytes as it says."""
    pipe.write(json.dumps({**head, "length": len(content)}).encode() + b"\n")
    pipe.write(content)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> tuple[dict[str, Any], bytes]:
    """Read a message.

    Raises:
        ValueError: it is cut off.
    """
    head = json.loads(pipe.readline())
    content = pipe.read(head["length"])
    if len(content) != head["length"]:
        raise ValueError("cut off")
    return head, content


def decode_message(request: dict[str, Any], content: bytes) -> tuple[dict[str, Any], bytes]:
    """Decode the image in a message to another message: its mode, size and pixels, or an error."""
    try:
        with convert_memory_errors(request["name"]):
            image = image_io.read_image(content, name=request["name"], max_pixels=request["max_pixels"])
            return {"mode": image.mode, "size": image.size}, image.tobytes()
    except Error as error:
        return {"error": str(error)}, b""


def main() -> None:
    """Decode what comes through standard input until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all processes of a terminal; the server ends this one
    warnings.simplefilter("ignore")
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (MAX_MEMORY, MAX_MEMORY))
    with contextlib.suppress(ValueError, OSError):  # the server has ended
        while True:
            _send(sys.stdout.buffer, *decode_message(*_receive(sys.stdin.buffer)))
    os._exit(0)  # without another attempt to write what nobody reads


if __name__ == "__main__":
    main()

"""Image decoding in a separate process that can be killed.

Codecs are C code: they cannot be interrupted, and a fault in one ends its process. The server therefore decodes images
in a process with bounded memory, and kills it when an image takes too long; the next image starts a new one. The
process returns only pixels or an error message, never pickled objects.
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
from typing import IO, TypedDict

import numpy as np
from PIL import Image

from fukami.errors import Error, convert_memory_errors
from fukami.image.channels import ArrayImage, DecodedImage, read_channels

MAX_MEMORY = 3 * 2**30  # bytes, on Linux; 50 megapixels of AVIF, the worst case, take 1 GB
THREAD_VARIABLES = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class Message(TypedDict, total=False):
    """Head of a message: of an image to decode, of the decoded image or array, or of an error."""

    name: str
    max_pixels: int
    channels: int
    mode: str
    size: tuple[int, int]
    dtype: str
    shape: tuple[int, ...]
    error: str
    length: int


class Decoder:
    """Decodes images in another process, one at a time.

    Args:
        max_pixels: larger images are rejected before they are decoded.
        timeout: maximum seconds to decode an image.
        channels: number of channels of the images; 0: those of the file.
    """

    def __init__(self, max_pixels: int, timeout: float, channels: int = 0) -> None:
        self.max_pixels, self.timeout, self.channels = max_pixels, timeout, channels
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> subprocess.Popen[bytes]:
        """Start the process if none is running."""
        if self.process is not None and self.process.poll() is not None:
            self.close()
        if self.process is None:
            # -P: import no modules from the current folder, which may contain uploaded files.
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-W", "ignore", "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=os.environ | THREAD_VARIABLES | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
            weakref.finalize(self, _kill_process, self.process)
        return self.process

    def decode(self, content: bytes, name: str) -> DecodedImage:
        """Decode the content of a file as :func:`fukami.image.channels.read_channels` does; errors name it ``name``.

        Raises:
            Error: the image cannot be read, takes too long, or crashes the decoder.
        """
        process = self.start()
        timed_out = threading.Event()

        def kill() -> None:
            timed_out.set()
            process.kill()

        timer = threading.Timer(self.timeout, kill)
        timer.start()
        try:
            assert process.stdin
            assert process.stdout
            request: Message = {"name": name, "max_pixels": self.max_pixels, "channels": self.channels}
            _send(process.stdin, request, content)
            response, pixels = _receive(process.stdout)
        except (OSError, ValueError):  # the process has ended, or its message is incomplete
            self.close()
            reason = (
                f"took more than {self.timeout:g} seconds to decode" if timed_out.is_set() else "crashed the decoder"
            )
            raise Error(f"{name} {reason}; save it again, as a PNG or JPEG") from None
        except BaseException:  # the rest of the message would be the response to the next image
            self.close()
            raise
        finally:
            timer.cancel()
            timer.join()
            if timed_out.is_set():
                self.close()
        if "error" in response:
            raise Error(response["error"])
        if "dtype" in response:
            return ArrayImage(np.frombuffer(bytearray(pixels), response["dtype"]).reshape(response["shape"]))
        width, height = response["size"]
        return Image.frombytes(response["mode"], (width, height), pixels)

    def close(self) -> None:
        """End the process; the next image starts another one."""
        if self.process is not None:
            _kill_process(self.process)
            self.process = None


def _kill_process(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in filter(None, (process.stdin, process.stdout)):
        with contextlib.suppress(OSError):  # unsent data is lost
            pipe.close()


def _send(pipe: IO[bytes], head: Message, content: bytes) -> None:
    """Write a message: a JSON line with the length, and the content."""
    pipe.write(json.dumps({**head, "length": len(content)}).encode() + b"\n")
    pipe.write(content)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> tuple[Message, bytes]:
    """Read a message.

    Raises:
        ValueError: the message is incomplete.
    """
    head: Message = json.loads(pipe.readline())
    content = pipe.read(head["length"])
    if len(content) != head["length"]:
        raise ValueError("the message is incomplete")
    return head, content


def decode_message(request: Message, content: bytes) -> tuple[Message, bytes]:
    """Decode the image in a message; return a message with mode, size and pixels, or an error."""
    try:
        with convert_memory_errors(request["name"]):
            name, max_pixels = request["name"], request["max_pixels"]
            image = read_channels(content, request["channels"], name=name, max_pixels=max_pixels)
            if isinstance(image, ArrayImage):
                return {"dtype": str(image.levels.dtype), "shape": image.levels.shape}, image.levels.tobytes()
            return {"mode": image.mode, "size": image.size}, image.tobytes()
    except Error as error:
        return {"error": str(error)}, b""


def main() -> None:
    """Decode the images from standard input until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all processes of a terminal; the server ends this one
    warnings.simplefilter("ignore")
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (MAX_MEMORY, MAX_MEMORY))
    with contextlib.suppress(ValueError, OSError):  # the server has ended
        while True:
            _send(sys.stdout.buffer, *decode_message(*_receive(sys.stdin.buffer)))
    os._exit(0)  # without flushing the closed pipe


if __name__ == "__main__":
    main()

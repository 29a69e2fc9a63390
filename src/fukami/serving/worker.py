"""The thread that predicts, with a bounded queue and deadlines."""

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from PIL import Image
from starlette.exceptions import HTTPException

from fukami.engine.task import Task
from fukami.errors import Error, convert_memory_errors
from fukami.serving.decoder import Decoder
from fukami.serving.metrics import Metrics

T = TypeVar("T")
MAX_PIXELS = 50_000_000  # of an image: those of cameras have up to 50 million
MAX_DECODE_SECONDS = 20.0  # that an image has to be decoded; 50 megapixels of JPEG 2000, the slowest, take 3
DEADLINE = 60.0  # seconds that an image has until it is answered, with the time that it waits
MAX_REQUESTS = 100  # that wait or are answered; further ones are refused
MAX_BUFFERED_BYTES = 512 * 2**20  # of bodies that are held at a time


class ClientDisconnected(Exception):
    """The client has closed the connection before the answer."""


class Slot:
    """Part of the queue that a request takes, from when its body has come until its work has ended."""

    def __init__(self) -> None:
        self.abandoned = threading.Event()  # the request has ended
        self.future: Future[Any] | None = None


class Worker:
    """Answers one image at a time, in a thread of its own.

    Admission: at most ``REQUESTS`` requests have a slot, and one more is refused at once (429): no request waits
    behind more than these.

    Deadline: an image that is not answered by then is given up (503). One that has not begun is dropped. One that has
    begun cannot be interrupted, and its request keeps its slot until it ends, so that no more work is accepted than
    is done. It does end: decoding is killed after ``DECODE_SECONDS``, in a process of its own, and a
    prediction is of at most ``MAX_PIXELS``.

    Args:
        task: loaded.
        metrics: counts what is answered.
        deadline: seconds that an image has until it is answered, with the time that it waits.
    """

    def __init__(self, task: Task, metrics: Metrics, deadline: float = DEADLINE) -> None:
        self.task, self.metrics, self.deadline = task, metrics, deadline
        self.decoder = Decoder(MAX_PIXELS, MAX_DECODE_SECONDS)
        # One thread: a task is not made for several, and each one would get a team of torch's threads for itself. What
        # Runtime.start sets for the thread that loads the task is set here again, so that the last digits are equal.
        self.executor = ThreadPoolExecutor(1, initializer=torch.set_flush_denormal, initargs=(True,))
        self.lock = threading.Lock()
        self.used_slots = 0  # slots
        self.num_overdue = 0  # images that were given up and still run
        self.buffered_bytes = 0  # bytes of bodies
        self.last_duration = 0.0  # that the last image took
        metrics.queue_length.set_function(lambda: self.used_slots)

    @property
    def is_full(self) -> bool:
        """Whether all slots are taken."""
        return self.used_slots >= MAX_REQUESTS

    def reserve_bytes(self, length: int) -> None:
        """Count the bytes of a body that have come.

        Raises:
            HTTPException: 429, there is no room for as many.
        """
        with self.lock:
            self.buffered_bytes += length
            over = self.buffered_bytes > MAX_BUFFERED_BYTES
        if over:
            raise self.build_busy_error()

    def release_bytes(self, length: int) -> None:
        """Count the bytes of a body no longer."""
        with self.lock:
            self.buffered_bytes -= length

    @property
    def is_ready(self) -> bool:
        """Whether a request would be answered soon."""
        return not self.is_full and self.buffered_bytes <= MAX_BUFFERED_BYTES and not self.num_overdue

    def build_busy_error(self) -> HTTPException:
        """The refusal of a request for which there is no room, which says when there may be."""
        after = min(60, max(1, math.ceil(self.used_slots * self.last_duration)))
        return HTTPException(429, "too many requests wait for an answer; try again later", {"Retry-After": str(after)})

    @contextmanager
    def acquire_slot(self) -> Iterator[Slot]:
        """Take a slot for a request; it is free again when the request is answered and its work has ended.

        Raises:
            HTTPException: 429.
        """
        with self.lock:
            if self.is_full:
                raise self.build_busy_error()
            self.used_slots += 1
        slot = Slot()
        try:
            yield slot
        finally:
            slot.abandoned.set()
            if slot.future is not None and not slot.future.cancel():
                slot.future.add_done_callback(lambda _: self._release_slot())
            else:
                self._release_slot()

    def _release_slot(self) -> None:
        with self.lock:
            self.used_slots -= 1

    async def run(self, slot: Slot, disconnected: "asyncio.Future[Any]", function: Callable[[], T]) -> T:
        """Run a function in the thread of the worker, and return its result.

        Args:
            slot: of the request.
            disconnected: done when the client has left.
            function: is called.

        Raises:
            ClientDisconnected: the client has left.
            HTTPException: 503, the deadline has passed.
        """
        future: Future[T] = self.executor.submit(function)
        slot.future = future
        waiting: asyncio.Future[Any] = asyncio.wrap_future(future)
        waiting.add_done_callback(lambda done: done.cancelled() or done.exception())  # also where nobody waits for it
        await asyncio.wait({waiting, disconnected}, timeout=self.deadline, return_when=asyncio.FIRST_COMPLETED)
        if future.done():
            return future.result()
        if disconnected.done():
            raise ClientDisconnected
        if future.cancel():
            self.metrics.predictions.labels("late").inc()
        else:
            with self.lock:
                self.num_overdue += 1
            future.add_done_callback(lambda _: self._finish_overdue())
        message = f"no answer within {self.deadline:g} seconds; try again later, or send a smaller image"
        raise HTTPException(503, message, {"Retry-After": "60"})

    def _finish_overdue(self) -> None:
        with self.lock:
            self.num_overdue -= 1

    def predict(self, slot: Slot, name: str, content: bytes) -> tuple[dict[str, Any], Image.Image | None]:
        """Predict the content of a file: the answer as ``fukami predict`` prints it, and the image; or an ``error``.

        Raises:
            ClientDisconnected: the request has ended.
        """
        if slot.abandoned.is_set():
            raise ClientDisconnected
        began = time.perf_counter()
        try:
            image = self.decoder.decode(content, name)
            if slot.abandoned.is_set():
                raise ClientDisconnected
            with convert_memory_errors(name):
                (answer,) = self.task.predict([image])
        except Error as error:
            answer, image = {"error": str(error)}, None
        self.last_duration = time.perf_counter() - began
        self.metrics.prediction_seconds.observe(self.last_duration)
        result = "late" if slot.abandoned.is_set() else "refused" if "error" in answer else "answered"
        self.metrics.predictions.labels(result).inc()
        return {"file": name, **answer}, image

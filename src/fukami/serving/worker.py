"""The prediction thread, with a bounded queue and a timeout per request."""

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

from fukami.data.parsing import Json
from fukami.detection.options import use_confidence
from fukami.engine.prediction import add_file
from fukami.engine.task import Task
from fukami.errors import Error, convert_memory_errors
from fukami.image.channels import build_preview
from fukami.serving.decoder import Decoder
from fukami.serving.metrics import Metrics

T = TypeVar("T")
MAX_PIXELS = 50_000_000  # pixels of an image; cameras have up to 50 million
MAX_DECODE_SECONDS = 20.0  # seconds per image; 50 megapixels of JPEG 2000, the slowest format, take 3
REQUEST_TIMEOUT = 60.0  # seconds per prediction, including time in the queue
MAX_REQUESTS = 100  # waiting or running; further ones are rejected
MAX_BUFFERED_BYTES = 512 * 2**20  # bytes of all bodies in memory


class ClientDisconnected(Exception):
    """The client has closed the connection before the response."""


class Slot:
    """Place of a request in the queue, from the end of its body to the end of its work.

    ``confidence`` is the minimum score of a predicted box; None: that of the task.
    """

    def __init__(self, confidence: float | None = None) -> None:
        self.confidence = confidence
        self.num_drawn = 0  # images of the request that were drawn
        self.abandoned = threading.Event()  # set when the request has ended
        self.future: Future[Any] | None = None

    def check_request(self) -> None:
        """Check that the request has not ended.

        Raises:
            ClientDisconnected: it has.
        """
        if self.abandoned.is_set():
            raise ClientDisconnected


class Worker:
    """Predicts one image or position at a time, in a separate thread.

    Admission: at most ``MAX_REQUESTS`` requests have a slot; another one is rejected at once (429). This bounds the
    length of the queue.

    Timeout: an image without a prediction after ``request_timeout`` fails (503). If its work has not started, it is
    canceled. Running work cannot be interrupted; its request keeps the slot until it ends, so that accepted work cannot
    accumulate. It always ends: decoding is killed after ``MAX_DECODE_SECONDS``, an image has at most ``MAX_PIXELS``
    pixels, and a search stops with its request.

    Args:
        task: loaded task.
        metrics: counters of the predictions.
        request_timeout: maximum seconds per prediction, including time in the queue.
    """

    def __init__(self, task: Task, metrics: Metrics, request_timeout: float = REQUEST_TIMEOUT) -> None:
        self.task, self.metrics, self.request_timeout = task, metrics, request_timeout
        channels = task.transform.channels if task.transform is not None else 0
        self.decoder = Decoder(MAX_PIXELS, MAX_DECODE_SECONDS, channels)
        # One thread: tasks are not thread-safe, and each thread would get its own pool of torch threads. Runtime.start
        # sets flush-denormal for the loading thread only; set here too, the results are equal to the last digit.
        self.executor = ThreadPoolExecutor(1, initializer=torch.set_flush_denormal, initargs=(True,))
        self.lock = threading.Lock()
        self.used_slots = 0
        self.num_overdue = 0  # predictions past their timeout that are still running
        self.buffered_bytes = 0  # bytes of bodies
        self.last_duration = 0.0  # seconds of the last prediction
        metrics.queue_length.set_function(lambda: self.used_slots)

    @property
    def is_full(self) -> bool:
        """Return whether all slots are in use."""
        return self.used_slots >= MAX_REQUESTS

    def reserve_bytes(self, length: int) -> None:
        """Add received bytes of a body to the count.

        Raises:
            HTTPException: 429, the bodies exceed ``MAX_BUFFERED_BYTES``.
        """
        with self.lock:
            self.buffered_bytes += length
            is_over_limit = self.buffered_bytes > MAX_BUFFERED_BYTES
        if is_over_limit:
            raise self.build_busy_error()

    def release_bytes(self, length: int) -> None:
        """Remove the bytes of a body from the count."""
        with self.lock:
            self.buffered_bytes -= length

    @property
    def is_ready(self) -> bool:
        """Return whether a new request would be accepted and processed soon."""
        return not self.is_full and self.buffered_bytes <= MAX_BUFFERED_BYTES and not self.num_overdue

    def build_busy_error(self) -> HTTPException:
        """Create the error for a full queue, with the estimated time until there is room."""
        seconds = min(60, max(1, math.ceil(self.used_slots * self.last_duration)))
        return HTTPException(429, "too many requests are waiting; try again later", {"Retry-After": str(seconds)})

    @contextmanager
    def acquire_slot(self, confidence: float | None = None) -> Iterator[Slot]:
        """Acquire a slot for a request, and release it when the request and its work have ended.

        ``confidence`` is that of :class:`Slot`.

        Raises:
            HTTPException: 429, all slots are in use.
        """
        with self.lock:
            if self.is_full:
                raise self.build_busy_error()
            self.used_slots += 1
        slot = Slot(confidence)
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

    async def run(self, slot: Slot, disconnected: "asyncio.Future[None]", function: Callable[[], T]) -> T:
        """Run a function in the worker thread and return its result.

        Args:
            slot: slot of the request.
            disconnected: future that is done when the client has disconnected.
            function: function to call.

        Raises:
            ClientDisconnected: the client has disconnected.
            HTTPException: 503, the timeout has passed.
        """
        future: Future[T] = self.executor.submit(function)
        slot.future = future
        waiting: asyncio.Future[T] = asyncio.wrap_future(future)
        # also if it is no longer awaited
        waiting.add_done_callback(lambda finished: finished.cancelled() or finished.exception())
        futures: set[asyncio.Future[T] | asyncio.Future[None]] = {waiting, disconnected}
        await asyncio.wait(futures, timeout=self.request_timeout, return_when=asyncio.FIRST_COMPLETED)
        if future.done():
            return future.result()
        if disconnected.done():
            raise ClientDisconnected
        if future.cancel():
            self.metrics.predictions.labels("timeout").inc()
        else:
            with self.lock:
                self.num_overdue += 1
            future.add_done_callback(lambda _: self._finish_overdue())
        hint = "use fewer simulations" if self.task.reads_positions else "send a smaller image"
        message = f"no prediction within {self.request_timeout:g} seconds; try again later, or {hint}"
        raise HTTPException(503, message, {"Retry-After": "60"})

    def _finish_overdue(self) -> None:
        with self.lock:
            self.num_overdue -= 1

    def predict(self, slot: Slot, name: str, content: bytes) -> tuple[dict[str, Json], Image.Image | None]:
        """Run inference on the content of a file.

        Returns:
            The prediction as ``fukami predict`` prints it and the image, or ``{"file", "error"}`` and None.

        Raises:
            ClientDisconnected: the request has ended.
        """
        try:
            with self.observe_prediction(slot):
                with convert_memory_errors(name):
                    image = self.decoder.decode(content, name)
                slot.check_request()
                with convert_memory_errors(name), use_confidence(self.task, slot.confidence):
                    (prediction,) = self.task.predict([image])
                if "error" in prediction:
                    raise Error(prediction["error"])
        except Error as error:
            return add_file({"error": str(error)}, name), None
        return add_file(prediction, name), build_preview(image)

    @contextmanager
    def observe_prediction(self, slot: Slot) -> Iterator[None]:
        """Count and time a prediction.

        Raises:
            ClientDisconnected: the request has ended.
        """
        slot.check_request()
        start, result = time.perf_counter(), "error"
        try:
            yield
            result = "success"
        finally:
            self.last_duration = time.perf_counter() - start
            self.metrics.prediction_seconds.observe(self.last_duration)
            self.metrics.predictions.labels("timeout" if slot.abandoned.is_set() else result).inc()

"""Bytes of a file or a web object, from any place on; a connection that breaks is taken up where it broke."""

import functools
import http.client
import logging
import re
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Protocol

from fukami.errors import Error

logger = logging.getLogger(__name__)
MAX_ATTEMPTS = 6  # in a row without a byte
RETRY_DELAY = 0.5  # seconds before the second try; doubled for each further one
TIMEOUT = 30.0  # seconds without an answer
MAX_SKIP_BYTES = 1 << 20  # bytes that are read and thrown away rather than asked for anew
RETRYABLE_STATUSES = {408, 425, 429}  # of the answers from 400 to 499 those that another try may better
NOT_FOUND_STATUSES = {403, 404, 410}  # a store may say 403 for what is not there


class NotFoundError(Error):
    """There is no such file or object."""


class Stream(Protocol):
    """A file on a disk or an object on the web."""

    @property
    def size(self) -> int | None:
        """In bytes, as far as it is known."""

    def read(self, start: int, count: int) -> bytes:
        """``count`` bytes from ``start``; fewer where the file ends before. Reading forwards is cheap."""

    def close(self) -> None:
        """Give back what is open."""


def open_stream(location: str) -> Stream:
    """The file at a path or the object at a URL.

    Raises:
        Missing: there is no such file; an object is asked for when it is read.
    """
    return HttpStream(location) if is_url(location) else DiskStream(location)


def is_url(location: str) -> bool:
    """Whether this is a URL and not a path."""
    return re.match(r"https?://", location) is not None


class DiskStream:
    """A file on a disk."""

    def __init__(self, path: str) -> None:
        try:
            self.file = Path(path).open("rb", buffering=0)  # noqa: SIM115  closed by close()
            self.size: int = Path(path).stat().st_size
        except OSError as error:
            raise NotFoundError(f"{path} cannot be opened ({error.strerror}); get it again, or leave it out") from None

    def read(self, start: int, count: int) -> bytes:
        """As :class:`Stream` has it."""
        self.file.seek(start)
        return self.file.read(max(0, min(count, self.size - start)))

    def close(self) -> None:
        """As :class:`Stream` has it."""
        self.file.close()


class HttpStream:
    """An object on the web: one connection that is read on, and another one where that is not enough.

    A server that does not know ``Range`` sends an object from its beginning; what comes before is thrown away.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.size: int | None = None
        self.response: http.client.HTTPResponse | None = None
        self.position = 0  # where in the object the answer is

    def read(self, start: int, count: int) -> bytes:
        """As :class:`Stream` has it.

        Raises:
            Missing: there is no such object.
            Error: the server does not answer after several tries.
        """
        found = bytearray()
        tries = 0
        while len(found) < count and (self.size is None or start + len(found) < self.size):
            try:
                part = self._read_next(start + len(found), count - len(found))
            except (ValueError, http.client.InvalidURL) as error:
                raise Error(f"{self.url} cannot be read ({error}); spaces and the like are written as %20") from None
            except (OSError, http.client.HTTPException) as error:
                self.close()
                code = _get_status(error)
                if code == 416:  # the object ends before
                    break
                tries += 1
                if tries == MAX_ATTEMPTS or (code is not None and 400 <= code < 500 and code not in RETRYABLE_STATUSES):
                    kind = NotFoundError if code in NOT_FOUND_STATUSES else Error
                    raise kind(
                        f"{self.url} cannot be read ({error}); is the address right, and the server up?"
                    ) from None
                if tries > 1:  # one is nothing to speak of: a store drops who does not read for a while
                    logger.warning(f"{self.url}: {error}; try {tries + 1} of {MAX_ATTEMPTS} follows")
                time.sleep(RETRY_DELAY * 2 ** (tries - 1))
                continue
            if not part:  # and the server did not say how much there is
                break
            found += part
            tries = 0
        return bytes(found)

    def close(self) -> None:
        """As :class:`Stream` has it."""
        if self.response is not None:
            self.response.close()
        self.response = None

    def _read_next(self, start: int, count: int) -> bytes:
        """Up to ``count`` bytes from ``start``, from the connection that is open or a new one."""
        if self.response is None or not self.position <= start <= self.position + MAX_SKIP_BYTES:
            self.close()
            self.response = self._request(start)
        while self.position < start and self._receive(start - self.position):
            pass
        if self.position > start:
            raise ConnectionError("the server answered from another byte on than it was asked for")
        return self._receive(count)

    def _receive(self, count: int) -> bytes:
        """Up to ``count`` of the bytes that come next."""
        assert self.response is not None
        part = self.response.read(min(count, MAX_SKIP_BYTES))
        if not part and self.size is not None:
            raise ConnectionError("the connection was closed too early")
        self.position += len(part)
        return part

    def _request(self, start: int) -> http.client.HTTPResponse:
        request = urllib.request.Request(self.url, headers={"Range": f"bytes={start}-", "User-Agent": "fukami"})
        answer: http.client.HTTPResponse = _build_opener().open(request, timeout=TIMEOUT)
        given = re.match(r"bytes (\d+)-\d+/(\d+)", answer.headers.get("Content-Range", ""))
        length = answer.headers.get("Content-Length")
        if answer.status == 206 and given:
            self.position, self.size = int(given[1]), int(given[2])
        else:
            self.position, self.size = 0, int(length) if length else None
        return answer


@functools.cache
def _build_opener() -> urllib.request.OpenerDirector:
    """What follows addresses of http and https alone: a server must not send us to a file or to ftp."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


def _get_status(error: Exception) -> int | None:
    """The status of an answer that is an error; such an answer is closed."""
    if not isinstance(error, urllib.error.HTTPError):
        return None
    error.close()
    return error.code

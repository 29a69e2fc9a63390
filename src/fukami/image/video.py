"""Video reading and writing with PyAV, an optional dependency."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Self

from PIL import Image

from fukami.errors import Error, require_extra
from fukami.image import io as image_io
from fukami.image.channels import DecodedImage

if TYPE_CHECKING:
    from av.container import InputContainer, OutputContainer
    from av.video.stream import VideoStream

VIDEO_SUFFIXES = {
    ".mp4",
    ".m4v",
    ".mov",
    ".avi",
    ".mkv",
    ".webm",
    ".mpg",
    ".mpeg",
    ".ts",
    ".wmv",
    ".flv",
    ".ogv",
    ".3gp",
}
IMAGE_BRANDS = {b"avif", b"avis", b"heic", b"heix", b"hevc", b"mif1", b"msf1"}  # images in MP4 containers
TICKS_PER_SECOND = 60_000  # time base of written videos; MPEG-4 allows at most 65,535
CODECS = ("libx264", "h264", "mpeg4")  # in order of preference; h264 is any H.264 encoder


@dataclass(frozen=True)
class Frame:
    """A frame of a video.

    Args:
        index: index of the frame in the video, from 0.
        timestamp: presentation time in seconds from the start of the video.
        frame_rate: frames of the video per second.
        image: upright image; that of a video is "RGB".
        file: image file of the frame, if it has one.
    """

    index: int
    timestamp: float
    frame_rate: Fraction
    image: DecodedImage
    file: str = ""


def is_video(path: str | os.PathLike[str]) -> bool:
    """Return whether a file is a video, by its suffix or first bytes; animated GIFs count as images."""
    if Path(path).suffix.lower() in VIDEO_SUFFIXES:
        return True
    if not Path(path).is_file():  # reading from a pipe waits, and removes its first bytes
        return False
    try:
        with Path(path).open("rb") as file:
            head = file.read(12)
    except OSError:
        return False
    is_mp4 = head[4:8] == b"ftyp" and head[8:12] not in IMAGE_BRANDS
    return is_mp4 or head[:4] == b"\x1a\x45\xdf\xa3" or (head[:4] == b"RIFF" and head[8:12] == b"AVI ")


def read_frames(path: str | os.PathLike[str], every: int = 1) -> Iterator[Frame]:
    """Read every ``every``-th frame of a video, lazily.

    Raises:
        MissingPackageError: PyAV is not installed.
        Error: the file is missing, not a video, or corrupted, possibly after some frames.
    """
    av, name, index, end_seconds = import_av(), os.fspath(path), -1, 0.0
    try:
        with av.open(name) as container:
            if not container.streams.video:
                raise Error(f"{name} has no video stream, only sound; use a video")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            rate = Fraction(stream.average_rate or stream.guessed_rate or 25)
            for index, frame in enumerate(container.decode(stream)):
                seconds = float(index / rate)
                if frame.pts is not None:
                    seconds = float((frame.pts - (stream.start_time or 0)) * frame.time_base)
                end_seconds = seconds + float((frame.duration or 0) * (frame.time_base or 0))
                if index % every == 0:
                    image_io.check_size(frame.width, frame.height, f"{name}, in frame {index},")
                    image = frame.to_image().rotate(frame.rotation, expand=True)
                    yield Frame(index, seconds, rate, image)
            duration = _get_duration(container, stream)
    except FileNotFoundError:
        raise Error(f"{name} does not exist; specify the path of a video") from None
    except (av.FFmpegError, OSError) as error:
        reason = f"corrupted after {index + 1} frames" if index >= 0 else "corrupted, or not a video"
        raise Error(f"{name} is {reason} ({error.strerror}); get the file again") from None
    if index < 0:
        raise Error(f"{name} contains no frame; get the file again")
    if end_seconds < 0.9 * duration:
        raise Error(f"{name} ends after {end_seconds:.1f} of {duration:.1f} seconds; get the file again")


def read_image_sequence(
    files: Sequence[str], frame_rate: float, read: Callable[[str], DecodedImage], errors: list[Error]
) -> Iterator[Frame]:
    """Read image files as the frames of a video at ``frame_rate`` per second, lazily, each by the function ``read``.

    Unreadable files are skipped, and their errors appended to ``errors``.
    """
    exact_rate = Fraction(frame_rate).limit_denominator(1001)
    for index, file in enumerate(files):
        try:
            yield Frame(index, float(index / exact_rate), exact_rate, read(file), file)
        except Error as error:
            errors.append(error)


def _get_duration(container: "InputContainer", stream: "VideoStream") -> float:
    """Return the duration of a video in seconds from its header; 0 if unknown or possibly that of the sound."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / 1e6 if len(container.streams) == 1 else 0.0


class VideoWriter:
    """Writes images as an MP4 video without sound that browsers can play."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.container: OutputContainer | None = None  # opened with the first image
        self.stream: VideoStream

    def __enter__(self) -> Self:
        return self

    def add(self, image: Image.Image, timestamp: float, frame_rate: Fraction) -> None:
        """Add an image at ``timestamp`` seconds; all get the size of the first, rounded up to even numbers."""
        av = import_av()
        if self.container is None:
            codec = _select_codec(av)
            container = av.open(str(self.path), "w", format="mp4", options={"movflags": "faststart"})
            self.container, self.stream = container, container.add_stream(codec, rate=frame_rate)
            self.stream.width, self.stream.height = (side + side % 2 for side in image.size)
            self.stream.pix_fmt = "yuv420p"
            self.stream.codec_context.time_base = Fraction(1, TICKS_PER_SECOND)
            self.last_pts = -1
        size = (self.stream.width, self.stream.height)
        frame = av.VideoFrame.from_image(image.convert("RGB").resize(size))
        self.last_pts = max(round(timestamp * TICKS_PER_SECOND), self.last_pts + 1)
        frame.pts, frame.time_base = self.last_pts, Fraction(1, TICKS_PER_SECOND)
        self.container.mux(self.stream.encode(frame))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.container is not None:
            self.container.mux(self.stream.encode())
            self.container.close()


def _select_codec(av: ModuleType) -> str:
    """Select the first of ``CODECS`` that PyAV can encode.

    Raises:
        Error: there is none.
    """
    for name in CODECS:
        try:
            return str(av.codec.Codec(name, "w").name)
        except ValueError:  # no encoder
            continue
    raise Error(f"writing videos needs one of the encoders {', '.join(CODECS)}, and this PyAV has none; pip install av")


def batch_frames(frames: Iterator[Frame], chunk_size: int) -> Iterator[list[Frame]]:
    """Yield lists of ``chunk_size`` frames; an error is raised after the frames before it."""
    chunk: list[Frame] = []
    failed: Error | None = None
    try:
        for frame in frames:
            chunk.append(frame)
            if len(chunk) == chunk_size:
                yield chunk
                chunk = []
    except Error as error:
        failed = error
    if chunk:
        yield chunk
    if failed:
        raise failed


def import_av() -> ModuleType:
    """Import PyAV, which decodes and encodes videos.

    Raises:
        MissingPackageError: it is not installed.
    """
    with require_extra("video", "a video"):
        import av
    return av

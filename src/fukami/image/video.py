"""Videos: their frames one after another, upright, and annotated ones written; by PyAV, which is an extra."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Self

from PIL import Image

from fukami.errors import Error
from fukami.image import io as image_io

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
IMAGE_BRANDS = {b"avif", b"avis", b"heic", b"heix", b"hevc", b"mif1", b"msf1"}  # images in the container of MP4
TICKS_PER_SECOND = 60_000  # of the clock of what is written, in a second: more than 65,535 MPEG-4 has not
CODECS = ("libx264", "h264", "mpeg4")  # the first that is there; h264 is any encoder of it


@dataclass(frozen=True)
class Frame:
    """A frame of a video.

    Args:
        index: from 0, counting every frame.
        timestamp: from the beginning of the video to when it is shown.
        frame_rate: frames of the video in a second.
        image: upright, "RGB".
        file: where it has one of its own.
    """

    index: int
    timestamp: float
    frame_rate: Fraction
    image: Image.Image
    file: str = ""


def is_video(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a video, by its suffix or its first bytes; an animated GIF is an image."""
    if Path(path).suffix.lower() in VIDEO_SUFFIXES:
        return True
    try:
        with Path(path).open("rb") as file:
            head = file.read(12)
    except OSError:
        return False
    mp4 = head[4:8] == b"ftyp" and head[8:12] not in IMAGE_BRANDS
    return mp4 or head[:4] == b"\x1a\x45\xdf\xa3" or (head[:4] == b"RIFF" and head[8:12] == b"AVI ")


def read_frames(path: str | os.PathLike[str], every: int = 1) -> Iterator[Frame]:
    """The frames of a video, or every so many of them from the first; read as they are asked for.

    Raises:
        Error: PyAV is not installed, or the file is missing, no video, or damaged, perhaps only after some frames.
    """
    av, name, number, reached = _import_av(), os.fspath(path), -1, 0.0
    try:
        with av.open(name) as container:
            if not container.streams.video:
                raise Error(f"{name} has no images in it, only sound; give a video")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            rate = Fraction(stream.average_rate or stream.guessed_rate or 25)
            for number, frame in enumerate(container.decode(stream)):
                seconds = float(number / rate)
                if frame.pts is not None:
                    seconds = float((frame.pts - (stream.start_time or 0)) * frame.time_base)
                reached = seconds + float((frame.duration or 0) * (frame.time_base or 0))
                if number % every == 0:
                    image_io.check_size(frame.width, frame.height, f"{name}, in frame {number},")
                    image = frame.to_image().rotate(frame.rotation, expand=True)
                    yield Frame(number, seconds, rate, image)
            whole = _get_duration(container, stream)
    except FileNotFoundError:
        raise Error(f"{name} does not exist; give the path of a video") from None
    except (av.FFmpegError, OSError) as error:
        what = f"damaged after {number + 1} frames" if number >= 0 else "damaged, or no video"
        raise Error(f"{name} is {what} ({error.strerror}); get the file again") from None
    if number < 0:
        raise Error(f"{name} has not one frame in it; get the file again")
    if reached < 0.9 * whole:
        raise Error(f"{name} ends after {reached:.1f} of {whole:.1f} seconds; get the file again")


def read_image_sequence(files: Sequence[str], frame_rate: float, errors: list[Error]) -> Iterator[Frame]:
    """Images as the frames of a film, so many a second; read as they are asked for.

    What is wrong with those that cannot be read comes into ``errors``.
    """
    exact = Fraction(frame_rate).limit_denominator(1001)
    for number, file in enumerate(files):
        try:
            yield Frame(
                number, float(number / exact), exact, image_io.convert_mode(image_io.read_image(file), "RGB"), file
            )
        except Error as error:
            errors.append(error)


def _get_duration(container: Any, stream: Any) -> float:
    """Seconds of the video by what its file says; 0 where it does not, or may mean the sound."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / 1e6 if len(container.streams) == 1 else 0.0


class VideoWriter:
    """Writes images as a video: MP4 that a browser plays, without sound."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.container: Any = None  # nothing is written before the first image

    def __enter__(self) -> Self:
        return self

    def add(self, image: Image.Image, timestamp: float, frame_rate: Fraction) -> None:
        """The next image, shown from ``timestamp`` on; all get the size of the first, in even numbers of pixels."""
        av = _import_av()
        if self.container is None:
            codec = _select_codec(av)
            self.container = av.open(str(self.path), "w", format="mp4", options={"movflags": "faststart"})
            self.stream = self.container.add_stream(codec, rate=frame_rate)
            self.stream.width, self.stream.height = (side + side % 2 for side in image.size)
            self.stream.pix_fmt = "yuv420p"
            self.stream.codec_context.time_base = Fraction(1, TICKS_PER_SECOND)
            self.last_pts = -1
        size = (self.stream.width, self.stream.height)
        frame = av.VideoFrame.from_image(image.convert("RGB").resize(size))
        self.last_pts = max(round(timestamp * TICKS_PER_SECOND), self.last_pts + 1)
        frame.pts, frame.time_base = self.last_pts, Fraction(1, TICKS_PER_SECOND)
        self.container.mux(self.stream.encode(frame))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.container is not None:
            self.container.mux(self.stream.encode())
            self.container.close()


def _select_codec(av: ModuleType) -> str:
    """The first of the codecs that this PyAV can write with.

    Raises:
        Error: there is none.
    """
    for name in CODECS:
        try:
            return str(av.codec.Codec(name, "w").name)
        except ValueError:  # it can be read at most
            continue
    raise Error(f"videos are written with one of {', '.join(CODECS)}, and this PyAV has none; pip install av")


def batch_frames(frames: Iterator[Frame], chunk_size: int) -> Iterator[list[Frame]]:
    """So many frames at a time; those before an error come before it."""
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


def _import_av() -> ModuleType:
    try:
        import av
    except ImportError:
        raise Error("videos are read by PyAV, which is not installed; pip install 'fukami[video]'") from None
    return av

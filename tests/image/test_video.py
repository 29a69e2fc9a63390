"""Videos: reading frames, writing annotated videos, and ``fukami predict`` on videos."""

import os
import struct
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import tifffile
from PIL import Image

from bright import Bright
from fukami import Error
from fukami.engine import load_run
from fukami.engine.load_run import load_task
from fukami.image import io as image_io
from fukami.image import video

RECIPE = Path(__file__).parents[1].joinpath("bright.py")


def write_moving_square(path, count=6, size=(64, 48), rate=10, codec="libx264", times=None, **options):
    """Write a video of a bright square that moves 4 pixels to the right per frame."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        for index in range(count):
            pixels = np.zeros((size[1], size[0], 3), np.uint8)
            pixels[8:24, 4 * index : 4 * index + 16] = 255
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            frame.pts, frame.time_base = times[index] if times else index, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def mark_as_rotated(path):
    """Set the rotation of an MP4 to 90 degrees clockwise."""
    content = bytearray(path.read_bytes())
    offset = content.index(b"tkhd") + 44
    content[offset : offset + 36] = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 0, 0, 2**30)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.webm", "libvpx"), ("a.avi", "mpeg4")]
)
def test_frames(tmp_path, name, codec):
    frames = list(video.read_frames(write_moving_square(tmp_path / name, codec=codec)))
    assert [frame.index for frame in frames] == list(range(6))
    assert [frame.timestamp for frame in frames] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])
    assert frames[0].frame_rate == 10
    for frame in frames:
        assert (frame.image.size, frame.image.mode) == ((64, 48), "RGB")
        assert frame.image.getpixel((4 * frame.index + 8, 16))[0] > 220
        assert frame.image.getpixel((4 * frame.index + 30, 16))[0] < 40
    assert [frame.index for frame in video.read_frames(tmp_path / name, every=4)] == [0, 4]


def test_frames_are_upright(tmp_path):
    """After a rotation by 90 degrees clockwise, the upper left is at the upper right."""
    frame = next(video.read_frames(mark_as_rotated(write_moving_square(tmp_path / "a.mp4"))))
    assert frame.image.size == (48, 64)
    assert frame.image.getpixel((48 - 16, 8))[0] > 220
    assert frame.image.getpixel((10, 8))[0] < 40


def test_frames_are_limited_like_images(tmp_path):
    clip = write_moving_square(tmp_path / "a.mp4", size=(8200, 40))
    with pytest.raises(
        Error, match=r"a\.mp4, in frame 0, has 8200×40 pixels, and the limit of the aspect ratio is 200"
    ):
        next(video.read_frames(clip))


def test_is_video(tmp_path):
    """Videos are recognized by name or content; animated images are not videos."""
    clip = write_moving_square(tmp_path / "a.mkv", count=1)
    clip.rename(tmp_path / "unnamed")
    write_moving_square(tmp_path / "b.mp4", count=1).rename(tmp_path / "other")
    images = [Image.new("RGB", (16, 16), color) for color in ("red", "blue")]
    for suffix in ("gif", "avif", "png"):
        images[0].save(tmp_path / f"c.{suffix}", save_all=True, append_images=images[1:])
    videos = {path.name for path in tmp_path.iterdir() if video.is_video(path)}
    assert videos == {"unnamed", "other"}
    assert video.is_video("missing.MP4")
    assert not video.is_video("missing")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_not_opened_as_a_video(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert not video.is_video(tmp_path / "pipe")


def test_corrupted_videos_are_reported(tmp_path):
    """Empty, not a video, only sound, truncated: frames before the damage are returned before the error."""
    content = write_moving_square(tmp_path / "whole.mkv", count=60).read_bytes()
    (tmp_path / "cut.mkv").write_bytes(content[: len(content) // 2])
    content = write_moving_square(tmp_path / "whole.mp4", count=60, movflags="faststart").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) * 3 // 4])
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("text")
    with av.open(str(tmp_path / "sound.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    for name, min_frames in (("cut.mkv", 1), ("cut.mp4", 1), ("empty.mp4", 0), ("text.mp4", 0), ("sound.mkv", 0)):
        frames = []
        chunks = video.batch_frames(video.read_frames(tmp_path / name), 4)
        with pytest.raises(Error, match=name):
            frames.extend(frame for chunk in chunks for frame in chunk)
        assert min_frames <= len(frames) < 60, name
    with pytest.raises(Error, match="does not exist"):
        next(video.read_frames(tmp_path / "missing.mp4"))


def test_missing_pyav(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(Error, match=r"pip install '\.\[video\]'"):
        next(video.read_frames("a.mp4"))


def test_written_video_keeps_the_timestamps(tmp_path):
    """Uneven timestamps, varying sizes and grayscale; the size is even, as browsers need it."""
    source = write_moving_square(tmp_path / "a.mkv", times=[0, 1, 3, 4, 9, 10])
    with video.VideoWriter(tmp_path / "b.mp4") as writer:
        for frame in video.read_frames(source):
            writer.add(frame.image.convert("L").resize((65 + frame.index, 49)), frame.timestamp, frame.frame_rate)
    times = [frame.timestamp for frame in video.read_frames(tmp_path / "b.mp4")]
    assert times == pytest.approx([0, 0.1, 0.3, 0.4, 0.9, 1.0], abs=1e-3)
    with av.open(str(tmp_path / "b.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec.name, stream.pix_fmt, stream.width, stream.height) == ("h264", "yuv420p", 66, 50)
    with video.VideoWriter(tmp_path / "none.mp4"):
        pass
    assert not (tmp_path / "none.mp4").exists()


def test_writing_without_an_h264_encoder(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "CODECS", ("vp6", "mpeg4"))  # vp6 has no encoder
    with video.VideoWriter(tmp_path / "drawn.mp4") as writer:
        for index in range(3):
            writer.add(Image.new("RGB", (64, 48)), index / 30, Fraction(30))
    assert [round(frame.timestamp, 4) for frame in video.read_frames(tmp_path / "drawn.mp4")] == [0, 0.0333, 0.0667]
    monkeypatch.setattr(video, "CODECS", ("vp6",))
    with (
        pytest.raises(Error, match="this PyAV has none; pip install av"),
        video.VideoWriter(tmp_path / "other.mp4") as writer,
    ):
        writer.add(Image.new("RGB", (64, 48)), 0, Fraction(30))


def test_predict_boxes_in_images_and_videos(fukami, tmp_path, monkeypatch):
    """A folder of both: a JSON line and a drawing for each image and every second frame; errors are reported."""
    monkeypatch.setattr(load_run, "load_task", lambda *runs, **options: Bright(None))
    (tmp_path / "in").mkdir()
    write_moving_square(tmp_path / "in" / "a.mp4", count=11)
    (tmp_path / "in" / "b.avi").write_text("text")
    Image.new("L", (100, 50), 255).save(tmp_path / "in" / "c.png")
    Image.new("L", (40, 20), 255).save(tmp_path / "in" / "c.bmp")  # its drawing is a PNG, too
    result = fukami("predict", "deep-convnet", "in", "--frame-interval", "2", "--out", "in")
    assert result.status == 1
    assert "\nfukami: in/b.avi is corrupted, or not a video" in result.err
    assert "1 of 4 files" in result.err
    *frames, small, image = result.json
    assert (small["file"], small["width"]) == ("in/c.bmp", 40)
    box = {"label": "lamp", "score": 0.9, "box": [0, 0, 100, 50]}
    assert image == {"file": "in/c.png", "width": 100, "height": 50, "boxes": [box]}
    assert [frame["frame"] for frame in frames] == [0, 2, 4, 6, 8, 10]
    assert [frame["seconds"] for frame in frames] == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert all(list(frame)[:3] == ["file", "frame", "seconds"] for frame in frames)
    for frame in frames:
        left, top, right, bottom = frame["boxes"][0]["box"]
        assert (left, top, right, bottom) == pytest.approx(
            (4 * frame["frame"], 8, min(4 * frame["frame"] + 16, 64), 24), abs=2
        )
    names = {path.name for path in (tmp_path / "in").iterdir()}
    assert names == {
        "a.mp4",
        "a-2.mp4",
        "b.avi",
        "c.bmp",
        "c.png",
        "c-2.png",
        "c-3.png",
        "index.html",
    }  # the inputs are kept
    page = (tmp_path / "in" / "index.html").read_text()
    assert '<video src="a-2.mp4" controls' in page
    assert '<img src="c-2.png"' in page
    assert '<img src="c-3.png"' in page
    drawn = list(video.read_frames(tmp_path / "in" / "a-2.mp4"))
    assert [frame.timestamp for frame in drawn] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1], abs=1e-3)
    assert drawn[0].image.size == (512, 384)


def test_frames_in_files_keep_their_channels(fukami, tmp_path):
    """Images of four channels and 16 bits have the same prediction with a frame rate and without it."""
    pixels = np.random.default_rng(0).integers(0, 65536, (6, 16, 16, 4), np.uint16)
    for index, image in enumerate(pixels):
        path = tmp_path / "data" / f"{index % 2}" / f"{index}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(path, image, photometric="minisblack", planarconfig="contig")
    small = "--channels 4 --size 16 --epochs 1 --batch-size 2 --out run --device cpu --val-fraction 0"
    trained = fukami("train", "resnet20", "--data", "data", *small.split())
    assert trained.status == 0, trained.err
    expected = fukami("predict", "run", "data").json
    result = fukami("predict", "run", "data", "--fps", "5", "--out", "drawn")
    assert result.status == 0, result.err
    assert [line["ranking"] for line in result.json] == [line["ranking"] for line in expected]
    assert [line["frame"] for line in result.json] == list(range(6))
    assert len(list(video.read_frames(next((tmp_path / "drawn").glob("*.mp4"))))) == 6


def test_classifier_predicts_frames_like_images(fukami, tmp_path):
    """The last of the three frames contains no digit."""
    source = tmp_path / "a.mp4"
    digit = image_io.read_image(RECIPE.parents[1] / "docs" / "digit.png")
    with video.VideoWriter(source) as writer:
        for index, image in enumerate((digit, digit, Image.new("L", digit.size, 255))):
            writer.add(image, index / 10, Fraction(10))
    result = fukami("predict", "deep-convnet", source, "--device", "cpu", "--out", "drawn")
    assert result.status == 1
    assert "a.mp4, frame 2: " in result.err
    assert [line["frame"] for line in result.json] == [0, 1]
    frame = next(video.read_frames(source))
    (expected,) = load_task("deep-convnet", device="cpu").predict([frame.image])
    assert (result.json[0]["file"], result.json[0]["label"]) == (str(source), expected["label"])
    assert len(list(video.read_frames(tmp_path / "drawn" / "a.mp4"))) == 2
    assert fukami("predict", "deep-convnet", source, "--frame-interval", "0").status == 2

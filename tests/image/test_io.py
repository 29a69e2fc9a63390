"""Image reading: formats, limits and errors; and drawing of predictions."""

import io
import re
import struct
import subprocess
import sys
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps, TiffImagePlugin
from torch import nn

from fukami import Error
from fukami.data import annotations
from fukami.data.streaming import ImageDecoder
from fukami.engine.runtime import Runtime
from fukami.engine.task import Task
from fukami.image import digit_extraction
from fukami.image import draw as image_draw
from fukami.image import io as image_io
from fukami.image.transform import ResizeTransform, SquareTransform


@pytest.fixture
def photo(random):
    """A color image with structure, 40 wide and 30 high."""
    y, x = np.mgrid[:30, :40]
    return np.stack([6 * x, 8 * y, 3 * (x + y)], -1).astype(np.uint8)


def save(image, path, **options):
    image.save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp", "ppm", "tga", "gif", "jpg", "ico", "jp2", "avif"])
def test_formats(photo, tmp_path, suffix):
    options = {"webp": {"lossless": True}, "jpg": {"quality": 95}, "ico": {"sizes": [(40, 30)]}}.get(suffix, {})
    read = image_io.read_image(save(Image.fromarray(photo), tmp_path / f"x.{suffix}", **options))
    assert read.mode == "RGB"
    tolerance = {"jpg": 4, "gif": 12, "avif": 6}.get(suffix, 0.01)
    assert np.abs(np.asarray(read).astype(int) - photo).mean() < tolerance


def test_exif_rotation(photo, tmp_path):
    """Every EXIF orientation is reversed; the stored pixels are computed with NumPy."""
    stored = {
        1: photo,
        2: photo[:, ::-1],
        3: photo[::-1, ::-1],
        4: photo[::-1],
        5: photo.transpose(1, 0, 2),
        6: np.rot90(photo, 1),
        7: np.rot90(photo, 2).transpose(1, 0, 2),
        8: np.rot90(photo, -1),
    }
    for orientation, pixels in stored.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = save(Image.fromarray(np.ascontiguousarray(pixels)), tmp_path / f"{orientation}.png", exif=exif)
        assert np.array_equal(np.asarray(image_io.read_image(path)), photo), orientation


def test_corrupt_exif_is_no_orientation(photo, tmp_path):
    """Pillow raises a SyntaxError, unless the file states no density."""
    plain = save(Image.fromarray(photo), tmp_path / "plain.jpg", dpi=(72, 72), quality=95)
    content = plain.read_bytes()
    segment = b"Exif\0\0garbage!"
    end = 2 + 2 + int.from_bytes(content[4:6])  # of the JFIF segment
    (tmp_path / "x.jpg").write_bytes(
        content[:end] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2) + segment + content[end:]
    )
    expected = np.asarray(image_io.read_image(plain))
    assert np.array_equal(np.asarray(image_io.read_image(tmp_path / "x.jpg")), expected)
    header = annotations.read_header(tmp_path / "x.jpg")
    assert header == (photo.shape[1], photo.shape[0], 1)


def test_suffixes_are_those_of_the_formats_that_are_read():
    suffixes = image_io.get_image_suffixes()
    assert {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".ppm"} <= suffixes
    assert not suffixes & {".h5", ".mpg", ".eps", ".ps", ".fits", ".hdf", ".pdf"}


def test_16_bits_are_scaled_and_not_clipped(tmp_path):
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    expected = np.arange(256).reshape(16, 16)
    for path in (save(Image.fromarray(ramp), tmp_path / "x.png"), save(Image.fromarray(ramp), tmp_path / "x.tiff")):
        read = image_io.read_image(path)
        assert read.mode == "L"
        assert np.array_equal(np.asarray(read), expected)


def test_transparency_is_blended_with_white(tmp_path):
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0, :, 3] = 0, 128, 255
    assert np.asarray(image_io.read_image(save(Image.fromarray(pixels), tmp_path / "x.png")))[0, :, 0].tolist() == [
        255,
        127,
        0,
    ]
    gray = save(Image.fromarray(pixels).convert("LA"), tmp_path / "la.png")
    assert image_io.read_image(gray).mode == "L"
    assert np.asarray(image_io.read_image(gray))[0].tolist() == [255, 127, 0]
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 200, 10, 10])
    palette.putdata([0, 1])
    path = save(palette, tmp_path / "p.png", transparency=0)
    assert np.asarray(image_io.read_image(path))[0].tolist() == [[255, 255, 255], [200, 10, 10]]


def test_cmyk_and_one_bit(tmp_path):
    cyan = save(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), tmp_path / "x.jpg", quality=95)
    red, green, blue = np.asarray(image_io.read_image(cyan))[4, 4].astype(int)
    assert red < 10
    assert min(green, blue) > 245
    bits = Image.fromarray(np.array([[True, False]]))
    assert np.asarray(image_io.read_image(save(bits, tmp_path / "b.png"))).tolist() == [[255, 0]]


def test_arrays(photo):
    assert np.array_equal(np.asarray(image_io.read_image(photo)), photo)
    assert np.array_equal(np.asarray(image_io.read_image(photo / 255.0)), photo)
    assert image_io.read_image(photo[..., :1]).mode == "L"
    assert np.asarray(image_io.read_image(np.array([[0, 65535]], np.uint16))).tolist() == [[0, 255]]
    assert np.asarray(image_io.read_image(np.array([[True, False]]))).tolist() == [[255, 0]]
    for bad in (np.zeros((3, 4, 5)), np.zeros(7), np.zeros((0, 4)), np.array([[np.nan]])):
        with pytest.raises(Error, match=r"expected"):
            image_io.read_image(bad)


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "bmp", "tiff", "webp"])
def test_truncated_files_are_rejected_at_every_length(random, tmp_path, suffix):
    pixels = random.integers(0, 256, (40, 40, 3), dtype=np.uint8)
    content = save(Image.fromarray(pixels), tmp_path / f"whole.{suffix}").read_bytes()
    for fraction in (0, 0.01, 0.1, 0.3, 0.6, 0.9):
        path = tmp_path / f"cut.{suffix}"
        path.write_bytes(content[: int(fraction * len(content))])
        with pytest.raises(Error, match=rf"cut\.{suffix}"):
            image_io.read_image(path)


def test_other_files_are_rejected_by_name(tmp_path):
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.jpg").write_bytes(b"")
    with zipfile.ZipFile(tmp_path / "zip.png", "w") as archive:
        archive.writestr("x", "y")
    (tmp_path / "script.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    (tmp_path / "folder.png").mkdir()
    for name, reason in {
        "text.png": "not an image", "empty.jpg": "empty", "zip.png": "not an image", "script.eps": "not an image",
        "folder.png": "folder", "missing.png": "does not exist",
    }.items():  # fmt: skip
        with pytest.raises(Error, match=rf"{name}.*{reason}"):
            image_io.read_image(tmp_path / name)


def test_file_content_is_read_like_the_file_and_named_in_errors(photo, tmp_path):
    path = save(Image.fromarray(photo), tmp_path / "photo.jpg")
    content = path.read_bytes()
    assert np.array_equal(np.asarray(image_io.read_image(content)), np.asarray(image_io.read_image(path)))
    for unreadable, problem in ((b"", "is empty"), (b"text", "is not an image"), (content[:99], "is unreadable")):
        with pytest.raises(Error, match=f"^photo.jpg {problem}"):
            image_io.read_image(unreadable, name="photo.jpg")
        with pytest.raises(Error, match=f"^the file given {problem}"):
            image_io.read_image(unreadable)


def png(width, height, body=b"", pixels=b""):
    """Build a color PNG file whose header states a size."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = body + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunks


def icon(content):
    """Build an icon of 16×16 pixels that contains an image."""
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(content), 22) + content


def tiff(size, tile):
    """Build a black TIFF of one tile."""
    content = zlib.compress(bytes(tile * tile))
    tags = {256: size, 257: size, 258: 8, 259: 8, 262: 1, 277: 1, 322: tile, 323: tile, 324: 134, 325: len(content)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + content


def jpeg(**options):
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), (90, 0, 0)).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def record_decoded_sizes(monkeypatch):
    """Record the sizes of the images that Pillow decodes from now on."""
    sizes = []
    for kind in (ImageFile.ImageFile, TiffImagePlugin.TiffImageFile):

        def load(self, real=kind.load):
            if self.tile:
                sizes.append(self.size)
            return real(self)

        monkeypatch.setattr(kind, "load", load)
    return sizes


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (png(1, 99_999_999), "the limit of a side is 65,535"),
        (png(99_999_999, 1), "the limit of a side is 65,535"),
        (png(300, 65_536), "the limit of a side is 65,535"),
        (png(100, 20_001), "the limit of the aspect ratio is 200"),
        (png(20_001, 100), "the limit of the aspect ratio is 200"),
        (icon(png(1, 99_999_999)), "1×99999999 pixels"),
        (icon(png(13_000, 13_000)), "13000×13000 pixels"),
        (tiff(16, 12_000), "12000×12000 pixels"),
    ],
    ids=["tall", "wide", "side", "strip", "band", "icon of a strip", "icon", "tile"],
)
def test_long_strips_and_embedded_images_are_rejected_before_decoding(monkeypatch, content, reason):
    """Within the pixel limit or not; also for images in icons, and for tiles, which are decoded as a whole."""
    sizes = record_decoded_sizes(monkeypatch)
    with pytest.raises(Error, match=rf"small\.png.*{reason}"):
        image_io.read_image(content, name="small.png")
    assert sizes == []


def test_strips_within_the_limits_are_read(monkeypatch):
    sizes = record_decoded_sizes(monkeypatch)
    pixels = b"".join(bytes(1 + 3 * 4) for _ in range(800))
    assert image_io.read_image(png(4, 800, pixels=pixels)).size == (4, 800)
    assert image_io.read_image(icon(png(16, 16, pixels=bytes(49 * 16)))).size == (16, 16)
    assert image_io.read_image(tiff(16, 64)).size == (16, 16)
    assert len(sizes) >= 3


def scan(content):
    """Return the head of the last scan of a JPEG: a complete scan that changes no coefficient."""
    return re.findall(rb"\xff\xda\x00\x08.{6}", content, re.DOTALL)[-1]


PROGRESSIVE = jpeg(progressive=True)
EXIF = b"\xff\xe1\x00\x0cExif\0\0abcd"


@pytest.mark.parametrize(
    "content",
    [
        PROGRESSIVE[:-2] + 200 * scan(PROGRESSIVE) + b"\xff\xd9",
        PROGRESSIVE[:-2]
        + b"\xff\xfe\x00\x04\xff\xd9"
        + 200 * scan(PROGRESSIVE)
        + b"\xff\xd9",  # end marker in a comment
        PROGRESSIVE[:-2] + b"\xff\x01" + 200 * scan(PROGRESSIVE) + b"\xff\xd9",  # marker without a length
        PROGRESSIVE[:-2] + b"\xff\xff" + 200 * scan(PROGRESSIVE) + b"\xff\xd9",  # fill bytes before a marker
        b"\xff\xd8\xff" + PROGRESSIVE[2:-2] + 200 * scan(PROGRESSIVE) + b"\xff\xd9",
        jpeg()[:2] + 3000 * EXIF + jpeg()[2:],
        jpeg()[:2] + b"\0" + 3000 * EXIF + jpeg()[2:],
    ],
    ids=["scans", "after a comment", "after a marker", "after fill", "fill first", "exif", "exif after a gap"],
)
def test_jpeg_bombs_are_rejected_before_decoding(monkeypatch, content):
    """Pillow would read each of them, and a scan of ten bytes takes as long as the first one."""
    sizes = record_decoded_sizes(monkeypatch)
    with pytest.raises(Error, match=r"^photo\.jpg is a JPEG of more than 100 scans or 2,000 segments"):
        image_io.read_image(content, name="photo.jpg")
    assert sizes == []


def test_jpeg_with_much_metadata_or_appended_video_is_read():
    video_bytes = 1000 * b"\xff\xda\x00\x08\xff\xe1"  # bytes that also occur in encoded videos
    plain = jpeg()
    for content in (
        jpeg(progressive=True),
        plain[:2] + 300 * EXIF + plain[2:],
        plain + video_bytes,
        PROGRESSIVE + video_bytes,
    ):
        assert image_io.read_image(content).getpixel((9, 9)) == image_io.read_image(plain).getpixel((9, 9))


READ = """
import re, sys
from pathlib import Path
from fukami.image import io
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak()
image = io.read_image(sys.argv[1])
print(image.mode, peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("mode", "suffix"), [("I;16", "png"), ("I", "tiff"), ("F", "tiff"), ("RGBA", "png")])
def test_memory_is_limited_by_the_original_bit_depth(tmp_path, mode, suffix):
    """16 million pixels take up to 5 bytes each; float64 would add 8 bytes each, or 16 with a copy."""
    color = (9, 8, 7, 100) if mode == "RGBA" else 300
    path = save(Image.new(mode, (4000, 4000), color), tmp_path / f"x.{suffix}")
    process = subprocess.run([sys.executable, "-c", READ, str(path)], capture_output=True, text=True, check=True)
    kind, kilobytes = process.stdout.split()
    assert kind == ("RGB" if mode == "RGBA" else "L")
    assert int(kilobytes) * 1024 < 16e6 * (13 if mode == "RGBA" else 9)


def test_values_are_scaled_equally_in_strips(monkeypatch, random):
    """The range of the whole image determines the scale, not that of a strip."""
    values = random.normal(0, 900, (50, 40, 3))
    expected = np.round((values - values.min()) * (255 / (values.max() - values.min())))
    deep = random.integers(0, 65536, (64, 30), dtype=np.uint16)
    clear = Image.fromarray(random.integers(0, 256, (50, 40, 4), dtype=np.uint8))
    expected_clear = image_io.read_image(clear)
    monkeypatch.setattr(image_io, "MAX_STRIP_VALUES", 100)
    assert np.array_equal(np.asarray(image_io.read_image(values)), expected)
    assert np.array_equal(np.asarray(image_io.read_image(Image.fromarray(deep))), np.round(deep * (255 / 65535)))
    assert np.array_equal(np.asarray(image_io.read_image(clear)), np.asarray(expected_clear))
    values[-1, -1, -1] = np.inf
    with pytest.raises(Error, match="not finite"):
        image_io.read_image(values)


def raise_memory_error(*arguments, **options):
    raise MemoryError


@pytest.mark.parametrize(
    ("target", "open_"),
    [
        ("fukami.image.io.decode_image", image_io.read_image),
        ("PIL.Image.open", image_io.read_image),
        ("PIL.ImageFile.ImageFile.load", image_io.read_image),
        ("fukami.image.io.resize_and_crop", SquareTransform(3, 28).read_and_transform),
        ("fukami.image.digit_extraction.convert_to_mnist", SquareTransform(1, 28, mnist_digit=True).read_and_transform),
        ("fukami.image.io.convert_mode", ResizeTransform(30, 40).read_image),
        ("PIL.Image.Image.resize", lambda path: ImageDecoder([path], SquareTransform(3, 28)).decode(path, [0.5] * 4)),
    ],
)
def test_out_of_memory_is_an_error_of_the_file(monkeypatch, tmp_path, photo, target, open_):
    """Memory may run out in the decoder or during conversion."""
    path = save(Image.fromarray(photo), tmp_path / "x.png")
    monkeypatch.setattr(target, raise_memory_error)
    with pytest.raises(Error, match=r"x\.png needs more memory than is available"):
        open_(path)


def test_out_of_memory_for_an_array(monkeypatch, photo):
    monkeypatch.setattr("fukami.image.io.decode_image", raise_memory_error)
    with pytest.raises(Error, match="the array given needs more memory than is available"):
        image_io.read_image(photo)


def test_batch_continues_after_files_that_exhaust_memory(fukami, monkeypatch, digit_files, tmp_path):
    """A file is rejected by its header; for the others memory runs out while reading, or while drawing."""
    good, large, drawn = sorted(digit_files.rglob("*.png"))[:3]
    (tmp_path / "wide.png").write_bytes(png(99_999_999, 1))
    Image.open(large).resize((41, 43)).save(tmp_path / "large.png")
    Image.open(drawn).resize((37, 39)).save(tmp_path / "drawn.png")
    prepare, draw = SquareTransform.__call__, image_draw.draw_prediction
    monkeypatch.setattr(
        SquareTransform,
        "__call__",
        lambda self, image: raise_memory_error() if image.size == (41, 43) else prepare(self, image),
    )
    monkeypatch.setattr(
        image_draw,
        "draw_prediction",
        lambda image, *arguments: raise_memory_error() if image.size == (37, 39) else draw(image, *arguments),
    )
    result = fukami("predict", "deep-convnet", "wide.png", "large.png", "drawn.png", good, "--out", "out")
    assert result.status == 1
    assert [line["file"] for line in result.json] == ["drawn.png", str(good)]
    for message in ("wide.png has 99999999×1 pixels", "large.png needs more memory", "drawn.png needs more memory"):
        assert message in result.err
    assert "3 of 4 files could not be processed" in result.err
    assert (tmp_path / "out" / f"{good.stem}.png").is_file()


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("[...] DefaultCPUAllocator: can't allocate memory")])
def test_batch_that_exhausts_memory_is_predicted_image_by_image(photo, error):
    class LimitedTask(Task):
        predict_batch_size = 8

        transform = ResizeTransform(0, 0)

        def predict_batch(self, images):
            if len(images) > 1 or images.max() == 255:
                raise error
            return [{"mean": float(image.float().mean())} for image in images]

    dark, light = np.zeros_like(photo), np.full_like(photo, 255)
    task = LimitedTask(nn.Linear(1, 1))
    task.setup(Runtime.start("cpu"))
    task.prepare_training()
    first, second, third = task.predict([dark, light, dark])
    assert (first["mean"], third["mean"]) == (0, 0)
    assert second["error"] == "the image needs more memory than is available; make it smaller"


def test_margin_of_a_strip_is_bounded(monkeypatch):
    """The margin is as wide as the strip is long; 20 million pixels must not become 2,000 million."""
    largest = []
    real = ImageOps.expand

    def expand(image, *arguments):
        largest.append(real(image, *arguments))
        return largest[-1]

    monkeypatch.setattr(ImageOps, "expand", expand)
    with pytest.raises(Error, match="no digit was found"):
        digit_extraction.convert_to_mnist(Image.new("L", (300, 60_000), 250))
    assert [image.width * image.height < 40e6 for image in largest] == [True]


@pytest.mark.parametrize("side", [10_001, 60_000, 2**31 - 1])
def test_huge_images_are_rejected_before_decoding(tmp_path, monkeypatch, side):
    (tmp_path / "bomb.png").write_bytes(png(side, side))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail("the pixels were decoded"))
    with pytest.raises(Error, match=r"bomb\.png.*(pixels|large)"):
        image_io.read_image(tmp_path / "bomb.png")


def test_smaller_pixel_limit(photo, tmp_path):
    path = save(Image.fromarray(photo), tmp_path / "x.png")
    assert image_io.read_image(path, max_pixels=1200).size == (40, 30)
    with pytest.raises(Error, match=r"40×30 pixels, more than the limit of 1,199"):
        image_io.read_image(path, max_pixels=1199)


def test_text_chunk_bomb_is_rejected(tmp_path):
    data = b"x\0\0" + zlib.compress(bytes(200_000_000), 9)
    chunk = struct.pack(">I", len(data)) + b"zTXt" + data + struct.pack(">I", zlib.crc32(b"zTXt" + data))
    (tmp_path / "bomb.png").write_bytes(png(4, 4, chunk))
    with pytest.raises(Error, match=r"bomb\.png"):
        image_io.read_image(tmp_path / "bomb.png")


def test_resize_and_crop_uses_the_center(photo):
    cropped = image_io.resize_and_crop(Image.fromarray(photo), channels=3, size=30)
    assert cropped.shape == (3, 30, 30)
    assert np.array_equal(cropped.transpose(1, 2, 0), photo[:, 5:35])
    assert image_io.resize_and_crop(Image.fromarray(photo), channels=1, size=8).shape == (1, 8, 8)
    assert (
        image_io.resize_and_crop(Image.new("L", (500, 3), 77), channels=3, size=16).tolist()
        == np.full((3, 16, 16), 77).tolist()
    )


@pytest.mark.parametrize("size", [(40, 30), (3, 900), (900, 3), (1, 1), (1500, 1000)])
def test_predictions_are_drawn_for_images_of_any_shape(size):
    model_input = np.full((1, 28, 28), 200, np.uint8)
    drawn = image_draw.draw_prediction(Image.new("RGB", size, (250, 0, 0)), model_input, "深み (99 %)")
    pixels = np.asarray(drawn)
    assert (pixels[0, 0] == 255).all()
    assert ((pixels == (250, 0, 0)).all(-1)).any()
    assert ((pixels == (200, 200, 200)).all(-1)).sum() >= 280 * 280
    buffer = io.BytesIO()
    drawn.save(buffer, "PNG")


@pytest.mark.parametrize("dtype", ["int64", "int32", "float32", "float64", "uint8"])
def test_arrays_of_any_dtype_keep_values_up_to_255(dtype):
    values = np.arange(256).reshape(16, 16).astype(dtype)
    assert np.array_equal(np.asarray(image_io.read_image(values)), np.arange(256).reshape(16, 16))


def test_large_image_within_the_limit_is_read_without_a_warning(tmp_path):
    path = save(Image.new("1", (9600, 9600)), tmp_path / "large.png")  # above Pillow's limit, below ours
    assert image_io.read_image(path).size == (9600, 9600)


def test_truncated_pillow_image_is_rejected(photo):
    content = io.BytesIO()
    Image.fromarray(photo).save(content, "BMP")
    with pytest.raises(Error, match=r"is unreadable"):
        image_io.read_image(Image.open(io.BytesIO(content.getvalue()[:600])))


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_dark_16_bit_images_stay_dark_in_either_byte_order(order):
    assert np.asarray(image_io.read_image(np.full((4, 4), 200, order))).max() == 1  # 200 / 257


def make_random_boxes(random, count, size, labels):
    corners = np.sort(random.uniform(0, 1, (count, 2, 2)), axis=1).reshape(count, 4) * [*size, *size]
    return [
        {"label": labels[index % len(labels)], "score": float(score), "box": box.tolist()}
        for index, (box, score) in enumerate(zip(corners, random.uniform(size=count), strict=True))
    ]


@pytest.mark.parametrize("size", [(640, 480), (120, 500), (2000, 300)])
def test_labels_do_not_overlap_and_stay_in_the_image(random, size):
    boxes = [tuple(each["box"]) for each in make_random_boxes(random, 60, size, ["cat"])]
    sizes = [(float(width), 20.0) for width in random.uniform(40, 110, 60)]
    places = image_draw.place_labels(boxes, sizes, size)
    assert places[0] is not None
    shown = [position for position in places if position]
    assert len(shown) > 10
    free = np.zeros(size[::-1], int)
    for left, top, right, bottom in shown:
        assert 0 <= left <= right <= size[0]
        assert 0 <= top <= bottom <= size[1]
        free[round(top) : round(bottom), round(left) + 1 : round(right) - 1] += 1
    assert free.max() == 1


@pytest.mark.parametrize("size", [(1, 1), (8, 300), (64, 48), (500, 375), (3000, 1000)])
def test_boxes_are_drawn_at_any_size(random, size):
    """Boxes have class colors and labels; small images are enlarged, and the input is not modified."""
    image = Image.new("L", size, 255)
    drawn = image_draw.draw_boxes(image, make_random_boxes(random, 9, size, ["cat", "dög", "犬"]), ("cat", "dög"))
    assert max(drawn.size) >= 480
    assert drawn.width * size[1] == drawn.height * size[0]
    assert {image_draw.get_class_color(0), image_draw.get_class_color(1)} <= {
        color for _, color in drawn.getcolors(2**20)
    }
    assert image.getextrema() == (255, 255)
    assert image_draw.draw_boxes(image, [], ("cat",)).getextrema() == ((255, 255),) * 3


def test_boxes_are_drawn_on_their_edges_with_the_highest_score_on_top():
    ground = Image.new("RGB", (600, 400))
    box = [100, 80, 500, 300]
    boxes = [
        {"label": label, "score": score, "box": box} for label, score in (("cat", 0.5), ("dog", 0.9), ("cow", 0.1))
    ]
    drawn = np.asarray(image_draw.draw_boxes(ground, boxes, ("cat", "dog", "cow")))
    for y, x in ((200, 100), (200, 499), (80, 450), (299, 300)):
        assert tuple(drawn[y, x]) == image_draw.get_class_color(1)
    assert drawn[200, 300].max() == drawn[40, 550].max() == 0


def test_class_colors_differ():
    colors = np.array([image_draw.get_class_color(index) for index in range(20)])
    distances = np.abs(colors[:, None] - colors[None]).sum(-1) + 999 * np.eye(20)
    assert distances.min() > 40

"""Pictures of every kind come out right, and what is no picture is refused by name."""

import io
import struct
import time
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from fukami import Error, image


@pytest.fixture
def photo(random):
    """A colour picture with structure, 40 wide and 30 high."""
    y, x = np.mgrid[:30, :40]
    return np.stack([6 * x, 8 * y, 3 * (x + y)], -1).astype(np.uint8)


def saved(picture, path, **options):
    picture.save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp", "ppm", "tga", "gif", "jpg", "ico", "jp2", "avif"])
def test_formats(photo, tmp_path, suffix):
    options = {"webp": {"lossless": True}, "jpg": {"quality": 95}, "ico": {"sizes": [(40, 30)]}}.get(suffix, {})
    read = image.read(saved(Image.fromarray(photo), tmp_path / f"x.{suffix}", **options))
    assert read.mode == "RGB"
    tolerance = {"jpg": 4, "gif": 12, "avif": 6}.get(suffix, 0.01)
    assert np.abs(np.asarray(read).astype(int) - photo).mean() < tolerance


def test_exif_rotation(photo, tmp_path):
    """What orientation N did to the upright picture is undone; each by hand with NumPy."""
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
        path = saved(Image.fromarray(np.ascontiguousarray(pixels)), tmp_path / f"{orientation}.png", exif=exif)
        assert np.array_equal(np.asarray(image.read(path)), photo), orientation


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path):
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    expected = np.arange(256).reshape(16, 16)
    for path in (saved(Image.fromarray(ramp), tmp_path / "x.png"), saved(Image.fromarray(ramp), tmp_path / "x.tiff")):
        read = image.read(path)
        assert read.mode == "L"
        assert np.array_equal(np.asarray(read), expected)


def test_transparency_lies_on_white(tmp_path):
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0, :, 3] = 0, 128, 255
    assert np.asarray(image.read(saved(Image.fromarray(pixels), tmp_path / "x.png")))[0, :, 0].tolist() == [255, 127, 0]
    grey = saved(Image.fromarray(pixels).convert("LA"), tmp_path / "la.png")
    assert image.read(grey).mode == "L"
    assert np.asarray(image.read(grey))[0].tolist() == [255, 127, 0]
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 200, 10, 10])
    palette.putdata([0, 1])
    path = saved(palette, tmp_path / "p.png", transparency=0)
    assert np.asarray(image.read(path))[0].tolist() == [[255, 255, 255], [200, 10, 10]]


def test_cmyk_and_one_bit(tmp_path):
    cyan = saved(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), tmp_path / "x.jpg", quality=95)
    red, green, blue = np.asarray(image.read(cyan))[4, 4].astype(int)
    assert red < 10
    assert min(green, blue) > 245
    bits = Image.fromarray(np.array([[True, False]]))
    assert np.asarray(image.read(saved(bits, tmp_path / "b.png"))).tolist() == [[255, 0]]


def test_arrays(photo):
    assert np.array_equal(np.asarray(image.read(photo)), photo)
    assert np.array_equal(np.asarray(image.read(photo / 255.0)), photo)
    assert image.read(photo[..., :1]).mode == "L"
    assert np.asarray(image.read(np.array([[0, 65535]], np.uint16))).tolist() == [[0, 255]]
    assert np.asarray(image.read(np.array([[True, False]]))).tolist() == [[255, 0]]
    for bad in (np.zeros((3, 4, 5)), np.zeros(7), np.zeros((0, 4)), np.array([[np.nan]])):
        with pytest.raises(Error, match=r"expected"):
            image.read(bad)


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "bmp", "tiff", "webp"])
def test_truncated_files_are_refused_at_every_length(random, tmp_path, suffix):
    pixels = random.integers(0, 256, (40, 40, 3), dtype=np.uint8)
    content = saved(Image.fromarray(pixels), tmp_path / f"whole.{suffix}").read_bytes()
    for share in (0, 0.01, 0.1, 0.3, 0.6, 0.9):
        path = tmp_path / f"cut.{suffix}"
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(Error, match=rf"cut\.{suffix}"):
            image.read(path)


def test_what_is_no_picture_is_refused_by_name(tmp_path):
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.jpg").write_bytes(b"")
    with zipfile.ZipFile(tmp_path / "zip.png", "w") as archive:
        archive.writestr("x", "y")
    (tmp_path / "script.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    (tmp_path / "folder.png").mkdir()
    for name, reason in {
        "text.png": "not a picture", "empty.jpg": "empty", "zip.png": "not a picture", "script.eps": "not a picture",
        "folder.png": "folder", "missing.png": "does not exist",
    }.items():  # fmt: skip
        with pytest.raises(Error, match=rf"{name}.*{reason}"):
            image.read(tmp_path / name)


def test_what_a_file_holds_is_read_like_the_file_and_called_by_the_name_given(photo, tmp_path):
    path = saved(Image.fromarray(photo), tmp_path / "photo.jpg")
    content = path.read_bytes()
    assert np.array_equal(np.asarray(image.read(content)), np.asarray(image.read(path)))
    for broken, what in ((b"", "is empty"), (b"text", "is not a picture"), (content[:99], "is damaged")):
        with pytest.raises(Error, match=f"^photo.jpg {what}"):
            image.read(broken, name="photo.jpg")
        with pytest.raises(Error, match=f"^the file given {what}"):
            image.read(broken)


def png(width, height, body=b""):
    """A PNG file that claims a size."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [10_001, 60_000, 2**31 - 1])
def test_pictures_that_claim_to_be_huge_are_refused_unread(tmp_path, side):
    (tmp_path / "bomb.png").write_bytes(png(side, side))
    began = time.monotonic()
    with pytest.raises(Error, match=r"bomb\.png.*(pixels|large)"):
        image.read(tmp_path / "bomb.png")
    assert time.monotonic() - began < 5  # a decoder that believed the header would need gigabytes first


def test_a_smaller_bound_can_be_set(photo, tmp_path):
    path = saved(Image.fromarray(photo), tmp_path / "x.png")
    assert image.read(path, max_pixels=1200).size == (40, 30)
    with pytest.raises(Error, match=r"40×30 pixels, more than the 1,199"):
        image.read(path, max_pixels=1199)


def test_a_text_chunk_that_explodes_is_refused(tmp_path):
    data = b"x\0\0" + zlib.compress(bytes(200_000_000), 9)
    chunk = struct.pack(">I", len(data)) + b"zTXt" + data + struct.pack(">I", zlib.crc32(b"zTXt" + data))
    (tmp_path / "bomb.png").write_bytes(png(4, 4, chunk))
    with pytest.raises(Error, match=r"bomb\.png"):
        image.read(tmp_path / "bomb.png")


def test_fit_takes_the_middle_square(photo):
    seen = image.fit(Image.fromarray(photo), channels=3, size=30)
    assert seen.shape == (3, 30, 30)
    assert np.array_equal(seen.transpose(1, 2, 0), photo[:, 5:35])
    assert image.fit(Image.fromarray(photo), channels=1, size=8).shape == (1, 8, 8)
    assert image.fit(Image.new("L", (500, 3), 77), channels=3, size=16).tolist() == np.full((3, 16, 16), 77).tolist()


@pytest.mark.parametrize("size", [(40, 30), (3, 900), (900, 3), (1, 1), (1500, 1000)])
def test_answers_are_drawn_for_pictures_of_any_shape(size):
    seen = np.full((1, 28, 28), 200, np.uint8)
    drawn = image.draw_answer(Image.new("RGB", size, (250, 0, 0)), seen, "深み (99 %)")
    pixels = np.asarray(drawn)
    assert (pixels[0, 0] == 255).all()
    assert ((pixels == (250, 0, 0)).all(-1)).any()
    assert ((pixels == (200, 200, 200)).all(-1)).sum() >= 280 * 280
    buffer = io.BytesIO()
    drawn.save(buffer, "PNG")


@pytest.mark.parametrize("dtype", ["int64", "int32", "float32", "float64", "uint8"])
def test_arrays_of_any_type_keep_values_up_to_255(dtype):
    values = np.arange(256).reshape(16, 16).astype(dtype)
    assert np.array_equal(np.asarray(image.read(values)), np.arange(256).reshape(16, 16))


def test_a_large_picture_within_the_bound_is_read_without_a_warning(tmp_path):
    path = saved(Image.new("1", (9600, 9600)), tmp_path / "large.png")  # over Pillow's own bound, under ours
    assert image.read(path).size == (9600, 9600)


def test_a_truncated_picture_that_pillow_opened_is_refused(photo):
    content = io.BytesIO()
    Image.fromarray(photo).save(content, "BMP")
    with pytest.raises(Error, match=r"damaged or incomplete"):
        image.read(Image.open(io.BytesIO(content.getvalue()[:600])))


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_dark_sixteen_bit_pictures_stay_dark_in_either_byte_order(order):
    assert np.asarray(image.read(np.full((4, 4), 200, order))).max() == 1  # 200 / 257


def some_boxes(random, count, size, labels):
    corners = np.sort(random.uniform(0, 1, (count, 2, 2)), axis=1).reshape(count, 4) * [*size, *size]
    return [
        {"label": labels[number % len(labels)], "score": float(score), "box": box.tolist()}
        for number, (box, score) in enumerate(zip(corners, random.uniform(size=count), strict=True))
    ]


@pytest.mark.parametrize("size", [(640, 480), (120, 500), (2000, 300)])
def test_labels_do_not_overlap_and_stay_in_the_picture(random, size):
    boxes = [tuple(each["box"]) for each in some_boxes(random, 60, size, ["cat"])]
    sizes = [(float(width), 20.0) for width in random.uniform(40, 110, 60)]
    places = image.places(boxes, sizes, size)
    assert places[0] is not None
    shown = [place for place in places if place]
    assert len(shown) > 10
    free = np.zeros(size[::-1], int)
    for left, top, right, bottom in shown:
        assert 0 <= left <= right <= size[0]
        assert 0 <= top <= bottom <= size[1]
        free[round(top) : round(bottom), round(left) + 1 : round(right) - 1] += 1
    assert free.max() == 1


@pytest.mark.parametrize("size", [(1, 1), (8, 300), (64, 48), (500, 375), (3000, 1000)])
def test_boxes_are_drawn_at_any_size(random, size):
    """In the colour of the class, with a label; a small picture is enlarged, and the one given stays as it is."""
    picture = Image.new("L", size, 255)
    drawn = image.draw_boxes(picture, some_boxes(random, 9, size, ["cat", "dög", "犬"]), ("cat", "dög"))
    assert max(drawn.size) >= 480
    assert drawn.width * size[1] == drawn.height * size[0]
    assert {image.colour(0), image.colour(1)} <= {colour for _, colour in drawn.getcolors(2**20)}
    assert picture.getextrema() == (255, 255)
    assert image.draw_boxes(picture, [], ("cat",)).getextrema() == ((255, 255),) * 3


def test_a_box_is_drawn_on_its_edge_and_the_strongest_on_top():
    ground = Image.new("RGB", (600, 400))
    box = [100, 80, 500, 300]
    boxes = [
        {"label": label, "score": score, "box": box} for label, score in (("cat", 0.5), ("dog", 0.9), ("cow", 0.1))
    ]
    drawn = np.asarray(image.draw_boxes(ground, boxes, ("cat", "dog", "cow")))
    for y, x in ((200, 100), (200, 499), (80, 450), (299, 300)):
        assert tuple(drawn[y, x]) == image.colour(1)
    assert drawn[200, 300].max() == drawn[40, 550].max() == 0


def test_colours_of_classes_differ():
    colours = np.array([image.colour(number) for number in range(20)])
    apart = np.abs(colours[:, None] - colours[None]).sum(-1) + 999 * np.eye(20)
    assert apart.min() > 40

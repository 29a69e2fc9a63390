"""Images with any number of channels and more than 8 bits: values, conversions, limits and errors."""

import io
import itertools
import struct
import zlib

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from fukami import Error
from fukami.data.annotations import read_header
from fukami.data.streaming import FileStreamingLoader, ImageDecoder
from fukami.image import io as image_io
from fukami.image import tiff
from fukami.image.channels import ArrayImage, read_channels, read_depth
from fukami.image.transform import ResizeTransform, SquareTransform

WHITE = {np.uint8: 255, np.uint16: 65535, np.float32: 1}
LAYOUTS = list(
    itertools.product((None, "deflate", "lzw", "zstd"), (None, (16, 32)), ("contig", "separate"), (False, True))
)


def make_samples(random, dtype, *shape):
    if dtype == np.float32:
        return random.random(shape, np.float32)
    return random.integers(0, WHITE[dtype] + 1, shape, dtype)


def encode_tiff(samples, *, planar="contig", **options):
    """Encode samples ``(H, W, C)`` as the samples of each pixel, not as pages."""
    file = io.BytesIO()
    options = {"photometric": "rgb" if samples.shape[2] == 3 else "minisblack", **options}
    if samples.shape[2] == 1:
        tifffile.imwrite(file, samples[..., 0], **options)
    else:
        values = samples.transpose(2, 0, 1) if planar == "separate" else samples
        tifffile.imwrite(file, values, planarconfig=planar, **options)
    return file.getvalue()


def get_levels(image):
    return image.levels if isinstance(image, ArrayImage) else np.asarray(image)


def test_a_transparent_value_of_16_bits_is_kept(random, tmp_path):
    """GDAL writes the value of pixels without data as the transparent one."""
    samples = random.integers(0, 65536, (9, 7), np.uint16)
    Image.fromarray(samples).save(tmp_path / "a.png", transparency=int(samples[0, 0]))
    for channels in (1, 3):
        levels = read_channels(tmp_path / "a.png", channels).levels
        assert np.allclose(levels / 255, np.broadcast_to(samples[..., None] / 65535, levels.shape), rtol=0, atol=1e-7)


@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_white_may_be_zero(random, byteorder):
    """The same image in both byte orders, and with 8 bits."""
    samples = random.integers(0, 256, (9, 7, 1), np.uint8)
    deep = (samples * np.uint16(257)).astype(np.uint16)
    for values in (samples, deep):
        content = encode_tiff(values, photometric="miniswhite", byteorder=byteorder)
        assert np.allclose(get_levels(read_channels(content, 1)).reshape(9, 7, 1), 255 - samples, rtol=0, atol=1e-4)
        if values is samples or byteorder == "<":  # Pillow reads no other order
            assert np.array_equal(np.asarray(image_io.read_image(content)), 255 - samples[..., 0])


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_associated_alpha_is_multiplied_once(dtype, count):
    """A white pixel of half transparency is white on white, and a transparent one, too."""
    white = WHITE[dtype]
    half = white // 2 + 1
    samples = np.array([[[half] * count, [0] * count, [white] * count]], dtype)
    kind = "rgb" if count == 4 else "minisblack"
    file = io.BytesIO()
    tifffile.imwrite(file, samples, photometric=kind, planarconfig="contig", extrasamples=["assocalpha"])
    levels = get_levels(read_channels(file.getvalue(), 3))
    assert np.allclose(levels, 255, rtol=0, atol=1.01)


def test_channels_of_cmyk_and_of_extra_samples(random):
    """CMYK is converted to RGB, and an extra sample is a channel."""
    file = io.BytesIO()
    Image.new("CMYK", (8, 8)).save(file, "JPEG")
    assert read_depth(file.getvalue()) == (3, False)
    samples = random.integers(0, 256, (9, 7, 4), np.uint8)
    file = io.BytesIO()
    tifffile.imwrite(file, samples, photometric="rgb", planarconfig="contig", extrasamples=["unspecified"])
    assert read_depth(file.getvalue()) == (4, False)


@pytest.mark.parametrize("channels", [0, 1, 3, 4])
def test_signed_integers_are_kept_with_any_number_of_channels(random, channels):
    samples = random.integers(-5000, 5000, (9, 7, 4 if channels == 4 else 1), np.int16)
    content = encode_tiff(samples)
    levels = read_channels(content, channels).levels
    assert levels.dtype == np.float32
    assert np.allclose(levels / 255, np.broadcast_to(samples / 65535, levels.shape), rtol=0, atol=1e-7)
    assert read_depth(content) == (samples.shape[2], True)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 13])
def test_tiff_samples_are_kept_in_every_layout(random, channels, dtype):
    samples = make_samples(random, dtype, 20, 37, channels)
    for compression, tile, planar, predictor in LAYOUTS:
        if predictor and not compression:
            continue
        content = encode_tiff(samples, planar=planar, compression=compression, tile=tile, predictor=predictor)
        levels = get_levels(read_channels(content, channels)).reshape(samples.shape)
        assert levels.dtype == (np.uint8 if dtype == np.uint8 else np.float32)
        assert np.allclose(levels / 255.0, samples / float(WHITE[dtype]), rtol=0, atol=1e-7), (compression, tile)


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("bigtiff", [False, True])
def test_byte_orders_and_bigtiff(random, byteorder, bigtiff):
    samples = make_samples(random, np.uint16, 9, 8, 5)
    image = read_channels(encode_tiff(samples, byteorder=byteorder, bigtiff=bigtiff), 5)
    assert np.array_equal((image.levels * 257).round(), samples)


def test_pages_of_one_channel_are_channels(random):
    file = io.BytesIO()
    samples = make_samples(random, np.uint16, 5, 9, 8)
    tifffile.imwrite(file, samples, photometric="minisblack")
    assert np.array_equal((read_channels(file.getvalue(), 5).levels * 257).round(), samples.transpose(1, 2, 0))
    assert read_depth(file.getvalue()) == (1, True)  # of the first page, all that a network of one channel reads


def test_network_input_is_the_normalized_array(random, tmp_path):
    """Both transforms against NumPy, at the images' own size, from a file, its content and the array."""
    samples = make_samples(random, np.uint16, 32, 32, 4)
    mean, std = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.5, 0.6, 0.7, 0.8])
    expected = ((samples / 65535 - mean) / std).transpose(2, 0, 1)
    path = tmp_path / "x.tif"
    path.write_bytes(encode_tiff(samples))
    square = SquareTransform(4, 32, mean=tuple(mean), std=tuple(std))
    resize = ResizeTransform(0, 0, tuple(mean), tuple(std), channels=4)
    for source in (path, path.read_bytes(), samples):
        images = torch.from_numpy(square.read_and_transform(source)), resize(resize.read_image(source))
        for image in images:
            actual = (image.numpy() / 255 - mean[:, None, None]) / std[:, None, None]
            assert np.allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_are_kept_with_one_and_three_channels(random, tmp_path, channels):
    samples = make_samples(random, np.uint16, 12, 10, channels)
    (tmp_path / "x.tif").write_bytes(encode_tiff(samples))
    if channels == 1:
        Image.fromarray(samples[..., 0]).save(tmp_path / "x.png")
    else:
        (tmp_path / "x.png").write_bytes(encode_png(samples))
    for name in ("x.tif", "x.png"):
        levels = read_channels(tmp_path / name, channels).levels
        assert np.array_equal((levels * 257).round(), samples), name
        assert read_depth(tmp_path / name) == (channels, True)
    assert np.array_equal(read_channels(samples, channels).levels, levels)


def encode_png(samples):
    """Encode RGB samples of 16 bits as a PNG (RFC 2083)."""
    height, width, _ = samples.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    packed = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def test_color_and_grayscale_are_converted_as_at_8_bits(random):
    """The conversions of 16 bits against those of Pillow, for values that 8 bits represent."""
    color = make_samples(random, np.uint8, 9, 8, 3)
    alpha = make_samples(random, np.uint8, 9, 8, 4)
    for samples, channels in ((color, 1), (color[..., :1], 3), (alpha, 3), (alpha, 1)):
        photometric = "minisblack" if samples.shape[2] == 1 else "rgb"
        contents = [encode_tiff(s, photometric=photometric) for s in (samples, samples.astype(np.uint16) * 257)]
        transform = SquareTransform(channels, 8)
        eight, sixteen = (transform.read_and_transform(content).astype(float) for content in contents)
        assert np.abs(eight - sixteen).max() <= 1.5, (samples.shape, channels)


def test_rgba_png_keeps_alpha_with_four_channels(random, tmp_path):
    samples = make_samples(random, np.uint8, 9, 8, 4)
    Image.fromarray(samples).save(tmp_path / "x.png")
    assert np.array_equal(read_channels(tmp_path / "x.png", 4).levels, samples)
    palette = Image.fromarray(samples[..., 0]).convert("P")
    palette.save(tmp_path / "p.png", transparency=0)
    assert read_channels(tmp_path / "p.png", 4).levels.shape == (9, 8, 4)


def test_orientations(random):
    """Every orientation is reversed; the stored samples are computed with NumPy."""
    samples = make_samples(random, np.uint16, 6, 4, 5)
    stored = {
        1: samples,
        2: samples[:, ::-1],
        3: samples[::-1, ::-1],
        4: samples[::-1],
        5: samples.transpose(1, 0, 2),
        6: np.rot90(samples, 1),
        7: np.rot90(samples, 2).transpose(1, 0, 2),
        8: np.rot90(samples, -1),
    }
    for orientation, pixels in stored.items():
        content = encode_tiff(np.ascontiguousarray(pixels), extratags=[(274, "H", 1, orientation, True)])
        assert np.array_equal((read_channels(content, 5).levels * 257).round(), samples), orientation


def test_header_of_a_tiff_with_many_channels(random, tmp_path):
    path = tmp_path / "x.tif"
    path.write_bytes(encode_tiff(make_samples(random, np.float32, 6, 4, 7), extratags=[(274, "H", 1, 6, True)]))
    assert read_header(path).upright_size == (6, 4)
    assert read_depth(path) == (7, True)


@pytest.mark.parametrize("found", [1, 2, 3, 5])
def test_another_number_of_channels(random, tmp_path, found):
    path = tmp_path / "x.tif"
    path.write_bytes(encode_tiff(make_samples(random, np.uint8, 9, 8, found)))
    message = rf"x\.tif has {found} channels?, and the network expects 4; .* --channels {found}"
    with pytest.raises(Error, match=message):
        read_channels(path, 4)


def test_samples_of_other_types(random):
    signed = random.integers(-300, 10_000, (9, 8, 4), np.int16)
    assert np.allclose(read_channels(encode_tiff(signed), 4).levels, signed / 257, atol=1e-4)
    with pytest.raises(Error, match="samples of type uint32; save them as uint8, uint16 or float32"):
        read_channels(encode_tiff(np.zeros((9, 8, 4), np.uint32)), 4)
    for value in (np.nan, np.inf):
        with pytest.raises(Error, match="not finite"):
            read_channels(encode_tiff(np.full((9, 8, 4), value, np.float32)), 4)


def test_broken_tiffs_are_errors(random, tmp_path):
    """Every truncation and 300 random changes of a file are read or are one error that names it."""
    path = tmp_path / "x.tif"
    for compression in (None, "deflate", "lzw"):
        content = encode_tiff(make_samples(random, np.uint16, 16, 16, 5), compression=compression, tile=(16, 16))
        cut = [content[: int(fraction * len(content))] for fraction in (0.005, 0.1, 0.5, 0.9)]
        for broken in cut:
            path.write_bytes(broken)
            with pytest.raises(Error, match=r"x\.tif"):
                read_channels(path, 5)
        for _ in range(100):
            changed = bytearray(content)
            for position in random.integers(0, min(400, len(content)), 3):
                changed[position] = random.integers(256)
            path.write_bytes(changed)
            try:
                read_channels(path, 5)
            except Error as error:
                assert "x.tif" in str(error)  # noqa: PT017


def test_limits(monkeypatch, random):
    samples = make_samples(random, np.uint16, 20, 20, 5)
    with pytest.raises(Error, match="more than the limit of 399"):
        read_channels(encode_tiff(samples), 5, max_pixels=399)
    with pytest.raises(Error, match="20×20 pixels of 5 channels, 2,000 values of uint16, more than the limit of 1,200"):
        read_channels(encode_tiff(samples), 5, max_pixels=400)
    with pytest.raises(Error, match=r"1,200 values of float64, .* and 4,800 bytes"):
        read_channels(encode_tiff(samples[..., :3].astype(np.float64)), 3, max_pixels=400)
    content = encode_tiff(samples[..., :3].astype(np.complex64))
    with monkeypatch.context() as patch:
        patch.setattr(tifffile.TiffPage, "asarray", None)  # nothing is decoded
        with pytest.raises(Error, match="samples of type complex64; save them as"):
            read_channels(content, 3)
    with pytest.raises(Error, match="more than 64 channels"):
        read_channels(encode_tiff(np.zeros((9, 8, 65), np.uint8)), 5)
    with pytest.raises(Error, match="in a tile, has 8192×8192 pixels"):
        read_channels(encode_tiff(samples, tile=(8192, 8192), compression="deflate"), 5, max_pixels=1000)
    monkeypatch.setattr(tiff, "COMPRESSIONS", (1,))
    with pytest.raises(Error, match=r"unsupported kind \(compression 32946, predictor 1\); save it with deflate, LZW"):
        read_channels(encode_tiff(samples, compression="deflate"), 5)


def test_decompression_bomb():
    """A strip that inflates to 100 MB, in a file whose header states 64 pixels."""
    content = bytearray(encode_tiff(np.zeros((8, 8, 5), np.uint8), compression="deflate"))
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        tags = file.pages.first.tags
        positions = tags["StripOffsets"].valueoffset, tags["StripByteCounts"].valueoffset
    bomb = zlib.compress(bytes(100_000_000))
    struct.pack_into("<I", content, positions[0], len(content))
    struct.pack_into("<I", content, positions[1], len(bomb))
    with pytest.raises(Error, match="the file given is unreadable"):
        read_channels(bytes(content) + bomb, 5)


def test_previews_show_the_first_three_channels(random):
    samples = make_samples(random, np.uint16, 9, 8, 5)
    preview = read_channels(samples, 5).build_preview()
    assert preview.mode == "RGB"
    assert np.array_equal(np.asarray(preview), (samples[..., :3] / 257).round().astype(np.uint8))
    assert read_channels(samples[..., :2], 2).build_preview().mode == "L"


def test_crops_of_each_channel(random, tmp_path):
    """The random crop of a streamed image against Pillow's crop of each channel."""
    samples = make_samples(random, np.uint8, 24, 30, 4)
    Image.fromarray(samples).save(tmp_path / "x.png")
    crop = ImageDecoder([tmp_path / "x.png"], SquareTransform(4, 8), 0.3).decode(
        tmp_path / "x.png", [0.4, 0.5, 0.2, 0.7]
    )
    gray = []
    for channel in range(4):
        Image.fromarray(samples[..., channel]).save(tmp_path / f"{channel}.png")
        decoder = ImageDecoder([], SquareTransform(1, 8), 0.3)
        gray.append(decoder.decode(tmp_path / f"{channel}.png", [0.4, 0.5, 0.2, 0.7])[..., 0])
    assert np.array_equal(crop, np.stack(gray, 2))


def test_batches_of_different_depths(random, tmp_path):
    """Images of 8 and 16 bits in one batch: their values in 0..255 are the same as one by one."""
    files = [tmp_path / "8.tif", tmp_path / "16.tif"]
    arrays = [make_samples(random, dtype, 8, 8, 4) for dtype in (np.uint8, np.uint16)]
    for file, samples in zip(files, arrays, strict=True):
        file.write_bytes(encode_tiff(samples))
    loader = FileStreamingLoader(files, torch.tensor([0, 1]), ("a", "b"), SquareTransform(4, 8), batch_size=2)
    ((images, _),) = loader
    assert np.array_equal(images[0].permute(1, 2, 0), arrays[0])
    assert np.allclose(images[1].permute(1, 2, 0), arrays[1] / 257, atol=1e-4)


def test_ink_of_cmyk_is_no_data(tmp_path):
    Image.new("CMYK", (8, 8), (255, 0, 0, 0)).save(tmp_path / "x.jpg", quality=95)
    with pytest.raises(Error, match="has 3 channels"):
        read_channels(tmp_path / "x.jpg", 4)

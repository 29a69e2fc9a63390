"""Selective Search against a slow implementation of the paper, scikit-image and cases by hand."""

import io
import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from skimage import color
from skimage.segmentation import felzenszwalb

from fukami.data.samples import Sample
from fukami.errors import Error, UsageError
from fukami.selective_search import cache, grouping, search, superpixels
from fukami.selective_search import plots as selective_search_plots
from fukami.selective_search.search import propose_regions


def draw_rectangles(*rectangles, size=(120, 90), background=(40, 90, 160)):
    """Draw an image of uniform rectangles ``(left, top, right, bottom, color)`` on a uniform background."""
    pixels = np.empty((size[1], size[0], 3), np.uint8)
    pixels[:] = background
    for left, top, right, bottom, fill in rectangles:
        pixels[top:bottom, left:right] = fill
    return pixels


def generate_noise(random, height=40, width=52):
    """Generate an image of blurred noise, with regions of all sizes and without equal similarities."""
    small = random.integers(0, 256, (height // 4, width // 4, 3), np.uint8)
    smooth = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(smooth).astype(int) + random.integers(-9, 10, (height, width, 3)), 0, 255).astype(
        np.uint8
    )


# segmentation


def is_same_partition(one, other):
    """Return whether two segmentations are equal up to the numbers of the regions."""
    pairs = np.unique(np.stack([one.ravel(), other.ravel()]), axis=1)
    return pairs.shape[1] == len(np.unique(one)) == len(np.unique(other))


@pytest.mark.parametrize(("scale", "min_size"), [(20, 1), (100, 1), (100, 30), (250, 60)])
def test_segmentation_equals_that_of_scikit_image(random, scale, min_size):
    image = random.integers(0, 256, (61, 83, 3)).astype(np.float32)
    ours = superpixels.segment_graph(
        superpixels.build_edges(image.transpose(2, 0, 1).copy()), (61, 83), scale, min_size
    )
    theirs = felzenszwalb(image.astype(np.float64) / 255, scale=scale, sigma=0, min_size=min_size)
    assert ours.max() >= 5
    assert is_same_partition(ours, theirs)


def test_gaussian_filters_equal_those_of_scipy(random):
    from scipy.ndimage import gaussian_filter

    plane = random.random((17, 23), np.float32)
    gaussian = superpixels.build_gaussian_kernel(0.8)
    derivative = superpixels.build_gaussian_kernel(1.0, derivative=True)
    smooth = superpixels.convolve_separable(plane[None], gaussian, gaussian)[0]
    np.testing.assert_allclose(smooth, gaussian_filter(plane, 0.8, mode="nearest"), atol=1e-5)
    gradient = superpixels.convolve_separable(plane[None], superpixels.build_gaussian_kernel(1.0), derivative)[0]
    np.testing.assert_allclose(gradient, gaussian_filter(plane, 1, order=(0, 1), mode="nearest"), atol=1e-5)


def test_uniform_regions_are_numbered_in_reading_order():
    image = draw_rectangles((10, 10, 50, 60, (250, 30, 30)), (70, 20, 110, 80, (40, 220, 40)))
    labels = search.segment_image(image, 50)
    assert labels[0, 0] == 0
    assert labels[30, 30] != labels[50, 90]
    assert list(dict.fromkeys(labels.ravel())) == list(range(labels.max() + 1))


# color spaces


def test_color_spaces_equal_those_of_scikit_image(random):
    image = random.integers(0, 256, (31, 29, 3), np.uint8)
    image[:3] = image[:3, :, :1]  # gray, without hue
    hsv = color.rgb2hsv(image) * 255
    np.testing.assert_allclose(search.convert_color_space(image, "hsv"), hsv.transpose(2, 0, 1), atol=0.01)
    np.testing.assert_allclose(search.convert_color_space(image, "hue")[0], hsv[..., 0], atol=0.01)
    lab = color.rgb2lab(image) * [2.55, 1, 1] + [0, 128, 128]
    np.testing.assert_allclose(search.convert_color_space(image, "lab"), lab.transpose(2, 0, 1), atol=0.1)


def test_fractions_of_red_and_green_and_the_intensity():
    image = np.array([[[60, 30, 10], [0, 0, 0], [255, 255, 255]]], np.uint8)
    converted = search.convert_color_space(image, "rgi")
    np.testing.assert_allclose(converted[:, 0, 0], [0.6 * 255, 0.3 * 255, 100 / 3], rtol=1e-5)
    np.testing.assert_allclose(converted[:, 0, 1], 0)
    np.testing.assert_allclose(converted[:, 0, 2], [85, 85, 255], rtol=1e-5)
    np.testing.assert_allclose(search.convert_color_space(image, "intensity")[0, 0], [100 / 3, 0, 255], rtol=1e-5)


def test_the_error_of_an_unknown_color_space_suggests_the_nearest(random):
    with pytest.raises(UsageError, match="'hsv'"):
        search.convert_color_space(generate_noise(random), "hsw")


# regions


def test_regions_by_hand():
    """The image has one channel; its left part is dark and its right part bright."""
    labels = np.repeat(np.array([[0, 0, 0, 1]], np.int32), 2, axis=0)
    plane = np.where(labels, 200, 10).astype(np.float32)[None]
    regions = grouping.build_regions(labels, grouping.compute_features(plane))
    assert regions.sizes.tolist() == [6, 2]
    assert regions.boxes.tolist() == [[0, 0, 3, 2], [3, 0, 4, 2]]
    assert regions.neighbors.tolist() == [[0, 1]]
    assert regions.histograms.shape == (2, 25 + 80)
    np.testing.assert_allclose(regions.histograms[:, :25].sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(regions.histograms[:, 25:].sum(1), 1, rtol=1e-6)
    assert regions.histograms[0, 10 * 25 // 256] == 1
    assert regions.histograms[1, 200 * 25 // 256] == 1


def test_texture_bins_of_an_edge_by_hand():
    """Three of eight directions have a positive derivative, two of them lower by a factor of 1/√2."""
    plane = np.repeat(np.where(np.arange(20) < 10, 0, 255)[None], 20, axis=0).astype(np.float32)[None]
    bins = grouping.compute_features(plane)[10, 9, 1:]
    levels = sorted(bins.tolist(), reverse=True)
    assert levels == [9, 7, 7, 0, 0, 0, 0, 0]
    opposite = grouping.compute_features(255 - plane)[10, 9, 1:]
    assert opposite.tolist() == np.roll(bins, 4).tolist()


def test_similarities_by_hand():
    """The four similarities of the paper for two regions."""
    one, other = np.zeros((2, 6), np.float32)
    one[[0, 1, 3]], other[[0, 2, 3, 5]] = [0.7, 0.3, 1], [0.5, 0.5, 0.4, 0.6]
    sizes, boxes = np.array([6, 10]), np.array([[0, 0, 3, 2], [1, 2, 5, 6]], np.int32)
    area = 100

    def similarity(first, by_size, by_fill):
        args = (sizes, boxes, np.stack([one, other])[:, first:], area, by_size, by_fill)
        return grouping._compute_similarity(0, 1, *args)

    assert similarity(0, False, False) == pytest.approx(0.5 + 0.4)
    assert similarity(3, False, False) == pytest.approx(0.4)
    assert similarity(6, True, False) == pytest.approx(1 - 16 / 100)
    assert similarity(6, False, True) == pytest.approx(1 - (5 * 6 - 16) / 100)
    assert similarity(0, True, True) == pytest.approx(0.9 + 0.84 + 0.86)


# grouping


def group_slowly(labels, bins, letters):
    """Compute the boxes of a hierarchy from sets of pixels (Uijlings et al. 2013, algorithm 1), without caching."""
    channels = bins.shape[2] // 9
    regions = [np.argwhere(labels == label) for label in range(labels.max() + 1)]

    def compute_histogram(pixels, columns, count):
        values = bins[pixels[:, 0], pixels[:, 1]][:, columns]
        return np.concatenate([np.bincount(column, minlength=count) for column in values.T]) / values.size

    def compute_box(pixels):
        return (*pixels.min(0)[::-1], *(pixels.max(0)[::-1] + 1))

    def compute_similarity(one, other):
        both = np.concatenate([one, other])
        left, top, right, bottom = compute_box(both)
        total = 0.0
        for letter, columns, count in (("C", range(channels), 25), ("T", range(channels, 9 * channels), 10)):
            if letter in letters:
                histograms = (compute_histogram(pixels, list(columns), count) for pixels in (one, other))
                total += np.minimum(*histograms).sum()
        if "S" in letters:
            total += 1 - len(both) / labels.size
        if "F" in letters:
            total += 1 - ((right - left) * (bottom - top) - len(both)) / labels.size
        return total

    pixel_sets = {region: set(map(tuple, pixels)) for region, pixels in enumerate(regions)}

    def is_neighbor(a, b):
        around = {(y + j, x + i) for y, x in pixel_sets[a] for j, i in itertools.product((-1, 0, 1), repeat=2)}
        return bool(around & pixel_sets[b])

    neighbors = [pair for pair in itertools.combinations(pixel_sets, 2) if is_neighbor(*pair)]
    similarities = {(a, b): compute_similarity(regions[a], regions[b]) for a, b in neighbors}
    while similarities:
        a, b = min(similarities, key=lambda pair: (-similarities[pair], pair))
        new = len(regions)
        regions.append(np.concatenate([regions[a], regions[b]]))
        pixel_sets[new] = pixel_sets[a] | pixel_sets[b]
        adjacent = {region for pair in similarities if a in pair or b in pair for region in pair} - {a, b}
        similarities = {pair: value for pair, value in similarities.items() if not {a, b} & set(pair)}
        similarities |= {
            (region, new): compute_similarity(regions[region], regions[new]) for region in sorted(adjacent)
        }
    return [list(map(int, compute_box(pixels))) for pixels in regions]


@pytest.mark.parametrize("letters", ["CTSF", "TSF", "C", "F", "S"])
def test_grouping_equals_the_algorithm_of_the_paper(random, letters):
    image = generate_noise(random)
    converted = search.convert_color_space(image, "hsv")
    labels = search.segment_image(image, 20)
    assert 10 < labels.max() < 80
    bins = grouping.compute_features(converted)
    boxes, _ = grouping.group_regions(grouping.build_regions(labels, bins), letters)
    assert boxes.tolist() == group_slowly(labels, bins, letters)


def test_a_hierarchy_contains_each_region_once(random):
    image = generate_noise(random, 80, 100)
    labels = search.segment_image(image, 30)
    regions = grouping.build_regions(labels, grouping.compute_features(search.convert_color_space(image, "hsv")))
    boxes, merges = grouping.group_regions(regions, "CTSF")
    count = len(regions.sizes)
    assert boxes.shape == (2 * count - 1, 4)
    assert boxes[-1].tolist() == [0, 0, 100, 80]
    assert sorted(merges.ravel().tolist()) == list(range(2 * count - 2))
    for num_regions in (1, 2, 7, count):
        merged = selective_search_plots.merge_regions(labels, merges, num_regions)
        assert len(np.unique(merged)) == num_regions
    last_two = selective_search_plots.merge_regions(labels, merges, 2)
    assert set(np.unique(last_two)) == set(merges[-1])


# proposals


def test_uniform_objects_are_among_the_boxes():
    objects = [(10, 10, 50, 60, (250, 30, 30)), (70, 20, 110, 80, (40, 220, 40)), (20, 65, 60, 85, (250, 250, 90))]
    boxes = {tuple(box) for box in propose_regions(draw_rectangles(*objects)).astype(int)}
    for *box, _ in objects:
        candidates = itertools.product(*(range(side - 1, side + 2) for side in box))  # smoothing may move an edge
        assert boxes & set(candidates), f"{box} is not among the boxes"
    assert (0, 0, 120, 90) in boxes


@pytest.mark.parametrize("mode", ["fast", "quality"])
def test_boxes_are_inside_the_image_unique_and_reproducible(random, mode):
    image = generate_noise(random, 70, 110)
    boxes = propose_regions(image, mode)
    assert boxes.dtype == np.float32
    assert len(np.unique(boxes, axis=0)) == len(boxes) > 50
    assert (boxes >= 0).all()
    assert (boxes[:, 2:] <= [110, 70]).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    np.testing.assert_array_equal(propose_regions(image.copy(), mode), boxes)


def test_quality_mode_contains_the_boxes_of_fast_mode(random):
    image = generate_noise(random, 70, 110)
    fast, quality = ({tuple(box) for box in propose_regions(image, mode)} for mode in ("fast", "quality"))
    assert fast < quality


def test_boxes_are_ranked_by_position_times_a_random_number():
    """Uijlings et al. 2013, section 4.2: the whole image has position 1, and a box keeps the best of its ranks."""
    whole, a, b, c = [0, 0, 9, 9], [0, 0, 1, 1], [2, 2, 5, 5], [3, 3, 4, 4]
    numbers = iter([0.9, 0.1, 0.5, 0.2, 0.9, 0.9])
    generator = SimpleNamespace(random=lambda count: np.array([next(numbers) for _ in range(count)]))
    hierarchies = [np.array([a, b, whole], np.int32), np.array([c, b, whole], np.int32)]
    # 3 · 0.9, 2 · 0.1, 1 · 0.5; 3 · 0.2, 2 · 0.9, 1 · 0.9
    assert search.rank_boxes(hierarchies, generator).tolist() == [b, whole, c, a]


def test_the_order_is_position_times_a_random_number(random):
    """Regions near the top of a hierarchy rank high, so the mean size decreases from the first tenth to the last."""
    boxes = propose_regions(generate_noise(random, 120, 160))
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    tenth = len(areas) // 10
    assert areas[:tenth].mean() > 3 * areas[-tenth:].mean()


@pytest.mark.parametrize(
    ("shape", "expected"), [((1, 1), 1), ((1, 40), None), ((300, 2), None), ((64, 64), 1), ((2, 1200), None)]
)
def test_unusual_images(random, shape, expected):
    """An image of one pixel, of one color, or with an extreme aspect ratio."""
    image = np.full((*shape, 3), 90, np.uint8) if expected else random.integers(0, 256, (*shape, 3), np.uint8)
    boxes = propose_regions(image, "quality")
    assert [0, 0, shape[1], shape[0]] in boxes.tolist()
    assert expected is None or len(boxes) == expected


def test_a_grayscale_image_has_boxes(random):
    grayscale = np.repeat(generate_noise(random)[..., :1], 3, axis=2)
    assert len(propose_regions(grayscale)) > 20


def test_a_view_of_an_array_gives_the_boxes_of_its_copy(random):
    image = generate_noise(random, 40, 60)
    np.testing.assert_array_equal(propose_regions(image[:, ::-1]), propose_regions(image[:, ::-1].copy()))


@pytest.mark.parametrize(
    "array",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8), np.zeros((4, 4, 4), np.uint8)],
)
def test_an_invalid_image_is_an_error(array):
    with pytest.raises(Error, match=r"fukami\.image\.io\.read"):
        propose_regions(array)


def test_the_error_of_an_unknown_mode_suggests_the_nearest(random):
    with pytest.raises(UsageError, match="'fast'"):
        propose_regions(generate_noise(random), "fasd")
    with pytest.raises(UsageError, match="'quality'"):
        cache.compute_proposals([], "qualty")


# the cache


def build_sample(source, name="an image"):
    empty = np.empty(0)
    return Sample(source, (0, 0), empty.reshape(0, 4), empty, empty, name)


@pytest.fixture
def images(tmp_path, random):
    """Samples of two files and an array."""
    for index in range(2):
        Image.fromarray(generate_noise(random)).save(tmp_path / f"{index}.png")
    files = [build_sample(tmp_path / f"{index}.png", f"{index}.png") for index in range(2)]
    return [*files, build_sample(generate_noise(random), "the third")]


@pytest.fixture
def computed_modes(monkeypatch):
    """The modes of the searches that were computed, not read from the cache."""
    modes = []
    monkeypatch.setattr(
        cache, "propose_regions", lambda pixels, mode: modes.append(mode) or propose_regions(pixels, mode)
    )
    return modes


def list_cache_files():
    return sorted(path for path in cache.locations.get_cache_folder().rglob("*") if path.is_file())


def test_each_process_starts_at_another_image_and_returns_the_same_boxes(images, computed_modes, monkeypatch):
    expected = [boxes.tolist() for boxes in cache.compute_proposals(images)]
    for path in list_cache_files():
        path.unlink()
    monkeypatch.setattr(cache, "count_cpus", lambda: 1)  # one thread, in order
    order = []
    load_or_compute = cache._load_or_compute
    monkeypatch.setattr(
        cache, "_load_or_compute", lambda image, *args: order.append(image.name) or load_or_compute(image, *args)
    )
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert [boxes.tolist() for boxes in cache.compute_proposals(images)] == expected
    assert order == ["1.png", "the third", "0.png"]


def test_proposals_are_computed_once(images, computed_modes):
    first = cache.compute_proposals(images)
    assert computed_modes == ["fast"] * 3
    for boxes, image in zip(first, images, strict=True):
        pixels = np.asarray(Image.open(image.source)) if isinstance(image.source, Path) else image.source
        np.testing.assert_array_equal(boxes, propose_regions(pixels))
    for boxes, cached in zip(first, cache.compute_proposals(images), strict=True):
        np.testing.assert_array_equal(boxes, cached)
        assert cached.dtype == np.float32
    assert len(computed_modes) == 3
    cache.compute_proposals(images, "quality")
    assert computed_modes == ["fast"] * 3 + ["quality"] * 3
    assert len(list_cache_files()) == 6


def test_proposals_of_a_changed_image_or_another_version_are_recomputed(images, computed_modes, random, monkeypatch):
    cache.compute_proposals(images)
    Image.fromarray(generate_noise(random, 44, 48)).save(images[1].source)
    assert cache.compute_proposals(images)[1][:, 2:].max(0).tolist() == [48, 44]
    assert len(computed_modes) == 4
    images[2].source[0, 0] += 1
    cache.compute_proposals(images)
    assert len(computed_modes) == 5
    monkeypatch.setattr(cache, "VERSION", cache.VERSION + 1)
    cache.compute_proposals(images)
    assert len(computed_modes) == 8


def list_damages():
    """Yield the name of each kind of damage, and a function that damages a cache file."""
    yield "empty", lambda path: path.write_bytes(b"")
    yield "cut off", lambda path: path.write_bytes(path.read_bytes()[:-40])
    yield "one bit", lambda path: path.write_bytes(flip_bit(path.read_bytes(), 70))
    yield "text", lambda path: path.write_text("not boxes")
    yield "an array", lambda path: path.write_bytes(save_array(np.zeros(3)))
    yield "objects", lambda path: np.savez(path, boxes=np.array([{}]), key=np.array(path.stem))
    yield "floats", lambda path: np.savez(path, boxes=np.zeros((2, 4)), key=np.array(path.stem))
    yield "a list", lambda path: np.savez(path, boxes=np.zeros(4, np.int32), key=np.array(path.stem))
    yield "key of another image", lambda path: np.savez(path, boxes=np.zeros((2, 4), np.int32), key=np.array("0" * 32))


def save_array(array):
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def flip_bit(content, index):
    return content[:index] + bytes([content[index] ^ 1]) + content[index + 1 :]


@pytest.mark.parametrize("damage", [damage for _, damage in list_damages()], ids=[name for name, _ in list_damages()])
def test_proposals_with_a_corrupted_cache_file_are_computed_again(images, computed_modes, damage):
    (first,) = cache.compute_proposals(images[:1])
    (path,) = list_cache_files()
    damage(path)
    np.testing.assert_array_equal(cache.compute_proposals(images[:1])[0], first)
    assert len(computed_modes) == 2
    cache.compute_proposals(images[:1])
    assert len(computed_modes) == 2
    assert list_cache_files() == [path]


def test_proposals_computed_before_an_error_are_cached(images, computed_modes, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "count_cpus", lambda: 1)
    (tmp_path / "1.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(Error, match=r"1\.png"):
        cache.compute_proposals(images)
    assert len(list_cache_files()) >= 1
    with pytest.raises(Error, match=r"gone\.png"):
        cache.compute_proposals([build_sample(tmp_path / "gone.png", "gone.png")])
    with pytest.raises(Error, match="the third: an image should be"):
        cache.compute_proposals([build_sample(np.zeros((3, 3), np.uint8), "the third")])


def test_the_error_of_an_unwritable_cache_folder_names_it(images, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(Error, match=r"file/fukami/proposals cannot be written .*XDG_CACHE_HOME"):
        cache.compute_proposals(images)


def test_rotated_and_grayscale_files(tmp_path, random):
    """A file with an EXIF rotation is searched upright, and a grayscale file as RGB."""
    pixels = generate_noise(random)
    rotated = Image.fromarray(np.rot90(pixels))
    exif = rotated.getexif()
    exif[0x0112] = 6  # to be rotated by 90 degrees clockwise
    rotated.save(tmp_path / "rotated.png", exif=exif)
    Image.fromarray(pixels[..., 0]).save(tmp_path / "grayscale.png")
    samples = [build_sample(tmp_path / "rotated.png"), build_sample(tmp_path / "grayscale.png")]
    proposals = cache.compute_proposals(samples)
    np.testing.assert_array_equal(proposals[0], propose_regions(pixels))
    np.testing.assert_array_equal(proposals[1], propose_regions(np.repeat(pixels[..., :1], 3, axis=2)))


# the command line


@pytest.fixture
def image_files(tmp_path, random):
    """Two image files of the same name in two folders, and a file without suffix."""
    for name in ("a/one.png", "b/one.png"):
        (tmp_path / name).parent.mkdir()
        Image.fromarray(generate_noise(random)).save(tmp_path / name)
    (tmp_path / "notes").write_text("")
    return tmp_path


def test_propose_prints_and_draws(fukami, image_files):
    result = fukami("propose", "a/one.png", "--max-boxes", "7")
    assert result.status == 0, result.err
    (line,) = result.json
    expected = propose_regions(np.asarray(Image.open(image_files / "a/one.png")))
    assert line == {
        "file": "a/one.png",
        "count": len(expected),
        "boxes": expected[:7].astype(int).tolist(),
        "figure": "proposals/one.png",
    }
    with Image.open(image_files / "proposals/one.png") as image:
        assert image.width == 900 + 2 * selective_search_plots.MARGIN
    assert len(fukami("propose", "a/one.png", "--mode", "quality").json[0]["boxes"]) == 100


def test_propose_draws_the_stages_of_a_folder(fukami, image_files):
    result = fukami("propose", "a", "b", "--stages", "--out", "all")
    assert [line["figure"] for line in result.json] == ["all/one.png", "all/one-2.png"]
    with Image.open(image_files / "all/one-2.png") as image:
        assert image.width == 2 * 560 + 3 * selective_search_plots.MARGIN
    assert fukami("propose", "a", "--out", "new/here.png").json[0]["figure"] == "new/here.png"
    assert (image_files / "new/here.png").is_file()


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (28, 28)])
def test_unusual_images_are_drawn(size):
    image = Image.new("L", size, 77)
    proposals = propose_regions(np.asarray(image.convert("RGB")))
    min_width = selective_search_plots.MIN_PANEL_WIDTH
    assert selective_search_plots.draw_proposals(image, proposals).width >= min_width
    assert selective_search_plots.draw_stages(image, proposals, "quality", 1).width >= 2 * min_width


def test_propose_does_not_overwrite_images(fukami, image_files):
    before = [(image_files / name / "one.png").read_bytes() for name in "ab"]
    assert [line["figure"] for line in fukami("propose", "a", "b", "--out", "b").json] == ["b/one-2.png", "b/one-3.png"]
    assert [(image_files / name / "one.png").read_bytes() for name in "ab"] == before


def test_propose_reports_unreadable_files_and_continues(fukami, image_files):
    (image_files / "text.png").write_text("not an image")
    result = fukami("propose", "text.png", "a/one.png", "gone.png")
    assert result.status == 1
    assert [json.loads(line)["file"] for line in result.out.splitlines()] == ["a/one.png"]
    assert all(name in result.err for name in ("text.png", "gone.png", "2 of 3"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "at least one image"),
        (["a/one.png", "--max-boxes", "0"], "--max-boxes should be at least 1"),
        (["a/one.png", "b/one.png", "--out", "x.png"], "folder for 2 images"),
        (["a/one.png", "--mode", "slow"], "quality"),
        (["a/one.png", "--out", "a/one.png"], "would overwrite the image"),
        (["a/one.png", "--out", "notes"], "notes is a file; --out should be a folder"),
    ],
)
def test_invalid_usage_of_propose(fukami, image_files, arguments, message):
    result = fukami("propose", *arguments)
    assert result.status == 2
    assert message in result.err
    assert result.out == ""

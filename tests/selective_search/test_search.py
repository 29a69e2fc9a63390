"""Selective Search against the paper worked out slowly, against scikit-image's segmentation, and by hand."""

import io
import itertools
import json
from pathlib import Path

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


def blocks(*rectangles, size=(120, 90), ground=(40, 90, 160)):
    """An image of flat rectangles ``(left, top, right, bottom, colour)`` on a flat ground."""
    pixels = np.empty((size[1], size[0], 3), np.uint8)
    pixels[:] = ground
    for left, top, right, bottom, colour in rectangles:
        pixels[top:bottom, left:right] = colour
    return pixels


def mottled(random, height=40, width=52):
    """An image of blurred noise: regions of all sizes, and no two similarities alike."""
    small = random.integers(0, 256, (height // 4, width // 4, 3), np.uint8)
    smooth = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(smooth).astype(int) + random.integers(-9, 10, (height, width, 3)), 0, 255).astype(
        np.uint8
    )


# segmentation


def same_partition(one, other):
    """Whether two labellings divide the pixels alike, whatever the numbers."""
    both = np.unique(np.stack([one.ravel(), other.ravel()]), axis=1)
    return both.shape[1] == len(np.unique(one)) == len(np.unique(other))


@pytest.mark.parametrize(("scale", "smallest"), [(20, 1), (100, 1), (100, 30), (250, 60)])
def test_segmentation_is_that_of_scikit_image(random, scale, smallest):
    image = random.integers(0, 256, (61, 83, 3)).astype(np.float32)
    ours = superpixels.segment_graph(
        superpixels.build_edges(image.transpose(2, 0, 1).copy()), (61, 83), scale, smallest
    )
    theirs = felzenszwalb(image.astype(np.float64) / 255, scale=scale, sigma=0, min_size=smallest)
    assert ours.max() >= 5
    assert same_partition(ours, theirs)


def test_a_gaussian_is_that_of_scipy(random):
    from scipy.ndimage import gaussian_filter

    plane = random.random((17, 23), np.float32)
    bell, slope = superpixels.build_gaussian_kernel(0.8), superpixels.build_gaussian_kernel(1.0, derivative=True)
    smooth = superpixels.convolve_separable(plane[None], bell, bell)[0]
    np.testing.assert_allclose(smooth, gaussian_filter(plane, 0.8, mode="nearest"), atol=1e-5)
    derived = superpixels.convolve_separable(plane[None], superpixels.build_gaussian_kernel(1.0), slope)[0]
    np.testing.assert_allclose(derived, gaussian_filter(plane, 1, order=(0, 1), mode="nearest"), atol=1e-5)


def test_flat_regions_are_found_whole_and_counted_in_reading_order():
    image = blocks((10, 10, 50, 60, (250, 30, 30)), (70, 20, 110, 80, (40, 220, 40)))
    labels = search.segment_image(image, 50)
    assert labels[0, 0] == 0
    assert labels[30, 30] != labels[50, 90]
    assert list(dict.fromkeys(labels.ravel())) == list(range(labels.max() + 1))


# colour spaces


def test_colours_are_those_of_scikit_image(random):
    image = random.integers(0, 256, (31, 29, 3), np.uint8)
    image[:3] = image[:3, :, :1]  # grey, of no hue
    hsv = color.rgb2hsv(image) * 255
    np.testing.assert_allclose(search.convert_color_space(image, "hsv"), hsv.transpose(2, 0, 1), atol=0.01)
    np.testing.assert_allclose(search.convert_color_space(image, "hue")[0], hsv[..., 0], atol=0.01)
    lab = color.rgb2lab(image) * [2.55, 1, 1] + [0, 128, 128]
    np.testing.assert_allclose(search.convert_color_space(image, "lab"), lab.transpose(2, 0, 1), atol=0.1)


def test_shares_of_red_and_green_and_the_intensity():
    image = np.array([[[60, 30, 10], [0, 0, 0], [255, 255, 255]]], np.uint8)
    planes = search.convert_color_space(image, "rgi")
    np.testing.assert_allclose(planes[:, 0, 0], [0.6 * 255, 0.3 * 255, 100 / 3], rtol=1e-5)
    np.testing.assert_allclose(planes[:, 0, 1], 0)
    np.testing.assert_allclose(planes[:, 0, 2], [85, 85, 255], rtol=1e-5)
    np.testing.assert_allclose(search.convert_color_space(image, "intensity")[0, 0], [100 / 3, 0, 255], rtol=1e-5)


def test_an_unknown_space_is_answered_with_the_nearest(random):
    with pytest.raises(UsageError, match="'hsv'"):
        search.convert_color_space(mottled(random), "hsw")


# regions


def test_regions_by_hand():
    """Two halves, the left one dark and the right one bright, of one channel."""
    labels = np.repeat(np.array([[0, 0, 0, 1]], np.int32), 2, axis=0)
    plane = np.where(labels, 200, 10).astype(np.float32)[None]
    regions = grouping.describe_regions(labels, grouping.compute_features(plane))
    assert regions.sizes.tolist() == [6, 2]
    assert regions.boxes.tolist() == [[0, 0, 3, 2], [3, 0, 4, 2]]
    assert regions.neighbors.tolist() == [[0, 1]]
    assert regions.histograms.shape == (2, 25 + 80)
    np.testing.assert_allclose(regions.histograms[:, :25].sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(regions.histograms[:, 25:].sum(1), 1, rtol=1e-6)
    assert regions.histograms[0, 10 * 25 // 256] == 1
    assert regions.histograms[1, 200 * 25 // 256] == 1


def test_derivatives_of_an_edge_fall_into_the_directions_that_see_it():
    """Brighter to the right: of eight directions 45 degrees apart, three see it, those beside the first by 1/√2."""
    plane = np.repeat(np.where(np.arange(20) < 10, 0, 255)[None], 20, axis=0).astype(np.float32)[None]
    bins = grouping.compute_features(plane)[10, 9, 1:]
    levels = sorted(bins.tolist(), reverse=True)
    assert levels == [9, 7, 7, 0, 0, 0, 0, 0]
    opposite = grouping.compute_features(255 - plane)[10, 9, 1:]
    assert opposite.tolist() == np.roll(bins, 4).tolist()


def test_similarities_by_hand():
    """The paper's four formulas on two regions whose numbers are chosen."""
    one, other = np.zeros((2, 6), np.float32)
    one[[0, 1, 3]], other[[0, 2, 3, 5]] = [0.7, 0.3, 1], [0.5, 0.5, 0.4, 0.6]
    sizes, boxes = np.array([6, 10]), np.array([[0, 0, 3, 2], [1, 2, 5, 6]], np.int32)
    area = 100

    def similarity(first, by_size, by_fill):
        given = (sizes, boxes, np.stack([one, other])[:, first:], area, by_size, by_fill)
        return grouping._compute_similarity(0, 1, *given)

    assert similarity(0, False, False) == pytest.approx(0.5 + 0.4)
    assert similarity(3, False, False) == pytest.approx(0.4)
    assert similarity(6, True, False) == pytest.approx(1 - 16 / 100)
    assert similarity(6, False, True) == pytest.approx(1 - (5 * 6 - 16) / 100)
    assert similarity(0, True, True) == pytest.approx(0.9 + 0.84 + 0.86)


# grouping


def slowly_grouped(labels, bins, letters):
    """Algorithm 1 of the paper as it is written: the boxes of a hierarchy, from sets of pixels and nothing kept."""
    channels = bins.shape[2] // 9
    regions = [np.argwhere(labels == number) for number in range(labels.max() + 1)]

    def histogram(pixels, columns, count):
        values = bins[pixels[:, 0], pixels[:, 1]][:, columns]
        return np.concatenate([np.bincount(column, minlength=count) for column in values.T]) / values.size

    def box(pixels):
        return (*pixels.min(0)[::-1], *(pixels.max(0)[::-1] + 1))

    def similarity(one, other):
        both = np.concatenate([one, other])
        left, top, right, bottom = box(both)
        found = 0.0
        for letter, columns, count in (("C", range(channels), 25), ("T", range(channels, 9 * channels), 10)):
            if letter in letters:
                found += np.minimum(*(histogram(each, list(columns), count) for each in (one, other))).sum()
        if "S" in letters:
            found += 1 - len(both) / labels.size
        if "F" in letters:
            found += 1 - ((right - left) * (bottom - top) - len(both)) / labels.size
        return found

    where = {number: set(map(tuple, pixels)) for number, pixels in enumerate(regions)}

    def touch(a, b):
        around = {(y + j, x + i) for y, x in where[a] for j, i in itertools.product((-1, 0, 1), repeat=2)}
        return bool(around & where[b])

    similar = {(a, b): similarity(regions[a], regions[b]) for a, b in itertools.combinations(where, 2) if touch(a, b)}
    while similar:
        a, b = min(similar, key=lambda pair: (-similar[pair], pair))
        new = len(regions)
        regions.append(np.concatenate([regions[a], regions[b]]))
        where[new] = where[a] | where[b]
        around = {number for pair in similar if a in pair or b in pair for number in pair} - {a, b}
        similar = {pair: value for pair, value in similar.items() if not {a, b} & set(pair)}
        similar |= {(number, new): similarity(regions[number], regions[new]) for number in sorted(around)}
    return [list(map(int, box(pixels))) for pixels in regions]


@pytest.mark.parametrize("letters", ["CTSF", "TSF", "C", "F", "S"])
def test_grouping_is_the_algorithm_of_the_paper(random, letters):
    image = mottled(random)
    planes = search.convert_color_space(image, "hsv")
    labels = search.segment_image(image, 20)
    assert 10 < labels.max() < 80
    bins = grouping.compute_features(planes)
    boxes, _ = grouping.group_regions(grouping.describe_regions(labels, bins), letters)
    assert boxes.tolist() == slowly_grouped(labels, bins, letters)


def test_a_hierarchy_holds_each_region_once(random):
    image = mottled(random, 80, 100)
    labels = search.segment_image(image, 30)
    regions = grouping.describe_regions(labels, grouping.compute_features(search.convert_color_space(image, "hsv")))
    boxes, made = grouping.group_regions(regions, "CTSF")
    count = len(regions.sizes)
    assert boxes.shape == (2 * count - 1, 4)
    assert boxes[-1].tolist() == [0, 0, 100, 80]
    assert sorted(made.ravel().tolist()) == list(range(2 * count - 2))
    for left in (1, 2, 7, count):
        assert len(np.unique(selective_search_plots.merge_regions(labels, made, left))) == left
    halves = selective_search_plots.merge_regions(labels, made, 2)
    assert set(np.unique(halves)) == set(made[-1])


# proposals


def test_flat_objects_are_among_the_boxes():
    objects = [(10, 10, 50, 60, (250, 30, 30)), (70, 20, 110, 80, (40, 220, 40)), (20, 65, 60, 85, (250, 250, 90))]
    boxes = {tuple(box) for box in propose_regions(blocks(*objects)).astype(int)}
    for *box, _ in objects:
        near = itertools.product(*(range(side - 1, side + 2) for side in box))  # the Gaussian may move an edge
        assert boxes & set(near), f"{box} is not among the boxes"
    assert (0, 0, 120, 90) in boxes


@pytest.mark.parametrize("mode", ["fast", "quality"])
def test_boxes_are_inside_once_and_the_same_each_time(random, mode):
    image = mottled(random, 70, 110)
    boxes = propose_regions(image, mode)
    assert boxes.dtype == np.float32
    assert len(np.unique(boxes, axis=0)) == len(boxes) > 50
    assert (boxes >= 0).all()
    assert (boxes[:, 2:] <= [110, 70]).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    np.testing.assert_array_equal(propose_regions(image.copy(), mode), boxes)


def test_quality_has_all_that_fast_has(random):
    image = mottled(random, 70, 110)
    fast, quality = ({tuple(box) for box in propose_regions(image, mode)} for mode in ("fast", "quality"))
    assert fast < quality


def test_the_order_is_position_times_a_random_number(random):
    """Regions near the top of a hierarchy come early: the mean size falls from the first tenth to the last."""
    boxes = propose_regions(mottled(random, 120, 160))
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    tenth = len(areas) // 10
    assert areas[:tenth].mean() > 3 * areas[-tenth:].mean()


@pytest.mark.parametrize(
    ("shape", "expected"), [((1, 1), 1), ((1, 40), None), ((300, 2), None), ((64, 64), 1), ((2, 1200), None)]
)
def test_strange_images(random, shape, expected):
    """One pixel, one colour, and sides that are far from alike."""
    image = np.full((*shape, 3), 90, np.uint8) if expected else random.integers(0, 256, (*shape, 3), np.uint8)
    boxes = propose_regions(image, "quality")
    assert [0, 0, shape[1], shape[0]] in boxes.tolist()
    assert expected is None or len(boxes) == expected


def test_a_grey_image_has_boxes(random):
    grey = np.repeat(mottled(random)[..., :1], 3, axis=2)
    assert len(propose_regions(grey)) > 20


def test_a_view_of_a_larger_array_is_taken_as_it_is(random):
    image = mottled(random, 40, 60)
    np.testing.assert_array_equal(propose_regions(image[:, ::-1]), propose_regions(image[:, ::-1].copy()))


@pytest.mark.parametrize(
    "given",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8), np.zeros((4, 4, 4), np.uint8)],
)
def test_what_is_no_image_is_refused(given):
    with pytest.raises(Error, match=r"fukami\.image\.io\.read"):
        propose_regions(given)


def test_an_unknown_mode_is_answered_with_the_nearest(random):
    with pytest.raises(UsageError, match="'fast'"):
        propose_regions(mottled(random), "fasd")
    with pytest.raises(UsageError, match="'quality'"):
        cache.compute_proposals([], "qualty")


# the cache


def annotated(source, name="an image"):
    none = np.empty(0)
    return Sample(source, (0, 0), none.reshape(0, 4), none, none, name)


@pytest.fixture
def images(tmp_path, random):
    """Two files and an array."""
    for number in range(2):
        Image.fromarray(mottled(random)).save(tmp_path / f"{number}.png")
    files = [annotated(tmp_path / f"{number}.png", f"{number}.png") for number in range(2)]
    return [*files, annotated(mottled(random), "the third")]


@pytest.fixture
def searched(monkeypatch):
    """The modes of the searches that were made."""
    made = []
    monkeypatch.setattr(
        cache, "propose_regions", lambda pixels, mode: made.append(mode) or propose_regions(pixels, mode)
    )
    return made


def kept():
    return sorted(path for path in cache.locations.get_cache_folder().rglob("*") if path.is_file())


def test_each_process_begins_elsewhere_and_has_the_same(images, searched, monkeypatch):
    expected = [boxes.tolist() for boxes in cache.compute_proposals(images)]
    for path in kept():
        path.unlink()
    monkeypatch.setattr(cache, "count_cpus", lambda: 1)  # one thread, in order
    begun = []
    one = cache._load_or_compute
    monkeypatch.setattr(cache, "_load_or_compute", lambda image, *rest: begun.append(image.name) or one(image, *rest))
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert [boxes.tolist() for boxes in cache.compute_proposals(images)] == expected
    assert begun == ["1.png", "the third", "0.png"]


def test_proposals_are_found_once(images, searched):
    first = cache.compute_proposals(images)
    assert searched == ["fast"] * 3
    for boxes, each in zip(first, images, strict=True):
        pixels = np.asarray(Image.open(each.source)) if isinstance(each.source, Path) else each.source
        np.testing.assert_array_equal(boxes, propose_regions(pixels))
    for boxes, again in zip(first, cache.compute_proposals(images), strict=True):
        np.testing.assert_array_equal(boxes, again)
        assert again.dtype == np.float32
    assert len(searched) == 3
    cache.compute_proposals(images, "quality")
    assert searched == ["fast"] * 3 + ["quality"] * 3
    assert len(kept()) == 6


def test_a_changed_image_or_another_version_is_searched_again(images, searched, random, monkeypatch):
    cache.compute_proposals(images)
    Image.fromarray(mottled(random, 44, 48)).save(images[1].source)
    assert cache.compute_proposals(images)[1][:, 2:].max(0).tolist() == [48, 44]
    assert len(searched) == 4
    images[2].source[0, 0] += 1
    cache.compute_proposals(images)
    assert len(searched) == 5
    monkeypatch.setattr(cache, "VERSION", cache.VERSION + 1)
    cache.compute_proposals(images)
    assert len(searched) == 8


def damages():
    yield "empty", lambda path: path.write_bytes(b"")
    yield "cut off", lambda path: path.write_bytes(path.read_bytes()[:-40])
    yield "one bit", lambda path: path.write_bytes(flipped(path.read_bytes(), 70))
    yield "text", lambda path: path.write_text("not boxes")
    yield "an array", lambda path: path.write_bytes(saved(np.zeros(3)))
    yield "objects", lambda path: np.savez(path, boxes=np.array([{}]), key=np.array(path.stem))
    yield "floats", lambda path: np.savez(path, boxes=np.zeros((2, 4)), key=np.array(path.stem))
    yield "a list", lambda path: np.savez(path, boxes=np.zeros(4, np.int32), key=np.array(path.stem))
    yield "of another", lambda path: np.savez(path, boxes=np.zeros((2, 4), np.int32), key=np.array("0" * 32))


def saved(array):
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def flipped(content, at):
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize("damage", [damage for _, damage in damages()], ids=[name for name, _ in damages()])
def test_a_damaged_file_is_not_trusted(images, searched, damage):
    (first,) = cache.compute_proposals(images[:1])
    (path,) = kept()
    damage(path)
    np.testing.assert_array_equal(cache.compute_proposals(images[:1])[0], first)
    assert len(searched) == 2
    cache.compute_proposals(images[:1])
    assert len(searched) == 2
    assert kept() == [path]


def test_what_was_found_before_a_broken_image_is_kept(images, searched, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "count_cpus", lambda: 1)
    (tmp_path / "1.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(Error, match=r"1\.png"):
        cache.compute_proposals(images)
    assert len(kept()) >= 1
    with pytest.raises(Error, match=r"gone\.png"):
        cache.compute_proposals([annotated(tmp_path / "gone.png", "gone.png")])
    with pytest.raises(Error, match="the third: an image should be"):
        cache.compute_proposals([annotated(np.zeros((3, 3), np.uint8), "the third")])


def test_a_folder_that_cannot_be_written_is_named(images, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(Error, match=r"file/fukami/proposals cannot be written .*XDG_CACHE_HOME"):
        cache.compute_proposals(images)


def test_upright_and_grey_files(tmp_path, random):
    """The boxes of a turned photograph are those of the upright one; a grey file is searched as its colours are."""
    pixels = mottled(random)
    turned = Image.fromarray(np.rot90(pixels))
    exif = turned.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    turned.save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(pixels[..., 0]).save(tmp_path / "grey.png")
    found = cache.compute_proposals([annotated(tmp_path / "turned.png"), annotated(tmp_path / "grey.png")])
    np.testing.assert_array_equal(found[0], propose_regions(pixels))
    np.testing.assert_array_equal(found[1], propose_regions(np.repeat(pixels[..., :1], 3, axis=2)))


# the command


@pytest.fixture
def drawn(tmp_path, random):
    for name in ("a/one.png", "b/one.png"):
        (tmp_path / name).parent.mkdir()
        Image.fromarray(mottled(random)).save(tmp_path / name)
    (tmp_path / "notes").write_text("")
    return tmp_path


def test_propose_prints_and_draws(fukami, drawn):
    answer = fukami("propose", "a/one.png", "--max-boxes", "7")
    assert answer.status == 0, answer.err
    (line,) = answer.json
    expected = propose_regions(np.asarray(Image.open(drawn / "a/one.png")))
    assert line == {
        "file": "a/one.png",
        "count": len(expected),
        "boxes": expected[:7].astype(int).tolist(),
        "figure": "proposals/one.png",
    }
    with Image.open(drawn / "proposals/one.png") as image:
        assert image.width == 900 + 2 * selective_search_plots.MARGIN
    assert len(fukami("propose", "a/one.png", "--mode", "quality").json[0]["boxes"]) == 100


def test_propose_draws_the_stages_of_a_folder(fukami, drawn):
    answer = fukami("propose", "a", "b", "--stages", "--out", "all")
    assert [line["figure"] for line in answer.json] == ["all/one.png", "all/one-2.png"]
    with Image.open(drawn / "all/one-2.png") as image:
        assert image.width == 2 * 560 + 3 * selective_search_plots.MARGIN
    assert fukami("propose", "a", "--out", "new/here.png").json[0]["figure"] == "new/here.png"
    assert (drawn / "new/here.png").is_file()


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (28, 28)])
def test_strange_images_are_drawn(size):
    image = Image.new("L", size, 77)
    found = propose_regions(np.asarray(image.convert("RGB")))
    assert selective_search_plots.draw_proposals(image, found).width >= selective_search_plots.MIN_PANEL_WIDTH
    assert (
        selective_search_plots.draw_stages(image, found, "quality", 1).width
        >= 2 * selective_search_plots.MIN_PANEL_WIDTH
    )


def test_propose_overwrites_no_image(fukami, drawn):
    before = [(drawn / name / "one.png").read_bytes() for name in "ab"]
    assert [line["figure"] for line in fukami("propose", "a", "b", "--out", "b").json] == ["b/one-2.png", "b/one-3.png"]
    assert [(drawn / name / "one.png").read_bytes() for name in "ab"] == before


def test_propose_names_what_it_cannot_read_and_goes_on(fukami, drawn):
    (drawn / "text.png").write_text("not an image")
    answer = fukami("propose", "text.png", "a/one.png", "gone.png")
    assert answer.status == 1
    assert [json.loads(line)["file"] for line in answer.out.splitlines()] == ["a/one.png"]
    assert all(name in answer.err for name in ("text.png", "gone.png", "2 of 3"))


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ([], "at least one image"),
        (["a/one.png", "--max-boxes", "0"], "--max-boxes should be at least 1"),
        (["a/one.png", "b/one.png", "--out", "x.png"], "folder for 2 images"),
        (["a/one.png", "--mode", "slow"], "quality"),
        (["a/one.png", "--out", "a/one.png"], "would overwrite the image"),
        (["a/one.png", "--out", "notes"], "notes is a file; --out should be a folder"),
    ],
)
def test_wrong_usage_of_propose(fukami, drawn, words, hint):
    answer = fukami("propose", *words)
    assert answer.status == 2
    assert hint in answer.err
    assert answer.out == ""

"""Segmentation: its judgement by hand, its answers, its drawings, and the command line from data to film."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.metrics import confusion_matrix, jaccard_score
from torch import nn
from torch.nn import functional as F

import fukami as package
from fukami import Error, UsageError
from fukami.data import scenes
from fukami.data.samples import PaddedBatch
from fukami.engine.runtime import Runtime
from fukami.image import io as image_io
from fukami.image.transform import ResizeTransform
from fukami.segmentation import data as segmentation_data
from fukami.segmentation import plots as segmentation_plots
from fukami.segmentation import task as pixels
from fukami.segmentation.metrics import SegmentationResults, compute_boundary_f1, find_boundaries
from fukami.segmentation.task import SegmentationTask, compute_class_weights, compute_tile_starts, resize_and_argmax

SMALL = {"width_multiplier": 1 / 8, "hidden": 16, "dropout": 0.0}


def ready(network, labels, **options):
    """A task on the CPU."""
    task = SegmentationTask(network, labels, ResizeTransform(0, 0), **options)
    task.setup(Runtime.start("cpu", "float32"))
    return task


# judgement


def test_metrics_by_hand():
    """Two images of three classes, one of which never occurs; what is unlabelled counts nothing."""
    found = SegmentationResults(("road", "car", "sign"))
    found.update(7, np.array([[1, 1, 2, 2]], np.uint8), np.array([[1, 1, 1, 2]], np.uint8))
    found.update(3, np.array([[2, 3, 1, 1]], np.uint8), np.array([[2, 2, 0, 0]], np.uint8))
    # road: 2 right of 3, 3 in the union; car: 2 right of 3, taken for 3, 4 in the union
    result = found.compute_metrics()
    assert result["accuracy"] == 4 / 6
    assert result["class_accuracy"] == pytest.approx(2 / 3)
    assert result["miou"] == pytest.approx((2 / 3 + 2 / 4) / 2)
    assert result["fw_iou"] == pytest.approx(0.5 * 2 / 3 + 0.5 * 2 / 4)
    assert (result["count"], result["pixels"]) == (2, 6)
    assert list(result["classes"]) == ["road", "car"]
    assert result["classes"]["car"] == {"iou": 0.5, "accuracy": pytest.approx(2 / 3), "pixels": 3}
    assert found.image_scores[7][0] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found.rank_images() == [7, 3]


def test_metrics_agree_with_scikit_learn(random):
    truth, answer = random.integers(0, 6, (20, 30)).astype(np.uint8), random.integers(1, 6, (20, 30)).astype(np.uint8)
    found = SegmentationResults("abcde")
    found.update(0, answer, truth)
    there = truth > 0
    assert np.array_equal(found.confusion_matrix, confusion_matrix(truth[there], answer[there], labels=range(1, 6)))
    result = found.compute_metrics()
    ious = jaccard_score(truth[there], answer[there], average=None)
    assert [each["iou"] for each in result["classes"].values()] == pytest.approx(ious.tolist())
    assert result["miou"] == pytest.approx(jaccard_score(truth[there], answer[there], average="macro"))
    assert result["fw_iou"] == pytest.approx(jaccard_score(truth[there], answer[there], average="weighted"))


def test_nothing_to_judge():
    with pytest.raises(Error, match="no labelled pixel"):
        SegmentationResults("ab").compute_metrics()


def halves(size, at):
    """A map of two classes that meet at a column."""
    found = np.ones((size, size), np.uint8)
    found[:, at:] = 2
    return found


def test_borders_lie_between_two_classes():
    """Not at the end of the image, nor around what is unlabelled."""
    own = halves(6, 3)
    own[:2] = 0
    points, classes = find_boundaries(own)
    assert points.tolist() == [[row, column] for row in range(2, 6) for column in (2, 3)]
    assert classes.tolist() == [1, 2] * 4


@pytest.mark.parametrize(("off", "expected"), [(0, 1.0), (1, 1.0), (2, 1.0), (3, 0.0)])
def test_borders_may_be_off_by_a_share_of_the_diagonal(off, expected):
    """0.75 % of 200√2 is 2.1 pixels."""
    assert compute_boundary_f1(halves(200, 100 + off), halves(200, 100)) == expected


def test_the_boundary_measure_by_hand():
    """A border of 200 pixels, of which the answer has 100 and 50 others, for both classes."""
    truth, answer = halves(200, 100), np.ones((200, 200), np.uint8)
    answer[:100, 100:] = 2  # its border: 100 upright, and 100 across
    recall = (100 + 3) / 200  # 100, and three more rows whose nearest found pixel is close enough
    found = compute_boundary_f1(answer, truth)
    # the class on the left: found 199 or so pixels, of which 102 lie near the true border
    (ours, seen), (theirs, true) = find_boundaries(answer), find_boundaries(truth)
    measures = []
    for label in (1, 2):
        mine, real = ours[seen == label], theirs[true == label]
        close = [[math.dist(a, b) <= 0.0075 * 200 * 2**0.5 for b in real.tolist()] for a in mine.tolist()]
        precision = np.any(close, 1).mean()
        covered = np.any(close, 0).mean()
        measures.append(2 * precision * covered / (precision + covered))
        assert covered == pytest.approx(recall, abs=0.011)
    assert found == pytest.approx(np.mean(measures))


def test_borders_that_are_found_in_an_unlabelled_area_count_nothing():
    """There may be any class; where there are labels, the answer is right."""
    truth, answer = halves(200, 100), halves(200, 100)
    truth[:80], answer[:80, ::2] = 0, 2
    found = SegmentationResults("ab")
    found.update(0, answer, truth)
    assert found.compute_metrics()["boundary_f1"] == 1.0


def test_the_boundary_measure_of_what_was_not_found_or_has_no_border():
    assert compute_boundary_f1(np.ones((50, 50), np.uint8), halves(50, 20)) == 0.0
    assert math.isnan(compute_boundary_f1(halves(50, 20), np.ones((50, 50), np.uint8)))


def test_counts_of_several_processes_are_joined():
    one, other = SegmentationResults("ab"), SegmentationResults("ab")
    one.update(0, halves(4, 2), halves(4, 2))
    other.update(1, halves(4, 1), halves(4, 2))
    whole = SegmentationResults("ab")
    for number, at in ((0, 2), (1, 1)):
        whole.update(number, halves(4, at), halves(4, 2))
    one.merge([one, other])
    assert one.compute_metrics() == whole.compute_metrics()


def test_median_frequency_balancing_by_hand():
    """Frequencies of 1/2, 1/4 and 1/8 of the images that have the class; a class that never occurs weighs nothing."""
    counts = np.array([[50, 25, 5, 0], [100, 100, 40, 0]])
    assert compute_class_weights(counts).tolist() == [0.5, 1.0, 2.0, 0.0]


@pytest.mark.parametrize(("balance", "power"), [("none", None), ("root", 0.5), ("median", 1)])
def test_classes_are_weighed_by_a_power_of_median_frequency_balancing(mask_files, balance, power):
    recipe = package.get_recipe("segnet-basic")(data=str(mask_files), filters=4, batch_size=2, balance=balance)
    data = recipe.load_data()
    task = recipe.build_task(data.labels)
    task.setup(Runtime.start("cpu", "float32"))
    next(iter(task.iterate_batches(data.train)))
    if power is None:
        assert task.class_weights is None
    else:
        torch.testing.assert_close(
            task.class_weights, torch.from_numpy(compute_class_weights(data.train.count_class_pixels())) ** power
        )


# the network's answers


def test_enlarged_scores_are_compared_as_if_all_were_there(monkeypatch):
    torch.manual_seed(0)
    scores = torch.randn(5, 13, 17)
    expected = F.interpolate(scores[None], (61, 90), mode="bilinear", align_corners=False)[0].argmax(0) + 1
    for strip in (2**25, 1000):
        monkeypatch.setattr(pixels, "MAX_STRIP_SCORES", strip)
        assert torch.equal(resize_and_argmax(scores, 61, 90).long(), expected)
    assert torch.equal(resize_and_argmax(scores, 13, 17).long(), scores.argmax(0) + 1)
    shrunk = F.interpolate(scores[None], (7, 9), mode="bilinear", align_corners=False)[0].argmax(0) + 1
    assert torch.equal(resize_and_argmax(scores, 7, 9).long(), shrunk)


def test_tiles_cover_a_side_and_end_with_it():
    assert compute_tile_starts(1024) == (0,)
    assert compute_tile_starts(1056) == (0, 32)
    assert compute_tile_starts(2560) == (0, 768, 1536)
    assert compute_tile_starts(2592) == (0, 768, 1536, 1568)


def test_tiles_have_no_seams(monkeypatch):
    """A network that sees a few pixels answers the same in tiles as in one piece, but for the ends of the tiles."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 4, 5, padding=2))
    task = ready(network, tuple("abcd"))
    image = Image.effect_noise((300, 230), 90).convert("RGB")
    (whole,) = task.predict([image])
    monkeypatch.setattr(pixels, "TILE_SIZE", 128)
    monkeypatch.setattr(pixels, "TILE_OVERLAP", 64)
    calls = []
    network.register_forward_hook(lambda module, given, out: calls.append(given[0].shape))
    (tiled,) = task.predict([image])
    assert len(calls) > 4
    assert all(max(shape[-2:]) <= 128 for shape in calls)
    differ = task.decode_masks(whole) != task.decode_masks(tiled)
    assert differ.mean() < 0.002
    monkeypatch.setattr(pixels, "TILE_OVERLAP", 0)
    assert (task.decode_masks(whole) != task.decode_masks(task.predict([image])[0])).mean() > differ.mean()


@pytest.mark.parametrize("weight", [None, [1.0, 2.0, 0.5]])
def test_the_loss_by_hand(weight):
    """Cross entropy over the labelled pixels, with weights or without, and a second answer that counts a half."""
    torch.manual_seed(0)

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.one(x), self.other(x)

    task = ready(Twice(), tuple("abc"))
    task.class_weights = None if weight is None else torch.tensor(weight)
    images = torch.randint(0, 256, (2, 3, 32, 64), dtype=torch.uint8)
    masks = torch.randint(0, 4, (2, 32, 64), dtype=torch.uint8)
    sizes = torch.tensor([[32.0, 64.0], [20.0, 50.0]])
    masks[1, 20:], masks[1, :, 50:] = 0, 0
    nothing = torch.zeros(2)
    loss, metrics = task.compute_loss(PaddedBatch(images, sizes, sizes, *[nothing] * 5, masks))
    inside = images / 255.0
    inside[1, :, 20:], inside[1, :, :, 50:] = 0, 0
    there = masks > 0
    targets = masks[there].long() - 1
    expected = 0.0
    for layer, share in ((task.model.one, 1.0), (task.model.other, 0.5)):
        scores = layer(inside).permute(0, 2, 3, 1)[there]
        expected += share * F.cross_entropy(scores, targets, task.class_weights)
    torch.testing.assert_close(loss, expected)
    right = (task.model.one(inside).permute(0, 2, 3, 1)[there].argmax(1) == targets).float().mean()
    torch.testing.assert_close(metrics["accuracy"], right)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools with NumPy 2
def test_answers_are_masks_that_other_tools_read():
    """COCO's run lengths at the image's own size, shares that add up, and a map that comes back."""
    from pycocotools import mask

    torch.manual_seed(0)
    task = ready(nn.Conv2d(3, 4, 3, padding=1), ("sky", "road", "car", "tree"))
    image = Image.effect_noise((70, 45), 60).convert("RGB")
    (answer,) = task.predict([image])
    assert json.loads(json.dumps(answer)) == answer
    assert (answer["width"], answer["height"]) == (70, 45)
    assert sum(answer["shares"].values()) == pytest.approx(1, abs=1e-5)
    assert list(answer["shares"].values()) == sorted(answer["shares"].values(), reverse=True)
    assert answer["shares"].keys() == answer["masks"].keys()
    numbers = task.decode_masks(answer)
    for label, found in answer["masks"].items():
        assert np.array_equal(mask.decode(found), numbers == task.labels.index(label))
        assert (numbers == task.labels.index(label)).mean() == pytest.approx(answer["shares"][label], abs=1e-6)


def test_a_smaller_network_size_is_brought_back(mask_files):
    """Judged at the masks' own size whatever the network sees."""
    recipe = package.get_recipe("segnet-basic")(data=str(mask_files), min_size=64, filters=8)
    data = recipe.load_data()
    task = recipe.build_task(data.labels)
    task.setup(Runtime.start("cpu", "float32"))
    found = task.evaluate(data.val)
    assert found["pixels"] == sum(sample.size[0] * sample.size[1] for sample in data.val.samples)
    assert found["count"] == 4


def test_classes_are_matched_by_name(mask_files):
    """Also where other data have them in another order; those that are unknown are named."""
    recipe = package.get_recipe("segnet-basic")(data=str(mask_files), filters=8)
    data = recipe.load_data()
    task = recipe.build_task(data.labels[::-1])
    task.setup(Runtime.start("cpu", "float32"))
    assert set(task.evaluate(data.val)["classes"]) <= {*data.labels}
    other = ready(task.model, data.labels[1:])
    with pytest.raises(UsageError, match="does not know: background"):
        other.evaluate(data.val)


@pytest.mark.parametrize("name", ["segnet-vgg16", "fcn8s-vgg16"])
def test_rematerialised_steps_are_the_same(name, mask_files):
    """Less is kept, and the update is the same, bit for bit, statistics of the normalisation and dropout, too."""
    fields = {"width_multiplier": 1 / 16} | ({"hidden": 8} if "fcn" in name else {})
    states = []
    for rematerialise in (False, True):
        recipe = package.get_recipe(name)(
            data=str(mask_files), batch_size=2, activation_checkpointing=rematerialise, **fields
        )
        data = recipe.load_data()
        torch.manual_seed(1)
        task = recipe.build_task(data.labels)
        task.setup(Runtime.start("cpu", "float32"))
        saved = []
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda x, s=saved: s.append(x.numel()) or x, lambda x: x)
        task.schedule(0.5)
        with hooks:
            task.step(next(iter(task.iterate_batches(data.train))))
        states.append((task.model.state_dict(), sum(saved)))
    (one, plain), (other, less) = states
    assert less < 0.7 * plain
    assert all(torch.equal(value, other[key]) for key, value in one.items())


def test_several_runs_answer_with_their_averaged_probabilities():
    torch.manual_seed(0)
    tasks = [ready(nn.Conv2d(3, 4, 3, padding=1), tuple("abcd")) for _ in range(3)]
    image = Image.effect_noise((64, 32), 60).convert("RGB")
    pixels_of = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    with torch.inference_mode():
        frame = tasks[0].normalize_images(pixels_of, torch.tensor([[32.0, 64.0]]))
        expected = sum(task.model(frame).softmax(1) for task in tasks).argmax(1)[0]
    whole = tasks[0].ensemble_with(tasks[1:])
    assert np.array_equal(whole.decode_masks(whole.predict([image])[0]), expected.numpy())
    with pytest.raises(UsageError, match="leave out --vote"):
        tasks[1].ensemble_with(tasks[2:], vote=True)
    with pytest.raises(UsageError, match="the same classes"):
        tasks[1].ensemble_with([ready(nn.Conv2d(3, 2, 1), tuple("ab"))])


# drawings


def test_drawn_in_the_colours_of_the_classes():
    """A known class in the colour that people know it in; the background leaves the image as it is."""
    shades = image_io.get_class_colors(("background", "road", "otter"))
    assert shades[:2] == [(0, 0, 0), (128, 64, 128)]
    assert shades[2] == image_io.get_class_color(2)
    numbers = np.zeros((8, 12), np.uint8)
    numbers[:, 6:] = 1
    drawn = np.asarray(image_io.overlay_mask(Image.new("L", (12, 8), 200), numbers, shades))
    assert (drawn[:, :6] == 200).all()
    tinted = [round(200 * (1 - image_io.OVERLAY_ALPHA) + image_io.OVERLAY_ALPHA * level) for level in (128, 64, 128)]
    assert (drawn[:, 7:] == tinted).all()
    assert (drawn[:, 6] > drawn[:, 7]).all()  # the line between the two
    palette = image_io.apply_palette(numbers, shades)
    assert np.array_equal(np.asarray(palette), numbers)
    assert palette.convert("RGB").getpixel((9, 3)) == (128, 64, 128)


def test_legends_of_a_film_are_of_one_size():
    """Whatever is in the frame; as many names as there is room for."""
    names = [f"class {number}" for number in range(30)]
    named = [(name, (9, 9, 9)) for name in names]
    pages = [image_io.draw_legend(Image.new("RGB", (640, 360)), named[:count], names, 21) for count in (0, 1, 13, 30)]
    assert len({page.size for page in pages}) == 1
    assert pages[0].size[0] == 640
    assert len({page.tobytes() for page in pages}) == 4
    assert image_io.draw_legend(Image.new("RGB", (64, 36)), named[:1], names, 2).width == 64 * 8


def test_the_report_shows_the_best_the_median_and_the_worst():
    found = SegmentationResults(("a", "b"))
    for number in range(9):
        found.update(number, halves(20, 10 + number), halves(20, 10))
    assert segmentation_plots.select_images(found) == {"best": [0, 1], "median": [3, 4], "worst": [8, 7]}
    image = Image.new("RGB", (20, 20))
    titles = dict(
        segmentation_plots.plot_evaluation(found, lambda number: (image, halves(20, 10), halves(20, 10 + number)))
    )
    assert [*titles] == [
        "Intersection over union by class", "What was taken for what", "The best images", "The median images",
        "The worst images",
    ]  # fmt: skip
    few = SegmentationResults(("a", "b"))
    few.update(0, halves(20, 10), halves(20, 10))
    assert segmentation_plots.select_images(few) == {"best": [0]}


# the command line


@pytest.fixture(scope="module")
def run(mask_files, tmp_path_factory):
    """A short training of a small FCN on a few scenes."""
    out = tmp_path_factory.mktemp("runs") / "fcn"
    recipe = package.get_recipe("fcn8s-vgg16")(data=str(mask_files), epochs=2, batch_size=4, **SMALL)
    package.train(recipe, out, device="cpu", precision="float32")
    return out


def test_train_leaves_a_report(run):
    text = (run / "report.html").read_text()
    assert "What was taken for what" in text
    assert "The worst images" in text
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["miou"] >= 0


def test_eval_and_predict(run, fukami, mask_files, tmp_path):
    judged = fukami("eval", run, "--out", tmp_path / "judged")
    (result,) = judged.json
    assert judged.status == 0
    names = ["miou", "accuracy", "class_accuracy", "fw_iou", "boundary_f1", "count", "pixels", "classes"]
    assert list(result)[: len(names)] == names
    assert result["count"] == 4
    assert (tmp_path / "judged" / "report.html").is_file()
    files = sorted((mask_files / "val" / "images").iterdir())[:2]
    broken = tmp_path / "broken.png"
    broken.write_bytes(files[0].read_bytes()[:99])
    answer = fukami("predict", run, *files, broken, "--out", tmp_path / "drawn")
    assert answer.status == 1
    assert "broken.png is damaged" in answer.err
    assert [each["file"] for each in answer.json] == [str(path) for path in files]
    for path, each in zip(files, answer.json, strict=True):
        size = image_io.read_image(path).size
        assert (each["width"], each["height"]) == size
        assert image_io.read_image(tmp_path / "drawn" / f"{path.stem}.png").width % size[0] == 0
        with Image.open(tmp_path / "drawn" / f"{path.stem}-classes.png") as mapped:
            assert (mapped.mode, mapped.size) == ("P", size)
            counts = np.bincount(np.asarray(mapped).ravel(), minlength=9) / (size[0] * size[1])
        shares = [each["shares"].get(label, 0) for label in scenes.MASK_LABELS]
        assert counts == pytest.approx(shares, abs=1e-6)
    page = (tmp_path / "drawn" / "index.html").read_text()
    assert page.count("<img") == 2


def test_a_folder_of_frames_becomes_a_film(run, fukami, mask_files, tmp_path):
    """The rate is told; a broken frame is named, and the others are shown."""
    av = pytest.importorskip("av")
    frames = tmp_path / "drive"
    frames.mkdir()
    first = image_io.read_image(sorted((mask_files / "val" / "images").iterdir())[0])
    for number in range(5):
        first.rotate(number).save(frames / f"{number}.png")
    (frames / "3.png").write_bytes(b"")
    answer = fukami("predict", run, frames, "--fps", "12.5", "--out", tmp_path / "out")
    assert answer.status == 1
    assert "3.png is empty" in answer.err
    assert "drive: 4 frames at " in answer.err
    assert [(each["frame"], each["seconds"]) for each in answer.json] == [(0, 0.0), (1, 0.08), (2, 0.16), (4, 0.32)]
    assert answer.json[1]["file"] == str(frames / "1.png")
    with av.open(str(tmp_path / "out" / "drive.mp4")) as film:
        assert sum(1 for _ in film.decode(video=0)) == 4
    again = fukami("predict", run, tmp_path / "out" / "drive.mp4", "--frame-interval", "2", "--out", tmp_path / "more")
    assert again.status == 0
    assert [each["frame"] for each in again.json] == [0, 2]
    assert (tmp_path / "more" / "drive.mp4").is_file()
    assert fukami("predict", run, frames, "--fps", "-1").status == 2


def test_served_and_explained(run, fukami, mask_files):
    from fukami.serving import metrics, worker
    from fukami.serving.app import predict_section

    task = package.load(run, device="cpu")
    path = sorted((mask_files / "val" / "images").iterdir())[0]
    server = worker.Worker(task, metrics.Metrics())
    with path.open("rb") as file:
        answer, section = predict_section(server, worker.Slot(), "street.png", file)
    server.decoder.close()
    assert answer["shares"] == task.predict([path])[0]["shares"]
    assert section.count("<meter") == len(answer["shares"])
    assert "drawn prediction" in section
    explained = fukami("explain", run)
    assert explained.status == 0
    assert "head.fc7" in explained.out
    assert fukami("explain", "segnet_vgg16", "--num-classes", "11", "--input", "3x64x64").out.count("Conv2d") == 26


@pytest.mark.parametrize("name", ["fcn8s-vgg16", "segnet-vgg16", "fcn-resnet50"])
def test_exported(name, mask_files, pageless, tmp_path, fukami):
    """ONNX and halves answer as float32 does, on images of other shapes than it was traced with."""
    smaller = {} if "resnet" in name else {"width_multiplier": 1 / 8} | ({"hidden": 16} if "fcn" in name else {})
    recipe = package.get_recipe(name)(data=str(mask_files), min_size=64, epochs=1, batch_size=4, lr=1e-4, **smaller)
    package.train(recipe, tmp_path / "run", device="cpu", precision="float32")
    files = sorted((mask_files / "val" / "images").iterdir())[:2]
    task = package.load(tmp_path / "run", device="cpu")
    expected = task.predict(files)
    for to, most in (("onnx", 0.001), ("float16", 0.06), ("bfloat16", 0.3)):
        exported = fukami("export", tmp_path / "run", "--to", to, "--out", tmp_path / to)
        assert exported.status == 0, exported.err
        found = package.load(tmp_path / to, device="cpu").predict(files)
        for one, other in zip(found, expected, strict=True):
            assert (task.decode_masks(one) != task.decode_masks(other)).mean() <= most, to
    refused = fukami("export", tmp_path / "run", "--to", "int8")
    assert refused.status == 2
    assert "int8 is for classifiers" in refused.err


def test_staged_training_begins_each_network_with_the_one_before(mask_files, pageless, tmp_path, fukami):
    """32, 16, 8, each a run of its own; cut off and resumed it ends the same."""
    words = ["train", "fcn8s-vgg16", "--data", mask_files, "--training", "staged", "--epochs", "1", "--batch-size", "4",
             "--width-multiplier", "0.0625", "--hidden", "8", "--dropout", "0", "--lr", "1e-3", "--device", "cpu",
             "--precision", "float32"]  # fmt: skip
    assert fukami(*words, "--out", tmp_path / "one").status == 0
    for stage in ("fcn32s-vgg16", "fcn16s-vgg16"):
        assert (tmp_path / "one" / stage / "weights.safetensors").is_file()
    coarse = load_file(tmp_path / "one" / "fcn32s-vgg16" / "weights.safetensors")
    finer = json.loads((tmp_path / "one" / "fcn16s-vgg16" / "recipe.json").read_text())
    assert finer["fields"]["init"].endswith("fcn32s-vgg16")
    assert finer["fields"]["lr"] == pytest.approx(1e-5)
    begun = package.get_recipe("fcn8s-vgg16")(data=str(mask_files), training="staged", **SMALL)
    assert [*begun.stages(tmp_path)] == ["fcn32s-vgg16", "fcn16s-vgg16"]
    after = load_file(tmp_path / "one" / "fcn16s-vgg16" / "weights.safetensors")
    moved = (after["model.features.0.weight"] - coarse["model.features.0.weight"]).abs().max()
    assert 0 < moved < 0.02  # a few small steps from where the coarser one ended
    assert fukami(*words, "--out", tmp_path / "one", "--resume").status == 0
    assert fukami("eval", tmp_path / "one").json[0]["count"] == 4


@pytest.mark.parametrize(("factor", "rates"), [(0.01, [1e-3, 1e-5, 1e-7]), (0.5, [1e-3, 5e-4, 2.5e-4])])
def test_each_stage_lowers_the_learning_rate(tmp_path, factor, rates):
    """By 100: FCN-16s in section 4.2, FCN-8s in the authors' solvers. At once nothing is lowered."""
    kind = package.get_recipe("fcn8s-vgg16")
    recipe = kind(training="staged", stage_lr_factor=factor, lr=1e-3, init="imagenet", backbone_lr_factor=0.1, **SMALL)
    found = []
    for stage in (*recipe.stages(tmp_path).values(), recipe):
        task = stage.build_task(tuple("abc"))
        task.setup(Runtime.start("cpu", "float32"))
        found.append([group["initial_lr"] for group in task.optimizer.param_groups])
    assert found == [[pytest.approx(rate), pytest.approx(0.1 * rate)] for rate in rates]
    assert kind(lr=1e-3).peak_lr == 1e-3
    with pytest.raises(UsageError, match="add --training staged"):
        kind(stage_lr_factor=0.1)


def test_published_weights_become_a_run(fukami, mask_files, tmp_path):
    """torchvision's state dict, as it is: the same answers, under Pascal VOC's names."""
    import torchvision

    torch.manual_seed(0)
    theirs = torchvision.models.segmentation.fcn_resnet50(weights=None, weights_backbone=None, aux_loss=True).eval()
    torch.save(theirs.state_dict(), tmp_path / "fcn.pth")
    assert fukami("import", tmp_path / "fcn.pth", "--out", tmp_path / "run").status == 0
    task = package.load(tmp_path / "run", device="cpu")
    assert task.labels[15] == "person"
    path = sorted((mask_files / "val" / "images").iterdir())[0]
    image = task.prepare(task.prepare.read_image(path))
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (task.prepare.mean, task.prepare.std))
    normal = ((image / 255 - mean) / std)[None]
    frame = F.pad(normal, (0, -normal.shape[3] % 32, 0, -normal.shape[2] % 32))
    with torch.inference_mode():
        scores = theirs(frame)["out"][0, :, : normal.shape[2], : normal.shape[3]]
    (answer,) = task.predict([path])
    expected = resize_and_argmax(scores, answer["height"], answer["width"]).numpy() - 1
    assert (task.decode_masks(answer) == expected).mean() > 0.999
    torch.save(
        {"classifier.4.weight": torch.zeros(2, 512, 1, 1), "backbone.layer4.x": torch.zeros(1)}, tmp_path / "bad.pth"
    )
    refused = fukami("import", tmp_path / "bad.pth", "--out", tmp_path / "other")
    assert refused.status == 1
    assert "does not fit FCNResNet50" in refused.err


def test_errors_of_the_command_line(fukami, mask_files, tmp_path):
    for words, message in (
        (["--min-size", "20"], "min-size should be at least 32 pixels, or 0"),
        (["--min-size", "200", "--max-size", "100"], "max-size should be at least min-size"),
        (["--augment", "mixup"], "mixes two images, whose boxes and masks cannot be mixed"),
        (["--data", "camvit"], "did you mean 'camvid'"),
        (["--init", "no-such-file"], "cannot be read"),
    ):
        given = words if "--data" in words else [*words, "--data", mask_files]
        refused = fukami("train", "segnet-basic", "--filters", "4", *given, "--out", tmp_path / "run")
        assert refused.status in (1, 2)
        assert message in refused.err, refused.err
        assert "Traceback" not in refused.err


def test_shown(fukami, mask_files, tmp_path):
    answer = fukami(
        "show",
        mask_files,
        "--augment",
        "flip",
        "rotate=20",
        "--num-images",
        "2",
        "--num-variants",
        "3",
        "--out",
        tmp_path / "s.png",
    )
    assert answer.status == 0
    assert answer.json[0]["variants"] == 3
    assert "background" in answer.json[0]["labels"][0]
    assert image_io.read_image(tmp_path / "s.png").width > 300
    assert fukami("show", mask_files, "--channels", "1").status == 2


def test_camvid_learns_a_little(camvid, pageless, tmp_path):
    """A few steps on real images of the road."""
    recipe = package.get_recipe("segnet-basic")(
        data="camvid", min_size=64, filters=16, epochs=1, batch_size=16, lr=0.01
    )
    result = package.train(recipe, tmp_path / "run", device="cpu")
    assert result["count"] == 233
    assert result["accuracy"] > 0.3
    assert segmentation_data.is_segmentation_dataset("camvid")


def test_borders_are_compared_where_denormal_numbers_are_taken_for_zero(random):
    """As every training tells the processor: SciPy's tree does not end there with points at 0."""
    truth, answer = random.integers(1, 9, (2, 40, 50)).astype(np.uint8)
    expected = compute_boundary_f1(answer, truth)
    torch.set_flush_denormal(True)
    try:
        assert compute_boundary_f1(answer, truth) == expected
        assert compute_boundary_f1(halves(200, 0)[:, :2] * 0 + 1, halves(200, 1)[:, :2]) == 0.0
    finally:
        torch.set_flush_denormal(False)

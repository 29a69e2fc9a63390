"""Tests of segmentation: metrics, predictions, drawings, and the command line from dataset to video."""

import json
import math
import shutil

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
from fukami.engine.ensemble import build_ensemble
from fukami.engine.load_run import load_task
from fukami.engine.runtime import Runtime
from fukami.image import draw as image_draw
from fukami.image import io as image_io
from fukami.image.tiles import compute_tile_starts
from fukami.image.transform import ResizeTransform
from fukami.segmentation import plots as segmentation_plots
from fukami.segmentation import task as segmentation_task
from fukami.segmentation.metrics import SegmentationResults, compute_boundary_f1, find_boundaries
from fukami.segmentation.task import SegmentationTask, compute_class_weights, resize_and_argmax

SMALL = {"width_multiplier": 1 / 8, "hidden": 16, "dropout": 0.0}


def build_task(network, labels, **options):
    """Build a task on the CPU."""
    task = SegmentationTask(network, labels, ResizeTransform(0, 0), **options)
    task.setup(Runtime.start("cpu", "float32"))
    task.prepare_training()
    return task


# metrics


def test_metrics_by_hand():
    """Two images of three classes, one of which never occurs; unlabeled pixels are ignored."""
    results = SegmentationResults(("road", "car", "sign"))
    results.update(7, np.array([[1, 1, 2, 2]], np.uint8), np.array([[1, 1, 1, 2]], np.uint8))
    results.update(3, np.array([[2, 3, 1, 1]], np.uint8), np.array([[2, 2, 0, 0]], np.uint8))
    # road: 2 of 3 correct, union 3; car: 2 of 3 correct, 3 predicted, union 4
    metrics = results.compute_metrics()
    assert metrics["accuracy"] == 4 / 6
    assert metrics["class_accuracy"] == pytest.approx(2 / 3)
    assert metrics["miou"] == pytest.approx((2 / 3 + 2 / 4) / 2)
    assert metrics["fw_iou"] == pytest.approx(0.5 * 2 / 3 + 0.5 * 2 / 4)
    assert (metrics["count"], metrics["pixels"]) == (2, 6)
    assert list(metrics["classes"]) == ["road", "car"]
    assert metrics["classes"]["car"] == {"iou": 0.5, "accuracy": pytest.approx(2 / 3), "pixels": 3}
    assert results.image_scores[7][0] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert results.rank_images() == [7, 3]


def test_metrics_agree_with_scikit_learn(random):
    truth = random.integers(0, 6, (20, 30)).astype(np.uint8)
    prediction = random.integers(1, 6, (20, 30)).astype(np.uint8)
    results = SegmentationResults("abcde")
    results.update(0, prediction, truth)
    predicted, true = prediction[truth > 0], truth[truth > 0]
    assert np.array_equal(results.confusion_matrix, confusion_matrix(true, predicted, labels=range(1, 6)))
    metrics = results.compute_metrics()
    ious = jaccard_score(true, predicted, average=None)
    assert [scores["iou"] for scores in metrics["classes"].values()] == pytest.approx(ious.tolist())
    assert metrics["miou"] == pytest.approx(jaccard_score(true, predicted, average="macro"))
    assert metrics["fw_iou"] == pytest.approx(jaccard_score(true, predicted, average="weighted"))


def test_no_labeled_pixel_to_evaluate():
    with pytest.raises(Error, match="no labeled pixel"):
        SegmentationResults("ab").compute_metrics()


def split_map(size, column):
    """Return a map of two classes that meet at a column."""
    pixels = np.ones((size, size), np.uint8)
    pixels[:, column:] = 2
    return pixels


def test_boundaries_lie_between_two_classes():
    """The image border and unlabeled pixels are no boundary."""
    labels = split_map(6, 3)
    labels[:2] = 0
    points, classes = find_boundaries(labels)
    assert points.tolist() == [[row, column] for row in range(2, 6) for column in (2, 3)]
    assert classes.tolist() == [1, 2] * 4


@pytest.mark.parametrize(("off", "expected"), [(0, 1.0), (1, 1.0), (2, 1.0), (3, 0.0)])
def test_boundary_tolerance_is_a_fraction_of_the_diagonal(off, expected):
    """The tolerance is 0.75 % of 200√2, which is 2.1 pixels."""
    assert compute_boundary_f1(split_map(200, 100 + off), split_map(200, 100)) == expected


def test_boundary_f1_by_hand():
    """The predicted boundary covers 100 of the 200 pixels of the true one, for both classes."""
    truth, prediction = split_map(200, 100), np.ones((200, 200), np.uint8)
    prediction[:100, 100:] = 2  # its boundary: 100 pixels vertical, 100 horizontal
    expected_recall = (100 + 3) / 200  # 100, and three more rows within the tolerance
    boundary_f1 = compute_boundary_f1(prediction, truth)
    # left class: about 199 predicted pixels, of which 102 lie near the true boundary
    (predicted_points, predicted_classes), (true_points, true_classes) = (
        find_boundaries(prediction),
        find_boundaries(truth),
    )
    f_measures = []
    for label in (1, 2):
        predicted, true = predicted_points[predicted_classes == label], true_points[true_classes == label]
        close = [[math.dist(a, b) <= 0.0075 * 200 * 2**0.5 for b in true.tolist()] for a in predicted.tolist()]
        precision = np.any(close, 1).mean()
        recall = np.any(close, 0).mean()
        f_measures.append(2 * precision * recall / (precision + recall))
        assert recall == pytest.approx(expected_recall, abs=0.011)
    assert boundary_f1 == pytest.approx(np.mean(f_measures))


def test_predicted_boundaries_in_unlabeled_areas_are_ignored():
    """The prediction is correct at every labeled pixel, and arbitrary at the others."""
    truth, prediction = split_map(200, 100), split_map(200, 100)
    truth[:80], prediction[:80, ::2] = 0, 2
    results = SegmentationResults("ab")
    results.update(0, prediction, truth)
    assert results.compute_metrics()["boundary_f1"] == 1.0


def test_boundary_f1_of_missing_classes_and_without_boundaries():
    assert compute_boundary_f1(np.ones((50, 50), np.uint8), split_map(50, 20)) == 0.0
    assert math.isnan(compute_boundary_f1(split_map(50, 20), np.ones((50, 50), np.uint8)))


def test_results_of_several_processes_are_merged():
    one, other = SegmentationResults("ab"), SegmentationResults("ab")
    one.update(0, split_map(4, 2), split_map(4, 2))
    other.update(1, split_map(4, 1), split_map(4, 2))
    expected = SegmentationResults("ab")
    for index, column in ((0, 2), (1, 1)):
        expected.update(index, split_map(4, column), split_map(4, 2))
    one.merge([one, other])
    assert one.compute_metrics() == expected.compute_metrics()


def test_median_frequency_balancing_by_hand():
    """The frequencies are 1/2, 1/4 and 1/8 of the images with the class; a class that never occurs has weight 0."""
    counts = np.array([[50, 25, 5, 0], [100, 100, 40, 0]])
    assert compute_class_weights(counts).tolist() == [0.5, 1.0, 2.0, 0.0]


@pytest.mark.parametrize(("balance", "power"), [("none", None), ("root", 0.5), ("median", 1)])
def test_class_weights_are_a_power_of_median_frequency_balancing(mask_files, balance, power):
    recipe = package.get_recipe("segnet-basic")(data=str(mask_files), num_filters=4, batch_size=2, balance=balance)
    data = recipe.load_data()
    task = recipe.build_task(data.labels)
    task.setup(Runtime.start("cpu", "float32"))
    task.prepare_training()
    next(iter(task.iterate_batches(data.train)))
    if power is None:
        assert task.class_weights is None
    else:
        torch.testing.assert_close(
            task.class_weights, torch.from_numpy(compute_class_weights(data.train.count_class_pixels())) ** power
        )


# predictions


def test_resizing_in_strips_equals_resizing_at_once(monkeypatch):
    torch.manual_seed(0)
    scores = torch.randn(5, 13, 17)
    expected = F.interpolate(scores[None], (61, 90), mode="bilinear", align_corners=False)[0].argmax(0) + 1
    for strip in (2**25, 1000):
        monkeypatch.setattr(segmentation_task, "MAX_STRIP_SCORES", strip)
        assert torch.equal(resize_and_argmax(scores, 61, 90).long(), expected)
    assert torch.equal(resize_and_argmax(scores, 13, 17).long(), scores.argmax(0) + 1)
    shrunk = F.interpolate(scores[None], (7, 9), mode="bilinear", align_corners=False)[0].argmax(0) + 1
    assert torch.equal(resize_and_argmax(scores, 7, 9).long(), shrunk)


def test_tiles_cover_a_side():
    assert compute_tile_starts(1024, 1024, 256) == (0,)
    assert compute_tile_starts(1056, 1024, 256) == (0, 32)
    assert compute_tile_starts(2560, 1024, 256) == (0, 768, 1536)
    assert compute_tile_starts(2592, 1024, 256) == (0, 768, 1536, 1568)


def test_tiles_have_no_seams(monkeypatch):
    """A network with a small receptive field predicts the same with and without tiles, except at tile borders."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 4, 5, padding=2))
    task = build_task(network, tuple("abcd"))
    image = Image.effect_noise((300, 230), 90).convert("RGB")
    (untiled,) = task.predict([image])
    monkeypatch.setattr(segmentation_task, "TILE_SIZE", 128)
    monkeypatch.setattr(segmentation_task, "TILE_OVERLAP", 64)
    calls = []
    network.register_forward_hook(lambda module, inputs, output: calls.append(inputs[0].shape))
    (tiled,) = task.predict([image])
    assert len(calls) > 4
    assert all(max(shape[-2:]) <= 128 for shape in calls)
    differ = task.decode_masks(untiled) != task.decode_masks(tiled)
    assert differ.mean() < 0.002
    monkeypatch.setattr(segmentation_task, "TILE_OVERLAP", 0)
    assert (task.decode_masks(untiled) != task.decode_masks(task.predict([image])[0])).mean() > differ.mean()


def test_blended_probabilities_sum_to_one(monkeypatch):
    """Also at the border of the image, where only one tile contributes."""
    monkeypatch.setattr(segmentation_task, "TILE_SIZE", 64)
    monkeypatch.setattr(segmentation_task, "TILE_OVERLAP", 32)
    task = build_task(nn.Conv2d(3, 4, 3, padding=1), tuple("abcd"))
    images = torch.randint(0, 256, (1, 3, 160, 96), dtype=torch.uint8)
    with torch.inference_mode():
        scores = task.predict_scores(images, torch.tensor([[160.0, 96.0]]))
    torch.testing.assert_close(scores.sum(1), torch.ones(1, 160, 96))


def test_too_many_scores_are_rejected(monkeypatch):
    monkeypatch.setattr(segmentation_task, "MAX_SCORES", 4 * 160 * 96 - 1)
    task = build_task(nn.Conv2d(3, 4, 3, padding=1), tuple("abcd"))
    with pytest.raises(Error, match="the scores of 4 classes for 96×160 pixels would take"):
        task.predict_scores(torch.zeros(1, 3, 160, 96), torch.tensor([[160.0, 96.0]]))


def test_the_scores_of_a_batch_are_within_the_limit_of_an_image(monkeypatch):
    task = build_task(nn.Conv2d(3, 4, 3, padding=1), tuple("abcd"))
    images = [Image.effect_noise((96, 160), 90).convert("RGB") for _ in range(5)]
    expected = task.predict(images)
    batch_sizes, predict = [], task.predict_scores
    monkeypatch.setattr(
        task, "predict_scores", lambda batch, sizes: batch_sizes.append(len(batch)) or predict(batch, sizes)
    )
    monkeypatch.setattr(segmentation_task, "MAX_SCORES", 2 * 4 * 160 * 96)
    assert task.predict(images) == expected
    assert batch_sizes == [2, 2, 1]


def test_too_many_scores_of_an_evaluation_are_an_error_before_the_training(mask_files, tmp_path, monkeypatch):
    """Training images are cropped, and evaluation images are not."""
    recipe = package.get_recipe("segnet-basic")(data=str(mask_files), crop_size=32, epochs=1, batch_size=2)
    monkeypatch.setattr(segmentation_task, "MAX_SCORES", 3 * 64 * 64)
    with pytest.raises(Error, match="train with --max-size"):
        package.train(recipe, tmp_path / "run", device="cpu", precision="float32")
    assert not [*(tmp_path / "run").glob("*.safetensors")]


@pytest.mark.parametrize("weight", [None, [1.0, 2.0, 0.5]])
def test_loss_by_hand(weight):
    """Cross entropy over the labeled pixels, with or without class weights, plus half the auxiliary loss."""
    torch.manual_seed(0)

    class TwoHeads(nn.Module):
        def __init__(self):
            super().__init__()
            self.main, self.aux = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.main(x), self.aux(x)

    task = build_task(TwoHeads(), tuple("abc"))
    task.class_weights = None if weight is None else torch.tensor(weight)
    images = torch.randint(0, 256, (2, 3, 32, 64), dtype=torch.uint8)
    masks = torch.randint(0, 4, (2, 32, 64), dtype=torch.uint8)
    sizes = torch.tensor([[32.0, 64.0], [20.0, 50.0]])
    masks[1, 20:], masks[1, :, 50:] = 0, 0
    unused = torch.zeros(2)
    loss, metrics = task.compute_loss(PaddedBatch(images, sizes, sizes, *[unused] * 5, masks))
    frames = images / 255.0
    frames[1, :, 20:], frames[1, :, :, 50:] = 0, 0
    labeled = masks > 0
    targets = masks[labeled].long() - 1
    expected = 0.0
    for layer, loss_weight in ((task.model.main, 1.0), (task.model.aux, 0.5)):
        scores = layer(frames).permute(0, 2, 3, 1)[labeled]
        expected += loss_weight * F.cross_entropy(scores, targets, task.class_weights)
    torch.testing.assert_close(loss, expected)
    accuracy = (task.model.main(frames).permute(0, 2, 3, 1)[labeled].argmax(1) == targets).float().mean()
    torch.testing.assert_close(metrics["accuracy"], accuracy)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools with NumPy 2
def test_predicted_masks_are_readable_by_pycocotools():
    """Masks are COCO run lengths at the original image size, and decode to the map; the fractions add up to 1."""
    from pycocotools import mask

    torch.manual_seed(0)
    task = build_task(nn.Conv2d(3, 4, 3, padding=1), ("sky", "road", "car", "tree"))
    image = Image.effect_noise((70, 45), 60).convert("RGB")
    (prediction,) = task.predict([image])
    assert json.loads(json.dumps(prediction)) == prediction
    assert (prediction["width"], prediction["height"]) == (70, 45)
    fractions = prediction["fractions"]
    assert sum(fractions.values()) == pytest.approx(1, abs=1e-5)
    assert list(fractions.values()) == sorted(fractions.values(), reverse=True)
    assert fractions.keys() == prediction["masks"].keys()
    classes = task.decode_masks(prediction)
    for label, run_lengths in prediction["masks"].items():
        assert np.array_equal(mask.decode(run_lengths), classes == task.labels.index(label))
        assert (classes == task.labels.index(label)).mean() == pytest.approx(fractions[label], abs=1e-6)


def test_evaluation_at_the_original_mask_size(mask_files):
    """Masks are evaluated at their own size, whatever the input size of the network."""
    recipe = package.get_recipe("segnet-basic")(data=str(mask_files), min_size=64, num_filters=8)
    data = recipe.load_data()
    task = recipe.build_task(data.labels)
    task.setup(Runtime.start("cpu", "float32"))
    task.prepare_training()
    metrics = task.evaluate(data.val)
    assert metrics["pixels"] == sum(sample.size[0] * sample.size[1] for sample in data.val.samples)
    assert metrics["count"] == 4


def test_classes_are_matched_by_name(mask_files):
    """The order of the classes may differ; unknown classes are reported."""
    recipe = package.get_recipe("segnet-basic")(data=str(mask_files), num_filters=8)
    data = recipe.load_data()
    pixels = []
    for labels in (data.labels, data.labels[::-1]):
        task = recipe.build_task(labels)
        task.setup(Runtime.start("cpu", "float32"))
        task.prepare_training()
        pixels.append({label: part["pixels"] for label, part in task.evaluate(data.val)["classes"].items()})
    assert pixels[0] == pixels[1]
    assert len({*pixels[0].values()}) > 1
    other = build_task(task.model, data.labels[1:])
    with pytest.raises(UsageError, match="does not have: background"):
        other.evaluate(data.val)


@pytest.mark.parametrize("name", ["segnet-vgg16", "fcn8s-vgg16"])
def test_activation_checkpointing_leaves_steps_unchanged(name, mask_files):
    """Fewer activations are stored, and the step is bit-identical, including batch statistics and dropout."""
    fields = {"width_multiplier": 1 / 16} | ({"hidden": 8} if "fcn" in name else {})
    states = []
    for checkpointing in (False, True):
        recipe = package.get_recipe(name)(
            data=str(mask_files), batch_size=2, activation_checkpointing=checkpointing, **fields
        )
        data = recipe.load_data()
        torch.manual_seed(1)
        task = recipe.build_task(data.labels)
        task.setup(Runtime.start("cpu", "float32"))
        task.prepare_training()
        saved = []
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda x, s=saved: s.append(x.numel()) or x, lambda x: x)
        task.schedule(0.5)
        with hooks:
            task.step(next(iter(task.iterate_batches(data.train))))
        states.append((task.model.state_dict(), sum(saved)))
    (expected_state, num_saved), (state, num_saved_checkpointed) = states
    assert num_saved_checkpointed < 0.7 * num_saved
    assert all(torch.equal(value, state[key]) for key, value in expected_state.items())


def test_ensembles_average_probabilities():
    torch.manual_seed(0)
    tasks = [build_task(nn.Conv2d(3, 4, 3, padding=1), tuple("abcd")) for _ in range(3)]
    image = Image.effect_noise((64, 32), 60).convert("RGB")
    images = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    with torch.inference_mode():
        frame = tasks[0].normalize_images(images, torch.tensor([[32.0, 64.0]]))
        expected = sum(task.model(frame).softmax(1) for task in tasks).argmax(1)[0]
    ensemble = build_ensemble(tasks)
    assert np.array_equal(ensemble.decode_masks(ensemble.predict([image])[0]), expected.numpy())
    with pytest.raises(UsageError, match="omit --vote"):
        build_ensemble(tasks[1:], vote=True)
    with pytest.raises(UsageError, match="the same classes"):
        build_ensemble([tasks[1], build_task(nn.Conv2d(3, 2, 1), tuple("ab"))])


# drawings


def test_overlays_have_the_colors_of_the_classes():
    """A well-known class has its conventional color; the background leaves the image unchanged."""
    colors = image_draw.get_class_colors(("background", "road", "otter"))
    assert colors[:2] == [(0, 0, 0), (128, 64, 128)]
    assert colors[2] == image_draw.get_class_color(2)
    classes = np.zeros((8, 12), np.uint8)
    classes[:, 6:] = 1
    overlay = np.asarray(image_draw.overlay_mask(Image.new("L", (12, 8), 200), classes, colors))
    assert (overlay[:, :6] == 200).all()
    tinted = [
        round(200 * (1 - image_draw.OVERLAY_ALPHA) + image_draw.OVERLAY_ALPHA * level) for level in (128, 64, 128)
    ]
    assert (overlay[:, 7:] == tinted).all()
    assert (overlay[:, 6] > overlay[:, 7]).all()  # the line between the two classes
    palette = image_draw.apply_palette(classes, colors)
    assert np.array_equal(np.asarray(palette), classes)
    assert palette.convert("RGB").getpixel((9, 3)) == (128, 64, 128)


def test_legends_of_a_video_have_one_size():
    """The size does not depend on the classes in the frame, and limits the number of entries."""
    names = [f"class {index}" for index in range(30)]
    entries = [(name, (9, 9, 9)) for name in names]
    images = [
        image_draw.draw_legend(Image.new("RGB", (640, 360)), entries[:count], names, 21) for count in (0, 1, 13, 30)
    ]
    assert len({image.size for image in images}) == 1
    assert images[0].size[0] == 640
    assert len({image.tobytes() for image in images}) == 4
    assert image_draw.draw_legend(Image.new("RGB", (64, 36)), entries[:1], names, 2).width == 64 * 8


def test_report_shows_the_best_median_and_worst_images():
    results = SegmentationResults(("a", "b"))
    for index in range(9):
        results.update(index, split_map(20, 10 + index), split_map(20, 10))
    assert segmentation_plots.select_images(results) == {"best": [0, 1], "median": [3, 4], "worst": [8, 7]}
    image = Image.new("RGB", (20, 20))
    figures = dict(
        segmentation_plots.plot_evaluation(results, lambda index: (image, split_map(20, 10), split_map(20, 10 + index)))
    )
    assert [*figures] == [
        "Intersection over union by class", "Confusion matrix", "Worst images", "Median images", "Best images",
    ]  # fmt: skip
    captions = [caption for caption, _ in figures["Worst images"]]
    assert [caption.partition(":")[0] for caption in captions] == [*["worst", "truth", "prediction"] * 2, "classes"]
    few = SegmentationResults(("a", "b"))
    few.update(0, split_map(20, 10), split_map(20, 10))
    assert segmentation_plots.select_images(few) == {"best": [0]}


# the command line


@pytest.fixture(scope="module")
def run(mask_files, tmp_path_factory):
    """Train a small FCN briefly on a few scenes."""
    out = tmp_path_factory.mktemp("runs") / "fcn"
    recipe = package.get_recipe("fcn8s-vgg16")(data=str(mask_files), epochs=2, batch_size=4, **SMALL)
    package.train(recipe, out, device="cpu", precision="float32")
    return out


def test_train_writes_a_report(run):
    text = (run / "report.html").read_text()
    assert "Confusion matrix" in text
    assert "Worst images" in text
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["miou"] >= 0


def test_eval_and_predict(run, fukami, mask_files, tmp_path):
    result = fukami("eval", run, "--out", tmp_path / "evaluation")
    (metrics,) = result.json
    assert result.status == 0
    names = ["miou", "accuracy", "class_accuracy", "fw_iou", "boundary_f1", "count", "pixels", "classes"]
    assert list(metrics)[: len(names)] == names
    assert metrics["count"] == 4
    assert (tmp_path / "evaluation" / "report.html").is_file()
    files = sorted((mask_files / "val" / "images").iterdir())[:2]
    files[1] = shutil.copy(files[1], tmp_path / f"{files[0].stem}.v2.png")
    unreadable = tmp_path / "broken.png"
    unreadable.write_bytes(files[0].read_bytes()[:99])
    result = fukami("predict", run, *files, unreadable, "--out", tmp_path / "drawn")
    assert result.status == 1
    assert "broken.png is unreadable" in result.err
    assert [prediction["file"] for prediction in result.json] == [str(path) for path in files]
    for path, prediction in zip(files, result.json, strict=True):
        size = image_io.read_image(path).size
        assert (prediction["width"], prediction["height"]) == size
        assert image_io.read_image(tmp_path / "drawn" / f"{path.stem}.png").width % size[0] == 0
        with Image.open(tmp_path / "drawn" / f"{path.stem}-classes.png") as class_map:
            assert (class_map.mode, class_map.size) == ("P", size)
            map_fractions = np.bincount(np.asarray(class_map).ravel(), minlength=9) / (size[0] * size[1])
        fractions = [prediction["fractions"].get(label, 0) for label in scenes.MASK_LABELS]
        assert map_fractions == pytest.approx(fractions, abs=1e-6)
    page = (tmp_path / "drawn" / "index.html").read_text()
    assert page.count("<img") == 2


def test_predict_draws_a_video_from_a_folder_of_frames(run, fukami, mask_files, tmp_path):
    """The frame rate is printed; an unreadable frame is reported, and the others are drawn."""
    av = pytest.importorskip("av")
    frames = tmp_path / "drive"
    frames.mkdir()
    first = image_io.read_image(sorted((mask_files / "val" / "images").iterdir())[0])
    for index in range(5):
        first.rotate(index).save(frames / f"{index}.png")
    (frames / "3.png").write_bytes(b"")
    result = fukami("predict", run, frames, "--fps", "12.5", "--out", tmp_path / "out")
    assert result.status == 1
    assert "3.png is empty" in result.err
    assert "drive: 4 frames at " in result.err
    assert [(line["frame"], line["seconds"]) for line in result.json] == [(0, 0.0), (1, 0.08), (2, 0.16), (4, 0.32)]
    assert result.json[1]["file"] == str(frames / "1.png")
    with av.open(str(tmp_path / "out" / "drive.mp4")) as video:
        assert sum(1 for _ in video.decode(video=0)) == 4
    again = fukami("predict", run, tmp_path / "out" / "drive.mp4", "--frame-interval", "2", "--out", tmp_path / "more")
    assert again.status == 0
    assert [line["frame"] for line in again.json] == [0, 2]
    assert (tmp_path / "more" / "drive.mp4").is_file()
    assert fukami("predict", run, frames, "--fps", "-1").status == 2


def test_serve_and_explain(run, fukami, mask_files):
    from fukami.serving import metrics, worker
    from fukami.serving.app import predict_section

    task = load_task(run, device="cpu")
    path = sorted((mask_files / "val" / "images").iterdir())[0]
    server = worker.Worker(task, metrics.Metrics())
    with path.open("rb") as file:
        prediction, section = predict_section(server, worker.Slot(), "street.png", file)
    server.decoder.close()
    assert prediction["fractions"] == task.predict([path])[0]["fractions"]
    assert section.table == [(label, fraction, "") for label, fraction in prediction["fractions"].items()]
    assert section.image_url.startswith("data:image/jpeg;base64,")
    explained = fukami("explain", run)
    assert explained.status == 0
    assert "head.fc7" in explained.out
    assert (
        fukami("explain", "segnet_vgg16", "--num-classes", "11", "--input-shape", "3x64x64").out.count("Conv2d") == 26
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fcn8s-vgg16", "segnet-vgg16", "fcn-resnet50"])
def test_export(name, mask_files, tmp_path, fukami):
    """ONNX and half precision predict as float32 does, for image sizes other than the traced one."""
    smaller = {} if "resnet" in name else {"width_multiplier": 1 / 8} | ({"hidden": 16} if "fcn" in name else {})
    recipe = package.get_recipe(name)(data=str(mask_files), min_size=64, epochs=1, batch_size=4, lr=1e-4, **smaller)
    package.train(recipe, tmp_path / "run", device="cpu", precision="float32")
    files = sorted((mask_files / "val" / "images").iterdir())[:2]
    task = load_task(tmp_path / "run", device="cpu")
    expected = task.predict(files)
    for to, tolerance in (("onnx", 0.001), ("float16", 0.06), ("bfloat16", 0.3)):
        exported = fukami("export", tmp_path / "run", "--to", to, "--out", tmp_path / to)
        assert exported.status == 0, exported.err
        predictions = load_task(tmp_path / to, device="cpu").predict(files)
        for one, other in zip(predictions, expected, strict=True):
            assert (task.decode_masks(one) != task.decode_masks(other)).mean() <= tolerance, to
    result = fukami("export", tmp_path / "run", "--to", "int8")
    assert result.status == 2
    assert "int8 is for classifiers" in result.err


def test_staged_training_initializes_each_network_from_the_previous_one(mask_files, tmp_path, fukami):
    """FCN-32s, FCN-16s and FCN-8s are trained in turn, each in its own run; training can be resumed."""
    arguments = ["train", "fcn8s-vgg16", "--data", mask_files, "--training", "staged", "--epochs", "1",
                 "--batch-size", "4", "--width-multiplier", "0.0625", "--hidden", "8", "--dropout", "0", "--lr", "1e-3",
                 "--device", "cpu", "--precision", "float32"]  # fmt: skip
    assert fukami(*arguments, "--out", tmp_path / "one").status == 0
    for stage in ("fcn32s-vgg16", "fcn16s-vgg16"):
        assert (tmp_path / "one" / stage / "weights.safetensors").is_file()
    coarse = load_file(tmp_path / "one" / "fcn32s-vgg16" / "weights.safetensors")
    finer = json.loads((tmp_path / "one" / "fcn16s-vgg16" / "recipe.json").read_text())
    assert finer["fields"]["init"].endswith("fcn32s-vgg16")
    assert finer["fields"]["lr"] == pytest.approx(1e-5)
    recipe = package.get_recipe("fcn8s-vgg16")(data=str(mask_files), training="staged", **SMALL)
    assert [*recipe.stages(tmp_path)] == ["fcn32s-vgg16", "fcn16s-vgg16"]
    fine = load_file(tmp_path / "one" / "fcn16s-vgg16" / "weights.safetensors")
    difference = (fine["model.features.0.weight"] - coarse["model.features.0.weight"]).abs().max()
    assert 0 < difference < 0.02  # a few small steps from the coarser network's final weights
    assert fukami(*arguments, "--out", tmp_path / "one", "--resume").status == 0
    assert fukami("eval", tmp_path / "one").json[0]["count"] == 4


@pytest.mark.parametrize(("factor", "rates"), [(0.01, [1e-3, 1e-5, 1e-7]), (0.5, [1e-3, 5e-4, 2.5e-4])])
def test_each_stage_lowers_the_learning_rate(tmp_path, factor, rates):
    """The factor is 0.01 by default (section 4.2 and the authors' solvers); at-once training does not lower it."""
    kind = package.get_recipe("fcn8s-vgg16")
    recipe = kind(training="staged", stage_lr_factor=factor, lr=1e-3, init="imagenet", backbone_lr_factor=0.1, **SMALL)
    learning_rates = []
    for stage in (*recipe.stages(tmp_path).values(), recipe):
        task = stage.build_task(tuple("abc"))
        task.setup(Runtime.start("cpu", "float32"))
        task.prepare_training()
        learning_rates.append([group["initial_lr"] for group in task.optimizer.param_groups])
    assert learning_rates == [[pytest.approx(rate), pytest.approx(0.1 * rate)] for rate in rates]
    assert kind(lr=1e-3).peak_lr == 1e-3
    with pytest.raises(UsageError, match="add --training staged"):
        kind(stage_lr_factor=0.1)


def test_stages_scale_the_learning_rate_with_the_batch_size_as_one(tmp_path):
    """The default batch size, for which the learning rate is, is that of the recipe and not of a stage."""
    fields = {"training": "staged", "stage_lr_factor": 0.5, "lr": 1e-3, "lr_scaling": "linear", **SMALL}
    for batch_size, init, factor in ((8, "", 1), (16, "", 2), (8, "imagenet", 4)):
        recipe = package.get_recipe("fcn8s-vgg16")(batch_size=batch_size, init=init, **fields)
        rates = [stage.peak_lr for stage in (*recipe.stages(tmp_path).values(), recipe)]
        assert rates == pytest.approx([factor * 1e-3, factor * 5e-4, factor * 2.5e-4])


def test_stages_without_initial_weights_have_one_learning_rate(tmp_path):
    """The weights of a stage are those of the one before, and no layer of the first one is pretrained."""
    recipe = package.get_recipe("fcn8s-vgg16")(training="staged", backbone_lr_factor=0.1, **SMALL)
    for stage in (*recipe.stages(tmp_path).values(), recipe):
        task = stage.build_task(tuple("abc"))
        task.setup(Runtime.start("cpu", "float32"))
        task.prepare_training()
        assert len({group["initial_lr"] for group in task.optimizer.param_groups}) == 1


@pytest.mark.slow
def test_import_of_published_weights(fukami, mask_files, tmp_path):
    """A run imported from torchvision's state dict makes the same predictions, with Pascal VOC's class names."""
    import torchvision

    torch.manual_seed(0)
    reference = torchvision.models.segmentation.fcn_resnet50(weights=None, weights_backbone=None, aux_loss=True).eval()
    torch.save(reference.state_dict(), tmp_path / "fcn.pth")
    assert fukami("import", tmp_path / "fcn.pth", "--out", tmp_path / "run").status == 0
    task = load_task(tmp_path / "run", device="cpu")
    assert task.labels[15] == "person"
    path = sorted((mask_files / "val" / "images").iterdir())[0]
    image = task.transform(task.transform.read_image(path))
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (task.transform.mean, task.transform.std))
    normalized = ((image / 255 - mean) / std)[None]
    frame = F.pad(normalized, (0, -normalized.shape[3] % 32, 0, -normalized.shape[2] % 32))
    with torch.inference_mode():
        scores = reference(frame)["out"][0, :, : normalized.shape[2], : normalized.shape[3]]
    (prediction,) = task.predict([path])
    expected = resize_and_argmax(scores, prediction["height"], prediction["width"]).numpy() - 1
    assert (task.decode_masks(prediction) == expected).mean() > 0.999
    torch.save(
        {"classifier.4.weight": torch.zeros(2, 512, 1, 1), "backbone.layer4.x": torch.zeros(1)}, tmp_path / "bad.pth"
    )
    result = fukami("import", tmp_path / "bad.pth", "--out", tmp_path / "other")
    assert result.status == 1
    assert "does not match FCNResNet50" in result.err


def test_command_line_errors(fukami, mask_files, tmp_path):
    for arguments, message in (
        (["--min-size", "20"], "min-size should be at least 32 pixels, or 0"),
        (["--min-size", "200", "--max-size", "100"], "max-size should be at least min-size"),
        (["--augment", "mixup"], "mixes two images, whose boxes and masks cannot be mixed"),
        (["--data", "camvit"], "did you mean 'camvid'"),
        (["--init", "no-such-file"], "cannot be read"),
    ):
        options = arguments if "--data" in arguments else [*arguments, "--data", mask_files]
        result = fukami("train", "segnet-basic", "--num-filters", "4", *options, "--out", tmp_path / "run")
        assert result.status in (1, 2)
        assert message in result.err, result.err
        assert "Traceback" not in result.err


def test_show(fukami, mask_files, tmp_path):
    result = fukami(
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
    assert result.status == 0
    assert result.json[0]["variants"] == 3
    assert "background" in result.json[0]["labels"][0]
    assert image_io.read_image(tmp_path / "s.png").width > 300
    assert fukami("show", mask_files, "--channels", "1", "--out", tmp_path / "gray.png").status == 0
    assert fukami("show", mask_files, "--channels", "0").status == 2


@pytest.mark.slow
def test_short_training_on_camvid(camvid, tmp_path):
    """A few steps on real images of CamVid."""
    recipe = package.get_recipe("segnet-basic")(
        data="camvid", min_size=64, num_filters=16, epochs=1, batch_size=16, lr=0.01
    )
    result = package.train(recipe, tmp_path / "run", device="cpu").metrics
    assert result["count"] == 233
    assert result["accuracy"] > 0.3


def test_boundary_f1_with_denormal_numbers_flushed_to_zero(random):
    """Training flushes denormal numbers to zero; SciPy's tree then never terminates with points at 0."""
    truth, prediction = random.integers(1, 9, (2, 40, 50)).astype(np.uint8)
    expected = compute_boundary_f1(prediction, truth)
    torch.set_flush_denormal(True)
    try:
        assert compute_boundary_f1(prediction, truth) == expected
        assert compute_boundary_f1(split_map(200, 0)[:, :2] * 0 + 1, split_map(200, 1)[:, :2]) == 0.0
    finally:
        torch.set_flush_denormal(False)

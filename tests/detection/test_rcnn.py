"""R-CNN: regions and features by hand, SVMs and box regressors against exact solutions, and the stages in turn."""

import dataclasses
import json
import shutil
import signal
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.svm import LinearSVC

import check_task
import fukami as package
from fukami import UsageError, atomic_file
from fukami.data import augment_boxes, feature_cache
from fukami.data.samples import CROWD, DIFFICULT, PROPOSAL, REGULAR, PaddedBatch
from fukami.detection import data as detection_data
from fukami.detection import frozen_feature_task
from fukami.detection.frozen_feature_task import BoxRegressionFitter, SVMFitter
from fukami.detection.rcnn import RCNN, RCNNSVM, RCNNBoxes, RCNNFinetune
from fukami.detection.rcnn_task import RCNNFinetuneTask, filter_proposals
from fukami.engine import run_record
from fukami.engine.load_run import load_task
from fukami.engine.runtime import Runtime
from fukami.layers import boxes
from fukami.layers.roi_warp import warp_regions
from fukami.models import rcnn_alexnet, rcnn_vgg16

SMALL = {"min_size": 96, "max_size": 128, "size": 63, "context_padding": 4, "width_multiplier": 0.125, "hidden": 16}
QUICK = {"epochs": 2, "batch_size": 4, "lr": 0.01, "dropout": 0.0, **SMALL}


@pytest.fixture
def make(few_scenes):
    return partial(RCNNFinetune, **QUICK)


@pytest.fixture
def inputs(scene_files):
    return sorted(scene_files.rglob("*.png"))[:3]


# regions


def warp_region_slowly(image, box, size, context):
    """Warp a region pixel by pixel with bilinear interpolation; the image is padded with 0."""
    channels, height, width = image.shape
    left, top, right, bottom = box
    warped = np.zeros((channels, size, size))
    for row in range(size):
        for column in range(size):
            x = left + (column + 0.5 - context) * (right - left) / (size - 2 * context) - 0.5
            y = top + (row + 0.5 - context) * (bottom - top) / (size - 2 * context) - 0.5
            for j in (int(np.floor(y)), int(np.floor(y)) + 1):
                for i in (int(np.floor(x)), int(np.floor(x)) + 1):
                    if 0 <= i < width and 0 <= j < height:
                        warped[:, row, column] += (1 - abs(x - i)) * (1 - abs(y - j)) * image[:, j, i]
    return warped


def test_warped_regions_equal_those_of_a_slow_implementation(random):
    image = random.normal(size=(3, 23, 31)).astype(np.float32)
    regions = np.array([[4, 3, 12, 19], [0, 0, 31, 23], [25.5, 18.25, 31, 23]], np.float32)
    warped = warp_regions(torch.from_numpy(image), torch.from_numpy(regions), 12, 3)
    for region, box in zip(warped, regions, strict=True):
        np.testing.assert_allclose(region, warp_region_slowly(image, box, 12, 3), atol=1e-5)


def test_a_warped_region_has_context_on_each_side():
    """The values of the image are the centers of its columns, so the warped region shows its position."""
    image = (torch.arange(100) + 0.5).expand(3, 80, 100)
    (region,) = warp_regions(image, torch.tensor([[40.0, 20, 88, 68]]), 80, 16)
    torch.testing.assert_close(region[0, 40, 16:64], torch.arange(40, 88) + 0.5)
    torch.testing.assert_close(region[0, 40, :16], torch.arange(24, 40) + 0.5)
    torch.testing.assert_close(region[0, 40, 64:76], torch.arange(88, 100) + 0.5)
    assert not region[:, :, 76:].any()  # beyond the image: the mean color


def test_networks_have_one_more_output_for_the_background():
    with torch.device("meta"):
        alex, vgg = rcnn_alexnet(20), rcnn_vgg16(20)
    fully_connected = 4097 * 4096 + 4097 * 21
    svms = 4097 * 20
    for network, convolutions, pool5 in ((alex, 2_469_696, 256 * 36), (vgg, 14_714_688, 512 * 49)):
        count = sum(parameter.numel() for parameter in network.parameters())
        assert count == convolutions + (pool5 + 1) * 4096 + fully_connected + svms + (pool5 + 1) * 80
    network = rcnn_alexnet(3, size=63, hidden=8, width_multiplier=0.125, dropout=0.0).eval()
    regions = torch.randn(5, 3, 63, 63)
    torch.testing.assert_close(network.compute_scores(network.fc7(regions)), network(regions))
    assert network.pool5(regions).shape == (5, 32)
    with pytest.raises(ValueError, match="at least 63×63, not 62×62"):
        rcnn_alexnet(size=62)
    with pytest.raises(ValueError, match="at least 32×32"):
        rcnn_vgg16(size=31)


def test_proposals_are_augmented_with_their_image(make):
    """A flip mirrors them, and a crop removes those of which too little is left."""
    batch = next(iter(dataclasses.replace(make(), augment=()).load_data().train))
    assert (batch.kinds == PROPOSAL).any(1).all()
    assert (batch.classes[batch.kinds == PROPOSAL] == -1).all()
    flip = augment_boxes.parse_box_augmentation(("flip=1",))
    flipped = augment_boxes.augment_batch(flip, batch, torch.zeros(4, flip.num_random_values))
    original = batch.boxes[0][batch.kinds[0] == PROPOSAL]
    mirrored = flipped.boxes[0][flipped.kinds[0] == PROPOSAL]
    width = batch.sizes[0, 1]
    expected = torch.stack([width - original[:, 2], original[:, 1], width - original[:, 0], original[:, 3]], 1)
    torch.testing.assert_close(mirrored, expected)
    crop = augment_boxes.parse_box_augmentation(("crop=0.2",))
    cropped = augment_boxes.augment_batch(
        crop, batch, torch.rand(4, crop.num_random_values, generator=torch.Generator().manual_seed(0))
    )
    is_left = (boxes.compute_area(cropped.boxes) > 0) & (cropped.kinds == PROPOSAL)
    assert 0 < is_left.sum() < (batch.kinds == PROPOSAL).sum()


def test_at_most_a_quarter_of_the_sampled_regions_are_positive(make):
    recipe = make(regions_per_image=8)
    data = recipe.load_data()
    task = recipe.build_task(data.labels)
    task.setup(Runtime.start("cpu", "float32"))
    task.prepare_training()
    batch = next(iter(data.train))
    regions, targets, is_valid = task.sample_regions(batch)
    assert regions.shape == (4, 8, 4)
    assert is_valid.all()
    assert ((targets > 0).sum(1) <= 2).all()
    for image in range(4):
        is_object = batch.classes[image] >= 0
        iou = boxes.compute_iou(regions[image], batch.boxes[image][is_object])
        best_iou, nearest = iou.max(1)
        is_positive = targets[image] > 0
        assert ((best_iou >= 0.5) == is_positive).all()
        assert (batch.classes[image][is_object][nearest][is_positive] + 1 == targets[image][is_positive]).all()


# the checks of every task


def test_overfits(make):
    check_task.check_overfits(partial(make, optimizer="adam", lr=2e-3, augment=(), schedule="constant"))


def test_evaluation_changes_nothing(make):
    check_task.check_evaluation_changes_nothing(make)


def test_saves_and_loads(make, inputs, tmp_path):
    check_task.check_saves_and_loads(make, inputs, tmp_path)


def test_unreadable_input(make, inputs, tmp_path):
    check_task.check_unreadable_input(make, inputs, tmp_path)


@pytest.mark.slow
def test_two_processes(scene_files, tmp_path):
    check_task.check_two_processes(partial(RCNNFinetune, data=str(scene_files), **QUICK), tmp_path)


def test_predictions_equal_the_detections_of_the_evaluation(make, inputs, scene_files):
    """The proposals that are computed for a prediction are those of the dataset."""
    recipe = make(data=str(scene_files), confidence=0.0)
    data = recipe.load_data()
    torch.manual_seed(0)
    task = recipe.build_task(data.labels)
    task.setup(Runtime.start("cpu", "float32"))
    task.prepare_training()
    task.model.eval()
    with torch.inference_mode():
        evaluated = {
            int(n): detections
            for batch in data.val
            for n, detections in zip(batch.indices, task.detect_batch(batch), strict=True)
        }
    files = [str(sample.source) for sample in data.val.samples]
    for image_index, prediction in enumerate(task.predict(files)):
        ratio = prediction["width"] / float(data.val.resized_sizes[image_index][1])
        expected = evaluated[image_index].boxes * torch.tensor(
            [ratio, prediction["height"] / float(data.val.resized_sizes[image_index][0])] * 2
        )
        assert len(prediction["boxes"]) == len(expected) > 0
        predicted = torch.tensor([box["box"] for box in prediction["boxes"]])
        torch.testing.assert_close(predicted.sort(0).values, expected.sort(0).values, atol=0.01, rtol=0)
        scores = torch.tensor([box["score"] for box in prediction["boxes"]])
        torch.testing.assert_close(scores, evaluated[image_index].scores, atol=2e-3, rtol=0)


def test_the_papers_constants_are_the_defaults():
    """The values are in Girshick et al. 2014, section 2.3 and appendices A to C."""
    recipe = RCNN()
    assert (recipe.svm_cost, recipe.svm_iou) == (1e-3, 0.3)
    assert (recipe.box_ridge, recipe.box_iou) == (1000, 0.6)
    assert (RCNNSVM(init="-").svm_cost, RCNNSVM(init="-").svm_iou) == (1e-3, 0.3)
    assert (RCNNBoxes(init="-").box_ridge, RCNNBoxes(init="-").box_iou) == (1000, 0.6)
    assert (recipe.size, recipe.context_padding) == (227, 16)  # appendix A


def test_small_proposals_and_those_after_the_first_2000_are_removed():
    """A proposal is at least 20 pixels wide and high, as in the authors' code."""
    proposals = np.zeros((2500, 4), np.float32)
    proposals[:, 2:] = (30, 20)
    proposals[:, 0] = np.arange(2500) / 1000  # at least 27.5 wide
    proposals[3, 2:], proposals[5, 2:] = (100, 19), (19, 100)
    filtered = filter_proposals(proposals)
    kept = [index for index in range(2002) if index not in (3, 5)]
    assert np.array_equal(filtered, proposals[kept])


def test_non_maximum_suppression_has_the_iou_threshold_of_the_authors_code(make):
    """The threshold is 0.3: a region of the same class with an IoU of 0.32 is suppressed, one with 0.28 is not."""
    recipe = make()
    task = recipe.build_task(tuple("ab"))
    task.setup(Runtime.start("cpu", "float32"))
    task.prepare_training()
    proposals = torch.tensor([[0.0, 0, 60, 50]] * 4)
    for index, iou in ((1, 0.32), (2, 0.28), (3, 0.6)):
        proposals[index, [0, 2]] += 60 * (1 - iou) / (1 + iou) * (-1 if index == 2 else 1)
    assert boxes.compute_iou(proposals[:1], proposals)[0].tolist() == pytest.approx([1, 0.32, 0.28, 0.6])
    proposals = proposals + torch.tensor([60.0, 0, 60, 0])
    scores = torch.tensor([[0.9, 0], [0.8, 0], [0.7, 0], [0, 0.6]])  # the last one has the other class
    task.score_regions = lambda fc7: scores
    detections = task.detect_in_proposals(
        torch.zeros(3, 100, 200), torch.tensor([100.0, 200]), proposals, torch.zeros(4, 16)
    )
    assert torch.equal(detections.boxes, proposals[[0, 2, 3]])
    assert detections.classes.tolist() == [0, 0, 1]


# SVMs and box regressors


def build_stage(recipe_class, **fields):
    """Build the task of a stage with a random network, and its loader."""
    recipe = recipe_class(init="-", **{"cache_limit": 0.0, **SMALL, **fields})
    samples, _, _, labels = detection_data.load_dataset("scenes", 0.2)
    loader = recipe.build_loader(samples, labels, train=True)
    torch.manual_seed(0)
    task = recipe.build_task(labels)
    task.setup(Runtime.start("cpu", "float32"))
    task.prepare_training()
    return task, loader


def run_stage(task, loader):
    """Run all steps of a stage; returns the logged metrics of each step."""
    steps = task.epochs * len(loader)
    return [task.step(batch) for _, batch in zip(range(steps), task.iterate_batches(loader), strict=False)]


def iterate_images(task, loader):
    """Iterate over the batch, the normalized image and the proposals of each image."""
    for batch in loader.iterate_in_order():
        image = task.normalize_images(batch.images, batch.sizes)[0]
        proposals = next(task.iterate_proposals(batch))
        yield batch, image, proposals


@pytest.mark.parametrize(
    ("retrain_interval", "min_correlation", "max_cost_ratio"), [(30, 0.94, 1.4), (10**9, 0.998, 1.02)]
)
def test_svms_with_mined_negatives_are_close_to_those_of_all_negatives(
    few_scenes, monkeypatch, retrain_interval, min_correlation, max_cost_ratio
):
    monkeypatch.setattr(frozen_feature_task, "RETRAIN_INTERVAL", retrain_interval)
    task, loader = build_stage(RCNNSVM, svm_cost=0.05, hidden=256)
    logged = run_stage(task, loader)
    positives, negatives = [[] for _ in task.labels], [[] for _ in task.labels]
    norms = []
    with torch.inference_mode():
        for batch, image, proposals in iterate_images(task, loader):
            objects = batch.boxes[0][batch.classes[0] >= 0]
            classes = batch.classes[0][batch.classes[0] >= 0]
            object_features = task.extract_features(image, objects).float()
            features = task.extract_features(image, proposals).float()
            norms += [*object_features.norm(dim=1).tolist(), *features[:8].norm(dim=1).tolist()]
            for class_index in range(len(task.labels)):
                iou = boxes.compute_iou(proposals, objects[classes == class_index])
                positives[class_index].append(object_features[classes == class_index])
                negatives[class_index].append(features[(iou < 0.3).all(1)])
    scale = 20 / np.mean(norms)
    for class_index in range(len(task.labels)):
        positive, negative = torch.cat(positives[class_index]), torch.cat(negatives[class_index])
        weight, bias = task.model.svm.weight[class_index], task.model.svm.bias[class_index]
        if not len(positive):
            assert bias == frozen_feature_task.ABSENT_CLASS_BIAS
            continue
        x = scale * torch.cat([positive, negative]).double().numpy()
        y = np.arange(len(positive) + len(negative)) < len(positive)
        exact = LinearSVC(C=0.05, loss="hinge", intercept_scaling=10, class_weight={True: 2.0}, tol=1e-5,
                          max_iter=10**6).fit(x, y)  # fmt: skip
        decision_values = torch.cat([positive, negative]) @ weight + bias
        assert np.corrcoef(decision_values, exact.decision_function(x))[0, 1] > min_correlation
        exact_cost = compute_svm_cost(x, y, exact.coef_[0], exact.intercept_[0])
        assert compute_svm_cost(x, y, weight / scale, bias) < max_cost_ratio * exact_cost
    assert sum(step["hard_negatives"] for step in logged[:8]) == 0
    num_negatives = sum(len(features) for class_features in negatives for features in class_features)
    assert task.fitter.store["is_negative"].sum() < 0.7 * num_negatives  # the easy ones were removed


def compute_svm_cost(x, y, weight, bias):
    """Compute the objective that the SVM solver minimizes."""
    weight, bias = np.asarray(weight, np.float64), float(bias)
    hinge = np.maximum(0, 1 - np.where(y, 1, -1) * (x @ weight + bias))
    return 0.5 * weight @ weight + 0.5 * (bias / 10) ** 2 + 0.05 * (np.where(y, 2, 1) * hinge).sum()


def test_regions_on_difficult_objects_and_crowds_are_not_negatives():
    truth = torch.tensor([[0.0, 0, 20, 20], [50, 0, 70, 20], [0, 50, 60, 90]])
    proposals = torch.tensor([[0.0, 0, 20, 14], [50, 0, 70, 14], [5, 55, 15, 65], [80, 80, 99, 99], [0, 0, 20, 90]])
    kinds = torch.tensor([REGULAR, DIFFICULT, CROWD, *[PROPOSAL] * 5])
    batch = PaddedBatch(
        *[torch.zeros(1)] * 3,
        torch.cat([truth, proposals])[None],
        torch.tensor([[0, 1, 1, *[-1] * 5]]),
        kinds[None],
        *[torch.zeros(1)] * 3,
    )
    is_negative = frozen_feature_task.find_negatives(batch, proposals, 3, 0.3)
    assert is_negative.tolist() == [
        [False, True, True], [True, False, True], [True, False, True], [True, True, True], [True, True, True],
    ]  # fmt: skip


def test_box_regressors_solve_the_normal_equations(few_scenes):
    task, loader = build_stage(RCNNBoxes, box_ridge=7.0, box_iou=0.5)
    run_stage(task, loader)
    inputs, targets, classes = [], [], []
    with torch.inference_mode():
        for batch, image, proposals in iterate_images(task, loader):
            is_object = batch.classes[0] >= 0
            best_iou, nearest = boxes.compute_iou(proposals, batch.boxes[0][is_object]).max(1)
            is_used = best_iou >= 0.5
            inputs.append(task.extract_features(image, proposals[is_used], "pool5").double())
            objects = batch.boxes[0][is_object][nearest[is_used]]
            targets.append(boxes.encode_boxes(objects, proposals[is_used]).double())
            classes.append(batch.classes[0][is_object][nearest[is_used]])
    x, y, classes = torch.cat(inputs), torch.cat(targets), torch.cat(classes)
    scale = 20 / x.norm(dim=1).mean()
    weights, biases = task.model.bbox.weight.double().view(8, 4, -1), task.model.bbox.bias.double().view(8, 4)
    for class_index in range(8):
        is_class = classes == class_index
        if not is_class.any():
            assert not weights[class_index].any()
            continue
        z = scale * x[is_class]
        z_mean, y_mean = z.mean(0), y[is_class].mean(0)
        normal = (z - z_mean).T @ (z - z_mean) + 7 * torch.eye(z.shape[1])
        expected = torch.linalg.solve(normal, (z - z_mean).T @ (y[is_class] - y_mean)).T
        torch.testing.assert_close(weights[class_index], scale * expected, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(biases[class_index], y_mean - expected @ z_mean, rtol=1e-3, atol=1e-4)


def test_the_number_of_training_regions_of_a_class_is_limited(few_scenes):
    task, loader = build_stage(RCNNBoxes)
    task.fitter.max_training_regions = 1
    run_stage(task, loader)
    assert task.fitter.store["classes"].bincount().max() < 40  # the regions of one image


@pytest.mark.parametrize("stage", [RCNNSVM, RCNNBoxes])
def test_an_unreadable_streamed_image_is_skipped(scene_files, tmp_path, stage):
    shutil.copytree(scene_files, tmp_path / "scenes")
    file = tmp_path / "scenes" / "train" / "3.png"
    recipe = stage(init="-", cache_limit=0.0, data=str(tmp_path / "scenes"), memory_limit=0.0, **SMALL)
    samples, _, _, labels = detection_data.load_dataset(recipe.data, 0.2)
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    loader = recipe.build_loader(samples, labels, train=True)
    torch.manual_seed(0)
    task = recipe.build_task(labels)
    task.setup(Runtime.start("cpu", "float32"))
    task.prepare_training()
    logged = run_stage(task, loader)
    assert len(logged) == 8 * task.epochs
    assert len(loader.unreadable_images) == 1
    fitted = task.model.svm if stage is RCNNSVM else task.model.bbox
    assert fitted.weight.any()


# feature cache


def test_the_feature_cache_does_not_change_the_result(few_scenes, monkeypatch):
    uncached, cached, repeated = (build_stage(RCNNSVM, cache_limit=cache) for cache in (0.0, 1.0, 1.0))
    run_stage(*uncached)
    run_stage(*cached)
    (uncached, _), (cached, _), (repeated, loader) = uncached, cached, repeated
    files = list(cached.feature_cache.folder.glob("*.safetensors"))
    assert len(files) == 8
    files[0].write_bytes(b"corrupted")
    computed = []
    compute = repeated.extract_features
    monkeypatch.setattr(repeated, "extract_features", lambda *args: computed.append(len(args[1])) or compute(*args))
    run_stage(repeated, loader)
    assert len(computed) == 8 + 1  # the positives of each image, and the corrupted one
    for task in (cached, repeated):
        assert torch.equal(task.model.svm.weight, uncached.model.svm.weight)


def test_the_svm_stage_reuses_the_cached_features_of_the_fine_tuned_network(few_scenes, monkeypatch):
    finetuned, loader = build_stage(RCNNFinetune, cache_limit=1.0)
    uncached, _ = build_stage(RCNNFinetune, cache_limit=0.0)
    svm_stage, images = build_stage(RCNNSVM, cache_limit=2.0)
    for is_trained in (False, True):
        if is_trained:
            finetuned.schedule(0.5)
            finetuned.step(next(iter(finetuned.iterate_batches(loader))))
        uncached.model.load_state_dict(finetuned.model.state_dict())
        assert finetuned.evaluate(images) == uncached.evaluate(images)
    svm_stage.model.load_state_dict(finetuned.model.state_dict())
    monkeypatch.setattr(svm_stage, "extract_features", None)
    svm_stage.evaluate(images)


def test_networks_of_equal_weights_and_other_strides_have_their_own_features():
    folders = set()
    for stride in (1, 2):
        torch.manual_seed(0)
        folders.add(feature_cache.FeatureCache(torch.nn.Conv2d(1, 1, 3, stride), "", 1.0).folder)
    assert len(folders) == 2


def test_the_feature_cache_has_a_size_limit_and_deletes_the_oldest_network(tmp_path):
    image, regions = torch.rand(3, 8, 8), torch.rand(5, 4)
    old = feature_cache.FeatureCache(torch.nn.Linear(2, 2), "", 1e-3)
    old.write(old.get_path(image, regions), torch.zeros(300_000, dtype=torch.float16))
    assert old.read(old.get_path(image, regions)) is not None
    new = feature_cache.FeatureCache(torch.nn.Linear(2, 2), "", 1e-3)
    assert not old.folder.exists()
    assert new.folder != old.folder
    for index in range(4):
        path = new.get_path(image + index, regions)
        new.write(path, torch.zeros(150_000, dtype=torch.float16))
        assert (new.read(path) is not None) == (index < 3)


def test_an_unwritable_feature_cache_is_a_warning(tmp_path, monkeypatch, caplog):
    (tmp_path / "cache").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cache = feature_cache.FeatureCache(torch.nn.Linear(2, 2), "", 1.0)
    (tmp_path / "cache" / "fukami").write_text("")  # a file where a folder should be
    path = cache.get_path(torch.zeros(3, 4, 4), torch.zeros(1, 4))
    for _ in range(2):
        cache.write(path, torch.zeros(1, 8))
    assert cache.read(path) is None
    assert caplog.text.count("cannot be written") == 1
    assert "make room there, or set XDG_CACHE_HOME" in caplog.text


# the stages in turn


@pytest.fixture
def frequent_checkpoints(monkeypatch):
    """A checkpoint after each step, and no report."""
    monkeypatch.setattr("fukami.engine.async_checkpoint.MIN_CHECKPOINT_INTERVAL", 0.0)
    monkeypatch.setattr("fukami.engine.async_checkpoint.MAX_CHECKPOINT_FRACTION", 1e9)


def test_an_image_without_detections_has_no_boxes(few_scenes, fukami):
    """Nor has a strip whose proposals are all too small."""
    flags = [word for name, value in QUICK.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    trained = fukami("train", "rcnn", *flags, "--out", "run", "--no-compile")
    assert trained.status == 0, trained.err
    Image.new("RGB", (90, 70), "gray").save("gray.png")
    Image.new("RGB", (1000, 20), "gray").save("strip.png")
    result = fukami("predict", "run", "gray.png", "strip.png")
    assert result.status == 0, result.err
    assert [prediction["width"] for prediction in result.json] == [90, 1000]
    assert result.json[1]["boxes"] == []


def test_several_processes_are_an_error_before_the_first_stage(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match=r"one process fits .*, not 2; start one, or .* rcnn-finetune with several"):
        RCNN(**QUICK)


def test_a_moved_run_is_resumed(few_scenes, frequent_checkpoints, tmp_path):
    recipe = RCNN(**QUICK)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BoxRegressionFitter, "fit_regressors", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            package.train(recipe, tmp_path / "old", device="cpu", precision="float32")
    (tmp_path / "old").rename(tmp_path / "new")
    assert package.train(recipe, tmp_path / "new", device="cpu", precision="float32", resume=True).metrics["count"] == 4


def test_training_interrupted_and_resumed_in_each_stage_equals_uninterrupted_training(
    few_scenes, frequent_checkpoints, tmp_path
):
    recipe = RCNN(**QUICK)
    uninterrupted, resumed = tmp_path / "uninterrupted", tmp_path / "resumed"
    result = package.train(recipe, uninterrupted, device="cpu", precision="float32").metrics
    assert result["count"] == 4
    for owner, method, num_steps in (
        (RCNNFinetuneTask, "step", 3),
        (SVMFitter, "process_image", 5),
        (SVMFitter, "process_image", 9),
        (BoxRegressionFitter, "process_image", 5),
    ):
        with pytest.MonkeyPatch.context() as patch:
            steps, step = [], getattr(owner, method)

            def fail(self, *arguments, steps=steps, step=step, num_steps=num_steps):
                steps.append(arguments)
                if len(steps) > num_steps:
                    raise KeyboardInterrupt
                return step(self, *arguments)

            patch.setattr(owner, method, fail)
            with pytest.raises(KeyboardInterrupt):
                package.train(recipe, resumed, device="cpu", precision="float32", resume=resumed.exists())
    resumed_result = package.train(recipe, resumed, device="cpu", precision="float32", resume=True).metrics
    assert resumed_result == result
    for name in ("finetune", "svm", "."):
        assert run_record.is_finished(resumed / name)
        one, other = ((run / name / "weights.safetensors").read_bytes() for run in (uninterrupted, resumed))
        assert one == other
    task = load_task(uninterrupted, device="cpu")
    assert task.evaluate(recipe.load_data().val) | {"split": "val"} == result
    for name in ("finetune", "svm"):  # each stage is a run
        assert load_task(uninterrupted / name, device="cpu").evaluate(recipe.load_data().val)["count"] == 4


@pytest.mark.slow
@pytest.mark.report
@pytest.mark.parametrize("method", ["evaluate", "plot_evaluation"])
def test_a_signal_at_the_end_of_a_stage_does_not_start_the_next(
    method, few_scenes, frequent_checkpoints, monkeypatch, tmp_path
):
    recipe = RCNN(**{**QUICK, "epochs": 1})
    original = getattr(RCNNFinetuneTask, method)

    def raise_signal(self, batches):
        signal.raise_signal(signal.SIGTERM)
        return original(self, batches)

    with monkeypatch.context() as patch:
        patch.setattr(RCNNFinetuneTask, method, raise_signal)
        with pytest.raises(SystemExit) as exit_info:
            package.train(recipe, tmp_path / "run", device="cpu", precision="float32")
    assert exit_info.value.code == 143
    assert not (tmp_path / "run" / "svm").exists()
    package.train(recipe, tmp_path / "run", device="cpu", precision="float32", resume=True)
    assert run_record.is_finished(tmp_path / "run")


@pytest.fixture
def finetuned(few_scenes, tmp_path):
    package.train(RCNNFinetune(**{**QUICK, "epochs": 1}), tmp_path / "finetune", device="cpu")
    return tmp_path / "finetune"


def test_stages_run_one_by_one(finetuned, fukami, monkeypatch, tmp_path):
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    result = fukami("train", "rcnn-svm", "--init", finetuned, *flags, "--out", tmp_path / "svm", "--device", "cpu")
    assert result.status == 0, result.err
    result = fukami("train", "rcnn-boxes", "--init", tmp_path / "svm", *flags, "--out", tmp_path / "boxes")
    assert result.status == 0, result.err
    assert result.json[-1]["count"] == 4
    assert "run" in result.json[-1]


def test_finished_stages_are_not_trained_again(finetuned, monkeypatch):
    """A finished stage in the run's folder is used if its recipe is the same."""

    def fail(self, batch):
        raise AssertionError("trained again")

    monkeypatch.setattr(RCNNFinetuneTask, "step", fail)
    package.train(RCNN(**{**QUICK, "epochs": 1}), finetuned.parent, device="cpu")
    assert run_record.is_finished(finetuned.parent)


def test_an_unsuitable_previous_stage_is_an_error(finetuned, tmp_path):
    for fields, message in (
        ({}, r"rcnn-svm continues a run of rcnn-finetune; specify its folder with --init DIR"),
        ({"init": str(tmp_path / "none")}, r"neither a run's folder nor"),
        ({"init": str(finetuned), "hidden": 8}, r"other field values; use the same ones: --hidden 16"),
    ):
        with pytest.raises(UsageError, match=message):
            package.train(RCNNSVM(**{**SMALL, **fields}), tmp_path / "out", device="cpu")
    with pytest.raises(UsageError, match=r"is a run of rcnn-finetune; rcnn-boxes continues a run of rcnn-svm"):
        package.train(RCNNBoxes(init=str(finetuned), **SMALL), tmp_path / "out", device="cpu")
    record = json.loads((finetuned / "recipe.json").read_text())
    atomic_file.write_file(finetuned / "recipe.json", json.dumps({**record, "labels": ["other"]}).encode())
    with pytest.raises(UsageError, match=r"has the classes other, and the data have circle"):
        package.train(RCNNSVM(init=str(finetuned), **SMALL), tmp_path / "out", device="cpu")
    del record["time"]
    atomic_file.write_file(finetuned / "recipe.json", json.dumps(record).encode())
    with pytest.raises(UsageError, match=r"is not finished; .* fukami train rcnn-finetune --out .* --resume"):
        package.train(RCNNSVM(init=str(finetuned), **SMALL), tmp_path / "out2", device="cpu")


@pytest.mark.parametrize(
    ("recipe_class", "fields", "message"),
    [
        (
            RCNNSVM,
            {"lr": 0.5, "batch_size": 3},
            r"rcnn-svm does not train by gradient descent: remove --batch-size and --lr",
        ),
        (RCNNFinetune, {"size": 62}, r"size should be between 63 and 2048, not 62"),
        (RCNN, {"context_padding": 114}, r"context-padding should be between 0 and 113"),
        (RCNN, {"activation_checkpointing": True}, r"use --accumulate"),
        (RCNN, {"svm_iou": 0.0}, r"svm-iou should be"),
        (RCNN, {"box_ridge": -1.0}, r"box-ridge should be"),
        (RCNN, {"cache_limit": -1.0}, r"cache-limit should be"),
    ],
)
def test_invalid_fields_are_an_error(recipe_class, fields, message):
    with pytest.raises(UsageError, match=message):
        recipe_class(**fields)


def test_find_lr_does_not_support_stages_without_gradient_descent(finetuned, fukami):
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    result = fukami("find-lr", "rcnn-svm", "--init", finetuned, *flags)
    assert result.status == 2
    assert "follows one loss of gradient descent" in result.err


def test_export_is_an_error_since_the_proposals_are_not_part_of_the_network(finetuned, fukami):
    result = fukami("export", finetuned, "--to", "onnx")
    assert result.status == 2
    assert "its regions are proposed by Selective Search, not by the network" in result.err


def test_the_solvers_run_in_one_process():
    task = RCNNSVM(init="-", **SMALL).build_task(("a", "b"))
    task.setup(dataclasses.replace(Runtime.start("cpu", "float32"), world_size=2))
    with pytest.raises(UsageError, match=r"one process fits .*, not 2; start one"):
        task.prepare_training()

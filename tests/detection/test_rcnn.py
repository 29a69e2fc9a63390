"""R-CNN: regions and features by hand, machines and boxes against scikit-learn, and the stages one after another."""

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
from fukami import UsageError
from fukami.data import augment_boxes, feature_cache
from fukami.data.samples import CROWD, DIFFICULT, PROPOSAL, REGULAR, PaddedBatch
from fukami.detection import data as detection_data
from fukami.detection import rcnn_svm_task
from fukami.detection.rcnn import RCNN, RCNNSVM, RCNNBoxes, RCNNFinetune
from fukami.detection.rcnn_svm_task import BoxRegressionTask, SVMTask
from fukami.detection.rcnn_task import RCNNFinetuneTask, filter_proposals
from fukami.engine import checkpoint
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


def slowly(image, box, size, context):
    """Each pixel of a warped region by itself, from its four neighbours; beyond the image there is 0."""
    channels, height, width = image.shape
    left, top, right, bottom = box
    found = np.zeros((channels, size, size))
    for row in range(size):
        for column in range(size):
            x = left + (column + 0.5 - context) * (right - left) / (size - 2 * context) - 0.5
            y = top + (row + 0.5 - context) * (bottom - top) / (size - 2 * context) - 0.5
            for j in (int(np.floor(y)), int(np.floor(y)) + 1):
                for i in (int(np.floor(x)), int(np.floor(x)) + 1):
                    if 0 <= i < width and 0 <= j < height:
                        found[:, row, column] += (1 - abs(x - i)) * (1 - abs(y - j)) * image[:, j, i]
    return found


def test_regions_are_warped_as_slowly_by_hand(random):
    image = random.normal(size=(3, 23, 31)).astype(np.float32)
    regions = np.array([[4, 3, 12, 19], [0, 0, 31, 23], [25.5, 18.25, 31, 23]], np.float32)
    found = warp_regions(torch.from_numpy(image), torch.from_numpy(regions), 12, 3)
    for region, box in zip(found, regions, strict=True):
        np.testing.assert_allclose(region, slowly(image, box, 12, 3), atol=1e-5)


def test_a_region_has_its_context_around_it():
    """On an image whose values are the columns' middles, a region of 16 pixels and 16 of context shows where it is."""
    image = (torch.arange(100) + 0.5).expand(3, 80, 100)
    (region,) = warp_regions(image, torch.tensor([[40.0, 20, 88, 68]]), 80, 16)
    torch.testing.assert_close(region[0, 40, 16:64], torch.arange(40, 88) + 0.5)
    torch.testing.assert_close(region[0, 40, :16], torch.arange(24, 40) + 0.5)
    torch.testing.assert_close(region[0, 40, 64:76], torch.arange(88, 100) + 0.5)
    assert not region[:, :, 76:].any()  # beyond the image: the mean colour


def test_networks_are_classifiers_of_one_class_more():
    with torch.device("meta"):
        alex, vgg = rcnn_alexnet(20), rcnn_vgg16(20)
    affine = 4097 * 4096 + 4097 * 21
    solved = 4097 * 20
    for network, convolutions, pool5 in ((alex, 2_469_696, 256 * 36), (vgg, 14_714_688, 512 * 49)):
        count = sum(parameter.numel() for parameter in network.parameters())
        assert count == convolutions + (pool5 + 1) * 4096 + affine + solved + (pool5 + 1) * 80
    network = rcnn_alexnet(3, size=63, hidden=8, width_multiplier=0.125, dropout=0.0).eval()
    regions = torch.randn(5, 3, 63, 63)
    torch.testing.assert_close(network.compute_scores(network.fc7(regions)), network(regions))
    assert network.pool5(regions).shape == (5, 32)
    with pytest.raises(ValueError, match="at least 63×63, not 62×62"):
        rcnn_alexnet(size=62)
    with pytest.raises(ValueError, match="at least 32×32"):
        rcnn_vgg16(size=31)


def test_proposals_move_with_the_pixels(make):
    """Flipped with their image, they show the same; those of which too little is left are gone."""
    batch = next(iter(dataclasses.replace(make(), augment=()).load_data().train))
    assert (batch.kinds == PROPOSAL).any(1).all()
    assert (batch.classes[batch.kinds == PROPOSAL] == -1).all()
    flip = augment_boxes.parse_box_augmentation(("flip=1",))
    moved = augment_boxes.augment_batch(flip, batch, torch.zeros(4, flip.num_draws))
    own = batch.boxes[0][batch.kinds[0] == PROPOSAL]
    other = moved.boxes[0][moved.kinds[0] == PROPOSAL]
    width = batch.sizes[0, 1]
    torch.testing.assert_close(other, torch.stack([width - own[:, 2], own[:, 1], width - own[:, 0], own[:, 3]], 1))
    crop = augment_boxes.parse_box_augmentation(("crop=0.2",))
    cut = augment_boxes.augment_batch(
        crop, batch, torch.rand(4, crop.num_draws, generator=torch.Generator().manual_seed(0))
    )
    left = (boxes.compute_area(cut.boxes) > 0) & (cut.kinds == PROPOSAL)
    assert 0 < left.sum() < (batch.kinds == PROPOSAL).sum()


def test_regions_are_drawn_a_quarter_objects(make):
    recipe = make(regions_per_image=8)
    data = recipe.load_data()
    task = recipe.build_task(data.labels)
    task.setup(Runtime.start("cpu", "float32"))
    batch = next(iter(data.train))
    regions, targets, there = task.sample_regions(batch)
    assert regions.shape == (4, 8, 4)
    assert there.all()
    assert ((targets > 0).sum(1) <= 2).all()
    for image in range(4):
        known = batch.classes[image] >= 0
        overlap = boxes.compute_iou(regions[image], batch.boxes[image][known])
        most, which = overlap.max(1)
        assert ((most >= 0.5) == (targets[image] > 0)).all()
        named = targets[image] > 0
        assert (batch.classes[image][known][which][named] + 1 == targets[image][named]).all()


# the contract


def test_overfits(make):
    check_task.check_overfits(partial(make, optimizer="adam", lr=2e-3, augment=(), schedule="constant"))


def test_evaluation_changes_nothing(make):
    check_task.check_evaluation_changes_nothing(make)


def test_saves_and_loads(make, inputs, pageless, tmp_path):
    check_task.check_saves_and_loads(make, inputs, tmp_path)


def test_broken_input(make, inputs, tmp_path):
    check_task.check_broken_input(make, inputs, tmp_path)


def test_two_processes(scene_files, tmp_path):
    check_task.check_two_processes(partial(RCNNFinetune, data=str(scene_files), **QUICK), tmp_path)


def test_images_are_answered_as_they_are_judged(make, inputs, scene_files):
    """Proposals found on the spot are those of the data."""
    recipe = make(data=str(scene_files))
    data = recipe.load_data()
    torch.manual_seed(0)
    task = recipe.build_task(data.labels)
    task.setup(Runtime.start("cpu", "float32"))
    task.model.eval()
    with torch.inference_mode():
        judged = {
            int(n): found
            for batch in data.val
            for n, found in zip(batch.indices, task.detect_batch(batch), strict=True)
        }
    files = [str(sample.source) for sample in data.val.samples]
    for number, answer in enumerate(task.predict(files)):
        ratio = answer["width"] / float(data.val.resized_sizes[number][1])
        expected = judged[number].boxes * torch.tensor(
            [ratio, answer["height"] / float(data.val.resized_sizes[number][0])] * 2
        )
        assert len(answer["boxes"]) == len(expected) > 0
        found = torch.tensor([each["box"] for each in answer["boxes"]])
        torch.testing.assert_close(found.sort(0).values, expected.sort(0).values, atol=0.01, rtol=0)
        scores = torch.tensor([each["score"] for each in answer["boxes"]])
        torch.testing.assert_close(scores, judged[number].scores, atol=2e-3, rtol=0)


def test_the_papers_constants_are_the_defaults():
    """Girshick et al. 2014: section 2.3 and appendices B and C."""
    recipe = RCNN()
    assert (recipe.svm_cost, recipe.svm_iou) == (1e-3, 0.3)
    assert (recipe.box_ridge, recipe.box_iou) == (1000, 0.6)
    assert (RCNNSVM(init="-").svm_cost, RCNNSVM(init="-").svm_iou) == (1e-3, 0.3)
    assert (RCNNBoxes(init="-").box_ridge, RCNNBoxes(init="-").box_iou) == (1000, 0.6)
    assert (recipe.size, recipe.context_padding) == (227, 16)  # appendix A


def test_small_proposals_and_those_after_the_first_2000_are_not_looked_into():
    """As in the authors' code: 20 pixels wide and high, at least."""
    proposals = np.zeros((2500, 4), np.float32)
    proposals[:, 2:] = (30, 20)
    proposals[:, 0] = np.arange(2500) / 1000  # at least 27.5 wide
    proposals[3, 2:], proposals[5, 2:] = (100, 19), (19, 100)
    found = filter_proposals(proposals)
    kept = [number for number in range(2002) if number not in (3, 5)]
    assert np.array_equal(found, proposals[kept])


def test_a_region_is_suppressed_by_a_better_one_that_it_overlaps_by_three_tenths(make):
    """Of its class: one that overlaps it by 0.32 is, one by 0.28 is not (the threshold of the authors' code is 0.3)."""
    recipe = make()
    task = recipe.build_task(tuple("ab"))
    task.setup(Runtime.start("cpu", "float32"))
    proposals = torch.tensor([[0.0, 0, 60, 50]] * 4)
    for number, overlap in ((1, 0.32), (2, 0.28), (3, 0.6)):
        proposals[number, [0, 2]] += 60 * (1 - overlap) / (1 + overlap) * (-1 if number == 2 else 1)
    assert boxes.compute_iou(proposals[:1], proposals)[0].tolist() == pytest.approx([1, 0.32, 0.28, 0.6])
    proposals = proposals + torch.tensor([60.0, 0, 60, 0])
    scores = torch.tensor([[0.9, 0], [0.8, 0], [0.7, 0], [0, 0.6]])  # the last one is of the other class
    task.score_regions = lambda fc7: scores
    found = task.detect_in_proposals(
        torch.zeros(3, 100, 200), torch.tensor([100.0, 200]), proposals, torch.zeros(4, 16)
    )
    assert torch.equal(found.boxes, proposals[[0, 2, 3]])
    assert found.classes.tolist() == [0, 0, 1]


# machines and boxes


def solving(cls, **fields):
    """A stage's task on a random network, and its batches of one pass."""
    recipe = cls(init="-", **{"cache_limit": 0.0, **SMALL, **fields})
    samples, _, labels = detection_data.load_dataset("scenes", 0.2)
    loader = recipe.build_loader(samples, labels, train=True)
    torch.manual_seed(0)
    task = recipe.build_task(labels)
    task.setup(Runtime.start("cpu", "float32"))
    return task, loader


def work(task, loader):
    """The whole stage; returns what it logged."""
    steps, _ = task.count_steps(loader)
    return [task.step(batch) for _, batch in zip(range(steps), task.iterate_batches(loader), strict=False)]


def seen(task, loader):
    """Of each image: its batch, proposals and their features, at once."""
    for batch in loader.iterate_in_order():
        image = task.normalize_images(batch.images, batch.sizes)[0]
        proposals = next(task.iterate_proposals(batch))
        yield batch, image, proposals


@pytest.mark.parametrize(("afresh", "alike", "more"), [(30, 0.94, 1.4), (10**9, 0.998, 1.02)])
def test_mined_machines_are_those_of_all_negatives_at_once(few_scenes, monkeypatch, afresh, alike, more):
    monkeypatch.setattr(rcnn_svm_task, "RETRAIN_INTERVAL", afresh)
    task, loader = solving(RCNNSVM, svm_cost=0.05, hidden=256)
    logged = work(task, loader)
    positives, negatives = [[] for _ in task.labels], [[] for _ in task.labels]
    norms = []
    with torch.inference_mode():
        for batch, image, proposals in seen(task, loader):
            objects = batch.boxes[0][batch.classes[0] >= 0]
            numbers = batch.classes[0][batch.classes[0] >= 0]
            found = task.extract_features(image, objects).float()
            own = task.extract_features(image, proposals).float()
            norms += [*found.norm(dim=1).tolist(), *own[:8].norm(dim=1).tolist()]
            for number in range(len(task.labels)):
                overlap = boxes.compute_iou(proposals, objects[numbers == number])
                positives[number].append(found[numbers == number])
                negatives[number].append(own[(overlap < 0.3).all(1)])
    scale = 20 / np.mean(norms)
    for number in range(len(task.labels)):
        yes, no = torch.cat(positives[number]), torch.cat(negatives[number])
        weight, bias = task.model.svm.weight[number], task.model.svm.bias[number]
        if not len(yes):
            assert bias == rcnn_svm_task.ABSENT_CLASS_MARGIN
            continue
        x, y = scale * torch.cat([yes, no]).double().numpy(), np.arange(len(yes) + len(no)) < len(yes)
        exact = LinearSVC(C=0.05, loss="hinge", intercept_scaling=10, class_weight={True: 2.0}, tol=1e-5,
                          max_iter=10**6).fit(x, y)  # fmt: skip
        margins = torch.cat([yes, no]) @ weight + bias
        assert np.corrcoef(margins, exact.decision_function(x))[0, 1] > alike
        assert cost(x, y, weight / scale, bias) < more * cost(x, y, exact.coef_[0], exact.intercept_[0])
    assert sum(step["hard"] for step in logged[:8]) == 0
    assert task.collected["members"].sum() < 0.7 * sum(len(each) for own in negatives for each in own)  # the easy left


def cost(x, y, weight, bias):
    """What the solver makes least."""
    weight, bias = np.asarray(weight, np.float64), float(bias)
    short = np.maximum(0, 1 - np.where(y, 1, -1) * (x @ weight + bias))
    return 0.5 * weight @ weight + 0.5 * (bias / 10) ** 2 + 0.05 * (np.where(y, 2, 1) * short).sum()


def test_regions_on_difficult_objects_and_crowds_are_neither():
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
    found = rcnn_svm_task.find_negatives(batch, proposals, 3, 0.3)
    assert found.tolist() == [
        [False, True, True], [True, False, True], [True, False, True], [True, True, True], [True, True, True],
    ]  # fmt: skip


def test_boxes_are_regressed_as_the_normal_equations_say(few_scenes):
    task, loader = solving(RCNNBoxes, box_ridge=7.0, box_iou=0.5)
    work(task, loader)
    inputs, goals, numbers = [], [], []
    with torch.inference_mode():
        for batch, image, proposals in seen(task, loader):
            known = batch.classes[0] >= 0
            most, which = boxes.compute_iou(proposals, batch.boxes[0][known]).max(1)
            near = most >= 0.5
            inputs.append(task.extract_features(image, proposals[near], "pool5").double())
            target = batch.boxes[0][known][which[near]]
            goals.append(boxes.encode_boxes(target, proposals[near]).double())
            numbers.append(batch.classes[0][known][which[near]])
    x, y, numbers = torch.cat(inputs), torch.cat(goals), torch.cat(numbers)
    scale = 20 / x.norm(dim=1).mean()
    weights, biases = task.model.bbox.weight.double().view(8, 4, -1), task.model.bbox.bias.double().view(8, 4)
    for number in range(8):
        own = numbers == number
        if not own.any():
            assert not weights[number].any()
            continue
        z = scale * x[own]
        middle, goal = z.mean(0), y[own].mean(0)
        normal = (z - middle).T @ (z - middle) + 7 * torch.eye(z.shape[1])
        expected = torch.linalg.solve(normal, (z - middle).T @ (y[own] - goal)).T
        torch.testing.assert_close(weights[number], scale * expected, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(biases[number], goal - expected @ middle, rtol=1e-3, atol=1e-4)


def test_a_class_has_so_many_pairs_at_most(few_scenes):
    task, loader = solving(RCNNBoxes)
    task.max_pairs = 1
    work(task, loader)
    assert task.collected["classes"].bincount().max() < 40  # those of one image


@pytest.mark.parametrize("stage", [RCNNSVM, RCNNBoxes])
def test_a_streamed_image_that_is_broken_is_passed_over(scene_files, tmp_path, stage):
    shutil.copytree(scene_files, tmp_path / "scenes")
    file = tmp_path / "scenes" / "train" / "3.png"
    recipe = stage(init="-", cache_limit=0.0, data=str(tmp_path / "scenes"), memory_limit=0.0, **SMALL)
    samples, _, labels = detection_data.load_dataset(recipe.data, 0.2)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    loader = recipe.build_loader(samples, labels, train=True)
    torch.manual_seed(0)
    task = recipe.build_task(labels)
    task.setup(Runtime.start("cpu", "float32"))
    logged = work(task, loader)
    assert len(logged) == 8 * task.num_passes
    assert len(loader.broken_images) == 1
    solved = task.model.svm if stage is RCNNSVM else task.model.bbox
    assert solved.weight.any()


# kept features


def test_kept_features_make_no_difference(few_scenes, monkeypatch):
    plain, keeping, again = (solving(RCNNSVM, cache_limit=cache) for cache in (0.0, 1.0, 1.0))
    work(*plain)
    work(*keeping)
    (plain, _), (keeping, _), (again, loader) = plain, keeping, again
    files = list(keeping.feature_cache.folder.glob("*.safetensors"))
    assert len(files) == 8
    files[0].write_bytes(b"damaged")
    computed = []
    compute = again.extract_features
    monkeypatch.setattr(again, "extract_features", lambda *given: computed.append(len(given[1])) or compute(*given))
    work(again, loader)
    assert len(computed) == 8 + 1  # the positives of each image, and the damaged one
    for other in (keeping, again):
        assert torch.equal(other.model.svm.weight, plain.model.svm.weight)


def test_what_fine_tuning_was_judged_by_is_kept_for_the_machines(few_scenes, monkeypatch):
    tuned, loader = solving(RCNNFinetune, cache_limit=1.0)
    plain, _ = solving(RCNNFinetune, cache_limit=0.0)
    later, images = solving(RCNNSVM, cache_limit=2.0)
    for learned in (False, True):
        if learned:
            tuned.schedule(0.5)
            tuned.step(next(iter(tuned.iterate_batches(loader))))
        plain.model.load_state_dict(tuned.model.state_dict())
        assert tuned.evaluate(images) == plain.evaluate(images)
    later.model.load_state_dict(tuned.model.state_dict())
    monkeypatch.setattr(later, "extract_features", None)
    later.evaluate(images)


def test_features_take_so_much_room_and_the_oldest_give_way(tmp_path):
    image, regions = torch.rand(3, 8, 8), torch.rand(5, 4)
    old = feature_cache.FeatureCache(torch.nn.Linear(2, 2), "", 1e-3)
    old.write(old.get_path(image, regions), torch.zeros(300_000, dtype=torch.float16))
    assert old.read(old.get_path(image, regions)) is not None
    new = feature_cache.FeatureCache(torch.nn.Linear(2, 2), "", 1e-3)
    assert not old.folder.exists()
    assert new.folder != old.folder
    for number in range(4):
        path = new.get_path(image + number, regions)
        new.write(path, torch.zeros(150_000, dtype=torch.float16))
        assert (new.read(path) is not None) == (number < 3)


def test_where_the_cache_cannot_be_written_work_goes_on(tmp_path, monkeypatch, caplog):
    (tmp_path / "cache").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kept = feature_cache.FeatureCache(torch.nn.Linear(2, 2), "", 1.0)
    (tmp_path / "cache" / "fukami").write_text("")  # a file where a folder should be
    path = kept.get_path(torch.zeros(3, 4, 4), torch.zeros(1, 4))
    for _ in range(2):
        kept.write(path, torch.zeros(1, 8))
    assert kept.read(path) is None
    assert caplog.text.count("cannot be written") == 1
    assert "make room there, or set XDG_CACHE_HOME" in caplog.text


# the stages one after another


@pytest.fixture
def often(monkeypatch, pageless):
    """A checkpoint whenever the loop looks, and no report."""
    monkeypatch.setattr("fukami.engine.async_checkpoint.MIN_CHECKPOINT_INTERVAL", 0.0)
    monkeypatch.setattr("fukami.engine.async_checkpoint.MAX_CHECKPOINT_FRACTION", 1e9)


def test_where_nothing_is_found_there_is_no_box(few_scenes, pageless, fukami):
    """Nor in a strip in which no region is large enough to be looked into."""
    small = [word for name, value in QUICK.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    trained = fukami("train", "rcnn", *small, "--out", "run", "--no-compile")
    assert trained.status == 0, trained.err
    Image.new("RGB", (90, 70), "grey").save("grey.png")
    Image.new("RGB", (1000, 20), "grey").save("strip.png")
    found = fukami("predict", "run", "grey.png", "strip.png")
    assert found.status == 0, found.err
    assert [answer["width"] for answer in found.json] == [90, 1000]
    assert found.json[1]["boxes"] == []


def test_several_processes_are_refused_before_the_first_stage(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match=r"solved by one process, not 2; start one, or .* rcnn-finetune with several"):
        RCNN(**QUICK)


def test_a_run_that_was_moved_goes_on(few_scenes, often, tmp_path):
    recipe = RCNN(**QUICK)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BoxRegressionTask, "fit_regressors", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            package.train(recipe, tmp_path / "here", device="cpu", precision="float32")
    (tmp_path / "here").rename(tmp_path / "there")
    assert package.train(recipe, tmp_path / "there", device="cpu", precision="float32", resume=True)["count"] == 4


def test_killed_in_each_stage_and_resumed_it_is_as_if_never_killed(few_scenes, often, tmp_path):
    recipe = RCNN(**QUICK)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    result = package.train(recipe, whole, device="cpu", precision="float32")
    assert result["count"] == 4
    for cls, after in ((RCNNFinetuneTask, 3), (SVMTask, 5), (SVMTask, 9), (BoxRegressionTask, 5)):
        with pytest.MonkeyPatch.context() as patch:
            steps, step = [], cls.step

            def fail(self, batch, *, steps=steps, step=step, after=after):
                steps.append(batch)
                if len(steps) > after:
                    raise KeyboardInterrupt
                return step(self, batch)

            patch.setattr(cls, "step", fail)
            with pytest.raises(KeyboardInterrupt):
                package.train(recipe, cut, device="cpu", precision="float32", resume=cut.exists())
    again = package.train(recipe, cut, device="cpu", precision="float32", resume=True)
    assert again == result
    for name in ("finetune", "svm", "."):
        assert checkpoint.is_finished(cut / name)
        one, other = ((run / name / "weights.safetensors").read_bytes() for run in (whole, cut))
        assert one == other
    task = package.load(whole, device="cpu")
    assert task.evaluate(recipe.load_data().val) == result
    for name in ("finetune", "svm"):  # each is a run by itself
        assert package.load(whole / name, device="cpu").evaluate(recipe.load_data().val)["count"] == 4


@pytest.mark.parametrize("when", ["evaluate", "plot_evaluation"])
def test_a_signal_at_the_end_of_a_stage_begins_no_other(when, few_scenes, often, monkeypatch, tmp_path):
    recipe = RCNN(**{**QUICK, "epochs": 1})
    real = getattr(RCNNFinetuneTask, when)

    def interrupted(self, batches):
        signal.raise_signal(signal.SIGTERM)
        return real(self, batches)

    with monkeypatch.context() as patch:
        patch.setattr(RCNNFinetuneTask, when, interrupted)
        with pytest.raises(SystemExit) as left:
            package.train(recipe, tmp_path / "run", device="cpu", precision="float32")
    assert left.value.code == 143
    assert not (tmp_path / "run" / "svm").exists()
    package.train(recipe, tmp_path / "run", device="cpu", precision="float32", resume=True)
    assert checkpoint.is_finished(tmp_path / "run")


@pytest.fixture
def finetuned(few_scenes, pageless, tmp_path):
    package.train(RCNNFinetune(**{**QUICK, "epochs": 1}), tmp_path / "finetune", device="cpu")
    return tmp_path / "finetune"


def test_stages_by_hand(finetuned, fukami, monkeypatch, tmp_path):
    small = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    answer = fukami("train", "rcnn-svm", "--init", finetuned, *small, "--out", tmp_path / "svm", "--device", "cpu")
    assert answer.status == 0, answer.err
    answer = fukami("train", "rcnn-boxes", "--init", tmp_path / "svm", *small, "--out", tmp_path / "boxes")
    assert answer.status == 0, answer.err
    assert answer.json[-1]["count"] == 4
    assert "run" in answer.json[-1]


def test_finished_stages_are_not_trained_again(finetuned, monkeypatch, pageless):
    """Of this very recipe, in the folder of the whole."""

    def never(self, batch):
        raise AssertionError("trained again")

    monkeypatch.setattr(RCNNFinetuneTask, "step", never)
    package.train(RCNN(**{**QUICK, "epochs": 1}), finetuned.parent, device="cpu")
    assert checkpoint.is_finished(finetuned.parent)


def test_the_stage_before_has_to_fit(finetuned, tmp_path):
    for fields, message in (
        ({}, r"goes on from a run of rcnn-finetune; give its folder: --init DIR"),
        ({"init": str(tmp_path / "none")}, r"neither a run's folder nor"),
        ({"init": str(finetuned), "hidden": 8}, r"other fields; give the same ones: --hidden 16"),
    ):
        with pytest.raises(UsageError, match=message):
            package.train(RCNNSVM(**{**SMALL, **fields}), tmp_path / "out", device="cpu")
    with pytest.raises(UsageError, match=r"is a run of rcnn-finetune; rcnn-boxes goes on from one of rcnn-svm"):
        package.train(RCNNBoxes(init=str(finetuned), **SMALL), tmp_path / "out", device="cpu")
    record = json.loads((finetuned / "recipe.json").read_text())
    checkpoint.write_file(finetuned / "recipe.json", json.dumps({**record, "labels": ["other"]}).encode())
    with pytest.raises(UsageError, match=r"knows the classes other, and the data have circle"):
        package.train(RCNNSVM(init=str(finetuned), **SMALL), tmp_path / "out", device="cpu")
    del record["time"]
    checkpoint.write_file(finetuned / "recipe.json", json.dumps(record).encode())
    with pytest.raises(UsageError, match=r"is not finished; .* fukami train rcnn-finetune --out .* --resume"):
        package.train(RCNNSVM(init=str(finetuned), **SMALL), tmp_path / "out2", device="cpu")


@pytest.mark.parametrize(
    ("cls", "fields", "message"),
    [
        (RCNNSVM, {"lr": 0.5, "batch_size": 3}, r"learned by gradients in rcnn-svm: leave out --batch-size and --lr"),
        (RCNNFinetune, {"size": 62}, r"size should be between 63 and 2048, not 62"),
        (RCNN, {"context_padding": 114}, r"context-padding should be between 0 and 113"),
        (RCNN, {"activation_checkpointing": True}, r"give --accumulate"),
        (RCNN, {"svm_iou": 0.0}, r"svm-iou should be"),
        (RCNN, {"box_ridge": -1.0}, r"box-ridge should be"),
        (RCNN, {"cache_limit": -1.0}, r"cache-limit should be"),
    ],
)
def test_fields_that_no_run_can_have(cls, fields, message):
    with pytest.raises(UsageError, match=message):
        cls(**fields)


def test_what_is_solved_has_no_learning_rate(finetuned, fukami):
    small = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    answer = fukami("find-lr", "rcnn-svm", "--init", finetuned, *small)
    assert answer.status == 2
    assert "not learned by gradients" in answer.err


def test_regions_that_a_program_proposes_are_not_exported(finetuned, fukami):
    refused = fukami("export", finetuned, "--to", "onnx")
    assert refused.status == 2
    assert "regions are proposed by no network" in refused.err


def test_one_process_solves():
    task = RCNNSVM(init="-", **SMALL).build_task(("a", "b"))
    with pytest.raises(UsageError, match="one process, not 2"):
        task.setup(dataclasses.replace(Runtime.start("cpu", "float32"), world_size=2))

"""Faster R-CNN against torchvision's on the same weights, and its parts against torchvision's and by hand."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torchvision.models.detection import FasterRCNN, FasterRCNN_ResNet50_FPN_Weights, _utils
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign, RoIPool, box_iou

from fukami import Error, UsageError
from fukami.detection.faster_rcnn import FasterRCNNVGG16
from fukami.detection.task import DetectionTask
from fukami.engine import pretrained
from fukami.engine.runtime import Runtime
from fukami.image import io as image_io
from fukami.image.transform import ResizeTransform
from fukami.layers import anchors, box_sampling, boxes, frozen_batch_norm
from fukami.layers.detection_types import GroundTruth
from fukami.models import faster_rcnn_resnet50_fpn, faster_rcnn_vgg16, resnet50
from fukami.models.faster_rcnn import RoIHeads, RPNOutput


@pytest.fixture(scope="module")
def theirs():
    """torchvision's detector with random weights and statistics that give a spread of scores."""
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, trainable_layers=5)
    network = FasterRCNN(backbone, 91, min_size=128, max_size=256)
    with torch.no_grad():
        for name, buffer in network.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(20, 60)
            elif name.endswith("running_mean"):
                buffer.normal_(0, 0.1)
        network.rpn.head.cls_logits.weight.mul_(30)
        network.rpn.head.bbox_pred.weight.mul_(10)
        network.roi_heads.box_predictor.cls_score.weight.mul_(100)
    return network


@pytest.fixture(scope="module")
def ours(theirs):
    network = faster_rcnn_resnet50_fpn(90)
    network.load_state_dict(theirs.state_dict())
    return network


IMAGES = [torch.rand(3, 128, 192, generator=torch.Generator().manual_seed(n)) for n in (1, 2)]
IMAGES[1] = IMAGES[1][:, :, :180]
TARGETS = [
    {"boxes": torch.tensor([[10.0, 20, 90, 120], [80, 30, 170, 110]]), "labels": torch.tensor([3, 17])},
    {"boxes": torch.tensor([[50.0, 20, 90, 60]]), "labels": torch.tensor([88])},
]


def prepared(theirs):
    """The images as torchvision's network sees them, their sizes, and what is in them as ours is told."""
    images, targets = theirs.transform(IMAGES, TARGETS)
    where, classes = torch.zeros(2, 2, 4), torch.full((2, 2), -1)
    for number, target in enumerate(targets):
        where[number, : len(target["boxes"])] = target["boxes"]
        classes[number, : len(target["boxes"])] = target["labels"] - 1
    truth = GroundTruth(where, classes, torch.zeros(2, 2, dtype=torch.bool), torch.tensor([5, 77]))
    return images.tensors, torch.tensor(images.image_sizes).float(), truth


def test_finds_what_torchvision_finds(theirs, ours):
    with torch.inference_mode():
        expected = theirs.eval()(IMAGES)
        images, sizes, _ = prepared(theirs)
        found = ours.eval()(images, sizes)
    for answer, other in zip(found, expected, strict=True):
        assert len(answer.boxes) == 100
        torch.testing.assert_close(answer.boxes, other["boxes"], rtol=0, atol=1e-4)
        torch.testing.assert_close(answer.scores, other["scores"], rtol=0, atol=1e-4)
        assert torch.equal(answer.classes + 1, other["labels"])


class Sampler:
    """torchvision's choice of samples replaced by ours, for the same images.

    Where there are ``places`` for proposals, ours has places for those that are missing, too, before the objects.
    """

    def __init__(self, count, share, draws, places=None):
        self.count, self.share, self.draws, self.places = count, share, draws, places

    def __call__(self, labels):
        right, wrong = [], []
        for draw, each, target in zip(self.draws, labels, TARGETS, strict=True):
            order = box_sampling.compute_priorities(draw.view(1), len(each) if self.places is None else self.places + 2)
            if self.places is not None:
                objects = len(target["boxes"])
                order = torch.cat([order[:, : len(each) - objects], order[:, self.places :][:, :objects]], 1)
            chosen, there = box_sampling.sample_balanced(each.long().unsqueeze(0), order, self.count, self.share)
            mask = torch.zeros(len(each), dtype=torch.bool)
            mask[chosen[there]] = True
            right.append(mask & (each > 0))
            wrong.append(mask & (each == 0))
        return right, wrong


def test_has_the_losses_of_torchvision(theirs, ours, monkeypatch):
    images, sizes, truth = prepared(theirs)
    monkeypatch.setattr(theirs.rpn, "fg_bg_sampler", Sampler(256, 0.5, truth.seeds))
    monkeypatch.setattr(theirs.roi_heads, "fg_bg_sampler", Sampler(512, 0.25, truth.seeds + 1, places=2000))
    expected = theirs.train()(IMAGES, TARGETS)
    task = DetectionTask(ours, tuple(map(str, range(90))), ResizeTransform(min_size=128, max_size=256))
    task.runtime = Runtime.start("cpu", "float32")
    first, second = ours.train()(images, sizes, truth)
    found = task.compute_stage_losses(first, "objectness", "anchor_boxes") | task.compute_stage_losses(
        second, "classification", "region_boxes"
    )
    names = {"objectness": "loss_objectness", "anchor_boxes": "loss_rpn_box_reg", "classification": "loss_classifier",
             "region_boxes": "loss_box_reg"}  # fmt: skip
    for name, other in names.items():
        torch.testing.assert_close(found[name], expected[other], rtol=1e-4, atol=1e-6)


def test_torchvisions_file_becomes_a_run(theirs, tmp_path, fukami, random):
    """In the format and with the names of the published file; its answers to an image are torchvision's."""
    network = copy.deepcopy(theirs).eval()
    for module in network.modules():
        if isinstance(module, FrozenBatchNorm2d):  # variances beside which what is usually added to them counts
            module.running_var *= 1e-6
            module.weight *= 1e-3
    _utils.overwrite_eps(network, 0.0)  # as torchvision does with its published weights
    old = {
        name.replace("rpn.head.conv.0.0.", "rpn.head.conv.").replace("blocks.0.0.", "blocks.0."): value
        for name, value in network.state_dict().items()
    }
    old["backbone.body.bn1.num_batches_tracked"] = torch.tensor(0)
    torch.save(old, tmp_path / "coco.pth", _use_new_zipfile_serialization=False)
    assert fukami("import", "coco.pth", "--out", "run").json == [{"run": "run"}]
    image = random.integers(0, 255, (12, 180, 3), np.uint8)
    Image.fromarray(image).save("image.png")
    (answer,) = fukami("predict", "run", "image.png", "--out", "drawn").json
    network.transform.min_size, network.transform.max_size = (800,), 1333
    with torch.inference_mode():
        (expected,) = network([torch.from_numpy(image).permute(2, 0, 1) / 255])
    assert len(answer["boxes"]) == len(expected["boxes"]) > 10
    names = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    places = torch.tensor([box["box"] for box in answer["boxes"]])
    first = [expected[key][:90] for key in ("boxes", "scores", "labels")]  # of 100: there may be a tie about the last
    nearest = [int((places - place).abs().sum(1).argmin()) for place in first[0]]  # nearly equal scores: in any order
    assert len({*nearest}) == 90
    for number, place, score, label in zip(nearest, *first, strict=True):
        box = answer["boxes"][number]
        assert box["box"] == pytest.approx(place.tolist(), abs=0.01)  # as they are rounded
        assert box["score"] == pytest.approx(score.item(), abs=1e-4)
        assert box["label"] == names[label]
    assert image_io.read_image("drawn/image.png").width >= 180
    torch.save({"a": torch.zeros(3)}, tmp_path / "other.pt")
    assert "expected the state dict of torchvision's" in fukami("import", "other.pt", "--out", "other").err


def test_an_exported_detector_finds_the_same(few_scenes, pageless, fukami, random):
    """In images of any shape; int8, which only classifiers have, is refused."""
    small = "--width-multiplier 0.0625 --hidden 16 --min-size 96 --anchor-sizes 16 32 64 --batch-norm --dropout 0"
    small += " --epochs 1 --no-compile"
    trained = fukami("train", "faster-rcnn-vgg16", *small.split(), "--precision", "float32", "--out", "run")
    assert trained.status == 0, trained.err
    for number, shape in enumerate([(100, 180, 3), (130, 90, 3)]):
        Image.fromarray(random.integers(0, 255, shape, np.uint8)).save(f"{number}.png")
    exported = fukami("export", "run", "--to", "onnx", "--out", "run-onnx")
    assert exported.status == 0, exported.err
    expected, found = (fukami("predict", run, "0.png", "1.png").json for run in ("run", "run-onnx"))
    for answer, other in zip(found, expected, strict=True):
        assert len(answer["boxes"]) == len(other["boxes"]) > 10
        for box, wanted in zip(answer["boxes"], other["boxes"], strict=True):
            assert box["box"] == pytest.approx(wanted["box"], abs=0.02)
            assert box["score"] == pytest.approx(wanted["score"], abs=2e-4)
    judged = fukami("eval", "run-onnx").json[-1]["map"]
    assert judged == pytest.approx(fukami("eval", "run").json[-1]["map"], abs=1e-3)
    refused = fukami("export", "run", "--to", "int8")
    assert refused.status == 2
    assert "int8 is for classifiers; export a detector to float16, bfloat16 or onnx" in refused.err


def test_a_detector_begins_with_a_classifier_or_another_detector(theirs, tmp_path, caplog, monkeypatch):
    torch.manual_seed(0)
    classifier = resnet50(7)
    torch.save(classifier.state_dict(), tmp_path / "classifier.pt")
    network = faster_rcnn_resnet50_fpn(3)
    pretrained.initialize_detector(network, "backbone.body", "resnet50", str(tmp_path / "classifier.pt"))
    assert torch.equal(network.backbone.body.layer3[2].conv2.weight, classifier.layer3[2].conv2.weight)
    assert torch.equal(network.backbone.body.bn1.running_var, classifier.bn1.running_var)
    torch.save(theirs.state_dict(), tmp_path / "detector.pt")
    pretrained.initialize_detector(network, "backbone.body", "resnet50", str(tmp_path / "detector.pt"))
    assert torch.equal(network.roi_heads.box_head.fc7.weight, theirs.roi_heads.box_head.fc7.weight)
    assert "box_predictor.cls_score.weight" in caplog.text  # of other classes
    for labels, same in ((pretrained.get_coco_categories(), True), (tuple(map(str, range(90))), False)):
        network = faster_rcnn_resnet50_fpn(90)
        monkeypatch.setattr(pretrained, "_fetch_torchvision_weights", lambda name: theirs.state_dict())
        pretrained.initialize_detector(network, "backbone.body", "resnet50", "coco", labels)
        kept = torch.equal(
            network.roi_heads.box_predictor.cls_score.weight, theirs.roi_heads.box_predictor.cls_score.weight
        )
        assert kept == same
    with pytest.raises(Error, match=r"does not fit vgg16: features.0.weight is missing"):
        pretrained.initialize_detector(
            faster_rcnn_vgg16(3, hidden=8), "backbone", "vgg16", str(tmp_path / "classifier.pt")
        )


def test_frozen_stages():
    network = faster_rcnn_resnet50_fpn(3)
    pretrained.freeze_stages(network.get_submodule("backbone.body"), 2)
    still = {name.split(".")[2] for name, p in network.named_parameters() if not p.requires_grad}
    assert still == {"conv1", "layer1"}
    network = faster_rcnn_vgg16(3, hidden=8, width_multiplier=0.125)
    pretrained.freeze_stages(network.get_submodule("backbone"), 2)
    still = {int(name.split(".")[2]) for name, p in network.named_parameters() if not p.requires_grad}
    assert still == {0, 2, 5, 7}  # conv1_1 to conv2_2, as Girshick 2015 (section 4.5) has it


def test_frozen_normalisation_is_torchvisions():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    for parameter in (plain[1].weight, plain[1].bias, plain[1].running_mean):
        nn.init.normal_(parameter)
    nn.init.uniform_(plain[1].running_var, 0.5, 2)
    reference = copy.deepcopy(plain)
    reference[1] = FrozenBatchNorm2d(8)
    reference[1].load_state_dict(plain[1].state_dict())
    network = frozen_batch_norm.freeze_batch_norm(copy.deepcopy(plain))
    x = torch.randn(2, 3, 9, 9)
    torch.testing.assert_close(network(x), reference(x))
    for each in (network, reference):
        each(x).square().sum().backward()
    torch.testing.assert_close(network[0].weight.grad, reference[0].weight.grad)
    assert network.state_dict().keys() == reference.state_dict().keys()
    assert [name for name, _ in network.named_parameters()] == ["0.weight"]
    network.load_state_dict(plain.state_dict())  # with the count of batches that only the other one keeps


def test_anchors_are_torchvisions():
    scales, maps = ((32,), (64,), (128,)), [torch.zeros(1, 4, side, side + 3) for side in (16, 8, 4)]
    theirs = AnchorGenerator(scales, ((0.5, 1.0, 2.0),) * 3)
    frame = (128, 152)
    expected = theirs(ImageList(torch.zeros(1, 3, *frame), [frame]), maps)[0]
    assert torch.equal(
        anchors.compute_anchors([anchors.compute_cell_anchors(scale) for scale in scales], maps, frame), expected
    )


def test_the_papers_anchors():
    """Table 1 has nine; the areas are those of the scales, and the shapes 1:2, 1:1 and 2:1."""
    cell = torch.tensor(anchors.compute_cell_anchors((128, 256, 512)))
    width, height = cell[:, 2] - cell[:, 0], cell[:, 3] - cell[:, 1]
    assert len(cell) == 9
    torch.testing.assert_close((width * height).sqrt(), torch.tensor([128.0, 256, 512]).repeat(3), rtol=0.01, atol=0)
    torch.testing.assert_close(height / width, torch.tensor([0.5, 1, 2]).repeat_interleave(3), rtol=0.02, atol=0)


def test_a_stride_of_eight():
    """An image moved by eight pixels moves the map by one place; the weights are those of the stride of sixteen."""
    torch.manual_seed(0)
    network = faster_rcnn_vgg16(3, hidden=8, width_multiplier=1 / 16, stride=8)
    network.load_state_dict(faster_rcnn_vgg16(3, hidden=8, width_multiplier=1 / 16).state_dict())
    image = torch.randn(1, 3, 512, 512)
    (still,), (moved,) = network.backbone(image), network.backbone(image.roll(8, 3))
    assert still.shape == (1, 32, 64, 64)
    inside = slice(24, 40)  # what no border reaches
    torch.testing.assert_close(moved[..., inside, 25:41], still[..., inside, inside], rtol=0, atol=1e-4)
    assert not torch.allclose(moved[..., inside, inside], still[..., inside, inside], atol=1e-2)
    assert network.roi_heads.strides == (8,)


def random_boxes(*shape):
    corner, side = 100 * torch.rand(*shape, 2), 2 + 60 * torch.rand(*shape, 2)
    return torch.cat([corner, corner + side], -1)


def test_boxes_are_coded_as_torchvision_codes_them():
    torch.manual_seed(0)
    one, other = random_boxes(50), random_boxes(50)
    coder = _utils.BoxCoder(boxes.ROI_WEIGHTS)
    deltas = boxes.encode_boxes(one, other, boxes.ROI_WEIGHTS)
    torch.testing.assert_close(deltas, coder.encode_single(one, other))
    torch.testing.assert_close(boxes.decode_boxes(deltas, other, boxes.ROI_WEIGHTS), one, rtol=1e-4, atol=1e-3)
    wild = 10 * torch.randn(50, 4)
    torch.testing.assert_close(boxes.decode_boxes(wild, other), coder_free(wild, other), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(boxes.compute_iou(one, other), box_iou(one, other))


def coder_free(deltas, references):
    return _utils.BoxCoder((1.0, 1.0, 1.0, 1.0)).decode_single(deltas, references)


def test_clip():
    found = boxes.clip_boxes(
        torch.tensor([[[-5.0, 3, 200, 90]], [[-5.0, 3, 200, 90]]]), torch.tensor([[50.0, 100], [80, 300]])
    )
    assert found.tolist() == [[[0, 3, 100, 50]], [[0, 3, 200, 80]]]


def test_matching_by_hand():
    """IoUs of 1, 9/11, 1/3, 1/7 and 0 with an object of class 4, and one box inside an ignored object."""
    references = torch.tensor([[0.0, 0, 10, 10], [0, 1, 10, 11], [0, 5, 10, 15], [0, 7.5, 10, 17.5], [40, 40, 50, 50],
                               [60, 60, 65, 65]])  # fmt: skip
    objects = torch.tensor([[[0.0, 0, 10, 10], [55, 55, 80, 80], [0, 0, 0, 0]]])
    classes, ignored = torch.tensor([[4, 2, -1]]), torch.tensor([[False, True, False]])
    which, targets = box_sampling.match_boxes(references, objects, classes, ignored, 0.3, 0.7)
    assert targets.tolist() == [[5, 5, box_sampling.IGNORE_LABEL, 0, 0, box_sampling.IGNORE_LABEL]]
    assert which[0, :4].tolist() == [0, 0, 0, 0]
    low = torch.tensor(
        [[[0.0, 8, 10, 18]]]
    )  # the best reference has an IoU of 19/21 - covered below 0.7 by none but it
    _, targets = box_sampling.match_boxes(
        references[:3], low, torch.tensor([[1]]), torch.tensor([[False]]), 0.3, 0.7, allow_low_quality_matches=True
    )
    assert targets.tolist() == [[0, 0, 2]]  # of IoU 7/13, the most there is
    usable = torch.tensor([[True, True, False]])
    none = torch.tensor([[False]])
    _, targets = box_sampling.match_boxes(
        references[:3], low, torch.tensor([[1]]), none, 0.3, 0.7, allow_low_quality_matches=True, usable=usable
    )
    assert targets.tolist() == [[0, 2, box_sampling.IGNORE_LABEL]]


def test_matching_is_torchvisions():
    torch.manual_seed(0)
    references, objects = random_boxes(400), random_boxes(6)
    matcher = _utils.Matcher(0.7, 0.3, allow_low_quality_matches=True)
    expected = matcher(box_iou(objects, references))
    classes = torch.arange(6).unsqueeze(0)
    ignored = torch.zeros(1, 6, dtype=torch.bool)
    _, targets = box_sampling.match_boxes(
        references, objects.unsqueeze(0), classes, ignored, 0.3, 0.7, allow_low_quality_matches=True
    )
    assert torch.equal(targets[0], torch.where(expected >= 0, expected + 1, torch.where(expected == -1, 0, -1)))


def test_samples_are_balanced():
    order = box_sampling.compute_priorities(torch.tensor([3, 4]), 1000)
    targets = torch.zeros(2, 1000, dtype=torch.long)
    targets[0, :300] = 1
    targets[1, :5] = 2
    targets[1, 40:] = box_sampling.IGNORE_LABEL
    chosen, there = box_sampling.sample_balanced(targets, order, 64, 0.25)
    taken = targets.gather(1, chosen)
    assert chosen.shape == (2, 64)
    assert there[0].all()
    assert (taken[0] == 1).sum() == 16
    assert (taken[0] == 0).sum() == 48
    assert there[1].sum() == 40  # 5 objects and 35 of background: no more are clear
    assert sorted(chosen[1][there[1]].tolist()) == list(range(40))


def test_regions_are_learned_from_a_quarter_objects():
    """Girshick 2015, section 2.3: 25 % of the sample overlaps an object by 0.5 or more, the rest is background."""
    torch.manual_seed(0)
    network = faster_rcnn_vgg16(3, hidden=8, width_multiplier=0.0625)
    truth = GroundTruth(
        torch.tensor([[[10.0, 10, 74, 74]]]), torch.ones(1, 1).long(), torch.zeros(1, 1).bool(), torch.tensor([3])
    )
    shift = torch.arange(0, 64, 0.25).view(-1, 1) * torch.tensor([1.0, 0, 1, 0])
    proposals = (truth.boxes[0] + shift).unsqueeze(0)  # the first 86 overlap it by half: 64 · 1/3 pixels to the side
    maps, there = [torch.randn(1, 32, 8, 12)], torch.ones(1, 256, dtype=torch.bool)
    samples = network.roi_heads.sample_regions(maps, proposals, there, truth, network.limits)
    assert samples.valid.sum() == 128
    assert (samples.targets == 2).sum() == 32
    assert (samples.targets == 0).sum() == 96
    few = network.roi_heads.sample_regions(maps, proposals[:, 80:], there[:, 80:], truth, network.limits)
    assert (few.targets == 2).sum() == 6 + 1  # with the object itself
    assert few.valid.sum() == 128


def test_anchors_are_learned_from_half_objects():
    """Ren et al. 2015, section 3.1.3: 256 anchors of an image, 128 of them objects at most."""
    network = faster_rcnn_vgg16(3, hidden=8, width_multiplier=0.0625, anchor_sizes=(32,))
    about = torch.tensor([[[0.0, 0, 32, 32]]])
    truth = GroundTruth(about, torch.zeros(1, 1).long(), torch.zeros(1, 1).bool(), torch.tensor([3]))
    places = torch.cat([about[0].expand(300, 4), about[0].expand(500, 4) + 100])
    said = RPNOutput(torch.zeros(1, 800), torch.zeros(1, 800, 4), places, [800])
    samples = network.rpn.sample_anchors(said, torch.tensor([[200.0, 200]]), truth, network.limits)
    assert samples.valid.sum() == 256
    assert (samples.targets > 0).sum() == 128


@pytest.mark.parametrize(("training", "before", "after"), [(True, 12_000, 2_000), (False, 6_000, 300)])
def test_so_many_proposals_are_suppressed_and_kept(monkeypatch, training, before, after):
    """Ren et al. 2015, section 3.3: 2,000 in training and 300 for an answer; before it as in the authors' code."""
    network = faster_rcnn_vgg16(3, hidden=8, width_multiplier=0.0625).train(training)
    count, corner = 15_000, torch.arange(15_000.0)
    places = torch.stack([corner % 150, corner // 150, corner % 150 + 1, corner // 150 + 1], 1)  # none overlaps another
    said = RPNOutput(torch.randn(1, count), torch.zeros(1, count, 4), places, [count])
    seen, suppress = [], boxes.apply_nms
    monkeypatch.setattr(boxes, "apply_nms", lambda own, *more: seen.append(len(own)) or suppress(own, *more))
    found, there = network.rpn.select_proposals(said, torch.tensor([[200.0, 200]]), network.limits)
    assert seen == [before]
    assert found.shape == (1, after, 4)
    assert there.all()
    best = places[said.logits[0].topk(after).indices]
    assert torch.equal(found[0], best)


def test_priorities_are_evenly_spread_and_each_images_own():
    order = box_sampling.compute_priorities(torch.arange(50), 2000)
    assert torch.equal(box_sampling.compute_priorities(torch.tensor([7]), 2000)[0], order[7])
    assert F.one_hot((10 * order).long(), 10).float().mean((0, 1)).sub(0.1).abs().max() < 0.005
    assert torch.corrcoef(order).fill_diagonal_(0).abs().max() < 0.1
    assert len(order[0].unique()) > 1990


@pytest.mark.parametrize("pooling", ["align", "pool"])
def test_regions_are_pooled_as_torchvision_does(pooling):
    torch.manual_seed(0)
    heads = RoIHeads(4, 3, (4, 8, 16, 32), 8, 0.0, pooling)
    maps = [torch.randn(2, 4, 256 // stride, 256 // stride) for stride in (4, 8, 16, 32)]
    regions = torch.stack([random_boxes(30), 2 * random_boxes(30)]).clamp(max=256)
    found = heads.pool_regions(maps, regions)
    if pooling == "align":
        reference = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
        expected = reference(dict(zip("0123", maps, strict=True)), list(regions), [(256, 256)] * 2)
    else:
        single = RoIHeads(4, 3, (16,), 8, 0.0, pooling)
        found = single.pool_regions(maps[2:3], regions)
        expected = RoIPool(7, 1 / 16)(maps[2], list(regions))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("crowd", [False, True])
def test_an_image_without_an_object_is_background_and_under_a_crowd_nothing(crowd):
    network = faster_rcnn_vgg16(3, hidden=8, width_multiplier=0.125, anchor_sizes=(32,))
    classes = torch.full((1, 8), -1)
    classes[0, 1] = 2 if crowd else -1
    places = torch.tensor([0.0, 0, 96, 96]) * (classes >= 0).unsqueeze(2)
    nothing = GroundTruth(places, classes, classes >= 0, torch.tensor([1]))
    first, second = network(torch.randn(1, 3, 96, 96), torch.tensor([[96.0, 96]]), nothing)
    task = DetectionTask(network, ("a", "b", "c"), ResizeTransform(min_size=96, max_size=96))
    task.runtime = Runtime.start("cpu", "float32")
    losses = task.compute_stage_losses(first, "objectness", "anchor_boxes") | task.compute_stage_losses(
        second, "classification", "region_boxes"
    )
    sum(losses.values()).backward()
    for samples in (first, second):
        assert samples.valid.any() != crowd
        assert not samples.targets.any()
    assert losses["anchor_boxes"] == losses["region_boxes"] == 0
    for parameter in network.parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all()


@pytest.mark.parametrize("network", ["vgg16", "resnet50"])
def test_a_network_that_is_not_finite_gives_losses_that_are_not(network):
    """And does not fail on the way, so that the loop can say what to do."""
    model = (
        faster_rcnn_vgg16(3, hidden=8, width_multiplier=0.125) if network == "vgg16" else faster_rcnn_resnet50_fpn(3)
    )
    with torch.no_grad():
        for parameter in model.rpn.parameters():
            parameter.fill_(torch.nan)
    truth = GroundTruth(
        torch.tensor([[[10.0, 10, 90, 90]]]), torch.zeros(1, 1).long(), torch.zeros(1, 1).bool(), torch.ones(1).long()
    )
    first, _ = model(torch.randn(1, 3, 96, 96), torch.tensor([[96.0, 96]]), truth)
    assert first.scores.isnan().all()


@pytest.mark.parametrize("scales", [(), (0.0, 32.0), (-8.0,)])
def test_anchors_without_area_are_refused(scales):
    with pytest.raises(UsageError, match=r"anchor-sizes should be sides of anchors, 2 pixels or more"):
        FasterRCNNVGG16(anchor_sizes=scales)

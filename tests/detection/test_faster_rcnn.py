"""Faster R-CNN and its modules against torchvision's with the same weights, and against cases by hand."""

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
from fukami.engine import fine_tuning, pretrained, state_dicts
from fukami.engine.runtime import Runtime
from fukami.image import io as image_io
from fukami.image.transform import ResizeTransform
from fukami.layers import anchors, box_sampling, boxes, frozen_batch_norm
from fukami.layers.detection_types import BatchGroundTruth
from fukami.models import faster_rcnn_resnet50_fpn, faster_rcnn_vgg16, resnet50
from fukami.models.faster_rcnn import RoIHeads, RPNOutput


@pytest.fixture(scope="module")
def theirs():
    """torchvision's detector with random weights and batch statistics that give diverse scores."""
    torch.manual_seed(1)  # seed 0 has scores whose order depends on the processor
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


def prepare_inputs(theirs):
    """Return the images preprocessed by torchvision, their sizes, and the ground truth in our format."""
    images, targets = theirs.transform(IMAGES, TARGETS)
    objects, classes = torch.zeros(2, 2, 4), torch.full((2, 2), -1)
    for index, target in enumerate(targets):
        objects[index, : len(target["boxes"])] = target["boxes"]
        classes[index, : len(target["boxes"])] = target["labels"] - 1
    truth = BatchGroundTruth(objects, classes, torch.zeros(2, 2, dtype=torch.bool), torch.tensor([5, 77]))
    return images.tensors, torch.tensor(images.image_sizes).float(), truth


def test_detections_equal_those_of_torchvision(theirs, ours):
    with torch.inference_mode():
        expected = theirs.eval()(IMAGES)
        images, sizes, _ = prepare_inputs(theirs)
        detections = ours.eval()(images, sizes)
    for result, other in zip(detections, expected, strict=True):
        assert len(result.boxes) == 100
        torch.testing.assert_close(result.boxes, other["boxes"], rtol=0, atol=1e-4)
        torch.testing.assert_close(result.scores, other["scores"], rtol=0, atol=1e-4)
        assert torch.equal(result.classes + 1, other["labels"])


class Sampler:
    """Replacement of torchvision's sampler by ours, with the same random numbers.

    With ``num_slots`` proposals per image, our priorities include those of missing proposals, before the objects.
    """

    def __init__(self, count, positive_fraction, seeds, num_slots=None):
        self.count, self.positive_fraction, self.seeds, self.num_slots = count, positive_fraction, seeds, num_slots

    def __call__(self, labels):
        positives, negatives = [], []
        for seed, targets, truth in zip(self.seeds, labels, TARGETS, strict=True):
            num_priorities = len(targets) if self.num_slots is None else self.num_slots + 2
            priorities = box_sampling.compute_priorities(seed.view(1), num_priorities)
            if self.num_slots is not None:
                count = len(truth["boxes"])
                parts = [priorities[:, : len(targets) - count], priorities[:, self.num_slots :][:, :count]]
                priorities = torch.cat(parts, 1)
            indices, is_valid = box_sampling.sample_balanced(
                targets.long().unsqueeze(0), priorities, self.count, self.positive_fraction
            )
            mask = torch.zeros(len(targets), dtype=torch.bool)
            mask[indices[is_valid]] = True
            positives.append(mask & (targets > 0))
            negatives.append(mask & (targets == 0))
        return positives, negatives


def test_losses_equal_those_of_torchvision(theirs, ours, monkeypatch):
    images, sizes, truth = prepare_inputs(theirs)
    monkeypatch.setattr(theirs.rpn, "fg_bg_sampler", Sampler(256, 0.5, truth.seeds))
    monkeypatch.setattr(theirs.roi_heads, "fg_bg_sampler", Sampler(512, 0.25, truth.seeds + 1, num_slots=2000))
    expected = theirs.train()(IMAGES, TARGETS)
    task = DetectionTask(ours, tuple(map(str, range(90))), ResizeTransform(min_size=128, max_size=256))
    task.runtime = Runtime.start("cpu", "float32")
    rpn_samples, region_samples = ours.train()(images, sizes, truth)
    losses = task.compute_stage_losses(rpn_samples, "objectness", "anchor_boxes") | task.compute_stage_losses(
        region_samples, "classification", "region_boxes"
    )
    names = {"objectness": "loss_objectness", "anchor_boxes": "loss_rpn_box_reg", "classification": "loss_classifier",
             "region_boxes": "loss_box_reg"}  # fmt: skip
    for name, other in names.items():
        torch.testing.assert_close(losses[name], expected[other], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_torchvision_weights_are_imported_as_a_run(theirs, tmp_path, fukami, random):
    """The file has the format and the names of the published one, and the run predicts the same boxes."""
    network = copy.deepcopy(theirs).eval()
    for module in network.modules():
        if isinstance(module, FrozenBatchNorm2d):  # small variances, to which the usual epsilon makes a difference
            module.running_var *= 1e-6
            module.weight *= 1e-3
    _utils.overwrite_eps(network, 0.0)  # as torchvision does with its published weights
    old_state = {
        name.replace("rpn.head.conv.0.0.", "rpn.head.conv.").replace("blocks.0.0.", "blocks.0."): value
        for name, value in network.state_dict().items()
    }
    old_state["backbone.body.bn1.num_batches_tracked"] = torch.tensor(0)
    torch.save(old_state, tmp_path / "coco.pth", _use_new_zipfile_serialization=False)
    assert fukami("import", "coco.pth", "--out", "run").json == [{"run": "run"}]
    image = random.integers(0, 255, (12, 180, 3), np.uint8)
    Image.fromarray(image).save("image.png")
    (prediction,) = fukami("predict", "run", "image.png", "--out", "drawn", "--confidence", "0").json
    network.transform.min_size, network.transform.max_size = (800,), 1333
    with torch.inference_mode():
        (expected,) = network([torch.from_numpy(image).permute(2, 0, 1) / 255])
    assert len(prediction["boxes"]) == len(expected["boxes"]) > 10
    names = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    corners = torch.tensor([box["box"] for box in prediction["boxes"]])
    top = [expected[key][:90] for key in ("boxes", "scores", "labels")]  # of 100, since the last ones may be tied
    # match by position, since nearly equal scores may be in another order
    nearest = [int((corners - other).abs().sum(1).argmin()) for other in top[0]]
    assert len({*nearest}) == 90
    for index, other, score, label in zip(nearest, *top, strict=True):
        box = prediction["boxes"][index]
        assert box["box"] == pytest.approx(other.tolist(), abs=0.01)  # the output is rounded
        assert box["score"] == pytest.approx(score.item(), abs=1e-4)
        assert box["label"] == names[label]
    assert image_io.read_image("drawn/image.png").width >= 180
    torch.save({"a": torch.zeros(3)}, tmp_path / "other.pt")
    assert "expected the state dict of torchvision's" in fukami("import", "other.pt", "--out", "other").err


@pytest.mark.slow
def test_an_exported_detector_predicts_the_same_boxes(few_scenes, fukami, random):
    """Images may have any shape. An export to int8 is an error, since only classifiers support it."""
    small = "--width-multiplier 0.0625 --hidden 16 --min-size 96 --anchor-sizes 16 32 64 --batch-norm --dropout 0"
    small += " --epochs 1 --no-compile"
    trained = fukami("train", "faster-rcnn-vgg16", *small.split(), "--precision", "float32", "--out", "run")
    assert trained.status == 0, trained.err
    for index, shape in enumerate([(100, 180, 3), (130, 90, 3)]):
        Image.fromarray(random.integers(0, 255, shape, np.uint8)).save(f"{index}.png")
    exported = fukami("export", "run", "--to", "onnx", "--out", "run-onnx")
    assert exported.status == 0, exported.err
    expected, predictions = (
        fukami("predict", run, "0.png", "1.png", "--confidence", "0").json for run in ("run", "run-onnx")
    )
    for prediction, other in zip(predictions, expected, strict=True):
        assert len(prediction["boxes"]) == len(other["boxes"]) > 10
        for box, other_box in zip(prediction["boxes"], other["boxes"], strict=True):
            assert box["box"] == pytest.approx(other_box["box"], abs=0.02)
            assert box["score"] == pytest.approx(other_box["score"], abs=2e-4)
    exported_map = fukami("eval", "run-onnx").json[-1]["map"]
    assert exported_map == pytest.approx(fukami("eval", "run").json[-1]["map"], abs=1e-3)
    result = fukami("export", "run", "--to", "int8")
    assert result.status == 2
    assert "int8 is for classifiers; export a detector to float16, bfloat16 or onnx" in result.err


@pytest.mark.slow
def test_a_detector_is_initialized_from_a_classifier_or_another_detector(theirs, tmp_path, caplog, monkeypatch):
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
    assert "box_predictor.cls_score.weight" in caplog.text  # the classes differ
    for labels, is_kept in ((state_dicts.get_coco_categories(), True), (tuple(map(str, range(90))), False)):
        network = faster_rcnn_resnet50_fpn(90)
        monkeypatch.setattr(state_dicts, "_fetch_torchvision_weights", lambda name: theirs.state_dict())
        pretrained.initialize_detector(network, "backbone.body", "resnet50", "coco", labels)
        is_equal = torch.equal(
            network.roi_heads.box_predictor.cls_score.weight, theirs.roi_heads.box_predictor.cls_score.weight
        )
        assert is_equal == is_kept
    with pytest.raises(Error, match=r"these are ResNet-50 weights; vgg16 needs its own \(features.0.weight is missing"):
        pretrained.initialize_detector(
            faster_rcnn_vgg16(3, hidden=8), "backbone", "vgg16", str(tmp_path / "classifier.pt")
        )


def test_frozen_stages():
    network = faster_rcnn_resnet50_fpn(3)
    fine_tuning.freeze_stages(network.get_submodule("backbone.body"), 2)
    frozen = {name.split(".")[2] for name, p in network.named_parameters() if not p.requires_grad}
    assert frozen == {"conv1", "layer1"}
    network = faster_rcnn_vgg16(3, hidden=8, width_multiplier=0.125)
    fine_tuning.freeze_stages(network.get_submodule("backbone"), 2)
    frozen = {int(name.split(".")[2]) for name, p in network.named_parameters() if not p.requires_grad}
    assert frozen == {0, 2, 5, 7}  # conv1_1 to conv2_2 (Girshick 2015, section 4.5)


def test_frozen_batch_normalization_equals_torchvisions():
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
    for model in (network, reference):
        model(x).square().sum().backward()
    torch.testing.assert_close(network[0].weight.grad, reference[0].weight.grad)
    assert network.state_dict().keys() == reference.state_dict().keys()
    assert [name for name, _ in network.named_parameters()] == ["0.weight"]
    network.load_state_dict(plain.state_dict())  # with num_batches_tracked, which the frozen layer lacks


def test_anchors_equal_torchvisions():
    scales, maps = ((32,), (64,), (128,)), [torch.zeros(1, 4, side, side + 3) for side in (16, 8, 4)]
    theirs = AnchorGenerator(scales, ((0.5, 1.0, 2.0),) * 3)
    frame = (128, 152)
    expected = theirs(ImageList(torch.zeros(1, 3, *frame), [frame]), maps)[0]
    assert torch.equal(
        anchors.compute_anchors([anchors.compute_cell_anchors(scale) for scale in scales], maps, frame), expected
    )


def test_the_papers_anchors():
    """There are nine (Ren et al. 2017, table 1), with three scales and the aspect ratios 1:2, 1:1 and 2:1."""
    cell = torch.tensor(anchors.compute_cell_anchors((128, 256, 512)))
    width, height = cell[:, 2] - cell[:, 0], cell[:, 3] - cell[:, 1]
    assert len(cell) == 9
    torch.testing.assert_close((width * height).sqrt(), torch.tensor([128.0, 256, 512]).repeat(3), rtol=0.01, atol=0)
    torch.testing.assert_close(height / width, torch.tensor([0.5, 1, 2]).repeat_interleave(3), rtol=0.02, atol=0)


def test_a_stride_of_eight():
    """A shift of the image by eight pixels shifts the map by one position; the weights are those of stride sixteen."""
    torch.manual_seed(0)
    network = faster_rcnn_vgg16(3, hidden=8, width_multiplier=1 / 16, stride=8)
    network.load_state_dict(faster_rcnn_vgg16(3, hidden=8, width_multiplier=1 / 16).state_dict())
    image = torch.randn(1, 3, 512, 512)
    (original,), (shifted,) = network.backbone(image), network.backbone(image.roll(8, 3))
    assert original.shape == (1, 32, 64, 64)
    inside = slice(24, 40)  # positions whose receptive field excludes the border
    torch.testing.assert_close(shifted[..., inside, 25:41], original[..., inside, inside], rtol=0, atol=1e-4)
    assert not torch.allclose(shifted[..., inside, inside], original[..., inside, inside], atol=1e-2)
    assert network.roi_heads.strides == (8,)


def generate_boxes(*shape):
    corner, side = 100 * torch.rand(*shape, 2), 2 + 60 * torch.rand(*shape, 2)
    return torch.cat([corner, corner + side], -1)


def test_box_encoding_equals_torchvisions():
    torch.manual_seed(0)
    one, other = generate_boxes(50), generate_boxes(50)
    coder = _utils.BoxCoder(boxes.ROI_WEIGHTS)
    deltas = boxes.encode_boxes(one, other, boxes.ROI_WEIGHTS)
    torch.testing.assert_close(deltas, coder.encode_single(one, other))
    torch.testing.assert_close(boxes.decode_boxes(deltas, other, boxes.ROI_WEIGHTS), one, rtol=1e-4, atol=1e-3)
    large_deltas = 10 * torch.randn(50, 4)
    expected = decode_unweighted(large_deltas, other)
    torch.testing.assert_close(boxes.decode_boxes(large_deltas, other), expected, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(boxes.compute_iou(one, other), box_iou(one, other))


def decode_unweighted(deltas, references):
    return _utils.BoxCoder((1.0, 1.0, 1.0, 1.0)).decode_single(deltas, references)


def test_boxes_are_clipped_to_their_image():
    clipped = boxes.clip_boxes(
        torch.tensor([[[-5.0, 3, 200, 90]], [[-5.0, 3, 200, 90]]]), torch.tensor([[50.0, 100], [80, 300]])
    )
    assert clipped.tolist() == [[[0, 3, 100, 50]], [[0, 3, 200, 80]]]


def test_matching_by_hand():
    """The IoUs with an object of class 4 are 1, 9/11, 1/3, 1/7 and 0; one box is inside an ignored object."""
    references = torch.tensor([[0.0, 0, 10, 10], [0, 1, 10, 11], [0, 5, 10, 15], [0, 7.5, 10, 17.5], [40, 40, 50, 50],
                               [60, 60, 65, 65]])  # fmt: skip
    objects = torch.tensor([[[0.0, 0, 10, 10], [55, 55, 80, 80], [0, 0, 0, 0]]])
    classes, ignored = torch.tensor([[4, 2, -1]]), torch.tensor([[False, True, False]])
    indices, targets = box_sampling.match_boxes(references, objects, classes, ignored, 0.3, 0.7)
    assert targets.tolist() == [[5, 5, box_sampling.IGNORE_LABEL, 0, 0, box_sampling.IGNORE_LABEL]]
    assert indices[0, :4].tolist() == [0, 0, 0, 0]
    low = torch.tensor([[[0.0, 8, 10, 18]]])  # the best reference has an IoU of 7/13, below 0.7
    _, targets = box_sampling.match_boxes(
        references[:3], low, torch.tensor([[1]]), torch.tensor([[False]]), 0.3, 0.7, allow_low_quality_matches=True
    )
    assert targets.tolist() == [[0, 0, 2]]  # the best reference matches even so
    usable = torch.tensor([[True, True, False]])
    ignored = torch.tensor([[False]])
    _, targets = box_sampling.match_boxes(
        references[:3], low, torch.tensor([[1]]), ignored, 0.3, 0.7, allow_low_quality_matches=True, usable=usable
    )
    assert targets.tolist() == [[0, 2, box_sampling.IGNORE_LABEL]]


def test_matching_equals_torchvisions():
    torch.manual_seed(0)
    references, objects = generate_boxes(400), generate_boxes(6)
    matcher = _utils.Matcher(0.7, 0.3, allow_low_quality_matches=True)
    expected = matcher(box_iou(objects, references))
    classes = torch.arange(6).unsqueeze(0)
    ignored = torch.zeros(1, 6, dtype=torch.bool)
    _, targets = box_sampling.match_boxes(
        references, objects.unsqueeze(0), classes, ignored, 0.3, 0.7, allow_low_quality_matches=True
    )
    assert torch.equal(targets[0], torch.where(expected >= 0, expected + 1, torch.where(expected == -1, 0, -1)))


def test_samples_are_balanced():
    priorities = box_sampling.compute_priorities(torch.tensor([3, 4]), 1000)
    targets = torch.zeros(2, 1000, dtype=torch.long)
    targets[0, :300] = 1
    targets[1, :5] = 2
    targets[1, 40:] = box_sampling.IGNORE_LABEL
    indices, is_valid = box_sampling.sample_balanced(targets, priorities, 64, 0.25)
    sampled = targets.gather(1, indices)
    assert indices.shape == (2, 64)
    assert is_valid[0].all()
    assert (sampled[0] == 1).sum() == 16
    assert (sampled[0] == 0).sum() == 48
    assert is_valid[1].sum() == 40  # 5 objects and 35 of background; all others are ignored
    assert sorted(indices[1][is_valid[1]].tolist()) == list(range(40))


def test_a_quarter_of_the_sampled_regions_are_positive():
    """25 % overlap an object by an IoU of 0.5 or more; the others are background (Girshick 2015, section 2.3)."""
    torch.manual_seed(0)
    network = faster_rcnn_vgg16(3, hidden=8, width_multiplier=0.0625)
    truth = BatchGroundTruth(
        torch.tensor([[[10.0, 10, 74, 74]]]), torch.ones(1, 1).long(), torch.zeros(1, 1).bool(), torch.tensor([3])
    )
    shift = torch.arange(0, 64, 0.25).view(-1, 1) * torch.tensor([1.0, 0, 1, 0])
    proposals = (truth.boxes[0] + shift).unsqueeze(
        0
    )  # the first 86 have an IoU of 0.5 or more: they are shifted by up to 64 / 3 pixels
    maps, is_valid = [torch.randn(1, 32, 8, 12)], torch.ones(1, 256, dtype=torch.bool)
    samples = network.roi_heads.sample_regions(maps, proposals, is_valid, truth, network.limits)
    assert samples.valid.sum() == 128
    assert (samples.targets == 2).sum() == 32
    assert (samples.targets == 0).sum() == 96
    samples = network.roi_heads.sample_regions(maps, proposals[:, 80:], is_valid[:, 80:], truth, network.limits)
    assert (samples.targets == 2).sum() == 6 + 1  # with the object itself
    assert samples.valid.sum() == 128


def test_at_most_half_of_the_sampled_anchors_are_positive():
    """An image has 256 anchors, of which up to 128 are positive (Ren et al. 2017, section 3.1.3)."""
    network = faster_rcnn_vgg16(3, hidden=8, width_multiplier=0.0625, anchor_sizes=(32,))
    objects = torch.tensor([[[0.0, 0, 32, 32]]])
    truth = BatchGroundTruth(objects, torch.zeros(1, 1).long(), torch.zeros(1, 1).bool(), torch.tensor([3]))
    all_anchors = torch.cat([objects[0].expand(300, 4), objects[0].expand(500, 4) + 100])
    output = RPNOutput(torch.zeros(1, 800), torch.zeros(1, 800, 4), all_anchors, [800])
    samples = network.rpn.sample_anchors(output, torch.tensor([[200.0, 200]]), truth, network.limits)
    assert samples.valid.sum() == 256
    assert (samples.targets > 0).sum() == 128


@pytest.mark.parametrize(("build", "count"), [(faster_rcnn_vgg16, 3), (faster_rcnn_resnet50_fpn, 5)])
def test_anchors_across_the_border(build, count):
    """The paper's network ignores them in training (section 3.1.3), the one of torchvision does not."""
    with torch.device("meta"):
        network = build(3)
    objects = torch.tensor([[[0.0, 0, 32, 32]]])
    truth = BatchGroundTruth(objects, torch.zeros(1, 1).long(), torch.zeros(1, 1).bool(), torch.tensor([3]))
    corners = torch.tensor([[0.0, 0], [60, 60], [168, 168], [-1, 100], [100, 169]])
    output = RPNOutput(torch.zeros(1, 5), torch.zeros(1, 5, 4), torch.cat([corners, corners + 32], 1), [5])
    samples = network.rpn.sample_anchors(output, torch.tensor([[200.0, 200]]), truth, network.limits)
    assert samples.valid.sum() == count


@pytest.mark.parametrize(("training", "before", "after"), [(True, 12_000, 2_000), (False, 6_000, 300)])
def test_number_of_proposals_before_and_after_suppression(monkeypatch, training, before, after):
    """2,000 in training and 300 in inference (Ren et al. 2017, section 3.3); before it as in the authors' code."""
    network = faster_rcnn_vgg16(3, hidden=8, width_multiplier=0.0625).train(training)
    count, corner = 15_000, torch.arange(15_000.0)
    all_anchors = torch.stack([corner % 150, corner // 150, corner % 150 + 1, corner // 150 + 1], 1)  # without overlap
    output = RPNOutput(torch.randn(1, count), torch.zeros(1, count, 4), all_anchors, [count])
    counts, apply_nms = [], boxes.apply_nms
    monkeypatch.setattr(boxes, "apply_nms", lambda *args: counts.append(len(args[0])) or apply_nms(*args))
    proposals, is_valid = network.rpn.select_proposals(output, torch.tensor([[200.0, 200]]), network.limits)
    assert counts == [before]
    assert proposals.shape == (1, after, 4)
    assert is_valid.all()
    best = all_anchors[output.logits[0].topk(after).indices]
    assert torch.equal(proposals[0], best)


def test_priorities_are_uniform_and_independent_for_each_image():
    priorities = box_sampling.compute_priorities(torch.arange(50), 2000)
    assert torch.equal(box_sampling.compute_priorities(torch.tensor([7]), 2000)[0], priorities[7])
    assert F.one_hot((10 * priorities).long(), 10).float().mean((0, 1)).sub(0.1).abs().max() < 0.005
    assert torch.corrcoef(priorities).fill_diagonal_(0).abs().max() < 0.1
    assert len(priorities[0].unique()) > 1990


@pytest.mark.parametrize("pooling", ["align", "pool"])
def test_region_pooling_equals_torchvisions(pooling):
    torch.manual_seed(0)
    heads = RoIHeads(4, 3, (4, 8, 16, 32), 8, 0.0, pooling)
    maps = [torch.randn(2, 4, 256 // stride, 256 // stride) for stride in (4, 8, 16, 32)]
    regions = torch.stack([generate_boxes(30), 2 * generate_boxes(30)]).clamp(max=256)
    pooled = heads.pool_regions(maps, regions)
    if pooling == "align":
        reference = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
        expected = reference(dict(zip("0123", maps, strict=True)), list(regions), [(256, 256)] * 2)
    else:
        single = RoIHeads(4, 3, (16,), 8, 0.0, pooling)
        pooled = single.pool_regions(maps[2:3], regions)
        expected = RoIPool(7, 1 / 16)(maps[2], list(regions))
    torch.testing.assert_close(pooled, expected)


@pytest.mark.parametrize("crowd", [False, True])
def test_an_image_without_objects_is_background_and_one_that_is_all_crowd_is_ignored(crowd):
    network = faster_rcnn_vgg16(3, hidden=8, width_multiplier=0.125, anchor_sizes=(32,))
    classes = torch.full((1, 8), -1)
    classes[0, 1] = 2 if crowd else -1
    crowds = torch.tensor([0.0, 0, 96, 96]) * (classes >= 0).unsqueeze(2)
    truth = BatchGroundTruth(crowds, classes, classes >= 0, torch.tensor([1]))
    rpn_samples, region_samples = network(torch.randn(1, 3, 96, 96), torch.tensor([[96.0, 96]]), truth)
    task = DetectionTask(network, ("a", "b", "c"), ResizeTransform(min_size=96, max_size=96))
    task.runtime = Runtime.start("cpu", "float32")
    losses = task.compute_stage_losses(rpn_samples, "objectness", "anchor_boxes") | task.compute_stage_losses(
        region_samples, "classification", "region_boxes"
    )
    sum(losses.values()).backward()
    for samples in (rpn_samples, region_samples):
        assert samples.valid.any() != crowd
        assert not samples.targets.any()
    assert losses["anchor_boxes"] == losses["region_boxes"] == 0
    for parameter in network.parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all()


@pytest.mark.parametrize("network", ["vgg16", "resnet50"])
def test_non_finite_weights_give_non_finite_losses(network):
    """The forward pass does not fail, so that the training loop reports the problem."""
    model = (
        faster_rcnn_vgg16(3, hidden=8, width_multiplier=0.125) if network == "vgg16" else faster_rcnn_resnet50_fpn(3)
    )
    with torch.no_grad():
        for parameter in model.rpn.parameters():
            parameter.fill_(torch.nan)
    truth = BatchGroundTruth(
        torch.tensor([[[10.0, 10, 90, 90]]]), torch.zeros(1, 1).long(), torch.zeros(1, 1).bool(), torch.ones(1).long()
    )
    rpn_samples, _ = model(torch.randn(1, 3, 96, 96), torch.tensor([[96.0, 96]]), truth)
    assert rpn_samples.logits.isnan().all()


@pytest.mark.parametrize("scales", [(), (0.0, 32.0), (-8.0,)])
def test_invalid_anchor_sizes_are_an_error(scales):
    with pytest.raises(UsageError, match=r"anchor-sizes should be anchor sides of at least 2 pixels"):
        FasterRCNNVGG16(anchor_sizes=scales)

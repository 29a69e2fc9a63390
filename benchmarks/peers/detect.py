"""Object detection with torchvision: Faster R-CNN on VGG-16, with the settings of a fukami run; see ``own_data.py``.

    cd benchmarks && python -m peers.detect DATA RUN

DATA is in Pascal VOC's layout, with ``train.txt``, ``val.txt`` and ``test.txt``. Prints the mean average precision on
the test images as JSON, computed by fukami.
"""

import json
from functools import partial
from xml.etree import ElementTree

import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign
from torchvision.transforms import v2

from fukami.data.samples import DIFFICULT, REGULAR
from fukami.detection.metrics import DetectionResults, GroundTruth, Prediction
from peers.training import (
    DEVICE,
    NUM_WORKERS,
    build_augmentation,
    load_features,
    read_arguments,
    require,
    run_evaluation,
    train,
)

SIDES = ("xmin", "ymin", "xmax", "ymax")


class VOCImages(Dataset):
    """Images and boxes of a split; difficult objects are not for training."""

    def __init__(self, root, split, augmentations=()):
        self.root, self.is_train = root, split == "train"
        self.names = (root / "ImageSets" / "Main" / f"{split}.txt").read_text().split()
        self.transform = v2.Compose([v2.ToImage(), *augmentations, v2.ToDtype(torch.float32, scale=True)])
        trees = (ElementTree.parse(path) for path in (root / "Annotations").iterdir())
        self.classes = sorted({item.findtext("name") for tree in trees for item in tree.iter("object")})

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        """Load an image, its boxes and labels, and which objects are difficult."""
        image = Image.open(self.root / "JPEGImages" / f"{self.names[index]}.jpg").convert("RGB")
        objects = list(ElementTree.parse(self.root / "Annotations" / f"{self.names[index]}.xml").iter("object"))
        corners = [[float(item.findtext(f"bndbox/{side}")) for side in SIDES] for item in objects]
        boxes = torch.tensor(corners).reshape(-1, 4) - torch.tensor([1.0, 1.0, 0.0, 0.0])  # VOC counts pixels from 1
        boxes = boxes.clamp(min=0).minimum(torch.tensor(image.size * 2))
        labels = torch.tensor([self.classes.index(item.findtext("name")) + 1 for item in objects], dtype=torch.int64)
        difficult = torch.tensor([item.findtext("difficult") == "1" for item in objects], dtype=torch.bool)
        kept = (boxes[:, 2:] > boxes[:, :2]).all(1) & ~(difficult & self.is_train)
        boxes = tv_tensors.BoundingBoxes(boxes[kept], format="XYXY", canvas_size=image.size[::-1])
        return self.transform(image, {"boxes": boxes, "labels": labels[kept], "difficult": difficult[kept]})


def build_detector(recipe, num_classes):
    """Build Faster R-CNN on VGG-16 from the fields of a recipe; ``num_classes`` is without the background."""
    features = load_features(recipe.init)[:-1]
    poolings = [index for index, layer in enumerate(features) if isinstance(layer, nn.MaxPool2d)]
    if recipe.stride == 8:
        features[poolings[3]] = nn.MaxPool2d(3, stride=1, padding=1)
    stage_ends = (0, *(index + 1 for index in poolings), len(features))
    features[: stage_ends[recipe.frozen_stages]].requires_grad_(False)
    features.out_channels = 512
    anchors = AnchorGenerator((recipe.anchor_sizes,), ((0.5, 1.0, 2.0),))
    head = [nn.Flatten()]
    for inputs in (512 * 7 * 7, recipe.hidden):
        head += [nn.Linear(inputs, recipe.hidden), nn.ReLU(inplace=True), nn.Dropout(recipe.dropout)]
    model = FasterRCNN(
        features, rpn_anchor_generator=anchors, box_roi_pool=MultiScaleRoIAlign(["0"], 7, 2),
        box_head=nn.Sequential(*head), box_predictor=FastRCNNPredictor(recipe.hidden, num_classes + 1),
        min_size=recipe.min_size, max_size=recipe.max_size, box_batch_size_per_image=128,
        rpn_pre_nms_top_n_train=12000, rpn_pre_nms_top_n_test=6000, rpn_post_nms_top_n_test=300,
    )  # fmt: skip
    # box coordinates need more than the 8 bits of bfloat16
    model.rpn.head.register_forward_hook(lambda _, __, levels: [[x.float() for x in maps] for maps in levels])
    model.roi_heads.box_predictor.register_forward_hook(lambda _, __, outputs: [x.float() for x in outputs])
    return model


def compute_map(model, loader):
    """Compute the mean average precision."""
    results = DetectionResults(loader.dataset.classes)
    for index, ((image,), (target,)) in enumerate(loader):
        output = {name: value.float().cpu().numpy() for name, value in model([image.to(DEVICE)])[0].items()}
        kinds = torch.where(target["difficult"], DIFFICULT, REGULAR).numpy()
        results.update(
            index,
            Prediction(output["boxes"], output["labels"].astype(int) - 1, output["scores"]),
            GroundTruth(target["boxes"].numpy(), target["labels"].numpy() - 1, kinds),
        )
    return results.compute_metrics()["map"]


def main():
    """Train as the run did, and print the mean average precision on the test images."""
    data, recipe, precision = read_arguments()
    require(recipe, batch_norm=False, width_multiplier=1.0, roi_pooling="align", training="joint")
    options = {"collate_fn": unzip, "num_workers": NUM_WORKERS, "persistent_workers": True}
    dataset = VOCImages(data, "train", build_augmentation(recipe.augment, None))
    train_loader = DataLoader(dataset, recipe.batch_size, shuffle=True, drop_last=True, **options)
    val_loader, test_loader = (DataLoader(VOCImages(data, split), **options) for split in ("val", "test"))
    model = build_detector(recipe, len(dataset.classes)).to(DEVICE)

    def compute_loss(batch):
        images, targets = batch
        targets = [{name: target[name].to(DEVICE) for name in ("boxes", "labels")} for target in targets]
        return sum(model([image.to(DEVICE) for image in images], targets).values())

    train(model, recipe, precision, train_loader, compute_loss, partial(compute_map, model, val_loader))
    mean_ap = run_evaluation(model, precision, partial(compute_map, model, test_loader))
    print(json.dumps({"map": mean_ap, "count": len(test_loader.dataset)}))


def unzip(samples):
    """Return the images and the targets of a batch, which have different sizes."""
    return tuple(zip(*samples, strict=True))


if __name__ == "__main__":
    main()

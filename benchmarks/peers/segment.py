"""Semantic segmentation with plain PyTorch: FCN-8s on VGG-16, with the settings of a fukami run; see ``own_data.py``.

    cd benchmarks && python -m peers.segment DATA RUN

DATA contains ``classes.txt``, and ``images`` and ``masks`` in ``train``, ``val`` and ``test``. All images have the same
size, and the masks values from 0; the class ``void`` is ignored. Prints the mean IoU on the test images as JSON,
computed by fukami.
"""

import json
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from fukami.segmentation.metrics import SegmentationResults
from fukami.segmentation.recipe import BALANCE_POWERS
from peers.training import (
    DEVICE,
    MEAN,
    NUM_WORKERS,
    STD,
    build_augmentation,
    load_features,
    read_arguments,
    require,
    run_evaluation,
    train,
)


class FCN8s(nn.Module):
    """VGG-16 with a convolutional head and skip connections from its third and fourth pooling."""

    def __init__(self, recipe, num_classes):
        super().__init__()
        features = load_features(recipe.init, recipe.batch_norm)
        ends = [index + 1 for index, layer in enumerate(features) if isinstance(layer, nn.MaxPool2d)]
        self.stages3, self.stage4, self.stage5 = features[: ends[2]], features[ends[2] : ends[3]], features[ends[3] :]
        layers, inputs = [], 512
        for side in (7, 1):
            norm = [nn.BatchNorm2d(recipe.hidden)] if recipe.batch_norm else []
            layers += [nn.Conv2d(inputs, recipe.hidden, side, padding=side // 2), *norm, nn.ReLU(inplace=True)]
            layers.append(nn.Dropout(recipe.dropout))
            inputs = recipe.hidden
        self.head = nn.Sequential(*layers, nn.Conv2d(inputs, num_classes, 1))
        self.score3, self.score4 = nn.Conv2d(256, num_classes, 1), nn.Conv2d(512, num_classes, 1)
        for score in (self.score3, self.score4):  # as in the paper
            nn.init.zeros_(score.weight)
            nn.init.zeros_(score.bias)

    def forward(self, images):
        """Compute the scores of each pixel of normalized images."""
        pool3 = self.stages3(images)
        pool4 = self.stage4(pool3)
        scores = self.head(self.stage5(pool4))
        for skip in (self.score4(pool4), self.score3(pool3)):
            scores = skip + resize(scores, skip.shape[-2:])
        return resize(scores, images.shape[-2:])


def resize(scores, size):
    """Interpolate scores to a height and a width."""
    return F.interpolate(scores.float(), size, mode="bilinear", align_corners=False)


class Masks(Dataset):
    """Images and masks of a split."""

    def __init__(self, root, split, recipe):
        self.images = sorted((root / split / "images").iterdir())
        resize = v2.Resize(recipe.min_size) if recipe.min_size else v2.Identity()
        normalize = [v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True), v2.Normalize(MEAN, STD)]
        with Image.open(self.images[0]) as image:
            size = resize(torch.empty(3, image.height, image.width)).shape[-2:]
        augmentations = build_augmentation(recipe.augment, size) if split == "train" else []
        self.resize_image, self.resize_mask = resize, resize if split == "train" else v2.Identity()
        self.transform = v2.Compose([*augmentations, *normalize])

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        """Load an image and its mask, which keeps its own size in the evaluation."""
        path = self.images[index]
        mask = Image.open(path.parent.parent / "masks" / f"{path.stem}.png")
        image = self.resize_image(v2.functional.to_image(Image.open(path).convert("RGB")))
        return self.transform(image, self.resize_mask(tv_tensors.Mask(v2.functional.pil_to_tensor(mask)[0])))


def compute_class_weights(folder, num_classes, power):
    """Compute the weights ``(median frequency / frequency) ** power`` of the classes in a folder of masks."""
    counts = sum(
        torch.from_numpy(np.array(Image.open(path))).long().flatten().bincount(minlength=num_classes)[:num_classes]
        for path in folder.iterdir()
    )
    return (counts[counts > 0].double().median() / counts.clamp(min=1)).pow(power).float()


def compute_miou(model, loader, classes, ignore_index):
    """Compute the mean IoU at the size of the masks."""
    results = SegmentationResults(classes)
    for index, (images, masks) in enumerate(loader):
        predictions = resize(model(images.to(DEVICE)), masks.shape[-2:]).argmax(1).cpu() + 1
        truth = torch.where(masks == ignore_index, 0, masks + 1)
        for i in range(len(images)):
            results.update(index * loader.batch_size + i, predictions[i].byte().numpy(), truth[i].byte().numpy())
    return results.compute_metrics()["miou"]


def main():
    """Train as the run did, and print the mean IoU on the test images."""
    data, recipe, precision = read_arguments()
    require(recipe, width_multiplier=1.0, training="at-once")
    names = (data / "classes.txt").read_text().split()
    classes, ignore_index = [name for name in names if name != "void"], names.index("void")
    options = {"num_workers": NUM_WORKERS, "persistent_workers": True}
    train_loader = DataLoader(Masks(data, "train", recipe), recipe.batch_size, shuffle=True, drop_last=True, **options)
    val_loader, test_loader = (DataLoader(Masks(data, split, recipe), 4, **options) for split in ("val", "test"))
    model = FCN8s(recipe, len(classes)).to(DEVICE)
    weights = compute_class_weights(data / "train" / "masks", len(classes), BALANCE_POWERS[recipe.balance]).to(DEVICE)

    def compute_loss(batch):
        images, masks = batch
        return F.cross_entropy(model(images.to(DEVICE)), masks.long().to(DEVICE), weights, ignore_index=ignore_index)

    backbone = {"params": [], "lr": recipe.peak_lr * recipe.backbone_lr_factor}
    others = []
    for name, parameter in model.named_parameters():
        (backbone["params"] if name.startswith("stage") else others).append(parameter)
    train(
        model, recipe, precision, train_loader, compute_loss,
        partial(compute_miou, model, val_loader, classes, ignore_index), [backbone, {"params": others}],
    )  # fmt: skip
    miou = run_evaluation(model, precision, partial(compute_miou, model, test_loader, classes, ignore_index))
    print(json.dumps({"miou": miou, "count": len(test_loader.dataset)}))


if __name__ == "__main__":
    main()

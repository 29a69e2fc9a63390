"""Image classification with torchvision: a new head on VGG-16, with the settings of a fukami run; see ``own_data.py``.

    cd benchmarks && python -m peers.classify DATA RUN

DATA contains folders of classes in ``train``, ``val`` and ``test``. As in PyTorch's transfer-learning tutorial, the
weights with the best validation accuracy are kept. Prints the test accuracy as JSON.
"""

import json
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

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


class Classifier(nn.Module):
    """VGG-16 with a new head."""

    def __init__(self, recipe, num_classes):
        super().__init__()
        side = min(7, recipe.size // 32) if recipe.hidden else 1
        self.features = load_features(recipe.init)
        layers = [nn.AdaptiveAvgPool2d(side), nn.Flatten()]
        inputs = 512 * side * side
        for units in (recipe.hidden, recipe.hidden) if recipe.hidden else ():
            layers += [nn.Linear(inputs, units), nn.ReLU(inplace=True), nn.Dropout(recipe.dropout)]
            inputs = units
        self.head = nn.Sequential(*layers, nn.Linear(inputs, num_classes))

    def forward(self, images):
        """Compute the logits of normalized images."""
        return self.head(self.features(images))


def build_loader(folder, recipe, *, augment):
    """Build the loader of a split."""
    normalize = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    resize = [v2.Resize(recipe.size), v2.CenterCrop(recipe.size)]
    transforms = build_augmentation(recipe.augment, recipe.size) if augment else resize
    if augment and not any(isinstance(transform, v2.RandomResizedCrop) for transform in transforms):
        transforms = resize + transforms
    dataset = ImageFolder(folder, v2.Compose([*transforms, *normalize]))
    return DataLoader(dataset, recipe.batch_size, shuffle=augment, drop_last=augment, num_workers=NUM_WORKERS,
                      persistent_workers=True)  # fmt: skip


def compute_accuracy(model, loader):
    """Compute the fraction of correct predictions."""
    correct = sum((model(images.to(DEVICE)).argmax(1).cpu() == targets).sum().item() for images, targets in loader)
    return correct / len(loader.dataset)


def main():
    """Train the head, then all layers, as the run did, and print the test accuracy."""
    data, recipe, precision = read_arguments()
    require(recipe, batch_norm=False, channels=3, cycles=1, ema_decay=0.0, balance="none", layer_lr_decay=1.0)
    train_loader = build_loader(data / "train", recipe, augment=True)
    val_loader, test_loader = (build_loader(data / split, recipe, augment=False) for split in ("val", "test"))
    model = Classifier(recipe, len(train_loader.dataset.classes)).to(DEVICE)

    def compute_loss(batch):
        images, targets = batch
        return F.cross_entropy(model(images.to(DEVICE)), targets.to(DEVICE), label_smoothing=recipe.label_smoothing)

    for stage in (*recipe.stages(data).values(), recipe):  # the folder of the stages is not used
        model.features.requires_grad_(not stage.freeze)
        train(model, stage, precision, train_loader, compute_loss, partial(compute_accuracy, model, val_loader))
    accuracy = run_evaluation(model, precision, partial(compute_accuracy, model, test_loader))
    print(json.dumps({"accuracy": accuracy, "count": len(test_loader.dataset)}))


if __name__ == "__main__":
    main()

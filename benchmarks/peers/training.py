"""Settings of a fukami run and a plain training loop, for the scripts of ``own_data.py``.

The recipe of the run gives epochs, batch size, optimizer, learning rate and schedule, so that both train alike.
"""

import argparse
import copy
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torchvision.models import VGG16_Weights, vgg16, vgg16_bn
from torchvision.transforms import v2

from fukami.engine import run_record

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NUM_WORKERS = 2
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def read_arguments():
    """Read the arguments DATA and RUN; return the data folder, and the recipe and precision of the run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("run", type=Path)
    options = parser.parse_args()
    recipe, _ = run_record.read_recipe(options.run)
    precision = json.loads((options.run / "recipe.json").read_text())["precision"]
    torch.manual_seed(recipe.seed)
    return options.data, recipe, precision


def require(recipe, **values):
    """Stop if a field of the recipe has another value than the one that the script implements."""
    for name, value in values.items():
        if getattr(recipe, name) != value:
            sys.exit(f"this script implements only {name} {value!r}, and the run has {getattr(recipe, name)!r}")


def load_features(init, batch_norm=False):
    """Load the convolutions of VGG-16 from a file or, for ``imagenet``, from torchvision.

    With ``batch_norm`` a new batch normalization follows each.
    """
    if init == "imagenet":
        features = vgg16(weights=VGG16_Weights.IMAGENET1K_V1).features
    else:
        features = vgg16(weights=None).features
        tensors = {key.removeprefix("features."): value for key, value in load_file(init).items()}
        features.load_state_dict({name: tensors[name] for name in features.state_dict()})
    if batch_norm:
        plain, features = features, vgg16_bn(weights=None).features
        convolutions = ([layer for layer in one if isinstance(layer, nn.Conv2d)] for one in (features, plain))
        for target, source in zip(*convolutions, strict=True):
            target.load_state_dict(source.state_dict())
    return features.to(memory_format=torch.channels_last)  # faster on CPUs, as PyTorch's tuning guide recommends


def build_augmentation(specs, size):
    """Build torchvision's transforms of ``--augment``; ``size`` is that of the crops."""
    builders = {
        "crop": lambda value: v2.RandomResizedCrop(size, scale=(value, 1.0)),
        "flip": lambda _: v2.RandomHorizontalFlip(),
        "flip-vertical": lambda _: v2.RandomVerticalFlip(),
        "brightness": lambda value: v2.ColorJitter(brightness=value),
        "contrast": lambda value: v2.ColorJitter(contrast=value),
    }
    defaults = {"crop": 0.08, "flip": 0.5, "flip-vertical": 0.5, "brightness": 0.4, "contrast": 0.4}
    pairs = (spec.partition("=")[::2] for spec in specs)
    return [builders[name](float(value or defaults[name])) for name, value in pairs]


def autocast(precision):
    """Return the context of mixed precision, if the run has it."""
    return torch.autocast(DEVICE, torch.bfloat16, enabled=precision == "bfloat16")


def train(model, recipe, precision, batches, compute_loss, evaluate, parameters=None):
    """Train the model, and load the weights with the best result of ``evaluate``, on the validation data.

    ``parameters`` are the parameter groups of the optimizer; by default all parameters that require gradients.
    """
    require(recipe, accumulate=1, patience=0)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = recipe.get_optimizer_factory()(parameters or trained)
    steps, schedule = recipe.epochs * len(batches), recipe.build_schedule()
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step / steps))
    best_score, best_weights = -1.0, {}
    for epoch in range(1, recipe.epochs + 1):
        model.train()
        for batch in batches:
            with autocast(precision):
                loss = compute_loss(batch)
            optimizer.zero_grad()
            loss.backward()
            if recipe.clip_norm:
                nn.utils.clip_grad_norm_(trained, recipe.clip_norm)
            optimizer.step()
            scheduler.step()
        if epoch % recipe.eval_every and epoch != recipe.epochs:
            continue
        score = run_evaluation(model, precision, evaluate)
        print(f"epoch {epoch}/{recipe.epochs}  loss {loss.item():.4f}  validation {score:.4f}", file=sys.stderr)
        if score > best_score:
            best_score, best_weights = score, copy.deepcopy(model.state_dict())
    model.load_state_dict(best_weights)


def run_evaluation(model, precision, evaluate):
    """Call ``evaluate`` without gradients, with the model in evaluation mode."""
    model.eval()
    with torch.inference_mode(), autocast(precision):
        return evaluate()

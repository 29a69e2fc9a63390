"""Draw the figures of docs/guides/explain.md, and print the numbers of its table of receptive fields.

python docs/figures/scripts/explain.py stacking
python docs/figures/scripts/explain.py features    needs MNIST in $FUKAMI_DATA
python docs/figures/scripts/explain.py fields WEIGHTS IMAGES

WEIGHTS: convolutional layers of VGG-16 trained on ImageNet, as safetensors with torchvision's names. IMAGES: a folder.
"""

import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image
from safetensors.torch import load_file

from fukami import models
from fukami.engine import checkpoint
from fukami.explain import feature_visualization, receptive_field, stacked_filters
from fukami.explain import summary as explain_summary
from fukami.image import io as image_io

HERE = Path(__file__).parents[1]
SIDE = 448  # larger than the largest receptive field, 427 of ResNet-50
MEAN, STD = ((torch.tensor(values).view(3, 1, 1)) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def save(figure: Figure, name: str) -> None:
    """Save a figure with a palette of 192 colors."""
    path = HERE / f"explain-{name}.png"
    figure.savefig(path, dpi=100)
    Image.open(path).convert("RGB").quantize(192).save(path, optimize=True)
    sys.stdout.write(f"{path.name}: {path.stat().st_size:,} bytes\n")


def plot_fields(weights_file: Path, folder: Path) -> None:
    """Plot the theoretical and effective receptive fields of the last spatial layer, at the same scale."""
    paths = sorted(folder.rglob("*.jpg"))
    paths = paths[:: max(1, len(paths) // 8)][:8]
    images = [
        torch.from_numpy(image_io.resize_and_crop(image_io.read_image(path), channels=3, size=SIDE)) / 255
        for path in paths
    ]
    photographs = (torch.stack(images) - MEAN) / STD
    noise = torch.randn(8, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    random_vgg, pretrained = models.vgg16(hidden=0), models.vgg16(hidden=0)
    weights = {name: value.float() for name, value in load_file(weights_file).items()}
    assert not pretrained.load_state_dict(weights, strict=False).unexpected_keys
    cases = [
        ("VGG16, random", random_vgg, noise),
        ("VGG16, ImageNet", pretrained, photographs),
        ("GoogLeNet, random", models.googlenet(), noise),
        ("ResNet-50, random", models.resnet50(), noise),
    ]
    fields = []
    for name, model, inputs in cases:
        field = receptive_field.compute_effective_receptive_field(model, (3, SIDE, SIDE), images=inputs)
        side = field.layer.receptive_field[0]
        sys.stdout.write(f"{name}: layer {field.layer.name}, theoretical {side}, effective {field.size}\n")
        fields.append((f"{name}: theoretical {side},\neffective {field.size}", field))
    save(receptive_field.plot_receptive_fields(*fields), "fields")


def plot_features() -> None:
    """Plot the Grad-CAM, the feature maps and the top patches of deep-convnet for docs/digit.png."""
    task = checkpoint.load_task("deep-convnet")
    (model,) = task.get_modules().values()
    pixels = torch.from_numpy(task.transform.read_and_transform(HERE.parent / "digit.png"))
    image = task.normalize_images(pixels)
    (prediction,) = task.predict([HERE.parent / "digit.png"])
    stages = explain_summary.find_stages(explain_summary.summarize_layers(model, tuple(pixels.shape)))
    maps = feature_visualization.compute_feature_maps(model, image, [layer.name for layer in stages])
    heat = feature_visualization.compute_grad_cam(model, image, task.labels.index(prediction["label"]))
    ranking = [(entry["label"], entry["probability"]) for entry in prediction["ranking"]]
    save(feature_visualization.plot_prediction(pixels, heat, ranking), "grad-cam")
    save(feature_visualization.plot_feature_maps(maps), "maps")
    recipe, _ = checkpoint.read_recipe(checkpoint.locate_run("deep-convnet"))
    batches = [images for images, _ in recipe.load_data().train.iterate_in_order()]
    units = [(layer, feature_visualization.select_strongest_maps(maps[layer.name], 6)) for layer in stages]
    patches = feature_visualization.find_top_patches(model, batches, units, normalize=task.normalize_images)
    rows = [
        (f"layer {layer.name}: units {', '.join(map(str, numbers))}", patches[layer.name]) for layer, numbers in units
    ]
    save(feature_visualization.plot_top_patches(rows), "patches")


if __name__ == "__main__":
    torch.manual_seed(0)
    match sys.argv[1:]:
        case ["stacking"]:
            save(stacked_filters.plot_weight_savings(), "stacking")
        case ["features"]:
            plot_features()
        case ["fields", weights, images]:
            plot_fields(Path(weights), Path(images))
        case _:
            sys.exit(__doc__)

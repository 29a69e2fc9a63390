"""Make the figures of ../explain.md, and print the numbers in its table of receptive fields.

python docs/figures/scripts/explain.py stacking
python docs/figures/scripts/explain.py seeing         needs MNIST, as the shipped run names it
python docs/figures/scripts/explain.py fields FEATURES PHOTOGRAPHS

FEATURES: VGG16's ImageNet features as safetensors, with torchvision's names. PHOTOGRAPHS: a folder of images.
"""

import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image
from safetensors.torch import load_file

import fukami
from fukami import models
from fukami.engine import checkpoint
from fukami.explain import feature_visualization, receptive_field, stacked_filters
from fukami.explain import summary as explain_summary
from fukami.image import io as image_io

HERE = Path(__file__).parents[1]
SIDE = 448  # the largest theoretical field, ResNet-50's 427, fits
MEAN, STD = ((torch.tensor(values).view(3, 1, 1)) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def save(figure: Figure, name: str) -> None:
    """Write a figure beside this file, in few colours."""
    path = HERE / f"explain-{name}.png"
    figure.savefig(path, dpi=100)
    Image.open(path).convert("RGB").quantize(192).save(path, optimize=True)
    sys.stdout.write(f"{path.name}: {path.stat().st_size:,} bytes\n")


def fields(features: Path, folder: Path) -> None:
    """Theoretical and effective fields of the last layer with positions, at the same scale."""
    vgg = models.vgg16(hidden=0)
    photographs = sorted(folder.rglob("*.jpg"))[:: max(1, len(list(folder.rglob("*.jpg"))) // 8)][:8]
    images = [
        torch.from_numpy(image_io.resize_and_crop(image_io.read_image(path), channels=3, size=SIDE)) / 255
        for path in photographs
    ]
    real = (torch.stack(images) - MEAN) / STD
    noise = torch.randn(8, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    trained = models.vgg16(hidden=0)
    weights = {name: value.float() for name, value in load_file(features).items()}
    assert not trained.load_state_dict(weights, strict=False).unexpected_keys
    cases = [
        ("VGG16, random", vgg, noise),
        ("VGG16, ImageNet", trained, real),
        ("GoogLeNet, random", models.googlenet(), noise),
        ("ResNet-50, random", models.resnet50(), noise),
    ]
    measured = []
    for name, model, given in cases:
        found = receptive_field.compute_effective_receptive_field(model, (3, SIDE, SIDE), images=given)
        side = found.layer.receptive_field[0]
        sys.stdout.write(f"{name}: layer {found.layer.name}, {side} in theory, {found.size} in effect\n")
        measured.append((f"{name}: {side} in theory,\n{found.size} in effect", found))
    save(receptive_field.plot_receptive_fields(*measured), "fields")


def seen() -> None:
    """What deep-convnet sees in ../digit.png."""
    task = fukami.load("deep-convnet")
    (model,) = task.get_modules().values()
    pixels = torch.from_numpy(task.transform.read_and_transform(HERE.parent / "digit.png"))
    image = task.normalize_images(pixels)
    (answer,) = task.predict([HERE.parent / "digit.png"])
    depths = explain_summary.find_stages(explain_summary.summarize_layers(model, tuple(pixels.shape)))
    maps = feature_visualization.compute_feature_maps(model, image, [layer.name for layer in depths])
    heat = feature_visualization.compute_grad_cam(model, image, task.labels.index(answer["label"]))
    ranking = [(entry["label"], entry["probability"]) for entry in answer["ranking"]]
    save(feature_visualization.plot_prediction(pixels, heat, ranking), "grad-cam")
    save(feature_visualization.plot_feature_maps(maps), "maps")
    recipe, _ = checkpoint.read_recipe(checkpoint.locate_run("deep-convnet"))
    batches = [images for images, _ in recipe.load_data().train.iterate_in_order()]
    units = [(layer, feature_visualization.select_strongest_maps(maps[layer.name], 6)) for layer in depths]
    found = feature_visualization.find_top_patches(model, batches, units, normalize=task.normalize_images)
    rows = [(f"layer {layer.name}: units {', '.join(map(str, chosen))}", found[layer.name]) for layer, chosen in units]
    save(feature_visualization.plot_top_patches(rows), "patches")


if __name__ == "__main__":
    torch.manual_seed(0)
    match sys.argv[1:]:
        case ["stacking"]:
            save(stacked_filters.plot_weight_savings(), "stacking")
        case ["seeing"]:
            seen()
        case ["fields", features, photographs]:
            fields(Path(features), Path(photographs))
        case _:
            sys.exit(__doc__)

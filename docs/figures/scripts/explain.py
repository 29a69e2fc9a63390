"""Draw the figures of docs/guides/explain.md, and print the numbers of its table of receptive fields.

    python docs/figures/scripts/explain.py stacking
    python docs/figures/scripts/explain.py features             needs MNIST in $FUKAMI_DATA
    python docs/figures/scripts/explain.py fields WEIGHTS IMAGES
    python docs/figures/scripts/explain.py grad-cam RUN PHOTOGRAPH PHOTOGRAPH

WEIGHTS: convolutional layers of VGG-16 trained on ImageNet, as safetensors with torchvision's names. IMAGES: a folder.
RUN is a run of the second command, 13 minutes on two cores, on people and animals that the first command cuts out of
voc-animals in $FUKAMI_DATA; each PHOTOGRAPH is of the validation split of voc-animals:

    PYTHONPATH=benchmarks python -c "from pathlib import Path; from common.datasets import write_animal_crops; \\
      write_animal_crops(Path('crops'))"
    fukami train vgg16 --data crops --init WEIGHTS --size 224
"""

import sys
from pathlib import Path

import torch
from images import create_parser, render_figure, save_image
from matplotlib.figure import Figure
from PIL import Image
from safetensors.torch import load_file

from fukami import models
from fukami.engine import run_folder, run_record
from fukami.engine.load_run import load_task
from fukami.explain import feature_visualization, receptive_field, stacked_filters
from fukami.explain import summary as explain_summary
from fukami.image import io as image_io

DOCS = Path(__file__).parents[2]
SIDE = 448  # larger than the largest receptive field, 427 of ResNet-50
MEAN, STD = ((torch.tensor(values).view(3, 1, 1)) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG with a palette of 192 colors."""
    render_figure(figure).quantize(192).save(path, optimize=True)


def plot_fields(weights_file: Path, folder: Path, out: Path) -> None:
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
    save(receptive_field.plot_receptive_fields(*fields), out / "explain-fields.png")


def plot_features(out: Path) -> None:
    """Plot the feature maps and the top patches of deep-convnet for docs/digit.png."""
    task = load_task("deep-convnet")
    (model,) = task.get_modules().values()
    pixels = torch.from_numpy(task.transform.read_and_transform(DOCS / "digit.png"))
    stages = explain_summary.find_stages(explain_summary.summarize_layers(model, tuple(pixels.shape)))
    maps = feature_visualization.compute_feature_maps(
        model, task.normalize_images(pixels), [layer.name for layer in stages]
    )
    save(feature_visualization.plot_feature_maps(maps), out / "explain-maps.png")
    recipe, _ = run_record.read_recipe(run_folder.locate_run("deep-convnet"))
    batches = [images for images, _ in recipe.load_data().train.iterate_in_order()]
    units = [(layer, feature_visualization.select_strongest_maps(maps[layer.name], 6)) for layer in stages]
    patches = feature_visualization.find_top_patches(model, batches, units, normalize=task.normalize_images)
    rows = [
        (f"layer {layer.name}: units {', '.join(map(str, numbers))}", patches[layer.name]) for layer, numbers in units
    ]
    save(feature_visualization.plot_top_patches(rows), out / "explain-patches.png")


def draw_grad_cam(run: Path, photographs: list[Path]) -> Image.Image:
    """Draw the Grad-CAM of the predicted class of each photograph, as on the page of ``fukami explain``."""
    task = load_task(run, device="cpu")
    (model,) = task.get_modules().values()
    rows = []
    for path, prediction in zip(photographs, task.predict(photographs), strict=True):
        pixels = torch.from_numpy(task.transform.read_and_transform(path))
        target = task.labels.index(prediction["label"])
        heat = feature_visualization.compute_grad_cam(model, task.normalize_images(pixels), target)
        ranking = [(entry["label"], entry["probability"]) for entry in prediction["ranking"]]
        rows.append(render_figure(feature_visualization.plot_prediction(pixels, heat, ranking)))
    canvas = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)), "white")
    for index, row in enumerate(rows):
        canvas.paste(row, (0, index * row.height))
    return canvas


if __name__ == "__main__":
    torch.manual_seed(0)
    parser = create_parser(__doc__)
    parser.add_argument("figure", choices=("stacking", "features", "fields", "grad-cam"))
    parser.add_argument("paths", type=Path, nargs="*", help="Weights and folder of images, or run and photographs.")
    options = parser.parse_args()
    match options.figure, options.paths:
        case "stacking", []:
            save(stacked_filters.plot_weight_savings(), options.out / "explain-stacking.png")
        case "features", []:
            plot_features(options.out)
        case "fields", [weights, images]:
            plot_fields(weights, images, options.out)
        case "grad-cam", [run, *photographs] if photographs:
            save_image(draw_grad_cam(run, photographs), options.out / "explain-grad-cam.webp")
        case _:
            parser.error("fields needs WEIGHTS and IMAGES, grad-cam RUN and a PHOTOGRAPH, the others need no path")

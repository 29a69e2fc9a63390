"""Draw fcn.webp of docs/landmarks/fcn.md, and segnet.webp and driving.webp of docs/landmarks/segnet.md.

    python docs/figures/scripts/segmentation.py fcn FCN
    python docs/figures/scripts/segmentation.py segnet SEGNET
    python docs/figures/scripts/segmentation.py driving SEGNET

FCN is a run of the first command, 50 minutes on two cores, and SEGNET of the second one, 84 minutes; camvid is in
$FUKAMI_DATA, and FILE contains the convolutions of VGG-16 (vgg16_features_imagenet.safetensors):

    fukami train fcn8s-vgg16 --data camvid --training staged --stage-lr-factor 0.3 --augment flip crop=0.5 \\
      brightness=0.3 --eval-every 8 --init FILE --epochs 8
    fukami train segnet-vgg16 --data camvid --augment flip crop=0.5 brightness=0.3 --balance root --eval-every 10 \\
      --init FILE --lr 3e-3 --backbone-lr-factor 0.08 --min-size 180 --epochs 36 --batch-size 2 --no-compile
"""

import io
import sys
from pathlib import Path

import numpy as np
from images import create_parser, resize_to_width, save_image
from PIL import Image

import fukami
from fukami.data.samples import Sample
from fukami.engine.load_run import load_task
from fukami.image import draw as image_draw
from fukami.image import io as image_io
from fukami.segmentation import data as segmentation_data
from fukami.selective_search.plots import arrange_panels

PANEL_WIDTH = 317  # pixels; three panels fit into 1,000
EXAMPLES = (20, 120, 200)  # test images of segnet.webp; the last two are those of fcn.webp
VIDEO_FRAMES, VIDEO_WIDTH, FPS = range(68, 128, 2), 480, 5  # test images of the video, a drive by day
MAX_VIDEO_BYTES = 1_000_000
RED = (224, 49, 49)
Panel = tuple[Image.Image, str]


def load_samples() -> tuple[Sample, ...]:
    """Load the test images of CamVid and their masks."""
    return segmentation_data.load_dataset("camvid", None, include_train=False).test


def draw_legend(image: Image.Image, labels: tuple[str, ...]) -> Image.Image:
    """Draw the names and colors of all classes below an image."""
    entries = list(zip(labels, image_draw.get_class_colors(labels), strict=True))
    return image_draw.draw_legend(image, entries, labels, len(entries))


def draw_inputs(sample: Sample, labels: tuple[str, ...]) -> list[Panel]:
    """Draw an image and its ground truth; unlabeled pixels are white."""
    image = image_io.read_image(sample.source)
    colors = [image_io.WHITE, *image_draw.get_class_colors(labels)]
    truth = image_draw.overlay_mask(image, sample.mask.read(), colors)
    return [(resize_to_width(image, PANEL_WIDTH), "image"), (resize_to_width(truth, PANEL_WIDTH), "ground truth")]


def predict(task: fukami.Task, image: Image.Image) -> tuple[np.ndarray, Image.Image]:
    """Predict the class index of each pixel; also return the image with the classes overlaid."""
    (prediction,) = task.predict([image])
    classes = task.decode_masks(prediction)
    return classes, image_draw.overlay_mask(image, classes, image_draw.get_class_colors(task.labels))


def draw_fcn(run: Path) -> Image.Image:
    """Draw two images, their ground truth and the predictions of each stage of staged training."""
    stages = {"FCN-32s": "fcn32s-vgg16", "FCN-16s": "fcn16s-vgg16", "FCN-8s": ""}
    tasks = {name: load_task(run / folder, device="cpu") for name, folder in stages.items()}
    labels = tasks["FCN-8s"].labels
    samples = load_samples()
    panels: list[Panel] = []
    for index in EXAMPLES[1:]:
        image, truth = image_io.read_image(samples[index].source), samples[index].mask.read()
        panels += draw_inputs(samples[index], labels)
        for name, task in tasks.items():
            classes, overlay = predict(task, image)
            is_wrong = (truth > 0) & (classes + 1 != truth)
            title = f"{name}: {1 - is_wrong.sum() / (truth > 0).sum():.1%} of the pixels correct"
            panels.append((resize_to_width(overlay, PANEL_WIDTH), title))
        errors = image_draw.overlay_mask(image.convert("L"), is_wrong.astype(np.uint8), [image_draw.BLACK, RED])
        panels.append((resize_to_width(errors, PANEL_WIDTH), "errors of FCN-8s"))
    return draw_legend(arrange_panels(panels, 3), labels)


def draw_segnet(run: Path) -> Image.Image:
    """Draw test images with their ground truth and the predictions."""
    task = load_task(run, device="cpu")
    samples = load_samples()
    panels: list[Panel] = []
    for index in EXAMPLES:
        _, overlay = predict(task, image_io.read_image(samples[index].source))
        panels += [*draw_inputs(samples[index], task.labels), (resize_to_width(overlay, PANEL_WIDTH), "prediction")]
    return draw_legend(arrange_panels(panels, 3), task.labels)


def write_video(run: Path, path: Path) -> None:
    """Write an animation of the predictions of consecutive images, with a legend."""
    task = load_task(run, device="cpu")
    samples = load_samples()
    frames = []
    for index in VIDEO_FRAMES:
        _, overlay = predict(task, image_io.read_image(samples[index].source))
        frames.append(draw_legend(resize_to_width(overlay, VIDEO_WIDTH), task.labels))
    for quality in (70, 60, 50, 40, 30):
        buffer = io.BytesIO()
        frames[0].save(buffer, "webp", save_all=True, append_images=frames[1:], duration=1000 // FPS, loop=0,
                       quality=quality, method=6)  # fmt: skip
        if buffer.tell() <= MAX_VIDEO_BYTES:
            break
    path.write_bytes(buffer.getvalue())
    sys.stdout.write(f"{path.name}: {frames[0].width}×{frames[0].height}, {buffer.tell():,} bytes\n")


if __name__ == "__main__":
    parser = create_parser(__doc__)
    parser.add_argument("figure", choices=("fcn", "segnet", "driving"))
    parser.add_argument("run", type=Path, help="Run on camvid; for fcn, of staged training.")
    options = parser.parse_args()
    match options.figure:
        case "fcn":
            save_image(draw_fcn(options.run), options.out / "fcn.webp")
        case "segnet":
            save_image(draw_segnet(options.run), options.out / "segnet.webp")
        case _:
            write_video(options.run, options.out / "driving.webp")

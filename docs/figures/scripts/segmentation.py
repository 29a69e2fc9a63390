"""Draw fcn.png of docs/landmarks/fcn.md, and segnet.png and driving.webp of docs/landmarks/segnet.md.

python docs/figures/scripts/segmentation.py fcn RUN [SCENE]    RUN: fcn8s-vgg16 --training staged --data scenes
python docs/figures/scripts/segmentation.py segnet RUN         RUN: segnet-vgg16 --data camvid
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

import fukami
from fukami.data import scenes
from fukami.engine import checkpoint
from fukami.image import io as image_io
from fukami.segmentation import data as segmentation_data

HERE = Path(__file__).parents[1]
EXAMPLES = (20, 120, 200)  # test images of the figure
VIDEO_FRAMES = range(0, 60, 2)  # test images of the video, a drive at dusk
FPS = 5


def draw_fcn(run: str, scene_index: int) -> None:
    """Draw a scene, the ground truth and the prediction of each stage of staged training."""
    (sample,) = scenes.generate_mask_samples(scenes.NUM_TRAIN + scene_index, 1)
    image = Image.fromarray(np.asarray(sample.source))
    columns = [("scene", image), ("ground truth", draw_mask(sample.mask.read() - 1, scenes.MASK_LABELS))]
    for name, folder in (("FCN-32s", "fcn32s-vgg16"), ("FCN-16s", "fcn16s-vgg16"), ("FCN-8s", "")):
        task = checkpoint.load_task(Path(run) / folder, device="cpu")
        columns.append((name, draw_mask(task.decode_masks(task.predict([image])[0]), task.labels)))
    figure = Figure(figsize=(11, 2.6), layout="constrained")
    for axes, (title, column) in zip(figure.subplots(1, len(columns)), columns, strict=True):
        axes.imshow(np.asarray(column))
        axes.set_title(title, fontsize=9)
        axes.axis("off")
    figure.savefig(HERE / "fcn.png", dpi=100, bbox_inches="tight", pad_inches=0.05)


def draw_mask(mask: image_io.UInt8Array, labels: tuple[str, ...]) -> Image.Image:
    """Draw a label map in the class colors, with a light background."""
    colors = [
        (238, 238, 238) if label == "background" else color
        for label, color in zip(labels, image_io.get_class_colors(labels), strict=True)
    ]
    return image_io.apply_palette(mask, colors).convert("RGB")


def draw_segnet(run: str) -> None:
    """Draw test images with the ground truth and the predictions, and a video of predictions."""
    task = checkpoint.load_task(run, device="cpu")
    _, test, _ = segmentation_data.load_dataset("camvid", 0.2)
    colors = [image_io.WHITE, *image_io.get_class_colors(task.labels)]
    figure = Figure(figsize=(9.6, 7.4), layout="constrained")
    for row, image_index in zip(figure.subplots(len(EXAMPLES), 3), EXAMPLES, strict=True):
        image = image_io.read_image(test[image_index].source)
        truth = image_io.overlay_mask(image, test[image_index].mask.read(), colors)
        columns = (("image", image), ("ground truth", truth), ("prediction", draw_overlay(task, image)))
        for axes, (title, column) in zip(row, columns, strict=True):
            axes.imshow(np.asarray(column))
            axes.set_title(title if image_index == EXAMPLES[0] else "", fontsize=9)
            axes.axis("off")
    figure.savefig(HERE / "segnet.png", dpi=100)
    frames = [draw_overlay(task, image_io.read_image(test[index].source)).resize((320, 240)) for index in VIDEO_FRAMES]
    options = {"save_all": True, "append_images": frames[1:], "duration": 1000 // FPS, "loop": 0}
    frames[0].save(HERE / "driving.webp", quality=45, method=6, **options)


def draw_overlay(task: fukami.Task, image: Image.Image) -> Image.Image:
    """Draw the image with the predicted classes overlaid."""
    (prediction,) = task.predict([image])
    return image_io.overlay_mask(image, task.decode_masks(prediction), image_io.get_class_colors(task.labels))


if __name__ == "__main__":
    if sys.argv[1] == "fcn":
        draw_fcn(sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 0)
    else:
        draw_segnet(sys.argv[2])

"""Make fcn.png of ../fcn.md, and segnet.png and driving.webp of ../segnet.md.

python docs/figures/scripts/segmentation.py fcn RUN [NUMBER of the scene]   # fcn8s-vgg16 --training staged, on scenes
python docs/figures/scripts/segmentation.py segnet RUN                      # of segnet-vgg16 --data camvid
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

import fukami
from fukami.data import scenes
from fukami.image import io as image_io
from fukami.segmentation import data as segmentation_data

HERE = Path(__file__).parents[1]
SHOWN = (20, 120, 200)  # test images beside each other
DRIVE = range(0, 60, 2)  # test images of the film: a drive at dusk
RATE = 5  # of them in a second


def fcn(run: str, number: int) -> None:
    """A scene, what is true, and what the networks of a staged training say."""
    (sample,) = scenes.generate_mask_samples(scenes.NUM_TRAIN + number, 1)
    image = Image.fromarray(np.asarray(sample.source))
    columns = [("a scene", image), ("true", coloured(sample.mask.read() - 1, scenes.MASK_LABELS))]
    for name, folder in (("FCN-32s", "fcn32s-vgg16"), ("FCN-16s", "fcn16s-vgg16"), ("FCN-8s", "")):
        task = fukami.load(Path(run) / folder, device="cpu")
        columns.append((name, coloured(task.decode_masks(task.predict([image])[0]), task.labels)))
    figure = Figure(figsize=(11, 2.6), layout="constrained")
    for axes, (title, shown) in zip(figure.subplots(1, len(columns)), columns, strict=True):
        axes.imshow(np.asarray(shown))
        axes.set_title(title, fontsize=9)
        axes.axis("off")
    figure.savefig(HERE / "fcn.png", dpi=100, bbox_inches="tight", pad_inches=0.05)


def coloured(numbers: image_io.UInt8Array, labels: tuple[str, ...]) -> Image.Image:
    """A map in the colours of its classes, the background light."""
    shades = [
        (238, 238, 238) if label == "background" else shade
        for label, shade in zip(labels, image_io.get_class_colors(labels), strict=True)
    ]
    return image_io.apply_palette(numbers, shades).convert("RGB")


def segnet(run: str) -> None:
    """Test images beside what is true and what was answered, and a film of many of them."""
    task = fukami.load(run, device="cpu")
    _, test, _ = segmentation_data.load_dataset("camvid", 0.2)
    shades = [image_io.WHITE, *image_io.get_class_colors(task.labels)]
    figure = Figure(figsize=(9.6, 7.4), layout="constrained")
    for line, number in zip(figure.subplots(len(SHOWN), 3), SHOWN, strict=True):
        image = image_io.read_image(test[number].source)
        truth = image_io.overlay_mask(image, test[number].mask.read(), shades)
        columns = (("the image", image), ("true", truth), ("answered", drawn(task, image)))
        for axes, (title, shown) in zip(line, columns, strict=True):
            axes.imshow(np.asarray(shown))
            axes.set_title(title if number == SHOWN[0] else "", fontsize=9)
            axes.axis("off")
    figure.savefig(HERE / "segnet.png", dpi=100)
    frames = [drawn(task, image_io.read_image(test[number].source)).resize((320, 240)) for number in DRIVE]
    options = {"save_all": True, "append_images": frames[1:], "duration": 1000 // RATE, "loop": 0}
    frames[0].save(HERE / "driving.webp", quality=45, method=6, **options)


def drawn(task: fukami.Task, image: Image.Image) -> Image.Image:
    """The image under the colours of the answer."""
    (answer,) = task.predict([image])
    return image_io.overlay_mask(image, task.decode_masks(answer), image_io.get_class_colors(task.labels))


if __name__ == "__main__":
    if sys.argv[1] == "fcn":
        fcn(sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 0)
    else:
        segnet(sys.argv[2])

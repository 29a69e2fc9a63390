"""Draw dcgan-grid, -interpolation, -arithmetic and -nearest.webp of docs/landmarks/dcgan.md.

    python docs/figures/scripts/dcgan.py RUN WEIGHTS

WEIGHTS is a file of the convolutions of VGG-16 (vgg16_features_imagenet.safetensors), in whose features the nearest
training images are searched, for five minutes. RUN is a run of this command, 55 minutes on two cores;
anime-faces-4000 is in $FUKAMI_DATA:

    fukami train dcgan --data anime-faces-4000 --stable --batch-size 16 --augment flip --epochs 120 --eval-every 20 \\
      --eval-features pixels --no-compile
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from images import create_parser, save_image
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fukami.engine import run_record
from fukami.engine.load_run import load_task
from fukami.generation import features as generation_features
from fukami.generation.task import GANTask, draw_image_grid
from fukami.image import io as image_io

GRID_COLUMNS, NUM_SAMPLES = 12, 48
INTERPOLATION_STEPS, NUM_INTERPOLATIONS = 12, 4
NUM_CLASSIFIED, NUM_AVERAGED = 4000, 100  # samples, and those of them with the most hair of a color
NUM_FACES = 7  # in a row of the arithmetic
NUM_NEAREST, NUM_ROWS = 6, 4
HAIR = (slice(6, 22), slice(16, 48))  # rows and columns of the hair, of 64
CELL, GAP, LABEL_WIDTH, LABEL_SIZE = 112, 4, 180, 17  # pixels
HAIR_COLORS = {  # ranges of hue (0 to 1), saturation and brightness
    "blond": ((0.06, 0.17), (0.2, 1.0), (0.6, 1.0)),
    "blue": ((0.52, 0.72), (0.2, 1.0), (0.3, 1.0)),
    "dark": ((0.0, 1.0), (0.0, 1.0), (0.0, 0.3)),
    "pink": ((0.85, 1.0), (0.2, 1.0), (0.6, 1.0)),
}
ARITHMETIC = (("blond", "blue"), ("dark", "blond"), ("blue", "pink"))


def draw_rows(rows: Sequence[tuple[str, Tensor]], titles: Sequence[str] = ()) -> Image.Image:
    """Draw rows of images ``(N, C, H, W)``, each with a label on the left if it has one, below titles of columns."""
    columns, label_width = max(len(images) for _, images in rows), LABEL_WIDTH * any(label for label, _ in rows)
    top = 28 if titles else 0
    size = (label_width + columns * (CELL + GAP) - GAP, top + len(rows) * (CELL + GAP) - GAP)
    canvas = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(LABEL_SIZE)
    for column, title in enumerate(titles):
        draw.text((label_width + column * (CELL + GAP), 2), title, "#333", font)
    for row, (label, images) in enumerate(rows):
        y = top + row * (CELL + GAP)
        draw.multiline_text((0, y + CELL // 2), label, "#333", font, anchor="lm")
        for column, image in enumerate(images):
            tile = image_io.convert_array_to_image(image.permute(1, 2, 0).numpy())
            tile = tile.resize((CELL, CELL), Image.Resampling.BICUBIC)
            canvas.paste(tile, (label_width + column * (CELL + GAP), y))
    return canvas


def classify_hair(images: Tensor, name: str) -> Tensor:
    """Compute the fraction of hair pixels of a color for images ``(N, 3, 64, 64)`` uint8, ``(N,)``."""
    pixels = images[:, :, *HAIR].float() / 255
    brightness, low = pixels.amax(1), pixels.amin(1)
    spread = (brightness - low).clamp(min=1e-6)
    red, green, blue = pixels.unbind(1)
    sector = torch.where(
        brightness == red,
        ((green - blue) / spread) % 6,
        torch.where(brightness == green, (blue - red) / spread + 2, (red - green) / spread + 4),
    )
    values = sector / 6, spread / brightness.clamp(min=1e-6), brightness
    in_range = [(low <= value) & (value <= high) for value, (low, high) in zip(values, HAIR_COLORS[name], strict=True)]
    return torch.stack(in_range).all(0).float().mean((1, 2))


def draw_arithmetic(task: GANTask) -> Image.Image:
    """Draw faces of a hair color, and the same faces after a difference of mean latent vectors is added."""
    latents = task.sample_latents(NUM_CLASSIFIED, seed=0)
    images = task.generate_images(latents)
    indices = {name: classify_hair(images, name).topk(NUM_AVERAGED).indices.sort().values for name in HAIR_COLORS}
    groups = {name: latents[selected] for name, selected in indices.items()}
    means = {name: group.mean(0) for name, group in groups.items()}
    rows = []
    for source, target in ARITHMETIC:
        faces = groups[source][:NUM_FACES]
        changed = (faces - means[source] + means[target]).clamp(-1, 1)
        rows += [(f"{source} hair", task.generate_images(faces)),
                 (f"- {source} + {target}", task.generate_images(changed))]  # fmt: skip
    return draw_rows(rows)


def draw_nearest_images(task: GANTask, images: Tensor, run: Path, weights: str) -> Image.Image:
    """Draw images beside their nearest training images by the cosine similarity of the features of VGG-16."""
    recipe, _ = run_record.read_recipe(run)
    extractor = generation_features.load_feature_extractor(weights, images.shape[-1], images.shape[1])
    train = torch.cat([batch for batch, _ in recipe.load_data().train.iterate_in_order()]).cpu()
    features, train_features = (
        torch.nn.functional.normalize(extractor.extract(batch, task.runtime.device)) for batch in (images, train)
    )
    nearest = (features @ train_features.T).topk(NUM_NEAREST, 1).indices
    rows = [("", torch.cat([image[None], train[indices]])) for image, indices in zip(images, nearest, strict=True)]
    return draw_rows(rows, ("generated", "nearest training images"))


if __name__ == "__main__":
    parser = create_parser(__doc__)
    parser.add_argument("run", type=Path, help="Run on anime-faces-4000.")
    parser.add_argument("weights", help="File of VGG-16's convolutions.")
    options = parser.parse_args()
    task = load_task(options.run, device="cpu")
    latents = task.sample_latents(NUM_SAMPLES, seed=1)
    samples = task.generate_images(latents)
    save_image(draw_image_grid(samples, GRID_COLUMNS), options.out / "dcgan-grid.webp")
    weights = torch.linspace(0, 1, INTERPOLATION_STEPS).view(-1, 1)
    steps = [torch.lerp(one, other, weights) for one, other in pairwise(latents[: NUM_INTERPOLATIONS + 1])]
    grid = draw_image_grid(task.generate_images(torch.cat(steps)), INTERPOLATION_STEPS)
    save_image(grid, options.out / "dcgan-interpolation.webp")
    save_image(draw_arithmetic(task), options.out / "dcgan-arithmetic.webp")
    nearest = draw_nearest_images(task, samples[:NUM_ROWS], options.run, options.weights)
    save_image(nearest, options.out / "dcgan-nearest.webp")

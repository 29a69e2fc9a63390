"""Make faster-rcnn.png of ../faster-rcnn.md: what the two stages make of an embedded scene.

python docs/figures/scripts/faster_rcnn.py RUN [NUMBER of the scene]
"""

import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from torch.nn import functional as F

import fukami
from fukami.data import scenes
from fukami.image import io as image_io

HERE = Path(__file__).parents[1]
BEST = 60  # proposals that are shown


@torch.inference_mode()
def draw(run: str, number: int) -> Figure:
    """The scene, its objectness, its proposals, and what was found."""
    task = fukami.load(run, device="cpu")
    task.model.eval()
    scene = scenes.generate_scene(0, scenes.NUM_TRAIN + number)
    image = task.prepare(torch.from_numpy(scene.image).permute(2, 0, 1))[None]
    sizes = torch.tensor([image.shape[-2:]]).float()
    frame = F.pad(image, (0, -image.shape[3] % 32, 0, -image.shape[2] % 32))
    images = task.normalize_images(frame, sizes)
    said = task.model.rpn(task.model.backbone(images), tuple(frame.shape[-2:]))
    side = [length // task.model.roi_heads.strides[0] for length in frame.shape[-2:]]
    likely = said.logits.view(*side, -1).amax(2).sigmoid()
    proposals, _ = task.model.propose(images, sizes)
    (answer,) = task.predict([scene.image])
    shown = image_io.draw_boxes(
        Image.fromarray(scene.image), [b for b in answer["boxes"] if b["score"] >= 0.5], task.labels
    )
    figure = Figure(figsize=(11, 3.1), layout="constrained")
    axes = figure.subplots(1, 4)
    height, width = (int(length) for length in sizes[0])
    whole = frame[0, :, :height, :width].permute(1, 2, 0).round().byte().numpy()
    axes[0].imshow(scene.image)
    axes[0].set_title("a scene", fontsize=9)
    axes[1].imshow(whole)
    extent = (0, frame.shape[3], frame.shape[2], 0)
    axes[1].imshow(likely, extent=extent, alpha=0.7, cmap="magma", vmin=0, vmax=1)
    axes[1].set_xlim(0, width)
    axes[1].set_ylim(height, 0)
    axes[1].set_title("objectness, the most of nine anchors", fontsize=9)
    axes[2].imshow(whole)
    for left, top, right, bottom in reversed(proposals[0, :BEST].tolist()):
        axes[2].add_patch(
            Rectangle((left, top), right - left, bottom - top, fill=False, color="#ffd21f", alpha=0.6, lw=0.8)
        )
    axes[2].set_title(f"the best {BEST} proposals", fontsize=9)
    axes[3].imshow(np.asarray(shown))
    axes[3].set_title("what is found", fontsize=9)
    for each in axes:
        each.axis("off")
    return figure


if __name__ == "__main__":
    path = HERE / "faster-rcnn.png"
    draw(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 4).savefig(path, dpi=100)
    Image.open(path).convert("RGB").quantize(192).save(path, optimize=True)
    sys.stdout.write(f"{path.name}: {path.stat().st_size:,} bytes\n")

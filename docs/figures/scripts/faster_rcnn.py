"""Draw faster-rcnn.png of docs/landmarks/faster-rcnn.md: the outputs of both stages for a bundled scene.

python docs/figures/scripts/faster_rcnn.py RUN [SCENE]    SCENE: index of the scene
"""

import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from torch.nn import functional as F

from fukami.data import scenes
from fukami.engine import checkpoint
from fukami.image import io as image_io

HERE = Path(__file__).parents[1]
NUM_PROPOSALS = 60


@torch.inference_mode()
def draw(run: str, scene_index: int) -> Figure:
    """Draw the scene, its objectness, its proposals and its detections."""
    task = checkpoint.load_task(run, device="cpu")
    task.model.eval()
    scene = scenes.generate_scene(0, scenes.NUM_TRAIN + scene_index)
    image = task.transform(torch.from_numpy(scene.image).permute(2, 0, 1))[None]
    sizes = torch.tensor([image.shape[-2:]]).float()
    padded = F.pad(image, (0, -image.shape[3] % 32, 0, -image.shape[2] % 32))
    images = task.normalize_images(padded, sizes)
    rpn_output = task.model.rpn(task.model.backbone(images), tuple(padded.shape[-2:]))
    map_size = [length // task.model.roi_heads.strides[0] for length in padded.shape[-2:]]
    objectness = rpn_output.logits.view(*map_size, -1).amax(2).sigmoid()
    proposals, _ = task.model.propose(images, sizes)
    (prediction,) = task.predict([scene.image])
    detections = image_io.draw_boxes(
        Image.fromarray(scene.image), [box for box in prediction["boxes"] if box["score"] >= 0.5], task.labels
    )
    figure = Figure(figsize=(11, 3.1), layout="constrained")
    axes = figure.subplots(1, 4)
    height, width = (int(length) for length in sizes[0])
    resized = padded[0, :, :height, :width].permute(1, 2, 0).round().byte().numpy()
    axes[0].imshow(scene.image)
    axes[0].set_title("scene", fontsize=9)
    axes[1].imshow(resized)
    extent = (0, padded.shape[3], padded.shape[2], 0)
    axes[1].imshow(objectness, extent=extent, alpha=0.7, cmap="magma", vmin=0, vmax=1)
    axes[1].set_xlim(0, width)
    axes[1].set_ylim(height, 0)
    axes[1].set_title("objectness, maximum of nine anchors", fontsize=9)
    axes[2].imshow(resized)
    for left, top, right, bottom in reversed(proposals[0, :NUM_PROPOSALS].tolist()):
        axes[2].add_patch(
            Rectangle((left, top), right - left, bottom - top, fill=False, color="#ffd21f", alpha=0.6, lw=0.8)
        )
    axes[2].set_title(f"top {NUM_PROPOSALS} proposals", fontsize=9)
    axes[3].imshow(np.asarray(detections))
    axes[3].set_title("detections", fontsize=9)
    for panel in axes:
        panel.axis("off")
    return figure


if __name__ == "__main__":
    path = HERE / "faster-rcnn.png"
    draw(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 4).savefig(path, dpi=100)
    Image.open(path).convert("RGB").quantize(192).save(path, optimize=True)
    sys.stdout.write(f"{path.name}: {path.stat().st_size:,} bytes\n")

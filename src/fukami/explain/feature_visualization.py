"""Feature visualization: filters, feature maps, the patches with the strongest activations, and Grad-CAM.

Zeiler and Fergus, "Visualizing and understanding convolutional networks", ECCV 2014 (figure 2: the nine patches with
the strongest activations); Selvaraju et al., "Grad-CAM", ICCV 2017. Images are ``(C, H, W)`` and preprocessed.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fukami.explain.summary import (
    CONVOLUTIONS,
    TRANSPOSED_CONVOLUTIONS,
    LayerInfo,
    Shape,
    create_feature_extractor,
    find_last_activation,
    summarize_layers,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_PATCHES = 9  # patches per unit
MAX_MAPS = 8  # feature maps per layer in a figure
MAX_FILTERS = 96  # filters in a figure
GAP_COLOR = (0.35, 0.55, 0.75)  # not a color of the patches, which may be black, white or gray
MIN_TILE_WIDTH = 48  # minimum width of an image in a figure, in pixels
PADDING_VALUE = 128  # gray value outside the image


@dataclass
class Patch:
    """Image patch ``(1 or 3, h, w)`` in 0..255 that activates a unit, and the activation."""

    activation: float
    pixels: Tensor


def get_first_filters(model: nn.Module, shape: Shape) -> Tensor:
    """Return the weights of the first convolution, ``(filters, channels, height, width)``."""
    first = next(
        (layer for layer in summarize_layers(model, shape) if layer.multiply_adds and layer.receptive_field), None
    )
    first = first or find_last_activation([])  # which raises the error
    layer = model.get_submodule(first.name)
    assert isinstance(layer, (*CONVOLUTIONS, *TRANSPOSED_CONVOLUTIONS, nn.Linear))  # the layers with multiply-adds
    return layer.weight.detach().float().cpu()


@torch.inference_mode()
def compute_feature_maps(model: nn.Module, image: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """Compute the feature maps ``(channels, h, w)`` of the layers ``names`` for an image."""
    outputs = create_feature_extractor(model, names)(image[None])
    return {name: maps[0].float().cpu() for name, maps in zip(names, outputs, strict=True)}


@torch.inference_mode()
def find_top_patches(
    model: nn.Module,
    batches: Iterable[Tensor],
    units: Sequence[tuple[LayerInfo, Sequence[int]]],
    *,
    normalize: Callable[[Tensor], Tensor],
    num_patches: int = NUM_PATCHES,
) -> dict[str, list[list[Patch]]]:
    """Find the patches with the strongest activations for each unit, strongest first.

    A patch is the receptive field of the position where the unit's map has its maximum, at most one per image, with
    gray outside the image. If the receptive field covers the image, the patch is the whole image.

    Args:
        model: the network.
        batches: images ``(N, C, H, W)`` in 0..255.
        units: layers, and the channels of each.
        normalize: function that preprocesses a batch of images.
        num_patches: number of patches per unit.

    Returns:
        For each layer, by its name, a list of patches for each unit.
    """
    extractor = create_feature_extractor(model, [layer.name for layer, _ in units])
    result: dict[str, list[list[Patch]]] = {layer.name: [[] for _ in channels] for layer, channels in units}
    for images in batches:
        outputs = extractor(normalize(images))
        for (layer, channels), maps in zip(units, outputs, strict=True):
            values, positions = maps[:, list(channels)].float().flatten(2).max(2)
            for unit, patches in enumerate(result[layer.name]):
                top = values[:, unit].topk(min(num_patches, len(values)))
                for value, index in zip(top.values.tolist(), top.indices.tolist(), strict=True):
                    if len(patches) < num_patches or value > patches[-1].activation:
                        row, column = divmod(int(positions[index, unit]), maps.shape[3])
                        region = layer.get_input_region(row, column)
                        patches.append(Patch(value, crop_region(select_visible_channels(images[index].cpu()), region)))
                        patches.sort(key=lambda patch: -patch.activation)
                        del patches[num_patches:]
    return result


def select_visible_channels(image: Tensor) -> Tensor:
    """Select the channels of an image ``(C, H, W)`` that are drawn: the first three, or only the first."""
    return image[: 3 if len(image) >= 3 else 1]


def crop_region(image: Tensor, region: tuple[int, int, int, int] | None) -> Tensor:
    """Crop a region of an image, with gray outside the image; return the whole image if the region covers it."""
    height, width = image.shape[1:]
    if region is None or (region[2] - region[0] >= height and region[3] - region[1] >= width):
        return image.clone()
    top, left, bottom, right = region
    padding = (max(-left, 0), max(right - width, 0), max(-top, 0), max(bottom - height, 0))
    inside = image[:, max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    return F.pad(inside, padding, value=PADDING_VALUE)


def compute_grad_cam(model: nn.Module, image: Tensor, target: int) -> Tensor:
    """Compute the Grad-CAM heatmap of a class: ``(h, w)``, not negative, at the resolution of the last maps.

    The maps after the last convolution and its activation are weighted by the mean gradient of the class score with
    respect to each, and summed; negative values are set to 0 (Selvaraju et al. 2017, eq. 1 and 2). If only global
    average pooling and a linear layer follow, this is the class activation map (Zhou et al. 2016), divided by the
    number of positions and without its negative part.

    Args:
        model: network with outputs ``(N, classes)``.
        image: ``(C, H, W)``.
        target: index of the class.
    """
    with torch.inference_mode(mode=False):
        name = find_last_activation(summarize_layers(model, _get_shape(image))).name
        batch = image.detach().clone()[None].requires_grad_()
        maps, scores = create_feature_extractor(model, [name], include_output=True)(batch)
        (gradient,) = torch.autograd.grad(scores[0, target], maps)
        heatmap: Tensor = (gradient.mean((2, 3), keepdim=True) * maps).sum((0, 1)).relu()
        return heatmap.detach().float().cpu()


def _get_shape(image: Tensor) -> Shape:
    channels, height, width = image.shape
    return channels, height, width


def plot_filters(weights: Tensor) -> "Figure":
    """Plot the filters, each scaled around gray: in color with three input channels, else only the first channel."""
    filters = weights[:MAX_FILTERS]
    filters = filters if filters.shape[1] == 3 else filters[:, :1]
    scale = filters.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-12)
    columns = min(16, len(filters))
    return _plot_rows([("", tile_images(upscale_images(0.5 + filters / (2 * scale)), columns, gap=6))], 0.55 * columns)


def plot_feature_maps(maps: dict[str, Tensor]) -> "Figure":
    """Plot the strongest feature maps of each layer in a row; black is the minimum of a map, white its maximum."""
    rows = []
    for name, values in maps.items():
        channels = select_strongest_maps(values, MAX_MAPS)
        strongest = values[channels]
        low, high = strongest.amin((1, 2), keepdim=True), strongest.amax((1, 2), keepdim=True)
        images = ((strongest - low) / (high - low).clamp(min=1e-12))[:, None]
        size = "×".join(map(str, values.shape))
        rows.append(
            (
                f"layer {name}: {size}, maps {', '.join(map(str, channels))}",
                tile_images(upscale_images(images), MAX_MAPS, gap=4),
            )
        )
    return _plot_rows(rows, 8.0)


def plot_top_patches(rows: Sequence[tuple[str, list[list[Patch]]]]) -> "Figure":
    """Plot a row for each titled layer, with a square of patches for each unit."""
    titled_rows = []
    for title, units in rows:
        blocks = [torch.stack([patch.pixels for patch in patches]) / 255 for patches in units if patches]
        squares = [
            torch.from_numpy(tile_images(upscale_images(block), 3, gap=3, background=GAP_COLOR)).permute(2, 0, 1)
            for block in blocks
        ]
        height = max(square.shape[1] for square in squares)  # squares with fewer patches are padded with white
        padded = [F.pad(square, (0, 0, 0, height - square.shape[1]), value=1.0) for square in squares]
        titled_rows.append((title, tile_images(torch.stack(padded), len(padded), gap=8)))
    return _plot_rows(titled_rows, 10.0)


def upscale_images(images: Tensor) -> Tensor:
    """Upscale images ``(N, C, h, w)`` by repeating pixels, to a width of at least ``MIN_TILE_WIDTH``."""
    factor = -(-MIN_TILE_WIDTH // images.shape[3])
    return images.repeat_interleave(factor, 2).repeat_interleave(factor, 3)


def select_strongest_maps(maps: Tensor, num_maps: int) -> list[int]:
    """Return the channels of ``(channels, h, w)`` with the largest maxima, largest first."""
    return maps.amax((1, 2)).topk(min(num_maps, len(maps))).indices.tolist()


def plot_prediction(image: Tensor, heatmap: Tensor, ranking: Sequence[tuple[str, float]]) -> "Figure":
    """Plot the input image ``(C, H, W)`` in 0..255, the heatmap ``(h, w)`` over it, and the most probable classes."""
    from matplotlib.figure import Figure

    from fukami.image.charts import BLUE, shorten_label

    figure = Figure(figsize=(9, 2.9), layout="constrained")
    input_axes, heatmap_axes, bars = figure.subplots(1, 3, width_ratios=(1, 1, 1.2))
    pixels = tile_images(select_visible_channels(image)[None] / 255, 1, gap=0).clip(0, 1)
    size = image.shape[1:]
    large = F.interpolate(heatmap[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
    intensity = (large / large.max().clamp(min=1e-30)).numpy()
    input_axes.imshow(pixels, vmin=0, vmax=1)
    input_axes.set_title("network input", fontsize=9)
    grayscale = pixels.mean(2, keepdims=True).repeat(3, 2)
    heatmap_axes.imshow(0.35 + 0.5 * grayscale, vmin=0, vmax=1)
    heatmap_axes.imshow(intensity, cmap="inferno", alpha=0.75 * intensity, vmin=0, vmax=1)
    heatmap_axes.set_title(f"Grad-CAM of {shorten_label(ranking[0][0])}", fontsize=9, parse_math=False)
    for axes in (input_axes, heatmap_axes):
        axes.set_xticks([])
        axes.set_yticks([])
    names, probabilities = zip(*ranking[:5][::-1], strict=True)
    rectangles = bars.barh(range(len(names)), [100 * p for p in probabilities], color=BLUE, height=0.6)
    bars.bar_label(rectangles, fmt="%.1f", fontsize=8, padding=3)
    bars.set_yticks(range(len(names)), map(shorten_label, names), parse_math=False)
    bars.set_xlim(0, 115)
    bars.set_xticks([0, 50, 100])
    bars.set_xlabel("probability, %")
    bars.spines[["top", "right"]].set_visible(False)
    return figure


def tile_images(
    images: Tensor, columns: int, *, gap: int, background: tuple[float, float, float] = (1.0, 1.0, 1.0)
) -> npt.NDArray[np.float32]:
    """Tile images ``(N, 1 | 3, h, w)`` in [0, 1] in rows on a background, ``(H, W, 3)``."""
    count, _, height, width = images.shape
    rows = -(-count // columns)
    page = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), background, np.float32)
    for index, image in enumerate(images.float().cpu().numpy()):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        page[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    return page


def _plot_rows(rows: Sequence[tuple[str, npt.NDArray[np.float32]]], width: float) -> "Figure":
    """Plot titled images below one another, all as wide as the figure."""
    from matplotlib.figure import Figure

    title_height = 0.25 if rows[0][0] else 0.0
    heights = [width * image.shape[0] / image.shape[1] for _, image in rows]
    figure = Figure(figsize=(width + 0.1, sum(heights) + len(rows) * (title_height + 0.1)), layout="constrained")
    for axes, (name, image) in zip(
        figure.subplots(len(rows), 1, squeeze=False, height_ratios=heights)[:, 0], rows, strict=True
    ):
        shrunk = image.shape[1] > 100 * width
        axes.imshow(image, vmin=0, vmax=1, interpolation="auto" if shrunk else "nearest")
        axes.set_title(name, fontsize=9, loc="left")
        axes.axis("off")
    return figure

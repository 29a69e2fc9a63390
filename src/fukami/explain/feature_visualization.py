"""What the layers see: filters, feature maps, the patches that excite a unit most, and where a class was found.

Zeiler and Fergus, "Visualizing and understanding convolutional networks", ECCV 2014 (figure 2: the nine patches that
excite a unit most); Selvaraju et al., "Grad-CAM", ICCV 2017. Images are ``(C, H, W)``, as the network takes them.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fukami.explain.summary import LayerInfo, Shape, create_feature_extractor, find_last_activation, summarize_layers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_PATCHES = 9  # patches of a unit
MAX_MAPS = 8  # maps of a layer in a figure
MAX_FILTERS = 96  # filters in a figure
GAP_COLOR = (0.35, 0.55, 0.75)  # between patches, which may be black, white or grey themselves
MIN_TILE_WIDTH = 48  # least width of an image in a figure
PADDING_VALUE = 128  # grey of what lies outside the image


@dataclass
class Patch:
    """The part of an image ``(C, h, w)``, uint8, that excited a unit, and the unit's value there."""

    activation: float
    pixels: Tensor


def get_first_filters(model: nn.Module, shape: Shape) -> Tensor:
    """The weights of the first convolution, ``(filters, channels, height, width)``."""
    first = next(
        (layer for layer in summarize_layers(model, shape) if layer.multiply_adds and layer.receptive_field), None
    )
    first = first or find_last_activation([])  # which says that there is none
    weight: Tensor = model.get_submodule(first.name).weight  # type: ignore[assignment]
    return weight.detach().float().cpu()


@torch.inference_mode()
def compute_feature_maps(model: nn.Module, image: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """The outputs ``(channels, h, w)`` of the layers ``names`` for an image."""
    found = create_feature_extractor(model, names)(image[None])
    return {name: maps[0].float().cpu() for name, maps in zip(names, found, strict=True)}


@torch.inference_mode()
def find_top_patches(
    model: nn.Module,
    batches: Iterable[Tensor],
    units: Sequence[tuple[LayerInfo, Sequence[int]]],
    *,
    normalize: Callable[[Tensor], Tensor],
    num_patches: int = NUM_PATCHES,
) -> dict[str, list[list[Patch]]]:
    """For each layer by name and each of its units, the patches that excite it most, the strongest first.

    A patch is the theoretical field of the position where the unit's map is greatest, one of each image, grey outside
    the image; where the field is no smaller than the image, it is the whole image.

    Args:
        model: the network.
        batches: images ``(N, C, H, W)``, uint8.
        units: layers, and the channels of each.
        normalize: images of a batch as the network takes them.
        num_patches: patches of a unit.
    """
    part = create_feature_extractor(model, [layer.name for layer, _ in units])
    found: dict[str, list[list[Patch]]] = {layer.name: [[] for _ in chosen] for layer, chosen in units}
    for images in batches:
        every = part(normalize(images))
        for (layer, chosen), maps in zip(units, every, strict=True):
            values, places = maps[:, list(chosen)].float().flatten(2).max(2)
            for number, patches in enumerate(found[layer.name]):
                top = values[:, number].topk(min(num_patches, len(values)))
                for value, at in zip(top.values.tolist(), top.indices.tolist(), strict=True):
                    if len(patches) < num_patches or value > patches[-1].activation:
                        row, column = divmod(int(places[at, number]), maps.shape[3])
                        patches.append(Patch(value, crop_region(images[at].cpu(), layer.get_input_region(row, column))))
                        patches.sort(key=lambda patch: -patch.activation)
                        del patches[num_patches:]
    return found


def crop_region(image: Tensor, region: tuple[int, int, int, int] | None) -> Tensor:
    """A region of an image, grey outside it; the whole image where the region is None or no smaller."""
    height, width = image.shape[1:]
    if region is None or (region[2] - region[0] >= height and region[3] - region[1] >= width):
        return image.clone()
    top, left, bottom, right = region
    padding = (max(-left, 0), max(right - width, 0), max(-top, 0), max(bottom - height, 0))
    inside = image[:, max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    return F.pad(inside, padding, value=PADDING_VALUE)


def compute_grad_cam(model: nn.Module, image: Tensor, target: int, layer: str | None = None) -> Tensor:
    """Where in the image a class was found: ``(h, w)``, not negative, of the resolution of the layer's maps.

    The maps are weighted by the mean gradient of the class's score with respect to each, and summed; what speaks
    against the class is cut off (Selvaraju et al. 2017, eq. 1 and 2). Where only global average pooling and one linear
    layer follow, this is the class activation map of Zhou et al. 2016, divided by the number of positions and without
    its negative part.

    Args:
        model: gives scores ``(N, classes)``.
        image: ``(C, H, W)``.
        target: number of the class.
        layer: by default the activation after the last convolution: of maps that may be negative, as a convolution's
            own, a product with a weight tells nothing about presence.
    """
    with torch.inference_mode(mode=False):
        name = layer or find_last_activation(summarize_layers(model, _get_shape(image))).name
        given = image.detach().clone()[None].requires_grad_()
        maps, scores = create_feature_extractor(model, [name], include_output=True)(given)
        (gradient,) = torch.autograd.grad(scores[0, target], maps)
        heat: Tensor = (gradient.mean((2, 3), keepdim=True) * maps).sum((0, 1)).relu()
        return heat.detach().float().cpu()


def _get_shape(image: Tensor) -> Shape:
    channels, height, width = image.shape
    return channels, height, width


def plot_filters(weights: Tensor) -> "Figure":
    """The filters, each stretched about grey; in colour where they look at three channels, else their first channel."""
    shown = weights[:MAX_FILTERS]
    shown = shown if shown.shape[1] == 3 else shown[:, :1]
    scale = shown.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-12)
    columns = min(16, len(shown))
    return _plot_rows([("", tile_images(upscale_images(0.5 + shown / (2 * scale)), columns, gap=6))], 0.55 * columns)


def plot_feature_maps(maps: dict[str, Tensor]) -> "Figure":
    """The maps of each layer that are greatest somewhere, in a row; black is the least of a map, white its greatest."""
    rows = []
    for name, values in maps.items():
        chosen = select_strongest_maps(values, MAX_MAPS)
        shown = values[chosen]
        low, high = shown.amin((1, 2), keepdim=True), shown.amax((1, 2), keepdim=True)
        images = ((shown - low) / (high - low).clamp(min=1e-12))[:, None]
        size = "×".join(map(str, values.shape))
        rows.append(
            (
                f"layer {name}: {size}, maps {', '.join(map(str, chosen))}",
                tile_images(upscale_images(images), MAX_MAPS, gap=4),
            )
        )
    return _plot_rows(rows, 8.0)


def plot_top_patches(rows: Sequence[tuple[str, list[list[Patch]]]]) -> "Figure":
    """A row for each titled layer, in it a square of patches for each unit."""
    drawn = []
    for title, units in rows:
        blocks = [torch.stack([patch.pixels for patch in patches]) / 255 for patches in units if patches]
        squares = [
            torch.from_numpy(tile_images(upscale_images(block), 3, gap=3, background=GAP_COLOR)).permute(2, 0, 1)
            for block in blocks
        ]
        high = max(square.shape[1] for square in squares)  # fewer than nine patches leave white below
        even = [F.pad(square, (0, 0, 0, high - square.shape[1]), value=1.0) for square in squares]
        drawn.append((title, tile_images(torch.stack(even), len(even), gap=8)))
    return _plot_rows(drawn, 10.0)


def upscale_images(images: Tensor) -> Tensor:
    """The images ``(N, C, h, w)`` with each pixel repeated, so that they are at least ``PIXELS`` wide."""
    factor = -(-MIN_TILE_WIDTH // images.shape[3])
    return images.repeat_interleave(factor, 2).repeat_interleave(factor, 3)


def select_strongest_maps(maps: Tensor, num_maps: int) -> list[int]:
    """The channels of ``(channels, h, w)`` whose greatest value is greatest."""
    return maps.amax((1, 2)).topk(min(num_maps, len(maps))).indices.tolist()


def plot_prediction(image: Tensor, heatmap: Tensor, ranking: Sequence[tuple[str, float]]) -> "Figure":
    """What the network saw ``(C, H, W)`` uint8, where it found the class ``(h, w)``, and the likeliest classes."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(9, 2.9), layout="constrained")
    seen, found, bars = drawn.subplots(1, 3, width_ratios=(1, 1, 1.2))
    pixels = tile_images(image[None] / 255, 1, gap=0)
    size = image.shape[1:]
    large = F.interpolate(heatmap[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
    share = (large / large.max().clamp(min=1e-30)).numpy()
    seen.imshow(pixels, vmin=0, vmax=1)
    seen.set_title("what the network saw", fontsize=9)
    grey = pixels.mean(2, keepdims=True).repeat(3, 2)
    found.imshow(0.35 + 0.5 * grey, vmin=0, vmax=1)
    found.imshow(share, cmap="inferno", alpha=0.75 * share, vmin=0, vmax=1)
    found.set_title(f"Grad-CAM of {_truncate_name(ranking[0][0])}", fontsize=9, parse_math=False)
    for axes in (seen, found):
        axes.set_xticks([])
        axes.set_yticks([])
    names, probabilities = zip(*ranking[:5][::-1], strict=True)
    marks = bars.barh(range(len(names)), [100 * p for p in probabilities], color="#4878a8", height=0.6)
    bars.bar_label(marks, fmt="%.1f", fontsize=8, padding=3)
    bars.set_yticks(range(len(names)), map(_truncate_name, names), parse_math=False)
    bars.set_xlim(0, 115)
    bars.set_xticks([0, 50, 100])
    bars.set_xlabel("probability, %")
    bars.spines[["top", "right"]].set_visible(False)
    return drawn


def _truncate_name(name: str) -> str:
    """The name of a class, cut to what fits beside a bar."""
    return name if len(name) <= 24 else f"{name[:23]}…"


def tile_images(
    images: Tensor, columns: int, *, gap: int, background: tuple[float, float, float] = (1.0, 1.0, 1.0)
) -> npt.NDArray[np.float32]:
    """Images ``(N, 1 | 3, h, w)`` in [0, 1] side by side on a ground, ``(H, W, 3)``."""
    count, _, height, width = images.shape
    rows = -(-count // columns)
    page = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), background, np.float32)
    for number, image in enumerate(images.float().cpu().numpy()):
        top, left = number // columns * (height + gap), number % columns * (width + gap)
        page[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    return page


def _plot_rows(rows: Sequence[tuple[str, npt.NDArray[np.float32]]], width: float) -> "Figure":
    """Titled images below one another, all as wide as the figure."""
    from matplotlib.figure import Figure

    title = 0.25 if rows[0][0] else 0.0
    heights = [width * image.shape[0] / image.shape[1] for _, image in rows]
    drawn = Figure(figsize=(width + 0.1, sum(heights) + len(rows) * (title + 0.1)), layout="constrained")
    for axes, (name, image) in zip(
        drawn.subplots(len(rows), 1, squeeze=False, height_ratios=heights)[:, 0], rows, strict=True
    ):
        shrunk = image.shape[1] > 100 * width
        axes.imshow(image, vmin=0, vmax=1, interpolation="auto" if shrunk else "nearest")
        axes.set_title(name, fontsize=9, loc="left")
        axes.axis("off")
    return drawn

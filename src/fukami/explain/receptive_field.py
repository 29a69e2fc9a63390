"""The effective receptive field: how much the pixels that a unit could see really count, measured by gradients.

Luo, Li, Urtasun and Zemel, "Understanding the effective receptive field in deep convolutional neural networks", NeurIPS
2016: the gradient of the unit in the centre of a layer's map, averaged over images, is a blob about as narrow as a
Gaussian, and fills a fraction of the theoretical field. Its size is that of the smallest square about the centre that
holds 95.45 % of the absolute gradient (as Ding et al., "RepLKNet", CVPR 2022, cut it at a share of the whole). For a
Gaussian of deviation s that is 4.55 s; Luo's own measure, the root of the number of pixels above 4.55 % of the centre,
is 4.41 s, but hangs on a single pixel, which strides make arbitrary.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fukami.errors import UsageError
from fukami.explain.summary import LayerInfo, Shape, create_feature_extractor, summarize_layers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GRADIENT_FRACTION = 0.9545  # of the gradient, what two deviations of a Gaussian in one dimension hold
NUM_SAMPLES = 8


@dataclass(frozen=True)
class EffectiveReceptiveField:
    """What the unit in the centre of a layer's map sees.

    Args:
        layer: the layer.
        gradient_map: mean absolute gradient of each pixel of the image, ``(height, width)``, of sum 1.
        region: first row, first column, last row + 1, last column + 1 of the unit's theoretical field.
        size: of the smallest square about the middle of that field that holds 95.45 % of ``gradient_map``, in pixels.
        num_samples: images measured.
    """

    layer: LayerInfo
    gradient_map: Tensor
    region: tuple[int, int, int, int]
    size: int
    num_samples: int

    @property
    def center(self) -> tuple[float, float]:
        """Row and column of the middle of the field, in pixels' indices."""
        top, left, bottom, right = self.region
        return (top + bottom - 1) / 2, (left + right - 1) / 2


def compute_effective_receptive_field(
    model: nn.Module,
    shape: Shape,
    layer: str | None = None,
    *,
    num_samples: int = NUM_SAMPLES,
    images: Tensor | None = None,
    seed: int = 0,
) -> EffectiveReceptiveField:
    """The effective receptive field of the unit in the centre of a layer's map, over all its channels.

    Parts of a field that lie outside the image are not measured: take a ``shape`` larger than the theoretical field.

    Args:
        model: the network, with the weights it has; left as it is.
        shape: of the images: channels, height, width.
        layer: name of a layer as :func:`fukami.explain.summary.summarize_layers` tells it; by default the last one of
            the trunk whose units do not see the whole image.
        num_samples: images of noise, uniform in [0, 1].
        images: ``(N, C, H, W)`` as the network takes them, instead of noise.
        seed: of the noise.

    Raises:
        UsageError: the layer does not exist, sees the whole image, or nothing of the image reaches it.
    """
    if num_samples < 1:
        raise UsageError(f"samples should be at least 1, not {num_samples}")
    found = _find_layer(summarize_layers(model, shape), layer)
    part = create_feature_extractor(model, [found.name])
    weight = next(model.parameters())
    if images is None:
        images = torch.rand(num_samples, *shape, generator=torch.Generator().manual_seed(seed))
    row, column = (side // 2 for side in found.output_shape[1:])
    heat = torch.zeros(shape[1:], dtype=torch.float64)
    for given in images:
        image = given[None].to(weight.device, weight.dtype).detach().requires_grad_()
        (maps,) = part(image)
        (gradient,) = torch.autograd.grad(maps[..., row, column].sum(), image)
        heat += gradient[0].abs().sum(0).double().cpu() / gradient.abs().sum().clamp(min=1e-30).double().cpu()
    region = found.get_input_region(row, column)
    if region is None or not heat.sum() > 0:
        raise UsageError(f"no gradient of layer {found.name} reaches the image; its units may all be off")
    heat /= heat.sum()
    return EffectiveReceptiveField(found, heat, region, _compute_size(heat, region), len(images))


def _find_layer(steps: list[LayerInfo], name: str | None) -> LayerInfo:
    """The layer of this name, or the last of the trunk with a field."""
    fields = [layer for layer in steps if layer.receptive_field is not None]
    if name is None and fields:
        return next((layer for layer in reversed(fields) if layer.on_trunk), fields[-1])
    for layer in fields:
        if layer.name == name:
            return layer
    what = f"layer {name!r} has no receptive field" if name else "no layer has a receptive field"
    raise UsageError(f"{what}; those that have are: {', '.join(layer.name for layer in fields) or 'none'}")


def _compute_size(heat: Tensor, region: tuple[int, int, int, int]) -> int:
    """The side of the smallest square about the middle of the region that holds ``SHARE`` of the heat."""
    top, left, bottom, right = region
    rows, columns = (torch.arange(side, dtype=torch.float64) for side in heat.shape)
    down, across = (rows - (top + bottom - 1) / 2).abs(), (columns - (left + right - 1) / 2).abs()
    distance = torch.maximum(down[:, None], across[None]).flatten()
    order = distance.argsort()
    inside = heat.flatten()[order].cumsum(0)
    enough = int((inside < GRADIENT_FRACTION * (1 - 1e-9)).sum())
    return round(2 * float(distance[order[min(enough, len(order) - 1)]])) + 1


def plot_receptive_fields(*fields: tuple[str, EffectiveReceptiveField]) -> "Figure":
    """Each titled field as a map, with the theoretical and the effective square."""
    from matplotlib.figure import Figure

    columns = min(len(fields), 2)
    rows = -(-len(fields) // columns)
    drawn = Figure(figsize=(3.4 * columns, 3.4 * rows + 0.3), layout="constrained")
    for place, (title, one) in enumerate(fields, start=1):
        axes = drawn.add_subplot(rows, columns, place)
        _plot_receptive_field(axes, one)
        axes.set_title(title, fontsize=9)
    handles = drawn.axes[0].get_lines()
    drawn.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return drawn


def _plot_receptive_field(axes: "Axes", one: EffectiveReceptiveField) -> None:
    """The map; the root of the gradient is shown, or only the centre would be seen."""
    height, width = one.gradient_map.shape
    peak = float(one.gradient_map.flatten().quantile(0.999))
    axes.imshow((one.gradient_map / max(peak, 1e-30)).clamp(max=1).sqrt().numpy(), cmap="magma", vmin=0, vmax=1)
    top, left, bottom, right = one.region
    row, column = one.center
    half = one.size / 2
    for square, colour, style, name in (
        ((top - 0.5, left - 0.5, bottom - 0.5, right - 0.5), "#7fb2e5", "--", "theoretical field"),
        ((row - half, column - half, row + half, column + half), "#5fd38d", "-", "holds 95.45 % of the gradient"),
    ):
        y1, x1, y2, x2 = square
        axes.plot([x1, x2, x2, x1, x1], [y1, y1, y2, y2, y1], color=colour, ls=style, lw=1.3, label=name)
    axes.set_xlim(min(left - 1.5, -0.5), max(right + 0.5, width - 0.5))
    axes.set_ylim(max(bottom + 0.5, height - 0.5), min(top - 1.5, -0.5))
    axes.set_xticks([])
    axes.set_yticks([])

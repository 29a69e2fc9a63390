"""Effective receptive field: the influence of each input pixel on a unit, measured by gradients.

Luo, Li, Urtasun and Zemel, "Understanding the effective receptive field in deep convolutional neural networks", NeurIPS
2016: the gradient of the central unit of a layer's map, averaged over images, is approximately Gaussian and covers a
fraction of the theoretical receptive field. Its size here is the side of the smallest centered square that contains
95.45 % of the absolute gradient (Ding et al., "RepLKNet", CVPR 2022, also use a fraction). For a Gaussian of standard
deviation s that is 4.55 s. Luo's measure, the root of the number of pixels above 4.55 % of the center's value, is
4.41 s, but it depends on that single pixel, whose value is arbitrary in networks with strides.
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

GRADIENT_FRACTION = 0.9545  # fraction of a one-dimensional Gaussian within two standard deviations
NUM_SAMPLES = 8


@dataclass(frozen=True)
class EffectiveReceptiveField:
    """Effective receptive field of the central unit of a layer's map.

    Args:
        layer: the layer.
        gradient_map: mean absolute gradient of each pixel, ``(height, width)``, normalized to sum 1.
        region: first row, first column, last row + 1, last column + 1 of the unit's theoretical receptive field.
        size: side of the smallest square, centered in ``region``, that contains 95.45 % of ``gradient_map``, in pixels.
        num_samples: number of images averaged.
    """

    layer: LayerInfo
    gradient_map: Tensor
    region: tuple[int, int, int, int]
    size: int
    num_samples: int

    @property
    def center(self) -> tuple[float, float]:
        """Row and column of the center of the theoretical receptive field, as pixel indices."""
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
    """Compute the effective receptive field of the central unit of a layer's map, over all its channels.

    Only pixels inside the image are measured: choose a ``shape`` larger than the theoretical receptive field.

    Args:
        model: the network with its weights; it is not modified.
        shape: channels, height and width of the images.
        layer: name of the layer in :func:`fukami.explain.summary.summarize_layers`; by default the last layer of the
            trunk with a limited receptive field.
        num_samples: number of noise images, uniform in [0, 1].
        images: preprocessed images ``(N, C, H, W)`` to use instead of noise.
        seed: random seed of the noise.

    Raises:
        UsageError: the layer does not exist, its receptive field is the whole image, or its gradient is 0.
    """
    if num_samples < 1:
        raise UsageError(f"num_samples should be at least 1, not {num_samples}")
    info = _find_layer(summarize_layers(model, shape), layer)
    extractor = create_feature_extractor(model, [info.name])
    weight = next(model.parameters())
    if images is None:
        images = torch.rand(num_samples, *shape, generator=torch.Generator().manual_seed(seed))
    row, column = (side // 2 for side in info.output_shape[1:])
    gradient_map = torch.zeros(shape[1:], dtype=torch.float64)
    for sample in images:
        image = sample[None].to(weight.device, weight.dtype).detach().requires_grad_()
        (maps,) = extractor(image)
        (gradient,) = torch.autograd.grad(maps[..., row, column].sum(), image)
        gradient_map += gradient[0].abs().sum(0).double().cpu() / gradient.abs().sum().clamp(min=1e-30).double().cpu()
    region = info.get_input_region(row, column)
    if region is None or not gradient_map.sum() > 0:
        raise UsageError(f"no gradient of layer {info.name} reaches the image; its units may all be inactive")
    gradient_map /= gradient_map.sum()
    return EffectiveReceptiveField(info, gradient_map, region, _compute_size(gradient_map, region), len(images))


def _find_layer(layers: list[LayerInfo], name: str | None) -> LayerInfo:
    """Return the layer of this name, or the last layer of the trunk with a limited receptive field."""
    candidates = [layer for layer in layers if layer.receptive_field is not None]
    if name is None and candidates:
        return next((layer for layer in reversed(candidates) if layer.on_trunk), candidates[-1])
    for layer in candidates:
        if layer.name == name:
            return layer
    problem = f"layer {name!r} has no receptive field" if name else "no layer has a receptive field"
    raise UsageError(f"{problem}; choose one of: {', '.join(layer.name for layer in candidates) or 'none'}")


def _compute_size(gradient_map: Tensor, region: tuple[int, int, int, int]) -> int:
    """Compute the side of the smallest centered square that contains ``GRADIENT_FRACTION`` of the gradient."""
    top, left, bottom, right = region
    rows, columns = (torch.arange(side, dtype=torch.float64) for side in gradient_map.shape)
    dy, dx = (rows - (top + bottom - 1) / 2).abs(), (columns - (left + right - 1) / 2).abs()
    distance = torch.maximum(dy[:, None], dx[None]).flatten()
    order = distance.argsort()
    cumulative = gradient_map.flatten()[order].cumsum(0)
    index = int((cumulative < GRADIENT_FRACTION * (1 - 1e-9)).sum())
    return round(2 * float(distance[order[min(index, len(order) - 1)]])) + 1


def plot_receptive_fields(*fields: tuple[str, EffectiveReceptiveField]) -> "Figure":
    """Plot the gradient map of each titled field, with the theoretical and the effective receptive field."""
    from matplotlib.figure import Figure

    columns = min(len(fields), 2)
    rows = -(-len(fields) // columns)
    figure = Figure(figsize=(3.4 * columns, 3.4 * rows + 0.3), layout="constrained")
    for position, (title, field) in enumerate(fields, start=1):
        axes = figure.add_subplot(rows, columns, position)
        _plot_receptive_field(axes, field)
        axes.set_title(title, fontsize=9)
    handles = figure.axes[0].get_lines()
    figure.legend(handles=handles, loc="outside lower center", frameon=False, fontsize=8)
    return figure


def _plot_receptive_field(axes: "Axes", field: EffectiveReceptiveField) -> None:
    """Plot the square root of the gradient map; without the root, only the center would be visible."""
    height, width = field.gradient_map.shape
    peak = float(field.gradient_map.flatten().quantile(0.999))
    axes.imshow((field.gradient_map / max(peak, 1e-30)).clamp(max=1).sqrt().numpy(), cmap="magma", vmin=0, vmax=1)
    top, left, bottom, right = field.region
    row, column = field.center
    half = field.size / 2
    for square, color, style, name in (
        ((top - 0.5, left - 0.5, bottom - 0.5, right - 0.5), "#7fb2e5", "--", "theoretical receptive field"),
        ((row - half, column - half, row + half, column + half), "#5fd38d", "-", "95.45 % of the gradient"),
    ):
        y1, x1, y2, x2 = square
        axes.plot([x1, x2, x2, x1, x1], [y1, y1, y2, y2, y1], color=color, ls=style, lw=1.3, label=name)
    axes.set_xlim(min(left - 1.5, -0.5), max(right + 0.5, width - 0.5))
    axes.set_ylim(max(bottom + 0.5, height - 0.5), min(top - 1.5, -0.5))
    axes.set_xticks([])
    axes.set_yticks([])

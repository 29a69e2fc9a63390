"""Weights of stacked small filters compared with one large filter of the same receptive field.

n layers of m×m filters have a receptive field of n(m-1)+1 pixels in each direction and n·m² weights for each pair of
channels. One filter of that size has (n(m-1)+1)² weights. VGG uses such stacks (Simonyan and Zisserman 2015, section
2.3).
"""

from typing import TYPE_CHECKING

from fukami.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KERNEL_SIZES = (3, 5, 7)
DEPTHS = range(1, 11)


def compute_receptive_field(num_layers: int, kernel_size: int) -> int:
    """Compute the receptive field of ``num_layers`` stacked m×m filters in pixels: n(m-1)+1.

    >>> compute_receptive_field(3, 3)
    7

    Raises:
        UsageError: fewer than 1 layer, or filters smaller than 2×2.
    """
    for name, value, minimum in (("num_layers", num_layers, 1), ("kernel_size", kernel_size, 2)):
        if not isinstance(value, int) or value < minimum:
            raise UsageError(f"{name} should be an integer of at least {minimum}, not {value!r}")
    return num_layers * (kernel_size - 1) + 1


def compute_weight_savings(num_layers: int, kernel_size: int) -> float:
    """Compute the fraction of the weights that stacked filters save: 1 - n·m²/(n(m-1)+1)².

    Three layers of 3×3 compared with one of 7×7, and four compared with one of 9×9:

    >>> round(compute_weight_savings(3, 3), 3), round(compute_weight_savings(4, 3), 3)
    (0.449, 0.556)

    Raises:
        UsageError: fewer than 1 layer, or filters smaller than 2×2.
    """
    side = compute_receptive_field(num_layers, kernel_size)
    return 1 - num_layers * kernel_size**2 / side**2


def tabulate_weight_savings() -> list[tuple[int, int, int, int, float]]:
    """Tabulate 3×3 filters: layers, side of the single filter, weights of the stack and of this filter, and savings."""
    sides = {n: compute_receptive_field(n, 3) for n in DEPTHS}
    return [(n, side, n * 3**2, side**2, compute_weight_savings(n, 3)) for n, side in sides.items()]


def plot_weight_savings() -> "Figure":
    """Plot the savings over the number of layers, one line for each kernel size."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes = figure.add_subplot(xlabel="stacked layers", ylabel="weights saved, %")
    for size in KERNEL_SIZES:
        (line,) = axes.plot(
            DEPTHS, [100 * compute_weight_savings(n, size) for n in DEPTHS], marker="o", ms=4, label=f"{size}×{size}"
        )
        line.set_clip_on(False)
    for depth in (3, 4):
        side = compute_receptive_field(depth, 3)
        text = f"{side}×{side}: {compute_weight_savings(depth, 3):.2f}"
        point = (depth, 100 * compute_weight_savings(depth, 3))
        axes.annotate(text, point, (8, -12), textcoords="offset points", fontsize=8)
    axes.set_ylim(0, 100)
    axes.set_xlim(min(DEPTHS), max(DEPTHS))
    axes.set_xticks(DEPTHS)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(title="filters", frameon=False, loc="lower right")
    return figure

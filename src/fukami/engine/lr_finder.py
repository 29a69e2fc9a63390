"""Learning-rate range test (Smith 2017, section 3.3)."""

import math
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from fukami.data.random_states import set_random_seed
from fukami.engine.recipe import Recipe
from fukami.engine.runtime import Runtime
from fukami.engine.train import explain_batch_norm_error, prepare_data
from fukami.errors import Error, UsageError
from fukami.image.charts import BLUE
from fukami.progress import track

SMOOTHING_FACTOR = 0.9  # decay of the moving average of the losses
MIN_AVERAGED_STEPS = 10  # steps after which the moving average is reliable
DIVERGENCE_FACTOR = 4.0  # ratio of the loss to its minimum above which the training has diverged


@dataclass(frozen=True)
class LRFinderResult:
    """Result of a learning-rate range test.

    Args:
        lrs, losses: learning rate and smoothed loss of each step.
        steepest_lr: the learning rate at which the loss falls fastest.
        min_loss_lr: the learning rate at the minimum of the loss; the peak of a schedule should be lower.
    """

    lrs: tuple[float, ...]
    losses: tuple[float, ...]
    steepest_lr: float
    min_loss_lr: float


def find_lr(
    recipe: Recipe, min_lr: float, max_lr: float, num_steps: int, *, device: str = "auto", precision: str = "auto"
) -> LRFinderResult:
    """Train ``num_steps`` steps while the learning rate grows exponentially from ``min_lr`` to ``max_lr``.

    The rates are values of the field ``lr``; a scaling rule (``lr_scaling``) multiplies them. Nothing is saved.

    Raises:
        UsageError: the bounds, the number of steps or the recipe's learning rate are invalid, or it has no single loss.
        Error: there are no training batches, or the loss diverges at the lowest learning rates.
    """
    if not (0 < min_lr < max_lr < math.inf) or num_steps < 10:
        raise UsageError(
            f"expected 0 < min-lr < max-lr and at least 10 steps, not {min_lr:g}, {max_lr:g} and {num_steps}"
        )
    runtime = Runtime.start(device, precision)
    set_random_seed(recipe.seed)
    data, loader = prepare_data(recipe, runtime)
    set_random_seed(recipe.seed)
    if len(loader) == 0:
        raise Error("there are no training batches; use more images, or lower --batch-size")
    task = recipe.build_task(data.labels)
    task.setup(runtime)
    task.prepare_training()
    recipe.initialize_task(task)
    highest = max(group["initial_lr"] for group in task.optimizer.param_groups)
    if highest == 0:
        raise UsageError("a recipe with --lr 0 does not learn at any rate; omit --lr")
    base_lr = getattr(recipe, "lr", highest) if getattr(recipe, "lr_scaling", "none") != "none" else highest
    rates: list[float] = []
    losses: list[float] = []
    average = 0.0
    steps = track(range(num_steps), "learning-rate range test", unit="steps")
    for step, batch in zip(steps, task.iterate_batches(loader)):  # noqa: B905  the batches have no end
        rate = min_lr * (max_lr / min_lr) ** (step / (num_steps - 1))
        for group in task.optimizer.param_groups:
            group["lr"].fill_(rate * group["initial_lr"] / base_lr)
        with explain_batch_norm_error():
            metrics = task.step(batch)
        if "loss" not in metrics:
            raise UsageError(
                "the range test follows one loss of gradient descent, and this recipe has "
                f"{' and '.join(metrics) or 'none'}"
            )
        average = SMOOTHING_FACTOR * average + (1 - SMOOTHING_FACTOR) * metrics["loss"].item()
        smooth = average / (1 - SMOOTHING_FACTOR ** (step + 1))
        if not math.isfinite(smooth) or (losses and smooth > DIVERGENCE_FACTOR * min(losses)):
            break
        rates.append(rate)
        losses.append(smooth)
    if len(losses) < min(10, num_steps // 2):
        raise Error(f"the loss diverges from the start, at a learning rate of {min_lr:g}; try a smaller --min-lr")
    slope = np.gradient(np.array(losses), np.log(rates))
    best = int(np.argmin(losses))
    first = min(MIN_AVERAGED_STEPS, best)  # the average of only a few losses is noise
    return LRFinderResult(
        tuple(rates), tuple(losses), rates[first + int(np.argmin(slope[first : best + 1]))], rates[best]
    )


def plot_lr_curve(result: LRFinderResult) -> Figure:
    """Plot the smoothed loss over the learning rate, with lines at the steepest and the minimum loss."""
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes = figure.add_subplot(xlabel="learning rate", ylabel="loss", xscale="log")
    axes.plot(result.lrs, result.losses, color=BLUE)
    for rate, name in ((result.steepest_lr, "steepest"), (result.min_loss_lr, "minimum")):
        axes.axvline(rate, color="#c44", lw=1, ls=":" if name == "minimum" else "--", label=f"{name}: {rate:.2g}")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure

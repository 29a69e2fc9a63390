"""The learning-rate range test (Smith 2017, section 3.3): which rates does a training bear?"""

import math
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from fukami.engine.recipe import Recipe
from fukami.engine.resume import set_random_seed
from fukami.engine.runtime import Runtime
from fukami.errors import Error, UsageError

SMOOTHING_FACTOR = 0.9  # of the moving average of the losses
MIN_AVERAGED_STEPS = 10  # steps after which the average means something
DIVERGENCE_FACTOR = 4.0  # the loss has left when it is so many times its least


@dataclass(frozen=True)
class LRFinderResult:
    """What a range test found.

    Args:
        lrs, losses: of each step, the losses smoothed.
        steepest_lr: the rate at which the loss falls the quickest.
        min_loss_lr: the rate at which it is least, beyond which it rises: the peak of a schedule lies below.
    """

    lrs: tuple[float, ...]
    losses: tuple[float, ...]
    steepest_lr: float
    min_loss_lr: float


def find_lr(
    recipe: Recipe, min_lr: float, max_lr: float, num_steps: int, *, device: str = "auto", precision: str = "auto"
) -> LRFinderResult:
    """Train for ``num_steps`` updates at rates that grow from ``min_lr`` to ``max_lr`` by the same factor.

    Nothing is kept.

    Raises:
        UsageError: the bounds, the number of steps or the recipe's own learning rate make no sense.
        Error: the loss is not finite at the lowest rates already.
    """
    if not (0 < min_lr < max_lr < math.inf) or num_steps < 10:
        raise UsageError(
            f"expected 0 < min-lr < max-lr and at least 10 steps, not {min_lr:g}, {max_lr:g} and {num_steps}"
        )
    runtime = Runtime.start(device, precision)
    set_random_seed(recipe.seed)
    data = recipe.load_data()
    if hasattr(data.train, "setup"):
        data.train.setup(runtime)
    set_random_seed(recipe.seed)
    task = recipe.build_task(data.labels)
    task.setup(runtime)
    recipe.initialize_task(task)
    highest = max(group["initial_lr"] for group in task.optimizer.param_groups)
    if highest == 0:
        raise UsageError("a recipe with --lr 0 learns at no rate; leave --lr out")
    rates: list[float] = []
    losses: list[float] = []
    average = 0.0
    for step, batch in zip(range(num_steps), task.iterate_batches(data.train)):  # noqa: B905  the batches have no end
        rate = min_lr * (max_lr / min_lr) ** (step / (num_steps - 1))
        for group in task.optimizer.param_groups:
            group["lr"].fill_(rate * group["initial_lr"] / highest)
        found = task.step(batch)
        if "loss" not in found:
            raise UsageError("this recipe is not learned by gradients and has no learning rate to be found")
        average = SMOOTHING_FACTOR * average + (1 - SMOOTHING_FACTOR) * found["loss"].item()
        smooth = average / (1 - SMOOTHING_FACTOR ** (step + 1))
        if not math.isfinite(smooth) or (losses and smooth > DIVERGENCE_FACTOR * min(losses)):
            break
        rates.append(rate)
        losses.append(smooth)
    if len(losses) < min(10, num_steps // 2):
        raise Error(f"the loss left at once, from a rate of {min_lr:g}; try a smaller --min-lr")
    slope = np.gradient(np.array(losses), np.log(rates))
    best = int(np.argmin(losses))
    first = min(MIN_AVERAGED_STEPS, best)  # the average of a few losses is noise
    return LRFinderResult(
        tuple(rates), tuple(losses), rates[first + int(np.argmin(slope[first : best + 1]))], rates[best]
    )


def plot_lr_curve(result: LRFinderResult) -> Figure:
    """The smoothed loss over the learning rate, and the two rates that matter."""
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes = figure.add_subplot(xlabel="learning rate", ylabel="loss", xscale="log")
    axes.plot(result.lrs, result.losses, color="#4878a8")
    for rate, what in ((result.steepest_lr, "falls quickest"), (result.min_loss_lr, "least")):
        axes.axvline(rate, color="#c44", lw=1, ls=":" if what == "least" else "--", label=f"{what}: {rate:.2g}")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure

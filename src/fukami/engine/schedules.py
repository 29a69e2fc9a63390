"""Learning-rate schedules: functions from the progress of training, in [0, 1], to a factor of the learning rate.

Because of the progress instead of a step number, a schedule works for any number of steps, and a resumed run needs
only the step. Only ``plateau`` has a state, which depends on the evaluations.
"""

import math
from collections.abc import Callable, Mapping

from fukami.data.loader import StateDict, check_counts
from fukami.errors import UsageError, build_unknown_error

Schedule = Callable[[float], float]
ONE_CYCLE_DIV_FACTOR = 25.0  # peak / initial learning rate
ONE_CYCLE_FINAL_FACTOR = 1e4  # initial / final learning rate


def compute_constant_factor(progress: float) -> float:
    """Return 1: constant learning rate."""
    return 1.0


def build_step_schedule(num_drops: float, factor: float) -> Schedule:
    """Build a step schedule: ``num_drops`` drops by ``factor``, at equal intervals."""
    return lambda progress: factor ** math.floor(progress * (num_drops + 1))


def build_multistep_schedule(milestones: tuple[float, ...], factor: float) -> Schedule:
    """Build a multistep schedule: a drop by ``factor`` at each milestone (He et al. 2016: 0.5 and 0.75)."""
    return lambda progress: factor ** sum(progress >= milestone for milestone in milestones)


def build_exponential_schedule(final_factor: float) -> Schedule:
    """Build an exponential schedule, from 1 to ``final_factor``."""
    return lambda progress: final_factor**progress


def build_polynomial_schedule(power: float) -> Schedule:
    """Build a polynomial schedule, ``(1 - progress) ** power``; the power 1 is linear."""
    return lambda progress: (1 - progress) ** power


def compute_cosine_factor(progress: float) -> float:
    """Compute the factor of cosine annealing, from 1 to 0 (Loshchilov and Hutter 2017, equation 5)."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def build_one_cycle_schedule(warmup: float) -> Schedule:
    """Build a one-cycle schedule (Smith and Topin 2018), as torch's ``OneCycleLR``.

    The factor rises from 1/25 to 1 over the fraction ``warmup`` of the training, then falls to 1/250,000, both along a
    cosine.
    """

    def factor(progress: float) -> float:
        start, end = 1 / ONE_CYCLE_DIV_FACTOR, 1 / (ONE_CYCLE_DIV_FACTOR * ONE_CYCLE_FINAL_FACTOR)
        if progress < warmup:
            return 1 + (start - 1) * compute_cosine_factor(progress / warmup)
        return end + (1 - end) * compute_cosine_factor((progress - warmup) / (1 - warmup))

    return factor


def add_warmup(schedule: Schedule, warmup: float) -> Schedule:
    """Add a linear warm-up over the fraction ``warmup`` of the training (Goyal et al. 2017, section 2.2).

    The schedule covers the remaining steps.

    Raises:
        ValueError: ``warmup`` is not in [0, 1).
    """
    if not 0 <= warmup < 1:
        raise ValueError(f"warmup should be a fraction of the training steps in [0, 1), not {warmup}")

    def factor(progress: float) -> float:
        return progress / warmup if progress < warmup else schedule((progress - warmup) / (1 - warmup))

    return factor


def repeat_schedule(schedule: Schedule, num_cycles: int) -> Schedule:
    """Repeat the schedule ``num_cycles`` times, with warm restarts (SGDR, Loshchilov and Hutter 2017)."""
    return lambda progress: schedule(progress * num_cycles % 1)


class ReduceOnPlateau:
    """Schedule that drops by ``factor`` after more than ``patience`` evaluations in a row without a smaller loss.

    Equals torch's ``ReduceLROnPlateau`` without a threshold, plus a warm-up. If the evaluations have no loss, their
    first metric has to improve instead.
    """

    def __init__(self, patience: int, factor: float, warmup: float = 0.0) -> None:
        self.patience, self.factor = patience, factor
        self.warmup_schedule = add_warmup(compute_constant_factor, warmup)
        self.best, self.num_bad_evals, self.num_drops = math.inf, 0, 0

    def __call__(self, progress: float) -> float:
        """Return the factor at ``progress``, in [0, 1]."""
        return self.warmup_schedule(progress) * self.factor**self.num_drops

    def on_evaluation(self, metrics: Mapping[str, float], mode: str | None = "max") -> None:
        """Update the state with the metrics of an evaluation.

        Args:
            metrics: the metrics by name.
            mode: ``"min"`` if less of the first metric is better.
        """
        first = next(iter(metrics.values()))
        value = metrics.get("loss", first if mode == "min" else -first)
        if value < self.best:
            self.best, self.num_bad_evals = value, 0
        elif self.num_bad_evals < self.patience:
            self.num_bad_evals += 1
        else:
            self.num_bad_evals, self.num_drops = 0, self.num_drops + 1

    def state_dict(self) -> StateDict:
        """Return the state for a checkpoint."""
        return {"best": self.best, "num_bad_evals": self.num_bad_evals, "num_drops": self.num_drops}

    def load_state_dict(self, state: StateDict) -> None:
        """Restore the state of a checkpoint."""
        check_counts(state, "num_bad_evals", "num_drops")
        self.best, self.num_bad_evals, self.num_drops = float(state["best"]), state["num_bad_evals"], state["num_drops"]


SCHEDULES = ("constant", "step", "multistep", "exponential", "polynomial", "cosine", "one-cycle", "plateau")
DEFAULT_ARGUMENTS = {
    "step": (2.0,), "multistep": (0.5, 0.75), "exponential": (0.01,), "polynomial": (1.0,), "plateau": (2.0,),
}  # fmt: skip


def parse_schedule(spec: str, *, factor: float = 0.1, warmup: float = 0.0) -> Schedule:
    """Parse a schedule such as ``cosine``, ``step=3`` or ``multistep=0.5,0.75``.

    Args:
        spec: ``constant``; ``step=NUM_DROPS``; ``multistep=FRACTION,...``; ``exponential=FINAL_FACTOR``;
            ``polynomial=POWER``; ``cosine``; ``one-cycle``; ``plateau=PATIENCE``.
        factor: factor of each drop of step, multistep and plateau.
        warmup: fraction of the training steps with a linear warm-up from 0 (one-cycle: along a cosine from 1/25) to 1.

    Raises:
        UsageError: the name is unknown, or its arguments are invalid.
    """
    name, _, arguments = spec.partition("=")
    if name not in SCHEDULES:
        raise build_unknown_error("schedule", name, SCHEDULES)
    try:
        numbers = (
            tuple(float(number) for number in arguments.split(",")) if arguments else DEFAULT_ARGUMENTS.get(name, ())
        )
    except ValueError:
        numbers = (math.nan,)
    are_fractions = name in ("multistep", "exponential")
    are_integers = name in ("step", "plateau")
    is_valid = all(
        0 < number < (1 if are_fractions else math.inf) and not (are_integers and number % 1) for number in numbers
    )
    if not is_valid or (len(numbers) != len(DEFAULT_ARGUMENTS.get(name, ())) and name != "multistep"):
        example = (
            "=" + ",".join(f"{number:g}" for number in DEFAULT_ARGUMENTS[name]) if name in DEFAULT_ARGUMENTS else ""
        )
        bounds = (
            " with numbers between 0 and 1"
            if are_fractions
            else f" with a {'whole ' * are_integers}number above 0"
            if example
            else ""
        )
        raise UsageError(f"{spec!r} is not a valid schedule; expected the form {name}{example}{bounds}")
    if name == "plateau":
        return ReduceOnPlateau(int(numbers[0]), factor, warmup)
    if name == "one-cycle":
        return build_one_cycle_schedule(warmup)
    schedules: dict[str, Callable[[], Schedule]] = {
        "constant": lambda: compute_constant_factor,
        "step": lambda: build_step_schedule(numbers[0], factor),
        "multistep": lambda: build_multistep_schedule(numbers, factor),
        "exponential": lambda: build_exponential_schedule(*numbers),
        "polynomial": lambda: build_polynomial_schedule(*numbers),
        "cosine": lambda: compute_cosine_factor,
    }
    return add_warmup(schedules[name](), warmup)

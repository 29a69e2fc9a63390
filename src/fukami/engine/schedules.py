"""Learning-rate schedules: pure functions from the share of the training done to a factor of the learning rate.

A share in [0, 1] rather than a step number: the same schedule then serves any number of steps, and nothing but the
step has to be remembered when a run is resumed. Only ``plateau`` remembers more: what the evaluations found.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from fukami.errors import UsageError, build_unknown_error

Schedule = Callable[[float], float]
ONE_CYCLE_DIV_FACTOR, ONE_CYCLE_FINAL_FACTOR = (
    25.0,
    1e4,
)  # one-cycle begins at the peak over the one and ends at that over the other


def compute_constant_factor(progress: float) -> float:
    """1, always."""
    return 1.0


def build_step_schedule(num_drops: float, factor: float) -> Schedule:
    """Multiplied by ``factor`` so many times, after equal shares of the training."""
    return lambda progress: factor ** math.floor(progress * (num_drops + 1))


def build_multistep_schedule(milestones: tuple[float, ...], factor: float) -> Schedule:
    """Multiplied by ``factor`` when each of these shares of the training is done (He et al. 2016: 0.5 and 0.75)."""
    return lambda progress: factor ** sum(progress >= share for share in milestones)


def build_exponential_schedule(end_factor: float) -> Schedule:
    """Down to ``end_factor`` by the same factor at every step."""
    return lambda progress: end_factor**progress


def build_polynomial_schedule(power: float) -> Schedule:
    """``(1 - progress) ** power``; 1 is a straight line to 0."""
    return lambda progress: (1 - progress) ** power


def compute_cosine_factor(progress: float) -> float:
    """Half a cosine wave down to 0 (Loshchilov and Hutter 2017, equation 5)."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def build_one_cycle_schedule(warmup: float) -> Schedule:
    """Up from 1/25 until the share ``warmup``, then down to 1/250,000, both along a cosine (Smith and Topin 2018), as
    torch's ``OneCycleLR`` has it.
    """

    def factor(progress: float) -> float:
        start, end = 1 / ONE_CYCLE_DIV_FACTOR, 1 / (ONE_CYCLE_DIV_FACTOR * ONE_CYCLE_FINAL_FACTOR)
        if progress < warmup:
            return 1 + (start - 1) * compute_cosine_factor(progress / warmup)
        return end + (1 - end) * compute_cosine_factor((progress - warmup) / (1 - warmup))

    return factor


def add_warmup(schedule: Schedule, warmup: float) -> Schedule:
    """Linear from 0 to 1 over the share ``warmup``, then the schedule over the rest (Goyal et al. 2017, section 2.2).

    Raises:
        ValueError: ``warmup`` is not in [0, 1).
    """
    if not 0 <= warmup < 1:
        raise ValueError(f"warmup is the share of the training spent warming up, in [0, 1), not {warmup}")

    def factor(progress: float) -> float:
        return progress / warmup if progress < warmup else schedule((progress - warmup) / (1 - warmup))

    return factor


def repeat_schedule(schedule: Schedule, num_cycles: int) -> Schedule:
    """The schedule so many times in a row, each from its beginning (SGDR, Loshchilov and Hutter 2017)."""
    return lambda progress: schedule(progress * num_cycles % 1)


class ReduceOnPlateau:
    """Multiplied by ``factor`` whenever more than ``patience`` evaluations in a row found no smaller loss, as torch's
    ``ReduceLROnPlateau`` with no threshold; the warm-up is apart. Of evaluations without a loss, whenever the first of
    their metrics did not rise.
    """

    def __init__(self, patience: int, factor: float, warmup: float = 0.0) -> None:
        self.patience, self.factor = patience, factor
        self.warmup_schedule = add_warmup(compute_constant_factor, warmup)
        self.best, self.num_bad_evals, self.num_drops = math.inf, 0, 0

    def __call__(self, progress: float) -> float:
        """The factor for the share ``progress`` of the training."""
        return self.warmup_schedule(progress) * self.factor**self.num_drops

    def on_evaluation(self, metrics: Mapping[str, float]) -> None:
        """Hear what an evaluation found."""
        found = metrics["loss"] if "loss" in metrics else -next(iter(metrics.values()))
        if found < self.best:
            self.best, self.num_bad_evals = found, 0
        elif self.num_bad_evals < self.patience:
            self.num_bad_evals += 1
        else:
            self.num_bad_evals, self.num_drops = 0, self.num_drops + 1

    def state_dict(self) -> dict[str, Any]:
        """What it remembers."""
        return {"best": self.best, "waited": self.num_bad_evals, "drops": self.num_drops}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Remember it again."""
        self.best, self.num_bad_evals, self.num_drops = state["best"], state["waited"], state["drops"]


SCHEDULES = ("constant", "step", "multistep", "exponential", "polynomial", "cosine", "one-cycle", "plateau")
DEFAULT_ARGUMENTS = {
    "step": (2.0,), "multistep": (0.5, 0.75), "exponential": (0.01,), "polynomial": (1.0,), "plateau": (2.0,),
}  # fmt: skip


def parse_schedule(spec: str, *, factor: float = 0.1, warmup: float = 0.0) -> Schedule:
    """The schedule that a word such as ``cosine``, ``step=3`` or ``multistep=0.5,0.75`` asks for.

    Args:
        spec: ``constant``; ``step=DROPS``; ``multistep=SHARE,...``; ``exponential=END``; ``polynomial=POWER``;
            ``cosine``; ``one-cycle``; ``plateau=PATIENCE``.
        factor: of each drop of step, multistep and plateau.
        warmup: share of the training before it, in which the factor rises from 0 (one-cycle: 1/25) to 1.

    Raises:
        UsageError: the word is unknown, or its numbers make no sense.
    """
    name, _, given = spec.partition("=")
    if name not in SCHEDULES:
        raise build_unknown_error("schedule", name, SCHEDULES)
    try:
        numbers = tuple(float(number) for number in given.split(",")) if given else DEFAULT_ARGUMENTS.get(name, ())
    except ValueError:
        numbers = (math.nan,)
    shares = name in ("multistep", "exponential")
    whole = name in ("step", "plateau")
    fits = all(0 < number < (1 if shares else math.inf) and not (whole and number % 1) for number in numbers)
    if not fits or (len(numbers) != len(DEFAULT_ARGUMENTS.get(name, ())) and name != "multistep"):
        example = (
            "=" + ",".join(f"{number:g}" for number in DEFAULT_ARGUMENTS[name]) if name in DEFAULT_ARGUMENTS else ""
        )
        bounds = (
            " with numbers between 0 and 1"
            if shares
            else f" with a {'whole ' * whole}number above 0"
            if example
            else ""
        )
        raise UsageError(f"{spec!r} is no schedule; expected it as in {name}{example}{bounds}")
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

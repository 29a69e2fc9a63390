"""Published results on the datasets of the leaderboard."""

import csv
import functools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PUBLISHED_RESULTS = Path(__file__).parents[1] / "published_results.csv"
SPLIT_YEAR = 2016  # the best result up to this year and the best later ones are shown


@dataclass(frozen=True)
class PublishedResult:
    """Test accuracy reported by a paper, as in a row of ``published_results.csv``.

    ``extra_data`` names training data beyond the standard ones, or is "none", "not verified" or empty (unknown).
    """

    dataset: str
    year: int
    method: str
    accuracy: float
    extra_data: str
    parameters: int | None
    source: str

    @property
    def uses_extra_data(self) -> bool:
        """Known use of training data beyond the standard ones."""
        return self.extra_data not in ("none", "not verified", "")

    @property
    def footnote(self) -> str:
        """Footnote: the method, its source and the extra training data."""
        extra = f"; extra training data: {self.extra_data}" if self.extra_data else ""
        return f"pub. {self.method}: {self.source}{extra}"


@functools.cache
def load_published_results() -> tuple[PublishedResult, ...]:
    """Load the rows of ``published_results.csv``."""
    with PUBLISHED_RESULTS.open(newline="", encoding="utf-8") as file:
        return tuple(
            PublishedResult(
                row["dataset"],
                int(row["year"]),
                row["method"],
                float(row["accuracy"]),
                row["extra_data"],
                int(row["parameters"]) if row["parameters"] else None,
                row["source"],
            )
            for row in csv.DictReader(file)
        )


def select_best_results(results: Sequence[PublishedResult]) -> list[PublishedResult]:
    """Select the best result up to ``SPLIT_YEAR``, and the best later ones without and with extra training data."""
    groups: dict[tuple[bool, bool], list[PublishedResult]] = defaultdict(list)
    for result in results:
        is_later = result.year > SPLIT_YEAR
        groups[is_later, is_later and result.uses_extra_data].append(result)
    return [max(group, key=lambda result: result.accuracy) for group in groups.values()]

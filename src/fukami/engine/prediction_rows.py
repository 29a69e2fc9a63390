"""Rows of a prediction, for tables."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

INPUT_KEYS = {"file", "frame", "seconds", "width", "height"}  # keys of a prediction that describe the input
ROW_VALUES = {"ranking": ("label", "probability"), "boxes": ("label", "score"), "captions": ("caption", "probability")}


class PredictionRow(NamedTuple):
    """Class or caption of a prediction, its probability, score or fraction, and the corners of its box."""

    label: str
    value: float
    box: Sequence[float] | None = None


def list_rows(prediction: Mapping[str, Any]) -> list[PredictionRow]:
    """List the ranking, boxes, captions or class fractions of a prediction, the best first; empty if it has none."""
    for name, (label, value) in ROW_VALUES.items():
        if name in prediction:
            return [PredictionRow(entry[label], entry[value], entry.get("box")) for entry in prediction[name]]
    return [PredictionRow(label, fraction) for label, fraction in prediction.get("fractions", {}).items()]

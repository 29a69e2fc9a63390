"""The self-contained page of ``fukami serve``: an upload form and the predictions."""

import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from fukami.engine import html
from fukami.engine.prediction_rows import INPUT_KEYS, list_rows
from fukami.engine.report import format_metrics

MAX_IMAGE_SIZE = (1600, 1600)  # pixels of a drawn prediction
MAX_DRAWINGS = 20  # of a request; the predictions of further images are only listed
TOKEN_OPTION = '-H "Authorization: Bearer $FUKAMI_TOKEN" '  # option of the curl example


@dataclass(frozen=True)
class Section:
    """Section of the page for one file: its prediction, or the error.

    A row of the table has a label, its probability, score or fraction, and the corners of its box or an empty string.
    """

    file: str
    error: str = ""
    image_url: str = ""
    summary: str = ""
    table: list[tuple[str, float, str]] = field(default_factory=list)
    json: str = ""


def render_page(
    run_info: dict[str, Any],
    address: str,
    sections: Sequence[Section] = (),
    error: str = "",
    needs_token: bool = False,
    confidence: float | None = None,
) -> bytes:
    """Render the page at ``address`` of the run that ``run_info`` describes, with predictions or an error.

    If ``needs_token``, the example command sends the token. ``confidence`` is the minimum score that the form keeps.
    """
    run = format_run(run_info)
    if labels := run_info.get("labels"):
        run["labels"] = f"{len(labels)}: {', '.join(labels[:20])}{' ...' if len(labels) > 20 else ''}"
    return html.render_page(
        "serving.html",
        run=run,
        error=error,
        sections=sections,
        confidence="" if confidence is None else confidence,
        command=f"curl {TOKEN_OPTION if needs_token else ''}-F file=@image.png {address}predict",
    )


def format_run(run_info: dict[str, Any]) -> dict[str, Any]:
    """Format the description of a run for the page."""
    versions = ", ".join(f"{name} {version}" for name, version in run_info["versions"].items())
    return {**run_info, "versions": versions}


def build_section(prediction: dict[str, Any], drawing: Image.Image | None) -> Section:
    """Build the section of a prediction: the drawing, a summary, ranking, boxes or class fractions, and the JSON."""
    if "error" in prediction:
        return Section(prediction["file"], error=prediction["error"])
    summary = {
        name: value
        for name, value in prediction.items()
        if name not in INPUT_KEYS and isinstance(value, str | int | float)
    }
    box_counts = summarize_boxes(prediction["boxes"]) if "boxes" in prediction else ""
    return Section(
        prediction["file"],
        image_url=encode_drawing(drawing) if drawing is not None else "",
        summary=" · ".join(filter(None, (box_counts, format_metrics(summary)))),
        table=[(label, value, format_corners(box)) for label, value, box in list_rows(prediction)],
        json=json.dumps(prediction, ensure_ascii=False, indent=2),
    )


def summarize_boxes(boxes: Sequence[dict[str, Any]]) -> str:
    """Count the boxes of each label, the label with the highest score first."""
    labels = Counter(box["label"] for box in boxes)
    return ", ".join(f"{count} × {label}" for label, count in labels.items()) or "no objects"


def format_corners(box: Sequence[float] | None) -> str:
    """Format the corners of a box (left, top, right, bottom); empty without a box."""
    if box is None:
        return ""
    left, top, right, bottom = (f"{edge:.0f}" for edge in box)
    return f"{left}, {top} – {right}, {bottom}"


def encode_drawing(image: Image.Image) -> str:
    """Encode an image as a data URL."""
    image.thumbnail(MAX_IMAGE_SIZE)
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format="jpeg", quality=90)
    return html.build_data_url(buffer.getvalue(), "jpeg")

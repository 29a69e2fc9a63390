"""The self-contained page of ``fukami serve``: an upload form and the predictions."""

import base64
import html
import io
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from PIL import Image

from fukami.engine import report

INPUT_KEYS = {"file", "width", "height"}  # keys of a prediction that describe the input
BAR_VALUES = {"ranking": "probability", "boxes": "score"}  # lists of a prediction, and the value that their bars show
MAX_IMAGE_SIZE = (1600, 1600)  # pixels of a drawn prediction
TOKEN_OPTION = '-H "Authorization: Bearer $FUKAMI_TOKEN" '  # option of the curl example
FORM = """<form method="post" enctype="multipart/form-data">
<label style="display: block; border: 2px dashed #bbb; border-radius: 6px; margin: 1.5rem 0; padding: 2rem">
Drop images here, paste one, or choose: <input type="file" name="file" accept="image/*" multiple required></label>
<noscript><button>Predict</button></noscript>
</form>"""
SCRIPT = """<script>
const form = document.forms[0];
function upload(files) {
  if (!files.length) return;
  form.file.files = files;
  form.submit();
}
form.file.onchange = () => form.submit();
document.ondragover = event => event.preventDefault();
document.ondrop = event => { event.preventDefault(); upload(event.dataTransfer.files); };
document.onpaste = event => upload(event.clipboardData.files);
</script>"""


def render_page(
    run_info: dict[str, Any], address: str, predictions: Sequence[str] = (), needs_token: bool = False
) -> str:
    """Render the page at ``address`` of the run that ``run_info`` describes, with sections of predictions.

    If ``needs_token``, the example command sends the token.
    """
    name = html.escape(run_info["recipe"])
    command = f"curl {TOKEN_OPTION if needs_token else ''}-F file=@image.png {address}predict"
    labels = run_info["labels"]
    label_text = ", ".join(labels[:20]) + (" ..." if len(labels) > 20 else "")
    shown_info = {
        **run_info,
        "labels": f"{len(labels)}: {label_text}",
        "versions": ", ".join(f"{name} {version}" for name, version in run_info["versions"].items()),
    }
    body = [
        f"<h1>{name}</h1>",
        FORM,
        *predictions,
        f"<h2>HTTP API</h2><pre>{html.escape(command)}</pre>",
        "<h2>Run</h2>" + report.render_table(shown_info),
        SCRIPT,
    ]
    return report.PAGE_TEMPLATE.format(title=f"{name} – fukami serve", body="\n".join(body))


def render_prediction(prediction: dict[str, Any], drawing: Image.Image | None) -> str:
    """Render a prediction: the drawing, a summary, bars of the ranking, boxes or class fractions, and the JSON."""
    sections = [f"<h2>{html.escape(prediction['file'])}</h2>"]
    if "error" in prediction:
        return sections[0] + f"<p>{html.escape(prediction['error'])}</p>"
    if drawing is not None:
        sections.append(render_image(drawing))
    summary = {
        name: value
        for name, value in prediction.items()
        if name not in INPUT_KEYS and isinstance(value, str | int | float)
    }
    box_counts = summarize_boxes(prediction["boxes"]) if "boxes" in prediction else ""
    text = " · ".join(filter(None, (box_counts, report.format_metrics(summary))))
    sections.append(f"<p class=metrics>{html.escape(text)}</p>")
    sections += [render_bars(prediction[name], value) for name, value in BAR_VALUES.items() if prediction.get(name)]
    if "captions" in prediction:
        entries = [
            {"label": caption["caption"], "probability": caption["probability"]} for caption in prediction["captions"]
        ]
        sections.append(render_bars(entries, "probability"))
    if "fractions" in prediction:
        fractions = [{"label": label, "fraction": fraction} for label, fraction in prediction["fractions"].items()]
        sections.append(render_bars(fractions, "fraction"))
    text = json.dumps(prediction, ensure_ascii=False, indent=2)
    sections.append(f"<details><summary>JSON</summary><pre>{html.escape(text)}</pre></details>")
    return "\n".join(sections)


def summarize_boxes(boxes: Sequence[dict[str, Any]]) -> str:
    """Count the boxes of each label, the label with the highest score first."""
    labels = Counter(box["label"] for box in boxes)
    return ", ".join(f"{count} × {label}" for label, count in labels.items()) or "no objects"


def render_bars(entries: Sequence[dict[str, Any]], value: str) -> str:
    """Render a table row for each entry: label, probability or score as a bar, and corners of its box, if any."""
    rows = (
        f'<tr><td>{html.escape(entry["label"])}</td><td><meter value="{entry[value]:.6f}"></meter></td>'
        f"<td class=number>{entry[value]:.2%}</td>{_render_corners(entry.get('box'))}</tr>"
        for entry in entries
    )
    return f"<table>{''.join(rows)}</table>"


def _render_corners(box: Sequence[float] | None) -> str:
    """Render the corners of a box (left, top, right, bottom) as a table cell; empty without a box."""
    if box is None:
        return ""
    left, top, right, bottom = (f"{edge:.0f}" for edge in box)
    return f"<td class=number>{left}, {top} – {right}, {bottom}</td>"


def render_image(image: Image.Image) -> str:
    """Render an image as an ``img`` element with inline data."""
    image.thumbnail(MAX_IMAGE_SIZE)
    buffer = io.BytesIO()
    image.save(buffer, format="png")
    return f'<img alt="drawn prediction" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'

"""The page of ``fukami serve``: a form for images and the answers to them, without anything from elsewhere."""

import base64
import html
import io
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from PIL import Image

from fukami.engine import report

INPUT_KEYS = {"file", "width", "height"}  # parts of an answer that say what was asked about
BAR_VALUES = {"ranking": "probability", "boxes": "score"}  # parts that are lists, and what is drawn of them as bars
MAX_IMAGE_SIZE = (1600, 1600)  # of a drawn answer, in pixels
TOKEN_OPTION = '-H "Authorization: Bearer $FUKAMI_TOKEN" '  # of a command
FORM = """<form method="post" enctype="multipart/form-data">
<label style="display: block; border: 2px dashed #bbb; border-radius: 6px; margin: 1.5rem 0; padding: 2rem">
Drop images here, paste one, or choose: <input type="file" name="file" accept="image/*" multiple required></label>
<noscript><button>Ask</button></noscript>
</form>"""
SCRIPT = """<script>
const form = document.forms[0];
function ask(files) {
  if (!files.length) return;
  form.file.files = files;
  form.submit();
}
form.file.onchange = () => form.submit();
document.ondragover = event => event.preventDefault();
document.ondrop = event => { event.preventDefault(); ask(event.dataTransfer.files); };
document.onpaste = event => ask(event.clipboardData.files);
</script>"""


def render_page(
    run_info: dict[str, Any], address: str, predictions: Sequence[str] = (), needs_token: bool = False
) -> str:
    """The page at ``address`` of the run that ``run_info`` describes, with sections of answers.

    ``needs_token``: whether a program has to send one.
    """
    name = html.escape(run_info["recipe"])
    command = f"curl {TOKEN_OPTION if needs_token else ''}-F file=@image.png {address}predict"
    labels = run_info["labels"]
    some = ", ".join(labels[:20]) + (" ..." if len(labels) > 20 else "")
    facts = {
        **run_info,
        "labels": f"{len(labels)}: {some}",
        "versions": ", ".join(f"{name} {number}" for name, number in run_info["versions"].items()),
    }
    body = [
        f"<h1>{name}</h1>",
        FORM,
        *predictions,
        f"<h2>From a program</h2><pre>{html.escape(command)}</pre>",
        "<h2>What answers</h2>" + report.render_table(facts),
        SCRIPT,
    ]
    return report.PAGE_TEMPLATE.format(title=f"{name} – fukami serve", body="\n".join(body))


def render_prediction(prediction: dict[str, Any], drawing: Image.Image | None) -> str:
    """An answer: drawn, in one line, its ranking, boxes or shares, and all of it as JSON."""
    parts = [f"<h2>{html.escape(prediction['file'])}</h2>"]
    if "error" in prediction:
        return parts[0] + f"<p>{html.escape(prediction['error'])}</p>"
    if drawing is not None:
        parts.append(render_image(drawing))
    line = {
        name: value
        for name, value in prediction.items()
        if name not in INPUT_KEYS and isinstance(value, str | int | float)
    }
    found = summarize_boxes(prediction["boxes"]) if "boxes" in prediction else ""
    parts.append(f"<p class=answer>{html.escape(' · '.join(filter(None, (found, report.format_metrics(line)))))}</p>")
    parts += [render_bars(prediction[name], value) for name, value in BAR_VALUES.items() if prediction.get(name)]
    if "captions" in prediction:
        told = [{"label": each["caption"], "probability": each["probability"]} for each in prediction["captions"]]
        parts.append(render_bars(told, "probability"))
    if "shares" in prediction:
        parts.append(
            render_bars([{"label": label, "share": share} for label, share in prediction["shares"].items()], "share")
        )
    text = json.dumps(prediction, ensure_ascii=False, indent=2)
    parts.append(f"<details><summary>JSON</summary><pre>{html.escape(text)}</pre></details>")
    return "\n".join(parts)


def summarize_boxes(boxes: Sequence[dict[str, Any]]) -> str:
    """How many boxes of each label there are, the label of the strongest first."""
    labels = Counter(box["label"] for box in boxes)
    return ", ".join(f"{count} × {label}" for label, count in labels.items()) or "nothing found"


def render_bars(entries: Sequence[dict[str, Any]], value: str) -> str:
    """A row for each entry: its label, its probability or score as a bar, and where it is, if it has a box."""
    rows = (
        f'<tr><td>{html.escape(entry["label"])}</td><td><meter value="{entry[value]:.6f}"></meter></td>'
        f"<td class=number>{entry[value]:.2%}</td>{_render_corners(entry.get('box'))}</tr>"
        for entry in entries
    )
    return f"<table>{''.join(rows)}</table>"


def _render_corners(box: Sequence[float] | None) -> str:
    """The corners of a box, left and top, right and bottom, as a cell; nothing without a box."""
    if box is None:
        return ""
    left, top, right, bottom = (f"{edge:.0f}" for edge in box)
    return f"<td class=number>{left}, {top} – {right}, {bottom}</td>"


def render_image(image: Image.Image) -> str:
    """The image as a part of the page."""
    image.thumbnail(MAX_IMAGE_SIZE)
    buffer = io.BytesIO()
    image.save(buffer, format="png")
    return f'<img alt="the answer, drawn" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'

"""Tests of the HTML pages: names and texts appear literally, whatever they contain."""

import html.parser
import json
import os
import shutil
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from fukami import leaderboard
from fukami.cli import explain
from fukami.engine import report
from fukami.engine.html import render_page
from fukami.serving import page as serving_page

pytestmark = pytest.mark.report  # calls its functions

TEXT = '"><script>alert(1)</script>{{ 7*7 }}{% raw %}&amp;'
DIGIT = Path(__file__).parents[1] / "docs" / "digit.png"


class Parser(html.parser.HTMLParser):
    """Parser that collects the elements, and the texts and the values of attributes as a browser shows them."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.texts += [value for _, value in attributes if value is not None]

    def handle_data(self, data):
        self.texts.append(data)


def encode_figure():
    return report.encode_figure(TEXT, Figure(figsize=(1, 1)))


def write_run_report(folder):
    fields = {TEXT: TEXT, "data": TEXT}
    record = {"recipe": TEXT, "command": TEXT, "fields": fields, "versions": {TEXT: TEXT}, "device": TEXT}
    record |= {"precision": TEXT, "threads": 1, "processes": 1}
    record |= {"time": {"seconds": {TEXT: 2.0}, "multiply_adds_per_second": 1e9}}
    (folder / "recipe.json").write_text(json.dumps(record))
    (folder / "metrics.jsonl").write_text(json.dumps({"phase": "eval", "step": 1, TEXT: 1}))
    return report.write_report(folder, [(TEXT, Figure(figsize=(1, 1)))], 1.0).read_text()


def write_evaluation(folder):
    figures = [(TEXT, Figure(figsize=(1, 1)))]
    return report.write_evaluation_report(folder, {TEXT: 1}, {"runs": [TEXT], TEXT: TEXT}, figures, TEXT).read_text()


def write_precisions(folder):
    configuration = {"runs": [TEXT], TEXT: TEXT}
    figure = Figure(figsize=(1, 1))
    path = report.write_precision_report(
        folder, (TEXT, TEXT), [(TEXT, TEXT)], figure, {TEXT: TEXT}, configuration, TEXT
    )
    return path.read_text()


def write_leaderboard(folder):
    run = leaderboard.Run(
        TEXT, TEXT, TEXT, ({"step": 1, "accuracy": 0.5, "seconds": 1.0},), 1.0, 1, 1, TEXT, TEXT, TEXT, TEXT
    )
    published = leaderboard.PublishedResult(TEXT, 0.9, TEXT)
    board = leaderboard.Leaderboard(TEXT, "accuracy", [run], [run], [published], claims=[TEXT])
    leaderboard.write_page([board], folder, folder / "board.html")
    return (folder / "board.html").read_text()


def write_network(folder):
    figure = encode_figure()
    return explain.write_page(
        folder,
        "explain_network.html",
        name=TEXT,
        layer_table=TEXT,
        costs=figure,
        receptive_field=figure,
        weight_savings=figure,
        columns=[(TEXT, "number")],
        rows=[("", (TEXT,))],
    ).read_text()


def write_images(folder):
    figure = encode_figure()
    return explain.write_page(
        folder,
        "explain_images.html",
        name=TEXT,
        images=[(figure, figure)],
        filters=figure,
        patches=figure,
        patches_note=TEXT,
        receptive_field=figure,
        layer_table=TEXT,
    ).read_text()


def write_predictions(folder):
    return render_page("predictions.html", files=[(TEXT, TEXT), (f"{TEXT}.mp4", TEXT)]).decode()


def write_serving(folder):
    run_info = {"recipe": TEXT, "labels": [TEXT], "versions": {TEXT: TEXT}, TEXT: TEXT}
    box = {"label": TEXT, "score": 0.5, "box": [0, 0, 1, 1]}
    prediction = {"file": TEXT, "label": TEXT, "ranking": [{"label": TEXT, "probability": 0.5}], "boxes": [box]}
    prediction |= {"captions": [{"caption": TEXT, "probability": 0.5}], "fractions": {TEXT: 0.5}}
    sections = [
        serving_page.build_section(prediction, Image.new("L", (1, 1))),
        serving_page.build_section({"file": TEXT, "error": TEXT}, None),
    ]
    return serving_page.render_page(run_info, "http://localhost/", sections, TEXT).decode()


@pytest.mark.parametrize(
    "write",
    [
        write_run_report,
        write_evaluation,
        write_precisions,
        write_leaderboard,
        write_network,
        write_images,
        write_predictions,
        write_serving,
    ],
)
def test_names_and_texts_are_escaped(tmp_path, write):
    page = write(tmp_path)
    parser = Parser(page)
    text = "\n".join(parser.texts).replace(json.dumps(TEXT)[1:-1], TEXT)  # as the JSON of a prediction
    assert text.count(TEXT) == page.count("alert(1)") >= 4
    assert parser.tags.count("script") == (write is write_serving)
    assert parser.tags.count("h1") == 1


def test_predict_writes_file_names_of_any_bytes(fukami, tmp_path):
    name = os.fsdecode(b"100% <b>\xff#.png")
    try:
        shutil.copy(DIGIT, tmp_path / name)
    except OSError:
        pytest.skip("the file system allows UTF-8 names only")
    result = fukami("predict", "deep-convnet", name, "--out", "page")
    assert result.status == 0, result.err
    assert (tmp_path / "page" / name).is_file()
    page = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    assert '<img src="100%25%20%3Cb%3E%FF%23.png"' in page
    assert r"<h2>100% &lt;b&gt;\udcff#.png</h2>" in page
    assert "<h1>1 prediction</h1>" in page

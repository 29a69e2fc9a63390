"""Tests of the HTML pages: texts appear literally, and a browser shows each page on a phone, in light and dark."""

import base64
import html.parser
import io
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageStat

from fukami.classification import plots as classification_plots
from fukami.cli import explain
from fukami.cli.prediction_page import DrawnPrediction, PredictionPage, build_values
from fukami.engine import report
from fukami.engine.html import render_page
from fukami.leaderboard import page as leaderboard_page
from fukami.leaderboard import published_results
from fukami.leaderboard import runs as leaderboard_runs
from fukami.models import deep_convnet
from fukami.self_play.connect_four import ConnectFour
from fukami.self_play.go import Go
from fukami.self_play.match import GameRecord
from fukami.self_play.search import SearchResult
from fukami.self_play.tic_tac_toe import TicTacToe
from fukami.serving import board_page
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
    (folder / "metrics.jsonl").write_text(json.dumps({"phase": "train", "step": 1, TEXT: 1}))
    return report.write_report(folder, [(TEXT, Figure(figsize=(1, 1)))], {}, 1.0).read_text()


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
    run = leaderboard_runs.RankedRun(
        TEXT, TEXT, TEXT, ({"step": 1, "accuracy": 0.5, "seconds": 1.0},), {}, False, 1.0, 1, 1, TEXT, TEXT, TEXT, TEXT
    )
    published = published_results.PublishedResult(TEXT, 2016, TEXT, 0.9, TEXT, None, TEXT)
    board = leaderboard_runs.Leaderboard(TEXT, "accuracy", [run], [run], [published], claims=[TEXT])
    leaderboard_page.write_page([board], folder, folder / "board.html")
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
    entries = [
        DrawnPrediction(TEXT, Path("a.png"), {TEXT: 0.5}, TEXT),
        DrawnPrediction(TEXT, Path("a.mp4"), {TEXT: 0.5}, TEXT),
    ]
    page = render_page("predictions.html", **build_values(entries))
    (folder / "index.html").write_bytes(page)
    return page.decode()


def write_serving(folder):
    run_info = {"recipe": TEXT, "labels": [TEXT], "versions": {TEXT: TEXT}, TEXT: TEXT}
    box = {"label": TEXT, "score": 0.5, "box": [0, 0, 1, 1]}
    prediction = {"file": TEXT, "label": TEXT, "ranking": [{"label": TEXT, "probability": 0.5}], "boxes": [box]}
    prediction |= {"captions": [{"caption": TEXT, "probability": 0.5}], "fractions": {TEXT: 0.5}}
    sections = [
        serving_page.build_section(prediction, Image.new("L", (1, 1))),
        serving_page.build_section({"file": TEXT, "error": TEXT}, None),
    ]
    page = serving_page.render_page(run_info, "http://localhost/", sections, TEXT)
    (folder / "index.html").write_bytes(page)
    return page.decode()


class HostileGame(TicTacToe):
    name, player_names = TEXT, (TEXT, TEXT)

    def format_move(self, move):
        return f"{TEXT}{move}"


def write_hostile_board(folder):
    return write_board(folder, HostileGame(), [4, 0], {"recipe": TEXT, "versions": {TEXT: TEXT}, TEXT: TEXT}, TEXT)


def write_board(folder, game, moves, run_info, error="", *, games=(), ply=None):
    """Write the page of a game with the search of the last move, or of the one after ``ply`` moves."""
    record = GameRecord(game)
    for move in moves:
        record.play(move)
    visits = np.random.default_rng(0).integers(0, 900, (1, game.num_moves), np.int32)
    policy = (visits / visits.sum()).astype(np.float32)
    result = SearchResult(
        np.array([moves[-1]]), policy, visits, np.array([0.3]), np.array([False]), policy[:, ::-1], np.array([0.1])
    )
    shown = board_page.PageGame(record, len(moves) % 2, 64, result, len(moves) - 1 if ply is None else ply)
    page = board_page.render_board_page(run_info, "http://localhost/", games or [game], shown, error)
    (folder / "index.html").write_bytes(page)
    return page.decode()


WRITERS = (
    write_run_report,
    write_evaluation,
    write_precisions,
    write_leaderboard,
    write_network,
    write_images,
    write_predictions,
    write_serving,
    write_hostile_board,
)  # each kind of page, with hostile names


@pytest.mark.parametrize("write", WRITERS)
def test_names_and_texts_are_escaped(tmp_path, write):
    page = write(tmp_path)
    parser = Parser(page)
    text = "\n".join(parser.texts).replace(json.dumps(TEXT)[1:-1], TEXT)  # as the JSON of a prediction
    assert text.count(TEXT) == page.count("alert(1)") >= 4
    assert parser.tags.count("script") == (write in (write_serving, write_hostile_board, write_predictions))
    assert parser.tags.count("h1") == 1


def test_charts_contain_any_text():
    """SVG excludes control characters and half a surrogate pair; matplotlib's font lacks Japanese characters."""
    figure = Figure(figsize=(2, 2), layout="constrained")
    figure.add_subplot().set_title("犬\x01\udcff $x$")
    image = report.encode_figure("classes", figure).images[0]
    tree = ElementTree.fromstring(base64.b64decode(image.url.partition(",")[2]))
    assert "犬�� $x$" in tree.itertext()
    assert image.is_chart


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


# in a browser: a phone and a monitor, in light and dark

LONG = "donaudampfschifffahrtsgesellschaft_kapitaen"
LABELS = ("cat", "golden retriever", "犬", LONG, *(f"class {index}" for index in range(8)))
VIEWPORTS = [(width, scheme) for width in (320, 390, 1440) for scheme in ("light", "dark")]
# the pairs of elements of which one covers the other by more than a pixel
FIND_OVERLAPS = """elements => {
  const boxes = elements.filter(element => element.checkVisibility())
    .map(element => [element.textContent, element.getBoundingClientRect()])
    .filter(([text, box]) => text.trim() && box.width && box.height);
  return boxes.flatMap(([text, a], i) => boxes.slice(i + 1).filter(([other, b]) =>
    Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 &&
    Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1
  ).map(([other]) => [text, other]));
}"""
# the lowest contrast of the text of elements, as defined by WCAG 2
FIND_LOWEST_CONTRAST = r"""elements => {
  const luminance = color => color.match(/[\d.]+/g).slice(0, 3).map(value => value / 255)
    .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
    .reduce((sum, value, index) => sum + value * [0.2126, 0.7152, 0.0722][index], 0);
  return Math.min(...elements.map(element => {
    let panel = element;
    while (getComputedStyle(panel).backgroundColor === "rgba(0, 0, 0, 0)") panel = panel.parentElement;
    const values = [getComputedStyle(element).color, getComputedStyle(panel).backgroundColor].map(luminance);
    return (Math.max(...values) + 0.05) / (Math.min(...values) + 0.05);
  }));
}"""


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    executable = shutil.which("chromium")
    if executable is None:
        pytest.skip("needs the browser chromium")
    with (
        sync_api.sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"]) as browser,
    ):
        yield browser


@pytest.fixture
def tab(browser):
    with browser.new_page() as tab:
        yield tab


def write_typical_report(folder):
    """Write the report of a classifier with long class names after 300 steps."""
    matrix = torch.eye(len(LABELS), dtype=torch.long) * 40 + torch.arange(len(LABELS))
    images = classification_plots.convert_images(torch.rand(9, 3, 96, 96) * 255)
    captions = [f"{LABELS[index]} → {LABELS[index + 1]}  {99 - index}%" for index in range(9)]
    figures = [
        ("Confusion matrix", classification_plots.plot_confusion_matrix(matrix, LABELS)),
        ("Accuracy per class", classification_plots.plot_class_accuracy(matrix, LABELS)),
        ("Most confident errors", list(zip(captions, images, strict=True))),
    ]
    record = {"recipe": "resnet18", "command": f"fukami train resnet18 --data {LONG}/{LONG}/{LONG}"}
    record |= {"fields": {"data": f"{LONG}/{LONG}", "lr": 0.1}, "versions": {"torch": "2.11"}, "device": "cpu"}
    record |= {"precision": "float32", "threads": 2, "processes": 1}
    record |= {"time": {"seconds": {"forward": 20.5, "backward": 40.0}, "multiply_adds_per_second": 1e9}}
    (folder / "recipe.json").write_text(json.dumps(record))
    lines = []
    for step in range(1, 301):
        line = {"phase": "train", "step": step, "loss": 2.0 / step, "accuracy": 1 - 0.9 / step, "lr": 0.1 / step}
        lines.append(line | {"images_per_second": 9.0})
        if step % 100 == 0:
            lines.append({"phase": "eval", "step": step, "count": 500, "accuracy": 1 - 1 / step, "loss": 1.0 / step})
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    report.write_report(folder, figures, {"accuracy": 0.97, "errors": 15, "split": "test"}, 61.0)


def write_typical_leaderboard(folder):
    runs = [
        leaderboard_runs.RankedRun(
            f"{LONG}/{seed}",
            "deep-convnet",
            "mnist",
            tuple({"step": step, "accuracy": 0.9 + step / 1000 + seed / 100, "seconds": step} for step in range(1, 9)),
            {},
            False,
            1.0,
            123_552 + seed,
            8_770_000,
            "8",
            str(seed),
            "cpu float32",
            f"fukami train deep-convnet --seed {seed}",
        )
        for seed in range(4)
    ]
    published = [result for result in published_results.load_published_results() if result.dataset == "MNIST"]
    board = leaderboard_runs.Leaderboard("mnist", "accuracy", runs, published=published)
    leaderboard_page.write_page([board], folder, folder / "board.html")


def write_typical_precisions(folder):
    loaded = SimpleNamespace(memory_256=5e7)
    metrics = {"metrics": {"accuracy": 0.99}, "agreement": 0.98, "bytes": 5e5, "loaded": loaded, "latency": 0.001}
    results = [
        SimpleNamespace(precision=name, throughput=5000.0, **metrics) for name in ("float32", "bfloat16", "int8")
    ]
    columns = ("precision", "errors", "disagreement", "file", "memory", "latency", "images / s", "backend of int8")
    rows = [(result.precision, "1.00 %", "2.00 %", "500 kB", "50 MB", "1 ms", "5,000", "-") for result in results]
    figure = classification_plots.plot_precisions(results)
    report.write_precision_report(folder, columns, rows, figure, {}, {"runs": ["runs/digits"]}, "fukami eval")


class DrawingTask:
    def draw(self, image, prediction):
        return image


def write_typical_predictions(folder):
    predictions = [
        {"file": "photos/cat one.jpg", "label": "cat", "probability": 0.9},
        {"file": "photos/cat two.jpg", "label": "cat", "probability": 0.4},
        {"file": "photos/dog.jpg", "label": "golden retriever", "probability": 0.7},
        {"file": f"{LONG}/{LONG}.jpg", "boxes": [{"label": "cat", "score": 0.6}, {"label": LONG, "score": 0.95}]},
        {"file": "photos/empty.jpg", "boxes": []},
    ]
    with PredictionPage(folder, DrawingTask(), [prediction["file"] for prediction in predictions]) as page:
        for prediction in predictions:
            page.add(Image.new("RGB", (640, 400), "steelblue"), prediction)


def write_typical_network(folder):
    text, layers, field = explain.summarize_network(deep_convnet(), (1, 28, 28), "random weights")
    explain.write_page(folder, "explain_network.html", name="deep_convnet", **explain.plot_network(text, layers, field))


BOARD_RUN = {"recipe": "alphago-zero", "members": 1, "precision": "float32", "versions": {"fukami": "0.2.0"}}
BOARD_RUN |= {"games": ["go7", "go9"], "simulations": 64}


def write_connect_four(folder):
    write_board(folder, ConnectFour(), [3, 2, 2, 3, 3, 0], BOARD_RUN)


def write_connect_four_hint(folder):
    write_board(folder, ConnectFour(), [3, 2, 2, 3, 3, 0], BOARD_RUN, ply=6)


def write_go(folder):
    write_board(folder, Go(7), [24, 16, 32, 40, 0, 48], BOARD_RUN, "an error", games=[Go(7), Go(9)])


def write_large_go(folder):
    write_board(folder, Go(19), [60, 72, 300, 288], BOARD_RUN, games=[Go(19)], ply=4)


BOARD_WRITERS = (write_connect_four, write_connect_four_hint, write_go, write_large_go)


def open_page(tab, folder):
    (path,) = folder.glob("*.html")
    tab.goto(path.as_uri())


@pytest.mark.parametrize(
    "write",
    [
        write_typical_report,
        write_typical_leaderboard,
        write_typical_precisions,
        write_typical_predictions,
        write_typical_network,
        *BOARD_WRITERS,
        *WRITERS,
    ],
)
def test_pages_fit_a_phone_and_a_monitor_in_light_and_dark(tmp_path, tab, write):
    """No horizontal scrolling, no caption over another one, and text with the contrast of WCAG 2, level AA."""
    write(tmp_path)
    open_page(tab, tmp_path)
    for width, scheme in VIEWPORTS:
        tab.set_viewport_size({"width": width, "height": 800})
        tab.emulate_media(color_scheme=scheme)
        assert tab.evaluate("document.documentElement.scrollWidth") <= width, (width, scheme)
        assert tab.eval_on_selector_all("h1, h2, h3, figcaption, p, pre", FIND_OVERLAPS) == [], (width, scheme)
        texts = "h1, h2, h3, p, td, th, pre, figcaption, label, option, a, summary"
        assert tab.eval_on_selector_all(texts, FIND_LOWEST_CONTRAST) >= 4.5, (width, scheme)
    images = tab.eval_on_selector_all("img", "images => images.map(image => [image.alt, image.naturalWidth])")
    assert all(text and (width or write is write_predictions) for text, width in images)  # its files do not exist


@pytest.mark.parametrize("write", BOARD_WRITERS)
def test_boards_fill_a_phone_and_are_beside_the_search_on_a_monitor(tmp_path, tab, write):
    """The buttons are where the stones will be, and the texts of the controls have the contrast of WCAG 2."""
    write(tmp_path)
    open_page(tab, tmp_path)
    for width, scheme in VIEWPORTS:
        tab.set_viewport_size({"width": width, "height": 800})
        tab.emulate_media(color_scheme=scheme)
        board, panel = (tab.locator(selector).bounding_box() for selector in (".board", ".panel"))
        if width < 800:
            assert board["width"] == pytest.approx(width - 32, abs=1)
            assert panel["y"] > board["y"] + board["height"]
        else:
            assert panel["x"] > board["x"] + board["width"]
            assert board["width"] > 450
        assert tab.eval_on_selector_all(".controls button:enabled, .controls select", FIND_LOWEST_CONTRAST) >= 4.5
        ghosts = tab.eval_on_selector_all(
            ".ghost", "ghosts => ghosts.map(ghost => ghost.getBoundingClientRect().toJSON())"
        )
        cell = min(ghost["width"] for ghost in ghosts)
        assert all(ghost["height"] == pytest.approx(cell, rel=0.02) for ghost in ghosts)
        stones = tab.eval_on_selector_all(
            ".board > svg .stone", "stones => stones.map(stone => stone.getBoundingClientRect().toJSON())"
        )
        for stone in stones:
            column, row = ((ghosts[0][side] - stone[side] + (cell - stone["width"]) / 2) / cell for side in "xy")
            assert (column, row) == pytest.approx((round(column), round(row)), abs=0.1)
    commands = tab.locator("h2:text-is('HTTP API') + pre div").all_inner_texts()
    assert [command.split()[0] for command in commands] == ["curl", "curl"]


def test_curves_are_vector_graphics_below_one_another_on_a_phone(tmp_path, tab):
    write_typical_report(tmp_path)
    open_page(tab, tmp_path)
    curves = "h2:text-is('Training curves') + .grid img"
    assert tab.eval_on_selector_all(curves, "images => images.map(image => image.alt)") == [
        "loss", "accuracy", "learning rate"
    ]  # fmt: skip
    urls = tab.eval_on_selector_all(curves, "images => images.map(image => image.src.slice(0, 19))")
    assert {*urls} == {"data:image/svg+xml;"}
    for width, num_columns in ((390, 1), (1440, 3)):
        tab.set_viewport_size({"width": width, "height": 800})
        corners = tab.eval_on_selector_all(curves, "images => images.map(image => image.getBoundingClientRect().left)")
        assert len({*corners}) == num_columns


@pytest.mark.parametrize("write", [write_typical_report, write_typical_leaderboard, write_typical_precisions])
def test_texts_of_charts_do_not_overlap(tmp_path, tab, write):
    write(tmp_path)
    open_page(tab, tmp_path)
    urls = tab.eval_on_selector_all("img[src^='data:image/svg']", "images => images.map(image => image.src)")
    assert len(urls) >= 4
    for url in urls:
        tab.goto(url)
        assert tab.eval_on_selector_all("text", FIND_OVERLAPS) == []


def test_charts_follow_the_color_scheme(tmp_path, tab):
    """A chart has dark lines on a light background, or light ones on a dark one."""
    write_typical_report(tmp_path)
    open_page(tab, tmp_path)
    levels = {}
    for scheme in ("light", "dark"):
        tab.emulate_media(color_scheme=scheme)
        with Image.open(io.BytesIO(tab.locator("img.chart").last.screenshot())) as image:
            gray = image.convert("L")
            levels[scheme] = (*gray.getextrema(), ImageStat.Stat(gray).mean[0])
    darkest, brightest, mean = levels["light"]
    assert darkest < 60 < 220 < mean <= brightest
    darkest, brightest, mean = levels["dark"]
    assert darkest <= mean < 60 < 200 < brightest


def test_the_order_of_a_report(tmp_path, tab):
    write_typical_report(tmp_path)
    open_page(tab, tmp_path)
    assert tab.locator("h1 + .metrics").inner_text() == "test result: accuracy 0.9700 · errors 15"
    assert tab.locator("h2").all_inner_texts() == [
        "Confusion matrix",
        "Accuracy per class",
        "Most confident errors",
        "Training curves",
        "Commands",
        "Configuration",
        "Time by phase",
    ]
    commands = tab.locator("h2:text-is('Commands') + pre div").all_inner_texts()
    assert [command.split()[:2] for command in commands] == [["fukami", name] for name in ("eval", "predict", "serve")]
    assert all(str(tmp_path) in command for command in commands)


@pytest.mark.parametrize(
    ("recipe", "commands"),
    [
        ("dcgan", ["fukami eval 'my runs/1'", "fukami predict 'my runs/1' --num-samples 64 --out samples"]),
        ("dqn", ["fukami eval 'my runs/1'", "fukami play 'my runs/1' --out episode.gif"]),
    ],
)
def test_commands_of_tasks_without_input_images(recipe, commands):
    assert report.list_usage_commands(Path("my runs/1"), {"recipe": recipe}) == commands


def test_commands_of_a_custom_recipe_name_its_file():
    commands = report.list_usage_commands(Path("run"), {"recipe": "mine.py", "recipe_sha256": "0"})
    assert commands[0] == "fukami eval run --recipe mine.py"


def test_predictions_are_filtered_by_class_and_score(tmp_path, tab):
    write_typical_predictions(tmp_path)
    open_page(tab, tmp_path)
    names = ["photos/cat one.jpg", "photos/cat two.jpg", "photos/dog.jpg", f"{LONG}/{LONG}.jpg", "photos/empty.jpg"]

    def get_shown():
        return tab.locator("article:visible h2").all_inner_texts()

    assert get_shown() == names
    assert tab.locator("option").all_inner_texts() == ["all", "cat", LONG, "golden retriever"]
    tab.locator("[name=score]").fill("0.65")
    assert get_shown() == [names[0], names[2], names[3]]
    tab.locator("select").select_option("cat")
    assert get_shown() == [names[0]]
    tab.locator("[name=score]").fill("0.5")
    assert get_shown() == [names[0], names[3]]
    assert tab.locator("output").inner_text() == "score at least 0.50: 2 of 5"
    tab.locator("[name=score]").fill("0")
    assert get_shown() == [names[0], names[1], names[3]]

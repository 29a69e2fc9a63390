"""Output formats of ``fukami predict``, read by the standard library, pycocotools and our reader of YOLO's labels."""

import contextlib
import csv
import io
import json
import sys

import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from bright import Bright
from fukami import UsageError
from fukami.cli import prediction_formats
from fukami.cli.inputs import OutputFolder
from fukami.cli.prediction_formats import CsvWriter
from fukami.data import yolo
from fukami.engine import load_run

BOX = [0.0, 0.0, 90.0, 60.0]  # of a bright image of 90×60


@pytest.fixture
def images(tmp_path, monkeypatch):
    """Two images with a lamp and one without, predicted by a task that finds lamps in bright images."""
    monkeypatch.setattr(load_run, "load_task", lambda *runs, **options: Bright(None))
    monkeypatch.setattr(load_run, "parse_run_overrides", lambda *arguments: {})
    for name, level in (("1", 255), ("2", 0), ("3", 255)):
        Image.new("L", (90, 60), level).save(tmp_path / f"{name}.png")
    return [f"{name}.png" for name in "123"]


def predict(fukami, *arguments):
    result = fukami("predict", "deep-convnet", *arguments)
    assert result.status == 0, result.err
    return result


def test_json_lines_are_the_default_without_a_terminal(images, fukami):
    result = predict(fukami, *images)
    assert [prediction["file"] for prediction in result.json] == images
    assert predict(fukami, *images, "--format", "jsonl").out == result.out


def test_a_terminal_gets_a_table(images, fukami, monkeypatch):
    table = predict(fukami, *images, "--format", "table").out
    assert table.splitlines() == [
        "file   prediction   score  left, top, right, bottom",
        "1.png  lamp        0.9000  0, 0, 90, 60",
        "2.png  no objects",
        "3.png  lamp        0.9000  0, 0, 90, 60",
    ]
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda stream: True, raising=False)
    writer = prediction_formats.build_writer("auto", images, ("lamp",), None, has_frames=False)
    assert isinstance(writer, prediction_formats.TableWriter)


def test_a_table_of_a_classifier_has_a_row_per_file(fukami, digit_files):
    file = next(digit_files.rglob("*.png"))
    (prediction,) = fukami("predict", "deep-convnet", file).json
    header, row = fukami("predict", "deep-convnet", file, "--format", "table").out.splitlines()
    assert header.split() == ["file", "prediction", "score"]
    assert row.split()[1:] == [prediction["label"], f"{prediction['probability']:.4f}"]
    assert prediction["probability"] == round(prediction["probability"], 4)


def test_a_table_escapes_control_characters_and_shortens_names(capsys):
    writer = prediction_formats.TableWriter(["x" * 60], ("a",), has_frames=False)
    writer.write({"file": "x" * 59 + "\x1b", "label": "a\n", "ranking": [{"label": "a\n", "probability": 0.5}]})
    _, row = capsys.readouterr().out.splitlines()
    assert row.startswith("…" + "x" * 35 + "\\x1b  a\\n")


def test_a_table_has_the_numbers_of_frames_and_lines(capsys):
    """The number follows the name, and only the name is shortened."""
    label = {"ranking": [{"label": "a", "probability": 0.5}]}
    writer = prediction_formats.TableWriter(["x" * 60], ("a",), has_frames=True)
    for frame in (0, 1000):
        writer.write({"file": "x" * 60, "frame": frame, **label})
    rows = capsys.readouterr().out.splitlines()
    assert [row.split("  ")[0] for row in rows[1:]] == ["…" + "x" * 39 + suffix for suffix in (" [0]", " [1000]")]
    writer = prediction_formats.TableWriter(["a"], (), has_frames=False)
    writer.write({"file": "a", "line": 3, "move": "4", "policy": {"4": 0.8}})
    assert capsys.readouterr().out.splitlines()[1].split() == ["a", "[3]", "4", "0.8000"]
    CsvWriter(has_frames=False).write({"file": "a", "line": 3, "move": "4", "policy": {"4": 0.8}})
    assert capsys.readouterr().out == "file,line,label,score\na,3,4,0.8\n"


def test_csv_escapes_control_characters_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda stream: True, raising=False)
    CsvWriter(has_frames=False).write({"file": "a\x1b", "ranking": [{"label": "b\x1b", "probability": 0.5}]})
    assert capsys.readouterr().out == "file,label,score\na\\x1b,b\\x1b,0.5\n"


def test_classes_of_yolo_with_equal_names_keep_their_numbers(tmp_path):
    """COCO's 90 categories contain ten that are called N/A."""
    writer = prediction_formats.YoloWriter(tmp_path / "out", ["a.png"], ("cat", "N/A", "N/A", "dog"))
    with writer:
        box = {"label": "dog", "score": 0.5, "box": [0, 0, 4, 4]}
        writer.write({"file": "a.png", "width": 4, "height": 4, "boxes": [box]})
    assert (tmp_path / "out" / "classes.txt").read_text().splitlines()[3] == "dog"
    assert (tmp_path / "out" / "a.txt").read_text().startswith("3 ")


def test_csv_has_a_row_per_box(images, fukami):
    rows = list(csv.DictReader(io.StringIO(predict(fukami, *images, "--format", "csv").out)))
    assert [(row["file"], row["label"], float(row["score"])) for row in rows] == [
        ("1.png", "lamp", 0.9),
        ("3.png", "lamp", 0.9),
    ]
    assert [float(rows[0][side]) for side in ("left", "top", "right", "bottom")] == BOX


def test_coco_results_are_read_by_pycocotools(images, fukami):
    """With the annotations of the same boxes, the average precision is 1."""
    results = json.loads(predict(fukami, *images, "--format", "coco").out)
    assert [(entry["image_id"], entry["bbox"], entry["score"]) for entry in results] == [
        (1, [0, 0, 90, 60], 0.9),
        (3, [0, 0, 90, 60], 0.9),
    ]
    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": int(name[0]), "file_name": name} for name in images],
        "categories": [{"id": 1, "name": "lamp"}],
        "annotations": [
            {"id": n, "image_id": n, "category_id": 1, "bbox": [0, 0, 90, 60], "area": 5400, "iscrowd": 0}
            for n in (1, 3)
        ],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1)


def test_coco_results_without_boxes_are_an_empty_list(images, fukami):
    assert json.loads(predict(fukami, "2.png", "--format", "coco").out) == []


def test_image_ids_are_positions_unless_all_files_are_numbered(tmp_path):
    writer = prediction_formats.CocoWriter(["a/000139.jpg", "a/b.jpg"], ("lamp",))
    assert writer.image_ids == {"a/000139.jpg": 1, "a/b.jpg": 2}
    assert prediction_formats.CocoWriter(["a/000139.jpg"], ()).image_ids == {"a/000139.jpg": 139}
    assert prediction_formats.CocoWriter(["a/1.jpg", "b/1.jpg"], ()).image_ids == {"a/1.jpg": 1, "b/1.jpg": 2}


def test_yolo_labels_are_read_as_a_dataset(images, fukami, tmp_path):
    result = predict(fukami, *images, "--format", "yolo", "--out", "labels")
    assert result.out == ""
    assert {path.name for path in (tmp_path / "labels").iterdir()} == {"1.txt", "2.txt", "3.txt", "classes.txt"}
    assert (tmp_path / "labels" / "1.txt").read_text() == "0 0.500000 0.500000 1.000000 1.000000 0.9000\n"
    assert (tmp_path / "labels" / "2.txt").read_text() == ""
    for name in images:  # a dataset has no scores
        text = (tmp_path / "labels" / f"{name[0]}.txt").read_text()
        (tmp_path / "labels" / f"{name[0]}.txt").write_text(text.removesuffix(" 0.9000\n"))
        (tmp_path / name).rename(tmp_path / "labels" / name)
    dataset = yolo.read_yolo(tmp_path / "labels")
    assert dataset.labels == ("lamp", "night")
    assert [[box.label for box in entry.boxes] for entry in dataset.splits[""]] == [["lamp"], [], ["lamp"]]


@pytest.mark.parametrize("format", ["coco", "yolo"])
def test_a_classifier_has_no_boxes(format, fukami, digit_files, tmp_path):
    file = next(digit_files.rglob("*.png"))
    result = fukami("predict", "deep-convnet", file, "--format", format, "--out", tmp_path / "out")
    assert (result.status, result.out) == (2, "")
    assert f"--format {format} is for boxes" in result.err


def test_formats_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match="for images, not for videos"):
        prediction_formats.build_writer("coco", ["a.mp4"], (), None, has_frames=True)
    with pytest.raises(UsageError, match="add --out"):
        prediction_formats.build_writer("yolo", ["a.png"], (), None, has_frames=False)


def test_a_position_and_a_state_have_a_row_with_the_best_move():
    position = {
        "file": "a.txt",
        "line": 1,
        "move": "4",
        "value": 0.2,
        "policy": {"3": 0.1, "4": 0.8},
        "simulations": 64,
    }
    assert prediction_formats.select_rows(position) == [prediction_formats.PredictionRow("4", 0.8)]
    state = {"file": "a.png", "action": "up", "values": {"stay": 0.5, "up": 0.75}}
    assert prediction_formats.select_rows(state) == [prediction_formats.PredictionRow("up", 0.75)]


def test_names_of_outputs_are_shortened(tmp_path):
    """A file of 246 bytes would have a longer name with another suffix."""
    folder = OutputFolder(tmp_path / "out", ())
    names = [folder.reserve_path(f"{'語' * 82}.jpg", "png", ending="-classes").name for _ in range(2)]
    assert names == [f"{'語' * 66}-classes.png", f"{'語' * 66}-classes-2.png"]
    assert folder.reserve_path(f"{'a' * 200}.jpg", "png").name == f"{'a' * 200}.png"


@pytest.mark.parametrize(
    ("prediction", "rows"),
    [
        ({"fractions": {"road": 0.7, "sky": 0.3}}, ["road,0.7", "sky,0.3"]),
        (
            {"captions": [{"caption": "a cat", "probability": 0.5, "score": -0.7},
                          {"caption": "a dog", "probability": 0.2, "score": -1.6}]},
            ["a cat,0.5"],
        ),
    ],
    ids=["mask", "captions"],
)  # fmt: skip
def test_csv_of_frames(prediction, rows, capsys):
    writer = CsvWriter(has_frames=True)
    writer.write({"file": "a.mp4", "frame": 5, "seconds": 0.2, **prediction})
    expected = "".join(f"a.mp4,5,0.2,{row}\n" for row in rows)
    assert capsys.readouterr().out == f"file,frame,seconds,label,score\n{expected}"

"""Output formats of ``fukami predict``: a table, JSON lines, CSV, COCO's results and YOLO's label files."""

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from fukami.cli.inputs import OutputFolder, format_json_line
from fukami.engine.prediction_rows import INPUT_KEYS, PredictionRow, list_rows
from fukami.errors import UsageError

OutputFormat = Literal["auto", "table", "jsonl", "csv", "coco", "yolo"]
MAX_FILE_WIDTH, MAX_LABEL_WIDTH = 40, 60  # characters of a column of the table
NUMBER_WIDTH = len(" [10000]")  # of a frame or a line


class PredictionWriter:
    """Writer of predictions in a format; a context, at whose end the output is complete."""

    def __enter__(self) -> Self:
        return self

    def write(self, prediction: Mapping[str, Any]) -> None:
        """Write the prediction of an image or a video frame."""
        raise NotImplementedError

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Complete the output."""


class JsonLinesWriter(PredictionWriter):
    """Writer of one JSON object per line."""

    def write(self, prediction: Mapping[str, Any]) -> None:
        """Print the prediction."""
        print(format_json_line(prediction), flush=True)


class TableWriter(PredictionWriter):
    """Writer of a readable table: file, class or caption, score, and the corners of a box.

    Args:
        files: input files, for the width of the first column.
        labels: names of the classes, for the width of the second column.
        has_frames: whether there are videos among the files.
    """

    def __init__(self, files: Sequence[str], labels: Sequence[str], *, has_frames: bool) -> None:
        self.name_width = min(MAX_FILE_WIDTH, max(map(len, ("file", *files))))
        self.number_width = NUMBER_WIDTH if has_frames else 0
        self.label_width = min(MAX_LABEL_WIDTH, max(map(len, ("prediction", *labels))))
        self.has_header = False

    def write(self, prediction: Mapping[str, Any]) -> None:
        """Print the rows of the prediction, the name of the file in the first one."""
        number = prediction.get("frame", prediction.get("line"))
        if not self.has_header:
            self.number_width = NUMBER_WIDTH if number is not None else self.number_width
            self._print_row("file", "prediction", " score", "left, top, right, bottom" * ("boxes" in prediction))
            self.has_header = True
        name = _make_printable(prediction["file"])
        if len(name) > self.name_width:
            name = f"…{name[1 - self.name_width :]}"
        name += "" if number is None else f" [{number}]"
        rows = select_rows(prediction)
        if not rows:
            self._print_row(name, "no objects", "", "")
        for index, (label, score, box) in enumerate(rows):
            corners = ", ".join(f"{side:.0f}" for side in box or ())
            self._print_row("" if index else name, label, f"{score:6.4f}", corners)

    def _print_row(self, file: str, label: str, score: str, corners: str) -> None:
        columns = (
            file.ljust(self.name_width + self.number_width),
            _make_printable(label).ljust(self.label_width),
            score.ljust(6),
            corners,
        )
        print("  ".join(columns).rstrip(), flush=True)


class CsvWriter(PredictionWriter):
    """Writer of CSV: a row for each box or class fraction, or for the most probable class or caption.

    With ``has_frames`` each row has the frame of the video and its time. A row of a position in a file has its line.
    """

    def __init__(self, *, has_frames: bool) -> None:
        self.location_columns = ["frame", "seconds"] if has_frames else []
        self.convert = _make_printable if sys.stdout.isatty() else _make_encodable
        self.writer = csv.writer(sys.stdout, lineterminator="\n")
        self.has_header = False

    def write(self, prediction: Mapping[str, Any]) -> None:
        """Print the rows of the prediction."""
        if not self.has_header:
            corners = ["left", "top", "right", "bottom"] if "boxes" in prediction else []
            self.location_columns += ["line"] if "line" in prediction else []
            self.writer.writerow(["file", *self.location_columns, "label", "score", *corners])
            self.has_header = True
        location = [prediction.get(name, "") for name in self.location_columns]
        for label, score, box in select_rows(prediction):
            texts = self.convert(prediction["file"]), *location, self.convert(label)
            self.writer.writerow([*texts, score, *(box or ())])
        sys.stdout.flush()


class CocoWriter(PredictionWriter):
    """Writer of COCO's results: a JSON list of all boxes with ``image_id``, ``category_id``, ``bbox`` and ``score``.

    ``image_id`` is the number that the file is named after, as in COCO, or else the position of the file among the
    inputs, from 1. ``category_id`` is the position of the class, from 1. ``bbox`` is left, top, width and height.
    """

    def __init__(self, files: Sequence[str], labels: Sequence[str]) -> None:
        stems = [Path(file).stem for file in files]
        are_numbers = all(stem.isdecimal() for stem in stems) and len(set(map(int, stems))) == len(stems)
        self.image_ids = {
            file: int(stem) if are_numbers else position
            for position, (file, stem) in enumerate(zip(files, stems, strict=True), start=1)
        }
        self.category_ids = {label: position for position, label in enumerate(labels, start=1)}
        self.separator = "["

    def write(self, prediction: Mapping[str, Any]) -> None:
        """Print the boxes of the prediction."""
        file = prediction["file"]
        for box in get_boxes(prediction, "coco"):
            left, top, right, bottom = box["box"]
            entry = {
                "image_id": self.image_ids[file],
                "category_id": self.category_ids[box["label"]],
                "bbox": [left, top, round(right - left, 2), round(bottom - top, 2)],
                "score": box["score"],
                "file_name": _make_encodable(file),
                "category_name": box["label"],
            }
            print(f"{self.separator}{json.dumps(entry)}", end="", flush=True)
            self.separator = ",\n"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the list, unless an error has made it incomplete."""
        if error is None:
            print("[]" if self.separator == "[" else "]")


class YoloWriter(PredictionWriter):
    """Writer of a label file per image: class index, center, width and height relative to the image, and score.

    ``classes.txt`` has the names of the classes.
    """

    def __init__(self, folder: Path, files: Sequence[str], labels: Sequence[str]) -> None:
        self.output = OutputFolder(folder, files)
        self.labels = labels
        self.class_indices = {label: index for index, label in enumerate(labels)}
        self.class_file = self.output.reserve_path("classes", "txt")

    def write(self, prediction: Mapping[str, Any]) -> None:
        """Write the label file of the prediction."""
        lines = []
        for box in get_boxes(prediction, "yolo"):
            width, height = prediction["width"], prediction["height"]
            left, top, right, bottom = box["box"]
            center = (left + right) / 2 / width, (top + bottom) / 2 / height
            values = *center, (right - left) / width, (bottom - top) / height
            coordinates = " ".join(f"{value:.6f}" for value in values)
            lines.append(f"{self.class_indices[box['label']]} {coordinates} {box['score']:.4f}\n")
        self.output.reserve_path(prediction["file"], "txt").write_text("".join(lines), encoding="utf-8")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Write the names of the classes."""
        if error is None:
            self.class_file.write_text("".join(f"{label}\n" for label in self.labels), encoding="utf-8")


def build_writer(
    output_format: OutputFormat, files: Sequence[str], labels: Sequence[str], folder: Path | None, *, has_frames: bool
) -> PredictionWriter:
    """Build the writer of a format.

    Args:
        output_format: the format; auto: a table on a terminal, else JSON lines.
        files: input files.
        labels: names of the classes.
        folder: output folder, for label files.
        has_frames: whether there are videos among the files.

    Raises:
        UsageError: the format does not fit the files, or needs a folder.
    """
    if output_format in ("coco", "yolo") and has_frames:
        raise UsageError(f"--format {output_format} is for images, not for videos; use jsonl or csv")
    if output_format == "yolo":
        if folder is None:
            raise UsageError("--format yolo writes a file for each image; add --out for their folder")
        return YoloWriter(folder, files, labels)
    if output_format == "coco":
        return CocoWriter(files, labels)
    if output_format == "csv":
        return CsvWriter(has_frames=has_frames)
    if output_format == "table" or (output_format == "auto" and sys.stdout.isatty()):
        return TableWriter(files, labels, has_frames=has_frames)
    return JsonLinesWriter()


def select_rows(prediction: Mapping[str, Any]) -> list[PredictionRow]:
    """Return the rows of a prediction; of alternatives, such as classes and captions, only the most probable one.

    A prediction of another form has a row for each number.
    """
    if "ranking" in prediction or "captions" in prediction:
        return list_rows(prediction)[:1]
    if "boxes" in prediction or "fractions" in prediction:
        return list_rows(prediction)
    if "move" in prediction:
        return [PredictionRow(prediction["move"], prediction["policy"].get(prediction["move"], 0.0))]
    if "action" in prediction:
        return [PredictionRow(prediction["action"], prediction["values"][prediction["action"]])]
    numbers = {**prediction, **prediction.get("values", {})}
    return [
        PredictionRow(name, value)
        for name, value in numbers.items()
        if name not in INPUT_KEYS and isinstance(value, int | float)
    ]


def get_boxes(prediction: Mapping[str, Any], output_format: str) -> list[dict[str, Any]]:
    """Return the boxes of a prediction.

    Raises:
        UsageError: it has none, so that the format does not fit.
    """
    if "boxes" not in prediction:
        raise UsageError(f"--format {output_format} is for boxes, which this run does not predict; use jsonl or csv")
    boxes: list[dict[str, Any]] = prediction["boxes"]
    return boxes


def _make_printable(text: str) -> str:
    """Escape control characters and undecodable bytes."""
    return text if text.isprintable() else ascii(text)[1:-1]


def _make_encodable(name: str) -> str:
    """Escape undecodable bytes of a file name."""
    return name.encode("utf-8", "backslashreplace").decode()

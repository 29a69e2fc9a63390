"""Tests of the published results: each row of the file, and the page that shows them."""

import csv
import re
from decimal import Decimal
from pathlib import Path

import pytest

from fukami.leaderboard import published_results

ROOT = Path(__file__).parents[1]
COLUMNS = ["dataset", "year", "method", "accuracy", "extra_data", "parameters", "source"]
DATASETS = {"MNIST", "CIFAR-10", "CIFAR-100", "STL-10", "SVHN"}
# Errors and accuracies in %, as the sources report them.
ERRORS = {
    ("MNIST", "LeNet-5, distortions"): "0.8",
    ("MNIST", "multi-column DNN"): "0.23",
    ("MNIST", "DropConnect"): "0.21",
    ("CIFAR-10", "fractional max pooling, 100 tests"): "3.47",
    ("CIFAR-10", "ResNet-20"): "8.75",
    ("CIFAR-10", "ResNet-56"): "6.97",
    ("CIFAR-10", "ResNet-110"): "6.43",
    ("CIFAR-10", "EfficientNet-L2, SAM"): "0.30",
    ("CIFAR-100", "CNN with ELU"): "24.28",
    ("CIFAR-100", "PyramidNet, AutoAugment, SAM"): "10.3",
    ("CIFAR-100", "EfficientNet-L2, SAM"): "3.92",
    ("STL-10", "EnAET"): "4.52",
    ("SVHN", "tree and max-average pooling"): "1.69",
    ("SVHN", "Wide-ResNet-28-10, AutoAugment, SAM"): "0.99",
}
ACCURACIES = {
    ("MNIST", "two-layer ensemble of CNNs"): "99.91",
    ("MNIST", "CNN with homogeneous vector capsules"): "99.83",
    ("CIFAR-10", "four PyramidNets, co-training"): "98.71",
    ("STL-10", "stacked what-where auto-encoders"): "74.33",
    ("STL-10", "CLIP ViT-L/14, linear probe"): "99.8",
    ("SVHN", "Wide-ResNet-28-10, RandAugment"): "98.3",
}
REPORTED = {key: 100 - Decimal(error) for key, error in ERRORS.items()}
REPORTED |= {key: Decimal(accuracy) for key, accuracy in ACCURACIES.items()}


def load_csv(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def find_problems(row):
    """Return the fields of a row that are missing, malformed or different from the source."""
    is_valid = {
        "dataset": row["dataset"] in DATASETS,
        "year": re.fullmatch(r"(19|20)\d\d", row["year"]) and row["year"] in row["source"],
        "method": row["method"],
        "accuracy": Decimal(row["accuracy"]) * 100 == REPORTED.get((row["dataset"], row["method"])),
        "extra_data": row["extra_data"],
        "parameters": re.fullmatch(r"(\d{4,})?", row["parameters"]),
        "source": re.search(r"\w+ (et al\. )?(19|20)\d\d", row["source"]),
    }
    return [name for name, valid in is_valid.items() if not valid]


ROWS = load_csv(published_results.PUBLISHED_RESULTS)


def test_the_columns_and_rows_are_complete():
    assert list(ROWS[0]) == COLUMNS
    keys = [(row["dataset"], row["method"]) for row in ROWS]
    assert sorted(keys) == sorted(REPORTED)  # without duplicates
    assert {row["dataset"] for row in ROWS} == DATASETS


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['dataset']} {row['method']}")
def test_each_row_has_a_year_a_source_and_the_published_value(row):
    assert find_problems(row) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dataset", "MINST"),
        ("year", ""),
        ("year", "2031"),
        ("method", ""),
        ("accuracy", "0.21"),
        ("accuracy", "99.79"),
        ("extra_data", ""),
        ("parameters", "60 k"),
        ("source", ""),
        ("source", "Wan et al."),
    ],
)
def test_a_wrong_row_is_an_error(name, value):
    (row,) = (row for row in ROWS if row["method"] == "DropConnect")
    assert name in find_problems(row | {name: value})


def test_the_loaded_results_are_the_rows():
    results = published_results.load_published_results()
    assert len(results) == len(ROWS)
    for result, row in zip(results, ROWS, strict=True):
        values = [getattr(result, name) for name in COLUMNS]
        assert ["" if value is None else str(value) for value in values] == [row[name] for name in COLUMNS]
    assert {(result.dataset, result.extra_data) for result in results if result.uses_extra_data} == {
        ("CIFAR-10", "ImageNet and JFT"),
        ("CIFAR-100", "ImageNet and JFT"),
        ("STL-10", "400 million image-text pairs"),
        ("SVHN", "SVHN's 531,131 additional images"),
    }


def test_the_history_page_has_the_same_rows():
    text = (ROOT / "docs" / "history.md").read_text(encoding="utf-8").partition("## Five datasets\n")[2]
    lines = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| dataset |")]
    expected = [
        f"| {row['dataset']} | {row['year']} | {row['method']} | {100 * float(row['accuracy']):.4g} "
        f"| {row['extra_data']} | {row['source']} |"
        for row in ROWS
    ]
    assert lines == expected


def test_the_notes_are_on_rows_or_on_what_was_not_verified():
    for note in load_csv(ROOT / "docs" / "history" / "leaderboards.csv"):
        assert (note["dataset"], note["method"]) in REPORTED or note["note"].startswith("not verified"), note

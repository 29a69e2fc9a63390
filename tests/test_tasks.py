"""Every task keeps the contract."""

import pytest

import check_task
from fukami.recipes.deep_convnet import DeepConvNet


def classification(**fields):
    return DeepConvNet(**{"epochs": 4, "dropout": 0.0, **fields})


@pytest.fixture(params=[classification], ids=lambda make: make.__name__)
def make(request):
    return request.param


@pytest.fixture
def inputs(digit_files):
    return sorted(digit_files.rglob("*.png"))[:5]


def test_overfits(make):
    check_task.check_overfits(make)


def test_evaluation_changes_nothing(make):
    check_task.check_evaluation_changes_nothing(make)


def test_saves_and_loads(make, inputs, tmp_path):
    check_task.check_saves_and_loads(make, inputs, tmp_path)


def test_precisions(make, inputs, tmp_path):
    check_task.check_precisions(make, inputs, tmp_path)


def test_broken_input(make, inputs, tmp_path):
    check_task.check_broken_input(make, inputs, tmp_path)


def test_two_processes(make, tmp_path):
    check_task.check_two_processes(make, tmp_path)


def test_killed_and_resumed(make, tmp_path):
    check_task.check_killed_and_resumed(make, tmp_path)

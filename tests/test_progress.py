"""Tests of the progress bars, which only a terminal shows."""

import sys

import pytest

from fukami.progress import ProgressBar


@pytest.mark.parametrize("is_terminal", [True, False])
def test_only_a_terminal_shows_a_bar(is_terminal, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    with ProgressBar("checking", 8) as bar:
        for _ in range(4):
            bar.update()
    out, err = capsys.readouterr()
    assert out == ""
    assert ("checking   0% |" in err) == is_terminal
    assert ("checking  50% |██████████          | 4/8 00:00" in err) == is_terminal
    assert is_terminal or err == ""


def test_training_in_a_terminal_shows_the_loss_and_the_remaining_time(fukami, monkeypatch):
    """Evaluations are printed above the bar, without the remaining time that the bar shows."""
    arguments = ("--data", "digits", "--epochs", "1", "--widths", "4", "4", "4", "4", "4", "4", "--hidden", "8")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    result = fukami("train", "deep-convnet", *arguments, "--out", "shown")
    assert result.status == 0, result.err
    assert "epoch 1/1  step 14/14 100% |████████████| 00:00, loss" in result.err
    (line,) = [line for line in result.err.splitlines() if "|  accuracy" in line]
    assert "left" not in line
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    result = fukami("train", "deep-convnet", *arguments, "--out", "plain")
    assert "100% |" not in result.err
    assert "0:00 left  |  accuracy" in result.err

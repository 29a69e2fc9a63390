"""Tests of the bundled runs of AlphaGo Zero: they have the results of their cards."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fukami.engine import run_folder
from fukami.engine.load_run import load_task
from fukami.self_play.connect_four_positions import load_positions
from fukami.self_play.evaluation import MatchEvaluation, compute_optimal_fraction

RUNS = sorted(path.name for path in run_folder.BUNDLED_WEIGHTS_DIR.glob("alphago-zero-*"))
MAX_BYTES = 4e6  # of all runs


def load_card(name):
    return json.loads((run_folder.BUNDLED_WEIGHTS_DIR / name / "recipe.json").read_text())["card"]


def test_weights_are_small_and_in_float16():
    paths = [run_folder.BUNDLED_WEIGHTS_DIR / name / "weights.safetensors" for name in RUNS]
    assert sum(path.stat().st_size for path in paths) < MAX_BYTES
    assert {value.dtype for path in paths for value in load_file(path).values()} <= {torch.float16, torch.int64}


@pytest.mark.parametrize("simulations", [0, pytest.param(64, marks=pytest.mark.slow)])
def test_connect_four_plays_as_many_optimal_moves_as_its_card_states(simulations):
    expected = load_card("alphago-zero-connect4")["test"]["sensible"][str(simulations)]
    task = load_task("alphago-zero-connect4", device="cpu", precision="float32")
    states, optimal = load_positions("test", "sensible")
    assert len(states) == 1000
    with task.evaluation_mode():
        fraction = compute_optimal_fraction(task, states, optimal, simulations)
    assert fraction == pytest.approx(expected, abs=0.005)
    assert fraction > np.array(optimal).mean() + 0.2  # of random moves


@pytest.mark.slow
def test_go_wins_most_games_against_gnugo():
    """The card states 181 of 200; with that probability, fewer than 12 wins of 16 games are one case in 72."""
    if shutil.which("gnugo") is None:
        pytest.skip("GNU Go is not installed")
    card = load_card("alphago-zero-go7")["test"]
    assert (card["score"], card["count"], card["simulations"]) == (0.905, 200, 64)
    task = load_task("alphago-zero-go7", device="cpu", precision="float32")
    with task.evaluation_mode():
        results = MatchEvaluation("gnugo", 16, seed=7).run(task)
    assert results.compute_metrics()["wins"] >= 12


def test_positions_are_predicted_by_the_name_of_the_run(fukami, tmp_path):
    (tmp_path / "positions.txt").write_text("xxx.ooo" + "." * 35 + "\n" + "." * 42 + "\n")
    win, first = fukami("predict", "alphago-zero-connect4", "positions.txt").json
    assert (win["move"], win["value"]) == ("4", 1.0)
    assert first["move"] == "4"  # the only first move that wins
    assert first["value"] > 0
    assert first["simulations"] == 64

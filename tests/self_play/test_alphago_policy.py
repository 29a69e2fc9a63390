"""Tests of AlphaGo's first stage: games as training data, their split, the loss, metrics, training and prediction."""

import json
import logging
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import top_k_accuracy_score
from torch.nn import functional as F

import check_task
import fukami as package
from fukami import Error, UsageError
from fukami.engine import run_record
from fukami.engine.load_run import load_task
from fukami.engine.runtime import Runtime
from fukami.self_play import sgf
from fukami.self_play.alphago_policy import AlphaGoPolicy
from fukami.self_play.go import Go
from fukami.self_play.match import GameRecord
from fukami.self_play.players import SearchPlayer
from fukami.self_play.policy_data import PolicyBatch, PositionLoader
from fukami.self_play.policy_games import read_games
from fukami.self_play.policy_task import PolicyResults, compare_predictions, find_eyes
from fukami.self_play.positions import read_positions

CPU = {"device": "cpu", "precision": "float32"}
SMALL = {"size": 5, "num_blocks": 1, "num_channels": 8, "batch_size": 16, "test_names": ("Eve",), "val_fraction": 0.2}


def play_random_moves(game, count, seed):
    """Play random moves, without passes, and return them."""
    rng, state, moves = np.random.default_rng(seed), game.build_initial_state()[None], []
    for _ in range(count):
        legal = np.flatnonzero(game.legal_moves(state)[0, :-1])
        if not len(legal):
            break
        moves.append(int(rng.choice(legal)))
        state = game.play(state, np.array(moves[-1:]))
    return moves


def write_game(path, size, moves, properties="PB[Ann]PW[Bob]RE[B+R]", colors="BW"):
    """Write a game with alternating moves; a point is a column and a row from the top."""
    points = [
        "" if move == size * size else f"{chr(97 + move % size)}{chr(97 + size - 1 - move // size)}" for move in moves
    ]
    nodes = "".join(f";{colors[number % 2]}[{point}]" for number, point in enumerate(points))
    path.write_text(f"(;GM[1]FF[4]SZ[{size}]{properties}{nodes})")


@pytest.fixture(scope="module")
def games(tmp_path_factory):
    """Folder of 30 games on 5×5, three of them of Eve."""
    folder, game = tmp_path_factory.mktemp("games"), Go(5)
    for seed in range(30):
        white, result = ("Eve" if seed % 10 == 4 else "Bob"), "BW"[seed % 2]
        moves = play_random_moves(game, 14 + seed % 5, seed)
        write_game(folder / f"{seed:02d}.sgf", 5, moves, f"PB[Ann]PW[{white}]RE[{result}+R]")
    return folder


@pytest.fixture
def make(games):
    return lambda **fields: AlphaGoPolicy(**SMALL | {"data": str(games)} | fields)


@pytest.fixture(scope="module")
def run(games, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "policy"
    with pytest.MonkeyPatch.context() as patch:
        check_task.disable_reports(patch)
        package.train(AlphaGoPolicy(**SMALL, data=str(games), epochs=2), folder, **CPU)
    return folder


def build_task(recipe):
    torch.manual_seed(0)
    task = recipe.build_task(())
    task.setup(Runtime.start(**CPU))
    task.prepare_training()
    return task


def list_names(loader):
    return {loader.games.names[index] for index in loader.indices}


# ---- games ----------------------------------------------------------------------------------------------------------


def test_positions_equal_those_of_the_replayed_files(games):
    """The planes, moves and results of all positions, without symmetries."""
    go = Go(5)
    data = read_games(games, go, (), 0)
    loader = PositionLoader(data, np.arange(len(data.names)), batch_size=64)
    batches = [batch._asdict() for batch in loader]
    columns = {name: torch.cat([batch[name] for batch in batches]).numpy() for name in batches[0]}
    row = 0
    for path in sorted(games.iterdir()):
        record = sgf.read_game(path.read_bytes(), path.name)
        states = sgf.replay(go, record, path.name)[:-1]
        part = slice(row, row + len(states))
        assert np.array_equal(columns["planes"][part], go.planes(states))
        assert columns["moves"][part].tolist() == [move for _, move in record.moves]
        signs = [1 if player == 0 else -1 for player, _ in record.moves]
        assert columns["values"][part].tolist() == [record.result * sign for sign in signs]
        row += len(states)
    assert row == len(columns["moves"]) == len(loader.targets)


def test_moves_of_one_color_in_a_row_are_no_passes(tmp_path):
    """The second game has a pass and another move of the same color, which an inserted pass would end."""
    for name, moves in (("a", ";B[aa];B[bb];W[cc];B[dd]"), ("b", ";B[];B[dd];W[cc];B[aa];W[bb]")):
        (tmp_path / f"{name}.sgf").write_text(f"(;SZ[5]RE[B+1]{moves})")
    go = Go(5)
    data = read_games(tmp_path, go, (), 0)
    loader = PositionLoader(data, np.arange(2), batch_size=16)
    (batch,) = list(loader)
    expected = np.concatenate([
        sgf.replay(go, sgf.read_game((tmp_path / f"{name}.sgf").read_bytes(), name), name)[:-1] for name in "ab"
    ])  # fmt: skip
    assert np.array_equal(batch.planes.numpy(), go.planes(expected))


def test_a_process_may_have_no_position_of_the_last_batch(games):
    """Two processes and a batch of one position."""
    data = read_games(games, Go(5), (), 0)
    loader = PositionLoader(data, np.arange(1), batch_size=16)
    batch = loader.load(np.zeros(0, np.int64), np.zeros(0, np.int64))
    assert batch.planes.shape[0] == len(batch.moves) == 0


def test_symmetries_transform_planes_and_moves(games):
    """A transformed position is that of the transformed game, and its move is the transformed move."""
    go = Go(5)
    data = read_games(games, go, (), 0)
    loader = PositionLoader(data, np.arange(1), batch_size=64, seed=0)
    record = sgf.read_game((games / "00.sgf").read_bytes(), "00.sgf")
    rows = np.arange(len(record.moves))
    kinds = set()
    for symmetry, cells in enumerate(go.symmetries().cells):
        batch = loader.load(rows, np.full(len(rows), symmetry))
        state = go.build_initial_state()[None]
        for row, (_, move) in enumerate(record.moves):
            one_hot = np.eye(25)[move]
            transformed = int(one_hot[cells].argmax())
            assert np.array_equal(batch.planes[row : row + 1].numpy(), go.planes(state))
            assert batch.moves[row] == transformed
            state = go.play(state, np.array([transformed]))
        kinds.add(batch.moves.numpy().tobytes())
    assert len(kinds) == 8


def test_training_batches_have_random_symmetries_and_each_position_once(make):
    loader = make().load_data().train
    plain = PositionLoader(loader.games, loader.indices, batch_size=len(loader.targets))
    (positions,) = plain
    counts = np.zeros(len(positions.moves), int)
    num_transformed = 0
    for batch in loader:
        assert len(batch.moves) == 16
        for planes, move in zip(batch.planes, batch.moves, strict=True):
            transformed = [torch.rot90(side, turns, (1, 2)) for side in (planes, planes.mT) for turns in range(4)]
            equal = torch.stack([(positions.planes == each).flatten(1).all(1) for each in transformed])
            assert equal.any()
            counts[equal.any(0)] += 1
            num_transformed += not equal[0].any()
            assert planes[:2].sum(0).flatten()[move] == 0  # the point is empty
    assert num_transformed > len(loader) * 16 / 2
    assert len(loader) == len(counts) // 16
    assert counts.min() >= 0
    assert (counts > 0).mean() > 0.9  # the last incomplete batch is dropped


def test_order_depends_on_seed_and_epoch(make):
    first, same = make().load_data().train, make().load_data().train
    batches, again = list(first), list(same)
    for one, other in zip(batches, again, strict=True):
        for values, expected in zip(one, other, strict=True):
            torch.testing.assert_close(values, expected, rtol=0, atol=0, equal_nan=True)
    assert not torch.equal(next(iter(first)).moves, batches[0].moves)  # the second epoch
    assert not torch.equal(next(iter(make(seed=1).load_data().train)).moves, batches[0].moves)


def test_moves_are_legal_without_a_pass_in_the_file(tmp_path):
    """White passes before Black's second move: a position, but no move to learn; recorded passes are learned."""
    (tmp_path / "a.sgf").write_text("(;SZ[5]RE[W+2];B[cc];B[bb];W[])")
    data = read_games(tmp_path, Go(5), (), 0)
    assert data.moves.tolist() == [12, 25, 16, 25]
    (batch,) = PositionLoader(data, np.arange(1), batch_size=9)
    assert batch.moves.tolist() == [12, 16, 25]
    assert batch.values.tolist() == [-1, -1, 1]
    assert batch.planes[:, 13, 0, 0].tolist() == [0, 1, 0]  # the last move is a pass


def test_files_without_moves_are_counted(tmp_path, caplog):
    (tmp_path / "a.sgf").write_text("(;SZ[5]AB[bb][dd]AW[cc])")
    with pytest.raises(Error, match=r"none of the 1 SGF files in .* is a game on 5×5; they have no moves"):
        read_games(tmp_path, Go(5), (), 0)
    (tmp_path / "b.sgf").write_text("(;SZ[9];B[cc];W[cd])")
    with pytest.raises(Error, match=r"none of the 2 SGF files in .*; set --size"):
        read_games(tmp_path, Go(5), (), 0)
    (tmp_path / "b.sgf").write_text("(;SZ[5];B[cc];W[cd])")
    assert len(read_games(tmp_path, Go(5), (), 0).names) == 1
    assert "1 of 2 games are skipped: they have no moves" in caplog.text


def test_handicap_games_begin_with_white(tmp_path):
    (tmp_path / "a.sgf").write_text("(;SZ[5]HA[2]AB[bb][dd]RE[0];W[cc];B[cd])")
    (tmp_path / "b.sgf").write_text("(;SZ[5];B[cc];W[cd])")
    data = read_games(tmp_path, Go(5), (), 0)
    (batch,) = PositionLoader(data, np.arange(2), batch_size=9)
    assert batch.planes[0, 1].sum() == 2  # two stones of the opponent
    assert batch.values[:2].tolist() == [0, 0]
    assert batch.values[2:].isnan().all()
    assert batch.planes[2, :2].sum() == 0


# ---- split ----------------------------------------------------------------------------------------------------------


def test_split_is_by_game_and_stable(make, games, tmp_path):
    data = make().load_data()
    parts = [list_names(loader) for loader in (data.train, data.val, data.test)]
    assert set.union(*parts) == {path.name for path in games.iterdir()}
    assert sum(map(len, parts)) == 30
    assert all(len(part) > 1 for part in parts)
    for number, path in enumerate(sorted(games.iterdir(), reverse=True)):  # other names, and a third of the games
        if number % 3 == 0:
            (tmp_path / f"renamed-{number:02d}-{path.name}").write_bytes(path.read_bytes())
    other = make(data=str(tmp_path), seed=5).load_data()
    for part, loader in zip(parts, (other.train, other.val, other.test), strict=True):
        assert {name.rpartition("-")[2] for name in list_names(loader)} <= part
    assert not set(other.train.indices) & set(other.test.indices)


def test_games_of_the_test_players_are_never_learned(make):
    for val_fraction in (0.0, 0.2, 0.4):
        data = make(val_fraction=val_fraction, test_names=(" EVE ",)).load_data()
        names = {"04.sgf", "14.sgf", "24.sgf"}
        assert not names & list_names(data.train)
        assert names <= list_names(data.test)
        assert data.test.games.is_test_player.sum() == 3
        assert bool(data.val) == (val_fraction > 0)
        assert not data.val or not names & list_names(data.val)
    assert make(val_fraction=0.0, test_names=()).load_data().test == ()
    assert not make(val_fraction=0.0, test_names=("Ev", "Even")).load_data().test  # the whole name counts


def test_unknown_players_have_an_empty_name(tmp_path, make):
    for seed, players in enumerate(("", "PB[Ann]PW[Bob]", "PB[Ann]")):
        write_game(tmp_path / f"{seed}.sgf", 5, play_random_moves(Go(5), 9, seed), players)
    data = make(data=str(tmp_path), val_fraction=0.0, test_names=("",)).load_data()
    assert list_names(data.train) == {"1.sgf"}
    assert list_names(data.test) == {"0.sgf", "2.sgf"}


def test_a_duplicate_is_read_once_and_belongs_to_its_test_player(tmp_path, make, caplog):
    """A file of the same game by other names, or without its end, does not leak into the training."""
    for seed in range(6):
        write_game(tmp_path / f"{seed}.sgf", 9, play_random_moves(Go(9), 70, seed))
    moves = play_random_moves(Go(9), 70, 3)
    write_game(tmp_path / "copy.sgf", 9, moves[:65], "PB[Carl]PW[eve]")
    recipe = make(data=str(tmp_path), size=9, val_fraction=0.0, test_names=("Eve",))
    data = recipe.load_data()
    assert list_names(data.test) == {"3.sgf"}
    assert list_names(data.train) == {"0.sgf", "1.sgf", "2.sgf", "4.sgf", "5.sgf"}
    assert "1 of 7 games are skipped: duplicates" in caplog.text


# ---- broken files ---------------------------------------------------------------------------------------------------


def test_broken_files_are_named_and_counted(tmp_path, make, caplog):
    for seed in range(4):
        write_game(tmp_path / f"{seed}.sgf", 5, play_random_moves(Go(5), 9, seed))
    write_game(tmp_path / "large.sgf", 9, [0, 1])
    (tmp_path / "text.sgf").write_text("no game")
    (tmp_path / "surrounded.sgf").write_text("(;SZ[5]AB[aa]AW[ab][ba];B[cc])")
    write_game(tmp_path / "illegal.sgf", 5, [3, 4, 5, 4, 6])
    recipe = make(data=str(tmp_path), val_fraction=0.0, max_unreadable=2)
    with caplog.at_level(logging.WARNING):
        train = recipe.load_data().train
    assert list_names(train) == {"0.sgf", "1.sgf", "2.sgf", "3.sgf", "illegal.sgf"}
    assert len(train.targets) == 4 * 9 + 3
    assert "2 of 8 games are skipped:\n  surrounded.sgf: the group of A5 has no liberties" in caplog.text
    assert "text.sgf is not a valid game" in caplog.text
    assert "1 of 8 games are skipped: not on 5×5" in caplog.text
    assert "1 of 8 games have an illegal move" in caplog.text
    assert "illegal.sgf, move 4" in caplog.text
    with pytest.raises(Error, match=r"2 games cannot be read, and --max-unreadable allows 1; (.|\n)*surrounded\.sgf"):
        make(data=str(tmp_path), max_unreadable=1).load_data()


def test_errors_of_the_data(tmp_path, make, games):
    with pytest.raises(UsageError, match="specify a folder, or a zip or tar archive, of SGF files with --data"):
        make(data="").load_data()
    with pytest.raises(UsageError, match=r"there is no .*missing; specify a folder of SGF files"):
        make(data=str(tmp_path / "missing")).load_data()
    with pytest.raises(Error, match="contains no SGF file"):
        make(data=str(tmp_path)).load_data()
    with pytest.raises(Error, match=r"none of the 30 SGF files in .* is a game on 19×19; set --size"):
        make(size=19).load_data()
    with pytest.raises(Error, match=r"no two positions of the 30 games .* are left for training.*shorten --test-names"):
        make(test_names=("Ann",)).load_data()
    with pytest.raises(UsageError, match="size should be between 2 and 19"):
        make(size=20)


# ---- training -------------------------------------------------------------------------------------------------------


def test_overfits(make):
    check_task.check_overfits(make)


def test_loss_is_the_cross_entropy_and_the_error_of_known_results(make):
    task = build_task(make(value_weight=0.3))
    batch = next(iter(make(value_positions=4).load_data().train))
    batch.values[3] = torch.nan
    prediction = task.model(batch.planes)
    loss, metrics = task.compute_loss(batch)
    known = [row for row in range(16) if not np.isnan(batch.values[row].item())]
    assert 0 < len(known) < 15
    value_loss = torch.stack([(prediction.value[row] - batch.values[row]) ** 2 for row in known]).mean()
    expected = F.nll_loss(prediction.policy.log_softmax(1), batch.moves) + 0.3 * value_loss
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(metrics["value_loss"], value_loss.detach())
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in task.model.parameters())
    unknown = batch._replace(values=torch.full((16,), torch.nan))
    assert task.compute_loss(unknown)[1]["value_loss"] == 0


def test_the_value_loss_of_two_processes_is_that_of_one(make, monkeypatch):
    """The parts have different numbers of known results; their mean is the loss of the whole batch."""
    task = build_task(make(value_weight=0.3))
    torch.manual_seed(1)
    for parameter in task.model.heads.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    task.model.eval()
    batch = next(iter(make().load_data().train))
    batch.values[:6] = torch.nan
    whole = task.compute_loss(batch)[0]
    total = (~batch.values.isnan()).sum().float()
    monkeypatch.setattr(type(task.runtime), "all_reduce_sum", lambda self, value: total)
    task.runtime = replace(task.runtime, world_size=2)
    parts = [type(batch)(*(column[part] for column in batch)) for part in (slice(0, 8), slice(8, 16))]
    torch.testing.assert_close(sum(task.compute_loss(part)[0] for part in parts) / 2, whole)


def test_results_of_a_few_positions_per_game_are_learned(make):
    loader = make(value_positions=3).load_data().train
    counts = np.zeros(30, int)
    np.add.at(counts, loader.owners, loader.is_value_position)
    assert counts[loader.indices].tolist() == [3] * len(loader.indices)
    assert make(value_positions=0).load_data().train.is_value_position.all()
    assert len({tuple(loader.numbers[loader.is_value_position & (loader.owners == i)]) for i in loader.indices}) > 5


@pytest.mark.slow
def test_killed_and_resumed_run_equals_an_uninterrupted_one(make, tmp_path):
    check_task.check_killed_and_resumed(lambda: make(epochs=4), tmp_path, kills=1)


def test_evaluation_changes_nothing(make):
    check_task.check_evaluation_changes_nothing(make)


# ---- metrics --------------------------------------------------------------------------------------------------------


def test_metrics_equal_scikit_learns(make):
    recipe = make()
    data, task = recipe.load_data(), build_task(recipe)
    for _ in range(3):
        for batch in data.train:
            task.schedule(0.5)
            task.step(batch)
    metrics = task.evaluate(data.test)
    (batch,) = PositionLoader(data.test.games, data.test.indices, batch_size=1000)
    with torch.inference_mode(), task.evaluation_mode():
        prediction = task.model(batch.planes)
    for is_test_player, values in ((False, metrics), (True, metrics["test_players"])):
        rows = batch.is_test_player == is_test_player
        logits, moves, labels = prediction.policy[rows], batch.moves[rows], np.arange(26)
        value, result = prediction.value[rows].numpy(), batch.values[rows].numpy()
        assert values["count"] == len(moves)
        assert values["top1"] == pytest.approx(top_k_accuracy_score(moves, logits, k=1, labels=labels))
        assert values["top5"] == pytest.approx(top_k_accuracy_score(moves, logits, k=5, labels=labels))
        assert 0 < values["top1"] < values["top5"] < 1
        assert values["cross_entropy"] == pytest.approx(F.cross_entropy(logits, moves).item(), rel=1e-4)
        assert values["value_mse"] == pytest.approx(np.square(value - result).mean(), rel=1e-4)
        constants = np.linspace(-1, 1, 2001)
        errors = np.square(constants[:, None] - result).mean(1)
        assert values["constant_mse"] == pytest.approx(errors.min(), abs=1e-6)
        assert values["winner_accuracy"] == pytest.approx(((value > 0) == (result > 0)).mean())
    assert next(iter(metrics)) == "top1"


def test_a_network_that_diverged_is_never_right():
    nan, zeros = np.full((2, 26), np.nan, np.float32), np.zeros(2, np.float32)
    moves, unknown = torch.tensor([0, 3]), torch.tensor([torch.nan] * 2)
    batch = PolicyBatch(torch.zeros(0), moves, unknown, torch.ones(2), torch.zeros(2) > 0)
    for logits in (nan, np.zeros((2, 26), np.float32)):
        metrics = PolicyResults(*compare_predictions(logits, zeros, batch)).compute_metrics()
        assert metrics["top1"] == metrics["top5"] == 0
        assert "value_mse" not in metrics


def test_value_metrics_with_draws_and_unknown_results():
    values, results = np.float32([0.5, -0.5, 0.5, 0.2, 0.9]), np.float32([1, -1, -1, 0, np.nan])
    ones, zeros = np.ones(5, np.float32), np.zeros(5, np.float32)
    metrics = PolicyResults(ones, zeros, values, results, ones, zeros).compute_metrics()
    assert metrics["count"] == 5
    assert metrics["value_mse"] == pytest.approx((0.25 + 0.25 + 2.25 + 0.04) / 4)
    assert metrics["constant_mse"] == pytest.approx(np.var([1, -1, -1, 0]))
    assert metrics["winner_accuracy"] == pytest.approx(2 / 3)


def test_figure_shows_both_kinds_of_games(make):
    recipe = make()
    data, task = recipe.load_data(), build_task(recipe)
    ((title, figure),) = task.plot_evaluation(data.test)
    accuracy, value = figure.axes
    assert title == "Accuracy and value by move number"
    assert len(accuracy.lines) == 2
    assert len(value.lines) == 4
    metrics = task.evaluate(data.test)  # all moves are in the first bin
    assert accuracy.lines[0].get_ydata()[0] == pytest.approx(100 * metrics["top1"])
    assert value.lines[2].get_ydata()[0] == pytest.approx(metrics["test_players"]["value_mse"])


# ---- prediction and play --------------------------------------------------------------------------------------------


def test_loaded_run_has_the_metrics_of_the_training(run, games):
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    task = load_task(run, device="cpu")
    recipe, _ = run_record.read_recipe(run)
    metrics = task.evaluate(recipe.load_eval_data().test)
    assert last["split"] == "test"
    assert {name: last[name] for name in metrics} == metrics
    assert last["test_players"]["count"] > 0


def test_evaluation_on_other_games_uses_all_of_them(make, games, tmp_path):
    for path in list(games.iterdir())[:5]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    other = make().with_data(str(tmp_path))
    assert list_names(other.load_eval_data().test) == {path.name for path in tmp_path.iterdir()}


def test_prediction_ranks_the_moves_of_a_game(run, games):
    task = load_task(run, device="cpu")
    path = games / "07.sgf"
    predictions = task.predict([path])
    assert json.loads(json.dumps(predictions)) == predictions
    positions = [position for position in read_positions(path, task.game) if position.played is not None]
    with torch.inference_mode(), task.evaluation_mode():
        logits = task.model(torch.from_numpy(task.game.planes(np.stack([p.state for p in positions])))).policy
    legal = torch.from_numpy(task.game.legal_moves(np.stack([position.state for position in positions])))
    order = logits.masked_fill(~legal, -torch.inf).argsort(1, descending=True)
    assert len(positions) > 10
    for number, (position, prediction) in enumerate(zip(positions, predictions, strict=False)):
        assert prediction["file"] == str(path)
        assert prediction["line"] == number + 1
        assert prediction["simulations"] == 0
        assert prediction["played"] == task.game.format_move(position.played)
        assert prediction["move"] == task.game.format_move(int(order[number, 0]))
        assert prediction["rank"] == 1 + order[number].tolist().index(position.played)
    assert len({prediction.get("rank") for prediction in predictions}) > 3


def test_search_uses_puct(run):
    task = load_task(run, device="cpu")
    assert task.search_options.c_puct == 5.0
    state = task.game.build_initial_state()[None]
    result = task.search(state, 30)
    assert result.visits.sum() == 30
    assert result.visits[0, result.moves[0]] == result.visits.max()
    assert (result.visits > 0).sum() > 16  # more moves than sequential halving considers


def parse_stones(*rows):
    """Parse rows of a board, the upper one first: x Black, o White."""
    size = len(rows)
    points = {
        (size - 1 - row) * size + column: stone for row, line in enumerate(rows) for column, stone in enumerate(line)
    }
    return [[point for point, stone in points.items() if stone == color] for color in "xo"]


@pytest.mark.parametrize(
    ("rows", "eyes"),
    [
        ((".x...", "xx...", ".....", ".....", "....."), {"A5"}),
        ((".x...", "xo...", ".....", ".....", "....."), set()),  # a false eye in the corner
        (("x.x..", "xxx..", ".....", "..x..", "....."), {"B5"}),
        (("x.x..", "oxx..", ".....", ".....", "....."), set()),  # a false eye on the edge
        ((".....", "oxx..", "x.x..", "xxx..", "....."), {"B3"}),
        ((".....", "oxx..", "x.x..", "xxo..", "....."), set()),  # two stones of the opponent on the diagonals
        ((".....", "xxx..", "x.o..", "xxx..", "....."), set()),
    ],
)
def test_eyes(rows, eyes):
    go = Go(5)
    for colors in ("black", "white"):
        own, other = parse_stones(*rows)
        stones = (own, other) if colors == "black" else (other, own)
        state = go.place_stones(*stones, player=int(colors == "white"))
        mask = find_eyes(go.planes(state[None]))[0]
        assert {go.format_move(point) for point in np.flatnonzero(mask)} == eyes


def test_own_eyes_are_not_filled(make):
    """Where only eyes are left, the network passes, although it has learned no pass."""
    task = build_task(make())
    black, _ = parse_stones("x.xxx", "xxxxx", "xxxxx", "xxxxx", "xxx.x")
    state = task.game.place_stones(black)
    for simulations in (0, 8):
        with task.evaluation_mode():
            result = task.search(state[None], simulations)
        assert task.game.format_move(result.moves[0]) == "pass"
        assert result.policies[0, :-1].max() < 1e-6


@pytest.mark.parametrize("simulations", [0, 4])
def test_a_pass_that_wins_the_game_is_played(make, simulations):
    task = build_task(make())
    torch.nn.init.constant_(task.ema_model.heads.pass_logit.bias, -100.0)
    black, white = parse_stones(".xo..", ".xo..", ".xo..", ".xo..", ".xo..")
    for komi, winner in ((3.5, 1), (-9.5, 0)):  # White has 15 points, Black 10
        task.game.komi = komi
        state = task.game.place_stones(black, white, 1 - winner)[None]
        after_pass = task.game.play(state, np.array([25]))
        with task.evaluation_mode():
            assert task.search(state, simulations).moves[0] != 25  # the opponent has not passed
            result = task.search(after_pass, simulations)
            assert (result.moves[0], result.values[0]) == (25, 1)
            if simulations:
                assert result.policies[0].tolist() == [0.0] * 25 + [1.0]
            record = GameRecord(task.game)  # the only game in progress, whose subtree a player reuses
            record.states = [after_pass[0]]
            assert SearchPlayer(task, simulations).choose_moves([record]) == [25]
            loser = task.game.place_stones(black, white, winner)[None]
            assert task.search(task.game.play(loser, np.array([25])), simulations).moves[0] != 25


# ---- real games -----------------------------------------------------------------------------------------------------


@pytest.fixture
def real_games(tmp_path):
    """Folder of a few of the real games, among them two of AlphaGo."""
    import zipfile

    path = Path(os.environ.get("FUKAMI_DATA", "")) / "go-games.zip"
    if not path.is_file():
        pytest.skip("needs go-games.zip in FUKAMI_DATA")
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        chosen = [name for name in names if name.endswith(".sgf")][:400:20]
        for name in {*chosen, *(name for name in names if name.endswith(("/00180.sgf", "/07177.sgf")))}:
            (tmp_path / Path(name).name).write_bytes(archive.read(name))
    return tmp_path


def test_real_games(real_games):
    recipe = AlphaGoPolicy(data=str(real_games), val_fraction=0.0, num_blocks=1, num_channels=8)
    data = recipe.load_data()
    assert {"00180.sgf", "07177.sgf"} <= list_names(data.test)
    assert not {"00180.sgf", "07177.sgf"} & list_names(data.train)
    assert len(data.train.targets) > 100 * len(data.train.indices)
    (number,) = [index for index in data.test.indices if data.test.games.names[index] == "00180.sgf"]
    start = data.test.games.starts[number]
    assert Go(19).format_move(int(data.test.games.moves[start + 36])) == "P10"  # move 37
    batch = next(iter(data.train))
    assert batch.planes.shape == (128, 17, 19, 19)
    assert batch.planes[:, :2].sum(1).flatten(1).gather(1, batch.moves[:, None]).sum() == 0

"""Tests of AlphaGo Zero: replay window, value targets, loss, gating, training, resumed training and games of users."""

import json
import shutil
import signal
import socket
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import check_task
import fukami as package
from fukami import Error, UsageError
from fukami.engine import checkpoint
from fukami.engine.recipe import build_train_command
from fukami.engine.runtime import Runtime
from fukami.models.alphago import alphago_zero
from fukami.quantization.winograd import WinogradConv2d
from fukami.self_play import positions as position_files
from fukami.self_play import replay, tic_tac_toe
from fukami.self_play.alphago_zero import AlphaGoZero
from fukami.self_play.collector import BoardBatch, GameGroup, SelfPlayOptions
from fukami.self_play.game import Symmetries
from fukami.self_play.games import make_game
from fukami.self_play.go import Go
from fukami.self_play.replay import Positions, ReplayWindow
from fukami.self_play.search import SearchOptions
from fukami.self_play.tic_tac_toe import TicTacToe

CPU = {"device": "cpu", "precision": "float32"}
SMALL = {
    "game": ("tic-tac-toe",), "positions": 900, "learning_starts": 100, "num_games": 16, "batch_size": 32,
    "self_play_simulations": 6, "simulations": 8, "num_blocks": 1, "num_channels": 8, "eval_every": 300,
    "eval_games": 4,
}  # fmt: skip
GAME_FILE = tic_tac_toe.__file__
SMALL_RESERVE = {"fukami.self_play.replay.MIN_RESERVE": 60}  # slots are used again


def make(**fields):
    return AlphaGoZero(**SMALL | fields)


@pytest.fixture
def build_task():
    """Function that builds an untrained task and its data."""

    def build(**fields):
        recipe = make(**fields)
        data = recipe.load_data()
        torch.manual_seed(0)
        task = recipe.build_task(())
        runtime = Runtime.start(**CPU)
        data.train.setup(runtime)
        task.setup(runtime)
        task.prepare_training()
        return task, data.train

    return build


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder of a small run of Connect Four."""
    folder = tmp_path_factory.mktemp("runs") / "connect4"
    with pytest.MonkeyPatch.context() as patch:
        check_task.disable_reports(patch)
        patch.setattr("fukami.self_play.evaluation.OptimalMoves.run", lambda self, task: FakeResults())
        package.train(make(game=("connect4",), random_opening_moves=None), folder, **CPU)
    return folder


class FakeResults:
    def compute_metrics(self):
        return {"optimal": 0.5, "count": 1}


def play_random_states(game, count, seed=0):
    """Play random games, and return positions that are not over."""
    rng, states = np.random.default_rng(seed), []
    while len(states) < count:
        state = game.build_initial_state()[None]
        while np.isnan(game.outcome(state)[0]):
            states.append(state[0])
            state = game.play(state, rng.choice(np.flatnonzero(game.legal_moves(state)[0]), 1))
    return np.stack(states[:count])


def build_positions(game, states, seed=0):
    """Build random targets for states."""
    rng = np.random.default_rng(seed)
    policies = rng.dirichlet(np.ones(game.num_moves), len(states)).astype(np.float32)
    values = rng.uniform(-1, 1, len(states)).astype(np.float32)
    return Positions(states, policies, values, np.zeros(0, np.float32), np.zeros((0, 0), np.float32))


# ---- network --------------------------------------------------------------------------------------------------------


def test_network_has_the_papers_tower():
    """Methods, "Neural network architecture": 20 blocks of two convolutions of 256 channels, after one convolution."""
    network = alphago_zero(362, num_planes=17, shape=(19, 19), num_blocks=19)
    tower = sum(p.numel() for module in (network.stem, network.blocks) for p in module.parameters())
    block = 2 * (256 * 256 * 9 + 2 * 256)
    assert tower == 17 * 256 * 9 + 2 * 256 + 19 * block
    small = alphago_zero(7, num_planes=2, shape=(6, 7), num_blocks=1, num_channels=8)
    policy, value = small(torch.zeros(3, 2, 6, 7))
    assert policy.shape == (3, 7)
    assert value.shape == (3,)
    assert (policy == 0).all()  # a new network predicts equal moves and the value 0


def test_one_network_plays_go_on_several_sizes():
    network = alphago_zero(50, num_planes=4, num_blocks=2, num_channels=8, predicts_score=True)
    for size in (5, 7, 9):
        prediction = network(torch.rand(2, 4, size, size))
        assert prediction.policy.shape == (2, size * size + 1)
        assert prediction.owners.shape == (2, size * size)
        assert prediction.value.shape == prediction.score.shape == (2,)


def test_fused_batch_normalization_computes_the_same():
    torch.manual_seed(0)
    network = alphago_zero(7, num_planes=2, shape=(6, 7), num_blocks=2, num_channels=8)
    planes = torch.rand(16, 2, 6, 7)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    for _ in range(3):
        network(planes)
    network.eval()
    with torch.inference_mode():
        for expected, value in zip(network(planes), network.fuse_batch_norm()(planes), strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{"num_moves": 82, "shape": (9, 9)}, {"any_size": True}])
def test_the_noise_of_outcomes_leaves_the_hidden_units_of_the_value_head_in_use(fields):
    """With outcomes that no position predicts, the value should become 0, but not all hidden units, which never learn
    again. Without batch normalization, 0 or 1 of 64 units were left after 150 steps."""
    torch.manual_seed(0)
    network = alphago_zero(num_planes=3, num_blocks=2, num_channels=16, **fields)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(150):
        prediction = network((torch.rand(64, 3, 9, 9) < 0.3).float())
        loss = F.cross_entropy(prediction.policy, torch.randint(81, (64,)))
        loss = loss + F.mse_loss(prediction.value, 2.0 * torch.randint(2, (64,)) - 1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    hidden: list[torch.Tensor] = []
    network.eval().heads.hidden.register_forward_hook(lambda _module, _inputs, outputs: hidden.append(outputs))
    network((torch.rand(500, 3, 9, 9) < 0.3).float())
    assert ((hidden[0] > 0).float().mean(0) > 0.05).sum() > 48


@pytest.mark.parametrize(
    ("capability", "precision", "num_replaced"),
    [("AVX2", "float32", 4), ("AVX512", "float32", 0), ("AVX2", "bfloat16", 0)],  # not the first, of two channels
)
def test_the_search_computes_the_network_faster_with_equal_results(capability, precision, num_replaced, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    recipe = make(game=("connect4",), num_channels=16, num_blocks=2)
    torch.manual_seed(0)
    task = recipe.build_task(())
    for parameter in task.ema_model.heads.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    task.setup(Runtime.start("cpu", precision, num_threads=1))
    states = play_random_states(task.game, 40)
    planes = task.game.planes(states)
    with task.evaluation_mode(), torch.inference_mode():
        expected = task.ema_model.eval()(torch.from_numpy(planes))
        logits, values = task.build_network_evaluate()(planes)
    tolerance = 1e-4 if precision == "float32" else 0.05
    np.testing.assert_allclose(logits, expected.policy, atol=tolerance)
    np.testing.assert_allclose(values, expected.value, atol=tolerance)
    network = task.prepare_network(task.ema_model)
    replaced = [module for module in network.modules() if isinstance(module, WinogradConv2d)]
    assert len(replaced) == num_replaced


@pytest.mark.parametrize("game", ["go5", "connect4"])
def test_outputs_are_not_rounded_to_bfloat16(game):
    """Otherwise many moves have equal logits."""
    task = make(game=(game,), num_channels=16).build_task(())
    for parameter in task.model.heads.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    states = play_random_states(task.game, 8)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        prediction = task.model.eval()(torch.from_numpy(task.game.planes(states)))
    for outputs in prediction:
        assert outputs.dtype == torch.float32
        assert (outputs != outputs.bfloat16()).float().mean() > 0.9


# ---- replay window --------------------------------------------------------------------------------------------------


def test_targets_of_equal_positions_are_averaged_over_the_symmetries():
    game, window = TicTacToe(), ReplayWindow(TicTacToe(), 100)
    window.allocate()
    symmetries = game.symmetries()
    state = next(s for s in play_random_states(game, 50) if len(np.unique(s[symmetries.cells], axis=0)) == 8)
    order = symmetries.cells[3]
    rotated = state[order]
    policies = np.zeros((2, 9), np.float32)
    policies[0, 0] = 1
    policies[1, symmetries.moves[3].tolist().index(4)] = 1  # the center of the other orientation
    values = np.array([1, 0.5], np.float32)
    empty = np.zeros(0, np.float32), np.zeros((0, 0), np.float32)
    window.add(Positions(np.stack([state, rotated]), policies, values, *empty), 100)
    slots = window.sample(20, np.random.default_rng(0))
    assert set(slots.tolist()) == {1}
    planes, targets = window.load(slots[:8], np.arange(8))
    assert targets.values == pytest.approx([0.75] * 8)
    for index in range(8):
        stones = planes[index, 0].ravel() + 2 * planes[index, 1].ravel()
        match = next(k for k in range(8) if (state[symmetries.cells[k]] == stones).all())
        expected = np.zeros(9)
        expected[0] = expected[4] = 0.5
        np.testing.assert_allclose(targets.policies[index], expected[symmetries.moves[match]])


def test_the_window_moves_and_forgets():
    game, window = TicTacToe(), ReplayWindow(TicTacToe(), 50)
    window.allocate()
    states = np.unique(play_random_states(game, 400), axis=0)
    hashes, _ = window.canonicalize(states)
    _, first = np.unique(hashes, return_index=True)
    states = states[np.sort(first)][:150]
    window.add(build_positions(game, states), 50)
    assert (window.start, window.total) == (100, 150)
    assert set(window.sample(2000, np.random.default_rng(0)).tolist()) == set(range(100, 150))
    window.add(build_positions(game, states[:1]), 50)  # left the window, so it is new
    assert window.arrays["counts"][150] == 1
    window.add(build_positions(game, states[149:]), 50)
    assert window.arrays["counts"][151] == 2
    assert 149 not in window.sample(2000, np.random.default_rng(0))


def test_the_window_is_restored_from_its_files(tmp_path):
    game, one, other = TicTacToe(), *(ReplayWindow(TicTacToe(), 200) for _ in range(2))
    states = play_random_states(game, 500)
    one.open_files(tmp_path / "window")
    one.add(build_positions(game, states), 200)
    total, start, current = one.total, one.start, one.is_current.copy()
    slots = one.sample(50, np.random.default_rng(1))
    one.add(build_positions(game, states[:300], seed=1), 200)  # after the checkpoint
    other.open_files(tmp_path / "window")
    other.restore(total, start)
    assert (other.sample(50, np.random.default_rng(1)) == slots).all()
    in_window = np.arange(start, total) % one.num_slots
    assert (other.is_current[in_window] == current[in_window]).all()
    one.add(build_positions(game, states[300:]), 200)
    other.delete_files()
    assert not (tmp_path / "window").exists()
    third = ReplayWindow(game, 200)
    third.open_files(tmp_path / "window")
    third.restore(total, start)
    with pytest.raises(Error, match="missing or incomplete"):
        third.sample(50, np.random.default_rng(1))


def test_targets_of_equal_positions_are_averaged():
    """The earlier ones count as at most eight: after nine zeros, a one makes 1/9, and another one (8/9 + 1) / 9."""
    game = TicTacToe()
    window = ReplayWindow(game, 100)
    window.allocate()
    positions = build_positions(game, game.build_initial_state()[None])
    for value in (0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1):
        window.add(positions._replace(values=np.array([value], np.float32)), 100)
        slots = window.sample(1, np.random.default_rng(0))
        if value == 1:
            mean = window.load(slots, np.zeros(1, np.int64))[1].values[0]
            assert mean == pytest.approx(1 / 9 if window.total == 10 else 17 / 81)


def test_owners_and_policies_turn_with_the_board():
    """The owner of each point is the color of its stone, and the policy is greatest there, in each orientation."""
    game = Go(5, komi=0.5)
    states = play_random_states(game, 60)
    planes = game.planes(states).reshape(len(states), game.num_planes, -1)
    stones = (planes[:, 0] - planes[:, 1]).astype(np.float32)
    policies = np.concatenate([stones, np.zeros((len(states), 1), np.float32)], 1)
    scores = stones.sum(1)
    window = ReplayWindow(game, 100)
    window.allocate()
    window.add(Positions(states, policies, scores / 25, scores, stones), 100)
    rng = np.random.default_rng(0)
    slots = window.sample(200, rng)
    for orientation in range(len(game.symmetries().cells)):
        turned, loaded = window.load(slots, np.full(200, orientation))
        expected = (turned[:, 0] - turned[:, 1]).reshape(200, -1)
        np.testing.assert_array_equal(loaded.owners, expected)
        np.testing.assert_allclose(loaded.policies[:, :-1], expected, atol=1e-6)
        np.testing.assert_array_equal(loaded.scores, expected.sum(1))


def test_the_window_is_never_larger_than_its_slots_allow(monkeypatch):
    """A window with few slots contains the same targets as one that never reuses a slot."""
    monkeypatch.setattr(replay, "MIN_RESERVE", 20)
    game = TicTacToe()
    small, large = ReplayWindow(game, 100), ReplayWindow(game, 10_000)
    states = play_random_states(game, 2000)
    for window, size in ((small, 10_000), (large, 100)):
        window.allocate()
        for start in range(0, 2000, 10):
            window.add(build_positions(game, states[start : start + 10], seed=start), size)
    assert small.num_slots == 120
    assert (small.start, small.latest) == (large.start, large.latest)
    slots, expected = ([index % window.num_slots for index in window.latest.values()] for window in (small, large))
    for name in ("states", "policies", "values", "counts"):
        np.testing.assert_array_equal(small.arrays[name][slots], large.arrays[name][expected])


def test_a_window_whose_positions_were_overwritten_is_not_restored(tmp_path, monkeypatch):
    monkeypatch.setattr(replay, "MIN_RESERVE", 20)
    game, one, other = TicTacToe(), *(ReplayWindow(TicTacToe(), 100) for _ in range(2))
    positions = build_positions(game, play_random_states(game, 10))
    one.open_files(tmp_path)
    for _ in range(15):
        one.add(positions, 100)
    total, start = one.total, one.start
    for _ in range(2):
        one.add(positions, 100)
    other.open_files(tmp_path)
    other.restore(total, start)
    one.add(positions, 100)
    with pytest.raises(Error, match="does not contain the positions of the last checkpoint"):
        other.restore(total, start)


@pytest.mark.parametrize(("total", "start"), [(2**62, 0), (5, -1), (5, 6), (102, 1)])
def test_an_invalid_window_is_not_restored(total, start):
    window = ReplayWindow(TicTacToe(), 100)
    window.allocate()
    with pytest.raises(Error, match="the checkpoint contains an invalid replay window"):
        window.restore(total, start)


@pytest.mark.parametrize(("byte", "value"), [(0, 0), (0, 3), (3, 255), (-1, 3)])
def test_invalid_states_of_go_are_not_loaded(byte, value):
    """The side to move, the number of moves, and a point of the board (its second part says what was occupied)."""
    game = make_game("go5")
    window = ReplayWindow(game, 10)
    window.allocate()
    state = game.build_initial_state()
    zeros = Positions(state[None], np.zeros((1, 26), np.float32), *np.zeros((2, 1), np.float32), np.zeros((1, 25)))
    window.add(zeros, 10)
    window.load(np.zeros(1, np.int64), np.zeros(1, np.int64))
    window.arrays["states"][0, byte if byte >= 0 else game._board_start + 24] = value
    with pytest.raises(Error, match="contains invalid positions of go5"):
        window.load(np.zeros(1, np.int64), np.zeros(1, np.int64))


def test_targets_have_the_orientation_of_their_planes():
    """Each of the eight loaded copies is one symmetry of the planes, the policy and the owners."""
    game, rng = Go(3), np.random.default_rng(0)
    window, symmetries = ReplayWindow(game, 10), game.symmetries()
    window.allocate()
    state = game.build_initial_state()[None]
    for move in (0, 1):
        state = game.play(state, np.array([move]))
    policy, owners = rng.random((1, 10)).astype(np.float32), rng.integers(-1, 2, (1, 9)).astype(np.float32)
    window.add(Positions(state, policy, np.ones(1, np.float32), np.full(1, 2.5, np.float32), owners), 10)
    planes, targets = window.load(np.zeros(8, np.int64), np.arange(8))
    original, found = game.planes(state)[0].reshape(17, 9), set()
    for row in range(8):
        (symmetry,) = [k for k in range(8) if (planes[row].reshape(17, 9) == original[:, symmetries.cells[k]]).all()]
        found.add(symmetry)
        np.testing.assert_array_equal(targets.policies[row], policy[0, symmetries.moves[symmetry]])
        np.testing.assert_array_equal(targets.owners[row], owners[0, symmetries.cells[symmetry]])
    assert len(found) == 8
    assert (targets.scores == 2.5).all()


# ---- self-play ------------------------------------------------------------------------------------------------------


def build_group(num_games=4, game=None, **fields):
    options = {
        "search": SearchOptions(4), "num_games": num_games, "random_opening_moves": 0,
        "temperature_moves": 0, "full_search_fraction": 1.0, "fast_simulations": 2, "td_lambda": 0.7,
    } | fields  # fmt: skip
    game = game or TicTacToe()

    def evaluate(planes):
        return np.zeros((len(planes), game.num_moves), np.float32), np.zeros(len(planes), np.float32)

    return GameGroup(game, evaluate, SelfPlayOptions(**options), num_games, [0])


def test_scores_and_owners_are_those_of_the_side_to_move():
    game = Go(3, komi=0.5)
    group, num_games = build_group(8, game), 0
    while num_games < 12:
        for positions in group.play_moves():
            num_games += 1
            moves = positions.states[:, :1]  # 1 Black, 2 White
            (score,) = {float(score) for score in positions.scores * np.where(moves[:, 0] == 1, 1, -1)}
            black = positions.owners * np.where(moves == 1, 1, -1)
            assert (black == black[0]).all()
            assert score == black[0].sum() - 0.5
            assert abs(positions.values[-1]) == 1
            assert np.sign(positions.scores[-1]) == positions.values[-1]


def test_board_sizes_have_equally_many_positions(build_task):
    """Games on the larger board are longer, and the smaller ones wait for them."""
    task, collector = build_task(game=("go5", "go7"), eval_opponent="random", num_games=8, learning_starts=200)
    batches = task.iterate_batches(collector)
    for _ in range(3):
        next(batches)
    assert all(100 <= window.total < 100 + 100 * 4 for window in collector.windows)
    assert collector.groups[0][0].num_moves != collector.groups[1][0].num_moves


def test_a_negative_seed_is_rejected():
    with pytest.raises(UsageError, match="seed should be at least 0, not -1"):
        make(seed=-1)


@pytest.mark.parametrize(("game", "count"), [("connect4", 512), ("go7", 512), ("go13", 236), ("go19", 110)])
def test_parallel_games_leave_a_part_of_the_positions_for_later_games(game, count):
    assert AlphaGoZero(game=(game,), eval_opponent="random").load_data().train.options.num_games == count
    assert AlphaGoZero(game=(game,), eval_opponent="random", num_games=7).load_data().train.options.num_games == 7


def test_value_targets_are_lambda_returns_of_the_game():
    group = build_group(num_games=1)
    group.lengths[:] = 4
    group.history["values"][0, :4] = [0.5, -0.25, 0.125, 0.0]
    group.history["is_sample"][0, :4] = True
    targets = group._build_positions(0, -1.0).values  # the side to move after four moves has lost
    third = 0.3 * 0.0 + 0.7 * 1
    second = 0.3 * 0.125 - 0.7 * third
    first = 0.3 * -0.25 - 0.7 * second
    assert targets == pytest.approx([0.3 * 0.5 - 0.7 * first, first, second, third])
    group.history["is_proven"][0, 2], group.history["values"][0, 2] = True, 1.0
    first = 0.3 * -0.25 - 0.7 * 1
    assert group._build_positions(0, -1.0).values == pytest.approx([0.3 * 0.5 - 0.7 * first, first, 1, third])


def test_positions_have_the_outcome_of_their_game():
    """With lambda 1 and without proofs the target is the outcome for the side to move."""
    group = build_group(num_games=8, td_lambda=1.0, search=SearchOptions(1))
    for _ in range(12):
        for positions in group.play_moves():
            last = positions.values[-1]
            assert abs(last) in (0, 1)
            signs = (-1.0) ** np.arange(len(positions.values))[::-1]
            np.testing.assert_array_equal(positions.values, last * signs)
            assert (positions.states[0] == 0).all()
            assert (np.diff((positions.states != 0).sum(1)) == 1).all()


@pytest.mark.parametrize(("game", "td_lambda"), [("connect4", 0.7), ("go5", 1.0), ("tic-tac-toe", 1.0)])
def test_the_outcome_is_the_value_target_except_in_connect_four(game, td_lambda):
    fields = {"game": (game,), "eval_opponent": "random" if game != "connect4" else "auto"}
    assert AlphaGoZero(**fields).load_data().train.options.td_lambda == td_lambda
    assert AlphaGoZero(**fields, td_lambda=0.5).load_data().train.options.td_lambda == 0.5
    with pytest.raises(UsageError, match="td-lambda should be between 0 and 1, not 2"):
        AlphaGoZero(**fields, td_lambda=2.0)


def test_fast_searches_are_not_learned():
    group = build_group(num_games=32, full_search_fraction=0.25, search=SearchOptions(6))
    counts = []
    for _ in range(20):
        for positions in group.play_moves():
            counts.append(len(positions.values))
    assert 0.15 < sum(counts) / (20 * 32 - group.lengths.sum()) < 0.35


def test_a_window_keeps_hundreds_of_symmetries_apart():
    class ManySymmetries(TicTacToe):
        def symmetries(self):
            return Symmetries(*(np.tile(values, (40, 1)) for values in super().symmetries()))

    window = ReplayWindow(ManySymmetries(), 10)
    window.allocate()
    window.arrays["orientations"][0] = 319
    assert window.arrays["orientations"][0] == 319


def test_a_game_without_a_full_search_adds_nothing_to_the_window():
    window = ReplayWindow(TicTacToe(), 100)
    window.allocate()
    window.add(build_positions(TicTacToe(), TicTacToe().build_initial_state()[None][:0]), 100)
    assert window.total == 0


@pytest.mark.parametrize("temperature_moves", [0, 1])
def test_puct_samples_the_first_moves_in_proportion_to_the_visits(temperature_moves):
    """Silver et al. 2017, methods, "Play": with the temperature 1 at first, then the most visited move."""
    group = build_group(3000, search=SearchOptions(4, c_puct=1.5), temperature_moves=temperature_moves)
    group.play_moves()
    policies = group.history["policies"][:, 0]
    moves = (TicTacToe().planes(group.states)[:, 1].reshape(3000, 9) != 0).argmax(1)  # the opponent of the side to move
    is_best = policies[np.arange(3000), moves] == policies.max(1)
    if temperature_moves:
        np.testing.assert_allclose(policies[np.arange(3000), moves].mean(), (policies**2).sum(1).mean(), atol=0.01)
        np.testing.assert_allclose(np.bincount(moves, minlength=9) / 3000, policies.mean(0), atol=0.02)
        assert not is_best.all()
    else:
        assert is_best.all()


def test_openings_have_up_to_the_maximum_of_random_moves():
    group = build_group(num_games=200, random_opening_moves=4)
    group.play_moves()
    assert set(group.opening_lengths.tolist()) == {0, 1, 2, 3, 4}


class LargestNumbers(np.random.Generator):
    """Generator of the largest numbers below 1."""

    def random(self, size=None):
        return np.full(size, 1 - 2**-53)


def test_a_sampled_move_has_visits(monkeypatch):
    """Also if the sum of the policy in float32 is above the last cumulative sum, because of rounding."""
    rng = np.random.default_rng(0)
    policies = np.zeros((1, 9), np.float32)
    while policies.sum() <= policies.cumsum(1)[0, -1]:
        policies[0, 1:] = rng.dirichlet(np.ones(8))
    group = build_group(1, search=SearchOptions(4, c_puct=1.5), temperature_moves=1)
    result = group.search.search(group.states, np.array([4]), rng, np.array([True]))
    result = result._replace(policies=policies, is_proven=np.array([False]))
    monkeypatch.setattr(group.search, "search", lambda *arguments: result)
    monkeypatch.setattr(np.random, "default_rng", lambda seed: LargestNumbers(np.random.PCG64(0)))
    group.play_moves()
    move = (TicTacToe().planes(group.states)[0, 1].flatten() != 0).argmax()
    assert policies[0, move] > 0


def test_a_checkpoint_of_games_is_validated():
    group = build_group(2)
    with pytest.raises(ValueError, match="num_moves should be an integer from 0"):
        group.load_state_dict(group.state_dict() | {"num_moves": -1})


@pytest.mark.parametrize("c_puct", [0.0, 1.5])
def test_games_in_progress_are_restored(c_puct):
    fields = {"search": SearchOptions(4, c_puct=c_puct), "random_opening_moves": 3, "temperature_moves": 5}
    one, other = build_group(6, **fields), build_group(6, **fields)
    for _ in range(5):
        one.play_moves()
    other.load_state_dict(one.state_dict())
    for _ in range(15):
        for expected, positions in zip(one.play_moves(), other.play_moves(), strict=True):
            for value, copy in zip(expected, positions, strict=True):
                np.testing.assert_array_equal(value, copy)


# ---- training -------------------------------------------------------------------------------------------------------


def test_loss_equals_the_papers_equation(build_task):
    task, _ = build_task()
    torch.manual_seed(1)
    for parameter in task.model.heads.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    task.model.eval()
    policies = torch.rand(5, 9).softmax(1)
    batch = BoardBatch(torch.rand(5, 2, 3, 3), policies, torch.rand(5) * 2 - 1, None, None)
    loss, metrics = task.compute_loss(batch)
    policy, value = task.model(batch.planes)
    cross_entropy = -(policies * F.log_softmax(policy, 1)).sum(1).mean()
    expected = ((value - batch.values) ** 2).mean() + cross_entropy
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    divergence = (policies * (policies.log() - F.log_softmax(policy, 1))).sum(1).mean()
    assert metrics["policy_loss"].item() == pytest.approx(divergence.item(), rel=1e-4)


def test_the_loss_of_go_adds_score_and_ownership(build_task):
    """The formula of the page: Huber's loss of the score in units of 20 points, and the squared error of the owners."""
    task, _ = build_task(game=("go5",), eval_opponent="random")
    torch.manual_seed(1)
    for parameter in task.model.heads.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    task.model.eval()
    policies, values, scores = torch.rand(4, 26).softmax(1), torch.rand(4) * 2 - 1, torch.tensor([25.0, -8, 0.5, -60])
    owners = torch.randint(-1, 2, (4, 25)).float()
    batch = BoardBatch(torch.rand(4, 17, 5, 5), policies, values, scores, owners)
    loss, _ = task.compute_loss(batch)
    without, _ = task.compute_loss(batch._replace(scores=torch.zeros(4), owners=torch.zeros(4, 25)))
    prediction = task.model(batch.planes)

    def compute_added(scores, owners):
        differences = (prediction.score - scores).abs() / 20
        huber = torch.where(differences < 1, differences**2 / 2, differences - 0.5).mean()
        return 0.1 * huber + 0.5 * ((prediction.owners - owners) ** 2).mean()

    expected = compute_added(scores, owners) - compute_added(torch.zeros(4), torch.zeros(4, 25))
    torch.testing.assert_close(loss - without, expected)


def test_the_task_overfits_a_batch(build_task):
    task, collector = build_task(num_channels=32, lr=1e-2, ema_decay=0.0)
    batch = next(task.iterate_batches(collector))
    task.schedule(0.0)
    losses = [float(task.step(batch)["policy_loss"] + task.step(batch)["value_loss"]) for _ in range(100)]
    assert losses[-1] < 0.1 * losses[0]


def test_positions_per_optimizer_step(build_task):
    task, collector = build_task(samples_per_position=2.0)
    batches = task.iterate_batches(collector)
    for step in range(1, 20):
        next(batches)
        due = 100 + 32 * step / 2
        assert due <= collector.total < due + 16 * 9


def test_the_moving_average_plays(build_task):
    task, collector = build_task(ema_decay=0.5)
    before = [parameter.clone() for parameter in task.ema_model.parameters()]
    task.schedule(0.0)
    task.step(next(task.iterate_batches(collector)))
    for old, new, average in zip(before, task.model.parameters(), task.ema_model.parameters(), strict=True):
        torch.testing.assert_close(average, (old + new) / 2)
    assert task.get_modules()["model"] is task.ema_model


@pytest.mark.parametrize("wins", [False, True])
def test_a_network_has_to_win_the_gating_match(build_task, monkeypatch, wins):
    task, _ = build_task(gating_games=4)
    with torch.no_grad():
        next(task.ema_model.parameters()).add_(1)
    result = type("Result", (), {"score": 0.6 if wins else 0.55})
    models = []

    def play(game, players, num_games, **options):
        models.extend(player.model for player in players)
        return result

    monkeypatch.setattr("fukami.self_play.task.play_match", play)
    metrics = {}
    task.on_evaluation(metrics)
    assert models[0] is task.ema_model
    assert models[1] is task.self_play_model
    assert metrics["gating_score"] == result.score
    equal = [
        torch.equal(one, other)
        for one, other in zip(task.self_play_model.parameters(), task.ema_model.parameters(), strict=True)
    ]
    assert all(equal) is wins


def test_training_learns_tic_tac_toe(tmp_path):
    """The network alone, without search, becomes much better than a random player."""
    fields = {"positions": 5000, "learning_starts": 500, "num_games": 64, "batch_size": 64, "num_channels": 16,
              "lr": 5e-3, "samples_per_position": 4.0, "eval_every": 5000, "eval_games": 100}  # fmt: skip
    recipe = make(**fields, self_play_simulations=16, simulations=0, eval_opponent="random")
    run = package.train(recipe, tmp_path / "run", **CPU)
    assert run.metrics["count"] == 100
    assert run.metrics["score"] > 0.75  # an untrained network has 0.5
    log = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert log[-1]["phase"] == "test"
    assert not (run.folder / "replay_window").exists()


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{}, {"gating_games": 2}])
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(tmp_path, fields):
    check_task.check_killed_and_resumed(
        lambda **other: make(**fields | other), tmp_path, kills=1, constants=SMALL_RESERVE
    )


def start_two_processes(recipe, out, *arguments):
    """Start two processes of a run, with the environment of torchrun."""
    with socket.socket() as server:  # finds a free port
        server.bind(("127.0.0.1", 0))
        rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.getsockname()[1]), "WORLD_SIZE": "2"}
    command = [*check_task.build_command(recipe, out), *arguments]
    return [
        check_task.CommandProcess(
            command,
            frequent_checkpoints=True,
            environment={**rendezvous, "RANK": rank, "LOCAL_RANK": rank},
            constants=SMALL_RESERVE,
        )
        for rank in "01"
    ]


@pytest.mark.slow
def test_two_processes_play_their_parts_and_are_resumed(tmp_path):
    """Each has games of its own; killed and resumed processes equal uninterrupted ones.

    With few slots a checkpoint is due at steps without a log line, and in one process earlier than in the other.
    """
    recipe, outs = make(positions=1500, eval_every=1500), [tmp_path / "uninterrupted", tmp_path / "killed"]
    processes = start_two_processes(recipe, outs[0])
    assert [process.wait()[0] for process in processes] == [0, 0]
    processes = start_two_processes(recipe, outs[1])
    check_task.wait_until(
        lambda: len(check_task.read_log_lines(outs[1])) > 6 or not all(process.is_alive() for process in processes)
    )
    for process in processes:
        process.kill()
    assert [process.wait()[0] for process in processes] == [-signal.SIGKILL] * 2
    processes = start_two_processes(recipe, outs[1], "--resume")
    assert [process.wait()[0] for process in processes] == [0, 0]
    check_task.check_same_run(*outs)
    state = checkpoint.read_checkpoint(outs[0], torch.device("cpu"))["loader"]["processes"]
    assert len(state) == 2
    games = [part["groups"][0][0]["states"] for part in state]
    assert not torch.equal(*games)
    totals = [part["windows"][0][0] for part in state]
    assert all(abs(total - 750) < 16 * 9 for total in totals)


def test_a_batch_is_divided_evenly_by_the_processes():
    with pytest.raises(UsageError, match="cannot share a batch of 33"):
        make(batch_size=33).load_data().train.setup(replace(Runtime.start(**CPU), world_size=2))


def test_a_missing_window_is_reported(tmp_path):
    folder = tmp_path / "run"
    run = package.train(make(), folder, **CPU)
    assert run.folder == folder
    state = checkpoint.read_checkpoint(folder, torch.device("cpu"))
    recipe = make()
    data = recipe.load_data().train
    data.open_files(folder)
    data.setup(Runtime.start(**CPU))
    data.load_state_dict(state["loader"])
    with pytest.raises(Error, match=r"replay_window.*missing or incomplete"):
        data.sample_batch()


def test_a_run_is_resumed_by_as_many_processes_as_before(tmp_path):
    run = package.train(make(), tmp_path / "run", **CPU)
    state = checkpoint.read_checkpoint(run.folder, torch.device("cpu"))["loader"]
    data = make().load_data().train
    data.open_files(run.folder)
    data.setup(replace(Runtime.start(**CPU), world_size=2))
    with pytest.raises(UsageError, match=r"number of processes was 1 and is 2.*set --processes 1"):
        data.load_state_dict(state)


def test_another_number_of_processes_leaves_the_window(tmp_path):
    """The run can still be resumed by the right number."""
    folder, data = tmp_path / "run", make().load_data().train
    data.open_files(folder)
    data.setup(Runtime.start(**CPU))
    before = {path: path.stat().st_size for path in folder.rglob("*.bin")}
    assert before
    state = {"processes": [{}]}
    other = make().load_data().train
    other.open_files(folder)
    other.setup(replace(Runtime.start(**CPU), world_size=2))
    with pytest.raises(UsageError, match="number of processes was 1 and is 2"):
        other.load_state_dict(state)
    assert {path: path.stat().st_size for path in folder.rglob("*.bin")} == before
    again = make().load_data().train
    again.open_files(folder)
    again.setup(Runtime.start(**CPU))
    assert not any(window.files.were_created for window in again.windows)


def test_a_finished_run_is_resumed_without_its_window(tmp_path):
    run = package.train(make(), tmp_path / "run", **CPU)
    assert not (tmp_path / "run" / "replay_window").exists()
    resumed = package.train(make(), tmp_path / "run", resume=True, **CPU)
    assert resumed.metrics == run.metrics


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"game": ("conect4",)}, "connect4"),
        ({"game": ()}, "at least one game"),
        ({"game": ("connect4", "tic-tac-toe")}, "only board sizes of Go can share a network"),
        ({"positions": 50}, "positions should be at least"),
        ({"td_lambda": 1.5}, "td-lambda should be between 0 and 1"),
        ({"full_search_fraction": 0.0}, "full-search-fraction should be more than 0"),
        ({"eval_opponent": "gnugo"}, "GNU Go does not play tic-tac-toe"),
        ({"gnugo_level": -1}, "gnugo-level should be at least 0, not -1"),
        ({"game": ("go5", "go7", "go5")}, "game names a game twice"),
        ({"simulations": 10**8}, "simulations should be between 0 and 100000"),
        ({"value_scale": np.inf}, "value-scale should be between 0 and 10000"),
        ({"c_puct": 1e308}, "c-puct should be between 0 and 10000"),
        ({"batch_size": 1}, "batch-size should be at least 2, not 1"),
    ],
)
def test_fields_are_checked(fields, message):
    with pytest.raises(UsageError, match=message):
        make(**fields).load_data()


# ---- predictions ----------------------------------------------------------------------------------------------------


def test_positions_of_a_file_are_predicted(run, tmp_path):
    file = tmp_path / "positions.txt"
    lines = ["." * 42, "", "xx.oo....o" + "." * 32, "xxx.oo.", "xxx" + "." * 39, "xxx.ooo" + "." * 35]
    file.write_text("\n".join(lines))
    model = package.load(run, device="cpu")
    predictions = model.predict(file)
    assert [prediction["line"] for prediction in predictions] == [1, 3, 4, 5, 6]
    assert all(prediction["file"] == str(file) for prediction in predictions)
    assert "line 3" in predictions[1]["error"]  # a stone above an empty cell
    assert "line 4" in predictions[2]["error"]
    assert "line 5" in predictions[3]["error"]
    win = predictions[4]
    assert (win["move"], win["value"], win["policy"]["4"]) == ("4", 1.0, 1.0)
    first = predictions[0]
    assert set(first["policy"]) == set("1234567")
    assert sum(first["policy"].values()) == pytest.approx(1, abs=1e-3)
    assert sum(first["visits"].values()) == first["simulations"] == 8
    assert json.loads(json.dumps(predictions)) == predictions


def test_more_simulations_and_drawings(run, tmp_path, fukami):
    file = tmp_path / "positions.txt"
    file.write_text("." * 42 + "\n")
    result = fukami("predict", run, file, "--set", "simulations=20", "--out", tmp_path / "out")
    assert result.status == 0
    assert result.json[0]["simulations"] == 20
    assert (tmp_path / "out" / "positions.png").exists()
    assert (tmp_path / "out" / "index.html").exists()


def test_unreadable_positions_are_named_and_counted(run, tmp_path, fukami):
    file = tmp_path / "positions.txt"
    file.write_text("\n".join(["." * 42, "?" * 42, "", "." * 41, "x" + "." * 41]))
    result = fukami("predict", run, file)
    assert (result.status, [line["line"] for line in result.json]) == (1, [1])
    assert "3 of 4 positions could not be processed" in result.err
    assert all(f"line {line}" in result.err for line in (2, 4, 5))


def test_averages_over_symmetries_do_not_depend_on_the_orientation(run, tmp_path):
    rows = ["xo..xx.", ".o..o..", ".......", ".......", ".......", "......."]
    file = tmp_path / "positions.txt"
    file.write_text("".join(rows) + "\n" + "".join(row[::-1] for row in rows) + "\n")

    def predict(**overrides):
        model = package.load(run, **CPU, overrides={"simulations": 8, **overrides})
        position, reflection = model.predict(file)
        reflected = {str(8 - int(column)): value for column, value in reflection["policy"].items()}
        return position["policy"], pytest.approx(reflected, abs=1e-3)

    policy, reflected = predict()
    assert policy != reflected
    policy, reflected = predict(average_symmetries=True)
    assert policy == reflected


def test_unreadable_files_are_named_and_the_rest_is_predicted(run, tmp_path, fukami):
    good, binary = tmp_path / "good.txt", tmp_path / "binary.txt"
    good.write_text("." * 42)
    binary.write_bytes(b"\xff\xfe\x00" * 50)
    result = fukami("predict", run, binary, tmp_path / "missing.txt", good)
    assert result.status == 1
    assert [json.loads(line)["file"] for line in result.out.splitlines()] == [str(good)]
    assert "binary.txt is no text file" in result.err
    assert "missing.txt" in result.err


def test_a_large_file_is_rejected(run, tmp_path, monkeypatch):
    monkeypatch.setattr(position_files, "MAX_FILE_BYTES", 50)
    file = tmp_path / "positions.txt"
    file.write_text(("." * 42 + "\n") * 2)
    (prediction,) = package.load(run, device="cpu").predict(file)
    assert "more than the limit of 50" in prediction["error"]


def test_exported_networks_predict_the_same(run, tmp_path, fukami):
    file = tmp_path / "positions.txt"
    file.write_text("." * 42 + "\n" + "o......" + "." * 35 + "\n" + ".xo...." + "." * 35)
    options = {"device": "cpu", "overrides": {"simulations": 0}}  # the network alone
    expected = package.load(run, **options).predict(file)
    for precision, tolerance in (("onnx", 1e-3), ("float16", 0.02), ("bfloat16", 0.1)):
        result = fukami("export", run, "--to", precision, "--out", tmp_path / precision)
        assert result.status == 0, result.err
        predictions = package.load(tmp_path / precision, **options).predict(file)
        for prediction, other in zip(predictions, expected, strict=True):
            assert prediction["value"] == pytest.approx(other["value"], abs=tolerance)
            assert prediction["policy"] == pytest.approx(other["policy"], abs=tolerance)
            if precision == "onnx":
                assert prediction["move"] == other["move"]


def test_int8_is_refused(run, tmp_path, fukami):
    result = fukami("export", run, "--to", "int8", "--out", tmp_path / "int8")
    assert result.status == 2
    assert "int8 is for classifiers" in result.err


# ---- games of users -------------------------------------------------------------------------------------------------


def test_a_run_of_a_users_game_contains_its_name_and_hash_and_asks_for_the_file(tmp_path, fukami):
    file = tmp_path / "my_game.py"
    shutil.copy(GAME_FILE, file)
    folder = tmp_path / "run"
    package.train(make(game=(str(file),)), folder, **CPU)
    (name,) = json.loads((folder / "recipe.json").read_text())["fields"]["game"]
    assert name.startswith("my_game.py@sha256:")
    assert all(b"class TicTacToe" not in path.read_bytes() for path in folder.rglob("*") if path.is_file())
    result = fukami("eval", folder)
    assert result.status == 2
    assert "--set game=./my_game.py" in result.err
    result = fukami("eval", folder, "--set", f"game={file}")
    assert result.status == 0, result.err
    assert result.json[0]["count"] == 4
    file.write_text(file.read_text() + "\n")
    result = fukami("eval", folder, "--set", f"game={file}")
    assert result.status == 2
    assert "the network was trained for my_game.py@sha256" in result.err


@pytest.mark.slow
def test_a_users_game_is_used_again_without_its_name(tmp_path, fukami):
    """After the training the file is known; an export and an explanation need it, and the option for it exists."""
    file = tmp_path / "my_game.py"
    shutil.copy(GAME_FILE, file)
    run = package.train(make(game=(str(file),)), tmp_path / "run", **CPU)
    assert run.load(device="cpu").evaluate()["count"] == 4
    for command in (("export", run.folder, "--to", "onnx", "--out", tmp_path / "onnx"), ("explain", run.folder)):
        result = fukami(*command)
        assert result.status == 2
        assert "--set game=./my_game.py" in result.err
        result = fukami(*command, "--set", f"game={file}")
        assert result.status == 0, result.err


def test_runs_of_a_users_game_with_several_seeds_are_averaged(tmp_path, fukami):
    file = tmp_path / "my_game.py"
    shutil.copy(GAME_FILE, file)
    fields = build_train_command(make(game=(str(file),), positions=300))
    result = fukami(*fields.split()[1:], "--num-seeds", "2", "--out", tmp_path / "runs", "--device", "cpu")
    assert result.status == 0, result.err
    assert result.json[-1].keys() == {"runs", "mean", "standard_deviation"}


def test_draw_takes_a_file_of_one_position(tmp_path):
    model = package.load("alphago-zero-connect4", device="cpu")
    (tmp_path / "positions.txt").write_text("." * 42 + "\n")
    assert model.draw(tmp_path / "positions.txt").size[0] > 100
    (tmp_path / "positions.txt").write_text(("." * 42 + "\n") * 2)
    with pytest.raises(UsageError, match="one position can be drawn, and the file has 2"):
        model.draw(tmp_path / "positions.txt")


def test_the_search_opponent_needs_simulations(tmp_path, fukami):
    run = package.train(make(), tmp_path / "run", **CPU)
    train = build_train_command(make(simulations=0)).split()[1:]  # before the training, not at its first evaluation
    for command in (("play", run.folder, "--against", "search", "--games", "2", "--simulations", "0"),
                    ("eval", run.folder, "--set", "simulations=0"), (*train, "--out", tmp_path / "new")):  # fmt: skip
        result = fukami(*command)
        assert result.status == 2
        assert "needs at least 1 simulation" in result.err
    assert not (tmp_path / "new" / "weights.safetensors").exists()


def test_a_run_never_executes_a_file_that_it_names(tmp_path):
    folder, marker, evil = tmp_path / "run", tmp_path / "executed", tmp_path / "evil.py"
    package.train(make(), folder, **CPU)
    evil.write_text(f"open({str(marker)!r}, 'w')\n")
    record = json.loads((folder / "recipe.json").read_text())
    for name in (str(evil), f"{evil}@sha256:0", f"{evil}@sha256:{'0' * 64}.py"):
        record["fields"]["game"] = [name]
        (folder / "recipe.json").write_text(json.dumps(record))
        with pytest.raises(Error):
            package.load(folder)
        assert not marker.exists()


def test_a_missing_gnugo_is_reported_before_the_training(fukami, monkeypatch, tmp_path):
    monkeypatch.setattr("shutil.which", lambda name: None)
    result = fukami("train", "alphago-zero", "--game", "go7", "--out", "run")
    assert result.status == 2
    assert "GNU Go is not installed" in result.err
    assert "--eval-opponent search" in result.err
    assert not (tmp_path / "run").exists()
    assert make(game=("go7",), eval_opponent="search").load_data().test.opponent == "search"


def test_make_game_names_the_nearest_game():
    with pytest.raises(UsageError, match="go9"):
        make_game("go8")

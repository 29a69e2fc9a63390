"""Tests of the tree search: against minimax, hand-computed schedules and equations, and between its own modes."""

from functools import cache

import numpy as np
import pytest

from fukami.errors import Error
from fukami.self_play import tree as kernels
from fukami.self_play.go import Go
from fukami.self_play.search import (
    SearchOptions,
    TreeSearch,
    build_symmetric_evaluate,
    limit_group_size,
    schedule_visits,
)
from fukami.self_play.tic_tac_toe import TicTacToe

GAME = TicTacToe()


def evaluate_equally(planes):
    return np.zeros((len(planes), 9), np.float32), np.zeros(len(planes), np.float32)


def evaluate_randomly(planes):
    """Return fixed random numbers for each position."""
    weights = np.random.default_rng(0).normal(size=(planes[0].size, 10))
    outputs = np.sin(3 * planes.reshape(len(planes), -1) @ weights).astype(np.float32)
    return 2 * outputs[:, :9], outputs[:, 9]


def play_all(*moves):
    state = GAME.build_initial_state()[None]
    for move in moves:
        state = GAME.play(state, np.array([move]))
    return state


@cache
def solve(content):
    """Solve a position by minimax."""
    state = np.frombuffer(content, np.uint8)[None]
    outcome = GAME.outcome(state)[0]
    if not np.isnan(outcome):
        return int(outcome)
    moves = np.flatnonzero(GAME.legal_moves(state)[0])
    return max(-solve(GAME.play(state, np.array([move])).tobytes()) for move in moves)


def sample_positions(count, seed=0):
    rng, positions = np.random.default_rng(seed), []
    while len(positions) < count:
        state = GAME.build_initial_state()[None]
        for _ in range(rng.integers(0, 8)):
            if np.isnan(GAME.outcome(state)[0]):
                state = GAME.play(state, rng.choice(np.flatnonzero(GAME.legal_moves(state)[0]), 1))
        if np.isnan(GAME.outcome(state)[0]):
            positions.append(state[0])
    return np.stack(positions)


@pytest.mark.parametrize("options", [{}, {"c_puct": 1.5}])
@pytest.mark.parametrize("evaluate", [evaluate_equally, evaluate_randomly])
def test_proven_values_and_moves_equal_minimax(options, evaluate):
    states = sample_positions(60)
    search = TreeSearch(GAME, evaluate, SearchOptions(400, **options), len(states))
    result = search.search(states)
    assert result.is_proven.mean() > 0.3
    for index in np.flatnonzero(result.is_proven):
        expected = solve(states[index].tobytes())
        assert result.values[index] == expected
        after = GAME.play(states[index : index + 1], result.moves[index : index + 1])
        assert -solve(after.tobytes()) == expected
        best = [
            -solve(GAME.play(states[index : index + 1], np.array([move])).tobytes()) == expected
            for move in np.flatnonzero(result.policies[index] > 1e-6)
        ]
        assert all(best)


def test_a_win_in_one_move_is_proven_and_ends_the_search():
    state = play_all(0, 3, 1, 4)  # x wins at 2
    result = TreeSearch(GAME, evaluate_equally, SearchOptions(64), 1).search(state)
    assert result.moves[0] == 2
    assert result.values[0] == 1
    assert result.is_proven[0]
    assert result.policies[0, 2] == 1
    assert result.visits[0].sum() < 20


def test_sequential_halving_gives_each_phase_the_same_simulations():
    # 16 simulations, 4 moves: two phases of 8, in which 4 and then 2 moves have 2 and 4 visits more
    assert schedule_visits(4, 16, 16).tolist() == [0] * 4 + [1] * 4 + [2, 2, 3, 3, 4, 4, 5, 5]
    assert schedule_visits(1, 3, 5).tolist() == [0, 1, 2, 0, 0]
    visits = schedule_visits(16, 64, 64)
    assert [int((visits == count).sum()) for count in range(3)] == [16, 8, 8]


def test_the_visits_of_the_root_follow_the_schedule():
    state = GAME.build_initial_state()[None]
    result = TreeSearch(GAME, evaluate_randomly, SearchOptions(16, max_considered_moves=4), 1).search(state)
    assert sorted(result.visits[0].tolist()) == [0, 0, 0, 0, 0, 2, 2, 6, 6]


def test_the_network_alone_is_its_policy():
    states = sample_positions(5)
    result = TreeSearch(GAME, evaluate_randomly, SearchOptions(0), 5).search(states)
    logits, values = evaluate_randomly(GAME.planes(states))
    logits[~GAME.legal_moves(states)] = -np.inf
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(result.network_policies, expected, rtol=1e-5)
    np.testing.assert_allclose(result.network_values, values, rtol=1e-6)
    assert (result.moves == logits.argmax(1)).all()
    np.testing.assert_allclose(result.policies, expected, rtol=1e-4)  # without visits all moves have the same value


def test_the_improved_policy_follows_the_paper():
    """Danihelka et al. 2022, equation 11, from the visits and values of the children."""
    states, options = sample_positions(20, seed=3), SearchOptions(12, value_scale=0.2)
    search = TreeSearch(GAME, evaluate_randomly, options, len(states))
    result = search.search(states)
    for index in np.flatnonzero(~result.is_proven):
        tree = search.tree
        visits = tree.visits[index, 0].astype(float)
        priors = np.exp(tree.log_priors[index, 0].astype(float))
        visited = visits > 0
        children = tree.children[index, 0]
        values = np.zeros(9)
        for move in np.flatnonzero(visited):
            proof = tree.proofs[index, children[move]]
            mean = tree.value_sums[index, 0, move] / visits[move]
            values[move] = mean if proof == kernels.UNKNOWN else -proof
        mean = (priors * values)[visited].sum() / priors[visited].sum()
        mixed = (tree.values[index, 0] + visits.sum() * mean) / (1 + visits.sum())
        completed = np.where(visited, values, mixed)
        with np.errstate(divide="ignore"):
            logits = np.log(priors) + (50 + visits.max()) * 0.2 * (completed + 1) / 2
        lost = [child >= 0 and tree.proofs[index, child] == 1 for child in children]
        logits[lost] = -np.inf
        expected = np.exp(logits - logits.max())
        np.testing.assert_allclose(result.policies[index], expected / expected.sum(), rtol=1e-3, atol=1e-6)


def test_puct_selects_the_move_of_greatest_value_and_bonus():
    """One simulation more follows Silver et al. 2017, methods, "Select"."""
    state = play_all(0)
    before = TreeSearch(GAME, evaluate_randomly, SearchOptions(10, c_puct=1.25), 1)
    before.search(state)
    after = TreeSearch(GAME, evaluate_randomly, SearchOptions(11, c_puct=1.25), 1).search(state)
    tree, visits = before.tree, before.tree.visits[0, 0].astype(float)
    priors, children = np.exp(tree.log_priors[0, 0].astype(float)), tree.children[0, 0]
    values = np.divide(tree.value_sums[0, 0], visits, out=np.zeros(9), where=visits > 0)
    visited = visits > 0
    for move in np.flatnonzero(visited):
        if tree.proofs[0, children[move]] != kernels.UNKNOWN:
            values[move] = -tree.proofs[0, children[move]]
    mean = (priors * values)[visited].sum() / priors[visited].sum()
    mixed = (tree.values[0, 0] + visits.sum() * mean) / (1 + visits.sum())
    scores = np.where(visited, values, mixed) + 1.25 * priors * np.sqrt(1 + visits.sum()) / (1 + visits)
    scores[priors == 0] = -np.inf
    assert (after.visits[0] - visits)[scores.argmax()] == 1


def test_puct_excludes_moves_that_are_proven_to_lose_from_its_policy():
    num_found = 0
    for state in sample_positions(100):
        search = TreeSearch(GAME, evaluate_randomly, SearchOptions(30, c_puct=1.25), 1)
        result = search.search(state[None])
        children = search.tree.children[0, 0]
        is_lost = np.array([child >= 0 and search.tree.proofs[0, child] == 1 for child in children])
        if result.is_proven[0] or not is_lost.any():
            continue
        num_found += 1
        visits = np.where(is_lost, 0, result.visits[0])
        np.testing.assert_allclose(result.policies[0], visits / visits.sum(), rtol=1e-6)
        assert not is_lost[result.moves[0]]
    assert num_found > 5


def test_puct_plays_the_move_with_the_most_visits_of_a_reused_subtree():
    num_found = 0
    for state in sample_positions(60):
        search = TreeSearch(GAME, evaluate_randomly, SearchOptions(20, c_puct=1.25), 1)
        first = search.continue_search(state[None], [[]])
        after = GAME.play(state[None], first.moves)
        if not np.isnan(GAME.outcome(after)[0]):
            continue
        result = search.continue_search(after, [first.moves.tolist()])
        if not result.is_proven[0]:
            num_found += 1
            assert result.visits[0, result.moves[0]] == result.visits[0][result.policies[0] > 0].max()
    assert num_found > 5


def test_gumbel_noise_samples_moves_in_proportion_to_the_policy():
    """With one simulation the move is a sample of the policy (Danihelka et al. 2022, section 2)."""
    states = np.repeat(GAME.build_initial_state()[None], 4000, 0)
    options = SearchOptions(1, max_considered_moves=1, value_scale=0)
    result = TreeSearch(GAME, evaluate_randomly, options, 4000).search(states, rng=np.random.default_rng(0))
    frequencies = np.bincount(result.moves, minlength=9) / 4000
    np.testing.assert_allclose(frequencies, result.network_policies[0], atol=0.03)


def test_dirichlet_noise_of_the_root():
    """A quarter of the root's policy is noise over the legal moves (Silver et al. 2017, methods, "Select").

    Each of n components of Dir(α) has the mean 1/n and the variance (1/n)(1 - 1/n) / (nα + 1).
    """
    states = np.repeat(play_all(4), 4000, 0)
    search = TreeSearch(GAME, evaluate_randomly, SearchOptions(1, c_puct=1.25, dirichlet_alpha=0.5), 4000)
    explores = np.arange(4000) < 3000
    priors = search.search(states, rng=np.random.default_rng(0), explores=explores).network_policies[0]
    mixed = search.tree.root_priors
    np.testing.assert_array_equal(mixed[3000:], np.broadcast_to(priors, (1000, 9)))
    assert (mixed[:, 4] == 0).all()
    legal = np.arange(9) != 4
    np.testing.assert_allclose(mixed[:3000, legal].mean(0), 0.75 * priors[legal] + 0.25 / 8, atol=0.005)
    np.testing.assert_allclose(mixed[:3000, legal].std(0), 0.25 * np.sqrt(1 / 8 * 7 / 8 / (8 * 0.5 + 1)), rtol=0.06)


@pytest.mark.parametrize(("index", "value"), [(0, np.nan), (0, np.inf), (1, np.nan), (1, -np.inf)])
@pytest.mark.parametrize("options", [{}, {"c_puct": 1.5}])
def test_predictions_that_are_not_finite_are_an_error(index, value, options):
    def evaluate(planes):
        outputs = evaluate_randomly(planes)
        outputs[index].flat[3 if len(planes) > 3 else 0] = value
        return outputs

    search = TreeSearch(GAME, evaluate, SearchOptions(8, **options), 4)
    with pytest.raises(Error, match="the network predicts values that are not finite"):
        search.search(sample_positions(4))


def test_a_game_without_legal_moves_is_an_error(monkeypatch):
    positions, search = sample_positions(4), TreeSearch(GAME, evaluate_equally, SearchOptions(8), 4)
    monkeypatch.setattr(GAME, "legal_moves", lambda states: np.zeros((len(states), 9), bool), raising=False)
    with pytest.raises(Error, match="tic-tac-toe has no legal move in a position without an outcome"):
        search.search(positions)


@pytest.mark.parametrize(("game", "simulations", "expected"), [(GAME, 800, 64), (Go(19), 64, 64), (Go(19), 1600, 26),
                                                               (Go(19), 100_000, 1)])  # fmt: skip
def test_trees_searched_in_parallel_have_a_gigabyte(game, simulations, expected):
    size = limit_group_size(64, game, simulations)
    search = TreeSearch(game, evaluate_equally, SearchOptions(min(simulations, 1600)), 1)
    arrays = (search.tree.children, search.tree.visits, search.tree.value_sums, search.tree.log_priors, search.states)
    num_bytes = sum(array.nbytes for array in arrays) * (simulations + 1) / (min(simulations, 1600) + 1)
    assert size == expected
    assert size == 1 or size * num_bytes <= 2**30
    assert size == 64 or (size + 1) * num_bytes > 2**30


def test_games_side_by_side_equal_games_alone():
    states, options = sample_positions(8, seed=1), SearchOptions(30)
    together = TreeSearch(GAME, evaluate_randomly, options, 8).search(states)
    for index in range(8):
        alone = TreeSearch(GAME, evaluate_randomly, options, 1).search(states[index : index + 1])
        assert (together.visits[index] == alone.visits[0]).all()
        np.testing.assert_allclose(together.policies[index], alone.policies[0], rtol=1e-5)


def test_a_reused_subtree_keeps_its_visits():
    search = TreeSearch(GAME, evaluate_randomly, SearchOptions(60), 1)
    state = play_all(0)
    first = search.search(state)
    move = int(first.moves[0])
    reply_visits = search.tree.visits[0, search.tree.children[0, 0, move]].copy()
    reply = int(reply_visits.argmax())
    node = search.tree.children[0, search.tree.children[0, 0, move], reply]
    kept = search.tree.visits[0, node].copy()
    after = GAME.play(GAME.play(state, np.array([move])), np.array([reply]))
    result = search.continue_search(after, [[move, reply]])
    assert kept.sum() > 0
    assert (result.visits[0] >= kept).all()
    if not result.is_proven[0]:
        assert result.visits[0].sum() == kept.sum() + 60
    assert (search.states[0, 0] == after[0]).all()


def test_an_unknown_position_starts_a_new_tree():
    search = TreeSearch(GAME, evaluate_randomly, SearchOptions(20), 1)
    state = play_all(0, 1)
    alone = TreeSearch(GAME, evaluate_randomly, SearchOptions(20), 1).search(state)
    assert (search.continue_search(state, [[]]).visits == alone.visits).all()


@pytest.mark.parametrize("game", [TicTacToe(), Go(5)], ids=["tic-tac-toe", "go5"])
def test_average_over_symmetries_is_the_mean_of_turned_and_reflected_boards(game):
    rng = np.random.default_rng(0)
    shape = (4, game.num_planes, *game.shape)
    planes, weights = rng.random(shape, np.float32), rng.normal(size=(np.prod(shape[1:]), game.num_moves + 1))

    def evaluate(boards):
        outputs = (boards.reshape(len(boards), -1) @ weights).astype(np.float32)
        return outputs[:, :-1], np.tanh(outputs[:, -1])

    policies, values = [], []
    for turns in range(4):
        for is_reflected in (False, True):
            boards = np.rot90(planes, turns, (2, 3))
            logits, value = evaluate(boards[..., ::-1] if is_reflected else boards)
            policy = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
            points = policy[:, : np.prod(game.shape)].reshape(-1, *game.shape)
            points = np.rot90(points[..., ::-1] if is_reflected else points, -turns, (1, 2))
            policy[:, : np.prod(game.shape)] = points.reshape(len(points), -1)
            policies.append(policy)
            values.append(value)
    log_policy, value = build_symmetric_evaluate(evaluate, game.symmetries())(planes)
    np.testing.assert_allclose(np.exp(log_policy), np.mean(policies, 0), rtol=1e-4)
    np.testing.assert_allclose(value, np.mean(values, 0), rtol=1e-4)

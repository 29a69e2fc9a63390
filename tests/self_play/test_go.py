"""Tests of Go against sgfmill's board, open_spiel and hand-made positions."""

import numpy as np
import pytest

from fukami.errors import UsageError
from fukami.self_play.go import Go
from go_reference import COLORS, ReferenceGame, choose_random_move

SENDING_TWO = {"black": "B1 D1 C2", "white": "A2 B2"}  # Black A1, White C1 captures two, Black B1 captures one


def parse_moves(go, text):
    return [go.parse_move(move) for move in text.split()]


def build_states(go, black="", white="", player=0):
    return go.place_stones(parse_moves(go, black), parse_moves(go, white), player)[None]


def play(go, states, text):
    for move in parse_moves(go, text):
        states = go.play(states, np.array([move]))
    return states


def is_legal(go, states, text):
    return bool(go.legal_moves(states)[0, go.parse_move(text)])


def list_stones(go, states):
    """List the black and the white stones."""
    stones = go.planes(states)[0, :2].reshape(2, -1)
    black, white = stones[:: 1 if states[0, 0] == 1 else -1]
    return tuple({go.format_move(int(point)) for point in np.flatnonzero(color)} for color in (black, white))


def check_position(go, states, reference):
    """Compare legal moves, scores and planes with the reference."""
    legal, repeating = reference.find_moves()
    assert set(np.flatnonzero(go.legal_moves(states)[0])) == {*legal, go.num_moves - 1}
    sign = 1 if reference.player == 0 else -1
    score = reference.board.area_score()
    assert go.scores(states)[0] == sign * (score - go.komi)
    assert go.owners(states)[0].sum() == sign * score
    own = COLORS[reference.player]
    position = reference.get_position()
    expected = np.zeros((17, len(position)), np.float32)
    for point, color in enumerate(position):
        if color:
            expected[0 if color == own else 1, point] = 1
            if (count := reference.count_liberties(point)) <= 3:
                expected[(1 if color == own else 4) + count, point] = 1
    for index, move in enumerate(reference.moves[:-6:-1]):
        if move < len(position):
            expected[8 + index, move] = 1
    expected[13] = reference.moves[-1:] == [len(position)]
    expected[14, list(repeating)] = 1
    expected[15] = np.float32(-sign * go.komi / 20)
    expected[16] = 1
    np.testing.assert_array_equal(go.planes(states)[0].reshape(17, -1), expected)
    return len(repeating)


def play_reference_game(size, seed, interval=1):
    """Play a random game, and compare every ``interval``-th position with the reference.

    Returns the number of superko points.
    """
    go, reference, rng = Go(size), ReferenceGame(size), np.random.default_rng(seed)
    states, num_repeating = go.build_initial_state()[None], 0
    while np.isnan(go.outcome(states)[0]):
        if len(reference.moves) % interval == 0:
            num_repeating += check_position(go, states, reference)
        points = np.flatnonzero(go.legal_moves(states)[0, :-1])
        is_pass = not len(points) or rng.random() < 0.04
        move = go.num_moves - 1 if is_pass else int(rng.choice(points))
        reference.play(move)
        states = go.play(states, np.array([move]))
    assert reference.passes == 2 or len(reference.moves) == go.max_moves
    sign = 1 if reference.player == 0 else -1
    assert go.outcome(states)[0] == np.sign(sign * (reference.board.area_score() - go.komi))
    assert not go.legal_moves(states).any()
    return num_repeating


@pytest.mark.parametrize(("size", "num_games"), [(2, 12), (3, 12), (4, 8), (5, 6), (7, 2), (9, 1)])
def test_random_games_agree_with_sgfmill(size, num_games):
    num_repeating = sum(play_reference_game(size, seed) for seed in range(num_games))
    assert num_repeating > 0 or size > 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "num_games", "interval"), [(2, 300, 1), (3, 200, 1), (4, 100, 1), (5, 60, 1), (9, 5, 1), (19, 2, 20)]
)
def test_many_random_games_agree_with_sgfmill(size, num_games, interval):
    for seed in range(1000, 1000 + num_games):
        play_reference_game(size, seed, interval)


@pytest.mark.slow
@pytest.mark.parametrize("size", [5, 9])
def test_random_games_agree_with_open_spiel(size):
    pyspiel = pytest.importorskip("pyspiel", reason="needs open_spiel, which is not a dependency")
    go = Go(size)
    game = pyspiel.load_game(f"go(board_size={size},komi={go.komi},max_game_length={go.max_moves})")
    for seed in range(200):
        states, other, rng = go.build_initial_state()[None], game.new_initial_state(), np.random.default_rng(seed)
        while np.isnan(go.outcome(states)[0]):
            legal = set(np.flatnonzero(go.legal_moves(states)[0]))
            repeating = set(np.flatnonzero(go.planes(states)[0, 14]))
            assert legal <= set(other.legal_actions()) <= legal | repeating
            move = choose_random_move(go, states, rng)
            states = go.play(states, np.array([move]))
            other.apply_action(move)
        assert other.is_terminal()
        assert go.outcome(states)[0] == other.returns()[states[0, 0] - 1]


def test_capture_of_one_stone():
    go = Go(5)
    states = play(go, go.build_initial_state()[None], "B1 A1 A2")
    assert list_stones(go, states) == ({"B1", "A2"}, set())


def test_capture_of_three_groups():
    go = Go(5)
    states = build_states(go, "C1 B2 D2 A3 E3 B4 D4", "C2 B3 D3")  # of one stone each, their last liberty C3
    states = play(go, states, "C3")
    assert list_stones(go, states)[1] == set()
    assert go.scores(states)[0] == -(25 - 24.5)


def test_ko():
    go = Go(5)
    states = build_states(go, "B1 A2 B3", "C1 D2 C3 B2", player=0)
    states = play(go, states, "C2")  # captures B2
    assert list_stones(go, states)[1] == {"C1", "D2", "C3"}
    assert not is_legal(go, states, "B2")
    assert np.flatnonzero(go.planes(states)[0, 14]).tolist() == [go.parse_move("B2")]
    with pytest.raises(ValueError, match="B2 is illegal: it recreates an earlier position"):
        play(go, states, "B2")
    states = play(go, states, "E5 A5 B2")  # after another move of each side
    assert "C2" not in list_stones(go, states)[0]
    assert not is_legal(go, states, "C2")


def test_sending_two_returning_one():
    """A cycle of three moves, which the rule of simple ko allows."""
    go = Go(5)
    states = play(go, build_states(go, **SENDING_TWO), "A1 C1")
    assert list_stones(go, states)[0] == {"D1", "C2"}
    assert not is_legal(go, states, "B1")
    with pytest.raises(ValueError, match="superko"):
        play(go, states, "B1")
    states = play(go, states, "E5 pass B1")
    assert list_stones(go, states) == ({"B1", "D1", "C2", "E5"}, {"A2", "B2"})


def test_superko_compares_with_the_position_at_the_start_and_with_any_side_to_move():
    go = Go(5)
    states = play(go, build_states(go, **SENDING_TWO, player=1), "pass A1 C1")
    assert not is_legal(go, states, "B1")  # positional superko: the side to move does not matter
    states = play(go, build_states(go, **SENDING_TWO), "A1 C1 pass E5 B1")
    assert is_legal(go, play(go, states, "pass"), "A1")  # E5 makes it another position


def test_triple_ko():
    """Three kos, of which the players take one each in turn: the sixth capture recreates the first position."""
    go = Go(9)
    black, white = [], []
    for row, taken_by_black in ((1, False), (4, False), (7, True)):
        black += [f"B{row + 1}", f"C{row}", f"C{row + 2}"]
        white += [f"E{row + 1}", f"D{row}", f"D{row + 2}"]
        if taken_by_black:
            black.append(f"D{row + 1}")
        else:
            white.append(f"C{row + 1}")
    states = build_states(go, " ".join(black), " ".join(white))
    states = play(go, states, "D2 C8 D5 C2 D8")
    assert not is_legal(go, states, "C5")
    assert is_legal(go, play(go, states, "A9 J9"), "C5")


def test_suicide():
    go = Go(5)
    states = build_states(go, "A2 B1")
    assert is_legal(go, states, "A1")
    states = play(go, states, "E5")
    assert not is_legal(go, states, "A1")
    with pytest.raises(ValueError, match="A1 is illegal: suicide is forbidden"):
        play(go, states, "A1")


def test_suicide_of_a_group():
    go = Go(5)
    states = build_states(go, "A3 B2 C1", "A2", player=1)
    assert is_legal(go, states, "B1")
    states = play(go, states, "B1 E5")
    assert not is_legal(go, states, "A1")


def test_capture_is_not_suicide():
    go = Go(5)
    states = build_states(go, "A2 B1", "A3 B2 C1", player=1)
    assert is_legal(go, states, "A1")
    assert list_stones(go, play(go, states, "A1"))[0] == set()


def test_snapback():
    go = Go(5)
    states = build_states(go, "A3 B3 C2 C1", "A2 B2")
    states = play(go, states, "A1 B1")
    assert list_stones(go, states)[0] == {"A3", "B3", "C2", "C1"}
    states = play(go, states, "A1")  # where a stone was just captured
    assert list_stones(go, states) == ({"A1", "A3", "B3", "C2", "C1"}, set())


def test_area_score():
    """Columns A and B are Black's and E is White's; C and D touch both colors."""
    go = Go(5, komi=0.5)
    states = build_states(go, "B1 B2 B3 B4 B5", "E1 E2 E3 E4 E5", player=1)
    assert go.scores(states)[0] == -(10 - 5 - 0.5)
    owners = go.owners(states)[0].reshape(5, 5)
    np.testing.assert_array_equal(owners, np.tile([-1, -1, 0, 0, 1], (5, 1)))
    np.testing.assert_array_equal(go.planes(states)[0, 15], np.full((5, 5), np.float32(0.5 / 20)))
    assert np.isnan(go.outcome(states)[0])
    assert np.isnan(go.outcome(play(go, states, "pass"))[0])
    assert go.outcome(play(go, states, "pass pass"))[0] == -1  # White is to move
    assert go.outcome(play(go, states, "pass A1 pass D1 pass pass"))[0] == -1


@pytest.mark.parametrize(("komi", "outcome"), [(-1, 1), (0, 0), (1, -1)])
def test_outcome_of_an_empty_board_depends_on_komi(komi, outcome):
    go = Go(3, komi)
    assert go.outcome(play(go, go.build_initial_state()[None], "pass pass"))[0] == outcome


def test_maximum_number_of_moves():
    go = Go(5)
    go.max_moves = 3
    states = play(go, go.build_initial_state()[None], "A1 pass B1")
    assert go.outcome(states)[0] == -np.sign(25 - 24.5)  # White is to move
    with pytest.raises(ValueError, match="a game on 5×5 ends after 3 moves"):
        play(go, states, "A2")


def test_state_holds_the_longest_game():
    go, rng = Go(2), np.random.default_rng(0)
    lengths = []
    for _ in range(50):
        states, count = go.build_initial_state()[None], 0
        while np.isnan(go.outcome(states)[0]):
            points = np.flatnonzero(go.legal_moves(states)[0, :4])
            states = go.play(states, np.array([rng.choice(points) if len(points) else 4]))
            count += 1
        lengths.append(count)
    assert max(lengths) <= go.max_moves


def test_passes_do_not_count_as_repetitions():
    go = Go(5)
    states = play(go, go.build_initial_state()[None], "C3 pass D4 pass E5 pass")
    assert is_legal(go, states, "pass")
    assert go.planes(states)[0, 13].all()
    assert not go.planes(play(go, states, "A1"))[0, 13].any()


@pytest.mark.parametrize(
    ("moves", "message"),
    [("A1 A1", "A1 is illegal: the point is occupied"), ("pass pass A1", "A1 is illegal: the game is over")],
)
def test_illegal_move(moves, message):
    go = Go(5)
    with pytest.raises(ValueError, match=message):
        play(go, go.build_initial_state()[None], moves)


@pytest.mark.parametrize("moves", [[-1], [26], [0, 1], []])
def test_move_that_does_not_exist(moves):
    go = Go(5)
    with pytest.raises(ValueError, match="expected 1 moves from 0 to 25"):
        go.play(go.build_initial_state()[None], np.array(moves, np.int64))


def test_states_of_another_board():
    with pytest.raises(ValueError, match=r"states of go9 should be uint8 of the shape \(N, "):
        Go(9).legal_moves(Go(5).build_initial_state()[None])


def test_unaligned_and_strided_states():
    go = Go(5)
    state = play(go, go.build_initial_state()[None], "A1 B1 C3")[0]
    buffer = np.zeros(3 * len(state) + 3, np.uint8)
    unaligned = buffer[3:].reshape(3, len(state))
    unaligned[:] = state
    for states in (unaligned, np.repeat(state[None], 6, axis=0)[::2], np.asfortranarray(unaligned)):
        np.testing.assert_array_equal(go.legal_moves(states), np.repeat(go.legal_moves(state[None]), 3, axis=0))
        np.testing.assert_array_equal(go.planes(states), np.repeat(go.planes(state[None]), 3, axis=0))
        played = go.play(states, np.array([7, 8, 9]))
        np.testing.assert_array_equal(played[1], go.play(state[None], np.array([8]))[0])


def test_place_stones():
    go = Go(9)
    states = build_states(go, "C3 G7", "E5", player=1)
    assert list_stones(go, states) == ({"C3", "G7"}, {"E5"})
    assert np.isnan(go.outcome(states)[0])
    states = play(go, states, "D4")
    assert list_stones(go, states)[1] == {"E5", "D4"}


@pytest.mark.parametrize(
    ("black", "white", "message"),
    [([0], [0], "different points"), ([81], [], "below 81"), ([-1], [], "below 81"), ([1, 9], [0], "A1 has no lib")],
)
def test_invalid_stones(black, white, message):
    with pytest.raises(ValueError, match=message):
        Go(9).place_stones(black, white)


def test_moves_have_the_coordinates_of_gtp():
    go = Go(9)
    assert [go.format_move(move) for move in (0, 7, 8, 9, 80, 81)] == ["A1", "H1", "J1", "A2", "J9", "pass"]
    assert [go.parse_move(text) for text in ("a1", " J9 ", "PASS")] == [0, 80, 81]
    for text in ("I1", "A10", "A0", "", "resign"):
        with pytest.raises(ValueError, match="is not a move of go9"):
            go.parse_move(text)


@pytest.mark.parametrize(("size", "komi"), [(5, 24.5), (7, 8.5), (9, 7.5), (19, 7.5)])
def test_default_komi(size, komi):
    assert Go(size).komi == komi
    assert Go(size, 0).komi == 0


@pytest.mark.parametrize(("size", "komi"), [(1, None), (20, None), (9, float("nan")), (9, float("inf"))])
def test_invalid_board(size, komi):
    with pytest.raises(UsageError, match="should be between"):
        Go(size, komi)


def test_symmetries_are_the_eight_of_the_square():
    cells, moves = Go(3).symmetries()
    assert len({tuple(cell) for cell in cells}) == 8
    np.testing.assert_array_equal(moves[:, :9], cells)
    assert (moves[:, 9] == 9).all()
    neighbors = {frozenset((a, b)) for a in range(9) for b in (a + 1, a + 3) if b < 9 and (b - a == 3 or b % 3)}
    for cell in cells:
        assert {frozenset(int(cell[point]) for point in pair) for pair in neighbors} == neighbors

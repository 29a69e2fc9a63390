"""Connect Four: rules, the exact solver, and the files that are part of the package."""

import functools

import numpy as np
import pytest

from fukami.self_play import connect_four_solver as solver
from fukami.self_play.connect_four import ConnectFour, compute_keys, format_position, parse_position, view_bitboards
from fukami.self_play.connect_four_positions import load_positions

GAME = ConnectFour()
DRAWN = "xxooxxo" + "ooxxoox" + "xxooxxo" + "ooxxoox" + "xxooxxo" + "oxoxoox"  # full, without four in a row
SPLITS = [(split, kind) for split in ("val", "test") for kind in ("random", "sensible")]

needs_table = pytest.mark.skipif(
    not solver.TABLE_FILE.is_file(),
    reason="connect_four_outcomes.bin is missing; benchmarks/connect_four_tables.py outcomes computes it",
)


@pytest.fixture
def _without_tables():
    """Do not keep tables of other files."""
    solver._load_table.cache_clear()
    yield
    solver._load_table.cache_clear()


def play_moves(moves):
    """Play moves, columns from 1, from the empty board."""
    states = GAME.build_initial_state()[None]
    for move in moves:
        states = GAME.play(states, np.array([int(move) - 1]))
    return states


def play_random_games(count, stones, seed):
    """Return positions of random games that are not over at a number of stones."""
    random, found = np.random.default_rng(seed), []
    while sum(map(len, found)) < count:
        states = np.repeat(GAME.build_initial_state()[None], 4 * count, axis=0)
        for _ in range(stones):
            moves = (GAME.legal_moves(states) * random.random((len(states), 7))).argmax(1)
            states = GAME.play(states, moves)
            states = states[np.isnan(GAME.outcome(states))]
        found.append(states)
    return np.concatenate(found)[:count]


def compute_minimax(states):
    """Compute the outcomes by the rules alone, all positions of a number of stones at once."""
    outcomes = GAME.outcome(states)
    in_progress = np.flatnonzero(np.isnan(outcomes))
    if len(in_progress):
        parents, moves = np.nonzero(GAME.legal_moves(states[in_progress]))
        children, inverse = np.unique(GAME.play(states[in_progress[parents]], moves), axis=0, return_inverse=True)
        values = -compute_minimax(children)[inverse.ravel()]
        outcomes[in_progress] = np.maximum.reduceat(values, np.searchsorted(parents, np.arange(len(in_progress))))
    return outcomes


def has_line(cells, stone):
    """Return whether the rows ``cells`` contain four in a row, by trying each cell and direction."""
    return any(
        all(
            0 <= row + i * dy < 6 and 0 <= column + i * dx < 7 and cells[row + i * dy][column + i * dx] == stone
            for i in range(4)
        )
        for row in range(6) for column in range(7) for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1))
    )  # fmt: skip


def test_numbers_of_games():
    """The published numbers of sequences of moves."""
    states, counts = GAME.build_initial_state()[None], [1]
    for _ in range(8):
        states = states[np.isnan(GAME.outcome(states))]
        games, moves = np.nonzero(GAME.legal_moves(states))
        counts.append(len(games))
        states = GAME.play(states[games], moves)
    assert counts == [1, 7, 49, 343, 2401, 16807, 117649, 823536, 5673234]


def test_games_equal_those_of_plain_rules():
    """Random games against rules on lists of lists."""
    random = np.random.default_rng(0)
    results = []
    for _ in range(60):
        cells, state = [["."] * 7 for _ in range(6)], GAME.build_initial_state()
        for turn in range(43):
            own, opponent = "xo"[turn % 2], "ox"[turn % 2]
            planes = GAME.planes(state[None])[0]
            assert planes.tolist() == [
                [[float(cell == stone) for cell in row] for row in cells] for stone in (own, opponent)
            ]
            legal = [cells[5][column] == "." for column in range(7)]
            assert GAME.legal_moves(state[None])[0].tolist() == legal
            outcome = -1 if has_line(cells, opponent) else np.nan if any(legal) else 0
            np.testing.assert_equal(GAME.outcome(state[None])[0], np.float32(outcome))
            if not np.isnan(outcome):
                results.append(outcome)
                break
            text = "".join(map("".join, cells)).translate(str.maketrans({own: "x", opponent: "o"}))
            assert format_position(state) == text
            np.testing.assert_array_equal(parse_position(text), state)
            column = int(random.choice(np.flatnonzero(legal)))
            before, played = state.copy(), GAME.play(state[None], np.array([column]))[0]
            np.testing.assert_array_equal(state, before)
            state = played
            next(row for row in cells if row[column] == ".")[column] = own
    assert len(results) == 60


@pytest.mark.parametrize(
    "moves",
    ["1212121", "1122334", "4455667", "12233434474", "76655454414"],
    ids=["vertical", "horizontal", "right edge", "diagonal", "antidiagonal"],
)
def test_four_in_a_row_wins(moves):
    before, after = play_moves(moves[:-1]), play_moves(moves)
    assert np.isnan(GAME.outcome(before)[0])
    assert GAME.outcome(after)[0] == -1


def test_all_lines_win_and_no_other_four_cells():
    """All 69 lines, those that continue at the next row or column, and random sets of four cells."""
    cells = [(row, column) for row in range(6) for column in range(7)]
    random, sets = np.random.default_rng(0), set()
    for row, column in cells:
        for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
            line = [(row + i * dy, column + i * dx) for i in range(4)]
            if line[-1] in cells:
                sets.add(tuple(line))
    lines = len(sets)
    for _ in range(2000):
        sets.add(tuple(cells[i] for i in random.choice(42, 4, replace=False)))
    flat = [tuple(range(i, i + 4 * step, step)) for step in range(1, 9) for i in range(42 - 3 * step)]
    sets |= {tuple(divmod(i, 7) for i in indices) for indices in flat}
    sets |= {tuple(divmod(i, 6)[::-1] for i in indices) for indices in flat}
    states = np.zeros((len(sets), 2), np.int64)
    states[:, 1] = [sum(1 << 7 * column + row for row, column in four) for four in sets]
    boards = [[["o" if (r, c) in four else "." for c in range(7)] for r in range(6)] for four in sets]
    expected = [has_line(board, "o") for board in boards]
    assert lines == 69
    assert 69 <= sum(expected) < len(sets) - 2000
    assert (GAME.outcome(states.view(np.uint8)) == -1).tolist() == expected


def test_full_board_is_a_draw():
    state = parse_position(DRAWN[:-1] + ".")
    assert GAME.legal_moves(state[None])[0].tolist() == [False] * 6 + [True]
    full = GAME.play(state[None], np.array([6]))
    assert GAME.outcome(full).tolist() == [0]
    assert not GAME.legal_moves(full).any()


def test_mirrored_games_are_equal():
    symmetries = GAME.symmetries()
    assert symmetries.cells.shape == (2, 42)
    assert symmetries.moves.tolist() == [[0, 1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1, 0]]
    states = np.repeat(GAME.build_initial_state()[None], 200, axis=0)
    mirrored, random = states.copy(), np.random.default_rng(1)
    for _ in range(42):
        moves = (GAME.legal_moves(states) * random.random((len(states), 7))).argmax(1)
        states, mirrored = GAME.play(states, moves), GAME.play(mirrored, symmetries.moves[1][moves])
        planes = GAME.planes(states).reshape(len(states), 2, 42)
        np.testing.assert_array_equal(
            planes[..., symmetries.cells[1]], GAME.planes(mirrored).reshape(len(states), 2, 42)
        )
        np.testing.assert_array_equal(GAME.legal_moves(states)[:, symmetries.moves[1]], GAME.legal_moves(mirrored))
        np.testing.assert_array_equal(GAME.outcome(states), GAME.outcome(mirrored))
        np.testing.assert_array_equal(compute_keys(view_bitboards(states)), compute_keys(view_bitboards(mirrored)))
        in_progress = np.isnan(GAME.outcome(states))
        states, mirrored = states[in_progress], mirrored[in_progress]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x.o", "has 42 cells, 6 rows of 7 from the bottom; 'x.o' has 3"),
        ("." * 43, "has 43"),
        ("..X".ljust(42, "."), "cell 3 of the position .* is 'X'; write x"),
        ("x......" + ".o.....".ljust(35, "."), "stone above an empty cell, in column 2, row 2"),
        ("xxo".ljust(42, "."), "has 2 stones x and 1 stones o"),
        ("xoo.o".ljust(42, "."), "has 1 stones x and 3 stones o"),
        ("oooo.xx" + "x......".ljust(35, "."), "game is over .*: four in a row of o"),
        ("xxxx.oo" + "o.o....".ljust(35, "."), "game is over .*: four in a row of x"),
        ("xxxxo.." + "oooox..".ljust(35, "."), "game is over .*: four in a row of x and o"),
        (DRAWN, "game is over .*: the board is full"),
    ],
)
def test_invalid_positions_have_clear_errors(text, message):
    with pytest.raises(ValueError, match=message):
        parse_position(text)


@pytest.mark.parametrize("stones", range(30, 41))
def test_solver_equals_minimax(stones):
    states = play_random_games(120, stones, seed=stones)
    expected = compute_minimax(states)
    legal = GAME.legal_moves(states)
    games, moves = np.nonzero(legal)
    values = np.full(legal.shape, -2.0)
    values[games, moves] = -compute_minimax(GAME.play(states[games], moves))
    np.testing.assert_array_equal(solver.solve(states), expected)
    np.testing.assert_array_equal(solver.solve_moves(states), values)
    np.testing.assert_array_equal(solver.find_optimal_moves(states), values == expected[:, None])
    assert len(np.unique(expected)) == 3


def test_solver_accepts_finished_games():
    full = parse_position(DRAWN[:-1] + ".")
    states = np.concatenate([play_moves("1212121"), GAME.play(full[None], np.array([6]))])
    assert solver.solve(states).tolist() == [-1, 0]


def test_solver_finds_forced_wins():
    """Two stones with empty cells on both sides: a third one threatens to win on both."""
    assert solver.solve(play_moves("4455")).tolist() == [1]
    assert solver.find_optimal_moves(play_moves("4455"))[0, [2, 5]].all()
    assert solver.solve_moves(play_moves("44556"))[0].tolist() == [-1] * 7


@pytest.mark.usefixtures("_without_tables")
def test_solver_needs_no_table(monkeypatch, tmp_path):
    monkeypatch.setattr(solver, "TABLE_FILE", tmp_path / "missing.bin")
    assert solver.solve(play_moves("4455")).tolist() == [1]


@pytest.mark.usefixtures("_without_tables")
def test_solver_searches_down_to_the_table(monkeypatch, tmp_path):
    """A table of random outcomes, and minimax with them."""
    positions = solver.enumerate_positions(6)
    keys = compute_keys(positions)
    assert (np.diff(keys) > 0).all()
    outcomes = np.random.default_rng(0).integers(-1, 2, len(keys))
    bits = "".join(f"{outcome + 1:02b}"[::-1] for outcome in outcomes)  # the lowest bit first
    data = [int(bits[i : i + 8][::-1], 2) for i in range(0, len(bits), 8)]
    (tmp_path / "table.bin").write_bytes(bytes(data))
    monkeypatch.setattr(solver, "TABLE_FILE", tmp_path / "table.bin")
    table = dict(zip(keys.tolist(), outcomes.tolist(), strict=True))

    @functools.cache
    def compute_outcome(moves):
        states = play_moves(moves)
        if len(moves) == 6:
            return table[compute_keys(view_bitboards(states))[0]]
        return max(-compute_outcome(moves + str(move)) for move in range(1, 8))

    for moves in ("121212", "4343", "712", "453212"):
        assert solver.solve(play_moves(moves)).tolist() == [compute_outcome(moves)], moves


@needs_table
def test_first_moves_have_the_published_outcomes():
    """The first player wins in the center, draws beside it and loses elsewhere (Allis 1988)."""
    empty = GAME.build_initial_state()[None]
    assert solver.solve_moves(empty).tolist() == [[-1, -1, 0, 1, 0, -1, -1]]
    assert solver.find_optimal_moves(empty).nonzero()[1].tolist() == [3]
    assert solver.solve(np.concatenate([play_moves(move) for move in "1234567"])).tolist() == [1, 1, 0, -1, 0, 1, 1]


@needs_table
@pytest.mark.usefixtures("_without_tables")
def test_table_contains_direct_wins_and_losses():
    """The outcomes of the positions of six stones that end within two moves by the rules alone."""
    states = solver.enumerate_positions(6).view(np.uint8)
    games, moves = np.nonzero(GAME.legal_moves(states))
    children = GAME.play(states[games], moves)
    wins = np.bincount(games, GAME.outcome(children) == -1) > 0
    parents, replies = np.nonzero(GAME.legal_moves(children))
    loses = np.bincount(parents, GAME.outcome(GAME.play(children[parents], replies)) == -1) > 0
    losses = (np.bincount(games, loses) == np.bincount(games)) & ~wins
    solved = solver.solve(states)
    assert wins.any()
    assert losses.any()
    assert (solved[wins] == 1).all()
    assert (solved[losses] == -1).all()


def test_evaluation_positions_are_distinct():
    states = np.concatenate([load_positions(*split)[0] for split in SPLITS])
    assert len(states) == 3000
    assert len(np.unique(compute_keys(view_bitboards(states)))) == 3000
    assert np.isnan(GAME.outcome(states)).all()
    for state in states:
        np.testing.assert_array_equal(parse_position(format_position(state)), state)


@pytest.mark.parametrize(("split", "kind"), SPLITS)
def test_evaluation_positions_have_optimal_moves(split, kind):
    """The moves of all differ in outcome; those of the positions that are solved quickly are optimal."""
    states, optimal = load_positions(split, kind)
    stones = np.bitwise_count(states).sum(1)
    assert states.shape == ({"val": 500, "test": 1000}[split], 16)
    assert (stones.min(), stones.max() <= 36) == (10, True)
    assert optimal.any(1).all()
    assert (optimal <= GAME.legal_moves(states)).all()
    assert (optimal != GAME.legal_moves(states)).any(1).all()
    late = stones >= 20
    np.testing.assert_array_equal(solver.find_optimal_moves(states[late]), optimal[late])

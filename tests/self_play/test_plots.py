"""Tests of the drawings of boards: where the stones are, and what the bars show."""

import numpy as np
import pytest

from fukami.self_play.connect_four import ConnectFour
from fukami.self_play.go import Go
from fukami.self_play.match import RESIGN, GameRecord
from fukami.self_play.plots import (
    BOARD_SIZE,
    MARGIN,
    PANEL_LEFT,
    PANEL_WIDTH,
    describe_outcome,
    draw_board,
    draw_game,
    list_star_points,
    rank_moves,
)
from fukami.self_play.search import SearchResult
from fukami.self_play.tic_tac_toe import TicTacToe

RED = (209, 73, 91)  # of the move that is played


def play_moves(game, *moves):
    record = GameRecord(game)
    for move in moves:
        record.play(move)
    return record


def build_result(policies, visits, values):
    policies, visits = np.array(policies, np.float32), np.array(visits, np.int32)
    values = np.array(values, np.float32)
    moves = policies.argmax(1)
    return SearchResult(moves, policies, visits, values, np.zeros(len(values), bool), policies, values)


def find_color(image, color, tolerance=12):
    """Return the pixels ``(N, 2)`` of a color as x and y."""
    close = (np.abs(np.asarray(image, int) - color) <= tolerance).all(axis=2)
    return np.argwhere(close)[:, ::-1]


def draw_record(record, **options):
    return draw_board(record.game, record.state, record.player, **options)


def test_stones_of_connect_four_are_at_the_bottom():
    image = draw_record(play_moves(ConnectFour(), 3, 3, 6))
    cell, bottom = BOARD_SIZE / 7, MARGIN + BOARD_SIZE / 7 * 5.5
    for color, column, row in (((250, 204, 48), 3, 0), ((214, 50, 50), 3, 1), ((250, 204, 48), 6, 0)):
        x, y = MARGIN + cell * (column + 0.5) - 12, bottom - cell * row
        assert np.abs(np.subtract(image.getpixel((int(x), int(y))), color)).max() < 12
    assert find_color(image, (34, 34, 34)).size > 0


def test_last_stone_of_connect_four_has_a_mark():
    record = play_moves(ConnectFour(), 3, 2)
    x, y = MARGIN + BOARD_SIZE / 7 * 2.5, MARGIN + BOARD_SIZE / 7 * 5.5
    assert max(draw_record(record, last_move=2).getpixel((int(x), int(y)))) < 60
    assert draw_record(record).getpixel((int(x), int(y)))[0] > 190


@pytest.mark.parametrize(("vertex", "is_right", "is_top"), [("A1", 0, 0), ("J1", 1, 0), ("A9", 0, 1), ("J9", 1, 1)])
def test_stones_of_go_are_at_their_coordinates(vertex, is_right, is_top):
    go = Go(9)
    record = play_moves(go, go.parse_move(vertex))
    x, y = find_color(draw_record(record, last_move=record.moves[-1]).crop((0, 0, PANEL_LEFT, 9999)), RED).mean(axis=0)
    assert (x > MARGIN + BOARD_SIZE * 0.85) == is_right
    assert (x < MARGIN + BOARD_SIZE * 0.15) == (not is_right)
    assert (y < MARGIN + BOARD_SIZE * 0.15) == is_top
    assert (y > MARGIN + BOARD_SIZE * 0.85) == (not is_top)


@pytest.mark.parametrize(("moves", "value", "expected"), [((3,), 0.5, 0.25), ((3, 3), 0.5, 0.75), ((), -1, 0.0)])
def test_bar_is_the_win_probability_of_the_first_player(moves, value, expected):
    result = build_result([[1 / 7] * 7], [[1] * 7], [value])
    image = draw_record(play_moves(ConnectFour(), *moves), result=result)
    row = np.asarray(image, int)[MARGIN + 60, PANEL_LEFT : PANEL_LEFT + PANEL_WIDTH]
    yellow = (np.abs(row - (250, 204, 48)) < 12).all(axis=1)
    assert yellow.mean() == pytest.approx(expected, abs=0.02)


def test_moves_are_ranked_by_visits_and_policy():
    result = build_result([[0.1, 0.2, 0.0, 0.4, 0.3, 0.0, 0.0]], [[5, 0, 9, 2, 0, 2, 0]], [0])
    assert rank_moves(result, 8) == [2, 0, 3, 5, 4, 1]
    assert rank_moves(result, 2) == [2, 0]


def test_move_that_is_played_is_red():
    record = play_moves(ConnectFour(), 3)
    result = build_result([[0.5, 0.5, 0, 0, 0, 0, 0]], [[60, 40, 0, 0, 0, 0, 0]], [0])
    images = [draw_record(record, result=result, next_move=move) for move in (None, 0, 1)]
    rows = [find_color(image, RED)[:, 1] for image in images]
    assert rows[0].size == 0
    assert 0 < rows[1].max() < rows[2].min()


def test_visits_are_on_the_go_board():
    record = play_moves(Go(5), 0)
    visits = np.zeros((1, 26), int)
    visits[0, [12, 25]] = 30, 5  # C3 and pass
    plain, image = draw_record(record), draw_record(record, result=build_result(visits / 35, visits, [0]))
    board = (0, 0, MARGIN + BOARD_SIZE, 9999)
    changed = np.argwhere((np.asarray(plain.crop(board)) != np.asarray(image.crop(board))).any(axis=2))
    assert np.abs(changed.mean(axis=0) - (MARGIN + BOARD_SIZE / 2)).max() < 20  # only around the center


def test_search_without_simulations_has_no_visits():
    record = play_moves(TicTacToe(), 0)
    policy = np.full((1, 9), 1 / 9)
    images = [draw_record(record, result=build_result(policy, np.full((1, 9), n), [0])) for n in (0, 1)]
    num_bar_pixels = [len(find_color(image, (160, 188, 216))) for image in images]
    assert num_bar_pixels[0] < 100  # the edges of other bars and letters
    assert num_bar_pixels[1] > 8 * 64 * 14


def test_game_has_a_frame_for_each_move_and_the_end():
    for game, moves in ((ConnectFour(), (0, 1, 0, 1, 0, 1, 0)), (TicTacToe(), (0, 3, 1)), (Go(5), (12, 25, 25))):
        record = play_moves(game, *moves)
        shape = (len(moves), game.num_moves)
        frames = draw_game(record, build_result(np.ones(shape) / shape[1], np.ones(shape), np.zeros(len(moves))))
        assert len(frames) == len(moves) + 1
        assert len({frame.size for frame in frames}) == 1
        assert all(side % 2 == 0 for side in frames[0].size)  # for MP4


def test_outcomes_are_described():
    assert describe_outcome(play_moves(ConnectFour(), 0, 1, 0, 1, 0, 1)) == "unfinished"
    assert describe_outcome(play_moves(ConnectFour(), 0, 1, 0, 1, 0, 1, 0)) == "yellow wins"
    assert describe_outcome(play_moves(ConnectFour(), 6, 0, 1, 0, 1, 0, 1, 0)) == "red wins"
    assert describe_outcome(play_moves(TicTacToe(), 0, 4, 8, 1, 7, 6, 2, 5, 3)) == "draw"
    assert describe_outcome(play_moves(Go(5, 0.5), 12, 25, 25)) == "black wins by 24.5"
    assert describe_outcome(play_moves(Go(5, 0.5), 25, 25)) == "white wins by 0.5"
    assert describe_outcome(play_moves(Go(5), 12, RESIGN)) == "black wins by resignation"


def test_star_points():
    assert sorted(list_star_points(19)) == [(row, column) for row in (3, 9, 15) for column in (3, 9, 15)]
    assert sorted(list_star_points(9)) == [(2, 2), (2, 6), (4, 4), (6, 2), (6, 6)]
    assert sorted(list_star_points(13)) == [(3, 3), (3, 9), (6, 6), (9, 3), (9, 9)]
    assert list_star_points(5) == [(2, 2)]
    assert sorted(list_star_points(8)) == [(2, 2), (2, 5), (5, 2), (5, 5)]

"""``fukami serve`` with self-play: the API equals ``predict``, hostile requests do no harm, a browser plays a game."""

import html
import json
import os
import re
import shutil
import sys
import threading
import time
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import uvicorn

from fukami import get_recipe
from fukami.cli import serve as command
from fukami.engine import run_record, run_weights
from fukami.engine.runtime import Runtime
from fukami.models.alphago import alphago_zero
from fukami.self_play.connect_four import ConnectFour
from fukami.self_play.go import Go
from fukami.self_play.match import GameRecord
from fukami.self_play.policy_task import PolicyTask
from fukami.self_play.search import SearchOptions
from fukami.self_play.task import SelfPlayTask
from fukami.self_play.tic_tac_toe import TicTacToe
from fukami.serving import app as serving
from fukami.serving import board_page, boards
from fukami.serving.board_page import PageGame, build_frame

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "Using `httpx`")  # deprecation warning of Starlette
    from fastapi.testclient import TestClient

RUN_INFO = {"recipe": "alphago-zero", "members": 1, "precision": "float32", "versions": {"fukami": "0.1.0"}}
SGF = b"(;GM[1]SZ[5];B[cc];W[bb];B[])"
POSITION = "x" + "." * 41  # of Connect Four, with too many stones of the side to move
VALID_POSITION = "o" + "." * 41


class DoubledMoves(TicTacToe):
    """Tic-tac-toe with two moves for each cell, so that cells do not identify moves."""

    name, num_moves = "doubled", 18

    def legal_moves(self, states):
        return np.tile(super().legal_moves(states), 2)

    def play(self, states, moves):
        return super().play(states, moves % 9)


def set_up(task):
    """Move a task to the CPU, with random weights that differ from those at the start of training."""
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in task.ema_model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=random)
    task.setup(Runtime.start("cpu", "float32"))
    return task


def build_task(*games):
    return set_up(get_recipe("alphago-zero")(game=games, num_blocks=1, num_channels=8, simulations=8).build_task(()))


@pytest.fixture(scope="module")
def connect_four():
    return build_task("connect4")


@pytest.fixture(scope="module")
def go():
    return build_task("go5", "go7")


def make_client(task, **options):
    """Create a client that also returns the responses of server errors."""
    return TestClient(serving.create_app(task, RUN_INFO, **options), "http://localhost", raise_server_exceptions=False)


@pytest.fixture(scope="module")
def client(connect_four):
    return make_client(connect_four)


@pytest.fixture(scope="module")
def go_client(go):
    return make_client(go)


def play_moves(game, *moves):
    record = GameRecord(game)
    for move in moves:
        record.play(game.parse_move(move))
    return record


def test_prediction_equals_that_of_predict(client, connect_four):
    record = play_moves(ConnectFour(), "4", "4", "5")
    for simulations in (0, 20, None):
        fields = {"moves": ["4", "4", "5"], **({} if simulations is None else {"simulations": simulations})}
        response = client.post("/predict", json=fields)
        assert response.status_code == 200
        with connect_four.evaluation_mode():
            expected = connect_four.describe_result(connect_four.search(record.state[None], simulations))
        assert expected["simulations"] == (8 if simulations is None else simulations)
        assert response.json() == expected | {
            "game": "connect4",
            "board": [[0] * 7] * 4 + [[0, 0, 0, 2, 0, 0, 0], [0, 0, 0, 1, 1, 0, 0]],
            "legal_moves": list("1234567"),
            "player": "red",
            "over": False,
            "outcome": None,
            "result": None,
        }


def test_prediction_of_another_board(go_client):
    response = go_client.post("/predict", json={"game": "go7", "moves": ["g7", "PASS"], "simulations": 2}).json()
    assert response["board"] == [[0] * 6 + [1], *[[0] * 7] * 6]
    assert (response["game"], response["player"], len(response["legal_moves"])) == ("go7", "black", 49)
    assert go_client.post("/predict", json={}).json()["game"] == "go5"


def test_policy_network_passes_where_this_wins():
    """The search of a policy network differs from that of self-play."""
    model = alphago_zero(26, num_planes=17, shape=(5, 5), num_blocks=1, num_channels=4)
    task = set_up(PolicyTask(model, Go(5), SearchOptions(4), value_weight=1.0))
    for moves, simulations in ((["pass"], 0), (["C3", "pass"], 4)):
        response = make_client(task).post("/predict", json={"moves": moves, "simulations": simulations}).json()
        assert (response["move"], response["value"]) == ("pass", 1)


@pytest.mark.parametrize(
    ("moves", "outcome", "result"),
    [("1212121", 1, "yellow wins"), ("71212121", -1, "red wins"), ("112233", None, None)],
)
def test_finished_game(client, moves, outcome, result):
    response = client.post("/predict", json={"moves": list(moves), "simulations": 0}).json()
    assert (response["outcome"], response["result"], response["over"]) == (outcome, result, outcome is not None)
    if outcome is not None:
        assert (response["move"], response["value"], response["policy"], response["legal_moves"]) == (
            None,
            None,
            {},
            [],
        )
        assert response["player"] is None


def test_score_of_a_finished_game(go_client):
    response = go_client.post("/predict", json={"moves": ["pass", "pass"]}).json()
    assert (response["outcome"], response["result"]) == (-1, "white wins by 24.5")


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"moves": "44"}, "moves is '44'; expected a list of moves such as ['1']"),
        ({"moves": {"4": 1}}, "moves is a dict; expected a list"),
        ({"moves": [4]}, "move 1 is 4; expected a string such as '1'"),
        ({"moves": ["4", ["4"]]}, "move 2 is a list; expected a string"),
        ({"moves": ["4", "8"]}, "move 2: '8' is not a move of connect4"),
        ({"moves": ["\ud800"]}, "move 1: '\\ud800' is not a move of connect4"),
        ({"moves": ["x" * 50_000]}, "move 1: 'xxxxxxxxxxxxxxxxxxxx' is not a move"),
        ({"moves": ["4"] * 7}, "illegal move 7, '4': the legal moves are 1, 2, 3, 5, 6, 7"),
        ({"moves": list("12121213")}, "illegal move 8, '3': the game is over"),
        ({"moves": ["4"] * 43}, "moves has 43 moves; a game of connect4 has at most 42"),
        ({"game": "go9"}, "game is 'go9'; expected connect4"),
        ({"game": ["connect4"]}, "game is a list; expected connect4"),
        ({"game": "\ud800" * 999}, "game is '\\ud800"),
        ({"simulations": -1}, "simulations is -1; expected an integer between 0 and 1,600"),
        ({"simulations": 1601}, "simulations is 1601"),
        ({"simulations": 10**100}, "simulations is 1000000"),
        ({"simulations": True}, "simulations is True"),
        ({"simulations": 2.5}, "simulations is 2.5"),
        ({"simulations": "64"}, "simulations is '64'"),
        ({"simulations": float("nan")}, "simulations is nan"),
        ({"move": "4"}, "there is no field 'move'; the fields are game, moves, simulations"),
        (["4"], "the body is a list; expected an object"),
        (None, "the body is None"),
    ],
)
def test_invalid_game_gets_an_error(client, fields, error):
    content = json.dumps(fields).encode()
    response = client.post("/predict", content=content, headers={"content-type": "application/json"})
    assert (response.status_code, list(response.json())) == (422, ["error"])
    assert response.json()["error"].startswith(error)
    assert len(response.json()["error"]) < 200


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 200_000, b'{"simulations": ' + b"9" * 5000 + b"}"])
def test_invalid_json_gets_an_error(client, content):
    response = client.post("/predict", content=content, headers={"content-type": "application/json; charset=utf-8"})
    assert response.status_code == 422
    assert response.json()["error"].startswith("the body is not valid JSON")


@pytest.mark.parametrize("path", ["/predict", "/"])
def test_too_large_body(client, path):
    """Bodies with and without a declared content length."""
    content = b"x" * (boards.MAX_REQUEST_BYTES + 1)
    types = {"/predict": "application/json", "/": "application/x-www-form-urlencoded"}
    for body in (content, iter([content[:1000], content[1000:]])):
        response = client.post(path, content=body, headers={"content-type": types[path]})
        assert response.status_code == 413
        assert "1,048,576 bytes" in response.text


def test_body_of_another_type(client):
    for arguments in ({"data": {"moves": "4"}}, {"content": b"x", "headers": {"content-type": "image/png"}}):
        response = client.post("/predict", **arguments)
        assert response.status_code == 415
        assert "application/json" in response.json()["error"]
    response = client.post("/predict", files=[("other", ("a.txt", b"x"))])
    assert (response.status_code, "file=@" in response.json()["error"]) == (422, True)


# files


def test_predictions_of_files_equal_those_of_predict(client, connect_four, tmp_path):
    """Positions, an invalid one, and more of them than are searched side by side."""
    lines = [VALID_POSITION, POSITION, "", "." * 42, *[VALID_POSITION] * 40]
    file = tmp_path / "positions.txt"
    file.write_text("\n".join(lines))
    expected = connect_four.predict([str(file)])
    response = client.post("/predict", files=[("file", (str(file), file.read_bytes(), "text/plain"))])
    assert response.status_code == 200
    assert response.json() == expected
    assert ["error" in prediction for prediction in expected] == [False, True, *[False] * 41]
    body = client.post("/predict", content=file.read_bytes(), headers={"content-type": "text/plain"}).json()
    assert [prediction["file"] for prediction in body] == ["positions"] * 43
    assert body[0] == expected[0] | {"file": "positions"}


def test_predictions_of_sgf_files(go_client, go, tmp_path):
    (tmp_path / "a.sgf").write_bytes(SGF)
    go.select_game("go5")
    expected = go.predict([str(tmp_path / "a.sgf")])
    assert len(expected) == 4
    files = [("file", ("a.sgf", SGF)), ("file", ("b.sgf", SGF.replace(b"[5]", b"[7]"))), ("file", ("c.sgf", b"x"))]
    response = go_client.post("/predict", files=files, data={"game": "go5"})
    assert response.json()[:4] == [prediction | {"file": "a.sgf"} for prediction in expected]
    assert [list(prediction) for prediction in response.json()[4:]] == [["file", "error"]] * 2
    large = go_client.post("/predict?game=go7", files=files[1:2]).json()
    assert [prediction["line"] for prediction in large] == [1, 2, 3, 4]
    wrong = go_client.post("/predict?game=chess", files=files)
    assert (wrong.status_code, wrong.json()[0]["error"]) == (422, "game is 'chess'; expected go5 or go7")


def test_simulations_of_positions_in_files(client):
    data = {"simulations": "3"}
    (prediction,) = client.post("/predict", files=[("file", ("a.txt", VALID_POSITION.encode()))], data=data).json()
    assert prediction["simulations"] == 3
    response = client.post("/predict?simulations=many", files=[("file", ("a.txt", VALID_POSITION.encode()))])
    assert response.status_code == 422
    assert "simulations is 'many'; expected an integer" in response.json()[0]["error"]


def test_invalid_files_get_errors(client, connect_four, tmp_path):
    """The name of an existing file is not opened."""
    (tmp_path / "here.txt").write_text("." * 42)
    files = [
        ("file", ("many.txt", b"\n".join([VALID_POSITION.encode()] * 1001))),
        ("file", ("empty.txt", b"\n\n")),
        ("file", ("binary.txt", b"\xff\xfe")),
        ("file", (str(tmp_path / "here.txt"), b"no position")),
    ]
    response = client.post("/predict", files=files)
    assert response.status_code == 422
    errors = [prediction["error"] for prediction in response.json()]
    assert errors[0] == "many.txt exceeds 1,000 positions per request; send it in several requests"
    assert errors[1] == "empty.txt contains no positions"
    assert errors[2].startswith("binary.txt is no text file")
    assert "a position of Connect Four has 42 cells" in errors[3]


def test_the_limit_of_positions_is_that_of_all_files(client):
    """The predictions repeat the name of the file, whose length is limited, too."""
    name = "a" * 3000 + "😀"
    files = [
        ("file", (name, b"x\n" * 700)),
        ("file", (name, b"x\n" * 700)),
        ("file", ("c.txt", VALID_POSITION.encode())),
    ]
    predictions = client.post("/predict", files=files).json()
    assert len(predictions) == 702
    assert predictions[0]["file"] == "a" * 200
    assert "exceeds 1,000 positions per request" in predictions[700]["error"]
    assert "move" in predictions[701]
    files = [
        ("file", ("a.txt", f"{VALID_POSITION}\n".encode() * 1000)),
        *(("file", ("b.txt", VALID_POSITION.encode())),) * 3,
    ]
    predictions = client.post("/predict", files=files).json()
    assert len(predictions) == 1003
    assert "move" in predictions[999]
    assert all("exceeds 1,000 positions" in prediction["error"] for prediction in predictions[1000:])


@pytest.mark.parametrize("path", ["/predict", "/"])
@pytest.mark.parametrize("charset", ["punycode", "idna", "undefined", "utf-7", "x" * 1000, "latin-1"])
def test_forms_in_other_character_sets_are_rejected(client, path, charset):
    """Python decodes punycode in quadratic time."""
    body = b'--b\r\nContent-Disposition: form-data; name="moves"\r\n\r\n' + b"A" * 20_000 + b"\r\n--b--\r\n"
    headers = {"content-type": f"multipart/form-data; boundary=b; charset={charset}"}
    response = client.post(path, content=body, headers=headers)
    assert response.status_code == 415
    assert "send it as UTF-8" in html.unescape(response.text)
    for charset in ("", "; charset=UTF-8", '; charset="utf-8"'):
        headers = {"content-type": f"multipart/form-data; boundary=b{charset}"}
        assert client.post("/predict", content=body, headers=headers).status_code == 422


@pytest.mark.parametrize("charset", ["binary", "latin-1", "utf-8"])
def test_the_character_set_of_a_body_that_is_no_form(client, charset):
    headers = {"content-type": f"text/plain; charset={charset}"}
    assert client.post("/predict", content=VALID_POSITION, headers=headers).status_code == 200


# the server


def read_metrics(client):
    return dict(re.findall(r"^(fukami_\S+) (\S+)$", client.get("/metrics").text, re.MULTILINE))


def test_search_stops_after_the_timeout(connect_four, monkeypatch):
    evaluations, real = [], boards.InterruptibleNetwork.forward

    def forward(self, planes):
        prediction = real(self, planes)
        evaluations.append(len(planes))
        time.sleep(0.02)
        return prediction

    monkeypatch.setattr(boards.InterruptibleNetwork, "forward", forward)
    client = make_client(connect_four, request_timeout=0.5)
    response = client.post("/predict", json={"simulations": 1600})
    assert (response.status_code, response.headers["retry-after"]) == (503, "60")
    assert response.json()["error"] == ("no prediction within 0.5 seconds; try again later, or use fewer simulations")
    end = time.monotonic() + 10
    while read_metrics(client)["fukami_queue_length"] != "0.0":
        assert time.monotonic() < end
        time.sleep(0.01)
    assert 2 < sum(evaluations) < 200
    assert read_metrics(client)['fukami_predictions_total{result="timeout"}'] == "1.0"
    assert client.get("/ready").status_code == 200
    assert client.post("/predict", json={"simulations": 1}).status_code == 200


def test_search_of_a_file_stops_after_the_timeout(connect_four, monkeypatch):
    evaluations, real = [], boards.InterruptibleNetwork.forward

    def forward(self, planes):
        evaluations.append(len(planes))
        time.sleep(0.02)
        return real(self, planes)

    monkeypatch.setattr(boards.InterruptibleNetwork, "forward", forward)
    monkeypatch.setattr(connect_four, "search_options", SearchOptions(2000))
    client = make_client(connect_four, request_timeout=0.5)
    content = "\n".join([VALID_POSITION, "." * 42] * 8)
    response = client.post("/predict", files=[("file", ("a.txt", content.encode()))])
    assert (response.status_code, "no prediction within" in response.json()["error"]) == (503, True)
    end = time.monotonic() + 10
    while read_metrics(client)["fukami_queue_length"] != "0.0":
        assert time.monotonic() < end
        time.sleep(0.01)
    assert 2 < len(evaluations) < 200


def test_weights_whose_predictions_are_not_finite(connect_four):
    task = build_task("connect4")
    with torch.no_grad():
        norm = next(module for module in task.ema_model.modules() if isinstance(module, torch.nn.BatchNorm2d))
        norm.running_var.fill_(-1)
    response = make_client(task).post("/predict", json={"simulations": 4})
    assert response.status_code == 422
    assert "the network predicts values that are not finite" in response.json()["error"]


def test_metrics_count_games_and_files(connect_four):
    client = make_client(connect_four)
    client.post("/predict", json={"simulations": 0})
    client.post("/predict", json={"simulations": -1})
    client.post("/", data={"move": "4", "simulations": "0"})
    client.post("/predict", files=[("file", ("a.txt", VALID_POSITION.encode())), ("file", ("b.txt", b""))])
    metrics = read_metrics(client)
    assert metrics['fukami_predictions_total{result="success"}'] == "3.0"
    assert metrics['fukami_predictions_total{result="error"}'] == "2.0"


def test_access_is_that_of_images(connect_four):
    client = make_client(connect_four, token="s3cret:token")
    assert [client.post(path, json={}).status_code for path in ("/predict", "/")] == [401, 401]
    bearer = {"authorization": "Bearer s3cret:token"}
    assert client.post("/predict", json={"simulations": 0}, headers=bearer).status_code == 200
    assert client.post("/predict", json={}, headers={**bearer, "host": "evil.example.com"}).status_code == 400
    assert client.post("/", headers={**bearer, "sec-fetch-site": "cross-site"}).status_code == 403
    page = html.unescape(client.get("/", headers=bearer).text)
    assert page.count('curl -H "Authorization: Bearer $FUKAMI_TOKEN"') == 2
    assert "s3cret" not in page


def test_command_describes_the_run(fukami, monkeypatch, tmp_path, connect_four):
    recipe = get_recipe("alphago-zero")(game=("go5", "go7"), num_blocks=1, num_channels=4, simulations=4)
    (tmp_path / "run").mkdir()
    tensors = run_weights.copy_tensors_to_cpu(recipe.build_task(()).get_modules())
    run_weights.write_weights(tmp_path / "run", tensors)
    run_record.write_recipe(tmp_path / "run", recipe, (), {})
    received = {}
    worker = SimpleNamespace(used_slots=0)
    application = SimpleNamespace(state=SimpleNamespace(worker=worker))
    monkeypatch.setattr(serving, "create_app", lambda task, run_info, **_: received.update(run_info) or application)
    monkeypatch.setattr(uvicorn, "Server", lambda config: SimpleNamespace(run=lambda **_: 0))
    monkeypatch.setattr(uvicorn, "Config", lambda *arguments, **options: options)
    statuses = []
    monkeypatch.setattr(os, "_exit", statuses.append)
    command = ("serve", "run", "--port", "0", "--device", "cpu", "--set", "simulations=9")
    assert fukami(*command).status == 130
    assert statuses == []
    worker.used_slots = 1  # a prediction still runs, for which Python would wait at its exit
    assert fukami(*command).status == 130
    monkeypatch.setattr(uvicorn, "Server", lambda config: SimpleNamespace(run=lambda **_: sys.exit(143)))
    fukami(*command)
    assert statuses == [130, 143]
    versions = received.pop("versions")
    assert received == {
        "recipe": "alphago-zero", "members": 1, "precision": "float32", "games": ["go5", "go7"], "simulations": 9
    }  # fmt: skip
    page = make_client(connect_four).get("/").text
    assert "labels" not in page
    assert list(versions) == ["fukami", "torch", "python"]


# the page


def read_page(response):
    """Return the status line, the error, the moves and the buttons of the board of a page."""
    text = html.unescape(response.text)
    (status,) = re.findall('role="status">(.*?)</p>', text)
    (error,) = re.findall('role="alert">(.*?)</p>', text)
    moves = re.findall('name="moves" value="(.*?)"', text)
    return SimpleNamespace(
        text=text, status=status, error=error, moves=moves, buttons=re.findall('name="move" value="(.*?)" aria', text)
    )


def post_form(client, moves=(), **fields):
    response = client.post("/", data={"moves": list(moves), "simulations": "8", **fields})
    assert response.status_code == 200
    return read_page(response)


def test_game_without_javascript(client, connect_four):
    page = read_page(client.get("/"))
    assert (page.status, page.error, page.moves) == ("Your turn: you are yellow.", "", [])
    assert page.buttons == list("1234567")
    page = post_form(client, move="4")
    with connect_four.evaluation_mode():
        result = connect_four.search(play_moves(ConnectFour(), "4").state[None])
    assert page.moves == ["4", str(result.moves[0] + 1)]
    assert page.status == f"The network played {page.moves[1]}. Your turn: you are yellow."
    assert f"yellow {(1 - result.values[0]) / 2:.0%}" in page.text
    assert "Search of move 2, red" in page.text
    visits = re.findall(r'<td class="number">(\d+)</td>', page.text)
    assert sorted(map(int, visits)) == sorted(filter(None, result.visits[0].tolist()))
    undone = post_form(client, page.moves, action="undo")
    assert (undone.moves, undone.status) == ([], "Your turn: you are yellow.")
    again = post_form(client, page.moves, move="1")
    shown = post_form(client, again.moves, action="undo")
    assert shown.moves == page.moves
    assert shown.text == page.text  # with the same search
    hint = post_form(client, page.moves, action="hint")
    assert hint.moves == page.moves
    assert "Hint for move 3, yellow" in hint.text
    assert 'class="hint"' in hint.text
    assert 'class="hint"' not in page.text


def test_person_plays_second(client):
    page = post_form(client, list("1212"), action="new", new_person="1")
    assert len(page.moves) == 1
    assert page.status == f"The network played {page.moves[0]}. Your turn: you are red."
    assert '<button name="action" value="undo" disabled' in page.text
    page = post_form(client, page.moves, person="1", move="4")
    assert len(page.moves) == 3
    assert len(post_form(client, page.moves, person="1", action="undo").moves) == 1


@pytest.mark.parametrize(
    ("moves", "move", "person", "status"),
    [
        ("121212", "1", "0", "You win: yellow wins, after 7 moves."),
        ("7121212", "1", "1", "You win: red wins, after 8 moves."),
        ("1212121", None, "1", "You lose: yellow wins, after 7 moves."),
    ],
)
def test_finished_game_on_the_page(client, moves, move, person, status):
    page = post_form(client, moves, person=person, **({} if move is None else {"move": move}))
    assert (page.status, page.buttons) == (status, [])
    winner = "yellow" if "yellow" in status else "red"
    assert f"{winner} 100%" in page.text
    undone = post_form(client, page.moves, person=person, action="undo")
    assert len(undone.moves) == len(moves) - (0 if move else 2)  # a win of the network is taken back too
    assert undone.status.endswith(f"you are {('yellow', 'red')[int(person)]}.")


def test_boards_of_several_sizes(go_client):
    page = read_page(go_client.get("/"))
    assert "<h1>Go 5×5</h1>" in page.text
    assert len(page.buttons) == 25
    assert '<button name="move" value="pass">Pass</button>' in page.text
    page = post_form(go_client, ["C3"], game="go5", action="new", new_game="go7")
    assert "<h1>Go 7×7</h1>" in page.text
    assert (page.moves, len(page.buttons)) == ([], 49)
    page = post_form(go_client, ["A1", "pass"], game="go7", move="pass", person="0", simulations="0")
    assert len(page.moves) in (4, 3)
    assert "Network: the policy of the network alone, without a search." in page.text


@pytest.mark.parametrize(
    "fields",
    [
        {"move": "9"},
        {"moves": ["4"] * 7},
        {"moves": ["4"] * 60},
        {"simulations": "9" * 5000},
        {"simulations": "-1"},
        {"simulations": "²"},
        {"person": "2"},
        {"game": "<script>alert(1)</script>"},
        {"action": "<b>"},
        {"action": "undo"},
        {"action": "new", "new_person": ""},
        {"moves": ["<script>alert(1)</script>"]},
    ],
)
def test_invalid_form_gets_the_start_page_with_an_error(client, fields):
    response = client.post("/", data=fields)
    assert response.status_code in (400, 422)
    page = read_page(response)
    assert page.error
    assert page.moves == []
    assert "<script>alert" not in response.text
    assert "<b>" not in response.text


def test_files_in_the_form_are_rejected(client):
    assert client.post("/", files=[("move", ("4", b"4"))]).status_code == 400


def test_page_is_self_contained(client):
    response = client.get("/")
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ")
    assert policy.endswith("; connect-src 'self'")
    assert not re.search(r"\b(src|href|action)\s*=|@import|url\(", response.text)
    assert set(re.findall(r"https?://[^/]+", response.text)) == {"http://localhost"}  # in the curl examples


def test_game_whose_moves_are_no_cells():
    """Each legal move is a button in a list, also if it is one of several to the same cell."""
    game = DoubledMoves()
    model = alphago_zero(18, num_planes=2, shape=(3, 3), num_blocks=1, num_channels=4)
    client = make_client(set_up(SelfPlayTask(model, [game], SearchOptions(4))))
    page = read_page(client.get("/"))
    assert page.buttons == []
    assert re.findall('<button name="move" value="(.*?)">', page.text) == [str(number) for number in range(1, 19)]
    page = post_form(client, move="14")
    assert len(page.moves) == 2
    assert "curl -F" not in page.text  # the game has no text format of positions


def locate_buttons(game, *moves):
    """Return the drawing of a game, and its buttons by move with positions relative to the cells."""
    board, frame = board_page.draw_board(PageGame(play_moves(game, *moves), len(moves) % 2, 0)), build_frame(game)
    buttons = {
        button.move: button._replace(left=round(button.left - frame.left, 6), top=round(button.top - frame.top, 6))
        for button in board.buttons
    }
    stones = [(round(x - frame.left, 6), round(y - frame.top, 6), *rest) for x, y, *rest in board.stones]
    return board._replace(stones=stones), buttons


def test_buttons_of_columns_show_where_the_stone_lands():
    board, buttons = locate_buttons(ConnectFour(), *"4444443")
    assert list(buttons) == list("123567")
    assert [button.height for button in buttons.values()] == [6] * 6
    assert [buttons[move].stone_top for move in "123"] == [5, 5, 4]
    assert (buttons["3"].left, buttons["3"].top) == (2, 0)
    assert sorted(board.stones) == [
        (2.5, 5.5, 0, True),
        *((3.5, 5.5 - row, row % 2, False) for row in range(5, -1, -1)),
    ]
    assert board.text.startswith("yellow: column 3 row 1, column 4 row 1, column 4 row 3")


def test_buttons_of_points():
    """Row 1 of Go is the lowest, also after a capture; row 1 of other boards is the highest."""
    board, buttons = locate_buttons(Go(5), "A2", "A1", "B1", "E1")
    assert buttons.keys() == {f"{column}{row}" for column in "ABCDE" for row in "12345"} - {"A2", "B1", "E1"}
    for move, corner in {"A1": (0, 4), "C1": (2, 4), "E5": (4, 0)}.items():
        assert (buttons[move].left, buttons[move].top, buttons[move].height) == (*corner, 1)
    assert board.moves == ["pass"]
    assert board.text == "black: B1, A2; white: E1"
    assert [stone for stone in board.stones if stone[3]] == [(4.5, 4.5, 1, True)]
    board, buttons = locate_buttons(TicTacToe(), "5")
    assert (buttons["1"].left, buttons["1"].top, buttons["8"].top) == (0, 0, 2)
    assert "5" not in buttons
    assert board.moves == []


# in a browser


@pytest.fixture
def address(connect_four):
    listener = command.listen("127.0.0.1", 0)
    config = uvicorn.Config(serving.create_app(connect_four, RUN_INFO), ws="none", log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(60)


def test_game_in_a_browser(address):
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if (executable := shutil.which("chromium")) is None:
        pytest.skip("needs the browser chromium")
    arguments = ["--no-sandbox", "--disable-gpu"]
    with (
        sync_api.sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=executable, args=arguments) as browser,
        browser.new_page() as tab,
    ):
        problems = []
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.on("console", lambda message: problems.append(message.text))
        tab.goto(address)
        play_in_browser(tab, sync_api.expect)
        assert [problem for problem in problems if "Failed to load resource" not in problem] == []


def play_in_browser(tab, expect):
    """Play with the mouse and the keyboard, undo, lose the connection, and play to the end."""
    moves, status, stones = tab.locator("[name=moves]"), tab.locator("#status"), tab.locator(".board > svg .stone")
    expect(tab.locator("#game")).to_have_count(1)
    tab.get_by_role("button", name="column 4").click()
    expect(moves).to_have_count(2)
    expect(stones).to_have_count(2)
    expect(status).to_contain_text("The network played")
    first = moves.evaluate_all("inputs => inputs.map(input => input.value)")
    assert first[0] == "4"
    tab.get_by_role("button", name="column 4").focus()
    tab.keyboard.press("ArrowLeft")
    tab.keyboard.press("Enter")
    expect(moves).to_have_count(4)
    assert moves.nth(2).input_value() == "3"
    assert tab.evaluate("document.activeElement.ariaLabel") == "column 3"
    tab.get_by_role("button", name="Undo").click()
    expect(moves).to_have_count(2)
    tab.get_by_role("button", name="Hint").click()
    expect(tab.locator(".hint").first).to_be_visible()
    tab.locator("[name=new_person]").select_option("1")
    tab.get_by_role("button", name="Start").click()
    expect(moves).to_have_count(1)
    expect(status).to_contain_text("you are red")
    tab.locator("[name=simulations]").select_option("0")
    while tab.locator(".board button").count():
        count = moves.count()
        tab.locator(".board button").first.click()
        expect(tab.locator("#game:not([aria-busy=true])")).to_have_count(1)
        expect(moves).not_to_have_count(count)
    expect(status).to_contain_text(re.compile("You win|You lose|Draw"))
    tab.route("**/*", lambda route: route.abort())
    tab.get_by_role("button", name="Undo").click()
    expect(tab.locator("#error")).to_contain_text("The server does not respond")
    expect(status).to_contain_text(re.compile("You win|You lose|Draw"))
    tab.unroute("**/*")
    tab.evaluate("document.querySelector('[name=simulations]').selectedOptions[0].value = '9999'")
    tab.get_by_role("button", name="Undo").click()
    expect(tab.locator("#error")).to_contain_text("simulations is 9999")
    expect(tab.locator(".board > svg .stone").first).to_be_visible()

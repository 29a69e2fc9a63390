"""``fukami serve``: the answers are those of ``predict``, and nothing that a client sends can do more than ask."""

import html
import io
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

import fukami as package
from bright import Bright
from fukami.serving import app as serving

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "Using `httpx`")  # Starlette would rather have the next version of it
    from fastapi.testclient import TestClient

ABOUT = {
    "recipe": "deep-convnet",
    "members": 1,
    "labels": list("0123456789"),
    "precision": "float32",
    "versions": {"fukami": "0.1.0"},
}
DIGIT = Path(__file__).parents[1] / "docs" / "digit.png"


@pytest.fixture(scope="module")
def task():
    return package.load("deep-convnet")


@pytest.fixture(scope="module")
def client(task):
    with TestClient(serving.app(task, ABOUT), base_url="http://localhost") as client:
        yield client


@pytest.fixture
def files(digit_files):
    return sorted(digit_files.rglob("*.png"))[:5]


def parts(*files):
    """The files as the fields of a form."""
    return [("file", (str(file), file.read_bytes(), "image/png")) for file in files]


def served(task):
    """A client of another task, which gets a response also where the server fails."""
    return TestClient(serving.app(task, ABOUT), "http://localhost", raise_server_exceptions=False)


class Captions(package.Task):
    """Answers in words, draws nothing, and counts how many pictures are asked about at once."""

    def __init__(self):
        self.now = self.most = 0

    def predict(self, inputs):
        self.now += 1
        self.most = max(self.most, self.now)
        time.sleep(0.02)
        self.now -= 1
        return [{"caption": "a <dog> & a cat", "numbers": [[1, 2], [3]]} for _ in inputs]


def test_answers_are_those_of_predict(client, task, files):
    """One or several files, and each alone: an answer does not depend on what was sent with the picture."""
    expected = [task.predict([str(file)])[0] for file in files]
    assert client.post("/predict", files=parts(files[0])).json() == expected[:1]
    response = client.post("/predict", files=parts(*files))
    assert response.status_code == 200
    assert response.json() == expected


@pytest.mark.parametrize("type", ["image/png", "application/octet-stream", "Image/JPEG; charset=utf-8"])
def test_a_picture_may_be_the_whole_body(client, task, files, type):
    (answer,) = client.post("/predict", content=files[0].read_bytes(), headers={"content-type": type}).json()
    assert answer == {**task.predict([files[0]])[0], "file": "picture"}


def test_every_form_of_picture_is_read_as_from_a_file(client, task, tmp_path):
    """Rotated by EXIF, transparent with a palette, 16 bits deep, CMYK."""
    plain = Image.new("L", (90, 120), 230)
    ImageDraw.Draw(plain).line([(20, 30), (70, 30), (40, 100)], fill=20, width=9)  # a seven
    exif = Image.Exif()
    exif[0x0112] = 6
    plain.save(tmp_path / "rotated.jpg", exif=exif)
    plain.convert("P").save(tmp_path / "clear.gif", transparency=230)
    plain.convert("I;16").point(lambda value: value * 257).save(tmp_path / "deep.png")
    plain.convert("CMYK").save(tmp_path / "print.tif")
    files = sorted(tmp_path.iterdir())
    answers = client.post("/predict", files=parts(*files)).json()
    for answer, file in zip(answers, files, strict=True):
        (alone,) = task.predict([str(file)])
        assert (answer["file"], answer["label"]) == (str(file), alone["label"])
        assert answer["probability"] == pytest.approx(alone["probability"], abs=1e-5)  # another batch rounds otherwise
    assert all("label" in answer for answer in answers)


def test_a_broken_picture_among_good_ones_is_named_in_its_place(client, files):
    broken = ("file", ("broken.png", files[0].read_bytes()[:60], "image/png"))
    text = ("file", ("text.png", b"no picture", "image/png"))
    first, *wrong, last = client.post("/predict", files=[*parts(files[0]), broken, text, *parts(files[1])]).json()
    assert [first["file"], last["file"]] == [str(files[0]), str(files[1])]
    assert [set(answer) for answer in wrong] == [{"file", "error"}] * 2
    assert wrong[0]["error"].startswith("broken.png is damaged")
    assert wrong[1]["error"].startswith("text.png is not a picture")


def test_a_name_from_the_client_is_never_opened(client, files):
    """The name of a file that is there, with other content; and a path as text."""
    (answer,) = client.post("/predict", files=[("file", (str(files[0]), b"no picture"))]).json()
    assert "is not a picture" in answer["error"]
    response = client.post("/predict", files=[("file", (None, str(files[0])))])
    assert response.status_code == 422
    assert "file=@" in response.json()["error"]


def test_nothing_readable(client):
    response = client.post("/predict", files=[("file", ("a.png", b"")), ("file", ("b.png", b"x"))])
    assert response.status_code == 422
    assert ["is empty" in answer["error"] for answer in response.json()] == [True, False]


@pytest.mark.parametrize(
    ("request_", "status", "hint"),
    [
        ({"data": {"path": "/etc/hostname"}}, 415, "application/x-www-form-urlencoded"),
        ({"json": ["a.png"]}, 415, "application/json"),
        ({}, 415, "unknown"),
        ({"files": [("picture", ("a.png", b"x"))]}, 422, "file=@"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "boundary"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data; boundary=y"}}, 400, ""),
    ],
)
def test_a_wrong_request_is_told_what_is_right(client, request_, status, hint):
    response = client.post("/predict", **request_)
    assert response.status_code == status
    assert hint in response.json()["error"]


@pytest.mark.parametrize("path", ["/predict", "/"])
def test_too_large(client, monkeypatch, path):
    """Whether the client says how long the body is or not."""
    monkeypatch.setattr(serving, "MOST", 1000)
    form = {"content-type": "multipart/form-data; boundary=x"}
    head = b'--x\r\ncontent-disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
    for response in (
        client.post(path, files=[("file", ("a.png", bytes(1001)))]),
        client.post(path, content=iter([head, *[bytes(100)] * 20]), headers=form),
        client.post(path, content=iter([bytes(100)] * 20), headers={"content-type": "image/png"}),
    ):
        assert response.status_code == 413
        assert "1,000 bytes" in response.text
    if path == "/predict":
        assert set(response.json()) == {"error"}
    assert client.post(path, content=bytes(1000), headers={"content-type": "image/png"}).status_code == 422


def test_the_run_and_the_health(client):
    assert client.get("/run").json() == ABOUT
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/nothing").json() == {"error": "Not Found"}
    assert client.get("/predict").status_code == 405


def test_the_page_needs_nothing_from_elsewhere(client, files):
    for response in (client.get("/"), client.post("/", files=parts(*files))):
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/html")
        assert "default-src 'none'" in response.headers["content-security-policy"]
        text = response.text
        assert "<h1>deep-convnet</h1>" in text
        assert not re.search(r"\b(src|href|action)\s*=(?!\"data:)|@import|url\(", text)
        assert set(re.findall(r"https?://[^/]+", text)) == {"http://localhost"}  # in the example for curl


def test_the_page_shows_the_answers(client, task, files):
    """What the form sends, without a script; drawn, ranked, as JSON; names and errors cannot write HTML."""
    evil = ("file", ("<script>alert(1)</script>.png", b"x"))
    response = client.post("/", files=[*parts(files[0]), evil])
    assert response.status_code == 200
    text = response.text
    answer = task.predict([str(files[0])])[0]
    drawn = io.BytesIO()
    task.draw(str(files[0]), answer).save(drawn, format="png")
    (found,) = re.findall('src="(data:image/png;base64,[^"]+)"', text)
    with urllib.request.urlopen(found) as picture:
        assert picture.read() == drawn.getvalue()
    assert f"label {answer['label']} · probability {answer['probability']:.4f}" in text
    shown = re.findall(r"<tr><td>(\d)</td><td><meter", text)
    assert shown == [entry["label"] for entry in answer["ranking"]]
    (code,) = re.findall("<pre>({.*?})</pre>", text, re.DOTALL)
    assert json.loads(html.unescape(code)) == answer
    assert "alert(1)" in text
    assert "<script>alert" not in text
    assert client.post("/", files=[evil]).status_code == 422
    empty = client.post("/", files=[("file", ("", b""))])
    assert empty.status_code == 422
    assert "there is no picture in the form" in empty.text


def test_a_task_that_answers_otherwise_is_served_too(files):
    other = served(Captions())
    assert other.post("/predict", files=parts(files[0])).json() == [
        {"file": str(files[0]), "caption": "a <dog> & a cat", "numbers": [[1, 2], [3]]}
    ]
    text = other.post("/", files=parts(files[0])).text
    assert "caption a &lt;dog&gt; &amp; a cat" in text
    assert "<img" not in text


def test_boxes_are_drawn_and_listed(tmp_path):
    """Of a picture in which something was found, and of one in which nothing was."""
    for name, level in (("bright", 255), ("dark", 0)):
        Image.new("L", (90, 60), level).save(tmp_path / f"{name}.png")
    names = [tmp_path / "bright.png", tmp_path / "dark.png"]
    other = served(Bright(None))
    first, second = other.post("/predict", files=parts(*names)).json()
    assert first["boxes"] == [{"label": "lamp", "score": 0.9, "box": [0, 0, 90, 60]}]
    assert (second["boxes"], second["width"], second["height"]) == ([], 90, 60)
    text = other.post("/", files=parts(*names)).text
    assert re.findall("<p class=answer>(.*?)</p>", text) == ["1 × lamp", "nothing found"]
    assert text.count('<img alt="the answer, drawn"') == 2
    (row,) = re.findall("<tr><td>lamp</td>(.*?)</tr>", text)
    assert ">90.00%<" in row
    assert "0, 0 – 90, 60" in row


def test_a_task_that_gives_no_answers_says_so(files):
    response = served(package.Task(None)).post("/predict", files=parts(files[0]))
    assert response.status_code == 422
    assert "gives no answers" in response.json()[0]["error"]


def test_what_should_not_happen_is_json_and_tells_nothing_of_the_server(files):
    class Failing(Captions):
        def predict(self, inputs):
            raise RuntimeError("secret")

    response = served(Failing()).post("/predict", files=parts(files[0]))
    assert response.status_code == 500
    assert "should not happen" in response.json()["error"]
    assert "secret" not in response.text


def test_many_at_once_get_the_same_answers(client, task, files):
    expected = [task.predict([str(file)])[0] for file in files]
    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(client.post, "/predict", files=parts(*files)) for _ in range(6)]
        assert all(future.result().json() == expected for future in asked)


def test_a_task_is_asked_about_one_picture_at_a_time(files):
    task = Captions()
    other = served(task)
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(other.post, "/predict", files=parts(*files[:2])) for _ in range(8)]
        assert all(future.result().status_code == 200 for future in asked)
    assert task.most == 1


def test_a_port_in_use(fukami):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        answer = fukami("serve", "deep-convnet", "--port", taken.getsockname()[1])
    assert answer.status == 1
    assert "already in use" in answer.err
    assert "--port" in answer.err
    assert "Traceback" not in answer.err


@pytest.mark.parametrize(("signal_", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_from_start_to_stop(task, signal_, status):
    """A server in a process of its own, which a client that leaves in the middle of its picture does not trouble."""
    command = [sys.executable, "-m", "fukami", "serve", "deep-convnet", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    watchdog = threading.Timer(60, process.kill)
    watchdog.start()
    try:
        address = re.search(r"serving deep-convnet at (http://127.0.0.1:\d+);", process.stderr.readline())[1]
        assert json.load(urllib.request.urlopen(f"{address}/health")) == {"status": "ok"}
        about = json.load(urllib.request.urlopen(f"{address}/run"))
        assert {key: about[key] for key in ABOUT} == {**ABOUT, "versions": about["versions"]}
        assert set(about["versions"]) == {"fukami", "torch", "python"}
        request = urllib.request.Request(
            f"{address}/predict", DIGIT.read_bytes(), {"content-type": "image/png"}, method="POST"
        )
        with urllib.request.urlopen(request) as response:
            assert json.load(response) == [{**task.predict([DIGIT])[0], "file": "picture"}]
        gone = socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])))
        gone.sendall(
            b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 9\r\n\r\nPNG"
        )
        gone.close()
        process.send_signal(signal_)
        out, err = process.communicate()
    finally:
        watchdog.cancel()
        process.kill()
    assert (process.returncode, out, err) == (status, "", "")

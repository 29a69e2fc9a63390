"""``fukami serve``: the answers are those of ``predict``, and nothing that a client sends can do more than ask."""

import base64
import contextlib
import functools
import html
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import uvicorn
from PIL import Image, ImageDraw
from prometheus_client.parser import text_string_to_metric_families

import fukami as package
from bright import Bright
from fukami.cli import serve as command
from fukami.engine import checkpoint
from fukami.image import io as image_io
from fukami.serving import access, connections, request_body, worker
from fukami.serving import app as serving
from fukami.serving import decoder as decoding
from fukami.serving.decoder import Decoder

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
DIGIT = Path(__file__).parents[2] / "docs" / "digit.png"


@pytest.fixture(scope="module")
def task():
    return package.load("deep-convnet")


@pytest.fixture(scope="module")
def client(task):
    with TestClient(serving.create_app(task, ABOUT), base_url="http://localhost") as client:
        yield client


@pytest.fixture
def files(digit_files):
    return sorted(digit_files.rglob("*.png"))[:5]


def parts(*files):
    """The files as the fields of a form."""
    return [("file", (str(file), file.read_bytes(), "image/png")) for file in files]


def served(task, **options):
    """A client of another task, which gets a response also where the server fails."""
    return TestClient(serving.create_app(task, ABOUT, **options), "http://localhost", raise_server_exceptions=False)


class Captions(package.Task):
    """Answers in words, draws nothing, and counts how many images are asked about at once."""

    def __init__(self):
        self.now = self.most = 0

    def predict(self, inputs):
        self.now += 1
        self.most = max(self.most, self.now)
        time.sleep(0.02)
        self.now -= 1
        return [{"caption": "a <dog> & a cat", "numbers": [[1, 2], [3]]} for _ in inputs]


def test_answers_are_those_of_predict(client, task, files):
    """One or several files, and each alone: an answer does not depend on what was sent with the image."""
    expected = [task.predict([str(file)])[0] for file in files]
    assert client.post("/predict", files=parts(files[0])).json() == expected[:1]
    response = client.post("/predict", files=parts(*files))
    assert response.status_code == 200
    assert response.json() == expected


@pytest.mark.parametrize("type", ["image/png", "application/octet-stream", "Image/JPEG; charset=utf-8"])
def test_an_image_may_be_the_whole_body(client, task, files, type):
    (answer,) = client.post("/predict", content=files[0].read_bytes(), headers={"content-type": type}).json()
    assert answer == {**task.predict([files[0]])[0], "file": "image"}


def test_every_form_of_image_is_read_as_from_a_file(client, task, tmp_path):
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


def test_a_broken_image_among_good_ones_is_named_in_its_place(client, files):
    broken = ("file", ("broken.png", files[0].read_bytes()[:60], "image/png"))
    text = ("file", ("text.png", b"no image", "image/png"))
    first, *wrong, last = client.post("/predict", files=[*parts(files[0]), broken, text, *parts(files[1])]).json()
    assert [first["file"], last["file"]] == [str(files[0]), str(files[1])]
    assert [set(answer) for answer in wrong] == [{"file", "error"}] * 2
    assert wrong[0]["error"].startswith("broken.png is damaged")
    assert wrong[1]["error"].startswith("text.png is not an image")


def test_a_name_from_the_client_is_never_opened(client, files):
    """The name of a file that is there, with other content; and a path as text."""
    (answer,) = client.post("/predict", files=[("file", (str(files[0]), b"no image"))]).json()
    assert "is not an image" in answer["error"]
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
        ({"files": [("image", ("a.png", b"x"))]}, 422, "file=@"),
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
    monkeypatch.setattr(request_body, "MAX_BODY_BYTES", 1000)
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
    task.draw_prediction(str(files[0]), answer).save(drawn, format="png")
    (found,) = re.findall('src="(data:image/png;base64,[^"]+)"', text)
    with urllib.request.urlopen(found) as image:
        assert image.read() == drawn.getvalue()
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
    assert "there is no image in the form" in empty.text


def test_a_task_that_answers_otherwise_is_served_too(files):
    other = served(Captions())
    assert other.post("/predict", files=parts(files[0])).json() == [
        {"file": str(files[0]), "caption": "a <dog> & a cat", "numbers": [[1, 2], [3]]}
    ]
    text = other.post("/", files=parts(files[0])).text
    assert "caption a &lt;dog&gt; &amp; a cat" in text
    assert "<img" not in text


def test_boxes_are_drawn_and_listed(tmp_path):
    """Of an image in which something was found, and of one in which nothing was."""
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


def test_a_task_is_asked_about_one_image_at_a_time(files):
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
    """A server in a process of its own, which a client that leaves in the middle of its image does not trouble."""
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
            assert json.load(response) == [{**task.predict([DIGIT])[0], "file": "image"}]
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


# who may ask


def test_other_host_names_are_refused(task):
    """Under one of them a page from elsewhere would be of our origin; an IP address cannot be taken over so."""
    own = TestClient(serving.create_app(task, ABOUT, hosts=["localhost", "127.0.0.1", "::1", "Demo.example.com"]))
    every = TestClient(serving.create_app(task, ABOUT, hosts=["localhost", "0.0.0.0"]))

    def statuses(client, hosts):
        return {host: client.get("/run", headers={"host": host}).status_code for host in hosts}

    good = ["localhost", "LOCALHOST:8000", "127.0.0.1:80", "[::1]:8000", "[::1]", "demo.example.com"]
    bad = [
        "evil.example.com",
        "evil.localhost",
        "localhost.evil.com",
        "a@localhost",
        "localhost:x",
        "localhost/",
        "",
        ":80",
    ]
    assert statuses(own, good) == dict.fromkeys(good, 200)
    assert statuses(own, [*bad, "10.0.0.9"]) == dict.fromkeys([*bad, "10.0.0.9"], 400)
    assert statuses(every, ["10.0.0.9:80", "[fe80::1]"]) == {"10.0.0.9:80": 200, "[fe80::1]": 200}
    assert statuses(every, bad) == dict.fromkeys(bad, 400)
    refused = own.post(
        "/predict", content=DIGIT.read_bytes(), headers={"host": "evil.com", "content-type": "image/png"}
    )
    assert (refused.status_code, list(refused.json())) == (400, ["error"])


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "none"}, 200),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "cross-site", "origin": "http://localhost"}, 403),
        ({"origin": "http://localhost"}, 200),
        ({"origin": "https://localhost"}, 200),  # of a proxy that speaks TLS
        ({"origin": "http://localhost:9000"}, 403),
        ({"origin": "http://evil.example.com"}, 403),
        ({"origin": "null"}, 403),
    ],
)
def test_pages_of_other_origins_cannot_post(client, files, headers, status):
    for path in ("/predict", "/"):
        assert client.post(path, files=parts(files[0]), headers=headers).status_code == status
        assert client.get(path, headers=headers).status_code == {"/predict": 405, "/": 200}[path]


def basic(password):
    return {"authorization": "Basic " + base64.b64encode(password.encode()).decode()}


def test_the_token(task, files, monkeypatch):
    """As a bearer token, or as the password that a browser asks for and sends with the form of the page."""
    compared = []
    real = access.secrets.compare_digest
    monkeypatch.setattr(access.secrets, "compare_digest", lambda *both: compared.append(both) or real(*both))
    client = TestClient(serving.create_app(task, ABOUT, token="s3cret:token"), "http://localhost")
    bearer = {"authorization": "Bearer s3cret:token"}
    for good in (bearer, {"authorization": "bearer  s3cret:token"}, basic(":s3cret:token"), basic("me:s3cret:token")):
        assert client.get("/run", headers=good).json() == ABOUT
        assert client.post("/predict", files=parts(files[0]), headers=good).status_code == 200
        assert client.post("/", files=parts(files[0]), headers=good).status_code == 200
        assert client.get("/metrics", headers=good).status_code == 200
    bad = [{}, basic("s3cret:token:"), basic(":"), {"authorization": "Basic %%"}, {"authorization": "s3cret:token"}]
    bad += [{"authorization": f"Bearer {other}"} for other in ("", "s3cret:toke", "s3cret:token2", "ſ3cret")]
    bad = [{name: value.encode() for name, value in each.items()} for each in bad]
    for headers in bad:
        for path in ("/", "/run", "/metrics", "/nothing", "/run?token=s3cret:token"):
            response = client.get(path, headers=headers)
            assert response.status_code == 401
            assert response.headers["www-authenticate"].startswith("Basic")
            assert ABOUT["recipe"] not in response.text
        assert client.post("/predict", files=parts(files[0]), headers=headers).status_code == 401
    assert [client.get(path).status_code for path in ("/health", "/ready")] == [200, 200]
    assert {own for _, own in compared} == {b"s3cret:token"}
    page = client.get("/", headers=bearer).text
    assert "Authorization: Bearer $FUKAMI_TOKEN" in html.unescape(page)
    assert "s3cret" not in page


@pytest.mark.parametrize("token", ["short", "with a space in it", "schlüsselwort"])
def test_a_token_that_nobody_could_send_or_anybody_guess(fukami, monkeypatch, token):
    answer = fukami("serve", "deep-convnet", "--token", token)
    assert answer.status == 2
    assert "8 or more" in answer.err
    monkeypatch.setenv("FUKAMI_TOKEN", token)
    assert fukami("serve", "deep-convnet").status == 2


# many at once


class Waiting(package.Task):
    """Answers when it may, and keeps what it was asked about."""

    def __init__(self):
        self.may, self.asked = threading.Event(), []

    def predict(self, inputs):
        self.asked += [image.size for image in inputs]
        assert self.may.wait(60)
        return [{"label": "x"} for _ in inputs]


def eventually(condition):
    """Wait until a condition holds."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def sized(width):
    buffer = io.BytesIO()
    Image.new("L", (width, 9), 200).save(buffer, "PNG")
    return buffer.getvalue()


def ask(client, width=8):
    return client.post("/predict", content=sized(width), headers={"content-type": "image/png"})


def metric(client, name, **labels):
    found = client.get("/metrics").text
    families = text_string_to_metric_families(found)
    return sum(
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def test_more_requests_than_places_are_refused_until_one_is_free(monkeypatch):
    monkeypatch.setattr(worker, "MAX_REQUESTS", 3)
    task = Waiting()
    client = served(task)
    with ThreadPoolExecutor(3) as pool:
        accepted = [pool.submit(ask, client) for _ in range(3)]
        eventually(lambda: metric(client, "fukami_queue_length") == 3)
        for response in (ask(client), client.post("/", files=[("file", ("a.png", sized(8)))])):
            assert response.status_code == 429
            assert 1 <= int(response.headers["retry-after"]) <= 60
            assert "try again later" in response.text
        assert client.post("/predict", content=b"x", headers={"content-type": "multipart/form-data"}).status_code == 429
        assert client.get("/health").status_code == client.get("/run").status_code == 200
        assert client.get("/ready").status_code == 503
        task.may.set()
        assert [each.result().status_code for each in accepted] == [200] * 3
    eventually(lambda: metric(client, "fukami_queue_length") == 0)
    assert client.get("/ready").json() == {"status": "ready"}
    assert ask(client).status_code == 200
    assert len(task.asked) == 4


def test_bodies_are_held_up_to_a_bound(monkeypatch):
    monkeypatch.setattr(worker, "MAX_BUFFERED_BYTES", 5000)
    task = Waiting()
    task.may.set()
    client = served(task)
    large = sized(8) + bytes(5000)
    for content in (large, iter([large[:3000], large[3000:]])):
        response = client.post("/predict", content=content, headers={"content-type": "image/png"})
        assert (response.status_code, "retry-after" in response.headers) == (429, True)
    assert ask(client).status_code == 200  # what was refused is held no longer


def test_an_image_that_is_late_is_given_up_and_keeps_its_place_until_it_ends():
    """One that has not begun by then is never asked about."""
    task = Waiting()
    client = served(task, deadline=0.5)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(ask, client, 11)
        eventually(lambda: task.asked)
        second = pool.submit(ask, client, 12)
        for response in (first.result(), second.result()):
            assert (response.status_code, response.headers["retry-after"]) == (503, "60")
            assert "0.5 seconds" in response.json()["error"]
    assert metric(client, "fukami_queue_length") == 1
    assert client.get("/ready").status_code == 503
    task.may.set()
    eventually(lambda: metric(client, "fukami_queue_length") == 0)
    assert client.get("/ready").status_code == 200
    assert ask(client, 13).status_code == 200
    assert task.asked == [(11, 9), (13, 9)]
    assert metric(client, "fukami_predictions_total", result="late") == 2


def test_metrics(files):
    task = Waiting()
    task.may.set()
    client = served(task)
    for path in ("/predict", "/"):
        client.post(path, files=[*parts(*files[:3]), ("file", ("a.png", b"x"))])
    client.post("/predict", json={})
    for number in range(3):
        client.get(f"/made-up-{number}")
    client.get("/health", headers={"host": "evil.com"})
    assert metric(client, "fukami_predictions_total", result="answered") == 6
    assert metric(client, "fukami_predictions_total", result="refused") == 2
    assert metric(client, "fukami_prediction_seconds_count") == 8
    assert metric(client, "fukami_requests_total", path="/predict", status="200") == 1
    assert metric(client, "fukami_requests_total", path="/predict", status="415") == 1
    assert metric(client, "fukami_requests_total", path="other", status="404") == 3
    assert metric(client, "fukami_requests_total", path="/health", status="400") == 1
    assert metric(client, "fukami_request_seconds_count", path="/") == 1
    assert metric(client, "fukami_requests_in_flight") == 1  # this one
    assert client.get("/metrics").headers["content-type"].startswith("text/plain; version=")


def test_no_more_files_than_a_request_may_have(client):
    response = client.post("/predict", files=[("file", (f"{number}.png", b"x")) for number in range(101)])
    assert response.status_code == 400
    assert "100" in response.json()["error"]


# images that take long


@pytest.fixture
def decoder():
    found = Decoder(max_pixels=10_000, timeout=60)
    yield found
    found.close()


def test_a_decoder_reads_as_image_read_does(decoder, tmp_path):
    image = Image.linear_gradient("L").resize((50, 40))
    for mode, suffix in (("L", "png"), ("RGB", "jpg"), ("RGBA", "png"), ("P", "gif"), ("I;16", "tiff")):
        path = tmp_path / f"{mode.replace(';', '')}.{suffix}"
        image.convert(mode).save(path)
        found, expected = decoder.decode(path.read_bytes(), "x"), image_io.read_image(path)
        assert (found.mode, found.size, found.tobytes()) == (expected.mode, expected.size, expected.tobytes())
    for content in (b"", b"x", sized(8)[:40], sized(5000)):
        with pytest.raises(package.Error) as ours:
            decoder.decode(content, "näme\n.png")
        with pytest.raises(package.Error) as other:
            image_io.read_image(content, name="näme\n.png", max_pixels=10_000)
        assert str(ours.value) == str(other.value)


@pytest.mark.skipif(sys.platform == "win32", reason="processes cannot be stopped there")
@pytest.mark.parametrize("more", [0, 2**20])
def test_a_decoder_is_ended_when_an_image_takes_too_long(decoder, more):
    """One that stands still, before or after it has read all."""
    first = decoder.start()
    first.send_signal(signal.SIGSTOP)
    decoder.timeout = 0.2
    with pytest.raises(package.Error, match=r"^a\.png took more than 0.2 seconds to decode"):
        decoder.decode(sized(8) + bytes(more), "a.png")
    assert first.poll() is not None
    decoder.timeout = 60
    assert decoder.decode(sized(8), "a.png").size == (8, 9)


def test_a_decoder_that_breaks_is_another_one_for_the_next_image(decoder, monkeypatch):
    """While it decodes, and between two images."""
    real = decoding._send

    def send(pipe, head, content):
        decoder.process.kill()
        decoder.process.wait()
        real(pipe, head, content)

    with monkeypatch.context() as patch:
        patch.setattr(decoding, "_send", send)
        with pytest.raises(package.Error, match=r"^a\.png broke the decoder"):
            decoder.decode(sized(8), "a.png")
    assert decoder.decode(sized(8), "a.png").size == (8, 9)
    decoder.process.kill()
    decoder.process.wait()
    assert decoder.decode(sized(8), "a.png").size == (8, 9)


@pytest.mark.skipif(sys.platform != "linux", reason="the bound is Linux's")
def test_the_memory_of_a_decoder_is_bounded():
    code = "from fukami.serving import decoder; decoder.MAX_MEMORY = 400 * 2**20; decoder.main()"
    buffer = io.BytesIO()
    Image.new("RGBA", (10_000, 9_000)).save(buffer, "PNG", compress_level=1)
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        for content, error in ((buffer.getvalue(), True), (sized(8), False)):
            decoding._send(process.stdin, {"name": "a.png", "max_pixels": 10**8}, content)
            found, _ = decoding._receive(process.stdout)
            assert ("a.png needs more memory" in found.get("error", "")) == error
        process.stdin.close()
        assert process.wait(60) == 0  # when the server has ended


# connections


@contextlib.contextmanager
def listening(application, limit=100):
    """The port of a server in a thread of this process."""
    listener = command.listen("127.0.0.1", 0)
    http = functools.partial(connections.Connection, max_connections=limit)
    config = uvicorn.Config(application, http=http, ws="none", log_config=None, timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(60)


def connect(port, content=b""):
    found = socket.create_connection(("127.0.0.1", port), timeout=60)
    found.sendall(content)
    return found


def answer(connection):
    """All that comes until the end of a connection."""
    content = b""
    with contextlib.suppress(ConnectionResetError):
        while some := connection.recv(2**16):
            content += some
    return content


def exchange(port, content):
    """All that comes for a request."""
    with connect(port, content) as connection:
        return answer(connection)


GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
POST = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: image/png\r\n"


@pytest.mark.parametrize(
    "begin", [b"", b"GET /health HTTP/1.1\r\nHost: local", GET[:-2].replace(b"close", b"keep-alive")]
)
def test_a_head_has_to_come_in_time(monkeypatch, begin):
    """Of a silent client, and of one that sends something all the while."""
    monkeypatch.setattr(connections, "HEAD_TIMEOUT", 0.3)
    with listening(serving.create_app(Waiting(), ABOUT)) as port, connect(port, begin) as slow:
        slow.settimeout(0.02)
        for _ in range(3000):
            with contextlib.suppress(TimeoutError, ConnectionResetError, BrokenPipeError):
                slow.send(b"x" if begin else b"")
                if slow.recv(1) == b"":
                    break
        else:
            raise AssertionError
        assert exchange(port, GET).startswith(b"HTTP/1.1 200")


def test_a_body_has_to_come_in_time(monkeypatch):
    monkeypatch.setattr(connections, "BODY_TIMEOUT", 0.3)
    with listening(serving.create_app(Waiting(), ABOUT)) as port:
        with connect(port, POST + b"Content-Length: 9999\r\n\r\nxx") as slow:
            assert b"408 Request Timeout" in (said := answer(slow))
        assert "try again" in json.loads(said.partition(b"\r\n\r\n")[2])["error"]


LENGTH = 50 * 2**20  # more than the buffers between a server and a client hold


async def long_response(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % LENGTH)]})
    await send({"type": "http.response.body", "body": bytes(LENGTH)})


@pytest.mark.parametrize("request_", [GET, GET.replace(b"close", b"keep-alive")], ids=["close", "keep-alive"])
def test_a_response_has_to_be_taken_in_time(monkeypatch, request_):
    """What the client has not taken by then does not come."""
    monkeypatch.setattr(connections, "HEAD_TIMEOUT", 0.1)
    monkeypatch.setattr(connections, "SEND_TIMEOUT", 0.3)
    lost, real = threading.Event(), connections.Connection.connection_lost
    monkeypatch.setattr(connections.Connection, "connection_lost", lambda *both: lost.set() or real(*both))
    with listening(long_response) as port, connect(port, request_) as slow:
        assert lost.wait(60)
        assert len(answer(slow)) < LENGTH


def test_a_response_may_take_longer_than_a_head(monkeypatch):
    monkeypatch.setattr(connections, "HEAD_TIMEOUT", 0.1)
    started, real = threading.Event(), connections.Connection.start_deadline

    def start(self, phase):
        real(self, phase)
        if phase == "sent":
            started.set()

    monkeypatch.setattr(connections.Connection, "start_deadline", start)
    with listening(long_response) as port, connect(port, GET.replace(b"close", b"keep-alive")) as slow:
        assert started.wait(60)
        received = 0
        while received < LENGTH:
            some = len(slow.recv(2**20))
            assert some
            received += some


def test_a_client_that_idles_makes_room_for_a_new_one(monkeypatch):
    """The one that has waited longest for a head, then one that waits for its body; never one that is answered."""
    task = Waiting()
    with listening(serving.create_app(task, ABOUT), limit=4) as port:
        content = sized(8)
        asked = connect(port, POST + f"Content-Length: {len(content)}\r\n\r\n".encode() + content)
        eventually(lambda: task.asked)
        body = connect(port, POST + b"Content-Length: 9999\r\n\r\n")
        eventually(lambda: gauge(port, "fukami_requests_in_flight") == 3)  # with this one
        first, second = connect(port), connect(port)
        eventually(lambda: exchange(port, GET).startswith(b"HTTP/1.1 200"))
        assert first.recv(1) == b""
        others = [connect(port), connect(port)]
        assert second.recv(1) == b""
        more = connect(port)
        assert others[0].recv(1) == b""
        task.may.set()
        assert answer(asked).startswith(b"HTTP/1.1 200")
        for each in (asked, body, first, second, more, *others):
            each.close()


@pytest.mark.parametrize("path", [b"/predict", b"/run", b"/nothing"])
def test_a_refusal_reaches_a_client_that_still_sends(path):
    """A connection that is closed before all is read is reset, and the answer lost."""
    head = POST.replace(b"/predict", path).replace(b"image/png", b"text/plain") + b"Content-Length: 20000000\r\n\r\n"
    with listening(serving.create_app(Waiting(), ABOUT)) as port:
        for _ in range(5):
            with connect(port, head) as client:
                for _ in range(20):
                    client.sendall(bytes(1_000_000))
                assert client.recv(12) in (b"HTTP/1.1 415", b"HTTP/1.1 405", b"HTTP/1.1 404")


def test_a_client_that_leaves_is_not_worked_for():
    task = Waiting()
    with listening(serving.create_app(task, ABOUT)) as port:
        sent = []
        for width in (11, 12, 13):
            content = sized(width)
            sent.append(connect(port, POST + f"Content-Length: {len(content)}\r\n\r\n".encode() + content))
            eventually(lambda: gauge(port, "fukami_queue_length") == len(sent))
        eventually(lambda: task.asked)
        sent[1].close()
        eventually(lambda: gauge(port, "fukami_queue_length") == 2)
        task.may.set()
        assert answer(sent[0]).startswith(b"HTTP/1.1 200")
        assert answer(sent[2]).startswith(b"HTTP/1.1 200")
        assert task.asked == [(11, 9), (13, 9)]
        assert b'result="late"' not in exchange(port, GET.replace(b"/health", b"/metrics"))
        for each in sent:
            each.close()


def test_requests_that_began_while_there_was_room_are_refused_where_there_is_none(monkeypatch):
    monkeypatch.setattr(worker, "MAX_REQUESTS", 3)
    task, content = Waiting(), sized(8)
    with listening(serving.create_app(task, ABOUT)) as port, contextlib.ExitStack() as stack:
        begun = POST + f"Content-Length: {len(content)}\r\n\r\n".encode() + content[:9]
        clients = [stack.enter_context(connect(port, begun)) for _ in range(8)]
        eventually(lambda: gauge(port, "fukami_requests_in_flight") == 9)
        for client in clients:
            client.sendall(content[9:])
        eventually(lambda: gauge(port, "fukami_requests_in_flight") == 4)
        task.may.set()
        found = Counter(answer(client)[:12] for client in clients)
    assert found == {b"HTTP/1.1 200": 3, b"HTTP/1.1 429": 5}


def gauge(port, name):
    """A value of the metrics."""
    text = exchange(port, GET.replace(b"/health", b"/metrics")).decode()
    return float(re.search(rf"^{name} (\S+)", text, re.MULTILINE)[1])


def test_of_many_at_once_each_gets_an_answer_or_a_refusal(monkeypatch):
    monkeypatch.setattr(worker, "MAX_REQUESTS", 5)
    task = Waiting()
    with listening(serving.create_app(task, ABOUT), limit=1000) as port, ThreadPoolExecutor(100) as pool:
        content = sized(8)
        message = POST + f"Content-Length: {len(content)}\r\n\r\n".encode() + content

        def one(message):
            with connect(port, message) as client:
                return answer(client)[:12]

        asked = [pool.submit(one, message) for _ in range(300)]
        eventually(lambda: gauge(port, "fukami_queue_length") == 5)
        assert [one(GET) for _ in range(10)] == [b"HTTP/1.1 200"] * 10
        task.may.set()
        found = Counter(each.result() for each in asked)
    assert set(found) == {b"HTTP/1.1 200", b"HTTP/1.1 429"}
    assert found[b"HTTP/1.1 200"] >= 5


# the command


def test_no_path_of_the_server_is_told(monkeypatch, tmp_path):
    folder = tmp_path / "secret-place"
    shutil.copytree(checkpoint.SHIPPED_WEIGHTS_DIR / "deep-convnet", folder)
    about = command.build_run_info((str(folder), "deep-convnet"), "auto", None)
    assert about == {**ABOUT, "members": 2, "versions": about["versions"]}
    client = TestClient(serving.create_app(Waiting(), about), "http://localhost")
    for path in ("/", "/run", "/openapi.json", "/docs", "/nothing", "/metrics", "/ready"):
        assert "secret-place" not in client.get(path).text


def test_the_environment_gives_the_token_and_nobody_gets_it(monkeypatch, fukami):
    given = {}
    monkeypatch.setattr(serving, "create_app", lambda task, about, **options: given.update(options))
    monkeypatch.setattr(
        uvicorn, "Server", lambda config: given.update(config=config) or SimpleNamespace(run=lambda **_: 0)
    )
    monkeypatch.setattr(uvicorn, "Config", lambda *arguments, **options: options)
    monkeypatch.setenv("FUKAMI_TOKEN", "from-the-environment")
    assert fukami("serve", "deep-convnet", "--port", "0", "--allowed-hosts", "a.example.com", "b").status == 130
    assert given["deadline"] == 60
    assert "FUKAMI_TOKEN" not in os.environ
    assert given["token"] == "from-the-environment"
    assert given["hosts"] == {"localhost", "127.0.0.1", "::1", "a.example.com", "b"}
    monkeypatch.setenv("FUKAMI_TOKEN", "from-the-environment")
    others = ["--host", "0.0.0.0", "--token", "from-the-command", "--deadline", "9"]
    fukami("serve", "deep-convnet", "--port", "0", *others)
    assert given["deadline"] == 9
    assert given["token"] == "from-the-command"
    assert "0.0.0.0" in given["hosts"]
    assert given["config"]["http"].keywords["max_connections"] <= 4096


@pytest.mark.skipif(sys.platform == "win32", reason="sockets are no files there")
def test_as_many_files_may_be_open_as_the_system_allows():
    code = (
        "import resource; from fukami.cli.serve import raise_file_limit\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (200, 900))\n"
        "print(raise_file_limit(), resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["900", "900"]

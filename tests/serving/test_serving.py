"""``fukami serve``: predictions equal those of ``predict``, and hostile requests do no harm."""

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

import numpy as np
import pytest
import tifffile
import uvicorn
from PIL import Image, ImageDraw
from prometheus_client.parser import text_string_to_metric_families

import fukami as package
from bright import Bright
from fukami import UsageError
from fukami.cli import serve as command
from fukami.engine import run_folder
from fukami.engine.load_run import load_task
from fukami.image import io as image_io
from fukami.serving import access, connections, request_body, worker
from fukami.serving import app as serving
from fukami.serving import decoder as decoding
from fukami.serving.decoder import Decoder
from fukami.style.task import StyleTransferTask

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "Using `httpx`")  # deprecation warning of Starlette
    from fastapi.testclient import TestClient

RUN_INFO = {
    "recipe": "deep-convnet",
    "members": 1,
    "labels": list("0123456789"),
    "precision": "float32",
    "versions": {"fukami": "0.1.0"},
}
DIGIT = Path(__file__).parents[2] / "docs" / "digit.png"


@pytest.fixture(scope="module")
def task():
    return load_task("deep-convnet")


@pytest.fixture(scope="module")
def client(task):
    with TestClient(serving.create_app(task, RUN_INFO), base_url="http://localhost") as client:
        yield client


@pytest.fixture
def files(digit_files):
    return sorted(digit_files.rglob("*.png"))[:5]


def form_files(*files):
    """Return files as fields of a form."""
    return [("file", (str(file), file.read_bytes(), "image/png")) for file in files]


def make_client(task, **options):
    """Create a client of a task that also returns the responses of server errors."""
    return TestClient(serving.create_app(task, RUN_INFO, **options), "http://localhost", raise_server_exceptions=False)


class CaptionTask(package.Task):
    """Task that predicts captions, cannot draw, and records the maximum number of concurrent calls."""

    def __init__(self):
        self.num_running = self.max_running = 0

    def predict(self, inputs):
        self.num_running += 1
        self.max_running = max(self.max_running, self.num_running)
        time.sleep(0.02)
        self.num_running -= 1
        return [{"caption": "a <dog> & a cat", "numbers": [[1, 2], [3]]} for _ in inputs]


def test_predictions_equal_those_of_predict(client, task, files):
    """A prediction does not depend on the other images of the request."""
    expected = [task.predict([str(file)])[0] for file in files]
    assert client.post("/predict", files=form_files(files[0])).json() == expected[:1]
    response = client.post("/predict", files=form_files(*files))
    assert response.status_code == 200
    assert response.json() == expected


@pytest.mark.parametrize("type", ["image/png", "application/octet-stream", "Image/JPEG; charset=utf-8"])
def test_image_as_request_body(client, task, files, type):
    (prediction,) = client.post("/predict", content=files[0].read_bytes(), headers={"content-type": type}).json()
    assert prediction == {**task.predict([files[0]])[0], "file": "image"}


def test_images_are_decoded_as_from_a_file(client, task, tmp_path):
    """EXIF rotation, transparent palette, 16 bits, CMYK."""
    plain = Image.new("L", (90, 120), 230)
    ImageDraw.Draw(plain).line([(20, 30), (70, 30), (40, 100)], fill=20, width=9)  # a seven
    exif = Image.Exif()
    exif[0x0112] = 6
    plain.save(tmp_path / "rotated.jpg", exif=exif)
    plain.convert("P").save(tmp_path / "clear.gif", transparency=230)
    plain.convert("I;16").point(lambda value: value * 257).save(tmp_path / "deep.png")
    plain.convert("CMYK").save(tmp_path / "print.tif")
    files = sorted(tmp_path.iterdir())
    predictions = client.post("/predict", files=form_files(*files)).json()
    for prediction, file in zip(predictions, files, strict=True):
        (expected,) = task.predict([str(file)])
        assert (prediction["file"], prediction["label"]) == (str(file), expected["label"])
        assert prediction["probability"] == pytest.approx(
            expected["probability"], abs=1.5e-4
        )  # batches round differently
    assert all("label" in prediction for prediction in predictions)


def test_unreadable_image_gets_an_error_at_its_index(client, files):
    unreadable = ("file", ("unreadable.png", files[0].read_bytes()[:60], "image/png"))
    text = ("file", ("text.png", b"no image", "image/png"))
    first, *errors, last = client.post(
        "/predict", files=[*form_files(files[0]), unreadable, text, *form_files(files[1])]
    ).json()
    assert [first["file"], last["file"]] == [str(files[0]), str(files[1])]
    assert [set(error) for error in errors] == [{"file", "error"}] * 2
    assert errors[0]["error"].startswith("unreadable.png is unreadable")
    assert errors[1]["error"].startswith("text.png is not an image")


def test_client_file_name_is_never_opened(client, files):
    """The name of an existing file with other content, and a path as a text field."""
    (result,) = client.post("/predict", files=[("file", (str(files[0]), b"no image"))]).json()
    assert "is not an image" in result["error"]
    response = client.post("/predict", files=[("file", (None, str(files[0])))])
    assert response.status_code == 422
    assert "file=@" in response.json()["error"]


def test_request_without_readable_image(client):
    response = client.post("/predict", files=[("file", ("a.png", b"")), ("file", ("b.png", b"x"))])
    assert response.status_code == 422
    assert ["is empty" in result["error"] for result in response.json()] == [True, False]


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
def test_invalid_request_gets_a_hint(client, request_, status, hint):
    response = client.post("/predict", **request_)
    assert response.status_code == status
    assert hint in response.json()["error"]


@pytest.mark.parametrize("path", ["/predict", "/"])
def test_too_large_body(client, monkeypatch, path):
    """Bodies with and without a declared content length."""
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


def test_run_and_health(client):
    assert client.get("/run").json() == RUN_INFO
    assert client.get("/health").json() == {"status": "ok"}
    for path in ("/", "/health", "/ready", "/run", "/metrics"):
        assert (client.head(path).status_code, client.head(path).content) == (200, b"")
    assert client.get("/nothing").json() == {"error": "Not Found"}
    assert client.get("/predict").status_code == 405


def test_page_is_self_contained(client, files):
    for response in (client.get("/"), client.post("/", files=form_files(*files))):
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/html")
        assert "default-src 'none'" in response.headers["content-security-policy"]
        text = response.text
        assert "<h1>deep-convnet</h1>" in text
        assert not re.search(r"\b(src|href|action)\s*=(?!\"data:)|@import|url\(", text)
        assert set(re.findall(r"https?://[^/]+", text)) == {"http://localhost"}  # in the curl example


def test_the_page_draws_the_first_images(client, files, monkeypatch):
    monkeypatch.setattr("fukami.serving.page.MAX_DRAWINGS", 1)
    text = client.post("/", files=form_files(*files[:3])).text
    assert text.count("data:image/jpeg;base64,") == 1
    assert len(re.findall("<pre>({.*?})</pre>", text, re.DOTALL)) == 3


def test_page_shows_predictions(client, task, files):
    """The form works without scripts; the page has drawing, ranking and JSON; names and errors are escaped."""
    hostile = ("file", ("<script>alert(1)</script>.png", b"x"))
    response = client.post("/", files=[*form_files(files[0]), hostile])
    assert response.status_code == 200
    text = response.text
    prediction = task.predict([str(files[0])])[0]
    drawn = task.draw(image_io.read_image(files[0]), prediction).convert("RGB")
    (source,) = re.findall('src="(data:image/jpeg;base64,[^"]+)"', text)
    with urllib.request.urlopen(source) as file, Image.open(file) as image:
        difference = np.asarray(image, int) - np.asarray(drawn, int)
    assert np.abs(difference).mean() < 3
    assert f"label {prediction['label']} · probability {prediction['probability']:.4f}" in text
    ranked_labels = re.findall(r"<tr><td>(\d)</td><td><meter", text)
    assert ranked_labels == [entry["label"] for entry in prediction["ranking"]]
    (code,) = re.findall("<pre>({.*?})</pre>", text, re.DOTALL)
    assert json.loads(html.unescape(code)) == prediction
    assert "alert(1)" in text
    assert "<script>alert" not in text
    assert client.post("/", files=[hostile]).status_code == 422
    empty = client.post("/", files=[("file", ("", b""))])
    assert empty.status_code == 422
    assert "there is no image in the form" in empty.text


def test_task_with_other_predictions(files):
    client = make_client(CaptionTask())
    assert client.post("/predict", files=form_files(files[0])).json() == [
        {"file": str(files[0]), "caption": "a <dog> & a cat", "numbers": [[1, 2], [3]]}
    ]
    text = client.post("/", files=form_files(files[0])).text
    assert "caption a &lt;dog&gt; &amp; a cat" in text
    assert "<img" not in text


def test_boxes_are_drawn_and_listed(tmp_path):
    """An image with a detected object, and one without."""
    for name, level in (("bright", 255), ("dark", 0)):
        Image.new("L", (90, 60), level).save(tmp_path / f"{name}.png")
    names = [tmp_path / "bright.png", tmp_path / "dark.png"]
    client = make_client(Bright(None))
    first, second = client.post("/predict", files=form_files(*names)).json()
    assert first["boxes"] == [{"label": "lamp", "score": 0.9, "box": [0, 0, 90, 60]}]
    assert (second["boxes"], second["width"], second["height"]) == ([], 90, 60)
    text = client.post("/", files=form_files(*names)).text
    assert re.findall('<p class="metrics">(.*?)</p>', text) == ["1 × lamp", "no objects"]
    assert text.count('<img alt="drawn prediction of ') == 2
    (row,) = re.findall("<tr><td>lamp</td>(.*?)</tr>", text, re.DOTALL)
    assert ">90.00%<" in row
    assert "0, 0 – 90, 60" in row


def test_task_without_predict_gives_an_error(files):
    response = make_client(package.Task(None)).post("/predict", files=form_files(files[0]))
    assert response.status_code == 422
    assert "cannot predict" in response.json()[0]["error"]


def test_unexpected_error_is_json_without_details(files):
    class Failing(CaptionTask):
        def predict(self, inputs):
            raise RuntimeError("secret")

    response = make_client(Failing()).post("/predict", files=form_files(files[0]))
    assert response.status_code == 500
    assert "should not happen" in response.json()["error"]
    assert "secret" not in response.text


def test_concurrent_requests_get_equal_predictions(client, task, files):
    expected = [task.predict([str(file)])[0] for file in files]
    with ThreadPoolExecutor(6) as pool:
        futures = [pool.submit(client.post, "/predict", files=form_files(*files)) for _ in range(6)]
        assert all(future.result().json() == expected for future in futures)


def test_task_predicts_one_image_at_a_time(files):
    task = CaptionTask()
    client = make_client(task)
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(client.post, "/predict", files=form_files(*files[:2])) for _ in range(8)]
        assert all(future.result().status_code == 200 for future in futures)
    assert task.max_running == 1


def test_port_in_use(fukami):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = fukami("serve", "deep-convnet", "--port", taken.getsockname()[1])
    assert result.status == 1
    assert "already in use" in result.err
    assert "--port" in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize(
    ("signal_", "status"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 143)]
)
def test_server_process_from_start_to_stop(task, signal_, status, forked_python):
    """A server process survives a client that disconnects in the middle of an image."""
    command = [forked_python.executable, "-m", "fukami", "serve", "deep-convnet", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    watchdog = threading.Timer(60, process.kill)
    watchdog.start()
    try:
        address = re.search(r"serving deep-convnet at (http://127.0.0.1:\d+);", process.stderr.readline())[1]
        assert json.load(urllib.request.urlopen(f"{address}/health")) == {"status": "ok"}
        run_info = json.load(urllib.request.urlopen(f"{address}/run"))
        assert {key: run_info[key] for key in RUN_INFO} == {**RUN_INFO, "versions": run_info["versions"]}
        assert set(run_info["versions"]) == {"fukami", "torch", "python"}
        request = urllib.request.Request(
            f"{address}/predict", DIGIT.read_bytes(), {"content-type": "image/png"}, method="POST"
        )
        with urllib.request.urlopen(request) as response:
            assert json.load(response) == [{**task.predict([DIGIT])[0], "file": "image"}]
        disconnected = socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])))
        disconnected.sendall(
            b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 9\r\n\r\nPNG"
        )
        disconnected.close()
        process.send_signal(signal_)
        out, err = process.communicate()
    finally:
        watchdog.cancel()
        process.kill()
    assert (process.returncode, out, err) == (status, "", "")


# access


def test_unknown_host_names_are_rejected(task):
    """DNS rebinding needs a foreign host name; IP addresses are not affected."""
    named = TestClient(serving.create_app(task, RUN_INFO, hosts=["localhost", "127.0.0.1", "::1", "Demo.example.com"]))
    wildcard = TestClient(serving.create_app(task, RUN_INFO, hosts=["localhost", "0.0.0.0"]))

    def statuses(client, hosts):
        return {host: client.get("/run", headers={"host": host}).status_code for host in hosts}

    allowed = ["localhost", "LOCALHOST:8000", "127.0.0.1:80", "[::1]:8000", "[::1]", "demo.example.com"]
    rejected = [
        "evil.example.com",
        "evil.localhost",
        "localhost.evil.com",
        "a@localhost",
        "localhost:x",
        "localhost/",
        "",
        ":80",
    ]
    assert statuses(named, allowed) == dict.fromkeys(allowed, 200)
    assert statuses(named, [*rejected, "10.0.0.9"]) == dict.fromkeys([*rejected, "10.0.0.9"], 400)
    assert statuses(wildcard, ["10.0.0.9:80", "[fe80::1]"]) == {"10.0.0.9:80": 200, "[fe80::1]": 200}
    assert statuses(wildcard, rejected) == dict.fromkeys(rejected, 400)
    response = named.post(
        "/predict", content=DIGIT.read_bytes(), headers={"host": "evil.com", "content-type": "image/png"}
    )
    assert (response.status_code, list(response.json())) == (400, ["error"])


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
        ({"origin": "https://localhost"}, 200),  # from a proxy with TLS
        ({"origin": "http://localhost:9000"}, 403),
        ({"origin": "http://evil.example.com"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://["}, 403),
        ({"origin": ""}, 403),
    ],
)
def test_pages_of_other_origins_cannot_post(client, files, headers, status):
    for path in ("/predict", "/"):
        assert client.post(path, files=form_files(files[0]), headers=headers).status_code == status
        assert client.get(path, headers=headers).status_code == {"/predict": 405, "/": 200}[path]


def basic(password):
    return {"authorization": "Basic " + base64.b64encode(password.encode()).decode()}


def test_token(task, files, monkeypatch):
    """The token is a bearer token, or the password of basic authentication, as browsers send it."""
    compared = []
    real = access.secrets.compare_digest
    monkeypatch.setattr(access.secrets, "compare_digest", lambda *both: compared.append(both) or real(*both))
    client = TestClient(serving.create_app(task, RUN_INFO, token="s3cret:token"), "http://localhost")
    bearer = {"authorization": "Bearer s3cret:token"}
    for valid in (bearer, {"authorization": "bearer  s3cret:token"}, basic(":s3cret:token"), basic("me:s3cret:token")):
        assert client.get("/run", headers=valid).json() == RUN_INFO
        assert client.post("/predict", files=form_files(files[0]), headers=valid).status_code == 200
        assert client.post("/", files=form_files(files[0]), headers=valid).status_code == 200
        assert client.get("/metrics", headers=valid).status_code == 200
    invalid = [{}, basic("s3cret:token:"), basic(":"), {"authorization": "Basic %%"}, {"authorization": "s3cret:token"}]
    invalid += [{"authorization": f"Bearer {other}"} for other in ("", "s3cret:toke", "s3cret:token2", "ſ3cret")]
    invalid = [{name: value.encode() for name, value in headers.items()} for headers in invalid]
    for headers in invalid:
        for path in ("/", "/run", "/metrics", "/nothing", "/run?token=s3cret:token"):
            response = client.get(path, headers=headers)
            assert response.status_code == 401
            assert response.headers["www-authenticate"].startswith("Basic")
            assert RUN_INFO["recipe"] not in response.text
        assert client.post("/predict", files=form_files(files[0]), headers=headers).status_code == 401
    assert [client.get(path).status_code for path in ("/health", "/ready")] == [200, 200]
    assert {token for _, token in compared} == {b"s3cret:token"}
    page = client.get("/", headers=bearer).text
    assert "Authorization: Bearer $FUKAMI_TOKEN" in html.unescape(page)
    assert "s3cret" not in page


@pytest.mark.parametrize("token", ["short", "with a space in it", "schlüsselwort"])
def test_invalid_token_is_rejected(fukami, monkeypatch, token):
    result = fukami("serve", "deep-convnet", "--token", token)
    assert result.status == 2
    assert "8 or more" in result.err
    monkeypatch.setenv("FUKAMI_TOKEN", token)
    assert fukami("serve", "deep-convnet").status == 2


# concurrency


class BlockingTask(package.Task):
    """Task that waits for ``release`` before it predicts, and records the sizes of its inputs."""

    def __init__(self):
        self.release, self.input_sizes = threading.Event(), []

    def predict(self, inputs):
        self.input_sizes += [image.size for image in inputs]
        assert self.release.wait(60)
        return [{"label": "x"} for _ in inputs]


def wait_until(condition):
    """Wait until a condition holds."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def make_png(width):
    buffer = io.BytesIO()
    Image.new("L", (width, 9), 200).save(buffer, "PNG")
    return buffer.getvalue()


def post_image(client, width=8):
    return client.post("/predict", content=make_png(width), headers={"content-type": "image/png"})


def read_metric(client, name, **labels):
    text = client.get("/metrics").text
    families = text_string_to_metric_families(text)
    return sum(
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def test_requests_beyond_the_queue_are_rejected(monkeypatch):
    monkeypatch.setattr(worker, "MAX_REQUESTS", 3)
    task = BlockingTask()
    client = make_client(task)
    with ThreadPoolExecutor(3) as pool:
        accepted = [pool.submit(post_image, client) for _ in range(3)]
        wait_until(lambda: read_metric(client, "fukami_queue_length") == 3)
        for response in (post_image(client), client.post("/", files=[("file", ("a.png", make_png(8)))])):
            assert response.status_code == 429
            assert 1 <= int(response.headers["retry-after"]) <= 60
            assert "try again later" in response.text
        assert client.post("/predict", content=b"x", headers={"content-type": "multipart/form-data"}).status_code == 429
        assert client.get("/health").status_code == client.get("/run").status_code == 200
        assert client.get("/ready").status_code == 503
        task.release.set()
        assert [future.result().status_code for future in accepted] == [200] * 3
    wait_until(lambda: read_metric(client, "fukami_queue_length") == 0)
    assert client.get("/ready").json() == {"status": "ready"}
    assert post_image(client).status_code == 200
    assert len(task.input_sizes) == 4


def test_buffered_bodies_are_bounded(monkeypatch):
    monkeypatch.setattr(worker, "MAX_BUFFERED_BYTES", 5000)
    task = BlockingTask()
    task.release.set()
    client = make_client(task)
    large = make_png(8) + bytes(5000)
    for content in (large, iter([large[:3000], large[3000:]])):
        response = client.post("/predict", content=content, headers={"content-type": "image/png"})
        assert (response.status_code, "retry-after" in response.headers) == (429, True)
    assert post_image(client).status_code == 200  # rejected bodies are released


def test_overdue_image_fails_and_keeps_its_slot_until_it_ends():
    """An overdue image that has not started is never predicted."""
    task = BlockingTask()
    client = make_client(task, request_timeout=2)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(post_image, client, 11)
        wait_until(lambda: task.input_sizes)
        second = pool.submit(post_image, client, 12)
        for response in (first.result(), second.result()):
            assert (response.status_code, response.headers["retry-after"]) == (503, "60")
            assert "2 seconds" in response.json()["error"]
    assert read_metric(client, "fukami_queue_length") == 1
    assert client.get("/ready").status_code == 503
    task.release.set()
    wait_until(lambda: read_metric(client, "fukami_queue_length") == 0)
    assert client.get("/ready").status_code == 200
    assert post_image(client, 13).status_code == 200
    assert task.input_sizes == [(11, 9), (13, 9)]
    assert read_metric(client, "fukami_predictions_total", result="timeout") == 2


def test_metrics(files):
    task = BlockingTask()
    task.release.set()
    client = make_client(task)
    for path in ("/predict", "/"):
        client.post(path, files=[*form_files(*files[:3]), ("file", ("a.png", b"x"))])
    client.post("/predict", json={})
    for index in range(3):
        client.get(f"/unknown-{index}")
    client.get("/health", headers={"host": "evil.com"})
    assert read_metric(client, "fukami_predictions_total", result="success") == 6
    assert read_metric(client, "fukami_predictions_total", result="error") == 2
    assert read_metric(client, "fukami_prediction_seconds_count") == 8
    assert read_metric(client, "fukami_requests_total", path="/predict", status="200") == 1
    assert read_metric(client, "fukami_requests_total", path="/predict", status="415") == 1
    assert read_metric(client, "fukami_requests_total", path="other", status="404") == 3
    assert read_metric(client, "fukami_requests_total", path="/health", status="400") == 1
    assert read_metric(client, "fukami_request_seconds_count", path="/") == 1
    assert read_metric(client, "fukami_requests_in_flight") == 1  # this request
    assert client.get("/metrics").headers["content-type"].startswith("text/plain; version=")


def test_too_many_files_in_a_request(client):
    response = client.post("/predict", files=[("file", (f"{index}.png", b"x")) for index in range(101)])
    assert response.status_code == 400
    assert "100" in response.json()["error"]


# decoder


@pytest.fixture
def decoder():
    decoder = Decoder(max_pixels=10_000, timeout=60)
    yield decoder
    decoder.close()


def test_decoder_equals_read_image(decoder, tmp_path):
    image = Image.linear_gradient("L").resize((50, 40))
    for mode, suffix in (("L", "png"), ("RGB", "jpg"), ("RGBA", "png"), ("P", "gif")):
        path = tmp_path / f"{mode.replace(';', '')}.{suffix}"
        image.convert(mode).save(path)
        decoded, expected = decoder.decode(path.read_bytes(), "x"), image_io.read_image(path)
        assert (decoded.mode, decoded.size, decoded.tobytes()) == (expected.mode, expected.size, expected.tobytes())
    for content in (b"", b"x", make_png(8)[:40], make_png(5000)):
        with pytest.raises(package.Error) as decoder_error:
            decoder.decode(content, "näme\n.png")
        with pytest.raises(package.Error) as reader_error:
            image_io.read_image(content, name="näme\n.png", max_pixels=10_000)
        assert str(decoder_error.value) == str(reader_error.value)


def test_decoder_keeps_channels_and_depth(decoder, random):
    samples = random.integers(0, 65536, (9, 8, 5), np.uint16)
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, samples, photometric="minisblack", planarconfig="contig")
    assert np.array_equal((decoder.decode(buffer.getvalue(), "x.tif").levels * 257).round(), samples)
    decoder.channels = 4
    with pytest.raises(package.Error, match=r"^x\.tif has 5 channels, and the network expects 4"):
        decoder.decode(buffer.getvalue(), "x.tif")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot stop processes")
@pytest.mark.parametrize("more", [0, 2**20])
def test_decoder_is_killed_after_the_timeout(decoder, more):
    """A stopped process, before or after it has read the whole message."""
    first = decoder.start()
    first.send_signal(signal.SIGSTOP)
    decoder.timeout = 0.2
    with pytest.raises(package.Error, match=r"^a\.png took more than 0.2 seconds to decode"):
        decoder.decode(make_png(8) + bytes(more), "a.png")
    assert first.poll() is not None
    decoder.timeout = 60
    assert decoder.decode(make_png(8), "a.png").size == (8, 9)


def test_crashed_decoder_is_replaced(decoder, monkeypatch):
    """A crash during decoding, and between two images."""
    real = decoding._send

    def send(pipe, head, content):
        decoder.process.kill()
        decoder.process.wait()
        real(pipe, head, content)

    with monkeypatch.context() as patch:
        patch.setattr(decoding, "_send", send)
        with pytest.raises(package.Error, match=r"^a\.png crashed the decoder"):
            decoder.decode(make_png(8), "a.png")
    assert decoder.decode(make_png(8), "a.png").size == (8, 9)
    decoder.process.kill()
    decoder.process.wait()
    assert decoder.decode(make_png(8), "a.png").size == (8, 9)


@pytest.mark.skipif(sys.platform != "linux", reason="the limit exists only on Linux")
def test_decoder_memory_is_bounded():
    code = "from fukami.serving import decoder; decoder.MAX_MEMORY = 400 * 2**20; decoder.main()"
    buffer = io.BytesIO()
    Image.new("RGBA", (10_000, 9_000)).save(buffer, "PNG", compress_level=1)
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        for content, error in ((buffer.getvalue(), True), (make_png(8), False)):
            decoding._send(process.stdin, {"name": "a.png", "max_pixels": 10**8, "channels": 3}, content)
            response, _ = decoding._receive(process.stdout)
            assert ("a.png needs more memory" in response.get("error", "")) == error
        process.stdin.close()
        assert process.wait(60) == 0  # it ends with its input


# connections


@contextlib.contextmanager
def run_server(application, limit=100):
    """Run a server in a thread of this process, and yield its port."""
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
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    connection.sendall(content)
    return connection


def receive_all(connection):
    """Receive all bytes until the end of a connection."""
    content = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := connection.recv(2**16):
            content += chunk
    return content


def exchange(port, content):
    """Send a request on a new connection, and return the response."""
    with connect(port, content) as connection:
        return receive_all(connection)


GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
POST = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: image/png\r\n"


@pytest.mark.parametrize(
    "start", [b"", b"GET /health HTTP/1.1\r\nHost: local", GET[:-2].replace(b"close", b"keep-alive")]
)
def test_head_timeout(monkeypatch, start):
    """A silent client, and one that keeps sending slowly."""
    monkeypatch.setattr(connections, "HEAD_TIMEOUT", 0.3)
    with run_server(serving.create_app(BlockingTask(), RUN_INFO)) as port, connect(port, start) as slow:
        slow.settimeout(0.02)
        for _ in range(3000):
            with contextlib.suppress(TimeoutError, ConnectionResetError, BrokenPipeError):
                slow.send(b"x" if start else b"")
                if slow.recv(1) == b"":
                    break
        else:
            raise AssertionError
        assert exchange(port, GET).startswith(b"HTTP/1.1 200")


def test_body_timeout(monkeypatch):
    monkeypatch.setattr(connections, "BODY_TIMEOUT", 0.3)
    with run_server(serving.create_app(BlockingTask(), RUN_INFO)) as port:
        with connect(port, POST + b"Content-Length: 9999\r\n\r\nxx") as slow:
            assert b"408 Request Timeout" in (response := receive_all(slow))
        assert "try again" in json.loads(response.partition(b"\r\n\r\n")[2])["error"]


LENGTH = 50 * 2**20  # larger than the buffers between server and client


async def long_response(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % LENGTH)]})
    await send({"type": "http.response.body", "body": bytes(LENGTH)})


@pytest.mark.parametrize("request_", [GET, GET.replace(b"close", b"keep-alive")], ids=["close", "keep-alive"])
def test_send_timeout(monkeypatch, request_):
    """The rest of a response is not sent after the timeout."""
    monkeypatch.setattr(connections, "HEAD_TIMEOUT", 0.1)
    monkeypatch.setattr(connections, "SEND_TIMEOUT", 0.3)
    lost, real = threading.Event(), connections.Connection.connection_lost
    monkeypatch.setattr(connections.Connection, "connection_lost", lambda *both: lost.set() or real(*both))
    with run_server(long_response) as port, connect(port, request_) as slow:
        assert lost.wait(60)
        assert len(receive_all(slow)) < LENGTH


def test_send_timeout_of_pipelined_requests(monkeypatch):
    """A client that sends many requests and reads no response is disconnected."""
    monkeypatch.setattr(connections, "SEND_TIMEOUT", 0.3)
    lost, real = threading.Event(), connections.Connection.connection_lost
    monkeypatch.setattr(connections.Connection, "connection_lost", lambda *both: lost.set() or real(*both))
    requests = 3 * GET.replace(b"close", b"keep-alive")
    with run_server(long_response) as port, connect(port, requests) as slow:
        assert lost.wait(60)
        assert len(receive_all(slow)) < LENGTH


def test_send_timeout_with_the_start_of_a_request(monkeypatch):
    """A client that sends one byte from time to time and reads no response is disconnected."""
    monkeypatch.setattr(connections, "HEAD_TIMEOUT", 0.1)
    monkeypatch.setattr(connections, "SEND_TIMEOUT", 0.5)
    lost, real = threading.Event(), connections.Connection.connection_lost
    monkeypatch.setattr(connections.Connection, "connection_lost", lambda *both: lost.set() or real(*both))
    with run_server(long_response) as port, connect(port, GET.replace(b"close", b"keep-alive")) as slow:
        for byte in GET[:20]:  # not a whole head
            with contextlib.suppress(OSError):
                slow.send(bytes([byte]))
            if lost.wait(0.2):
                break
        assert lost.is_set()


def test_head_timeout_does_not_apply_to_responses(monkeypatch):
    monkeypatch.setattr(connections, "HEAD_TIMEOUT", 0.1)
    started, real = threading.Event(), connections.Connection.start_timeout

    def start(self, phase):
        real(self, phase)
        if phase == "sent":
            started.set()

    monkeypatch.setattr(connections.Connection, "start_timeout", start)
    with run_server(long_response) as port, connect(port, GET.replace(b"close", b"keep-alive")) as slow:
        assert started.wait(60)
        received = 0
        while received < LENGTH:
            length = len(slow.recv(2**20))
            assert length
            received += length


def test_idle_connection_makes_room_for_a_new_one(monkeypatch):
    """The oldest one that waits for a head goes first, then one that waits for a body; never a running one."""
    task = BlockingTask()
    with run_server(serving.create_app(task, RUN_INFO), limit=4) as port:
        content = make_png(8)
        running = connect(port, POST + f"Content-Length: {len(content)}\r\n\r\n".encode() + content)
        wait_until(lambda: task.input_sizes)
        waiting_for_body = connect(port, POST + b"Content-Length: 9999\r\n\r\n")
        wait_until(lambda: read_gauge(port, "fukami_requests_in_flight") == 3)  # including this request
        first, second = connect(port), connect(port)
        wait_until(lambda: exchange(port, GET).startswith(b"HTTP/1.1 200"))
        assert first.recv(1) == b""
        others = [connect(port), connect(port)]
        assert second.recv(1) == b""
        more = connect(port)
        assert others[0].recv(1) == b""
        task.release.set()
        assert receive_all(running).startswith(b"HTTP/1.1 200")
        for connection in (running, waiting_for_body, first, second, more, *others):
            connection.close()


@pytest.mark.parametrize("path", [b"/predict", b"/run", b"/nothing"])
def test_error_reaches_a_client_that_is_still_sending(path):
    """Closing a connection with unread bytes would reset it, and the response would be lost."""
    head = POST.replace(b"/predict", path).replace(b"image/png", b"text/plain") + b"Content-Length: 20000000\r\n\r\n"
    with run_server(serving.create_app(BlockingTask(), RUN_INFO)) as port:
        for _ in range(5):
            with connect(port, head) as client:
                for _ in range(20):
                    client.sendall(bytes(1_000_000))
                assert client.recv(12) in (b"HTTP/1.1 415", b"HTTP/1.1 405", b"HTTP/1.1 404")


def test_disconnected_client_is_not_processed():
    task = BlockingTask()
    with run_server(serving.create_app(task, RUN_INFO)) as port:
        clients = []
        for width in (11, 12, 13):
            content = make_png(width)
            clients.append(connect(port, POST + f"Content-Length: {len(content)}\r\n\r\n".encode() + content))
            wait_until(lambda: read_gauge(port, "fukami_queue_length") == len(clients))
        wait_until(lambda: task.input_sizes)
        clients[1].close()
        wait_until(lambda: read_gauge(port, "fukami_queue_length") == 2)
        task.release.set()
        assert receive_all(clients[0]).startswith(b"HTTP/1.1 200")
        assert receive_all(clients[2]).startswith(b"HTTP/1.1 200")
        assert task.input_sizes == [(11, 9), (13, 9)]
        assert b'result="timeout"' not in exchange(port, GET.replace(b"/health", b"/metrics"))
        for client in clients:
            client.close()


def test_started_requests_are_rejected_when_the_queue_is_full(monkeypatch):
    monkeypatch.setattr(worker, "MAX_REQUESTS", 3)
    task, content = BlockingTask(), make_png(8)
    with run_server(serving.create_app(task, RUN_INFO)) as port, contextlib.ExitStack() as stack:
        start = POST + f"Content-Length: {len(content)}\r\n\r\n".encode() + content[:9]
        clients = [stack.enter_context(connect(port, start)) for _ in range(8)]
        wait_until(lambda: read_gauge(port, "fukami_requests_in_flight") == 9)
        for client in clients:
            client.sendall(content[9:])
        wait_until(lambda: read_gauge(port, "fukami_requests_in_flight") == 4)
        task.release.set()
        statuses = Counter(receive_all(client)[:12] for client in clients)
    assert statuses == {b"HTTP/1.1 200": 3, b"HTTP/1.1 429": 5}


def read_gauge(port, name):
    """Read a value of the metrics."""
    text = exchange(port, GET.replace(b"/health", b"/metrics")).decode()
    return float(re.search(rf"^{name} (\S+)", text, re.MULTILINE)[1])


def test_every_concurrent_request_gets_a_response(monkeypatch):
    monkeypatch.setattr(worker, "MAX_REQUESTS", 5)
    task = BlockingTask()
    with run_server(serving.create_app(task, RUN_INFO), limit=1000) as port, ThreadPoolExecutor(100) as pool:
        content = make_png(8)
        message = POST + f"Content-Length: {len(content)}\r\n\r\n".encode() + content

        def request_status(message):
            with connect(port, message) as client:
                return receive_all(client)[:12]

        futures = [pool.submit(request_status, message) for _ in range(300)]
        wait_until(lambda: read_gauge(port, "fukami_queue_length") == 5)
        assert [request_status(GET) for _ in range(10)] == [b"HTTP/1.1 200"] * 10
        task.release.set()
        statuses = Counter(future.result() for future in futures)
    assert set(statuses) == {b"HTTP/1.1 200", b"HTTP/1.1 429"}
    assert statuses[b"HTTP/1.1 200"] >= 5


# command


def test_responses_contain_no_server_path(task, tmp_path):
    folder = tmp_path / "secret-place"
    shutil.copytree(run_folder.BUNDLED_WEIGHTS_DIR / "deep-convnet", folder)
    run_info = command.build_run_info(task, (str(folder), "deep-convnet"), "auto", None)
    assert run_info == {**RUN_INFO, "members": 2, "versions": run_info["versions"]}
    client = TestClient(serving.create_app(BlockingTask(), run_info), "http://localhost")
    for path in ("/", "/run", "/openapi.json", "/docs", "/nothing", "/metrics", "/ready"):
        assert "secret-place" not in client.get(path).text


@pytest.mark.parametrize(
    ("text", "name"),
    [("demo.example.com", "demo.example.com"), ("demo.example.com:8443", "demo.example.com"),
     ("[2001:db8::1]:80", "2001:db8::1"), ("2001:db8::1", "2001:db8::1")],
)  # fmt: skip
def test_allowed_hosts_may_have_a_port(text, name):
    assert access.parse_host(text) == name


@pytest.mark.parametrize("text", ["https://demo.example.com", "demo/x", ""])
def test_allowed_hosts_are_names(text):
    with pytest.raises(UsageError, match="--allowed-hosts should be names"):
        access.parse_host(text)


def test_an_image_that_exceeds_the_memory_does_not_change_the_next_one(monkeypatch):
    """The rest of its message would be the response to the next image."""
    decoder, receive = Decoder(10_000, 20), decoding._receive

    def fail(pipe):
        raise MemoryError

    monkeypatch.setattr(decoding, "_receive", fail)
    with pytest.raises(MemoryError):
        decoder.decode(make_png(8), "a.png")
    monkeypatch.setattr(decoding, "_receive", receive)
    assert decoder.decode(make_png(16), "b.png").width == 16
    decoder.close()


def test_a_style_run_that_keeps_the_size_of_images_is_not_served():
    task = object.__new__(StyleTransferTask)
    task.options = SimpleNamespace(longer_side=0)
    with pytest.raises(UsageError, match="add --set size=512"):
        serving.create_app(task, {})


def test_an_empty_host_is_an_error():
    """For a socket, it is every address of the machine."""
    with pytest.raises(UsageError, match="--host should be an address"):
        command.listen("", 0)


def test_token_from_the_environment_is_removed_from_it(monkeypatch, fukami):
    settings = {}
    application = SimpleNamespace(state=SimpleNamespace(worker=SimpleNamespace(used_slots=0)))
    monkeypatch.setattr(serving, "create_app", lambda *_, **options: settings.update(options) or application)
    monkeypatch.setattr(
        uvicorn, "Server", lambda config: settings.update(config=config) or SimpleNamespace(run=lambda **_: 0)
    )
    monkeypatch.setattr(uvicorn, "Config", lambda *arguments, **options: options)
    monkeypatch.setenv("FUKAMI_TOKEN", "from-the-environment")
    assert fukami("serve", "deep-convnet", "--port", "0", "--allowed-hosts", "a.example.com", "b").status == 130
    assert settings["request_timeout"] == 60
    assert "FUKAMI_TOKEN" not in os.environ
    assert settings["token"] == "from-the-environment"
    assert settings["hosts"] == {"localhost", "127.0.0.1", "::1", "a.example.com", "b"}
    monkeypatch.setenv("FUKAMI_TOKEN", "from-the-environment")
    others = ["--host", "0.0.0.0", "--token", "from-the-command", "--request-timeout", "9"]
    fukami("serve", "deep-convnet", "--port", "0", *others)
    assert settings["request_timeout"] == 9
    assert settings["token"] == "from-the-command"
    assert "0.0.0.0" in settings["hosts"]
    assert settings["config"]["http"].keywords["max_connections"] <= 4096


@pytest.mark.skipif(sys.platform == "win32", reason="sockets are not files on Windows")
def test_file_limit_is_raised_to_the_maximum():
    code = (
        "import resource; from fukami.cli.serve import raise_file_limit\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (200, 900))\n"
        "print(raise_file_limit(), resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.split() == ["900", "900"]


def test_confidence_of_a_task_without_boxes_is_rejected_before_decoding(task, monkeypatch):
    client = TestClient(serving.create_app(task, RUN_INFO), "http://localhost")
    response = client.post("/predict", files={"file": ("a.png", b"no image")}, data={"confidence": "0.5"})
    assert response.status_code == 422
    assert response.json() == {"error": "this run predicts no boxes; omit the field confidence"}

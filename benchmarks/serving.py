"""Load test of ``fukami serve``: many clients, idle clients, slow clients and hostile files.

    python benchmarks/serving.py [burst] [idle] [files] [memory] [--scale 1] [--record]

Each benchmark starts a server of the bundled DeepConvNet on loopback:

burst: 2,000 requests, 1,000 at once: number of responses other than 200 and 429, including none; and the slowest of the
    concurrent requests for /health.
idle: 110 silent sockets, 110 clients that send the header byte by byte and 110 that send the body so: the slowest of 20
    concurrent predictions.
files: small files that are expensive to decode: the slowest rejection, and the slowest concurrent prediction.
memory: growth of the server's memory (VmRSS, both processes) from 500 to 5,000 predictions.

``--scale 0.1`` runs a tenth of the load. Each prints JSON lines; with ``--record`` the results go to results.csv.
"""

import argparse
import asyncio
import collections
import contextlib
import io
import json
import re
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from common.record import record

DIGIT = (Path(__file__).parents[1] / "docs" / "digit.png").read_bytes()
TIMEOUT = 120  # seconds until a response


@contextlib.contextmanager
def start_server():
    """Start a server; yield its process and port."""
    command = [sys.executable, "-m", "fukami", "serve", "deep-convnet", "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        yield process, int(re.search(r":(\d+);", process.stderr.readline())[1])
    finally:
        process.terminate()
        process.wait(60)


def build_request(path="/predict", content=DIGIT, content_type="image/png"):
    """Build the bytes of a POST request, or of a GET request without content."""
    lines = [f"{'POST' if content else 'GET'} {path} HTTP/1.1", "host: localhost", "connection: close"]
    lines += [f"content-type: {content_type}", f"content-length: {len(content)}"] if content else []
    return "\r\n".join([*lines, "", ""]).encode() + content


async def send_request(port, message):
    """Send a request; return the status of the response, or the name of the error, and the seconds."""
    start = time.monotonic()
    try:
        async with asyncio.timeout(TIMEOUT):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(message)
                await writer.drain()
                response = await reader.read()
            finally:
                writer.close()
        status = response.split(b" ")[1].decode() if response else "closed"
    except (OSError, TimeoutError) as error:
        status = type(error).__name__
    return status, time.monotonic() - start


async def send_repeatedly(port, message, interval, stop):
    """Send a request repeatedly until ``stop`` is set; return the count of each status and the maximum seconds."""
    statuses, longest = collections.Counter(), 0.0
    while not stop.is_set():
        status, seconds = await send_request(port, message)
        statuses[status] += 1
        longest = max(longest, seconds)
        await asyncio.sleep(interval)
    return statuses, longest


async def measure_burst(process, port, scale):
    """Send many requests at once."""
    count, stop = round(2000 * scale), asyncio.Event()
    health = asyncio.ensure_future(send_repeatedly(port, build_request("/health", b""), 0.05, stop))
    semaphore = asyncio.Semaphore(round(1000 * scale))

    async def send():
        async with semaphore:
            return await send_request(port, build_request())

    responses = await asyncio.gather(*(send() for _ in range(count)))
    stop.set()
    statuses = collections.Counter(status for status, _ in responses)
    health_statuses, longest = await health
    yield "responses other than 200 and 429", count - statuses["200"] - statuses["429"], {**statuses}
    yield "health checks other than 200", sum(health_statuses.values()) - health_statuses["200"], {**health_statuses}
    yield "slowest health check, seconds", longest, {}


async def measure_idle(process, port, scale):
    """Open connections that send little or nothing."""
    count = round(110 * scale)
    message, clients = build_request(), []
    prefixes = [b"", message[:20], message[: message.index(b"\r\n\r\n") + 10]]

    async def trickle(writer):
        with contextlib.suppress(OSError):
            while True:
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(1)

    for prefix in prefixes:
        for _ in range(count):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(prefix)
            clients.append((reader, writer, asyncio.ensure_future(trickle(writer)) if prefix else None))
    statuses, longest = collections.Counter(), 0.0
    for _ in range(20):
        status, seconds = await send_request(port, build_request())
        statuses[status] += 1
        longest = max(longest, seconds)
        await asyncio.sleep(0.1)
    yield "slowest prediction with idle and slow clients, seconds", longest, {**statuses}
    start = time.monotonic()
    async with asyncio.timeout(TIMEOUT):
        for reader, _, task in clients[: 2 * count]:
            with contextlib.suppress(OSError):
                await reader.read()
            if task:
                task.cancel()
    yield "seconds until clients without a header are closed", time.monotonic() - start, {}
    for _, writer, task in clients:
        writer.close()
        if task:
            task.cancel()


def build_hostile_files():
    """Yield names and contents of small files that occupied a server for a minute or used gigabytes."""

    def chunk(chunk_type, data):
        return struct.pack(">I", len(data)) + chunk_type + data + struct.pack(">I", zlib.crc32(chunk_type + data))

    def png(width, height, values):
        header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
        body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(values), 9)) + chunk(b"IEND", b"")
        return b"\x89PNG\r\n\x1a\n" + body

    yield "tall", png(1, 99_999_999, 199_999_998)
    yield "wide", png(99_999_999, 1, 100_000_000)
    buffer = io.BytesIO()
    Image.new("L", (10_000, 5_000)).save(buffer, "JPEG", progressive=True)
    scans = buffer.getvalue()
    yield "scans", scans[:-2] + 50_000 * re.findall(rb"\xff\xda\x00\x08.{6}", scans, re.DOTALL)[-1] + b"\xff\xd9"
    segment = b"\xff\xe1\x00\x0cExif\0\0abcd"
    yield "exif", scans[:2] + 500_000 * segment + scans[2:]
    buffer_16bit = io.BytesIO()
    Image.fromarray(np.zeros((7_000, 7_000), np.uint16)).save(buffer_16bit, "PNG")
    yield "deep", buffer_16bit.getvalue()


async def measure_files(process, port, scale):
    """Send hostile files, which are rejected, and other requests at the same time."""
    slowest, sizes = {}, {}
    stop = asyncio.Event()
    others = asyncio.ensure_future(send_repeatedly(port, build_request(), 0.05, stop))
    for name, content in build_hostile_files():
        status, slowest[name] = await send_request(port, build_request(content=content))
        sizes[name] = f"{status}, {len(content):,} bytes, {slowest[name]:.2f} s"
    stop.set()
    statuses, longest = await others
    yield "slowest rejection of a hostile file, seconds", max(slowest.values()), sizes
    yield "slowest prediction during hostile files, seconds", longest, {**statuses}


def read_memory(process):
    """Return the resident memory (VmRSS) of a process and its children in bytes."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    texts = [Path(f"/proc/{process_id}/status").read_text() for process_id in (process.pid, *children)]
    return sum(1024 * int(re.search(r"VmRSS:\s+(\d+)", text)[1]) for text in texts)


def build_small_image():
    """Build a 28×28 image of a digit, which takes a tenth of the time of a photograph."""
    buffer = io.BytesIO()
    pixels = np.zeros((28, 28), np.uint8)
    pixels[4:24, 12:15] = 255
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


async def measure_memory(process, port, scale):
    """Measure the memory after many predictions, one in ten of a photograph."""
    semaphore = asyncio.Semaphore(8)
    statuses = collections.Counter()
    messages = [build_request(), *9 * [build_request(content=build_small_image())]]

    async def send(index):
        async with semaphore:
            status, _ = await send_request(port, messages[index % 10])
            statuses[status] += 1

    levels = []
    for count in (500, 4500):
        await asyncio.gather(*(send(index) for index in range(round(count * scale))))
        levels.append(read_memory(process))
    note = {**statuses, "megabytes": [round(level / 1e6, 1) for level in levels]}
    yield "growth of memory from 500 to 5,000 predictions", levels[1] / levels[0] - 1, note


async def measure(name, options, process, port):
    """Run one benchmark, print and record its results."""
    await send_request(port, build_request())  # the first prediction is slower
    async for metric, value, note in globals()[f"measure_{name}"](process, port, options.scale):
        print(json.dumps({"benchmark": f"serving {name}", "metric": metric, "value": value, **note}), flush=True)
        if options.record:
            text = "; ".join(f"{key}: {content}" for key, content in note.items())
            command = f"python benchmarks/serving.py {name} --scale {options.scale:g}"
            record(f"serving {name}", metric, value, command=command, note=text, device="cpu")


def main():
    """Run the selected benchmarks, or all."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ["burst", "idle", "files", "memory"]
    options.add_argument("benchmarks", nargs="*", metavar="NAME", help=", ".join(names))
    options.add_argument("--scale", type=float, default=1.0)
    options.add_argument("--record", action="store_true")
    options = options.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # also ends the server
    for name in options.benchmarks or names:
        with start_server() as (process, port):
            asyncio.run(measure(name, options, process, port))


if __name__ == "__main__":
    main()

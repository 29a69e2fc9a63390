"""``fukami serve`` under many clients, idle ones, slow ones and hostile files.

    python benchmarks/serving.py [burst] [idle] [files] [memory] [--scale 1] [--record]

A server of the shipped DeepConvNet on loopback, in a process of its own, which ends with each benchmark:

burst: 2,000 requests, 1,000 at once: how many get another answer than 200 or 429, or none; and the slowest of the
    requests for /health that were made all the while.
idle: 110 silent sockets, 110 clients that send a head byte by byte and 110 that send a body so: the slowest of 20
    predictions for others beside them.
files: small files with much work in them: the slowest refusal, and the slowest prediction for others beside them.
memory: growth of the server's memory (VmRSS, both processes) from 500 predictions to 5,000.

``--scale 0.1`` does a tenth of it. Each prints a line of JSON; with ``--record`` they go to results.csv.
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
LONGEST = 120  # seconds that an answer is waited for


@contextlib.contextmanager
def server():
    """The process of a server, and its port."""
    command = [sys.executable, "-m", "fukami", "serve", "deep-convnet", "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        yield process, int(re.search(r":(\d+);", process.stderr.readline())[1])
    finally:
        process.terminate()
        process.wait(60)


def request(path="/predict", content=DIGIT, kind="image/png"):
    """The bytes of a request; without content a GET."""
    lines = [f"{'POST' if content else 'GET'} {path} HTTP/1.1", "host: localhost", "connection: close"]
    lines += [f"content-type: {kind}", f"content-length: {len(content)}"] if content else []
    return "\r\n".join([*lines, "", ""]).encode() + content


async def ask(port, message):
    """The status of the answer, or what went wrong instead, and its seconds."""
    began = time.monotonic()
    try:
        async with asyncio.timeout(LONGEST):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(message)
                await writer.drain()
                answer = await reader.read()
            finally:
                writer.close()
        status = answer.split(b" ")[1].decode() if answer else "closed"
    except (OSError, TimeoutError) as error:
        status = type(error).__name__
    return status, time.monotonic() - began


async def regularly(port, message, every, stop):
    """Ask again and again until ``stop`` is set: how often each status came, and the most seconds."""
    statuses, longest = collections.Counter(), 0.0
    while not stop.is_set():
        status, seconds = await ask(port, message)
        statuses[status] += 1
        longest = max(longest, seconds)
        await asyncio.sleep(every)
    return statuses, longest


async def burst(process, port, scale):
    """Many requests at once."""
    count, stop = round(2000 * scale), asyncio.Event()
    health = asyncio.ensure_future(regularly(port, request("/health", b""), 0.05, stop))
    places = asyncio.Semaphore(round(1000 * scale))

    async def one():
        async with places:
            return await ask(port, request())

    found = await asyncio.gather(*(one() for _ in range(count)))
    stop.set()
    statuses = collections.Counter(status for status, _ in found)
    healths, longest = await health
    yield "answers other than 200 and 429", count - statuses["200"] - statuses["429"], {**statuses}
    yield "health checks other than 200", sum(healths.values()) - healths["200"], {**healths}
    yield "slowest health check, seconds", longest, {}


async def idle(process, port, scale):
    """Clients that hold connections and send little or nothing."""
    count = round(110 * scale)
    begun, each = request(), []
    heads = [b"", begun[:20], begun[: begun.index(b"\r\n\r\n") + 10]]

    async def trickle(writer):
        with contextlib.suppress(OSError):
            while True:
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(1)

    for head in heads:
        for _ in range(count):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(head)
            each.append((reader, writer, asyncio.ensure_future(trickle(writer)) if head else None))
    statuses, longest = collections.Counter(), 0.0
    for _ in range(20):
        status, seconds = await ask(port, request())
        statuses[status] += 1
        longest = max(longest, seconds)
        await asyncio.sleep(0.1)
    yield "slowest prediction beside idle and slow clients, seconds", longest, {**statuses}
    began = time.monotonic()
    async with asyncio.timeout(LONGEST):
        for reader, _, task in each[: 2 * count]:
            with contextlib.suppress(OSError):
                await reader.read()
            if task:
                task.cancel()
    yield "seconds until clients without a head are closed", time.monotonic() - began, {}
    for _, writer, task in each:
        writer.close()
        if task:
            task.cancel()


def hostile():
    """Small files, each of which kept a server busy for a minute or took gigabytes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    def png(width, height, values):
        head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
        body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(values), 9)) + chunk(b"IEND", b"")
        return b"\x89PNG\r\n\x1a\n" + body

    yield "tall", png(1, 99_999_999, 199_999_998)
    yield "wide", png(99_999_999, 1, 100_000_000)
    buffer = io.BytesIO()
    Image.new("L", (10_000, 5_000)).save(buffer, "JPEG", progressive=True)
    scans = buffer.getvalue()
    yield "scans", scans[:-2] + 50_000 * re.findall(rb"\xff\xda\x00\x08.{6}", scans, re.DOTALL)[-1] + b"\xff\xd9"
    exif = b"\xff\xe1\x00\x0cExif\0\0abcd"
    yield "exif", scans[:2] + 500_000 * exif + scans[2:]
    deep = io.BytesIO()
    Image.fromarray(np.zeros((7_000, 7_000), np.uint16)).save(deep, "PNG")
    yield "deep", deep.getvalue()


async def files(process, port, scale):
    """Files that are refused, and others meanwhile."""
    slowest, sizes = {}, {}
    stop = asyncio.Event()
    others = asyncio.ensure_future(regularly(port, request(), 0.05, stop))
    for name, content in hostile():
        status, slowest[name] = await ask(port, request(content=content))
        sizes[name] = f"{status}, {len(content):,} bytes, {slowest[name]:.2f} s"
    stop.set()
    statuses, longest = await others
    yield "slowest refusal of a hostile file, seconds", max(slowest.values()), sizes
    yield "slowest prediction beside hostile files, seconds", longest, {**statuses}


def memory_of(process):
    """VmRSS of a process and its children, in bytes."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    texts = [Path(f"/proc/{number}/status").read_text() for number in (process.pid, *children)]
    return sum(1024 * int(re.search(r"VmRSS:\s+(\d+)", text)[1]) for text in texts)


def small():
    """A digit of 28 by 28 pixels, which takes a tenth of the time of a photograph."""
    buffer = io.BytesIO()
    pixels = np.zeros((28, 28), np.uint8)
    pixels[4:24, 12:15] = 255
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


async def memory(process, port, scale):
    """Memory after many predictions, one in ten of a photograph."""
    places = asyncio.Semaphore(8)
    statuses = collections.Counter()
    messages = [request(), *9 * [request(content=small())]]

    async def one(number):
        async with places:
            status, _ = await ask(port, messages[number % 10])
            statuses[status] += 1

    levels = []
    for count in (500, 4500):
        await asyncio.gather(*(one(number) for number in range(round(count * scale))))
        levels.append(memory_of(process))
    note = {**statuses, "megabytes": [round(level / 1e6, 1) for level in levels]}
    yield "growth of memory from 500 to 5,000 predictions", levels[1] / levels[0] - 1, note


async def measure(name, options, process, port):
    """Do one of the benchmarks."""
    await ask(port, request())  # the first prediction is slower
    async for metric, value, note in globals()[name](process, port, options.scale):
        print(json.dumps({"benchmark": f"serving {name}", "metric": metric, "value": value, **note}), flush=True)
        if options.record:
            text = "; ".join(f"{key}: {found}" for key, found in note.items())
            command = f"python benchmarks/serving.py {name} --scale {options.scale:g}"
            record(f"serving {name}", metric, value, command=command, note=text)


def main():
    """Measure what was asked for, or all."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = ["burst", "idle", "files", "memory"]
    options.add_argument("benchmarks", nargs="*", metavar="NAME", help=", ".join(every))
    options.add_argument("--scale", type=float, default=1.0)
    options.add_argument("--record", action="store_true")
    options = options.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # which ends the server, too
    for name in options.benchmarks or every:
        with server() as (process, port):
            asyncio.run(measure(name, options, process, port))


if __name__ == "__main__":
    main()

"""HTTP server for tests with ``Range`` requests and interrupted responses; it prints its port.

Usage: ``range_server.py FOLDER BREAKS [TOGETHER]``

- BREAKS: the first BREAKS responses of more than 512 bytes end after two thirds; then every fifth request gets a 503.
  With ``bare``, the server supports neither Range nor Content-Length.
- TOGETHER: the first TOGETHER requests for shards get a response once all of them have arrived.
"""

import itertools
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

root, bare = Path(sys.argv[1]), sys.argv[2] == "bare"
breaks = 0 if bare else int(sys.argv[2])
together = int((*sys.argv, "0")[3])
barrier = threading.Barrier(max(together, 1))
request_numbers, shard_numbers = itertools.count(), itertools.count()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        request_number = next(request_numbers)
        if self.path.endswith(".tar") and next(shard_numbers) < together:
            try:
                barrier.wait(timeout=20)
            except threading.BrokenBarrierError:
                sys.stderr.write("timeout: a request waited for the others\n")
        if breaks and request_number >= breaks and request_number % 5 == 0:
            self.send_error(503)
            return
        try:
            content = (root / self.path.lstrip("/")).read_bytes()
        except OSError:
            self.send_error(404)
            return
        if bare:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content)
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", self.headers["Range"])[1])
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        body = content[start:]
        self.wfile.write(body[: len(body) * 2 // 3] if request_number < breaks and len(body) > 512 else body)

    def log_message(self, *message):
        sys.stderr.write(f"{self.headers['Range']} {message}\n")


ThreadingHTTPServer.request_queue_size = 64
server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
sys.stdout.write(f"port {server.server_port}\n")
sys.stdout.flush()
server.serve_forever()

"""An object store for the tests: knows ``Range``, and breaks off as often as it is told; tells its port.

FOLDER BREAKS [TOGETHER]: the first TOGETHER requests for shards are answered once all of them have arrived.
With ``bare`` for BREAKS it knows neither Range nor how long an answer will be.

Each answer of more than a block ends after two thirds until BREAKS answers did; then every fifth is a 503.
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
asked, shards = itertools.count(), itertools.count()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        number = next(asked)
        if self.path.endswith(".tar") and next(shards) < together:
            try:
                barrier.wait(timeout=20)
            except threading.BrokenBarrierError:
                sys.stderr.write("a request waited for the others in vain\n")
        if breaks and number >= breaks and number % 5 == 0:
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
        rest = content[start:]
        self.wfile.write(rest[: len(rest) * 2 // 3] if number < breaks and len(rest) > 512 else rest)

    def log_message(self, *words):
        sys.stderr.write(f"{self.headers['Range']} {words}\n")


ThreadingHTTPServer.request_queue_size = 64
server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
sys.stdout.write(f"port {server.server_port}\n")
sys.stdout.flush()
server.serve_forever()
